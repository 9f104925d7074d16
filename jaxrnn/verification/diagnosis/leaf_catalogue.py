"""The catalogue of bugs in single leaves: changes to a gradient that was right before."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrnn.tree import length
from jaxrnn.verification.diagnosis.backward_pass import Pass
from jaxrnn.verification.leaf import in_full


class LeafWrong(NamedTuple):
    """The wrong gradient of one leaf that a bug causes: its name, an explanation and the leaf."""

    bug: str
    text: str
    leaf: np.ndarray


class Scale(NamedTuple):
    """A wrong constant factor, the name of its bug and an explanation."""

    factor: float
    bug: str
    text: str


SCALES = (
    Scale(-1, "sign", "it has the opposite sign"),
    Scale(2, "counted twice", "it is twice the exact value: a term is added twice"),
    Scale(0.5, "halved", "it is half the exact value: is the 2 of d(x²)/dx = 2x missing?"),
)


def scales_of(p: Pass) -> tuple[Scale, ...]:
    """Return the factors that a wrong mean or sum causes on this network and batch."""
    steps, sequences = p.error.shape[:2]
    positions, mask = steps * sequences, p.batch.mask
    count = positions if mask is None else float(mask.sum())
    sizes = [
        (count, f"the {count:g} positions" if mask is None else f"the mask's sum, {count:g}"),
        (sequences, f"the {sequences} sequences"),
        (steps, f"the {steps} steps"),
        *([] if mask is None else [(positions, f"all {positions} positions, masked or not")]),
        (p.rnn.output_size, f"the {p.rnn.output_size} outputs"),
    ]
    # If several sizes are equal, the text names all of them.
    meanings = {
        size: " or ".join(text for other, text in sizes if other == size) for size, _ in sizes
    }
    scales = []
    for number, meaning in meanings.items():
        if number in (0, 1):
            continue
        if p.rnn.reduction == "sum":
            text = f"it is a mean over {meaning}, but the loss is a sum"
            scales.append(Scale(1 / number, "mean for sum", text))
            continue
        if number == count:
            scales.append(Scale(count, "sum for mean", f"it is not divided by {meaning}"))
        elif number in (sequences, steps):
            bug, text = "mean over the wrong axis", f"it is summed, not averaged, over {meaning}"
            scales.append(Scale(number, bug, text))
        elif number == positions:
            text = f"it is divided by {meaning}, not by the sum of the mask"
            scales.append(Scale(count / positions, "mean over the wrong axis", text))
        text = f"it is divided by {meaning} once too often"
        scales.append(Scale(1 / number, "mean taken twice", text))
    return (SCALES[0], *scales, *SCALES[1:])


def name_scale(factor: float, scales: tuple[Scale, ...] = SCALES) -> list[Scale]:
    """Return the explanations of a wrong constant factor, at least one."""
    matches = [scale for scale in scales if abs(factor - scale.factor) <= 1e-9 * abs(factor)]
    digits, _ = in_full(factor, 1.0, 6)
    return matches or [Scale(factor, "scale", f"it is {digits} times the exact value")]


def leaf_wrongs(
    name: str, g: dict[str, np.ndarray], exact: dict[str, np.ndarray], scales: tuple[Scale, ...]
) -> Iterator[LeafWrong]:
    """Yield the wrong gradients of the leaf `name` that may explain the candidate's gradient g."""
    leaf, r = g[name], exact[name]
    yield LeafWrong("zero", "every element is zero: nothing was added to it", 0 * r)
    if not leaf.any():  # a clip at 0 and a factor of 0 say the same
        return
    for other, gradient in exact.items():
        if other != name and gradient.shape == r.shape:
            yield LeafWrong("swapped", f"it is the gradient of {other}", gradient)
    if r.ndim == 2 and r.shape[0] == r.shape[1]:
        yield LeafWrong("transposed", "it is the transpose of the exact gradient", r.T)
    for leaves in (list(g.values()), [leaf]):
        sizes = np.abs(np.concatenate([each.reshape(-1) for each in leaves]))
        limit = float(sizes.max(initial=0.0))
        if np.sum(sizes == limit) > 1 or _is_round(limit):
            text = f"its elements are clipped at ±{limit:.6g}"
            yield LeafWrong("element-wise clip", text, np.clip(r, -limit, limit))
    factor = best_factor(leaf, r)
    if 0 < factor < 1:
        for norm, what in (
            (
                length(np.concatenate([each.reshape(-1) for each in g.values()])),
                "the norm of the gradient",
            ),
            (length(leaf), "the norm of this leaf"),
        ):
            # PyTorch divides by the norm + 1e-6.
            for limit in (norm, norm * (1 + 1e-6 * factor / norm)):
                if _is_round(limit):
                    text = f"{what} is clipped at {limit:.6g}"
                    yield LeafWrong("norm clip", text, factor * r)
    for scale in name_scale(factor, scales):
        yield LeafWrong(scale.bug, scale.text, factor * r)


def best_factor(leaf: np.ndarray, r: np.ndarray) -> float:
    """Return the least-squares factor s of leaf ≈ s r."""
    unit = length(r)
    return float(np.vdot(r / unit, leaf / unit)) if unit > 0 else 0.0


def _is_round(number: float) -> bool:
    """Return whether a number has at most three digits, as a clip in code usually has."""
    return number > 0 and abs(number - float(f"{number:.3g}")) <= 1e-10 * number
