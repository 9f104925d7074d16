"""Checks of arguments: each error is a `ValueError` with the wrong value and a remedy."""

import difflib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrnn.network.layer import Cell, is_ids, wide

AnyArray = Array | np.ndarray  # arrays that callers may pass

_LIMIT: ContextVar[float] = ContextVar("memory limit", default=8.0)


@contextmanager
def memory_limit(gib: float) -> Iterator[None]:
    """Set the limit on the memory for the influence, or the step Jacobians, of one layer.

    Use it as a context manager. Outside of it the limit is 8 GiB. It is checked before the memory
    is allocated.

    Args:
        gib: the limit in GiB, above 0; `float("inf")` removes the limit.

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
    """Raise `ValueError` if `numbers` values of `dtype` need more memory than `memory_limit`."""
    gib, limit = numbers * np.dtype(dtype).itemsize / 2**30, _LIMIT.get()
    if gib > limit:
        raise ValueError(
            f"{what} would take {gib:.3g} GiB, more than {limit:g}: {remedy}, or raise the limit "
            f"with jaxrnn.memory_limit(gib=…)"
        )


def is_known(array: Any) -> bool:
    """Return whether the values of an array are known; while jit traces a function they are not."""
    return not isinstance(array, jax.core.Tracer)


def as_numbers(name: str, value: Any) -> AnyArray:
    """Return an array of real numbers or booleans; convert anything but a JAX array to NumPy.

    Raises:
        ValueError: if the value is not such an array.
    """
    remedy = "pass a JAX or NumPy array of real numbers"
    if isinstance(value, dict | str | bytes):
        raise ValueError(f"{name} must be an array, got a {type(value).__name__}: {remedy}")
    if not isinstance(value, jax.Array):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            kind = type(value).__name__
            raise ValueError(
                f"{name} must be an array, got a {kind} ({reason}): {remedy}"
            ) from error
    real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    if not (real or value.dtype == bool):
        raise ValueError(f"{name} have dtype {value.dtype}: {remedy}")
    return value


def as_array(name: str, value: AnyArray) -> Array:
    """Return numbers as a JAX array.

    Raises:
        ValueError: if an integer does not fit into the dtype of JAX, which is limited to 32 bits by
            default.
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
    """Return an array converted to a floating or complex dtype.

    Raises:
        ValueError: if the array is complex and the dtype is not.
    """
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.asarray(value, dtype)
    return as_array(name, as_numbers(name, value)).astype(dtype)


def as_lengths(lengths: Any, inputs: Any) -> Array | None:
    """Return the number of steps of each row, (B,), as int32; None stays None.

    Raises:
        ValueError: if the lengths are not B integers in 0 … T.
    """
    if lengths is None:
        return None
    lengths, (batch_size, steps) = as_numbers("lengths", lengths), np.shape(inputs)[:2]
    shape("lengths", lengths, (batch_size,), "one per row, (B,)")
    if not is_ids(lengths):
        raise ValueError(f"lengths must be integers, but have dtype {lengths.dtype}")
    if is_known(lengths):
        for number in (int(lengths.min()), int(lengths.max())):
            if not 0 <= number <= steps:
                raise ValueError(f"lengths must lie in 0 … {steps}, the steps T, got {number}")
    return jnp.asarray(lengths).astype(jnp.int32)


def within(lengths: Array, steps: int) -> Array:
    """Return whether each of T positions is within the length of its row, (B, T)."""
    return jnp.arange(steps, dtype=lengths.dtype)[None] < lengths[:, None]


