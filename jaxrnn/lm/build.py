"""Construction of the network, the gradient algorithm and the optimiser from `Options`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from jaxrnn.lm.options import Init, Options
from jaxrnn.network.rnn import RNN, Initializer, lecun_normal, orthogonal
from jaxrnn.training.transforms import clipped_adagrad, clipped_sgd


def _uniform(key: PRNGKeyArray, shape: Sequence[int], dtype: Any = None) -> jax.Array:
    """Draw uniformly from ±1 / √fan-in."""
    return jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def _small_normal(key: PRNGKeyArray, shape: Sequence[int], dtype: Any = None) -> jax.Array:
    """Draw from a normal distribution of standard deviation 0.01."""
    return jax.nn.initializers.normal(0.01)(key, shape, dtype)


def _normal(key: PRNGKeyArray, shape: Sequence[int], dtype: Any = None) -> jax.Array:
    """Draw from the standard normal distribution."""
    return jax.nn.initializers.normal(1.0)(key, shape, dtype)


def _weights(init: Initializer, recurrent_init: Initializer) -> dict[str, Any]:
    """Return the initialisers of all weight matrices as arguments of `RNN`."""
    return {"input_init": init, "recurrent_init": recurrent_init, "readout_init": init}


INITIALIZERS: dict[Init, dict[str, Any]] = {
    "default": _weights(lecun_normal, orthogonal),
    "uniform": _weights(_uniform, _uniform),
    "small-normal": _weights(_small_normal, _small_normal),
    "normal": _weights(_normal, _normal),
}

# From the number of steps to the schedule of a factor of the learning rate, which starts at 1.
SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "exponential": lambda steps: optax.exponential_decay(1.0, steps, 0.01),
}


def make_rnn(options: Options, vocabulary_size: int) -> RNN:
    """Return the network, whose inputs and outputs are the V symbols of the vocabulary."""
    return RNN(
        vocabulary_size,
        options.hidden_size,
        vocabulary_size,
        num_layers=options.num_layers,
        activation=options.activation,
        leak=options.leak,
        use_bias=options.use_bias,
        **INITIALIZERS[options.init],
    )


def schedule(options: Options, learning_rate: float | jax.Array) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates made before."""
    factor = SCHEDULES[options.schedule](options.steps - options.warmup)
    if options.warmup:
        warmup = optax.linear_schedule(0.0, 1.0, options.warmup)
        factor = optax.join_schedules([warmup, factor], [options.warmup])
    return lambda count: jnp.asarray(learning_rate * factor(count))


def make_optimizer(
    options: Options, learning_rate: float | jax.Array
) -> optax.GradientTransformation:
    """Return the optimiser, with gradient clipping and the schedule of the learning rate."""
    rate = schedule(options, learning_rate)
    clip = {} if options.clip is None else {"clip": options.clip}
    if options.optimizer == "adagrad":
        return clipped_adagrad(rate, **clip)
    if options.optimizer == "sgd":
        return clipped_sgd(rate, **clip)
    rule = optax.rmsprop(rate, decay=0.95)  # the decay of char-rnn
    if options.optimizer == "adam":
        rule = optax.adamw(rate, weight_decay=options.weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip.get("clip", 1.0)), rule)
