"""Comparing a gradient with a reference leaf by leaf, and the report of it."""

from typing import NamedTuple

import numpy as np

# Rounding, and no more: the largest relative error of an exact gradient in float64.
EXACT = 1e-12


class ReferenceValues(NamedTuple):
    """What a reference knows of one leaf's gradient r.

    Attributes:
        values: r itself, or what r says along each of `directions`, ⟨r, v⟩.
        directions: (k, *shape of r); None where values are r.
        kept: which values count, in the shape of values; the others lie at a kink of the loss.
        error: how far off the values may be, ‖·‖ of it.
    """

    values: np.ndarray
    directions: np.ndarray | None = None
    kept: np.ndarray | None = None
    error: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether every element is known, without an error."""
        return self.directions is None and self.kept is None and self.error == 0


class Leaf(NamedTuple):
    """How one leaf of the candidate's gradient g compares with the reference's r.

    Attributes:
        name: where it lies in the parameters.
        error: ‖g - r‖ / ‖r‖, or ‖g‖ where r is zero.
        tolerance: the largest error that passes.
        cosine: of the angle between g and r; 1 is the same direction, nan if either is zero.
        scale: the s that brings s r nearest to g.
        worst: the index of the element that is furthest off, or of the direction.
        candidate: g there.
        reference: r there.
        not_finite: how many elements of g are infinite or not a number.
        directions: along how many random directions r is known; 0 if each element is.
        left_out: how many elements or directions were left out, for the loss has a kink there.
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
        """Whether the error passes; one that is not a number does not."""
        return self.error <= self.tolerance


def compare(name: str, g: np.ndarray, known: ReferenceValues, tolerance: float) -> Leaf:
    """Compare one leaf g with what is known of the reference, both of one shape."""
    with np.errstate(all="ignore"):  # what is not finite shows in the figures
        not_finite = int(np.sum(~np.isfinite(g)))
        r, kept = known.values, known.kept
        if known.directions is not None:
            g = known.directions.reshape(len(known.directions), -1) @ g.reshape(-1)
        used = ... if kept is None else kept
        size, error, cosine, scale = _angle(g[used], r[used])
        off = np.nan_to_num(np.abs(g / size - r / size), nan=np.inf)
        off = off if kept is None else np.where(kept, off, -1.0)
        worst = np.unravel_index(np.argmax(off), off.shape)
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
    """Compute ‖a - b‖ / ‖b‖, or ‖a‖ where b is zero, without overflow of a square."""
    with np.errstate(all="ignore"):
        return _angle(a, b)[1]


def _angle(g: np.ndarray, r: np.ndarray) -> tuple[float, float, float, float]:
    """Compute ‖r‖ (1 if r is zero), ‖g - r‖ over it, and the cosine and scale of g against r."""
    unit = float(np.abs(r).max(initial=0.0)) or 1.0  # so that no square overflows
    g, r = g / unit, r / unit
    r_norm = np.linalg.norm(r)
    over = r_norm if r_norm > 0 else 1.0
    inner = np.vdot(r, g)
    return (
        float(unit * over),
        float(np.linalg.norm(g - r) / over),
        float(inner / (np.linalg.norm(g) * r_norm)),
        float(inner / r_norm**2),
    )


def in_full(a: float, b: float, digits: int) -> tuple[str, str]:
    """Write two numbers with so many digits, or as many more as it takes to tell them apart."""
    while digits < 17 and a != b and f"{a:.{digits}g}" == f"{b:.{digits}g}":
        digits += 1
    return f"{a:.{digits}g}", f"{b:.{digits}g}"
