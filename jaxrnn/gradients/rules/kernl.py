"""Kernel RNN learning (Roth, Kanitscheider & Fiete 2019, alg. 1).

The effect of a change of unit j on unit i after k steps is approximated by S[j, i] κ_jᵏ, so that

    E_t = κ E_{t-1} + s_tᵀ g_t,        dL/dθ = Σ_t E_t ⊙ (S e_t)

The kernel, S and κ = exp(-γ), is learned at the same time. A random perturbation ξ_t is added to
the state at every step, and d_t is the total effect of all perturbations on h_t. Gradient descent
on ½ ‖Ω_t S - d_t‖² fits the kernel to it, with

    d_t = J_t d_{t-1} + ξ_t,        Ω_t = κ Ω_{t-1} + ξ_t,        Γ_t = ∂Ω_t/∂γ

and κ bounded by 1. The paper runs a second network with finite perturbations. Here they are
infinitesimal, and the step Jacobians give d_t exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm, Lasting
from jaxrnn.gradients.engine.influence import Noise, influence_rule, no_trace, weight_inputs
from jaxrnn.network import checks, layer
from jaxrnn.network.rnn import RNN


class Kernel(NamedTuple):
    """The learned kernel between units, S[j, i], and its decay γ, with κ = exp(-γ)."""

    S: Float[Array, "H H"]
    gamma: Float[Array, " H"]


class Trace(NamedTuple):
    """An eligibility trace, its kernel, and the quantities from which the kernel is learned.

    Attributes:
        trace: E_t.
        kernel: the `Kernel`, which passes on to the next sequence.
        d: d_t, the effect of all perturbations on h_t.
        omega: Ω_t, the decaying sum of the perturbations.
        Gamma: Γ_t = ∂Ω_t/∂γ.
    """

    trace: Float[Array, "N H"]
    kernel: Lasting
    d: Float[Array, " H"]
    omega: Float[Array, " H"]
    Gamma: Float[Array, " H"]


def kernl(
    rnn: RNN,
    learning_rate: float = 0.1,
    decay: float = 0.5,
    *,
    noise: Noise | None = None,
) -> GradientAlgorithm:
    """Build kernel RNN learning: an eligibility trace that is read through a learned kernel.

        E_t = κ E_{t-1} + s_tᵀ g_t,        dL/dθ ≈ Σ_t E_t ⊙ (S e_t)

    s_t = (x_t, h_{t-1}, 1) is the input of the weights, g_t = leak φ'(a_t) and e_t = dL/dy_t W_hyᵀ.
    The kernel (S, κ) is learned by gradient descent on ½ ‖Ω_t S - d_t‖², where random perturbations
    ξ_t of the state give

        d_t = J_t d_{t-1} + ξ_t,        Ω_t = κ Ω_{t-1} + ξ_t

    Approximate (biased), for one layer and for stacks, where the rule is applied layer by layer.
    Each row of the batch learns its own kernel, which passes on to the next sequence. If the
    network amplifies perturbations from step to step, d_t grows without bound.

    Cost per layer: O(B H (I + H)) operations per step and memory.

    Paper: Roth, Kanitscheider & Fiete 2019, algorithm 1.

    Args:
        rnn: the network.
        learning_rate: learning rate of the kernel, in 0 … 1. Each step is divided by the squared
            slopes of the prediction, so one rate suits networks of all sizes. With 0 the kernel is
            not learned.
        decay: the initial κ, above 0 and at most 1. The initial S is the identity, so with
            decay = 1 - leak the rule starts as `rflo`.
        noise: (key, step, dtype) -> ξ_t, (H,). The default is standard normal.

    Raises:
        ValueError: if learning_rate or decay is outside its range; by init, if it gets no key.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.kernl(rnn)
    >>> carry = rule.init(params, h, key=jax.random.key(1))
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, carry, batch)
    >>> carry.memory[0].influence.kernel.value.S.shape  # (B, H, H)
    (3, 4, 4)
    """
    checks.between("learning_rate", learning_rate, 0, 1)
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, got {decay!r}")

    def init(cell):
        H, dtype = len(cell.W_hh), cell.W_hh.dtype
        zero = jnp.zeros(H, dtype)
        kernel = Kernel(jnp.eye(H, dtype=dtype), jnp.full(H, -jnp.log(decay), dtype))
        return Trace(no_trace(cell), Lasting(kernel), d=zero, omega=zero, Gamma=zero)

    def advance(cell, past, tape, xi):
        S, gamma = past.kernel.value
        kappa = jnp.exp(-gamma)
        d = layer.push_forward(cell, tape.gain, past.d, rnn.leak) + xi
        Gamma = kappa * (past.Gamma - past.omega)
        omega = kappa * past.omega + xi
        residual = omega @ S - d
        slopes = omega @ omega + jnp.max(Gamma**2 * (S**2).sum(1))  # for S, and for one γ
        rate = learning_rate / slopes
        trace = kappa[None] * past.trace + jnp.outer(weight_inputs(cell, tape), tape.gain)
        kernel = Kernel(
            S=S - rate * jnp.outer(omega, residual),
            gamma=jnp.maximum(0, gamma - rate * (S @ residual) * Gamma),
        )
        return Trace(trace, Lasting(kernel), d, omega, Gamma)

    def normal(key, step, dtype):
        return jax.random.normal(jax.random.fold_in(key, step), (rnn.hidden_size,), dtype)

    def read(influence, error):
        S, _ = influence.kernel.value
        return jnp.einsum("bpj,bji,bi->pj", influence.trace, S, error)

    return influence_rule(rnn, init, advance, read, noise=noise or normal)
