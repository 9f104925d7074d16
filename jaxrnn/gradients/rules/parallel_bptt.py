"""BPTT by a parallel prefix over time (BPPSA: Wang, Bai & Pekhimenko 2020).

    λ_t = e_t + λ_{t+1} A_{t+1},        A_t = J_tᵀ = (1 - leak) I + diag(g_t) W_hhᵀ

is a recurrence of affine maps. The composition of affine maps is associative, so an associative
scan solves the recurrence in O(log T) sequential compositions instead of T steps. It needs H times
the operations and the memory.
"""

import jax.numpy as jnp
from jax import lax

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.lift import backward_rule
from jaxrnn.network import checks
from jaxrnn.network.rnn import RNN


def parallel_bptt(rnn: RNN) -> GradientAlgorithm:
    """Build backpropagation through time that solves for all λ_t by an associative scan.

        λ_t = e_t + λ_{t+1} A_{t+1},        A_t = J_tᵀ = (1 - leak) I + diag(g_t) W_hhᵀ
        δ_t = g_t ⊙ λ_t

    Exact for one layer and for stacks. It is faster than `bptt` only where T is large, H is small
    and the device runs many operations in parallel. Only the hidden state passes from chunk to
    chunk, as in `bptt`.

    Cost per layer: O(log T) sequential compositions, O(T B H³) operations, and O(T B H²) memory for
    the step Jacobians.

    Paper: Wang, Bai & Pekhimenko 2020 (BPPSA).

    Args:
        rnn: the network.

    Raises:
        ValueError: by value_and_grad, if the step Jacobians of a layer need more memory than
            `jaxrnn.memory_limit`.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.parallel_bptt(rnn)
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, rule.init(params, h), batch)
    >>> grads.cells[0].W_hh.shape
    (4, 4)
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
            """Compose two affine maps, `later` first: λ ↦ (λ A + b) A' + b'."""
            A, b = later
            A_earlier, b_earlier = earlier
            return A @ A_earlier, jnp.einsum("...h,...hg->...g", b, A_earlier) + b_earlier

        # λ_t needs A_{t+1}, so the Jacobians move one step back; no credit follows the last step.
        through = jnp.concatenate([back[1:], jnp.zeros_like(back[:1])])
        _, credit = lax.associative_scan(compose, (through, error), reverse=True)
        return tape.gain * credit

    return backward_rule(rnn, deltas)
