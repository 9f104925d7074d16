"""Telling whether a gradient is right, and if not, what is wrong with it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrnn.gradients import Carry, GradientAlgorithm, autodiff
from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_is_batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params
from jaxrnn.tree import by_name
from jaxrnn.verification.assess import assess, cannot_tell
from jaxrnn.verification.candidate import arrays, ask_twice, is_floats
from jaxrnn.verification.expected import find_not_finite
from jaxrnn.verification.problem import Dtype, Network, Problem, ValueAndGrad
from jaxrnn.verification.references import Reference
from jaxrnn.verification.report import Report

Candidate = GradientAlgorithm | Callable[[Params, Batch], tuple[Any, Any]]


def verify(
    candidate: Candidate,
    rnn: RNN,
    params: Params,
    batch: Batch,
    *,
    h: Float[AnyArray, "L B H"] | None = None,
    reference: Reference | Candidate | None = None,
    dtype: Dtype = "float64",
) -> Report:
    """Compare a gradient of an RNN's loss with a reference, and name its bugs.

    Args:
        candidate: a `GradientAlgorithm`, or a function (params, batch) -> (loss, gradient in the
            structure of params), in JAX, NumPy or whatever else makes arrays.
        rnn: the network whose loss is meant.
        params: where to compare, in any dtype.
        batch: on what to compare.
        h: the state before the first step, (num_layers, B, H); zeros if not given.
        reference: what to compare with: `jax.grad` of `rnn.loss` if not given;
            `finite_difference()`, `complex_step()`, or another candidate.
        dtype: what the candidate is given and should compute in. The reference computes in float64
            at the same numbers. Neither depends on the process's setting.

    Returns:
        The report: `report.ok`, `report.diagnosis`, `print(report)`.

    Raises:
        ValueError: if params, batch or h do not fit the network, or the reference fails. Whatever
            is wrong with the candidate is in the report.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params = rnn.init(jax.random.key(0))
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> print(jaxrnn.verify(jaxrnn.gradients.truncated_bptt(rnn, 2), rnn, params, batch).diagnosis)
    ... # doctest: +ELLIPSIS
    wrong: truncated at 2 in cells[0].W_xh, cells[0].W_hh, cells[0].b_h: errors reach 2 ...
    """
    checks.one_of("dtype", dtype, ("float64", "float32"))
    check_is_batch(batch)
    with jax.enable_x64(True):
        start = rnn.initial_state(len(batch.inputs)) if h is None else h
        given = _as((params, start, batch), dtype)
        params, start, batch = _as(given, "float64")
        if finding := find_not_finite("the parameters", arrays(params)):
            return cannot_tell(finding)
        targets = batch.targets
        batch, start = check_batch(rnn, params, batch, start)

        # Targets at masked positions matter to a candidate that forgets the mask.
        as_given = _with_lengths_in_the_mask(batch._replace(targets=targets), start.dtype)
        problem = Problem(
            args=(params, start, batch),
            loss=lambda params: _loss(rnn, params, start, batch),
            value_and_grad=partial(_autodiff, rnn),
            terms=batch.inputs.shape[0] * batch.inputs.shape[1] + rnn.hidden_size,
            name="jax.grad of rnn.loss",
            network=Network(rnn, start, batch, as_given),
        )
        with jax.enable_x64(dtype == "float64"):
            answer = ask_twice(partial(_call, candidate), given, given[0])
        if reference is None or isinstance(reference, Reference):
            return assess(answer, problem, reference, dtype)
        return assess(answer, problem, partial(_call, reference), dtype)


def check_grad(
    value_and_grad_fn: ValueAndGrad,
    loss_fn: Callable[..., Any],
    *args: Any,
    reference: Reference | ValueAndGrad | None = None,
    dtype: Dtype = "float64",
) -> Report:
    """Compare the gradient of any function of a pytree with a reference, as `verify` does.

    Args:
        value_and_grad_fn: args -> (loss, gradient in the structure of the first argument), as
            `jax.value_and_grad` makes it; in JAX, NumPy or whatever else makes arrays.
        loss_fn: args -> loss, a number.
        *args: where to compare. The gradient is that of the first, a pytree of floats. Floats are
            converted to `dtype`; everything else, such as keys, integers, strings and functions, is
            passed on as it is.
        reference: what to compare with: `jax.grad` of `loss_fn` if not given;
            `finite_difference()`, also for a loss in NumPy, `complex_step()`, or another function
            like `value_and_grad_fn`.
        dtype: as in `verify`.

    Raises:
        ValueError: if there are no args, the first holds anything but real floats, the loss is not
            one number, or the reference fails.

    >>> import jax.numpy as jnp, jaxrnn
    >>> forgot_the_2 = lambda x: (jnp.sum(x**2), x)
    >>> x = jnp.arange(1.0, 4.0)
    >>> print(jaxrnn.check_grad(forgot_the_2, lambda x: jnp.sum(x**2), x).diagnosis)
    wrong: halved in array: it is half the right one: is the 2 of a square's slope missing?
    """
    checks.one_of("dtype", dtype, ("float64", "float32"))
    if not args:
        raise ValueError("there is nothing to differentiate by: give the function's arguments")
    with jax.enable_x64(True):
        given = _as(args, dtype)
        args = _as(given, "float64")
        _check_params(args[0])
        floats = {name: leaf for name, leaf in by_name(args).items() if is_floats(leaf)}
        if finding := find_not_finite("the arguments", floats):
            return cannot_tell(finding)
        differentiate, precision = _differentiable(loss_fn, args)
        if precision is not None:
            dtype, given = "float32", _as(given, "float32")
        with jax.enable_x64(dtype == "float64"):
            answer = ask_twice(value_and_grad_fn, given, given[0])

        def loss(params):
            every = (params, *args[1:])
            with jax.enable_x64(precision is None):
                return loss_fn(*(every if precision is None else _as(every, "float32")))

        problem = Problem(
            args=args,
            loss=loss,
            value_and_grad=differentiate,
            terms=max((np.size(leaf) for leaf in jax.tree.leaves(args)), default=1),
            name="jax.grad of the loss",
            precision=precision,
        )
        return assess(answer, problem, reference, dtype)


def _call(side: Candidate, params: Params, h: Any, batch: Batch) -> Any:
    """Call an algorithm, from the state h, or a function (params, batch) -> (loss, gradient)."""
    if not isinstance(side, GradientAlgorithm):
        return side(params, batch)
    carry = side.init(params, h, key=jax.random.key(0))
    (loss, _), grads = jax.jit(side.value_and_grad)(params, carry, batch)
    return loss, grads


def _with_lengths_in_the_mask(batch: Batch, dtype: Any) -> Batch:
    """Make lengths a part of the mask, where the catalogue of bugs looks for what counts."""
    if batch.lengths is None:
        return batch
    valid = checks.within(batch.lengths, batch.inputs.shape[1]).astype(dtype)
    return batch._replace(mask=valid if batch.mask is None else batch.mask * valid)


@partial(jax.jit, static_argnames="rnn")
def _autodiff(rnn: RNN, params: Params, h: Any, batch: Batch) -> tuple[Any, Params]:
    (loss, _), grads = autodiff(rnn).value_and_grad(params, Carry(h, ()), batch)
    return loss, grads


@partial(jax.jit, static_argnames="rnn")
def _loss(rnn: RNN, params: Params, h: Any, batch: Batch) -> Any:
    return rnn.loss(params, h, batch)[0]


def _as(tree: Any, dtype: Dtype) -> Any:
    """Convert the floats of a pytree to JAX arrays of a dtype; everything else stays as it is."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf).astype(dtype) if is_floats(leaf) else leaf, tree
    )


