"""BPTT that keeps √T states and computes the others again (Chen et al. 2016; Gruslys et al. 2016).

The forward pass leaves the state before every segment of ⌈√T⌉ steps. Then, from the last segment to
the first, a segment runs forward once more, and back-substitution goes through it.
"""

import math

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.segments import by_segments
from jaxrnn.network.rnn import RNN


def checkpointed_bptt(rnn: RNN) -> GradientAlgorithm:
    """Backpropagate through time in O(√T B (H + O)) memory, for one more forward pass.

    Exact. O(T B H (I + H)) per layer, as `bptt`; between chunks only the hidden state passes. A
    loss of your own, a function that may join positions, takes all steps at once, and their memory.
    """

    def length(steps, batch_size, itemsize):
        return math.ceil(math.sqrt(steps))

    return by_segments(rnn, length, recompute=True)
