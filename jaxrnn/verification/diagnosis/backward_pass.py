"""A backward pass written by hand in NumPy, of pieces that a bug can replace one at a time.

It is a loop from the last step to the first, and all its arrays are time-major. The catalogue in
`jaxrnn.verification.diagnosis.catalogue` computes each wrong gradient with it.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network.batch import Batch, to_time_major, weigh
from jaxrnn.network.forward_pass import forward_pass, outputs_and_grad
from jaxrnn.network.layer import Cell
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params, Readout

Steps = tuple[np.ndarray, ...]  # (T, B, H) for each layer


class Pass(NamedTuple):
    """A forward pass and the errors at its outputs, in NumPy.

    Attributes:
        rnn: the network.
        params: its parameters.
        batch: the batch, batch-major; all other arrays are time-major.
        x: the input of each layer: ids (T, B), or features (T, B, I).
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
    """Compute the credit of the previous step: (1 - leak) λ_t + δ_t W_hhᵀ."""
    return (1 - p.rnn.leak) * credit + delta @ cell.W_hh.T


def pass_down(p: Pass, cell: Cell, credit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Compute the error of the layer below: δ_t W_xhᵀ."""
    return delta @ cell.W_xh.T


def all_steps(delta: np.ndarray) -> np.ndarray:
    """Return the deltas unchanged, for the contraction with the inputs of the weights."""
    return delta


def never(t: int) -> bool:
    """Return False: the error of step t goes on to the previous step."""
    return False


class Pieces(NamedTuple):
    """The pieces of a layer's backward pass; each can be replaced by a wrong one.

    Attributes:
        gain: (p, layer) -> the factor of the credit in δ, (T, B, H).
        h_prev: (p, layer) -> the states with which δ is contracted for dL/dW_hh, (T, B, H).
        pull: (p, cell, credit, δ) of a step -> the credit that it passes to the previous step.
        down: (p, cell, credit, δ) -> the error of the layer below, (T, B, I).
        contracted: δ (T, B, H) -> the deltas that are contracted with the inputs of the weights.
        forward: whether the loop runs from the first step to the last.
        cut: t -> whether step t passes no credit to the next step of the loop.
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
    result = forward_pass(rnn, params, h, batch)
    return result.tapes, result.trajectories, result.d_outputs


def run_forward(rnn: RNN, params: Params, h: jax.Array, batch: Batch) -> Pass:
    """Run the network forward, and compute the gradient of the loss at its outputs."""
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
    weighted = to_time_major(weigh(batch, rnn.reduction, states.dtype))
    _, loss_terms, d_outputs = outputs_and_grad(rnn, readout, states, weighted)
    return loss_terms.sum(), d_outputs


def with_loss_of(p: Pass, batch: Batch, readout: Readout | None = None) -> tuple[float, Pass]:
    """Compute the loss of another batch or readout on the same states, and its forward pass."""
    readout = p.params.readout if readout is None else readout
    loss, d_outputs = _loss_and_d_outputs(p.rnn, readout, jnp.asarray(p.h[-1]), batch)
    return float(loss), with_d_outputs(p, np.asarray(d_outputs))


def with_d_outputs(p: Pass, d_outputs: np.ndarray) -> Pass:
    """Return the forward pass with another dL/dy_t."""
    return p._replace(d_outputs=d_outputs, error=d_outputs @ p.params.readout.W_hy.T)


def gradient(p: Pass, pieces: Pieces = RIGHT, layers: Collection[int] | None = None) -> Params:
    """Compute the gradient by BPTT, with these pieces in the given layers (default: all)."""
    steps, error, cells = range(len(p.error)), p.error, []
    for layer in reversed(range(p.rnn.num_layers)):
        cell = p.params.cells[layer]
        layer_pieces = pieces if layers is None or layer in layers else RIGHT
        gain = layer_pieces.gain(p, layer)
        pulled, credit, delta = np.zeros_like(error[0]), np.empty_like(error), np.empty_like(error)
        for t in steps if layer_pieces.forward else reversed(steps):
            credit[t] = error[t] + pulled
            delta[t] = gain[t] * credit[t]
            pulled = np.zeros_like(pulled)
            if not layer_pieces.cut(t):
                pulled = layer_pieces.pull(p, cell, credit[t], delta[t])
        h_prev = layer_pieces.h_prev(p, layer)
        cells.append(_contract(cell, p.x[layer], h_prev, layer_pieces.contracted(delta)))
        if layer > 0:
            error = layer_pieces.down(p, cell, credit, delta)
    return Params(tuple(reversed(cells)), contract_readout(p))


def perturbed(p: Pass, change: Callable[[np.ndarray], np.ndarray]) -> Params:
    """Compute the gradient with `change` applied to every slope φ'(a_t)."""
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
    """Compute the gradient of the readout from dL/dy_t and the states."""
    dW_hy = np.tensordot(p.h[-1], p.d_outputs, ([0, 1], [0, 1]))
    db_y = None if p.params.readout.b_y is None else p.d_outputs.sum((0, 1))
    return p.params.readout._replace(W_hy=dW_hy, b_y=db_y)
