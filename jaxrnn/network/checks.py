"""Checks of what a caller passes in: a mistake is a ValueError with its value and the remedy."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrnn.network.layer import Cell, is_ids, wide

AnyArray = Array | np.ndarray  # what a caller may hand over

_LIMIT: ContextVar[float] = ContextVar("memory limit", default=8.0)


@contextmanager
def memory_limit(gib: float) -> Iterator[None]:
    """Set how many GiB the influence, or the step Jacobians, of one layer may take.

    The limit is 8 GiB elsewhere. It is checked before anything is allocated.

    Args:
        gib: the limit, above 0; `float("inf")` is none.

    Raises:
        ValueError: if gib is not above 0.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(2, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> with jaxrnn.memory_limit(gib=1e-6):
    ...     jaxrnn.gradients.rtrl(rnn).init(params, h)
    Traceback (most recent call last):
        ...
    ValueError: the influence of a layer (B=3, I=2, H=4) would take 1.25e-06 GiB, more ...
    """
    if not gib > 0:
        raise ValueError(f"gib must be above 0, got {gib!r}")
    token = _LIMIT.set(gib)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def fits(what: str, numbers: int, dtype: jax.typing.DTypeLike, remedy: str) -> None:
    """Raise `ValueError` before anything is allocated that takes more than `memory_limit`."""
    gib, limit = numbers * np.dtype(dtype).itemsize / 2**30, _LIMIT.get()
    if gib > limit:
        raise ValueError(
            f"{what} would take {gib:.3g} GiB, more than {limit:g}: {remedy}, or raise the limit "
            f"with jaxrnn.memory_limit(gib=…)"
        )


def is_known(array: Any) -> bool:
    """Return whether an array's values can be looked at; under jit they cannot."""
    return not isinstance(array, jax.core.Tracer)


def as_numbers(name: str, value: Any) -> AnyArray:
    """Return an array of real numbers or booleans, as it is or in NumPy.

    Raises:
        ValueError: if it is anything else.
    """
    remedy = "pass a JAX or NumPy array of real numbers"
    if isinstance(value, dict | str | bytes):
        raise ValueError(f"{name} must be an array, got a {type(value).__name__}: {remedy}")
    if not isinstance(value, jax.Array):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            said = (str(error).splitlines() or [""])[0]
            kind = type(value).__name__
            raise ValueError(f"{name} must be an array, got a {kind} ({said}): {remedy}") from error
    real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    if not (real or value.dtype == bool):
        raise ValueError(f"{name} have dtype {value.dtype}: {remedy}")
    return value


def as_array(name: str, value: AnyArray) -> Array:
    """Return numbers as a JAX array.

    Raises:
        ValueError: if JAX, which is limited to 32 bits by default, would change an integer.
    """
    if isinstance(value, jax.Array):
        return value
    dtype = jax.dtypes.canonicalize_dtype(value.dtype)
    if jnp.issubdtype(value.dtype, jnp.integer) and dtype != value.dtype and value.size:
        for number in (int(value.min()), int(value.max())):
            if not jnp.iinfo(dtype).min <= number <= jnp.iinfo(dtype).max:
                raise ValueError(f"{name} hold {number}, which {dtype} cannot represent")
    return jnp.asarray(value)


def as_floats(name: str, value: Any, dtype: jax.typing.DTypeLike) -> Array:
    """Return an array in a dtype of floats; complex only where that dtype is."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.asarray(value, dtype)
    return as_array(name, as_numbers(name, value)).astype(dtype)


def as_lengths(lengths: Any, inputs: Any) -> Array | None:
    """Return how many steps each row has, (B,), as int32.

    Raises:
        ValueError: unless they are B whole numbers in 0 … T.
    """
    if lengths is None:
        return None
    lengths, (batch_size, steps) = as_numbers("lengths", lengths), np.shape(inputs)[:2]
    shape("lengths", lengths, (batch_size,), "one a row, (B,)")
    if not is_ids(lengths):
        raise ValueError(f"lengths must be integers, but have dtype {lengths.dtype}")
    if is_known(lengths):
        for number in (int(lengths.min()), int(lengths.max())):
            if not 0 <= number <= steps:
                raise ValueError(f"lengths must lie in 0 … {steps}, the steps T, got {number}")
    return jnp.asarray(lengths).astype(jnp.int32)


def within(lengths: Array, steps: int) -> Array:
    """Return which of T positions are within each row's length, (B, T)."""
    return jnp.arange(steps, dtype=lengths.dtype)[None] < lengths[:, None]


def as_mask(mask: Any, positions: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    """Return the weight of each position, in float32 at least.

    Raises:
        ValueError: if one is negative or not finite.
    """
    mask = as_numbers("mask", mask)
    shape("mask", mask, positions, "one weight a position")
    if is_known(mask):
        values = np.asarray(mask)
        wrong = np.argwhere(~((values >= 0) & (values < np.inf)))
        if len(wrong):
            place = tuple(wrong[0].tolist())
            raise ValueError(
                f"mask holds {values[place]} at {list(place)}, but a weight must be at least 0 and "
                f"finite"
            )
    return as_array("mask", mask).astype(wide(dtype))


def as_inputs(cell: Cell, inputs: Any, leading: int, lengths: Array | None = None) -> Array:
    """Return ids as they are and features in the cell's dtype; with 0 after a row's length.

    Raises:
        ValueError: if they do not fit the cell, an id is out of range or a feature not finite.
    """
    size, dtype = cell.W_xh.shape[0], cell.W_xh.dtype
    axes = ("B", "T")[:leading]
    inputs = as_numbers("inputs", inputs)
    if inputs.size == 0:
        raise ValueError(f"inputs are empty, with shape {inputs.shape}")
    if lengths is not None:
        valid = within(lengths, inputs.shape[1])
        valid = jnp.expand_dims(valid, range(2, inputs.ndim))
        if is_known(inputs) and is_known(valid):  # NumPy keeps what 32 bits could not hold
            inputs = np.where(valid, inputs, np.zeros((), inputs.dtype))
        else:
            inputs = jnp.where(valid, inputs, 0)
    if inputs.ndim == leading:
        ids("inputs", inputs, size, "input_size", f", or features ({', '.join(axes)}, I)")
        return jnp.asarray(inputs).astype(jnp.int32)
    if inputs.ndim != leading + 1 or inputs.shape[-1] != size or is_ids(inputs):
        raise ValueError(
            f"inputs have shape {inputs.shape} and dtype {inputs.dtype}, but must be ids "
            f"({', '.join(axes)}) as integers or features ({', '.join(axes)}, I={size}) as floats"
        )
    finite("inputs", inputs, "set it to 0, or say with Batch(lengths=…) that it is padding")
    return jnp.asarray(inputs).astype(dtype)


def as_state(cell: Cell, h: Any, inputs: Array) -> Array:
    """Return a layer's state in the cell's dtype."""
    h = as_floats("h", h, cell.W_hh.dtype)
    shape("h", h, (inputs.shape[0], cell.W_hh.shape[0]), "(B, H)")
    return h


def finite(name: str, array: AnyArray, remedy: str) -> None:
    """Raise `ValueError` with the position of the first value that is not finite; not under jit."""
    if not is_known(array):
        return
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"{name} hold {np.asarray(array)[place]} at {list(place)}: {remedy}")


def shape(name: str, array: AnyArray, expected: tuple[int, ...], meaning: str) -> None:
    """Raise `ValueError` for an array of another shape; `meaning` says what the axes are."""
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, but needs {expected}: {meaning}")


def ids(name: str, array: AnyArray, size: int, size_name: str, otherwise: str = "") -> None:
    """Raise `ValueError` unless an array holds whole numbers in 0 … size - 1."""
    if not is_ids(array):
        raise ValueError(
            f"{name} of shape {array.shape} must be ids, whole numbers of an integer dtype, but "
            f"have dtype {array.dtype}: convert with .astype(int){otherwise}"
        )
    if not is_known(array):  # an id outside then gives NaN
        return
    values = np.asarray(array)
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest >= size:
        outside = smallest if smallest < 0 else largest
        raise ValueError(
            f"{name} hold the id {outside}, but must lie in 0 … {size - 1} ({size_name}={size})"
        )


def one_of(name: str, value: str, options: Collection[str], otherwise: str = "") -> None:
    """Raise `ValueError` for a value that is none of the options; `otherwise` names another."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}{otherwise}, got {value!r}")


def whole(name: str, value: object, least: int, why: str = "") -> None:
    """Raise `ValueError` unless a value is a whole number of at least `least`; `why` says why."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{why}, got {value!r}")


def between(name: str, value: float, least: int, most: int) -> None:
    """Raise `ValueError` for a number outside [least, most]."""
    if not least <= value <= most:
        raise ValueError(f"{name} must lie in {least} … {most}, got {value!r}")
