"""Measure how time and memory grow with H, and how memory grows with T.

    python -m experiments.benchmarks.growth            about two minutes on two cores
    python -m experiments.benchmarks.growth --quick    tiny, and its numbers mean nothing

Growth with H, for every rule, with `jaxrnn.compare`: operations are counted in the compiled
program. Bytes are its working memory and its arguments, among them the influence. Times are medians
of interleaved rounds. T = 4, in float32. H is much larger than the fixed I = O = 2, so that
N = I + H + 1 grows as H. The sizes are large enough that the arithmetic takes longer than the
calls, and small enough that the arrays of a rule and their copies stay below 32 MiB. Larger arrays
do not stay in the caches, and the allocator returns them to the system after each call; the times
would then show that jump.

Growth with T, for the rules that run backward: the working memory of the compiled program, with
H = I = O = 32 and B = 4. The program is not run.

Parallel prefix: `bptt` and `parallel_bptt` at H = 8, T = 16384, in float64. The benchmark compares
their gradients, the number of iterations of each loop of the compiled program, and their times.

An exponent is the slope of log cost over log size at the three largest sizes.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.benchmarks.measure import slope, where
from jaxrnn import plotting


class Group(NamedTuple):
    """Rules that are measured at the same sizes."""

    batch_size: int
    hidden_sizes: tuple[int, ...]
    rules: dict[str, Callable[[jaxrnn.RNN], jaxrnn.GradientAlgorithm]]


OVER_H = [
    Group(
        1,
        (32, 64, 96, 128, 160),
        {"rtrl": jaxrnn.gradients.rtrl, "snap(2)": partial(jaxrnn.gradients.snap, n=2)},
    ),
    Group(
        8, (64, 128, 256, 512), {"kf_rtrl": jaxrnn.gradients.kf_rtrl, "ok(1)": jaxrnn.gradients.ok}
    ),
    Group(
        8,
        (64, 128, 256, 384, 512),
        {
            "bptt": jaxrnn.gradients.bptt,
            "snap(1)": partial(jaxrnn.gradients.snap, n=1),
            "rflo": jaxrnn.gradients.rflo,
            "uoro": jaxrnn.gradients.uoro,
            "kernl": jaxrnn.gradients.kernl,
            "dni": jaxrnn.gradients.dni,
        },
    ),
]
OVER_T = {"bptt": jaxrnn.gradients.bptt, "checkpointed_bptt": jaxrnn.gradients.checkpointed_bptt}
MEASURES = ("flops", "bytes", "seconds")


def ids_batch(size: int, batch_size: int, steps: int) -> jaxrnn.Batch:
    """Draw a batch of input ids and of the ids that follow them."""
    ids = np.random.default_rng(0).integers(0, size, (batch_size, steps + 1))
    return jaxrnn.Batch(ids[:, :-1], ids[:, 1:])


def over_hidden_size(groups: list[Group], rounds: int) -> dict[str, dict]:
    """Measure every rule at every H of its group."""
    results = {}
    for batch_size, sizes, rules in groups:
        for H in sizes:
            rnn = jaxrnn.RNN(2, H, 2, leak=0.5)
            table = jaxrnn.compare(
                {name: rule(rnn) for name, rule in rules.items()},
                rnn,
                rnn.init(jax.random.key(0)),
                ids_batch(2, batch_size, 4),
                key=jax.random.key(1),
                draws=2,
                rounds=rounds,
            )
            print(f"\nH={H}\n{table}", flush=True)
            for row in table.rows:
                costs = results.setdefault(row.rule, {"H": [], **{name: [] for name in MEASURES}})
                costs["H"].append(H)
                costs["flops"].append(row.cost.flops)
                costs["bytes"].append(row.cost.temp_bytes + row.cost.argument_bytes)
                costs["seconds"].append(4 * row.seconds)
    for costs in results.values():
        costs["exponents"] = {name: slope(costs["H"], costs[name]) for name in MEASURES}
    return results


def over_time(steps: list[int]) -> dict[str, dict]:
    """Measure the working memory of the program that is compiled for each T."""
    rnn = jaxrnn.RNN(32, 32, 32)
    params, h = rnn.init(jax.random.key(0)), rnn.initial_state(4)
    results = {}
    for name, rule in OVER_T.items():
        algorithm = rule(rnn)
        costs = [
            jaxrnn.cost_analysis(
                algorithm.value_and_grad, params, algorithm.init(params, h), ids_batch(32, 4, T)
            )
            for T in steps
        ]
        temp = [cost.temp_bytes for cost in costs]
        flops = [cost.flops for cost in costs]
        results[name] = {
            "T": steps,
            "bytes": temp,
            "flops": flops,
            "exponent": slope(steps, temp),
        }
    return results


def parallel(steps: int, rounds: int) -> dict:
    """Compare BPTT with its parallel prefix, in float64."""
    with jax.enable_x64(True):
        rnn = jaxrnn.RNN(8, 8, 8)
        params = rnn.init(jax.random.key(0), jnp.float64)
        rules = {
            "bptt": jaxrnn.gradients.bptt(rnn),
            "parallel_bptt": jaxrnn.gradients.parallel_bptt(rnn),
        }
        batch, key = ids_batch(8, 1, steps), jax.random.key(1)
        table = jaxrnn.compare(rules, rnn, params, batch, key=key, draws=2, rounds=rounds)
    print(f"\nH=8, T={steps}\n{table}")
    return {
        row.rule: {
            "error": row.whole.bias,
            "loops": row.cost.loops,
            "seconds": row.seconds * steps,
            "flops": row.cost.flops,
            "bytes": row.cost.temp_bytes,
        }
        for row in table.rows
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Plot the exponents with which time and memory grow, a row for each rule."""
    over_H, over_T = report["over_H"], report["over_T"]
    with plotting.picture(path, 11, 3.8) as figure:
        units, steps = figure.subplots(1, 2, width_ratios=(2, 1))
        for measure, marker, color, label in (
            ("seconds", "o", plotting.BLUE, "time of 4 steps"),
            ("bytes", "D", plotting.ORANGE, "memory"),
        ):
            exponents = [costs["exponents"][measure] for costs in over_H.values()]
            units.plot(exponents, list(over_H), marker, color=color, label=label)
        units.set_title("With H hidden units costs grow as H to the power of …")
        exponents = [costs["exponent"] for costs in over_T.values()]
        steps.plot(exponents, list(over_T), "D", color=plotting.ORANGE, label="memory")
        steps.set_title("With T steps, as T to the power of …")
        for axes, largest in ((units, 4), (steps, 1)):
            axes.set_xticks(np.linspace(0, largest, 5 if largest == 4 else 3))
            axes.set(xlim=(0, 1.06 * largest), xlabel="exponent, measured (lower is better)")
            axes.grid(axis="x", color=plotting.GRAY, alpha=0.4)
            axes.margins(y=0.15)
            axes.invert_yaxis()
            axes.legend()


