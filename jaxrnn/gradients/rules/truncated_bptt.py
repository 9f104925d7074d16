"""Truncated backpropagation through time: BPTT(h; h') of Williams & Peng (1990) with h' = 1.

The error of output t reaches the pre-activations t, t-1, …, t-window and no earlier ones. The
credit is the sum of the first window + 1 terms of the Neumann series

    λ = Σ_k 𝒥ᵏ e,        k = 0 … window

of `jaxrnn.gradients.engine.neumann`. In a stack the window counts all recurrent steps on a path,
whichever layers they belong to: the gradient is that of the graph with `stop_gradient` on every
layer's h_{t-window-1}. Each term is therefore computed through all layers before the next term.

The memory of the rule holds the tapes of the last `window` steps, so an error of the next chunk
reaches back into them. The sum over chunks does not depend on where the sequence is cut.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.lift import StackRule, lift
from jaxrnn.gradients.engine.neumann import first_term, next_term
from jaxrnn.network import checks, layer
from jaxrnn.network.layer import Tape, is_ids
from jaxrnn.network.rnn import RNN


class Window(NamedTuple):
    """The last K steps. Entries before the first step have gain 0, so no credit passes them.

    Attributes:
        ids: the network's input if it is token ids, (K, B); unused zeros for features.
        tapes: one per layer. If the input is token ids, x of the lowest layer is unused zeros.
    """

    ids: Int[Array, "K B"]
    tapes: tuple[Tape, ...]


def truncated_bptt(rnn: RNN, window: int = 8) -> GradientAlgorithm:
    """Build truncated BPTT: each error is backpropagated through `window` recurrent steps.

        λ = Σ_{k=0}^{window} 𝒥ᵏ e,        (𝒥 λ)_t = J_{t+1}ᵀ λ_{t+1},        δ_t = g_t ⊙ λ_t

    For each output t this is the exact gradient of the graph that is cut by `stop_gradient` on
    h_{t-window-1} of every layer, for one layer and for stacks. In a stack the window counts the
    recurrent steps on a path through any layers. The last `window` steps pass from chunk to chunk:
    with the parameters held fixed, the sum over chunks does not depend on where they are cut.

    Cost per layer: O(window T B H²) operations for the credit, O((T + window) B H (I + H)) for the
    weights, and O(window B (I + H)) memory between chunks.

    Paper: Williams & Peng 1990, BPTT(h; h') with h' = 1.

    Args:
        rnn: the network.
        window: K, at least 0. With 0 no credit passes between steps (the one-hop gradient). With
            T - 1 or more the gradient of one sequence of T steps is that of `bptt`.

    Raises:
        ValueError: if window is negative or not a whole number.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.truncated_bptt(rnn, window=2)
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, rule.init(params, h), batch)
    >>> carry.memory.tapes[0].h_prev.shape  # (window, B, H)
    (2, 3, 4)
    """
    checks.whole("window", window, 0)

    def init(cells, h, key):
        def empty(cell):
            steps = jnp.zeros((window, *h.shape[1:]), cell.W_hh.dtype)
            x = jnp.zeros((window, h.shape[1], cell.W_xh.shape[0]), cell.W_xh.dtype)
            return Tape(x, h_prev=steps, gain=steps)

        return Window(jnp.zeros((window, h.shape[1]), jnp.int32), tuple(map(empty, cells)))

    def grads(cells, memory, errors):
        valid = errors.tapes[0].valid
        tapes, error = _prepend_memory(memory, errors.tapes), errors.error
        error = jnp.concatenate([jnp.zeros((window, *error.shape[1:]), error.dtype), error])

        def add_next_term(carry, _):
            credits, total = carry
            credits, deltas = next_term(cells, tapes, credits, rnn.leak)
            return (credits, jax.tree.map(jnp.add, total, deltas)), None

        first = first_term(cells, tapes, error)
        (_, deltas), _ = lax.scan(add_next_term, first, length=window)
        memory = _last_steps(memory, tapes, window, valid)
        return tuple(map(layer.contract, cells, tapes, deltas)), memory

    return lift(rnn, StackRule(init, grads))


def _prepend_memory(memory: Window, tapes: tuple[Tape, ...]) -> tuple[Tape, ...]:
    """Return the tapes of the remembered steps followed by those of the chunk."""
    past = memory.tapes
    tapes = tuple(tape._replace(valid=None) for tape in tapes)  # the gain is 0 at invalid steps
    if is_ids(tapes[0].x):
        past = (past[0]._replace(x=memory.ids), *past[1:])
    return jax.tree.map(lambda before, now: jnp.concatenate([before, now]), past, tapes)


def _last_steps(
    memory: Window, tapes: tuple[Tape, ...], window: int, valid: Bool[Array, "T B"] | None
) -> Window:
    """Return a `Window` of each row's last `window` valid steps.

    The input is stored as ids or as features, whichever the network received.

    Args:
        memory: the window before the chunk.
        tapes: those of the remembered steps followed by those of the chunk.
        window: K, the number of steps to store.
        valid: whether each step of the chunk is within its row's length; None if all are.
    """
    if valid is None:
        last = jax.tree.map(lambda leaf: leaf[leaf.shape[0] - window :], tapes)
    else:
        indices = valid.sum(0, dtype=jnp.int32)[None] + jnp.arange(window, dtype=jnp.int32)[:, None]
        last = jax.tree.map(lambda leaf: leaf[indices, jnp.arange(leaf.shape[1])[None]], tapes)
    lowest, *above = last
    if is_ids(lowest.x):
        return Window(lowest.x, (lowest._replace(x=memory.tapes[0].x), *above))
    return Window(memory.ids, (lowest, *above))
