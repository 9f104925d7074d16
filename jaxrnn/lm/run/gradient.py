"""The gradient that a run is trained by, compared with the exact one before the first step."""

from typing import NamedTuple

import jax
import numpy as np

from jaxrnn import gradients
from jaxrnn.gradients import Claim
from jaxrnn.lm import build, options
from jaxrnn.lm.run.state import Run, pick
from jaxrnn.network.batch import Batch
from jaxrnn.network.stack import Params
from jaxrnn.verification.report import Report
from jaxrnn.verification.verify import verify

_CARRIED = 2**24  # numbers that the rule may carry in the comparison, which is made in float64


class GradientCheck(NamedTuple):
    """How a run's rule compares with `jax.grad` on its first batch.

    Attributes:
        rule: the rule's name.
        claim: what it says of its gradient.
        batch: the batch, or its first rows where the rule carries much for each of them.
        report: of a rule that claims to be exact, in float64; None for the others.
        cosine: of the whole gradient to the exact one, for the others; of one draw if the rule
            draws random numbers, nan if one of the two is zero.
    """

    rule: str
    claim: Claim
    batch: Batch
    report: Report | None
    cosine: float | None


def check_gradient(run: Run) -> GradientCheck:
    """Compare the rule that a run is trained by with `jax.grad`, on the run's first batch.

    Of a population the first member's parameters are taken. All processes must ask at once.
    """
    chosen, rnn, params = run.options, run.rnn, run.on_one_device().state.params
    params = pick(params, 0) if run.population else params
    algorithm, key = build.make_algorithm(chosen, rnn), options.seed_key(chosen.seed)
    rule, _ = gradients.parse(chosen.algorithm)
    claim = rule.claim_in_stacks if rnn.num_layers > 1 else rule.claim
    carry = jax.eval_shape(lambda: algorithm.init(params, rnn.initial_state(1), key=key))
    rows = max(1, _CARRIED // sum(leaf.size for leaf in jax.tree.leaves(carry)))
    batch = jax.tree.map(lambda leaf: leaf[0, :rows], run.source(np.arange(1)))
    if claim == "exact":
        report = verify(algorithm, rnn, params, batch)
        return GradientCheck(chosen.algorithm, claim, batch, report, None)

    def gradient(algorithm: gradients.GradientAlgorithm) -> Params:
        carry = algorithm.init(params, rnn.initial_state(len(batch.inputs)), key=key)
        return jax.jit(algorithm.value_and_grad)(params, carry, batch)[1]

    found, exact = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(grads)])
        for grads in (gradient(algorithm), gradient(gradients.autodiff(rnn)))
    )
    norms = float(np.linalg.norm(found) * np.linalg.norm(exact))
    cosine = float(found @ exact) / norms if norms else float("nan")
    return GradientCheck(chosen.algorithm, claim, batch, None, cosine)