def as_mask(mask: Any, positions: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    """Return the weight of each position, in float32 at least.

    Raises:
        ValueError: if the shape is wrong, or a weight is negative or not finite.
    """
    mask = as_numbers("mask", mask)
    shape("mask", mask, positions, "one weight per position")
    if is_known(mask):
        values = np.asarray(mask)
        wrong = np.argwhere(~((values >= 0) & (values < np.inf)))
        if len(wrong):
            index = tuple(wrong[0].tolist())
            raise ValueError(
                f"mask holds {values[index]} at {list(index)}, but a weight must be at least 0 and "
                f"finite"
            )
    return as_array("mask", mask).astype(wide(dtype))


def as_inputs(cell: Cell, inputs: Any, leading: int, lengths: Array | None = None) -> Array:
    """Return ids as int32 or features in the cell's dtype, with 0 after the length of each row.

    Args:
        cell: the parameters of the lowest layer.
        inputs: ids with the leading axes, or features with the leading axes and I.
        leading: the number of leading axes: 1 for (B,), 2 for (B, T).
        lengths: the number of steps of each row, (B,), or None.

    Raises:
        ValueError: if the inputs do not fit the cell, an id is out of range, or a feature is not
            finite.
    """
    size, dtype = cell.W_xh.shape[0], cell.W_xh.dtype
    axes = ("B", "T")[:leading]
    inputs = as_numbers("inputs", inputs)
    if inputs.size == 0:
        raise ValueError(f"inputs are empty, with shape {inputs.shape}")
    if lengths is not None:
        valid = within(lengths, inputs.shape[1])
        valid = jnp.expand_dims(valid, range(2, inputs.ndim))
        if is_known(inputs) and is_known(valid):  # NumPy keeps 64-bit ids
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
    finite("inputs", inputs, "set it to 0, or mark it as padding with Batch(lengths=…)")
    return jnp.asarray(inputs).astype(dtype)


def as_state(cell: Cell, h: Any, inputs: Array) -> Array:
    """Return the state of one layer in the cell's dtype; raise `ValueError` for a wrong shape."""
    h = as_floats("h", h, cell.W_hh.dtype)
    shape("h", h, (inputs.shape[0], cell.W_hh.shape[0]), "(B, H)")
    return h


def finite(name: str, array: AnyArray, remedy: str) -> None:
    """Raise `ValueError` with the index of the first non-finite value; do nothing under jit."""
    if not is_known(array):
        return
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        index = tuple(wrong[0].tolist())
        raise ValueError(f"{name} hold {np.asarray(array)[index]} at {list(index)}: {remedy}")


def shape(name: str, array: AnyArray, expected: tuple[int, ...], meaning: str) -> None:
    """Raise `ValueError` if the shape is not `expected`; `meaning` describes the axes."""
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, but needs {expected}: {meaning}")


def ids(name: str, array: AnyArray, size: int, size_name: str, otherwise: str = "") -> None:
    """Raise `ValueError` unless an array holds ids, integers in 0 … size - 1.

    Args:
        name: the name of the argument in messages.
        array: the ids.
        size: the number of ids.
        size_name: the name of the size in messages, such as "output_size".
        otherwise: the alternative to ids, added to the message about the dtype.
    """
    if not is_ids(array):
        raise ValueError(
            f"{name} of shape {array.shape} must be ids, whole numbers of an integer dtype, but "
            f"have dtype {array.dtype}: convert with .astype(int){otherwise}"
        )
    if not is_known(array):  # under jit an id out of range gives NaN
        return
    values = np.asarray(array)
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest >= size:
        outside = smallest if smallest < 0 else largest
        raise ValueError(
            f"{name} hold the id {outside}, but must lie in 0 … {size - 1} ({size_name}={size})"
        )


def result(call: str, value: Any, shape: tuple[int, ...], axes: str) -> None:
    """Raise `ValueError` unless what a function of the user returned is an array of this shape.

    Args:
        call: the function with its arguments.
        value: what it returned.
        shape: the shape that it must have.
        axes: the names of the axes, such as "(T, B, H)".
    """
    found = getattr(value, "shape", None)
    if found != shape:
        got = f"a {type(value).__name__}" if found is None else f"shape {found}"
        raise ValueError(f"{call} must return an array {axes} = {shape}, got {got}")


def one_of(name: str, value: str, options: Collection[str], otherwise: str = "") -> None:
    """Raise `ValueError` unless a value is one of the options; `otherwise` is an alternative."""
    if value not in options:
        raise ValueError(
            f"{name} must be one of {', '.join(options)}{otherwise}, got {value!r}"
            f"{did_you_mean(str(value), options)}"
        )


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return " (did you mean …?)" with the known words that are nearest; empty if none is near.

    Args:
        word: the word that is not known.
        known: the known words.
        prefix: what is written before each of them.

    >>> did_you_mean("hiden-size", ["hidden-size", "seed"], "--")
    ' (did you mean --hidden-size?)'
    """
    near = difflib.get_close_matches(word, list(known), 5)
    likeness = [difflib.SequenceMatcher(None, match, word).ratio() for match in near]
    nearest = [prefix + match for match, r in zip(near, likeness, strict=True) if r == likeness[0]]
    return f" (did you mean {' or '.join(nearest)}?)" if nearest else ""


def whole(name: str, value: object, least: int, why: str = "") -> None:
    """Raise `ValueError` unless a value is a whole number, at least `least`; `why` is a reason."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{why}, got {value!r}")


def between(name: str, value: float, least: int, most: int) -> None:
    """Raise `ValueError` for a number outside [least, most]."""
    if not least <= value <= most:
        raise ValueError(f"{name} must lie in {least} … {most}, got {value!r}")
