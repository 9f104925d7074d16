"""Generating sequences of ids from a network: drawn, or the likeliest.

    p(id_t | ids before t) = softmax(y_{t-1} / temperature)
                           = softmax((y_{t-1} - max y_{t-1}) / temperature)

The second form is what is computed, and in float32 at least whatever the network's precision: a
division by a small temperature then overflows for no id that could be drawn.

A draw may be among fewer ids: the k likeliest (Fan et al. 2018), or the nucleus, the smallest set
of likeliest ids whose probability reaches p (Holtzman et al. 2020). The likeliest sequence is found
by beam search (Lowerre 1976).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray

from jaxrnn.network import checks
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.layer import wide
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params

_LEAST = float(jnp.finfo(jnp.float32).tiny)


class _Choice(NamedTuple):
    """How an id is chosen: as in `sample`, but for `end`, which is -1 where there is none."""

    temperature: float | Float[Array, ""]
    top_k: int | None
    top_p: float | Float[Array, ""] | None
    end: int | Int[Array, ""]


class _State(NamedTuple):
    """Where B sequences stand: all that the next id depends on, beside the key.

    Attributes:
        logits: the network's outputs after the last id.
        h: its state there.
        ended: whether a row has drawn its end.
        position: how many ids have been drawn.
    """

    logits: Float[Array, "B V"]
    h: Float[Array, "L B H"]
    ended: Bool[Array, " B"]
    position: Int[Array, ""]


def sample(
    rnn: RNN,
    params: Params,
    prime: Integer[AnyArray, "B P"],
    length: int,
    *,
    key: PRNGKeyArray,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    end: int | Int[Array, ""] | None = None,
) -> Int[Array, "B length"]:
    """Continue each row of ids by `length` more, each drawn from softmax(y / temperature).

    First the temperature, then `top_k`, then `top_p`, each on what the one before it left.

    Args:
        rnn: the network; its outputs are logits over its own inputs' ids.
        params: its parameters.
        prime: what each of B sequences begins with, at least one id, (B, P); read from h = 0.
        length: the number of ids to draw: always a limit, whatever `end` is.
        key: the random key; the t-th ids are drawn with `jax.random.fold_in(key, t)`.
        temperature: 1 draws from the network's own distribution, less is more cautious, and 0 takes
            the likeliest id each time (greedy; the key is not used). Below 1.2e-38, the smallest
            normal float32, it counts as that.
        top_k: draw among the k likeliest ids only; of equally likely ones, the smaller ids.
        top_p: in (0, 1]: draw among the fewest likeliest ids whose probability reaches p only.
        end: the id that ends a sequence; a row that drew it goes on with nothing else.

    Returns:
        The drawn ids, without the prime, (B, length).

    Raises:
        ValueError: if the prime is empty, an id out of range, or an argument outside its range.
    """
    prime, choice = _check(rnn, params, prime, length, temperature, top_k, top_p, end)
    return _draw(rnn, length, params, _read(rnn, params, prime), key, choice)[1]


def stream(
    rnn: RNN,
    params: Params,
    prime: Integer[AnyArray, "B P"],
    *,
    key: PRNGKeyArray,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    end: int | Int[Array, ""] | None = None,
    piece: int = 16,
) -> Iterator[Int[np.ndarray, "B piece"]]:
    """Continue each row of ids without a limit, `piece` more whenever they are asked for.

    The pieces, one after another, are what `sample` draws with the same key.

    Args:
        rnn: as in `sample`, and so are params, prime, key, temperature, top_k and top_p.
        params: the network's parameters.
        prime: what each of B sequences begins with, (B, P).
        key: the random key.
        temperature: 0 is greedy.
        top_k: draw among the k likeliest ids only.
        top_p: draw among the fewest likeliest ids whose probability reaches p only.
        end: the id that ends a sequence; the piece in which the last row ends is the last. None
            goes on for ever.
        piece: the number of ids in a piece.

    Returns:
        An iterator over pieces of ids, (B, piece).

    Raises:
        ValueError: as `sample` does, and at the call.
    """
    checks.whole("piece", piece, 1)
    prime, choice = _check(rnn, params, prime, piece, temperature, top_k, top_p, end)

    def pieces(state):
        while not np.all(state.ended):
            state, ids = _draw(rnn, piece, params, state, key, choice)
            yield np.asarray(ids)

    return pieces(_read(rnn, params, prime))


def beam_search(
    rnn: RNN,
    params: Params,
    prime: Integer[AnyArray, " P"],
    length: int,
    *,
    beams: int = 8,
    end: int | Int[Array, ""] | None = None,
) -> tuple[Int[Array, " length"], Float[Array, ""]]:
    """Find the likeliest continuation of one sequence by beam search; O(length beams (H² + H V)).

    At each step every beam goes on with every id, and the likeliest `beams` of all these remain
    (Lowerre 1976). One beam is greedy; from V^(length - 1) beams on the search is exhaustive.

    Args:
        rnn: the network; its outputs are logits over its own inputs' V ids.
        params: its parameters.
        prime: what the sequence begins with, at least one id, (P,); read from h = 0.
        length: the number of ids to find.
        beams: how many sequences are kept at each step.
        end: the id that ends a sequence, whose log-probability is then complete; it is filled up
            with ends. Nothing makes up for length, so that short sequences are at an advantage.

    Returns:
        The ids, without the prime, (length,), and their log-probability, log p(ids | prime), in
        nats and in float32 at least.

    Raises:
        ValueError: as `sample` does.
    """
    prime = jnp.asarray(prime)
    if prime.ndim != 1 or prime.size == 0:
        raise ValueError(f"prime must be ids (P,), at least one, got shape {prime.shape}")
    checks.whole("beams", beams, 1)
    prime, choice = _check(rnn, params, prime[None], length, end=end)
    return _search(rnn, length, beams, params, _read(rnn, params, prime), choice.end)


def _check(
    rnn: RNN,
    params: Params,
    prime: AnyArray,
    length: int,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    end: int | Int[Array, ""] | None = None,
) -> tuple[Int[Array, "B P"], _Choice]:
    """Return the prime as ids (B, P), and how to choose those that follow."""
    prime = jnp.asarray(prime)
    if prime.ndim != 2 or prime.size == 0:
        raise ValueError(
            f"prime must be ids (B, P) with at least one each, got shape {prime.shape}"
        )
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if _known(temperature):
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0 (0 is greedy), got {temperature}")
        if 0 < temperature < _LEAST:  # devices take such numbers for 0
            temperature = _LEAST
    if top_k is not None:
        checks.whole("top_k", top_k, 1)
        top_k = min(top_k, rnn.output_size)
    if top_p is not None and _known(top_p) and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1 (1 keeps every id), got {top_p}")
    if rnn.input_size != rnn.output_size:
        raise ValueError(
            f"a network samples its own next input, so input_size={rnn.input_size} must equal "
            f"output_size={rnn.output_size}"
        )
    if end is not None:
        whole = jnp.issubdtype(jnp.result_type(end), jnp.integer)
        if not whole or (_known(end) and not 0 <= end < rnn.output_size):
            raise ValueError(f"end must be an id in 0 … {rnn.output_size - 1}, got {end}")
    prime = checks.as_inputs(params.cells[0], prime, 2)
    return prime, _Choice(temperature, top_k, top_p, -1 if end is None else end)


def _known(value: Any) -> bool:
    """Say whether a value can be looked at, and is not that of a jitted caller's argument."""
    return not isinstance(value, jax.core.Tracer)


