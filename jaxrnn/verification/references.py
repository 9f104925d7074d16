"""References that only evaluate the loss: finite differences and the complex step.

They share no code with any backward pass, nor with JAX's autodiff.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.tree import by_name, length
from jaxrnn.verification.leaf import ReferenceValues

Value = Callable[[Any], Any]  # parameters -> loss
Line = Callable[[complex], Any]  # step along a direction -> loss
Measure = Callable[[Value, Any], tuple[float, dict[str, ReferenceValues]]]


STEP = float(np.finfo(np.float64).eps ** (1 / 5))  # balances rounding with the error O(s⁴)
SHORT = 1e-6  # relative to a leaf: about 17 float32 roundings; a smooth loss is a parabola here
BEND = 1e-4  # relative to the slope: a larger disagreement within a step is a kink


class Reference(NamedTuple):
    """A method that computes a gradient from evaluations of the loss alone.

    Made by `finite_difference` and `complex_step`, and passed as `reference=` to `verify` and
    `check_grad`.

    Attributes:
        description: a description for the report.
        measure: a function (value, params) -> (loss, the values of each leaf by name).
    """

    description: str
    measure: Measure


class Slope(NamedTuple):
    """A derivative along a line, a bound on its error, and whether the loss is smooth there."""

    value: float
    error: float
    smooth: bool


def finite_difference(*, directions: int = 64, elements: int = 500, seed: int = 0) -> Reference:
    """Make a reference of central differences, extrapolated to step 0 (Richardson 1911).

        D(s) = (L(x + s) - L(x - s)) / 2s,        r = (4 D(s/2) - D(s)) / 3

    The step s is eps^(1/5) = 7e-4 times the larger of |x| and the leaf's root mean square. If the
    one-sided differences disagree by more than those of a smooth loss, as at the kink of a relu,
    the step is made 64 and then 4096 times smaller. An element that still disagrees is left out,
    and the report counts it.

    Args:
        directions: the number of random directions along which a leaf of more than `elements`
            elements is compared. They show the relative size of an error but not its element.
        elements: the largest size of a leaf of which every element is compared. Each element takes
            4 to 12 evaluations of the loss.
        seed: the seed of the random directions.

    Returns:
        A `Reference` for `verify` and `check_grad`. The loss may be any function, also in NumPy.

    Raises:
        ValueError: if directions is below 1 or elements below 0.

    >>> import numpy as np, jaxrnn
    >>> loss = lambda x: np.sum(np.asarray(x) ** 2)
    >>> grad = lambda x: (loss(x), 2 * np.asarray(x))
    >>> x, reference = np.arange(3.0), jaxrnn.finite_difference()
    >>> jaxrnn.check_grad(grad, loss, x, reference=reference).ok
    True
    """
    _check(directions, elements)

    def measure(value, params):
        loss, noise = float(value(params)), noise_of(value, params)
        # The step is longer if the loss computes in lower precision.
        step = max(STEP, (noise / abs(loss)) ** (1 / 5) if loss else 0.0)

        def slope(line, size):
            for divisor in (1, 64, 4096):
                derivative = _central(line, loss, step * size / divisor, noise)
                if derivative.smooth:
                    break
            return derivative

        return loss, _measure_leaves(value, params, slope, directions, elements, seed)

    return Reference("central differences of the loss", measure)


def complex_step(*, directions: int = 64, elements: int = 500, seed: int = 0) -> Reference:
    """Make a reference of complex steps (Squire & Trapp 1998), exact to rounding.

        r = Im L(x + i s) / s,        s = 1e-30

    The loss must accept complex numbers and be analytic. This holds for every network with a
    built-in loss, and for a relu away from its kink, but not for a loss with an absolute value.

    Args:
        directions: the number of random directions for large leaves, as in `finite_difference`.
        elements: the largest size of a leaf of which every element is compared.
        seed: the seed of the random directions.

    Returns:
        A `Reference` for `verify` and `check_grad`.

    Raises:
        ValueError: if directions is below 1 or elements below 0. `verify` and `check_grad` raise it
            if the loss does not accept complex numbers or disagrees with real differences.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> loss = lambda x: jnp.sum(jnp.sin(x))
    >>> x, reference = jnp.arange(3.0), jaxrnn.complex_step()
    >>> jaxrnn.check_grad(jax.value_and_grad(loss), loss, x, reference=reference).ok
    True
    """
    _check(directions, elements)
    remedy = "use finite_difference() for a loss that is not analytic"

    def slope(line, size):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                value = complex(line(1e-30j * size))
        except (TypeError, ValueError, np.exceptions.ComplexWarning) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"the loss does not accept complex numbers ({reason}): {remedy}"
            ) from error
        return Slope(value.imag / (1e-30 * size), 0.0, bool(np.isfinite(value)))

    def measure(value, params):
        loss, noise = float(value(params)), noise_of(value, params)
        params = jax.tree.map(lambda leaf: leaf + 0j, params)
        rng = np.random.default_rng(seed)
        for _ in range(3):
            line = _random_line(value, params, rng)
            step, real = slope(line, 1.0), _central(line, loss, STEP / 64, noise)
            if not abs(step.value - real.value) <= 1e-4 * abs(real.value) + 10 * real.error:
                raise ValueError(
                    f"the complex step gives {step.value:.6g}, but real differences give "
                    f"{real.value:.6g}: {remedy}"
                )

        def checked_slope(line, size):
            """Return the slope; it is not smooth if it overflows or real differences disagree."""
            step, real = slope(line, size), _central(line, loss, STEP / 64 * size, noise)
            agree = abs(step.value - real.value) <= 1e-4 * abs(real.value) + 10 * real.error
            return step._replace(smooth=step.smooth and real.smooth and bool(agree))

        return loss, _measure_leaves(value, params, checked_slope, directions, elements, seed)

    return Reference("complex steps in the loss", measure)


def _check(directions: int, elements: int) -> None:
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    if elements < 0:
        raise ValueError(f"elements must be at least 0, got {elements}")


def _central(line: Line, loss: float, step: float, noise: float) -> Slope:
    """Compute the derivative along a line from central differences at a step and at half of it."""
    steps = (step, -step, step / 2, -step / 2)
    above, below, near_above, near_below = (complex(line(s)).real for s in steps)
    whole, half = (above - below) / (2 * step), (near_above - near_below) / step
    # If the loss is smooth, the one-sided differences disagree half as much at half the step.
    disagreement = abs((above + below - 2 * loss) - 4 * (near_above + near_below - 2 * loss)) / step
    rounding = 2 * noise / step
    bend = max(disagreement, abs(whole - half))
    smooth = bend <= BEND * max(abs(whole), abs(half)) + 10 * rounding
    error = rounding + max(0.0, disagreement - 10 * rounding)
    return Slope((4 * half - whole) / 3, error, bool(smooth))


def noise_of(value: Value, params: Any) -> float:
    """Compute the rounding noise of a loss, in whatever precision it computes.

    The noise is the larger of two numbers: the change of the loss with the last digit of the
    parameters, and its distance from a parabola on a short line. A loss in float32 is a step
    function on such a line.
    """
    rng, eps, loss = np.random.default_rng(0), np.finfo(np.float64).eps, float(value(params))

    def perturb(leaf):
        return np.asarray(leaf) * (1 + eps * rng.uniform(-1, 1, np.shape(leaf)))

    losses = [float(value(jax.tree.map(perturb, params))) for _ in range(8)]
    along, line = np.linspace(-1, 1, 9), _random_line(value, params, rng)

    def distance_from_parabola(scale):
        values = np.array([complex(line(scale * s)).real for s in along])
        return np.abs(values - np.polyval(np.polyfit(along, values, 2), along)).max()

    # The steps of a loss in float32 are as large on a longer line; the effect of a kink grows.
    jumps = distance_from_parabola(SHORT)
    jumps = jumps if distance_from_parabola(10 * SHORT) < 3 * jumps else 0.0
    return float(max(np.abs(np.subtract(losses, loss)).max(), jumps)) + eps * abs(loss)


def _size(leaf: np.ndarray) -> float:
    """Return the root mean square of a leaf, or 1 if it is zero."""
    return length(leaf) / np.sqrt(leaf.size) or 1.0


def _random_line(value: Value, params: Any, rng: np.random.Generator) -> Line:
    """Draw a random direction in which each leaf moves in proportion to its root mean square."""
    v = jax.tree.map(lambda leaf: _size(leaf) * rng.standard_normal(leaf.shape), params)
    return lambda step: value(jax.tree.map(lambda leaf, v: leaf + step * v, params, v))


def _measure_leaves(value, params, slope, directions, elements, seed) -> dict[str, ReferenceValues]:
    """Measure each leaf: every element, or along random directions of unit length."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(params)
    names = list(by_name(params))
    measured = {}
    for index, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if leaf.size <= elements:
            along = np.eye(leaf.size).reshape(leaf.size, *leaf.shape)
            sizes = np.maximum(np.abs(leaf), _size(leaf)).reshape(-1)
        else:
            along = rng.standard_normal((directions, *leaf.shape))
            along /= np.sqrt(np.square(along).sum(tuple(range(1, along.ndim)), keepdims=True))
            sizes = np.full(directions, _size(leaf) * np.sqrt(leaf.size))

        def line(step, v, index=index, leaf=leaf):
            return value(tree.unflatten([*leaves[:index], leaf + step * v, *leaves[index + 1 :]]))

        slopes = [slope(partial(line, v=v), size) for v, size in zip(along, sizes, strict=True)]
        element_wise = leaf.size <= elements
        shape = leaf.shape if element_wise else (directions,)
        kept = np.array([s.smooth for s in slopes]).reshape(shape)
        measured[name] = ReferenceValues(
            values=np.array([s.value for s in slopes]).reshape(shape),
            directions=None if element_wise else along,
            kept=None if kept.all() else kept,
            error=length(np.array([s.error for s in slopes if s.smooth])),
        )
    return measured
