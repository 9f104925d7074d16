"""What lies on disk: a run is a folder of plain files, and nothing in it is ever unpickled.

run.json          the network, the options of the run and its results
vocabulary.json   the symbols in the order of their ids
params.npz        one array a leaf, by its name: "cells[0].W_xh", …
losses.jsonl      {"step", "loss"}, one record a line
loss.png          the same as a picture, drawn by the command
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network import RNN, Params, by_name, param_shapes
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


def reserve(folder: Path, *, overwrite: bool = False) -> None:
    """Make the empty folder of a run to come, or accept the run that it will replace.

    Raises:
        ValueError: if the folder exists and is not to be, or must not be, overwritten.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not overwrite:
            raise ValueError(
                f"{folder} exists already: choose another --out, or say --overwrite"
            ) from None
        is_run = (folder / "run.json").is_file()
        if folder.is_symlink() or not folder.is_dir() or (any(folder.iterdir()) and not is_run):
            raise ValueError(
                f"{folder} is no run, and only runs are overwritten: choose another --out"
            ) from None


def release(folder: Path) -> None:
    """Remove a reserved folder in which nothing was saved."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def save(
    folder: Path,
    run: SavedRun,
    losses: list[float],
    also: Callable[[Path], None] = lambda new: None,
) -> None:
    """Write a run beside its reserved place, and then put it there: whole or not at all.

    Args:
        folder: where; what is there is replaced.
        run: the run.
        losses: of each step.
        also: writes what else belongs in the folder that it is given.
    """
    folder = folder.resolve()
    with TemporaryDirectory(dir=folder.parent, prefix=".jaxrnn-") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        network = {name: getattr(run.rnn, name) for name in NETWORK}
        described = {"network": network, "options": run.options, "results": run.results}
        (new / "run.json").write_text(json.dumps(described, indent=1) + "\n")
        (new / "vocabulary.json").write_text(json.dumps(run.vocabulary.symbols) + "\n")
        np.savez(new / "params.npz", allow_pickle=False, **by_name(run.params))
        with (new / "losses.jsonl").open("w") as records:
            for step, loss in enumerate(losses, 1):
                records.write(json.dumps({"step": step, "loss": loss}) + "\n")
        also(new)
        for path in [*new.iterdir(), new]:
            _sync(path)
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        _sync(folder.parent)


def load(folder: Path) -> SavedRun:
    """Read a run.

    Raises:
        ValueError: if the folder is no run, or a file in it is damaged or does not fit the others.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is no run: it holds no run.json (jaxrnn train makes one)")
    try:
        described = json.loads((folder / "run.json").read_text())
        if set(described["network"]) != set(NETWORK):
            raise ValueError(f"run.json must describe the network by {', '.join(NETWORK)}")
        rnn = RNN(**described["network"])
        vocabulary = Vocabulary(tuple(json.loads((folder / "vocabulary.json").read_text())))
        if vocabulary.size != rnn.input_size:
            raise ValueError(f"{vocabulary.size} symbols for {rnn.input_size} inputs")
        params = _load_params(folder / "params.npz", rnn)
        options, results = dict(described["options"]), dict(described["results"])
        return SavedRun(
            rnn, vocabulary, params, options | {"lines": bool(options["lines"])}, results
        )
    except Exception as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the run {folder} is damaged: {what}") from error


def _load_params(file: Path, rnn: RNN) -> Params:
    shapes = param_shapes(rnn)
    leaves = []
    with np.load(file, allow_pickle=False) as arrays:
        for name, expected in by_name(shapes).items():
            leaf = arrays[name]
            if leaf.shape != expected.shape or not np.issubdtype(leaf.dtype, np.floating):
                raise ValueError(
                    f"{name} is {leaf.dtype} of shape {leaf.shape}, the network needs floats of "
                    f"{expected.shape}"
                )
            if not np.isfinite(leaf).all():
                raise ValueError(f"{name} holds numbers that are not finite")
            leaves.append(jnp.asarray(leaf))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
