"""A run is the same on one device, on several, and in several processes of which some are killed.

The commands are a person's, in processes of their own that meet on the loopback. What takes time is
to start them: each test starts what it needs once, side by side.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import assert_equal
from safetensors.numpy import load_file

from jaxrnn import checkpoint, folder

TEXT = "to be or not to be, that is the question:\nwhether 'tis nobler in the mind\n" * 12
SMALL = ("text.txt", "--hidden-size", "8", "--batch-size", "8", "--length", "8")
COMPILED = ("--compilation-cache", "compiled")  # for the next one that starts
PATIENCE = 120  # seconds within which whatever was started must end
JOIN = {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}

several_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a device is a core")
sees_processes = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="ranks are found through /proc"
)

Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start commands in a folder with a text; what still runs when the test ends is killed."""
    (tmp_path / "text.txt").write_text(TEXT)
    environment = {name: value for name, value in os.environ.items() if name not in JOIN}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    groups: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, program: tuple[str, ...] = ("-m", "jaxrnn.cli")):
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own: what it starts is killed with it
        )
        groups.append(process)
        return process

    try:
        yield begin
    finally:
        for process in groups:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for a command and all that it started; return its status and the lines of stderr."""
    _, said = process.communicate(timeout=PATIENCE)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return process.returncode, said.splitlines()


def succeeded(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        status, said = ended(process)
        assert status == 0, said


def kill_amid(process: subprocess.Popen[str], place: Path, step: int, rank: int) -> None:
    """Kill a rank, by SIGKILL, when the run has made so many steps."""
    until = time.monotonic() + PATIENCE
    while len(losses(place)) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(ranks(process.pid)[rank], signal.SIGKILL)


def ranks(supervisor: int) -> dict[int, int]:
    """Find the processes that a supervisor has started: ranks to process numbers."""
    found = {}
    for place in Path("/proc").iterdir():
        with suppress(OSError, StopIteration):  # it is gone, or not ours
            if place.name.isdigit():
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == supervisor:
                    told = (place / "environ").read_text().split("\0")
                    rank = next(each for each in told if each.startswith("JAX_PROCESS_ID="))
                    found[int(rank.partition("=")[2])] = int(place.name)
    return found


def losses(place: Path) -> np.ndarray:
    return np.array([each["loss"] for each in folder.metrics(place) if "loss" in each])


def last(place: Path) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Return the last checkpoint: its name, its arrays, and what it is about."""
    *_, file = sorted((place / "checkpoints").iterdir())
    return file.name, load_file(file), checkpoint.load(file).about


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


# What does not change a run


def test_four_processes_have_the_losses_of_one(begin, tmp_path):
    many = ("--steps", "100", "--evaluate-every", "50", *COMPILED)
    succeeded(begin("train", *SMALL, *many, "--out", "one"))
    succeeded(begin("train", *SMALL, *many, "--out", "four", "--processes", "4"))
    assert last(tmp_path / "four")[2]["made with"]["devices"] == "4"
    one, four = folder.metrics(tmp_path / "one"), folder.metrics(tmp_path / "four")
    assert [each.keys() for each in four] == [each.keys() for each in one]
    assert len(losses(tmp_path / "one")) == 100
    for name in ("loss", "grad_norm", "held_out"):
        expected, told = ([each[name] for each in run if name in each] for run in (one, four))
        np.testing.assert_allclose(told, expected, rtol=1e-5, err_msg=name)


@sees_processes
def test_killed_processes_leave_no_trace(begin, tmp_path):
    """Process 1, and in the run that then goes on process 0: the same bytes, and no step twice."""
    how = ("--steps", "80", "--evaluate-every", "40", "--save-every", "0", "--processes", "2")
    whole, killed = (
        begin("train", *SMALL, *how, *COMPILED, "--out", out) for out in ("whole", "killed")
    )
    kill_amid(killed, tmp_path / "killed", 10, rank=1)
    kill_amid(killed, tmp_path / "killed", 45, rank=0)
    status, said = ended(killed)
    assert status == 0, said
    restarts = [line for line in said if "start again from the last checkpoint" in line]
    assert ["(1 of at most 3" in restarts[0], "(2 of at most 3" in restarts[1]] == [True, True]
    assert len(restarts) == 2
    succeeded(whole)
    for out in ("whole", "killed"):
        assert last(tmp_path / out)[2]["made with"]["devices"] == "2"
    (name, expected, about), (name_of_killed, arrays, about_of_killed) = (
        last(tmp_path / out) for out in ("whole", "killed")
    )
    assert (name_of_killed, about_of_killed["history"]) == (name, about["history"])
    assert {key: value.tobytes() for key, value in arrays.items()} == {
        key: value.tobytes() for key, value in expected.items()
    }
    told = [(tmp_path / out / "metrics.jsonl").read_text() for out in ("whole", "killed")]
    assert told[1] == told[0]


@several_cores
@sees_processes
def test_a_run_that_lost_a_process_goes_on_wherever_it_is_resumed(begin, tmp_path):
    """Without restarts the command says that it failed; one process, or two devices, finish it."""
    how = ("--schedule", "constant", "--evaluate-every", "40", *COMPILED)
    whole = begin("train", *SMALL, *how, "--steps", "80", "--out", "whole")
    lost = (*how, "--steps", "60", "--save-every", "0", "--processes", "2", "--restarts", "0")
    killed = begin("train", *SMALL, *lost, "--out", "one")
    kill_amid(killed, tmp_path / "one", 20, rank=1)
    status, said = ended(killed)
    assert status not in (0, 2)
    assert not [line for line in said if "start again" in line]
    assert 0 < last(tmp_path / "one")[2]["step"] < 60
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    succeeded(
        whole,
        begin("resume", "one", "--steps", "80", *COMPILED),
        begin("resume", "two", "--steps", "80", *COMPILED, "--devices", "2"),
    )
    name, expected, _ = last(tmp_path / "whole")
    for out, devices in (("one", "1"), ("two", "2")):
        there, arrays, about = last(tmp_path / out)
        assert (there, about["made with"]["devices"]) == (name, devices)
        assert_equal(arrays, expected, 1e-5)
        np.testing.assert_allclose(losses(tmp_path / out), losses(tmp_path / "whole"), rtol=1e-5)


