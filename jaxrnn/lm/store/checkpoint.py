"""Checkpoints: any pytree in one safetensors file, with a checksum over the whole file.

The metadata of the file has one entry, "jaxrnn": a checksum, a space, and a JSON object. The
checksum is the SHA-256 in hexadecimal of the file with zeros in place of the checksum itself. Each
leaf is stored under its name, such as "params.cells[0].W_xh". Nothing in a checkpoint is unpickled
or used as a path.
"""

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from jaxrnn import atomic
from jaxrnn.tree import by_name

FORMAT = 1  # the format that this version writes; it also reads all earlier ones
MOST_ARRAYS = 50_000  # more than any gradient rule needs for 1,000 layers
MOST_HEADER = 10**8  # the limit of safetensors in bytes for names, shapes and metadata
_MARK = re.compile(rb'"jaxrnn":"([0-9a-f]{64}) ')
_ZEROS = b"0" * 64


class DamagedError(ValueError):
    """A file that is not a checkpoint or is damaged."""


class Checkpoint(NamedTuple):
    """An opened checkpoint, whose checksum is right. Its arrays are read by `restore`.

    Attributes:
        file: the path of the file.
        about: the metadata that `save` was given.
        shapes: the shapes and dtypes of the leaves, by name.
    """

    file: Path
    about: dict[str, Any]
    shapes: dict[str, jax.ShapeDtypeStruct]


def save(file: Path, tree: Any, about: dict[str, Any]) -> None:
    """Save a pytree and its metadata to a file, atomically.

    Args:
        file: the path of the file.
        tree: the pytree, whose leaves are arrays or random keys.
        about: the metadata, which must be convertible to JSON.

    Raises:
        OSError: if the file cannot be written; an older file is then unchanged.
        ValueError: if the metadata is too large to be read again.
    """
    arrays = {name: np.asarray(_data(leaf), order="C") for name, leaf in by_name(tree).items()}
    metadata = json.dumps({"format": FORMAT} | about)
    content = memoryview(serialize(arrays, {"jaxrnn": f"{_ZEROS.decode()} {metadata}"}))
    if int.from_bytes(content[:8], "little") > MOST_HEADER:
        raise ValueError(
            f"the metadata of the checkpoint takes {len(metadata):,} bytes, more than can be read "
            f"again: use a smaller vocabulary, or fewer models or evaluations"
        )
    mark = _MARK.search(content)
    assert mark is not None
    checksum = hashlib.sha256(content).hexdigest().encode()
    with atomic.written(file) as out:
        for part in (content[: mark.start(1)], checksum, content[mark.end(1) :]):
            out.write(part)


def load(file: Path) -> Checkpoint:
    """Open a checkpoint and check its checksum, without reading the whole file into memory.

    Raises:
        DamagedError: if the file is not a checkpoint or is damaged.
        ValueError: if a newer version wrote the file.
    """
    _check_sum(file)
    try:
        with _opened(file) as arrays:
            about = json.loads(arrays.metadata()["jaxrnn"][len(_ZEROS) + 1 :])
            slices = {name: arrays.get_slice(name) for name in arrays.keys()}  # noqa: SIM118
        shapes = {
            name: jax.ShapeDtypeStruct(tuple(stored.get_shape()), _DTYPES[stored.get_dtype()])
            for name, stored in slices.items()
        }
        version = about["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{file} has no valid metadata") from error
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(
            f"{file} was made by a newer jaxrnn, in format {version!r}, and this one reads formats "
            f"up to {FORMAT}: pip install --upgrade jaxrnn"
        )
    return Checkpoint(file, about, shapes)


def restore(checkpoint: Checkpoint, like: Any, part: str = "") -> Any:
    """Read the pytree of a checkpoint, or a part of it.

    Args:
        checkpoint: an opened checkpoint.
        like: a pytree of arrays or shapes (`jax.eval_shape`) with the structure, shapes and dtypes
            to read.
        part: the name of the part to read, such as "params"; default the whole pytree.

    Raises:
        ValueError: if a leaf is not in the checkpoint, or has another shape or dtype there; nothing
            is allocated then.
    """
    expected = {f"{part}.{name}".lstrip("."): leaf for name, leaf in by_name(like).items()}
    for name, leaf in expected.items():
        data, stored = jax.eval_shape(_data, leaf), checkpoint.shapes.get(name)
        if stored is None:
            raise ValueError(
                f"{checkpoint.file} holds no {name}: it is of another rule, optimiser or network; "
                f"resume it with the same rule, optimiser and network"
            )
        if (stored.shape, stored.dtype) != (data.shape, data.dtype):
            raise ValueError(
                f"{name} in {checkpoint.file} is {stored.dtype} of shape {stored.shape}, but "
                f"{data.dtype} of shape {data.shape} is needed: it is of another rule, optimiser, "
                f"network or precision"
            )
    with _opened(checkpoint.file) as arrays:
        leaves = [_leaf(arrays.get_tensor(name), leaf) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


_DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{bits}": np.dtype(f"{name}{bits}") for kind, name, bits in (
        ("F", "float", 16), ("F", "float", 32), ("F", "float", 64),
        ("I", "int", 8), ("I", "int", 16), ("I", "int", 32), ("I", "int", 64),
        ("U", "uint", 8), ("U", "uint", 16), ("U", "uint", 32), ("U", "uint", 64),
    )},
}  # fmt: skip


def _is_key(leaf: Any) -> bool:
    """Return whether a leaf is an array of random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    """Return the data of a random key; return any other leaf unchanged."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _leaf(data: np.ndarray, like: Any) -> jax.Array:
    """Convert stored data to an array, or to a random key if `like` is one."""
    array = jnp.array(data)
    return jax.random.wrap_key_data(array) if _is_key(like) else array


def _check_sum(file: Path) -> None:
    """Raise `DamagedError` unless the sizes in the file are possible and its checksum is right.

    The sizes are checked first, before anything is allocated.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise DamagedError(f"{file} is damaged: it is not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        available, length = status.st_size - 8, int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(available, MOST_HEADER):
            raise DamagedError(f"{file} is damaged: it is not a checkpoint, or it is truncated")
        header = length.to_bytes(8, "little") + stream.read(length)
        if header.count(b'"data_offsets"') > MOST_ARRAYS:
            raise DamagedError(f"{file} is damaged: it holds more than {MOST_ARRAYS:,} arrays")
        mark = _MARK.search(header)
        if mark is None:
            raise DamagedError(f"{file} is damaged: it has no checksum")
        digest = hashlib.sha256(header[: mark.start(1)] + _ZEROS + header[mark.end(1) :])
        while block := stream.read(2**16):
            digest.update(block)
    if digest.hexdigest().encode() != mark[1]:
        raise DamagedError(f"{file} is damaged: its checksum does not match its content")


def _opened(file: Path) -> Any:
    """Open a safetensors file; convert its errors to `DamagedError`."""
    try:
        return safe_open(file, framework="np")
    except SafetensorError as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
