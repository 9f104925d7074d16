"""One recurrent layer: its forward pass and the exact adjoint of it.

    a_t = x_t W_xh + h_{t-1} W_hh + b_h
    h_t = (1 - leak) h_{t-1} + leak φ(a_t)

    credit λ_t = dL/dh_t = e_t + J_{t+1}ᵀ λ_{t+1}        J_t = ∂h_t/∂h_{t-1}
    delta  δ_t = dL/da_t = g_t ⊙ λ_t                     g_t = leak φ'(a_t)

All arrays are time-major, (T, B, ·). Everything that does not depend on the previous step is
computed for all T at once, outside the scans: x_t W_xh before the forward scan, and the gradient of
each weight after the backward scan.
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
    """φ and its slope φ'(a); the slope is a function of z = φ(a), so that a is not stored."""

    function: Callable[[Array], Array]
    slope: Callable[[Array], Array]


ACTIVATIONS = {
    "tanh": Activation(jnp.tanh, lambda z: 1 - z * z),
    "relu": Activation(jax.nn.relu, lambda z: (z > 0).astype(z.dtype)),
    "sigmoid": Activation(jax.nn.sigmoid, lambda z: z * (1 - z)),
    "identity": Activation(lambda a: a, jnp.ones_like),
}


class Dynamics(NamedTuple):
    """The state update of a layer: h_t = (1 - leak) h_{t-1} + leak φ(a_t).

    Attributes:
        activation: φ and its slope.
        leak: in (0, 1]; 1 gives the vanilla network.
    """

    activation: Activation
    leak: float

    def gain(self, z: Inexact[Array, "*any"]) -> Inexact[Array, "*any"]:
        """Compute leak φ'(a) from z = φ(a)."""
        return self.leak * self.activation.slope(z)


class Trajectory(NamedTuple):
    """The stored part of a layer's forward pass; `tape` computes the rest from it and the inputs.

    Attributes:
        states: h_t. At an invalid step it is h_{t-1}.
        z: φ(a_t); None if leak is 1, where it equals h_t.
        valid: whether step t is within its sequence; None if all steps are.
    """

    states: Inexact[Array, "*T B H"]
    z: Inexact[Array, "*T B H"] | None
    valid: Bool[Array, "*T B"] | None = None

    def gain(self, dynamics: Dynamics) -> Inexact[Array, "*T B H"]:
        """Compute g_t = leak φ'(a_t); it is 0 at an invalid step."""
        gain = dynamics.gain(self.states if self.z is None else self.z)
        return gain if self.valid is None else jnp.where(self.valid[..., None], gain, 0)


class Tape(NamedTuple):
    """The input of a layer's backward pass, for each step.

    At an invalid step the gain is 0, and the memory of a rule does not change for that row.

    Attributes:
        x: x_t, the input of W_xh; features, or token ids.
        h_prev: h_{t-1}, the input of W_hh.
        gain: g_t = leak φ'(a_t).
        valid: whether step t is within its sequence; None if all steps are.
    """

    x: Float[Array, "T B I"] | Int[Array, "T B"]
    h_prev: Float[Array, "T B H"]
    gain: Float[Array, "T B H"]
    valid: Bool[Array, "T B"] | None = None


def is_ids(x: Array | np.ndarray) -> bool:
    """Return whether inputs are token ids (integers) and not features (floats)."""
    return jnp.issubdtype(x.dtype, jnp.integer)


def wide(dtype: jax.typing.DTypeLike) -> np.dtype:
    """Return a dtype of at least 32 bits for counts and sums: float32 in place of float16.

    The largest float16 is 65,504, and bfloat16 represents consecutive integers only up to 256.
    """
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def project(cell: Cell, x: Array) -> Inexact[Array, "*batch H"]:
    """Compute x W_xh + b_h for features (..., I); for ids (...) select rows of W_xh.

    An id out of range gives NaN and not the row of another token.
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
    """Add a bias to rows; None adds nothing."""
    return rows if bias is None else rows + across(bias, rows)


def across(
    vector: Shaped[Array | np.ndarray, " N"], rows: Shaped[Array, "*batch N"]
) -> Shaped[Array, "... N"]:
    """Add leading axes to a vector to match the rank of `rows`, for `numpy_rank_promotion`."""
    return jnp.expand_dims(vector, range(rows.ndim - 1))


def _advance(cell: Cell, drive: Array, h: Array, dynamics: Dynamics):
    """Compute h_t and z_t = φ(a_t) from h_{t-1} and drive = x_t W_xh + b_h."""
    z, leak = dynamics.activation.function(drive + h @ cell.W_hh), dynamics.leak
    return (z if leak == 1 else (1 - leak) * h + leak * z), z


def step(
    cell: Cell,
    x: Float[Array, "B I"] | Int[Array, " B"],
    h: Float[Array, "B H"],
    dynamics: Dynamics,
) -> Float[Array, "B H"]:
    """Compute h_t from x_t and h_{t-1}."""
    return _advance(cell, project(cell, x), h, dynamics)[0]


def forward(
    cell: Cell,
    x: Inexact[Array, "T B I"] | Int[Array, "T B"],
    h: Inexact[Array, "B H"],
    dynamics: Dynamics,
    valid: Bool[Array, "T B"] | None = None,
) -> tuple[Trajectory, Inexact[Array, "B H"]]:
    """Run the layer over T steps; return its trajectory and h_T.

    At an invalid step h_t = h_{t-1}. Complex numbers are accepted, for complex-step derivatives.
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
    """Return the tape of a trajectory with initial state h and inputs x."""
    h_0 = varying_like(h[None], trajectory)
    h_prev = jnp.concatenate([h_0, trajectory.states[:-1]])
    return Tape(x, h_prev, trajectory.gain(dynamics), trajectory.valid)


