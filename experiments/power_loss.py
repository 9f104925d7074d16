"""Does a training run survive a loss of power, a damaged checkpoint and a full disk?

Kills. Question: after a kill, does a checkpoint load, and does the resumed run end with the same
parameters and metrics, byte for byte, as a run that was not killed? Setting: a process that saves
as often as it can is killed with SIGKILL at a random moment, for each rule, on a stream and on
lines.

Damage. Question: is a damaged checkpoint ever loaded, is the one before it loaded instead, and how
much memory does that take? Setting: the newest checkpoint is truncated at every 64th byte, and
random bytes of it are changed.

Full disk. Question: does the run report the error, does its last checkpoint still load, and does
the run end with the same bytes once there is space again? Setting: a run in a file system of 1 MiB,
filled while the run trains. (Mounting it needs root.)

    python experiments/power_loss.py            about half an hour on two cores
    python experiments/power_loss.py --quick    half a minute: three kills, few damaged files
"""

import argparse
import json
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from itertools import product
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import jaxrnn
from jaxrnn import plotting

RULES = list(jaxrnn.gradients.RULES)
TEXT = "anna bob clara dora emil frida gustav hanna ida jonas karla lotte martin nina\n" * 9
STEPS = 300

CHILD = """
import sys
import jaxrnn
folder, text, mode, rule, lines, hidden_size, steps = sys.argv[1:]
if mode == "resumed":
    run = jaxrnn.lm.resume(folder)
else:
    options = jaxrnn.lm.Options(
        algorithm=rule, lines=lines == "lines", hidden_size=int(hidden_size), batch_size=4,
        length=None if lines == "lines" else 8, steps=int(steps), evaluate_every=50, save_every=0.0,
    )
    run = jaxrnn.lm.start(folder, text, options)
for block in jaxrnn.lm.train(run):
    pass
"""


def child(run: Path, resumed: bool, rule="bptt", lines=False, hidden_size=8, steps=STEPS):
    """Start a process that trains a new run, or resumes one."""
    arguments = [run, run.parent / "text.txt", "resumed" if resumed else "new", rule]
    arguments += ["lines" if lines else "stream", hidden_size, steps]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen) -> str:
    """Wait for a process; return the last line of its error output, or "" if it succeeded."""
    _, error = process.communicate()
    return "" if process.returncode == 0 else (error.strip().splitlines() or ["no message"])[-1]


def checkpoints(run: Path) -> list[Path]:
    """Return the paths of a run's checkpoints, the newest last."""
    return sorted((run / "checkpoints").glob("step-*.safetensors"))


def outcome(run: Path) -> tuple[Any, Any]:
    """Return the bytes of every array of the last checkpoint, and the metrics without times."""
    arrays = load_file(checkpoints(run)[-1])
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    metrics = [{**record, "time": 0} for record in records]
    return {name: a.tobytes() for name, a in arrays.items()}, metrics


def undisturbed(folder: Path, kind: tuple[str, bool]) -> tuple[Any, float]:
    """Train without a kill; return the outcome, and the seconds after its folder was created."""
    run = folder / "whole-{}-{}".format(*kind)
    process = child(run, False, *kind)
    while not run.exists() and process.poll() is None:
        time.sleep(0.01)
    start = time.monotonic()
    if error := wait_for(process):
        raise RuntimeError(error)
    return outcome(run), time.monotonic() - start