def main() -> None:
    """Run the benchmark, print the exponents, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    groups, steps, longest, rounds = OVER_H, [2**n for n in range(8, 23, 2)], 16384, 7
    if arguments.quick:
        groups = [Group(2, (2, 3, 4), {"rtrl": jaxrnn.gradients.rtrl})]
        steps, longest, rounds = [16, 64, 256], 64, 1
    by_size = over_hidden_size(groups, rounds)
    by_time = over_time(steps)
    parallel_costs = parallel(longest, rounds)

    print(f"\n{'exponent in H':20}{'operations':>12}{'bytes':>8}{'time':>8}")
    for name, costs in by_size.items():
        row = "".join(f"{costs['exponents'][measure]:8.2f}" for measure in MEASURES)
        print(f"{name:24}{row}")
    print("\nexponent of the bytes in T")
    for name, costs in by_time.items():
        print(f"{name:24}{costs['exponent']:8.2f}")
    for name, costs in parallel_costs.items():
        print(f"{name}: {1e3 * costs['seconds']:.1f} ms, iterations of its loops: {costs['loops']}")
    report = {
        "over_H": by_size,
        "over_T": by_time,
        "parallel": parallel_costs,
        "versions": where(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "growth.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(report, arguments.out / "growth.png")


if __name__ == "__main__":
    main()
