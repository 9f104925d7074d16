"""The network: a description without arrays, its parameters as a pytree, and its loss.

    y_t = h_t W_hy + b_y            L = Σ_t ℓ(y_t, target_t), divided by the count for a mean

Arrays are batch-major, (B, T, ·), for whoever calls, and time-major, (T, B, ·), inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int, Integer, PRNGKeyArray

from jaxrnn import checks, layer
from jaxrnn.checks import AnyArray
from jaxrnn.layer import ACTIVATIONS, Cell, Tape, Trajectory
from jaxrnn.losses import LOSSES, Loss, LossFunction, through_autodiff

Initializer = Callable[..., Array]

ZEROS = jax.nn.initializers.zeros


# Functions of a module, and not the closures that JAX makes, so that a network can be pickled.


def lecun_normal(
    key: PRNGKeyArray, shape: Sequence[int], dtype: jax.typing.DTypeLike | None = None
) -> Array:
    """Draw from a truncated normal distribution of variance 1 / fan-in (LeCun et al. 1998)."""
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)


def orthogonal(
    key: PRNGKeyArray, shape: Sequence[int], dtype: jax.typing.DTypeLike | None = None
) -> Array:
    """Draw a random orthogonal matrix (Saxe, McClelland & Ganguli 2014)."""
    return jax.nn.initializers.orthogonal()(key, shape, dtype)


class Readout(NamedTuple):
    """Parameters of the readout; `b_y` is None for a network without bias."""

    W_hy: Float[Array, "H O"]
    b_y: Float[Array, " O"] | None


class Params(NamedTuple):
    """All parameters of a network: one cell a layer, from the input up, and the readout."""

    cells: tuple[Cell, ...]
    readout: Readout


class Batch(NamedTuple):
    """Sequences and what the network should answer.

    Attributes:
        inputs: token ids (B, T) as integers, or features (B, T, I) as floats.
        targets: ids (B, T) for `softmax_cross_entropy`, (B, T, O) for `squared_error`.
        mask: the weight of each position in the loss, (B, T); None counts every one once. Where it
            is 0 the target does not matter; the input does, to the state after it.

    JAX or NumPy arrays. N of them, to be worked off one after another, are one with a leading N.
    """

    inputs: Integer[Any, "*N B T"] | Float[Any, "*N B T I"]
    targets: Any
    mask: Bool[Any, "*N B T"] | Float[Any, "*N B T"] | None = None


class Weighted(NamedTuple):
    """A batch that has been checked, and each position's weight in the loss; see `weigh`."""

    inputs: Inexact[Array, "*positions I"] | Int[Array, "*positions"]
    targets: Array
    weights: Inexact[Array, "*positions"]


