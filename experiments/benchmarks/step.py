"""Time one gradient step, the loss and all gradients of one batch, against other libraries.

    python -m experiments.benchmarks.step             some ten minutes on two cores
    python -m experiments.benchmarks.step --quick     tiny, and its numbers mean nothing

The network has one tanh layer with biases and reads ids, in float32. The contenders of peers.py run
in one process, in interleaved rounds, in a new random order in each round. Before a contender is
timed, its loss and gradients are compared with those of `bptt`. A contender whose library is not
installed is skipped; `pip install '.[bench]'` installs all of them.

The floor is the time of only the matrix products of a step, in the order of their dependencies:
T successive products (B, H)(H, H) forward and as many backward, and the four products of the
readout and the gradients over all T·B rows. Each installed library computes them, and the fastest
is the floor.

A ratio is the median over the rounds of the time of a contender divided by the time of `bptt` in
the same round.

Each core is a CPU device. All contenders but one run on the first device. Their matrix products
still use all cores, since the devices share the threads of XLA. The exception is `bptt on devices`,
which shards the rows of the batch over all devices as `jaxrnn train --devices` does. The second
mean of the table is relative to `bptt on devices`, at the sizes with rows for all devices.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Size
from experiments.benchmarks.peers import CONTENDERS
from jaxrnn import plotting

GRID = [
    Size(65, 100, 25, 1),
    Size(65, 128, 50, 32),
    Size(65, 256, 64, 64),
    Size(65, 512, 100, 64),
    Size(65, 512, 100, 8),
    Size(8000, 100, 50, 1),
    Size(8000, 256, 35, 20),
    Size(65, 128, 1000, 8),
    Size(65, 64, 200, 128),
]
QUICK = [Size(7, 5, 4, 1), Size(7, 5, 4, 4)]
SAME = 1e-4  # norm-relative tolerance between two gradients in float32
FLOOR, OVER = "floor: ", "over the floor"
ALL = "bptt on devices"


def contenders(size: Size) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name and the call of every installed contender, after checking its gradients."""
    rnn, params, batch = measure.problem(size)
    reference = None
    for name, make in CONTENDERS.items():
        try:
            contender = make(rnn, params, batch)
        except ImportError as error:
            print(f"skipped {name}: {error.name} is not installed", flush=True)
            continue
        if contender is None:
            continue
        run, read = contender
        result = jax.tree.map(np.asarray, read(run()))
        reference = result if reference is None else reference
        for ours, theirs in zip(*map(jax.tree.leaves, (reference, result)), strict=True):
            difference = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
            if not difference < SAME:
                raise ValueError(
                    f"{name} and bptt do not agree at {size}: a gradient differs by {difference}"
                )
        yield name, run