@partial(jax.jit, static_argnums=0)
def _read(rnn: RNN, params: Params, prime: Int[Array, "B P"]) -> _State:
    """Read the prime from h = 0."""
    B = len(prime)
    outputs, h = rnn.apply(params, prime, rnn.initial_state(B))
    return _State(outputs[:, -1], h, jnp.zeros(B, bool), jnp.zeros((), jnp.int32))


@partial(jax.jit, static_argnums=(0, 1))
def _draw(
    rnn: RNN, length: int, params: Params, state: _State, key: PRNGKeyArray, choice: _Choice
) -> tuple[_State, Int[Array, "B length"]]:
    """Draw the next `length` ids of each row."""
    temperature, top_k, top_p, end = choice

    def forward(state, _):
        logits, h, ended, position = state
        below = _wide(logits)
        below -= below.max(-1, keepdims=True)
        # A temperature of 0 divides by nothing; its draw is not used.
        kept = _truncate(below / jnp.where(temperature > 0, temperature, 1.0), top_k, top_p)
        drawn = jax.random.categorical(jax.random.fold_in(key, position), kept)
        ids = jnp.where(temperature > 0, drawn, logits.argmax(-1))
        ids = jnp.where(ended, end, ids).astype(jnp.int32)
        outputs, h = rnn.apply(params, ids[:, None], h)
        return _State(outputs[:, 0], h, ids == end, position + 1), ids

    state, ids = lax.scan(forward, state, length=length)
    return state, ids.T


