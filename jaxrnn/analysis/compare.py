"""What gradient rules are worth and what they cost, side by side on one network and batch.

A rule's gradient g is a random number where the rule draws any. With r the exact gradient,

    bias = ‖E g - r‖ / ‖r‖        variance = E ‖g - E g‖² / ‖r‖²        cosine = E ⟨g, r⟩ / ‖g‖ ‖r‖

so that bias² + variance is the mean squared relative error.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrnn.analysis.cost import Cost, compile_with_cost, seconds_of
from jaxrnn.gradients import GradientAlgorithm, autodiff
from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_is_batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params
from jaxrnn.tree import by_name, length, plain

AT_ONCE = 8  # draws that are computed side by side


class Estimate(NamedTuple):
    """How a rule's draws of a gradient, g, compare with the exact one, r.

    Where r is zero nothing is divided by its norm, and there is no cosine.

    Attributes:
        bias: ‖mean of g - r‖ / ‖r‖.
        standard_error: sqrt(variance / draws), the bias to be expected of a rule that has none: it
            is what is left of its noise in the mean.
        variance: mean of ‖g - mean of g‖² / ‖r‖², unbiased; 0 for a rule that does not draw.
        cosine: mean of the cosine between g and r, where a g of zero counts 0; nan if r is zero.
    """

    bias: float
    standard_error: float
    variance: float
    cosine: float


class Row(NamedTuple):
    """One rule.

    Attributes:
        rule: its name.
        draws: from how many draws the estimates are; 1 for a rule that does not draw.
        whole: of the gradient as a whole.
        leaves: of each of its leaves, by name.
        cost: of one chunk's loss and gradient, compiled.
        seconds: per time step of the chunk, the median over the rounds.
        ratio: time over that of `autodiff`, the median over the rounds.
    """

    rule: str
    draws: int
    whole: Estimate
    leaves: dict[str, Estimate]
    cost: Cost
    seconds: float
    ratio: float


class Comparison(NamedTuple):
    """What `compare` found: one row for each rule.

    Attributes:
        rows: in the order in which the rules were given.
        steps: T, the time steps of the chunk.
        batch_size: B.
    """

    rows: tuple[Row, ...]
    steps: int
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; what is not finite is None."""
        return plain(self)

    def __str__(self) -> str:
        """Write a table of the whole gradient's figures, 80 columns wide at most."""
        draws = max(row.draws for row in self.rows)
        table = [(*TITLES[:2], "± se" if draws > 1 else "", *TITLES[2:]), *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        room = WIDTH - sum(width + 1 for width in widths[1:] if width)
        lines = []
        for rule, bias, error, *cells in table:
            name = rule if len(rule) <= room else f"{rule[: room - 5]}…{rule[-4:]}"
            columns = [name.ljust(min(widths[0], room)), bias.rjust(widths[1])]
            columns += [error.ljust(widths[2]), *map(str.rjust, cells, widths[3:])]
            lines.append(" ".join(column for column in columns if column))
        lines.append(f"T={self.steps}, B={self.batch_size}; ratio: time over autodiff's")
        if draws > 1:
            lines.append(
                f"se: the bias that the noise of {draws} draws would give an unbiased rule"
            )
        return "\n".join(lines)


WIDTH = 80
TITLES = ("rule", "bias", "variance", "cosine", "Mflop", "MiB", "µs/step", "ratio")


def compare(
    algorithms: Mapping[str, GradientAlgorithm],
    rnn: RNN,
    params: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    h: Float[AnyArray, "L B H"] | None = None,
    draws: int = 64,
    rounds: int = 5,
) -> Comparison:
    """Compare rules with the exact gradient of one chunk, and with one another in what they cost.

    Each rule starts from a fresh carry. One whose `init` makes the same carry of two keys does not
    draw, and is asked once. It all runs in the process's own precision.

    Args:
        algorithms: the rules, by the names that they are to have in the table.
        rnn: the network.
        params: its parameters.
        batch: on what.
        key: for the rules that draw random numbers.
        h: the state before the first step, (num_layers, B, H); zeros if not given.
        draws: how many gradients to draw of a rule.
        rounds: how many times to measure each rule's time, all in turn.

    Raises:
        ValueError: if there is nothing to compare, an algorithm is none, draws is below 2 or rounds
            below 1, or arrays do not fit the network.
    """
    _check(algorithms, draws, rounds)
    check_is_batch(batch)
    params = jax.tree.map(jnp.asarray, params)
    start = rnn.initial_state(len(batch.inputs)) if h is None else h
    batch, start = check_batch(rnn, params, batch, start)
    keys = jax.random.split(key, draws)
    reference, *programs = (
        _compile(rule, algorithm, params, start, batch, keys)
        for rule, algorithm in [("autodiff", autodiff(rnn)), *algorithms.items()]
    )
    exact = {name: leaf[0] for name, leaf in reference.draws.items()}
    seconds = seconds_of([program.run for program in (reference, *programs)], rounds)
    steps = batch.inputs.shape[1]
    rows = []
    for rule, program, its in zip(algorithms, programs, seconds[1:], strict=True):
        leaves = {name: _estimate(program.draws[name], r) for name, r in exact.items()}
        whole = _estimate(
            np.concatenate([program.draws[name] for name in exact], axis=1),
            np.concatenate(list(exact.values())),
        )
        count = len(next(iter(program.draws.values())))
        ratio = float(np.median(its / seconds[0]))
        rows.append(
            Row(rule, count, whole, leaves, program.cost, float(np.median(its)) / steps, ratio)
        )
    return Comparison(tuple(rows), steps, len(batch.inputs))


class _Program(NamedTuple):
    """A rule, compiled for one chunk.

    Attributes:
        run: computes loss and gradient from one draw's carry.
        cost: of one run.
        draws: the gradient's leaves by name, for each of n draws.
    """

    run: Callable[[], Any]
    cost: Cost
    draws: dict[str, Float[np.ndarray, "n size"]]


def _compile(
    rule: str,
    algorithm: GradientAlgorithm,
    params: Params,
    h: Array,
    batch: Batch,
    keys: Array,
) -> _Program:
    @jax.jit
    def draw_all(keys, params, h, batch):
        def draw(key):
            return algorithm.value_and_grad(params, algorithm.init(params, h, key=key), batch)[1]

        return lax.map(draw, keys, batch_size=AT_ONCE)

    carry, other = (algorithm.init(params, h, key=key) for key in keys[:2])
    compiled, cost = compile_with_cost(algorithm.value_and_grad, params, carry, batch)
    grads = compiled(params, carry, batch)[1]
    if jax.tree.map(jnp.shape, grads) != jax.tree.map(jnp.shape, params):
        raise ValueError(
            f"the gradient of {rule} must have the structure and shapes of the parameters: "
            f"jaxrnn.verify says where it has not"
        )
    if jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), carry, other)):
        grads = jax.tree.map(lambda leaf: leaf[None], grads)
    else:
        grads = draw_all(keys, params, h, batch)
    draws = {
        name: np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        for name, leaf in by_name(grads).items()
    }
    return _Program(lambda: compiled(params, carry, batch), cost, draws)


