"""Numerical trouble: where a training step that is not finite began, and what to try.

An overflow is everywhere a few operations later. So that one step is run again, and searched in the
order in which it computes: what it was given, the forward pass from the first time step on, the
rule's memory, the backward pass from the last time step back, the gradient, the update.
"""

import math
import textwrap
from bisect import insort
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxrnn.analysis.gradient_flow import GradientFlow, gradient_flow
from jaxrnn.analysis.lags import affordable_lags
from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.network.batch import Batch, time_major
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.forward_pass import ForwardPass, forward_pass
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params, back_substitute
from jaxrnn.training.step import TrainState, make_train_step
from jaxrnn.tree import by_name

WIDTH = 70  # of a line: beside a label it fits a terminal's 80 columns
SHOWN = (0, 1, 2, 5, 10, 20, 50)  # lags
ROWS = 4  # of the batch, that the gradient flow is computed on
COST = 2**30  # of the gradient flow: a few seconds on two cores
FEW = 20  # norms, whose median says nothing yet

GIVEN, BATCH = "the state before the step", "the batch"
FORWARD, BACKWARD = "the forward pass", "the backward pass"
MEMORY, GRADIENT, UPDATE = "the rule's memory", "the rule's gradient", "the optimiser's update"
LOOP = "the compiled loop"


class Trouble(NamedTuple):
    """Where a step that is not finite began. Time steps and rows count from 0.

    Attributes:
        stage: the part of the step, such as "the forward pass".
        what: what was not finite first, such as "states of layer 0".
        leaf: the first parameter whose gradient is not finite, or else whose new value is not.
        time_step: within the batch; None where there is none.
        row: of the batch.
        steps_back: in the backward pass: how far before the row's last error.
        largest: the largest finite magnitude in the same array up to there; of an update, in the
            gradient of its leaf.
        flow: of the last good state on a few rows of the batch, the row in question first; None
            where it is not finite in float64 either.
        advice: what to try.

    `str()` gives about 6 lines of at most 70 columns.
    """

    stage: str
    what: str
    leaf: str | None = None
    time_step: int | None = None
    row: int | None = None
    steps_back: int | None = None
    largest: float | None = None
    flow: GradientFlow | None = None
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = f"It began in {self.stage}: {self.what}"
        if self.time_step is not None:
            told += f", time step {self.time_step}, row {self.row}"
        if self.steps_back is not None:
            told += f", {self.steps_back} steps before the last error"
        if self.largest:
            place = "elsewhere" if self.time_step is None else "until then"
            place = "in its gradient" if self.stage == UPDATE else place
            told += f"; {place} at most {self.largest:.1e}"
        table = [] if self.flow is None else _table(self.flow)
        advice = f"Try {', '.join(self.advice)}."
        told, advice = (
            textwrap.wrap(text, WIDTH, break_on_hyphens=False) for text in (told, advice)
        )
        return "\n".join([*told, *table, *advice])


