"""Judging a candidate's answer: by which tolerance, what is wrong, and the report of it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network.layer import Cell
from jaxrnn.tree import by_name
from jaxrnn.verification.candidate import Answer, arrays, ask
from jaxrnn.verification.diagnosis.backward_pass import Pass, perturbed
from jaxrnn.verification.diagnosis.search import Case, Leaves, diagnose, loss_finding, shape_finding
from jaxrnn.verification.lag_profile import lag_profile
from jaxrnn.verification.leaf import EXACT, Leaf, ReferenceValues, compare, relative_error
from jaxrnn.verification.program import Program
from jaxrnn.verification.references import Reference, finite_difference, noise_of
from jaxrnn.verification.report import Finding, LagProfile, Report
from jaxrnn.verification.tolerances import HOPELESS, allowances

ValueAndGrad = Callable[..., tuple[Any, Any]]
Dtype = Literal["float64", "float32"]

# How far apart errors by rounding or by a guard may be, of leaves and of elements. Where a bug of
# 1e-6 is planted in one leaf or element, the others are exact to 1e-15.
ALIKE = 1e-3

# What says little about a leaf that is off by rounding: one fitted number explains two elements.
FITTED = ("unknown", "scale", "element-wise clip")


class Problem(NamedTuple):
    """A loss at one point, in float64.

    Attributes:
        params: where.
        loss: params -> loss.
        value_and_grad: args -> (loss, gradient) by autodiff.
        args: its arguments, params first.
        terms: about how many terms its sums have.
        name: what value_and_grad is.
        program: traces the loss, for what is to be seen in it.
        by_hand: makes the forward pass for the catalogue of bugs; None for another function.
        parts: makes the gradient of each cell by time lag.
        precision: why value_and_grad computes in float32; None if it computes in float64.
    """

    params: Any
    loss: Callable[[Any], Any]
    value_and_grad: ValueAndGrad
    args: tuple[Any, ...]
    terms: int
    name: str
    program: Callable[[], Program]
    by_hand: Callable[[], Pass] | None
    parts: Callable[[], tuple[Cell, ...]] = tuple
    precision: str | None = None


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
        title, known = (
            f"{problem.name}, in {dtype if problem.precision else 'float64'}",
            _every(exact),
        )
    else:
        title, loss, known = _ask_reference(reference, problem)
        if failure:
            exact = _whole(known)
    values = {"loss": loss} | {name: leaf.values for name, leaf in known.items()}
    if finding := not_finite("the reference's loss and gradient", values):
        return cannot_tell(finding)
    own = _own_rules(problem, failure)
    if own:
        title, loss, known, exact = _beside_own_rules(problem, own, (title, loss, known, exact))

    shapes = {name: np.shape(leaf) for name, leaf in by_name(problem.params).items()}
    fitting = {name: g for name, g in answer.leaves.items() if g.shape == shapes[name] and g.size}

    def compared(tolerance):
        leaves = [compare(name, g, known[name], tolerance[name]) for name, g in fitting.items()]
        return tuple(leaves), abs(answer.loss - loss) <= tolerance["loss"] * abs(loss)

    def measured_in(dtype):
        shake = None if problem.by_hand is None else partial(perturbed, problem.by_hand())
        return allowances(problem.value_and_grad, problem.args, dtype, problem.terms, shake)

    tolerance = dict.fromkeys(["loss", *shapes], EXACT)
    leaves, same_loss = compared(tolerance)
    precision = ""
    if not failure and (dtype == "float32" or not (same_loss and _all_ok(leaves))):
        tolerance = measured_in(dtype)
        leaves, same_loss = compared(tolerance)
        narrow = None if same_loss and _all_ok(leaves) else _narrowest(problem, dtype)
        if narrow is not None:
            tolerance = measured_in(narrow)
            leaves, same_loss = compared(tolerance)
            precision = f"to {narrow}: the loss computes in {narrow}"
    if failure and isinstance(reference, Reference) and not same_loss:
        params = jax.tree.map(np.asarray, problem.params)
        tolerance["loss"] = max(EXACT, 10 * noise_of(problem.loss, params) / abs(loss))
        leaves, same_loss = compared(tolerance)
    if problem.precision:
        precision = f"to float32: {problem.precision}"

    notes = tuple(_notes(leaves, dtype, answer, own))
    report = Report(answer.loss, loss, leaves, (), (), title, notes, precision)
    if finding := _not_repeatable(answer, tolerance):
        return report._replace(findings=(finding,))

    findings = [*answer.findings, *map(_finding_of, filter(_cannot_be_judged, leaves))]
    for name, g in answer.leaves.items():
        if g.shape != shapes[name]:
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
            found = diagnose(case)
        unnamed = all(finding.bug in FITTED for finding in found)
        if not (findings or failure) and unnamed and dtype == "float64":
            nearly = _nearly_right(answer.loss, loss, case, measured_in("float32"))
            if nearly is not None:
                return report._replace(findings=(nearly,))
        findings += found
        if unexplained := tuple(name for name in wrong if name not in case.wrong):
            findings.append(Finding("reference", unexplained, _unlike_autodiff(exact, problem)))
        profiles = tuple(_profiles(case))
    if not (same_loss or (np.isnan(answer.loss) and answer.findings)):
        with np.errstate(all="ignore"):
            findings.insert(0, loss_finding(answer.loss, loss, case))
    return report._replace(findings=tuple(findings), profiles=profiles)


def _spread(g: np.ndarray, r: np.ndarray) -> bool:
    """Return whether a leaf is off in most of its elements, each relative to its size."""
    off, size = np.abs(g - r), np.abs(r)
    return bool(np.mean((off > ALIKE * off.max() / size.max() * size)[size > 0]) > 0.5)


def _all_ok(leaves: tuple[Leaf, ...]) -> bool:
    return all(leaf.ok for leaf in leaves)


def _narrowest(problem: Problem, dtype: Dtype) -> str | None:
    """Return what the loss computes in, if that has fewer digits than it was asked for."""
    precision = problem.program().precision
    if precision is None or jnp.finfo(precision).eps <= jnp.finfo(dtype).eps:
        return None
    return precision


def _own_rules(problem: Problem, failure: str) -> tuple[str, ...]:
    """Return the functions in the loss whose derivative somebody wrote by hand."""
    return () if failure else problem.program().rules


def _beside_own_rules(
    problem: Problem,
    rules: tuple[str, ...],
    found: tuple[str, float, dict[str, ReferenceValues], Leaves],
) -> tuple[str, float, dict[str, ReferenceValues], Leaves]:
    """Compare autodiff with finite differences, and take these instead where the two disagree.

    Autodiff takes a `custom_vjp` or `custom_jvp` at its word, and so cannot judge it.
    """
    title, loss, known, exact = found
    measured = known
    if all(leaf.directions is leaf.kept is None and leaf.error == 0 for leaf in known.values()):
        _, _, measured = _ask_reference(finite_difference(), problem)
    tolerance = allowances(problem.value_and_grad, problem.args, "float64", problem.terms)
    beside = [compare(name, exact[name], measured[name], tolerance[name]) for name in measured]
    if all(leaf.ok or _cannot_be_judged(leaf) for leaf in beside):
        return found
    title = (
        f"central differences of the loss, for jax.grad gives another gradient: the derivative of "
        f"{' or '.join(rules)}, written by hand, is wrong"
    )
    return title, loss, measured, _whole(measured)


def _whole(known: dict[str, ReferenceValues]) -> Leaves:
    """Return the leaves of which every element is known."""
    whole = (name for name, its in known.items() if its.directions is its.kept is None)
    return {name: known[name].values for name in whole}


def _not_repeatable(answer: Answer, tolerance: dict[str, float]) -> Finding | None:
    """Compare the candidate's two answers with each other."""
    again = answer.again
    if again is None:
        return None
    remedy = "is zero_grad forgotten, dropout on, or a state kept from call to call?"
    if again.findings:
        text = f"a second call at the same arguments fails ({again.findings[0]}): {remedy}"
        return Finding("not repeatable", (), text)
    first, second = ({"loss": np.asarray(its.loss)} | its.leaves for its in (answer, again))
    off = {
        name: relative_error(second[name], leaf)
        for name, leaf in first.items()
        if not np.array_equal(second[name], leaf, equal_nan=True)
    }
    off = {name: error for name, error in off.items() if not error <= tolerance[name]}
    if not off:
        return None
    twice = all(relative_error(second[name], 2 * first[name]) <= 1e-6 for name in answer.leaves)
    text = "a second call at the same arguments gives "
    text += "twice the gradient" if twice else f"another answer (by {max(off.values()):.2g} of it)"
    return Finding("not repeatable", tuple(sorted(off.keys() & answer.leaves)), f"{text}: {remedy}")


