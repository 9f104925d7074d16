"""References that need no gradient: finite differences, and the complex step.

Both ask the loss alone, and share no code with any backward pass nor with JAX's autodiff.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.tree import by_name, length
from jaxrnn.verification.leaf import ReferenceValues

Value = Callable[[Any], Any]  # parameters to the loss
Line = Callable[[complex], Any]  # how far along some direction, to the loss
Measure = Callable[[Value, Any], tuple[float, dict[str, ReferenceValues]]]


STEP = float(np.finfo(np.float64).eps ** (1 / 5))  # where rounding and the error O(s⁴) balance
SHORT = 1e-6  # of a leaf's size: some 17 roundings of float32, and no more than a parabola
BEND = 1e-4  # relative to the slope: what bends more within a step is a kink


class Reference(NamedTuple):
    """A way to know a gradient from the loss.

    Attributes:
        description: what it is, for the report.
        measure: (value, params) -> (loss, what is known of each leaf, by name).
    """

    description: str
    measure: Measure


class Slope(NamedTuple):
    """A derivative along a line, how far off it may be, and whether the loss is smooth there."""

    value: float
    error: float
    smooth: bool


def finite_difference(*, directions: int = 64, elements: int = 500, seed: int = 0) -> Reference:
    """Make a reference of central differences, extrapolated to step 0 (Richardson 1911).

        D(s) = (L(x + s) - L(x - s)) / 2s,        r = (4 D(s/2) - D(s)) / 3

    The step is eps^(1/5) = 7e-4 times the larger of |x| and the leaf's root mean square. Where the
    one-sided differences disagree by more than a smooth loss explains, at a kink such as relu's,
    the step is made 64 and 4096 times smaller, and what still bends is left out and counted.

    Args:
        directions: k, along how many random directions a larger leaf is known. They show any
            error at about its size relative to the leaf's gradient, but not at which element.
        elements: up to this size, every element of a leaf is known, by 4 to 12 losses each.
        seed: of the directions.

    Raises:
        ValueError: if directions is below 1 or elements below 0.
    """
    _check(directions, elements)

    def measure(value, params):
        loss, noise = float(value(params)), noise_of(value, params)
        # The step of a loss that computes in fewer digits is longer.
        step = max(STEP, (noise / abs(loss)) ** (1 / 5) if loss else 0.0)

        def slope(line, size):
            for closer in (1, 64, 4096):
                found = _central(line, loss, step * size / closer, noise)
                if found.smooth:
                    break
            return found

        return loss, _known(value, params, slope, directions, elements, seed)

    return Reference("central differences of the loss", measure)


def complex_step(*, directions: int = 64, elements: int = 500, seed: int = 0) -> Reference:
    """Make a reference of complex steps, r = Im L(x + i s) / s with s = 1e-30: exact to rounding.

    For losses that are analytic where they are asked: those of every network with a built-in loss,
    of a relu away from its kink; one that takes a modulus is not. Source: Squire & Trapp 1998.

    Args:
        directions: as in `finite_difference`.
        elements: as in `finite_difference`.
        seed: of the directions.

    Raises:
        ValueError: as `finite_difference`; and when measuring, if the loss takes no complex numbers
            or disagrees with real differences.
    """
    _check(directions, elements)
    remedy = "use finite_difference() for a loss that is not analytic"

    def slope(line, size):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                there = complex(line(1e-30j * size))
        except (TypeError, ValueError, np.exceptions.ComplexWarning) as error:
            said = (str(error).splitlines() or [""])[0]
            raise ValueError(f"the loss takes no complex numbers ({said}): {remedy}") from error
        return Slope(there.imag / (1e-30 * size), 0.0, bool(np.isfinite(there)))

    def measure(value, params):
        loss, noise = float(value(params)), noise_of(value, params)
        params = jax.tree.map(lambda leaf: leaf + 0j, params)
        rng = np.random.default_rng(seed)
        for _ in range(3):
            line = _random_line(value, params, rng)
            found, real = slope(line, 1.0), _central(line, loss, STEP / 64, noise)
            if not abs(found.value - real.value) <= 1e-4 * abs(real.value) + 10 * real.error:
                raise ValueError(
                    f"the complex step gives {found.value:.6g} where a real one gives "
                    f"{real.value:.6g}: {remedy}"
                )

        def checked(line, size):
            """Leave out what real differences show to be a kink, or what overflows."""
            found, real = slope(line, size), _central(line, loss, STEP / 64 * size, noise)
            agree = abs(found.value - real.value) <= 1e-4 * abs(real.value) + 10 * real.error
            return found._replace(smooth=found.smooth and real.smooth and bool(agree))

        return loss, _known(value, params, checked, directions, elements, seed)

    return Reference("complex steps in the loss", measure)


def _check(directions: int, elements: int) -> None:
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    if elements < 0:
        raise ValueError(f"elements must be at least 0, got {elements}")


def _central(line: Line, loss: float, step: float, noise: float) -> Slope:
    """Differentiate along a line from central differences at a step and at half of it."""
    places = (step, -step, step / 2, -step / 2)
    above, below, near_above, near_below = (complex(line(place)).real for place in places)
    whole, half = (above - below) / (2 * step), (near_above - near_below) / step
    # Where the loss is smooth, the one-sided differences disagree half as much at half the step.
    disagreement = abs((above + below - 2 * loss) - 4 * (near_above + near_below - 2 * loss)) / step
    rounding = 2 * noise / step
    bend = max(disagreement, abs(whole - half))
    smooth = bend <= BEND * max(abs(whole), abs(half)) + 10 * rounding
    error = rounding + max(0.0, disagreement - 10 * rounding)
    return Slope((4 * half - whole) / 3, error, bool(smooth))


def noise_of(value: Value, params: Any) -> float:
    """Measure the rounding of a loss, whatever it computes in.

    It is how much the loss moves with the last digit of the parameters, or how far it is from a
    parabola on a short line: where a loss computes in float32, it moves in jumps.
    """
    rng, eps, loss = np.random.default_rng(0), np.finfo(np.float64).eps, float(value(params))

    def moved(leaf):
        return np.asarray(leaf) * (1 + eps * rng.uniform(-1, 1, np.shape(leaf)))

    losses = [float(value(jax.tree.map(moved, params))) for _ in range(8)]
    along, line = np.linspace(-1, 1, 9), _random_line(value, params, rng)

    def off_a_parabola(scale):
        found = np.array([complex(line(scale * place)).real for place in along])
        return np.abs(found - np.polyval(np.polyfit(along, found, 2), along)).max()

    # Jumps are as large on a longer line; what a kink bends by grows with it.
    jumps = off_a_parabola(SHORT)
    jumps = jumps if off_a_parabola(10 * SHORT) < 3 * jumps else 0.0
    return float(max(np.abs(np.subtract(losses, loss)).max(), jumps)) + eps * abs(loss)


def _size(leaf: np.ndarray) -> float:
    """Return a leaf's root mean square, 1 for one that is zero."""
    return length(leaf) / np.sqrt(leaf.size) or 1.0


