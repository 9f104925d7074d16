"""Unbiased online recurrent optimization (Tallec & Ollivier 2017, eqs. 13 to 17).

The influence is estimated by one outer product M_t ≈ h̃_t ⊗ θ̃_t, with random signs ν_t (H,):

    h̃_t = ρ₀ J_t h̃_{t-1} + ρ₁ ν_t
    θ̃_t = θ̃_{t-1} / ρ₀ + s_tᵀ (g_t ⊙ ν_t) / ρ₁
    ρ₀² = ‖θ̃_{t-1}‖ / ‖J_t h̃_{t-1}‖,        ρ₁² = ‖s_tᵀ (g_t ⊙ ν_t)‖ / ‖ν_t‖

The mean over the signs is M_t for any ρ₀ and ρ₁. These values minimise the variance.
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
    weight_inputs,
)
from jaxrnn.network import layer
from jaxrnn.network.rnn import RNN


class OuterProduct(NamedTuple):
    """The two factors of an influence: `h` over the units and `theta` over the weights."""

    h: Float[Array, " H"]
    theta: Float[Array, "N H"]


def uoro(rnn: RNN, *, noise: Noise | None = None) -> GradientAlgorithm:
    """Build unbiased online recurrent optimization: a rank-one estimate of the influence.

        h̃_t = ρ₀ J_t h̃_{t-1} + ρ₁ ν_t
        θ̃_t = θ̃_{t-1} / ρ₀ + s_tᵀ (g_t ⊙ ν_t) / ρ₁
        dL/dθ ≈ Σ_t (h̃_t · e_t) θ̃_t

    ν_t (H,) are random signs, s_t = (x_t, h_{t-1}, 1) is the input of the weights and
    g_t = leak φ'(a_t). ρ₀ = √(‖θ̃_{t-1}‖ / ‖J_t h̃_{t-1}‖) and ρ₁ = √(‖s_tᵀ (g_t ⊙ ν_t)‖ / ‖ν_t‖)
    minimise the variance.

    Unbiased for one layer: the mean over the signs is the gradient of `rtrl`. The variance grows
    with H and with the length of time over which the network remembers. In a stack the rule is
    applied layer by layer and is approximate, as `rtrl`.

    Cost per layer: O(B H (I + H)) operations per step and memory.

    Paper: Tallec & Ollivier 2017, eqs. 13 to 17.

    Args:
        rnn: the network.
        noise: (key, step, dtype) -> ν_t, (H,). The default draws random signs.

    Raises:
        ValueError: by init, if it gets no key.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.uoro(rnn)
    >>> carry = rule.init(params, h, key=jax.random.key(1))
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, carry, batch)
    >>> carry.memory[0].influence.theta.shape  # (B, N, H)
    (3, 10, 4)
    """

    def init(cell):
        return OuterProduct(jnp.zeros_like(cell.W_hh[0]), no_trace(cell))

    def advance(cell, past, tape, signs):
        pushed = layer.push_forward(cell, tape.gain, past.h, rnn.leak)
        direct = jnp.outer(weight_inputs(cell, tape), tape.gain * signs)
        rho_0, rho_1 = balance(past.theta, pushed), balance(direct, signs)
        return OuterProduct(rho_0 * pushed + rho_1 * signs, past.theta / rho_0 + direct / rho_1)

    def read(influence, error):
        return jnp.einsum("bi,bi,bpj->pj", influence.h, error, influence.theta)

    return influence_rule(rnn, init, advance, read, noise=noise or random_signs(rnn.hidden_size))
