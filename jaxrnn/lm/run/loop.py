"""The training loop: trains a run block by block, evaluates it and saves its progress."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn import gradients
from jaxrnn.lm import build
from jaxrnn.lm.options import Options, members
from jaxrnn.lm.run.persistence import save, write_run_json, write_sample
from jaxrnn.lm.run.placement import all_gather, on_one, rows_here, spread_rows
from jaxrnn.lm.run.state import Block, Run, over_because, pick
from jaxrnn.lm.scoring import mean_loss, score
from jaxrnn.lm.store import directory
from jaxrnn.network.batch import Batch
from jaxrnn.training import nonfinite
from jaxrnn.training.nonfinite import Trouble
from jaxrnn.training.step import Metrics, TrainState, make_train_loop

BLOCK = 50  # the largest number of steps in a block, which is one jitted call
PACE = 0.5  # the intended duration of a block in seconds
_IN_BLOCK = 2**22  # the largest number of symbols read for a block
# An evaluation of one batch takes about a third of a step, so that of all takes at most a tenth.
_STEPS_FOR_EVALUATION = 4  # steps of training for each batch of the evaluation set
_NORMS = 1000  # the number of previous gradient norms with which a new one is compared


def train(run: Run, stop: Callable[[], bool] = lambda: False) -> Iterator[Block]:
    """Train a run until it is over, block by block.

    Training ends after the last step, at the first step that is not finite, or after `patience`
    evaluations without an improvement.

    Args:
        run: the run, from its current step. If it has a folder, metrics, checkpoints and samples
            are written there.
        stop: a function that is called after each block; if it returns True, the run is saved and
            training ends.

    Returns:
        An iterator over blocks of steps.

    Raises:
        ValueError: if the folder cannot be written, or another process is training the run.

    >>> from jaxrnn.lm import Options, Text, prepare
    >>> options = Options(hidden_size=4, batch_size=2, length=8, steps=3)
    >>> run = prepare(Text.from_string("to be or not to be " * 9), options)
    >>> *_, last = train(run)
    >>> last.run.done, last.over
    (3, 'steps')
    """
    if run.folder is None:
        yield from _train(run, stop)
        return
    try:
        with directory.locked(run.folder):
            # Remove what a killed process wrote after this step or failed to remove.
            directory.rewind(run.folder, run.done, run.history, run.options.keep)
            # The path of the text may have changed.
            write_run_json(run)
            yield from _train(run, stop)
    except OSError as error:
        raise ValueError(
            f"cannot write {run.folder}: {error.strerror}; its last checkpoint is unharmed: remove "
            f"the cause and continue with: jaxrnn resume {run.folder}"
        ) from error


def evaluation_interval(run: Run) -> int:
    """Return the number of steps between evaluations.

    By default evaluations are a twentieth of all steps apart, and so far apart that they take at
    most about a tenth of the time.
    """
    assert run.held_out.number is not None
    affordable = _STEPS_FOR_EVALUATION * run.held_out.number
    return run.options.evaluate_every or max(1, run.options.steps // 20, affordable)


def _train(run: Run, stop: Callable[[], bool]) -> Iterator[Block]:
    """Train a run, whose folder is locked if it has one."""
    options, loop = run.options, make_train_loop(run.step)
    every = evaluation_interval(run)
    block_size = max(1, min(BLOCK, _IN_BLOCK // math.prod(run.source(0).inputs.shape)))
    pace, next_number = min(PACE, options.save_every), 1
    norms, saved_at = np.zeros(0), time.monotonic()
    over = over_because(run)
    while not over:
        started_at, first = time.monotonic(), run.done
        number = min(next_number, options.steps - first, every - first % every)
        run, metrics, characters, diagnosis = _advance(run, loop, number, block_size)
        seconds = time.monotonic() - started_at
        next_number = min(block_size, max(1, int(pace * number / seconds)))
        grad_norm = metrics.grad_norm.reshape(len(metrics.loss), -1)
        norms = np.concatenate([norms, np.where(np.isfinite(grad_norm), grad_norm, 0).max(1)])
        spike = nonfinite.first_spike(norms)  # perhaps in an earlier block
        earlier, norms = len(norms) - len(metrics.loss), norms[-_NORMS:]

        held_out = saved = None
        at_evaluation = run.done % every == 0 or run.done == options.steps
        evaluated = diagnosis is None and at_evaluation
        if evaluated and not jax.process_index():
            held_out = _evaluate(run)
            run = run._replace(history=(*run.history, (run.done, held_out)))
        over = "trouble" if diagnosis else over_because(run)
        save_is_due = time.monotonic() - saved_at >= options.save_every
        # All processes follow the clock and the evaluations of the first one, so that they stay in
        # step; a request to stop may come to any of them.
        signs = all_gather([next_number, over == "patience", save_is_due, stop()])
        next_number, patience, save_is_due, _ = signs[0].tolist()
        stopped = signs[:, -1].any()
        over = over or ("patience" if patience else "stopped" if stopped else "")
        saving = bool(over or evaluated or save_is_due)
        whole = run.on_one_device() if saving else run
        if run.folder is not None:
            rates = _learning_rates(options, first, block_size)
            directory.record(run.folder, _records(first, metrics, run, held_out, rates))
            if evaluated:
                write_sample(whole)
            if saving:
                saved, saved_at = save(whole), time.monotonic()
        # A spike in an earlier block was reported with that block.
        spike_step = None if spike is None or spike < earlier else first + 1 + spike - earlier
        try:
            yield Block(
                run, metrics, characters, seconds, held_out, saved, spike_step, diagnosis, over
            )
        except GeneratorExit:  # the caller abandons the iterator
            if run.folder is not None and saved is None:
                save(run.on_one_device())
            raise


def _advance(
    run: Run, loop: Callable[..., tuple[TrainState, Metrics]], number: int, block_size: int
) -> tuple[Run, Metrics, int, Trouble | None]:
    """Make `number` train steps, or as many as are finite.

    The loop is compiled for `block_size` steps, which is at least `number`.

    Returns:
        The run after the last finite step; the metrics of the steps, including the first one that
        is not finite; the number of symbols read; and the diagnosis of that step, if there is one.
    """
    steps = run.done + np.arange(block_size)
    if run.layout is None:
        batches = run.source(steps)
    else:
        rows = rows_here(run.layout.mesh, run.options.batch_size)
        batches = spread_rows(run.layout.mesh, run.source(steps, rows))
    # The loop donates its argument. A copy is passed, because the state is needed if a step fails.
    state, metrics = loop(jax.tree.map(jnp.copy, run.state), batches, number)
    metrics = pick(jax.tree.map(np.asarray, metrics), slice(number))
    # A population fails only when no member is finite.
    finite, diagnosis = metrics.finite.reshape(number, -1).any(1), None
    if not finite.all():
        number = int(finite.argmin())
        metrics = pick(metrics, slice(number + 1))
        state, _ = loop(jax.tree.map(jnp.copy, run.state), batches, number)
        whole = run._replace(state=state).on_one_device()
        diagnosis = _diagnose(whole, run.source(run.done + number))
    mask = batches.mask
    characters = number * batches.inputs[0].size if mask is None else int(mask[:number].sum())
    return run._replace(state=state), metrics, characters, diagnosis


def _evaluate(run: Run) -> Any:
    """Compute the held-out loss on one device; for a population, a list of the members' losses."""
    params, population = run.state.params, run.population
    params = params if run.layout is None else on_one(params)
    losses = mean_loss(score(run.rnn, params, run.held_out, population=population))
    return losses.tolist() if population else float(losses)


