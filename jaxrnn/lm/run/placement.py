"""Sharding of the arrays of a run over a mesh of devices and processes."""

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
    """The sharding of a run.

    Attributes:
        mesh: the devices.
        state: the sharding of each leaf of the train state, as a pytree of the same structure.
    """

    mesh: Mesh
    state: Any


def layout(mesh: Mesh, make_state: Callable[[int], Any], batch_size: int) -> Layout:
    """Return the sharding of the train state that `make_state(batch_size)` returns.

    Raises:
        ValueError: if the batch size is not divisible by the number of devices.
    """
    check_divides(batch_size, mesh.size)
    spec = specs(make_state, batch_size)
    return Layout(mesh, jax.tree.map(lambda spec: NamedSharding(mesh, spec), spec))


def spread(layout: Layout, state: Any) -> Any:
    """Shard a state over the devices; every process must have the whole state."""
    return jax.jit(lambda state: state, out_shardings=layout.state)(state)


def gathered(layout: Layout, state: Any) -> Any:
    """Return a sharded state as a whole, on one device of every process."""
    replicated = NamedSharding(layout.mesh, PartitionSpec())
    return on_one(jax.jit(lambda state: state, out_shardings=replicated)(state))


def on_one(tree: Any) -> Any:
    """Return replicated arrays as arrays on one device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def all_gather(signs: Sequence[Any]) -> Int[np.ndarray, "processes signs"]:
    """Return the integers of all processes, one row each; all processes must call it."""
    local = np.array(signs, np.int32)
    return local[None] if jax.process_count() == 1 else process_allgather(local)


def rows_here(mesh: Mesh, batch_size: int) -> slice:
    """Return the slice of the rows of a batch that are on the devices of this process."""
    owners = [device.process_index for device in mesh.devices.flat]
    share, first = batch_size // mesh.size, owners.index(jax.process_index())
    return slice(first * share, (first + owners.count(jax.process_index())) * share)


def spread_rows(mesh: Mesh, batches: Batch) -> Batch:
    """Return batches (N, B, T) sharded over the devices; each process passes its own rows only."""
    rows = NamedSharding(mesh, PartitionSpec(None, ROWS))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows, leaf), batches)
