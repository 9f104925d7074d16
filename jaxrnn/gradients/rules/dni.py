"""Decoupled neural interfaces in time: synthetic gradients (Jaderberg et al. 2017, §2.1).

What will come back from beyond step t is foretold from the state, linearly, so that no credit need
wait for the future:

    λ_t ≈ e_t + ĉ_t,        ĉ_t = (h_t, 1) A

A is learned beside, from what the next step says of it: by gradient descent on ½ ‖ĉ_t - c_t‖² with

    c_t = J_{t+1}ᵀ (e_{t+1} + ĉ_{t+1})

taken as given (Czarnecki et al. 2017; one step at a time as in Marschall, Cho & Savin 2020).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import hold
from jaxrnn.gradients.engine.lift import LayerRule, layer_by_layer, lift
from jaxrnn.network import checks, layer
from jaxrnn.network.rnn import RNN


def dni(rnn: RNN, learning_rate: float = 0.05) -> GradientAlgorithm:
    """Add a learned forecast to each error; O(B H (I + H)) per step, O(B H²) memory.

    Biased, and at first the one-hop gradient: A is zero. Each row of the batch learns its own. A
    step of learning is `learning_rate` / ‖(h_t, 1)‖² long, so that one rate fits all sizes. It
    passes from chunk to chunk. In a stack it is applied layer by layer.

    Args:
        rnn: the network.
        learning_rate: of A, in 0 … 1; 0 keeps it as it is.

    Raises:
        ValueError: if learning_rate is outside its range.
    """
    checks.between("learning_rate", learning_rate, 0, 1)

    def init(cell, h, key):
        batch_size, hidden_size = h.shape
        return jnp.zeros((batch_size, hidden_size + 1, hidden_size), cell.W_hh.dtype)

    def grads(cell, memory, tape, error):
        W_hh_T = cell.W_hh.T

        def one_row(A, tape_t, error_t):
            x, h_prev, gain, _ = tape_t
            h = layer.step(cell, x[None], h_prev[None], rnn.dynamics)[0]
            before, now = jnp.append(h_prev, 1), jnp.append(h, 1)
            credit = error_t + now @ A
            off = before @ A - layer.pull_back(W_hh_T, gain, credit, rnn.leak)
            rate = learning_rate / (before @ before)
            return A - rate * jnp.outer(before, off), gain * credit

        def one_step(A, step):
            tape_t, error_t = step
            now, delta = jax.vmap(one_row)(A, tape_t._replace(valid=None), error_t)
            return hold(A, now, tape_t.valid), delta

        steps = (tape, error)
        memory, delta = lax.scan(one_step, layer.varying_like(memory, steps, cell), steps)
        return layer.contract(cell, tape, delta), layer.input_error(cell, delta), memory

    return lift(rnn, layer_by_layer(LayerRule(init, grads)))
