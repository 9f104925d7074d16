"""The network: a description without arrays, its parameters as a pytree, and its loss.

    y_t = h_t W_hy + b_y            L = Σ_t ℓ(y_t, target_t), divided by the count for a mean

Arrays are batch-major, (B, T, ·), for whoever calls, and time-major, (T, B, ·), inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact, Int, Integer, PRNGKeyArray

from jaxrnn import checks, layer
from jaxrnn.checks import AnyArray
from jaxrnn.layer import ACTIVATIONS, Cell, Tape, Trajectory, Tree
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
    """Sequences, and what the network should answer.

    Attributes:
        inputs: token ids (B, T) as integers, or features (B, T, I) as floats.
        targets: ids (B, T) for `softmax_cross_entropy`, (B, T, O) for `squared_error`.
        mask: the weight of each position in the loss, (B, T), at least 0; None gives each one the
            weight 1. The target at a position of weight 0 has no influence, whatever it is. The
            input there still drives the state.
        lengths: how many steps each row has, (B,), from 0 to T; None gives each row T steps. What
            stands after a row's length has no influence, and the row's state stays as it was after
            its last step, so that the next chunk of the row continues from there.

    The leaves are JAX or NumPy arrays. N batches, for N steps of training, are one `Batch` whose
    leaves have a leading axis N.
    """

    inputs: Integer[Any, "*N B T"] | Float[Any, "*N B T I"]
    targets: Any
    mask: Bool[Any, "*N B T"] | Float[Any, "*N B T"] | None = None
    lengths: Integer[Any, "*N B"] | None = None


class Weighted(NamedTuple):
    """A checked batch with the weight of each position in the loss; `weigh` makes it.

    Attributes:
        inputs: as in `Batch`.
        targets: as in `Batch`.
        weights: of each position, in float32 at least, divided by their sum for a mean.
        counted: whether a position's weight is not 0; None if every position counts.
        valid: whether a position is within its row's length; None if every position is.
    """

    inputs: Inexact[Array, "*positions I"] | Int[Array, "*positions"]
    targets: Array
    weights: Inexact[Array, "*positions"]
    counted: Bool[Array, "*positions"] | None
    valid: Bool[Array, "*positions"] | None


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
        """Draw parameters; `dtype` is JAX's default float if not given.

        Those of less than 32 bits are drawn in float32 and rounded.
        """
        dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype must be a floating dtype, got {dtype}")
        if dtype.itemsize < 4:
            return jax.tree.map(lambda leaf: leaf.astype(dtype), self.init(key, jnp.float32))
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
        lengths: Integer[AnyArray, " B"] | None = None,
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B H"]]:
        """Run one layer over a sequence, differentiated by hand-written BPTT.

        `jax.grad` through this gives the gradients of the cell, the inputs and h by the equations
        of `jaxrnn.gradients.bptt`, whatever loss stands on top. Forward-mode and higher derivatives
        work too, and so does `jax.shard_map`.

        Args:
            cell: the layer's parameters.
            inputs: (B, T, I), or ids (B, T).
            h: the state before the first step, (B, H).
            lengths: how many steps each row has, (B,), as in `Batch`.

        Returns:
            The states h_1 … h_T as (B, T, H), and h_T (B, H), to pass on to the next chunk.

        >>> import jax, jaxrnn
        >>> rnn = jaxrnn.RNN(5, 4, 2)
        >>> cell = rnn.init(jax.random.key(0)).cells[0]
        >>> x, h = jax.numpy.ones((3, 6, 5)), jax.numpy.zeros((3, 4))
        >>> jax.grad(lambda cell: rnn.unroll(cell, x, h)[0].sum())(cell).W_hh.shape
        (4, 4)
        """
        lengths = checks.as_lengths(lengths, inputs)
        inputs = checks.as_inputs(cell, inputs, 2, lengths)
        h = checks.as_state(cell, h, inputs)
        x, valid = time_major((inputs, _valid(lengths, inputs.shape[1])))
        states, h_last = layer.unroll(cell, x, h, valid, self.activation, self.leak)
        return states.swapaxes(0, 1), h_last

    def apply(
        self,
        params: Params,
        inputs: Float[AnyArray, "B T I"] | Integer[AnyArray, "B T"],
        h: Float[AnyArray, "L B H"],
        lengths: Integer[AnyArray, " B"] | None = None,
    ) -> tuple[Float[Array, "B T O"], Float[Array, "L B H"]]:
        """Run the whole network: inputs (B, T[, I]) and h to outputs (B, T, O) and the last h.

        With `lengths` (B,) the state of a row stays as it is after the row's last step.
        """
        inputs, h, lengths = check_inputs(self, params, inputs, h, lengths)
        x, valid = time_major((inputs, _valid(lengths, inputs.shape[1])))
        trajectories, h_last = forward(self, params.cells, x, h, valid)
        return _outputs(params.readout, trajectories[-1].states).swapaxes(0, 1), h_last

    def loss(
        self, params: Params, h: Float[AnyArray, "L B H"], batch: Batch
    ) -> tuple[Inexact[Array, ""], Inexact[Array, "L B H"]]:
        """Compute the loss of a batch from the state h, and the last state; plain JAX.

        The loss is in float32 at least.
        """
        batch, h = check_batch(self, params, batch, h)
        weighted = time_major(weigh(self, batch, h.dtype))
        trajectories, h_last = forward(self, params.cells, weighted.inputs, h, weighted.valid)
        outputs = _outputs(params.readout, trajectories[-1].states)
        if weighted.counted is not None:
            passes = _passes(self, weighted.counted)
            outputs = jnp.where(passes, outputs, lax.stop_gradient(outputs))
        losses = _loss(self).value(outputs, weighted.targets)
        return _share(losses, weighted).sum(), h_last


def forward(
    rnn: RNN,
    cells: tuple[Cell, ...],
    x: Array,
    h: Inexact[Array, "L B H"],
    valid: Bool[Array, "T B"] | None = None,
) -> tuple[tuple[Trajectory, ...], Inexact[Array, "L B H"]]:
    """Run the stack, time-major: every layer's trajectory, from the lowest, and last state."""
    trajectories, h_last = [], []
    for cell, h_0 in zip(cells, h, strict=True):
        trajectory, last = layer.forward(cell, x, h_0, rnn.activation, rnn.leak, valid)
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
    trajectories, _ = forward(rnn, params.cells, weighted.inputs, h, weighted.valid)
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
    positions, arrays = states.shape[:2], (states, batch.targets, batch.weights, batch.counted)
    if not callable(rnn.loss_function):  # each position by itself: rows, as the matmuls take them
        arrays = jax.tree.map(layer.rows_of, arrays)
    states, targets, weights, counted = arrays
    outputs = _outputs(readout, states)
    losses, d_outputs = _loss(rnn).value_and_grad(outputs, targets, weights)
    if counted is not None:
        losses = jnp.where(counted, losses, 0)
        d_outputs = jnp.where(_passes(rnn, counted), d_outputs, 0)
    shape = (*positions, outputs.shape[-1])
    return outputs.reshape(shape), losses.reshape(positions), d_outputs.reshape(shape)


