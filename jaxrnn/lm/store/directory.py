"""The folder of a run on disk. It has plain files only, and nothing in it is unpickled.

run.json             which text (name, current path, SHA-256) and vocabulary (SHA-256) the run has
metrics.jsonl        {"step", "loss", "grad_norm"} or {"step", "held_out"}, one record per line
checkpoints/         step-00000400.safetensors, …: each has the options and the vocabulary, which
                     are stored nowhere else
samples/             step-00000400.txt, …: a text sampled from the model at each evaluation
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
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType
from typing import Any, NamedTuple

from jaxrnn.lm.store import atomic, checkpoint
from jaxrnn.lm.store.checkpoint import Checkpoint, DamagedError
from jaxrnn.lm.vocabulary import Vocabulary

try:
    import fcntl
except ImportError:  # this system has no such locks
    fcntl = None

_OLD_VOCABULARY = "vocabulary.json"  # earlier versions wrote it; now run.json has its SHA-256
_PARTS = {"run.json", _OLD_VOCABULARY, "metrics.jsonl", "checkpoints", "samples", "loss.png"}
_STEP = re.compile(r"step-(\d{8,})\.safetensors")
_SAMPLE = re.compile(r"step-(\d{8,})\.txt")


class RunCheckpoint(NamedTuple):
    """A checkpoint of a run, with messages about damaged checkpoints that were skipped."""

    checkpoint: Checkpoint
    remarks: tuple[str, ...]


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `ValueError` unless a new run can be written to a folder.

    Args:
        folder: the folder, which must not exist or must be empty.
        overwrite: whether the folder may also be that of a run, with no other files in it.
    """
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"a run needs a folder of its own, but --out {folder} is or contains the current "
            f"folder: name a new one"
        )
    if not (folder.exists() or folder.is_symlink()):
        return
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"{folder} exists already: choose another --out, add --overwrite, or resume the run: "
            f"jaxrnn resume {folder}"
        )
    if folder.is_symlink() or not folder.is_dir() or not (folder / "run.json").is_file():
        raise ValueError(
            f"{folder} is not a run, and only runs are overwritten: choose another --out"
        )
    foreign = sorted({path.name for path in folder.iterdir()} - _PARTS)
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[0]!r}, which is not part of a run and would be lost: move "
            f"it, or choose another --out"
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


def write_description(folder: Path, text: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Write run.json unless it has the same content already."""
    description = {
        "format": checkpoint.FORMAT,
        "text": text,
        "vocabulary": {"size": vocabulary.size, "sha256": vocabulary.sha256},
    }
    file, content = folder / "run.json", json.dumps(description, indent=1) + "\n"
    if not file.is_file() or file.read_text() != content:
        atomic.write(file, content)


def describe(folder: Path) -> dict[str, Any]:
    """Read run.json; its "vocabulary" is None if it is unknown.

    Raises:
        ValueError: if the folder is not a run, or run.json is damaged.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not a run: it has no run.json (jaxrnn train makes one)")
    for part in ("checkpoints", "samples"):
        if (folder / part).is_symlink():
            raise ValueError(f"{folder / part} is a link, and links in a run are not followed")
    description = _read_json(file)
    try:
        text = description["text"]
        optional = all(isinstance(text[name], str | NoneType) for name in ("file", "encoding"))
        if not (optional and all(isinstance(text[name], str) for name in ("name", "sha256"))):
            raise ValueError("it does not identify the text")
        if "vocabulary" not in description:
            description["vocabulary"] = _old_vocabulary(folder / _OLD_VOCABULARY)
        elif not isinstance(description["vocabulary"]["sha256"], str):
            raise ValueError("it does not identify the vocabulary")
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{file} is damaged: {problem}") from error
    return description


def _read_json(file: Path) -> Any:
    """Read a JSON file, or raise `ValueError` if it is damaged or too large."""
    try:
        if file.stat().st_size > checkpoint.MOST_HEADER:
            raise ValueError(f"it has more than {checkpoint.MOST_HEADER:,} bytes")
        return json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _old_vocabulary(file: Path) -> dict[str, Any] | None:
    """Return the "vocabulary" entry of run.json, computed from the file of an earlier version."""
    if not file.is_file():
        return None
    described = _read_json(file)
    try:
        vocabulary = Vocabulary(tuple(described["symbols"]), described["level"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return {"size": vocabulary.size, "sha256": vocabulary.sha256}


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
            if not (isinstance(each, dict) and _is_step(each.get("step"))):
                break
            if all(map(_is_loss, each.values())):
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


def save(folder: Path, tree: Any, about: dict[str, Any], *, keep: int) -> Path:
    """Save a checkpoint, and then remove the checkpoints that are not kept and any later ones.

    Args:
        folder: the folder of the run.
        tree: the train state.
        about: the metadata, with "step" and "history": [[step, held-out loss or losses], …].
        keep: the number of the newest checkpoints to keep.

    Returns:
        The path of the new checkpoint.
    """
    file = folder / "checkpoints" / f"step-{about['step']:08d}.safetensors"
    checkpoint.save(file, tree, about)
    steps = _steps(folder)
    earlier = [step for step in steps if step <= about["step"]]
    for step in steps.keys() - _kept(earlier, about["history"], keep):
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


def only(file: Path) -> RunCheckpoint:
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
    order = ranked(latest.checkpoint.about["history"], steps)
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
        steps = [step for step, held_out in opened.about["history"] if _is_loss(held_out)]
        if not all(map(_is_step, (*steps, opened.about["step"]))):
            raise ValueError("a step is not a whole number, or is negative or at least 2³¹")
        if len(steps) != len(opened.about["history"]) or len(steps) > opened.about["step"]:
            raise ValueError("its history contradicts its step")
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{file} is not a checkpoint of a run: {problem}") from error
    return RunCheckpoint(opened, ())


def _is_step(value: Any) -> bool:
    """Return whether a JSON value is a valid step number."""
    return isinstance(value, int) and 0 <= value < 2**31


def _is_loss(value: Any) -> bool:
    """Return whether a JSON value is a number, None (a non-finite number), or a list of both."""
    values = value if isinstance(value, list) else [value]
    return all(each is None or _is_number(each) for each in values)


def _is_number(value: Any) -> bool:
    """Return whether a JSON value is a number in the range of a float."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _finite(value: Any) -> Any:
    """Replace non-finite numbers, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
