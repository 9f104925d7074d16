"""Train steps: a pure update for any gradient algorithm and Optax optimiser, and a jitted loop."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxrnn.gradients.engine.algorithm import Carry, GradientAlgorithm, check_algorithm, restart
from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_is_batch
from jaxrnn.network.layer import wide
from jaxrnn.network.stack import Params
from jaxrnn.training.source import Source, check_continues


class TrainState(NamedTuple):
    """Everything that changes during training, as a pytree.

    Attributes:
        params: the parameters.
        opt_state: the state of the optimiser.
        carry: the hidden state and the rule's memory with which the next batch starts.
        step: the number of updates so far.
    """

    params: Params
    opt_state: optax.OptState
    carry: Carry
    step: Int[Array, ""]

    def __repr__(self) -> str:
        """Return the step, the parameters, and the sizes of the rest."""
        carried, optimizer = (
            sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
            for tree in (self.carry, self.opt_state)
        )
        return (
            f"TrainState at step {self.step}, with {optimizer:,} numbers of the optimiser and "
            f"{carried:,} in the carry\n{self.params!r}"
        )


class Metrics(NamedTuple):
    """The metrics of one train step, or of many with a leading axis N.

    Attributes:
        loss: the loss of the batch before the update.
        grad_norm: the norm of the gradient before any clipping.
        finite: whether every element of the loss, the gradient and the new parameters is finite.
    """

    loss: Float[Array, "*steps"]
    grad_norm: Float[Array, "*steps"]
    finite: Bool[Array, "*steps"]


UpdateFn = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class TrainStep:
    """One update, a pure function (state, batch) -> (state, metrics), made by `make_train_step`."""

    algorithm: GradientAlgorithm
    optimizer: optax.GradientTransformation
    continues: bool

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Return the state after the update, and the metrics of the batch before it."""
        # Optax accepts any pytree, but its type annotations do not include it.
        update = cast(Callable[..., Any], self.optimizer.update)
        apply_updates = cast(Callable[..., Params], optax.apply_updates)
        (loss, carry), grads = self.algorithm.value_and_grad(state.params, state.carry, batch)
        updates, opt_state = update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates)
        if not self.continues:
            key = jax.random.fold_in(jax.random.key(0), state.step)
            carry = restart(self.algorithm, params, carry, key=key)
        finite = jnp.isfinite(jnp.stack(list(map(_sum, jax.tree.leaves((loss, grads, params))))))
        metrics = Metrics(loss, optax.tree.norm(grads), finite.all())
        return TrainState(params, opt_state, carry, state.step + 1), metrics


def init_train_state(
    algorithm: GradientAlgorithm,
    optimizer: optax.GradientTransformation,
    params: Params,
    h: Float[Array, "L B H"],
    *,
    key: PRNGKeyArray | None = None,
) -> TrainState:
    """Make the training state before the first step.

    Args:
        algorithm: the gradient rule.
        optimizer: the Optax optimiser.
        params: the initial parameters.
        h: the initial hidden state of the sequences, (num_layers, B, H).
        key: a random key, required by rules that draw random numbers.

    Returns:
        The state. Its arrays are copies, so that donating it leaves the caller's arrays valid.

    Raises:
        ValueError: if the rule draws random numbers and gets no key.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> algorithm, optimizer = jaxrnn.gradients.bptt(rnn), jaxrnn.clipped_sgd(0.1)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(batch_size=3)
    >>> state = jaxrnn.init_train_state(algorithm, optimizer, params, h)
    >>> int(state.step)
    0
    """
    check_algorithm("algorithm", algorithm)
    _check_optimizer(optimizer)
    carry = algorithm.init(params, h, key=key)
    opt_state = cast(Callable[..., optax.OptState], optimizer.init)(params)
    state = TrainState(params, opt_state, carry, jnp.zeros((), jnp.int32))
    # The loop donates the state, which must not invalidate the caller's arrays.
    return jax.tree.map(jnp.copy, state)


def make_train_step(
    algorithm: GradientAlgorithm,
    optimizer: optax.GradientTransformation,
    *,
    continues: bool = False,
) -> TrainStep:
    """Make a train step: a pure function (state, batch) -> (state, metrics).

    The step computes the gradient with the rule and applies one update of the optimiser. It is not
    jitted; the caller jits it, or passes it to `make_train_loop`.

    By default every batch holds new sequences: after the update the hidden state is 0 and the
    influence or window of the rule is empty, as `jaxrnn.reset` makes them. What the rule has
    learned stays, and it draws new random numbers. With `continues=True` the hidden state and the
    whole memory pass on to the next batch.

    Args:
        algorithm: the gradient rule.
        optimizer: the Optax optimiser.
        continues: whether each batch continues the sequences of the one before, as the chunks of a
            long text do; `source.continues` for a `Source`.

    Returns:
        The step. Its batch has inputs (B, T) or (B, T, I), and the metrics are scalars.

    >>> import jax, numpy as np, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=5)
    >>> algorithm, optimizer = jaxrnn.gradients.bptt(rnn), jaxrnn.clipped_sgd(0.1)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(batch_size=3)
    >>> state = jaxrnn.init_train_state(algorithm, optimizer, params, h)
    >>> ids = np.arange(12).reshape(3, 4) % 5  # B=3, T=4
    >>> step = jax.jit(jaxrnn.make_train_step(algorithm, optimizer))
    >>> state, metrics = step(state, jaxrnn.Batch(ids, ids))
    >>> int(state.step), bool(metrics.finite), bool(state.carry.h.any())
    (1, True, False)
    """
    check_algorithm("algorithm", algorithm)
    _check_optimizer(optimizer)
    return TrainStep(algorithm, optimizer, continues)


