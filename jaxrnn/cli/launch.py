"""Run a command as several processes on this machine, and again when one of them dies."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO

from jaxrnn.cli.distributed import LIFELINE, MISTAKE, Machines, check, told_to_stop

_LAST_WORDS = 3  # seconds that processes have to end by themselves when one has ended badly


def watch(machines: Machines, command: Callable[[], Sequence[str]]) -> int:
    """Run a command as several processes on this machine, and again when one of them dies.

    The first SIGINT, SIGTERM or SIGHUP asks all processes to save and end, and from then on nothing
    is started again. The second ends them at once.

    Args:
        machines: how many, and how often to start again.
        command: gives the command's arguments: at first, and to go on from the last checkpoint.

    Returns:
        The command's status: 128 and the signal's number if it was told to stop before its end.
    """
    check(machines)
    assert machines.processes is not None
    restarts = 0
    with told_to_stop() as told:
        while True:
            try:
                status = _run_all(machines.processes, command(), told)
            except KeyboardInterrupt:  # the second signal
                status = -signal.SIGKILL
            if told:
                if status not in (0, 128 + signal.SIGTERM):  # else a process has said so
                    print("jaxrnn: stopped", file=sys.stderr)
                return 128 + told[0] if status else 0
            stopped = 128 < status < 128 + signal.NSIG  # somebody told a process, and it told us
            if status in (0, MISTAKE) or stopped or restarts == machines.restarts:
                return status if status >= 0 else 128 - status
            restarts += 1
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            print(
                f"jaxrnn: a process ended {how}; all start again from the last checkpoint "
                f"({restarts} of at most {machines.restarts} restarts)",
                file=sys.stderr,
            )


def _run_all(number: int, command: Sequence[str], told: Sequence[int]) -> int:
    """Run a command as several processes that meet on the loopback; end all when one fails.

    Args:
        number: of processes.
        command: the command's arguments.
        told: the signals that this process has got; the first is passed on, as SIGTERM.

    Returns:
        0 if all ended with it; else the status of one that did not, below 0 if a signal ended it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    end, lifeline = os.pipe()
    where = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(number)}
    where |= {LIFELINE: str(end)}
    others = [tempfile.TemporaryFile("w+") for _ in range(1, number)]  # noqa: SIM115
    said = [None, *others]  # the first says what it has to say itself
    started: list[subprocess.Popen] = []
    try:
        for rank in range(number):
            process = subprocess.Popen(
                [sys.executable, "-m", "jaxrnn.cli", *command, "--distributed"],
                env=os.environ | where | {"JAX_PROCESS_ID": str(rank)},
                stderr=said[rank],
                pass_fds=[end],
                start_new_session=True,
            )
            started.append(process)
        passed_on = False
        while None in (statuses := [process.poll() for process in started]) and not any(statuses):
            if told and not passed_on:
                passed_on = True
                for process in started:
                    process.terminate()
            time.sleep(0.05)
        _wait_all(started, _LAST_WORDS)
        return next((status for status in statuses if status), 0)
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
        os.close(lifeline)
        os.close(end)
        for file in others:
            with file:
                if not told:
                    _repeat(file)


def _repeat(said: IO[str]) -> None:
    """Print what a process said, without what JAX adds when it loses the others."""
    said.seek(0)
    lines = said.readlines()
    ours = [line for line in lines if line.startswith("jaxrnn: ")]
    sys.stderr.writelines(ours or lines)


def _wait_all(processes: Sequence[subprocess.Popen], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.05)
