"""Measure the memory of one gradient step, over T, over B, and with a large vocabulary.

    python -m experiments.benchmarks.memory             about five minutes on two cores
    python -m experiments.benchmarks.memory --quick     tiny, and its numbers mean nothing

A step computes the loss and all gradients of one batch of ids in float32, with the contenders of
peers.py. Its memory is measured in two ways:

- program: the working memory that XLA plans for the compiled program, without arguments and
  outputs. The program is not run. There is no such value for torch.
- process: the increase of the largest resident set during three steps, in a new process in which
  everything is already imported, allocated and compiled. It includes the outputs and all other
  memory that a library allocates. It varies from run to run, since an allocator may keep memory.

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

import jaxrnn
from experiments.benchmarks import measure, peers
from experiments.benchmarks.measure import Size
from jaxrnn import Batch, Params, plotting

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
    """Compile a contender into one program; return the program and its arguments."""
    rnn, params, batch = measure.problem(size)

    def step(params, batch):
        run, _ = CONTENDERS[name](rnn, params, batch)
        return run()

    return jax.jit(step).lower(params, batch).compile(), (params, batch)


@cache
def of_program(name: str, size: Size) -> int:
    """Compile a step, and return the bytes of its working memory."""
    memory = compiled(name, size)[0].memory_analysis()
    return getattr(memory, "temp_size_in_bytes", 0)


def of_process(name: str, size: Size) -> int:
    """Run three steps in a new process; return the increase of its peak memory, in bytes."""
    command = [sys.executable, "-m", "experiments.benchmarks.memory", "--one", name]
    result = subprocess.run([*command, *map(str, size)], stdout=subprocess.PIPE, check=True)
    return int(result.stdout)


def one(name: str, size: Size) -> int:
    """Run three steps in this process, after three small ones; return the increase of its peak."""

    def ready(size):
        if name not in COMPILED:
            return CONTENDERS[name](*measure.problem(size))[0]
        program, arguments = compiled(name, size)
        return lambda: jax.block_until_ready(program(*arguments))

    before = 0
    for run in (ready(size._replace(T=2)), ready(size)):
        # Return memory that the compiler freed, so that the steps cannot reuse it.
        ctypes.CDLL(None).malloc_trim(0)
        # Reset the peak to the current resident set.
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        for _ in range(3):
            run()
    return peak() - before


def peak() -> int:
    """Return the largest resident set of this process, in bytes (getrusage cannot be reset)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def over(axis: str, sizes: list[Size]) -> dict[str, Any]:
    """Measure the memory of every program at every T, or at every B."""
    values = [getattr(size, axis) for size in sizes]
    program_bytes = {name: [of_program(name, size) for size in sizes] for name in COMPILED}
    return {
        "sizes": [size._asdict() for size in sizes],
        axis: values,
        "bytes": program_bytes,
        "exponents": {name: measure.slope(values, costs) for name, costs in program_bytes.items()},
    }


def largest(sizes: list[Size]) -> Iterator[dict[str, Any]]:
    """Measure the memory of program and process at each size; yield the rows of the report."""
    installed = [name for name in CONTENDERS if name in COMPILED or find_spec(name)]
    for size in sizes:
        yield {
            "size": size._asdict(),
            "program": {name: of_program(name, size) for name in COMPILED},
            "process": {name: of_process(name, size) for name in installed},
        }


def table(rows: list[dict[str, Any]], growth_over: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of memory in MiB and of exponents."""
    lines = [
        "| O, H, T, B | | " + " | ".join(CONTENDERS) + " |",
        "|---" * (len(CONTENDERS) + 2) + "|",
    ]

    def line(label, kind, values, digits):
        cells = [f"{values[name]:,.{digits}f}" if name in values else "" for name in CONTENDERS]
        lines.append(f"| {label} | {kind} | {' | '.join(cells)} |")

    for row in rows:
        for kind in ("program", "process"):
            values = {name: size / MIB for name, size in row[kind].items()}
            line(", ".join(map(str, row["size"].values())), f"{kind}, MiB", values, 1)
    for axis, growth in growth_over.items():
        line(f"exponent of {axis}", "program", growth["exponents"], 2)
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], growth_over: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot the programs over T and over B, and the processes at the largest sizes."""
    with plotting.picture(path, 14, 4.2) as figure:
        *lines, bars = figure.subplots(1, 3, width_ratios=[1, 1, 1.4])
        for axes, (axis, growth) in zip(lines, growth_over.items(), strict=True):
            for name, costs in growth["bytes"].items():
                label = f"{name}: {growth['exponents'][name]:.2f}"
                axes.plot(growth[axis], np.divide(costs, MIB), "o-", markersize=4, label=label)
            others = {name: size for name, size in growth["sizes"][0].items() if name != axis}
            title = ", ".join(f"{name}={size}" for name, size in others.items())
            axes.set(
                xscale="log",
                yscale="log",
                xlabel=axis,
                ylabel="working memory (MiB, lower is better)",
            )
            axes.set_title(title, fontsize=9)
            axes.set_xticks(growth[axis], growth[axis])
            axes.set_xticks([], minor=True)
            axes.legend(fontsize=8, title="exponent", title_fontsize=8)
        for i, name in enumerate(CONTENDERS):
            positions = np.arange(len(rows)) + 0.16 * (i - (len(CONTENDERS) - 1) / 2)
            process = [row["process"].get(name, np.nan) / MIB for row in rows]
            program = [row["program"].get(name, np.nan) / MIB for row in rows]
            container = bars.bar(
                positions, process, width=0.14, color=plotting.COLORS[i], label=name
            )
            labels = ["" if np.isnan(size) else f"{size:.0f}" for size in process]
            bars.bar_label(container, labels, fontsize=7, padding=2)
            label = "working memory of the program" if name == "torch" else None
            bars.plot(positions, program, "_", color="black", markersize=13, label=label)
        sizes = ["O={O} H={H}\nT={T} B={B}".format(**row["size"]) for row in rows]
        bars.set_xticks(range(len(rows)), sizes, fontsize=8)
        bars.set(ylabel="memory of the process (MiB, lower is better)")
        bars.margins(y=0.4)
        bars.legend(fontsize=8, ncols=2, loc="upper left")


def main() -> None:
    """Run the benchmark, print the table, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    parser.add_argument("--one", nargs=5, metavar=("NAME", *Size._fields),
                        help="run steps in this process, print the rise of its peak")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.one:
        name, *size = arguments.one
        print(one(name, Size(*map(int, size))))
        return
    sizes = QUICK if arguments.quick else OVER
    growth_over = {axis: over(axis, axis_sizes) for axis, axis_sizes in sizes.items()}
    rows = []
    for row in largest([sizes["T"][-1]] if arguments.quick else PROCESSES):
        rows.append(row)
        print(f"\n{table([row], {})}", flush=True)
    print(f"\n{table(rows, growth_over)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"over": growth_over, "largest": rows, "versions": measure.where("torch")}
    (arguments.out / "memory.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, growth_over, arguments.out / "memory.png")


if __name__ == "__main__":
    main()
