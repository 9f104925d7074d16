"""BPTT that keeps √T states and computes the others again (Chen et al. 2016; Gruslys et al. 2016).

The forward pass leaves the state before every segment of ⌈√T⌉ steps. Then, from the last segment to
the first, a segment runs forward once more, and back-substitution goes through it:

    λ_t = e_t + J_{t+1}ᵀ λ_{t+1}

where what λ sends back beyond a segment's first step passes to the segment before.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import layer
from jaxrnn.gradients.base import Carry, GradientAlgorithm, check_memory
from jaxrnn.network import (
    RNN,
    Params,
    as_state,
    check_batch,
    errors,
    forward,
    time_major,
    total_weight,
)


def checkpointed_bptt(rnn: RNN) -> GradientAlgorithm:
    """Backpropagate through time in O(√T B (H + O)) memory, for one more forward pass.

    Exact. O(T B H (I + H)) per layer, as `bptt`; between chunks only the hidden state passes.
    """

    def init(params, h, key=None):
        return Carry(as_state(params, h), ())

    def value_and_grad(params, carry, batch):
        check_memory(carry, ())
        batch, h_0 = check_batch(rnn, params, batch, carry.h)
        steps, total = batch.inputs.shape[1], total_weight(batch, h_0.dtype)
        length = math.ceil(math.sqrt(steps))
        starts = jnp.arange(0, steps - length, length)  # of all segments but the last
        last = len(starts) * length

        def segment(first, length):
            """Cut where needed: all segments together would be a copy of the batch."""
            return jax.tree.map(
                lambda leaf: lax.dynamic_slice_in_dim(leaf, first, length, axis=1), batch
            )

        def forward_segment(h, first):
            inputs = time_major(segment(first, length)).inputs
            return forward(rnn, params.cells, inputs, h)[1], h

        def backward_segment(beyond, h, piece):
            """Return the segment's loss, its gradient, dL/dh before it, and h after it."""
            found = errors(rnn, params, h, piece, total)
            error, cells, before = found.error, [], []
            layers = zip(params.cells, found.tapes, beyond, strict=True)
            for cell, tape, beyond_here in reversed(list(layers)):
                delta, d_h = layer.back_substitute(cell, tape, error, beyond_here, rnn.leak)
                error = layer.input_error(cell, delta)
                cells.append(layer.contract(cell, tape, delta))
                before.append(d_h)
            grads = Params(tuple(reversed(cells)), found.readout)
            return (found.losses.sum(), grads), jnp.stack(before[::-1]), found.h_last

        def backward(carry, segment_start):
            so_far, beyond = carry
            h, first = segment_start
            part, beyond, _ = backward_segment(beyond, h, segment(first, length))
            return (jax.tree.map(jnp.add, so_far, part), beyond), None

        h, before = lax.scan(forward_segment, h_0, starts)
        end = backward_segment(jnp.zeros_like(h), h, segment(last, steps - last))
        ((loss, grads), _), _ = lax.scan(backward, end[:2], (before, starts), reverse=True)
        return (loss, Carry(end[2], ())), grads

    return GradientAlgorithm(init, value_and_grad)
