"""Truncated backpropagation through time: BPTT(h; h') of Williams & Peng (1990) with h' = 1.

The error of output t reaches the pre-activations t, t-1, …, t-window and no further: window + 1
terms of the Neumann series

    λ = Σ_k 𝒥ᵏ e,        k = 0 … window

of `jaxrnn.gradients.series`. In a stack the window counts the steps of an error's whole way down,
through whichever layers it goes: the gradient is that of the graph with `stop_gradient` on every
layer's h_{t-window-1}. So the terms are taken one by one through all layers, not layer by layer.

The rule remembers the last `window` steps, and an error goes on into them from the next chunk: the
sum over the chunks does not depend on where they are cut.
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
    """The last K steps. Before the first there were none: a gain of 0 lets no credit through.

    Attributes:
        ids: the network's input where it is ids, (K, B); zeros, never read, for features.
        tapes: one a layer; the lowest holds zeros for x, never read, where the input is ids.
    """

    ids: Int[Array, "K B"]
    tapes: tuple[Tape, ...]


def truncated_bptt(rnn: RNN, window: int = 8) -> GradientAlgorithm:
    """Backpropagate each error through `window` recurrent steps; O(window T B H²) per layer.

    Args:
        rnn: the network.
        window: K ≥ 0. 0 is the one-hop gradient, where no credit passes between steps; T - 1 and
            above is the whole of BPTT for a sequence of T.

    Raises:
        ValueError: if window is negative or not a whole number.
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
        tapes, error = _remember(memory, errors.tapes), errors.error
        error = jnp.concatenate([jnp.zeros((window, *error.shape[1:]), error.dtype), error])

        def one_step_further(carry, _):
            credits, total = carry
            credits, deltas = next_term(cells, tapes, credits, rnn.leak)
            return (credits, jax.tree.map(jnp.add, total, deltas)), None

        first = first_term(cells, tapes, error)
        (_, deltas), _ = lax.scan(one_step_further, first, length=window)
        memory = _keep(memory, tapes, window, valid)
        return tuple(map(layer.contract, cells, tapes, deltas)), memory

    return lift(rnn, StackRule(init, grads))


def _remember(memory: Window, tapes: tuple[Tape, ...]) -> tuple[Tape, ...]:
    """Put the remembered steps before the chunk's."""
    past = memory.tapes
    tapes = tuple(tape._replace(valid=None) for tape in tapes)  # the gain is 0 where it is not
    if is_ids(tapes[0].x):
        past = (past[0]._replace(x=memory.ids), *past[1:])
    return jax.tree.map(lambda before, now: jnp.concatenate([before, now]), past, tapes)


def _keep(
    memory: Window, tapes: tuple[Tape, ...], window: int, valid: Bool[Array, "T B"] | None
) -> Window:
    """Keep each row's last `window` valid steps; of the input's two kinds the one that was given.

    The tapes are those of the remembered steps and then of the chunk's.
    """
    if valid is None:
        last = jax.tree.map(lambda leaf: leaf[leaf.shape[0] - window :], tapes)
    else:
        places = valid.sum(0, dtype=jnp.int32)[None] + jnp.arange(window, dtype=jnp.int32)[:, None]
        last = jax.tree.map(lambda leaf: leaf[places, jnp.arange(leaf.shape[1])[None]], tapes)
    lowest, *above = last
    if is_ids(lowest.x):
        return Window(lowest.x, (lowest._replace(x=memory.tapes[0].x), *above))
    return Window(memory.ids, (lowest, *above))
