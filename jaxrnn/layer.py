"""One recurrent layer: its forward pass and its exact adjoint, side by side.

    a_t = x_t W_xh + h_{t-1} W_hh + b_h
    h_t = (1 - leak) h_{t-1} + leak φ(a_t)

    credit λ_t = dL/dh_t = e_t + J_{t+1}ᵀ λ_{t+1}        J_t = ∂h_t/∂h_{t-1}
    delta  δ_t = dL/da_t = g_t ⊙ λ_t                     g_t = leak φ'(a_t)

Everything here is time-major, (T, B, ·). What does not depend on the step before is done for all
T at once, outside the scans: x_t W_xh ahead of the forward one, and the gradient of each weight
after the backward one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact, Int, Shaped


class Cell(NamedTuple):
    """Parameters of one recurrent layer; `b_h` is None for a layer without bias."""

    W_xh: Float[Array, "I H"]
    W_hh: Float[Array, "H H"]
    b_h: Float[Array, " H"] | None


class Trajectory(NamedTuple):
    """All that has to be kept of a layer's forward pass: with its inputs, `tape` follows from it.

    h_t, and z_t = φ(a_t), or None without a leak: then they are one and the same.
    """

    states: Inexact[Array, "*T B H"]
    z: Inexact[Array, "*T B H"] | None

    def gain(self, activation: str, leak: float) -> Inexact[Array, "*T B H"]:
        """Compute g_t = leak φ'(a_t)."""
        return leak * ACTIVATIONS[activation].slope(self.states if self.z is None else self.z)


class Tape(NamedTuple):
    """What a layer's backward pass reads, step by step.

    `x_t` and `h_{t-1}` are what each weight saw; the gain is g_t = leak φ'(a_t).
    """

    x: Float[Array, "T B I"] | Int[Array, "T B"]
    h_prev: Float[Array, "T B H"]
    gain: Float[Array, "T B H"]


class Activation(NamedTuple):
    """φ and its slope φ'(a), written as a function of z = φ(a) so that a need not be kept."""

    function: Callable[[Array], Array]
    slope: Callable[[Array], Array]


ACTIVATIONS = {
    "tanh": Activation(jnp.tanh, lambda z: 1 - z * z),
    "relu": Activation(jax.nn.relu, lambda z: (z > 0).astype(z.dtype)),
    "sigmoid": Activation(jax.nn.sigmoid, lambda z: z * (1 - z)),
    "identity": Activation(lambda a: a, jnp.ones_like),
}


def is_ids(x: Array) -> bool:
    """Say whether inputs are token ids (integers) rather than features (floats)."""
    return jnp.issubdtype(x.dtype, jnp.integer)


