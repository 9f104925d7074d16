"""How accurate are the gradient rules, and what do networks learn with them?

Questions, on tasks whose lowest possible losses are known:

- quality: how close is each rule to the exact gradient of a chunk, on four tasks, before, during
  and after training?
- size: how do bias and variance grow with H?
- learning: on the add task with two delays, which rules learn the first dependency, and which
  learn both?

Setting of quality and size: a leaky network (leak 0.5, so that RFLO has a memory) is trained by
BPTT with Adam. `jaxrnn.compare` then compares the gradients of all rules on one fixed chunk, from
h = 0 and a fresh memory. KeRNL learns its kernel and DNI its prediction of the credit; one chunk is
too short for that, so their gradients are those of nearly untrained estimates.

Setting of learning: a vanilla network (leak 1, where RFLO equals the one-hop gradient) is trained
online with Adam. An endless sequence is read in chunks of ten steps, with an update after each; the
state and the memory of the rule are carried from chunk to chunk. Every rule starts from the same
weights and sees the same coins. BPTT assigns no credit beyond the start of its chunk; truncated
BPTT carries a window of ten steps. The floors (lowest possible losses) are those of Marschall, Cho
& Savin (2020).

    python experiments/rules.py            about six minutes on two cores
    python experiments/rules.py --quick    seconds: tiny, and its numbers mean nothing
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxrnn
from jaxrnn import plotting

Build = Callable[[jaxrnn.RNN], jaxrnn.GradientAlgorithm]

RULES: dict[str, Build] = {
    "bptt": jaxrnn.gradients.bptt,
    "rtrl": jaxrnn.gradients.rtrl,
    "one-hop": partial(jaxrnn.gradients.truncated_bptt, window=0),
    "truncated_bptt(3)": partial(jaxrnn.gradients.truncated_bptt, window=3),
    "snap(1)": partial(jaxrnn.gradients.snap, n=1),
    "rflo": jaxrnn.gradients.rflo,
    "rflo, random feedback": partial(jaxrnn.gradients.rflo, feedback="random"),
    "kernl": jaxrnn.gradients.kernl,
    "dni": jaxrnn.gradients.dni,
    "uoro": jaxrnn.gradients.uoro,
    "kf_rtrl": jaxrnn.gradients.kf_rtrl,
    "ok(1)": jaxrnn.gradients.ok,
    "ok(4)": partial(jaxrnn.gradients.ok, rank=4),
}
LEARNERS: dict[str, Build] = {
    "bptt": jaxrnn.gradients.bptt,
    "truncated_bptt(10)": partial(jaxrnn.gradients.truncated_bptt, window=10),
    "rtrl": jaxrnn.gradients.rtrl,
    "ok(1)": jaxrnn.gradients.ok,
    "kf_rtrl": jaxrnn.gradients.kf_rtrl,
    "uoro": jaxrnn.gradients.uoro,
    "kernl": jaxrnn.gradients.kernl,
    "snap(1)": partial(jaxrnn.gradients.snap, n=1),
    "one-hop": partial(jaxrnn.gradients.truncated_bptt, window=0),
    "dni": jaxrnn.gradients.dni,
}
UNBIASED = {"uoro", "kf_rtrl", "ok(1)", "ok(4)"}
DELAYS = (6, 10)
QUANTILES = {"min": 0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1}


class Sizes(NamedTuple):
    """Sizes of the experiment.

    Attributes:
        hidden: H, except for the comparison over H.
        batch: sequences in a batch, for quality and size.
        moments: numbers of updates after which the rules are compared.
        draws: random gradients of each stochastic rule.
        hidden_sizes: H, for the comparison over H.
        seeds: seeds of learning.
        updates: updates of learning.
        rows: sequences read in parallel, for learning.
        chunk: steps of a chunk, for learning.
        rules: rules to compare.
        learners: rules to train with.
        tasks: tasks for quality.
    """

    hidden: int = 16
    batch: int = 16
    moments: tuple[int, ...] = (0, 300, 3000)
    draws: int = 64
    hidden_sizes: tuple[int, ...] = (8, 16, 32, 64)
    seeds: int = 32
    updates: int = 3000
    rows: int = 8
    chunk: int = 10
    rules: tuple[str, ...] = tuple(RULES)
    learners: tuple[str, ...] = tuple(LEARNERS)
    tasks: tuple[str, ...] = ("copy", "adding", "add", "text")


QUICK = Sizes(
    hidden=4,
    batch=2,
    moments=(0, 1),
    draws=2,
    hidden_sizes=(3,),
    seeds=3,
    updates=20,
    rows=2,
    rules=("uoro",),
    learners=("rtrl", "one-hop"),
    tasks=("add",),
)


def all_tasks() -> dict[str, tuple[jaxrnn.tasks.Task, int]]:
    """Make the four tasks, each with the length of a chunk."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    vocabulary = jaxrnn.lm.Vocabulary.from_text(text)
    return {
        "copy": (jaxrnn.tasks.copy(delay=10, symbols=4, recall=4), 18),
        "adding": (jaxrnn.tasks.adding(), 20),
        "add": (jaxrnn.tasks.delayed_add(*DELAYS), 20),
        "text": (jaxrnn.tasks.text(vocabulary.encode(text), vocabulary.size), 20),
    }


