"""Functions of the user, such as a gradient rule of their own: "MODULE:NAME" or "FILE.py:NAME"."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.network import checks
from jaxrnn.network.rnn import RNN


def is_own(text: str) -> bool:
    """Return whether the text names a rule of the user's own, such as "mine.py:one_hop"."""
    return ":" in text.partition("(")[0]


def load(text: str) -> Callable[..., Any]:
    """Import a function of the user from "MODULE:NAME" or "FILE.py:NAME".

    Modules are looked up in the current folder first.

    Raises:
        ValueError: if the module or function does not exist, or importing the module fails.

    >>> load("math:sqrt")(9)
    3.0
    """
    module, colon, name = text.partition(":")
    if not (colon and module and name):
        raise ValueError(f"function must be MODULE:NAME, such as backward:grads, got {text!r}")
    path = Path(module)
    folder = path.parent.resolve() if module.endswith(".py") else Path.cwd()
    stem = path.stem if module.endswith(".py") else module.replace("/", ".")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        imported = importlib.import_module(stem)
    except Exception as error:  # the user's module may raise anything while it is imported
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot import {stem} from {folder}: {reason}") from error
    function = getattr(imported, name, None)
    if not callable(function):
        others = [key for key, value in vars(imported).items() if callable(value)]
        others = [key for key in others if not key.startswith("_")]
        meant = checks.did_you_mean(name, others)
        raise ValueError(
            f"{module} has no function {name}{meant}; it has {', '.join(others) or 'none'}"
        )
    return function


def build_own(module: str, name: str, rnn: RNN, **options: Any) -> GradientAlgorithm:
    """Import and build a rule of the user's own.

    Raises:
        ValueError: if it cannot be imported, or does not return a `GradientAlgorithm`.
    """
    build = load(f"{module}:{name}")
    try:
        algorithm = build(rnn, **options)
    except TypeError as error:
        raise ValueError(
            f"{module}:{name} cannot be called as (rnn, **options): {error}"
        ) from error
    if not isinstance(algorithm, GradientAlgorithm):
        raise ValueError(
            f"{module}:{name}(rnn) must return a GradientAlgorithm, got a "
            f"{type(algorithm).__name__}: build it with jaxrnn.gradients.backward_rule or "
            f"influence_rule"
        )
    return algorithm
