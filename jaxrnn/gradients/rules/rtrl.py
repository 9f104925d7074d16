"""Real-time recurrent learning (Williams & Zipser 1989, eq. 9), forward in time.

    M_t = J_t M_{t-1} + ∂h_t/∂θ|direct,        dL/dθ = Σ_t M_t e_t

with the whole influence M of every weight on every unit.
"""

import jax.numpy as jnp

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import advance_influence, influence_rule, no_influence
from jaxrnn.network.rnn import RNN


def rtrl(rnn: RNN) -> GradientAlgorithm:
    """Carry every weight's influence along; O(B H³ (I + H)) per step, O(B H² (I + H)) memory.

    Exact for one layer, also over the chunks of a sequence: the influence passes from chunk to
    chunk, so that, with the parameters held fixed, the sum over chunks is the gradient of the
    whole, however long. In a stack it is applied layer by layer: see `jaxrnn.gradients.forward`.

    Raises:
        ValueError: by init, if the influence of a layer is more than `jaxrnn.memory_limit`.
    """

    def advance(cell, M, tape):
        return advance_influence(cell, M, tape, rnn.leak)

    def read(M, error):
        return jnp.einsum("bpji,bi->pj", M, error)

    return influence_rule(rnn, no_influence, advance, read)
