"""Diagnosis of a non-finite training step: where the first non-finite value appears, what to try.

An overflow spreads to everything a few operations later. Therefore the step is run again, and its
values are searched in the order in which they are computed: the state and the batch, the forward
pass from the first time step to the last, the rule's memory, the backward pass from the last time
step to the first, the gradient, the update. The memory and the backward pass are searched only if
the rule's gradient is not finite.
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
from jaxrnn.network.batch import Batch, to_time_major
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.forward_pass import ForwardPass, forward_pass
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params, back_substitute
from jaxrnn.training.step import TrainState, make_train_step
from jaxrnn.tree import by_name

WIDTH = 70  # columns of a line, so that with its label it fits a terminal of 80 columns
SHOWN = (0, 1, 2, 5, 10, 20, 50)  # the lags in the table
ROWS = 4  # number of rows of the batch for which the gradient flow is computed
COST = 2**30  # limit of the operations of the gradient flow: a few seconds on two cores
FEW = 20  # the median of fewer norms than these is not reliable

GIVEN, BATCH = "the state before the step", "the batch"
FORWARD, BACKWARD = "the forward pass", "the backward pass"
MEMORY, GRADIENT, UPDATE = "the rule's memory", "the rule's gradient", "the optimiser's update"
LOOP = "the compiled loop"


class Trouble(NamedTuple):
    """Where the first non-finite value of a step appeared. Time steps and rows count from 0.

    Attributes:
        stage: the part of the step, such as "the forward pass".
        what: the first array that was not finite, such as "states of layer 0".
        leaf: the first parameter whose gradient is not finite; if there is none, the first whose
            new value is not finite.
        time_step: the time step within the batch; None if the array has no time axis.
        row: the row of the batch; None if it is not known, as for the leaves of a memory.
        steps_back: in the backward pass, the number of steps before the last error of the row.
        largest: the largest finite magnitude in the same array up to this time step. For an update,
            the largest in the gradient of its leaf.
        flow: the gradient flow of the last good state on a few rows of the batch, this row first;
            None if it is not finite in float64 either, or if the state or the batch is not.
        advice: what to try, the most specific first; options have their names in
            `jaxrnn.lm.Options`.

    `str()` returns about 6 lines of at most 70 columns.
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
        origin = f"It began in {self.stage}: {self.what}"
        if self.time_step is not None:
            origin += f", time step {self.time_step}, row {self.row}"
        if self.steps_back is not None:
            origin += f", {self.steps_back} steps before the last error"
        if self.largest:
            where = "elsewhere" if self.time_step is None else "until then"
            where = "in its gradient" if self.stage == UPDATE else where
            origin += f"; {where} at most {self.largest:.1e}"
        table = [] if self.flow is None else _table(self.flow)
        advice = f"Try {', '.join(self.advice)}."
        origin, advice = (
            textwrap.wrap(text, WIDTH, break_on_hyphens=False) for text in (origin, advice)
        )
        return "\n".join([*origin, *table, *advice])


