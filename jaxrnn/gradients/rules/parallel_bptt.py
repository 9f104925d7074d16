"""BPTT by a parallel prefix over time (BPPSA: Wang, Bai & Pekhimenko 2020).

    λ_t = e_t + λ_{t+1} A_{t+1},        A_t = J_tᵀ = (1 - leak) I + diag(g_t) W_hhᵀ

is a recurrence of affine maps, and the composition of affine maps is associative: O(log T)
compositions one after another instead of T steps, for H times the work and memory.
"""

import jax.numpy as jnp
from jax import lax

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.lift import backward_rule
from jaxrnn.network import checks
from jaxrnn.network.rnn import RNN


def parallel_bptt(rnn: RNN) -> GradientAlgorithm:
    """Solve for all credits by an associative scan; O(log T) depth, O(T B H³) work per layer.

    Exact. It pays where T is long, H is small and the machine is parallel; for each layer it holds
    all T·B step Jacobians of H² numbers. Between chunks only the hidden state passes, as in `bptt`.

    Raises:
        ValueError: when called, if the step Jacobians are more than `jaxrnn.memory_limit`.
    """

    def deltas(cell, tape, error):
        steps, batch_size, hidden_size = error.shape
        checks.fits(
            f"parallel_bptt's step Jacobians (T={steps}, B={batch_size}, H={hidden_size})",
            steps * batch_size * hidden_size**2,
            error.dtype,
            "use shorter chunks, a smaller batch, or bptt",
        )
        W_hh_T = cell.W_hh.T[None, None]
        back = tape.gain[..., None] * W_hh_T
        if rnn.leak != 1:
            back = back + (1 - rnn.leak) * jnp.eye(hidden_size, dtype=back.dtype)[None, None]

        def compose(later, earlier):
            """Go through `later`, then through `earlier`: λ ↦ (λ A + b) A' + b'."""
            A, b = later
            A_earlier, b_earlier = earlier
            return A @ A_earlier, jnp.einsum("...h,...hg->...g", b, A_earlier) + b_earlier

        # λ_t takes what λ_{t+1} sends back through A_{t+1}; after the last step nothing comes.
        through = jnp.concatenate([back[1:], jnp.zeros_like(back[:1])])
        _, credit = lax.associative_scan(compose, (through, error), reverse=True)
        return tape.gain * credit

    return backward_rule(rnn, deltas)
