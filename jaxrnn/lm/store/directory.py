"""The folder of a run on disk. It has plain files only, and nothing in it is unpickled.

run.json             which text (name, current path, SHA-256) and vocabulary (SHA-256) the run has:
                     a `Description`
metrics.jsonl        {"step", "loss", "grad_norm", "learning_rate", "time"} or {"step", "held_out",
                     "time"}, one record per line; time is in seconds since 1970, at the end of the
                     block of steps, and the only part that differs after an interruption
checkpoints/         step-00000400.safetensors, …: each has the train state and a `Header` with the
                     options and the vocabulary, which are stored nowhere else
samples/             step-00000400.txt, …: what the model samples at each evaluation
loss.png             a figure of the metrics

There are two kinds of checkpoints: scheduled ones, before the first step and at each evaluation,
and timed ones, at intervals of time and when training ends. Kept are the `keep` newest scheduled
ones, the best scheduled one, and the `keep` newest timed ones since the last evaluation. A run that
has made all its steps therefore has the same checkpoints, independently of interruptions and of
the time that the steps took.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp

from jaxrnn import atomic
from jaxrnn.lm.store import checkpoint
from jaxrnn.lm.store.checkpoint import Checkpoint, DamagedError
from jaxrnn.lm.store.header import (
    Description,
    Header,
    VocabularyRecord,
    from_json,
    is_held_out,
    is_step,
    read_description,
    read_header,
    to_json,
)
from jaxrnn.lm.vocabulary import Vocabulary

try:
    import fcntl
except ImportError:  # this system has no such locks
    fcntl = None

Result = TypeVar("Result")
_OLD_VOCABULARY = "vocabulary.json"  # earlier versions wrote it; now run.json has its SHA-256
_PARTS = {"run.json", _OLD_VOCABULARY, "metrics.jsonl", "checkpoints", "samples", "loss.png"}
_STEP = re.compile(r"step-(\d{8,})\.safetensors")
_SAMPLE = re.compile(r"step-(\d{8,})\.txt")


class RunCheckpoint(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        checkpoint: the opened file.
        header: its metadata.
        remarks: messages about damaged checkpoints that were skipped.
    """

    checkpoint: Checkpoint
    header: Header
    remarks: tuple[str, ...] = ()


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `ValueError` unless a new run can be written to a folder.

    Args:
        folder: the folder, which must not exist or must be empty.
        overwrite: whether the folder may also be that of a run, with no other files in it.
    """
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"a run needs a folder of its own, but {folder} is or contains the current folder: "
            f"name a new one"
        )
    if not (folder.exists() or folder.is_symlink()):
        return
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        return
    if not overwrite:
        if folder.is_file():
            raise ValueError(f"{folder} is a file, but a run needs a folder: name a new folder")
        raise ValueError(
            f"{folder} exists already: choose another folder, add overwrite=True, or resume the "
            f"run: jaxrnn resume {folder}"
        )
    if folder.is_symlink() or not folder.is_dir() or not (folder / "run.json").is_file():
        raise ValueError(
            f"{folder} is not a run, and only runs are overwritten: choose another folder"
        )
    foreign = sorted({path.name for path in folder.iterdir()} - _PARTS)
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[0]!r}, which is not part of a run and would be lost: move "
            f"it, or choose another folder"
        )


def create(folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Make the folder of a run, completely or not at all.

    A temporary folder is filled first and then renamed.

    Args:
        folder: the path of the folder.
        fill: a function that writes the files of the run to the folder that it is given.
        overwrite: whether an existing run may be replaced.

    Raises:
        ValueError: as `check_free` does, or if the folder cannot be written.
    """
    check_free(folder, overwrite=overwrite)
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".jaxrnn-") as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            for part in (new, new / "checkpoints", new / "samples"):
                part.mkdir()
            fill(new)
            atomic.sync(new)
            if overwrite and target.exists():
                with locked(target):
                    target.rename(old)
            try:
                new.rename(target)  # the target does not exist or is an empty folder
            except BaseException:
                if old.exists():
                    old.rename(target)
                raise
            atomic.sync(target.parent)
    except OSError as error:
        check_free(folder, overwrite=overwrite)
        raise ValueError(f"cannot write {folder}: {error.strerror}") from error


