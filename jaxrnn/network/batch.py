"""A batch of sequences, and how much each of its positions weighs in the loss."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int, Integer

from jaxrnn.network import checks, layer
from jaxrnn.network.layer import Tree


class Batch(NamedTuple):
    """Sequences, and what the network should answer.

    Attributes:
        inputs: token ids (B, T) as integers, or features (B, T, I) as floats.
        targets: ids (B, T) for `softmax_cross_entropy`, (B, T, O) for `squared_error`.
        mask: the weight of each position in the loss, (B, T), at least 0; None gives each one the
            weight 1. The target at a position of weight 0 has no influence, whatever it is. The
            input there still drives the state.
        lengths: how many steps each row has, (B,), from 0 to T; None gives each row T steps. What
            stands after a row's length has no influence, and the row's state stays as it was after
            its last step, so that the next chunk of the row continues from there.

    The leaves are JAX or NumPy arrays. N batches, for N steps of training, are one `Batch` whose
    leaves have a leading axis N.
    """

    inputs: Integer[Any, "*N B T"] | Float[Any, "*N B T I"]
    targets: Any
    mask: Bool[Any, "*N B T"] | Float[Any, "*N B T"] | None = None
    lengths: Integer[Any, "*N B"] | None = None


class Weighted(NamedTuple):
    """A checked batch with the weight of each position in the loss; `weigh` makes it.

    Attributes:
        inputs: as in `Batch`.
        targets: as in `Batch`.
        weights: of each position, in float32 at least, divided by their sum for a mean.
        counted: whether a position's weight is not 0; None if every position counts.
        valid: whether a position is within its row's length; None if every position is.
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


def time_major(tree: Tree) -> Tree:
    """Turn the leading axes of every leaf from (B, T) to (T, B), or back."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), tree)


def weigh(batch: Batch, reduction: Literal["mean", "sum"], dtype: jax.typing.DTypeLike) -> Weighted:
    """Weigh each position of a checked batch by the mask, divided by its sum for a mean.

    Weights are counted and divided in float32 at least.
    """
    valid = within_lengths(batch.lengths, batch.inputs.shape[1])
    counted, weights = where_counted(batch.mask, valid), _weights(batch, layer.wide(dtype))
    if reduction == "mean":
        total = weights.sum()
        weights = weights / jnp.where(total == 0, 1, total)  # 0 if nothing counts
    return Weighted(batch.inputs, batch.targets, weights, counted, valid)


def total_weight(batch: Batch) -> Array:
    """Return the sum of the weights of a batch's positions: what a mean divides by."""
    return _weights(batch, jnp.result_type(float)).sum()


def _weights(batch: Batch, dtype: jax.typing.DTypeLike) -> Array:
    """Return the mask as numbers, with 0 after each row's length."""
    positions = batch.inputs.shape[:2]
    weights = jnp.ones(positions, dtype) if batch.mask is None else batch.mask.astype(dtype)
    valid = within_lengths(batch.lengths, positions[1])
    return weights if valid is None else jnp.where(valid, weights, 0)


def within_lengths(lengths: Int[Array, " B"] | None, steps: int) -> Bool[Array, "B T"] | None:
    """Return which positions are within their row's length; None if all are."""
    return None if lengths is None else checks.within(lengths, steps)


def where_counted(mask: Array | None, valid: Array | None) -> Bool[Array, "B T"] | None:
    """Return which positions count in the loss; None if all do."""
    if mask is None:
        return valid
    return mask != 0 if valid is None else (mask != 0) & valid


def share_of_loss(
    losses: Inexact[Array, "*positions"], batch: Weighted
) -> Inexact[Array, "*positions"]:
    """Return each position's share of the loss; it is 0 where the position does not count."""
    shares = batch.weights * losses.astype(batch.weights.dtype)
    return shares if batch.counted is None else jnp.where(batch.counted, shares, 0)


def where_errors(counted: Bool[Array, "*positions"], *, joined: bool) -> Bool[Array, "*any 1"]:
    """Return where dL/dy_t may differ from 0.

    That is at the positions that count. Where a loss may have joined positions it is everywhere,
    unless no position counts.
    """
    passes = counted.any(keepdims=True) if joined else counted
    return passes[..., None]
