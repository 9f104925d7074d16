"""Random feedback: errors propagate by a fixed random matrix (Lillicrap et al. 2016)."""

from typing import NamedTuple

import jax

from jaxrnn.gradients.engine.algorithm import Lasting, Memory, check_key
from jaxrnn.gradients.engine.lift import StackRule
from jaxrnn.network.rnn import RNN, lecun_normal


class Feedback(NamedTuple):
    """The memory of a rule with random feedback.

    Attributes:
        matrix: B (O, H), which replaces W_hyᵀ and stays the same.
        memory: the memory of the rule.
    """

    matrix: Lasting
    memory: Memory


def random_feedback(rnn: RNN, rule: StackRule) -> StackRule:
    """Return a rule with errors e_t = dL/dy_t B, where B is a fixed random matrix.

    `init` draws B (O, H) from the distribution of the initial W_hyᵀ. The gradient of the readout
    stays exact.
    """

    def init(cells, h, key):
        feedback_key, rule_key = jax.random.split(check_key(key))
        shape, dtype = (rnn.hidden_size, rnn.output_size), cells[-1].W_hh.dtype
        matrix = lecun_normal(feedback_key, shape, dtype).T
        return Feedback(Lasting(matrix), rule.init(cells, h, rule_key))

    def grads(cells, memory, errors):
        errors = errors._replace(error=errors.d_outputs @ memory.matrix.value)
        cell_grads, rule_memory = rule.grads(cells, memory.memory, errors)
        return cell_grads, memory._replace(memory=rule_memory)

    return StackRule(init, grads)
