"""The command `jaxrnn check`: is a gradient right, and if it is wrong, which bug is it?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxrnn.cli import console
from jaxrnn.cli.setting import SETTING, Setting, Subject, subject_of
from jaxrnn.gradients.own import is_own, load
from jaxrnn.gradients.table import options_of, parse
from jaxrnn.verification.claims import ClaimReport, verify_claim
from jaxrnn.verification.problem import Dtype
from jaxrnn.verification.references import Reference, complex_step, finite_difference
from jaxrnn.verification.report import Report
from jaxrnn.verification.verify import verify


@dataclass(frozen=True)
class CheckOptions:
    """The gradient to check.

    The gradient:
        algorithm: The gradient rule to check, written as in jaxrnn train, or a rule of your own,
            FILE.py:NAME or MODULE:NAME, a function rnn -> GradientAlgorithm (default: bptt).
        claim: What the rule is checked for: exact, unbiased or approximate (default: what it
            claims; exact for a rule of your own).
        function: Check your own function (params, batch) -> (loss, gradient) instead. The module
            may lie in the current folder.
        reference: The reference to compare with: autodiff, or finite-difference or complex-step,
            which only evaluate the loss (default: autodiff).
        dtype: Precision of the gradient, float64 or float32. The reference is always computed in
            float64 (default: float64).
    """

    algorithm: Annotated[str, "RULE"] = "bptt"
    claim: Literal["exact", "unbiased", "approximate"] | None = None
    function: Annotated[str | None, "MODULE:NAME"] = None
    reference: Literal["autodiff", "finite-difference", "complex-step"] = "autodiff"
    dtype: Dtype = "float64"


CHECK = CheckOptions()


def check(
    *,
    save: Annotated[Path | None, "FILE"] = None,
    options: CheckOptions = CHECK,
    setting: Setting = SETTING,
) -> int:
    """Check a gradient, and name the bug in it.

    The gradient of a random network on a random batch is compared with a reference, leaf by leaf. A
    rule is checked for what it claims: exact, truncated, unbiased in the mean over many draws, or
    approximate, where the cosine to the exact gradient is printed. The status is 1 if it is wrong.

    Args:
        save: Save the whole report to this file, as JSON.
        options: The gradient to check.
        setting: The network and batch.

    Examples:
        jaxrnn check --algorithm rtrl --num-layers 2
        jaxrnn check --algorithm mine.py:rule --claim exact
        jaxrnn check --function backward:loss_and_grads
    """
    subject = subject_of(setting)
    with console.working("comparing"):
        report = check_claim(options, subject)
    console.report(report)
    if save is not None:
        console.save_json(report.to_dict(), save)
    return 0 if report.ok else 1


def named_reference(options: CheckOptions) -> Reference | None:
    """Return the reference that the options name, or None for autodiff."""
    references = {
        "autodiff": lambda: None,
        "finite-difference": finite_difference,
        "complex-step": complex_step,
    }
    return references[options.reference]()


def check_claim(options: CheckOptions, subject: Subject) -> Report | ClaimReport:
    """Check a rule against its claim, or the user's function against the reference.

    A reference or a dtype other than the default asks for the comparison with that reference.

    Raises:
        ValueError: if the rule or function cannot be loaded, or options contradict each other.
    """
    rnn, params, h, batch, _ = subject
    reference = named_reference(options)
    candidate: Any
    if options.function is not None:
        if options.claim is not None:
            raise ValueError("claim is for --algorithm: a --function must be exact")
        candidate, claim, window = load(options.function), "exact", None
        h = None  # the function does not receive it
    else:
        rule, arguments = parse(options.algorithm)
        candidate = rule.build(rnn, **arguments)
        own_claim = "exact" if is_own(options.algorithm) else rule.claim_for(rnn)
        claim = options.claim or own_claim
        window = (options_of(rule) | arguments).get("window") if claim == "truncated" else None
    if claim == "exact" or reference is not None or options.dtype != "float64":
        return verify(candidate, rnn, params, batch, h=h, reference=reference, dtype=options.dtype)
    return verify_claim(candidate, rnn, params, batch, claim=claim, window=window, h=h)
