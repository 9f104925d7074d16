"""Random feedback local online learning (Murray 2019, eqs. 3 to 5).

    P_t = (1 - leak) P_{t-1} + s_tᵀ g_t,        dW = Σ_t P_t ⊙ e_t

Only the influence of a weight on its own unit is kept, and W_hh is replaced by zero in J_t, so that
this influence decays by the leak. With random feedback the error reaches the layer through a fixed
random matrix instead of W_hyᵀ. The update of a synapse then needs only quantities of its two
neurons and their error signal.
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
    """Build random feedback local online learning: one eligibility trace per weight.

        P_t = (1 - leak) P_{t-1} + s_tᵀ g_t,        dL/dθ ≈ Σ_t P_t ⊙ e_t

    s_t = (x_t, h_{t-1}, 1) is the input of the weights and g_t = leak φ'(a_t). The error e_t is
    dL/dy_t W_hyᵀ, or dL/dy_t B with a fixed random matrix B.

    Approximate, for one layer and for stacks: J_t is replaced by (1 - leak) I. With leak = 1 the
    trace has no memory, and the rule is the one-hop gradient. In a stack the rule is applied layer
    by layer. The gradient of the readout is exact.

    Cost per layer: O(B H (I + H)) operations per step and memory.

    Paper: Murray 2019, eqs. 3 to 5.

    Args:
        rnn: the network.
        feedback: "readout" passes dL/dy_t to the top layer through W_hyᵀ. "random" passes it
            through a random matrix that `init` draws from its key and the memory of the rule holds.

    Raises:
        ValueError: if feedback is not one of these; by init, if random feedback gets no key.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.rflo(rnn, feedback="random")
    >>> carry = rule.init(params, h, key=jax.random.key(1))
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, carry, batch)
    >>> carry.memory.matrix.value.shape  # (O, H)
    (2, 4)
    """
    checks.one_of("feedback", feedback, FEEDBACK)

    trace = eligibility_trace(lambda cell, gain: 1 - rnn.leak)
    rule = layer_by_layer(influence_layer(*trace))
    return lift(rnn, random_feedback(rnn, rule) if feedback == "random" else rule)
