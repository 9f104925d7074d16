"""Entry point of the command `jaxrnn`, which is also `python -m jaxrnn.cli`.

It lies outside the package because it sets a handler before `import jaxrnn` imports JAX.
"""

import os
import signal
from types import FrameType


def main() -> None:
    """Import and run the command; a Ctrl-C during the import ends it in one line too."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    if interruptible:
        signal.signal(signal.SIGINT, _stop)
    from jaxrnn.cli.main import main as command

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


def _stop(number: int, frame: FrameType | None) -> None:
    """Exit at once. An exception may be lost here, or crash an extension that is half imported."""
    os.write(2, b"jaxrnn: stopped\n")
    os._exit(128 + number)