def network(task: jaxrnn.tasks.Task, hidden_size: int, leak: float) -> jaxrnn.RNN:
    """Build the network for a task."""
    return jaxrnn.RNN(
        task.input_size, hidden_size, task.output_size, loss_function=task.loss, leak=leak
    )


def train_by_bptt(
    rnn: jaxrnn.RNN, task: jaxrnn.tasks.Task, length: int, moments: tuple[int, ...], batch_size: int
) -> list[tuple[jaxrnn.Params, float]]:
    """Train by BPTT; return the parameters at each moment, and the mean loss just before it."""
    params_key, state_key, data_key = jax.random.split(jax.random.key(0), 3)
    algorithm = jaxrnn.gradients.bptt(rnn)
    optimizer = optax.adam(0.003)
    step = jaxrnn.make_train_step(algorithm, optimizer)

    def update(state, key):
        return step(state, task.draw(batch_size, length, key=key))

    start = rnn.initial_state(batch_size)
    state = jaxrnn.init_train_state(
        algorithm, optimizer, rnn.init(params_key), start, key=state_key
    )
    keys, results = jax.random.split(data_key, max(moments) + 1), []
    train = jax.jit(partial(lax.scan, update))
    for before, now in zip((0, *moments), moments, strict=False):
        loss = float("nan")
        if now > before:
            state, metrics = train(state, keys[before:now])
            loss = float(metrics.loss[-min(100, now - before) :].mean())
        results.append((state.params, loss))
    return results


def quality(sizes: Sizes) -> dict[str, Any]:
    """Compare all rules on all tasks, at every moment of training."""
    results, tasks = {}, all_tasks()
    for name in sizes.tasks:
        task, length = tasks[name]
        rnn = network(task, sizes.hidden, leak=0.5)
        batch = task.draw(sizes.batch, length, key=jax.random.key(1))
        algorithms = {rule: RULES[rule](rnn) for rule in sizes.rules}
        results[name] = {"floors": task.floors}
        moments = train_by_bptt(rnn, task, length, sizes.moments, sizes.batch)
        for updates, (params, loss) in zip(sizes.moments, moments, strict=True):
            table = jaxrnn.compare(
                algorithms, rnn, params, batch, key=jax.random.key(2), draws=sizes.draws, rounds=1
            )
            print(f"\n{name}, H={sizes.hidden}, after {updates} updates, loss {loss:.4f}\n{table}")
            results[name][updates] = {"loss": rounded(loss), "rules": summary(table)}
    return results


