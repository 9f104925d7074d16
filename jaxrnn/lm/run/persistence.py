"""Runs on disk: begun, gone on with, and saved."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxrnn.lm import corpus, options
from jaxrnn.lm.corpus import Text
from jaxrnn.lm.model import Model, write
from jaxrnn.lm.options import Options
from jaxrnn.lm.run.load import read
from jaxrnn.lm.run.prepare import begun, make, prepare
from jaxrnn.lm.run.state import Run, to_model
from jaxrnn.lm.store import atomic as files
from jaxrnn.lm.store import checkpoint
from jaxrnn.lm.store import directory as folder

_DEFAULTS = Options()


def start(
    place: str | Path,
    text: Text | str | Path | None = None,
    chosen: Options = _DEFAULTS,
    *,
    encoding: str | None = None,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    init_from: Model | str | Path | None = None,
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
        init_from: as in `prepare`.

    Raises:
        ValueError: as `prepare` does, or if the folder is not free or cannot be written.
    """
    folder.check_free(Path(place), overwrite=overwrite)
    run = prepare(corpus.as_text(text, encoding), chosen, mesh, init_from=init_from)
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
        folder.write_description(new, run.text, run.vocabulary)
        files.write(new / "metrics.jsonl", "")
        save(whole._replace(folder=new))

    folder.create(place, fill, overwrite=overwrite)
    return run._replace(folder=place)


def resume(
    place: str | Path,
    *,
    text: Text | str | Path | None = None,
    mesh: Mesh | None = None,
    **changes: Any,
) -> Run:
    """Go on with a run from its newest good checkpoint.

    Args:
        place: the run's folder.
        text: its text, or the path where it lies now; default where it was.
        mesh: the devices that share the rows of each batch, whatever they were before; default one
            device.
        **changes: what is to be otherwise from here on: fields of `jaxrnn.options.Changes`, such as
            steps, learning_rate and patience. The run then differs from one that went on as it was.

    Raises:
        ValueError: if there is no run or no good checkpoint, the text is another, or a change is
            not possible.
    """
    place = Path(place)
    described, found = folder.describe(place), folder.newest(place)
    chosen, vocabulary, about = read(found.checkpoint, place, described)
    chosen, told = options.changed(chosen, **changes), described["text"]
    if text is None:
        if told["file"] is None and not told["name"].startswith(corpus.TOPICS):
            raise ValueError(
                f"{place} was trained on {told['name']}, which lies in no file: give it again, as "
                f"text=jaxrnn.lm.Text.from_string(…) or --text FILE"
            )
        text = told["file"]
    text = text if isinstance(text, Text) else corpus.as_text(text, told["encoding"])
    expected = about["text"]["sha256"]
    encoded = corpus.read(text, lines=chosen.lines, vocabulary=vocabulary, expected=expected)
    run, _ = make(text, encoded, chosen, mesh)
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
    (text,) = write(to_model(run), length=200, seed=run.options.seed)
    file = f"step-{run.done:08d}.txt"
    files.write(run.folder / "samples" / file, text + "\n")


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
