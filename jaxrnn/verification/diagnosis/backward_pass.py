"""A backward pass by hand in NumPy, made of pieces that a bug can replace one at a time.

It is what people write: a loop from the last step to the first, time-major. The catalogue of
`jaxrnn.verification.bugs` computes each wrong gradient with it, on the batch at hand.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network.batch import Batch, time_major, weigh
from jaxrnn.network.forward_pass import forward_pass, outputs_and_grad
from jaxrnn.network.layer import Cell
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params, Readout

Steps = tuple[np.ndarray, ...]  # (T, B, H) for each layer


class Pass(NamedTuple):
    """A forward pass, and what its backward pass starts from; all in NumPy.

    Attributes:
        rnn: the network.
        params: its parameters.
        batch: what it was run on, batch-major; all else is time-major.
        x: what each layer read: ids (T, B), or (T, B, I).
        h_prev: h_{t-1} of each layer.
        h: h_t of each layer.
        gain: leak φ'(a_t) of each layer.
        d_outputs: dL/dy_t, (T, B, O).
        error: e_t = dL/dy_t W_hyᵀ, (T, B, H).
    """

    rnn: RNN
    params: Params
    batch: Batch
    x: tuple[np.ndarray, ...]
    h_prev: Steps
    h: Steps
    gain: Steps
    d_outputs: np.ndarray
    error: np.ndarray


def own_gain(p: Pass, layer: int) -> np.ndarray:
    """Return the gain of a layer, (T, B, H)."""
    return p.gain[layer]


def own_h_prev(p: Pass, layer: int) -> np.ndarray:
    """Return the states h_{t-1} that W_hh of a layer reads, (T, B, H)."""
    return p.h_prev[layer]


def pull_back(p: Pass, cell: Cell, credit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Return what a step sends to the one before: (1 - leak) λ_t + δ_t W_hhᵀ."""
    return (1 - p.rnn.leak) * credit + delta @ cell.W_hh.T