def diagnose(
    rnn: RNN,
    algorithm: GradientAlgorithm,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> Trouble:
    """Make a step that was not finite once more, and find where it began.

    Args:
        rnn: the network.
        algorithm: the rule that computes its gradient.
        optimizer: the optimiser.
        state: the last good state.
        batch: what the step after it was made on.

    Raises:
        ValueError: if the batch does not fit the network.
    """
    params, carry = state.params, state.carry
    # Under jit values are not checked: those that are not finite are to be found below.
    checked, h = jax.jit(check_batch, static_argnums=0)(rnn, params, batch, carry.h)
    (loss, after), grads = jax.jit(algorithm.value_and_grad)(params, carry, batch)
    updated = jax.jit(make_train_step(algorithm, optimizer))(state, batch)[0].params
    gradient, update = _leaf(GRADIENT, grads, "gradient of "), _leaf(UPDATE, updated)
    found = _leaf(GIVEN, state._replace(opt_state=(), key=None))
    found = found or _first(BATCH, by_name(time_major(checked._replace(lengths=None))))
    if found is None:
        passed = jax.jit(forward_pass, static_argnums=0)(rnn, params, h, batch)
        found = _forward(passed)
        if found is None and gradient is not None:  # what a rule does not compute is no trouble
            found = _leaf(MEMORY, after._replace(h=()))
            found = found or _backward(rnn, params, passed) or gradient
    if found is None and not jnp.isfinite(loss):
        found = Trouble(GRADIENT, "its own loss")
    if found is None and update is not None:
        found = update._replace(largest=_largest(by_name(grads)[str(update.leaf)]))
    found = found or Trouble(LOOP, "by itself the step is finite")
    first = gradient or update
    found = found._replace(leaf=None if first is None else first.leaf)
    flow = None if found.stage in (GIVEN, BATCH) else _flow(rnn, params, h, checked, found.row or 0)
    return found._replace(flow=flow, advice=_advice(rnn, state, found, flow))


def _leaf(stage: str, tree: Any, prefix: str = "") -> Trouble | None:
    """Find the first element of a pytree's leaves that is not finite."""
    for name, leaf in by_name(tree).items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
            bad = ~np.isfinite(leaf)
            place = [int(i) for i in np.unravel_index(bad.argmax(), bad.shape)]
            return Trouble(stage, f"{prefix}{name}{place or ''}", name, largest=_largest(leaf))
    return None


def _first(stage: str, arrays: dict[str, Array], *, backward: bool = False) -> Trouble | None:
    """Search arrays (T, B, ...): the first time step, or the last; within it the first array."""
    bad = np.stack([~np.isfinite(a).reshape(*a.shape[:2], -1).all(-1) for a in arrays.values()])
    steps = np.flatnonzero(bad.any((0, 2)))
    if not len(steps):
        return None
    t = int(steps[-1 if backward else 0])
    (which, row), *_ = np.argwhere(bad[:, t]).tolist()
    what, array = list(arrays.items())[which]
    largest = _largest(array[t:] if backward else array[: t + 1])
    return Trouble(stage, what, time_step=t, row=row, largest=largest)


def _largest(array: Array) -> float:
    return float(jnp.where(jnp.isfinite(array), jnp.abs(array), 0).max())


def _forward(passed: ForwardPass) -> Trouble | None:
    """Search h_t from the lowest layer up, y_t and ℓ_t, and then the loss."""
    arrays = {
        f"states of layer {i}": trajectory.states
        for i, trajectory in enumerate(passed.trajectories)
    }
    found = _first(FORWARD, arrays | {"outputs": passed.outputs, "losses": passed.losses})
    overflows = found is None and not jnp.isfinite(passed.losses.sum())
    return Trouble(FORWARD, "sum of the losses") if overflows else found


def _backward(rnn: RNN, params: Params, passed: ForwardPass) -> Trouble | None:
    """Search dL/dy_t, and δ_t from the highest layer down, by exact back-substitution."""
    beyond = jnp.zeros_like(passed.h_last)
    deltas, _ = back_substitute(
        rnn.dynamics, params.cells, passed.trajectories, passed.error, beyond
    )
    arrays = {"dL/dy": passed.d_outputs}
    arrays |= {f"deltas of layer {i}": delta for i, delta in reversed(list(enumerate(deltas)))}
    found = _first(BACKWARD, arrays, backward=True)
    if found is None:
        return None
    last = int(np.flatnonzero(passed.d_outputs[:, found.row].any(-1))[-1])
    return found._replace(steps_back=last - (found.time_step or 0))


def _flow(rnn: RNN, params: Params, h: Array, batch: Batch, row: int) -> GradientFlow | None:
    """Compute the gradient flow on a few rows, the given one first, for what it may cost."""
    number, steps = batch.inputs.shape[:2]
    rows = np.array([row, *(i for i in range(number) if i != row)][:ROWS])
    batch, h = jax.tree.map(lambda leaf: leaf[rows], batch), h[:, rows]
    each = rnn.num_layers * rnn.hidden_size**2 * (rnn.hidden_size + len(rows) * steps // 8)
    lags = min(affordable_lags(rnn, steps), SHOWN[-1] + 1, max(2, COST // each))
    with np.errstate(all="ignore"):
        flow = gradient_flow(rnn, params, batch, h=h, lags=lags)
    finite = all(np.isfinite(flow.credit[:, k, :, k:]).all() for k in range(lags))
    return flow if finite else None


class Reach(NamedTuple):
    """How far back the errors reach in one layer, at a few lags.

    Attributes:
        layer: the one in which they grow most.
        lags: k.
        credit: the median of ‖dℓ_t/dh_{t-k}‖, over the positions with an error.
        growth: its factor per step since the lag before; nan at the first. The median of each
            output's own, so that it is exact where all grow alike.
        overall: the factor per step from the first lag to the last.
    """

    layer: int
    lags: tuple[int, ...]
    credit: tuple[float, ...]
    growth: tuple[float, ...]
    overall: float


def reach(flow: GradientFlow) -> Reach:
    """Summarise a gradient flow: the layer in which credit grows most, lag by lag."""
    lags = tuple(k for k in SHOWN if k < flow.credit.shape[1])
    speaks = flow.credit[-1, 0] > 0

    def median(values):
        return float(np.median(values)) if values.size else np.nan

    def growth(credit, j, k):
        both = speaks & (credit[j] > 0) & ~np.isnan(credit[k])
        with np.errstate(over="ignore"):
            return median((credit[k][both] / credit[j][both]) ** (1 / max(1, k - j)))

    overall = [growth(credit, 0, lags[-1]) for credit in flow.credit]
    most = int(np.argmax(np.nan_to_num(overall)))
    credit = flow.credit[most]
    medians = tuple(median(credit[k][speaks & ~np.isnan(credit[k])]) for k in lags)
    steps = (growth(credit, j, k) for j, k in pairwise(lags))
    return Reach(most, lags, medians, (np.nan, *steps), overall[most])


def _table(flow: GradientFlow) -> list[str]:
    found = reach(flow)

    def line(label, numbers):
        return f"{label:<15}" + "".join(f"{number:>7}" for number in numbers)

    def short(x):
        return "" if np.isnan(x) else f"{x:.3g}" if x == 0 or 0.01 <= x < 999 else f"{x:.0e}"

    label = "lag k" if len(flow.credit) == 1 else f"lag k, layer {found.layer}"
    return [
        line(label, found.lags),
        line("‖dℓ_t/dh_{t-k}‖", map(short, found.credit)),
        line("growth per step", map(short, found.growth)),
    ]


def _advice(
    rnn: RNN, state: TrainState, found: Trouble, flow: GradientFlow | None
) -> tuple[str, ...]:
    """Choose remedies, the nearest first."""
    explodes = flow is None or not reach(flow).overall <= 1.01
    slower = "lower --learning-rate or --clip" if int(state.step) else "another --init"
    unbounded = rnn.activation in ("relu", "identity")
    tanh = ("--activation tanh",) if unbounded and (explodes or found.stage == FORWARD) else ()
    half = (found.steps_back or 0) // 2 if explodes else 0
    shorter = (f"--length {half}",) if half else ()
    remedies = {
        GIVEN: ("an earlier checkpoint", slower),
        BATCH: (f"data that are finite: these {found.what} are not",),
        FORWARD: (*tanh, slower),
        MEMORY: ("--algorithm bptt", *tanh, slower),
        BACKWARD: (*shorter, *tanh, slower),
        GRADIENT: ("jaxrnn.verify on the rule", slower),
        UPDATE: ("lower --learning-rate or --clip",),
        LOOP: (slower,),
    }
    return remedies[found.stage]


def growing(norms: Float[AnyArray, " N"], factor: float = 100.0) -> int | None:
    """Return the index of the first norm above `factor` times the median of all before it.

    A norm with fewer than 20 before it is not judged, and those that are not finite do not count.
    """
    before: list[float] = []
    for index, norm in enumerate(np.asarray(norms, float).tolist()):
        if not math.isfinite(norm):
            continue
        middle = len(before) // 2
        if len(before) >= FEW and norm > factor * (before[middle] + before[~middle]) / 2:
            return index
        insort(before, norm)
    return None
