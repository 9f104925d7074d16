"""Does a run survive the loss of power, a damaged file, a full disk?

- kills: a process that saves as often as it can is killed with SIGKILL at a random moment, for each
  rule, on a stream and on lines. Is there a checkpoint that loads, and does the resumed run end
  with the bytes of one that nobody killed, its metrics too?
- damage: the newest checkpoint is cut off at every 64th byte, and bits of it are flipped at random.
  Is it ever loaded, or is the one before it found, and in how much memory?
- a full disk: a run in a file system of 1 MiB. Does it say so, does its last checkpoint stand, and
  does it end with the same bytes once there is room? (Mounting one needs root.)

    python experiments/power_loss.py            about half an hour on two cores
    python experiments/power_loss.py --quick    half a minute: three kills, few damages
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
from matplotlib.figure import Figure
from safetensors.numpy import load_file

import jaxrnn

RULES = list(jaxrnn.gradients.RULES)
TEXT = "anna bob clara dora emil frida gustav hanna ida jonas karla lotte martin nina\n" * 9
STEPS = 300

CHILD = """
import sys
import jaxrnn
place, text, resumed, rule, lines, hidden_size, steps = sys.argv[1:]
if resumed == "resumed":
    run = jaxrnn.lm.resume(place)
else:
    options = jaxrnn.lm.Options(
        algorithm=rule, lines=lines == "lines", hidden_size=int(hidden_size), batch_size=4,
        length=None if lines == "lines" else 8, steps=int(steps), evaluate_every=50, save_every=0.0,
    )
    run = jaxrnn.lm.start(place, text, options)
for block in jaxrnn.lm.train(run):
    pass
"""


def child(place: Path, resumed: bool, rule="bptt", lines=False, hidden_size=8, steps=STEPS):
    """Start a process that trains, or goes on."""
    arguments = [place, place.parent / "text.txt", "resumed" if resumed else "new", rule]
    arguments += ["lines" if lines else "stream", hidden_size, steps]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> str:
    """Wait for a process that should end well; return what it said, if it did not."""
    _, error = process.communicate()
    return "" if process.returncode == 0 else (error.strip().splitlines() or ["nothing said"])[-1]


def checkpoints(place: Path) -> list[Path]:
    """List a run's checkpoints, the newest last."""
    return sorted((place / "checkpoints").glob("step-*.safetensors"))


def outcome(place: Path) -> tuple[Any, bytes]:
    """Return the bytes of all arrays of the last checkpoint, and the metrics."""
    arrays = load_file(checkpoints(place)[-1])
    return {name: a.tobytes() for name, a in arrays.items()}, (place / "metrics.jsonl").read_bytes()


def undisturbed(folder: Path, kind: tuple[str, bool]) -> tuple[Any, float]:
    """Train without a kill: what comes out, and the seconds from its folder's making to its end."""
    place = folder / "whole-{}-{}".format(*kind)
    process = child(place, False, *kind)
    while not place.exists() and process.poll() is None:
        time.sleep(0.01)
    begun = time.monotonic()
    if error := ended(process):
        raise RuntimeError(error)
    return outcome(place), time.monotonic() - begun


