"""Plots of the losses of runs."""

import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import lm, plotting
from jaxrnn.lm.options import number_of_members
from jaxrnn.lm.store import directory
from jaxrnn.lm.vocabulary import UNITS

LARGEST = 1e100  # the largest loss that can be plotted; losses in float32 are below 1e39


def curves(paths: list[Path], picture: Path) -> None:
    """Plot training and held-out losses over the steps; for several models, median and quartiles.

    Losses per character, per byte and per word cannot be compared: each has axes of its own.

    Args:
        paths: the folders of the runs.
        picture: the PNG file to write.

    Raises:
        ValueError: if a run has no losses yet, or one that cannot be plotted.
    """
    units = {path: UNITS[lm.options_of(path).level] for path in paths}
    shown = list(dict.fromkeys(units.values()))
    with plotting.picture(picture, 7.5, 4.5 * len(shown)) as figure:
        grid: Any = figure.subplots(len(shown), squeeze=False)
        panels = dict(zip(shown, grid[:, 0], strict=True))
        colors = itertools.cycle(plotting.COLORS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the median of nans is nan
            for path in paths:
                _curves_of(
                    path, panels[units[path]], colors, f"{path.name}: " if len(paths) > 1 else ""
                )
        quartiles = ", median and quartiles" if max(map(_members_of, paths)) > 1 else ""
        for unit, axes in panels.items():
            axes.set(xlabel="step", ylabel=f"loss, nats per {unit}{quartiles} (lower is better)")
            axes.legend()


def _curves_of(path: Path, axes: Any, colors: Iterator[str], name: str) -> None:
    """Plot the losses of one run, a color for each learning rate."""
    options, records = lm.options_of(path), directory.metrics(path)
    _check_records(path / "metrics.jsonl", records, number_of_members(options))
    if not any("loss" in record for record in records):
        raise ValueError(f"{path} has no losses to draw yet: train it further")
    rates, seeds = options.learning_rates or (None,), options.seeds
    for number, rate in enumerate(rates):
        color, members = next(colors), slice(number * seeds, (number + 1) * seeds)
        prefix = name + (f"learning rate {rate:g}: " if rate is not None else "")
        for what, style, alpha in (("loss", "-", 0.45), ("held_out", ".--", 1.0)):
            steps, losses = _losses(records, what, members)
            if what == "loss":
                steps, losses = _smoothed(steps), _smoothed(losses)
            if not len(steps):
                continue
            low, middle, high = np.nanquantile(losses, [0.25, 0.5, 0.75], axis=1)
            label = "training" if what == "loss" else f"held out, lowest {np.nanmin(middle):.3f}"
            axes.plot(steps, middle, style, color=color, alpha=alpha, label=prefix + label)
            if seeds > 1:
                axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def _check_records(file: Path, records: list[dict], members: int) -> None:
    """Raise `ValueError` for the first loss that cannot be plotted."""
    for number, record in enumerate(records, 1):
        for what in ("loss", "held_out"):
            value = record.get(what, [None] * members)
            losses = value if isinstance(value, list) else [value]
            large = any(loss is not None and LARGEST < abs(loss) < math.inf for loss in losses)
            if large or len(losses) != members:
                kind = f"above {LARGEST:g}" if large else f"of {len(losses)} models, not {members},"
                raise ValueError(
                    f"{file}, record {number} (step {record['step']:,}): a {what} {kind} cannot be "
                    f"drawn: correct or remove that line"
                )


def _members_of(path: Path) -> int:
    return number_of_members(lm.options_of(path))


def _losses(records: list[dict], what: str, members: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps (N,) at which a loss was recorded, and the losses of some members (N, M)."""
    with_loss = [record for record in records if what in record]
    losses = [
        record[what] if isinstance(record[what], list) else [record[what]] for record in with_loss
    ]
    steps = np.array([record["step"] for record in with_loss])
    return steps, np.array(losses, float)[:, members] if with_loss else np.zeros((0, 1))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Return the means of blocks of neighbours, at least 200 of them if there are enough values."""
    block = max(1, len(values) // 200)
    whole = len(values) // block * block
    return np.nanmean(values[:whole].reshape(-1, block, *values.shape[1:]), 1)