def floors(size: Size) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the matrix products of a step, computed by each installed library."""
    O, H, T, B = size
    rng = np.random.default_rng(0)
    # An orthogonal W_hh keeps the norms of states and deltas.
    W_hh = np.linalg.qr(rng.standard_normal((H, H)))[0].astype(np.float32)
    W_hy, d_outputs = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((H, O), (T * B, O))
    )
    states = rng.standard_normal((T + 1, B, H)).astype(np.float32)

    def products(matmul, W_hh, W_hy, states, d_outputs, outputs, error, delta, dW_hh, dW_hy):
        rows = states[1:].reshape(T * B, H)
        for t in range(T):
            matmul(states[t], W_hh, out=states[t + 1])
        matmul(rows, W_hy, out=outputs)
        matmul(d_outputs, W_hy.T, out=error)
        for t in reversed(range(T)):
            matmul(delta[t + 1], W_hh.T, out=delta[t])
        matmul(states[:-1].reshape(T * B, H).T, delta[1:].reshape(T * B, H), out=dW_hh)
        matmul(rows.T, d_outputs, out=dW_hy)

    buffers = [np.empty(shape, np.float32) for shape in ((T * B, O), (T * B, H))]
    buffers += [states.copy(), np.empty_like(W_hh), np.empty_like(W_hy)]
    arrays = [W_hh, W_hy, states, d_outputs, *buffers]
    yield "NumPy", partial(products, np.matmul, *arrays)

    @jax.jit
    def compiled(W_hh, W_hy, first, d_outputs, last):
        def forward(h, _):
            h = h @ W_hh
            return h, h

        def backward(delta, _):
            delta = delta @ W_hh.T
            return delta, delta

        states = lax.scan(forward, first, length=T, unroll=min(T, 5))[1]
        delta = lax.scan(backward, last, length=T, unroll=min(T, 5))[1]
        rows = states.reshape(T * B, H)
        grads = rows.T @ delta.reshape(T * B, H), rows.T @ d_outputs
        return rows @ W_hy, d_outputs @ W_hy.T, grads

    inputs = list(map(jnp.asarray, (W_hh, W_hy, states[0], d_outputs, states[-1])))
    yield "XLA", lambda: jax.block_until_ready(compiled(*inputs))
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    tensors = list(map(torch.from_numpy, [array.copy() for array in arrays]))
    yield "torch", partial(products, torch.matmul, *tensors)


def measure_size(size: Size, rounds: int) -> dict[str, Any]:
    """Time every contender and every floor at one size; return its row of the report."""
    runs = dict(contenders(size))
    runs |= {FLOOR + name: run for name, run in floors(size)}
    seconds = measure.in_turns(runs, rounds)
    lowest = min((name for name in runs if name.startswith(FLOOR)),
                 key=lambda name: np.median(seconds[name]))  # fmt: skip
    report = {
        "size": size._asdict(),
        "seconds": {name: float(np.median(times)) for name, times in seconds.items()},
        "floor": lowest.removeprefix(FLOOR),
    }
    for devices, name in (("one", "bptt"), ("all", ALL if ALL in seconds else "bptt")):
        ours = seconds[name]
        ratios = {
            other: measure.ratio(theirs, ours)
            for other, theirs in seconds.items()
            if other != "bptt" and not other.startswith(FLOOR)
        }
        report[devices] = {"ratios": ratios, OVER: measure.ratio(ours, seconds[lowest])}
    return report


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the ratios."""
    names = [name for name in CONTENDERS if any(name in row["one"]["ratios"] for row in rows)]
    lines = [
        f"| O, H, T, B | bptt, ms | {' | '.join(names)} | {OVER} |",
        "|---" * (len(names) + 3) + "|",
    ]
    for row in rows:
        size, ratios = ", ".join(map(str, row["size"].values())), row["one"]["ratios"]
        columns = [f"{ratios[name]:.2f}" if name in ratios else "" for name in names]
        floor = f"{row['one'][OVER]:.2f} ({row['floor']})"
        cells = [size, f"{1e3 * row['seconds']['bptt']:.3g}", *columns, floor]
        lines.append(f"| {' | '.join(cells)} |")
    for devices, what in (("one", "mean over bptt"), ("all", f"mean over {ALL}")):
        means = summary(rows, devices)
        columns = [f"{means[name]:.2f}" if name in means else "" for name in (*names, OVER)]
        lines.append(f"| {what} | | {' | '.join(columns)} |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]], devices: str) -> dict[str, float]:
    """Return the geometric means of the ratios over the sizes at which a contender was timed."""
    names = dict.fromkeys(name for row in rows for name in row[devices]["ratios"] if name != ALL)
    every = [row[devices]["ratios"] for row in rows]
    means = {
        name: measure.geometric_mean(ratios[name] for ratios in every if name in ratios)
        for name in names
    }
    gain = [row["one"]["ratios"][ALL] for row in rows if ALL in row["one"]["ratios"]]
    if devices == "one" and gain:
        means[ALL] = measure.geometric_mean(gain)
    return means | {OVER: measure.geometric_mean(row[devices][OVER] for row in rows)}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the time of every contender divided by that of bptt, at each size."""
    with plotting.picture(path, 11, 4.5) as figure:
        axes = figure.subplots()
        measured = {name for row in rows for name in row["one"]["ratios"]}
        # The table has these two as well; they are far above or beside plain torch.
        names = [n for n in CONTENDERS if n in measured - {"torch, compiled", "NumPy"}]
        every = [row["one"]["ratios"] for row in rows]
        for i, name in enumerate(names):
            points = [(n, ratios[name]) for n, ratios in enumerate(every) if name in ratios]
            positions, ratios = zip(*points, strict=True)
            positions = np.array(positions) + 0.08 * (i - len(names) / 2)
            axes.plot(positions, ratios, "o", markersize=5, label=name)
        floors = [1 / row["one"][OVER] for row in rows]
        axes.plot(
            range(len(rows)),
            floors,
            "_",
            color="black",
            markersize=24,
            label="floor: matrix products only",
        )
        axes.axhline(1, color="black", linewidth=1)
        labels = ["O={O} H={H}\nT={T} B={B}".format(**row["size"]) for row in rows]
        axes.set_xticks(range(len(rows)), labels, fontsize=8)
        axes.set(yscale="log", ylabel="time / time of bptt (lower is better)")
        axes.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axes.legend(fontsize=8, ncols=2)


def main() -> None:
    """Run the benchmark, print the table, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--rounds", type=int, default=25, help="number of rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    rows = []
    for size in QUICK if arguments.quick else GRID:
        rows.append(measure_size(size, 1 if arguments.quick else arguments.rounds))
        print(f"\n{table(rows[-1:])}", flush=True)
    print(f"\n{table(rows)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    means = {devices: summary(rows, devices) for devices in ("one", "all")}
    report = {"rows": rows, "geometric means": means}
    report["versions"] = measure.where("flax", "dm-haiku", "equinox", "torch")
    (arguments.out / "step.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, arguments.out / "step.png")


if __name__ == "__main__":
    main()
