"""Devices and processes: set up JAX for one process, several on this machine, or a cluster.

The settings apply to the whole process and must be made before JAX's first computation. Therefore
only the command makes them, never the library.

With `--processes` the command is a supervisor: it starts the training processes and does not train
itself. Each training process runs in a session of its own, so that Ctrl-C and the closing of a
terminal reach only the supervisor. The supervisor then asks each process once to save and exit.
Each process also reads from a pipe that only the supervisor holds open for writing. The pipe closes
when the supervisor ends, even by SIGKILL. A process that sees the pipe close saves and exits.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrnn.cli.flags import flag
from jaxrnn.lm.run.placement import all_gather
from jaxrnn.training.sharding import make_mesh

HEARTBEAT = 10  # seconds without a heartbeat of one process after which the others exit
MISTAKE, LOST = 2, 75  # exit statuses: the user's mistake; another process was lost
STOPPING = tuple(  # the signals that save and end a run, as far as the system has them
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if name in signal.Signals.__members__
)
_ORPHANED = 5  # seconds that a process has to save after its supervisor has ended
LIFELINE = "JAXRNN_SUPERVISOR"  # environment variable: the descriptor of the supervisor's pipe
_MESSAGE_BYTES = 256  # length of an error message that is sent to all processes
Result = TypeVar("Result")


@dataclass(frozen=True)
class Machines:
    """The devices and processes to run on. Results on several devices are equal up to rounding.

    Devices and processes:
        devices: Devices of each process, among which the rows of a batch are divided; on a CPU at
            most one for each core (default: 1 on a CPU, all of them on GPUs).
        processes: Number of processes. Without --distributed all of them run on this machine, and
            are restarted from the last checkpoint when one dies (default: 1).
        distributed: Run as one of several processes, on this machine or others, which read the same
            text and write the same run folder. On clusters that JAX detects (Slurm, MPI, …) no
            other option is needed.
        coordinator: The first process, to which the others connect (default: the environment
            variable JAX_COORDINATOR_ADDRESS).
        process_id: Index of this process, from 0 (default: the environment variable
            JAX_PROCESS_ID).
        timeout: Seconds to wait for the other processes (default: 60).
        restarts: Maximum number of restarts with --processes (default: 3).
        compilation_cache: Keep compiled programs in this folder, which makes the next start faster.
    """

    devices: int | None = None
    processes: int | None = None
    distributed: bool = False
    coordinator: Annotated[str | None, "HOST:PORT"] = None
    process_id: int | None = None
    timeout: int = 60
    restarts: int = 3
    compilation_cache: Annotated[Path | None, "FOLDER"] = None

    @property
    def supervises(self) -> bool:
        """Whether this process is the supervisor of the others."""
        return self.processes is not None and not self.distributed


def set_up(machines: Machines) -> Mesh | None:
    """Set up JAX, and return a mesh of the devices, or None for a single device.

    A process that was started by a supervisor from now on exits when the supervisor ends.

    Raises:
        ValueError: if options contradict each other, there are fewer devices than requested, or
            the other processes cannot be reached.
    """
    lifeline = os.environ.pop(LIFELINE, None)
    if lifeline is not None:
        _exit_with_supervisor(int(lifeline))
    check(machines)
    if machines.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(machines.compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    wanted, cores = machines.devices, os.cpu_count() or 1
    if wanted is not None and wanted > 1:
        jax.config.update("jax_num_cpu_devices", min(wanted, cores))
    if machines.distributed or (wanted or 1) > 1:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if machines.distributed:
        # JAX's own service would swallow a SIGTERM that arrives before training handles it.
        jax.config.update("jax_enable_preemption_service", False)
        _join(machines)
    available = jax.local_device_count()
    if wanted is not None and wanted > available:
        what = "cores" if jax.default_backend() == "cpu" else "devices"
        raise ValueError(f"devices must lie in 1 … {available}, the {what} here, got {wanted}")
    if machines.distributed:
        if wanted not in (None, available):
            raise ValueError(
                f"with --distributed, devices must be all {available} that are here, got {wanted}"
            )
        return make_mesh()
    number = available if wanted is None else wanted
    return make_mesh(number) if number > 1 else None


def together(make: Callable[[], Result]) -> Result:
    """Return `make()`, called in every process; if it fails in one process, raise in all of them.

    Raises:
        ValueError: with the message of the first process that failed.
    """
    result, error_text = None, ""
    try:
        result = make()
    except (ValueError, OSError) as error:
        if jax.process_count() == 1:
            raise
        error_text = str(error)
    messages = all_gather(list(error_text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES)))
    for rank, message in enumerate(messages):
        text = bytes(message.astype(np.uint8)).decode(errors="replace").strip()
        if text:
            raise ValueError(f"process {rank}: {text}")
    assert result is not None
    return result


def agree(settings: Mapping[str, object]) -> None:
    """Check that all processes have the same settings.

    Raises:
        ValueError: in all processes, with the name of the first setting that differs and its value
            in this process.
    """
    values = settings.values()
    digests = [hashlib.sha256(json.dumps(value).encode()).digest()[:4] for value in values]
    gathered = all_gather([int.from_bytes(digest, "little", signed=True) for digest in digests])
    for number, (name, value) in enumerate(settings.items()):
        others = np.flatnonzero(gathered[:, number] != gathered[0, number])
        if len(others):
            ranks = ", ".join(map(str, others.tolist()))
            raise ValueError(
                f"the processes do not agree on the {name}: {ranks} differ from 0; here, in "
                f"{jax.process_index()}, it is {value}: start all with the same"
            )


@contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """Record SIGINT, SIGTERM and SIGHUP instead of exiting, so that a run can save first.

    A second signal raises `KeyboardInterrupt` with the number of the first signal. SIGHUP stays
    ignored if it was ignored before, as `nohup` requires.

    Returns:
        A list, to which the number of each signal is appended when it arrives.
    """
    signals: list[int] = []
    terminals = [output for output in (1, 2) if os.isatty(output)]

    def record(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if number == getattr(signal, "SIGHUP", None):  # the terminal is closed: writing would fail
            for output in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        if len(signals) > 1:
            raise KeyboardInterrupt(signals[0])

    def under_nohup(number: signal.Signals) -> bool:
        return number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN

    handled = [number for number in STOPPING if not under_nohup(number)]
    previous = {number: signal.signal(number, record) for number in handled}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def repeat_interrupt(ignored: "sys.UnraisableHookArgs") -> None:
    """Send SIGINT again if Python ignored a `KeyboardInterrupt`; otherwise do what Python does.

    This is a `sys.unraisablehook`. Python ignores exceptions that are raised during a callback of
    the garbage collector. JAX registers such a callback, so an interrupt can be lost in it.
    """
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(ignored)


def lost(error: BaseException) -> bool:
    """Return whether the error means that another process of the run was lost."""
    return jax.distributed.is_initialized() and "gloo" in str(error).lower()


def _exit_with_supervisor(lifeline: int) -> None:
    """Send this process SIGTERM when its supervisor ends, and kill it a few seconds later.

    Args:
        lifeline: the descriptor of a pipe that only the supervisor holds open for writing.
    """
    os.set_inheritable(lifeline, False)

    def wait() -> None:
        os.read(lifeline, 1)  # returns when the pipe is closed, since nothing is ever written
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHANED)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def check(machines: Machines) -> None:
    """Raise `ValueError` for options that are out of range or contradict each other."""
    for name in ("devices", "processes", "timeout"):
        value = getattr(machines, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if machines.restarts < 0:
        raise ValueError(f"restarts must be at least 0, got {machines.restarts}")
    if not machines.distributed:
        for name in ("coordinator", "process_id"):
            if getattr(machines, name) is not None:
                raise ValueError(
                    f"{flag(name)} is for --distributed: add that, or leave {flag(name)} out"
                )


def _join(machines: Machines) -> None:
    """Connect to the other processes."""
    address = machines.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    number = _or_environment(machines.processes, "JAX_NUM_PROCESSES")
    rank = _or_environment(machines.process_id, "JAX_PROCESS_ID")
    settings: dict[str, Any] = {}
    if address is not None and number is not None and rank is not None:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise ValueError(f"--coordinator must be HOST:PORT, got {address!r}")
        if not 0 <= rank < number:
            raise ValueError(f"--process-id must lie in 0 … {number - 1} of {number}, got {rank}")
        settings = {"cluster_detection_method": "deactivate", "coordinator_bind_address": address}
        _wait_for(host, int(port), rank, machines.timeout)
    elif (address, number, rank) != (None, None, None):
        given = {"--coordinator": address, "--processes": number, "--process-id": rank}
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise ValueError(f"--distributed needs {missing} too")
    try:
        jax.distributed.initialize(
            address,
            number,
            rank,
            initialization_timeout=machines.timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=2 * HEARTBEAT,
            **settings,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the processes did not connect within {machines.timeout} s ({reason}): give each of "
            f"them --coordinator HOST:PORT, --processes and --process-id, or use a cluster that "
            f"JAX detects"
        ) from error
    with _discarded_stdout():  # gloo reports each connection there, at the first communication
        all_gather([0])


@contextmanager
def _discarded_stdout() -> Iterator[None]:
    """Discard what this process, and not only Python, writes to stdout."""
    sys.stdout.flush()
    stdout, discarded = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(discarded, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(discarded)


def _or_environment(value: int | None, variable: str) -> int | None:
    """Return the value, or if it is None the environment variable."""
    default = os.environ.get(variable)
    return value if value is not None or default is None else int(default)


def _wait_for(host: str, port: int, rank: int, timeout: int) -> None:
    """Wait until process 0 can be reached, since JAX would kill this process otherwise."""
    until = time.monotonic() + timeout
    while rank:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"process 0 cannot be reached at {host}:{port} within {timeout} s "
                    f"({error}): is it running, and is the address right?"
                ) from error
            time.sleep(0.1)
