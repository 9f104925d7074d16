"""The comparison of a candidate with what is expected, within tolerances that are measured."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.verification.candidate import Answer
from jaxrnn.verification.expected import Expected
from jaxrnn.verification.leaf import EXACT, Leaf, compare
from jaxrnn.verification.problem import Dtype, Problem, trace_program
from jaxrnn.verification.references import noise_of
from jaxrnn.verification.tolerances import measured_tolerances


class Comparison(NamedTuple):
    """A candidate beside what is expected.

    Attributes:
        leaves: one for each leaf of the candidate that has the shape of its parameter.
        same_loss: whether the losses agree.
        tolerance: of each leaf by name, and of the "loss".
        precision: how far the comparison reaches and why, if not to the rounding of `dtype`.
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
    """Compare within one tolerance after another, until everything agrees or there is no other."""
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
        return comparison._replace(precision=f"to float32: {problem.precision}")
    return comparison


def fitting_leaves(answer: Answer, problem: Problem) -> list[str]:
    """Return the names of the leaves that have the shape of their parameter and are not empty."""
    shapes = problem.shapes
    return [name for name, g in answer.leaves.items() if g.shape == shapes[name] and g.size]


def _tolerances(
    expected: Expected, problem: Problem, dtype: Dtype
) -> Iterator[tuple[dict[str, float], str]]:
    """Yield tolerances from the strictest, each with a word on the precision that it stands for.

    They are exactness to 1e-12, rounding in `dtype`, and rounding in the narrowest type in which
    the loss computes. Rounding is measured by autodiff; where JAX cannot differentiate the loss,
    the noise of the loss itself is measured.
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
    narrow = trace_program(problem).precision
    if narrow is not None and jnp.finfo(narrow).eps > jnp.finfo(dtype).eps:
        tolerance = measured_tolerances(problem, narrow)
        yield tolerance, f"to {narrow}: the loss computes in {narrow}"
