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

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from jaxrnn.gradients.engine.algorithm import Carry, GradientAlgorithm, batch_axes, growing_axes
from jaxrnn.network.batch import Batch, weigh
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params

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
        batch = batch._replace(mask=weigh(batch, rnn.reduction, h.dtype).weights)
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
