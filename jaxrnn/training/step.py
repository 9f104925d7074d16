"""Training: a pure step for any gradient algorithm and any Optax optimiser, and many in one jit."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxrnn.gradients.engine.algorithm import Carry, GradientAlgorithm
from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_is_batch
from jaxrnn.network.layer import wide
from jaxrnn.network.stack import Params


class TrainState(NamedTuple):
    """Everything that changes while training; a pytree.

    Attributes:
        params: the parameters.
        opt_state: the optimiser's state.
        carry: what passes to the next chunk of the text.
        step: the number of updates made.
        key: a key for the caller's own draws; the step does not touch it.
    """

    params: Params
    opt_state: optax.OptState
    carry: Carry
    step: Int[Array, ""]
    key: PRNGKeyArray


class Metrics(NamedTuple):
    """What a step tells.

    Attributes:
        loss: of its batch, before the update.
        grad_norm: of the gradient, before any clip.
        finite: whether the loss, the gradient and the new parameters are, every element of them.
    """

    loss: Float[Array, "*steps"]
    grad_norm: Float[Array, "*steps"]
    finite: Bool[Array, "*steps"]

    @property
    def bits(self) -> Float[Array, "*steps"]:
        """A cross-entropy in bits per character: nats / ln 2."""
        return self.loss / jnp.log(2)


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_train_state(
    algorithm: GradientAlgorithm,
    optimizer: optax.GradientTransformation,
    params: Params,
    h: Float[Array, "L B H"],
    *,
    key: PRNGKeyArray,
) -> TrainState:
    """Make the state before the first step, for sequences that start from h."""
    state_key, algorithm_key = jax.random.split(key)
    carry = algorithm.init(params, h, key=algorithm_key)
    opt_state = cast(Callable[..., optax.OptState], optimizer.init)(params)
    state = TrainState(params, opt_state, carry, jnp.zeros((), jnp.int32), state_key)
    # Copies of its own: the state is donated, and the caller's arrays are not ours to give away.
    return jax.tree.map(jnp.copy, state)


def make_train_step(
    algorithm: GradientAlgorithm, optimizer: optax.GradientTransformation
) -> TrainStep:
    """Make a pure function (state, batch) -> (state, metrics), to be jitted by its caller."""
    # Optax takes any pytree, but its types do not say so.
    update = cast(Callable[..., Any], optimizer.update)
    apply_updates = cast(Callable[..., Params], optax.apply_updates)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, carry), grads = algorithm.value_and_grad(state.params, state.carry, batch)
        updates, opt_state = update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates)
        finite = jnp.isfinite(jnp.stack(list(map(_sum, jax.tree.leaves((loss, grads, params))))))
        metrics = Metrics(loss, optax.tree.norm(grads), finite.all())
        return TrainState(params, opt_state, carry, state.step + 1, state.key), metrics

    return step


def _sum(leaf: Array) -> Array:
    """Sum the leaf, in float32 at least.

    The sum is non-finite whenever an element is, and is cheaper than an element-wise `isfinite`.
    Finite elements whose sum overflows are reported too: they are past all use.
    """
    return leaf.sum(dtype=wide(leaf.dtype))


def make_train_loop(
    step: TrainStep,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make many steps one jitted call: (state, batches, count=N) -> (state, metrics).

    The batches' leaves begin with N, and so do the metrics'. With a `count`, which must not exceed
    N, only the first `count` batches are read and the other metrics are zero: one compiled program
    serves any number of steps, and they come out the same to the last bit however they are cut
    into calls. The state is donated: its buffers are used for the new one, so copy it first if the
    old one is still wanted.

    The returned function raises `ValueError` if `count` is negative or exceeds N.
    """

    @partial(jax.jit, donate_argnums=0)
    def loop(state, batches, count=None):
        number = len(batches.inputs)

        def one(i, carry):
            state, metrics = carry
            state, now = step(state, jax.tree.map(lambda leaf: leaf[i], batches))
            return state, jax.tree.map(lambda all, one: all.at[i].set(one), metrics, now)

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        _, shapes = jax.eval_shape(step, state, first)
        metrics = jax.tree.map(lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), shapes)
        return lax.fori_loop(0, number if count is None else count, one, (state, metrics))

    @wraps(loop)
    def checked(state, batches, count=None):
        check_is_batch(batches)
        number = len(batches.inputs)
        if count is not None and checks.is_known(count) and not 0 <= count <= number:
            raise ValueError(f"count must lie in 0 … {number}, the number of batches, got {count}")
        return loop(state, batches, count)

    return checked
