"""Findings: what is wrong with a candidate's gradient, or why it cannot be judged."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxrnn.tree import by_name
from jaxrnn.verification.candidate import Answer
from jaxrnn.verification.comparison import Comparison
from jaxrnn.verification.diagnosis.search import Case, diagnose, loss_finding, shape_finding
from jaxrnn.verification.expected import Expected
from jaxrnn.verification.lag_profile import lag_profile
from jaxrnn.verification.leaf import EXACT, relative_error
from jaxrnn.verification.problem import Dtype, Problem, forward_by_hand, gradient_by_lag
from jaxrnn.verification.report import Finding, LagProfile
from jaxrnn.verification.tolerances import cannot_be_judged, measured_tolerances

# Rounding or a guard in the loss gives every leaf, and most elements of each, relative errors
# within a factor of 1000 of one another. A bug of 1e-6 in one leaf or element leaves the others
# exact to 1e-15.
ALIKE = 1e-3

# Findings that a rounding error can cause: no bug fits, or one with a number that is fitted to the
# leaf, which may succeed in a leaf of two elements.
FITTED = ("unknown", "scale", "element-wise clip")


def find_bugs(
    answer: Answer, expected: Expected, comparison: Comparison, problem: Problem, dtype: Dtype
) -> tuple[tuple[Finding, ...], tuple[LagProfile, ...]]:
    """Return the findings about an answer, and the lag profiles of the leaves that are wrong."""
    findings = [*answer.findings, *_leaves_that_cannot_be_judged(comparison)]
    findings += _leaves_of_wrong_shape(answer, expected, comparison, problem)
    wrong = [leaf.name for leaf in comparison.leaves if not (leaf.ok or cannot_be_judged(leaf))]
    if not wrong and comparison.same_loss:
        return tuple(findings), ()
    case = _case(answer, expected, comparison, problem)
    with np.errstate(all="ignore"):  # a wrong gradient may overflow
        bugs = diagnose(case)
        no_other_reason = not (findings or expected.failure) and dtype == "float64"
        if no_other_reason and all(bug.bug in FITTED for bug in bugs):
            nearly = _nearly_right(answer.loss, expected.loss, case, problem)
            if nearly is not None:
                return (nearly,), ()
        findings += bugs
        if unexplained := tuple(name for name in wrong if name not in case.wrong):
            findings.append(Finding("reference", unexplained, _unlike_autodiff(expected, problem)))
        if not (comparison.same_loss or (np.isnan(answer.loss) and answer.findings)):
            findings.insert(0, loss_finding(answer.loss, expected.loss, case))
    return tuple(findings), tuple(_profiles(case))


def not_finite(what: str, leaves: dict[str, Any]) -> Finding | None:
    """Return a finding with the names of the leaves that are not finite, or None."""
    names = tuple(name for name, leaf in leaves.items() if not np.isfinite(leaf).all())
    text = f"{what} are not finite: no gradient can be compared here"
    return Finding("not finite", names, text, certain=False) if names else None


def not_repeatable(answer: Answer, tolerance: dict[str, float]) -> Finding | None:
    """Return a finding if two calls of the candidate with the same arguments differ, or None."""
    again = answer.again
    if again is None:
        return None
    remedy = "was zero_grad forgotten, is dropout on, or is state kept between calls?"
    if again.findings:
        text = f"a second call with the same arguments fails ({again.findings[0]}): {remedy}"
        return Finding("not repeatable", (), text)
    first, second = ({"loss": np.asarray(one.loss)} | one.leaves for one in (answer, again))
    errors = {
        name: relative_error(second[name], leaf)
        for name, leaf in first.items()
        if not np.array_equal(second[name], leaf, equal_nan=True)
    }
    errors = {name: error for name, error in errors.items() if not error <= tolerance[name]}
    if not errors:
        return None
    twice = all(relative_error(second[name], 2 * first[name]) <= 1e-6 for name in answer.leaves)
    largest = max(errors.values())
    what = "twice the gradient" if twice else f"another answer (relative error {largest:.2g})"
    text = f"a second call with the same arguments gives {what}: {remedy}"
    return Finding("not repeatable", tuple(sorted(errors.keys() & answer.leaves)), text)


def _leaves_that_cannot_be_judged(comparison: Comparison) -> Iterator[Finding]:
    """Yield a finding for each leaf that is not finite or has a tolerance that is too large."""
    for leaf in filter(cannot_be_judged, comparison.leaves):
        if leaf.not_finite:
            text = f"{leaf.not_finite} elements are infinite or not a number, one at {leaf.worst}"
            yield Finding("not finite", (leaf.name,), text)
        elif np.isnan(leaf.tolerance):
            text = (
                "the loss has a kink, or too much curvature for finite differences, everywhere: "
                "compare at other parameters"
            )
            yield Finding("kinks", (leaf.name,), text, certain=False)
        else:
            text = (
                f"rounding errors alone may change it by {leaf.tolerance:.1g} of its norm: use "
                f"float64, smaller weights or fewer steps"
            )
            yield Finding("ill-conditioned", (leaf.name,), text, certain=False)


def _leaves_of_wrong_shape(
    answer: Answer, expected: Expected, comparison: Comparison, problem: Problem
) -> Iterator[Finding]:
    shapes = problem.shapes
    for name, g in answer.leaves.items():
        shape = shapes[name]
        if g.shape != shape:
            r = expected.complete.get(name, np.zeros(shape))
            yield shape_finding(name, g, r, comparison.tolerance[name])


def _case(answer: Answer, expected: Expected, comparison: Comparison, problem: Problem) -> Case:
    """Return the leaves that can be judged, with what the diagnosis needs to explain them."""
    tolerance = {
        leaf.name: leaf.tolerance
        for leaf in comparison.leaves
        if leaf.name in expected.complete and not cannot_be_judged(leaf)
    }
    g = {name: answer.leaves[name] for name in tolerance}
    parts = gradient_by_lag(problem)
    return Case(g, expected.complete, tolerance, forward_by_hand(problem), parts)


def _nearly_right(
    loss: float, expected_loss: float, case: Case, problem: Problem
) -> Finding | None:
    """Return a finding if rounding or a guard in the loss may explain the whole error, or None.

    Both change all leaves, and most elements of each, by similar relative errors that are not
    larger than those of float32. A bug that is so small changes some leaves or elements and leaves
    the others exact.
    """
    exact = {name: r for name, r in case.exact.items() if r.any() and not _fits_float32(r)}
    if any(name in case.wrong for name in case.exact.keys() - exact.keys()):
        return None
    errors = {name: relative_error(case.g[name], r) for name, r in exact.items()}
    if not errors or min(errors.values()) < ALIKE * max(errors.values()):
        return None
    tolerance = measured_tolerances(problem, "float32")
    if any(error > tolerance[name] for name, error in errors.items()):
        return None
    if not abs(loss - expected_loss) <= tolerance["loss"] * abs(expected_loss):
        return None
    if not all(_most_elements_are_off(case.g[name], case.exact[name]) for name in errors):
        return None
    text = (
        f"it agrees to {max(errors.values()):.1g}; an error of this size may come from float32 or "
        f"from a guard in the loss, such as log(p + 1e-9), and need not be a bug"
    )
    return Finding("nearly right", (), text, certain=False)


def _fits_float32(r: np.ndarray) -> bool:
    """Return whether float32 represents a leaf exactly: a computation in it may be exact there."""
    return relative_error(r.astype(np.float32).astype(np.float64), r) <= EXACT


def _most_elements_are_off(g: np.ndarray, r: np.ndarray) -> bool:
    """Return whether most elements have a relative error above ALIKE times that of the leaf."""
    error, size = np.abs(g - r), np.abs(r)
    return bool(np.mean((error > ALIKE * error.max() / size.max() * size)[size > 0]) > 0.5)


def _unlike_autodiff(expected: Expected, problem: Problem) -> str:
    if expected.complete:
        return f"it equals {problem.name}, but not the reference: is the loss smooth here?"
    return "it differs from the reference"


def _profiles(case: Case) -> Iterator[LagProfile]:
    parts = {f"cells{name}": leaf for name, leaf in by_name(case.parts).items()}
    for name in case.wrong:
        if name in parts:
            yield lag_profile(name, case.g[name], parts[name], case.tolerance[name])