def pass_down(p: Pass, cell: Cell, credit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Return the error of the layer below: δ_t W_xhᵀ."""
    return delta @ cell.W_xh.T


def all_steps(delta: np.ndarray) -> np.ndarray:
    """Return the deltas as they are, to be contracted with what each weight read."""
    return delta


def never(t: int) -> bool:
    """Return False: no step is cut off from the one before."""
    return False


class Pieces(NamedTuple):
    """The pieces of a layer's backward pass; each can be replaced by a wrong one.

    Attributes:
        gain: (p, layer) -> what the credit is multiplied by, (T, B, H).
        h_prev: (p, layer) -> what δ is contracted with for W_hh, (T, B, H).
        pull: (p, cell, credit, δ) of a step -> what it sends to the step before.
        down: (p, cell, credit, δ) -> what the layer sends to the one below, (T, B, I).
        contracted: δ (T, B, H) -> as it is contracted with what each weight saw.
        forward: whether the loop runs from the first step to the last.
        cut: whether step t sends nothing to the next in the loop.
    """

    gain: Callable[[Pass, int], np.ndarray] = own_gain
    h_prev: Callable[[Pass, int], np.ndarray] = own_h_prev
    pull: Callable[..., np.ndarray] = pull_back
    down: Callable[..., np.ndarray] = pass_down
    contracted: Callable[[np.ndarray], np.ndarray] = all_steps
    forward: bool = False
    cut: Callable[[int], bool] = never


RIGHT = Pieces()


@partial(jax.jit, static_argnames="rnn")
def _run(rnn: RNN, params: Params, h: jax.Array, batch: Batch) -> Any:
    found = forward_pass(rnn, params, h, batch)
    return found.tapes, found.trajectories, found.d_outputs


def run_forward(rnn: RNN, params: Params, h: jax.Array, batch: Batch) -> Pass:
    """Run the network forward, and its loss back to the outputs."""
    tapes, trajectories, d_outputs = jax.tree.map(np.asarray, _run(rnn, params, h, batch))
    params, batch = jax.tree.map(np.asarray, (params, batch))
    return Pass(
        rnn=rnn,
        params=params,
        batch=batch,
        x=tuple(tape.x for tape in tapes),
        h_prev=tuple(tape.h_prev for tape in tapes),
        h=tuple(trajectory.states for trajectory in trajectories),
        gain=tuple(tape.gain for tape in tapes),
        d_outputs=d_outputs,
        error=d_outputs @ params.readout.W_hy.T,
    )


@partial(jax.jit, static_argnames="rnn")
def _loss_and_d_outputs(rnn: RNN, readout: Readout, states: jax.Array, batch: Batch) -> Any:
    weighted = time_major(weigh(batch, rnn.reduction, states.dtype))
    _, losses, d_outputs = outputs_and_grad(rnn, readout, states, weighted)
    return losses.sum(), d_outputs


def with_loss_of(p: Pass, batch: Batch, readout: Readout | None = None) -> tuple[float, Pass]:
    """Take the loss of another batch, or of another readout, of the same states."""
    readout = p.params.readout if readout is None else readout
    loss, d_outputs = _loss_and_d_outputs(p.rnn, readout, jnp.asarray(p.h[-1]), batch)
    return float(loss), with_d_outputs(p, np.asarray(d_outputs))


def with_d_outputs(p: Pass, d_outputs: np.ndarray) -> Pass:
    """Start the backward pass from another dL/dy_t."""
    return p._replace(d_outputs=d_outputs, error=d_outputs @ p.params.readout.W_hy.T)


def gradient(p: Pass, pieces: Pieces = RIGHT, layers: Collection[int] | None = None) -> Params:
    """Backpropagate through time, with these pieces in some layers and the right ones elsewhere."""
    steps, error, cells = range(len(p.error)), p.error, []
    for layer in reversed(range(p.rnn.num_layers)):
        cell = p.params.cells[layer]
        with_ = pieces if layers is None or layer in layers else RIGHT
        gain = with_.gain(p, layer)
        pulled, credit, delta = np.zeros_like(error[0]), np.empty_like(error), np.empty_like(error)
        for t in steps if with_.forward else reversed(steps):
            credit[t] = error[t] + pulled
            delta[t] = gain[t] * credit[t]
            pulled = np.zeros_like(pulled)
            if not with_.cut(t):
                pulled = with_.pull(p, cell, credit[t], delta[t])
        saw = (p.x[layer], with_.h_prev(p, layer))
        cells.append(_contract(cell, *saw, with_.contracted(delta)))
        if layer > 0:
            error = with_.down(p, cell, credit, delta)
    return Params(tuple(reversed(cells)), contract_readout(p))


def perturbed(p: Pass, change: Callable[[np.ndarray], np.ndarray]) -> Params:
    """Backpropagate with a change to every slope φ'(a_t)."""
    leak = p.rnn.leak
    return gradient(p._replace(gain=tuple(leak * change(gain / leak) for gain in p.gain)))


def _contract(cell: Cell, x: np.ndarray, h_prev: np.ndarray, delta: np.ndarray) -> Cell:
    if np.issubdtype(x.dtype, np.integer):
        dW_xh = np.zeros_like(cell.W_xh)
        np.add.at(dW_xh, x, delta)
    else:
        dW_xh = np.tensordot(x, delta, ([0, 1], [0, 1]))
    dW_hh = np.tensordot(h_prev, delta, ([0, 1], [0, 1]))
    db_h = None if cell.b_h is None else delta.sum((0, 1))
    return cell._replace(W_xh=dW_xh, W_hh=dW_hh, b_h=db_h)


def contract_readout(p: Pass) -> Readout:
    """Contract dL/dy_t with the states: the gradient of the readout."""
    dW_hy = np.tensordot(p.h[-1], p.d_outputs, ([0, 1], [0, 1]))
    db_y = None if p.params.readout.b_y is None else p.d_outputs.sum((0, 1))
    return p.params.readout._replace(W_hy=dW_hy, b_y=db_y)
