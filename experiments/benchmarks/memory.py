"""How much memory one gradient step takes: with T, with B, and with a large vocabulary.

    python -m experiments.benchmarks.memory             about five minutes on two cores
    python -m experiments.benchmarks.memory --quick     tiny, and its numbers mean nothing

The step is the loss and all gradients of one batch of ids, as the contenders of peers.py compute
them, in float32. It is measured twice. The program's memory is the working memory that XLA lays out
for it, besides arguments and outputs; nothing is run, and torch has no such figure. The process's
is how far three steps raise the largest resident set of a fresh process above what it held before
them, when everything was imported, made and compiled. It counts outputs too, and whatever else a
library allocates behind the program's back, and is not the same twice: an allocator may keep more.

An exponent is the slope of log bytes over log size at the three largest sizes.
"""

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxrnn
from experiments.benchmarks import measure, peers
from experiments.benchmarks.measure import Size
from jaxrnn import Batch, Params

OVER = {
    "T": [Size(65, 128, 4**n, 8) for n in range(3, 7)],
    "B": [Size(65, 128, 100, 4**n) for n in range(5)],
}
PROCESSES = [OVER["T"][-1], OVER["B"][-1], Size(8000, 256, 35, 20)]
QUICK = {
    "T": [Size(7, 5, 2**n, 3) for n in range(2, 6)],
    "B": [Size(7, 5, 4, 2**n) for n in range(4)],
}
CONTENDERS: dict[str, Callable[..., peers.Contender]] = {
    "bptt": peers.rule(jaxrnn.gradients.bptt),
    "checkpointed_bptt": peers.rule(jaxrnn.gradients.checkpointed_bptt),
    "autodiff": peers.rule(jaxrnn.gradients.autodiff),
    "jax.grad of a scan": peers.scan,
    "torch": peers.torch,
}
COMPILED = [name for name in CONTENDERS if name != "torch"]
MIB = 2**20


def compiled(name: str, size: Size) -> tuple[jax.stages.Compiled, tuple[Params, Batch]]:
    """Compile a contender as one program; return it and its arguments."""
    rnn, params, batch = measure.problem(size)

    def step(params, batch):
        run, _ = CONTENDERS[name](rnn, params, batch)
        return run()

    return jax.jit(step).lower(params, batch).compile(), (params, batch)


@cache
def of_program(name: str, size: Size) -> int:
    """Compile a step, and read off the bytes of its working memory."""
    memory = compiled(name, size)[0].memory_analysis()
    return getattr(memory, "temp_size_in_bytes", 0)


def of_process(name: str, size: Size) -> int:
    """Take three steps in a fresh process; return by how many bytes they raised its peak."""
    command = [sys.executable, "-m", "experiments.benchmarks.memory", "--one", name]
    result = subprocess.run([*command, *map(str, size)], stdout=subprocess.PIPE, check=True)
    return int(result.stdout)


def one(name: str, size: Size) -> int:
    """Take three steps in this process, small ones first; return how far they raised its peak."""

    def ready(size):
        if name not in COMPILED:
            return CONTENDERS[name](*measure.problem(size))[0]
        program, arguments = compiled(name, size)
        return lambda: jax.block_until_ready(program(*arguments))

    before = 0
    for run in (ready(size._replace(T=2)), ready(size)):
        ctypes.CDLL(None).malloc_trim(0)  # what compiling freed must not serve the steps
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        before = peak()
        for _ in range(3):
            run()
    return peak() - before


