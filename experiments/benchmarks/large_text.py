"""Measure the memory and the time of training on a large text.

    python -m experiments.benchmarks.large_text             1 GiB of text, about two minutes
    python -m experiments.benchmarks.large_text --mib 100   100 MiB of text

The text repeats the documentation topics of Python, each time from another random position, so it
contains every character of them. The cache with its ids is in the same temporary folder. Memory is
the largest resident set of the whole process, including the pages that are mapped from files.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data import topics
from tempfile import TemporaryDirectory

import numpy as np

from experiments.benchmarks import measure


def write_text(file: Path, size: int, seed: int = 0) -> None:
    """Write a text of at least `size` bytes."""
    source = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    rng, written = np.random.default_rng(seed), 0
    with file.open("wb") as out:
        while written < size:
            start = int(rng.integers(len(source)))
            written += out.write((source[start:] + source[:start]).encode())


def train(file: Path, folder: Path, name: str, steps: int) -> tuple[float, str]:
    """Train in a separate process; return its seconds and its output."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "jaxrnn.cli", "train", file, "--out", folder / name]
    result = subprocess.run(
        [*map(str, command), "--steps", str(steps), "--evaluate-every", str(steps)],
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, result.stdout


def main() -> None:
    """Write the text, train twice, and print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the text in MiB")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_text(folder / "text.txt", arguments.mib * 2**20)
        first, _ = train(folder / "text.txt", folder, "first", arguments.steps)
        again, output = train(folder / "text.txt", folder, "again", arguments.steps)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        size = (folder / "text.txt").stat().st_size / 2**30
    print(output)
    results = {
        "text, GiB": round(size, 3),
        "largest resident memory, GiB": round(peak, 3),
        f"{arguments.steps} steps and evaluation, the text encoded first, s": round(first, 1),
        "the same with the ids in the cache, s": round(again, 1),
    }
    for name, value in results.items():
        print(f"{name:<70} {value}")
    path = arguments.out / "large_text.json"
    path.write_text(json.dumps(results | {"versions": measure.where()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