def pull_back(
    W_hh_T: Float[Array, "H H"],
    gain: Float[Array, "*any H"],
    credit: Float[Array, "*any H"],
    leak: float,
) -> Float[Array, "*any H"]:
    """Compute J_tᵀ λ_t = (1 - leak) λ_t + (g_t ⊙ λ_t) W_hhᵀ, the credit one step back in time.

    The argument is W_hhᵀ, so that a loop over steps transposes W_hh only once.
    """
    pulled = (gain * credit) @ W_hh_T
    return pulled if leak == 1 else (1 - leak) * credit + pulled


def push_forward(
    cell: Cell, gain: Float[Array, " H"], change: Float[Array, "*any H"], leak: float
) -> Float[Array, "*any H"]:
    """Compute J_t ∂h = (1 - leak) ∂h + g_t ⊙ (∂h W_hh) for a change ∂h of h_{t-1}."""
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
        trajectory: that of the forward pass. The gain is computed from it step by step, so that no
            array of gains is written to memory.
        error: e_t, the part of dL/dh_t that does not come through h_{t+1}.
        beyond: the part of dL/dh_T that comes from steps after T.
        dynamics: those of the layer.

    Returns:
        δ_1 … δ_T, and dL/dh_0.
    """
    W_hh_T = cell.W_hh.T

    def backward_step(pulled, step):
        trajectory_t, error_t = step
        gain = trajectory_t.gain(dynamics)
        credit = error_t + pulled  # dL/dh_t
        return pull_back(W_hh_T, gain, credit, dynamics.leak), gain * credit

    steps = (trajectory, error)
    d_h0, delta = lax.scan(backward_step, varying_like(beyond, steps, cell), steps, reverse=True)
    return delta, d_h0


def contract(cell: Cell, tape: Tape, delta: Float[Array, "T B H"]) -> Cell:
    """Compute the gradient of the cell from δ_t and the inputs of each weight.

    dW_xh = Σ_t x_tᵀ δ_t,        dW_hh = Σ_t h_{t-1}ᵀ δ_t,        db_h = Σ_t δ_t
    """
    d_rows = rows_of(delta)
    if is_ids(tape.x):
        dtype = wide(d_rows.dtype)  # rows are added one at a time: a bfloat16 sum stops growing
        rows = jnp.zeros(cell.W_xh.shape, dtype).at[rows_of(tape.x)].add(d_rows.astype(dtype))
        dW_xh = rows.astype(d_rows.dtype)
    else:
        dW_xh = rows_of(tape.x).T @ d_rows
    dW_hh = rows_of(tape.h_prev).T @ d_rows
    return Cell(dW_xh, dW_hh, None if cell.b_h is None else d_rows.sum(0))


def rows_of(steps: Shaped[Array, "T B *any"]) -> Shaped[Array, "T*B *any"]:
    """Merge the axes T and B into rows, so that a sum over both is part of one matmul.

    If T and B are contracted as two axes, XLA transposes both arrays first or adds row by row in a
    loop, which is slower and, in float32, less accurate.
    """
    return steps.reshape(-1, *steps.shape[2:])


def input_error(cell: Cell, delta: Float[Array, "T B H"]) -> Float[Array, "T B I"]:
    """Compute dL/dx_t = δ_t W_xhᵀ, the error at the input of the layer."""
    return delta @ cell.W_xh.T


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def unroll(
    cell: Cell,
    x: Inexact[Array, "T B I"] | Int[Array, "T B"],
    h: Inexact[Array, "B H"],
    valid: Bool[Array, "T B"] | None,
    dynamics: Dynamics,
) -> tuple[Inexact[Array, "T B H"], Inexact[Array, "B H"]]:
    """Return the states and the last state, as `forward` does, with a hand-written derivative.

    The tangents of the states follow from those of the cell, the inputs and h_0:

        u_t = ẋ_t W_xh + x_t Ẇ_xh + h_{t-1} Ẇ_hh + ḃ_h        for all t at once
        ḣ_t = (1 - leak) ḣ_{t-1} + g_t ⊙ (u_t + ḣ_{t-1} W_hh)

    JAX transposes these two lines for reverse mode. The second becomes back-substitution and the
    first becomes one matmul for each weight. The result equals that of `jaxrnn.gradients.bptt` to
    the last bit. Forward mode and higher derivatives use the same two lines.
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


# Inside a caller's `shard_map`, JAX tracks the mesh axes over which a value varies. Outside of it
# the two functions below do nothing.


def varying_like(tree: Tree, *like: Any) -> Tree:
    """Mark a pytree as varying over the mesh axes of `like`, for the initial carry of a scan."""
    axes = _varying(like)

    def mark(leaf):
        missing = tuple(sorted(axes - _varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)


def summed_like(tree: Tree, like: Tree) -> Tree:
    """Sum each leaf over the mesh axes over which it varies and its counterpart in `like` does not.

    `jax.grad` does the same for the gradient of a replicated parameter.
    """

    def total(leaf, counterpart):
        axes = tuple(sorted(_varying(leaf) - _varying(counterpart)))
        return lax.psum(leaf, axes) if axes else leaf

    return jax.tree.map(total, tree, like)


def _varying(tree: Any) -> frozenset[str]:
    """Return the mesh axes over which any leaf varies."""
    kinds = [jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree)]
    return frozenset().union(*kinds)
