"""Backpropagation through time (Rumelhart, Hinton & Williams 1986; Werbos 1990), by hand.

    λ_t = e_t + J_{t+1}ᵀ λ_{t+1},        δ_t = g_t ⊙ λ_t

solved by back-substitution, from the last step of the chunk to its first. Of the chunk only the
states are kept. The rest is worked out a segment at a time that a cache can hold: where an array of
all steps is large, to write it to memory and read it again takes up to a third of the whole.
"""

import math

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.segments import by_segments
from jaxrnn.network.rnn import RNN

ARRAY_OF_A_SEGMENT = 2**21  # bytes: what a cache holds a few of
ROWS_OF_A_SEGMENT = 256  # of T·B at least, for a matmul to pay


def bptt(rnn: RNN) -> GradientAlgorithm:
    """Backpropagate through time: the exact gradient of a chunk; O(T B H (I + H)) per layer.

    T sequential steps of O(B H²), and for each weight a matmul over the steps of a segment. Between
    chunks only the hidden state passes, so that a long sequence is truncated at the chunks' ends.
    """

    def length(steps, batch_size, itemsize):
        bytes_a_row = itemsize * max(rnn.hidden_size, rnn.output_size)
        rows = max(ROWS_OF_A_SEGMENT, ARRAY_OF_A_SEGMENT // bytes_a_row)
        segments = math.ceil(steps * batch_size / rows)
        return math.ceil(steps / segments)

    return by_segments(rnn, length, recompute=False)
