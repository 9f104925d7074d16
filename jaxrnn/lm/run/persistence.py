"""Starting, saving and resuming of runs that are stored in a folder."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxrnn.lm import corpus
from jaxrnn.lm.corpus import Text
from jaxrnn.lm.model import Model, write
from jaxrnn.lm.options import Options, length_of, options_to_json, with_changes
from jaxrnn.lm.run.load import read
from jaxrnn.lm.run.prepare import make, prepare, with_state
from jaxrnn.lm.run.state import Run, to_model
from jaxrnn.lm.store import atomic, checkpoint, directory

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
    """Prepare a run and make its folder, with a checkpoint of the state before the first step.

    Args:
        place: the path of the folder.
        text: the text to train on: the path of a file, or a `Text`; default the documentation
            topics that ship with Python.
        chosen: the options of the run.
        encoding: the encoding of the file; default UTF-8.
        overwrite: whether an existing run in the folder may be replaced.
        mesh: the devices over which the rows of each batch are sharded; default one device.
        init_from: as in `prepare`.

    Returns:
        The run before its first step.

    Raises:
        ValueError: as `prepare` does, or if the folder is in use or cannot be written.
    """
    directory.check_free(Path(place), overwrite=overwrite)
    run = prepare(corpus.as_text(text, encoding), chosen, mesh, init_from=init_from)
    return keep(run, place, overwrite=overwrite)


def keep(run: Run, place: str | Path, *, overwrite: bool = False) -> Run:
    """Make the folder of a prepared run, with a checkpoint of the state before the first step.

    With several processes, all of them must call the function, but only the first one writes.

    Args:
        run: the run, from `prepare`.
        place: the path of the folder.
        overwrite: whether an existing run in the folder may be replaced.

    Returns:
        The run with its `folder`.

    Raises:
        ValueError: if the folder is in use or cannot be written.
    """
    path, whole = Path(place), run.on_one_device()
    if jax.process_index():
        return run

    def fill(new):
        directory.write_description(new, run.text, run.vocabulary)
        atomic.write(new / "metrics.jsonl", "")
        save(whole._replace(folder=new))

    directory.create(path, fill, overwrite=overwrite)
    return run._replace(folder=path)


def resume(
    place: str | Path,
    *,
    text: Text | str | Path | None = None,
    mesh: Mesh | None = None,
    **changes: Any,
) -> Run:
    """Resume a run from its newest checkpoint that is not damaged.

    Without changes the run continues exactly as if it had not been interrupted.

    Args:
        place: the path of the run's folder.
        text: the text of the run, or the current path of its file; default the path recorded in
            the run.
        mesh: the devices over which the rows of each batch are sharded; default one device. They
            may differ from those before.
        **changes: new values of options, such as steps, learning_rate and patience: the fields of
            `jaxrnn.lm.options.Changes`.

    Returns:
        The run at the step of the checkpoint.

    Raises:
        ValueError: if there is no run or no checkpoint that can be read, the text is not that of
            the run, or an option cannot be changed.
    """
    path = Path(place)
    description, latest = directory.describe(path), directory.newest(path)
    run_options, vocabulary, about = read(latest.checkpoint, path, description)
    run_options, recorded = with_changes(run_options, **changes), description["text"]
    if text is None:
        if recorded["file"] is None and not recorded["name"].startswith(corpus.TOPICS):
            raise ValueError(
                f"{path} was trained on {recorded['name']}, which has no file: give the text "
                f"again, as text=jaxrnn.lm.Text.from_string(…) or --text FILE"
            )
        text = recorded["file"]
    text = text if isinstance(text, Text) else corpus.as_text(text, recorded["encoding"])
    expected = about["text"]["sha256"]
    encoded = corpus.read(text, lines=run_options.lines, vocabulary=vocabulary, expected=expected)
    run, _ = make(text, encoded, run_options, mesh)
    state = checkpoint.restore(latest.checkpoint, run.state)
    history = tuple((int(step), held_out) for step, held_out in about["history"])
    here, there = _versions(run), dict(about["made with"])
    differences = [f"{name} {there[name]} (here {now})" for name, now in here.items()
                   if there.get(name, now) != now]  # fmt: skip
    remarks = latest.remarks
    if differences:
        remarks += (f"made with {', '.join(differences)}: the last digits may differ",)
    run_folder = None if jax.process_index() else path
    run = run._replace(history=history, folder=run_folder, remarks=remarks)
    return with_state(run, state)


def save(run: Run) -> Path:
    """Save a checkpoint of a run that has a folder and whose state is on one device."""
    assert run.folder is not None
    run_options, vocabulary = run.options, run.vocabulary
    length = 1 if run_options.lines else length_of(run_options)
    about = {
        "step": run.done,
        "position": run.done * run_options.batch_size * length,
        "options": options_to_json(run_options),
        "text": {name: run.text[name] for name in ("name", "sha256", "characters")},
        "vocabulary": {"level": vocabulary.level, "symbols": vocabulary.symbols},
        "history": run.history,
        "made with": _versions(run),
    }
    return directory.save(run.folder, run.state, about, keep=run_options.keep)


def write_sample(run: Run) -> None:
    """Write a text sampled from the current model; the random seed is the same at every step."""
    assert run.folder is not None
    (text,) = write(to_model(run), length=200, seed=run.options.seed)
    file = f"step-{run.done:08d}.txt"
    atomic.write(run.folder / "samples" / file, text + "\n")


def _versions(run: Run) -> dict[str, str]:
    """Return the versions and hardware on which the last digits of results may depend."""
    names = ("jaxrnn", "jax", "jaxlib", "optax", "numpy")
    device = jax.devices()[0]
    return {name: version(name) for name in names} | {
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {device.device_kind}",
        "processors": str(os.cpu_count()),
        "devices": str(1 if run.layout is None else run.layout.mesh.size),
    }
