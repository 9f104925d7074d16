"""Training: a pure step for any gradient algorithm and any Optax optimiser, and many in one jit."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxrnn.gradients.base import Carry, GradientAlgorithm
from jaxrnn.network import RNN, Batch, Params


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
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads, params))]
        metrics = Metrics(loss, optax.tree.norm(grads), jnp.stack(finite).all())
        return TrainState(params, opt_state, carry, state.step + 1, state.key), metrics

    return step


def make_train_loop(
    step: TrainStep,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Make many steps one jitted call: (state, batches) -> (state, metrics).

    The batches' leaves begin with N, and so do the metrics'. The state is donated: its buffers are
    used for the new one, so copy it first if the old one is still wanted.
    """
    return jax.jit(lambda state, batches: lax.scan(step, state, batches), donate_argnums=0)


def evaluate(
    rnn: RNN, params: Params, batches: Batch, *, stateful: bool = True
) -> Float[Array, ""]:
    """Compute the mean loss a position over batches (N, B, T).

    Args:
        rnn: the network.
        params: its parameters.
        batches: consecutive chunks of a text, or sequences that stand alone.
        stateful: whether h passes from batch to batch; if not, each is read from h = 0.
    """
    h_0 = rnn.initial_state(batches.inputs.shape[1], params.readout.W_hy.dtype)

    def forward(h, batch):
        loss, h_last = rnn.loss(params, h, batch)
        mask = jnp.ones(batch.inputs.shape[:2]) if batch.mask is None else batch.mask
        total = loss * mask.sum() if rnn.reduction == "mean" else loss
        return h_last if stateful else h_0, (total, mask.sum())

    _, (totals, counts) = lax.scan(forward, h_0, batches)
    return totals.sum() / counts.sum()


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
