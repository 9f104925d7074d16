"""Time the start of the default model, from a new process to the end of its first training step.

    python -m experiments.benchmarks.start

The benchmark measures the seconds from the start of a process until

- imported: JAX and jaxrnn are imported;
- prepared: the text is read, and the parameters and the optimizer state are made;
- first step: the first step is compiled and done;
- the command: `jaxrnn train --steps 1` has ended. It first compares its gradient with that of
  `jax.grad`, and includes the evaluation, the samples and the figure.

Every start is a new process, without and with a folder of compiled programs (--compilation-cache)
that an earlier process filled.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from experiments.benchmarks import measure

LIBRARY = """
import json, time
start = START
times = {}
import jaxrnn
times["imported"] = time.time() - start
from jaxrnn.lm import corpus
run = jaxrnn.lm.prepare(corpus.open_text(None), jaxrnn.lm.Options())
times["prepared"] = time.time() - start
next(jaxrnn.lm.train(run))
times["first step"] = time.time() - start
print(json.dumps(times))
"""


def measure_start(folder: Path, cache: bool) -> dict[str, float]:
    """Start once; return the seconds from the start of the process to each point."""
    cache_options = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")} if cache else {}
    cache_options |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    script = LIBRARY.replace("START", str(time.time()))
    command = [sys.executable, "-c", script]
    output = subprocess.run(
        command, capture_output=True, check=True, env=os.environ | cache_options
    ).stdout
    command = [sys.executable, "-m", "jaxrnn.cli", "train", "--steps", "1", "--quiet"]
    command += ["--out", str(folder / "run"), "--overwrite"]
    command += ["--compilation-cache", str(folder / "commands")] if cache else []
    run = lambda: subprocess.run(command, capture_output=True, check=True)  # noqa: E731
    return json.loads(output) | {"the command": measure.once(run)}


def main() -> None:
    """Start several times, and print and write the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--starts", type=int, default=7, help="starts with and without the cache, each"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    results = {}
    with TemporaryDirectory() as temporary:
        # Fill the caches of the compiled programs and of the encoded text.
        measure_start(Path(temporary), cache=True)
        for name, cache in (("compiled", False), ("from the cache", True)):
            runs = [measure_start(Path(temporary), cache) for _ in range(arguments.starts)]
            for point in runs[0]:
                results[f"{point}, {name}, s"] = float(np.median([run[point] for run in runs]))
    for name, seconds in results.items():
        print(f"{name:<40} {seconds:.2f}")
    path = arguments.out / "start.json"
    path.write_text(json.dumps(results | {"versions": measure.where()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
