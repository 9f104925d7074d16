"""Loading of models and options from the checkpoints of a run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.lm import build
from jaxrnn.lm.model import Model
from jaxrnn.lm.options import Options, number_of_members
from jaxrnn.lm.run.state import best_member
from jaxrnn.lm.store import checkpoint, directory
from jaxrnn.lm.store.directory import RunCheckpoint
from jaxrnn.lm.store.header import Description
from jaxrnn.network.rnn import param_shapes


def load(path: str | Path, *, newest: bool = False) -> Model:
    """Load the model with the lowest held-out loss from a run, or the newest model.

    For a population the model of its best member is returned.

    Args:
        path: the path of the run's folder, or of one checkpoint.
        newest: whether to load the newest checkpoint instead of the best one.

    Returns:
        The model. Its `remarks` name damaged checkpoints that were skipped.

    Raises:
        ValueError: if there is no run, or it has no checkpoint that can be read.
    """
    path = Path(path)
    opened = directory.single(path) if path.is_file() else open_run(path, best=not newest)[0]
    header = opened.header
    rnn = build.make_rnn(header.options, header.vocabulary.size)
    members = number_of_members(header.options)
    precision = opened.checkpoint.shapes.get("params.readout.W_hy", jnp.zeros(()))
    leading = (members,) if members > 1 else ()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), precision.dtype),
        param_shapes(rnn),
    )
    params = checkpoint.restore(opened.checkpoint, shapes, "params")
    held_out: Any = dict(header.history).get(header.step)
    if members > 1:
        params, held_out = best_member(params, held_out)
    return Model(
        rnn,
        header.vocabulary,
        params,
        header.options,
        header.step,
        held_out,
        opened.remarks,
        header.context,
    )


def open_run(folder: Path, *, best: bool = False) -> tuple[RunCheckpoint, Description]:
    """Open the newest or the best checkpoint of a run, and read its run.json.

    Raises:
        ValueError: if there is no run, it has no checkpoint that can be read, or the checkpoint is
            of another run.
    """
    description = directory.describe(folder)
    opened = directory.best(folder) if best else directory.newest(folder)
    header, file = opened.header, opened.checkpoint.file
    remedy = f"to use its weights in a new run: jaxrnn train FILE --init-from {file}"
    vocabulary, expected = header.vocabulary, description.vocabulary
    if expected is not None and expected.sha256 != vocabulary.sha256:
        raise ValueError(
            f"{file} has a vocabulary of {vocabulary.size} symbols with the SHA-256 "
            f"{vocabulary.sha256[:12]}…, but that of {folder}, {expected.sha256[:12]}…, is needed: "
            f"it is of another run; {remedy}"
        )
    if header.text.sha256 != description.text.sha256:
        raise ValueError(
            f"{file} was trained on another text than {folder}, with the SHA-256 "
            f"{header.text.sha256[:12]}… and not {description.text.sha256[:12]}…: it is of another "
            f"run; {remedy}"
        )
    return opened, description


def options_of(path: str | Path) -> Options:
    """Return the options of a run, from its newest checkpoint that is not damaged.

    Args:
        path: the path of the run's folder.

    Raises:
        ValueError: if there is no run, or it has no checkpoint that can be read.
    """
    return open_run(Path(path))[0].header.options
