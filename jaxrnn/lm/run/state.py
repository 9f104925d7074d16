"""What a run is: everything that training takes forward, and a block of steps of it."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.lm import batches as data
from jaxrnn.lm import options
from jaxrnn.lm.model import Model
from jaxrnn.lm.options import Options
from jaxrnn.lm.run import placement
from jaxrnn.lm.run.placement import Layout
from jaxrnn.lm.store import directory as folder
from jaxrnn.lm.vocabulary import Vocabulary
from jaxrnn.network.rnn import RNN
from jaxrnn.training.nonfinite import Trouble
from jaxrnn.training.step import Metrics, TrainState, TrainStep


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
        folder: where it is kept; None for one in memory, and in all processes but the first.
        remarks: which checkpoints were damaged, and what differs from where the run was made.
        layout: where the state lies, if on many devices.
    """

    options: Options
    rnn: RNN
    vocabulary: Vocabulary
    text: dict[str, Any]
    step: TrainStep
    state: TrainState
    source: data.Source
    held_out: data.EvalSet
    history: tuple[tuple[int, Any], ...] = ()
    folder: Path | None = None
    remarks: tuple[str, ...] = ()
    layout: Layout | None = None

    @property
    def population(self) -> bool:
        """Whether many models are trained at once."""
        return options.number_of_members(self.options) > 1

    @property
    def done(self) -> int:
        """The number of updates made."""
        return int(np.max(np.asarray(self.state.step)))

    def on_one_device(self) -> "Run":
        """Return the run with its whole state on one device; all processes must ask at once."""
        if self.layout is None:
            return self
        return self._replace(state=placement.gathered(self.layout, self.state))


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


def over_because(run: Run) -> str:
    """Say why a run is over: "steps" or "patience"; "" if it is not."""
    if run.done >= run.options.steps:
        return "steps"
    losses = [folder.lowest(held_out) for _, held_out in run.history]
    patience = run.options.patience
    if patience and losses and len(losses) - 1 - int(np.argmin(losses)) >= patience:
        return "patience"
    return ""


def to_model(run: Run) -> Model:
    """Return a run's model as it is now; of a population the one that was the best at last."""
    held_out = run.history[-1][1] if run.history else None
    params = run.state.params
    if run.population:
        params, held_out = best_member(params, held_out)
    return Model(run.rnn, run.vocabulary, params, run.options, run.done, held_out)


def best_member(params: Any, losses: Any) -> tuple[Any, float | None]:
    """Pick the best member, the first if none was evaluated, and its held-out loss."""
    if losses is None:
        return pick(params, 0), None
    number = int(np.argmin([folder.lowest(loss) for loss in losses]))
    return pick(params, number), losses[number]


def pick(tree: Any, places: Any) -> Any:
    """Pick one or some of what a pytree's leaves begin with: members, steps."""
    return jax.tree.map(lambda leaf: leaf[places], tree)
