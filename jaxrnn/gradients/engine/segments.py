"""What the exact rules share that backpropagate a chunk in segments, from the last to the first.

    λ_t = e_t + J_{t+1}ᵀ λ_{t+1},        δ_t = g_t ⊙ λ_t

by back-substitution within a segment, where what λ sends back beyond its first step passes to the
segment before. Of all that a backward pass works with, errors, gains, deltas and outputs, there is
one segment's at a time. What there is of the whole chunk are the states, or only those before each
segment, from which it runs forward once more.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.gradients.engine.algorithm import Carry, GradientAlgorithm, check_memory, without_memory
from jaxrnn.network import layer
from jaxrnn.network.batch import time_major, weigh
from jaxrnn.network.forward_pass import errors_of
from jaxrnn.network.layer import summed_like, varying_like
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params, back_substitute, forward


def by_segments(
    rnn: RNN, length: Callable[[int, int, int], int], *, recompute: bool
) -> GradientAlgorithm:
    """Make an algorithm that backpropagates in segments; the last may be shorter.

    With a loss of somebody's own, which may join positions, there is one segment.

    Args:
        rnn: the network.
        length: (steps T, batch size B, bytes of a number) -> steps of a segment, 1 … T.
        recompute: whether to keep only the state before each segment.
    """

    def value_and_grad(params, carry, batch):
        check_memory(carry, ())
        batch, h_0 = check_batch(rnn, params, batch, carry.h)
        weighted = weigh(batch, rnn.reduction, h_0.dtype)
        h_0 = varying_like(h_0, weighted, params)
        batch_size, steps = batch.inputs.shape[:2]
        whole = callable(rnn.loss_function)
        size = steps if whole else length(steps, batch_size, h_0.dtype.itemsize)
        starts = jnp.arange(0, steps - size, size)  # of all segments but the last
        start_of_last = len(starts) * size

        def segment(start, size):
            """Cut where needed: all segments together would be a copy of the batch."""
            piece = jax.tree.map(
                lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size, axis=1), weighted
            )
            return time_major(piece)

        def run(h, start):
            piece = segment(start, size)
            trajectories, h_last = forward(rnn.dynamics, params.cells, piece.inputs, h, piece.valid)
            return h_last, (h, None if recompute else trajectories)

        def back(beyond, h, piece, trajectories):
            """Return the segment's loss and gradient, and dL/dh before it."""
            found = errors_of(rnn, params, h, piece, trajectories)
            deltas, before = back_substitute(
                rnn.dynamics, params.cells, trajectories, found.error, beyond
            )
            cells = tuple(map(layer.contract, params.cells, found.tapes, deltas))
            return (found.losses.sum(), Params(cells, found.readout)), before

        def go_back(carry, passed):
            so_far, beyond = carry
            start, (h, trajectories) = passed
            piece = segment(start, size)
            if trajectories is None:
                trajectories, _ = forward(rnn.dynamics, params.cells, piece.inputs, h, piece.valid)
            part, beyond = back(beyond, h, piece, trajectories)
            return (jax.tree.map(jnp.add, so_far, part), beyond), None

        h, kept = lax.scan(run, h_0, starts)
        piece = segment(start_of_last, steps - start_of_last)
        trajectories, h_last = forward(rnn.dynamics, params.cells, piece.inputs, h, piece.valid)
        end = back(jnp.zeros_like(h), h, piece, trajectories)
        ((loss, grads), _), _ = lax.scan(go_back, end, (starts, kept), reverse=True)
        return (loss, Carry(h_last, ())), summed_like(grads, params)

    return GradientAlgorithm(without_memory, value_and_grad)
