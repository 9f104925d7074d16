"""What a function costs: its operations, its memory, how long its loops are, and its time.

XLA's own count takes a loop's body once, however often it runs. Here the operations are counted in
the jaxpr that is compiled, each loop's body as often as it runs.
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

SHORTEST = 5e-3  # seconds that one timing lasts at least


class Cost(NamedTuple):
    """What one call of a compiled function costs.

    Attributes:
        flops: floating-point operations: 2 for each product of a matmul, 1 for each element of an
            elementwise result (a tanh is 1, a select is 1) and of a reduction's operand, and of
            random bits; 0 for what only moves numbers, and for integers.
        temp_bytes: working memory, besides arguments and outputs; 0 if the backend does not say.
        argument_bytes: memory of the arguments.
        output_bytes: memory of the outputs.
        loops: how often each loop of the optimised program runs, where XLA knows it: the steps
            that wait for one another. One inside another stands for itself, as if run once; random
            bits bring loops of 5.
    """

    flops: int
    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    loops: tuple[int, ...]


def cost_analysis(function: Callable[..., Any], *args: Any) -> Cost:
    """Compile a function for its arguments, and count what a call costs; it is not called.

    Arguments may be `jax.ShapeDtypeStruct`s, so that nothing need be allocated.

    Operations are counted as they are written, without those whose result nobody uses: what XLA
    then shares or moves out of a loop counts all the same. Of a `cond` the dearest branch counts.
    The body of a `while_loop` counts once, for nobody knows how often it runs.
    """
    return compile_with_cost(function, *args)[1]


def compile_with_cost(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], Cost]:
    """Compile a function for its arguments; return it and what a call costs, as `cost` does."""
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
    """Read how often each loop of a compiled program runs, where XLA knows it."""
    counts = re.findall(r'"known_trip_count":\{"n":"(\d+)"', compiled.as_text() or "")
    return tuple(map(int, counts))


def seconds_of(runs: Sequence[Callable[[], Any]], rounds: int) -> Float[np.ndarray, "runs rounds"]:
    """Time calls in turn, round after round: seconds a call, each waited for to its end."""

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
    if name == "custom_linear_solve":  # it also says how to multiply and how to transpose
        return _flops(params["jaxprs"].solve.jaxpr)
    inner = list(core.jaxprs_in_params(params))
    if name == "cond":
        return max(map(_flops, inner))
    if inner and name not in COUNTS:  # scan, while, jit, custom_vjp, custom_jvp, remat
        return params.get("length", 1) * sum(map(_flops, inner))
    if name in MOVES.split() or not any(map(_is_float, operands + results)):
        return 0
    return round(COUNTS.get(name, _by_element)(equation, operands, results))


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
    """Count n ⌈log₂ n⌉ comparisons for each lane of n."""
    lane = operands[0].shape[equation.params.get("dimension", -1)]
    return _size(operands[0]) * math.ceil(math.log2(max(lane, 1)))


def _convolution(equation: core.JaxprEqn, operands: list[Any], results: list[Any]) -> int:
    features = operands[1].shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * _size(results[0]) * (_size(operands[1]) // features)


def _scatter(equation: core.JaxprEqn, operands: list[Any], results: list[Any]) -> int:
    return _size(operands[2])


# Golub & Van Loan, Matrix Computations, for each of a batch of matrices.


def _qr(equation: core.JaxprEqn, operands: list[Any], results: list[Any]) -> int | float:
    """Count Householder's reflections on the matrix, and again on as many columns as Q has."""
    *batch, m, n = operands[0].shape
    k = min(m, n)

    def reflections(columns):
        return 4 * m * columns * k - 2 * (m + columns) * k**2 + 4 * k**3 / 3

    return math.prod(batch) * (reflections(n) + reflections(results[0].shape[-1]))


def _svd(equation: core.JaxprEqn, operands: list[Any], results: list[Any]) -> int | float:
    n, m = sorted(operands[0].shape[-2:])
    batch = math.prod(operands[0].shape[:-2])
    if not equation.params["compute_uv"]:
        return batch * (4 * m * n**2 - 4 * n**3 / 3)
    if equation.params["full_matrices"]:
        return batch * (4 * m**2 * n + 8 * m * n**2 + 9 * n**3)
    return batch * (14 * m * n**2 + 8 * n**3)


def _cubic(factor: float) -> Callable[..., float]:
    """Make the count factor · n³ for square matrices (n, n)."""
    return lambda equation, operands, results: factor * _size(operands[0]) * operands[0].shape[-1]


COUNTS: dict[str, Callable[[core.JaxprEqn, list[Any], list[Any]], int | float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "sort": _sort,
    "top_k": _sort,
    "scatter-add": _scatter,
    "scatter-sub": _scatter,
    "scatter-mul": _scatter,
    "scatter-min": _scatter,
    "scatter-max": _scatter,
    "qr": _qr,
    "svd": _svd,
    "lu": _cubic(2 / 3),
    "cholesky": _cubic(1 / 3),
    "eigh": _cubic(9.0),
    "triangular_solve": lambda equation, operands, results: (
        _size(results[0]) * operands[0].shape[-1]
    ),
}

RANDOM = {"random_bits", "threefry2x32", "rng_bit_generator"}

MOVES = """bitcast_convert_type broadcast broadcast_in_dim concatenate convert_element_type copy
    copy_p device_put dynamic_slice dynamic_update_slice expand_dims gather imag iota name
    optimization_barrier pad real reshape rev scatter sharding_constraint slice split squeeze stack
    stop_gradient transpose unstack"""
