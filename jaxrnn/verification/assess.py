"""The assessment of a candidate's answer, from the expected gradient to the report."""

from collections.abc import Iterator

import numpy as np

from jaxrnn.verification.candidate import Answer
from jaxrnn.verification.comparison import Comparison, compare_leaves
from jaxrnn.verification.expected import Expected, check_own_rules, expected_gradient
from jaxrnn.verification.findings import find_bugs, not_finite, not_repeatable
from jaxrnn.verification.leaf import EXACT
from jaxrnn.verification.problem import Dtype, Problem, ValueAndGrad
from jaxrnn.verification.references import Reference
from jaxrnn.verification.report import Finding, Report


def assess(
    answer: Answer, problem: Problem, reference: Reference | ValueAndGrad | None, dtype: Dtype
) -> Report:
    """Compare a candidate's answer with a reference, and return the report.

    Args:
        answer: the answer of the candidate.
        problem: the loss and its arguments.
        reference: the reference as in `verify`; a function takes the arguments of the problem.
        dtype: the dtype in which the candidate should compute.

    Raises:
        ValueError: if the reference fails.
    """
    expected = expected_gradient(problem, reference, dtype)
    values = {"loss": expected.loss}
    values |= {name: known.values for name, known in expected.values.items()}
    if finding := not_finite("the reference's loss and gradient", values):
        return cannot_tell(finding)
    expected = check_own_rules(problem, expected)
    comparison = compare_leaves(answer, expected, problem, dtype)
    if finding := not_repeatable(answer, comparison.tolerance):
        findings, profiles = (finding,), ()
    else:
        findings, profiles = find_bugs(answer, expected, comparison, problem, dtype)
    return Report(
        candidate_loss=answer.loss,
        reference_loss=expected.loss,
        leaves=comparison.leaves,
        findings=findings,
        profiles=profiles,
        reference=expected.title,
        notes=tuple(_notes(comparison, dtype, answer, expected)),
        precision=comparison.precision,
    )


def cannot_tell(finding: Finding) -> Report:
    """Return a report without a comparison; the finding is the reason."""
    return Report(np.nan, np.nan, (), (finding,), (), "none", ())


def _notes(
    comparison: Comparison, dtype: Dtype, answer: Answer, expected: Expected
) -> Iterator[str]:
    """Yield the limits of the comparison, for the reader of the report."""
    leaves = comparison.leaves
    if answer.changed:
        yield f"the candidate wrote to its arguments ({', '.join(answer.changed)})"
    if rules := expected.program.rules:
        yield (
            f"the loss contains a derivative written by hand ({', '.join(rules)}): it "
            f"was compared with finite differences of the loss"
        )
    loosest = max(leaves, key=lambda leaf: leaf.tolerance, default=None)
    if loosest is not None and loosest.tolerance > EXACT:
        yield (
            f"in {dtype} an error of up to {loosest.tolerance:.1g} ({loosest.name}) may be due to "
            f"rounding"
        )
    if sampled := [leaf for leaf in leaves if leaf.directions]:
        yield (
            f"{', '.join(leaf.name for leaf in sampled)}: compared along {sampled[0].directions} "
            "random directions, which show the relative size of an error but not where it is"
        )
    for leaf in leaves:
        if leaf.left_out:
            unit = "directions" if leaf.directions else "elements"
            yield (
                f"{leaf.name}: {leaf.left_out} {unit} left out, because the loss has a kink there"
            )
