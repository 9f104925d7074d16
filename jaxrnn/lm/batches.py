"""Ids to batches. A source of batches is a function of the step's number, and of nothing else.

So whoever knows the step knows the data, and a run that goes on needs no other bookmark. Given an
array of steps (N,), a source answers with one `Batch` whose leaves begin with N, ready for
many steps in one jit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Integer

from jaxrnn.lm.corpus import Ids
from jaxrnn.lm.vocabulary import Vocabulary
from jaxrnn.network.batch import Batch

ALL = slice(None)
# (steps, rows=ALL) -> the batches of these steps; with a slice, of these rows of them alone.
Source = Callable[..., Batch]


class EvalSet(NamedTuple):
    """What is evaluated on: `number` batches, and what lies beyond them is masked.

    Attributes:
        batches: numbers of batches to batches.
        number: how many there are.
        stateful: whether a batch goes on where the one before it stopped; if not, rows stand alone.
    """

    batches: Callable[[Int[np.ndarray, " N"]], Batch]
    number: int
    stateful: bool


class Lines(NamedTuple):
    """Rows that stand alone, in a text's ids: each from its start to its end, both included."""

    ids: Ids
    starts: Int[np.ndarray, " R"]
    ends: Int[np.ndarray, " R"]

    @property
    def longest(self) -> int:
        """The most steps that a row takes."""
        return int((self.ends - self.starts).max())


def stream(ids: Ids, batch_size: int, length: int) -> Source:
    """Read one long text in `batch_size` rows at once, each going on where it stopped.

    Row b starts at the b-th of B equal parts of the text and reads `length` ids a step, through
    the parts of the rows after it and, at the end of the text, on from its start. `Carry` passes
    from step to step. Inputs and targets are (N, B, T).

    Raises:
        ValueError: if the text is shorter than one batch.
    """
    _check_sizes(batch_size, length)
    need = batch_size * length + 1
    if len(ids) < need:
        raise ValueError(
            f"the text has {len(ids):,} symbols to train on, fewer than the {need:,} of one "
            f"batch ({batch_size} rows of {length}, and one more): use a smaller batch size "
            f"or length, or more text"
        )
    transitions = len(ids) - 1
    starts = np.arange(batch_size) * transitions // batch_size

    def batches(steps, rows=ALL):
        ahead = np.asarray(steps, np.int64)[:, None, None] * length + np.arange(length)
        positions = (starts[rows, None] + ahead) % transitions
        return _next_of(ids, positions)

    return batches


