"""Times the start: from a new process to the end of its first training step, of the default model.

    python -m experiments.benchmarks.start

`imported` is when JAX and jaxrnn are there, `prepared` when the text is read and the state made,
`first step` when that is trained, compiled and all. The command does this and first compares its
gradient with jax.grad: `the command` is `jaxrnn train --steps 1` from end to end, with its
evaluation, its samples and its picture. Each is done in processes of their own, without and with a
folder of compiled programs (--compilation-cache) that an earlier process filled.
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
begun = BEGUN
times = {}
import jaxrnn
times["imported"] = time.time() - begun
from jaxrnn import corpus
started = jaxrnn.lm.prepare(corpus.open_text(None), jaxrnn.lm.Options())
times["prepared"] = time.time() - begun
next(jaxrnn.lm.train(started))
times["first step"] = time.time() - begun
print(json.dumps(times))
"""


def started(folder: Path, cache: bool) -> dict[str, float]:
    """Start once: seconds from the start of the process."""
    place = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")} if cache else {}
    place |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    script = LIBRARY.replace("BEGUN", str(time.time()))
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, capture_output=True, check=True, env=os.environ | place).stdout
    command = [sys.executable, "-m", "jaxrnn.cli", "train", "--steps", "1", "--quiet"]
    command += ["--out", str(folder / "run"), "--overwrite"]
    command += ["--compilation-cache", str(folder / "commands")] if cache else []
    run = lambda: subprocess.run(command, capture_output=True, check=True)  # noqa: E731
    return json.loads(told) | {"the command": measure.once(run)}


def main() -> None:
    """Start often; write the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    figures = {}
    with TemporaryDirectory() as temporary:
        started(Path(temporary), cache=True)  # fills the cache, and the text's
        for name, cache in (("compiled", False), ("from the cache", True)):
            runs = [started(Path(temporary), cache) for _ in range(arguments.starts)]
            for what in runs[0]:
                figures[f"{what}, {name}, s"] = float(np.median([run[what] for run in runs]))
    for name, figure in figures.items():
        print(f"{name:<40} {figure:.2f}")
    path = arguments.out / "start.json"
    path.write_text(json.dumps(figures | {"versions": measure.where()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
