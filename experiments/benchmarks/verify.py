"""Time `jaxrnn.verify` from a cold start and once compiled: H=64, T=50, B=8.

    python -m experiments.benchmarks.verify

Each cold start is a new process, timed from the moment when JAX is imported and has found its
device. A right and a wrong gradient are checked.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.benchmarks import measure

COLD = """
import json, time
import jax
import numpy as np

jax.devices()
started = time.perf_counter()
import jaxrnn

rnn = jaxrnn.RNN(64, 64, 64)
params = rnn.init(jax.random.key(0))
ids = np.random.default_rng(0).integers(0, 64, (8, 51))
batch = jaxrnn.Batch(ids[:, :-1], ids[:, 1:])
seconds = {}
for name, algorithm in (
    ("right", jaxrnn.gradients.bptt(rnn)),
    ("wrong", jaxrnn.gradients.truncated_bptt(rnn, 4)),
):
    seconds[name] = []
    for _ in range(CALLS):
        report = jaxrnn.verify(algorithm, rnn, params, batch)
        seconds[name].append(time.perf_counter() - started)
        started = time.perf_counter()
    assert report.ok == (name == "right")
print(json.dumps(seconds))
"""


def main():
    """Run the benchmark, and print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=7, help="cold starts")
    parser.add_argument(
        "--calls", type=int, default=21, help="calls per start and gradient, the first of them cold"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    script = COLD.replace("CALLS", str(arguments.calls))
    runs = [
        json.loads(
            subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
        )
        for _ in range(arguments.starts)
    ]
    results = {}
    for name in ("right", "wrong"):
        seconds = np.array([run[name] for run in runs])
        results[f"{name}: first call, s"] = float(np.median(seconds[:, 0]))
        results[f"{name}: slowest first call, s"] = float(seconds[:, 0].max())
        results[f"{name}: later calls, ms"] = float(1e3 * np.median(seconds[:, 1:]))
    for name, value in results.items():
        print(f"{name:<32} {value:.3g}")
    path = arguments.out / "verify.json"
    path.write_text(json.dumps(results | {"versions": measure.where()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
