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
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Inexact, Int, Shaped

Tree = TypeVar("Tree")


class Cell(NamedTuple):
    """Parameters of one recurrent layer; `b_h` is None for a layer without bias."""

    W_xh: Float[Array, "I H"]
    W_hh: Float[Array, "H H"]
    b_h: Float[Array, " H"] | None


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


class Dynamics(NamedTuple):
    """How the state of a layer moves: h_t = (1 - leak) h_{t-1} + leak φ(a_t).

    Attributes:
        activation: φ and its slope.
        leak: in (0, 1]; 1 is the vanilla network.
    """

    activation: Activation
    leak: float

    def gain(self, z: Inexact[Array, "*any"]) -> Inexact[Array, "*any"]:
        """Compute leak φ'(a) from z = φ(a)."""
        return self.leak * self.activation.slope(z)


class Trajectory(NamedTuple):
    """All that is kept of a layer's forward pass; `tape` computes the rest from it and the inputs.

    Attributes:
        states: h_t. At a step that is not valid the state stays as it was.
        z: φ(a_t); None without a leak, where it is h_t.
        valid: whether step t is within its sequence; None if every step is.
    """

    states: Inexact[Array, "*T B H"]
    z: Inexact[Array, "*T B H"] | None
    valid: Bool[Array, "*T B"] | None = None

    def gain(self, dynamics: Dynamics) -> Inexact[Array, "*T B H"]:
        """Compute g_t = leak φ'(a_t); it is 0 at a step that is not valid."""
        gain = dynamics.gain(self.states if self.z is None else self.z)
        return gain if self.valid is None else jnp.where(self.valid[..., None], gain, 0)


class Tape(NamedTuple):
    """What a layer's backward pass reads, step by step.

    `x_t` and `h_{t-1}` are what each weight saw; the gain is g_t = leak φ'(a_t). At a step that is
    not valid the gain is 0, and a rule's memory of the row stays as it was.
    """

    x: Float[Array, "T B I"] | Int[Array, "T B"]
    h_prev: Float[Array, "T B H"]
    gain: Float[Array, "T B H"]
    valid: Bool[Array, "T B"] | None = None


def is_ids(x: Array | np.ndarray) -> bool:
    """Say whether inputs are token ids (integers) rather than features (floats)."""
    return jnp.issubdtype(x.dtype, jnp.integer)


