"""Backpropagation of a chunk in segments of steps, from the last to the first; exact.

    λ_t = e_t + J_{t+1}ᵀ λ_{t+1},        δ_t = g_t ⊙ λ_t

Each segment is solved by back-substitution, and the credit at its start passes to the segment
before it. Errors, gains, deltas and outputs exist for one segment at a time. The states are stored
for the whole chunk, or only before each segment; in the second case the segment is run
forward again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.gradients.engine.algorithm import (
    Carry,
    GradientAlgorithm,
    check_carry,
    check_memory,
    without_memory,
)
from jaxrnn.network import layer
from jaxrnn.network.batch import to_time_major, weigh
from jaxrnn.network.forward_pass import complete_forward_pass
from jaxrnn.network.layer import summed_like, varying_like
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params, back_substitute, forward


def by_segments(
    rnn: RNN, length: Callable[[int, int, int], int], *, recompute: bool
) -> GradientAlgorithm:
    """Build an algorithm that backpropagates in segments.

    The last segment may be shorter. A custom loss function may combine positions, so with one there
    is a single segment.

    Args:
        rnn: the network.
        length: (steps T, batch size B, bytes per number) -> steps per segment, 1 … T.
        recompute: whether to store only the state before each segment and recompute the others.
    """

    def value_and_grad(params, carry, batch):
        check_carry(carry)
        check_memory(carry, ())
        batch, h_0 = check_batch(rnn, params, batch, carry.h)
        weighted = weigh(batch, rnn.reduction, h_0.dtype)
        h_0 = varying_like(h_0, weighted, params)
        batch_size, steps = batch.inputs.shape[:2]
        single = callable(rnn.loss_function)
        size = steps if single else length(steps, batch_size, h_0.dtype.itemsize)
        starts = jnp.arange(0, steps - size, size)  # of all segments but the last
        start_of_last = len(starts) * size

        def slice_segment(start, size):
            """Slice the batch on demand; slicing all segments at once would copy it."""
            segment = jax.tree.map(
                lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size, axis=1), weighted
            )
            return to_time_major(segment)

        def forward_step(h, start):
            segment = slice_segment(start, size)
            trajectories, h_last = forward(
                rnn.dynamics, params.cells, segment.inputs, h, segment.valid
            )
            return h_last, (h, None if recompute else trajectories)

        def backward(beyond, h, segment, trajectories):
            """Return the loss and gradient of a segment, and dL/dh at its start."""
            errors = complete_forward_pass(rnn, params, h, segment, trajectories)
            deltas, d_h = back_substitute(
                rnn.dynamics, params.cells, trajectories, errors.error, beyond
            )
            cells = tuple(map(layer.contract, params.cells, errors.tapes, deltas))
            return (errors.loss_terms.sum(), Params(cells, errors.readout_grad)), d_h

        def backward_step(carry, segment_inputs):
            total, beyond = carry
            start, (h, trajectories) = segment_inputs
            segment = slice_segment(start, size)
            if trajectories is None:
                trajectories, _ = forward(
                    rnn.dynamics, params.cells, segment.inputs, h, segment.valid
                )
            part, beyond = backward(beyond, h, segment, trajectories)
            return (jax.tree.map(jnp.add, total, part), beyond), None

        h, saved = lax.scan(forward_step, h_0, starts)
        segment = slice_segment(start_of_last, steps - start_of_last)
        trajectories, h_last = forward(rnn.dynamics, params.cells, segment.inputs, h, segment.valid)
        end = backward(jnp.zeros_like(h), h, segment, trajectories)
        ((loss, grads), _), _ = lax.scan(backward_step, end, (starts, saved), reverse=True)
        return (loss, Carry(h_last, ())), summed_like(grads, params)

    return GradientAlgorithm(without_memory, value_and_grad)
