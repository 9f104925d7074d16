"""The loss of a model, or of a population of models, on an evaluation set of any size."""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn.network.batch import Batch
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params
from jaxrnn.training.evaluation import batch_losses
from jaxrnn.training.source import Source


class Scored(NamedTuple):
    """The loss on one part of an evaluation set.

    Attributes:
        total: the loss summed over the part, in nats.
        positions: the number of positions in that sum.
        done: the share of the evaluation set that was read, this part included.
    """

    total: Float[np.ndarray, "*members"]
    positions: float
    done: float


def score(
    rnn: RNN, params: Params, eval_set: Source, *, population: bool = False
) -> Iterator[Scored]:
    """Evaluate a model part by part; the hidden state is carried from one part to the next.

    Args:
        rnn: the network.
        params: the parameters; for a population each leaf has the members as its first axis.
        eval_set: the evaluation set.
        population: whether `params` are those of a population.
    """
    shape, number = eval_set(0).inputs.shape, eval_set.number
    assert number is not None  # an evaluation set has an end
    part = max(1, min(number, _POSITIONS // math.prod(shape)))
    members = (len(params.readout.W_hy),) if population else ()
    h_0 = rnn.initial_state(shape[0], params.readout.W_hy.dtype)
    h = jnp.broadcast_to(h_0, (*members, *h_0.shape))
    for first in range(0, number, part):
        batches = eval_set(np.arange(first, first + part))
        run = _population_losses if population else batch_losses
        h, (totals, counts) = run(rnn, params, h, batches, eval_set.continues)
        totals, counts = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
        positions = float(counts.reshape(-1, counts.shape[-1])[0].sum())
        done = min(1.0, (first + part) / number)
        yield Scored(np.asarray(totals.sum(-1)), positions, done)


def mean_loss(scored: Iterable[Scored]) -> Float[np.ndarray, "*members"]:
    """Compute the mean loss per position over all the parts."""
    totals, positions, _ = zip(*scored, strict=True)
    return np.asarray(np.sum(totals, 0) / sum(positions))


_POSITIONS = 2**20  # the largest number of positions in one jitted call


@partial(jax.jit, static_argnames=("rnn", "continues"))
def _population_losses(rnn: RNN, params: Params, h: Array, batches: Batch, continues: bool):
    """Compute the losses of every member of a population on the same batches."""
    losses = partial(batch_losses, rnn, batches=batches, continues=continues)
    return jax.vmap(lambda params, h: losses(params, h))(params, h)
