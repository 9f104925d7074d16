"""Reverse-mode automatic differentiation of the whole loss: the reference for all other rules.

It differentiates the plain `lax.scan` of the forward pass, not the hand-written derivative of
`RNN.unroll`.
"""

import jax

from jaxrnn.gradients.engine.algorithm import (
    Carry,
    GradientAlgorithm,
    check_carry,
    check_memory,
    without_memory,
)
from jaxrnn.network.rnn import RNN


def autodiff(rnn: RNN) -> GradientAlgorithm:
    """Build the rule that differentiates `rnn.loss` with `jax.value_and_grad`.

    Exact for one layer and for stacks. It uses none of the hand-written equations, so the tests
    compare every other rule with it. Only the hidden state passes from chunk to chunk, so the
    gradient of a long sequence is truncated where chunks end.

    Cost per layer: O(T B H (I + H)) operations, O(T B H) memory.

    Args:
        rnn: the network.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.autodiff(rnn)
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, rule.init(params, h), batch)
    >>> grads.cells[0].W_hh.shape
    (4, 4)
    """

    def value_and_grad(params, carry, batch):
        check_carry(carry)
        check_memory(carry, ())
        loss_and_grad = jax.value_and_grad(rnn.loss, has_aux=True)
        (loss, h_last), grads = loss_and_grad(params, carry.h, batch)
        return (loss, Carry(h_last, ())), grads

    return GradientAlgorithm(without_memory, value_and_grad)