def _nearly_right(
    given: float, loss: float, case: Case, tolerance: dict[str, float]
) -> Finding | None:
    """Return the finding that a gradient may be right but for rounding or a guard, or None.

    Both move all leaves by about as much, most elements of each, and none by more than float32
    does; a bug so small moves some and leaves others exact.
    """
    errors = {name: relative_error(case.g[name], r) for name, r in case.exact.items() if r.any()}
    if not errors or min(errors.values()) < ALIKE * max(errors.values()):
        return None
    if any(error > tolerance[name] for name, error in errors.items()):
        return None
    if not abs(given - loss) <= tolerance["loss"] * abs(loss):
        return None
    if not all(_spread(case.g[name], case.exact[name]) for name in errors):
        return None
    text = (
        f"it agrees to {max(errors.values()):.1g}, as far as a computation in float32 would, or "
        f"one with a guard such as log(p + 1e-9); nothing beyond that can be told"
    )
    return Finding("nearly right", (), text, certain=False)


def _exact(problem: Problem) -> tuple[float, Leaves, str]:
    """Differentiate by JAX: the loss, the gradient's leaves, and why it failed if it did."""
    try:
        loss, grads = problem.value_and_grad(*problem.args)
    except Exception as error:  # somebody's function, traced
        return np.nan, {}, (str(error).splitlines() or [type(error).__name__])[0]
    return float(loss), arrays(grads), ""


def _ask_reference(
    reference: Reference | ValueAndGrad, problem: Problem
) -> tuple[str, float, dict[str, ReferenceValues]]:
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


def _notes(
    leaves: tuple[Leaf, ...], dtype: Dtype, answer: Answer, rules: tuple[str, ...]
) -> Iterator[str]:
    if answer.changed:
        yield f"the candidate wrote to its arguments ({', '.join(answer.changed)})"
    if rules:
        yield (
            f"the loss holds a derivative written by hand ({', '.join(rules)}): it was compared "
            f"with finite differences of the loss"
        )
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


def _every(leaves: Leaves) -> dict[str, ReferenceValues]:
    return {name: ReferenceValues(leaf) for name, leaf in leaves.items()}


def not_finite(what: str, leaves: dict[str, Any]) -> Finding | None:
    """Say which leaves hold what is not finite."""
    names = tuple(name for name, leaf in leaves.items() if not np.isfinite(leaf).all())
    text = f"{what} are not finite: nothing can be compared here"
    return Finding("not finite", names, text, certain=False) if names else None


def cannot_tell(finding: Finding) -> Report:
    """Report that nothing could be compared."""
    return Report(np.nan, np.nan, (), (finding,), (), "none", ())
