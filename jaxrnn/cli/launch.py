"""The supervisor of `--processes`: runs a jaxrnn command as several processes, with restarts."""

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

_GRACE = 3  # seconds that the other processes have to exit by themselves after one has failed


def supervise(machines: Machines, command: Callable[[], Sequence[str]]) -> int:
    """Run a jaxrnn command as several processes, and restart them all when one dies.

    They are not restarted after a mistake in what was typed or given, or once one was told to stop.

    The first SIGINT, SIGTERM or SIGHUP asks all processes to save and exit, and there are no
    restarts after it. The second kills them at once.

    Args:
        machines: the number of processes and of restarts.
        command: returns the arguments of the command. It is called before each start, so that a
            restart can resume from the last checkpoint.

    Returns:
        The exit status of the command, or 128 plus the number of the signal that stopped it.
    """
    check(machines)
    assert machines.processes is not None
    restarts = 0
    with told_to_stop() as signals:
        while True:
            try:
                status = _run_all(machines.processes, command(), signals)
            except KeyboardInterrupt:  # the second signal
                status = -signal.SIGKILL
            if signals:
                if status not in (0, 128 + signal.SIGTERM):  # with these a process has reported it
                    print("jaxrnn: stopped", file=sys.stderr)
                return 128 + signals[0] if status else 0
            stopped = (
                128 < status < 128 + signal.NSIG
            )  # it caught a signal, saved and exited; below 0 it was killed
            if status in (0, MISTAKE) or stopped or restarts == machines.restarts:
                return status if status >= 0 else 128 - status
            restarts += 1
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            print(
                f"jaxrnn: a process ended {how}; all start again from the last checkpoint "
                f"({restarts} of at most {machines.restarts} restarts)",
                file=sys.stderr,
            )


def _run_all(number: int, command: Sequence[str], signals: Sequence[int]) -> int:
    """Run a command as processes that connect over the loopback; end all of them when one fails.

    Args:
        number: the number of processes.
        command: the arguments of the command.
        signals: the signals that this process has received. The first is passed on as SIGTERM.

    Returns:
        0 if all processes exited with 0, otherwise the status of one that did not; minus the
        signal's number if a signal killed it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    end, lifeline = os.pipe()
    environment = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(number)}
    environment |= {LIFELINE: str(end)}
    files = [tempfile.TemporaryFile("w+") for _ in range(1, number)]  # noqa: SIM115
    outputs = [None, *files]  # the first process writes to stderr itself
    processes: list[subprocess.Popen] = []
    status = 0
    try:
        for rank in range(number):
            process = subprocess.Popen(
                [sys.executable, "-m", "jaxrnn.cli", *command, "--distributed"],
                env=os.environ | environment | {"JAX_PROCESS_ID": str(rank)},
                stderr=outputs[rank],
                pass_fds=[end],
                start_new_session=True,
            )
            processes.append(process)
        passed_on = False
        while None in (statuses := [process.poll() for process in processes]) and not any(statuses):
            if signals and not passed_on:
                passed_on = True
                for process in processes:
                    process.terminate()
            time.sleep(0.05)
        _wait_all(processes, _GRACE)
        status = next((status for status in statuses if status), 0)
        return status
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        os.close(lifeline)
        os.close(end)
        for file in files:
            with file:
                if not signals and status < 128:  # the processes failed, and were not stopped
                    _print_errors(file)


def _print_errors(file: IO[str]) -> None:
    """Print the stderr of a process; only jaxrnn's own lines, if there are any."""
    file.seek(0)
    lines = file.readlines()
    ours = [line for line in lines if line.startswith("jaxrnn: ")]
    sys.stderr.writelines(ours or lines)


def _wait_all(processes: Sequence[subprocess.Popen], seconds: float) -> None:
    """Wait until all processes have exited, at most for the given time."""
    until = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.05)
