"""Plots of runs."""

import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from jaxrnn import lm
from jaxrnn.lm.options import number_of_members
from jaxrnn.lm.store import directory as folder

LARGEST = 1e100  # of a loss that can be drawn; one of a training in float32 is below 1e39


def curves(places: list[Path], picture: Path) -> None:
    """Draw training and held-out losses over the steps; of many models, median and quartiles."""
    matplotlib.use("Agg")
    from matplotlib.figure import Figure  # takes its time: only when there is something to draw

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    colors = (f"C{number}" for number in itertools.count())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where all are nan, so is what is drawn
        for place in places:
            _curves_of(place, axes, colors, f"{place.name}: " if len(places) > 1 else "")
    quartiles = ", median and quartiles" if max(map(_members_of, places)) > 1 else ""
    axes.set(xlabel="step", ylabel=f"loss, nats a symbol{quartiles}")
    axes.legend(fontsize=8)
    figure.savefig(picture, dpi=120)


def _curves_of(place: Path, axes: Any, colors: Iterator[str], name: str) -> None:
    chosen, records = lm.options_of(place), folder.metrics(place)
    _check_records(place / "metrics.jsonl", records, number_of_members(chosen))
    if not any("loss" in each for each in records):
        raise ValueError(f"{place} has no losses to draw yet: train it further")
    rates, seeds = chosen.learning_rates or (None,), chosen.seeds
    for number, rate in enumerate(rates):
        color, which = next(colors), slice(number * seeds, (number + 1) * seeds)
        said = name + (f"learning rate {rate:g}: " if rate is not None else "")
        for what, style, alpha in (("loss", "-", 0.45), ("held_out", ".--", 1.0)):
            steps, losses = _of(records, what, which)
            if what == "loss":
                steps, losses = _smoothed(steps), _smoothed(losses)
            if not len(steps):
                continue
            low, middle, high = np.nanquantile(losses, [0.25, 0.5, 0.75], axis=1)
            label = "training" if what == "loss" else f"held out, lowest {np.nanmin(middle):.3f}"
            axes.plot(steps, middle, style, color=color, alpha=alpha, label=said + label)
            if seeds > 1:
                axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def _check_records(file: Path, records: list[dict], members: int) -> None:
    """Raise `ValueError` for the first loss that cannot be drawn."""
    for number, each in enumerate(records, 1):
        for what in ("loss", "held_out"):
            value = each.get(what, [None] * members)
            losses = value if isinstance(value, list) else [value]
            large = any(loss is not None and LARGEST < abs(loss) < math.inf for loss in losses)
            if large or len(losses) != members:
                kind = f"above {LARGEST:g}" if large else f"of {len(losses)} models, not {members},"
                raise ValueError(
                    f"{file}, record {number} (step {each['step']:,}): a {what} {kind} cannot be "
                    f"drawn: mend or remove that line"
                )


def _members_of(place: Path) -> int:
    return number_of_members(lm.options_of(place))


def _of(records: list[dict], what: str, which: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps (N,) at which a loss was recorded, and those of some members (N, M)."""
    there = [each for each in records if what in each]
    losses = [each[what] if isinstance(each[what], list) else [each[what]] for each in there]
    steps = np.array([each["step"] for each in there])
    return steps, np.array(losses, float)[:, which] if there else np.zeros((0, 1))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Average neighbours, so that about 200 points are left."""
    block = max(1, len(values) // 200)
    whole = len(values) // block * block
    return np.nanmean(values[:whole].reshape(-1, block, *values.shape[1:]), 1)
