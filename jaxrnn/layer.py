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
from jaxtyping import Array, Float, Inexact, Int


class Cell(NamedTuple):
    """Parameters of one recurrent layer; `b_h` is None for a layer without bias."""

    W_xh: Float[Array, "I H"]
    W_hh: Float[Array, "H H"]
    b_h: Float[Array, " H"] | None


class Tape(NamedTuple):
    """What a layer's forward pass leaves for its backward pass, step by step.

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
) -> tuple[Inexact[Array, "T B H"], Inexact[Array, "B H"], Tape]:
    """Run the layer over T steps; return the states h_1 … h_T, h_T, and the tape.

    Complex numbers will do as well, for derivatives by a complex step.
    """

    def forward_step(h, drive_t):
        h, z = _advance(cell, drive_t, h, activation, leak)
        return h, (h, None if leak == 1 else z)  # without a leak they are one and the same

    h_last, (states, z) = lax.scan(forward_step, h, project(cell, x))
    gain = leak * ACTIVATIONS[activation].slope(states if z is None else z)
    return states, h_last, Tape(x, jnp.concatenate([h[None], states[:-1]]), gain)


def pull_back(
    cell: Cell, gain: Float[Array, "*any H"], credit: Float[Array, "*any H"], leak: float
) -> Float[Array, "*any H"]:
    """Carry credit one step back in time: J_tᵀ λ_t = (1 - leak) λ_t + (g_t ⊙ λ_t) W_hhᵀ."""
    pulled = (gain * credit) @ cell.W_hh.T
    return pulled if leak == 1 else (1 - leak) * credit + pulled


def push_forward(
    cell: Cell, gain: Float[Array, " H"], change: Float[Array, "*any H"], leak: float
) -> Float[Array, "*any H"]:
    """Carry a change of one h_{t-1} to h_t: J_t ∂h = (1 - leak) ∂h + g_t ⊙ (∂h W_hh)."""
    pushed = gain * (change @ cell.W_hh)
    return pushed if leak == 1 else (1 - leak) * change + pushed


def back_substitute(
    cell: Cell,
    tape: Tape,
    error: Float[Array, "T B H"],
    beyond: Float[Array, "B H"],
    leak: float,
) -> tuple[Float[Array, "T B H"], Float[Array, "B H"]]:
    """Solve (I - 𝒥) λ = e from the last step to the first; O(T B H²).

    Args:
        cell: the layer's parameters.
        tape: what its forward pass left.
        error: e_t, the part of dL/dh_t that does not come through h_{t+1}.
        beyond: the part of dL/dh_T that comes from beyond the last step.
        leak: the layer's leak.

    Returns:
        δ_1 … δ_T, and dL/dh_0.
    """

    def backward_step(pulled, step):
        gain_t, error_t = step
        credit = error_t + pulled  # dL/dh_t
        return pull_back(cell, gain_t, credit, leak), gain_t * credit

    d_h0, delta = lax.scan(backward_step, beyond, (tape.gain, error), reverse=True)
    return delta, d_h0


def contract(cell: Cell, tape: Tape, delta: Float[Array, "T B H"]) -> Cell:
    """Contract δ with what each weight saw: the gradient of the cell.

    dW_xh = Σ x_tᵀ δ_t, dW_hh = Σ h_{t-1}ᵀ δ_t, db_h = Σ δ_t.
    """
    if is_ids(tape.x):
        dW_xh = jnp.zeros_like(cell.W_xh).at[tape.x].add(delta)
    else:
        dW_xh = sum_outer(tape.x, delta)
    dW_hh = sum_outer(tape.h_prev, delta)
    return Cell(dW_xh, dW_hh, None if cell.b_h is None else delta.sum((0, 1)))


def sum_outer(saw: Float[Array, "T B G"], delta: Float[Array, "T B H"]) -> Float[Array, "G H"]:
    """Sum x_tᵀ δ_t over all steps, by one matmul over the rows of T·B.

    Contracting T and B as two axes instead has XLA move both arrays first, or leaves it a loop of
    its own that adds row by row: slower, and in float32 less accurate.
    """
    rows, deltas = (array.reshape(-1, array.shape[-1]) for array in (saw, delta))
    return rows.T @ deltas


def input_error(cell: Cell, delta: Float[Array, "T B H"]) -> Float[Array, "T B I"]:
    """Carry δ to the layer's input: dL/dx_t = δ_t W_xhᵀ."""
    return delta @ cell.W_xh.T


def _unroll(cell, x, h, activation, leak):
    states, h_last, _ = forward(cell, x, h, activation, leak)
    return states, h_last


def _unroll_forward(cell, x, h, activation, leak):
    states, h_last, tape = forward(cell, x, h, activation, leak)
    return (states, h_last), (cell, tape)


def _unroll_backward(activation, leak, residuals, cotangents):
    cell, tape = residuals
    error, beyond = cotangents
    delta, d_h = back_substitute(cell, tape, error, beyond, leak)
    d_x = None if is_ids(tape.x) else input_error(cell, delta)
    return contract(cell, tape, delta), d_x, d_h


# The states and the last one, as from `forward`, with hand-written BPTT as the VJP.
unroll = jax.custom_vjp(_unroll, nondiff_argnums=(3, 4))
unroll.defvjp(_unroll_forward, _unroll_backward)