def diagnose(
    rnn: RNN,
    algorithm: GradientAlgorithm,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> Trouble:
    """Run a non-finite step again, and find its first non-finite value.

    Args:
        rnn: the network.
        algorithm: the gradient rule.
        optimizer: the Optax optimiser.
        state: the last good state.
        batch: the batch of the step after it, inputs (B, T) or (B, T, I).

    Returns:
        Where the first non-finite value appeared, the gradient flow, and what to try.

    Raises:
        ValueError: if the batch does not fit the network.
    """
    params, carry = state.params, state.carry
    # Under jit `check_batch` does not check values, so non-finite ones do not raise an error here.
    checked, h = jax.jit(check_batch, static_argnums=0)(rnn, params, batch, carry.h)
    (loss, after), grads = jax.jit(algorithm.value_and_grad)(params, carry, batch)
    updated = jax.jit(make_train_step(algorithm, optimizer, continues=True))(state, batch)[0].params
    gradient, update = _leaf(GRADIENT, grads, "gradient of "), _leaf(UPDATE, updated)
    trouble = _leaf(GIVEN, state._replace(opt_state=()))
    trouble = trouble or _first(BATCH, by_name(to_time_major(checked._replace(lengths=None))))
    if trouble is None:
        passed = jax.jit(forward_pass, static_argnums=0)(rnn, params, h, batch)
        trouble = _forward(passed)
        # A rule may not compute all of the exact backward pass. So this pass is searched only if
        # the rule's own gradient is not finite.
        if trouble is None and gradient is not None:
            trouble = _leaf(MEMORY, after._replace(h=()))
            trouble = trouble or _backward(rnn, params, passed) or gradient
    if trouble is None and not jnp.isfinite(loss):
        trouble = Trouble(GRADIENT, "its own loss")
    if trouble is None and update is not None:
        trouble = update._replace(largest=_largest(by_name(grads)[str(update.leaf)]))
    trouble = trouble or Trouble(LOOP, "by itself the step is finite")
    first = gradient or update
    trouble = trouble._replace(leaf=None if first is None else first.leaf)
    flow = (
        None
        if trouble.stage in (GIVEN, BATCH)
        else _flow(rnn, params, h, checked, trouble.row or 0)
    )
    return trouble._replace(flow=flow, advice=_advice(rnn, state, trouble, flow))


def _leaf(stage: str, tree: Any, prefix: str = "") -> Trouble | None:
    """Find the first non-finite element of a pytree, leaf by leaf."""
    for name, leaf in by_name(tree).items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
            bad = ~np.isfinite(leaf)
            index = [int(i) for i in np.unravel_index(bad.argmax(), bad.shape)]
            return Trouble(stage, f"{prefix}{name}{index or ''}", name, largest=_largest(leaf))
    return None


def _first(stage: str, arrays: dict[str, Array], *, backward: bool = False) -> Trouble | None:
    """Find the first non-finite time step of arrays (T, B, ...), and the first array in it.

    Args:
        stage: the part of the step to which the arrays belong.
        arrays: the arrays by name, in the order in which a time step computes them.
        backward: whether the last time step comes first.
    """
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
    """Return the largest finite magnitude."""
    return float(jnp.where(jnp.isfinite(array), jnp.abs(array), 0).max())


def _forward(passed: ForwardPass) -> Trouble | None:
    """Find the first non-finite value of the forward pass.

    Searches h_t layer by layer, then y_t and ℓ_t, at each time step; then the sum of the losses.
    """
    arrays = {
        f"states of layer {i}": trajectory.states
        for i, trajectory in enumerate(passed.trajectories)
    }
    trouble = _first(FORWARD, arrays | {"outputs": passed.outputs, "losses": passed.loss_terms})
    overflows = trouble is None and not jnp.isfinite(passed.loss_terms.sum())
    return Trouble(FORWARD, "sum of the losses") if overflows else trouble


def _backward(rnn: RNN, params: Params, passed: ForwardPass) -> Trouble | None:
    """Find the first non-finite value of the exact backward pass.

    Searches dL/dy_t, then δ_t from the highest layer to the lowest, at each time step.
    """
    d_h_last = jnp.zeros_like(passed.h_last)
    deltas, _ = back_substitute(
        rnn.dynamics, params.cells, passed.trajectories, passed.error, d_h_last
    )
    arrays = {"dL/dy": passed.d_outputs}
    arrays |= {f"deltas of layer {i}": delta for i, delta in reversed(list(enumerate(deltas)))}
    trouble = _first(BACKWARD, arrays, backward=True)
    if trouble is None:
        return None
    last = int(np.flatnonzero(passed.d_outputs[:, trouble.row].any(-1))[-1])
    return trouble._replace(steps_back=last - (trouble.time_step or 0))


def _flow(rnn: RNN, params: Params, h: Array, batch: Batch, row: int) -> GradientFlow | None:
    """Compute the gradient flow on a few rows, the given one first; None if it is not finite.

    The number of lags is limited by their cost.
    """
    number, steps = batch.inputs.shape[:2]
    rows = np.array([row, *(i for i in range(number) if i != row)][:ROWS])
    batch, h = jax.tree.map(lambda leaf: leaf[rows], batch), h[:, rows]
    cost_of_lag = rnn.num_layers * rnn.hidden_size**2 * (rnn.hidden_size + len(rows) * steps // 8)
    lags = min(affordable_lags(rnn, steps), SHOWN[-1] + 1, max(2, COST // cost_of_lag))
    with np.errstate(all="ignore"):
        flow = gradient_flow(rnn, params, batch, h=h, lags=lags)
    finite = all(np.isfinite(flow.credit[:, k, :, k:]).all() for k in range(lags))
    return flow if finite else None


class CreditGrowth(NamedTuple):
    """How the credit ‖dℓ_t/dh_{t-k}‖ grows with the lag k, in the layer in which it grows most.

    Attributes:
        layer: the index of the layer.
        lags: the lags k.
        credit: for each lag, the median of ‖dℓ_t/dh_{t-k}‖ over the outputs with an error.
        growth: for each lag, the factor per step by which the credit has grown since the previous
            lag; nan at the first. It is the median of the factors of the outputs, so that it is
            exact if all of them grow alike.
        overall: the factor per step from the first lag to the last.
    """

    layer: int
    lags: tuple[int, ...]
    credit: tuple[float, ...]
    growth: tuple[float, ...]
    overall: float


def credit_growth(flow: GradientFlow) -> CreditGrowth:
    """Return how the credit grows with the lag, in the layer in which it grows most."""
    lags = tuple(k for k in SHOWN if k < flow.credit.shape[1])
    has_error = flow.credit[-1, 0] > 0

    def median(values):
        return float(np.median(values)) if values.size else np.nan

    def growth(credit, j, k):
        both = has_error & (credit[j] > 0) & ~np.isnan(credit[k])
        with np.errstate(over="ignore"):
            return median((credit[k][both] / credit[j][both]) ** (1 / max(1, k - j)))

    overall = [growth(credit, 0, lags[-1]) for credit in flow.credit]
    steepest = int(np.argmax(np.nan_to_num(overall)))
    credit = flow.credit[steepest]
    medians = tuple(median(credit[k][has_error & ~np.isnan(credit[k])]) for k in lags)
    factors = (growth(credit, j, k) for j, k in pairwise(lags))
    return CreditGrowth(steepest, lags, medians, (np.nan, *factors), overall[steepest])


def _table(flow: GradientFlow) -> list[str]:
    """Return the lines of a table of the credit and its growth over the lags."""
    summary = credit_growth(flow)

    def line(label, numbers):
        return f"{label:<15}" + "".join(f"{number:>7}" for number in numbers)

    def short(x):
        return "" if np.isnan(x) else f"{x:.3g}" if x == 0 or 0.01 <= x < 999 else f"{x:.0e}"

    label = "lag k" if len(flow.credit) == 1 else f"lag k, layer {summary.layer}"
    return [
        line(label, summary.lags),
        line("‖dℓ_t/dh_{t-k}‖", map(short, summary.credit)),
        line("growth per step", map(short, summary.growth)),
    ]


def _advice(
    rnn: RNN, state: TrainState, trouble: Trouble, flow: GradientFlow | None
) -> tuple[str, ...]:
    """Return what to try, the most specific first, with the names of `jaxrnn.lm.Options`."""
    explodes = flow is None or not credit_growth(flow).overall <= 1.01
    slower = "lower `learning_rate` or `clip`" if int(state.step) else "another `init`"
    unbounded = rnn.activation in ("relu", "identity")
    tanh = ("activation='tanh'",) if unbounded and (explodes or trouble.stage == FORWARD) else ()
    half = (trouble.steps_back or 0) // 2 if explodes else 0
    shorter = (f"length={half}",) if half else ()
    remedies = {
        GIVEN: ("an earlier checkpoint", slower),
        BATCH: (f"data that are finite: these {trouble.what} are not",),
        FORWARD: (*tanh, slower),
        MEMORY: ("algorithm='bptt'", *tanh, slower),
        BACKWARD: (*shorter, *tanh, slower),
        GRADIENT: ("jaxrnn.verify on the rule", slower),
        UPDATE: ("lower `learning_rate` or `clip`",),
        LOOP: (slower,),
    }
    return remedies[trouble.stage]


def first_spike(norms: Float[AnyArray, " N"], factor: float = 100.0) -> int | None:
    """Return the index of the first norm above `factor` times the median of all norms before it.

    Non-finite norms are ignored, and a norm is only tested if at least 20 finite ones precede it.

    Args:
        norms: norms of the gradient, one per step.
        factor: the factor by which a norm must exceed the median.

    Returns:
        The index, or None if no norm is that large.
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
