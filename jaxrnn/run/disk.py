"""Runs on disk: begun, gone on with, and loaded to be used."""

import dataclasses
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrnn import checkpoint, corpus, files, folder, options
from jaxrnn.checkpoint import Checkpoint
from jaxrnn.corpus import Text
from jaxrnn.model import Model, write
from jaxrnn.network import param_shapes
from jaxrnn.options import Options
from jaxrnn.run.base import Run, best_member, model
from jaxrnn.run.prepare import begun, make, prepare
from jaxrnn.text import Vocabulary

_DEFAULTS = Options()


def start(
    place: str | Path,
    text: Text | str | Path | None = None,
    chosen: Options = _DEFAULTS,
    *,
    encoding: str | None = None,
    overwrite: bool = False,
    mesh: Mesh | None = None,
) -> Run:
    """Make a run and its folder, in which its state before the first step is the first checkpoint.

    Args:
        place: the folder.
        text: what to train on: the path of its file, or a `Text`; None: the documentation topics
            that ship with Python.
        chosen: how.
        encoding: the file's encoding; default UTF-8.
        overwrite: whether a run that is there may be replaced.
        mesh: the devices that share the rows of each batch; default one device.

    Raises:
        ValueError: as `prepare` does, or if the folder is not free or cannot be written.
    """
    folder.check_free(Path(place), overwrite=overwrite)
    run = prepare(corpus.as_text(text, encoding), chosen, mesh)
    return keep(run, place, overwrite=overwrite)


def keep(run: Run, place: str | Path, *, overwrite: bool = False) -> Run:
    """Make the folder of a prepared run, its state before the first step the first checkpoint.

    Of many processes the first alone writes; all must ask for it.

    Raises:
        ValueError: if the folder is not free or cannot be written.
    """
    place, whole = Path(place), run.on_one_device()
    if jax.process_index():
        return run

    def fill(new):
        described = {"format": checkpoint.FORMAT, "options": options.to_json(run.options)}
        described |= {"text": run.text, "made with": _versions(run)}
        files.write(new / "run.json", json.dumps(described, indent=1) + "\n")
        symbols = {"level": run.vocabulary.level, "symbols": run.vocabulary.symbols}
        files.write(new / "vocabulary.json", json.dumps(symbols) + "\n")
        files.write(new / "metrics.jsonl", "")
        save(whole._replace(folder=new))

    folder.create(place, fill, overwrite=overwrite)
    return run._replace(folder=place)


def resume(
    place: str | Path,
    *,
    text: Text | str | Path | None = None,
    steps: int | None = None,
    mesh: Mesh | None = None,
) -> Run:
    """Go on with a run from its newest good checkpoint.

    Args:
        place: the run's folder.
        text: its text, or the path where it lies now; default where it was.
        steps: updates to make in all; default as the run was told. The schedule of the learning
            rate follows them.
        mesh: the devices that share the rows of each batch, whatever they were before; default one
            device.

    Raises:
        ValueError: if there is no run or no good checkpoint, or the text is another.
    """
    place = Path(place)
    told, found = folder.describe(place)["text"], folder.newest(place)
    chosen, vocabulary, about = _read(found.checkpoint)
    if steps is not None:
        chosen = dataclasses.replace(chosen, steps=steps)
        options.check(chosen)
    if text is None:
        if told["file"] is None and not told["name"].startswith(corpus.TOPICS):
            raise ValueError(
                f"{place} was trained on {told['name']}, which lies in no file: give it again, as "
                f"text=jaxrnn.Text.from_string(…) or --text FILE"
            )
        text = told["file"]
    text = text if isinstance(text, Text) else corpus.as_text(text, told["encoding"])
    expected = about["text"]["sha256"]
    read = corpus.read(text, lines=chosen.lines, vocabulary=vocabulary, expected=expected)
    run, _ = make(text, read, chosen, mesh)
    state = checkpoint.restore(found.checkpoint, run.state)
    history = tuple((int(step), held_out) for step, held_out in about["history"])
    here, there = _versions(run), dict(about["made with"])
    differs = [f"{name} {there[name]} (here {now})" for name, now in here.items()
               if there.get(name, now) != now]  # fmt: skip
    remarks = found.remarks
    if differs:
        remarks += (f"made with {', '.join(differs)}: the last digits may differ",)
    kept_in = None if jax.process_index() else place
    run = run._replace(history=history, folder=kept_in, remarks=remarks)
    return begun(run, state)


def load(place: str | Path, *, newest: bool = False) -> Model:
    """Load the best model of a run, by its held-out loss, or the newest; of a population the best.

    Args:
        place: the run's folder, or one checkpoint.
        newest: whether to take the newest checkpoint instead of the best.

    Raises:
        ValueError: if there is no run, or no checkpoint that can be read.
    """
    place = Path(place)
    if place.is_file():
        found = folder.only(place)
    else:
        folder.describe(place)
        found = folder.newest(place) if newest else folder.best(place)
    chosen, vocabulary, about = _read(found.checkpoint)
    rnn, number = options.make_rnn(chosen, vocabulary.size), options.number_of_members(chosen)
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


def save(run: Run) -> Path:
    """Write a checkpoint of a run that has a folder, and its state on one device."""
    assert run.folder is not None
    chosen, vocabulary = run.options, run.vocabulary
    about = {
        "step": run.done,
        "position": run.done
        * chosen.batch_size
        * (1 if chosen.lines else options.length_of(chosen)),
        "options": options.to_json(chosen),
        "text": {name: run.text[name] for name in ("name", "sha256", "characters")},
        "vocabulary": {"level": vocabulary.level, "symbols": vocabulary.symbols},
        "history": run.history,
        "made with": _versions(run),
    }
    return folder.save(run.folder, run.state, about, keep=chosen.keep)


def write_sample(run: Run) -> None:
    """Write what the model as it is now makes, the same draws each time."""
    assert run.folder is not None
    (text,) = write(model(run), length=200, seed=run.options.seed)
    file = f"step-{run.done:08d}.txt"
    files.write(run.folder / "samples" / file, text + "\n")


def _read(found: Checkpoint) -> tuple[Options, Vocabulary, dict[str, Any]]:
    """Read what a checkpoint is about: options, vocabulary, and all of it."""
    about = found.about
    try:
        chosen = options.from_json(about["options"])
        said = about["vocabulary"]
        vocabulary = Vocabulary(tuple(said["symbols"]), said["level"])
        if not isinstance(about["text"]["sha256"], str) or not isinstance(about["made with"], dict):
            raise ValueError("it does not say what text it is of, or what made it")
    except (ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{found.file} cannot be used: {what}") from error
    return chosen, vocabulary, about


def _versions(run: Run) -> dict[str, str]:
    """Tell what the last digits may depend on."""
    names = ("jaxrnn", "jax", "jaxlib", "optax", "numpy")
    device = jax.devices()[0]
    return {name: version(name) for name in names} | {
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {device.device_kind}",
        "processors": str(os.cpu_count()),
        "devices": str(1 if run.layout is None else run.layout.mesh.size),
    }
