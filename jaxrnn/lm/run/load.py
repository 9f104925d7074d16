"""Loading of models and options from the checkpoints of a run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.lm import build
from jaxrnn.lm.model import Model
from jaxrnn.lm.options import Options, members, number_of_members
from jaxrnn.lm.run.state import best_member, pick
from jaxrnn.lm.store import checkpoint, directory
from jaxrnn.lm.store.directory import RunCheckpoint
from jaxrnn.lm.store.header import Description
from jaxrnn.network.rnn import param_shapes


def load(path: str | Path, *, newest: bool = False, member: int | None = None) -> Model:
    """Load the model with the lowest held-out loss from a run, or the newest model.

    Of a run of several models it is the one with the lowest held-out loss at that step, unless
    `member` names another.

    Args:
        path: the path of the run's folder, or of one checkpoint.
        newest: whether to load the newest checkpoint instead of the best one.
        member: the number of a model in a run of several, from 0: all seeds for each learning rate
            in turn. It is taken from the same checkpoint.

    Returns:
        The model. Its `remarks` name damaged checkpoints that were skipped, and say which model
        of several it is.

    Raises:
        ValueError: if there is no run, it has no checkpoint that can be read, or there is no such
            member.
    """
    path = Path(path)
    if newest and path.is_file():
        raise ValueError(f"newest=True is for a run, and {path} is one checkpoint: leave it out")
    opened = directory.single(path) if path.is_file() else open_run(path, best=not newest)[0]
    header = opened.header
    rnn = build.make_rnn(header.options, header.vocabulary.size)
    number = number_of_members(header.options)
    if member is not None and not (number > 1 and 0 <= member < number):
        has = f"the models 0 … {number - 1}" if number > 1 else "one model: leave it out"
        raise ValueError(f"member={member} does not exist: {path} has {has}")
    precision = opened.checkpoint.shapes.get("params.readout.W_hy", jnp.zeros(()))
    leading = (number,) if number > 1 else ()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), precision.dtype),
        param_shapes(rnn),
    )
    params = checkpoint.restore(opened.checkpoint, shapes, "params")
    held_out: Any = dict(header.history).get(header.step)
    remarks = opened.remarks
    if number > 1:
        best = best_member(held_out)
        member = best if member is None else member
        params, held_out = pick(params, member), held_out and held_out[member]
        loss = "without a held-out loss" if held_out is None else f"held-out loss {held_out:.4f}"
        lowest = ", the lowest of them" if member == best and held_out is not None else ""
        seed, rate = members(header.options)[member]
        which = f"member {member} of {number} models: seed {seed}, learning rate {rate:g}"
        remarks += (f"{which}, {loss}{lowest}",)
    return Model(
        rnn,
        header.vocabulary,
        params,
        header.options,
        header.step,
        held_out,
        remarks,
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
