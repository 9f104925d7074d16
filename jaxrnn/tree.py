"""Names, norms and plain values of pytrees."""

from typing import Any

import jax
import numpy as np


def by_name(tree: Any) -> dict[str, Any]:
    """Return a pytree's leaves by their names, such as "cells[0].W_xh" for those of Params.

    A dict's leaves are named like attributes: "W_f", or "encoder.W_f" in a dict of dicts.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = ("".join(map(_entry, path)).lstrip(".") or "array" for path, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _entry(entry: Any) -> str:
    """Write one step of the way to a leaf."""
    key = getattr(entry, "key", None)
    return f".{key}" if isinstance(key, str) and key.isidentifier() else str(entry)


def length(a: np.ndarray) -> float:
    """Compute ‖a‖ without overflow of a square."""
    unit = float(np.abs(a).max(initial=0.0))
    return unit * float(np.linalg.norm(a / unit)) if unit > 0 and np.isfinite(unit) else unit


def plain(value: Any) -> Any:
    """Turn NamedTuples, dicts, tuples and numbers into what JSON can hold."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
