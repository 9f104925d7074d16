"""Sequence tasks with known answers: what a rule has learnt can be read off its loss.

A task draws its batches from a key alone, and says what loss is expected of a network that has
learnt a part of it, in nats or as a squared error.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Integer

from jaxrnn.network import checks
from jaxrnn.network.batch import Batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.losses import LossFunction


class Task(NamedTuple):
    """A sequence task: the network's ends that it needs, its batches, and its expected losses.

    Attributes:
        input_size: I of the network, the number of features, or of different ids.
        output_size: O of the network.
        loss: the network's loss, as in `RNN`.
        draw: (key, batch_size, length) -> `Batch` of sequences that stand alone, each to be read
            from h = 0; leaves are (B, T, ·). Pure: jit it with `static_argnums=(1, 2)`, vmap it
            over keys.
        floors: by the name of what is learnt, the least expected loss of whoever knows no more: a
            mean over the positions that count, in nats or as a squared error, worst to best.

    >>> import jax, jaxrnn.tasks
    >>> task = jaxrnn.tasks.delayed_add()
    >>> rnn = jaxrnn.RNN(task.input_size, 32, task.output_size, loss_function=task.loss)
    >>> task.draw(jax.random.key(0), batch_size=3, length=20).inputs.shape
    (3, 20, 2)
    >>> {name: round(loss, 4) for name, loss in task.floors.items()}
    {'nothing': 0.6616, 'first': 0.5192, 'both': 0.4545}
    """

    input_size: int
    output_size: int
    loss: str | LossFunction
    draw: Callable[..., Batch]
    floors: dict[str, float]


def soft_cross_entropy(
    outputs: Inexact[Array, "*batch O"], targets: Inexact[Array, "*batch O"]
) -> Inexact[Array, "*batch"]:
    """Compute -Σ_o target_o log softmax(y)_o in nats, for targets that are probabilities."""
    log_softmax = outputs - jax.nn.logsumexp(outputs, axis=-1, keepdims=True)
    return -(targets * log_softmax).sum(-1)


def copy(delay: int, symbols: int = 8, recall: int = 10) -> Task:
    """Make the copy memory task: show symbols, wait, and ask for them at the go signal.

        inputs   s_1 … s_R   blank × (delay - 1)   go   blank × R
        targets  blank × (R + delay)                    s_1 … s_R

    Inputs and targets are ids (B, T) with T = delay + 2 R: symbols 0 … S - 1, drawn uniformly, the
    blank S, and the go S + 1, which is in the inputs alone. Every position counts. The floors:
    "timing", R ln S / (delay + 2 R), is of whoever knows when to answer but not what, and
    "symbols", 0, of whoever remembers. (Hochreiter & Schmidhuber 1997; Arjovsky, Shah & Bengio
    2016, with 8 symbols of which 10 are recalled: 10 ln 8 / (delay + 20).)

    Args:
        delay: steps from the last symbol shown to the go, at least 1.
        symbols: S, at least 2.
        recall: R, the number of symbols to remember, at least 1.

    Raises:
        ValueError: if an argument is outside its range; in `draw`, if `length`, which may be left
            out, is not T.
    """
    checks.whole("delay", delay, 1, " (the go signal is a step of it)")
    checks.whole("symbols", symbols, 2, " (a single one need not be remembered)")
    checks.whole("recall", recall, 1)
    total, blank, go = delay + 2 * recall, symbols, symbols + 1

    def draw(key, batch_size, length=total):
        checks.whole("batch_size", batch_size, 1)
        if length != total:
            raise ValueError(
                f"length must be delay + 2 recall = {total}, or left out, got {length!r}"
            )
        shown = jax.random.randint(key, (batch_size, recall), 0, symbols, jnp.int32)
        blanks = jnp.full((batch_size, total), blank, jnp.int32)
        inputs = blanks.at[:, :recall].set(shown).at[:, recall + delay - 1].set(go)
        return Batch(inputs, blanks.at[:, recall + delay :].set(shown))

    floors = {"timing": recall * float(np.log(symbols)) / total, "symbols": 0.0}
    return Task(symbols + 2, symbols + 1, "softmax_cross_entropy", draw, floors)


def adding() -> Task:
    """Make the adding problem: the sum of the two marked numbers, asked for at the end.

        target_T = Σ_t value_t marker_t

    Inputs (B, T, 2) are value_t, uniform on [0, 1), and marker_t, which is 1 at one step of the
    first ⌊T/2⌋, at one of the others, and else 0. Targets are (B, T, 1), and the last step alone
    counts. The floors are variances: "nothing", 1/6, of the sum, by answering 1; "second", 1/12,
    of the one number that is not known, by forgetting the first; "both", 0. (Hochreiter &
    Schmidhuber 1997, with the numbers and halves of Arjovsky, Shah & Bengio 2016.)

    Raises:
        ValueError: in `draw`, if `length` is below 2.
    """

    def draw(key, batch_size, length):
        checks.whole("batch_size", batch_size, 1)
        checks.whole("length", length, 2, " (one marker in each half)")
        value_key, first_key, second_key = jax.random.split(key, 3)
        value = jax.random.uniform(value_key, (batch_size, length))
        first = jax.random.randint(first_key, (batch_size,), 0, length // 2)
        second = jax.random.randint(second_key, (batch_size,), length // 2, length)
        marker = jax.nn.one_hot(first, length) + jax.nn.one_hot(second, length)
        mask = jnp.zeros_like(value).at[:, -1].set(1)
        targets = mask * (value * marker).sum(-1, keepdims=True)
        return Batch(jnp.stack([value, marker], -1), targets[..., None], mask)

    return Task(2, 1, "squared_error", draw, {"nothing": 1 / 6, "second": 1 / 12, "both": 0.0})


def delayed_add(first: int = 5, second: int = 9) -> Task:
    """Make the add task: the odds of the answer follow a coin at each of two delays.

        p_t = 0.5 + 0.5 x_{t-first} - 0.25 x_{t-second}

    The coins x are fair, the inputs (x_t, 1 - x_t), and the targets the probabilities (p_t,
    1 - p_t), all (B, T, 2), for `soft_cross_entropy`. The coins before the first step are drawn
    too, so p_t has one distribution throughout; but a network never saw them, so the positions
    before max(first, second) do not count. The floors are entropies of p given what is known:
    "nothing" 0.6616, the coin at "first" 0.5192, "both" 0.4545, at any delays. (Pitis 2016;
    Marschall, Cho & Savin 2020.)

    Args:
        first: the delay of the coin that makes a 1 likelier, at least 0, the present step.
        second: the delay of the one that makes it less likely, at least 0, another than `first`.

    Raises:
        ValueError: if a delay is below 0, or both are the same; in `draw`, if `length` is not above
            both, so that no position counts.
    """
    checks.whole("first", first, 0)
    checks.whole("second", second, 0)
    if first == second:
        raise ValueError(f"first and second must be different delays, got {first} for both")
    before = max(first, second)

    def probabilities(x_first, x_second):
        return 0.5 + 0.5 * x_first - 0.25 * x_second

    def draw(key, batch_size, length):
        checks.whole("batch_size", batch_size, 1)
        checks.whole("length", length, before + 1, " (above both delays)")
        x = jax.random.bernoulli(key, shape=(batch_size, before + length)).astype(float)
        p = probabilities(
            x[:, before - first : before - first + length],
            x[:, before - second : before - second + length],
        )
        mask = jnp.ones_like(p).at[:, :before].set(0)
        seen = x[:, before:]
        return Batch(jnp.stack([seen, 1 - seen], -1), jnp.stack([p, 1 - p], -1), mask)

    def entropy(p):
        return _entropy(np.stack([p, 1 - p], -1))

    p = probabilities(*np.mgrid[:2, :2])  # by x_first and x_second, the four equally likely
    floors = {"nothing": entropy(p.mean()), "first": entropy(p.mean(1)), "both": entropy(p)}
    return Task(2, 2, soft_cross_entropy, draw, floors)


def text(ids: Integer[AnyArray, " N"], vocabulary_size: int) -> Task:
    """Make a task of a text: predict the next id, in windows drawn uniformly from all there are.

    Inputs and targets are ids (B, T), the targets the inputs moved by one. The floors are
    entropies: "uniform", ln V, of the V ids; "frequencies", of the text's ids; "pairs", of an id
    given the one before it. The last two count the N - 1 ids that follow another, as draws of
    length 1 do; longer ones take the text's ends more rarely. A network that remembers more than
    the present id goes below them all (Shannon 1951).

    Args:
        ids: the text, at least two ids.
        vocabulary_size: V, the number of different ids that there may be.

    Raises:
        ValueError: if there are fewer than two ids, or one outside 0 … V - 1; in `draw`, if the
            text has no window of `length` + 1 ids.
    """
    checks.whole("vocabulary_size", vocabulary_size, 1)
    if np.ndim(ids) != 1 or np.size(ids) < 2:
        raise ValueError(f"ids must be one text of at least 2, (N,), got shape {np.shape(ids)}")
    checks.ids("ids", jnp.asarray(ids), vocabulary_size, "vocabulary_size")
    present, following = np.asarray(ids[:-1], np.int64), np.asarray(ids[1:], np.int64)
    ids = jnp.asarray(ids, jnp.int32)

    def draw(key, batch_size, length):
        checks.whole("batch_size", batch_size, 1)
        checks.whole("length", length, 1)
        if length >= len(ids):
            raise ValueError(
                f"length must be at most {len(ids) - 1:,}, one less than the text's ids, "
                f"got {length:,}"
            )
        starts = jax.random.randint(key, (batch_size, 1), 0, len(ids) - length)
        windows = ids[starts + jnp.arange(length + 1)]
        return Batch(windows[:, :-1], windows[:, 1:])

    def entropy(symbols):
        _, counts = np.unique(symbols, return_counts=True)
        return _entropy(counts / counts.sum())

    floors = {
        "uniform": float(np.log(vocabulary_size)),
        "frequencies": entropy(following),
        "pairs": entropy(present * vocabulary_size + following) - entropy(present),
    }
    return Task(vocabulary_size, vocabulary_size, "softmax_cross_entropy", draw, floors)


def _entropy(p: Float[np.ndarray, "*cases K"]) -> float:
    """Compute -Σ_k p_k ln p_k in nats, where 0 ln 0 = 0, as a mean over the cases."""
    return float(-(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean())
