"""A batch of sequences, and the weight of each position in the loss."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int, Integer

from jaxrnn.network import checks, layer
from jaxrnn.network.layer import Tree


class Batch(NamedTuple):
    """Input sequences and their targets.

    The leaves are JAX or NumPy arrays. N batches, for N steps of training, are one `Batch` whose
    leaves have a leading axis N.

    Attributes:
        inputs: token ids (B, T) as integers, or features (B, T, I) as floats.
        targets: ids (B, T) for `softmax_cross_entropy`, values (B, T, O) for `squared_error`.
        mask: the weight of each position in the loss, (B, T), at least 0; None is a weight of 1
            everywhere. At a position of weight 0 the target is ignored, whatever its value. The
            input at this position still changes the state.
        lengths: the number of steps of each row, (B,), from 0 to T; None is T for every row. Inputs
            and targets after the length of a row are ignored. The state of the row does not change
            after its last step, so the next chunk of the row continues from that state.

    >>> import numpy as np, jaxrnn
    >>> batch = jaxrnn.Batch(np.ones((3, 6, 5)), np.ones((3, 6), int), lengths=np.array([6, 4, 0]))
    >>> batch.inputs.shape
    (3, 6, 5)
    """

    inputs: Integer[Any, "*N B T"] | Float[Any, "*N B T I"]
    targets: Any
    mask: Bool[Any, "*N B T"] | Float[Any, "*N B T"] | None = None
    lengths: Integer[Any, "*N B"] | None = None


class Weighted(NamedTuple):
    """A batch with the weight of each position in the loss, as returned by `weigh`.

    Attributes:
        inputs: as in `Batch`.
        targets: as in `Batch`.
        weights: the weight of each position, of at least 32 bits; for a mean they sum to 1.
        counted: whether the weight of a position is not 0; None without mask and
            lengths.
        valid: whether a position is within the length of its row; None without lengths.
    """

    inputs: Inexact[Array, "*positions I"] | Int[Array, "*positions"]
    targets: Array
    weights: Inexact[Array, "*positions"]
    counted: Bool[Array, "*positions"] | None
    valid: Bool[Array, "*positions"] | None


def check_is_batch(batch: Any) -> None:
    """Raise `ValueError` unless a batch is a `Batch`."""
    if not isinstance(batch, Batch):
        raise ValueError(
            f"batch must be a jaxrnn.Batch, got a {type(batch).__name__}: "
            f"jaxrnn.Batch(inputs, targets)"
        )


def check_counts(batch: Batch) -> None:
    """Raise `ValueError` if no position of a batch counts, so that loss and gradient are 0."""
    masks = (batch.mask, batch.lengths)
    if any(each is not None and checks.is_known(each) and not np.any(each) for each in masks):
        raise ValueError(
            "every position of this batch has weight 0, so loss and gradient are 0: give a mask "
            "and lengths that leave some"
        )


def to_time_major(tree: Tree) -> Tree:
    """Convert every leaf from batch-major, (B, T, ·), to time-major, (T, B, ·)."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), tree)


def weigh(batch: Batch, reduction: Literal["mean", "sum"], dtype: jax.typing.DTypeLike) -> Weighted:
    """Compute the weight of each position from the mask and the lengths of a batch.

    The batch must have passed `jaxrnn.network.rnn.check_batch`. For a mean, the weights are
    divided by their sum, in float32 at least.
    """
    valid = within_lengths(batch.lengths, batch.inputs.shape[1])
    counted, weights = where_counted(batch.mask, valid), position_weights(batch, layer.wide(dtype))
    if reduction == "mean":
        total = weights.sum()
        weights = weights / jnp.where(total == 0, 1, total)  # all weights are 0: the loss is 0
    return Weighted(batch.inputs, batch.targets, weights, counted, valid)


def total_weight(batch: Batch) -> Array:
    """Return the sum of the weights of all positions, the divisor of a mean."""
    return position_weights(batch, jnp.result_type(float)).sum()


def position_weights(batch: Batch, dtype: jax.typing.DTypeLike) -> Array:
    """Return the mask as numbers, with 0 after the length of each row."""
    positions = batch.inputs.shape[:2]
    weights = jnp.ones(positions, dtype) if batch.mask is None else batch.mask.astype(dtype)
    valid = within_lengths(batch.lengths, positions[1])
    return weights if valid is None else jnp.where(valid, weights, 0)


def within_lengths(lengths: Int[Array, " B"] | None, steps: int) -> Bool[Array, "B T"] | None:
    """Return whether each position is within the length of its row; None without lengths."""
    return None if lengths is None else checks.within(lengths, steps)


def where_counted(mask: Array | None, valid: Array | None) -> Bool[Array, "B T"] | None:
    """Return whether each position has a weight other than 0; None without mask and lengths."""
    if mask is None:
        return valid
    return mask != 0 if valid is None else (mask != 0) & valid


def share_of_loss(
    losses: Inexact[Array, "*positions"], batch: Weighted
) -> Inexact[Array, "*positions"]:
    """Return the contribution of each position to the loss, 0 where it does not count."""
    contributions = batch.weights * losses.astype(batch.weights.dtype)
    return contributions if batch.counted is None else jnp.where(batch.counted, contributions, 0)


def where_errors(counted: Bool[Array, "*positions"], *, joined: bool) -> Bool[Array, "*any 1"]:
    """Return a mask that broadcasts to dL/dy_t: False where that must be 0.

    Args:
        counted: whether each position counts in the loss.
        joined: whether the loss function may combine positions. Then any position may affect any
            other, and the mask is False only if no position counts.
    """
    passes = counted.any(keepdims=True) if joined else counted
    return passes[..., None]
