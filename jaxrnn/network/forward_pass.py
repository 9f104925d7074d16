"""The forward pass of a network, the loss, and the errors at the top layer.

Every backward pass starts from a `ForwardPass`. Arrays are time-major, (T, B, ·).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.network import layer
from jaxrnn.network.batch import Batch, Weighted, to_time_major, weigh, where_errors
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.layer import Tape, Trajectory
from jaxrnn.network.losses import as_loss
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params, Readout, forward, read_out


class ForwardPass(NamedTuple):
    """The results of one forward pass that a backward pass needs; time-major.

    Attributes:
        trajectories: the trajectory of each layer, lowest layer first.
        tapes: the tape of each layer, lowest layer first.
        outputs: y_t.
        loss_terms: the contribution of each position to the loss, which is their sum.
        d_outputs: dL/dy_t.
        readout_grad: the gradient of the readout.
        error: e_t = dL/dy_t W_hyᵀ, the part of dL/dh_t at the top layer from the outputs y_t.
    """

    trajectories: tuple[Trajectory, ...]
    tapes: tuple[Tape, ...]
    outputs: Float[Array, "T B O"]
    loss_terms: Float[Array, "T B"]
    d_outputs: Float[Array, "T B O"]
    readout_grad: Readout
    error: Float[Array, "T B H"]

    @property
    def h_last(self) -> Float[Array, "L B H"]:
        """The last state of every layer."""
        return jnp.stack([trajectory.states[-1] for trajectory in self.trajectories])


def forward_pass(rnn: RNN, params: Params, h: AnyArray, batch: Batch) -> ForwardPass:
    """Compute the forward pass, the loss and its errors; raise as `check_batch` does."""
    batch, h = check_batch(rnn, params, batch, h)
    weighted = to_time_major(weigh(batch, rnn.reduction, h.dtype))
    trajectories, _ = forward(rnn.dynamics, params.cells, weighted.inputs, h, weighted.valid)
    return complete_forward_pass(rnn, params, h, weighted, trajectories)


def complete_forward_pass(
    rnn: RNN,
    params: Params,
    h: Float[Array, "L B H"],
    batch: Weighted,
    trajectories: tuple[Trajectory, ...],
) -> ForwardPass:
    """Complete a forward pass, given its trajectories, which started at h."""
    states = trajectories[-1].states
    inputs = (batch.inputs, *(trajectory.states for trajectory in trajectories[:-1]))
    tapes = tuple(
        layer.tape(x, h_0, trajectory, rnn.dynamics)
        for x, h_0, trajectory in zip(inputs, h, trajectories, strict=True)
    )
    outputs, loss_terms, d_outputs = outputs_and_grad(rnn, params.readout, states, batch)
    readout_grad, error = _pull_back(params.readout, states, d_outputs)
    return ForwardPass(trajectories, tapes, outputs, loss_terms, d_outputs, readout_grad, error)


def outputs_and_grad(
    rnn: RNN, readout: Readout, states: Float[Array, "T B H"], batch: Weighted
) -> tuple[Float[Array, "T B O"], Float[Array, "T B"], Float[Array, "T B O"]]:
    """Compute y_t, the contribution of each position to the loss, and dL/dy_t; time-major."""
    positions, arrays = states.shape[:2], (states, batch.targets, batch.weights, batch.counted)
    if not callable(rnn.loss_function):  # positions are independent: merge T and B into rows
        arrays = jax.tree.map(layer.rows_of, arrays)
    states, targets, weights, counted = arrays
    outputs = read_out(readout, states)
    loss_terms, d_outputs = as_loss(rnn.loss_function).value_and_grad(outputs, targets, weights)
    if counted is not None:
        loss_terms = jnp.where(counted, loss_terms, 0)
        d_outputs = jnp.where(
            where_errors(counted, joined=callable(rnn.loss_function)), d_outputs, 0
        )
    shape = (*positions, outputs.shape[-1])
    return outputs.reshape(shape), loss_terms.reshape(positions), d_outputs.reshape(shape)


def _pull_back(
    readout: Readout, states: Float[Array, "T B H"], d_outputs: Float[Array, "T B O"]
) -> tuple[Readout, Float[Array, "T B H"]]:
    """Compute the gradient of the readout and the error e_t = dL/dy_t W_hyᵀ."""
    rows, d_rows = layer.rows_of(states), layer.rows_of(d_outputs)
    grads = Readout(rows.T @ d_rows, None if readout.b_y is None else d_rows.sum(0))
    return grads, (d_rows @ readout.W_hy.T).reshape(states.shape)
