"""The expected gradient: by `jax.grad`, by differences, or by another gradient function."""

from typing import NamedTuple

import jax
import numpy as np

from jaxrnn.verification.candidate import arrays, ask
from jaxrnn.verification.leaf import ReferenceValues, compare
from jaxrnn.verification.problem import Dtype, Problem, ValueAndGrad, trace_program
from jaxrnn.verification.program import Program
from jaxrnn.verification.references import Reference, finite_difference
from jaxrnn.verification.tolerances import cannot_be_judged, measured_tolerances

Leaves = dict[str, np.ndarray]


class Expected(NamedTuple):
    """The loss and gradient that a candidate is compared with.

    Attributes:
        title: a description of the reference.
        loss: the loss of the reference.
        values: the gradient of each leaf by name, as far as the reference knows it.
        complete: the leaves of which every element is known, for the diagnosis. They come from
            autodiff if JAX can differentiate the loss and its derivative rules are right, else from
            the reference.
        failure: why JAX cannot differentiate the loss; "" if it can.
        measured: whether the reference only evaluates the loss, as finite differences do.
        program: what the traced loss shows, if JAX can differentiate it.
    """

    title: str
    loss: float
    values: dict[str, ReferenceValues]
    complete: Leaves
    failure: str = ""
    measured: bool = False
    program: Program = Program((), None)


def expected_gradient(
    problem: Problem, reference: Reference | ValueAndGrad | None, dtype: Dtype
) -> Expected:
    """Compute the expected gradient of a problem.

    Raises:
        ValueError: if the reference fails, or there is none and JAX cannot differentiate the loss.
    """
    loss, complete, failure = _differentiate(problem)
    if reference is None:
        if failure:
            raise ValueError(
                f"JAX cannot differentiate the loss ({failure}): write it with jax.numpy, or pass "
                "reference=jaxrnn.finite_difference()"
            )
        title = f"{problem.name}, in {dtype if problem.precision else 'float64'}"
        expected = Expected(title, loss, _all_known(complete), complete)
    else:
        title, loss, values = _ask_reference(reference, problem)
        complete = _known_in_full(values) if failure else complete
        measured = isinstance(reference, Reference)
        expected = Expected(title, loss, values, complete, failure, measured)
    return expected if failure else expected._replace(program=trace_program(problem))


def check_own_rules(problem: Problem, expected: Expected) -> Expected:
    """Compare autodiff with finite differences if the loss has derivative rules of its own.

    Autodiff uses a `custom_vjp` or `custom_jvp` as it is, right or wrong. If the two disagree, the
    finite differences are returned as the expected gradient.
    """
    if not expected.program.rules:
        return expected
    measured = expected.values
    if all(known.is_exact for known in measured.values()):
        _, _, measured = _ask_reference(finite_difference(), problem)
    tolerance = measured_tolerances(problem, "float64", perturb_slopes=False)
    by_autodiff = expected.complete
    leaves = [
        compare(name, by_autodiff[name], measured[name], tolerance[name]) for name in measured
    ]
    if all(leaf.ok or cannot_be_judged(leaf) for leaf in leaves):
        return expected
    title = (
        f"central differences of the loss, because jax.grad disagrees with them: the derivative of "
        f"{' or '.join(expected.program.rules)}, written by hand, is wrong"
    )
    return expected._replace(title=title, values=measured, complete=_known_in_full(measured))


def _differentiate(problem: Problem) -> tuple[float, Leaves, str]:
    """Return the loss and the gradient by autodiff, and the reason if JAX cannot differentiate."""
    try:
        loss, grads = problem.value_and_grad(*problem.args)
    except Exception as error:  # the caller's function, traced, may raise anything
        return np.nan, {}, (str(error).splitlines() or [type(error).__name__])[0]
    return float(loss), arrays(grads), ""


def _ask_reference(
    reference: Reference | ValueAndGrad, problem: Problem
) -> tuple[str, float, dict[str, ReferenceValues]]:
    """Return the description of a reference, its loss, and its gradient as far as it is known."""
    if isinstance(reference, Reference):
        params = jax.tree.map(np.asarray, problem.params)
        return reference.description, *reference.measure(problem.loss, params)
    other = ask(reference, problem.args, problem.params)
    if other.findings:
        raise ValueError(f"the reference fails: {other.findings[0]}")
    return "another function, in float64", other.loss, _all_known(other.leaves)


def _all_known(leaves: Leaves) -> dict[str, ReferenceValues]:
    return {name: ReferenceValues(leaf) for name, leaf in leaves.items()}


def _known_in_full(values: dict[str, ReferenceValues]) -> Leaves:
    """Return the leaves of which every element is known."""
    full = (name for name, known in values.items() if known.directions is known.kept is None)
    return {name: values[name].values for name in full}
