"""Does a run on several processes end cleanly when its supervisor receives a signal?

Question: `jaxrnn train --processes 2` starts two worker processes and supervises them. When a
signal ends the supervisor at any moment, do all processes end within 10 seconds, does no worker
start again, and can the run be resumed?

Setting: each trial starts the command, waits for a random time, and sends SIGINT, SIGTERM, SIGHUP,
SIGQUIT or SIGKILL to the supervisor only. It then watches every process whose command line names
the folder of the trial. The waiting times are uniform between 0 and 1.4 times the time to the first
step. A run writes a regular checkpoint only once a minute, so a run that loses no step was saved
because of the signal. (Processes are found through /proc, so the experiment needs Linux.)

    python experiments/signals.py            50 trials of each signal, about 25 minutes on two cores
    python experiments/signals.py --quick    one trial of each signal, half a minute
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import jaxrnn
from jaxrnn import plotting

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGKILL")
ORDERLY = ("SIGINT", "SIGTERM", "SIGHUP")  # the run saves, and ends with status 128 + signal number
PATIENCE = 10.0  # seconds within which all processes must have ended
TEXT = "to be or not to be, that is the question:\nwhether 'tis nobler in the mind\n" * 4
SIZES = ("--hidden-size", "3", "--batch-size", "2", "--length", "4")
LONG_RUN = ("--steps", "100000000", "--evaluate-every", "10000000", "--processes", "2")
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def members(run: Path) -> dict[int, str]:
    """Return the command lines that name the folder of a trial, by process id."""
    lines = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # the process has ended meanwhile
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if str(run) in words:
                    lines[int(entry.name)] = " ".join(words)
    return lines


@contextmanager
def command(folder: Path, run: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run on two processes; on exit, kill the processes that are left."""
    arguments = ["train", folder / "text.txt", *SIZES, *LONG_RUN, "--out", run]
    arguments += ["--compilation-cache", folder / "compiled"]
    with (folder / f"{run.name}.txt").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("jaxrnn"), *map(str, arguments)],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for number in members(run):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def steps_recorded(run: Path) -> int:
    """Count the training steps in the metrics file of a run."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"loss"') if file.is_file() else 0


def seconds_to_first_step(folder: Path, number: int) -> float:
    """Measure the seconds from the start of a run to its first step."""
    start, run = time.monotonic(), folder / f"probe-{number}"
    with command(folder, run) as process:
        while not steps_recorded(run):
            if process.poll() is not None:
                raise RuntimeError((folder / f"{run.name}.txt").read_text())
            time.sleep(0.02)
        return time.monotonic() - start


def trial(folder: Path, number: int, name: str, moment: float) -> dict[str, Any]:
    """Send a signal to the supervisor after `moment` seconds; return what happens."""
    run, restarted = folder / f"trial-{number}", False
    with command(folder, run) as process:
        time.sleep(moment)
        created = (run / "run.json").is_file()
        process.send_signal(signal.Signals[name])
        sent = time.monotonic()
        while (alive := members(run)) and time.monotonic() - sent < PATIENCE:
            restarted |= any(" resume " in line for line in alive.values())
            process.poll()  # an ended process is listed until its parent polls it
            time.sleep(0.05)
        seconds, left = time.monotonic() - sent, len(alive)
        status = process.poll() if left else process.wait()
    log = (folder / f"{run.name}.txt").read_text()
    row = {
        "signal": name,
        "moment": round(moment, 3),
        "run made before": created,
        "seconds to the end": round(seconds, 3),
        "left": left,
        "restarted": restarted or "start again" in log,
        "status": status,
        "said": [  # without the lines of a traceback, which hold paths
            line for line in log.splitlines() if not line.startswith(("[Gloo]", " "))
        ],
        "steps": None,
        "steps saved": None,
        "error": "",
    }
    if (run / "run.json").is_file():
        row["steps"] = steps_recorded(run)
        try:
            row["steps saved"] = jaxrnn.lm.resume(run).done
        except ValueError as error:
            row["error"] = str(error)
        rmtree(run)
    return row


def ended_well(row: dict[str, Any]) -> bool:
    """Return whether a trial ended as required."""
    number = signal.Signals[row["signal"]]
    statuses = {-number, 128 + number} if row["signal"] in ORDERLY else {-number}
    wrong = row["left"] or row["restarted"] or row["error"]
    return not wrong and row["status"] in statuses


def plot(trials: list[dict[str, Any]], first_step: float, path: Path) -> None:
    """Plot the time until all processes have ended over the time of the signal."""
    with plotting.picture(path, 8, 4.2) as figure:
        axes = figure.subplots()
        for name, marker in zip(SIGNALS, "ox+sd", strict=True):
            of_signal = [row for row in trials if row["signal"] == name]
            label = f"{name}: {sum(map(ended_well, of_signal))} of {len(of_signal)} as required"
            moments = [row["moment"] for row in of_signal]
            seconds = [row["seconds to the end"] for row in of_signal]
            axes.scatter(moments, seconds, 18, marker=marker, label=label)
        axes.axvline(first_step, color=plotting.GRAY, linestyle="--")
        axes.axhline(PATIENCE, color=plotting.GRAY)
        axes.annotate("limit", (0, PATIENCE), va="bottom", color=plotting.GRAY)
        axes.annotate(" first step", (first_step, 9), color=plotting.GRAY)
        axes.set(
            xlabel="time of the signal to the supervisor, seconds after the start",
            ylabel="seconds until all processes have ended\n(lower is better)",
            ylim=(0, PATIENCE * 1.08),
        )
        figure.legend(loc="outside right upper")


def main() -> None:
    """Run the trials, print a summary, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one trial of each signal")
    parser.add_argument("--trials", type=int, default=50, help="trials of each signal")
    parser.add_argument("--workers", type=int, default=2, help="trials at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    number = 1 if arguments.quick else arguments.trials
    packages = ("jax", "jaxlib", "jaxrnn", "numpy")
    versions = {package: version(package) for package in packages}
    # A background job or nohup ignores these signals, and the child processes would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    rng = np.random.default_rng(arguments.seed)
    names = rng.permuted(np.repeat(SIGNALS, number)).tolist()
    print(f"seed {arguments.seed}, {number} trials of each signal, {versions}")
    with TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.workers) as pool:
        folder = Path(temporary)
        (folder / "text.txt").write_text(TEXT)
        seconds_to_first_step(folder, -1)  # to fill the compilation cache
        probes = pool.map(lambda i: seconds_to_first_step(folder, i), range(arguments.workers))
        first_step = statistics.median(probes)
        moments = (1.4 * first_step * rng.random(len(names))).tolist()
        print(f"time to the first step: {first_step:.1f} s", flush=True)
        trials = []
        for row in pool.map(lambda i: trial(folder, i, names[i], moments[i]), range(len(names))):
            trials.append(row)
            if not ended_well(row) or len(trials) % 20 == 0:
                print(f"{len(trials):>4} {row}", flush=True)
    summary = {}
    for name in SIGNALS:
        of_signal = [row for row in trials if row["signal"] == name]
        resumed = [row for row in of_signal if row["steps"] is not None]
        trained = [row for row in resumed if row["steps"]]
        seconds = [row["seconds to the end"] for row in of_signal]
        summary[name] = {
            "trials": len(of_signal),
            "as they should": sum(map(ended_well, of_signal)),
            "with somebody left after 10 s": sum(row["left"] > 0 for row in of_signal),
            "restarted": sum(row["restarted"] for row in of_signal),
            "statuses": dict(Counter(str(row["status"]) for row in of_signal)),
            "with a run": len(resumed),
            "of these resumable": sum(not row["error"] for row in resumed),
            "with steps made": len(trained),
            "with every step saved": sum(row["steps"] == row["steps saved"] for row in trained),
            "seconds to the end, median": round(statistics.median(seconds), 2),
            "seconds to the end, longest": round(max(seconds), 2),
        }
        print(f"{name:<8} {summary[name]}")
    report = {"seed": arguments.seed, "versions": versions, "cores": os.cpu_count()}
    report |= {"seconds to the first step": round(first_step, 2), "summary": summary}
    report |= {"trials": trials}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "signals.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(trials, first_step, arguments.out / "signals.png")


if __name__ == "__main__":
    main()
