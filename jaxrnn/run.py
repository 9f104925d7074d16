"""A whole run: text to batches, training, evaluation, and what is kept of it on disk.

Nothing is printed here; the command prints. `start` and `resume` make a `Run`, and `train` takes it
forward block by block. A run is what its text and options say, and nothing else: however it is
interrupted and cut into blocks, its parameters come out the same to the last bit on the same
machine with the same versions.
"""

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checkpoint, corpus, data, files, folder, options, trouble
from jaxrnn.checkpoint import Checkpoint
from jaxrnn.corpus import Corpus, Text
from jaxrnn.model import Model, write
from jaxrnn.network import RNN, Batch, param_shapes
from jaxrnn.options import Options
from jaxrnn.text import Vocabulary
from jaxrnn.train import (
    Metrics,
    TrainState,
    TrainStep,
    init_train_state,
    make_train_loop,
    make_train_step,
    mean_loss,
    score,
)
from jaxrnn.trouble import Trouble

BLOCK = 50  # at most so many steps in one jitted call, between two signs of life
PACE = 0.5  # seconds that such a call should take
_HELD_OUT = 1_000_000  # symbols that are held out at most
_IN_BLOCK = 2**22  # symbols that are read for one call at most
_NORMS = 1000  # of the last steps, that a gradient's norm is compared with
_DEFAULTS = Options()


class Run(NamedTuple):
    """A run at some step.

    Attributes:
        options: how to train.
        rnn: the network.
        vocabulary: the symbols.
        text: {"name", "file", "encoding", "sha256", "characters"} of what it is trained on.
        step: the train step.
        state: the train state; of a population each leaf begins with the members.
        source: step numbers to batches.
        held_out: what to evaluate on.
        history: [step, held-out loss or losses] of each evaluation.
        folder: where it is kept; None for one in memory.
        remarks: which checkpoints were damaged, and what differs from where the run was made.
    """

    options: Options
    rnn: RNN
    vocabulary: Vocabulary
    text: dict[str, Any]
    step: TrainStep
    state: TrainState
    source: data.Source
    held_out: data.Passage
    history: tuple[tuple[int, Any], ...] = ()
    folder: Path | None = None
    remarks: tuple[str, ...] = ()

    @property
    def population(self) -> bool:
        """Whether many models are trained at once."""
        return options.number_of_members(self.options) > 1

    @property
    def done(self) -> int:
        """The number of updates made."""
        return int(np.max(self.state.step))


class Block(NamedTuple):
    """Some steps of training, and what followed on them.

    Attributes:
        run: after the last good one of them.
        metrics: of each; if the run went wrong, the last is the step that did.
        characters: how many symbols were read.
        held_out: the loss on the held-out text in nats a symbol, if it was evaluated.
        saved: the checkpoint, if one was written.
        growing: the step at which the gradient's norm rose above 100 times its median, if it did.
        trouble: what was not finite, and where it began.
        over: why no block follows: "steps", "patience", "stopped" or "trouble"; "" if one does.
    """

    run: Run
    metrics: Metrics
    characters: int
    held_out: Any
    saved: Path | None
    growing: int | None
    trouble: Trouble | None
    over: str


def prepare(text: Text | str | Path, chosen: Options) -> Run:
    """Make everything that a run needs from its text, in memory.

    Args:
        text: the text itself, or the path of its file.
        chosen: how to train.

    Raises:
        ValueError: if an option is outside its range, or the text does not fit the options.
    """
    options.check(chosen)
    text, size = corpus.as_text(text), chosen.vocabulary_size or 8000
    read = corpus.read(text, level=chosen.level, size=size, lines=chosen.lines)
    run, first_state = _make(text, read, chosen)
    return run._replace(state=first_state())


def start(
    place: str | Path,
    file: str | Path | None = None,
    chosen: Options = _DEFAULTS,
    *,
    encoding: str = "utf-8",
    overwrite: bool = False,
) -> Run:
    """Make a run and its folder, in which its state before the first step is the first checkpoint.

    Args:
        place: the folder.
        file: what to train on; None: the documentation topics that ship with Python.
        chosen: how.
        encoding: the file's encoding.
        overwrite: whether a run that is there may be replaced.

    Raises:
        ValueError: as `prepare` does, or if the folder is not free or cannot be written.
    """
    folder.check_free(Path(place), overwrite=overwrite)
    return keep(prepare(corpus.open_text(file, encoding), chosen), place, overwrite=overwrite)