def over_sizes(sizes: Sizes) -> dict[int, Any]:
    """Compare all rules at every H, on the add task after some training."""
    results, (task, length) = {}, all_tasks()["add"]
    batch = task.draw(sizes.batch, length, key=jax.random.key(1))
    for hidden_size in sizes.hidden_sizes:
        rnn = network(task, hidden_size, leak=0.5)
        [(params, _)] = train_by_bptt(rnn, task, length, sizes.moments[1:2], sizes.batch)
        algorithms = {rule: RULES[rule](rnn) for rule in sizes.rules}
        table = jaxrnn.compare(
            algorithms, rnn, params, batch, key=jax.random.key(2), draws=sizes.draws, rounds=5
        )
        print(f"\nadd, H={hidden_size}, after {sizes.moments[1]} updates\n{table}", flush=True)
        results[hidden_size] = summary(table)
    return results


def summary(table: jaxrnn.Comparison) -> dict[str, Any]:
    """Return the values of a comparison that the plots and the README need."""
    return {
        row.rule: {
            **{name: rounded(value) for name, value in row.whole._asdict().items()},
            "flops": row.cost.flops,
            "temp_bytes": row.cost.temp_bytes,
            "microseconds": rounded(1e6 * row.seconds),
        }
        for row in table.rows
    }


def learning(sizes: Sizes) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Train with every rule, all seeds at once; return losses (seeds, updates) and floors."""
    task = jaxrnn.tasks.delayed_add(*DELAYS)
    rnn = network(task, sizes.hidden, leak=1.0)
    optimizer = optax.adam(0.003)

    def chunks(key):
        """Draw a long sequence, without the first steps, whose targets depend on earlier coins."""
        before = max(DELAYS)
        batch = task.draw(sizes.rows, before + sizes.updates * sizes.chunk, key=key)
        batch = jax.tree.map(lambda leaf: leaf[:, before:], batch)
        return jaxrnn.chunks(batch, sizes.chunk).all()

    def train(algorithm, key):
        params_key, state_key, data_key = jax.random.split(key, 3)
        start = rnn.initial_state(sizes.rows)
        state = jaxrnn.init_train_state(
            algorithm, optimizer, rnn.init(params_key), start, key=state_key
        )
        step = jaxrnn.make_train_step(algorithm, optimizer, continues=True)
        _, metrics = lax.scan(step, state, chunks(data_key))
        return metrics.loss

    keys = jax.vmap(jax.random.key)(jnp.arange(sizes.seeds))
    losses = {}
    for rule in sizes.learners:
        algorithm = LEARNERS[rule](rnn)
        losses[rule] = np.asarray(jax.jit(jax.vmap(partial(train, algorithm)))(keys))
        print(f"trained with {rule}", flush=True)
    return losses, task.floors


def blocks(losses: np.ndarray, number: int) -> np.ndarray:
    """Average the losses over `number` blocks of updates: (seeds, number)."""
    return losses.reshape(len(losses), number, -1).mean(-1)


def print_learning(losses: dict[str, np.ndarray], floors: dict[str, float]) -> None:
    """Print the final losses: quantiles over seeds, and the number of seeds below each floor."""
    print(
        "\nmean loss of the last tenth of training, in nats (lower is better); quantiles over seeds"
    )
    heads = "".join(f"{head:>9}" for head in QUANTILES)
    counts = "".join(f"{f'< {floor:.4f}':>10}" for floor in floors.values())
    print(f"{'':20}{heads}{counts}{'best tenth':>12}")
    for rule, values in losses.items():
        tenths = blocks(values, 10)
        last = tenths[:, -1]
        row = "".join(f"{q:9.4f}" for q in np.quantile(last, [*QUANTILES.values()]))
        row += "".join(f"{int((last < floor).sum()):10}" for floor in floors.values())
        print(f"{rule:20}{row}{np.median(tenths.min(1)):12.4f}")


def rounded(value: float) -> float | None:
    """Return `value` rounded to four significant digits, or None if it is not finite."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def plot(report: dict[str, Any], path: Path) -> None:
    """Plot what each rule ends at, how near it is to the exact gradient, and its noise over H."""
    with plotting.picture(path, 12, 8) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
        plot_losses(report, figure.add_subplot(grid[0, :]))
        plot_cosines(report, figure.add_subplot(grid[1, 0]))
        plot_noise(report, figure.add_subplot(grid[1, 1]))


