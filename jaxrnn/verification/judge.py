"""Judging a candidate's answer: by which tolerance, what is wrong, and the report of it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxrnn.layer import Cell
from jaxrnn.network import by_name
from jaxrnn.verification.answer import Answer, arrays, ask
from jaxrnn.verification.compare import EXACT, Finding, Known, LagProfile, Leaf, Report, compare
from jaxrnn.verification.diagnosis import Case, Leaves, diagnose, loss_finding, shape_finding
from jaxrnn.verification.differences import Reference
from jaxrnn.verification.hand import Pass, shaken
from jaxrnn.verification.lags import lag_profile
from jaxrnn.verification.rounding import HOPELESS, allowances

ValueAndGrad = Callable[..., tuple[Any, Any]]
Dtype = Literal["float64", "float32"]


class Problem(NamedTuple):
    """A loss at one point, in float64.

    Attributes:
        params: where.
        loss: params -> loss.
        value_and_grad: args -> (loss, gradient) by autodiff.
        args: its arguments, params first.
        terms: about how many terms its sums have.
        name: what value_and_grad is.
        by_hand: makes the forward pass for the catalogue of bugs; None for another function.
        parts: makes the gradient of each cell by time lag.
    """

    params: Any
    loss: Callable[[Any], Any]
    value_and_grad: ValueAndGrad
    args: tuple[Any, ...]
    terms: int
    name: str
    by_hand: Callable[[], Pass] | None
    parts: Callable[[], tuple[Cell, ...]] = tuple


def judge(
    answer: Answer, problem: Problem, reference: Reference | ValueAndGrad | None, dtype: Dtype
) -> Report:
    """Compare an answer with a reference; whatever is wrong with the answer is in the report.

    Raises:
        ValueError: if the reference fails.
    """
    loss, exact, failure = _exact(problem)
    if reference is None:
        if failure:
            raise ValueError(
                f"JAX cannot differentiate the loss ({failure}): write it with jax.numpy, or pass "
                "reference=jaxrnn.finite_difference()"
            )
        title, known = f"{problem.name}, in float64", _every(exact)
    else:
        title, loss, known = _ask_reference(reference, problem)
        if failure:
            whole = (name for name, its in known.items() if its.directions is its.kept is None)
            exact = {name: known[name].values for name in whole}
    values = {"loss": loss} | {name: leaf.values for name, leaf in known.items()}
    if finding := not_finite("the reference's loss and gradient", values):
        return cannot_tell(finding)

    shapes = {name: np.shape(leaf) for name, leaf in by_name(problem.params).items()}
    fitting = {name: g for name, g in answer.leaves.items() if g.shape == shapes[name]}

    def compared(tolerance):
        leaves = [compare(name, g, known[name], tolerance[name]) for name, g in fitting.items()]
        return tuple(leaves), abs(answer.loss - loss) <= tolerance["loss"] * abs(loss)

    tolerance = dict.fromkeys(["loss", *shapes], EXACT)
    leaves, same_loss = compared(tolerance)
    measured = dtype == "float32" or not (same_loss and all(leaf.ok for leaf in leaves))
    if measured and not failure:
        shake = None if problem.by_hand is None else partial(shaken, problem.by_hand())
        tolerance = allowances(problem.value_and_grad, problem.args, dtype, problem.terms, shake)
        leaves, same_loss = compared(tolerance)

    findings = [*answer.findings, *map(_finding_of, filter(_cannot_be_judged, leaves))]
    for name, g in answer.leaves.items():
        if name not in fitting:
            r = exact.get(name, np.zeros(shapes[name]))
            findings.append(shape_finding(name, g, r, tolerance[name]))
    wrong = [leaf.name for leaf in leaves if not (leaf.ok or _cannot_be_judged(leaf))]
    profiles: tuple[LagProfile, ...] = ()
    case = None
    if wrong or not same_loss:
        pass_by_hand = None if problem.by_hand is None else problem.by_hand()
        judged = {leaf.name: leaf.tolerance for leaf in leaves if not _cannot_be_judged(leaf)}
        judged = {name: its for name, its in judged.items() if name in exact}
        g = {name: fitting[name] for name in judged}
        case = Case(g, exact, judged, pass_by_hand, problem.parts())
        with np.errstate(all="ignore"):  # a wrong gradient may well overflow
            findings += diagnose(case)
        if unexplained := tuple(name for name in wrong if name not in case.wrong):
            findings.append(Finding("reference", unexplained, _unlike_autodiff(exact, problem)))
        profiles = tuple(_profiles(case))
    if not (same_loss or (np.isnan(answer.loss) and answer.findings)):
        with np.errstate(all="ignore"):
            findings.insert(0, loss_finding(answer.loss, loss, case))
    return Report(
        answer.loss, loss, leaves, tuple(findings), profiles, title, tuple(_notes(leaves, dtype))
    )


def _exact(problem: Problem) -> tuple[float, Leaves, str]:
    """Differentiate by JAX: the loss, the gradient's leaves, and why it failed if it did."""
    try:
        loss, grads = problem.value_and_grad(*problem.args)
    except Exception as error:  # somebody's function, traced
        return np.nan, {}, (str(error).splitlines() or [type(error).__name__])[0]
    return float(loss), arrays(grads), ""