def _share(losses: Inexact[Array, "*positions"], batch: Weighted) -> Inexact[Array, "*positions"]:
    """Return each position's share of the loss; it is 0 where the position does not count."""
    shares = batch.weights * losses.astype(batch.weights.dtype)
    return shares if batch.counted is None else jnp.where(batch.counted, shares, 0)


def _passes(rnn: RNN, counted: Bool[Array, "*positions"]) -> Bool[Array, "*any 1"]:
    """Return where dL/dy_t may differ from 0.

    That is at the positions that count. A loss of the caller's own may join positions: then it is
    everywhere, unless no position counts.
    """
    passes = counted.any(keepdims=True) if callable(rnn.loss_function) else counted
    return passes[..., None]


def _pull_back(
    readout: Readout, states: Float[Array, "T B H"], d_outputs: Float[Array, "T B O"]
) -> tuple[Readout, Float[Array, "T B H"]]:
    """Carry dL/dy_t back through the readout: its gradient, and the error."""
    rows, d_rows = layer.rows_of(states), layer.rows_of(d_outputs)
    grads = Readout(rows.T @ d_rows, None if readout.b_y is None else d_rows.sum(0))
    return grads, (d_rows @ readout.W_hy.T).reshape(states.shape)


def by_name(tree: Any) -> dict[str, Any]:
    """Return a pytree's leaves by their names, such as "cells[0].W_xh" for those of Params.

    A dict's leaves are named like attributes: "W_f", or "encoder.W_f" in a dict of dicts.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = ("".join(map(_entry, path)).lstrip(".") or "array" for path, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _entry(entry: Any) -> str:
    """Write one step of the way to a leaf."""
    key = getattr(entry, "key", None)
    return f".{key}" if isinstance(key, str) and key.isidentifier() else str(entry)


def time_major(tree: Tree) -> Tree:
    """Turn the leading axes of every leaf from (B, T) to (T, B), or back."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), tree)


