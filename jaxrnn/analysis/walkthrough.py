"""Every number of one forward and backward pass, step by step, as by hand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.network import layer
from jaxrnn.network.batch import Batch, check_is_batch
from jaxrnn.network.forward_pass import forward_pass
from jaxrnn.network.layer import is_ids
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params


class Walkthrough(NamedTuple):
    """The quantities of one sequence of T steps, in the order in which they are computed.

    Attributes:
        params: the parameters.
        x: inputs, one-hot where they were ids.
        h_prev: h_{t-1}.
        h: h_t.
        y: outputs.
        p: softmax(y).
        loss_t: each step's loss.
        loss: the whole loss.
        dy: dL/dy_t.
        error: the part of dL/dh_t that comes from y_t, dy_t W_hyᵀ: all that one-hop has.
        dh_next: the part that comes from h_{t+1}.
        dh: dL/dh_t, the sum of the two: the credit λ_t.
        gain: φ'(a_t), times the leak: for tanh 1 - h_t².
        dh_raw: dL/da_t, before the activation: the delta δ_t.
        dh_0: dL/dh_0.
        grads: the gradient of every parameter.
    """

    params: Params
    x: Float[Array, "T I"]
    h_prev: Float[Array, "T H"]
    h: Float[Array, "T H"]
    y: Float[Array, "T O"]
    p: Float[Array, "T O"]
    loss_t: Float[Array, " T"]
    loss: Float[Array, ""]
    dy: Float[Array, "T O"]
    error: Float[Array, "T H"]
    dh_next: Float[Array, "T H"]
    dh: Float[Array, "T H"]
    gain: Float[Array, "T H"]
    dh_raw: Float[Array, "T H"]
    dh_0: Float[Array, " H"]
    grads: Params


def walkthrough(
    rnn: RNN, params: Params, batch: Batch, h: Float[Array, "1 1 H"] | None = None
) -> Walkthrough:
    """Go through one sequence by hand, forward and back; the pieces are those of `gradients.bptt`.

    Args:
        rnn: a network of one layer.
        params: its parameters.
        batch: one sequence, B = 1.
        h: the state before it, (1, 1, H); zeros if not given.

    Raises:
        ValueError: for more than one layer or one sequence, or shapes that do not fit.
    """
    if rnn.num_layers != 1:
        raise ValueError(f"a walkthrough is of one layer, this network has {rnn.num_layers}")
    check_is_batch(batch)
    if len(batch.inputs) != 1:
        raise ValueError(f"a walkthrough is of one sequence, this batch has {len(batch.inputs)}")
    h = rnn.initial_state(1) if h is None else h
    found = forward_pass(rnn, params, h, batch)
    (cell,), (tape,) = params.cells, found.tapes

    dh_next, dh = [jnp.zeros_like(tape.gain[0])], []
    for gain_t, error_t in zip(tape.gain[::-1], found.error[::-1], strict=True):
        dh.append(error_t + dh_next[-1])
        dh_next.append(layer.pull_back(cell.W_hh.T, gain_t, dh[-1], rnn.leak))
    *dh_next, dh_0 = dh_next
    dh_next, dh = jnp.stack(dh_next[::-1]), jnp.stack(dh[::-1])
    dh_raw = tape.gain * dh
    grads = Params((layer.contract(cell, tape, dh_raw),), found.readout)

    x = jax.nn.one_hot(tape.x, rnn.input_size, dtype=dh.dtype) if is_ids(tape.x) else tape.x
    return Walkthrough(
        params=params,
        x=x[:, 0],
        h_prev=tape.h_prev[:, 0],
        h=found.trajectories[0].states[:, 0],
        y=found.outputs[:, 0],
        p=jax.nn.softmax(found.outputs[:, 0]),
        loss_t=found.losses[:, 0],
        loss=found.losses.sum(),
        dy=found.d_outputs[:, 0],
        error=found.error[:, 0],
        dh_next=dh_next[:, 0],
        dh=dh[:, 0],
        gain=tape.gain[:, 0],
        dh_raw=dh_raw[:, 0],
        dh_0=dh_0[0],
        grads=grads,
    )
