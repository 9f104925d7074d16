"""The report of a comparison: findings, leaves and lag profiles."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.tree import plain
from jaxrnn.verification.leaf import EXACT, Leaf, in_full

# The largest residual of a gradient that some weighting of lags explains.
WEIGHTING = 1e-2


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
