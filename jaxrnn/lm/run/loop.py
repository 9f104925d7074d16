"""A run forward, block by block: trained, evaluated, recorded, and ended where it must be."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.lm import build, options
from jaxrnn.lm.run.persistence import save, write_sample
from jaxrnn.lm.run.placement import all_gather, on_one, rows_here, spread_rows
from jaxrnn.lm.run.state import Block, Run, over_because, pick
from jaxrnn.lm.scoring import mean_loss, score
from jaxrnn.lm.store import directory as folder
from jaxrnn.network.batch import Batch
from jaxrnn.training import nonfinite as trouble
from jaxrnn.training.nonfinite import Trouble
from jaxrnn.training.step import Metrics, TrainState, make_train_loop

BLOCK = 50  # at most so many steps in one jitted call, between two signs of life
PACE = 0.5  # seconds that such a call should take
_IN_BLOCK = 2**22  # symbols that are read for one call at most
_NORMS = 1000  # of the last steps, that a gradient's norm is compared with


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
            # What a killed process recorded after it, and did not come to remove.
            folder.rewind(run.folder, run.done, run.history, run.options.keep)
            folder.write_description(
                run.folder, run.text, run.vocabulary
            )  # its text may have moved
            yield from _train(run, stop)
    except OSError as error:
        raise ValueError(
            f"cannot write {run.folder}: {error.strerror}; its last checkpoint stands: mend that, "
            f"and go on with: jaxrnn resume {run.folder}"
        ) from error


def _train(run: Run, stop: Callable[[], bool]) -> Iterator[Block]:
    chosen, loop = run.options, make_train_loop(run.step)
    every = chosen.evaluate_every or max(1, chosen.steps // 20)
    room = max(1, min(BLOCK, _IN_BLOCK // math.prod(run.source(np.arange(1)).inputs.shape)))
    pace, paced = min(PACE, chosen.save_every), 1
    norms, saved_at = np.zeros(0), time.monotonic()
    over = over_because(run)
    while not over:
        begun, first = time.monotonic(), run.done
        number = min(paced, chosen.steps - first, every - first % every)
        run, metrics, characters, found = _advance(run, loop, number, room)
        paced = min(room, max(1, int(pace * number / (time.monotonic() - begun))))
        told = metrics.grad_norm.reshape(len(metrics.loss), -1)
        norms = np.concatenate([norms, np.where(np.isfinite(told), told, 0).max(1)])
        grown = trouble.growing(norms)  # the first; one in an earlier block was told already
        since, norms = len(norms) - len(metrics.loss), norms[-_NORMS:]

        held_out = saved = None
        evaluated = found is None and (run.done % every == 0 or run.done == chosen.steps)
        if evaluated and not jax.process_index():
            held_out = _evaluate(run)
            run = run._replace(history=(*run.history, (run.done, held_out)))
        over = "trouble" if found else over_because(run)
        late = time.monotonic() - saved_at >= chosen.save_every
        # The clock is the first process's, so that all do the same; any of them can be stopped.
        signs = all_gather([paced, over == "patience", late, stop()])
        paced, patience, late, _ = signs[0].tolist()
        stopped = signs[:, -1].any()
        over = over or ("patience" if patience else "stopped" if stopped else "")
        keeping = bool(over or evaluated or late)
        whole = run.on_one_device() if keeping else run
        if run.folder is not None:
            folder.record(run.folder, _records(first, metrics, run, held_out))
            if evaluated:
                write_sample(whole)
            if keeping:
                saved, saved_at = save(whole), time.monotonic()
        growing = None if grown is None or grown < since else first + 1 + grown - since
        try:
            yield Block(run, metrics, characters, held_out, saved, growing, found, over)
        except GeneratorExit:  # whoever trains has heard enough
            if run.folder is not None and saved is None:
                save(run.on_one_device())
            raise


def _advance(
    run: Run, loop: Callable[..., tuple[TrainState, Metrics]], number: int, room: int
) -> tuple[Run, Metrics, int, Trouble | None]:
    """Take a number of steps out of `room`, for which the loop is compiled, while they are finite.

    Returns:
        The run, the metrics of its steps and of the one that went wrong, how many symbols were
        read, and where it went wrong.
    """
    steps = run.done + np.arange(room)
    if run.layout is None:
        batches = run.source(steps)
    else:
        rows = rows_here(run.layout.mesh, run.options.batch_size)
        batches = spread_rows(run.layout.mesh, run.source(steps, rows))
    # A copy is donated: the last good state outlives a step that fails.
    state, metrics = loop(jax.tree.map(jnp.copy, run.state), batches, number)
    metrics = pick(jax.tree.map(np.asarray, metrics), slice(number))
    good, found = metrics.finite.reshape(number, -1).any(1), None
    if not good.all():
        number = int(good.argmin())
        metrics = pick(metrics, slice(number + 1))
        state, _ = loop(jax.tree.map(jnp.copy, run.state), batches, number)
        alone = run._replace(state=state).on_one_device()
        found = _diagnose(alone, pick(run.source(steps[number : number + 1]), 0))
    mask = batches.mask
    characters = number * batches.inputs[0].size if mask is None else int(mask[:number].sum())
    return run._replace(state=state), metrics, characters, found


def _evaluate(run: Run) -> Any:
    """Compute the held-out loss, or that of each member, on one device."""
    params, population = run.state.params, run.population
    params = params if run.layout is None else on_one(params)
    losses = mean_loss(score(run.rnn, params, run.held_out, population=population))
    return losses.tolist() if population else float(losses)


def _diagnose(run: Run, batch: Batch) -> Trouble:
    """Find where a step that is not finite went wrong; of a population, in its last good member."""
    number, state = 0, run.state
    if run.population:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
        good = [np.isfinite(leaf.reshape(len(leaf), -1)).all(1) for leaf in leaves]
        number = int(np.all(good, 0).argmax())
        state = pick(state, number)
    algorithm = build.make_algorithm(run.options, run.rnn)
    rate = options.members(run.options)[number].learning_rate
    optimizer = build.make_optimizer(run.options, rate)
    return trouble.diagnose(run.rnn, algorithm, optimizer, state, batch)


def _records(first: int, metrics: Metrics, run: Run, held_out: Any) -> list[dict[str, Any]]:
    told = zip(metrics.loss.tolist(), metrics.grad_norm.tolist(), strict=True)
    records: list[dict[str, Any]] = [
        {"step": step, "loss": loss, "grad_norm": norm}
        for step, (loss, norm) in enumerate(told, first + 1)
    ]
    return records + ([] if held_out is None else [{"step": run.done, "held_out": held_out}])