def project(cell: Cell, x: Array) -> Inexact[Array, "*batch H"]:
    """Compute x W_xh + b_h, for features (..., I), or as rows of W_xh for ids (...).

    An id outside the table gives NaN rather than some other token's row.
    """
    if is_ids(x):
        table = jnp.asarray(cell.W_xh).at
        rows = table[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    else:
        rows = x @ cell.W_xh
    return rows if cell.b_h is None else rows + cell.b_h


def _advance(cell: Cell, drive: Array, h: Array, activation: str, leak: float):
    """Take one step from h_{t-1} and x_t W_xh + b_h to h_t and z_t = φ(a_t)."""
    z = ACTIVATIONS[activation].function(drive + h @ cell.W_hh)
    return (z if leak == 1 else (1 - leak) * h + leak * z), z


def step(
    cell: Cell,
    x: Float[Array, "B I"] | Int[Array, " B"],
    h: Float[Array, "B H"],
    activation: str,
    leak: float,
) -> Float[Array, "B H"]:
    """Take one step: h_{t-1} and x_t to h_t."""
    return _advance(cell, project(cell, x), h, activation, leak)[0]


def forward(
    cell: Cell,
    x: Inexact[Array, "T B I"] | Int[Array, "T B"],
    h: Inexact[Array, "B H"],
    activation: str,
    leak: float,
) -> tuple[Trajectory, Inexact[Array, "B H"]]:
    """Run the layer over T steps; return its trajectory, and h_T.

    Complex numbers will do as well, for derivatives by a complex step.
    """

    def forward_step(h, drive_t):
        h, z = _advance(cell, drive_t, h, activation, leak)
        return h, Trajectory(h, None if leak == 1 else z)

    h_last, trajectory = lax.scan(forward_step, h, project(cell, x))
    return trajectory, h_last


def tape(
    x: Inexact[Array, "T B I"] | Int[Array, "T B"],
    h: Inexact[Array, "B H"],
    trajectory: Trajectory,
    activation: str,
    leak: float,
) -> Tape:
    """Make the tape of a trajectory that began at h with inputs x."""
    h_prev = jnp.concatenate([h[None], trajectory.states[:-1]])
    return Tape(x, h_prev, trajectory.gain(activation, leak))


def pull_back(
    W_hh_T: Float[Array, "H H"],
    gain: Float[Array, "*any H"],
    credit: Float[Array, "*any H"],
    leak: float,
) -> Float[Array, "*any H"]:
    """Carry credit one step back in time: J_tᵀ λ_t = (1 - leak) λ_t + (g_t ⊙ λ_t) W_hhᵀ.

    It takes W_hhᵀ, which a loop over the steps should transpose once, before it begins.
    """
    pulled = (gain * credit) @ W_hh_T
    return pulled if leak == 1 else (1 - leak) * credit + pulled


def push_forward(
    cell: Cell, gain: Float[Array, " H"], change: Float[Array, "*any H"], leak: float
) -> Float[Array, "*any H"]:
    """Carry a change of one h_{t-1} to h_t: J_t ∂h = (1 - leak) ∂h + g_t ⊙ (∂h W_hh)."""
    pushed = gain * (change @ cell.W_hh)
    return pushed if leak == 1 else (1 - leak) * change + pushed


def back_substitute(
    cell: Cell,
    trajectory: Trajectory,
    error: Float[Array, "T B H"],
    beyond: Float[Array, "B H"],
    activation: str,
    leak: float,
) -> tuple[Float[Array, "T B H"], Float[Array, "B H"]]:
    """Solve (I - 𝒥) λ = e from the last step to the first; O(T B H²).

    Args:
        cell: the layer's parameters.
        trajectory: of its forward pass. The gain of a step is computed on the way: one array less
            to write and to read.
        error: e_t, the part of dL/dh_t that does not come through h_{t+1}.
        beyond: the part of dL/dh_T that comes from beyond the last step.
        activation: the layer's φ.
        leak: the layer's leak.

    Returns:
        δ_1 … δ_T, and dL/dh_0.
    """
    W_hh_T = cell.W_hh.T

    def backward_step(pulled, step):
        now, error_t = step
        gain = now.gain(activation, leak)
        credit = error_t + pulled  # dL/dh_t
        return pull_back(W_hh_T, gain, credit, leak), gain * credit

    d_h0, delta = lax.scan(backward_step, beyond, (trajectory, error), reverse=True)
    return delta, d_h0


def contract(cell: Cell, tape: Tape, delta: Float[Array, "T B H"]) -> Cell:
    """Contract δ with what each weight saw: the gradient of the cell.

    dW_xh = Σ x_tᵀ δ_t, dW_hh = Σ h_{t-1}ᵀ δ_t, db_h = Σ δ_t.
    """
    d_rows = rows_of(delta)
    if is_ids(tape.x):
        dW_xh = jnp.zeros_like(cell.W_xh).at[rows_of(tape.x)].add(d_rows)
    else:
        dW_xh = rows_of(tape.x).T @ d_rows
    dW_hh = rows_of(tape.h_prev).T @ d_rows
    return Cell(dW_xh, dW_hh, None if cell.b_h is None else d_rows.sum(0))


def rows_of(steps: Shaped[Array, "T B *any"]) -> Shaped[Array, "T*B *any"]:
    """Lay the steps of all sequences out as rows: a sum over T and B is then one of a matmul.

    Contracting T and B as two axes instead has XLA move both arrays first, or leaves it a loop of
    its own that adds row by row: slower, and in float32 less accurate.
    """
    return steps.reshape(-1, *steps.shape[2:])


def input_error(cell: Cell, delta: Float[Array, "T B H"]) -> Float[Array, "T B I"]:
    """Carry δ to the layer's input: dL/dx_t = δ_t W_xhᵀ."""
    return delta @ cell.W_xh.T


def _unroll(cell, x, h, activation, leak):
    trajectory, h_last = forward(cell, x, h, activation, leak)
    return trajectory.states, h_last


def _unroll_forward(cell, x, h, activation, leak):
    trajectory, h_last = forward(cell, x, h, activation, leak)
    return (trajectory.states, h_last), (cell, x, h, trajectory)


def _unroll_backward(activation, leak, residuals, cotangents):
    cell, x, h, trajectory = residuals
    error, beyond = cotangents
    delta, d_h = back_substitute(cell, trajectory, error, beyond, activation, leak)
    d_x = None if is_ids(x) else input_error(cell, delta)
    return contract(cell, tape(x, h, trajectory, activation, leak), delta), d_x, d_h


# The states and the last one, as from `forward`, with hand-written BPTT as the VJP.
unroll = jax.custom_vjp(_unroll, nondiff_argnums=(3, 4))
unroll.defvjp(_unroll_forward, _unroll_backward)