def _diagnose(run: Run, batch: Batch) -> Trouble:
    """Find the first non-finite value in a step.

    For a population the first member with finite parameters before the step is diagnosed.
    """
    member, state = 0, run.state
    if run.population:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
        finite = [np.isfinite(leaf.reshape(len(leaf), -1)).all(1) for leaf in leaves]
        member = int(np.all(finite, 0).argmax())
        state = pick(state, member)
    algorithm = gradients.build(run.options.algorithm, run.rnn)
    rate = members(run.options)[member].learning_rate
    optimizer = build.make_optimizer(run.options, rate)
    return nonfinite.diagnose(run.rnn, algorithm, optimizer, state, batch)


def _records(
    first: int, metrics: Metrics, run: Run, held_out: Any, rates: np.ndarray
) -> list[dict[str, Any]]:
    """Return the records of the metrics file for a block that began after the step `first`."""
    now = {"time": round(time.time(), 3)}
    rates = rates[: len(metrics.loss)]  # there are rates for a whole block
    values = zip(metrics.loss.tolist(), metrics.grad_norm.tolist(), rates.tolist(), strict=True)
    records: list[dict[str, Any]] = [
        {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": rate, **now}
        for step, (loss, norm, rate) in enumerate(values, first + 1)
    ]
    return records + ([] if held_out is None else [{"step": run.done, "held_out": held_out, **now}])


def _learning_rates(
    options: Options, first: int, number: int
) -> Float[np.ndarray, "number *members"]:
    """Return the learning rate of each step after `first`; of each member if they differ."""
    rates = np.array([member.learning_rate for member in members(options)])
    rates = rates if options.learning_rates else rates[0]
    factors = _factors(options, first + np.arange(number))
    return np.multiply.outer(np.asarray(factors, np.float64), rates)


@partial(jax.jit, static_argnums=0)
def _factors(options: Options, counts: Array) -> Array:
    return jnp.asarray(jax.vmap(build.schedule(options, 1.0))(counts))
