"""Files that are there whole or not at all, also when the machine loses power."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

TEMPORARY = re.compile(r"\.jaxrnn-\w+\.part")  # how a file is called until it is whole


@contextmanager
def written(file: Path) -> Iterator[IO[bytes]]:
    """Give a file to write in, which takes its name, in place of an older one, when all is on disk.

    A temporary name in the same folder, fsync, rename, fsync of the folder. If the writing fails
    the older file stands and nothing is left behind.
    """
    with NamedTemporaryFile(
        dir=file.parent, prefix=".jaxrnn-", suffix=".part", delete=False
    ) as out:
        try:
            yield out
            out.flush()
            os.fsync(out.fileno())
            os.chmod(out.name, 0o666 & ~_umask())
            os.replace(out.name, file)
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            raise
    sync(file.parent)


def write(file: Path, content: bytes | str) -> None:
    """Write a whole file."""
    with written(file) as out:
        out.write(content.encode() if isinstance(content, str) else content)


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed left half written."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
