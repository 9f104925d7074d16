"""Random feedback local online learning (Murray 2019, eqs. 3 to 5).

    P_t = (1 - leak) P_{t-1} + s_tᵀ g_t,        dW = Σ_t P_t ⊙ e_t

The influence of a weight on its own unit alone, and through the unit's leak alone: W_hh is taken
for zero in J_t. A synapse needs nothing but what is at its two ends, if the error too comes back
through a fixed random matrix instead of the readout's transpose.
"""

from typing import Literal

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.feedback import random_feedback
from jaxrnn.gradients.engine.influence import eligibility_trace, influence_layer
from jaxrnn.gradients.engine.lift import layer_by_layer, lift
from jaxrnn.network import checks
from jaxrnn.network.rnn import RNN

FEEDBACK = ("readout", "random")


def rflo(rnn: RNN, feedback: Literal["readout", "random"] = "readout") -> GradientAlgorithm:
    """Carry an eligibility trace for each weight, which the leak lets decay; O(B H (I + H)).

    Per step and in memory. Without a leak (leak = 1) there is no memory, and this is the one-hop
    gradient. In a stack it is applied layer by layer.

    Args:
        rnn: the network.
        feedback: what carries dL/dy_t back to the top layer: the readout's own weights, or a random
            matrix that `init` draws from its key and the memory keeps.

    Raises:
        ValueError: for another feedback; by init, if random feedback gets no key.
    """
    checks.one_of("feedback", feedback, FEEDBACK)

    trace = eligibility_trace(lambda cell, gain: 1 - rnn.leak)
    rule = layer_by_layer(influence_layer(*trace))
    return lift(rnn, random_feedback(rnn, rule) if feedback == "random" else rule)
