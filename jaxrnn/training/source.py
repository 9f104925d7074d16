"""Sources of batches, which know whether their batches follow on from each other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_is_batch

ALL = slice(None)


@dataclass(frozen=True)
class Source:
    """Batches by their number, and whether each goes on where the one before ended.

    `source(n)` is batch n. `source(steps)`, for an array of numbers (N,), is one `Batch` whose
    leaves have N as their first axis, which serves N steps in one jitted call. A batch depends on
    its number alone, so a resumed run reads the same data.

    Attributes:
        batches: (steps (N,), rows) -> the batches of these steps, (N, B, T); `rows` is a slice of
            the B rows.
        continues: whether row b of batch n + 1 continues row b of batch n, so that the state is
            carried from batch to batch. If not, every row of every batch is a sequence of its own.
        number: how many batches there are; None if there is no end. A source with an end can be
            iterated.

    >>> import numpy as np, jaxrnn
    >>> source = jaxrnn.lm.batches.stream(np.arange(7), batch_size=2, length=3)
    >>> source(0).inputs.shape, source(np.arange(10)).inputs.shape, source.continues
    ((2, 3), (10, 2, 3), True)
    """

    batches: Callable[[Int[np.ndarray, " N"], slice], Batch]
    continues: bool
    number: int | None = None

    def __call__(self, steps: int | Int[np.ndarray, " N"], rows: slice = ALL) -> Batch:
        """Return one batch for a number, or N batches with a leading axis for N numbers."""
        batch = self.batches(np.atleast_1d(np.asarray(steps)), rows)
        return jax.tree.map(lambda leaf: leaf[0], batch) if np.ndim(steps) == 0 else batch

    def all(self) -> Batch:
        """Return all batches at once, with a leading axis N.

        Raises:
            ValueError: if the source has no end.
        """
        if self.number is None:
            raise ValueError(
                "the source has no end: call it with step numbers, source(np.arange(9))"
            )
        return self(np.arange(self.number))

    def __iter__(self) -> Iterator[Batch]:
        """Return an iterator over the batches of a source that has an end."""
        whole = self.all()
        return (jax.tree.map(lambda leaf, n=n: leaf[n], whole) for n in range(len(whole.inputs)))


def check_continues(source: Source, continues: bool | None) -> None:
    """Raise `ValueError` if a caller says something else than the source; None says nothing."""
    if continues is None or continues == source.continues:
        return
    these = "continue each other" if source.continues else "are new sequences"
    what = "carries the state from one to the next" if continues else "starts each from h = 0"
    raise ValueError(
        f"the batches of this source {these}, but continues={continues} {what}: "
        f"use continues=source.continues"
    )


def chunks(batch: Batch, length: int) -> Source:
    """Cut a batch of sequences along time into chunks that continue each other.

    Online rules learn from such chunks, with an update after each. If the number of steps does not
    divide by `length`, the last chunk is padded, and its `lengths` say so.

    Args:
        batch: sequences, inputs (B, T) or (B, T, I).
        length: the number of time steps in a chunk.

    Returns:
        A source of ⌈T / length⌉ batches, for `make_train_loop`, `evaluate` or a `for` loop.

    Raises:
        ValueError: if length is below 1.

    >>> import numpy as np, jaxrnn
    >>> batch = jaxrnn.Batch(np.ones((3, 7, 5)), np.ones((3, 7), int))
    >>> [chunk.lengths.tolist() for chunk in jaxrnn.chunks(batch, 4)]
    [[4, 4, 4], [3, 3, 3]]
    """
    check_is_batch(batch)
    checks.whole("length", length, 1)
    batch_size, steps = batch.inputs.shape[:2]
    number = -(-steps // length)
    padding = number * length - steps
    *along_time, lengths = batch
    if padding and lengths is None:
        lengths = np.full(batch_size, steps)

    def cut(leaf):
        leaf = jnp.pad(leaf, [(0, 0), (0, padding), *[(0, 0)] * (leaf.ndim - 2)])
        return leaf.reshape(batch_size, number, length, *leaf.shape[2:]).swapaxes(0, 1)

    cut_batch = Batch(*jax.tree.map(cut, along_time))
    if lengths is not None:
        left = lengths[None] - length * np.arange(number)[:, None]
        cut_batch = cut_batch._replace(lengths=left.clip(0, length))

    def batches(numbers, rows):
        return jax.tree.map(lambda leaf: leaf[numbers][:, rows], cut_batch)

    return Source(batches, continues=True, number=number)
