"""Batches for training and evaluation, made from ids.

Each function here returns a `jaxrnn.Source`, which knows whether its batches follow on from each
other. An evaluation set is a source with an end; its positions after the end are masked.
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
from jaxrnn.training.source import Source


class Lines(NamedTuple):
    """Independent rows in the ids of a text: row r is ids[starts[r] : ends[r] + 1]."""

    ids: Ids
    starts: Int[np.ndarray, " R"]
    ends: Int[np.ndarray, " R"]

    @property
    def longest(self) -> int:
        """The number of time steps in the longest row."""
        return int((self.ends - self.starts).max())


def stream(ids: Ids, batch_size: int, length: int) -> Source:
    """Return a source of batches from one continuous text.

    The text is divided into B equal parts. Row b starts at the b-th part and advances by T ids in
    each step; it continues through the parts after it and, from the end of the text, at its start.
    The hidden state is carried from step to step.

    Args:
        ids: the ids of the text, (N,).
        batch_size: the number of rows (B).
        length: the number of time steps in a batch (T).

    Returns:
        A source of batches; inputs and targets are (N, B, T) for N steps.

    Raises:
        ValueError: if the text is shorter than one batch.

    >>> source = stream(np.arange(7), batch_size=2, length=3)
    >>> source(0).inputs
    array([[0, 1, 2],
           [3, 4, 5]], dtype=int32)
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

    def batches(steps, rows):
        ahead = np.asarray(steps, np.int64)[:, None, None] * length + np.arange(length)
        positions = (starts[rows, None] + ahead) % transitions
        return _transitions(ids, positions)

    return Source(batches, continues=True)


