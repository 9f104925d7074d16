"""Build an algorithm for a whole network from a rule for its recurrent layers.

`backward_rule` builds an algorithm from one function that computes δ_t = dL/da_t from the errors
e_t of a layer. It uses two functions that other rules share: `lift` adds the forward pass and the
gradient of the readout, and `layer_by_layer` applies a rule for one layer to a stack.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrnn.gradients.engine.algorithm import (
    Carry,
    GradientAlgorithm,
    Memory,
    check_carry,
    check_memory,
)
from jaxrnn.network import checks, layer
from jaxrnn.network.batch import Batch
from jaxrnn.network.forward_pass import ForwardPass, forward_pass
from jaxrnn.network.layer import Cell, Tape
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params, walk_down
from jaxrnn.network.validation import as_state


class StackRule(NamedTuple):
    """A rule for all layers at once.

    Attributes:
        init: (cells, h, key) -> memory.
        grads: (cells, memory, forward pass) -> (gradient of each cell, memory). The forward pass
            has the tape of every layer in `tapes`, and e_t (T, B, H) of the top layer in `error`.
    """

    init: Callable[[tuple[Cell, ...], Array, PRNGKeyArray | None], Memory]
    grads: Callable[[tuple[Cell, ...], Memory, ForwardPass], tuple[tuple[Cell, ...], Memory]]


class LayerRule(NamedTuple):
    """A rule for one layer.

    Attributes:
        init: (cell, h, key) -> memory, with h (B, H).
        grads: (cell, memory, tape, error) -> (gradient of the cell, error of the layer below,
            memory). The error is (T, B, H), and that of the layer below is (T, B, I).
    """

    init: Callable[[Cell, Array, PRNGKeyArray | None], Memory]
    grads: Callable[..., tuple[Cell, Array, Memory]]


def backward_rule(
    rnn: RNN, deltas: Callable[[Cell, Tape, Float[Array, "T B H"]], Float[Array, "T B H"]]
) -> GradientAlgorithm:
    """Build an algorithm from a function that computes the deltas of a layer from its errors.

        dW_xh = Σ_t x_tᵀ δ_t,        dW_hh = Σ_t h_{t-1}ᵀ δ_t,        db_h = Σ_t δ_t

    The error of the layer below is δ_t W_xhᵀ. Only the hidden state passes from chunk to chunk. The
    algorithm is exact if the deltas are those of `jaxrnn.gradients.bptt` (Werbos 1990).

    Args:
        rnn: the network.
        deltas: (cell, tape, error) -> δ_t (T, B, H). All arrays are time-major: the tape has `x`
            (T, B, I) or ids (T, B), and `h_prev` and `gain` (T, B, H). The error e_t (T, B, H) is
            the part of dL/dh_t that does not come through h_{t+1}.

    Returns:
        The algorithm, without memory.

    >>> import jax, jaxrnn
    >>> from jaxrnn.gradients import backward_rule
    >>> def one_hop(rnn):
    ...     return backward_rule(rnn, lambda cell, tape, error: tape.gain * error)
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params = rnn.init(jax.random.key(0))
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> jaxrnn.verify(one_hop(rnn), rnn, params, batch).findings[0].bug
    'one-hop'
    """

    def grads(cell, memory, tape, error):
        delta = deltas(cell, tape, error)
        checks.result("deltas(cell, tape, error)", delta, error.shape, "(T, B, H)")
        return layer.contract(cell, tape, delta), layer.input_error(cell, delta), memory

    return lift(rnn, layer_by_layer(LayerRule(lambda cell, h, key: (), grads)))


def lift(rnn: RNN, rule: StackRule) -> GradientAlgorithm:
    """Build an algorithm from a rule for the cells; add the forward pass and the readout."""

    def init(params: Params, h: Float[Array, "L B H"], *, key: PRNGKeyArray | None = None) -> Carry:
        h = as_state(params, h)
        return Carry(h, rule.init(params.cells, h, key))

    def value_and_grad(
        params: Params, carry: Carry, batch: Batch
    ) -> tuple[tuple[Float[Array, ""], Carry], Params]:
        check_carry(carry)
        forward = forward_pass(rnn, params, carry.h, batch)
        key = jax.random.key(0)  # any key: only shapes are used
        check_memory(carry, jax.eval_shape(rule.init, params.cells, forward.h_last, key))
        cells, memory = rule.grads(params.cells, carry.memory, forward)
        loss, carry = forward.loss_terms.sum(), Carry(forward.h_last, memory)
        return (loss, carry), layer.summed_like(Params(cells, forward.readout_grad), params)

    return GradientAlgorithm(init, value_and_grad)


def layer_by_layer(rule: LayerRule) -> StackRule:
    """Build a rule for a stack from a rule for one layer.

    Layers are visited from the top; each passes the error of its input to the layer below.
    """

    def init(cells, h, key):
        keys = [None] * len(cells) if key is None else jax.random.split(key, len(cells))
        return tuple(map(rule.init, cells, h, keys))

    def grads(cells, memories, forward):
        def visit(error, cell, memory, tape):
            grad, below, memory = rule.grads(cell, memory, tape, error)
            return below, (grad, memory)

        results = walk_down(visit, forward.error, cells, memories, forward.tapes)
        cell_grads, memories = zip(*results, strict=True)
        return cell_grads, memories

    return StackRule(init, grads)
