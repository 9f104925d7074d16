"""Analysis of the traced program of a loss: custom derivative rules and low precision."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_TRUSTED = (str(Path(str(jax.__file__)).parent), str(Path(__file__).parent.parent))


class Program(NamedTuple):
    """The custom derivative rules and the precision of a traced program.

    Attributes:
        rules: the names of the functions with a `custom_vjp` or `custom_jvp`, except those of JAX
            and jaxrnn.
        precision: the dtype of lowest precision to which a float64 number is converted; None if
            there is no such conversion.
    """

    rules: tuple[str, ...]
    precision: str | None


def trace(function: Callable[..., Any], *args: Any) -> Program:
    """Trace a function, and analyse its program and all programs nested in it."""
    rules: dict[str, None] = {}
    narrow: set[Any] = set()
    for equation in _equations(jax.make_jaxpr(function)(*args).jaxpr):
        name = equation.primitive.name
        if name.startswith(("custom_vjp_call", "custom_jvp_call")):
            source = str(equation.params["call_jaxpr"].jaxpr.debug_info.func_src_info)
            if not any(folder in source for folder in _TRUSTED):
                rules[source.split(" at ")[0]] = None
        if name == "convert_element_type":
            before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
            if before == jnp.float64 and jnp.issubdtype(after, jnp.floating) and before != after:
                narrow.add(after)
    precision = max(narrow, key=lambda dtype: float(jnp.finfo(dtype).eps), default=None)
    return Program(tuple(rules), None if precision is None else precision.name)


def _equations(program: Any) -> Iterator[Any]:
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
