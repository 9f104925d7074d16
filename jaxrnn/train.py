"""Training: a pure step for any gradient algorithm and any Optax optimiser, and many in one jit."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial, wraps
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxrnn import checks
from jaxrnn.data import Passage
from jaxrnn.gradients.base import Carry, GradientAlgorithm
from jaxrnn.layer import wide
from jaxrnn.network import RNN, Batch, Params, check_is_batch, total_weight


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


def evaluate(
    rnn: RNN, params: Params, batches: Batch, *, stateful: bool = True
) -> Float[Array, ""]:
    """Compute the mean loss a position over batches (N, B, T).

    Args:
        rnn: the network.
        params: its parameters.
        batches: consecutive chunks of a text, or sequences that stand alone.
        stateful: whether h passes from batch to batch; if not, each is read from h = 0.

    Raises:
        ValueError: if no position counts.
    """
    check_is_batch(batches)
    h_0 = rnn.initial_state(batches.inputs.shape[1], params.readout.W_hy.dtype)
    _, (totals, weights) = _losses(rnn, params, h_0, batches, stateful)
    total = weights.sum()
    if checks.is_known(total) and total == 0:
        raise ValueError("nothing counts in these batches: every position has the mask 0")
    return totals.sum() / total.astype(totals.dtype)


class Scored(NamedTuple):
    """What a part of a passage adds.

    Attributes:
        total: its summed loss.
        positions: how many that is the sum of.
        done: the share of the passage that has been read after it.
    """

    total: Float[np.ndarray, "*members"]
    positions: float
    done: float


def score(
    rnn: RNN, params: Params, passage: Passage, *, population: bool = False
) -> Iterator[Scored]:
    """Evaluate on a passage of any size, part by part, the state carried from one to the next.

    Args:
        rnn: the network.
        params: its parameters; of a population each leaf begins with the members.
        passage: what to evaluate on.
        population: whether there are many.
    """
    shape = passage.batches(np.zeros(1, int)).inputs.shape[1:]
    part = max(1, min(passage.number, _POSITIONS // math.prod(shape)))
    members = (len(params.readout.W_hy),) if population else ()
    h_0 = rnn.initial_state(shape[0], params.readout.W_hy.dtype)
    h = jnp.broadcast_to(h_0, (*members, *h_0.shape))
    for first in range(0, passage.number, part):
        batches = passage.batches(np.arange(first, first + part))
        run = _population_losses if population else _losses
        h, (totals, counts) = run(rnn, params, h, batches, passage.stateful)
        totals, counts = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
        positions = float(counts.reshape(-1, counts.shape[-1])[0].sum())
        done = min(1.0, (first + part) / passage.number)
        yield Scored(np.asarray(totals.sum(-1)), positions, done)


def mean_loss(scored: Iterable[Scored]) -> Float[np.ndarray, "*members"]:
    """Compute the mean loss a position, of everything that was scored."""
    totals, positions, _ = zip(*scored, strict=True)
    return np.asarray(np.sum(totals, 0) / sum(positions))


_POSITIONS = 2**20  # of a passage that are evaluated in one jitted call


@partial(jax.jit, static_argnames=("rnn", "stateful"))
def _losses(rnn: RNN, params: Params, h: Array, batches: Batch, stateful: bool):
    """Return the last h, and of each batch its summed loss and the weight of its positions."""
    h_0, summing = jnp.zeros_like(h), replace(rnn, reduction="sum")

    def forward(h, batch):
        loss, h_last = summing.loss(params, h, batch)
        return h_last if stateful else h_0, (loss, total_weight(batch))

    return lax.scan(forward, h, batches)


@partial(jax.jit, static_argnames=("rnn", "stateful"))
def _population_losses(rnn: RNN, params: Params, h: Array, batches: Batch, stateful: bool):
    one = partial(_losses, rnn, batches=batches, stateful=stateful)
    return jax.vmap(lambda params, h: one(params, h))(params, h)


def sgd(
    learning_rate: optax.ScalarOrSchedule = 0.1, clip: float | None = 1.0
) -> optax.GradientTransformation:
    """Clip each element of the gradient to [-clip, clip], then gradient descent."""
    return optax.chain(_clip(clip), optax.sgd(learning_rate))


def adagrad(
    learning_rate: optax.ScalarOrSchedule = 0.1, clip: float | None = 5.0
) -> optax.GradientTransformation:
    """Clip each element, then Adagrad (Duchi, Hazan & Singer 2011) as min-char-rnn has it.

        s ← s + g²,   θ ← θ - learning_rate g / √(s + 1e-8),   s = 0 at first

    Optax's own default starts from s = 0.1, which keeps the first steps small.
    """
    rule = optax.adagrad(learning_rate, initial_accumulator_value=0.0, eps=1e-8)
    return optax.chain(_clip(clip), rule)


def _clip(clip: float | None) -> optax.GradientTransformation:
    return optax.identity() if clip is None else optax.clip(clip)
