"""Comparison of gradient rules: accuracy and cost on the same network and batch.

The gradient g of a rule that draws random numbers is a random variable. With the exact gradient r,

    bias = ‖E g - r‖ / ‖r‖        variance = E ‖g - E g‖² / ‖r‖²        cosine = E ⟨g, r⟩ / ‖g‖ ‖r‖

and bias² + variance is the mean squared relative error.
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
from jaxrnn.gradients.engine.algorithm import check_algorithm
from jaxrnn.network import checks
from jaxrnn.network.batch import Batch, check_counts, check_is_batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params
from jaxrnn.tree import by_name, html_table, length, plain

AT_ONCE = 8  # number of draws that are computed in parallel


class Estimate(NamedTuple):
    """The bias, variance and cosine of a rule's gradient g, estimated against the exact one, r.

    If r is zero, bias and variance are absolute instead of relative to ‖r‖.

    Attributes:
        bias: ‖(mean of g) - r‖ / ‖r‖.
        standard_error: √(variance / draws). The noise of the mean gives even an unbiased rule a
            bias of about this size.
        variance: the unbiased estimate of E ‖g - E g‖² / ‖r‖²; 0 for a deterministic rule.
        cosine: the mean cosine between g and r, where a zero g counts as 0; nan if r is zero.
    """

    bias: float
    standard_error: float
    variance: float
    cosine: float


class Row(NamedTuple):
    """The accuracy and cost of one rule.

    Attributes:
        rule: the name of the rule.
        draws: the number of gradients behind the estimates; 1 for a deterministic rule.
        whole: the estimate for the whole gradient.
        leaves: the estimate for each leaf of the gradient, by name.
        cost: the cost of the loss and gradient of one chunk, compiled.
        seconds: the time per time step of the chunk, median over the rounds.
        ratio: the time divided by that of `autodiff`, median over the rounds.
    """

    rule: str
    draws: int
    whole: Estimate
    leaves: dict[str, Estimate]
    cost: Cost
    seconds: float
    ratio: float


class Comparison(NamedTuple):
    """The result of `compare`, with one row for each rule.

    Attributes:
        rows: the rows, in the order in which the rules were given.
        steps: T, the number of time steps of the chunk.
        batch_size: B, the number of sequences.
    """

    rows: tuple[Row, ...]
    steps: int
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values for JSON; non-finite numbers become None."""
        return plain(self)

    def __str__(self) -> str:
        """Return a table of the estimates for the whole gradient, at most 80 columns wide."""
        draws = max(row.draws for row in self.rows)
        titles, rows = self.table()
        table = [(*titles[:2], "± se" if draws > 1 else "", *titles[3:]), *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        room = WIDTH - sum(width + 1 for width in widths[1:] if width)
        lines = []
        for rule, bias, error, *cells in table:
            name = rule if len(rule) <= room else f"{rule[: room - 5]}…{rule[-4:]}"
            columns = [name.ljust(min(widths[0], room)), bias.rjust(widths[1])]
            columns += [error.ljust(widths[2]), *map(str.rjust, cells, widths[3:])]
            lines.append(" ".join(column for column in columns if column))
        return "\n".join([*lines, *self.remarks()])

    def __repr__(self) -> str:
        """Return the table of `print`."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return html_table(*self.table(), self.remarks())

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the titles of the table and a row for each rule."""
        return (*TITLES[:2], "± se", *TITLES[2:]), [_cells(row) for row in self.rows]

    def remarks(self) -> list[str]:
        """Return the lines below the table, which say what its columns are."""
        lines = [f"T={self.steps}, B={self.batch_size}; ratio: time over autodiff's"]
        draws = max(row.draws for row in self.rows)
        if draws > 1:
            lines.append(f"se: the bias to expect from the noise of {draws} draws alone")
        return lines


WIDTH = 80
TITLES = ("rule", "bias", "variance", "cosine", "Mflop", "MiB", "µs/step", "ratio")


def compare(
    algorithms: Mapping[str, GradientAlgorithm],
    rnn: RNN,
    params: Params,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    h: Float[AnyArray, "L B H"] | None = None,
    draws: int = 64,
    rounds: int = 5,
) -> Comparison:
    """Compare gradient rules with the exact gradient on one chunk, and measure their cost.

        bias = ‖E g - r‖ / ‖r‖     variance = E ‖g - E g‖² / ‖r‖²     cosine = E ⟨g, r⟩ / ‖g‖ ‖r‖

    for the gradient g of a rule and the exact gradient r. Each rule starts from a new carry. A rule
    whose `init` makes the same carry from two keys is deterministic, and is evaluated once. All is
    computed in JAX's current default precision.

    Args:
        algorithms: the rules, by the names that they have in the table.
        rnn: the network.
        params: its parameters.
        batch: the chunk, inputs (B, T) or (B, T, I).
        key: a random key, for the rules that draw random numbers.
        h: the initial hidden state, (num_layers, B, H); default zeros.
        draws: how many gradients to draw from each random rule, at least 2.
        rounds: how many times to measure the time of each rule. A round measures all rules in turn.

    Returns:
        The comparison; `print` it for a table.

    Raises:
        ValueError: if `algorithms` is empty or contains something else than algorithms, draws or
            rounds is too small, or arrays do not fit the network.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rules = {"one-hop": jaxrnn.gradients.truncated_bptt(rnn, 0)}
    >>> params, key = rnn.init(jax.random.key(0)), jax.random.key(1)
    >>> comparison = jaxrnn.compare(rules, rnn, params, batch, key=key, rounds=1)
    >>> comparison.rows[0].whole.bias > 0.01, comparison.rows[0].whole.variance
    (True, 0.0)
    """
    _check(algorithms, draws, rounds)
    check_is_batch(batch)
    check_counts(batch)
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
    for rule, program, times in zip(algorithms, programs, seconds[1:], strict=True):
        leaves = {name: estimate(program.draws[name], r) for name, r in exact.items()}
        whole = estimate(
            np.concatenate([program.draws[name] for name in exact], axis=1),
            np.concatenate(list(exact.values())),
        )
        count = len(next(iter(program.draws.values())))
        ratio = float(np.median(times / seconds[0]))
        rows.append(
            Row(rule, count, whole, leaves, program.cost, float(np.median(times)) / steps, ratio)
        )
    return Comparison(tuple(rows), steps, len(batch.inputs))


class _Program(NamedTuple):
    """A rule, compiled for one chunk.

    Attributes:
        run: computes the loss and gradient once.
        cost: the cost of one run.
        draws: the leaves of the gradient by name, for each of n draws.
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
    carry = algorithm.init(params, h, key=keys[0])
    compiled, cost = compile_with_cost(algorithm.value_and_grad, params, carry, batch)
    grads = compiled(params, carry, batch)[1]
    if jax.tree.map(jnp.shape, grads) != jax.tree.map(jnp.shape, params):
        raise ValueError(
            f"the gradient of {rule} must have the structure and shapes of the parameters: "
            f"jaxrnn.verify shows where it differs"
        )
    if draws_numbers(algorithm, params, h, keys):
        _, grads = draw_gradients(algorithm, params, h, batch, keys)
    else:
        grads = jax.tree.map(lambda leaf: leaf[None], grads)
    return _Program(lambda: compiled(params, carry, batch), cost, vectors(grads))


def draws_numbers(algorithm: GradientAlgorithm, params: Params, h: Array, keys: Array) -> bool:
    """Return whether a rule draws random numbers: its carry is another one for another key."""
    carry, other = (algorithm.init(params, h, key=key) for key in keys[:2])
    return not jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), carry, other))


def draw_gradients(
    algorithm: GradientAlgorithm, params: Params, h: Array, batch: Batch, keys: Array
) -> tuple[Array, Params]:
    """Return the loss and the gradient for each key, with a leading axis n."""

    @jax.jit
    def draw_all(keys, params, h, batch):
        def draw(key):
            carry = algorithm.init(params, h, key=key)
            (loss, _), grads = algorithm.value_and_grad(params, carry, batch)
            return loss, grads

        return lax.map(draw, keys, batch_size=AT_ONCE)

    return draw_all(keys, params, h, batch)


def vectors(grads: Params) -> dict[str, Float[np.ndarray, "n size"]]:
    """Return the leaves of n gradients by name, in float64, each as n vectors."""
    return {
        name: np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        for name, leaf in by_name(grads).items()
    }


def estimate(draws: Float[np.ndarray, "n size"], exact: Float[np.ndarray, " size"]) -> Estimate:
    """Return bias, variance and cosine of n draws against the exact vector."""
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
    if not isinstance(algorithms, Mapping):
        raise ValueError(
            f"algorithms must be a dict {{name: algorithm, …}}, got a {type(algorithms).__name__}: "
            f"the names are those of the table"
        )
    if not algorithms:
        raise ValueError("algorithms is empty: give {name: algorithm, …}, with at least one")
    for name, algorithm in algorithms.items():
        check_algorithm(f"algorithms[{name!r}]", algorithm)
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
    """Return three significant digits, with an exponent only for very small or large numbers."""
    if value != 0 and not 1e-3 <= value < 1e6:
        return f"{value:.1e}"
    return np.format_float_positional(value, 3, unique=False, fractional=False, trim="-")