def kill(folder: Path, number: int, kind: tuple[str, bool], whole: Any, share: float) -> Any:
    """Kill a run when a share of its time is over, go on with it, and compare."""
    expected, seconds = whole
    place = folder / f"killed-{number}"
    process = child(place, False, *kind)
    while not place.exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(share * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = len(list((place / "checkpoints").glob(".*")))
    found = jaxrnn.lm.load(place, newest=True)
    error = ended(child(place, True))
    same = not error and outcome(place) == expected
    rmtree(place)
    return {
        "rule": kind[0],
        "lines": kind[1],
        "step": found.step,
        "damaged": len(found.remarks) > 0,
        "half written": left,
        "same bytes": same,
        "error": error,
    }


def damage(folder: Path, every: int, flips: int, rng: np.random.Generator) -> dict[str, Any]:
    """Cut the newest checkpoint off, or change a byte; each time the one before must be found."""
    copy = folder / "damaged"
    if error := ended(child(copy, False, hidden_size=64, steps=60)):
        raise RuntimeError(error)
    *_, before, newest = checkpoints(copy)
    content = newest.read_bytes()
    changes = [content[:length] for length in range(0, len(content), every)]
    for _ in range(flips):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= rng.integers(1, 256)
        changes.append(bytes(changed))
    step, right, most = int(before.stem[5:]), 0, 0
    jaxrnn.lm.load(copy)
    for change in changes:
        newest.write_bytes(change)
        tracemalloc.start()
        found = jaxrnn.lm.load(copy, newest=True)
        most = max(most, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        right += found.step == step and newest.name in found.remarks[0]
    return {
        "file, bytes": len(content),
        "cut off": len(changes) - flips,
        "bytes changed": flips,
        "went back to the one before": right,
        "most memory, bytes, the model that is found included": most,
    }


def full_disk(folder: Path, expected: Any) -> dict[str, Any]:
    """Run out of disk, make room, and go on."""
    small = folder / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        return {"not tried": mounted.stderr.decode().strip() or "mount failed"}
    try:
        (small / "text.txt").write_text(TEXT)
        ballast, place = small / "ballast", small / "run"
        process = child(place, False)
        while len(checkpoints(place)) < 2 and process.poll() is None:
            time.sleep(0.002)
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 1024)
        said = ended(process)
        stands = jaxrnn.lm.load(place, newest=True)
        ballast.unlink()
        error = ended(child(place, True))
        same = not error and outcome(place)[0] == expected[0]
        return {
            "said": said.replace(str(small), "…"),
            "step that stands": stands.step,
            "damaged": len(stands.remarks) > 0,
            "same bytes once there is room": same,
        }
    finally:
        subprocess.run(["umount", small], check=True)


def plot(kills: list[Any], path: Path) -> None:
    """Draw at which step each kill came, for each rule, and whether the run ended the same."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, rule in enumerate(RULES):
        for lines, marker in ((False, "|"), (True, "x")):
            of_rule = [k for k in kills if k["rule"] == rule and k["lines"] == lines]
            steps = [k["step"] for k in of_rule]
            colors = ["C0" if k["same bytes"] else "C3" for k in of_rule]
            axes.scatter(
                steps, [i + (0.2 if lines else -0.2)] * len(steps), c=colors, marker=marker
            )
    same = sum(k["same bytes"] for k in kills)
    axes.set_yticks(range(len(RULES)), RULES)
    axes.set(xlabel="step of the newest good checkpoint when it was killed", xlim=(-5, STEPS + 5))
    axes.set_title(
        f"{len(kills)} kills (| stream, × lines): {same} resumed runs ended with the same bytes",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    """Kill, damage and fill; print and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three kills, few damages")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to fill")
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
    print(f"seed {arguments.seed}, {number} kills, {STEPS} steps each, {versions}")
    with TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder = Path(temporary)
        (folder / "text.txt").write_text(TEXT)
        of_kinds = [*dict.fromkeys([("bptt", False), *kinds])]
        outcomes = pool.map(lambda kind: undisturbed(folder, kind), of_kinds)
        whole = dict(zip(of_kinds, outcomes, strict=True))
        shares = rng.random(len(kinds)).tolist()

        def one(i):
            return kill(folder, i, kinds[i], whole[kinds[i]], shares[i])

        kills = []
        for each in pool.map(one, range(len(kinds))):
            kills.append(each)
            if not each["same bytes"] or len(kills) % 20 == 0 or len(kinds) < 20:
                print(f"{len(kills):>4} {each}", flush=True)
        damages = damage(folder, every, flips, rng)
        full = full_disk(folder, whole["bptt", False][0])
    same = sum(k["same bytes"] for k in kills)
    print(f"a good checkpoint after every kill, the same bytes after {same} of {len(kills)}")
    print(f"damage {damages}")
    print(f"full disk {full}")
    report = {"seed": arguments.seed, "steps": STEPS, "versions": versions, "kills": kills}
    report |= {"damage": damages, "full disk": full}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "power_loss.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(kills, arguments.out / "power_loss.png")


if __name__ == "__main__":
    main()
