"""What a run has on disk: a folder of plain files, nothing in which is ever unpickled.

run.json             which text and vocabulary the run is of, and where the text lies now
metrics.jsonl        {"step", "loss", "grad_norm"} and {"step", "held_out"}, one record a line
checkpoints/         step-00000400.safetensors, …: each with the options and the vocabulary, which
                     are kept nowhere else; which of them stay is said below
samples/             step-00000400.txt, …: what the model wrote at each evaluation
loss.png             the metrics as a picture

Checkpoints are written before the first step, at each evaluation, when training ends, and by the
clock in between. Of those before the first step and at evaluations the `keep` newest and the best
stay. The others stay until the next evaluation, of these too the `keep` newest. A run that has made
all its steps thus has the same checkpoints however often it was interrupted, and whatever the clock
said.
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

from jaxrnn.lm.store import atomic as files
from jaxrnn.lm.store import checkpoint
from jaxrnn.lm.store.checkpoint import Checkpoint, DamagedError
from jaxrnn.lm.vocabulary import Vocabulary

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

_OLD_VOCABULARY = "vocabulary.json"  # of runs that were begun before run.json had its SHA-256
_PARTS = {"run.json", _OLD_VOCABULARY, "metrics.jsonl", "checkpoints", "samples", "loss.png"}
_STEP = re.compile(r"step-(\d{8,})\.safetensors")
_SAMPLE = re.compile(r"step-(\d{8,})\.txt")


class Found(NamedTuple):
    """A checkpoint of a run, and what is to be said about those that were passed over."""

    checkpoint: Checkpoint
    remarks: tuple[str, ...]


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that is not to be, or must not be, overwritten.

    Raises:
        ValueError: with the remedy.
    """
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"a run needs a folder of its own, got --out {folder}: name a new one")
    if not (folder.exists() or folder.is_symlink()):
        return
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"{folder} exists already: choose another --out, say --overwrite, or go on with it: "
            f"jaxrnn resume {folder}"
        )
    if folder.is_symlink() or not folder.is_dir() or not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is no run, and only runs are overwritten: choose another --out")
    foreign = sorted({path.name for path in folder.iterdir()} - _PARTS)
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[0]!r}, which is no part of a run and would be lost: move it, "
            f"or choose another --out"
        )


