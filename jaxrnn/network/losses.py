"""Losses per position, each with its gradient with respect to the outputs.

A loss maps outputs (..., O) and targets to one number per position, (...). Masks, sums and means
over positions are handled by the network.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from jaxrnn.network import checks

LossFunction = Callable[[Array, Array], Array]


class Loss(NamedTuple):
    """A loss per position and its gradient.

    Attributes:
        value: (y, target) -> ℓ.
        value_and_grad: (y, target, weight w) -> (w ℓ, ∂(Σ w ℓ)/∂y).
    """

    value: LossFunction
    value_and_grad: Callable[[Array, Array, Array], tuple[Array, Array]]


def _softmax_cross_entropy(
    outputs: Inexact[Array, "*batch O"], targets: Int[Array, "*batch"]
) -> Inexact[Array, "*batch"]:
    """Compute -log softmax(y)[target], in nats."""
    return jax.nn.logsumexp(outputs, axis=-1) - _pick(outputs, targets)[..., 0]


def _softmax_cross_entropy_and_grad(
    outputs: Float[Array, "*batch O"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch O"]]:
    """Compute the cross-entropy and ∂ℓ/∂y = softmax(y) - onehot(target) from one exponential."""
    largest = outputs.max(-1, keepdims=True)
    exponentials = jnp.exp(outputs - largest)
    total = exponentials.sum(-1, keepdims=True)
    value = (jnp.log(total) + largest - _pick(outputs, targets))[..., 0]
    ids = jnp.arange(outputs.shape[-1], dtype=targets.dtype).reshape((1,) * targets.ndim + (-1,))
    one_hot = (targets[..., None] == ids).astype(outputs.dtype)
    return _weighted(weights, value, exponentials / total - one_hot)


def _pick(
    outputs: Inexact[Array, "*batch O"], targets: Int[Array, "*batch"]
) -> Inexact[Array, "*batch 1"]:
    """Return the output of each position at its target; NaN for a target outside 0 … O - 1."""
    outside = outputs.shape[-1]
    indices = jnp.where(targets < 0, outside, targets)[..., None]  # negative ids would wrap around
    return jnp.take_along_axis(outputs, indices, axis=-1, mode="fill")


def _squared_error(
    outputs: Inexact[Array, "*batch O"], targets: Inexact[Array, "*batch O"]
) -> Inexact[Array, "*batch"]:
    """Compute Σ_o (y_o - target_o)²."""
    return jnp.square(outputs - targets).sum(-1)


def _squared_error_and_grad(
    outputs: Float[Array, "*batch O"],
    targets: Float[Array, "*batch O"],
    weights: Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch O"]]:
    """Compute the squared error and ∂ℓ/∂y = 2 (y - target)."""
    difference = outputs - targets
    return _weighted(weights, jnp.square(difference).sum(-1), 2 * difference)


def _weighted(weights, value, slope):
    """Multiply a loss and its slope by the weights.

    The loss has the dtype of the weights, and the slope has the dtype of the outputs.
    """
    wide, dtype = weights.dtype, slope.dtype
    d_outputs = (weights[..., None] * slope.astype(wide)).astype(dtype)
    return weights * value.astype(wide), d_outputs


LOSSES = {
    "softmax_cross_entropy": Loss(_softmax_cross_entropy, _softmax_cross_entropy_and_grad),
    "squared_error": Loss(_squared_error, _squared_error_and_grad),
}


def through_autodiff(loss: LossFunction) -> Loss:
    """Return a loss with its gradient by reverse-mode autodiff; it may combine positions."""

    def value_and_grad(outputs, targets, weights):
        value, pull_back = jax.vjp(lambda y: loss(y, targets), outputs)
        (d_outputs,) = pull_back(weights.astype(value.dtype))
        return weights * value.astype(weights.dtype), d_outputs

    return Loss(loss, value_and_grad)


def as_loss(loss_function: str | LossFunction) -> Loss:
    """Return the `Loss` of a name or a custom function, for time-major arrays.

    A custom function gets batch-major arrays and may combine positions.
    """
    if not callable(loss_function):
        return LOSSES[loss_function]

    def time_major_loss(outputs, targets):
        outputs, targets = outputs.swapaxes(0, 1), targets.swapaxes(0, 1)
        losses = jnp.asarray(loss_function(outputs, targets), outputs.dtype)
        checks.shape("the loss", losses, outputs.shape[:2], "one number per position, (B, T)")
        return losses.swapaxes(0, 1)

    return through_autodiff(time_major_loss)
