"""Tests that each experiment is one command that writes its results and its plot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))
# Another process may be writing an entry of the cache; the program is compiled again then.
WARNINGS = ("-W", "error", "-W", "ignore:Error reading persistent compilation cache entry")
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "MPLBACKEND": "Agg",
}


@pytest.mark.process
@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_runs_with_quick_and_writes_its_results(script, tmp_path):
    result = subprocess.run(
        [sys.executable, *WARNINGS, script, "--quick", "--out", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "seed" in result.stdout
    assert json.loads((tmp_path / f"{script.stem}.json").read_text())["versions"]
    assert (tmp_path / f"{script.stem}.png").read_bytes().startswith(b"\x89PNG")
