"""The search for the bugs that explain a wrong gradient.

A bug of the catalogue is a suspect if its wrong gradient matches a wrong leaf to rounding error.
The suspect that explains the most leaves becomes a finding, then the one that explains most of the
remaining leaves, and so on. Two bugs in different leaves are therefore two findings. Leaves that no
suspect explains are reported as "unknown".
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxrnn.network.layer import Cell
from jaxrnn.tree import by_name, length
from jaxrnn.verification.diagnosis.backward_pass import Pass
from jaxrnn.verification.diagnosis.catalogue import wrongs
from jaxrnn.verification.diagnosis.leaf_catalogue import (
    SCALES,
    Scale,
    best_factor,
    leaf_wrongs,
    name_scale,
    scales_of,
)
from jaxrnn.verification.leaf import in_full, relative_error
from jaxrnn.verification.report import Finding

Leaves = dict[str, np.ndarray]

# A suspect must explain this share of a leaf's error, besides the match to rounding error.
EXPLAINED = 0.95


class Suspect(NamedTuple):
    """A bug that explains some leaves.

    Attributes:
        bug: the name of the bug.
        text: what is wrong and where to look.
        leaves: the leaves that it explains.
        denied: the leaves that the bug would change too, but that do not match it.
        whole: False if the bug may occur in a single leaf.
        certain: False if it may be intended.
    """

    bug: str
    text: str
    leaves: frozenset[str]
    denied: frozenset[str] = frozenset()
    whole: bool = True
    certain: bool = True


class Case(NamedTuple):
    """The gradient to explain, and what the catalogue needs for it.

    Attributes:
        g: the leaves of the candidate's gradient that have the right shape, by name.
        exact: the exact gradient.
        tolerance: the tolerance of each leaf.
        hand: the forward pass from which wrong gradients are computed; None without a network.
        parts: the exact gradient of each cell by time lag, each leaf with a leading axis of lags.
    """

    g: Leaves
    exact: Leaves
    tolerance: dict[str, float]
    hand: Pass | None
    parts: tuple[Cell, ...] = ()

    @property
    def wrong(self) -> list[str]:
        """The names of the leaves with an error above the tolerance."""
        return [name for name in self.g if not self.close(name, self.g[name], self.exact[name])]

    def close(self, name: str, a: np.ndarray, b: np.ndarray) -> bool:
        """Return whether two versions of a leaf are equal within its tolerance."""
        return relative_error(a, b) <= self.tolerance[name]

    def matches(self, name: str, suspect: np.ndarray) -> bool:
        """Return whether a leaf of the candidate equals the wrong gradient of a suspect."""
        g, r = self.g[name], self.exact[name]
        unit = max(length(suspect), length(r))
        misfit = length(g - suspect)
        return bool(
            misfit <= self.tolerance[name] * unit and misfit <= (1 - EXPLAINED) * length(g - r)
        )


def diagnose(case: Case) -> list[Finding]:
    """Return a finding for each bug, "unknown" for unexplained leaves; [] if all is right."""
    findings = _explain(case)
    if not _unknown(findings):
        return findings
    factor = _common_factor(case)
    if factor is not None:
        scale, *_ = name_scale(factor, _scales(case))
        scaled = case._replace(g={name: leaf / factor for name, leaf in case.g.items()})
        others = _explain(scaled)
        if len(_unknown(others)) < len(_unknown(findings)):
            text = f"{scale.text}; with this factor corrected, there remains the following"
            return [Finding(scale.bug, tuple(case.g), text), *others]
    return findings


def shape_finding(name: str, g: np.ndarray, r: np.ndarray, tolerance: float) -> Finding:
    """Return the finding about a leaf whose shape is not that of its parameter."""
    text, bug = f"it has shape {g.shape}, but the parameter has {r.shape}", "shape"

    def same(a):
        return a.shape == r.shape and relative_error(a, r) <= tolerance

    if same(g.T):
        bug, text = "transposed", f"{text}: it is the transpose of the exact gradient"
    elif g.size == r.size and same(g.reshape(r.shape)):
        text += f": its values are right; reshape it to {r.shape}"
    else:
        sums = [(axis,) for axis in range(g.ndim)] + [(0, 1)] * (g.ndim > 2)
        for axes in sums:
            if same(g.sum(axes)):
                lengths = " by ".join(str(g.shape[axis]) for axis in axes)
                bug = "not summed"
                text += f": it is not summed over the batch or time, of size {lengths}; "
                text += f"sum over axis {', '.join(map(str, axes))}"
                break
    return Finding(bug, (name,), text)


def loss_finding(loss: float, exact: float, case: Case | None) -> Finding:
    """Return the finding about a loss that differs from the reference."""
    value, expected = in_full(loss, exact, 6)
    text = f"the losses differ, {value} where the reference has {expected}"
    if case is not None and case.hand is not None:
        for wrong in wrongs(case.hand, case.parts):
            if wrong.loss is not None and abs(loss - wrong.loss) <= 1e-9 * abs(loss):
                return Finding("loss", (), f"{text}: {wrong.text}", certain=wrong.certain)
    if np.isfinite(loss) and exact != 0:
        scale, *_ = name_scale(loss / exact, SCALES if case is None else _scales(case))
        text += f": {scale.text}" if scale.bug != "scale" else ""
    if case is None or not case.wrong:
        return Finding("loss", (), f"{text}; but the gradient is that of the reference")
    own = "" if case.hand is None else ": check a loss of your own with jaxrnn.check_grad"
    return Finding("loss", (), f"{text}; gradients of different losses cannot agree{own}")


def _explain(case: Case) -> list[Finding]:
    by_pass = list(_suspects_by_pass(case))
    suspects = [
        *(suspect for suspect in by_pass if suspect.whole),
        *_suspects_by_leaf(case),
        *(suspect for suspect in by_pass if not suspect.whole),
    ]
    unexplained, findings = case.wrong, []
    while unexplained:
        ranks = [(-len(s.leaves.intersection(unexplained)), len(s.denied)) for s in suspects]
        best = min(ranks, default=(0, 0))
        if best[0] == 0:
            findings.append(_unknown_finding(case, unexplained))
            break
        suspect = suspects[ranks.index(best)]
        leaves = tuple(name for name in unexplained if name in suspect.leaves)
        alike = {
            other.bug: None
            for other, rank in zip(suspects, ranks, strict=True)
            if rank == best and other.leaves.issuperset(leaves) and other.bug != suspect.bug
        }
        findings.append(
            Finding(suspect.bug, leaves, suspect.text, tuple(alike), certain=suspect.certain)
        )
        unexplained = [name for name in unexplained if name not in leaves]
    return findings


def _suspects_by_pass(case: Case) -> Iterable[Suspect]:
    if case.hand is None:
        return
    wrong_leaves = case.wrong
    for wrong in wrongs(case.hand, case.parts):
        leaves = {name: leaf for name, leaf in by_name(wrong.grads()).items() if name in case.g}
        matched = frozenset(name for name in wrong_leaves if case.matches(name, leaves[name]))
        if matched:
            changed = {
                name
                for name, leaf in leaves.items()
                if wrong.whole and not case.close(name, leaf, case.exact[name])
            }
            denied = frozenset(changed - matched)
            yield Suspect(wrong.bug, wrong.text, matched, denied, wrong.whole, wrong.certain)


def _suspects_by_leaf(case: Case) -> Iterable[Suspect]:
    leaves_of: dict[tuple[str, str], list[str]] = {}
    for name in case.wrong:
        for wrong in leaf_wrongs(name, case.g, case.exact, _scales(case)):
            if case.matches(name, wrong.leaf):
                leaves_of.setdefault((wrong.bug, wrong.text), []).append(name)
    for (bug, text), names in leaves_of.items():
        yield Suspect(bug, text, frozenset(names))


def _scales(case: Case) -> tuple[Scale, ...]:
    return SCALES if case.hand is None else scales_of(case.hand)


def _common_factor(case: Case) -> float | None:
    """Return the constant factor by which a leaf is wrong, if there is one."""
    for name in reversed(case.wrong):
        r = case.exact[name]
        factor = best_factor(case.g[name], r)
        if r.size > 1 and factor != 0 and case.matches(name, factor * r):
            return factor
    return None


def _unknown(findings: list[Finding]) -> tuple[str, ...]:
    return next((finding.leaves for finding in findings if finding.bug == "unknown"), ())


def _unknown_finding(case: Case, names: list[str]) -> Finding:
    text = "it is wrong, and no bug of the catalogue explains it"
    for name in names:
        error = np.abs(case.g[name] - case.exact[name])
        wrong = error > case.tolerance[name] * length(case.exact[name])
        if 0 < np.sum(wrong) <= wrong.size / 4:
            text += f"; in {name} only {np.sum(wrong)} of {wrong.size} elements are wrong"
    return Finding("unknown", tuple(names), text)
