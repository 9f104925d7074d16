"""Loading of models and options from the checkpoints of a run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.lm import build
from jaxrnn.lm.model import Model
from jaxrnn.lm.options import Options, number_of_members, options_from_json
from jaxrnn.lm.run.state import best_member
from jaxrnn.lm.store import checkpoint, directory
from jaxrnn.lm.store.checkpoint import Checkpoint
from jaxrnn.lm.vocabulary import Vocabulary
from jaxrnn.network.rnn import param_shapes


def load(place: str | Path, *, newest: bool = False) -> Model:
    """Load the model with the lowest held-out loss from a run, or the newest model.

    For a population the model of its best member is returned.

    Args:
        place: the path of the run's folder, or of one checkpoint.
        newest: whether to load the newest checkpoint instead of the best one.

    Returns:
        The model. Its `remarks` name damaged checkpoints that were skipped.

    Raises:
        ValueError: if there is no run, or it has no checkpoint that can be read.
    """
    path, description = Path(place), None
    if path.is_file():
        opened = directory.only(path)
    else:
        description = directory.describe(path)
        opened = directory.newest(path) if newest else directory.best(path)
    run_options, vocabulary, about = read(opened.checkpoint, path, description)
    rnn = build.make_rnn(run_options, vocabulary.size)
    members = number_of_members(run_options)
    precision = opened.checkpoint.shapes.get("params.readout.W_hy", jnp.zeros(()))
    leading = (members,) if members > 1 else ()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), precision.dtype),
        param_shapes(rnn),
    )
    params = checkpoint.restore(opened.checkpoint, shapes, "params")
    held_out = dict(map(tuple, about["history"])).get(about["step"])
    if members > 1:
        params, held_out = best_member(params, held_out)
    step = int(about["step"])
    return Model(rnn, vocabulary, params, run_options, step, held_out, opened.remarks)


def read(
    opened: Checkpoint, path: Path, description: dict[str, Any] | None
) -> tuple[Options, Vocabulary, dict[str, Any]]:
    """Return the options, the vocabulary and all the metadata of a checkpoint.

    Args:
        opened: the checkpoint.
        path: the folder of the run.
        description: the content of the run's run.json, with which the checkpoint must agree; None
            for a checkpoint that is used without its run.

    Raises:
        ValueError: if the metadata is invalid, or the checkpoint is of another run.
    """
    about = opened.about
    try:
        run_options = options_from_json(about["options"])
        described = about["vocabulary"]
        vocabulary = Vocabulary(tuple(described["symbols"]), described["level"])
        if not isinstance(about["text"]["sha256"], str) or not isinstance(about["made with"], dict):
            raise ValueError("it does not identify its text, or the versions that made it")
        for name, shape in opened.shapes.items():
            if name.startswith("params.") and not jnp.issubdtype(shape.dtype, jnp.floating):
                raise ValueError(f"{name} has dtype {shape.dtype}, but parameters are floats")
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{opened.file} cannot be used: {problem}") from error
    if description is not None:
        _check_same_run(opened, path, description, vocabulary)
    return run_options, vocabulary, about


def _check_same_run(
    opened: Checkpoint, path: Path, description: dict[str, Any], vocabulary: Vocabulary
) -> None:
    """Raise `ValueError` unless a checkpoint has the vocabulary and the text of its run."""
    remedy = f"to use its weights in a new run: jaxrnn train FILE --init-from {opened.file}"
    expected = description["vocabulary"]
    if expected is not None and expected["sha256"] != vocabulary.sha256:
        raise ValueError(
            f"{opened.file} has a vocabulary of {vocabulary.size} symbols with the SHA-256 "
            f"{vocabulary.sha256[:12]}…, but that of {path}, {expected['sha256'][:12]}…, is "
            f"needed: it is of another run; {remedy}"
        )
    text, expected = opened.about["text"], description["text"]
    if text["sha256"] != expected["sha256"]:
        raise ValueError(
            f"{opened.file} was trained on another text than {path}, with the SHA-256 "
            f"{text['sha256'][:12]}… and not {expected['sha256'][:12]}…: it is of another run; "
            f"{remedy}"
        )


def options_of(place: str | Path) -> Options:
    """Return the options of a run, from its newest checkpoint that is not damaged.

    Args:
        place: the path of the run's folder.

    Raises:
        ValueError: if there is no run, or it has no checkpoint that can be read.
    """
    path = Path(place)
    description = directory.describe(path)
    return read(directory.newest(path).checkpoint, path, description)[0]
