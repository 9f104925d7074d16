"""The comparison of a candidate with the expected gradient, within measured tolerances."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.verification.candidate import Answer
from jaxrnn.verification.expected import Expected
from jaxrnn.verification.leaf import EXACT, Leaf, compare
from jaxrnn.verification.problem import Dtype, Problem
from jaxrnn.verification.references import noise_of
from jaxrnn.verification.tolerances import measured_tolerances


class Comparison(NamedTuple):
    """The result of the comparison of a candidate with the expected gradient.

    Attributes:
        leaves: the comparison of each leaf of the candidate that has the shape of its parameter.
        same_loss: whether the losses agree.
        tolerance: the tolerance of each leaf by name, and of the "loss".
        precision: the precision of the comparison and its reason, if lower than that of `dtype`.
    """

    leaves: tuple[Leaf, ...]
    same_loss: bool
    tolerance: dict[str, float]
    precision: str

    @property
    def agrees(self) -> bool:
        """Whether the loss and every leaf agree."""
        return self.same_loss and all(leaf.ok for leaf in self.leaves)


def compare_leaves(
    answer: Answer, expected: Expected, problem: Problem, dtype: Dtype
) -> Comparison:
    """Compare within the strictest tolerance, and within the next one until everything agrees."""
    comparison = Comparison((), False, {}, "")
    for tolerance, precision in _tolerances(expected, problem, dtype):
        leaves = tuple(
            compare(name, answer.leaves[name], expected.values[name], tolerance[name])
            for name in fitting_leaves(answer, problem)
        )
        same_loss = abs(answer.loss - expected.loss) <= tolerance["loss"] * abs(expected.loss)
        comparison = Comparison(leaves, same_loss, tolerance, precision)
        if comparison.agrees:
            break
    if problem.precision:
        return comparison._replace(precision=f"to float32 precision because {problem.precision}")
    return comparison


def fitting_leaves(answer: Answer, problem: Problem) -> list[str]:
    """Return the names of the leaves that have the shape of their parameter and are not empty."""
    shapes = problem.shapes
    return [name for name, g in answer.leaves.items() if g.shape == shapes[name] and g.size]


def _tolerances(
    expected: Expected, problem: Problem, dtype: Dtype
) -> Iterator[tuple[dict[str, float], str]]:
    """Yield tolerances, the strictest first, each with a description of its precision.

    They are 1e-12, the measured rounding error of `dtype`, and that of the lowest precision in
    which the loss computes. Rounding errors are measured by autodiff; if JAX cannot differentiate
    the loss, the rounding noise of the loss itself is measured.
    """
    exact = dict.fromkeys(["loss", *problem.shapes], EXACT)
    if expected.failure:
        yield exact, ""
        if expected.measured:
            noise = noise_of(problem.loss, jax.tree.map(np.asarray, problem.params))
            yield exact | {"loss": max(EXACT, 10 * noise / abs(expected.loss))}, ""
        return
    if dtype == "float64":
        yield exact, ""
    yield measured_tolerances(problem, dtype), ""
    narrow = expected.program.precision
    if narrow is not None and jnp.finfo(narrow).eps > jnp.finfo(dtype).eps:
        tolerance = measured_tolerances(problem, narrow)
        yield tolerance, f"to {narrow} precision because the loss computes in {narrow}"
