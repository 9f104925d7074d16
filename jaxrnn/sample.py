"""Generating sequences of ids from a network."""

from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from jaxrnn import checks
from jaxrnn.checks import AnyArray
from jaxrnn.network import RNN, Params


def sample(
    rnn: RNN,
    params: Params,
    prime: Integer[AnyArray, "B P"],
    length: int,
    *,
    key: PRNGKeyArray,
    temperature: float | Float[Array, ""] = 1.0,
    end: int | Int[Array, ""] | None = None,
) -> Int[Array, "B length"]:
    """Continue each row of ids by `length` more, each drawn from softmax(y / temperature).

    Args:
        rnn: the network; its outputs are logits over its own inputs' ids.
        params: its parameters.
        prime: what each of B sequences begins with, at least one id, (B, P); read from h = 0.
        length: the number of ids to draw: always a limit, whatever `end` is.
        key: the random key.
        temperature: 1 draws from the network's own distribution, less is more cautious, and 0 takes
            the likeliest id each time (greedy; the key is not used).
        end: the id that ends a sequence; a row that drew it goes on with nothing else.

    Returns:
        The drawn ids, without the prime, (B, length).

    Raises:
        ValueError: if the prime is empty, an id out of range, or an argument outside its range.
    """
    prime = jnp.asarray(prime)
    if prime.ndim != 2 or prime.size == 0:
        raise ValueError(
            f"prime must be ids (B, P) with at least one each, got shape {prime.shape}"
        )
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if _known(temperature) and not temperature >= 0:
        raise ValueError(f"temperature must be at least 0 (0 is greedy), got {temperature}")
    if rnn.input_size != rnn.output_size:
        raise ValueError(
            f"a network samples its own next input, so input_size={rnn.input_size} must equal "
            f"output_size={rnn.output_size}"
        )
    if end is not None and _known(end) and not 0 <= end < rnn.output_size:
        raise ValueError(f"end must be an id in 0 … {rnn.output_size - 1}, got {end}")
    prime = checks.as_inputs(params.cells[0], prime, 2)
    return _generate(rnn, length, params, prime, key, temperature, end)


def _known(value: Any) -> bool:
    """Say whether a value can be looked at, and is not that of a jitted caller's argument."""
    return not isinstance(value, jax.core.Tracer)


@partial(jax.jit, static_argnums=(0, 1))
def _generate(
    rnn: RNN,
    length: int,
    params: Params,
    prime: Int[Array, "B P"],
    key: PRNGKeyArray,
    temperature: Float[Array, ""],
    end: Int[Array, ""] | None,
) -> Int[Array, "B length"]:
    def forward(carry, key):
        logits, h, ended = carry
        # A temperature of 0 divides by nothing; its draw is not used.
        drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1.0))
        ids = jnp.where(temperature > 0, drawn, logits.argmax(-1)).astype(jnp.int32)
        if end is not None:
            ids = jnp.where(ended, end, ids)
            ended = ids == end
        outputs, h = rnn.apply(params, ids[:, None], h)
        return (outputs[:, 0], h, ended), ids

    outputs, h = rnn.apply(params, prime, rnn.initial_state(len(prime)))
    start = (outputs[:, -1], h, jnp.zeros(len(prime), bool))
    _, ids = lax.scan(forward, start, jax.random.split(key, length))
    return ids.T
