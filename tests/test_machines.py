"""A run is the same on one device, on several, and in several processes of which some are killed.

The commands are a person's, in processes of their own that meet on the loopback. To start them is
what takes time: each test starts what it needs once, side by side.
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

import numpy as np
import pytest
from cases import assert_equal
from safetensors.numpy import load_file
from test_command import RUN_COMMANDS

from jaxrnn.lm.store import checkpoint
from jaxrnn.lm.store import directory as folder

TEXT = "to be or not to be, that is the question:\nwhether 'tis nobler in the mind\n" * 12
SMALL = ("text.txt", "--hidden-size", "8", "--batch-size", "8", "--length", "8")
HOW = ("--schedule", "constant", "--evaluate-every", "50")
PATIENCE = 120  # seconds within which whatever was started must end
JOIN = {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}

several_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a device is a core")
finds_ranks = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="ranks are found through /proc"
)

pytestmark = pytest.mark.process

Command = subprocess.Popen[str]
Begin = Callable[..., Command]
MARK = "STARTED_BY_TEST"  # a variable that all processes of a command have, each with its value
marks: dict[int, str] = {}  # of the commands, by their process ids


@contextmanager
def commands(place: Path) -> Iterator[Begin]:
    """Begin commands in a folder that has a text; in the end whatever still runs is killed."""
    (place / "text.txt").write_text(TEXT)
    environment = {name: value for name, value in os.environ.items() if name not in JOIN}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    begun: list[Command] = []

    def begin(*arguments: object, program: tuple[str, ...] = ("-m", "jaxrnn.cli")) -> Command:
        mark = f"{place}:{len(begun)}"
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=place,
            env=environment | {MARK: mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal of its own, or none
        )
        begun.append(process)
        marks[process.pid] = mark
        return process

    try:
        yield begin
    finally:
        for process in begun:
            process.kill()
            for each in left_of(process):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            with process:
                pass


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    with commands(tmp_path) as begin:
        yield begin


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Return a run of 100 steps by one process, beside which lies what it compiled."""
    place = tmp_path_factory.mktemp("alone")
    with commands(place) as begin:
        keep = ("--compilation-cache", "compiled")
        succeeded(begin("train", *SMALL, *HOW, "--steps", "100", *keep, "--out", "run"))
    return place / "run"


def ended(process: Command) -> tuple[int, list[str]]:
    """Wait for a command and all that it started; return its status and the lines of stderr."""
    _, said = process.communicate(timeout=PATIENCE)
    assert not left_of(process)
    return process.returncode, said.splitlines()


def left_of(command: Command) -> list[int]:
    """List the processes that a command has started, itself included, as far as they still run."""
    return [number for number, variables in environments() if marks[command.pid] == variables[MARK]]


def environments() -> Iterator[tuple[int, dict[str, str]]]:
    """Iterate over the processes that tests have started: their ids and variables."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            lines = (place / "environ").read_text().split("\0")
            variables = dict(line.split("=", 1) for line in lines if "=" in line)
            if MARK in variables:
                yield int(place.name), variables


def succeeded(*processes: Command) -> None:
    for process in processes:
        status, said = ended(process)
        assert status == 0, said


def kill_amid(process: Command, run: Path, step: int, rank: int, *, hangs: bool = False) -> None:
    """Kill a rank, by SIGKILL, when the run has recorded so many steps.

    And when the last of them is in no checkpoint yet: for as long as it takes to see that, and to
    kill, the first rank, which writes, is stopped; and for ever if it hangs.
    """
    until = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        if len(told(run, "loss")) >= step:
            there = ranks(process.pid)
            os.kill(there[0], signal.SIGSTOP)
            ahead = len(told(run, "loss")) > last(run)[2]["step"]
            if ahead:
                os.kill(there[rank], signal.SIGKILL)
            if not (ahead and hangs):
                with suppress(ProcessLookupError):  # it was this one
                    os.kill(there[0], signal.SIGCONT)
            if ahead:
                return
        time.sleep(0.01)


def ranks(supervisor: int) -> dict[int, int]:
    """Find the processes that a supervisor has started: from ranks to their process ids."""
    return {
        int(variables["JAX_PROCESS_ID"]): number
        for number, variables in environments()
        if variables[MARK] == marks[supervisor] and "JAX_PROCESS_ID" in variables
    }


def told(run: Path, name: str) -> np.ndarray:
    return np.array([each[name] for each in folder.metrics(run) if name in each])


def assert_told_the_same(run: Path, expected: Path) -> None:
    assert [each.keys() for each in folder.metrics(run)] == [
        each.keys() for each in folder.metrics(expected)
    ]
    for name in ("loss", "grad_norm", "held_out"):
        np.testing.assert_allclose(told(run, name), told(expected, name), rtol=1e-5, err_msg=name)


def last(run: Path) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Return the last checkpoint: its name, its arrays, and what it is about."""
    *_, file = sorted((run / "checkpoints").iterdir())
    return file.name, load_file(file), checkpoint.load(file).about


