"""Tests that a run is the same on one device, on several, and in processes that are killed.

The commands run in processes of their own, which communicate over the loopback. Starting a process
takes most of the time, so each test starts the processes that it needs once and in parallel.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from cases import assert_equal, timeless
from commands import RUN_COMMANDS
from safetensors.numpy import load_file

from jaxrnn.cli import distributed
from jaxrnn.cli import main as cli
from jaxrnn.lm.store import checkpoint, directory

TEXT = "to be or not to be, that is the question:\nwhether 'tis nobler in the mind\n" * 12
SMALL = ("text.txt", "--hidden-size", "8", "--batch-size", "8", "--length", "8")
EVALUATION = ("--schedule", "constant", "--evaluate-every", "50")
TIMEOUT = 120  # seconds within which every process must end
JOIN = {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}

several_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a device is a core")
finds_ranks = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="ranks are found through /proc"
)

pytestmark = pytest.mark.process

Command = subprocess.Popen[str]
Start = Callable[..., Command]
MARK = "STARTED_BY_TEST"  # an environment variable with one value for all processes of a command
marks: dict[int, str] = {}  # the value for each command, by its process id


@contextmanager
def commands(path: Path) -> Iterator[Start]:
    """Start commands in a folder with a text, and at the end kill those that still run."""
    (path / "text.txt").write_text(TEXT)
    environment = {name: value for name, value in os.environ.items() if name not in JOIN}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    processes: list[Command] = []

    def start(*arguments: object, program: tuple[str, ...] = ("-m", "jaxrnn.cli")) -> Command:
        mark = f"{path}:{len(processes)}"
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=path,
            env=environment | {MARK: mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # without the terminal of the tests
        )
        processes.append(process)
        marks[process.pid] = mark
        return process

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            for number in running(process):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            with process:
                pass


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with commands(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Return a run of 100 steps by one process, with its compilation cache beside it."""
    path = tmp_path_factory.mktemp("alone")
    with commands(path) as start:
        cache = ("--compilation-cache", "compiled")
        assert_succeeded(
            start("train", *SMALL, *EVALUATION, "--steps", "100", *cache, "--out", "run")
        )
    return path / "run"


def wait_for(process: Command) -> tuple[int, list[str]]:
    """Wait for a command and its processes to end. Return its status and the lines of stderr."""
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert not running(process)
    return process.returncode, stderr.splitlines()


def running(command: Command) -> list[int]:
    """Return the ids of the processes of a command, itself included, that still run."""
    return [number for number, variables in environments() if marks[command.pid] == variables[MARK]]


def environments() -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the id and the environment variables of each process that a test has started."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            lines = (entry / "environ").read_text().split("\0")
            variables = dict(line.split("=", 1) for line in lines if "=" in line)
            if MARK in variables:
                yield int(entry.name), variables


def assert_succeeded(*processes: Command) -> None:
    for process in processes:
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        assert not running(process)
        assert process.returncode == 0, stderr
        assert "[Gloo]" not in stdout + stderr


def kill_during(process: Command, run: Path, step: int, rank: int, *, hangs: bool = False) -> None:
    """Kill a rank with SIGKILL after `step` recorded steps, the last of which is not saved yet.

    The first rank, which writes the files, is stopped while this is checked and the rank is killed.
    With `hangs` it is not continued afterwards.
    """
    deadline = time.monotonic() + TIMEOUT
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        if len(recorded(run, "loss")) >= step:
            processes = ranks(process.pid)
            os.kill(processes[0], signal.SIGSTOP)
            ahead = len(recorded(run, "loss")) > last_checkpoint(run)[2]["step"]
            if ahead:
                os.kill(processes[rank], signal.SIGKILL)
            if not (ahead and hangs):
                with suppress(ProcessLookupError):  # rank 0 was killed
                    os.kill(processes[0], signal.SIGCONT)
            if ahead:
                return
        time.sleep(0.01)


def ranks(supervisor: int) -> dict[int, int]:
    """Return the process id of each rank that a supervisor has started."""
    return {
        int(variables["JAX_PROCESS_ID"]): number
        for number, variables in environments()
        if variables[MARK] == marks[supervisor] and "JAX_PROCESS_ID" in variables
    }


def recorded(run: Path, name: str) -> np.ndarray:
    return np.array([each[name] for each in directory.metrics(run) if name in each])