def keep(run: Run, place: str | Path, *, overwrite: bool = False) -> Run:
    """Make the folder of a prepared run, its state before the first step the first checkpoint.

    Raises:
        ValueError: if the folder is not free or cannot be written.
    """
    place = Path(place)

    def fill(new):
        described = {"format": checkpoint.FORMAT, "options": options.to_json(run.options)}
        described |= {"text": run.text, "made with": _versions()}
        files.write(new / "run.json", json.dumps(described, indent=1) + "\n")
        symbols = {"level": run.vocabulary.level, "symbols": run.vocabulary.symbols}
        files.write(new / "vocabulary.json", json.dumps(symbols) + "\n")
        files.write(new / "metrics.jsonl", "")
        _save(run._replace(folder=new))

    folder.create(place, fill, overwrite=overwrite)
    return run._replace(folder=place)


def resume(place: str | Path, *, file: str | Path | None = None, steps: int | None = None) -> Run:
    """Go on with a run from its newest good checkpoint.

    Args:
        place: the run's folder.
        file: where its text lies now; default where it was.
        steps: updates to make in all; default as the run was told. The schedule of the learning
            rate follows them.

    Raises:
        ValueError: if there is no run or no good checkpoint, or the text is another.
    """
    place = Path(place)
    told, found = folder.describe(place)["text"], folder.newest(place)
    chosen, vocabulary, about = _read(found.checkpoint)
    if steps is not None:
        chosen = dataclasses.replace(chosen, steps=steps)
        options.check(chosen)
    text = corpus.open_text(file or told["file"], told["encoding"] or "utf-8")
    expected = about["text"]["sha256"]
    read = corpus.read(text, lines=chosen.lines, vocabulary=vocabulary, expected=expected)
    run, _ = _make(text, read, chosen)
    state = checkpoint.restore(found.checkpoint, run.state)
    history = tuple((int(step), held_out) for step, held_out in about["history"])
    here, there = _versions(), dict(about["made with"])
    differs = [f"{name} {there.get(name)} (here {now})" for name, now in here.items()
               if there.get(name) != now]  # fmt: skip
    remarks = found.remarks
    if differs:
        remarks += (f"made with {', '.join(differs)}: the last digits may differ",)
    return run._replace(state=state, history=history, folder=place, remarks=remarks)


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
        params, held_out = _best(params, held_out)
    step = int(about["step"])
    return Model(rnn, vocabulary, params, chosen, step, held_out, found.remarks)


def train(run: Run, stop: Callable[[], bool] = lambda: False) -> Iterator[Block]:
    """Train to the last step, to the first that is not finite, or as long as patience lasts.

    Args:
        run: from where; if it has a folder, metrics, checkpoints and samples are kept in it.
        stop: asked after each block; when it says so the run is saved and ends there.

    Raises:
        ValueError: if the folder cannot be written any more, or another process trains the run.
    """
    if run.folder is None:
        yield from _train(run, stop)
        return
    try:
        with folder.locked(run.folder):
            folder.rewind(run.folder, run.done)  # what a killed process recorded after it
            yield from _train(run, stop)
    except OSError as error:
        raise ValueError(
            f"cannot write {run.folder}: {error.strerror}; its last checkpoint stands: mend that, "
            f"and go on with: jaxrnn resume {run.folder}"
        ) from error