ON_BOTH = """
import dataclasses, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_enable_async_dispatch", False)
import jaxrnn
small = jaxrnn.Options(hidden_size=8, batch_size=4, length=8, steps=12, evaluate_every=12)
kinds = {"stream": {}, "lines": {"lines": True, "length": None}, "seeds": {"seeds": 2}}
for kind, how in kinds.items():
    for devices, mesh in ((1, None), (2, jaxrnn.make_mesh())):
        chosen = dataclasses.replace(small, **how)
        blocks = list(jaxrnn.run.train(jaxrnn.run.prepare(open("text.txt").read(), chosen, mesh)))
        run, metrics = blocks[-1].run, [block.metrics for block in blocks]
        assert len(run.state.params.readout.W_hy.devices()) == devices
        told = {
            "loss": np.concatenate([each.loss for each in metrics]),
            "grad_norm": np.concatenate([each.grad_norm for each in metrics]),
            "held_out": np.array(blocks[-1].held_out),
            "W_hh": np.asarray(run.state.params.cells[0].W_hh),
        }
        np.savez(f"{kind} {devices}", **told)
"""


@several_cores
def test_two_devices_have_the_losses_of_one(begin, tmp_path):
    """Of a stream; of lines, of which some are longer; and of two models at once."""
    succeeded(begin(program=("-c", ON_BOTH)))
    for kind, members in (("stream", ()), ("lines", ()), ("seeds", (2,))):
        one, two = (dict(np.load(tmp_path / f"{kind} {devices}.npz")) for devices in (1, 2))
        assert one["loss"].shape == (12, *members)
        np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-6, err_msg=kind)
        assert_equal(two, one, 1e-5)


# Mistakes

MEET = ("--distributed", "--processes", "2", "--coordinator")
MISTAKES = {
    ("--batch-size", "31", "--devices", "2"): "use a batch size of 30 or 32",
    ("--devices", "64"): "devices must lie in 1 … ",
    ("--devices", "0"): "devices must be at least 1, got 0",
    ("--process-id", "1"): "--process-id is for --distributed: say that too, or leave it out",
    ("--distributed", "--coordinator", "127.0.0.1:1"): "needs --processes, --process-id too",
    (*MEET, "127.0.0.1:1", "--process-id", "2"): "must lie in 0 … 1 of 2, got 2",
    (*MEET, "127.0.0.1:1", "--process-id", "-1"): "must lie in 0 … 1 of 2, got -1",
    (*MEET, "nonsense", "--process-id", "1"): "must be HOST:PORT, got 'nonsense'",
}


def refused(process: subprocess.Popen[str]) -> str:
    """Return the one line with which a command ends that was told what cannot be."""
    status, said = ended(process)
    assert status == 2, said
    assert len(said) == 1, said
    assert said[0].startswith("jaxrnn: ")
    return said[0]


@several_cores
def test_what_cannot_be_is_answered_in_one_line(begin, tmp_path):
    commands = [begin("train", *SMALL, *arguments, "--out", "run") for arguments in MISTAKES]
    for process, message in zip(commands, MISTAKES.values(), strict=True):
        assert message in refused(process)
    assert not (tmp_path / "run").exists()


DISAGREEMENTS = {  # what process 1 is told, and what each process says of it
    ("text.txt", "--learning-rate", "0.01"): (
        "the processes do not agree on the option learning_rate: 1 differ from 0; here, in 0, it is"
        " 0.5: start all with the same",
        "the processes do not agree on the option learning_rate: 1 differ from 0; here, in 1, it is"
        " 0.01: start all with the same",
    ),
    ("other.txt",): (
        "the processes do not agree on the text, by its SHA-256: 1 differ from 0; here, in 0",
        "the processes do not agree on the text, by its SHA-256: 1 differ from 0; here, in 1",
    ),
    ("missing.txt",): 2 * ("process 1: cannot read missing.txt: No such file or directory",),
}


def test_processes_that_do_not_agree_all_say_so(begin, tmp_path):
    """Of two processes the second is told something else; and one finds no first."""
    (tmp_path / "other.txt").write_text(TEXT + "!")
    nobody, *ports = free_ports(1 + len(DISAGREEMENTS))
    pairs = []
    for number, (told, port) in enumerate(zip(DISAGREEMENTS, ports, strict=True)):
        file, *other = told
        how = (*SMALL[1:], "--out", f"run{number}", *MEET, f"127.0.0.1:{port}", "--process-id")
        one = begin("train", SMALL[0], "--learning-rate", "0.5", *how, "0")
        rate = other or ["--learning-rate", "0.5"]
        pairs.append((one, begin("train", file, *rate, *how, "1")))
    begun = time.monotonic()
    how = (*MEET, f"127.0.0.1:{nobody}", "--process-id", "1", "--timeout", "2")
    assert f"cannot be reached at 127.0.0.1:{nobody} within 2 s" in refused(
        begin("train", *SMALL, *how, "--out", "alone")
    )
    assert time.monotonic() - begun < 15
    for pair, messages in zip(pairs, DISAGREEMENTS.values(), strict=True):
        for process, message in zip(pair, messages, strict=True):
            assert message in refused(process)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix != ".txt"]
