"""Starting, saving and resuming of runs that are stored in a folder."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxrnn import atomic
from jaxrnn.lm import corpus
from jaxrnn.lm.corpus import Corpus, Text
from jaxrnn.lm.model import Model, write
from jaxrnn.lm.options import Options, with_changes
from jaxrnn.lm.run.load import open_run
from jaxrnn.lm.run.prepare import make, prepare, sources, with_state
from jaxrnn.lm.run.state import Run, context, to_model
from jaxrnn.lm.store import checkpoint, directory
from jaxrnn.lm.store.header import Description, Header, VocabularyRecord
from jaxrnn.training.source import Source

_DEFAULTS = Options()


def start(
    path: str | Path,
    text: Text | str | Path | None = None,
    options: Options = _DEFAULTS,
    *,
    encoding: str | None = None,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    init_from: Model | str | Path | None = None,
) -> Run:
    """Prepare a run and make its folder, with a checkpoint of the state before the first step.

    Args:
        path: the path of the folder.
        text: the text to train on: the path of a file, or a `Text`; default the documentation
            topics that ship with Python.
        options: the options of the run.
        encoding: the encoding of the file; default UTF-8.
        overwrite: whether an existing run in the folder may be replaced.
        mesh: the devices over which the rows of each batch are sharded; default one device.
        init_from: as in `prepare`.

    Returns:
        The run before its first step.

    Raises:
        ValueError: as `prepare` does, or if the folder is in use or cannot be written.
    """
    directory.check_free(Path(path), overwrite=overwrite)
    run = prepare(corpus.as_text(text, encoding), options, mesh, init_from=init_from)
    return keep(run, path, overwrite=overwrite)


def keep(run: Run, path: str | Path, *, overwrite: bool = False) -> Run:
    """Make the folder of a prepared run, with a checkpoint of the state before the first step.

    With several processes, all of them must call the function, but only the first one writes.

    Args:
        run: the run, from `prepare`.
        path: the path of the folder.
        overwrite: whether an existing run in the folder may be replaced.

    Returns:
        The run with its `folder`.

    Raises:
        ValueError: if the folder is in use or cannot be written.
    """
    folder, whole = Path(path), run.on_one_device()
    if jax.process_index():
        return run

    def fill(new):
        write_run_json(run._replace(folder=new))
        atomic.write(new / "metrics.jsonl", "")
        save(whole._replace(folder=new))

    directory.create(folder, fill, overwrite=overwrite)
    return run._replace(folder=folder)


def write_run_json(run: Run) -> None:
    """Write run.json of a run that has a folder, unless it has the same content already."""
    assert run.folder is not None
    vocabulary = VocabularyRecord(run.vocabulary.size, run.vocabulary.sha256)
    directory.write_description(run.folder, Description(run.text, vocabulary))


def resume(
    path: str | Path,
    *,
    text: Text | str | Path | None = None,
    mesh: Mesh | None = None,
    **changes: Any,
) -> Run:
    """Resume a run from its newest checkpoint that is not damaged.

    Without changes the run continues exactly as if it had not been interrupted.

    Args:
        path: the path of the run's folder.
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
    folder = Path(path)
    (opened, header, remarks), description = open_run(folder)
    options = with_changes(header.options, **changes)
    text, encoded = _read_again(folder, description, header, text)
    run, _ = make(text, encoded, options, mesh)
    state = checkpoint.restore(opened, run.state)
    here, there = _versions(run), header.made_with
    differences = [f"{name} {there[name]} (here {now})" for name, now in here.items()
                   if there.get(name, now) != now]  # fmt: skip
    if differences:
        remarks += (f"made with {', '.join(differences)}: the last digits may differ",)
    run_folder = None if jax.process_index() else folder
    run = run._replace(history=header.history, folder=run_folder, remarks=remarks)
    return with_state(run, state)


def held_out(path: str | Path, *, text: Text | str | Path | None = None) -> Source:
    """Return the held-out text of a run, as the batches that evaluate it.

    Args:
        path: the path of the run's folder.
        text: the text of the run, or the current path of its file; default the path recorded in
            the run.

    Returns:
        The evaluation set: batch n has inputs and targets (B, T) of the run's batch size and
        length.

    Raises:
        ValueError: if there is no run or no checkpoint that can be read, or the text is not that of
            the run.

    >>> import tempfile
    >>> options = Options(hidden_size=4, batch_size=2, length=8, steps=3)
    >>> text = Text.from_string("to be or not to be " * 9)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = start(f"{folder}/run", text, options)
    ...     held_out(f"{folder}/run", text=text)(0).inputs.shape
    (2, 8)
    """
    (_, header, _), description = open_run(Path(path))
    _, encoded = _read_again(Path(path), description, header, text)
    return sources(encoded, header.options)[1]


def _read_again(
    folder: Path, description: Description, header: Header, text: Text | str | Path | None
) -> tuple[Text, Corpus]:
    """Read and encode the text of a run, which may have moved to another path."""
    recorded = description.text
    if text is None:
        if recorded.file is None and not recorded.name.startswith(corpus.TOPICS):
            raise ValueError(
                f"{folder} was trained on {recorded.name}, which has no file: give the text again, "
                f"with text=FILE or a jaxrnn.lm.Text"
            )
        text = recorded.file
    text = text if isinstance(text, Text) else corpus.as_text(text, recorded.encoding)
    lines, expected = header.options.lines, header.text.sha256
    return text, corpus.read(text, lines=lines, vocabulary=header.vocabulary, expected=expected)


def save(run: Run) -> Path:
    """Save a checkpoint of a run that has a folder and whose state is on one device."""
    assert run.folder is not None
    text = run.text._replace(file=None, encoding=None)  # the path may change: only run.json has it
    header = Header(
        run.done, run.options, text, run.vocabulary, run.history, _versions(run), context(run)
    )
    return directory.save(run.folder, run.state, header)


def write_sample(run: Run) -> None:
    """Write what the current model samples; the random seed is the same at every step."""
    assert run.folder is not None
    texts = write(to_model(run), seed=run.options.seed)
    file = f"step-{run.done:08d}.txt"
    atomic.write(run.folder / "samples" / file, "".join(text + "\n" for text in texts))


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