def _ask_reference(
    reference: Reference | ValueAndGrad, problem: Problem
) -> tuple[str, float, dict[str, Known]]:
    """Measure, or call another function: what the reference is, its loss and its gradient."""
    if isinstance(reference, Reference):
        params = jax.tree.map(np.asarray, problem.params)
        return reference.description, *reference.measure(problem.loss, params)
    other = ask(reference, problem.args, problem.params)
    if other.findings:
        raise ValueError(f"the reference fails: {other.findings[0]}")
    return "another function, in float64", other.loss, _every(other.leaves)


def _cannot_be_judged(leaf: Leaf) -> bool:
    return leaf.not_finite > 0 or not leaf.tolerance <= HOPELESS


def _finding_of(leaf: Leaf) -> Finding:
    """Say why a leaf cannot be judged."""
    if leaf.not_finite:
        text = f"{leaf.not_finite} elements are infinite or not a number, one at {leaf.worst}"
        return Finding("not finite", (leaf.name,), text)
    if np.isnan(leaf.tolerance):
        text = "the loss has a kink, or bends too sharply for a difference, everywhere"
        return Finding("kinks", (leaf.name,), text, certain=False)
    text = (
        f"rounding alone may move it by {leaf.tolerance:.1g} of its size here: use float64, "
        "smaller weights or fewer steps"
    )
    return Finding("ill-conditioned", (leaf.name,), text, certain=False)


def _unlike_autodiff(exact: Leaves, problem: Problem) -> str:
    if exact:
        return f"it equals {problem.name}, but not the reference: is the loss smooth here?"
    return "it is not what the reference has"


def _profiles(case: Case) -> Iterator[LagProfile]:
    parts = {f"cells{name}": leaf for name, leaf in by_name(case.parts).items()}
    for name in case.wrong:
        if name in parts:
            yield lag_profile(name, case.g[name], parts[name], case.tolerance[name])


def _notes(leaves: tuple[Leaf, ...], dtype: Dtype) -> Iterator[str]:
    loosest = max(leaves, key=lambda leaf: leaf.tolerance, default=None)
    if loosest is not None and loosest.tolerance > EXACT:
        yield (
            f"in {dtype} an error of up to {loosest.tolerance:.1g} ({loosest.name}) may be rounding"
        )
    if along := [leaf for leaf in leaves if leaf.directions]:
        yield (
            f"{', '.join(leaf.name for leaf in along)}: known along {along[0].directions} random "
            "directions, which show any error at about its relative size but not where it is"
        )
    for leaf in leaves:
        if leaf.left_out:
            what = "directions" if leaf.directions else "elements"
            yield f"{leaf.name}: {leaf.left_out} {what} left out, for the loss has a kink there"


def _every(leaves: Leaves) -> dict[str, Known]:
    return {name: Known(leaf) for name, leaf in leaves.items()}


def not_finite(what: str, leaves: dict[str, Any]) -> Finding | None:
    """Say which leaves hold what is not finite."""
    names = tuple(name for name, leaf in leaves.items() if not np.isfinite(leaf).all())
    text = f"{what} are not finite: nothing can be compared here"
    return Finding("not finite", names, text, certain=False) if names else None


def cannot_tell(finding: Finding) -> Report:
    """Report that nothing could be compared."""
    return Report(np.nan, np.nan, (), (finding,), (), "none", ())
