"""Unbiased online recurrent optimization (Tallec & Ollivier 2017, eqs. 13 to 17).

The influence as one outer product M_t ≈ h̃_t ⊗ θ̃_t, with random signs ν_t (H):

    h̃_t = ρ₀ J_t h̃_{t-1} + ρ₁ ν_t
    θ̃_t = θ̃_{t-1} / ρ₀ + s_tᵀ (g_t ⊙ ν_t) / ρ₁
    ρ₀² = ‖θ̃_{t-1}‖ / ‖J_t h̃_{t-1}‖,        ρ₁² = ‖s_tᵀ (g_t ⊙ ν_t)‖ / ‖ν_t‖

Its mean over the signs is M_t, whatever ρ₀ and ρ₁ are; these make its variance least.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import (
    Noise,
    balance,
    influence_rule,
    no_trace,
    random_signs,
    read_by,
)
from jaxrnn.network import layer
from jaxrnn.network.rnn import RNN


class OuterProduct(NamedTuple):
    """The two factors of an influence: of the units, and of the weights."""

    h: Float[Array, " H"]
    theta: Float[Array, "N H"]


def uoro(rnn: RNN, *, noise: Noise | None = None) -> GradientAlgorithm:
    """Carry a rank-one estimate of the influence; O(B H (I + H)) per step and memory.

    Unbiased for one layer, with a variance that grows with H and with how far back the network
    remembers; `init` needs a key. In a stack it is applied layer by layer.

    Args:
        rnn: the network.
        noise: (key, step, dtype) -> ν_t, (H,); random signs if not given.

    Raises:
        ValueError: by init, if it gets no key.
    """

    def init(cell):
        return OuterProduct(jnp.zeros_like(cell.W_hh[0]), no_trace(cell))

    def advance(cell, past, tape, signs):
        pushed = layer.push_forward(cell, tape.gain, past.h, rnn.leak)
        direct = jnp.outer(read_by(cell, tape), tape.gain * signs)
        rho_0, rho_1 = balance(past.theta, pushed), balance(direct, signs)
        return OuterProduct(rho_0 * pushed + rho_1 * signs, past.theta / rho_0 + direct / rho_1)

    def read(influence, error):
        return jnp.einsum("bi,bi,bpj->pj", influence.h, error, influence.theta)

    return influence_rule(rnn, init, advance, read, noise=noise or random_signs(rnn.hidden_size))
