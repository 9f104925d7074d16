"""Decoupled neural interfaces in time: synthetic gradients (Jaderberg et al. 2017, §2.1).

A linear function of the state predicts the credit that comes from the steps after t, so the rule
does not wait for these steps:

    λ_t ≈ e_t + ĉ_t,        ĉ_t = (h_t, 1) A

A is learned at the same time, by gradient descent on ½ ‖ĉ_t - c_t‖². The target

    c_t = J_{t+1}ᵀ (e_{t+1} + ĉ_{t+1})

comes from the next step and is treated as a constant (Czarnecki et al. 2017; one step at a time as
in Marschall, Cho & Savin 2020).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm, Lasting
from jaxrnn.gradients.engine.influence import keep_ended
from jaxrnn.gradients.engine.lift import LayerRule, layer_by_layer, lift
from jaxrnn.network import checks, layer
from jaxrnn.network.rnn import RNN


def dni(rnn: RNN, learning_rate: float = 0.05) -> GradientAlgorithm:
    """Build decoupled neural interfaces in time: a learned prediction replaces the future credit.

        λ_t ≈ e_t + ĉ_t,        ĉ_t = (h_t, 1) A,        δ_t = g_t ⊙ λ_t

    A is learned by gradient descent on ½ ‖ĉ_t - c_t‖², with c_t = J_{t+1}ᵀ (e_{t+1} + ĉ_{t+1}) as a
    constant. g_t = leak φ'(a_t), e_t = dL/dy_t W_hyᵀ and J_t = ∂h_t/∂h_{t-1}.

    Approximate (biased), for one layer and for stacks, where the rule is applied layer by layer. A
    starts at zero, which gives the one-hop gradient. Each row of the batch learns its own A, which
    passes from chunk to chunk and to the next sequence.

    Cost per layer: O(B H (I + H)) operations per step, O(B H²) memory.

    Paper: Jaderberg et al. 2017, §2.1; Czarnecki et al. 2017; Marschall, Cho & Savin 2020.

    Args:
        rnn: the network.
        learning_rate: learning rate of A, in 0 … 1. Each step is divided by ‖(h_t, 1)‖², so one
            rate suits networks of all sizes. With 0, A is not learned.

    Raises:
        ValueError: if learning_rate is outside its range.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.dni(rnn)
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, rule.init(params, h), batch)
    >>> carry.memory[0].value.shape  # A of each row: (B, H + 1, H)
    (3, 5, 4)
    """
    checks.between("learning_rate", learning_rate, 0, 1)

    def init(cell, h, key):
        batch_size, hidden_size = h.shape
        return Lasting(jnp.zeros((batch_size, hidden_size + 1, hidden_size), cell.W_hh.dtype))

    def grads(cell, memory, tape, error):
        W_hh_T = cell.W_hh.T

        def one_row(A, tape_t, error_t):
            x, h_prev, gain, _ = tape_t
            h = layer.step(cell, x[None], h_prev[None], rnn.dynamics)[0]
            before, now = jnp.append(h_prev, 1), jnp.append(h, 1)
            credit = error_t + now @ A
            residual = before @ A - layer.pull_back(W_hh_T, gain, credit, rnn.leak)
            rate = learning_rate / (before @ before)
            return A - rate * jnp.outer(before, residual), gain * credit

        def one_step(A, step):
            tape_t, error_t = step
            new, delta = jax.vmap(one_row)(A, tape_t._replace(valid=None), error_t)
            return keep_ended(A, new, tape_t.valid), delta

        steps = (tape, error)
        A, delta = lax.scan(one_step, layer.varying_like(memory.value, steps, cell), steps)
        return layer.contract(cell, tape, delta), layer.input_error(cell, delta), Lasting(A)

    return lift(rnn, layer_by_layer(LayerRule(init, grads)))
