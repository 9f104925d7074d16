"""Ids to batches. A source of batches is a function of the step's number, and of nothing else.

So whoever knows the step knows the data, and a run that goes on needs no other bookmark. Given an
array of steps (N,), a source answers with one `Batch` whose leaves begin with N, ready for
many steps in one jit.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Int

from jaxrnn.network import Batch
from jaxrnn.text import Vocabulary

Source = Callable[[Int[np.ndarray, " N"]], Batch]


def stream(ids: Int[np.ndarray, " N"], batch_size: int, length: int) -> Source:
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
            f"the text has {len(ids):,} characters to train on, fewer than the {need:,} of one "
            f"batch ({batch_size} rows of {length}, and one more): use a smaller batch size "
            f"or length, or more text"
        )
    ids = np.asarray(ids)
    transitions = len(ids) - 1
    starts = np.arange(batch_size) * transitions // batch_size

    def batches(steps):
        ahead = np.asarray(steps, np.int64)[:, None, None] * length + np.arange(length)
        positions = (starts[:, None] + ahead) % transitions
        return Batch(ids[positions], ids[positions + 1])

    return batches


def whole_text(ids: Int[np.ndarray, " M"], batch_size: int, length: int) -> Batch:
    """Lay a whole text out for evaluation: every transition once, the tail padded and masked.

    The text is cut into `batch_size` contiguous rows, each to be read from h = 0. Leaves are
    (N, B, T), chunk after chunk.
    """
    _check_sizes(batch_size, length)
    if len(ids) < 2:
        raise ValueError(f"a text to evaluate needs at least 2 characters, got {len(ids)}")
    transitions = len(ids) - 1
    batch_size = min(batch_size, transitions)
    row = -(-transitions // batch_size)
    chunks = -(-row // length)

    def lay_out(flat):
        rows = np.pad(flat, (0, batch_size * row - transitions)).reshape(batch_size, row)
        padded = np.pad(rows, ((0, 0), (0, chunks * length - row)))
        return padded.reshape(batch_size, chunks, length).swapaxes(0, 1)

    mask = np.ones(transitions, np.float32)
    return Batch(lay_out(ids[:-1]), lay_out(ids[1:]), lay_out(mask))


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


def grouped(rows: Batch, batch_size: int) -> Batch:
    """Group rows for evaluation, every one once: (N, B, T), the last filled up with masked rows."""
    _check_sizes(batch_size)
    missing = -len(rows.inputs) % batch_size
    mask = np.ones(np.shape(rows.inputs)[:2], np.float32) if rows.mask is None else rows.mask

    def group(leaf):
        padded = np.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, batch_size, *leaf.shape[1:])

    return jax.tree.map(group, rows._replace(mask=mask))


def shuffled(rows: Batch, batch_size: int, seed: int) -> Source:
    """Draw batches of rows without replacement, in a new order for each pass over them."""
    count = len(rows.inputs)
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must lie in 1 … {count}, the number of lines; {batch_size=}")

    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(count)

    def batches(steps):
        places = np.asarray(steps, np.int64)[:, None] * batch_size + np.arange(batch_size)
        epochs = places // count
        orders = {epoch: order(epoch) for epoch in np.unique(epochs).tolist()}
        picked = [orders[e][i] for e, i in zip(epochs.flat, (places % count).flat, strict=True)]
        picked = np.reshape(picked, places.shape)
        return jax.tree.map(lambda leaf: leaf[picked], rows)

    return batches


def _check_sizes(batch_size: int, length: int = 1) -> None:
    for name, size in {"batch_size": batch_size, "length": length}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