def passage(ids: Ids, batch_size: int, length: int) -> EvalSet:
    """Lay a whole text out for evaluation: every transition once, the tail padded and masked.

    The text is cut into `batch_size` contiguous rows, each read from h = 0: with one row the state
    is carried through the whole of it. Leaves are (N, B, T), chunk after chunk.
    """
    _check_sizes(batch_size, length)
    if len(ids) < 2:
        raise ValueError(f"a text to evaluate needs at least 2 symbols, got {len(ids)}")
    transitions = len(ids) - 1
    batch_size = min(batch_size, transitions)
    row = -(-transitions // batch_size)

    def batches(chunks):
        along = np.asarray(chunks, np.int64)[:, None, None] * length + np.arange(length)
        positions = np.arange(batch_size)[:, None] * row + along
        counted = (along < row) & (positions < transitions)
        return _next_of(ids, np.where(counted, positions, 0), counted)

    return EvalSet(batches, -(-row // length), stateful=True)


def whole_text(ids: Ids, batch_size: int, length: int) -> Batch:
    """Return all of a `passage` at once."""
    whole = passage(ids, batch_size, length)
    return whole.batches(np.arange(whole.number))


def find_lines(ids: Ids, ends: tuple[int, int]) -> Lines:
    """Find the rows of a text: from each `ends[0]` to the next `ends[1]`, with something between.

    The two may be the same id, which then ends one row and starts the next.
    """
    places = ([], [])
    before = 0
    for part in parts(ids):
        for found, end in zip(places, ends, strict=True):
            found.append(before + np.flatnonzero(part == end))
        before += len(part)
    starts, stops = (np.concatenate([np.zeros(0, np.int64), *found]) for found in places)
    if ends[0] == ends[1]:
        starts, stops = starts[:-1], stops[1:]
    filled = stops - starts > 1
    return Lines(ids, starts[filled], stops[filled])


def pad_lines(
    vocabulary: Vocabulary, lines: Sequence[str], *, end: str = "\n", start: str = ""
) -> Batch:
    """Make one row of each line: padded to the longest, masked, to be read from h = 0.

    The inputs are `start + line` and the targets the same moved by one, with `end` after the last
    character. Without a `start` a line's first character is given, not predicted.

    Raises:
        ValueError: if there is no line, or one has nothing to read.
    """
    if not lines:
        raise ValueError("there is no line to train on")
    encoded = [vocabulary.encode(start + line + end) for line in lines]
    shortest = min(range(len(lines)), key=lambda i: len(encoded[i]))
    if len(encoded[shortest]) < 2:
        raise ValueError(f"line {shortest + 1} is empty: leave it out, or give a start character")
    length = max(map(len, encoded)) - 1
    ids = np.zeros((len(lines), length + 1), np.int32)
    mask = np.zeros((len(lines), length), np.float32)
    for row, line in enumerate(encoded):
        ids[row, : len(line)] = line
        mask[row, : len(line) - 1] = 1
    return Batch(ids[:, :-1], ids[:, 1:], mask)


def rows_passage(rows: Batch | Lines, batch_size: int, length: int | None = None) -> EvalSet:
    """Group rows for evaluation, every one once, the last batch filled up with masked rows."""
    _check_sizes(batch_size)
    count, take = _rows(rows, length)

    def batches(groups):
        places = np.asarray(groups, np.int64)[:, None] * batch_size + np.arange(batch_size)
        batch, there = take(np.minimum(places, count - 1)), (places < count)[..., None]
        ones = np.ones(batch.targets.shape[:3], np.float32)
        return batch._replace(mask=(ones if batch.mask is None else batch.mask) * there)

    return EvalSet(batches, -(-count // batch_size), stateful=False)


def grouped(rows: Batch, batch_size: int) -> Batch:
    """Return all of a `rows_passage` at once: (N, B, T)."""
    whole = rows_passage(rows, batch_size)
    return whole.batches(np.arange(whole.number))


def shuffled(rows: Batch | Lines, batch_size: int, seed: int, length: int | None = None) -> Source:
    """Draw batches of rows without replacement, in a new order for each pass over them.

    Lines are padded to `length` and masked, and what is longer is read as far as that.
    """
    count, take = _rows(rows, length)
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must lie in 1 … {count}, the number of lines; {batch_size=}")

    @lru_cache(2)
    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(count)

    def batches(steps, rows=ALL):
        places = np.asarray(steps, np.int64)[:, None] * batch_size + np.arange(batch_size)[rows]
        epochs = places // count
        picked = np.zeros_like(places)
        for epoch in np.unique(epochs).tolist():
            picked = np.where(epochs == epoch, order(epoch)[places % count], picked)
        return take(picked)

    return batches


def parts(ids: Ids) -> Iterator[Integer[np.ndarray, " M"]]:
    """Go through a text's ids, a part of them in memory at a time."""
    for first in range(0, len(ids), _PART):
        yield ids[first : first + _PART]


_PART = 2**22


def _rows(
    rows: Batch | Lines, length: int | None
) -> tuple[int, Callable[[Int[np.ndarray, "*N"]], Batch]]:
    """Return how many rows there are, and a function that takes some of them."""
    if isinstance(rows, Batch):
        return len(rows.inputs), lambda picked: jax.tree.map(lambda leaf: leaf[picked], rows)
    steps = np.arange(rows.longest if length is None else length)

    def take(picked):
        starts, ends = rows.starts[picked][..., None], rows.ends[picked][..., None]
        counted = starts + steps < ends
        return _next_of(rows.ids, np.where(counted, starts + steps, starts), counted)

    return len(rows.starts), take


def _next_of(ids: Ids, positions: np.ndarray, counted: np.ndarray | None = None) -> Batch:
    """Make a batch of the ids at some places, and those that follow them."""
    mask = None if counted is None else counted.astype(np.float32)
    return Batch(ids[positions].astype(np.int32), ids[positions + 1].astype(np.int32), mask)


def _check_sizes(batch_size: int, length: int = 1) -> None:
    for name, size in {"batch_size": batch_size, "length": length}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
