"""Real-time recurrent learning (RTRL; Williams & Zipser 1989, eq. 9), forward in time.

    M_t = J_t M_{t-1} + ∂h_t/∂θ|direct,        dL/dθ = Σ_t M_t e_t

The rule carries the full influence M_t = ∂h_t/∂θ of every weight on every unit.
"""

import jax.numpy as jnp

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import advance_influence, influence_rule, no_influence
from jaxrnn.network.rnn import RNN


def rtrl(rnn: RNN) -> GradientAlgorithm:
    """Build real-time recurrent learning: carry the influence of every weight forward in time.

        M_t[p, j, i] = ∂h_t[i] / ∂θ_pj = (J_t M_{t-1}[p, j])[i] + s_t[p] g_t[j] 1[i = j]
        dL/dθ = Σ_t M_t e_t

    θ = [W_xh; W_hh; b_h] are the weights, (N, H) with N = I + H + 1, and s_t = (x_t, h_{t-1}, 1) is
    their input; without a bias N is I + H. The error is e_t = dL/dy_t W_hyᵀ, the gain is
    g_t = leak φ'(a_t), and the step Jacobian is J_t = ∂h_t/∂h_{t-1}.

    Exact for one layer. The influence passes from chunk to chunk: with the parameters held fixed,
    the sum over chunks is the gradient of the whole sequence, however long it is. Approximate in a
    stack: each layer carries only its own influence, so paths that go back in time through an upper
    layer before they reach a lower one are left out.

    Cost per layer: O(B H³ (I + H)) operations per step, O(B H² (I + H)) memory.

    Paper: Williams & Zipser 1989, eq. 9.

    Args:
        rnn: the network.

    Raises:
        ValueError: by init, if the influence of a layer needs more memory than
            `jaxrnn.memory_limit`.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.rtrl(rnn)
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, rule.init(params, h), batch)
    >>> exact = jax.grad(rnn.loss, has_aux=True)(params, h, batch)[0]
    >>> bool(jax.numpy.allclose(grads.cells[0].W_hh, exact.cells[0].W_hh, atol=1e-6))
    True
    >>> carry.memory[0].influence.shape  # (B, N, H, H)
    (3, 10, 4, 4)
    """

    def advance(cell, M, tape):
        return advance_influence(cell, M, tape, rnn.leak)

    def read(M, error):
        return jnp.einsum("bpji,bi->pj", M, error)

    return influence_rule(rnn, no_influence, advance, read)
