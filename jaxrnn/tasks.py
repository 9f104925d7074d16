"""Synthetic sequence tasks with known losses, which show what a network has learnt.

A task draws its batches from a random key. It also has the expected loss of a network that has
learnt a given part of the task, in nats or as a squared error.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Integer, PRNGKeyArray

from jaxrnn.network import calls, checks
from jaxrnn.network.batch import Batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.losses import LossFunction
from jaxrnn.training.source import Source


class Task(NamedTuple):
    """A sequence task: the network sizes and loss that it needs, its batches and its loss floors.

    The sequences of all batches are independent of each other and start from h = 0.

    Attributes:
        input_size: I of the network: the number of features, or of different ids.
        output_size: O of the network.
        loss: the loss function, as in `RNN`.
        draw: a pure function (batch_size, length, *, key) -> `Batch`, where each task has a default
            length. Leaves have shape (B, T) or (B, T, ·). To jit it, use `static_argnums=(0, 1)`;
            it can be vmapped over keys.
        floors: for each part of the task, by name, the lowest expected loss of a network that has
            learnt only this part. The loss is the mean over the unmasked positions, in nats or as a
            squared error. The floors are sorted from the highest to the lowest.

    >>> import jax, jaxrnn.tasks
    >>> task = jaxrnn.tasks.delayed_add()
    >>> rnn = jaxrnn.RNN(task.input_size, 32, task.output_size, loss_function=task.loss)
    >>> task.draw(3, 20, key=jax.random.key(0)).inputs.shape
    (3, 20, 2)
    >>> {name: round(loss, 4) for name, loss in task.floors.items()}
    {'nothing': 0.6616, 'first': 0.5192, 'both': 0.4545}
    """

    input_size: int
    output_size: int
    loss: str | LossFunction
    draw: Callable[..., Batch]
    floors: dict[str, float]

    def source(self, batch_size: int, length: int | None = None, *, key: PRNGKeyArray) -> Source:
        """Return an endless `Source` of batches that `draw` makes, for `make_train_loop`.

        Args:
            batch_size: the number of sequences in a batch (B).
            length: the number of time steps (T); default that of the task.
            key: a random key.

        >>> import jax, jaxrnn.tasks
        >>> source = jaxrnn.tasks.adding().source(3, 8, key=jax.random.key(0))
        >>> source(0).inputs.shape, source.continues
        ((3, 8, 2), False)
        """
        sizes = (batch_size,) if length is None else (batch_size, length)

        @jax.jit
        @jax.vmap
        def draw(step):
            return self.draw(*sizes, key=jax.random.fold_in(key, step))

        def batches(steps, rows):
            return jax.tree.map(lambda leaf: leaf[:, rows], draw(steps))

        return Source(batches, continues=False)


def soft_cross_entropy(
    outputs: Inexact[Array, "*batch O"], targets: Inexact[Array, "*batch O"]
) -> Inexact[Array, "*batch"]:
    """Compute the cross-entropy -Σ_o target_o log softmax(y)_o in nats, for soft targets.

    Args:
        outputs: y, (..., O).
        targets: probabilities, (..., O), that sum to 1.

    Returns:
        The losses, (...).

    >>> import jax.numpy as jnp, jaxrnn.tasks
    >>> outputs, targets = jnp.zeros((3, 2)), jnp.array([[1, 0], [0.5, 0.5], [0.2, 0.8]])
    >>> [round(loss, 4) for loss in jaxrnn.tasks.soft_cross_entropy(outputs, targets).tolist()]
    [0.6931, 0.6931, 0.6931]
    """
    log_softmax = outputs - jax.nn.logsumexp(outputs, axis=-1, keepdims=True)
    return -(targets * log_softmax).sum(-1)


def copy(delay: int = 10, symbols: int = 8, recall: int = 10) -> Task:
    """Make the copy task: remember a sequence of symbols, and output it after the go signal.

        inputs   s_1 … s_R   blank × (delay - 1)   go   blank × R
        targets  blank × (R + delay)                    s_1 … s_R

    Inputs and targets are ids (B, T) with T = delay + 2 R. The ids are the symbols 0 … S - 1, drawn
    uniformly, the blank S, and the go signal S + 1, which appears only in the inputs. No position
    is masked. The floors in nats are

        "timing"    R ln S / (delay + 2 R)    the network knows when to answer, but not the symbols
        "symbols"   0                         the network remembers the symbols

    See Hochreiter & Schmidhuber (1997), and Arjovsky, Shah & Bengio (2016) for the defaults with
    the floor 10 ln 8 / (delay + 20).

    Args:
        delay: number of steps from the last symbol to the go signal, at least 1.
        symbols: S, the number of different symbols, at least 2.
        recall: R, the number of symbols to remember, at least 1.

    Returns:
        The task. The `length` of its `draw` may be left out.

    Raises:
        ValueError: if an argument is out of range; in `draw`, if `length` is not T.

    >>> import jax, jaxrnn.tasks
    >>> task = jaxrnn.tasks.copy(delay=3, symbols=4, recall=2)
    >>> batch = task.draw(batch_size=1, key=jax.random.key(0))
    >>> batch.inputs.shape, batch.inputs[0, 2:].tolist()  # blank = 4, go = 5
    ((1, 7), [4, 4, 5, 4, 4])
    """
    checks.whole("delay", delay, 1, " (the go signal is a step of it)")
    checks.whole("symbols", symbols, 2, " (a single one need not be remembered)")
    checks.whole("recall", recall, 1)
    total, blank, go = delay + 2 * recall, symbols, symbols + 1

    def draw(batch_size, length=total, *, key):
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
    """Make the adding problem: output the sum of two marked numbers at the last step.

        target_T = Σ_t value_t marker_t

    Inputs (B, T, 2) are value_t, uniform on [0, 1), and marker_t. The marker is 1 at one step of
    the first ⌊T/2⌋ and at one of the remaining steps, and 0 elsewhere. Targets are (B, T, 1), and
    the mask selects the last step. The floors are squared errors:

        "nothing"   1/6     variance of the sum: the network always answers 1
        "second"    1/12    variance of one number: the network has forgotten the first
        "both"      0

    See Hochreiter & Schmidhuber (1997); the distribution of the values and the two halves are those
    of Arjovsky, Shah & Bengio (2016).

    Returns:
        The task.

    Raises:
        ValueError: in `draw`, if `length` is below 2.

    >>> import jax, jaxrnn.tasks
    >>> batch = jaxrnn.tasks.adding().draw(batch_size=3, length=8, key=jax.random.key(0))
    >>> batch.inputs.shape, batch.targets.shape, batch.mask[0].tolist()
    ((3, 8, 2), (3, 8, 1), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    """

    def draw(batch_size, length=20, *, key):
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
    """Make the add task: predict a probability that depends on coin flips at two delays.

        p_t = 0.5 + 0.5 x_{t-first} - 0.25 x_{t-second}

    The coin flips x are fair. Inputs are (x_t, 1 - x_t) and targets (p_t, 1 - p_t), both (B, T, 2);
    the loss is `soft_cross_entropy`. The coins before the first step are drawn too, so that p_t has
    the same distribution at all steps. The network does not see them, so the positions before
    max(first, second) are masked. The floors are entropies of the answer in nats, at any delays:

        "nothing"   0.6616    without any coin
        "first"     0.5192    given the coin at delay `first`
        "both"      0.4545    given both coins

    See Pitis (2016) and Marschall, Cho & Savin (2020).

    Args:
        first: the delay of the coin that raises p_t, at least 0 (the current step).
        second: the delay of the coin that lowers p_t, at least 0 and different from `first`.

    Returns:
        The task. There is an example at `Task`.

    Raises:
        ValueError: if a delay is below 0, or both are the same; in `draw`, if `length` is not above
            both, so that all positions are masked.
    """
    checks.whole("first", first, 0)
    checks.whole("second", second, 0)
    if first == second:
        raise ValueError(f"first and second must be different delays, got {first} for both")
    before = max(first, second)
    enough = max(20, 2 * before)

    def probabilities(x_first, x_second):
        return 0.5 + 0.5 * x_first - 0.25 * x_second

    def draw(batch_size, length=enough, *, key):
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

    p = probabilities(*np.mgrid[:2, :2])  # for the four equally likely (x_first, x_second)
    floors = {"nothing": entropy(p.mean()), "first": entropy(p.mean(1)), "both": entropy(p)}
    return Task(2, 2, soft_cross_entropy, draw, floors)


def text(ids: Integer[AnyArray, " N"], vocabulary_size: int) -> Task:
    """Make a language modelling task from a text: predict the next id.

    The sequences are windows of the text, drawn uniformly. Inputs and targets are ids (B, T); the
    targets are the inputs shifted by one. The floors are entropies in nats:

        "uniform"       ln V, all V ids are equally likely
        "frequencies"   the frequencies of the ids in the text are known
        "pairs"         the frequencies given the previous id are known

    The last two are computed from the N - 1 ids that follow another. This is exact for windows of
    length 1; longer windows contain the ends of the text less often. A network that remembers more
    than the current id can go below all of them (Shannon 1951).

    Args:
        ids: the text, (N,), with N of at least 2.
        vocabulary_size: V, the number of different ids.

    Returns:
        The task.

    Raises:
        ValueError: if there are fewer than two ids, or one outside 0 … V - 1; in `draw`, if the
            text is shorter than `length` + 1.

    >>> import jax, numpy as np, jaxrnn.tasks
    >>> task = jaxrnn.tasks.text(np.array([0, 1, 2, 0, 1, 2, 0, 1, 2]), vocabulary_size=3)
    >>> task.draw(batch_size=2, length=4, key=jax.random.key(0)).inputs.shape
    (2, 4)
    >>> round(task.floors["uniform"], 4), round(abs(task.floors["pairs"]), 4)  # ln 3, 0
    (1.0986, 0.0)
    """
    checks.whole("vocabulary_size", vocabulary_size, 1)
    if np.ndim(ids) != 1 or np.size(ids) < 2:
        raise ValueError(f"ids must have shape (N,), N at least 2, got shape {np.shape(ids)}")
    checks.ids("ids", jnp.asarray(ids), vocabulary_size, "vocabulary_size")
    present, following = np.asarray(ids[:-1], np.int64), np.asarray(ids[1:], np.int64)
    ids = jnp.asarray(ids, jnp.int32)

    def draw(batch_size, length=64, *, key):
        checks.whole("batch_size", batch_size, 1)
        checks.whole("length", length, 1)
        if length >= len(ids):
            raise ValueError(
                f"length must be at most {len(ids) - 1:,}, one less than the text's length, "
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


TASKS: dict[str, Callable[..., Task]] = {
    "copy": copy,
    "adding": adding,
    "delayed_add": delayed_add,
}


def build(text: str) -> Task:
    """Make a task from text, with its options in parentheses.

    Args:
        text: "adding", "copy(delay=20)" or the like: a name of `TASKS`.

    Raises:
        ValueError: if the text cannot be read, the task or an option does not exist, or an option
            is out of range.

    >>> import jaxrnn.tasks
    >>> jaxrnn.tasks.build("copy(delay=20)").floors["symbols"]
    0.0
    """
    name, options = calls.parse("task", text, TASKS, "copy(delay=20)")
    return TASKS[name](**options)


def _entropy(p: Float[np.ndarray, "*cases K"]) -> float:
    """Compute the entropy -Σ_k p_k ln p_k in nats, with 0 ln 0 = 0, averaged over the cases."""
    return float(-(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean())