def devices(run: Path) -> str:
    return last(run)[2]["made with"]["devices"]


# What does not change a run


def test_four_processes_have_the_losses_of_one(begin, alone, tmp_path):
    many = ("--processes", "4", "--compilation-cache", alone.with_name("compiled"))
    succeeded(begin("train", *SMALL, *HOW, "--steps", "100", *many, "--out", "four"))
    assert (devices(alone), devices(tmp_path / "four")) == ("1", "4")
    assert len(told(alone, "loss")) == 100
    assert_told_the_same(tmp_path / "four", alone)
    assert_equal(last(tmp_path / "four")[1], last(alone)[1], 1e-5)


@several_cores
@finds_ranks
def test_a_run_that_lost_a_process_goes_on_wherever_it_is_resumed(begin, alone, tmp_path):
    """Without restarts the command says that it failed, and ends what hangs.

    One process, or two devices, go on.
    """
    keep = ("--compilation-cache", alone.with_name("compiled"))
    lost = ("--steps", "40", "--save-every", "0", "--processes", "2", "--restarts", "0")
    killed = begin("train", *SMALL, *HOW, *lost, *keep, "--out", "one")
    kill_amid(killed, tmp_path / "one", 5, rank=1, hangs=True)
    status, said = ended(killed)
    assert status not in (0, 2), said
    assert not [line for line in said if "start again" in line]
    assert 0 < last(tmp_path / "one")[2]["step"] < 40
    assert devices(tmp_path / "one") == "2"
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    succeeded(
        begin("resume", "one", "--steps", "100", *keep),
        begin("resume", "two", "--steps", "100", *keep, "--devices", "2"),
    )
    assert (devices(tmp_path / "one"), devices(tmp_path / "two")) == ("1", "2")
    for run in (tmp_path / "one", tmp_path / "two"):
        assert last(run)[0] == last(alone)[0]
        assert_equal(last(run)[1], last(alone)[1], 1e-5)
        np.testing.assert_allclose(told(run, "loss"), told(alone, "loss"), rtol=1e-5)


@finds_ranks
def test_killed_processes_leave_no_trace(begin, tmp_path):
    """Process 1, and in the run that then goes on process 0: the same bytes, and no step twice."""
    how = ("--steps", "60", "--evaluate-every", "30", "--save-every", "0", "--processes", "2")
    keep = ("--compilation-cache", "compiled")
    whole, killed = (tmp_path / out for out in ("whole", "killed"))
    undisturbed, disturbed = (
        begin("train", *SMALL, *how, *keep, "--out", run.name) for run in (whole, killed)
    )
    kill_amid(disturbed, killed, 5, rank=1)
    kill_amid(disturbed, killed, 25, rank=0)
    status, said = ended(disturbed)
    assert status == 0, said
    restarts = [line for line in said if "start again from the last checkpoint" in line]
    assert len(restarts) == 2, said
    assert "(1 of at most 3 restarts)" in restarts[0]
    assert "(2 of at most 3 restarts)" in restarts[1]
    succeeded(undisturbed)
    assert (devices(whole), devices(killed)) == ("2", "2")
    name, arrays, about = last(killed)
    expected_name, expected, about_expected = last(whole)
    assert (name, about["history"]) == (expected_name, about_expected["history"])
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