def _outputs(readout: Readout, states: Array) -> Array:
    return layer.add_bias(states @ readout.W_hy, readout.b_y)


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


def weigh(rnn: RNN, batch: Batch, dtype: jax.typing.DTypeLike) -> Weighted:
    """Weigh each position of a checked batch by the mask, divided by its sum for a mean.

    Weights are counted and divided in float32 at least.
    """
    valid = _valid(batch.lengths, batch.inputs.shape[1])
    counted, weights = _counted(batch.mask, valid), _weights(batch, layer.wide(dtype))
    if rnn.reduction == "mean":
        total = weights.sum()
        weights = weights / jnp.where(total == 0, 1, total)  # 0 if nothing counts
    return Weighted(batch.inputs, batch.targets, weights, counted, valid)


def total_weight(batch: Batch) -> Array:
    """Return the sum of the weights of a batch's positions: what a mean divides by."""
    return _weights(batch, jnp.result_type(float)).sum()


def _weights(batch: Batch, dtype: jax.typing.DTypeLike) -> Array:
    """Return the mask as numbers, with 0 after each row's length."""
    positions = batch.inputs.shape[:2]
    weights = jnp.ones(positions, dtype) if batch.mask is None else batch.mask.astype(dtype)
    valid = _valid(batch.lengths, positions[1])
    return weights if valid is None else jnp.where(valid, weights, 0)


def _valid(lengths: Int[Array, " B"] | None, steps: int) -> Bool[Array, "B T"] | None:
    """Return which positions are within their row's length; None if all are."""
    return None if lengths is None else checks.within(lengths, steps)


def _counted(mask: Array | None, valid: Array | None) -> Bool[Array, "B T"] | None:
    """Return which positions count in the loss; None if all do."""
    if mask is None:
        return valid
    return mask != 0 if valid is None else (mask != 0) & valid


# What a caller hands over is checked here, once, with its own names and both shapes.


def as_state(params: Params, h: AnyArray) -> Inexact[Array, "L B H"]:
    """Return h in the parameters' dtype."""
    return checks.as_floats("h", h, params.readout.W_hy.dtype)


def check_inputs(
    rnn: RNN,
    params: Params,
    inputs: AnyArray,
    h: AnyArray,
    lengths: AnyArray | None = None,
) -> tuple[Array, Inexact[Array, "L B H"], Int[Array, " B"] | None]:
    """Return inputs and h in the parameters' dtype, and the lengths.

    Raises:
        ValueError: if shapes or dtypes do not fit the network, an id is out of range, or a feature
            is not finite.
    """
    check_params(rnn, params)
    lengths = checks.as_lengths(lengths, inputs)
    inputs = checks.as_inputs(params.cells[0], inputs, 2, lengths)
    h = as_state(params, h)
    expected = (rnn.num_layers, inputs.shape[0], rnn.hidden_size)
    if h.shape != expected:
        raise ValueError(
            f"h has shape {h.shape}, but inputs of shape {inputs.shape} need (layers, B, H) = "
            f"{expected}: start with rnn.initial_state({inputs.shape[0]})"
        )
    return inputs, h, lengths