def assert_same_records(run: Path, expected: Path) -> None:
    assert [each.keys() for each in directory.metrics(run)] == [
        each.keys() for each in directory.metrics(expected)
    ]
    for name in ("loss", "grad_norm", "held_out"):
        np.testing.assert_allclose(
            recorded(run, name), recorded(expected, name), rtol=1e-5, err_msg=name
        )


def last_checkpoint(run: Path) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Return the file name, the arrays and the metadata of the last checkpoint."""
    *_, file = sorted((run / "checkpoints").iterdir())
    return file.name, load_file(file), checkpoint.load(file).about


def devices(run: Path) -> str:
    return last_checkpoint(run)[2]["made_with"]["devices"]


# What does not change a run


def test_four_processes_have_the_losses_of_one(start, alone, tmp_path):
    options = ("--processes", "4", "--compilation-cache", alone.with_name("compiled"))
    assert_succeeded(
        start("train", *SMALL, *EVALUATION, "--steps", "100", *options, "--out", "four")
    )
    assert (devices(alone), devices(tmp_path / "four")) == ("1", "4")
    assert len(recorded(alone, "loss")) == 100
    assert_same_records(tmp_path / "four", alone)
    assert_equal(last_checkpoint(tmp_path / "four")[1], last_checkpoint(alone)[1], 1e-5)


@several_cores
@finds_ranks
def test_a_run_that_lost_a_process_can_be_resumed_on_other_devices(start, alone, tmp_path):
    """Without restarts, the command fails and ends the process that hangs.

    The run can then be resumed in one process, or on two devices.
    """
    cache = ("--compilation-cache", alone.with_name("compiled"))
    options = ("--steps", "40", "--save-every", "0", "--processes", "2", "--restarts", "0")
    killed = start("train", *SMALL, *EVALUATION, *options, *cache, "--out", "one")
    kill_during(killed, tmp_path / "one", 5, rank=1, hangs=True)
    status, stderr = wait_for(killed)
    assert status not in (0, 2), stderr
    assert not [line for line in stderr if "start again" in line]
    assert 0 < last_checkpoint(tmp_path / "one")[2]["step"] < 40
    assert devices(tmp_path / "one") == "2"
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert_succeeded(
        start("resume", "one", "--steps", "100", *cache),
        start("resume", "two", "--steps", "100", *cache, "--devices", "2"),
    )
    assert (devices(tmp_path / "one"), devices(tmp_path / "two")) == ("1", "2")
    for run in (tmp_path / "one", tmp_path / "two"):
        assert last_checkpoint(run)[0] == last_checkpoint(alone)[0]
        assert_equal(last_checkpoint(run)[1], last_checkpoint(alone)[1], 1e-5)
        np.testing.assert_allclose(recorded(run, "loss"), recorded(alone, "loss"), rtol=1e-5)


@finds_ranks
def test_killed_processes_do_not_change_the_run(start, tmp_path):
    """Process 1 is killed, and after a restart process 0. No byte differs; no step is repeated."""
    options = ("--steps", "60", "--evaluate-every", "30", "--save-every", "0", "--processes", "2")
    cache = ("--compilation-cache", "compiled")
    whole, killed = (tmp_path / out for out in ("whole", "killed"))
    undisturbed, disturbed = (
        start("train", *SMALL, *options, *cache, "--out", run.name) for run in (whole, killed)
    )
    kill_during(disturbed, killed, 5, rank=1)
    kill_during(disturbed, killed, 25, rank=0)
    status, stderr = wait_for(disturbed)
    assert status == 0, stderr
    restarts = [line for line in stderr if "start again from the last checkpoint" in line]
    assert len(restarts) == 2, stderr
    assert "(1 of at most 3 restarts)" in restarts[0]
    assert "(2 of at most 3 restarts)" in restarts[1]
    assert_succeeded(undisturbed)
    assert (devices(whole), devices(killed)) == ("2", "2")
    name, arrays, about = last_checkpoint(killed)
    expected_name, expected, about_expected = last_checkpoint(whole)
    assert (name, about["history"]) == (expected_name, about_expected["history"])
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert timeless(killed) == timeless(whole)


ON_ONE_AND_TWO_DEVICES = """
import dataclasses, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_enable_async_dispatch", False)
import jaxrnn
small = jaxrnn.lm.Options(hidden_size=8, batch_size=4, length=8, steps=12, evaluate_every=12)
kinds = {"stream": {}, "lines": {"lines": True, "length": None}, "seeds": {"seeds": 2}}
for kind, how in kinds.items():
    for devices, mesh in ((1, None), (2, jaxrnn.make_mesh())):
        chosen = dataclasses.replace(small, **how)
        blocks = list(jaxrnn.lm.train(jaxrnn.lm.prepare("text.txt", chosen, mesh)))
        run, metrics = blocks[-1].run, [block.metrics for block in blocks]
        assert len(run.state.carry.h.devices()) == devices
        assert len(run.state.params.readout.W_hy.devices()) == devices
        found = {
            "loss": np.concatenate([each.loss for each in metrics]),
            "grad_norm": np.concatenate([each.grad_norm for each in metrics]),
            "held_out": np.array(blocks[-1].held_out),
            "W_hh": np.asarray(run.state.params.cells[0].W_hh),
        }
        np.savez(f"{kind} {devices}", **found)