def eval_set(ids: Ids, batch_size: int, length: int) -> Source:
    """Return the evaluation set of a whole text: each transition once, with padding masked.

    The text is cut into B contiguous rows, each read from h = 0. With one row the hidden state is
    carried through the whole text.

    Args:
        ids: the ids of the text, (N,).
        batch_size: the number of rows (B).
        length: the number of time steps in a batch (T).

    Returns:
        The evaluation set, whose batches are consecutive chunks (B, T) of the rows.

    Raises:
        ValueError: if the text has fewer than 2 symbols.
    """
    _check_sizes(batch_size, length)
    if len(ids) < 2:
        raise ValueError(f"a text to evaluate needs at least 2 symbols, got {len(ids)}")
    transitions = len(ids) - 1
    batch_size = min(batch_size, transitions)
    row = -(-transitions // batch_size)

    def batches(chunks, rows):
        along = np.asarray(chunks, np.int64)[:, None, None] * length + np.arange(length)
        positions = np.arange(batch_size)[rows, None] * row + along
        counted = (along < row) & (positions < transitions)
        return _transitions(ids, np.where(counted, positions, 0), counted)

    return Source(batches, continues=True, number=-(-row // length))


def find_lines(ids: Ids, ends: tuple[int, int]) -> Lines:
    """Return the lines of a text that are not empty.

    Args:
        ids: the ids of the text, (N,).
        ends: the ids that start and end a line. If they are the same id, it ends one line and
            starts the next.
    """
    positions = ([], [])
    offset = 0
    for part in parts(ids):
        for positions_of_end, end in zip(positions, ends, strict=True):
            positions_of_end.append(offset + np.flatnonzero(part == end))
        offset += len(part)
    starts, stops = (np.concatenate([np.zeros(0, np.int64), *each]) for each in positions)
    if ends[0] == ends[1]:
        starts, stops = starts[:-1], stops[1:]
    not_empty = stops - starts > 1
    return Lines(ids, starts[not_empty], stops[not_empty])


def pad_lines(
    vocabulary: Vocabulary, lines: Sequence[str], *, end: str = "\n", start: str = ""
) -> Batch:
    """Return a batch with one row for each line, padded to the longest line and masked.

    The inputs of a row are `start + line`; its targets are the same shifted by one, with `end`
    after the last character. Without a `start`, the first character of a line is not predicted.
    Each row is meant to be read from h = 0.

    Args:
        vocabulary: the vocabulary.
        lines: the lines (B).
        end: the text after each line.
        start: the text before each line.

    Returns:
        A batch with inputs, targets and mask (B, T).

    Raises:
        ValueError: if there are no lines, or a line is too short to have a transition.

    >>> vocabulary = Vocabulary.from_text("or not" + chr(10))
    >>> pad_lines(vocabulary, ["or", "not"]).mask
    array([[1., 1., 0.],
           [1., 1., 1.]], dtype=float32)
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


def eval_set_of_rows(rows: Batch | Lines, batch_size: int, length: int | None = None) -> Source:
    """Return the evaluation set of independent rows, each used once.

    The last batch is filled with masked rows.

    Args:
        rows: the rows, as a batch (R, T) or as lines of a text.
        batch_size: the number of rows in a batch (B).
        length: the number of time steps (T) to which lines are padded or cut; default the longest.
    """
    _check_sizes(batch_size)
    count, take = _rows(rows, length)

    def batches(groups, columns):
        in_batch = np.arange(batch_size)[columns]
        indices = np.asarray(groups, np.int64)[:, None] * batch_size + in_batch
        batch, exists = take(np.minimum(indices, count - 1)), (indices < count)[..., None]
        ones = np.ones(batch.targets.shape[:3], np.float32)
        return batch._replace(mask=(ones if batch.mask is None else batch.mask) * exists)

    return Source(batches, continues=False, number=-(-count // batch_size))


def shuffled(rows: Batch | Lines, batch_size: int, seed: int, length: int | None = None) -> Source:
    """Return a source that draws rows without replacement, in a new order for each epoch.

    Args:
        rows: the rows, as a batch (R, T) or as lines of a text.
        batch_size: the number of rows in a batch (B).
        seed: the random seed of the order.
        length: the number of time steps (T) to which lines are padded or cut; default the longest.

    Returns:
        A source of batches, (N, B, T) for N steps.

    Raises:
        ValueError: if `batch_size` is below 1 or above the number of rows.
    """
    count, take = _rows(rows, length)
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must lie in 1 … {count}, the number of lines; {batch_size=}")

    @lru_cache(2)
    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(count)

    def batches(steps, columns):
        draws = np.asarray(steps, np.int64)[:, None] * batch_size + np.arange(batch_size)[columns]
        epochs = draws // count
        indices = np.zeros_like(draws)
        for epoch in np.unique(epochs).tolist():
            indices = np.where(epochs == epoch, order(epoch)[draws % count], indices)
        return take(indices)

    return Source(batches, continues=False)


def parts(ids: Ids) -> Iterator[Integer[np.ndarray, " M"]]:
    """Return an iterator over consecutive parts of the ids, one part in memory at a time."""
    for first in range(0, len(ids), _PART):
        yield ids[first : first + _PART]


_PART = 2**22


def _rows(
    rows: Batch | Lines, length: int | None
) -> tuple[int, Callable[[Int[np.ndarray, "*N"]], Batch]]:
    """Return the number of rows, and a function from indices of rows to a batch of these rows."""
    if isinstance(rows, Batch):
        return len(rows.inputs), lambda indices: jax.tree.map(lambda leaf: leaf[indices], rows)
    steps = np.arange(rows.longest if length is None else length)

    def take(indices):
        starts, ends = rows.starts[indices][..., None], rows.ends[indices][..., None]
        counted = starts + steps < ends
        return _transitions(rows.ids, np.where(counted, starts + steps, starts), counted)

    return len(rows.starts), take


def _transitions(ids: Ids, positions: np.ndarray, counted: np.ndarray | None = None) -> Batch:
    """Return a batch with the ids at these positions as inputs and the next ids as targets."""
    mask = None if counted is None else counted.astype(np.float32)
    return Batch(ids[positions].astype(np.int32), ids[positions + 1].astype(np.int32), mask)


def _check_sizes(batch_size: int, length: int = 1) -> None:
    for name, size in {"batch_size": batch_size, "length": length}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