def _check_optimizer(optimizer: Any) -> None:
    """Raise `ValueError` unless an optimiser has the two functions of Optax."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"optimizer must be an Optax transformation, got a {type(optimizer).__name__}: call "
            f"its builder, as in optax.adam(1e-3)"
        )


def _check_state(state: Any) -> None:
    """Raise `ValueError` unless a train state can still be read."""
    if not isinstance(state, TrainState):
        raise ValueError(
            f"state must be a TrainState, got a {type(state).__name__}: make it with "
            f"jaxrnn.init_train_state"
        )
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, Array)]
    if any(checks.is_known(leaf) and leaf.is_deleted() for leaf in arrays):
        raise ValueError(
            "this state was given to the loop before, which has reused its memory: go on with the "
            "state that the loop returned, or give it a copy, jax.tree.map(jnp.copy, state)"
        )


def _sum(leaf: Array) -> Array:
    """Sum the leaf, in float32 at least.

    The sum is non-finite whenever an element is, and is cheaper than an element-wise `isfinite`.
    Finite elements whose sum overflows are reported too: such large values are of no use either.
    """
    return leaf.sum(dtype=wide(leaf.dtype))


def make_train_loop(
    step: UpdateFn,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make a jitted function of many train steps, (state, batches, count=None) -> (state, metrics).

    The batches are a `Source` or a `Batch` whose leaves have a leading axis N, such as inputs
    (N, B, T). The leaves of the metrics have shape (N,). The state is donated: its buffers are
    reused, so copy it first if you need the old state later.

    With a source that has no end, `count` is the number of steps, and the first of them reads the
    batch of the number `state.step`. All `count` batches are in memory at once. With a source that
    has an end, all its batches are read from the first on.

    With a `Batch`, only the first `count` of its batches are used, and the metrics of the others
    are zero. One compiled program then serves any number of steps up to N, and the result is the
    same to the last bit however the steps are divided into calls.

    Args:
        step: the train step, made by `make_train_step`.

    Returns:
        The jitted loop. It raises `ValueError` if `count` is negative or exceeds N, or if the
        source's batches continue each other and the step does not carry the state on, or the other
        way round.

    >>> import jax, numpy as np, jaxrnn
    >>> task = jaxrnn.tasks.adding()
    >>> rnn = jaxrnn.RNN(task.input_size, 4, task.output_size, loss_function=task.loss)
    >>> algorithm, optimizer = jaxrnn.gradients.bptt(rnn), jaxrnn.clipped_sgd(0.1)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(batch_size=3)
    >>> state = jaxrnn.init_train_state(algorithm, optimizer, params, h)
    >>> loop = jaxrnn.make_train_loop(jaxrnn.make_train_step(algorithm, optimizer))
    >>> state, metrics = loop(state, task.source(3, 6, key=jax.random.key(1)), 20)
    >>> int(state.step), metrics.loss.shape
    (20, (20,))
    """

    @partial(jax.jit, donate_argnums=0)
    def loop(state, batches, count=None):
        number = len(batches.inputs)

        def one(i, carry):
            state, metrics = carry
            state, new = step(state, jax.tree.map(lambda leaf: leaf[i], batches))
            return state, jax.tree.map(lambda all, one: all.at[i].set(one), metrics, new)

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        _, shapes = jax.eval_shape(step, state, first)
        metrics = jax.tree.map(lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), shapes)
        return lax.fori_loop(0, number if count is None else count, one, (state, metrics))

    @wraps(loop)
    def checked(state, batches, count=None):
        if isinstance(batches, Source):
            _check_state(state)
            check_continues(batches, getattr(step, "continues", None))
            batches, count = _read(batches, state, count), None
        else:
            check_is_batch(batches)
            _check_state(state)
        if np.ndim(batches.targets) < 3:
            raise ValueError(
                f"batches must have a leading axis N, as in inputs (N, B, T), got inputs of shape "
                f"{np.shape(batches.inputs)}: call the step itself with a single batch"
            )
        number = len(batches.inputs)
        if count is not None and checks.is_known(count) and not 0 <= count <= number:
            raise ValueError(f"count must lie in 0 … {number}, the number of batches, got {count}")
        return loop(state, batches, count)

    return checked


def _read(source: Source, state: TrainState, count: int | None) -> Batch:
    """Return the batches of a source for `count` steps from this state on."""
    if source.number is not None:
        return source.all() if count is None else source(np.arange(count))
    if count is None:
        raise ValueError(
            "the source has no end: give the number of steps, loop(state, source, 300)"
        )
    return source(int(state.step) + np.arange(count))