def kill(folder: Path, number: int, kind: tuple[str, bool], whole: Any, share: float) -> Any:
    """Kill a run after a share of its duration, resume it, and compare the outcome.

    Args:
        folder: the folder for the run.
        number: the number of the kill, for the name of the run.
        kind: the rule, and whether the text is read as lines.
        whole: the outcome and the seconds of the same run without a kill.
        share: the share of those seconds after which the run is killed.

    Returns:
        The row of the report.
    """
    expected, seconds = whole
    run = folder / f"killed-{number}"
    process = child(run, False, *kind)
    while not run.exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(share * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    unfinished = len(list((run / "checkpoints").glob(".*")))
    loaded = jaxrnn.lm.load(run, newest=True)
    error = wait_for(child(run, True))
    same = not error and outcome(run) == expected
    rmtree(run)
    return {
        "rule": kind[0],
        "lines": kind[1],
        "step": loaded.step,
        "damaged": len(loaded.remarks) > 0,
        "half written": unfinished,
        "same bytes": same,
        "error": error,
    }


def damage(folder: Path, every: int, flips: int, rng: np.random.Generator) -> dict[str, Any]:
    """Damage the newest checkpoint in many ways; each time the one before it must be loaded."""
    run = folder / "damaged"
    if error := wait_for(child(run, False, hidden_size=64, steps=60)):
        raise RuntimeError(error)
    *_, before, newest = checkpoints(run)
    content = newest.read_bytes()
    changes = [content[:length] for length in range(0, len(content), every)]
    for _ in range(flips):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= rng.integers(1, 256)
        changes.append(bytes(changed))
    step, passed, peak = int(before.stem[5:]), 0, 0
    jaxrnn.lm.load(run)
    for change in changes:
        newest.write_bytes(change)
        tracemalloc.start()
        loaded = jaxrnn.lm.load(run, newest=True)
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        passed += loaded.step == step and newest.name in loaded.remarks[0]
    return {
        "file, bytes": len(content),
        "cut off": len(changes) - flips,
        "bytes changed": flips,
        "went back to the one before": passed,
        "most memory, bytes, the model that is found included": peak,
    }


def full_disk(folder: Path, expected: Any) -> dict[str, Any]:
    """Fill the disk during a run, free it, resume the run, and compare the outcome."""
    disk = folder / "small"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        return {"not tried": mounted.stderr.decode().strip() or "mount failed"}
    try:
        (disk / "text.txt").write_text(TEXT)
        ballast, run = disk / "ballast", disk / "run"
        process = child(run, False)
        while len(checkpoints(run)) < 2 and process.poll() is None:
            time.sleep(0.002)
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 1024)
        message = wait_for(process)
        loaded = jaxrnn.lm.load(run, newest=True)
        ballast.unlink()
        error = wait_for(child(run, True))
        same = not error and outcome(run)[0] == expected[0]
        return {
            "said": message.replace(str(disk), "…"),
            "step that stands": loaded.step,
            "damaged": len(loaded.remarks) > 0,
            "same bytes once there is room": same,
        }
    finally:
        subprocess.run(["umount", disk], check=True)


def plot(kills: list[Any], path: Path) -> None:
    """Plot the step of each kill, for each rule, and whether the resumed run ended the same."""
    same = sum(kill["same bytes"] for kill in kills)
    with plotting.picture(path, 8, 4.5) as figure:
        axes = figure.subplots()
        for equal, marker, color in ((True, "o", plotting.BLUE), (False, "X", plotting.ORANGE)):
            rows = [kill for kill in kills if kill["same bytes"] == equal]
            label = f"{'the same' if equal else 'other'} bytes: {len(rows)}"
            heights = [
                RULES.index(kill["rule"]) + (0.15 if kill["lines"] else -0.15) for kill in rows
            ]
            axes.scatter(
                [kill["step"] for kill in rows], heights, 18, color, marker=marker, label=label
            )
        axes.set_yticks(range(len(RULES)), RULES)
        axes.set(xlabel="last saved step before the kill", xlim=(-5, STEPS + 5))
        axes.set_title(
            f"{same} of {len(kills)} killed runs, resumed, end with the bytes of undisturbed ones"
        )
        figure.legend(loc="outside lower right", ncols=2)


def main() -> None:
    """Run the three experiments, print a summary, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three kills, few damaged files")
    parser.add_argument("--kills", type=int, default=200, help="number of kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    number, every, flips = (3, 2048, 20) if arguments.quick else (arguments.kills, 64, 2000)
    packages = ("jax", "jaxlib", "jaxrnn", "numpy", "optax", "safetensors")
    versions = {package: version(package) for package in packages}
    rng = np.random.default_rng(arguments.seed)
    kinds = list(product(RULES, (False, True)))
    kinds = [
        kinds[i % len(kinds)]
        for i in range(0, number if number > 3 else 28, 1 if number > 3 else 10)
    ]
    print(f"seed {arguments.seed}, {number} kills, {STEPS} steps per run, {versions}")
    with TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder = Path(temporary)
        (folder / "text.txt").write_text(TEXT)
        of_kinds = [*dict.fromkeys([("bptt", False), *kinds])]
        outcomes = pool.map(lambda kind: undisturbed(folder, kind), of_kinds)
        whole = dict(zip(of_kinds, outcomes, strict=True))
        shares = rng.random(len(kinds)).tolist()

        def kill_run(i):
            return kill(folder, i, kinds[i], whole[kinds[i]], shares[i])

        kills = []
        for row in pool.map(kill_run, range(len(kinds))):
            kills.append(row)
            if not row["same bytes"] or len(kills) % 20 == 0 or len(kinds) < 20:
                print(f"{len(kills):>4} {row}", flush=True)
        damages = damage(folder, every, flips, rng)
        full = full_disk(folder, whole["bptt", False][0])
    same = sum(k["same bytes"] for k in kills)
    print(f"kills: {same} of {len(kills)} resumed runs ended with the same bytes")
    print(f"damage: {damages}")
    print(f"full disk: {full}")
    report = {"seed": arguments.seed, "steps": STEPS, "versions": versions, "kills": kills}
    report |= {"damage": damages, "full disk": full}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "power_loss.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(kills, arguments.out / "power_loss.png")


if __name__ == "__main__":
    main()