def _wide(logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """Convert float16 and bfloat16 to float32, in which probabilities can be added and compared."""
    return logits.astype(wide(logits.dtype))


def _truncate(
    logits: Float[Array, "B V"],
    top_k: int | Int[Array, ""] | None,
    top_p: float | Float[Array, ""] | None,
) -> Float[Array, "B V"]:
    """Return the logits of the likeliest ids, and -inf for the others."""
    if top_k is None and top_p is None:
        return logits
    V = logits.shape[-1]
    ranked, order = lax.top_k(logits, V)
    if top_k is not None:
        ranked = jnp.where(jnp.arange(V) < top_k, ranked, -jnp.inf)
    if top_p is not None:
        p = jax.nn.softmax(ranked)
        likelier = p.cumsum(-1) - p  # the probability of those before: 0 for the likeliest
        # Rounding may let that reach 1 before the last id, and top_p be 0 for the likeliest.
        kept = (likelier < top_p) | (top_p == 1) | (jnp.arange(V) == 0)[None]
        ranked = jnp.where(kept, ranked, -jnp.inf)
    return jnp.take_along_axis(ranked, order.argsort(-1), -1)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _search(
    rnn: RNN, length: int, beams: int, params: Params, state: _State, end: int | Int[Array, ""]
) -> tuple[Int[Array, " length"], Float[Array, ""]]:
    """Search forward with all beams, then follow the likeliest back through its parents."""
    ids_after = jnp.arange(rnn.output_size)

    def forward(carry, _):
        logits, h, score, ended = carry
        scores = score[:, None] + jax.nn.log_softmax(_wide(logits))
        stays = jnp.where(ids_after == end, score[:, None], -jnp.inf)  # an end follows for certain
        score, best = lax.top_k(jnp.where(ended[:, None], stays, scores).ravel(), beams)
        parent, ids = jnp.divmod(best, rnn.output_size)
        outputs, h = rnn.apply(params, ids[:, None], h[:, parent])
        return (outputs[:, 0], h, score, ids == end), (parent, ids)

    def backward(beam, step):
        parent, ids = step
        return parent[beam], ids[beam]

    logits, h = jnp.repeat(state.logits, beams, 0), jnp.repeat(state.h, beams, 1)
    # There is one sequence at first.
    score = jnp.full(beams, -jnp.inf, _wide(logits).dtype).at[0].set(0)
    start = (logits, h, score, jnp.zeros(beams, bool))
    (_, _, score, _), steps = lax.scan(forward, start, length=length)
    likeliest = jnp.int32(0)  # top_k sorts
    _, ids = lax.scan(backward, likeliest, steps, reverse=True)
    return ids, score[0]