@dataclass(frozen=True)
class RNN:
    """A vanilla (Elman) RNN: what it is, without an array in it; frozen and hashable.

        a_t = x_t W_xh + h_{t-1} W_hh + b_h
        h_t = (1 - leak) h_{t-1} + leak φ(a_t)
        y_t = h_t W_hy + b_y

    Layer l+1 takes layer l's h as its input (Elman 1990; the leak: Jaeger et al. 2007).

    Args:
        input_size: I, the number of features, or of different ids.
        hidden_size: H, units in each layer.
        output_size: O.
        num_layers: layers in the stack.
        activation: φ, one of "tanh", "relu", "sigmoid", "identity".
        leak: in (0, 1]; 1 is the vanilla network.
        use_bias: whether there are b_h and b_y.
        loss_function: "softmax_cross_entropy" (nats), "squared_error" (Σ_o (y - target)²), or a
            function (outputs (B, T, O), targets) -> one loss a position (B, T).
        reduction: "mean" over the positions, each weighted by the mask, or their "sum".
        input_init: initialiser of W_xh, as in `jax.nn.initializers`.
        recurrent_init: initialiser of W_hh.
        readout_init: initialiser of W_hy.
        bias_init: initialiser of b_h and b_y.

    Two descriptions are equal if their arguments are; an initialiser or a loss that is made anew is
    another function, so keep it in a name, or what is jitted with it compiles again.

    Raises:
        ValueError: if an argument is outside its range.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> rnn.init(jax.random.key(0)).cells[0].W_xh.shape
    (5, 4)
    """

    input_size: int
    hidden_size: int
    output_size: int
    _: KW_ONLY
    num_layers: int = 1
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    leak: float = 1.0
    use_bias: bool = True
    loss_function: str | LossFunction = "softmax_cross_entropy"
    reduction: Literal["mean", "sum"] = "mean"
    input_init: Initializer = lecun_normal
    recurrent_init: Initializer = orthogonal
    readout_init: Initializer = lecun_normal
    bias_init: Initializer = ZEROS

    def __post_init__(self):
        for name in ("input_size", "hidden_size", "output_size", "num_layers"):
            size = getattr(self, name)
            checks.whole(name, size, 1)
            object.__setattr__(self, name, int(size))  # a NumPy integer would overflow later
        if not 0 < self.leak <= 1:
            raise ValueError(f"leak must be above 0 and at most 1 (1 is no leak), got {self.leak}")
        object.__setattr__(self, "leak", float(self.leak))
        checks.one_of("activation", self.activation, ACTIVATIONS)
        checks.one_of("reduction", self.reduction, ("mean", "sum"))
        if not callable(self.loss_function):
            checks.one_of(
                "loss_function",
                self.loss_function,
                LOSSES,
                " or a function (outputs, targets) -> per-position loss",
            )

    def init(self, key: PRNGKeyArray, dtype: jax.typing.DTypeLike | None = None) -> Params:
        """Draw parameters; `dtype` is JAX's default float if not given."""
        dtype = jnp.result_type(float) if dtype is None else dtype
        H, O = self.hidden_size, self.output_size
        *cell_keys, readout_key = jax.random.split(key, self.num_layers + 1)

        def cell(key, fan_in):
            input_key, recurrent_key, bias_key = jax.random.split(key, 3)
            return Cell(
                self.input_init(input_key, (fan_in, H), dtype),
                self.recurrent_init(recurrent_key, (H, H), dtype),
                self.bias_init(bias_key, (H,), dtype) if self.use_bias else None,
            )

        weight_key, bias_key = jax.random.split(readout_key)
        readout = Readout(
            self.readout_init(weight_key, (H, O), dtype),
            self.bias_init(bias_key, (O,), dtype) if self.use_bias else None,
        )
        fans_in = [self.input_size] + [H] * (self.num_layers - 1)
        return Params(tuple(map(cell, cell_keys, fans_in)), readout)

    def initial_state(
        self, batch_size: int, dtype: jax.typing.DTypeLike | None = None
    ) -> Float[Array, "L B H"]:
        """Return the state before any input: zeros (num_layers, B, H)."""
        return jnp.zeros((self.num_layers, batch_size, self.hidden_size), dtype)

    def step(
        self,
        cell: Cell,
        x: Float[AnyArray, "B I"] | Integer[AnyArray, " B"],
        h: Float[AnyArray, "B H"],
    ) -> Float[Array, "B H"]:
        """Take one step of one layer: x_t (B, I) or ids (B,), and h_{t-1} (B, H), to h_t."""
        x = checks.as_inputs(cell, x, 1)
        return layer.step(cell, x, checks.as_state(cell, h, x), self.activation, self.leak)

    def unroll(
        self,
        cell: Cell,
        inputs: Float[AnyArray, "B T I"] | Integer[AnyArray, "B T"],
        h: Float[AnyArray, "B H"],
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B H"]]:
        """Run one layer over a sequence, differentiated by hand-written BPTT.

        `jax.grad` through this gives the gradients of the cell, the inputs and h by
        `jaxrnn.gradients.bptt`'s backward pass (`jax.custom_vjp`), whatever loss stands on top.
        For forward-mode or higher derivatives use `apply`, which is plain JAX.

        Args:
            cell: the layer's parameters.
            inputs: (B, T, I), or ids (B, T).
            h: the state before the first step, (B, H).

        Returns:
            The states h_1 … h_T as (B, T, H), and h_T (B, H), to pass on to the next chunk.
        """
        inputs = checks.as_inputs(cell, inputs, 2)
        h = checks.as_state(cell, h, inputs)
        states, h_last = layer.unroll(cell, inputs.swapaxes(0, 1), h, self.activation, self.leak)
        return states.swapaxes(0, 1), h_last

    def apply(
        self,
        params: Params,
        inputs: Float[AnyArray, "B T I"] | Integer[AnyArray, "B T"],
        h: Float[AnyArray, "L B H"],
    ) -> tuple[Float[Array, "B T O"], Float[Array, "L B H"]]:
        """Run the whole network: inputs (B, T[, I]) and h to outputs (B, T, O) and the last h."""
        inputs, h = check_inputs(self, params, inputs, h)
        trajectories, h_last = forward(self, params.cells, inputs.swapaxes(0, 1), h)
        return _outputs(params.readout, trajectories[-1].states).swapaxes(0, 1), h_last

    def loss(
        self, params: Params, h: Float[AnyArray, "L B H"], batch: Batch
    ) -> tuple[Inexact[Array, ""], Inexact[Array, "L B H"]]:
        """Compute the loss of a batch from the state h, and the last state; plain JAX."""
        batch, h = check_batch(self, params, batch, h)
        weighted = time_major(weigh(self, batch, h.dtype))
        trajectories, h_last = forward(self, params.cells, weighted.inputs, h)
        outputs = _outputs(params.readout, trajectories[-1].states)
        losses = _loss(self).value(outputs, weighted.targets)
        return jnp.sum(weighted.weights * losses), h_last


def forward(
    rnn: RNN, cells: tuple[Cell, ...], x: Array, h: Inexact[Array, "L B H"]
) -> tuple[tuple[Trajectory, ...], Inexact[Array, "L B H"]]:
    """Run the stack, time-major: every layer's trajectory, from the lowest, and last state."""
    trajectories, h_last = [], []
    for cell, h_0 in zip(cells, h, strict=True):
        trajectory, last = layer.forward(cell, x, h_0, rnn.activation, rnn.leak)
        trajectories.append(trajectory)
        h_last.append(last)
        x = trajectory.states
    return tuple(trajectories), jnp.stack(h_last)


def back_substitute(
    rnn: RNN,
    cells: tuple[Cell, ...],
    trajectories: tuple[Trajectory, ...],
    error: Float[Array, "T B H"],
    beyond: Float[Array, "L B H"],
) -> tuple[tuple[Float[Array, "T B H"], ...], Float[Array, "L B H"]]:
    """Run the stack backward, from errors at the top layer: every layer's δ_t, and dL/dh_0.

    `beyond` is the part of dL/dh_T that comes from beyond the last step.
    """
    deltas, d_h0 = [], []
    for cell, trajectory, after in reversed(list(zip(cells, trajectories, beyond, strict=True))):
        delta, d_h = layer.back_substitute(cell, trajectory, error, after, rnn.activation, rnn.leak)
        deltas.append(delta)
        d_h0.append(d_h)
        error = layer.input_error(cell, delta)
    return tuple(deltas[::-1]), jnp.stack(d_h0[::-1])


class Errors(NamedTuple):
    """All that a backward pass starts from: one forward pass up to the errors; time-major.

    Attributes:
        trajectories: every layer's, from the lowest.
        tapes: what each layer's backward pass reads.
        h_last: every layer's last state.
        outputs: y_t.
        losses: each position's share of the loss.
        d_outputs: dL/dy_t.
        readout: the readout's gradient.
        error: e_t = dL/dy_t W_hyᵀ, what step t's own loss says about h_t at the top layer.
    """

    trajectories: tuple[Trajectory, ...]
    tapes: tuple[Tape, ...]
    h_last: Float[Array, "L B H"]
    outputs: Float[Array, "T B O"]
    losses: Float[Array, "T B"]
    d_outputs: Float[Array, "T B O"]
    readout: Readout
    error: Float[Array, "T B H"]


def errors(rnn: RNN, params: Params, h: AnyArray, batch: Batch) -> Errors:
    """Run the network forward and the loss back to the top layer; raise as `check_batch` does."""
    batch, h = check_batch(rnn, params, batch, h)
    weighted = time_major(weigh(rnn, batch, h.dtype))
    trajectories, _ = forward(rnn, params.cells, weighted.inputs, h)
    return errors_along(rnn, params, h, weighted, trajectories)


def errors_along(
    rnn: RNN,
    params: Params,
    h: Float[Array, "L B H"],
    batch: Weighted,
    trajectories: tuple[Trajectory, ...],
) -> Errors:
    """Take the loss back to the top layer, where the network ran forward from h already."""
    states = trajectories[-1].states
    inputs = (batch.inputs, *(trajectory.states for trajectory in trajectories[:-1]))
    tapes = tuple(
        layer.tape(x, h_0, trajectory, rnn.activation, rnn.leak)
        for x, h_0, trajectory in zip(inputs, h, trajectories, strict=True)
    )
    outputs, losses, d_outputs = outputs_and_grad(rnn, params.readout, states, batch)
    readout, error = _pull_back(params.readout, states, d_outputs)
    h_last = jnp.stack([trajectory.states[-1] for trajectory in trajectories])
    return Errors(trajectories, tapes, h_last, outputs, losses, d_outputs, readout, error)


def outputs_and_grad(
    rnn: RNN, readout: Readout, states: Float[Array, "T B H"], batch: Weighted
) -> tuple[Float[Array, "T B O"], Float[Array, "T B"], Float[Array, "T B O"]]:
    """Compute y_t, each position's share of the loss, and dL/dy_t; time-major."""
    positions, arrays = states.shape[:2], (states, batch.targets, batch.weights)
    if not callable(rnn.loss_function):  # each position by itself: rows, as the matmuls take them
        arrays = jax.tree.map(layer.rows_of, arrays)
    states, targets, weights = arrays
    outputs = _outputs(readout, states)
    losses, d_outputs = _loss(rnn).value_and_grad(outputs, targets, weights)
    shape = (*positions, outputs.shape[-1])
    return outputs.reshape(shape), losses.reshape(positions), d_outputs.reshape(shape)


def _pull_back(
    readout: Readout, states: Float[Array, "T B H"], d_outputs: Float[Array, "T B O"]
) -> tuple[Readout, Float[Array, "T B H"]]:
    """Carry dL/dy_t back through the readout: its gradient, and the error."""
    rows, d_rows = layer.rows_of(states), layer.rows_of(d_outputs)
    grads = Readout(rows.T @ d_rows, None if readout.b_y is None else d_rows.sum(0))
    return grads, (d_rows @ readout.W_hy.T).reshape(states.shape)


def by_name(tree: Any) -> dict[str, Any]:
    """Return a pytree's leaves by their names, such as "cells[0].W_xh" for those of Params."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path).lstrip(".") or "array": leaf for path, leaf in leaves}


AnyBatch = TypeVar("AnyBatch", Batch, Weighted)


def time_major(batch: AnyBatch) -> AnyBatch:
    """Turn a batch's leading axes from (B, T) to (T, B), or back."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), batch)


def _outputs(readout: Readout, states: Array) -> Array:
    outputs = states @ readout.W_hy
    return outputs if readout.b_y is None else outputs + readout.b_y


def _loss(rnn: RNN) -> Loss:
    """Find the loss, as functions of time-major arrays."""
    if not callable(rnn.loss_function):
        return LOSSES[rnn.loss_function]
    loss = rnn.loss_function

    def batch_first(outputs, targets):
        outputs, targets = outputs.swapaxes(0, 1), targets.swapaxes(0, 1)
        losses = jnp.asarray(loss(outputs, targets), outputs.dtype)
        checks.shape("the loss", losses, outputs.shape[:2], "one number a position, (B, T)")
        return losses.swapaxes(0, 1)

    return through_autodiff(batch_first)


def weigh(
    rnn: RNN, batch: Batch, dtype: jax.typing.DTypeLike, total: Array | None = None
) -> Weighted:
    """Weigh each position by the mask, over the `total_weight` for a mean.

    A batch that is a piece of another takes the total of that.
    """
    weights = _mask(batch, dtype)
    if rnn.reduction == "mean":
        total = total_weight(batch, dtype) if total is None else total
        weights = weights / jnp.where(total == 0, 1, total)  # 0 if nothing counts
    return Weighted(batch.inputs, batch.targets, weights)


def total_weight(batch: Batch, dtype: jax.typing.DTypeLike) -> Array:
    """Add up the mask: what the mean of a batch divides by."""
    return _mask(batch, dtype).sum()


def _mask(batch: Batch, dtype: jax.typing.DTypeLike) -> Array:
    return jnp.ones(batch.inputs.shape[:2], dtype) if batch.mask is None else batch.mask


# What a caller hands over is checked here, once, with its own names and both shapes.


def as_state(params: Params, h: AnyArray) -> Inexact[Array, "L B H"]:
    """Return h in the parameters' dtype."""
    return jnp.asarray(h, params.readout.W_hy.dtype)


def check_inputs(
    rnn: RNN, params: Params, inputs: AnyArray, h: AnyArray
) -> tuple[Array, Inexact[Array, "L B H"]]:
    """Return inputs and h in the parameters' dtype.

    Raises:
        ValueError: if shapes or dtypes do not fit the network, or an id is out of range.
    """
    check_params(rnn, params)
    inputs = checks.as_inputs(params.cells[0], inputs, 2)
    h = as_state(params, h)
    expected = (rnn.num_layers, inputs.shape[0], rnn.hidden_size)
    if h.shape != expected:
        raise ValueError(
            f"h has shape {h.shape}, but inputs of shape {inputs.shape} need (layers, B, H) = "
            f"{expected}: start with rnn.initial_state({inputs.shape[0]})"
        )
    return inputs, h


def check_batch(
    rnn: RNN, params: Params, batch: Batch, h: AnyArray
) -> tuple[Batch, Inexact[Array, "L B H"]]:
    """Return the batch and h in the parameters' dtype; raise as `check_inputs` does."""
    inputs, h = check_inputs(rnn, params, batch.inputs, h)
    targets = jnp.asarray(batch.targets)
    positions, dtype = inputs.shape[:2], h.dtype
    mask = batch.mask
    if mask is not None:
        mask = jnp.asarray(mask, dtype)
        checks.shape("mask", mask, positions, "one weight a position")
        if targets.shape[:2] == positions:  # what stands at a masked position does not matter
            counted = jnp.expand_dims(mask != 0, range(2, targets.ndim))
            targets = jnp.where(counted, targets, jnp.zeros_like(targets))
    if rnn.loss_function == "softmax_cross_entropy":
        checks.shape("targets", targets, positions, "one id a position, as in inputs")
        checks.ids("targets", targets, rnn.output_size, "output_size")
        targets = targets.astype(jnp.int32)
    elif rnn.loss_function == "squared_error":
        expected = (*positions, rnn.output_size)
        checks.shape("targets", targets, expected, "(B, T, O), as the outputs")
        targets = targets.astype(dtype)
    elif targets.shape[:2] != positions:
        raise ValueError(f"targets have shape {targets.shape}, but must begin with {positions}")
    elif jnp.issubdtype(targets.dtype, jnp.floating):
        targets = targets.astype(dtype)
    return Batch(inputs, targets, mask), h


@cache
def param_shapes(rnn: RNN) -> Params:
    """Return the shapes of a network's parameters, in their structure."""
    return jax.eval_shape(rnn.init, jax.random.key(0))


def check_params(rnn: RNN, params: Params) -> None:
    """Refuse parameters of another structure or shape."""
    expected = param_shapes(rnn)
    if jax.tree.structure(params) != jax.tree.structure(expected):
        raise ValueError(
            f"params do not have the structure of this RNN's ({rnn.num_layers} layers, "
            f"use_bias={rnn.use_bias}): make them with rnn.init(key)"
        )

    def check(path, leaf, shape):
        if jnp.shape(leaf) != shape.shape:
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, but this RNN "
                f"needs {shape.shape}: make them with rnn.init(key)"
            )

    jax.tree_util.tree_map_with_path(check, params, expected)
