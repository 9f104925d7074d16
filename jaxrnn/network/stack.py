"""A stack of layers and its readout: the parameters, the forward pass and its exact adjoint.

The input of layer l + 1 is the states of layer l. All arrays are time-major, (T, B, ·).
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from jaxrnn.network import layer
from jaxrnn.network.layer import Cell, Dynamics, Trajectory


class Readout(NamedTuple):
    """Parameters of the readout; `b_y` is None for a network without bias."""

    W_hy: Float[Array, "H O"]
    b_y: Float[Array, " O"] | None


class Params(NamedTuple):
    """All parameters of a network: one cell per layer, lowest layer first, and the readout."""

    cells: tuple[Cell, ...]
    readout: Readout

    def __repr__(self) -> str:
        """Return the shapes, one line for each layer, and the number of parameters."""
        leaves = [leaf for leaf in jax.tree.leaves(self) if hasattr(leaf, "dtype")]
        dtypes = " and ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        number = f": {sum(leaf.size for leaf in leaves):,} numbers of {dtypes}" if leaves else ""
        rows = [f"Params{number}"]
        cells = self.cells if isinstance(self.cells, tuple) else ()
        for index, cell in enumerate(cells):
            if index < 3 or index >= len(cells) - 3:
                rows.append(f"  cells[{index}]  {_shapes(cell)}")
            elif index == 3:
                rows.append(f"  … {len(cells) - 6} more …")
        return "\n".join([*rows, f"  readout   {_shapes(self.readout)}"])


def _shapes(leaves: Any) -> str:
    """Return the names and shapes of a `Cell` or a `Readout`, or what stands in place of arrays."""
    if not hasattr(leaves, "_asdict"):
        return repr(leaves)
    return "  ".join(
        f"{name} {getattr(leaf, 'shape', leaf)}" for name, leaf in leaves._asdict().items()
    )


def forward(
    dynamics: Dynamics,
    cells: tuple[Cell, ...],
    x: Array,
    h: Inexact[Array, "L B H"],
    valid: Bool[Array, "T B"] | None = None,
) -> tuple[tuple[Trajectory, ...], Inexact[Array, "L B H"]]:
    """Run the stack; return the trajectory and the last state of each layer, lowest first."""
    trajectories, h_last = [], []
    for cell, h_0 in zip(cells, h, strict=True):
        trajectory, last = layer.forward(cell, x, h_0, dynamics, valid)
        trajectories.append(trajectory)
        h_last.append(last)
        x = trajectory.states
    return tuple(trajectories), jnp.stack(h_last)


def back_substitute(
    dynamics: Dynamics,
    cells: tuple[Cell, ...],
    trajectories: tuple[Trajectory, ...],
    error: Float[Array, "T B H"],
    beyond: Float[Array, "L B H"],
) -> tuple[tuple[Float[Array, "T B H"], ...], Float[Array, "L B H"]]:
    """Run the stack backward from the errors at the top; return δ_t and dL/dh_0 of each layer.

    `beyond` is the part of dL/dh_T that comes from steps after T.
    """

    def visit(error, cell, trajectory, beyond):
        delta, d_h0 = layer.back_substitute(cell, trajectory, error, beyond, dynamics)
        return layer.input_error(cell, delta), (delta, d_h0)

    deltas, d_h0 = zip(*walk_down(visit, error, cells, trajectories, beyond), strict=True)
    return deltas, jnp.stack(d_h0)


def walk_down(
    visit: Callable[..., tuple[Any, Any]], error: Any, *layers: Iterable[Any]
) -> tuple[Any, ...]:
    """Visit the layers from the top down, and pass the error of each layer to the one below.

    Args:
        visit: (error, *entries of the layer) -> (error of the layer below, result of the layer).
        error: the error of the top layer.
        *layers: sequences with one entry per layer, lowest layer first.

    Returns:
        The results, lowest layer first.
    """
    results = []
    for entries in reversed(list(zip(*layers, strict=True))):
        error, result = visit(error, *entries)
        results.append(result)
    return tuple(reversed(results))


def read_out(readout: Readout, states: Inexact[Array, "*batch H"]) -> Inexact[Array, "*batch O"]:
    """Compute y = h W_hy + b_y."""
    return layer.add_bias(states @ readout.W_hy, readout.b_y)
