"""The exact gradient split by time lag.

    G_k = Σ_t s_tᵀ (g_t ⊙ (𝒥ᵏ e)_t)        (𝒥 λ)_t = J_{t+1}ᵀ λ_{t+1}        Σ_k G_k = dL/dW

G_k is the part of the gradient of a weight W with the input s_t in which the error of an output is
propagated k recurrent steps back, in whichever layers. The sum over all T lags is the gradient.
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
MOST_NUMBERS = 2**27  # limit of the elements of all parts together: 1 GiB in float64


class Lags(NamedTuple):
    """The contribution of each time lag; the axis K is the lag k = 0, 1, ….

    Attributes:
        parts: the gradients G_k of every cell; each leaf has a leading axis K.
        credit: ‖dℓ_t/dh_{t-k}‖ of every layer, indexed by t - k and time-major; 0 if t is beyond
            the last step.
    """

    parts: tuple[Cell, ...]
    credit: Float[Array, "K L T B"]


def affordable_lags(rnn: RNN, steps: int) -> int:
    """Return the number of lags to split by: all `steps` of them, or as many as fit in memory."""
    H, layers = rnn.hidden_size, rnn.num_layers
    numbers = H * (rnn.input_size + H + 1) + (layers - 1) * H * (2 * H + 1)
    return max(1, min(steps, MOST_LAGS, MOST_NUMBERS // numbers))


@partial(jax.jit, static_argnames=("rnn", "lags"))
def split_by_lag(
    rnn: RNN, params: Params, h: Float[Array, "L B H"], batch: Batch, lags: int
) -> Lags:
    """Compute the parts of the gradient at lags 0 … lags - 1; O(lags T B H (I + H)) per layer."""
    forward = forward_pass(rnn, params, h, batch)

    def part(credits, deltas):
        norms = jnp.stack([jnp.linalg.norm(credit, axis=-1) for credit in credits])
        return Lags(tuple(map(layer.contract, params.cells, forward.tapes, deltas)), norms)

    def one_lag_further(credits, _):
        credits, deltas = next_term(params.cells, forward.tapes, credits, rnn.leak)
        return credits, part(credits, deltas)

    credits, deltas = first_term(params.cells, forward.tapes, forward.error)
    first = part(credits, deltas)
    _, others = lax.scan(one_lag_further, credits, length=lags - 1)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, others)