def create(folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Make the folder of a run: filled beside its place and then put there, whole or not at all.

    Args:
        folder: where.
        fill: writes what belongs in the folder that it is given.
        overwrite: whether a run that is there may be replaced.

    Raises:
        ValueError: as `check_free` does, or if it cannot be written.
    """
    check_free(folder, overwrite=overwrite)
    place = folder.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent, prefix=".jaxrnn-") as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            for part in (new, new / "checkpoints", new / "samples"):
                part.mkdir()
            fill(new)
            files.sync(new)
            if overwrite and place.exists():
                with locked(place):
                    place.rename(old)
            try:
                new.rename(place)  # onto what is not there, or an empty folder
            except BaseException:
                if old.exists():
                    old.rename(place)
                raise
            files.sync(place.parent)
    except OSError as error:
        check_free(folder)
        raise ValueError(f"cannot write {folder}: {error.strerror}") from error


def write_description(folder: Path, text: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Write run.json unless it says the same already."""
    described = {
        "format": checkpoint.FORMAT,
        "text": text,
        "vocabulary": {"size": vocabulary.size, "sha256": vocabulary.sha256},
    }
    file, content = folder / "run.json", json.dumps(described, indent=1) + "\n"
    if not file.is_file() or file.read_text() != content:
        files.write(file, content)


def describe(folder: Path) -> dict[str, Any]:
    """Read run.json; "vocabulary" is None if it is not known.

    Raises:
        ValueError: if the folder is no run, or the file cannot be read.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise ValueError(f"{folder} is no run: it holds no run.json (jaxrnn train makes one)")
    for part in ("checkpoints", "samples"):
        if (folder / part).is_symlink():
            raise ValueError(f"{folder / part} is a link, and links in a run are not followed")
    described = _read_json(file)
    try:
        text = described["text"]
        optional = all(isinstance(text[name], str | NoneType) for name in ("file", "encoding"))
        if not (optional and all(isinstance(text[name], str) for name in ("name", "sha256"))):
            raise ValueError("it does not say what text it is of")
        if "vocabulary" not in described:
            described["vocabulary"] = _old_vocabulary(folder / _OLD_VOCABULARY)
        elif not isinstance(described["vocabulary"]["sha256"], str):
            raise ValueError("it does not say what vocabulary it is of")
    except (ValueError, KeyError, TypeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{file} is damaged: {said}") from error
    return described


def _read_json(file: Path) -> Any:
    try:
        if file.stat().st_size > checkpoint.MOST_HEADER:
            raise ValueError("it is too large to be one")
        return json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _old_vocabulary(file: Path) -> dict[str, Any] | None:
    """Return what run.json says of a vocabulary today, from the file that older runs have."""
    if not file.is_file():
        return None
    said = _read_json(file)
    try:
        vocabulary = Vocabulary(tuple(said["symbols"]), said["level"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return {"size": vocabulary.size, "sha256": vocabulary.sha256}


def record(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append to the metrics; on disk when this returns."""
    lines = "".join(json.dumps(_finite(each)) + "\n" for each in records)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the metrics; a last line that was cut off is left out."""
    file, found = folder / "metrics.jsonl", []
    with file.open(errors="replace") if file.is_file() else nullcontext([]) as lines:
        for line in lines:
            try:
                each = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not (isinstance(each, dict) and _is_step(each.get("step"))):
                break
            if all(map(_is_loss, each.values())):
                found.append(each)
    return found


def rewind(folder: Path, step: int, history: Sequence[Any], keep: int) -> None:
    """Remove what was recorded after a step, and what a killed process did not come to remove.

    Args:
        folder: of the run.
        step: from which the run goes on.
        history: [[step, held-out loss or losses], …] up to there.
        keep: how many of the newest checkpoints to keep.
    """
    recorded = metrics(folder)
    kept = [each for each in recorded if each["step"] <= step]
    files.write(folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in kept))
    for place in (folder, folder / "checkpoints", folder / "samples"):
        place.mkdir(exist_ok=True)
        files.remove_temporary(place)
    for path in (folder / "samples").iterdir():
        match = _SAMPLE.fullmatch(path.name)
        if match and int(match[1]) > step:
            path.unlink()
    steps = {at: path for at, path in _steps(folder).items() if at <= step}
    for at in steps.keys() - _kept(steps, history, keep):
        steps[at].unlink(missing_ok=True)


def save(folder: Path, tree: Any, about: dict[str, Any], *, keep: int) -> Path:
    """Save a checkpoint, and then remove those that are not to be kept, later ones too.

    Args:
        folder: of the run.
        tree: the train state.
        about: with "step", and "history": [[step, held-out loss or losses], …].
        keep: how many of the newest to keep.
    """
    file = folder / "checkpoints" / f"step-{about['step']:08d}.safetensors"
    checkpoint.save(file, tree, about)
    steps = _steps(folder)
    earlier = [step for step in steps if step <= about["step"]]
    for step in steps.keys() - _kept(earlier, about["history"], keep):
        steps[step].unlink(missing_ok=True)
    return file


def _kept(steps: Iterable[int], history: Sequence[Any], keep: int) -> set[int]:
    """Return the steps whose checkpoints are to be kept; the module's docstring says which."""
    ordered = sorted(steps, reverse=True)
    evaluated = {0, *(step for step, _ in history)}
    fixed = [step for step in ordered if step in evaluated]
    since = [step for step in ordered if step > max(fixed, default=0)]
    return {*fixed[:keep], *since[:keep], *ranked(history, fixed)[:1]}


def newest(folder: Path) -> Found:
    """Find the newest checkpoint that is whole, going back past damaged ones.

    Raises:
        ValueError: if there is none, or a newer version made it.
    """
    steps = _steps(folder)
    return _first(folder, [steps[step] for step in sorted(steps, reverse=True)])


def only(file: Path) -> Found:
    """Open one checkpoint, wherever it lies.

    Raises:
        ValueError: if it is damaged, not of a run, or a newer version made it.
    """
    return _checked(file, checkpoint.load(file))


def best(folder: Path) -> Found:
    """Find the checkpoint with the lowest held-out loss; the newest if none was evaluated.

    Raises:
        ValueError: as `newest` does.
    """
    last, steps = newest(folder), _steps(folder)
    order = ranked(last.checkpoint.about["history"], steps)
    if not order:
        return last
    return _first(folder, [*(steps[step] for step in order), last.checkpoint.file])


def ranked(history: Iterable[Any], steps: Iterable[int]) -> list[int]:
    """Sort those of the steps that were evaluated, the lowest held-out loss first.

    Of many members' losses the lowest counts.
    """
    losses = {step: lowest(held_out) for step, held_out in history}
    there = [step for step in steps if losses.get(step, math.inf) < math.inf]
    return sorted(there, key=lambda step: (losses[step], step))


def lowest(losses: Any) -> float:
    """Return the lowest of one loss or many; those that are None or nan do not count."""
    every = losses if isinstance(losses, list | tuple) else [losses]
    return min((loss for loss in every if loss is not None and loss == loss), default=math.inf)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training the same run; the lock ends with the process."""
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
    """Remove a run in which nothing was learnt, if there is nothing else in its folder."""
    if {path.name for path in folder.iterdir()} <= _PARTS:
        shutil.rmtree(folder)


def _steps(folder: Path) -> dict[int, Path]:
    place = folder / "checkpoints"
    found = {path: _STEP.fullmatch(path.name) for path in place.iterdir()} if place.is_dir() else {}
    return {int(match[1]): path for path, match in found.items() if match}


def _first(folder: Path, paths: list[Path]) -> Found:
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
    what = f"; {remarks[0]}" if remarks else ""
    raise ValueError(f"{folder} has no checkpoint that can be read{what}: train anew")


def _checked(file: Path, opened: Checkpoint) -> Found:
    """Refuse a checkpoint that is not of a run."""
    try:
        steps = [step for step, held_out in opened.about["history"] if _is_loss(held_out)]
        if not all(map(_is_step, (*steps, opened.about["step"]))):
            raise ValueError("a step is no whole number, or is negative or above 2³¹")
        if len(steps) != len(opened.about["history"]) or len(steps) > opened.about["step"]:
            raise ValueError("its history and its step do not fit together")
    except (ValueError, KeyError, TypeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{file} is no checkpoint of a run: {said}") from error
    return Found(opened, ())


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**31


def _is_loss(value: Any) -> bool:
    """Return whether a record's value is a number, None for one that is not finite, or many."""
    every = value if isinstance(value, list) else [value]
    return all(each is None or _is_number(each) for each in every)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _finite(value: Any) -> Any:
    """Turn numbers that JSON does not know into None."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