def _estimate(draws: Float[np.ndarray, "n size"], exact: Float[np.ndarray, " size"]) -> Estimate:
    norm = length(exact) or 1.0
    g, r = draws / norm, exact / norm
    mean, count = g.mean(0), len(g)
    variance = float(np.sum((g - mean) ** 2) / (count - 1)) if count > 1 else 0.0
    lengths = np.linalg.norm(g, axis=1)
    cosines = g @ r / np.where(lengths == 0, 1, lengths)
    return Estimate(
        bias=float(np.linalg.norm(mean - r)),
        standard_error=math.sqrt(variance / count),
        variance=variance,
        cosine=float(cosines.mean()) if r.any() else math.nan,
    )


def _check(algorithms: Mapping[str, GradientAlgorithm], draws: int, rounds: int) -> None:
    if not algorithms:
        raise ValueError("algorithms is empty: give {name: algorithm, …}, with one at least")
    for name, algorithm in algorithms.items():
        if not isinstance(algorithm, GradientAlgorithm):
            raise ValueError(
                f"algorithms[{name!r}] must be a GradientAlgorithm, got a "
                f"{type(algorithm).__name__}: build a rule, as in jaxrnn.gradients.bptt(rnn), or "
                f"make one with jaxrnn.GradientAlgorithm(init, value_and_grad)"
            )
    checks.whole("draws", draws, 2)
    checks.whole("rounds", rounds, 1)


def _cells(row: Row) -> tuple[str, ...]:
    whole = row.whole
    return (
        row.rule,
        f"{whole.bias:.2g}",
        f"± {whole.standard_error:.2g}" if row.draws > 1 else "",
        f"{whole.variance:.2g}",
        f"{whole.cosine:.3f}",
        _short(row.cost.flops / 1e6),
        _short(row.cost.temp_bytes / 2**20),
        _short(row.seconds * 1e6),
        _short(row.ratio),
    )


def _short(value: float) -> str:
    """Write three digits, without an exponent where that is short."""
    if value != 0 and not 1e-3 <= value < 1e6:
        return f"{value:.1e}"
    return np.format_float_positional(value, 3, unique=False, fractional=False, trim="-")