"""


@several_cores
def test_two_devices_have_the_losses_of_one(start, tmp_path):
    """Trains on a stream, on lines of different lengths, and with two models at once."""
    assert_succeeded(start(program=("-c", ON_ONE_AND_TWO_DEVICES)))
    for kind, members in (("stream", ()), ("lines", ()), ("seeds", (2,))):
        one, two = (dict(np.load(tmp_path / f"{kind} {number}.npz")) for number in (1, 2))
        assert one["loss"].shape == (12, *members)
        np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-6, err_msg=kind)
        assert_equal(two, one, 1e-5)


# Signals

ENDLESS = ("--steps", "100000000", "--evaluate-every", "10000000")

SUPERVISOR = """
import pathlib, signal, sys
from jaxrnn.cli import distributed, launch
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
python, program, sys.executable = sys.executable, sys.argv[1], "./program"
pathlib.Path("program").write_text(f"#!{python} -S\\n{program}")
pathlib.Path("program").chmod(0o755)
sys.exit(launch.supervise(distributed.Machines(processes=2), list))
"""
PROGRAM = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, {})
open("started", "a").write("!")
while True:
    signal.pause()
"""


def supervised(start: Start, path: Path, handler: str) -> Command:
    """Start a supervisor of two processes that do not train and have the given signal handler."""
    supervisor = start(PROGRAM.format(handler), program=("-c", SUPERVISOR))
    wait_until(lambda: started_in(path) == 2)
    return supervisor


def started_in(path: Path) -> int:
    return len((path / "started").read_text()) if (path / "started").exists() else 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


STOPPING = ["SIGINT", "SIGTERM", "SIGHUP"]


@pytest.mark.parametrize("name", STOPPING)
def test_a_supervisor_that_was_told_to_stop_restarts_no_process(name, start, tmp_path):
    """This holds also if its processes fail, as they do when a signal comes during an import."""
    supervisor = supervised(start, tmp_path, "lambda *_: sys.exit(1)")
    supervisor.send_signal(signal.Signals[name])
    assert wait_for(supervisor) == (128 + signal.Signals[name], ["jaxrnn: stopped"])
    assert started_in(tmp_path) == 2


@pytest.mark.parametrize("name", STOPPING)
def test_a_second_signal_ends_all_processes_at_once(name, start, tmp_path):
    supervisor = supervised(start, tmp_path, "signal.SIG_IGN")
    supervisor.send_signal(signal.Signals[name])
    time.sleep(0.5)
    assert supervisor.poll() is None
    supervisor.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert wait_for(supervisor)[0] == 128 + signal.Signals[name]
    assert time.monotonic() - started < 5
    assert started_in(tmp_path) == 2


