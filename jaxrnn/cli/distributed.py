"""Devices and processes: one process, several processes on this machine, or a cluster.

What is set here is JAX's for the whole process and must be set before its first computation, so the
command does it and the library never.

With `--processes` the command becomes a supervisor that starts the others and trains nothing
itself. The others live in a session of their own, so that a terminal's Ctrl-C and its closing reach
the supervisor alone, which then asks each of them once to save and end. Each also reads from a pipe
that only the supervisor can write to. However the supervisor ends, by SIGKILL too, the pipe then
closes, and whoever still reads from it saves and ends.
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
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrnn.lm.run.placement import all_gather
from jaxrnn.training.sharding import make_mesh

HEARTBEAT = 10  # seconds without a sign of a process's life after which the others end
MISTAKE, LOST = 2, 75  # a command's status: somebody's mistake; another process is gone
STOPPING = tuple(  # what saves and ends a run, where the system has it
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if name in signal.Signals.__members__
)
_ORPHANED = 5  # seconds that a process has to save when its supervisor is gone
LIFELINE = "JAXRNN_SUPERVISOR"  # the descriptor of a pipe that closes when the supervisor ends
_SAID = 256  # bytes of a message that all processes are told
Made = TypeVar("Made")


@dataclass(frozen=True)
class Machines:
    """On what to run. Results on more than one device are equal to rounding."""

    devices: int | None = None
    """Devices of each process, that share the rows of a batch: default 1 on a CPU, where each is
    best a core, and all that are there on GPUs."""
    processes: int | None = None
    """Run as so many processes: all on this machine, started again from the last checkpoint when
    one dies; or with --distributed this is one of them."""
    distributed: bool = False
    """Be one of several processes, here or on other machines, which read one text and keep one run
    in the same folder. Clusters that JAX knows (Slurm, MPI, …) need no more."""
    coordinator: str | None = None
    """HOST:PORT of the first process, for the others to meet; default $JAX_COORDINATOR_ADDRESS."""
    process_id: int | None = None
    """Which of the processes this is, from 0; default $JAX_PROCESS_ID."""
    timeout: int = 60
    """Seconds to wait for the other processes."""
    restarts: int = 3
    """How often to start again, with --processes."""
    compilation_cache: Path | None = None
    """Keep compiled programs in this folder, for the next start to be quicker."""

    @property
    def watches(self) -> bool:
        """Whether this process starts and watches the others."""
        return self.processes is not None and not self.distributed


def set_up(machines: Machines) -> Mesh | None:
    """Set JAX up, and return the devices if there is more than one.

    A process that a supervisor has started ends with it from here on.

    Raises:
        ValueError: if something contradicts something else, there are fewer devices than were asked
            for, or the other processes do not come.
    """
    lifeline = os.environ.pop(LIFELINE, None)
    if lifeline is not None:
        _end_with(int(lifeline))
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
        # JAX's own service would swallow a SIGTERM that comes before training handles it.
        jax.config.update("jax_enable_preemption_service", False)
        _join(machines)
    here = jax.local_device_count()
    if wanted is not None and wanted > here:
        what = "cores" if jax.default_backend() == "cpu" else "devices"
        raise ValueError(f"devices must lie in 1 … {here}, the {what} here, got {wanted}")
    if machines.distributed:
        if wanted not in (None, here):
            raise ValueError(f"devices must be all {here} that are here, with --distributed")
        return make_mesh()
    number = here if wanted is None else wanted
    return make_mesh(number) if number > 1 else None


def together(make: Callable[[], Made]) -> Made:
    """Make something in every process; what one of them cannot make, all say.

    Raises:
        ValueError: with the message of the first that failed.
    """
    made, said = None, ""
    try:
        made = make()
    except (ValueError, OSError) as error:
        if jax.process_count() == 1:
            raise
        said = str(error)
    told = all_gather(list(said.encode()[:_SAID].ljust(_SAID)))
    for rank, message in enumerate(told):
        text = bytes(message.astype(np.uint8)).decode(errors="replace").strip()
        if text:
            raise ValueError(f"process {rank}: {text}")
    assert made is not None
    return made


def agree(what: Mapping[str, object]) -> None:
    """Make sure that all processes were told the same.

    Raises:
        ValueError: in all of them, with what differs and the value here.
    """
    digests = [hashlib.sha256(json.dumps(value).encode()).digest()[:4] for value in what.values()]
    told = all_gather([int.from_bytes(digest, "little", signed=True) for digest in digests])
    for number, (name, value) in enumerate(what.items()):
        others = np.flatnonzero(told[:, number] != told[0, number])
        if len(others):
            ranks = ", ".join(map(str, others.tolist()))
            raise ValueError(
                f"the processes do not agree on the {name}: {ranks} differ from 0; here, in "
                f"{jax.process_index()}, it is {value}: start all with the same"
            )


@contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """Record SIGINT, SIGTERM and SIGHUP instead of ending at once, so that a run ends in order.

    A second signal raises `KeyboardInterrupt` with the first one's number. SIGHUP stays ignored
    where it was, as `nohup` has it.

    Returns:
        A list, to which the numbers of the signals are added as they come.
    """
    told: list[int] = []
    terminals = [output for output in (1, 2) if os.isatty(output)]

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if number == getattr(signal, "SIGHUP", None):  # the terminal is gone: a write would fail
            for output in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        if len(told) > 1:
            raise KeyboardInterrupt(told[0])

    def under_nohup(number: signal.Signals) -> bool:
        return number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN

    handled = [number for number in STOPPING if not under_nohup(number)]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def repeat_interrupt(ignored: "sys.UnraisableHookArgs") -> None:
    """Repeat an interrupt that Python has ignored; print what else it ignores, as it would itself.

    A `sys.unraisablehook`. Python ignores what a signal raises amid a callback of its garbage
    collector, and JAX has such a callback.
    """
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(ignored)


def lost(error: BaseException) -> bool:
    """Say whether an error is that another process of the run is gone."""
    return jax.distributed.is_initialized() and "gloo" in str(error).lower()


def _end_with(lifeline: int) -> None:
    """Save and end this process as soon as its supervisor is gone; end it in any case soon after.

    Args:
        lifeline: the descriptor of a pipe at whose other end is the supervisor alone.
    """
    os.set_inheritable(lifeline, False)

    def wait() -> None:
        os.read(lifeline, 1)  # nothing is ever written: it returns when the other end is closed
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
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is for --distributed: say that too, or leave it out")


def _join(machines: Machines) -> None:
    """Meet the other processes."""
    address = machines.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    number = _told(machines.processes, "JAX_NUM_PROCESSES")
    rank = _told(machines.process_id, "JAX_PROCESS_ID")
    how: dict[str, Any] = {}
    if address is not None and number is not None and rank is not None:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise ValueError(f"--coordinator must be HOST:PORT, got {address!r}")
        if not 0 <= rank < number:
            raise ValueError(f"--process-id must lie in 0 … {number - 1} of {number}, got {rank}")
        how = {"cluster_detection_method": "deactivate", "coordinator_bind_address": address}
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
            **how,
        )
    except (RuntimeError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the processes did not meet within {machines.timeout} s ({said}): say --coordinator "
            f"HOST:PORT, --processes and --process-id to each, or use a cluster that JAX knows"
        ) from error


def _told(value: int | None, variable: str) -> int | None:
    found = os.environ.get(variable)
    return value if value is not None or found is None else int(found)


def _wait_for(host: str, port: int, rank: int, timeout: int) -> None:
    """Wait until the first process can be reached; JAX itself would end the process if not."""
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
