"""The report of a comparison: findings, leaves and lag profiles."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.tree import html_table, plain, text_table
from jaxrnn.verification.leaf import EXACT, Leaf, in_full

# The largest residual with which a gradient counts as a weighted sum of its lags.
WEIGHTING = 1e-2


class Finding(NamedTuple):
    """One thing that is wrong with a gradient, or one reason why it cannot be judged.

    Attributes:
        bug: the name of the bug in the catalogue, such as "one-hop", "no gain" or "unknown"; or
            "loss", "structure", "shape", "dtype", "raised", "not finite" and the like.
        leaves: the names of the leaves that the bug explains.
        text: what is wrong and where to look, in one line.
        alike: other bugs that give the same gradient on this batch.
        certain: True if something is wrong; False if it cannot be decided here.

    >>> import jax.numpy as jnp, jaxrnn
    >>> loss = lambda x: jnp.sum(x**2)
    >>> wrong_sign = lambda x: (loss(x), -2 * x)
    >>> (finding,) = jaxrnn.check_grad(wrong_sign, loss, jnp.ones(3)).findings
    >>> finding.bug, finding.leaves, finding.certain
    ('sign', ('array',), True)
    >>> print(finding)
    sign in array: it has the opposite sign
    """

    bug: str
    leaves: tuple[str, ...]
    text: str
    alike: tuple[str, ...] = ()
    certain: bool = True

    def __str__(self) -> str:
        """Return the bug's name, its leaves and its text in one line."""
        names = " or ".join([self.bug, *self.alike])
        return f"{names}{' in ' * bool(self.leaves)}{', '.join(self.leaves)}: {self.text}"


class LagProfile(NamedTuple):
    """The weights of the time lags in the gradient g of one leaf: the fit g ≈ Σ_k c_k G_k.

    G_k is the part of the exact gradient in which the error of an output goes back k recurrent
    steps. The exact gradient is Σ_k G_k; a truncated one has c_k = 0 beyond its window.

    Attributes:
        leaf: the name of the leaf.
        coefficients: the weights c_0, c_1, … of the least-squares fit; all 1 for the exact
            gradient. A weight is nan if the leaf does not determine it, because G_k is too small or
            too similar to the other parts.
        residual: ‖g - Σ_k c_k G_k‖ / ‖g‖. Near 0, the gradient is a weighted sum of the lags;
            otherwise the weights have no meaning.
    """

    leaf: str
    coefficients: tuple[float, ...]
    residual: float

    def __str__(self) -> str:
        """Return the weights, with repeated values abbreviated, or why there are none."""
        if self.residual > WEIGHTING:
            return f"none, it is not a weighted sum of lags (residual {self.residual:.2g})"
        if np.isnan(self.coefficients).all():
            return "this leaf has too few elements to determine them"
        texts = ["?" if np.isnan(c) else f"{round(c, 3) + 0.0:g}" for c in self.coefficients]
        runs = [(text, len(list(run))) for text, run in itertools.groupby(texts)]
        abbreviated = [
            ", ".join([text] * count) if count < 4 else f"{text}, … {count} times"
            for text, count in runs
        ]
        return f"({', '.join(abbreviated)}), residual {self.residual:.1e}"


