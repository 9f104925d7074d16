"""The problem on which a candidate is checked: a loss, its arguments, and its gradient."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxrnn.analysis.lags import affordable_lags, split_by_lag
from jaxrnn.network.batch import Batch
from jaxrnn.network.layer import Cell
from jaxrnn.network.rnn import RNN
from jaxrnn.tree import by_name
from jaxrnn.verification.diagnosis.backward_pass import Pass, run_forward
from jaxrnn.verification.program import Program, trace

ValueAndGrad = Callable[..., tuple[Any, Any]]
Dtype = Literal["float64", "float32"]


class Network(NamedTuple):
    """The network and data of a problem whose loss is that of an `RNN`.

    Attributes:
        rnn: the network.
        h: the state before the first step, (L, B, H).
        batch: the checked batch, in which a masked target is replaced by a valid one.
        as_given: the batch with the targets that the caller gave, since they matter to a candidate
            that forgets the mask. Its mask is already multiplied by the lengths.
    """

    rnn: RNN
    h: Float[Array, "L B H"]
    batch: Batch
    as_given: Batch


class Problem(NamedTuple):
    """A loss and the arguments at which its gradient is compared, in float64.

    Attributes:
        args: the arguments; the gradient is taken with respect to the first.
        loss: a function of the first argument -> loss.
        value_and_grad: args -> (loss, gradient) by autodiff.
        terms: the approximate number of terms of the sums in the loss, for the tolerances.
        name: a description of `value_and_grad`.
        network: the network and its data; None if the loss is a function of the caller's.
        precision: why `value_and_grad` computes in float32; None if it computes in float64.
    """

    args: tuple[Any, ...]
    loss: Callable[[Any], Any]
    value_and_grad: ValueAndGrad
    terms: int
    name: str
    network: Network | None = None
    precision: str | None = None

    @property
    def params(self) -> Any:
        """The argument by which the loss is differentiated."""
        return self.args[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by name."""
        return {name: np.shape(leaf) for name, leaf in by_name(self.params).items()}


def trace_program(problem: Problem) -> Program:
    """Trace the loss, and return its custom derivative rules and its precision."""
    network = problem.network
    if network is not None and not callable(network.rnn.loss_function):
        return Program((), None)  # the built-in losses have no derivative rules of their own
    return trace(problem.loss, problem.params)


def forward_by_hand(problem: Problem) -> Pass | None:
    """Run the forward pass for the catalogue of bugs; return None if there is no network."""
    if problem.network is None:
        return None
    rnn, h, _, as_given = problem.network
    return run_forward(rnn, problem.params, h, as_given)


def gradient_by_lag(problem: Problem) -> tuple[Cell, ...]:
    """Compute the gradient of each cell by time lag, in NumPy; () if there is no network."""
    if problem.network is None:
        return ()
    rnn, h, batch, _ = problem.network
    lags = affordable_lags(rnn, batch.inputs.shape[1])
    return jax.tree.map(np.asarray, split_by_lag(rnn, problem.params, h, batch, lags).parts)