def peak() -> int:
    """Read the largest resident set of this process, in bytes: getrusage cannot start it anew."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def over(axis: str, sizes: list[Size]) -> dict[str, Any]:
    """Measure every program at every T, or at every B."""
    along = [getattr(size, axis) for size in sizes]
    found = {name: [of_program(name, size) for size in sizes] for name in COMPILED}
    return {
        "sizes": [size._asdict() for size in sizes],
        axis: along,
        "bytes": found,
        "exponents": {name: measure.slope(along, costs) for name, costs in found.items()},
    }


def largest(sizes: list[Size]) -> Iterator[dict[str, Any]]:
    """Measure program and process side by side, size by size."""
    installed = [name for name in CONTENDERS if name in COMPILED or find_spec(name)]
    for size in sizes:
        yield {
            "size": size._asdict(),
            "program": {name: of_program(name, size) for name in COMPILED},
            "process": {name: of_process(name, size) for name in installed},
        }


def table(rows: list[dict[str, Any]], grown: dict[str, dict[str, Any]]) -> str:
    """Write MiB and exponents down, in Markdown."""
    lines = [
        "| O, H, T, B | | " + " | ".join(CONTENDERS) + " |",
        "|---" * (len(CONTENDERS) + 2) + "|",
    ]

    def line(label, kind, figures, digits):
        cells = [f"{figures[name]:,.{digits}f}" if name in figures else "" for name in CONTENDERS]
        lines.append(f"| {label} | {kind} | {' | '.join(cells)} |")

    for row in rows:
        for kind in ("program", "process"):
            figures = {name: found / MIB for name, found in row[kind].items()}
            line(", ".join(map(str, row["size"].values())), f"{kind}, MiB", figures, 1)
    for axis, found in grown.items():
        line(f"exponent of {axis}", "program", found["exponents"], 2)
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], grown: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the programs over T and over B, and the processes at the largest sizes."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    *lines, bars = figure.subplots(1, 3, width_ratios=[1, 1, 1.4])
    for axes, (axis, found) in zip(lines, grown.items(), strict=True):
        for name, costs in found["bytes"].items():
            label = f"{name}: {found['exponents'][name]:.2f}"
            axes.plot(found[axis], np.divide(costs, MIB), "o-", markersize=4, label=label)
        others = {name: size for name, size in found["sizes"][0].items() if name != axis}
        title = ", ".join(f"{name}={size}" for name, size in others.items())
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="MiB of working memory")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(found[axis], found[axis])
        axes.set_xticks([], minor=True)
        axes.legend(fontsize=8, title="exponent", title_fontsize=8)
    for i, name in enumerate(CONTENDERS):
        places = np.arange(len(rows)) + 0.16 * (i - (len(CONTENDERS) - 1) / 2)
        process = [row["process"].get(name, np.nan) / MIB for row in rows]
        program = [row["program"].get(name, np.nan) / MIB for row in rows]
        drawn = bars.bar(places, process, width=0.14, color=f"C{i}", label=name)
        labels = ["" if np.isnan(size) else f"{size:.0f}" for size in process]
        bars.bar_label(drawn, labels, fontsize=7, padding=2)
        label = "the program's working memory" if name == "torch" else None
        bars.plot(places, program, "_", color="black", markersize=13, label=label)
    sizes = ["O={O} H={H}\nT={T} B={B}".format(**row["size"]) for row in rows]
    bars.set_xticks(range(len(rows)), sizes, fontsize=8)
    bars.set(ylabel="MiB of the process")
    bars.margins(y=0.4)
    bars.legend(fontsize=8, ncols=2, loc="upper left")
    for axes in (*lines, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure; print the table; write the figures and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--one", nargs=5, metavar=("NAME", *Size._fields),
                        help="take steps in this process, and print its peak")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.one:
        name, *size = arguments.one
        print(one(name, Size(*map(int, size))))
        return
    sizes = QUICK if arguments.quick else OVER
    grown = {axis: over(axis, along) for axis, along in sizes.items()}
    rows = []
    for row in largest([sizes["T"][-1]] if arguments.quick else PROCESSES):
        rows.append(row)
        print(f"\n{table([row], {})}", flush=True)
    print(f"\n{table(rows, grown)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"over": grown, "largest": rows, "versions": measure.where("torch")}
    (arguments.out / "memory.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, grown, arguments.out / "memory.png")


if __name__ == "__main__":
    main()
