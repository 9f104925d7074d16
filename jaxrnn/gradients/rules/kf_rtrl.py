"""Kronecker-factored RTRL (Mujika, Meier & Steger 2018, §3.2).

The influence as one Kronecker product M_t ≈ u_t ⊗ A_t, with two random signs c₁, c₂ a step:

    u_t = c₁ p₁ u_{t-1} + c₂ p₂ s_t
    A_t = c₁ A_{t-1} J_t / p₁ + c₂ diag(g_t) / p₂
    p₁² = ‖A_{t-1} J_t‖ / ‖u_{t-1}‖,        p₂² = ‖diag(g_t)‖ / ‖s_t‖

Its mean over the signs is M_t. The direct term is such a product itself, so that unlike with UORO
no noise comes from a step alone.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import (
    Noise,
    balance,
    influence_rule,
    random_signs,
    read_by,
    read_size,
)
from jaxrnn.network import layer
from jaxrnn.network.rnn import RNN


class KroneckerProduct(NamedTuple):
    """M[p, j, i] ≈ u[p] A[j, i]."""

    u: Float[Array, " N"]
    A: Float[Array, "H H"]


def kf_rtrl(rnn: RNN, *, noise: Noise | None = None) -> GradientAlgorithm:
    """Carry a Kronecker product in place of the influence; O(B H³) per step, O(B H (I + H)) memory.

    Unbiased for one layer; `init` needs a key. In a stack it is applied layer by layer.

    Args:
        rnn: the network.
        noise: (key, step, dtype) -> c_1 and c_2, (2,); random signs if not given.

    Raises:
        ValueError: by init, if it gets no key.
    """

    def init(cell):
        dtype = cell.W_hh.dtype
        return KroneckerProduct(jnp.zeros(read_size(cell), dtype), jnp.zeros_like(cell.W_hh))

    def advance(cell, past, tape, signs):
        c_1, c_2 = signs
        pushed, s = layer.push_forward(cell, tape.gain, past.A, rnn.leak), read_by(cell, tape)
        p_1, p_2 = balance(pushed, past.u), balance(tape.gain, s)
        return KroneckerProduct(
            c_1 * p_1 * past.u + c_2 * p_2 * s,
            c_1 / p_1 * pushed + c_2 / p_2 * jnp.diag(tape.gain),
        )

    def read(influence, error):
        return jnp.einsum("bp,bji,bi->pj", influence.u, influence.A, error)

    return influence_rule(rnn, init, advance, read, noise=noise or random_signs(2))
