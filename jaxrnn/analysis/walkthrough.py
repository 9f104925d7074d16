"""Walkthrough: every number of one forward and backward pass, step by step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn.network import layer
from jaxrnn.network.batch import Batch, check_is_batch
from jaxrnn.network.forward_pass import forward_pass
from jaxrnn.network.layer import is_ids
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params
from jaxrnn.tree import html_table


class Walkthrough(NamedTuple):
    """The quantities of one sequence of T steps, in the order in which they are computed.

    Attributes:
        params: the parameters.
        x: the inputs, one-hot if they are ids.
        h_prev: the previous hidden states h_{t-1}.
        h: the hidden states h_t.
        y: the outputs.
        p: softmax(y).
        loss_t: the loss of each step; the sum of them is `loss`.
        loss: the loss of the sequence.
        dy: dL/dy_t.
        error: dy_t W_hyᵀ, the part of dL/dh_t that comes from y_t. The one-hop gradient uses only
            this part.
        dh_next: the part of dL/dh_t that comes from h_{t+1}.
        dh: dL/dh_t = error + dh_next, the credit λ_t.
        gain: leak φ'(a_t); for tanh without a leak 1 - h_t².
        dh_raw: dL/da_t = gain ⊙ dh, the delta δ_t before the activation.
        dh_0: dL/dh_0, the gradient of the initial hidden state.
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

    def __repr__(self) -> str:
        """Return the sizes, the loss and the names of the quantities."""
        (T, I), H, O = self.x.shape, self.h.shape[1], self.y.shape[1]
        return (
            f"Walkthrough of {T} steps (I={I}, H={H}, O={O}), loss {float(self.loss):.6g} = "
            f"{' + '.join(f'{float(loss):.4g}' for loss in self.loss_t[:4])}"
            f"{' + …' if T > 4 else ''}\n"
            f"  forward   x h_prev h y p loss_t loss\n"
            f"  backward  dy error dh_next dh gain dh_raw dh_0 grads"
        )

    def _repr_html_(self) -> str:
        """Return a table with one row for each step, for a notebook."""
        names = ("h", "p", "dy", "dh", "gain", "dh_raw")
        arrays = [np.asarray(getattr(self, name)) for name in names]
        shown = min(len(self.x), 20)
        rows = [
            [str(t), f"{float(self.loss_t[t]):.4g}", *(_numbers(array[t]) for array in arrays)]
            for t in range(shown)
        ]
        below = [f"loss {float(self.loss):.6g}; {shown} of {len(self.x)} steps"]
        return html_table(("t", "loss_t", *names), rows, below)


def _numbers(row: np.ndarray) -> str:
    """Return the first elements of a vector with three digits."""
    return f"{' '.join(f'{value:.3g}' for value in row[:6])}{' …' if len(row) > 6 else ''}"


def walkthrough(
    rnn: RNN, params: Params, batch: Batch, h: Float[Array, "1 1 H"] | None = None
) -> Walkthrough:
    """Compute every quantity of the forward and backward pass of one sequence.

        dh_t = dy_t W_hyᵀ + dh_next_t    dh_raw_t = gain_t ⊙ dh_t    dh_next_{t-1} = dh_raw_t W_hhᵀ

    for leak = 1. The computation uses the same functions as `gradients.bptt`.

    Args:
        rnn: a network with one layer.
        params: its parameters.
        batch: one sequence, inputs (1, T) or (1, T, I).
        h: the initial hidden state, (1, 1, H); default zeros.

    Returns:
        All quantities, without the batch axis.

    Raises:
        ValueError: if there is more than one layer or sequence, or shapes do not fit.

    >>> import jax, numpy as np, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=5)
    >>> ids = np.array([[0, 3, 1]])
    >>> walk = jaxrnn.walkthrough(rnn, rnn.init(jax.random.key(0)), jaxrnn.Batch(ids, ids))
    >>> bool(np.allclose(walk.dh, walk.error + walk.dh_next)), walk.dh.shape  # (T, H)
    (True, (3, 4))
    """
    if rnn.num_layers != 1:
        raise ValueError(f"a walkthrough needs one layer, but this network has {rnn.num_layers}")
    check_is_batch(batch)
    if len(batch.inputs) != 1:
        raise ValueError(f"a walkthrough needs one sequence, this batch has {len(batch.inputs)}")
    h = rnn.initial_state(1) if h is None else h
    forward = forward_pass(rnn, params, h, batch)
    (cell,), (tape,) = params.cells, forward.tapes

    dh_next, dh = [jnp.zeros_like(tape.gain[0])], []
    for gain_t, error_t in zip(tape.gain[::-1], forward.error[::-1], strict=True):
        dh.append(error_t + dh_next[-1])
        dh_next.append(layer.pull_back(cell.W_hh.T, gain_t, dh[-1], rnn.leak))
    *dh_next, dh_0 = dh_next
    dh_next, dh = jnp.stack(dh_next[::-1]), jnp.stack(dh[::-1])
    dh_raw = tape.gain * dh
    grads = Params((layer.contract(cell, tape, dh_raw),), forward.readout_grad)

    x = jax.nn.one_hot(tape.x, rnn.input_size, dtype=dh.dtype) if is_ids(tape.x) else tape.x
    return Walkthrough(
        params=params,
        x=x[:, 0],
        h_prev=tape.h_prev[:, 0],
        h=forward.trajectories[0].states[:, 0],
        y=forward.outputs[:, 0],
        p=jax.nn.softmax(forward.outputs[:, 0]),
        loss_t=forward.loss_terms[:, 0],
        loss=forward.loss_terms.sum(),
        dy=forward.d_outputs[:, 0],
        error=forward.error[:, 0],
        dh_next=dh_next[:, 0],
        dh=dh[:, 0],
        gain=tape.gain[:, 0],
        dh_raw=dh_raw[:, 0],
        dh_0=dh_0[0],
        grads=grads,
    )
