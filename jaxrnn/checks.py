"""Checking what a caller hands over: a mistake is a ValueError with its value and the remedy."""

from collections.abc import Collection

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrnn.layer import Cell, is_ids

AnyArray = Array | np.ndarray  # what a caller may hand over
MOST_GIB = 8  # that one layer's rule may hold at once


def as_inputs(cell: Cell, inputs: AnyArray, leading: int) -> Array:
    """Return ids as they are and features in the cell's dtype."""
    inputs = jnp.asarray(inputs)
    size, dtype = cell.W_xh.shape[0], cell.W_xh.dtype
    axes = ("B", "T")[:leading]
    if inputs.size == 0:
        raise ValueError(f"inputs are empty, with shape {inputs.shape}")
    if inputs.ndim == leading:
        ids("inputs", inputs, size, "input_size", f", or features ({', '.join(axes)}, I)")
        return inputs.astype(jnp.int32)
    if inputs.ndim != leading + 1 or inputs.shape[-1] != size or is_ids(inputs):
        raise ValueError(
            f"inputs have shape {inputs.shape} and dtype {inputs.dtype}, but must be ids "
            f"({', '.join(axes)}) as integers or features ({', '.join(axes)}, I={size}) as floats"
        )
    return inputs.astype(dtype)


def as_state(cell: Cell, h: AnyArray, inputs: Array) -> Array:
    """Return a layer's state in the cell's dtype."""
    h = jnp.asarray(h, cell.W_hh.dtype)
    shape("h", h, (inputs.shape[0], cell.W_hh.shape[0]), "(B, H)")
    return h


def shape(name: str, array: Array, expected: tuple[int, ...], meaning: str) -> None:
    """Refuse an array of another shape; `meaning` says what the axes are."""
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, but needs {expected}: {meaning}")


def ids(name: str, array: Array, size: int, size_name: str, otherwise: str = "") -> None:
    """Refuse what is not whole numbers in 0 … size - 1."""
    if not is_ids(array):
        raise ValueError(
            f"{name} of shape {array.shape} must be ids, whole numbers of an integer dtype, but "
            f"have dtype {array.dtype}: convert with .astype(int){otherwise}"
        )
    if isinstance(array, jax.core.Tracer):  # no values to look at; an id outside then gives NaN
        return
    values = np.asarray(array)
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest >= size:
        outside = smallest if smallest < 0 else largest
        raise ValueError(
            f"{name} hold the id {outside}, but must lie in 0 … {size - 1} ({size_name}={size})"
        )


def one_of(name: str, value: str, options: Collection[str], otherwise: str = "") -> None:
    """Refuse a value that is none of the options; `otherwise` says what else would do."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}{otherwise}, got {value!r}")


def whole(name: str, value: object, least: int, why: str = "") -> None:
    """Refuse what is not a whole number of at least `least`; `why` says where that comes from."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{why}, got {value!r}")


def between(name: str, value: float, least: int, most: int) -> None:
    """Refuse a number outside [least, most]."""
    if not least <= value <= most:
        raise ValueError(f"{name} must lie in {least} … {most}, got {value!r}")


def fits(what: str, numbers: int, dtype: jax.typing.DTypeLike, remedy: str) -> None:
    """Refuse what would take too much memory, before anything is allocated."""
    gib = numbers * np.dtype(dtype).itemsize / 2**30
    if gib > MOST_GIB:
        raise ValueError(f"{what} would take {gib:.1f} GiB, more than {MOST_GIB}: {remedy}")