def plot_losses(report: dict[str, Any], axes: Any) -> None:
    """Plot the last loss of every seed, a column for each rule, the best rule first."""
    learning, sizes = report["learning"], report["sizes"]
    last = learning["last_tenth"]
    names = sorted(last, key=lambda rule: np.median(last[rule]))
    for column, rule in enumerate(names):
        shifts = np.linspace(-0.25, 0.25, len(last[rule]))
        axes.scatter(
            column + shifts, last[rule], 8, plotting.SKY, label=None if column else "a seed"
        )
        label = None if column else "median"
        axes.plot(
            column,
            np.median(last[rule]),
            "_",
            color=plotting.BLUE,
            markersize=30,
            mew=3,
            label=label,
        )
    known = {
        "nothing": "no coin is known",
        "first": "the coin of 6 steps ago is",
        "both": "both are",
    }
    for name, floor in learning["floors"].items():
        axes.axhline(floor, color=plotting.GRAY, linestyle=":", zorder=0)
        text = f"best loss if {known[name]}"
        axes.annotate(
            text, (len(names) - 0.4, floor), fontsize=8, va="center", annotation_clip=False
        )
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="loss at the end\n(nats, lower is better)", xlim=(-0.6, len(names) - 0.4))
    first, second = learning["delays"]
    axes.set_title(
        f"Which rules learn what lies {second} steps back? Add task, delays {first} and {second}, "
        f"H={sizes['hidden']}, {sizes['seeds']} seeds"
    )
    axes.legend(loc="center left")


def plot_cosines(report: dict[str, Any], axes: Any) -> None:
    """Plot the cosine to the exact gradient as a table, before and after training."""
    sizes, quality = report["sizes"], report["quality"]
    moments = [str(sizes["moments"][0]), str(sizes["moments"][-1])]
    columns = [(task, moment) for task in quality for moment in moments]
    values = [
        [quality[t][m]["rules"][rule]["cosine"] for t, m in columns] for rule in sizes["rules"]
    ]
    axes.imshow(np.array(values, float), vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
    for (row, column), value in np.ndenumerate(np.array(values, float)):
        ink = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_yticks(range(len(sizes["rules"])), sizes["rules"])
    axes.set_xticks(range(len(columns)), [f"{task}\n{moment}" for task, moment in columns])
    axes.spines[:].set_visible(False)
    axes.set_title("Cosine to the exact gradient, by task and updates")


def plot_noise(report: dict[str, Any], axes: Any) -> None:
    """Plot the variance of the unbiased rules over H."""
    sizes, over_H = report["sizes"], report["over_H"]
    hidden_sizes = [int(H) for H in over_H]
    for rule in [rule for rule in sizes["rules"] if rule in UNBIASED]:
        variances = [over_H[H][rule]["variance"] for H in over_H]
        axes.plot(hidden_sizes, variances, "o-", label=rule, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="hidden units H")
    axes.set(ylabel="variance / ‖exact gradient‖²\n(lower is better)")
    axes.set_xticks(hidden_sizes, map(str, hidden_sizes))
    axes.set_xticks([], minor=True)
    axes.set_title(f"Noise of unbiased rules ({sizes['draws']} draws)")
    axes.legend()


def main() -> None:
    """Run all three parts, print the tables, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny: 3 seeds, 20 updates")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    versions = {package: version(package) for package in ("jax", "jaxrnn", "numpy", "optax")}
    print(f"learning with seeds 0 … {sizes.seeds - 1}, float32, {versions}")
    results, by_size = quality(sizes), over_sizes(sizes)
    losses, floors = learning(sizes)
    print_learning(losses, floors)

    last = {rule: [rounded(v) for v in blocks(x, 10)[:, -1]] for rule, x in losses.items()}
    best = {rule: [rounded(v) for v in blocks(x, 10).min(1)] for rule, x in losses.items()}
    report = {
        "sizes": sizes._asdict(),
        "versions": versions,
        "quality": results,
        "over_H": by_size,
        "learning": {"delays": DELAYS, "floors": floors, "last_tenth": last, "best_tenth": best},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rules.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(json.loads(json.dumps(report)), arguments.out / "rules.png")


if __name__ == "__main__":
    main()