def test_what_ends_the_first_process_ends_all_and_starts_nothing_again(start, tmp_path):
    """Nobody reads what it prints; and the run cannot be written any more."""
    options = ("--steps", "100000000", "--evaluate-every", "20", "--processes", "2", "--out")
    unread, unwritten = (start("train", *SMALL, *options, run) for run in ("unread", "unwritten"))
    for process in (unread, unwritten):
        next(line for line in process.stdout if line.startswith("training"))
    unread.stdout.close()
    unread.stdout = None
    metrics = tmp_path / "unwritten" / "metrics.jsonl"
    metrics.rename(tmp_path / "metrics.jsonl")
    metrics.mkdir()
    status, lines = wait_for(unread)
    assert status in (128 + signal.SIGPIPE, 128 + signal.SIGTERM)  # of either process
    assert lines == ["jaxrnn: stopped, since nobody reads what it prints"]
    steps = len(recorded(tmp_path / "unread", "loss"))
    assert last_checkpoint(tmp_path / "unread")[2]["step"] == steps
    status, lines = wait_for(unwritten)
    assert status == 2, lines
    (line,) = [line for line in lines if "cannot write unwritten: Is a directory" in line]
    assert "continue with: jaxrnn resume unwritten" in line
    assert not [line for line in lines if "start again" in line]


def test_a_lost_connection_is_no_mistake_of_the_user_whatever_its_type(monkeypatch, tmp_path):
    """JAX raises ValueError for some. With the status of a mistake nothing would restart."""
    error = ValueError("INVALID_ARGUMENT: AllReduce failed: [external/gloo/gloo/transport/tcp]")

    def train(*arguments: object) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr(cli.jax, "process_count", lambda: 2)
    monkeypatch.setattr(cli.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(cli.lm, "over_because", lambda training: None)
    monkeypatch.setattr(cli.lm, "train", train)
    monkeypatch.setattr(cli.console, "with_progress", train)
    monkeypatch.setattr(cli, "_exit_now", sys.exit)
    training = Mock(spec=cli.lm.Run, folder=tmp_path, done=0)
    monkeypatch.setattr(cli, "run", lambda _: cli._lead(training, [], new=False))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == distributed.LOST


# At the first collection after JAX has been imported, and in the middle of a command.
INTERRUPTED_IMPORT = """
import gc, signal, sys
import jaxrnn_command

def interrupt(phase, info):
    if "jax._src.lib" in sys.modules:
        gc.callbacks.remove(interrupt)
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
gc.callbacks.append(interrupt)
sys.argv = ["jaxrnn", "--help"]
jaxrnn_command.main()
"""
INTERRUPTED_COMMAND = """
import gc, signal, time
from jaxrnn.cli import main as cli

def sleep():
    gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT) if gc.callbacks.pop() else 0)
    gc.collect()
    time.sleep(60)
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run = lambda words: sleep()
cli.main()
"""


@pytest.mark.parametrize("program", [INTERRUPTED_IMPORT, INTERRUPTED_COMMAND])
def test_an_interrupt_during_a_callback_of_the_garbage_collector_is_not_lost(program, start):
    """Python ignores an exception in such a callback, so the command would go on."""
    started = time.monotonic()
    assert wait_for(start(program=("-c", program))) == (128 + signal.SIGINT, ["jaxrnn: stopped"])
    assert time.monotonic() - started < 40


ON_A_TERMINAL = """
import os, pty, signal, sys, time
here, terminal = pty.fork()
if not here:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
shown, metrics = b"", os.path.join(sys.argv[-1], "metrics.jsonl")
while not (os.path.exists(metrics) and os.path.getsize(metrics)):
    shown += os.read(terminal, 1000)
if sys.argv[1] == "close":
    os.close(terminal)
else:
    os.write(terminal, sys.argv[1].encode())
    try:
        while block := os.read(terminal, 1000):
            shown += block
    except OSError:  # the other end is closed
        pass
sys.stdout.write(shown.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(here, 0)[1]) % 256)
"""


@finds_ranks
def test_signals_of_a_terminal_and_the_death_of_a_supervisor_save_every_step(start, tmp_path):
    """Ctrl-C, which reaches all processes; a terminal that is closed; and Ctrl-\\.

    No checkpoint is due during this time. No process may be left at the end.
    """
    options = ("-m", "jaxrnn.cli", "train", *SMALL, *ENDLESS, "--processes", "2")
    cache = ("--compilation-cache", "compiled")
    runs = {
        "\x03": (128 + signal.SIGINT, "go on with: jaxrnn resume run0"),
        "close": (128 + signal.SIGHUP, ""),
        "\x1c": (-signal.SIGQUIT % 256, ""),
    }
    processes = {
        key: start(key, *options, *cache, "--out", f"run{number}", program=("-c", ON_A_TERMINAL))
        for number, key in enumerate(runs)
    }
    for number, (key, (status, message)) in enumerate(runs.items()):
        stdout, _ = processes[key].communicate(timeout=TIMEOUT)
        assert (processes[key].returncode, message in stdout) == (status, True), stdout
        ended_at = time.monotonic()
        wait_until(lambda command=processes[key]: not running(command))
        assert time.monotonic() - ended_at < 10
        run = tmp_path / f"run{number}"
        assert last_checkpoint(run)[2]["step"] == len(recorded(run, "loss")) > 0


# Mistakes


def assert_mistake(status: int, lines: list[str], message: str) -> None:
    """Assert that a command ended with the status of a mistake and one line with the message."""
    assert status == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("jaxrnn: ")
    assert message in lines[0]


DISTRIBUTED = ("--distributed", "--processes", "2", "--coordinator")


def test_processes_with_different_arguments_all_report_it(start, tmp_path):
    """In each pair the second process gets another argument. A single one finds no coordinator."""
    (tmp_path / "other.txt").write_text(TEXT + "!")
    differs = "the processes do not agree on the {}: 1 differ from 0; here, in {}, it is {}"
    option, text = "option --learning-rate", "text, by its SHA-256"
    missing = "process 1: cannot read missing.txt: No such file or directory"
    wrong = [  # the arguments of process 1, and the messages of both
        (
            ("text.txt", "0.01"),
            differs.format(option, 0, 0.5) + ": start all with the same",
            differs.format(option, 1, 0.01) + ": start all with the same",
        ),
        (("other.txt", "0.5"), differs.format(text, 0, ""), differs.format(text, 1, "")),
        (("missing.txt", "0.5"), missing, missing),
    ]
    (unused, *ports), expected = free_ports(1 + len(wrong)), []
    for (second, *messages), port in zip(wrong, ports, strict=True):
        for rank, (file, rate) in enumerate((("text.txt", "0.5"), second)):
            options = (*SMALL[1:], "--learning-rate", rate, *DISTRIBUTED, f"127.0.0.1:{port}")
            process = start("train", file, *options, "--process-id", rank, "--out", f"run{port}")
            expected.append((process, messages[rank]))
    options = (*SMALL, *DISTRIBUTED, f"127.0.0.1:{unused}", "--process-id", "1", "--timeout", "2")
    started = time.monotonic()
    answer = wait_for(start("train", *options, "--out", "third"))
    assert time.monotonic() - started < 15
    assert_mistake(*answer, f"cannot be reached at 127.0.0.1:{unused} within 2 s")
    for process, message in expected:
        assert_mistake(*wait_for(process), message)
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "other.txt"}


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


