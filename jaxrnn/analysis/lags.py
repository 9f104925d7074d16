"""The exact gradient split by time lag, and which lags somebody's gradient holds.

    G_k = Σ_t x_{t-k}ᵀ (g_{t-k} ⊙ (𝒥ᵏ e)_{t-k})          Σ_k G_k = dL/dW

is the part of a weight's gradient in which the error of an output acts k recurrent steps back.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.gradients.engine.neumann import first_term, next_term
from jaxrnn.network import layer
from jaxrnn.network.batch import Batch
from jaxrnn.network.forward_pass import forward_pass
from jaxrnn.network.layer import Cell
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params

MOST_LAGS = 200
MOST_NUMBERS = 2**27  # of all parts together: 1 GiB in float64


class Lags(NamedTuple):
    """What each lag contributes; the axis K is the lag k = 0, 1, ….

    Attributes:
        parts: G_k of every cell, each leaf with a leading K.
        credit: ‖dℓ_t/dh_{t-k}‖ of every layer at the place t - k, time-major; 0 where there is no
            output t.
    """

    parts: tuple[Cell, ...]
    credit: Float[Array, "K L T B"]


def affordable_lags(rnn: RNN, steps: int) -> int:
    """Return how many lags to take apart: all of them, or as many as are affordable."""
    H, layers = rnn.hidden_size, rnn.num_layers
    numbers = H * (rnn.input_size + H + 1) + (layers - 1) * H * (2 * H + 1)
    return max(1, min(steps, MOST_LAGS, MOST_NUMBERS // numbers))


@partial(jax.jit, static_argnames=("rnn", "lags"))
def split_by_lag(
    rnn: RNN, params: Params, h: Float[Array, "L B H"], batch: Batch, lags: int
) -> Lags:
    """Split the gradient into its first `lags` parts; O(lags T B H (I + H)) per layer."""
    found = forward_pass(rnn, params, h, batch)

    def part(credits, deltas):
        norms = jnp.stack([jnp.linalg.norm(credit, axis=-1) for credit in credits])
        return Lags(tuple(map(layer.contract, params.cells, found.tapes, deltas)), norms)

    def one_lag_further(credits, _):
        credits, deltas = next_term(params.cells, found.tapes, credits, rnn.leak)
        return credits, part(credits, deltas)

    credits, deltas = first_term(params.cells, found.tapes, found.error)
    first = part(credits, deltas)
    _, others = lax.scan(one_lag_further, credits, length=lags - 1)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, others)