ON_BOTH = """
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
def test_two_devices_have_the_losses_of_one(begin, tmp_path):
    """Of a stream; of lines, of which some are longer; and of two models at once."""
    succeeded(begin(program=("-c", ON_BOTH)))
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
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are deaf to it
python, program, sys.executable = sys.executable, sys.argv[1], "./program"
pathlib.Path("program").write_text(f"#!{python} -S\\n{program}")
pathlib.Path("program").chmod(0o755)
sys.exit(launch.watch(distributed.Machines(processes=2), list))
"""
PROGRAM = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, {})
open("started", "a").write("!")
while True:
    signal.pause()
"""


def supervised(begin: Begin, place: Path, handler: str) -> Command:
    """Start a supervisor of two processes that are no runs, but handle signals in some way."""
    supervisor = begin(PROGRAM.format(handler), program=("-c", SUPERVISOR))
    wait_until(lambda: started_in(place) == 2)
    return supervisor


def started_in(place: Path) -> int:
    return len((place / "started").read_text()) if (place / "started").exists() else 0


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


STOPPING = ["SIGINT", "SIGTERM", "SIGHUP"]


@pytest.mark.parametrize("name", STOPPING)
def test_a_supervisor_that_was_told_to_stop_starts_nothing_again(name, begin, tmp_path):
    """Also if its processes fail then, as they do when a signal comes while they import."""
    supervisor = supervised(begin, tmp_path, "lambda *_: sys.exit(1)")
    supervisor.send_signal(signal.Signals[name])
    assert ended(supervisor) == (128 + signal.Signals[name], ["jaxrnn: stopped"])
    assert started_in(tmp_path) == 2


@pytest.mark.parametrize("name", STOPPING)
def test_a_second_signal_ends_all_processes_at_once(name, begin, tmp_path):
    supervisor = supervised(begin, tmp_path, "signal.SIG_IGN")
    supervisor.send_signal(signal.Signals[name])
    time.sleep(0.5)
    assert supervisor.poll() is None
    supervisor.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert ended(supervisor)[0] == 128 + signal.Signals[name]
    assert time.monotonic() - begun < 5
    assert started_in(tmp_path) == 2


IGNORED = """
import gc, signal, sys, time
from jaxrnn.cli import main as cli

