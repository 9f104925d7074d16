"""The type of every gradient rule: `GradientAlgorithm`, two pure functions and a `Carry`.

The `Carry` holds everything that passes from one chunk of a sequence to the next. Every rule can
therefore be jitted, checkpointed and sharded in the same way. Where a rule truncates at the ends of
chunks, the caller decides by the length of the chunks.
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
        memory: the memory of the rule, any pytree: an influence, the last steps, or ().
    """

    h: Float[Array, "L B H"]
    memory: Memory


class Lasting(NamedTuple):
    """A part of a rule's memory that outlives a sequence.

    Where a new sequence begins, the rest of the memory starts anew. What a rule has learned and its
    random keys must stay, and are wrapped in this type.

    Attributes:
        value: any pytree.
    """

    value: Any


class InitFn(Protocol):
    """Return the carry before the first chunk."""

    def __call__(
        self, params: Params, h: Float[Array, "L B H"], *, key: PRNGKeyArray | None = None
    ) -> Carry:
        """Return `Carry(h, memory)`.

        Args:
            params: the parameters.
            h: the initial hidden state, (num_layers, B, H).
            key: a random key, required by rules that draw random numbers.

        Raises:
            ValueError: if the rule draws random numbers and gets no key.
        """
        ...


class ValueAndGradFn(Protocol):
    """Compute the loss of a chunk and its gradient, as `jax.value_and_grad(has_aux=True)` does."""

    def __call__(
        self, params: Params, carry: Carry, batch: Batch
    ) -> tuple[tuple[Float[Array, ""], Carry], Params]:
        """Return `((loss, carry), gradient)`.

        Args:
            params: the parameters.
            carry: the carry before the chunk, from `init` or from the chunk before.
            batch: the chunk, inputs (B, T) or (B, T, I).

        Returns:
            The loss, the carry after the chunk, and the gradient as `Params`.

        Raises:
            ValueError: if the parameters, the carry or the batch do not fit the network or the
                rule.
        """
        ...


class GradientAlgorithm(NamedTuple):
    """A way to compute or estimate the gradient of an RNN's loss.

    Inside `jax.shard_map` with its default `check_vma=True`, the gradient of replicated parameters
    is summed over the devices, as `jax.grad` sums it. The loss is not summed: each device returns
    the loss of its own shard. With `check_vma=False` neither is summed; use `jax.lax.psum`.

    Attributes:
        init: (params, h, *, key=None) -> carry before the first chunk, see `InitFn`.
        value_and_grad: (params, carry, batch) -> ((loss, carry), gradient), see `ValueAndGradFn`.
    """

    init: InitFn
    value_and_grad: ValueAndGradFn


def without_memory(
    params: Params, h: Float[Array, "L B H"], *, key: PRNGKeyArray | None = None
) -> Carry:
    """Return the carry of a rule whose only carried value is the hidden state."""
    return Carry(as_state(params, h), ())


def check_algorithm(name: str, algorithm: Any) -> None:
    """Raise `ValueError` unless an argument of this name is a `GradientAlgorithm`."""
    if not isinstance(algorithm, GradientAlgorithm):
        raise ValueError(
            f"{name} must be a GradientAlgorithm, got a {type(algorithm).__name__}: build a rule, "
            f"as in jaxrnn.gradients.bptt(rnn), or make one with "
            f"jaxrnn.GradientAlgorithm(init, value_and_grad)"
        )


def check_carry(carry: Any) -> None:
    """Raise `ValueError` unless a carry is a `Carry`."""
    if not isinstance(carry, Carry):
        raise ValueError(
            f"carry must be a jaxrnn.Carry, got a {type(carry).__name__}: start with "
            f"algorithm.init(params, h, key=key)"
        )


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
    """Return a typed random key; raise `ValueError` if there is none.

    A key of the old kind, an array of integers from `jax.random.PRNGKey`, is converted.
    """
    if key is None:
        raise ValueError(
            "this rule draws random numbers and got no key: "
            "algorithm.init(params, h, key=jax.random.key(0))"
        )
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.wrap_key_data(key)


