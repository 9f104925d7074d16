"""Data parallelism: each device runs the whole scan for its own rows of the batch.

    L = Σ_d L_d,        dL/dθ = Σ_d dL_d/dθ

where L_d is the contribution of the rows of device d to the loss. The devices do not communicate
while the scans run. At the end one all-reduce sums the loss and the gradients, which are as many
numbers as the network has parameters. The parameters are replicated on every device. The rows of
the batch and of a rule's `Carry` are divided among the devices. This works for every rule, since
no rule combines rows before that sum.

The sum is taken in another order than on one device, so results are equal up to rounding, not to
the last bit.

JAX sees every GPU as a device. It sees all cores of a CPU as one device, unless the number of
devices is set before its first computation. Without asynchronous dispatch, which passes each call
to another thread, it is faster there:

    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_enable_async_dispatch", False)

Many processes
--------------
After `jax.distributed.initialize` the devices are those of all processes, and each process runs the
same program. For P parameters in float32 and n processes, each process sends and receives
2 (n - 1) / n · 4 P bytes per step in a ring all-reduce, as 2 (n - 1) messages one after another.
For the default network (I = O = 65, H = 256: 99 thousand parameters) this is 0.8 MB, which takes
6 ms at 1 Gbit/s and 0.6 ms at 10 Gbit/s. At 50 µs per message, 64 processes wait for 6 ms whatever
the bandwidth.

A step computes 6 P T b operations in each process, for b rows of T time steps. The all-reduce
dominates if T b is below about speed / bandwidth (operations per second over bytes per second):
1000 for 10¹¹ and 10⁸. In that case give each step more work: more rows or longer chunks in each
process, or fewer processes with more cores each.
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

ROWS = "rows"  # the name of the mesh's axis


def make_mesh(number: int | None = None) -> Mesh:
    """Make a mesh with one axis, "rows", from the first `number` of JAX's devices.

    Args:
        number: how many devices; default all.

    Returns:
        The mesh, for `sharded`.

    Raises:
        ValueError: if JAX has fewer devices.

    >>> import jaxrnn
    >>> dict(jaxrnn.make_mesh(1).shape)
    {'rows': 1}
    """
    devices = jax.devices()
    number = len(devices) if number is None else number
    if not 1 <= number <= len(devices):
        kind = devices[0].platform
        remedy = (
            f'jax.config.update("jax_num_cpu_devices", {number}) before the first computation '
            f"makes a CPU's cores devices"
            if kind == "cpu" and number > 0
            else "use a number in that range"
        )
        raise ValueError(f"devices must lie in 1 … {len(devices)} here, got {number}: {remedy}")
    return Mesh(np.array(devices[:number]), (ROWS,))


def sharded(
    rule: Callable[[RNN], GradientAlgorithm], rnn: RNN, mesh: Mesh | None = None
) -> GradientAlgorithm:
    """Return the algorithm `rule(rnn)`, run on a mesh of devices that divide the rows of the batch.

    The loss and the gradient are sums over the devices, L = Σ_d L_d and dL/dθ = Σ_d dL_d/dθ.

    Args:
        rule: builds the algorithm for a network, such as `gradients.bptt`.
        rnn: the network.
        mesh: a mesh with one axis; default all devices.

    Returns:
        An algorithm with the result of `rule(rnn)` up to rounding. Its `value_and_grad` raises
        `ValueError` if the number of rows is not divisible by the number of devices.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> algorithm = jaxrnn.sharded(jaxrnn.gradients.bptt, rnn, jaxrnn.make_mesh(1))
    >>> params = rnn.init(jax.random.key(0))
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> carry = algorithm.init(params, rnn.initial_state(batch_size=3))
    >>> (loss, carry), grads = jax.jit(algorithm.value_and_grad)(params, carry, batch)
    >>> grads.cells[0].W_xh.shape
    (5, 4)
    """
    mesh = make_mesh() if mesh is None else mesh
    (axis,) = mesh.axis_names
    # `value_and_grad` below divides the weights by their total, so the rule itself only sums.
    algorithm = rule(replace(rnn, reduction="sum"))

    def value_and_grad(
        params: Params, carry: Carry, batch: Batch
    ) -> tuple[tuple[jax.Array, Carry], Params]:
        batch, h = check_batch(rnn, params, batch, carry.h)
        batch_size = len(batch.inputs)
        check_divides(batch_size, mesh.size)
        batch = batch._replace(mask=weigh(batch, rnn.reduction, h.dtype).weights)
        carry_specs = _specs(batch_axes(algorithm, params, h), axis)

        def of_rows(params, carry, batch):
            (loss, carry), grads = algorithm.value_and_grad(params, carry, batch)
            loss, grads = _summed((loss, grads), axis)
            return (loss, carry), grads

        replicated, rows = PartitionSpec(), PartitionSpec(axis)
        return jax.shard_map(
            of_rows,
            mesh=mesh,
            in_specs=(replicated, carry_specs, rows),
            out_specs=((replicated, carry_specs), replicated),
            check_vma=False,  # JAX does not infer that the result of psum is replicated
        )(params, carry._replace(h=h), batch)

    return GradientAlgorithm(algorithm.init, value_and_grad)


PACKED = 2**18  # bytes; copying more takes longer than one more synchronisation of the devices


def _summed(tree: Tree, axis: str) -> Tree:
    """Sum a pytree over the devices in one all-reduce, with the small arrays packed into one.

    On a CPU, XLA synchronises the devices once for each array, which takes some 50 µs.
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
    """Raise `ValueError` unless the number of rows is divisible by the number of devices."""
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
    def spec(batch_axis):
        if batch_axis < 0:
            return PartitionSpec()
        return PartitionSpec(*[None] * batch_axis, axis)

    return jax.tree.map(spec, batch_axes)
