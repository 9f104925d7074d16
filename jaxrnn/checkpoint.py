"""What lies on disk: a run is a folder of plain files, and nothing in it is ever unpickled.

run.json          the network, the options of the run and its results
vocabulary.json   the symbols in the order of their ids
params.npz        one array a leaf, by its name: "cells[0].W_xh", …
losses.jsonl      {"step", "loss"}, one record a line
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network import RNN, Params
from jaxrnn.text import Vocabulary


class SavedRun(NamedTuple):
    """A run as it comes from disk."""

    rnn: RNN
    vocabulary: Vocabulary
    params: Params
    options: dict[str, Any]
    results: dict[str, Any]


NETWORK = (
    "input_size",
    "hidden_size",
    "output_size",
    "num_layers",
    "activation",
    "leak",
    "use_bias",
    "reduction",
)


def save(folder: Path, run: SavedRun, losses: list[float], *, overwrite: bool = False) -> None:
    """Write a run beside its place and then move it there: it stands whole or not at all.

    Raises:
        FileExistsError: if the folder exists and `overwrite` is not set.
    """
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already: choose another folder, or overwrite it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    new.mkdir()
    try:
        network = {name: getattr(run.rnn, name) for name in NETWORK}
        described = {"network": network, "options": run.options, "results": run.results}
        (new / "run.json").write_text(json.dumps(described, indent=1) + "\n")
        (new / "vocabulary.json").write_text(json.dumps(run.vocabulary.symbols) + "\n")
        np.savez(new / "params.npz", allow_pickle=False, **_by_name(run.params))
        with (new / "losses.jsonl").open("w") as records:
            for step, loss in enumerate(losses, 1):
                records.write(json.dumps({"step": step, "loss": loss}) + "\n")
        for path in [*new.iterdir(), new]:
            _sync(path)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
            folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def load(folder: Path) -> SavedRun:
    """Read a run.

    Raises:
        ValueError: if the folder is no run, or a file in it is damaged or does not fit the others.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is no run: it holds no run.json (jaxrnn train makes one)")
    try:
        described = json.loads((folder / "run.json").read_text())
        vocabulary = Vocabulary(tuple(json.loads((folder / "vocabulary.json").read_text())))
        rnn = RNN(**described["network"])
        shapes = jax.eval_shape(rnn.init, jax.random.key(0))
        with np.load(folder / "params.npz", allow_pickle=False) as arrays:
            leaves = [jnp.asarray(arrays[name]) for name in _by_name(shapes)]
        params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        for name, leaf in _by_name(shapes).items():
            found = _by_name(params)[name].shape
            if found != leaf.shape:
                raise ValueError(f"{name} has shape {found}, the network needs {leaf.shape}")
        return SavedRun(rnn, vocabulary, params, described["options"], described["results"])
    except Exception as error:
        raise ValueError(f"the run {folder} is damaged: {error}") from error


def _by_name(params: Params) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in leaves}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
