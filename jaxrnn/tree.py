"""Names, norms and JSON values of pytrees."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np


def by_name(tree: Any) -> dict[str, Any]:
    """Return a dict of the leaves of a pytree by name, such as "cells[0].W_xh" in Params.

    Keys of a dict appear like attributes: "W_f", or "encoder.W_f" in a nested dict. A pytree that
    is a single leaf has the name "array".
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = ("".join(map(_entry, path)).lstrip(".") or "array" for path, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _entry(entry: Any) -> str:
    """Return one entry of the path to a leaf as text."""
    key = getattr(entry, "key", None)
    return f".{key}" if isinstance(key, str) and key.isidentifier() else str(entry)


def copied(tree: Any) -> Any:
    """Return the pytree with copies of its NumPy arrays.

    JAX keeps a constant for each NumPy array that a jitted function closes over, by its identity.
    If the same array is passed to a function under another `jax_enable_x64`, JAX takes the constant
    for it, which has the wrong dtype (JAX 0.10).
    """
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)


def length(a: np.ndarray) -> float:
    """Compute the norm ‖a‖ without overflow of the squares."""
    scale = float(np.abs(a).max(initial=0.0))
    return scale * float(np.linalg.norm(a / scale)) if scale > 0 and np.isfinite(scale) else scale


def plain(value: Any) -> Any:
    """Convert NamedTuples, dicts, tuples and numbers to JSON values; non-finite floats to None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def text_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    r"""Return the lines of a table: the first column on the left, all others on the right.

    >>> print("\n".join(text_table(("leaf", "error"), [("W_xh", "3e-16"), ("b_h", "0")])))
    leaf  error
    W_xh  3e-16
    b_h       0
    """
    cells = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]


def html_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], below: Sequence[str] = ()
) -> str:
    """Return a table in HTML for a notebook, with lines of text below it."""

    def row(cells, tag):
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    lines = "<br>".join(map(html.escape, below))
    return f"<table>{row(titles, 'th')}{body}</table><p>{lines}</p>"
