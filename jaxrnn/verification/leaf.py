"""The comparison of one leaf of a gradient with its reference."""

from typing import NamedTuple

import numpy as np

# The largest relative error of an exact gradient in float64, which is due to rounding alone.
EXACT = 1e-12


class ReferenceValues(NamedTuple):
    """The gradient r of one leaf, as far as a reference knows it.

    Attributes:
        values: r itself, or its inner product ⟨r, v⟩ with each direction v of `directions`.
        directions: the directions, (k, *shape of r); None if values are r.
        kept: a boolean array of the shape of values, False where the loss has a kink and the value
            is left out; None if every value is used.
        error: a bound on the norm of the error of the values.
    """

    values: np.ndarray
    directions: np.ndarray | None = None
    kept: np.ndarray | None = None
    error: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether every element is known without error."""
        return self.directions is None and self.kept is None and self.error == 0


class Leaf(NamedTuple):
    """The comparison of one leaf g of the candidate's gradient with the leaf r of the reference.

    Attributes:
        name: the name of the leaf in the parameters, such as "cells[0].W_hh".
        error: ‖g - r‖ / ‖r‖, or ‖g‖ if r is zero.
        tolerance: the largest error with which the leaf is right; nan if every value is left out.
        cosine: the cosine of the angle between g and r, 1 if they have the same direction; nan if
            either is zero.
        scale: the least-squares factor s of g ≈ s r.
        worst: the index of the element with the largest error, or of the direction.
        candidate: the value of g at that index.
        reference: the value of r at that index.
        not_finite: the number of elements of g that are infinite or nan.
        directions: the number of random directions along which r is known; 0 if each element is.
        left_out: the number of elements or directions left out because the loss has a kink there.
    """

    name: str
    error: float
    tolerance: float
    cosine: float
    scale: float
    worst: tuple[int, ...]
    candidate: float
    reference: float
    not_finite: int
    directions: int
    left_out: int

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; False if it is nan."""
        return self.error <= self.tolerance


def compare(name: str, g: np.ndarray, known: ReferenceValues, tolerance: float) -> Leaf:
    """Compare one leaf g with the values of a reference of the same shape."""
    with np.errstate(all="ignore"):  # nan and inf are shown in the report
        not_finite = int(np.sum(~np.isfinite(g)))
        r, kept = known.values, known.kept
        if known.directions is not None:
            g = known.directions.reshape(len(known.directions), -1) @ g.reshape(-1)
        used = ... if kept is None else kept
        size, error, cosine, scale = _statistics(g[used], r[used])
        errors = np.nan_to_num(np.abs(g / size - r / size), nan=np.inf)
        errors = errors if kept is None else np.where(kept, errors, -1.0)
        worst = np.unravel_index(np.argmax(errors), errors.shape)
        return Leaf(
            name=name,
            error=error,
            tolerance=np.nan
            if kept is not None and not kept.any()
            else tolerance + 10 * known.error / size,
            cosine=cosine,
            scale=scale,
            worst=tuple(map(int, worst)),
            candidate=float(g[worst]),
            reference=float(r[worst]),
            not_finite=not_finite,
            directions=0 if known.directions is None else len(known.directions),
            left_out=0 if kept is None else int(np.sum(~kept)),
        )


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Compute ‖a - b‖ / ‖b‖, or ‖a‖ if b is zero, without overflow of the squares."""
    with np.errstate(all="ignore"):
        return _statistics(a, b)[1]


def _statistics(g: np.ndarray, r: np.ndarray) -> tuple[float, float, float, float]:
    """Compute n = ‖r‖ (1 if r is zero), ‖g - r‖ / n, and the cosine and scale of g against r."""
    unit = float(np.abs(r).max(initial=0.0)) or 1.0  # so that no square overflows
    g, r = g / unit, r / unit
    r_norm = np.linalg.norm(r)
    norm = r_norm if r_norm > 0 else 1.0
    inner = np.vdot(r, g)
    return (
        float(unit * norm),
        float(np.linalg.norm(g - r) / norm),
        float(inner / (np.linalg.norm(g) * r_norm)),
        float(inner / r_norm**2),
    )


def in_full(a: float, b: float, digits: int) -> tuple[str, str]:
    """Format two numbers with the given digits, or with more if they would look the same."""
    while digits < 17 and a != b and f"{a:.{digits}g}" == f"{b:.{digits}g}":
        digits += 1
    return f"{a:.{digits}g}", f"{b:.{digits}g}"
