"""Calls to a candidate, and the conversion of its answer to NumPy arrays.

A candidate may return anything. What cannot be compared becomes a finding, never an exception.
"""

import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.tree import by_name
from jaxrnn.verification.report import Finding


class Answer(NamedTuple):
    """The answer of a candidate.

    Attributes:
        loss: its loss; nan if there is none.
        leaves: the leaves of its gradient by name, as NumPy arrays in float64, of any shape. A
            missing leaf is left out.
        findings: what cannot be compared.
        changed: the names of the arguments' leaves that the candidate wrote to.
        again: its answer to a second call with the same arguments; None if there was none.
    """

    loss: float
    leaves: dict[str, np.ndarray]
    findings: tuple[Finding, ...]
    changed: tuple[str, ...] = ()
    again: "Answer | None" = None


def ask_twice(candidate: Callable[..., Any], args: tuple[Any, ...], params: Any) -> Answer:
    """Call a candidate twice, each time with copies of the arguments that it may write to."""
    answer = ask(candidate, args, params)
    if answer.findings:
        return answer
    return answer._replace(again=ask(candidate, args, params))


def arrays(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves of a pytree as NumPy arrays by name."""
    return {name: np.asarray(leaf) for name, leaf in by_name(tree).items()}


def is_floats(leaf: Any) -> bool:
    """Return whether a leaf is a real floating-point number or an array of them."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float) if dtype is None else jnp.issubdtype(dtype, jnp.floating)


def map_floats(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to the floating-point leaves of a pytree; leave the others unchanged."""
    return jax.tree.map(lambda leaf: function(leaf) if is_floats(leaf) else leaf, tree)


def ask(candidate: Callable[..., Any], args: tuple[Any, ...], params: Any) -> Answer:
    """Call a candidate that should return (loss, gradient in the structure of params).

    It gets copies of the arrays, since it may write to an array that shares memory with them.
    """
    copies = map_floats(jnp.array, args)
    answer = _call(candidate, copies, params)
    pairs = zip(by_name(copies).items(), jax.tree.leaves(args), strict=True)
    changed = (
        name
        for (name, copy), leaf in pairs
        if is_floats(leaf) and np.asarray(copy).tobytes() != np.asarray(leaf).tobytes()
    )
    return answer._replace(changed=tuple(changed))


def _call(candidate: Callable[..., Any], args: tuple[Any, ...], params: Any) -> Answer:
    """Call a candidate and convert its answer to NumPy."""

    def without_gradient(bug, text):
        return Answer(np.nan, {}, (Finding(bug, (), text),))

    try:
        answer = candidate(*args)
    except Exception as error:  # the candidate may raise anything, which is a finding
        text = f"{type(error).__name__}: {_first_line(error)} ({_source_of(error)})"
        return without_gradient("raised", text)
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        kind = type(answer).__name__
        size = f" of {len(answer)}" if isinstance(answer, tuple | list) else ""
        text = f"it must return (loss, gradient), but returned a {kind}{size}"
        return without_gradient("structure", text)
    loss, grads = answer
    try:
        number = np.asarray(_detached(loss))
        if number.dtype == object:
            raise TypeError("not a number")
        loss = number.astype(np.float64).item()
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(loss, "shape", None)
        kind = f"a {type(loss).__name__}" if shape is None else f"an array of shape {tuple(shape)}"
        return without_gradient("structure", f"the loss must be one number, but is {kind}")
    grads_by_name, findings = _match_structure(by_name(grads), params)
    leaves = {}
    for name, parameter in arrays(params).items():
        if name in grads_by_name:
            leaf, finding = _as_array(name, grads_by_name[name], parameter.dtype)
            leaves |= {} if leaf is None else {name: leaf}
            findings += [] if finding is None else [finding]
    return Answer(loss, leaves, tuple(findings))


def _match_structure(grads: dict[str, Any], params: Any) -> tuple[dict[str, Any], list[Finding]]:
    """Match gradient leaves with parameters by name, or by order if no name agrees."""
    expected = list(by_name(params))
    if not grads.keys() & set(expected) and len(grads) == len(expected):
        text = (
            f"the gradient has the leaves {_list_names(grads)}, but must have those of the "
            f"parameters, {_list_names(expected)}; they are compared in this order"
        )
        return dict(zip(expected, grads.values(), strict=True)), [Finding("structure", (), text)]
    findings = []
    if extra := [name for name in grads if name not in expected]:
        text = f"the gradient has leaves that are not in the parameters: {_list_names(extra)}"
        findings.append(Finding("structure", (), text))
    if missing := tuple(name for name in expected if name not in grads):
        findings.append(Finding("missing", missing, "there is no gradient, or it is None"))
    return grads, findings


def _as_array(name: str, leaf: Any, dtype: np.dtype) -> tuple[np.ndarray | None, Finding | None]:
    """Convert a leaf to float64, and return a finding if its dtype is not that of its parameter."""
    try:
        array = np.asarray(_detached(leaf))
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == dtype):
            raise TypeError(f"dtype {array.dtype}")
        values = np.real(array).astype(np.float64)
    except Exception as error:  # a foreign array type may raise anything
        text = f"not an array of numbers but a {type(leaf).__name__} ({_first_line(error)})"
        return None, Finding("dtype", (name,), text)
    if array.dtype == dtype or isinstance(leaf, float | int):
        return values, None
    text = f"has dtype {array.dtype}, but the parameter has {dtype}"
    if np.finfo(dtype).bits > array.dtype.itemsize * 8:
        text += f": it was computed in lower precision than the {dtype} of its arguments"
    return values, Finding("dtype", (name,), text)


def _detached(value: Any) -> Any:
    """Return an array that NumPy can read: a PyTorch tensor is detached and moved to the CPU."""
    return value.detach().cpu() if hasattr(value, "detach") else value


def _list_names(names: Iterable[str]) -> str:
    """Return the first six names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _source_of(error: Exception) -> str:
    """Return the file, line and function of the last frame outside installed libraries."""
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(
        error.__traceback__
    )
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{own[-1].filename.rsplit('/', 1)[-1]}, line {own[-1].lineno}, in {own[-1].name}"
