"""Reverse-mode autodiff of the whole loss: the reference that every other rule is proven against.

It differentiates the plain `lax.scan`, not the hand-written VJP of `RNN.unroll`.
"""

import jax

from jaxrnn.gradients.engine.algorithm import Carry, GradientAlgorithm, check_memory, without_memory
from jaxrnn.network.rnn import RNN


def autodiff(rnn: RNN) -> GradientAlgorithm:
    """Differentiate by `jax.value_and_grad` of `rnn.loss`; O(T B H (I + H)) per layer."""

    def value_and_grad(params, carry, batch):
        check_memory(carry, ())
        loss_and_grad = jax.value_and_grad(rnn.loss, has_aux=True)
        (loss, h_last), grads = loss_and_grad(params, carry.h, batch)
        return (loss, Carry(h_last, ())), grads

    return GradientAlgorithm(without_memory, value_and_grad)