def _random_line(value: Value, params: Any, rng: np.random.Generator) -> Line:
    """Draw a direction in which every leaf moves in its own measure."""
    v = jax.tree.map(lambda leaf: _size(leaf) * rng.standard_normal(leaf.shape), params)
    return lambda step: value(jax.tree.map(lambda leaf, v: leaf + step * v, params, v))


def _known(value, params, slope, directions, elements, seed) -> dict[str, ReferenceValues]:
    """Take slopes leaf by leaf: at every element, or along random directions of unit length."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(params)
    names = list(by_name(params))
    known = {}
    for place, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if leaf.size <= elements:
            along = np.eye(leaf.size).reshape(leaf.size, *leaf.shape)
            sizes = np.maximum(np.abs(leaf), _size(leaf)).reshape(-1)
        else:
            along = rng.standard_normal((directions, *leaf.shape))
            along /= np.sqrt(np.square(along).sum(tuple(range(1, along.ndim)), keepdims=True))
            sizes = np.full(directions, _size(leaf) * np.sqrt(leaf.size))

        def line(step, v, place=place, leaf=leaf):
            return value(tree.unflatten([*leaves[:place], leaf + step * v, *leaves[place + 1 :]]))

        slopes = [slope(partial(line, v=v), size) for v, size in zip(along, sizes, strict=True)]
        every = leaf.size <= elements
        shape = leaf.shape if every else (directions,)
        kept = np.array([s.smooth for s in slopes]).reshape(shape)
        known[name] = ReferenceValues(
            values=np.array([s.value for s in slopes]).reshape(shape),
            directions=None if every else along,
            kept=None if kept.all() else kept,
            error=length(np.array([s.error for s in slopes if s.smooth])),
        )
    return known
