"""The state of a run, and the result of a block of its steps."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.lm.model import CONTEXT, Model, context_of
from jaxrnn.lm.options import Options, number_of_members
from jaxrnn.lm.run import placement
from jaxrnn.lm.run.placement import Layout
from jaxrnn.lm.store import directory
from jaxrnn.lm.store.header import TextRecord
from jaxrnn.lm.vocabulary import Vocabulary
from jaxrnn.network.rnn import RNN
from jaxrnn.training.nonfinite import Trouble
from jaxrnn.training.source import Source
from jaxrnn.training.step import Metrics, TrainState, UpdateFn


class Run(NamedTuple):
    """A training run at some step.

    Attributes:
        options: the options of the run.
        rnn: the network.
        vocabulary: the vocabulary.
        text: the name, path, encoding, SHA-256 and size of the text.
        step: the function that makes one train step.
        state: the train state; for a population each leaf has the members as its first axis.
        source: the batches of training.
        held_out: the evaluation set.
        history: (step, held-out loss or losses) of each evaluation.
        folder: the path of the run's folder; None for a run in memory, and in all processes except
            the first.
        remarks: messages about damaged checkpoints, unknown words, and versions or machines that
            differ from those of the checkpoint.
        layout: the sharding of the state, if the run has a mesh of devices.
    """

    options: Options
    rnn: RNN
    vocabulary: Vocabulary
    text: TextRecord
    step: UpdateFn
    state: TrainState
    source: Source
    held_out: Source
    history: tuple[tuple[int, Any], ...] = ()
    folder: Path | None = None
    remarks: tuple[str, ...] = ()
    layout: Layout | None = None

    def __repr__(self) -> str:
        """Return the step, the text, the network and the last evaluation."""
        evaluated = f", held out {self.history[-1][1]} nats" if self.history else ""
        return (
            f"Run on {self.text.name} at step {self.done:,} of {self.options.steps:,}{evaluated}\n"
            f"  {self.rnn!r}\n"
            f"  in {self.folder or 'memory'}, by {self.options.algorithm}"
        )

    @property
    def population(self) -> bool:
        """Whether many models are trained at once."""
        return number_of_members(self.options) > 1

    @property
    def done(self) -> int:
        """The number of updates made."""
        return int(np.max(np.asarray(self.state.step)))

    def on_one_device(self) -> "Run":
        """Return the run with its whole state on one device; all processes must call it."""
        if self.layout is None:
            return self
        return self._replace(state=placement.gathered(self.layout, self.state))


class Block(NamedTuple):
    """The result of some consecutive train steps.

    Attributes:
        run: the run after these steps; if one of them was not finite, after the step before it.
        metrics: the metrics of each step, including the one that was not finite, if any.
        characters: the number of symbols read.
        seconds: how long the steps took, without evaluation and saving.
        held_out: the held-out loss in nats per symbol, or the losses of the members of a
            population; None if there was no evaluation.
        saved: the path of the checkpoint, if one was written.
        spike_step: the step at which the norm of the gradient rose above 100 times its median, if
            it did.
        trouble: the diagnosis of the first non-finite value, if there was one.
        over: the reason why no block follows: "steps", "patience", "stopped" or "trouble"; "" if
            another block follows.
    """

    run: Run
    metrics: Metrics
    characters: int
    seconds: float
    held_out: Any
    saved: Path | None
    spike_step: int | None
    trouble: Trouble | None
    over: str

    def __repr__(self) -> str:
        """Return the last step, its loss, and the last evaluation."""
        loss, number = self.metrics.loss[-1], len(self.metrics.loss)
        held_out = "" if self.held_out is None else f", held out {self.held_out}"
        over = f", over because of {self.over}" if self.over else ""
        return f"Block of {number:,} steps to {self.run.done:,}: loss {loss}{held_out}{over}"


def over_because(run: Run) -> str:
    """Return the reason why a run is over.

    Args:
        run: the run.

    Returns:
        "steps" if all steps are made, "patience" if the last `patience` evaluations brought no
        improvement, and "" if the run is not over.
    """
    if run.done >= run.options.steps:
        return "steps"
    losses = [directory.lowest(held_out) for _, held_out in run.history]
    patience = run.options.patience
    if patience and losses and len(losses) - 1 - int(np.argmin(losses)) >= patience:
        return "patience"
    return ""


def to_model(run: Run) -> Model:
    """Return the current model of a run.

    For a population it is the member with the lowest loss in the last evaluation.

    Args:
        run: the run.
    """
    held_out = run.history[-1][1] if run.history else None
    params = run.state.params
    if run.population:
        member = best_member(held_out)
        params, held_out = pick(params, member), held_out and held_out[member]
    return Model(
        run.rnn, run.vocabulary, params, run.options, run.done, held_out, context=context(run)
    )


def context(run: Run) -> tuple[int, ...]:
    """Return the `context` of the models of a run, from the beginning of the held-out text."""
    if run.options.lines:
        return ()
    number, length = run.held_out.number, run.held_out(0).inputs.shape[1]
    assert number is not None
    batch = run.held_out(np.arange(min(number, -(-CONTEXT // length))))
    # Each row of the evaluation set continues the one before it.
    ids, mask = (np.swapaxes(np.asarray(leaf), 0, 1) for leaf in (batch.inputs, batch.mask))
    return context_of(run.vocabulary, ids[mask > 0][:CONTEXT].tolist())


def best_member(losses: Any) -> int:
    """Return the number of the member with the lowest held-out loss; without losses the first."""
    return int(np.argmin([directory.lowest(loss) for loss in losses])) if losses else 0


def pick(tree: Any, index: Any) -> Any:
    """Index the first axis of every leaf of a pytree, such as members or steps."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