MISTAKES = {  # all fail before the first computation, so one process can run them all
    ("--devices", "0"): "devices must be at least 1, got 0",
    ("--process-id", "1"): "--process-id is for --distributed: add that, or leave --process-id out",
    ("--distributed", "--coordinator", "127.0.0.1:1"): "needs --processes, --process-id too",
    (*DISTRIBUTED, "127.0.0.1:1", "--process-id", "2"): "must lie in 0 … 1 of 2, got 2",
    (*DISTRIBUTED, "127.0.0.1:1", "--process-id", "-1"): "must lie in 0 … 1 of 2, got -1",
    (*DISTRIBUTED, "nonsense", "--process-id", "1"): "must be HOST:PORT, got 'nonsense'",
    ("--devices", "64"): f"devices must lie in 1 … {os.cpu_count()}, the cores here, got 64",
}


@several_cores
def test_impossible_arguments_are_answered_in_one_line(start, tmp_path):
    rows = start("train", *SMALL, "--batch-size", "31", "--devices", "2", "--out", "run")
    many = start(program=("-c", RUN_COMMANDS))
    commands = json.dumps([("train", *SMALL, *arguments, "--out", "run") for arguments in MISTAKES])
    answers, errors = many.communicate(commands, timeout=TIMEOUT)
    for (status, _, stderr), message in zip(json.loads(answers), MISTAKES.values(), strict=True):
        assert_mistake(status, stderr.splitlines(), message)
    assert errors == ""
    assert_mistake(*wait_for(rows), "use a batch size of 30 or 32")
    assert not (tmp_path / "run").exists()
