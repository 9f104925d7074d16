"""Checks of the arguments of a network: parameters, inputs, states and batches.

Each argument is checked once, at the public interface. Error messages name the argument and both
shapes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int

from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, where_counted, within_lengths
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.losses import LossFunction
from jaxrnn.network.stack import Params


def as_state(params: Params, h: AnyArray) -> Inexact[Array, "L B H"]:
    """Return h in the parameters' dtype.

    Raises:
        ValueError: if h is not (num_layers, B, H).
    """
    h = checks.as_floats("h", h, params.readout.W_hy.dtype)
    layers, hidden_size = len(params.cells), len(params.readout.W_hy)
    if h.ndim != 3 or h.shape[::2] != (layers, hidden_size):
        raise ValueError(
            f"h has shape {h.shape}, but needs (num_layers, B, H) = ({layers}, B, {hidden_size}): "
            f"start with rnn.initial_state(batch_size)"
        )
    return h


def as_inputs(
    params: Params,
    inputs: AnyArray,
    h: AnyArray,
    lengths: AnyArray | None = None,
) -> tuple[Array, Inexact[Array, "L B H"], Int[Array, " B"] | None]:
    """Check and convert the inputs, h and lengths: inputs and h to the parameters' dtype.

    Raises:
        ValueError: if shapes or dtypes do not fit the network, an id is out of range, or a feature
            is not finite.
    """
    lengths = checks.as_lengths(lengths, inputs)
    inputs = checks.as_inputs(params.cells[0], inputs, 2, lengths)
    h = as_state(params, h)
    expected = (len(params.cells), inputs.shape[0], len(params.readout.W_hy))
    if h.shape != expected:
        raise ValueError(
            f"h has shape {h.shape}, but inputs of shape {inputs.shape} need (layers, B, H) = "
            f"{expected}: start with rnn.initial_state({inputs.shape[0]})"
        )
    return inputs, h, lengths


def as_batch(
    params: Params, batch: Batch, h: AnyArray, loss_function: str | LossFunction
) -> tuple[Batch, Inexact[Array, "L B H"]]:
    """Check and convert a batch and h; raise as `as_inputs` does.

    A target that does not count is replaced by one that does, because the loss function may not be
    defined for its value.
    """
    inputs, h, lengths = as_inputs(params, batch.inputs, h, batch.lengths)
    positions, dtype, output_size = inputs.shape[:2], h.dtype, params.readout.W_hy.shape[1]
    mask = None if batch.mask is None else checks.as_mask(batch.mask, positions, dtype)
    counted = where_counted(mask, within_lengths(lengths, positions[1]))
    targets = checks.as_numbers("targets", batch.targets)
    if targets.shape[:2] == positions and counted is not None:
        targets = _with_counted_targets(targets, counted)
    if loss_function == "softmax_cross_entropy":
        checks.shape(
            "targets",
            targets,
            positions,
            "one id per position, as in inputs; a mask leaves positions out",
        )
        checks.ids("targets", targets, output_size, "output_size")
        targets = jnp.asarray(targets).astype(jnp.int32)
    elif loss_function == "squared_error":
        expected = (*positions, output_size)
        checks.shape("targets", targets, expected, "(B, T, O), as the outputs")
        checks.finite("targets", targets, "give its position the mask 0")
        targets = checks.as_floats("targets", targets, dtype)
    elif targets.shape[:2] != positions:
        raise ValueError(f"targets have shape {targets.shape}, but must begin with {positions}")
    elif jnp.issubdtype(targets.dtype, jnp.floating):
        targets = jnp.asarray(targets).astype(dtype)
    else:
        targets = checks.as_array("targets", targets)
    return Batch(inputs, targets, mask, lengths), h


def _with_counted_targets(targets: AnyArray, counted: Bool[Array, "B T"]) -> AnyArray:
    """Replace each target that does not count by one that does, from the same row if possible.

    If no target counts, all targets become 0.
    """
    xp: Any = np if checks.is_known(targets) and checks.is_known(counted) else jnp
    counted = xp.asarray(counted)
    first, has_target = counted.argmax(1), counted.any(1)
    donor = xp.where(has_target, xp.arange(len(has_target)), has_target.argmax())
    replacement = xp.asarray(targets)[donor, first[donor]]
    replacement = xp.where(has_target.any(), replacement, xp.zeros_like(replacement))[:, None]
    return xp.where(xp.expand_dims(counted, tuple(range(2, targets.ndim))), targets, replacement)


def check_params(params: Params, expected: Params) -> None:
    """Raise `ValueError` for parameters of another structure or shape, or of several dtypes."""
    if jax.tree.structure(params) != jax.tree.structure(expected):
        raise ValueError(
            f"params do not have the structure of this RNN's ({len(expected.cells)} layers, "
            f"use_bias={expected.readout.b_y is not None}): make them with rnn.init(key)"
        )
    dtype = jnp.result_type(params.cells[0].W_xh)
    first = "params.cells[0].W_xh"

    def check(path, leaf, shape):
        name = f"params{jax.tree_util.keystr(path)}"
        if jnp.shape(leaf) != shape.shape:
            raise ValueError(
                f"{name} has shape {jnp.shape(leaf)}, but this RNN "
                f"needs {shape.shape}: make them with rnn.init(key)"
            )
        actual = jnp.result_type(leaf)
        if not jnp.issubdtype(actual, jnp.inexact):
            raise ValueError(f"{name} has dtype {actual}, but parameters are floats: convert it")
        if actual != dtype:
            raise ValueError(f"{name} has dtype {actual}, but {first} has {dtype}: convert one")

    jax.tree_util.tree_map_with_path(check, params, expected)
