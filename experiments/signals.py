"""What is left of a run on several processes when its supervisor gets a signal?

Question: `jaxrnn train --processes 2` starts two processes and watches them. Whatever signal ends
the watching process, and whenever it comes, is nobody left after 10 seconds, is nothing started
again, and can the run be resumed?

Setting: each trial starts the command, waits for a random time, sends SIGINT, SIGTERM, SIGHUP,
SIGQUIT or SIGKILL to the watching process alone, and watches every process whose command line names
the trial's own folder. Times are uniform between 0 and 1.4 times what it takes to the first step.
A checkpoint is written only every minute, so that a run in which no step is lost was saved because
of the signal. (Processes are found through /proc, so this needs Linux.)

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
from matplotlib.figure import Figure

import jaxrnn

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGKILL")
ORDERLY = ("SIGINT", "SIGTERM", "SIGHUP")  # these save and end, with status 128 + number
PATIENCE = 10.0  # seconds within which everybody must have ended
TEXT = "to be or not to be, that is the question:\nwhether 'tis nobler in the mind\n" * 4
SIZES = ("--hidden-size", "3", "--batch-size", "2", "--length", "4")
HOW = ("--steps", "100000000", "--evaluate-every", "10000000", "--processes", "2")
QUICKLY = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def members(place: Path) -> dict[int, str]:
    """Return the command line of each process that names a trial's folder, by its process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # it has ended meanwhile
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if str(place) in words:
                    found[int(entry.name)] = " ".join(words)
    return found


@contextmanager
def command(folder: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run on two processes; in the end kill what is left of it."""
    arguments = ["train", folder / "text.txt", *SIZES, *HOW, "--out", place]
    arguments += ["--compilation-cache", folder / "compiled"]
    with (folder / f"{place.name}.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxrnn.cli", *map(str, arguments)],
            env=os.environ | QUICKLY,
            stdout=subprocess.DEVNULL,
            stderr=said,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for number in members(place):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def steps_recorded(place: Path) -> int:
    """Count the steps that a run has recorded so far."""
    file = place / "metrics.jsonl"
    return file.read_text().count('"loss"') if file.is_file() else 0


def seconds_to_first_step(folder: Path, number: int) -> float:
    """Measure how long a run takes from its start to its first step."""
    begun, place = time.monotonic(), folder / f"probe-{number}"
    with command(folder, place) as process:
        while not steps_recorded(place):
            if process.poll() is not None:
                raise RuntimeError((folder / f"{place.name}.txt").read_text())
            time.sleep(0.02)
        return time.monotonic() - begun


def trial(folder: Path, number: int, name: str, moment: float) -> dict[str, Any]:
    """Send a signal to the watching process at a moment, and see what comes of it."""
    place, restarted = folder / f"trial-{number}", False
    with command(folder, place) as process:
        time.sleep(moment)
        began = (place / "run.json").is_file()
        process.send_signal(signal.Signals[name])
        begun = time.monotonic()
        while (there := members(place)) and time.monotonic() - begun < PATIENCE:
            restarted |= any(" resume " in line for line in there.values())
            process.poll()  # a process that has ended is there until its parent has asked for it
            time.sleep(0.05)
        seconds, left = time.monotonic() - begun, len(there)
        status = process.poll() if left else process.wait()
    said = (folder / f"{place.name}.txt").read_text()
    found = {
        "signal": name,
        "moment": round(moment, 3),
        "run made before": began,
        "seconds to the end": round(seconds, 3),
        "left": left,
        "restarted": restarted or "start again" in said,
        "status": status,
        "said": [line for line in said.splitlines() if not line.startswith("[Gloo]")],
        "steps": None,
        "steps saved": None,
        "error": "",
    }
    if (place / "run.json").is_file():
        found["steps"] = steps_recorded(place)
        try:
            found["steps saved"] = jaxrnn.lm.resume(place).done
        except ValueError as error:
            found["error"] = str(error)
        rmtree(place)
    return found


def right(found: dict[str, Any]) -> bool:
    """Return whether a trial ended as it should."""
    number = signal.Signals[found["signal"]]
    status = {-number, 128 + number} if found["signal"] in ORDERLY else {-number}
    wrong = found["left"] or found["restarted"] or found["error"]
    return not wrong and found["status"] in status


def plot(trials: list[dict[str, Any]], first_step: float, path: Path) -> None:
    """Plot how long everybody took to end, over the moment of the signal."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(SIGNALS, "ox+sd", strict=True):
        of_signal = [each for each in trials if each["signal"] == name]
        axes.scatter(
            [each["moment"] for each in of_signal],
            [each["seconds to the end"] for each in of_signal],
            s=18,
            marker=marker,
            label=f"{name}: {sum(map(right, of_signal))} of {len(of_signal)} as they should",
        )
    axes.axvline(first_step, color="gray", linewidth=0.8, linestyle="--")
    axes.axhline(PATIENCE, color="gray", linewidth=0.8)
    axes.set(
        xlabel="signal to the watching process, seconds after the start (dashed: the first step)",
        ylabel="seconds until no process is left\n(lower is better, 10 is the limit)",
        ylim=(0, PATIENCE * 1.05),
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Send the signals; print and write what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one trial of each signal")
    parser.add_argument("--trials", type=int, default=50, help="of each signal")
    parser.add_argument("--workers", type=int, default=2, help="trials at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to fill")
    arguments = parser.parse_args()
    number = 1 if arguments.quick else arguments.trials
    packages = ("jax", "jaxlib", "jaxrnn", "numpy")
    versions = {package: version(package) for package in packages}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # both, and so would what it starts
    rng = np.random.default_rng(arguments.seed)
    names = rng.permuted(np.repeat(SIGNALS, number)).tolist()
    print(f"seed {arguments.seed}, {number} trials of each signal, {versions}")
    with TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.workers) as pool:
        folder = Path(temporary)
        (folder / "text.txt").write_text(TEXT)
        seconds_to_first_step(folder, -1)  # compiles
        probes = pool.map(lambda i: seconds_to_first_step(folder, i), range(arguments.workers))
        first_step = statistics.median(probes)
        moments = (1.4 * first_step * rng.random(len(names))).tolist()
        print(f"the first step comes after {first_step:.1f} s", flush=True)
        trials = []
        for each in pool.map(lambda i: trial(folder, i, names[i], moments[i]), range(len(names))):
            trials.append(each)
            if not right(each) or len(trials) % 20 == 0:
                print(f"{len(trials):>4} {each}", flush=True)
    summary = {}
    for name in SIGNALS:
        of_signal = [each for each in trials if each["signal"] == name]
        resumed = [each for each in of_signal if each["steps"] is not None]
        trained = [each for each in resumed if each["steps"]]
        seconds = [each["seconds to the end"] for each in of_signal]
        summary[name] = {
            "trials": len(of_signal),
            "as they should": sum(map(right, of_signal)),
            "with somebody left after 10 s": sum(each["left"] > 0 for each in of_signal),
            "restarted": sum(each["restarted"] for each in of_signal),
            "statuses": dict(Counter(str(each["status"]) for each in of_signal)),
            "with a run": len(resumed),
            "of these resumable": sum(not each["error"] for each in resumed),
            "with steps made": len(trained),
            "with every step saved": sum(each["steps"] == each["steps saved"] for each in trained),
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
