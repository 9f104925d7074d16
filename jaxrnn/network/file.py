"""Parameters in a file: `save` and `load`, in the safetensors format."""

import hashlib
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from jaxrnn import atomic
from jaxrnn.network.layer import Cell
from jaxrnn.network.stack import Params, Readout
from jaxrnn.tree import by_name


def save(path: str | Path, params: Params) -> None:
    """Save parameters to a file in the safetensors format, each leaf by its name.

    An older file is replaced once the new one is complete.

    Args:
        path: the file to write, such as "params.safetensors".
        params: the parameters.

    Raises:
        ValueError: if params is something else than `Params`.
        OSError: if the file cannot be written.

    >>> import jax, jaxrnn, os, tempfile
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
    >>> jaxrnn.save(path, rnn.init(jax.random.key(0)))
    >>> jaxrnn.load(path).cells[0].W_xh.shape
    (5, 4)
    """
    if not isinstance(params, Params):
        raise ValueError(
            f"params must be jaxrnn.Params, got a {type(params).__name__}: pass those of rnn.init, "
            f"or state.params"
        )
    arrays = {name: np.asarray(leaf) for name, leaf in by_name(params).items()}
    atomic.write(Path(path), serialize(arrays, {"sha256": _digest(serialize(arrays))}))


def load(path: str | Path) -> Params:
    """Load the parameters that `save` wrote.

    They are JAX arrays: without `jax_enable_x64` those in float64 become float32.

    Args:
        path: the file.

    Returns:
        The parameters.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is damaged, or holds something else than parameters.
    """
    try:
        with safe_open(path, framework="flax") as file:  # JAX arrays; NumPy has no bfloat16
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or it is damaged: {error}") from error
    if digest is not None and digest != _digest(Path(path).read_bytes()):
        raise ValueError(f"{path} is damaged: its parameters do not have the SHA-256 in its header")
    layers = sum(re.fullmatch(r"cells\[\d+\]\.W_hh", name) is not None for name in arrays)
    names = [f"cells[{layer}].{name}" for layer in range(layers) for name in Cell._fields]
    names += [f"readout.{name}" for name in Readout._fields]
    optional = {name for name in names if name.split(".")[1] in ("b_h", "b_y")}
    for name in (*arrays, *names):
        if name not in names or (name not in arrays and name not in optional):
            raise ValueError(
                f"{path} holds {'' if name in arrays else 'no '}{name}, so it was not written by "
                f"jaxrnn.save: read a run's checkpoint with jaxrnn.lm.load"
            )

    def part(kind, prefix):
        return kind(*(arrays.get(f"{prefix}.{name}") for name in kind._fields))

    cells = tuple(part(Cell, f"cells[{layer}]") for layer in range(layers))
    return Params(cells, part(Readout, "readout"))


def _digest(content: bytes) -> str:
    """Return the SHA-256 of the arrays in a safetensors file, which stand after its header."""
    header = int.from_bytes(content[:8], "little")
    return hashlib.sha256(content[8 + header :]).hexdigest()
