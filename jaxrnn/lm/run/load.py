"""Models from runs on disk, and what their checkpoints say."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.lm import build, options
from jaxrnn.lm.model import Model
from jaxrnn.lm.options import Options
from jaxrnn.lm.run.state import best_member
from jaxrnn.lm.store import checkpoint
from jaxrnn.lm.store import directory as folder
from jaxrnn.lm.store.checkpoint import Checkpoint
from jaxrnn.lm.vocabulary import Vocabulary
from jaxrnn.network.rnn import param_shapes


def load(place: str | Path, *, newest: bool = False) -> Model:
    """Load the best model of a run, by its held-out loss, or the newest; of a population the best.

    Args:
        place: the run's folder, or one checkpoint.
        newest: whether to take the newest checkpoint instead of the best.

    Raises:
        ValueError: if there is no run, or no checkpoint of it that can be read.
    """
    place, described = Path(place), None
    if place.is_file():
        found = folder.only(place)
    else:
        described = folder.describe(place)
        found = folder.newest(place) if newest else folder.best(place)
    chosen, vocabulary, about = read(found.checkpoint, place, described)
    rnn, number = build.make_rnn(chosen, vocabulary.size), options.number_of_members(chosen)
    precision = found.checkpoint.shapes.get("params.readout.W_hy", jnp.zeros(()))
    leading = (number,) if number > 1 else ()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), precision.dtype),
        param_shapes(rnn),
    )
    params = checkpoint.restore(found.checkpoint, shapes, "params")
    held_out = dict(map(tuple, about["history"])).get(about["step"])
    if number > 1:
        params, held_out = best_member(params, held_out)
    step = int(about["step"])
    return Model(rnn, vocabulary, params, chosen, step, held_out, found.remarks)


def read(
    found: Checkpoint, place: Path, described: dict[str, Any] | None
) -> tuple[Options, Vocabulary, dict[str, Any]]:
    """Read what a checkpoint is about: options, vocabulary, and all of it.

    Args:
        found: the checkpoint.
        place: the folder of the run that it must be of.
        described: what the run says that it is of; None for a checkpoint that is used alone.

    Raises:
        ValueError: if it says what cannot be, or is of another run.
    """
    about = found.about
    try:
        chosen = options.from_json(about["options"])
        said = about["vocabulary"]
        vocabulary = Vocabulary(tuple(said["symbols"]), said["level"])
        if not isinstance(about["text"]["sha256"], str) or not isinstance(about["made with"], dict):
            raise ValueError("it does not say what text it is of, or what made it")
        for name, shape in found.shapes.items():
            if name.startswith("params.") and not jnp.issubdtype(shape.dtype, jnp.floating):
                raise ValueError(f"{name} has dtype {shape.dtype}, but parameters are floats")
    except (ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{found.file} cannot be used: {what}") from error
    if described is not None:
        _check_same_run(found, place, described, vocabulary)
    return chosen, vocabulary, about


def _check_same_run(
    found: Checkpoint, place: Path, described: dict[str, Any], vocabulary: Vocabulary
) -> None:
    """Raise `ValueError` if a checkpoint's vocabulary or text is not its run's."""
    remedy = f"to use its weights in a new run: jaxrnn train FILE --init-from {found.file}"
    told = described["vocabulary"]
    if told is not None and told["sha256"] != vocabulary.sha256:
        raise ValueError(
            f"{found.file} has a vocabulary of {vocabulary.size} symbols with the SHA-256 "
            f"{vocabulary.sha256[:12]}…, but that of {place}, {told['sha256'][:12]}…, is "
            f"needed: it is of another run; {remedy}"
        )
    text, expected = found.about["text"], described["text"]
    if text["sha256"] != expected["sha256"]:
        raise ValueError(
            f"{found.file} was trained on another text than {place}, with the SHA-256 "
            f"{text['sha256'][:12]}… and not {expected['sha256'][:12]}…: it is of another run; "
            f"{remedy}"
        )


def options_of(place: str | Path) -> Options:
    """Return the options of a run at its newest good checkpoint.

    Raises:
        ValueError: if there is no run, or no checkpoint of it that can be read.
    """
    place = Path(place)
    described = folder.describe(place)
    return read(folder.newest(place).checkpoint, place, described)[0]
