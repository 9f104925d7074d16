"""What the benchmarks share: calls that take turns, and what is told of where they were timed."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

import jaxrnn


class Size(NamedTuple):
    """O = I, H, T and B."""

    O: int
    H: int
    T: int
    B: int


def problem(size: Size) -> tuple[jaxrnn.RNN, jaxrnn.Params, jaxrnn.Batch]:
    """Draw a network of one layer and a batch of ids."""
    rnn = jaxrnn.RNN(size.O, size.H, size.O)
    ids = np.random.default_rng(0).integers(0, size.O, (size.B, size.T + 1), np.int32)
    return rnn, rnn.init(jax.random.key(0)), jaxrnn.Batch(ids[:, :-1], ids[:, 1:])


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit log cost over log size at the three largest sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(costs[-3:]), 1)[0])


REST = 0.005  # seconds between two turns, in which threads that still spin fall asleep


def in_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = 0.02
) -> dict[str, Float[np.ndarray, " rounds"]]:
    """Time calls that take turns, in another order each round; each ends when its work is done.

    Args:
        runs: what to call.
        rounds: how often each has its turn.
        seconds: how long a turn lasts about. Its first call is not counted, of the others the
            median is.

    Returns:
        Seconds a call, of each round.
    """
    calls = {}
    for name, run in runs.items():
        once(run)
        calls[name] = max(1, round(seconds / once(run)))
    found, order = {name: np.zeros(rounds) for name in runs}, np.random.default_rng(0)
    for i in range(rounds):
        for name in order.permutation(list(runs)).tolist():
            time.sleep(REST)
            once(runs[name])
            found[name][i] = np.median([once(runs[name]) for _ in range(calls[name])])
    return found


def once(run: Callable[[], Any]) -> float:
    """Time one call, in seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def ratio(slower: np.ndarray, faster: np.ndarray) -> float:
    """Return how many times as long one takes as the other: the median over the rounds."""
    return float(np.median(slower / faster))


def geometric_mean(ratios: Any) -> float:
    """Average ratios."""
    return float(np.exp(np.mean(np.log(list(ratios)))))


def where(*libraries: str) -> dict[str, Any]:
    """Tell what was measured on: versions and cores."""
    found = {}
    for name in ("jaxrnn", "jax", "jaxlib", "numpy", *libraries):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    cores = len(os.sched_getaffinity(0))
    return found | {"python": platform.python_version(), "cores": cores}
