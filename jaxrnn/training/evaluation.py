"""The mean loss of a network over batches."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_is_batch, total_weight
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params


def evaluate(
    rnn: RNN, params: Params, batches: Batch, *, stateful: bool = True
) -> Float[Array, ""]:
    """Compute the mean loss a position over batches (N, B, T).

    Args:
        rnn: the network.
        params: its parameters.
        batches: consecutive chunks of a text, or sequences that stand alone.
        stateful: whether h passes from batch to batch; if not, each is read from h = 0.

    Raises:
        ValueError: if no position counts.
    """
    check_is_batch(batches)
    h_0 = rnn.initial_state(batches.inputs.shape[1], params.readout.W_hy.dtype)
    _, (totals, weights) = _losses(rnn, params, h_0, batches, stateful)
    total = weights.sum()
    if checks.is_known(total) and total == 0:
        raise ValueError("nothing counts in these batches: every position has the mask 0")
    return totals.sum() / total.astype(totals.dtype)


@partial(jax.jit, static_argnames=("rnn", "stateful"))
def _losses(rnn: RNN, params: Params, h: Array, batches: Batch, stateful: bool):
    """Return the last h, and of each batch its summed loss and the weight of its positions."""
    h_0, summing = jnp.zeros_like(h), replace(rnn, reduction="sum")

    def forward(h, batch):
        loss, h_last = summing.loss(params, h, batch)
        return h_last if stateful else h_0, (loss, total_weight(batch))

    return lax.scan(forward, h, batches)
