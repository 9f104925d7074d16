"""Backpropagation through time (Rumelhart, Hinton & Williams 1986; Werbos 1990), by hand.

    λ_t = e_t + J_{t+1}ᵀ λ_{t+1},        δ_t = g_t ⊙ λ_t

is solved by back-substitution, from the last step of the chunk to its first. Only the states of the
whole chunk are stored. Gains, errors and deltas are computed one segment of steps at a time, with
segments small enough for the CPU cache. If they were computed for all steps at once, writing these
arrays to memory and reading them again would take up to a third of the run time.
"""

import math

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.segments import by_segments
from jaxrnn.network.rnn import RNN

BYTES_PER_ARRAY = 2**21  # of one array of a segment; a cache holds a few of these
MIN_ROWS_PER_SEGMENT = 256  # rows of the (T·B, H) matrices; matmuls of fewer rows are inefficient


def bptt(rnn: RNN) -> GradientAlgorithm:
    """Build backpropagation through time, written by hand: the exact gradient of a chunk.

        λ_t = dL/dh_t = e_t + J_{t+1}ᵀ λ_{t+1}        for t = T … 1, with λ_{T+1} = 0
        δ_t = dL/da_t = g_t ⊙ λ_t

        dW_xh = Σ_t x_tᵀ δ_t,        dW_hh = Σ_t h_{t-1}ᵀ δ_t,        db_h = Σ_t δ_t

    g_t = leak φ'(a_t) is the gain. The step Jacobian J_t = ∂h_t/∂h_{t-1} acts as
    J_tᵀ λ = (1 - leak) λ + (g_t ⊙ λ) W_hhᵀ. The error e_t is dL/dy_t W_hyᵀ at the top layer; at a
    lower layer it is δ_t W_xhᵀ of the layer above.

    Exact for one layer and for stacks. Only the hidden state passes from chunk to chunk, so the
    gradient of a long sequence is truncated where chunks end.

    Cost per layer: O(T B H (I + H)) operations, namely T sequential steps of O(B H²) and one matmul
    over the steps of a segment for each weight; O(T B H) memory.

    Paper: Rumelhart, Hinton & Williams 1986; Werbos 1990.

    Args:
        rnn: the network.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.bptt(rnn)
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, rule.init(params, h), batch)
    >>> exact = jax.grad(rnn.loss, has_aux=True)(params, h, batch)[0]
    >>> bool(jax.numpy.allclose(grads.cells[0].W_hh, exact.cells[0].W_hh, atol=1e-6))
    True
    """

    def length(steps, batch_size, itemsize):
        bytes_per_row = itemsize * max(rnn.hidden_size, rnn.output_size)
        rows = max(MIN_ROWS_PER_SEGMENT, BYTES_PER_ARRAY // bytes_per_row)
        segments = math.ceil(steps * batch_size / rows)
        return math.ceil(steps / segments)

    return by_segments(rnn, length, recompute=False)