def _train(run: Run, stop: Callable[[], bool]) -> Iterator[Block]:
    chosen, loop = run.options, make_train_loop(run.step)
    every = chosen.evaluate_every or max(1, chosen.steps // 20)
    pace, paced = min(PACE, chosen.save_every), 1
    norms, saved_at = np.zeros(0), time.monotonic()
    over = over_because(run)
    while not over:
        begun, first = time.monotonic(), run.done
        number = min(paced, chosen.steps - first, every - first % every)
        run, metrics, characters, found = _advance(run, loop, number)
        paced = max(1, int(pace * number / (time.monotonic() - begun)))
        told = metrics.grad_norm.reshape(len(metrics.loss), -1)
        norms = np.concatenate([norms, np.where(np.isfinite(told), told, 0).max(1)])
        grown = trouble.growing(norms)  # the first; one in an earlier block was told already
        since, norms = len(norms) - len(metrics.loss), norms[-_NORMS:]

        held_out = saved = None
        if found is None and (run.done % every == 0 or run.done == chosen.steps):
            held_out = _evaluate(run)
            run = run._replace(history=(*run.history, (run.done, held_out)))
        over = "trouble" if found else over_because(run) or ("stopped" if stop() else "")
        if run.folder is not None:
            folder.record(run.folder, _records(first, metrics, run, held_out))
            if held_out is not None:
                _write_sample(run)
            if over or held_out is not None or time.monotonic() - saved_at >= chosen.save_every:
                saved, saved_at = _save(run), time.monotonic()
        growing = None if grown is None or grown < since else first + 1 + grown - since
        try:
            yield Block(run, metrics, characters, held_out, saved, growing, found, over)
        except GeneratorExit:  # whoever trains has heard enough
            if run.folder is not None and saved is None:
                _save(run)
            raise


def _advance(
    run: Run, loop: Callable[..., tuple[TrainState, Metrics]], number: int
) -> tuple[Run, Metrics, int, Trouble | None]:
    """Take steps, as many as are asked for and fit, or up to the last that is finite.

    Returns:
        The run, the metrics of its steps and of the one that went wrong, how many symbols were
        read, and where it went wrong.
    """
    size = math.prod(run.source(np.arange(1)).inputs.shape)
    room = max(1, min(BLOCK, _IN_BLOCK // size))
    batches, number = run.source(run.done + np.arange(room)), min(number, room)
    # A copy is donated: the last good state outlives a step that fails.
    state, metrics = loop(jax.tree.map(jnp.copy, run.state), batches, number)
    metrics = _pick(jax.tree.map(np.asarray, metrics), slice(number))
    good, found = metrics.finite.reshape(number, -1).any(1), None
    if not good.all():
        number = int(good.argmin())
        metrics = _pick(metrics, slice(number + 1))
        state, _ = loop(jax.tree.map(jnp.copy, run.state), batches, number)
        found = _diagnose(run._replace(state=state), _pick(batches, number))
    mask = batches.mask
    characters = number * size if mask is None else int(mask[:number].sum())
    return run._replace(state=state), metrics, characters, found


def over_because(run: Run) -> str:
    """Say why a run is over: "steps" or "patience"; "" if it is not."""
    if run.done >= run.options.steps:
        return "steps"
    losses = [folder.lowest(held_out) for _, held_out in run.history]
    patience = run.options.patience
    if patience and losses and len(losses) - 1 - int(np.argmin(losses)) >= patience:
        return "patience"
    return ""


def _make(text: Text, read: Corpus, chosen: Options) -> tuple[Run, Callable[[], TrainState]]:
    """Make a run of an encoded text, with the shapes of its state, and what makes its first one."""
    vocabulary = read.vocabulary
    rnn = options.make_rnn(chosen, vocabulary.size)
    source, held_out = (_lines if chosen.lines else _stream)(read, chosen)
    algorithm = options.make_algorithm(chosen, rnn)

    def initial(key, rate):
        params_key, state_key = jax.random.split(key)
        optimizer, params = options.make_optimizer(chosen, rate), rnn.init(params_key)
        h = rnn.initial_state(chosen.batch_size)
        return init_train_state(algorithm, optimizer, params, h, key=state_key)

    def step(rate, state, batch):
        return make_train_step(algorithm, options.make_optimizer(chosen, rate))(state, batch)

    members = options.members(chosen)
    keys = [options.seed_key(member.seed) for member in members]
    if len(members) == 1:
        rate = members[0].learning_rate
        state, whole_step = partial(initial, keys[0], rate), partial(step, rate)
    else:
        rates = jnp.array([member.learning_rate for member in members])
        state = partial(jax.jit(jax.vmap(initial)), jnp.stack(keys), rates)
        whole_step = partial(jax.vmap(step, in_axes=(0, 0, None)), rates)
    told = {
        "name": text.name,
        "file": text.file and str(text.file.resolve()),
        "encoding": text.encoding,
        "sha256": read.sha256,
        "characters": read.characters,
    }
    return Run(
        chosen, rnn, vocabulary, told, whole_step, jax.eval_shape(state), source, held_out
    ), state


def _stream(read: Corpus, chosen: Options) -> tuple[data.Source, data.Passage]:
    total, length = len(read.ids), options.length_of(chosen)
    kept = max(2, min(math.ceil(chosen.held_out * total), _HELD_OUT))
    ids, held_out = corpus.cut(read.ids, max(total - kept, 0))
    source = data.stream(ids, chosen.batch_size, length)
    return source, data.passage(held_out[:], chosen.batch_size, length)


def _lines(read: Corpus, chosen: Options) -> tuple[data.Source, data.Passage]:
    ends = read.vocabulary.ends
    rows = data.find_lines(read.ids, ends) if ends else None
    total = 0 if rows is None else len(rows.starts)
    if rows is None or total < 2:
        raise ValueError(f"training on lines needs at least 2 that are not empty, got {total}")
    order = np.random.default_rng(chosen.seed).permutation(total)
    long = np.cumsum((rows.ends - rows.starts)[order]) > _HELD_OUT
    most = int(long.argmax()) if long.any() else total
    kept = max(1, min(round(chosen.held_out * total), most))
    held_out, rows = (
        rows._replace(starts=rows.starts[picked], ends=rows.ends[picked])
        for picked in (order[:kept], order[kept:])
    )
    if len(rows.starts) < chosen.batch_size:
        raise ValueError(
            f"{len(rows.starts)} lines to train on, beside {kept} held out, are fewer than a batch "
            f"of {chosen.batch_size}: use a smaller batch size, or hold out less"
        )
    length = options.length_of(chosen, max(rows.longest, held_out.longest))
    source = data.shuffled(rows, chosen.batch_size, chosen.seed, length)
    return source, data.rows_passage(held_out, chosen.batch_size, length)


def _evaluate(run: Run) -> Any:
    """Compute the held-out loss, or that of each member."""
    params, population = run.state.params, run.population
    losses = mean_loss(score(run.rnn, params, run.held_out, population=population))
    return losses.tolist() if population else float(losses)


def _pick(tree: Any, places: Any) -> Any:
    """Pick one or some of what a pytree's leaves begin with: members, steps."""
    return jax.tree.map(lambda leaf: leaf[places], tree)


def model(run: Run) -> Model:
    """Return a run's model as it is now; of a population the one that was the best at last."""
    held_out = run.history[-1][1] if run.history else None
    params = run.state.params
    if run.population:
        params, held_out = _best(params, held_out)
    return Model(run.rnn, run.vocabulary, params, run.options, run.done, held_out)


def _best(params: Any, losses: Any) -> tuple[Any, float | None]:
    """Pick the best member, the first if none was evaluated, and its held-out loss."""
    if losses is None:
        return _pick(params, 0), None
    number = int(np.argmin([folder.lowest(loss) for loss in losses]))
    return _pick(params, number), losses[number]


def _diagnose(run: Run, batch: Batch) -> Trouble:
    """Find where a step that is not finite went wrong; of a population, in its last good member."""
    number, state = 0, run.state
    if run.population:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
        good = [np.isfinite(leaf.reshape(len(leaf), -1)).all(1) for leaf in leaves]
        number = int(np.all(good, 0).argmax())
        state = _pick(state, number)
    algorithm = options.make_algorithm(run.options, run.rnn)
    rate = options.members(run.options)[number].learning_rate
    optimizer = options.make_optimizer(run.options, rate)
    return trouble.diagnose(run.rnn, algorithm, optimizer, state, batch)


def _records(first: int, metrics: Metrics, run: Run, held_out: Any) -> list[dict[str, Any]]:
    told = zip(metrics.loss.tolist(), metrics.grad_norm.tolist(), strict=True)
    records: list[dict[str, Any]] = [
        {"step": step, "loss": loss, "grad_norm": norm}
        for step, (loss, norm) in enumerate(told, first + 1)
    ]
    return records + ([] if held_out is None else [{"step": run.done, "held_out": held_out}])


def _save(run: Run) -> Path:
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
        "made with": _versions(),
    }
    return folder.save(run.folder, run.state, about, keep=chosen.keep)


def _write_sample(run: Run) -> None:
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


def _versions() -> dict[str, str]:
    """Tell what the last digits may depend on."""
    names = ("jaxrnn", "jax", "jaxlib", "optax", "numpy")
    device = jax.devices()[0]
    return {name: version(name) for name in names} | {
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {device.device_kind}",
        "processors": str(os.cpu_count()),
    }
