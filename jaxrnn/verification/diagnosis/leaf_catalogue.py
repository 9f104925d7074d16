"""The catalogue's second half: what was done to a leaf's gradient when it was already there."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrnn.tree import length
from jaxrnn.verification.diagnosis.backward_pass import Pass
from jaxrnn.verification.leaf import in_full


class LeafWrong(NamedTuple):
    """What one leaf becomes by a bug in what was done to its gradient."""

    bug: str
    text: str
    leaf: np.ndarray


class Scale(NamedTuple):
    """A constant that gradients are wrong by, and what it means."""

    factor: float
    bug: str
    text: str


SCALES = (
    Scale(-1, "sign", "its sign is turned round"),
    Scale(2, "counted twice", "it is twice the right one: something is added up twice"),
    Scale(0.5, "halved", "it is half the right one: is the 2 of a square's slope missing?"),
)


def scales_of(p: Pass) -> tuple[Scale, ...]:
    """Name the constants that a wrong mean brings in, for this network's reduction and batch."""
    steps, sequences = p.error.shape[:2]
    every, mask = steps * sequences, p.batch.mask
    count = every if mask is None else float(mask.sum())
    sizes = [
        (count, f"the {count:g} positions" if mask is None else f"the mask's sum, {count:g}"),
        (sequences, f"the {sequences} sequences"),
        (steps, f"the {steps} steps"),
        *([] if mask is None else [(every, f"all {every} positions, masked or not")]),
        (p.rnn.output_size, f"the {p.rnn.output_size} outputs"),
    ]
    # Sizes that coincide are all named.
    over = {size: " or ".join(what for other, what in sizes if other == size) for size, _ in sizes}
    named = []
    for number, what in over.items():
        if number in (0, 1):
            continue
        if p.rnn.reduction == "sum":
            text = f"it is a mean over {what} where the loss is a sum"
            named.append(Scale(1 / number, "mean for sum", text))
            continue
        if number == count:
            named.append(Scale(count, "sum for mean", f"it is not divided by {what}"))
        elif number in (sequences, steps):
            bug, text = "mean over the wrong axis", f"it is summed, not averaged, over {what}"
            named.append(Scale(number, bug, text))
        elif number == every:
            text = f"it is divided by {what}"
            named.append(Scale(count / every, "mean over the wrong axis", text))
        text = f"it is divided by {what} once too often"
        named.append(Scale(1 / number, "mean taken twice", text))
    return (SCALES[0], *named, *SCALES[1:])


def name_scale(factor: float, scales: tuple[Scale, ...] = SCALES) -> list[Scale]:
    """Find what a wrong constant may mean."""
    named = [scale for scale in scales if abs(factor - scale.factor) <= 1e-9 * abs(factor)]
    written, _ = in_full(factor, 1.0, 6)
    return named or [Scale(factor, "scale", f"it is {written} times the right one")]


def leaf_wrongs(
    name: str, g: dict[str, np.ndarray], exact: dict[str, np.ndarray], scales: tuple[Scale, ...]
) -> Iterator[LeafWrong]:
    """Compute what could have been done to the leaf `name`, given the gradient that came out."""
    leaf, r = g[name], exact[name]
    yield LeafWrong("zero", "zero: nothing was ever added to it", 0 * r)
    if not leaf.any():  # a clip or a scale by 0 would say no more
        return
    for other, its in exact.items():
        if other != name and its.shape == r.shape:
            yield LeafWrong("swapped", f"it is the gradient of {other}", its)
    if r.ndim == 2 and r.shape[0] == r.shape[1]:
        yield LeafWrong("transposed", "it is the transposed gradient", r.T)
    for clipped in (list(g.values()), [leaf]):
        sizes = np.abs(np.concatenate([each.reshape(-1) for each in clipped]))
        limit = float(sizes.max(initial=0.0))
        if np.sum(sizes == limit) > 1 or _is_round(limit):
            text = f"its elements are clipped at ±{limit:.6g}"
            yield LeafWrong("element-wise clip", text, np.clip(r, -limit, limit))
    factor = best_factor(leaf, r)
    if 0 < factor < 1:
        for norm, text in (
            (length(np.concatenate([each.reshape(-1) for each in g.values()])), "the gradient's"),
            (length(leaf), "its"),
        ):
            # PyTorch divides by the norm + 1e-6.
            for limit in (norm, norm * (1 + 1e-6 * factor / norm)):
                if _is_round(limit):
                    text = f"{text} norm is clipped at {limit:.6g}"
                    yield LeafWrong("norm clip", text, factor * r)
    for scale in name_scale(factor, scales):
        yield LeafWrong(scale.bug, scale.text, factor * r)


def best_factor(leaf: np.ndarray, r: np.ndarray) -> float:
    """Find the s that brings s r nearest to a leaf."""
    unit = length(r)
    return float(np.vdot(r / unit, leaf / unit)) if unit > 0 else 0.0


def _is_round(number: float) -> bool:
    """Say whether a number has at most three digits, as somebody would have typed it."""
    return number > 0 and abs(number - float(f"{number:.3g}")) <= 1e-10 * number