def wide(dtype: jax.typing.DTypeLike) -> np.dtype:
    """Return a dtype of at least 32 bits to count and add up in: float32 in place of float16.

    float16 ends at 65,504, and bfloat16 counts no further than 256.
    """
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def project(cell: Cell, x: Array) -> Inexact[Array, "*batch H"]:
    """Compute x W_xh + b_h, for features (..., I), or as rows of W_xh for ids (...).

    An id outside the table gives NaN rather than some other token's row.
    """
    if is_ids(x):
        table = jnp.asarray(cell.W_xh).at
        rows = table[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    else:
        rows = x @ cell.W_xh
    return add_bias(rows, cell.b_h)


def add_bias(
    rows: Inexact[Array, "*batch N"], bias: Inexact[Array | np.ndarray, " N"] | None
) -> Inexact[Array, "*batch N"]:
    """Add a bias to rows, if there is one."""
    return rows if bias is None else rows + across(bias, rows)


def across(
    vector: Shaped[Array | np.ndarray, " N"], rows: Shaped[Array, "*batch N"]
) -> Shaped[Array, "... N"]:
    """Give a vector the rank of the rows that it is combined with, for `numpy_rank_promotion`."""
    return jnp.expand_dims(vector, range(rows.ndim - 1))


def _advance(cell: Cell, drive: Array, h: Array, dynamics: Dynamics):
    """Take one step from h_{t-1} and x_t W_xh + b_h to h_t and z_t = φ(a_t)."""
    z, leak = dynamics.activation.function(drive + h @ cell.W_hh), dynamics.leak
    return (z if leak == 1 else (1 - leak) * h + leak * z), z


def step(
    cell: Cell,
    x: Float[Array, "B I"] | Int[Array, " B"],
    h: Float[Array, "B H"],
    dynamics: Dynamics,
) -> Float[Array, "B H"]:
    """Take one step: h_{t-1} and x_t to h_t."""
    return _advance(cell, project(cell, x), h, dynamics)[0]


def forward(
    cell: Cell,
    x: Inexact[Array, "T B I"] | Int[Array, "T B"],
    h: Inexact[Array, "B H"],
    dynamics: Dynamics,
    valid: Bool[Array, "T B"] | None = None,
) -> tuple[Trajectory, Inexact[Array, "B H"]]:
    """Run the layer over T steps; return its trajectory, and h_T.

    Where a step is not valid the state of its row stays: h_t = h_{t-1}. Complex numbers are
    accepted too, for derivatives by a complex step.
    """

    def forward_step(h, step):
        drive_t, valid_t = step
        new, z = _advance(cell, drive_t, h, dynamics)
        h = new if valid_t is None else jnp.where(valid_t[:, None], new, h)
        return h, Trajectory(h, None if dynamics.leak == 1 else z, valid_t)

    steps = (project(cell, x), valid)
    h_last, trajectory = lax.scan(forward_step, varying_like(h, steps, cell), steps)
    return trajectory, h_last


def tape(
    x: Inexact[Array, "T B I"] | Int[Array, "T B"],
    h: Inexact[Array, "B H"],
    trajectory: Trajectory,
    dynamics: Dynamics,
) -> Tape:
    """Return the tape of a trajectory that began at h with inputs x."""
    before = varying_like(h[None], trajectory)
    h_prev = jnp.concatenate([before, trajectory.states[:-1]])
    return Tape(x, h_prev, trajectory.gain(dynamics), trajectory.valid)


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
    pushed = across(gain, change) * (change @ cell.W_hh)
    return pushed if leak == 1 else (1 - leak) * change + pushed


def back_substitute(
    cell: Cell,
    trajectory: Trajectory,
    error: Float[Array, "T B H"],
    beyond: Float[Array, "B H"],
    dynamics: Dynamics,
) -> tuple[Float[Array, "T B H"], Float[Array, "B H"]]:
    """Solve (I - 𝒥) λ = e from the last step to the first; O(T B H²).

    Args:
        cell: the layer's parameters.
        trajectory: of its forward pass. The gain of a step is computed on the way: one array less
            to write and to read.
        error: e_t, the part of dL/dh_t that does not come through h_{t+1}.
        beyond: the part of dL/dh_T that comes from beyond the last step.
        dynamics: of the layer.

    Returns:
        δ_1 … δ_T, and dL/dh_0.
    """
    W_hh_T = cell.W_hh.T

    def backward_step(pulled, step):
        now, error_t = step
        gain = now.gain(dynamics)
        credit = error_t + pulled  # dL/dh_t
        return pull_back(W_hh_T, gain, credit, dynamics.leak), gain * credit

    steps = (trajectory, error)
    d_h0, delta = lax.scan(backward_step, varying_like(beyond, steps, cell), steps, reverse=True)
    return delta, d_h0


def contract(cell: Cell, tape: Tape, delta: Float[Array, "T B H"]) -> Cell:
    """Contract δ with what each weight saw: the gradient of the cell.

    dW_xh = Σ x_tᵀ δ_t, dW_hh = Σ h_{t-1}ᵀ δ_t, db_h = Σ δ_t.
    """
    d_rows = rows_of(delta)
    if is_ids(tape.x):
        dtype = wide(d_rows.dtype)  # rows are added one by one, which bfloat16 soon no longer feels
        rows = jnp.zeros(cell.W_xh.shape, dtype).at[rows_of(tape.x)].add(d_rows.astype(dtype))
        dW_xh = rows.astype(d_rows.dtype)
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


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def unroll(
    cell: Cell,
    x: Inexact[Array, "T B I"] | Int[Array, "T B"],
    h: Inexact[Array, "B H"],
    valid: Bool[Array, "T B"] | None,
    dynamics: Dynamics,
) -> tuple[Inexact[Array, "T B H"], Inexact[Array, "B H"]]:
    """Return the states and the last one, as from `forward`, with a derivative written by hand.

    The tangents of the states, for those of the cell, the inputs and h_0, are

        u_t = ẋ_t W_xh + x_t Ẇ_xh + h_{t-1} Ẇ_hh + ḃ_h        for all t at once
        ḣ_t = (1 - leak) ḣ_{t-1} + g_t ⊙ (u_t + ḣ_{t-1} W_hh)

    JAX transposes these two lines for reverse mode: the second becomes back-substitution and the
    first one matmul for each weight, which is `jaxrnn.gradients.bptt` to the last bit. Forward
    mode and higher derivatives follow from the same lines.
    """
    trajectory, h_last = forward(cell, x, h, dynamics, valid)
    return trajectory.states, h_last


def _unroll_jvp(dynamics, primals, tangents):
    (cell, x, h, valid), (d_cell, d_x, d_h, _) = primals, tangents
    trajectory, h_last = forward(cell, x, h, dynamics, valid)
    _, h_prev, gain, _ = tape(x, h, trajectory, dynamics)

    u = jnp.zeros_like(h_prev)
    if not _is_zero(d_cell.W_xh):
        u = u + project(Cell(d_cell.W_xh, cell.W_hh, None), x)
    if not (is_ids(x) or _is_zero(d_x)):
        u = u + d_x @ cell.W_xh
    if not _is_zero(d_cell.W_hh):
        u = u + (rows_of(h_prev) @ d_cell.W_hh).reshape(u.shape)
    if cell.b_h is not None and not _is_zero(d_cell.b_h):
        u = add_bias(u, d_cell.b_h)

    def tangent_step(d_h, step):
        gain_t, u_t, valid_t = step
        new = gain_t * (u_t + d_h @ cell.W_hh)
        new = new if dynamics.leak == 1 else (1 - dynamics.leak) * d_h + new
        d_h = new if valid_t is None else jnp.where(valid_t[:, None], new, d_h)
        return d_h, d_h

    steps = (gain, u, valid)
    d_h = varying_like(jnp.zeros_like(h) if _is_zero(d_h) else d_h, steps, cell)
    d_last, d_states = lax.scan(tangent_step, d_h, steps)
    return (trajectory.states, h_last), (d_states, d_last)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


unroll.defjvp(_unroll_jvp, symbolic_zeros=True)


# Inside a caller's `shard_map` JAX tracks over which axes of the mesh a value varies. The two
# functions below do nothing elsewhere.


def varying_like(tree: Tree, *like: Any) -> Tree:
    """Mark a pytree as varying over the mesh axes over which `like` varies, to start a scan."""
    axes = _varying(like)

    def mark(leaf):
        missing = tuple(sorted(axes - _varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)


def summed_like(tree: Tree, like: Tree) -> Tree:
    """Sum each leaf over the mesh axes over which it varies and its counterpart does not.

    `jax.grad` does the same to the gradient of a replicated parameter.
    """

    def total(leaf, counterpart):
        axes = tuple(sorted(_varying(leaf) - _varying(counterpart)))
        return lax.psum(leaf, axes) if axes else leaf

    return jax.tree.map(total, tree, like)


def _varying(tree: Any) -> frozenset[str]:
    """Return the mesh axes over which any leaf varies."""
    kinds = [jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree)]
    return frozenset().union(*kinds)
