"""Kernel RNN learning (Roth, Kanitscheider & Fiete 2019, alg. 1).

What a change of unit j does to unit i after k steps is taken for S[j, i] κ_jᵏ, so that

    E_t = κ E_{t-1} + s_tᵀ g_t,        dL/dθ = Σ_t E_t ⊙ (S e_t)

S and κ = exp(-γ) are learned beside: from small random changes ξ_t of the state at every step and
what has come of them, d_t, by gradient descent on ½ ‖Ω_t S - d_t‖²,

    d_t = J_t d_{t-1} + ξ_t,        Ω_t = κ Ω_{t-1} + ξ_t,        Γ_t = ∂Ω_t/∂γ

where κ stays at most 1. The paper runs a second network with changes of finite size; here they are
infinitesimal, so that d_t is exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import Noise, influence_rule, no_trace, read_by
from jaxrnn.network import checks, layer
from jaxrnn.network.rnn import RNN


class Kernel(NamedTuple):
    """An eligibility trace, the kernel that reads it, and what the kernel learns from."""

    trace: Float[Array, "N H"]
    S: Float[Array, "H H"]
    gamma: Float[Array, " H"]
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
    """Carry an eligibility trace, read through a learned kernel; O(B H (I + H)) per step, memory.

    Biased. Each row of the batch learns its own kernel; `init` needs a key. A step of learning is
    as long as `learning_rate` over the squared slopes of what is foretold, so that one rate fits
    all sizes. A network that amplifies changes without end lets d_t grow without end too. In a
    stack it is applied layer by layer.

    Args:
        rnn: the network.
        learning_rate: of the kernel, in 0 … 1; 0 keeps it as it is at first.
        decay: κ at first, above 0 and at most 1; S is the identity. With 1 - leak it begins as
            `rflo`.
        noise: (key, step, dtype) -> ξ_t, (H,); standard normal if not given.

    Raises:
        ValueError: if learning_rate or decay is outside its range; by init, if it gets no key.
    """
    checks.between("learning_rate", learning_rate, 0, 1)
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, got {decay!r}")

    def init(cell):
        H, dtype = len(cell.W_hh), cell.W_hh.dtype
        none = jnp.zeros(H, dtype)
        return Kernel(
            trace=no_trace(cell),
            S=jnp.eye(H, dtype=dtype),
            gamma=jnp.full(H, -jnp.log(decay), dtype),
            d=none,
            omega=none,
            Gamma=none,
        )

    def advance(cell, past, tape, xi):
        kappa = jnp.exp(-past.gamma)
        d = layer.push_forward(cell, tape.gain, past.d, rnn.leak) + xi
        Gamma = kappa * (past.Gamma - past.omega)
        omega = kappa * past.omega + xi
        off = omega @ past.S - d
        slopes = omega @ omega + jnp.max(Gamma**2 * (past.S**2).sum(1))  # by S, and by one γ
        rate = learning_rate / slopes
        return Kernel(
            trace=kappa[None] * past.trace + jnp.outer(read_by(cell, tape), tape.gain),
            S=past.S - rate * jnp.outer(omega, off),
            gamma=jnp.maximum(0, past.gamma - rate * (past.S @ off) * Gamma),
            d=d,
            omega=omega,
            Gamma=Gamma,
        )

    def normal(key, step, dtype):
        return jax.random.normal(jax.random.fold_in(key, step), (rnn.hidden_size,), dtype)

    def read(kernel, error):
        return jnp.einsum("bpj,bji,bi->pj", kernel.trace, kernel.S, error)

    return influence_rule(rnn, init, advance, read, noise=noise or normal)