def write_description(folder: Path, description: Description) -> None:
    """Write run.json unless it has the same content already."""
    content = json.dumps({"format": checkpoint.FORMAT} | to_json(description), indent=1) + "\n"
    file = folder / "run.json"
    if not file.is_file() or file.read_text() != content:
        atomic.write(file, content)


def describe(folder: Path) -> Description:
    """Read run.json.

    Raises:
        ValueError: if the folder is not a run, or run.json is damaged.
    """
    file = folder / "run.json"
    if not folder.exists():
        raise ValueError(f"{folder} does not exist: name the folder of a run that was trained")
    if not file.is_file():
        raise ValueError(f"{folder} is not a run: it has no run.json (jaxrnn train makes one)")
    for part in ("checkpoints", "samples"):
        if (folder / part).is_symlink():
            raise ValueError(f"{folder / part} is a link, and links in a run are not followed")
    description = _read_json(file, read_description)
    vocabulary = folder / _OLD_VOCABULARY
    if description.vocabulary is None and vocabulary.is_file():
        read = _read_json(vocabulary, partial(from_json, Vocabulary))
        description = description._replace(vocabulary=VocabularyRecord(read.size, read.sha256))
    return description


def _read_json(file: Path, convert: Callable[[Any], Result]) -> Result:
    """Read a JSON file and convert its content.

    Raises:
        ValueError: if the file is damaged or too large, or its content cannot be converted.
    """
    try:
        if file.stat().st_size > checkpoint.MOST_HEADER:
            raise ValueError(f"it has more than {checkpoint.MOST_HEADER:,} bytes")
        return convert(json.loads(file.read_text()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def record(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records to the metrics; they are on disk when the function returns."""
    lines = "".join(json.dumps(_finite(each)) + "\n" for each in records)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the metrics, up to the first line that is incomplete or damaged."""
    file, records = folder / "metrics.jsonl", []
    with file.open(errors="replace") if file.is_file() else nullcontext([]) as lines:
        for line in lines:
            try:
                each = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not (isinstance(each, dict) and is_step(each.get("step"))):
                break
            if all(map(is_held_out, each.values())):
                records.append(each)
    return records


def rewind(folder: Path, step: int, history: Sequence[Any], keep: int) -> None:
    """Remove what a killed process wrote after a step: metrics, samples, partial files.

    Checkpoints that are not kept are removed too; the next `save` removes those after the step.

    Args:
        folder: the folder of the run.
        step: the step from which the run is resumed.
        history: [[step, held-out loss or losses], …] up to that step.
        keep: the number of the newest checkpoints to keep.
    """
    recorded = metrics(folder)
    valid = [each for each in recorded if each["step"] <= step]
    atomic.write(folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in valid))
    for path in (folder, folder / "checkpoints", folder / "samples"):
        path.mkdir(exist_ok=True)
        atomic.remove_temporary(path)
    for path in (folder / "samples").iterdir():
        match = _SAMPLE.fullmatch(path.name)
        if match and int(match[1]) > step:
            path.unlink()
    steps = {at: path for at, path in _steps(folder).items() if at <= step}
    for at in steps.keys() - _kept(steps, history, keep):
        steps[at].unlink(missing_ok=True)


def save(folder: Path, tree: Any, header: Header) -> Path:
    """Save a checkpoint, and then remove the checkpoints that are not kept and any later ones.

    Args:
        folder: the folder of the run.
        tree: the train state.
        header: the metadata, whose options say how many checkpoints are kept.

    Returns:
        The path of the new checkpoint.
    """
    file = folder / "checkpoints" / f"step-{header.step:08d}.safetensors"
    checkpoint.save(file, tree, to_json(header))
    steps = _steps(folder)
    earlier = [step for step in steps if step <= header.step]
    for step in steps.keys() - _kept(earlier, header.history, header.options.keep):
        steps[step].unlink(missing_ok=True)
    return file


def _kept(steps: Iterable[int], history: Sequence[Any], keep: int) -> set[int]:
    """Return the steps whose checkpoints are kept, by the rule in the docstring of the module."""
    ordered = sorted(steps, reverse=True)
    evaluated_steps = {0, *(step for step, _ in history)}
    evaluated = [step for step in ordered if step in evaluated_steps]
    later = [step for step in ordered if step > max(evaluated, default=0)]
    return {*evaluated[:keep], *later[:keep], *ranked(history, evaluated)[:1]}


def newest(folder: Path) -> RunCheckpoint:
    """Open the newest undamaged checkpoint of a run.

    Raises:
        ValueError: if there is none, or a newer version wrote it.
    """
    steps = _steps(folder)
    return _first(folder, [steps[step] for step in sorted(steps, reverse=True)])


def single(file: Path) -> RunCheckpoint:
    """Open one checkpoint, given by its path.

    Raises:
        ValueError: if it is damaged, is not of a run, or a newer version wrote it.
    """
    return _checked(file, checkpoint.load(file))


def best(folder: Path) -> RunCheckpoint:
    """Open the checkpoint with the lowest held-out loss; the newest if none has a finite loss.

    Raises:
        ValueError: as `newest` does.
    """
    latest, steps = newest(folder), _steps(folder)
    order = ranked(latest.header.history, steps)
    if not order:
        return latest
    return _first(folder, [*(steps[step] for step in order), latest.checkpoint.file])


def ranked(history: Iterable[Any], steps: Iterable[int]) -> list[int]:
    """Return the steps with a finite held-out loss, the lowest loss first.

    The loss of a population is the lowest loss of its members.
    """
    losses = {step: lowest(held_out) for step, held_out in history}
    evaluated = [step for step in steps if losses.get(step, math.inf) < math.inf]
    return sorted(evaluated, key=lambda step: (losses[step], step))


def lowest(losses: Any) -> float:
    """Return the lowest of one or many losses, ignoring None and nan; inf if there is none."""
    values = losses if isinstance(losses, list | tuple) else [losses]
    return min((loss for loss in values if loss is not None and loss == loss), default=math.inf)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run, so that no other process trains it; the lock ends with the process.

    Raises:
        ValueError: if another process has locked the run.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"{folder} is being trained by another process: wait for it") from error
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove the folder of a run, unless it has files that are not part of a run."""
    if {path.name for path in folder.iterdir()} <= _PARTS:
        shutil.rmtree(folder)


def _steps(folder: Path) -> dict[int, Path]:
    """Return the path of the checkpoint of each step."""
    parent = folder / "checkpoints"
    paths = parent.iterdir() if parent.is_dir() else ()
    matches = {path: _STEP.fullmatch(path.name) for path in paths}
    return {int(match[1]): path for path, match in matches.items() if match}


def _first(folder: Path, paths: list[Path]) -> RunCheckpoint:
    """Open the first of these checkpoints that is not damaged."""
    remarks = []
    for path in paths:
        try:
            opened = checkpoint.load(path)
        except DamagedError as error:
            remarks.append(str(error))
            continue
        if remarks:
            remarks.append(f"going back to {path.name}")
        return _checked(path, opened)._replace(remarks=tuple(remarks))
    damage = f"; {remarks[0]}" if remarks else ""
    raise ValueError(f"{folder} has no checkpoint that can be read{damage}: start a new run")


def _checked(file: Path, opened: Checkpoint) -> RunCheckpoint:
    """Raise `ValueError` unless a checkpoint is that of a run."""
    try:
        header = read_header(opened.about)
        for name, shape in opened.shapes.items():
            if name.startswith("params.") and not jnp.issubdtype(shape.dtype, jnp.floating):
                raise ValueError(f"{name} has dtype {shape.dtype}, but parameters are floats")
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    return RunCheckpoint(opened, header)


def _finite(value: Any) -> Any:
    """Replace non-finite numbers, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
