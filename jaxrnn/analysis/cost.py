"""The cost of a compiled function: operations, memory, loop lengths and time.

XLA's own count includes the body of a loop once, however often it runs. Here the operations are
counted in the jaxpr, and the body of a loop is multiplied by the number of its iterations.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Float

SHORTEST = 5e-3  # seconds that one timing lasts at least; shorter calls are repeated


class Cost(NamedTuple):
    """The cost of one call of a compiled function.

    Attributes:
        flops: floating-point operations. A matmul counts 2 for each product; an elementwise
            operation (such as tanh or select) and random bits count 1 for each element of the
            result; a reduction counts 1 for each element of its operand. Operations on integers and
            those that only move data count 0. Operations that no rule of jaxrnn contains, such as a
            convolution or a matrix decomposition, count as if they were elementwise.
        temp_bytes: working memory besides arguments and outputs; 0 if the backend does not report
            it.
        argument_bytes: memory of the arguments.
        output_bytes: memory of the outputs.
        loops: the number of iterations of each loop of the optimised program, where XLA knows it:
            iterations are sequential. A nested loop is listed as if its outer loop ran once.
            Generating random bits adds loops of 5 iterations.
    """

    flops: int
    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    loops: tuple[int, ...]


def cost_analysis(function: Callable[..., Any], *args: Any) -> Cost:
    """Compute the cost of a call of a function, which is compiled but not called.

    The operations of the jaxpr are counted, without those whose result is not used. Operations that
    XLA later shares or moves out of a loop still count. A `cond` counts its most expensive branch.
    The body of a `while_loop` counts once, since the number of its iterations is not known.

    Args:
        function: the function, which need not be jitted.
        *args: its arguments: pytrees of arrays, or of `jax.ShapeDtypeStruct` to allocate nothing.

    Returns:
        The cost.

    >>> import jax, jaxrnn
    >>> x = jax.ShapeDtypeStruct((3, 4), "float32")
    >>> W = jax.ShapeDtypeStruct((4, 5), "float32")
    >>> jaxrnn.cost_analysis(lambda x, W: jax.numpy.tanh(x @ W), x, W).flops  # 2·3·4·5 + 3·5
    135
    """
    return compile_with_cost(function, *args)[1]


def compile_with_cost(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], Cost]:
    """Return a function compiled for its arguments, and the cost of a call as `cost_analysis`."""
    traced = jax.jit(function).trace(*args)
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    return compiled, Cost(
        _flops(getattr(traced.jaxpr, "jaxpr", traced.jaxpr)),
        getattr(memory, "temp_size_in_bytes", 0),
        getattr(memory, "argument_size_in_bytes", 0),
        getattr(memory, "output_size_in_bytes", 0),
        sequential_depth(compiled),
    )


def sequential_depth(compiled: jax.stages.Compiled) -> tuple[int, ...]:
    """Return the number of iterations of each loop of a compiled program, where XLA knows it."""
    counts = re.findall(r'"known_trip_count":\{"n":"(\d+)"', compiled.as_text() or "")
    return tuple(map(int, counts))


def seconds_of(runs: Sequence[Callable[[], Any]], rounds: int) -> Float[np.ndarray, "runs rounds"]:
    """Return the seconds per call of each function in each round.

    A round measures all functions in turn, and waits until the result of each call is ready.
    """

    def once(run, repeats):
        start = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(run())
        return (time.perf_counter() - start) / repeats

    for run in runs:
        once(run, 1)  # warm up
    repeats = [math.ceil(SHORTEST / once(run, 1)) for run in runs]
    return np.array([list(map(once, runs, repeats)) for _ in range(rounds)]).T


def _flops(jaxpr: Any) -> int:
    """Count the operations of a jaxpr, without those whose result is not used."""
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(map(_of_equation, live.eqns))


def _of_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    operands, results = (
        [variable.aval for variable in variables]
        for variables in (equation.invars, equation.outvars)
    )
    if name in RANDOM:
        return _size(results[-1])
    inner = list(core.jaxprs_in_params(params))
    if name == "cond":
        return max(map(_flops, inner))
    if inner and name not in COUNTS:  # scan, while, jit, custom_vjp, custom_jvp, remat
        return params.get("length", 1) * sum(map(_flops, inner))
    if name in MOVES.split() or not any(map(_is_float, operands + results)):
        return 0
    return COUNTS.get(name, _by_element)(equation, operands, results)


def _is_float(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _size(aval: Any) -> int:
    return math.prod(aval.shape)


def _by_element(equation: core.JaxprEqn, operands: list[Any], results: list[Any]) -> int:
    reduces = re.match("reduce_(?!precision)|arg(min|max)", equation.primitive.name)
    return _size(operands[0] if reduces else results[0])


def _dot(equation: core.JaxprEqn, operands: list[Any], results: list[Any]) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * _size(results[0]) * math.prod(operands[0].shape[axis] for axis in contracted)


def _sort(equation: core.JaxprEqn, operands: list[Any], results: list[Any]) -> int:
    """Count n ⌈log₂ n⌉ comparisons for each lane of n elements."""
    lane = operands[0].shape[equation.params.get("dimension", -1)]
    return _size(operands[0]) * math.ceil(math.log2(max(lane, 1)))


def _scatter(equation: core.JaxprEqn, operands: list[Any], results: list[Any]) -> int:
    return _size(operands[2])


# Operations that are neither elementwise nor reductions; a rule of jaxrnn contains each of them.
COUNTS: dict[str, Callable[[core.JaxprEqn, list[Any], list[Any]], int]] = {
    "dot_general": _dot,
    "sort": _sort,
    "scatter-add": _scatter,
}

RANDOM = {"random_bits", "threefry2x32", "rng_bit_generator"}

MOVES = """bitcast_convert_type broadcast broadcast_in_dim concatenate convert_element_type copy
    copy_p device_put dynamic_slice dynamic_update_slice expand_dims gather imag iota name
    optimization_barrier pad real reshape rev scatter sharding_constraint slice split squeeze stack
    stop_gradient transpose unstack"""
