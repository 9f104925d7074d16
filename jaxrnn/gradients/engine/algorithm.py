"""A gradient rule is a `GradientAlgorithm`: two pure functions, with a `Carry` between chunks.

Everything that passes from one chunk of a sequence to the next is in the `Carry`, so every rule can
be jitted, checkpointed and sharded in the same way, and truncation at the ends of chunks is a
matter of the caller's chunk length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxrnn.network.batch import Batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.layer import Tree
from jaxrnn.network.stack import Params
from jaxrnn.network.validation import as_state

Memory = Any


class Carry(NamedTuple):
    """What passes from one chunk of a sequence to the next.

    Attributes:
        h: the hidden state of every layer, (num_layers, B, H).
        memory: the rule's own, any pytree: an influence matrix, a window of past steps, or ().
    """

    h: Float[Array, "L B H"]
    memory: Memory


class InitFn(Protocol):
    """Make the carry before the first chunk."""

    def __call__(
        self, params: Params, h: Float[Array, "L B H"], key: PRNGKeyArray | None = None
    ) -> Carry:
        """Return Carry(h, memory); `key` is for rules that draw random numbers."""
        ...


class ValueAndGradFn(Protocol):
    """Compute the loss of a chunk and its gradient, as `jax.value_and_grad(has_aux=True)` does."""

    def __call__(
        self, params: Params, carry: Carry, batch: Batch
    ) -> tuple[tuple[Float[Array, ""], Carry], Params]:
        """Return ((loss, carry after the chunk), gradient in the shape of params)."""
        ...


class GradientAlgorithm(NamedTuple):
    """One way to compute, or to estimate, the gradient of an RNN's loss.

    Inside a caller's `jax.shard_map` with its default `check_vma=True`, the gradient of parameters
    that are the same on every device is summed over the devices, as `jax.grad` sums it; the loss is
    each device's own. With `check_vma=False` both are each device's own: sum them by
    `jax.lax.psum`.
    """

    init: InitFn
    value_and_grad: ValueAndGradFn


def without_memory(
    params: Params, h: Float[Array, "L B H"], key: PRNGKeyArray | None = None
) -> Carry:
    """Make the carry of a rule that passes on the hidden state and no more: its `init`."""
    return Carry(as_state(params, h), ())


def check_memory(carry: Carry, expected: Memory) -> None:
    """Raise `ValueError` unless `carry.memory` has the structure and shapes of `expected`."""
    remedy = "start with algorithm.init(params, h, key=key)"
    if jax.tree.structure(carry.memory) != jax.tree.structure(expected):
        raise ValueError(f"carry.memory is another rule's or another network's: {remedy}")

    def check(path, leaf, shape):
        if jnp.shape(leaf) != shape.shape:
            raise ValueError(
                f"carry.memory{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, but h of "
                f"shape {carry.h.shape} needs {shape.shape}: {remedy}"
            )

    jax.tree_util.tree_map_with_path(check, carry.memory, expected)


def check_key(key: PRNGKeyArray | None) -> PRNGKeyArray:
    """Return the key of a rule that draws random numbers, typed if it is of the old kind."""
    if key is None:
        raise ValueError(
            "this rule draws random numbers and got no key: "
            "algorithm.init(params, h, key=jax.random.key(0))"
        )
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.wrap_key_data(key)


def stateless(algorithm: GradientAlgorithm) -> GradientAlgorithm:
    """Make every batch start from the carry that `init` made, for sequences that stand alone."""

    def value_and_grad(params, carry, batch):
        (loss, _), grads = algorithm.value_and_grad(params, carry, batch)
        return (loss, carry), grads

    return GradientAlgorithm(algorithm.init, value_and_grad)


def reset(
    algorithm: GradientAlgorithm,
    params: Params,
    carry: Carry,
    rows: Bool[AnyArray, " B"],
    *,
    h: Float[AnyArray, "L B H"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Carry:
    """Start some rows of a carry anew, as where an episode ends in a stream of episodes.

    Those rows get the state and the memory that `algorithm.init` makes, so that a rule then
    equals itself on the two parts apart. The other rows go on. It may be jitted.

    Args:
        algorithm: the rule whose carry it is.
        params: the parameters.
        carry: the carry after the last chunk of the old sequences.
        rows: which rows to start anew, (B,), True or False.
        h: the state to start from, (num_layers, B, H); zeros if not given.
        key: for rules that draw random numbers, as in `algorithm.init`.

    Raises:
        ValueError: if rows are not B booleans, or the rule needs a key.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, rule = rnn.init(jax.random.key(0)), jaxrnn.gradients.rtrl(rnn)
    >>> carry = rule.init(params, jax.numpy.ones((1, 3, 4)))
    >>> ended = jax.numpy.array([False, True, False])
    >>> jaxrnn.reset(rule, params, carry, ended).h[0, :, 0].tolist()
    [1.0, 0.0, 1.0]
    """
    rows = jnp.asarray(rows)
    batch_size = carry.h.shape[1]
    if rows.shape != (batch_size,) or rows.dtype != bool:
        raise ValueError(
            f"rows must be booleans of shape ({batch_size},), one a row of the carry, got shape "
            f"{rows.shape} and dtype {rows.dtype}"
        )
    start = jnp.zeros_like(carry.h) if h is None else as_state(params, h)
    fresh = algorithm.init(params, start, key=key)

    def select(axis, new, old):
        if axis < 0:
            return old
        others = [other for other in range(new.ndim) if other != axis]
        return jnp.where(jnp.expand_dims(rows, others), new, old)

    return jax.tree.map(select, batch_axes(algorithm, params, carry.h), fresh, carry)


def batch_axes(algorithm: GradientAlgorithm, params: Params, h: Float[Array, "L B H"]) -> Carry:
    """Return the axis of the batch in every leaf of a rule's carry; -1 for a leaf without one."""

    def make(batch_size):
        some = jnp.zeros((h.shape[0], batch_size, h.shape[2]), h.dtype)
        return algorithm.init(params, some, key=jax.random.key(0))  # any, for the shapes

    return growing_axes(make, h.shape[1])


def growing_axes(make: Callable[[int], Tree], batch_size: int) -> Tree:
    """Return which axis of each leaf of `make(batch_size)` grows with the batch size; -1 for none.

    Only shapes are computed.
    """

    def axis(leaf, larger):
        grows = [one != other for one, other in zip(leaf.shape, larger.shape, strict=True)]
        return grows.index(True) if any(grows) else -1

    shapes = (
        jax.eval_shape(lambda: make(batch_size)),
        jax.eval_shape(lambda: make(batch_size + 1)),
    )
    return jax.tree.map(axis, *shapes)
