"""The table of gradient rules, and the parser for rules as text: `truncated_bptt(window=8)`."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.own import build_own, is_own
from jaxrnn.gradients.rules.autodiff import autodiff
from jaxrnn.gradients.rules.bptt import bptt
from jaxrnn.gradients.rules.checkpointed_bptt import checkpointed_bptt
from jaxrnn.gradients.rules.dni import dni
from jaxrnn.gradients.rules.kernl import kernl
from jaxrnn.gradients.rules.kf_rtrl import kf_rtrl
from jaxrnn.gradients.rules.ok import ok
from jaxrnn.gradients.rules.parallel_bptt import parallel_bptt
from jaxrnn.gradients.rules.rflo import rflo
from jaxrnn.gradients.rules.rtrl import rtrl
from jaxrnn.gradients.rules.snap import snap
from jaxrnn.gradients.rules.truncated_bptt import truncated_bptt
from jaxrnn.gradients.rules.uoro import uoro
from jaxrnn.network import calls
from jaxrnn.network.rnn import RNN

EXAMPLE = "truncated_bptt(window=8)"
Claim = Literal["exact", "truncated", "unbiased", "approximate"]
"""How the gradient of a rule, for one chunk from a new carry, relates to the exact gradient.

    exact         it is equal to the exact gradient
    truncated     it is equal to the gradient of a graph that is cut after some steps
    unbiased      its mean over the random numbers of the rule is the exact gradient
    approximate   none of these; it may differ in the mean
"""


class Rule(NamedTuple):
    """A row of the table of rules.

    Attributes:
        build: (rnn, **options) -> `GradientAlgorithm`.
        claim: the claim for a network of one layer, with any options.
        claim_in_stacks: the claim for a network of several layers.
    """

    build: Callable[..., GradientAlgorithm]
    claim: Claim
    claim_in_stacks: Claim

    def claim_for(self, rnn: RNN) -> Claim:
        """Return the claim for a network, by its number of layers."""
        return self.claim_in_stacks if rnn.num_layers > 1 else self.claim


RULES: dict[str, Rule] = {
    "autodiff": Rule(autodiff, "exact", "exact"),
    "bptt": Rule(bptt, "exact", "exact"),
    "checkpointed_bptt": Rule(checkpointed_bptt, "exact", "exact"),
    "dni": Rule(dni, "approximate", "approximate"),
    "kernl": Rule(kernl, "approximate", "approximate"),
    "kf_rtrl": Rule(kf_rtrl, "unbiased", "approximate"),
    "ok": Rule(ok, "unbiased", "approximate"),
    "parallel_bptt": Rule(parallel_bptt, "exact", "exact"),
    "rflo": Rule(rflo, "approximate", "approximate"),
    "rtrl": Rule(rtrl, "exact", "approximate"),
    "snap": Rule(snap, "approximate", "approximate"),
    "truncated_bptt": Rule(truncated_bptt, "truncated", "truncated"),
    "uoro": Rule(uoro, "unbiased", "approximate"),
}


def parse(text: str) -> tuple[Rule, dict[str, Any]]:
    """Read a rule and its options from text.

    Args:
        text: the name of a rule, followed by options in parentheses if there are any: "ok(rank=4)".
            A rule of your own is "MODULE:NAME" or "FILE.py:NAME", a function (rnn, **options) that
            builds it. It is imported when it is built, not here.

    Returns:
        The row of `RULES`, and the options as a dict. A rule of your own makes no claim, and its
        row says "approximate".

    Raises:
        ValueError: if the text cannot be read, or the rule or an option does not exist.

    >>> rule, options = parse("truncated_bptt(window=3)")
    >>> rule.claim, options
    ('truncated', {'window': 3})
    >>> parse("ok(rnk=4)")
    Traceback (most recent call last):
        ...
    ValueError: ok has no option rnk (did you mean rank?): it takes ok(rank=1)
    """
    if is_own(text):
        module, _, rest = text.partition(":")
        name, options = calls.split("algorithm", rest, EXAMPLE)
        return Rule(partial(build_own, module, name), "approximate", "approximate"), options
    builders = {name: rule.build for name, rule in RULES.items()}
    name, options = calls.parse("algorithm", text, builders, EXAMPLE)
    return RULES[name], options


def options_of(rule: Rule) -> dict[str, Any]:
    """Return the options of a rule with their defaults.

    Keyword-only arguments, such as `noise`, are functions and cannot be written as text, so they
    are left out.
    """
    return calls.defaults_of(rule.build)


def build(text: str, rnn: RNN) -> GradientAlgorithm:
    """Build a rule for a network from text.

    Args:
        text: the rule and its options, as in `parse`.
        rnn: the network.

    Returns:
        The rule for this network.

    Raises:
        ValueError: if `parse` or the rule rejects the text.

    >>> import jaxrnn
    >>> rule = jaxrnn.gradients.build("truncated_bptt(window=3)", jaxrnn.RNN(5, 4, 2))
    >>> rule._fields
    ('init', 'value_and_grad')
    """
    rule, options = parse(text)
    return rule.build(rnn, **options)
