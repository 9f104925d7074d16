"""Comparing a gradient with a reference leaf by leaf, and the report of it."""

import itertools
from typing import Any, NamedTuple

import numpy as np

# Rounding, and no more: the largest relative error of an exact gradient in float64.
EXACT = 1e-12

# The largest residual of a gradient that some weighting of lags explains.
WEIGHTING = 1e-2


class Known(NamedTuple):
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


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        bug: its name, as in the catalogue; or "loss", "structure", "dtype" and the like.
        leaves: the leaves that it explains.
        text: what it is and what to look at, in one line.
        alike: other bugs that would give just this on this batch.
        certain: False if nothing can be told here, rather than something be wrong.
    """

    bug: str
    leaves: tuple[str, ...]
    text: str
    alike: tuple[str, ...] = ()
    certain: bool = True

    def __str__(self) -> str:
        """Name the bug and its leaves, and say what it is."""
        names = " or ".join([self.bug, *self.alike])
        return f"{names}{' in ' * bool(self.leaves)}{', '.join(self.leaves)}: {self.text}"


class LagProfile(NamedTuple):
    """Which time lags a leaf's gradient holds: the least-squares fit Σ_k c_k G_k.

    G_k is the part of the exact gradient in which an output's error acts k recurrent steps back.

    Attributes:
        leaf: its name.
        coefficients: c_0, c_1, …; all 1 is the exact gradient. nan where G_k is too small, or too
            much like the others, for this leaf to tell.
        residual: ‖g - Σ_k c_k G_k‖ / ‖g‖: near 0, the gradient is a weighting of lags; else not.
    """

    leaf: str
    coefficients: tuple[float, ...]
    residual: float

    def __str__(self) -> str:
        """Write the profile out, with long runs in short, where it says anything."""
        if self.residual > WEIGHTING:
            return f"no weighting of lags, residual {self.residual:.2g}"
        if np.isnan(self.coefficients).all():
            return "too few numbers in this leaf to tell its lags apart"
        shown = ["?" if np.isnan(c) else f"{round(c, 3) + 0.0:g}" for c in self.coefficients]
        runs = [(value, len(list(run))) for value, run in itertools.groupby(shown)]
        written = [
            ", ".join([value] * count) if count < 4 else f"{value}, … {count} times"
            for value, count in runs
        ]
        return f"({', '.join(written)}), residual {self.residual:.1e}"


class Report(NamedTuple):
    """What `verify` found.

    Attributes:
        candidate_loss: the candidate's loss.
        reference_loss: the reference's.
        leaves: one comparison for each leaf.
        findings: what is wrong; nothing if the gradient is right.
        profiles: the lag profile of each leaf that is wrong.
        reference: what the reference is.
        notes: what the tolerances come from, and what the comparison cannot see.
        precision: how far the comparison reaches and why, such as "to float32: the loss computes in
            float32"; empty where it reaches to the rounding of float64.
    """

    candidate_loss: float
    reference_loss: float
    leaves: tuple[Leaf, ...]
    findings: tuple[Finding, ...]
    profiles: tuple[LagProfile, ...]
    reference: str
    notes: tuple[str, ...]
    precision: str = ""

    @property
    def ok(self) -> bool:
        """Whether the gradient is right."""
        return not self.findings

    @property
    def diagnosis(self) -> str:
        """What is wrong, one line each; empty when nothing is."""
        return "\n".join(
            f"{'wrong' if finding.certain else 'cannot tell'}: {finding}"
            for finding in self.findings
        )

    @property
    def worst(self) -> Leaf:
        """The leaf with the largest error."""
        return max(self.leaves, key=lambda leaf: np.nan_to_num(leaf.error, nan=np.inf))

    @property
    def verdict(self) -> str:
        """The diagnosis, or that the gradient is right and how nearly."""
        largest = max((leaf.tolerance for leaf in self.leaves), default=EXACT)
        how_far = f", {self.precision}" if self.precision else ""
        return self.diagnosis or f"right{how_far}: every error is at most {largest:.1g}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON; None for what is no number."""
        return plain(self) | {"ok": self.ok, "diagnosis": self.diagnosis}

    def __str__(self) -> str:
        """Draw the table, and under it what is wrong."""
        rows = [HEADER, *(cells(leaf) for leaf in self.leaves)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])],
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*(lines if self.leaves else ()), *self.remarks(), self.verdict])

    def remarks(self) -> list[str]:
        """Say what stands beside the table: losses, profiles and notes."""
        given, expected = self.candidate_loss, self.reference_loss
        if abs(given - expected) <= EXACT * abs(expected):
            losses = f"{given:.12g}, reference {expected:.12g}"
        else:
            losses = ", reference ".join(in_full(given, expected, 12))
        return [
            f"reference: {self.reference}",
            *([f"loss: {losses}"] if self.leaves else ()),
            *(f"lags in {profile.leaf}: {profile}" for profile in self.profiles),
            *(f"note: {note}" for note in self.notes),
        ]


HEADER = ("leaf", "error", "cosine", "scale", "worst at", "candidate", "reference")


def cells(leaf: Leaf) -> tuple[str, ...]:
    """Write a leaf's comparison, in the columns of HEADER."""
    place = ", ".join(map(str, leaf.worst))
    return (
        leaf.name,
        f"{leaf.error:.1e}",
        f"{leaf.cosine:.6f}",
        f"{leaf.scale:.6g}",
        f"direction {place}" if leaf.directions else f"[{place}]",
        f"{leaf.candidate:.5g}",
        f"{leaf.reference:.5g}",
    )


def compare(name: str, g: np.ndarray, known: Known, tolerance: float) -> Leaf:
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


def length(a: np.ndarray) -> float:
    """Compute ‖a‖ without overflow of a square."""
    unit = float(np.abs(a).max(initial=0.0))
    return unit * float(np.linalg.norm(a / unit)) if unit > 0 and np.isfinite(unit) else unit


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


def plain(value: Any) -> Any:
    """Turn NamedTuples, dicts, tuples and numbers into what JSON can hold."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
