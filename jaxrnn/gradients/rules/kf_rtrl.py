"""Kronecker-factored RTRL (Mujika, Meier & Steger 2018, §3.2).

The influence is estimated by one Kronecker product M_t ≈ u_t ⊗ A_t, with two random signs c₁, c₂
per step:

    u_t = c₁ p₁ u_{t-1} + c₂ p₂ s_t
    A_t = c₁ A_{t-1} J_t / p₁ + c₂ diag(g_t) / p₂
    p₁² = ‖A_{t-1} J_t‖ / ‖u_{t-1}‖,        p₂² = ‖diag(g_t)‖ / ‖s_t‖

The mean over the signs is M_t. The direct term s_t ⊗ diag(g_t) is itself a Kronecker product, so a
single step adds no noise, unlike in UORO.
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
    weight_inputs,
    weight_inputs_size,
)
from jaxrnn.network import layer
from jaxrnn.network.rnn import RNN


class KroneckerProduct(NamedTuple):
    """The two factors of an influence: M[p, j, i] ≈ u[p] A[j, i]."""

    u: Float[Array, " N"]
    A: Float[Array, "H H"]


def kf_rtrl(rnn: RNN, *, noise: Noise | None = None) -> GradientAlgorithm:
    """Build Kronecker-factored RTRL: one Kronecker product estimates the influence.

        u_t = c₁ p₁ u_{t-1} + c₂ p₂ s_t
        A_t = c₁ A_{t-1} J_t / p₁ + c₂ diag(g_t) / p₂
        dL/dθ ≈ Σ_t u_t ⊗ (A_t e_t)

    c₁, c₂ are random signs, s_t = (x_t, h_{t-1}, 1) is the input of the weights and
    g_t = leak φ'(a_t). p₁ = √(‖A_{t-1} J_t‖ / ‖u_{t-1}‖) and p₂ = √(‖diag(g_t)‖ / ‖s_t‖) minimise
    the variance.

    Unbiased for one layer: the mean over the signs is the gradient of `rtrl`. In a stack the rule
    is applied layer by layer and is approximate, as `rtrl`.

    Cost per layer: O(B H³) operations per step, O(B H (I + H)) memory.

    Paper: Mujika, Meier & Steger 2018, §3.2.

    Args:
        rnn: the network.
        noise: (key, step, dtype) -> (c₁, c₂), (2,). The default draws random signs.

    Raises:
        ValueError: by init, if it gets no key.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.kf_rtrl(rnn)
    >>> carry = rule.init(params, h, key=jax.random.key(1))
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, carry, batch)
    >>> carry.memory[0].influence.A.shape  # (B, H, H)
    (3, 4, 4)
    """

    def init(cell):
        dtype = cell.W_hh.dtype
        return KroneckerProduct(
            jnp.zeros(weight_inputs_size(cell), dtype), jnp.zeros_like(cell.W_hh)
        )

    def advance(cell, past, tape, signs):
        c_1, c_2 = signs
        pushed, s = layer.push_forward(cell, tape.gain, past.A, rnn.leak), weight_inputs(cell, tape)
        p_1, p_2 = balance(pushed, past.u), balance(tape.gain, s)
        return KroneckerProduct(
            c_1 * p_1 * past.u + c_2 * p_2 * s,
            c_1 / p_1 * pushed + c_2 / p_2 * jnp.diag(tape.gain),
        )

    def read(influence, error):
        return jnp.einsum("bp,bji,bi->pj", influence.u, influence.A, error)

    return influence_rule(rnn, init, advance, read, noise=noise or random_signs(2))