def restart(
    algorithm: GradientAlgorithm,
    params: Params,
    carry: Carry,
    *,
    h: Float[AnyArray, "L B H"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Carry:
    """Return the carry with which new sequences begin after those of this carry.

    The state is h, and the memory is the one that `algorithm.init` returns, except for its
    `Lasting` parts, which stay: what a rule has learned is not forgotten, and random numbers are
    not drawn a second time.

    Args:
        algorithm: the rule that returned the carry.
        params: the parameters.
        carry: the carry after the last chunk.
        h: the state at the start, (num_layers, B, H); zeros by default.
        key: a random key for `algorithm.init`. The rules of this package do not need it, since
            their keys are `Lasting`.
    """
    start = jnp.zeros_like(carry.h) if h is None else as_state(params, h)
    key = jax.random.key(0) if key is None else key
    new = algorithm.init(params, start, key=key)

    def lasts(node):
        return isinstance(node, Lasting)

    memory = jax.tree.map(
        lambda new, old: old if lasts(new) else new, new.memory, carry.memory, is_leaf=lasts
    )
    return Carry(new.h, memory)


def reset(
    algorithm: GradientAlgorithm,
    params: Params,
    carry: Carry,
    rows: Bool[AnyArray, " B"],
    *,
    h: Float[AnyArray, "L B H"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Carry:
    """Return a carry in which some rows restart, for example where an episode ends.

    The next chunk of these rows begins a new sequence: from the state h, and with the memory of
    `algorithm.init`. Two things of a memory stay, its `Lasting` parts: what the rule has learned
    (the kernel of `kernl`, the prediction of `dni`), and its random keys, so that it draws new
    numbers. The other rows are unchanged. The function can be jitted.

    Args:
        algorithm: the rule that returned the carry.
        params: the parameters.
        carry: the carry after the last chunk.
        rows: the rows to restart, (B,) booleans.
        h: the state from which these rows restart, (num_layers, B, H); zeros by default.
        key: a random key for a rule of your own whose memory has keys that are not `Lasting`.

    Returns:
        The carry for the next chunk.

    Raises:
        ValueError: if rows are not B booleans.

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
            f"rows must be booleans of shape ({batch_size},), one per row of the carry, got shape "
            f"{rows.shape} and dtype {rows.dtype}"
        )
    restarted = restart(algorithm, params, carry, h=h, key=key)

    def select(axis, new, old):
        if axis < 0:
            return old
        others = [other for other in range(new.ndim) if other != axis]
        return jnp.where(jnp.expand_dims(rows, others), new, old)

    return jax.tree.map(select, batch_axes(algorithm, params, carry.h), restarted, carry)


def batch_axes(algorithm: GradientAlgorithm, params: Params, h: Float[Array, "L B H"]) -> Carry:
    """Return the batch axis of every leaf of a rule's carry, or -1 for a leaf without one."""

    def make(batch_size):
        state = jnp.zeros((h.shape[0], batch_size, h.shape[2]), h.dtype)
        return algorithm.init(params, state, key=jax.random.key(0))  # any key: only shapes are used

    return growing_axes(make, h.shape[1])


def growing_axes(make: Callable[[int], Tree], batch_size: int) -> Tree:
    """Return the axis of each leaf of `make(batch_size)` that grows with the batch size, or -1.

    Only shapes are computed, by `jax.eval_shape`.
    """

    def axis(leaf, larger):
        grows = [one != other for one, other in zip(leaf.shape, larger.shape, strict=True)]
        return grows.index(True) if any(grows) else -1

    shapes = (
        jax.eval_shape(lambda: make(batch_size)),
        jax.eval_shape(lambda: make(batch_size + 1)),
    )
    return jax.tree.map(axis, *shapes)
