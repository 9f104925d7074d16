"""The table of rules and their claims. A new rule needs one more row in RULES."""

from collections.abc import Callable, Container
from functools import cache, partial
from typing import NamedTuple

import pytest

import jaxrnn
from jaxrnn import gradients

T = 6


class Rule(NamedTuple):
    """A rule and what it claims.

    Attributes:
        build: makes the algorithm for a network.
        exact: a chunk's gradient, from a fresh carry, is that of autodiff.
        first_step: so is that of a single step.
        signs: random signs that a step of two units draws, over which the mean is exact.
        chunking: the sum over chunks is the same wherever they are cut.
        window: recurrent steps that an error reaches back; None for all.
        in_stacks: what it claims to be exact in are stacks too, not one layer alone.
    """

    build: Callable[[jaxrnn.RNN], jaxrnn.GradientAlgorithm]
    exact: bool
    chunking: bool
    window: int | None = None
    in_stacks: bool = True
    first_step: bool = True
    signs: int = 0


def truncated(window: int) -> Rule:
    build = lambda rnn: gradients.truncated_bptt(rnn, window)  # noqa: E731
    return Rule(build, exact=window >= T - 1, chunking=True, window=window)


RULES = {
    "autodiff": Rule(gradients.autodiff, exact=True, chunking=False),
    "bptt": Rule(gradients.bptt, exact=True, chunking=False),
    "parallel_bptt": Rule(gradients.parallel_bptt, exact=True, chunking=False),
    "checkpointed_bptt": Rule(gradients.checkpointed_bptt, exact=True, chunking=False),
    "rtrl": Rule(gradients.rtrl, exact=True, chunking=True, in_stacks=False),
    "snap(1)": Rule(lambda rnn: gradients.snap(rnn, 1), exact=False, chunking=True),
    "snap(2)": Rule(lambda rnn: gradients.snap(rnn, 2), exact=True, chunking=True, in_stacks=False),
    "rflo": Rule(gradients.rflo, exact=False, chunking=True),
    "kernl": Rule(gradients.kernl, exact=False, chunking=True),
    "dni": Rule(gradients.dni, exact=False, chunking=True),
    "uoro": Rule(gradients.uoro, exact=False, chunking=True, first_step=False, signs=2),
    "kf_rtrl": Rule(gradients.kf_rtrl, exact=False, chunking=True, signs=2),
    "ok(1)": Rule(gradients.ok, exact=False, chunking=True, signs=2),
    "ok(2)": Rule(partial(gradients.ok, rank=2), exact=False, chunking=True, signs=3),
    "truncated_bptt(0)": truncated(0),
    "truncated_bptt(2)": truncated(2),
    "truncated_bptt(T - 1)": truncated(T - 1),
}


KINDS = ("bptt", "truncated_bptt(2)", "rtrl", "uoro", "dni")  # one rule of each way to compute


def rules(*, quick: Container[str] = RULES, **claims) -> pytest.MarkDecorator:
    """Parametrise over the rules that make these claims; those that are not `quick` are slow."""
    rows = [n for n, r in RULES.items() if all(getattr(r, k) == v for k, v in claims.items())]
    parameters = [pytest.param(n, marks=[pytest.mark.slow] * (n not in quick)) for n in rows]
    # In this scope all of a rule's tests are run together, and find what was compiled for others.
    return pytest.mark.parametrize("rule", parameters, scope="module")


@cache
def algorithm_of(rule: str, rnn: jaxrnn.RNN) -> jaxrnn.GradientAlgorithm:
    """Build a rule once for equal networks, so that what is jitted of it compiles once."""
    return RULES[rule].build(rnn)


# What tells rules apart is tested for every rule, what they share, such as masks, for each kind:
# there the others are slow.
every_rule = rules()
every_kind_of_rule = rules(quick=KINDS)
