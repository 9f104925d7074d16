"""Real-time recurrent learning (Williams & Zipser 1989, eq. 9), forward in time.

The influence M_t = ∂h_t/∂θ of every weight θ_pj, from what it reads, p, to unit j, on every unit:

    M_t = M_{t-1} J_t + ∂h_t/∂θ|direct        direct: s_p g_j on unit j alone
    dL/dθ = Σ_t e_t M_tᵀ                      s = (x_t, h_{t-1}, 1)

where the direct term is added along the diagonal of the last two axes, never as a dense array.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn import checks, layer
from jaxrnn.gradients.base import GradientAlgorithm, LayerRule, layer_by_layer, lift
from jaxrnn.layer import Cell, is_ids
from jaxrnn.network import RNN


class Influence(NamedTuple):
    """∂h/∂θ for the weights of a cell: the last axis is the unit of h, the one before θ's own.

    Attributes:
        W_xh: (B, I, H, H).
        W_hh: (B, H, H, H).
        b_h: (B, H, H), or None for a cell without bias.
    """

    W_xh: Float[Array, "B I H H"]
    W_hh: Float[Array, "B H H H"]
    b_h: Float[Array, "B H H"] | None


def rtrl(rnn: RNN) -> GradientAlgorithm:
    """Carry every weight's influence along; O(B H³ (I + H)) per step, O(B H² (I + H)) memory.

    Exact for one layer, also over the chunks of a sequence: the influence passes from chunk to
    chunk, so that, with the parameters held fixed, the sum over chunks is the gradient of the
    whole, however long. In a stack each layer has its own influence, and hands down the error of
    the same step: what a lower layer's past did through an upper layer's state is left out.

    Raises:
        ValueError: by init, if the influence of a layer is more than 8 GiB.
    """

    def init(cell, h, key):
        (batch_size, hidden_size), dtype = h.shape, cell.W_hh.dtype
        checks.fits(
            f"rtrl's influence (B={batch_size}, I={len(cell.W_xh)}, H={hidden_size})",
            batch_size * hidden_size * sum(leaf.size for leaf in jax.tree.leaves(cell)),
            dtype,
            "use a smaller hidden_size or batch, or bptt",
        )

        def none(leaf):
            return jnp.zeros((batch_size, *leaf.shape, hidden_size), dtype)

        return Influence(*jax.tree.map(none, cell))

    def grads(cell, influence, tape, error):
        def forward(carry, step):
            influence, total = carry
            tape_t, error_t = step
            influence = _advance(cell, influence, tape_t, rnn.leak)
            total = jax.tree.map(
                lambda total, m: total + jnp.einsum("b...i,bi->...", m, error_t), total, influence
            )
            return (influence, total), None

        nothing = Influence(*jax.tree.map(jnp.zeros_like, cell))
        (influence, total), _ = lax.scan(forward, (influence, nothing), (tape, error))
        return Cell(*total), layer.input_error(cell, tape.gain * error), influence

    return lift(rnn, layer_by_layer(LayerRule(init, grads)))


def _advance(cell: Cell, influence: Influence, tape, leak: float) -> Influence:
    """Take one step: M_t = M_{t-1} J_t, and the direct term on the diagonal."""
    gain, units = tape.gain, jnp.arange(cell.W_hh.shape[0])

    def through(m):  # δh ↦ (1 - leak) δh + g ⊙ (δh W_hh)
        slope = gain.reshape(gain.shape[0], *[1] * (m.ndim - 2), -1)
        passed = slope * (m @ cell.W_hh)
        return passed if leak == 1 else (1 - leak) * m + passed

    W_xh, W_hh, b_h = jax.tree.map(through, influence)
    rows = jnp.arange(gain.shape[0])
    if is_ids(tape.x):
        W_xh = W_xh.at[rows[:, None], tape.x[:, None], units, units].add(gain)
    else:
        W_xh = W_xh.at[..., units, units].add(tape.x[:, :, None] * gain[:, None])
    W_hh = W_hh.at[..., units, units].add(tape.h_prev[:, :, None] * gain[:, None])
    b_h = None if b_h is None else b_h.at[..., units, units].add(gain)
    return Influence(W_xh, W_hh, b_h)
