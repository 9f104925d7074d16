"""Shared code of the benchmarks: interleaved timing, and versions for the report."""

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
    """Sizes of a problem, with O = I."""

    O: int
    H: int
    T: int
    B: int


def problem(size: Size) -> tuple[jaxrnn.RNN, jaxrnn.Params, jaxrnn.Batch]:
    """Draw the parameters of a one-layer network and a batch of ids."""
    rnn = jaxrnn.RNN(size.O, size.H, size.O)
    ids = np.random.default_rng(0).integers(0, size.O, (size.B, size.T + 1), np.int32)
    return rnn, rnn.init(jax.random.key(0)), jaxrnn.Batch(ids[:, :-1], ids[:, 1:])


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log cost over log size at the three largest sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(costs[-3:]), 1)[0])


REST = 0.005  # seconds between two turns, so that spinning threads go to sleep


def in_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = 0.02
) -> dict[str, Float[np.ndarray, " rounds"]]:
    """Time several functions in interleaved rounds, in a new random order in each round.

    A turn of a function is one untimed call and several timed ones, of which the median counts.

    Args:
        runs: the functions, by name. Each must return only when its work is done.
        rounds: the number of rounds.
        seconds: the approximate duration of a turn.

    Returns:
        The seconds per call in each round, by name.
    """
    calls = {}
    for name, run in runs.items():
        once(run)
        calls[name] = max(1, round(seconds / once(run)))
    times, rng = {name: np.zeros(rounds) for name in runs}, np.random.default_rng(0)
    for i in range(rounds):
        for name in rng.permutation(list(runs)).tolist():
            time.sleep(REST)
            once(runs[name])
            times[name][i] = np.median([once(runs[name]) for _ in range(calls[name])])
    return times


def once(run: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def ratio(slower: np.ndarray, faster: np.ndarray) -> float:
    """Return the median over the rounds of the ratio of two times."""
    return float(np.median(slower / faster))


def geometric_mean(ratios: Any) -> float:
    """Compute the geometric mean of the ratios."""
    return float(np.exp(np.mean(np.log(list(ratios)))))


def where(*libraries: str) -> dict[str, Any]:
    """Return the versions of the packages and of Python, and the number of cores."""
    versions = {}
    for name in ("jaxrnn", "jax", "jaxlib", "numpy", *libraries):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    cores = len(os.sched_getaffinity(0))
    return versions | {"python": platform.python_version(), "cores": cores}
