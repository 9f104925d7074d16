"""A checkpoint: any pytree in one safetensors file, with a checksum over the whole of it.

The file's metadata has one entry, "jaxrnn": the SHA-256 of the file, in hexadecimal and with zeros
in its own place, a space, and what the file is about, as JSON. Leaves are stored by their names,
such as "params.cells[0].W_xh". Nothing is ever unpickled, and no path in a file is followed.
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

from jaxrnn.lm.store import atomic as files
from jaxrnn.tree import by_name

FORMAT = 1  # what this version writes; it reads all up to it
MOST_ARRAYS = 50_000  # more than any rule keeps for 1,000 layers
MOST_HEADER = 10**8  # bytes, as safetensors has it: names, shapes and what the file is about
_MARK = re.compile(rb'"jaxrnn":"([0-9a-f]{64}) ')
_ZEROS = b"0" * 64


class DamagedError(ValueError):
    """A file that is not, or no longer, a checkpoint."""


class Checkpoint(NamedTuple):
    """A file whose checksum is right; its arrays are read by `restore`.

    Attributes:
        file: where it lies.
        about: what `save` was told that it is about.
        shapes: of its leaves, by their names.
    """

    file: Path
    about: dict[str, Any]
    shapes: dict[str, jax.ShapeDtypeStruct]


def save(file: Path, tree: Any, about: dict[str, Any]) -> None:
    """Write a pytree and what it is about (JSON) to a file: whole or not at all.

    Raises:
        OSError: if it cannot be written; an older file of this name stands then.
        ValueError: if what it is about is so much that it could not be read again.
    """
    arrays = {name: np.asarray(_data(leaf), order="C") for name, leaf in by_name(tree).items()}
    described = json.dumps({"format": FORMAT} | about)
    content = memoryview(serialize(arrays, {"jaxrnn": f"{_ZEROS.decode()} {described}"}))
    if int.from_bytes(content[:8], "little") > MOST_HEADER:
        raise ValueError(
            f"what the checkpoint is about takes {len(described):,} bytes, more than can be read "
            f"again: use a smaller vocabulary, or fewer models or evaluations"
        )
    found = _MARK.search(content)
    assert found is not None
    checksum = hashlib.sha256(content).hexdigest().encode()
    with files.written(file) as out:
        for part in (content[: found.start(1)], checksum, content[found.end(1) :]):
            out.write(part)


def load(file: Path) -> Checkpoint:
    """Open a checkpoint, having compared its checksum; in memory that does not grow with it.

    Raises:
        DamagedError: if it is not, or no longer, what `save` wrote.
        ValueError: if a newer version wrote it.
    """
    _check_sum(file)
    try:
        with _opened(file) as arrays:
            about = json.loads(arrays.metadata()["jaxrnn"][len(_ZEROS) + 1 :])
            slices = {name: arrays.get_slice(name) for name in arrays.keys()}  # noqa: SIM118
        shapes = {
            name: jax.ShapeDtypeStruct(tuple(found.get_shape()), _DTYPES[found.get_dtype()])
            for name, found in slices.items()
        }
        made_as = about["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{file} does not say what it is about") from error
    if not isinstance(made_as, int) or made_as > FORMAT:
        raise ValueError(
            f"{file} was made by a newer jaxrnn, in format {made_as!r}, and this one reads formats "
            f"up to {FORMAT}: pip install --upgrade jaxrnn"
        )
    return Checkpoint(file, about, shapes)


def restore(checkpoint: Checkpoint, like: Any, part: str = "") -> Any:
    """Read a checkpoint's pytree, or a part of it.

    Args:
        checkpoint: an opened file.
        like: arrays or shapes (`jax.eval_shape`) in the structure that is wanted; all names, shapes
            and dtypes must be the file's.
        part: the name of the part that is wanted alone, such as "params".

    Raises:
        ValueError: if they are not, and says which; nothing is allocated then.
    """
    wanted = {f"{part}.{name}".lstrip("."): leaf for name, leaf in by_name(like).items()}
    for name, leaf in wanted.items():
        data, found = jax.eval_shape(_data, leaf), checkpoint.shapes.get(name)
        if found is None:
            raise ValueError(
                f"{checkpoint.file} holds no {name}: it is of another rule, optimiser or network; "
                f"continue it with what it was made with"
            )
        if (found.shape, found.dtype) != (data.shape, data.dtype):
            raise ValueError(
                f"{name} in {checkpoint.file} is {found.dtype} of shape {found.shape}, but "
                f"{data.dtype} of shape {data.shape} is needed: it is of another rule, optimiser, "
                f"network or precision"
            )
    with _opened(checkpoint.file) as arrays:
        leaves = [_leaf(arrays.get_tensor(name), leaf) for name, leaf in wanted.items()]
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
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    """Take the numbers out of a PRNG key; anything else is numbers already."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _leaf(data: np.ndarray, like: Any) -> jax.Array:
    array = jnp.array(data)
    return jax.random.wrap_key_data(array) if _is_key(like) else array


def _check_sum(file: Path) -> None:
    """Compare the checksum, having refused sizes that cannot be before anything is allocated."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep us waiting
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise DamagedError(f"{file} is damaged: it is no regular file")
    with os.fdopen(descriptor, "rb") as stream:
        room, length = status.st_size - 8, int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(room, MOST_HEADER):
            raise DamagedError(f"{file} is damaged: it is no checkpoint, or cut off")
        header = length.to_bytes(8, "little") + stream.read(length)
        if header.count(b'"data_offsets"') > MOST_ARRAYS:
            raise DamagedError(f"{file} is damaged: it holds more than {MOST_ARRAYS:,} arrays")
        found = _MARK.search(header)
        if found is None:
            raise DamagedError(f"{file} is damaged: it has no checksum")
        digest = hashlib.sha256(header[: found.start(1)] + _ZEROS + header[found.end(1) :])
        while block := stream.read(2**16):
            digest.update(block)
    if digest.hexdigest().encode() != found[1]:
        raise DamagedError(f"{file} is damaged: its checksum is not that of its content")


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except SafetensorError as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
