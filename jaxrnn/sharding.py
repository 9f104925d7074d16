"""One gradient step on many devices: each runs the whole scan of its own rows of the batch.

    L = Σ_d L_d,        dL/dθ = Σ_d dL_d/dθ

where L_d is what the rows of device d add to the loss. Nothing passes between devices while the
scans run; at the end one all-reduce adds up the loss and the gradients, as many numbers as the
network has parameters. Parameters are on every device, rows and all that a rule's `Carry` holds of
them on one alone. Every rule does, since none lets rows meet before the sum.

The sum of many numbers is taken in another order than on one device: results are equal to rounding,
not to the last bit.

On a GPU the devices are there. The cores of a CPU are one device unless JAX is told otherwise
before its first computation; it is quicker when it does not hand a call over to another thread:

    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_enable_async_dispatch", False)

Many processes
--------------
After `jax.distributed.initialize` the devices are those of all processes, and the same program
runs in each. For P parameters in float32 and n processes a ring all-reduce has each of them send
and receive 2 (n - 1) / n · 4 P bytes a step, in 2 (n - 1) messages one after another. The default
network (I = O = 65, H = 256: 99 thousand parameters) sends 0.8 MB: 6 ms at 1 Gbit/s, 0.6 ms at 10;
and with 50 µs a message 64 processes wait for 6 ms whatever the bandwidth.

A step computes 6 P T b operations in each process, b rows of T steps, so the all-reduce dominates
where T b is below about speed / bandwidth (operations over bytes a second): 1000 steps of rows at
10¹¹ and 10⁸. What helps then is what makes more work of a step: more rows or longer chunks in each
process, and fewer processes with more cores each.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import lax
from jax.experimental.multihost_utils import process_allgather
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxrnn.gradients.base import Carry, GradientAlgorithm, batch_axes, growing_axes
from jaxrnn.network import RNN, Batch, Params, check_batch, weigh

Tree = TypeVar("Tree")

ROWS = "rows"  # the mesh's axis


def make_mesh(number: int | None = None) -> Mesh:
    """Put the first `number` of JAX's devices in a row; all of them by default.

    Raises:
        ValueError: if there are fewer.
    """
    devices = jax.devices()
    number = len(devices) if number is None else number
    if not 1 <= number <= len(devices):
        kind = devices[0].platform
        remedy = (
            f'jax.config.update("jax_num_cpu_devices", {number}) before the first computation '
            f"makes them of a CPU's cores"
            if kind == "cpu" and number > 0
            else "use those that are there"
        )
        raise ValueError(f"devices must lie in 1 … {len(devices)} here, got {number}: {remedy}")
    return Mesh(np.array(devices[:number]), (ROWS,))


def sharded(
    rule: Callable[[RNN], GradientAlgorithm], rnn: RNN, mesh: Mesh | None = None
) -> GradientAlgorithm:
    """Make the algorithm `rule(rnn)` run on a mesh of devices, each with its rows of the batch.

    Args:
        rule: makes the algorithm for a network, such as `gradients.bptt`.
        rnn: the network.
        mesh: of one axis; default all devices.

    Raises:
        ValueError: by value_and_grad, if the batch does not divide by the devices.
    """
    mesh = make_mesh() if mesh is None else mesh
    (axis,) = mesh.axis_names
    algorithm = rule(replace(rnn, reduction="sum"))  # the weights are divided by the total already

    def value_and_grad(
        params: Params, carry: Carry, batch: Batch
    ) -> tuple[tuple[jax.Array, Carry], Params]:
        batch, h = check_batch(rnn, params, batch, carry.h)
        batch_size = len(batch.inputs)
        check_divides(batch_size, mesh.size)
        batch = batch._replace(mask=weigh(rnn, batch, h.dtype).weights)
        of_carry = _specs(batch_axes(algorithm, params, h), axis)

        def of_rows(params, carry, batch):
            (loss, carry), grads = algorithm.value_and_grad(params, carry, batch)
            loss, grads = _summed((loss, grads), axis)
            return (loss, carry), grads

        everywhere, here = PartitionSpec(), PartitionSpec(axis)
        return jax.shard_map(
            of_rows,
            mesh=mesh,
            in_specs=(everywhere, of_carry, here),
            out_specs=((everywhere, of_carry), everywhere),
            check_vma=False,  # it cannot see that what psum made is the same everywhere
        )(params, carry._replace(h=h), batch)

    return GradientAlgorithm(algorithm.init, value_and_grad)


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


def everyones(signs: Sequence[Any]) -> Int[np.ndarray, "processes signs"]:
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


PACKED = 2**18  # bytes, that are copied as fast as all devices meet once more


def _summed(tree: Tree, axis: str) -> Tree:
    """Sum over the devices in one all-reduce, in which the small arrays are one.

    XLA's devices of a CPU meet for each array by itself, some 50 µs a time.
    """

    def pick(small):
        return jax.tree.map(lambda leaf: leaf if (leaf.nbytes <= PACKED) == small else None, tree)

    packed, unpack = ravel_pytree(pick(small=True))
    packed, large = lax.psum((packed, pick(small=False)), axis)
    return jax.tree.map(
        lambda small, large: large if small is None else small,
        unpack(packed),
        large,
        is_leaf=lambda leaf: leaf is None,
    )


def check_divides(batch_size: int, devices: int) -> None:
    """Refuse a batch whose rows cannot be shared out evenly, with the nearest that can."""
    if batch_size % devices:
        below = batch_size - batch_size % devices
        nearest = [str(size) for size in (below, below + devices) if size]
        raise ValueError(
            f"a batch of {batch_size} rows does not divide by {devices} devices: use a batch size "
            f"of {' or '.join(nearest)}, or other devices"
        )


def specs(make: Callable[[int], Any], batch_size: int, axis: str = ROWS) -> Any:
    """Return a `PartitionSpec` for every leaf of `make(batch_size)`.

    The batch axis is sharded, everything else is replicated.
    """
    return _specs(growing_axes(make, batch_size), axis)


def _specs(batch_axes: Any, axis: str) -> Any:
    def spec(place):
        return PartitionSpec() if place < 0 else PartitionSpec(*[None] * place, axis)

    return jax.tree.map(spec, batch_axes)
