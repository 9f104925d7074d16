"""Where the arrays of a run lie on a mesh of devices and processes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxrnn.network.batch import Batch
from jaxrnn.training.sharding import ROWS, check_divides, specs


class Layout(NamedTuple):
    """Where a run's arrays lie.

    Attributes:
        mesh: the devices.
        state: the train state's shardings, in its structure.
    """

    mesh: Mesh
    state: Any


def layout(mesh: Mesh, make_state: Callable[[int], Any], batch_size: int) -> Layout:
    """Lay out the train state that `make_state(batch_size)` makes.

    Raises:
        ValueError: if the batch does not divide by the devices.
    """
    check_divides(batch_size, mesh.size)
    spec = specs(make_state, batch_size)
    return Layout(mesh, jax.tree.map(lambda spec: NamedSharding(mesh, spec), spec))


def spread(layout: Layout, state: Any) -> Any:
    """Lay out a state that every process has as a whole."""
    return jax.jit(lambda state: state, out_shardings=layout.state)(state)


def gathered(layout: Layout, state: Any) -> Any:
    """Bring a state together again, as a whole and on one device of every process."""
    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    return on_one(jax.jit(lambda state: state, out_shardings=everywhere)(state))


def on_one(tree: Any) -> Any:
    """Take what is the same on all devices from one of this process's."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def all_gather(signs: Sequence[Any]) -> Int[np.ndarray, "processes signs"]:
    """Tell all processes the whole numbers of each; all must ask at once."""
    mine = np.array(signs, np.int32)
    return mine[None] if jax.process_count() == 1 else process_allgather(mine)


def rows_here(mesh: Mesh, batch_size: int) -> slice:
    """Tell which rows of a batch this process reads: those of its devices."""
    owners = [device.process_index for device in mesh.devices.flat]
    share, first = batch_size // mesh.size, owners.index(jax.process_index())
    return slice(first * share, (first + owners.count(jax.process_index())) * share)


def spread_rows(mesh: Mesh, batches: Batch) -> Batch:
    """Put batches (N, B, T) on the devices, of which each process has its own rows."""
    rows = NamedSharding(mesh, PartitionSpec(None, ROWS))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows, leaf), batches)
