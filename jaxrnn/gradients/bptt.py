"""Backpropagation through time (Rumelhart, Hinton & Williams 1986; Werbos 1990), by hand.

    λ_t = e_t + J_{t+1}ᵀ λ_{t+1},        δ_t = g_t ⊙ λ_t

solved by back-substitution, from the last step of the chunk to its first.
"""

import jax.numpy as jnp

from jaxrnn import layer
from jaxrnn.gradients.base import GradientAlgorithm, backward, layer_by_layer, lift
from jaxrnn.network import RNN


def bptt(rnn: RNN) -> GradientAlgorithm:
    """Backpropagate through time: the exact gradient of a chunk; O(T B H (I + H)) per layer.

    T sequential steps of O(B H²), and one matmul over T·B for each weight. Between chunks only
    the hidden state passes, so that a long sequence is truncated at the chunks' ends.
    """

    def deltas(cell, tape, error):
        return layer.back_substitute(cell, tape, error, jnp.zeros_like(error[0]), rnn.leak)[0]

    return lift(rnn, layer_by_layer(backward(deltas)))
