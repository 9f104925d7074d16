"""Running the `jaxrnn` command in processes of its own, for the tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


def jaxrnn_command(*arguments, cwd, columns="80", **environment):
    return subprocess.run(
        [sys.executable, "-m", "jaxrnn.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ
        | {"COLUMNS": columns, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        | environment,
        check=False,
    )


RUN_COMMANDS = """
import contextlib, io, json, sys
from jaxrnn.cli import main as cli
results = []
for arguments in json.load(sys.stdin):
    out, err, sys.argv = io.StringIO(), io.StringIO(), ["jaxrnn", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            results.append((end.code, out.getvalue(), err.getvalue()))
json.dump(results, sys.stdout)
"""


class Answer(NamedTuple):
    """The exit status and the output of one command."""

    status: int
    stdout: str
    stderr: str


def run_commands(commands: Iterable[tuple[str, ...]], cwd: Path) -> list[Answer]:
    """Run many commands in one process, since starting a process takes seconds."""
    result = subprocess.run(
        [sys.executable, "-c", RUN_COMMANDS],
        input=json.dumps(list(commands)),
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ
        | {"COLUMNS": "80", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        check=True,
    )
    return [Answer(*answer) for answer in json.loads(result.stdout)]
