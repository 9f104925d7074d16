"""BPTT that stores √T states and recomputes the others (Chen et al. 2016; Gruslys et al. 2016).

The forward pass stores only the state before each segment of ⌈√T⌉ steps. The backward pass visits
the segments from the last to the first: it runs a segment forward again, then backpropagates
through it.
"""

import math

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.segments import by_segments
from jaxrnn.network.rnn import RNN


def checkpointed_bptt(rnn: RNN) -> GradientAlgorithm:
    """Build backpropagation through time with less memory and one more forward pass.

    The equations are those of `bptt`. Only the states before each segment of ⌈√T⌉ steps are stored;
    the states within a segment are recomputed when the backward pass reaches it.

    Exact for one layer and for stacks. Only the hidden state passes from chunk to chunk, as in
    `bptt`.

    Cost per layer: O(T B H (I + H)) operations, as `bptt`, and O(√T B (H + O)) memory. A custom
    loss function may combine positions, so it needs all steps at once and the memory of `bptt`.

    Paper: Chen et al. 2016; Gruslys et al. 2016.

    Args:
        rnn: the network.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.checkpointed_bptt(rnn)
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, rule.init(params, h), batch)
    >>> grads.cells[0].W_hh.shape
    (4, 4)
    """

    def length(steps, batch_size, itemsize):
        return math.ceil(math.sqrt(steps))

    return by_segments(rnn, length, recompute=True)