def sleep():
    gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT) if gc.callbacks.pop() else 0)
    gc.collect()
    time.sleep(60)
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
cli._parsed = lambda arguments: sleep
cli.main()
"""


def test_an_interrupt_amid_the_garbage_collectors_callback_is_not_lost(begin):
    """Python itself ignores it: the command would go on."""
    begun = time.monotonic()
    assert ended(begin(program=("-c", IGNORED))) == (128 + signal.SIGINT, ["jaxrnn: stopped"])
    assert time.monotonic() - begun < 40


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
def test_signals_of_a_terminal_and_a_supervisors_death_save_every_step(begin, tmp_path):
    """Ctrl-C, which all that runs there gets; a terminal that is closed; and Ctrl-\\.

    Nothing else saves within the time that this takes, and nobody is left.
    """
    how = ("-m", "jaxrnn.cli", "train", *SMALL, *ENDLESS, "--processes", "2")
    keep = ("--compilation-cache", "compiled")
    runs = {
        "\x03": (128 + signal.SIGINT, "go on with: jaxrnn resume run0"),
        "close": (128 + signal.SIGHUP, ""),
        "\x1c": (-signal.SIGQUIT % 256, ""),
    }
    begun = {
        key: begin(key, *how, *keep, "--out", f"run{number}", program=("-c", ON_A_TERMINAL))
        for number, key in enumerate(runs)
    }
    for number, (key, (status, message)) in enumerate(runs.items()):
        said, _ = begun[key].communicate(timeout=PATIENCE)
        assert (begun[key].returncode, message in said) == (status, True), said
        begun_at = time.monotonic()
        wait_until(lambda command=begun[key]: not left_of(command))
        assert time.monotonic() - begun_at < 10
        run = tmp_path / f"run{number}"
        assert last(run)[2]["step"] == len(told(run, "loss")) > 0


# Mistakes


def assert_said(status: int, lines: list[str], message: str) -> None:
    """Assert that a command ended as it does for a mistake, with one line that says so."""
    assert status == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("jaxrnn: ")
    assert message in lines[0]


MEET = ("--distributed", "--processes", "2", "--coordinator")


def test_processes_that_do_not_agree_all_say_so(begin, tmp_path):
    """Of two processes the second is told something else; and a third finds no first."""
    (tmp_path / "other.txt").write_text(TEXT + "!")
    differs = "the processes do not agree on the {}: 1 differ from 0; here, in {}, it is {}"
    option, text = "option learning_rate", "text, by its SHA-256"
    missing = "process 1: cannot read missing.txt: No such file or directory"
    wrong = [  # what process 1 is told, and what both say
        (
            ("text.txt", "0.01"),
            differs.format(option, 0, 0.5) + ": start all with the same",
            differs.format(option, 1, 0.01) + ": start all with the same",
        ),
        (("other.txt", "0.5"), differs.format(text, 0, ""), differs.format(text, 1, "")),
        (("missing.txt", "0.5"), missing, missing),
    ]
    (nobody, *ports), asked = free_ports(1 + len(wrong)), []
    for (second, *messages), port in zip(wrong, ports, strict=True):
        for rank, (file, rate) in enumerate((("text.txt", "0.5"), second)):
            how = (*SMALL[1:], "--learning-rate", rate, *MEET, f"127.0.0.1:{port}")
            said = begin("train", file, *how, "--process-id", rank, "--out", f"run{port}")
            asked.append((said, messages[rank]))
    how = (*SMALL, *MEET, f"127.0.0.1:{nobody}", "--process-id", "1", "--timeout", "2")
    begun = time.monotonic()
    answer = ended(begin("train", *how, "--out", "third"))
    assert time.monotonic() - begun < 15
    assert_said(*answer, f"cannot be reached at 127.0.0.1:{nobody} within 2 s")
    for process, message in asked:
        assert_said(*ended(process), message)
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "other.txt"}


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


MISTAKES = {  # none comes as far as to compute something, so that one process can make them all
    ("--devices", "0"): "devices must be at least 1, got 0",
    ("--process-id", "1"): "--process-id is for --distributed: add that, or leave --process-id out",
    ("--distributed", "--coordinator", "127.0.0.1:1"): "needs --processes, --process-id too",
    (*MEET, "127.0.0.1:1", "--process-id", "2"): "must lie in 0 … 1 of 2, got 2",
    (*MEET, "127.0.0.1:1", "--process-id", "-1"): "must lie in 0 … 1 of 2, got -1",
    (*MEET, "nonsense", "--process-id", "1"): "must be HOST:PORT, got 'nonsense'",
    ("--devices", "64"): f"devices must lie in 1 … {os.cpu_count()}, the cores here, got 64",
}


@several_cores
def test_what_cannot_be_is_answered_in_one_line(begin, tmp_path):
    rows = begin("train", *SMALL, "--batch-size", "31", "--devices", "2", "--out", "run")
    many = begin(program=("-c", RUN_COMMANDS))
    asked = json.dumps([("train", *SMALL, *arguments, "--out", "run") for arguments in MISTAKES])
    answers, beside = many.communicate(asked, timeout=PATIENCE)
    for (status, _, said), message in zip(json.loads(answers), MISTAKES.values(), strict=True):
        assert_said(status, said.splitlines(), message)
    assert beside == ""
    assert_said(*ended(rows), "use a batch size of 30 or 32")
    assert not (tmp_path / "run").exists()