def check_is_batch(batch: Any) -> None:
    """Raise `ValueError` unless a batch is a `Batch`."""
    if not isinstance(batch, Batch):
        raise ValueError(
            f"batch must be a jaxrnn.Batch, got a {type(batch).__name__}: "
            f"jaxrnn.Batch(inputs, targets)"
        )


def check_batch(
    rnn: RNN, params: Params, batch: Batch, h: AnyArray
) -> tuple[Batch, Inexact[Array, "L B H"]]:
    """Return the batch and h in the parameters' dtype; raise as `check_inputs` does.

    A target that does not count is replaced by one that does: the loss may be able to take no
    other value.
    """
    check_is_batch(batch)
    inputs, h, lengths = check_inputs(rnn, params, batch.inputs, h, batch.lengths)
    positions, dtype = inputs.shape[:2], h.dtype
    mask = None if batch.mask is None else checks.as_mask(batch.mask, positions, dtype)
    counted = _counted(mask, _valid(lengths, positions[1]))
    targets = checks.as_numbers("targets", batch.targets)
    if targets.shape[:2] == positions and counted is not None:
        targets = _with_counted_targets(targets, counted)
    if rnn.loss_function == "softmax_cross_entropy":
        checks.shape("targets", targets, positions, "one id a position, as in inputs")
        checks.ids("targets", targets, rnn.output_size, "output_size")
        targets = jnp.asarray(targets).astype(jnp.int32)
    elif rnn.loss_function == "squared_error":
        expected = (*positions, rnn.output_size)
        checks.shape("targets", targets, expected, "(B, T, O), as the outputs")
        checks.finite("targets", targets, "give its position the mask 0")
        targets = checks.as_floats("targets", targets, dtype)
    elif targets.shape[:2] != positions:
        raise ValueError(f"targets have shape {targets.shape}, but must begin with {positions}")
    elif jnp.issubdtype(targets.dtype, jnp.floating):
        targets = jnp.asarray(targets).astype(dtype)
    else:
        targets = checks.as_array("targets", targets)
    return Batch(inputs, targets, mask, lengths), h


def _with_counted_targets(targets: AnyArray, counted: Bool[Array, "B T"]) -> AnyArray:
    """Replace each target that does not count by one that does, of its own row if there is one.

    Where none counts at all the targets become 0.
    """
    xp: Any = np if checks.is_known(targets) and checks.is_known(counted) else jnp
    counted = xp.asarray(counted)
    first, rows = counted.argmax(1), counted.any(1)
    donor = xp.where(rows, xp.arange(len(rows)), rows.argmax())
    instead = xp.asarray(targets)[donor, first[donor]]
    instead = xp.where(rows.any(), instead, xp.zeros_like(instead))[:, None]
    return xp.where(xp.expand_dims(counted, tuple(range(2, targets.ndim))), targets, instead)


@cache
def param_shapes(rnn: RNN) -> Params:
    """Return the shapes of a network's parameters, in their structure."""
    return jax.eval_shape(rnn.init, jax.random.key(0))


def check_params(rnn: RNN, params: Params) -> None:
    """Raise `ValueError` for parameters of another structure or shape, or of several dtypes."""
    expected = param_shapes(rnn)
    if jax.tree.structure(params) != jax.tree.structure(expected):
        raise ValueError(
            f"params do not have the structure of this RNN's ({rnn.num_layers} layers, "
            f"use_bias={rnn.use_bias}): make them with rnn.init(key)"
        )
    dtype = jnp.result_type(params.cells[0].W_xh)
    first = "params.cells[0].W_xh"

    def check(path, leaf, shape):
        name = f"params{jax.tree_util.keystr(path)}"
        if jnp.shape(leaf) != shape.shape:
            raise ValueError(
                f"{name} has shape {jnp.shape(leaf)}, but this RNN "
                f"needs {shape.shape}: make them with rnn.init(key)"
            )
        found = jnp.result_type(leaf)
        if not jnp.issubdtype(found, jnp.inexact):
            raise ValueError(f"{name} has dtype {found}, but parameters are floats: convert it")
        if found != dtype:
            raise ValueError(f"{name} has dtype {found}, but {first} has {dtype}: convert one")

    jax.tree_util.tree_map_with_path(check, params, expected)
