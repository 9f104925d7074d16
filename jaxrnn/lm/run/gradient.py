"""Check of a run's gradient against the exact gradient, before the first step."""

from typing import NamedTuple

import jax
import numpy as np

from jaxrnn import gradients
from jaxrnn.gradients import Claim
from jaxrnn.lm.options import seed_key
from jaxrnn.lm.run.state import Run, pick
from jaxrnn.network.batch import Batch
from jaxrnn.network.stack import Params
from jaxrnn.verification.report import Report
from jaxrnn.verification.verify import verify

_CARRIED = 2**24  # the largest size of the rule's carry in the check, which uses float64


class GradientCheck(NamedTuple):
    """The result of comparing the gradient of a run with `jax.grad` on its first batch.

    Attributes:
        rule: the name of the gradient rule.
        claim: the claim that the rule makes about its gradient, such as "exact".
        batch: the batch; only its first rows if the rule's carry is large.
        report: the report of `verify` in float64 for a rule that claims to be exact; None for
            other rules.
        cosine: the cosine between the gradient and the exact gradient for other rules; None for a
            rule that claims to be exact. It is from a single draw if the rule draws random
            numbers, and nan if one of the gradients is zero.
    """

    rule: str
    claim: Claim
    batch: Batch
    report: Report | None
    cosine: float | None


def claim_of(run: Run) -> Claim:
    """Return what the gradient rule of a run claims for its network, such as "exact"."""
    rule, _ = gradients.parse(run.options.algorithm)
    return rule.claim_for(run.rnn)


def check_gradient(run: Run) -> GradientCheck:
    """Compare the gradient rule of a run with `jax.grad` on the first batch of the run.

    For a population the parameters of its first member are used. With several processes, all of
    them must call the function.

    Args:
        run: the run, usually before its first step.

    Returns:
        The result of the comparison.
    """
    rnn, params = run.rnn, run.on_one_device().state.params
    params = pick(params, 0) if run.population else params
    algorithm, key = gradients.build(run.options.algorithm, rnn), seed_key(run.options.seed)
    name = run.options.algorithm
    claim = claim_of(run)
    carry = jax.eval_shape(lambda: algorithm.init(params, rnn.initial_state(1), key=key))
    rows = max(1, _CARRIED // sum(leaf.size for leaf in jax.tree.leaves(carry)))
    batch = run.source(0, slice(rows))
    if claim == "exact":
        report = verify(algorithm, rnn, params, batch)
        return GradientCheck(name, claim, batch, report, None)

    def gradient(algorithm: gradients.GradientAlgorithm) -> Params:
        carry = algorithm.init(params, rnn.initial_state(len(batch.inputs)), key=key)
        return jax.jit(algorithm.value_and_grad)(params, carry, batch)[1]

    candidate, reference = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(grads)])
        for grads in (gradient(algorithm), gradient(gradients.autodiff(rnn)))
    )
    norms = float(np.linalg.norm(candidate) * np.linalg.norm(reference))
    cosine = float(candidate @ reference) / norms if norms else float("nan")
    return GradientCheck(name, claim, batch, None, cosine)
