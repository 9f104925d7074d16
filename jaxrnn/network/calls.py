"""A function by its name and options as text: `truncated_bptt(window=8)`."""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxrnn.network import checks


def split(argument: str, text: str, example: str) -> tuple[str, dict[str, Any]]:
    """Split "name(option=value, …)" into the name and the options.

    Args:
        argument: the name of the argument that has this text, for the error message.
        text: the text.
        example: a text that is right, for the error message.

    Raises:
        ValueError: if the text cannot be read.

    >>> split("algorithm", "ok(rank=4)", "rtrl")
    ('ok', {'rank': 4})
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            named = [(each.arg, each.value) for each in node.keywords if each.arg is not None]
            if len(named) == len(node.keywords):  # else there is a **mapping among them
                return node.func.id, {name: ast.literal_eval(value) for name, value in named}
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f"{argument} must be a name with its options in parentheses, such as {example!r}, "
        f"got {text!r}"
    )


def parse(
    argument: str, text: str, functions: Mapping[str, Callable[..., Any]], example: str
) -> tuple[str, dict[str, Any]]:
    """Split a text as `split` does, and check that the function and its options exist.

    Raises:
        ValueError: if the text cannot be read, or there is no such function or option.

    >>> parse("task", "copy(dely=5)", {"copy": lambda delay=10: delay}, "copy")
    Traceback (most recent call last):
        ...
    ValueError: copy has no option dely (did you mean delay?): it takes copy(delay=10)
    """
    name, options = split(argument, text, example)
    checks.one_of(argument, name, functions)
    defaults = defaults_of(functions[name])
    for option in options:
        if option not in defaults:
            written = ", ".join(f"{key}={value!r}" for key, value in defaults.items())
            raise ValueError(
                f"{name} has no option {option}{checks.did_you_mean(option, defaults)}: it takes "
                f"{f'{name}({written})' if defaults else 'none'}"
            )
    return name, options


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of the arguments that can be given by position or by name."""
    parameters = inspect.signature(function).parameters.values()
    plain = (each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)
    return {each.name: each.default for each in plain if each.default is not each.empty}
