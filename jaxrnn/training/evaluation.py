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
from jaxrnn.training.source import Source, check_continues


def evaluate(
    rnn: RNN, params: Params, batches: Batch | Source, *, continues: bool | None = None
) -> Float[Array, ""]:
    """Compute the mean loss per position over N batches.

    The mean is weighted by the mask: Σ mask ℓ / Σ mask over all positions of all batches.

    Args:
        rnn: the network.
        params: its parameters.
        batches: a `Source` that has an end, or N batches as one `Batch`, whose leaves have a
            leading axis N, such as inputs (N, B, T).
        continues: whether the hidden state is carried from batch to batch. Otherwise every batch
            starts from h = 0. The default is what the source says, and False for a `Batch`.

    Returns:
        The mean loss, a scalar, in the unit of the network's loss function.

    Raises:
        ValueError: if every position has weight 0, by the mask or the lengths, or if `continues`
            contradicts the source.

    >>> import jax, numpy as np, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=5)
    >>> params = jax.tree.map(np.zeros_like, rnn.init(jax.random.key(0)))
    >>> ids = np.arange(24).reshape(2, 3, 4) % 5  # N=2, B=3, T=4
    >>> round(float(jaxrnn.evaluate(rnn, params, jaxrnn.Batch(ids, ids))), 4)  # ln 5
    1.6094
    """
    if isinstance(batches, Source):
        check_continues(batches, continues)
        batches, continues = batches.all(), batches.continues
    check_is_batch(batches)
    h_0 = rnn.initial_state(batches.inputs.shape[1], params.readout.W_hy.dtype)
    _, (totals, weights) = batch_losses(rnn, params, h_0, batches, bool(continues))
    total = weights.sum()
    if checks.is_known(total) and total == 0:
        raise ValueError(
            "every position of these batches has weight 0: give a mask and lengths that leave some"
        )
    return totals.sum() / total.astype(totals.dtype)


@partial(jax.jit, static_argnames=("rnn", "continues"))
def batch_losses(rnn: RNN, params: Params, h: Array, batches: Batch, continues: bool):
    """Return the last h, and for each batch the sum of its losses and the sum of its weights."""
    h_0, summing = jnp.zeros_like(h), replace(rnn, reduction="sum")

    def forward(h, batch):
        loss, h_last = summing.loss(params, h, batch)
        return h_last if continues else h_0, (loss, total_weight(batch))

    return lax.scan(forward, h, batches)
