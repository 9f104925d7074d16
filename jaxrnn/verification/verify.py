"""Compare a gradient with a reference: `verify` for an RNN, `check_grad` for any function."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrnn.gradients import RULES, Carry, GradientAlgorithm, autodiff
from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_counts, check_is_batch, position_weights
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params
from jaxrnn.tree import by_name, copied
from jaxrnn.verification.assess import assess, cannot_tell
from jaxrnn.verification.candidate import arrays, ask_twice, is_floats, map_floats
from jaxrnn.verification.findings import not_finite
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

    A leaf g of the candidate's gradient is right if its error against the reference r is within the
    tolerance of that leaf:

        ‖g - r‖ ≤ tolerance ‖r‖

    The tolerance is 1e-12 in float64. Where rounding errors are larger, it is measured on this
    network and batch. A leaf that is wrong is compared with a catalogue of bugs, each of which is
    computed on this network and batch.

    Args:
        candidate: the gradient to check: a `GradientAlgorithm`, or a function (params, batch) ->
            (loss, gradient). The gradient has the structure of params. The function may be written
            in JAX, NumPy or anything else whose arrays NumPy can read. It is called twice, each
            time with copies of the arrays.
        rnn: the network; the gradient is that of `rnn.loss`.
        params: the parameters at which the gradients are compared, in any dtype.
        batch: inputs (B, T) or (B, T, I), targets (B, T) or (B, T, O), optionally mask and lengths.
        h: the state before the first step, (num_layers, B, H); zeros by default. A function does
            not receive it and must start from the same state.
        reference: what to compare with; `jax.grad` of `rnn.loss` by default. Alternatives are
            `finite_difference()`, `complex_step()` or another candidate.
        dtype: the dtype of the arrays that the candidate gets, and in which it should compute. The
            reference computes in float64 at the same values. Neither depends on `jax_enable_x64`.

    Returns:
        A `Report`, which is true if the gradient is right: `assert verify(…)` is a test.
        `report.diagnosis` says what is wrong, or that the gradient is right, and `print(report)`
        shows a table of all leaves.

    Raises:
        ValueError: if params, batch or h do not fit the network, dtype is not one of the two, or
            the reference fails. Errors of the candidate are not raised: they are in the report.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params = rnn.init(jax.random.key(0))
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> jaxrnn.verify(jaxrnn.gradients.bptt(rnn), rnn, params, batch).ok
    True
    >>> print(jaxrnn.verify(jaxrnn.gradients.truncated_bptt(rnn, 2), rnn, params, batch).diagnosis)
    ... # doctest: +ELLIPSIS
    wrong: truncated at 2 in cells[0].W_xh, cells[0].W_hh, cells[0].b_h: errors reach 2 ...
    """
    checks.one_of("dtype", dtype, ("float64", "float32"))
    if not isinstance(rnn, RNN):
        raise ValueError(
            f"rnn must be a jaxrnn.RNN, got a {type(rnn).__name__}: "
            f"verify(candidate, rnn, params, batch)"
        )
    for name, function in (("candidate", candidate), ("reference", reference)):
        for rule, row in RULES.items():
            if getattr(function, "func", function) is row.build:  # `func`: of a partial
                raise ValueError(
                    f"{name} is the builder of {rule}, not an algorithm: "
                    f"jaxrnn.gradients.{rule}(rnn)"
                )
    check_is_batch(batch)
    check_counts(batch)
    params, h, batch = copied((params, h, batch))
    with jax.enable_x64(True):
        h_0 = rnn.initial_state(len(batch.inputs)) if h is None else h
        candidate_args = _cast((params, h_0, batch), dtype)
        params, h_0, batch = _cast(candidate_args, "float64")
        if finding := not_finite("the parameters", arrays(params)):
            return cannot_tell(finding)
        targets = batch.targets
        batch, h_0 = check_batch(rnn, params, batch, h_0)

        # Targets at masked positions matter to a candidate that forgets the mask.
        as_given = _with_lengths_in_the_mask(batch._replace(targets=targets), h_0.dtype)
        problem = Problem(
            args=(params, h_0, batch),
            loss=lambda params: _loss(rnn, params, h_0, batch),
            value_and_grad=partial(_autodiff, rnn),
            terms=batch.inputs.shape[0] * batch.inputs.shape[1] + rnn.hidden_size,
            name="jax.grad of rnn.loss",
            network=Network(rnn, h_0, batch, as_given),
        )
        with jax.enable_x64(dtype == "float64"):
            answer = ask_twice(partial(_call, candidate), candidate_args, candidate_args[0])
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
        value_and_grad_fn: the gradient to check: a function args -> (loss, gradient), like those
            that `jax.value_and_grad` makes. The gradient has the structure of the first argument.
            The function may be written in JAX, NumPy or anything else whose arrays NumPy can read.
        loss_fn: a function args -> loss, one number.
        *args: the arguments at which to compare. The gradient is taken with respect to the first, a
            pytree of real floats. Floats are converted to `dtype`; everything else, such as random
            keys, integers, strings and functions, is passed on unchanged.
        reference: what to compare with; `jax.grad` of `loss_fn` by default. Alternatives are
            `finite_difference()`, which also works for a loss in NumPy, `complex_step()`, or
            another function like `value_and_grad_fn`.
        dtype: "float64" or "float32", as in `verify`.

    Returns:
        A `Report`, as from `verify`. There are no lag profiles, and only bugs that can occur in any
        gradient are named, such as a wrong sign, a wrong factor, a transpose or a clip.

    Raises:
        ValueError: if there are no args, the first holds anything but real floats, the loss is not
            one number, dtype is not one of the two, or the reference fails. Errors of
            `value_and_grad_fn` are not raised: they are in the report.

    >>> import jax.numpy as jnp, jaxrnn
    >>> loss = lambda x: jnp.sum(x**2)
    >>> forgot_the_2 = lambda x: (loss(x), x)
    >>> print(jaxrnn.check_grad(forgot_the_2, loss, jnp.arange(1.0, 4.0)).diagnosis)
    wrong: halved in array: it is half the exact value: is the 2 of d(x²)/dx = 2x missing?
    """
    checks.one_of("dtype", dtype, ("float64", "float32"))
    if not args:
        raise ValueError(
            "args must not be empty: pass the parameters to differentiate with respect to, and the "
            "other arguments of loss_fn"
        )
    args = copied(args)
    with jax.enable_x64(True):
        candidate_args = _cast(args, dtype)
        args = _cast(candidate_args, "float64")
        _check_params(args[0])
        floats = {name: leaf for name, leaf in by_name(args).items() if is_floats(leaf)}
        if finding := not_finite("the arguments", floats):
            return cannot_tell(finding)
        differentiate, precision = _make_value_and_grad(loss_fn, args)
        if precision is not None:
            dtype, candidate_args = "float32", _cast(candidate_args, "float32")
        with jax.enable_x64(dtype == "float64"):
            answer = ask_twice(value_and_grad_fn, candidate_args, candidate_args[0])

        def loss(params):
            loss_args = (params, *args[1:])
            with jax.enable_x64(precision is None):
                return loss_fn(*(loss_args if precision is None else _cast(loss_args, "float32")))

        problem = Problem(
            args=args,
            loss=loss,
            value_and_grad=differentiate,
            terms=max((np.size(leaf) for leaf in jax.tree.leaves(args)), default=1),
            name="jax.grad of the loss",
            precision=precision,
        )
        return assess(answer, problem, reference, dtype)


def _call(candidate: Candidate, params: Params, h: Any, batch: Batch) -> Any:
    """Call an algorithm from the state h, or a function of (params, batch) without it."""
    if not isinstance(candidate, GradientAlgorithm):
        return candidate(params, batch)
    carry = candidate.init(params, h, key=jax.random.key(0))
    (loss, _), grads = jax.jit(candidate.value_and_grad)(params, carry, batch)
    return loss, grads


def _with_lengths_in_the_mask(batch: Batch, dtype: Any) -> Batch:
    """Multiply the mask by the lengths, since the catalogue of bugs looks only at the mask."""
    return batch if batch.lengths is None else batch._replace(mask=position_weights(batch, dtype))


@partial(jax.jit, static_argnames="rnn")
def _autodiff(rnn: RNN, params: Params, h: Any, batch: Batch) -> tuple[Any, Params]:
    (loss, _), grads = autodiff(rnn).value_and_grad(params, Carry(h, ()), batch)
    return loss, grads


@partial(jax.jit, static_argnames="rnn")
def _loss(rnn: RNN, params: Params, h: Any, batch: Batch) -> Any:
    return rnn.loss(params, h, batch)[0]


def _cast(tree: Any, dtype: Dtype) -> Any:
    """Convert the floats of a pytree to JAX arrays of a dtype; leave everything else unchanged."""
    return map_floats(lambda leaf: jnp.asarray(leaf).astype(dtype), tree)


def _check_params(params: Any) -> None:
    """Raise `ValueError` unless every leaf of the first argument holds real floats."""
    for name, leaf in by_name(params).items():
        if not is_floats(leaf):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(
                f"the gradient is taken with respect to the first argument, which must hold real "
                f"floats, but {name} is {kind}: pass it as a further argument, or a complex number "
                f"as its real and imaginary parts"
            )


def _make_value_and_grad(
    loss_fn: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[ValueAndGrad, str | None]:
    """Return a compiled function args -> (loss, gradient), and the reason if it is in float32.

    Arrays are traced. Strings, functions and Python's own numbers are compile-time constants.

    Raises:
        ValueError: if the loss is not a single number.
    """

    @jax.jit
    def value_and_grad_of_arrays(leaves):
        pairs = zip(leaves, constants, strict=True)
        params, *rest = tree.unflatten(
            [leaf if constant is None else constant for leaf, constant in pairs]
        )
        return jax.value_and_grad(loss_fn)(params, *rest)

    leaves, tree = jax.tree.flatten(args)
    constants = [None if isinstance(leaf, jax.Array | np.ndarray) else leaf for leaf in leaves]

    def differentiate(*args):
        pairs = zip(jax.tree.leaves(args), constants, strict=True)
        return value_and_grad_of_arrays(
            [leaf if constant is None else None for leaf, constant in pairs]
        )

    def in_float32(*args):
        with jax.enable_x64(False):
            return differentiate(*_cast(args, "float32"))

    try:
        loss = jax.eval_shape(lambda: loss_fn(*args))
        shape = getattr(loss, "shape", None)
    except Exception:  # the caller's function cannot be traced: `assess` reports the reason
        shape = None
    if shape:
        raise ValueError(
            f"loss_fn returns an array of shape {shape}, but a loss is one number: return its sum "
            f"or its mean"
        )
    try:
        jax.eval_shape(differentiate, *args)
    except Exception:
        try:
            in_float32(*args)
        except Exception:
            return differentiate, None
        return in_float32, "the loss cannot be traced in float64"
    return differentiate, None