def _check_params(params: Any) -> None:
    """Raise `ValueError` unless every leaf of a function's first argument is real floats."""
    for name, leaf in by_name(params).items():
        if not is_floats(leaf):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(
                f"the first argument is what the gradient is taken by, and must hold real floats, "
                f"but {name} is {kind}: pass it as a further argument, or a complex number as two"
            )


def _differentiable(
    loss_fn: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[ValueAndGrad, str | None]:
    """Return args -> (loss, gradient) by autodiff, compiled; and why it is in float32, if it is.

    Arrays are traced. Strings, functions and Python's own numbers are constants.

    Raises:
        ValueError: if the loss is no single number.
    """

    @jax.jit
    def of_arrays(leaves):
        pairs = zip(leaves, constants, strict=True)
        params, *rest = tree.unflatten([leaf if other is None else other for leaf, other in pairs])
        return jax.value_and_grad(loss_fn)(params, *rest)

    leaves, tree = jax.tree.flatten(args)
    constants = [None if isinstance(leaf, jax.Array | np.ndarray) else leaf for leaf in leaves]

    def differentiate(*args):
        pairs = zip(jax.tree.leaves(args), constants, strict=True)
        return of_arrays([leaf if other is None else None for leaf, other in pairs])

    def in_float32(*args):
        with jax.enable_x64(False):
            return differentiate(*_as(args, "float32"))

    try:
        loss = jax.eval_shape(lambda: loss_fn(*args))
        shape = getattr(loss, "shape", None)
    except Exception:  # somebody's function, traced: `assess` says what is wrong with it
        shape = None
    if shape:
        raise ValueError(
            f"loss_fn returns an array of shape {shape}, but a loss is one number: take its sum or "
            f"its mean"
        )
    try:
        jax.eval_shape(differentiate, *args)
    except Exception:
        try:
            in_float32(*args)
        except Exception:
            return differentiate, None
        return in_float32, "it cannot be traced in float64"
    return differentiate, None
