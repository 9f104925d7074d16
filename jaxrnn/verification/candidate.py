"""Taking apart what a candidate answers, whatever it is: what cannot be compared is a finding."""

import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.tree import by_name
from jaxrnn.verification.report import Finding


class Answer(NamedTuple):
    """A candidate's loss (nan if there is none), its leaves by name, and what is wrong with them.

    The leaves are NumPy arrays in float64, of any shape; one that is missing is not among them.

    Attributes:
        loss: its loss.
        leaves: its gradient.
        findings: what cannot be compared.
        changed: the arguments' leaves that the candidate wrote to.
        again: what it answered to a second call at the same arguments; None if it was not called.
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
    """Return a pytree's leaves in NumPy, by their names."""
    return {name: np.asarray(leaf) for name, leaf in by_name(tree).items()}


def is_floats(leaf: Any) -> bool:
    """Return whether a leaf is a real number or an array of them, in floating point."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float) if dtype is None else jnp.issubdtype(dtype, jnp.floating)


def ask(candidate: Callable[..., Any], args: tuple[Any, ...], params: Any) -> Answer:
    """Call a candidate that should return (loss, gradient in the structure of params).

    It gets copies of the arrays: to what it shares memory with, it may write.
    """
    copies = jax.tree.map(lambda leaf: jnp.array(leaf) if is_floats(leaf) else leaf, args)
    answer = _answer(candidate, copies, params)
    pairs = zip(by_name(copies).items(), jax.tree.leaves(args), strict=True)
    changed = (
        name
        for (name, copy), leaf in pairs
        if is_floats(leaf) and np.asarray(copy).tobytes() != np.asarray(leaf).tobytes()
    )
    return answer._replace(changed=tuple(changed))


def _answer(candidate: Callable[..., Any], args: tuple[Any, ...], params: Any) -> Answer:

    def nothing(bug, text):
        return Answer(np.nan, {}, (Finding(bug, (), text),))

    try:
        answer = candidate(*args)
    except Exception as error:  # whatever somebody's function does is a finding
        said = (str(error).strip().splitlines() or [""])[0]
        return nothing("raised", f"it raised {type(error).__name__}: {said} ({_place(error)})")
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        kind = type(answer).__name__
        many = f" of {len(answer)}" if isinstance(answer, tuple | list) else ""
        return nothing("structure", f"it must return (loss, gradient), but returned a {kind}{many}")
    loss, grads = answer
    try:
        number = np.asarray(_detached(loss))
        if number.dtype == object:
            raise TypeError("no number")
        loss = number.astype(np.float64).item()
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(loss, "shape", None)
        what = f"a {type(loss).__name__}" if shape is None else f"an array of shape {tuple(shape)}"
        return nothing("structure", f"the loss must be one number, but is {what}")
    given, findings = _in_structure(by_name(grads), params)
    leaves = {}
    for name, parameter in arrays(params).items():
        if name in given:
            leaf, finding = _as_array(name, given[name], parameter.dtype)
            leaves |= {} if leaf is None else {name: leaf}
            findings += [] if finding is None else [finding]
    return Answer(loss, leaves, tuple(findings))


def _in_structure(given: dict[str, Any], params: Any) -> tuple[dict[str, Any], list[Finding]]:
    """Find the leaves by name, or where all have other names, by their order."""
    expected = list(by_name(params))
    if not given.keys() & set(expected) and len(given) == len(expected):
        text = (
            f"the gradient has the leaves {_some(given)}, and must have those of the parameters, "
            f"{_some(expected)}; they are compared in this order"
        )
        return dict(zip(expected, given.values(), strict=True)), [Finding("structure", (), text)]
    findings = []
    if extra := [name for name in given if name not in expected]:
        text = f"the gradient has leaves that the parameters have not: {_some(extra)}"
        findings.append(Finding("structure", (), text))
    if missing := tuple(name for name in expected if name not in given):
        findings.append(Finding("missing", missing, "there is no gradient, or it is None"))
    return given, findings


def _as_array(name: str, leaf: Any, dtype: np.dtype) -> tuple[np.ndarray | None, Finding | None]:
    try:
        array = np.asarray(_detached(leaf))
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == dtype):
            raise TypeError(f"dtype {array.dtype}")
        plain = np.real(array).astype(np.float64)
    except Exception as error:  # somebody's array type may raise anything
        said = (str(error).strip().splitlines() or [""])[0]
        text = f"not an array of numbers but a {type(leaf).__name__} ({said})"
        return None, Finding("dtype", (name,), text)
    if array.dtype == dtype or isinstance(leaf, float | int):
        return plain, None
    text = f"has dtype {array.dtype}, but the parameter has {dtype}"
    if np.finfo(dtype).bits > array.dtype.itemsize * 8:
        text += ": it was computed with fewer digits than asked for"
    return plain, Finding("dtype", (name,), text)


def _detached(value: Any) -> Any:
    """Return an array that NumPy can read: a tensor of PyTorch's without its graph, on the CPU."""
    return value.detach().cpu() if hasattr(value, "detach") else value


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _place(error: Exception) -> str:
    """Say in which file and line it was raised: the last that belongs to no library."""
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(
        error.__traceback__
    )
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{own[-1].filename.rsplit('/', 1)[-1]}, line {own[-1].lineno}, in {own[-1].name}"