class Report(NamedTuple):
    """The result of `verify` and `check_grad`, which is true if the gradient is right.

    Attributes:
        candidate_loss: the loss of the candidate.
        reference_loss: the loss of the reference.
        leaves: the comparison of each leaf.
        findings: what is wrong; empty if the gradient is right.
        profiles: the lag profile of each wrong leaf of a cell.
        reference: a description of the reference.
        notes: how the tolerances were found, and what the comparison cannot detect.
        precision: the precision of the comparison and its reason if it is lower, such as "to
            float32 precision because the loss computes in float32"; empty otherwise.

    >>> import jax.numpy as jnp, jaxrnn
    >>> loss = lambda x: jnp.sum(x**2)
    >>> report = jaxrnn.check_grad(lambda x: (loss(x), 2 * x), loss, jnp.ones(3))
    >>> bool(report), report.worst.name, report.worst.error
    (True, 'array', 0.0)
    >>> print(report.diagnosis)
    right: every error is at most 1e-12
    >>> print(report)
    leaf     error    cosine  scale  worst at  candidate  reference
    array  0.0e+00  1.000000      1       [0]          2          2
    reference: jax.grad of the loss, in float64
    loss: 3, reference 3
    right: every error is at most 1e-12
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

    def __bool__(self) -> bool:
        """Return `ok`, so that `assert verify(…)` fails for a wrong gradient."""
        return self.ok

    @property
    def diagnosis(self) -> str:
        """What is wrong, or that the gradient is right.

        One line for each finding, "wrong: …" or "cannot tell: …"; without findings one line that
        begins with "right" and names the tolerance.
        """
        if self.findings:
            return "\n".join(
                f"{'wrong' if finding.certain else 'cannot tell'}: {finding}"
                for finding in self.findings
            )
        largest = max((leaf.tolerance for leaf in self.leaves), default=EXACT)
        precision = f", {self.precision}" if self.precision else ""
        return f"right{precision}: every error is at most {largest:.1g}"

    @property
    def wrong_leaves(self) -> list[str]:
        """The names of the leaves whose error is above their tolerance."""
        return [leaf.name for leaf in self.leaves if not leaf.ok]

    @property
    def worst(self) -> Leaf:
        """The leaf with the largest error.

        Raises:
            ValueError: if no leaf was compared, because the gradient could not be judged.
        """
        if not self.leaves:
            raise ValueError(f"the report has no leaves, so none is the worst: {self.diagnosis}")
        return max(self.leaves, key=lambda leaf: np.nan_to_num(leaf.error, nan=np.inf))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON; numbers that are not finite become None."""
        return plain(self) | {"ok": self.ok, "diagnosis": self.diagnosis}

    def __str__(self) -> str:
        """Return a table of the leaves, the remarks and the diagnosis."""
        lines = text_table(*self.table())
        return "\n".join([*(lines if self.leaves else ()), *self.remarks(), self.diagnosis])

    def __repr__(self) -> str:
        """Return the diagnosis; `print` shows the table of the leaves."""
        return f"Report against {self.reference}\n{self.diagnosis}"

    def _repr_html_(self) -> str:
        """Return the table of the leaves, the remarks and the diagnosis for a notebook."""
        return html_table(*self.table(), [*self.remarks(), *self.diagnosis.splitlines()])

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the titles of the table and a row for each leaf."""
        return HEADER, [cells(leaf) for leaf in self.leaves]

    def remarks(self) -> list[str]:
        """Return the lines below the table: reference, losses, lag profiles and notes."""
        loss, expected = self.candidate_loss, self.reference_loss
        if abs(loss - expected) <= EXACT * abs(expected):
            losses = f"{loss:.12g}, reference {expected:.12g}"
        else:
            losses = ", reference ".join(in_full(loss, expected, 12))
        return [
            f"reference: {self.reference}",
            *([f"loss: {losses}"] if self.leaves else ()),
            *(f"lag weights of {profile.leaf}: {profile}" for profile in self.profiles),
            *(f"note: {note}" for note in self.notes),
        ]


HEADER = ("leaf", "error", "cosine", "scale", "worst at", "candidate", "reference")


def cells(leaf: Leaf) -> tuple[str, ...]:
    """Return the cells of a leaf's row in the table, in the order of HEADER."""
    index = ", ".join(map(str, leaf.worst))
    return (
        leaf.name,
        f"{leaf.error:.1e}",
        f"{leaf.cosine:.6f}",
        f"{leaf.scale:.6g}",
        f"direction {index}" if leaf.directions else f"[{index}]",
        f"{leaf.candidate:.5g}",
        f"{leaf.reference:.5g}",
    )
