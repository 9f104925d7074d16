"""Atomic writes: a file is written completely or not at all, even if the machine loses power."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

TEMPORARY = re.compile(r"\.jaxrnn-\w+\.part")  # the name of a file until it is complete


@contextmanager
def written(file: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing, which replaces `file` when the context ends.

    The temporary file is in the same folder. It is synchronised with the disk (fsync) and renamed,
    and then the folder is synchronised. If writing fails, the temporary file is removed and an
    older `file` is unchanged.
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
    """Write a file atomically."""
    with written(file) as out:
        out.write(content.encode() if isinstance(content, str) else content)


def sync(folder: Path) -> None:
    """Wait until the entries of a folder are on disk (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _umask() -> int:
    """Return the file mode creation mask of the process, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
