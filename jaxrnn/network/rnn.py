"""The network: a description without arrays, its parameters as a pytree, and its loss.

    y_t = h_t W_hy + b_y            L = Σ_t ℓ(y_t, target_t), divided by the total weight for a mean

Arrays are batch-major, (B, T, ·), at the public interface and time-major, (T, B, ·), inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact, Int, Integer, PRNGKeyArray

from jaxrnn.network import checks, layer, validation
from jaxrnn.network.batch import (
    Batch,
    check_is_batch,
    share_of_loss,
    to_time_major,
    weigh,
    where_errors,
    within_lengths,
)
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.layer import ACTIVATIONS, Cell, Dynamics
from jaxrnn.network.losses import LOSSES, LossFunction, as_loss
from jaxrnn.network.stack import Params, Readout, forward, read_out

Initializer = Callable[..., Array]

ZEROS = jax.nn.initializers.zeros


# JAX's initializers are closures, which cannot be pickled. These module-level functions can be.


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


@dataclass(frozen=True, repr=False)
class RNN:
    """The description of a vanilla (Elman) RNN: frozen, hashable and without arrays.

        a_t = x_t W_xh + h_{t-1} W_hh + b_h
        h_t = (1 - leak) h_{t-1} + leak φ(a_t)
        y_t = h_t W_hy + b_y

    The input of layer l+1 is the state h of layer l (Elman 1990; the leak: Jaeger et al. 2007).

    Two descriptions are equal if their arguments are equal. A function that is defined twice is two
    different functions, so define an initialiser or a loss once and reuse it; otherwise functions
    that are jitted with the network compile again.

    Args:
        input_size: I, the number of features or the number of token ids.
        hidden_size: H, the number of units in each layer.
        output_size: O, the number of outputs.
        num_layers: L, the number of layers.
        activation: φ, one of "tanh", "relu", "sigmoid", "identity".
        leak: in (0, 1]; 1 gives the vanilla network.
        use_bias: whether there are biases b_h and b_y.
        loss_function: "softmax_cross_entropy" (nats), "squared_error" (Σ_o (y - target)²), or a
            function (outputs (B, T, O), targets) -> loss of each position (B, T).
        reduction: "mean" over the positions, weighted by the mask, or their "sum".
        input_init: initialiser of W_xh, as in `jax.nn.initializers`.
        recurrent_init: initialiser of W_hh.
        readout_init: initialiser of W_hy.
        bias_init: initialiser of b_h and b_y.

    Raises:
        ValueError: if an argument is outside its range.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> rnn
    RNN(input_size=5, hidden_size=4, output_size=2)  # 50 parameters
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
            object.__setattr__(self, name, int(size))  # NumPy integers can overflow
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

    @property
    def num_params(self) -> int:
        """The number of parameters: of every weight and bias."""
        H, O, bias = self.hidden_size, self.output_size, int(self.use_bias)
        inputs = self.input_size + (self.num_layers - 1) * H  # of all layers together
        return (inputs + self.num_layers * (H + bias)) * H + (H + bias) * O

    def __repr__(self) -> str:
        """Return the sizes, the arguments that are not at their defaults, and `num_params`."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = ", ".join(
            f"{field.name}={getattr(given[field.name], '__name__', repr(given[field.name]))}"
            for field in fields(self)
            if given[field.name] != field.default
        )
        return f"RNN({shown})  # {self.num_params:,} parameters"

    @property
    def dynamics(self) -> Dynamics:
        """φ and the leak of every layer, for the functions of `jaxrnn.network.layer`."""
        return Dynamics(ACTIVATIONS[self.activation], self.leak)

    def init(self, key: PRNGKeyArray, dtype: jax.typing.DTypeLike | None = None) -> Params:
        """Draw random parameters.

        Parameters of less than 32 bits are drawn in float32 and rounded.

        Args:
            key: a random key.
            dtype: the floating dtype of the parameters; JAX's default float if not given.

        Returns:
            The parameters, one `Cell` per layer and the `Readout`.

        Raises:
            ValueError: if key is an int, or dtype is not a floating dtype.
        """
        if isinstance(key, int):
            raise ValueError(f"key must be a random key, got {key}: jax.random.key({key})")
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
        """Return the initial state, zeros (num_layers, B, H)."""
        return jnp.zeros((self.num_layers, batch_size, self.hidden_size), dtype)

    def step(
        self,
        cell: Cell,
        x: Float[AnyArray, "B I"] | Integer[AnyArray, " B"],
        h: Float[AnyArray, "B H"],
    ) -> Float[Array, "B H"]:
        """Compute h_t of one layer from x_t and h_{t-1}.

        Args:
            cell: the parameters of the layer.
            x: x_t, features (B, I) or token ids (B,).
            h: h_{t-1}, (B, H).

        Returns:
            h_t, (B, H).

        Raises:
            ValueError: if x or h does not fit the cell.
        """
        x = checks.as_inputs(cell, x, 1)
        return layer.step(cell, x, checks.as_state(cell, h, x), self.dynamics)

    def unroll(
        self,
        cell: Cell,
        inputs: Float[AnyArray, "B T I"] | Integer[AnyArray, "B T"],
        h: Float[AnyArray, "B H"],
        lengths: Integer[AnyArray, " B"] | None = None,
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B H"]]:
        """Run one layer over a sequence, with hand-written BPTT as its derivative.

        `jax.grad` through this function computes the gradients of the cell, the inputs and h by the
        equations of `jaxrnn.gradients.bptt`, for any loss of the states. Forward-mode and higher
        derivatives and `jax.shard_map` work too.

        Args:
            cell: the parameters of the layer.
            inputs: features (B, T, I), or token ids (B, T).
            h: the state before the first step, (B, H).
            lengths: the number of steps of each row, (B,), as in `Batch`.

        Returns:
            The states h_1 … h_T as (B, T, H), and h_T (B, H), the initial state of the next chunk.

        Raises:
            ValueError: if the inputs, h or the lengths do not fit the cell.

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
        x, valid = to_time_major((inputs, within_lengths(lengths, inputs.shape[1])))
        states, h_last = layer.unroll(cell, x, h, valid, self.dynamics)
        return states.swapaxes(0, 1), h_last

    def apply(
        self,
        params: Params,
        inputs: Float[AnyArray, "B T I"] | Integer[AnyArray, "B T"],
        h: Float[AnyArray, "L B H"] | None = None,
        lengths: Integer[AnyArray, " B"] | None = None,
    ) -> tuple[Float[Array, "B T O"], Float[Array, "L B H"]]:
        """Compute the outputs of the network and its last state.

        Args:
            params: the parameters.
            inputs: features (B, T, I), or token ids (B, T).
            h: the state before the first step, (num_layers, B, H); zeros by default.
            lengths: the number of steps of each row, (B,). The state of a row does not change after
                its last step.

        Returns:
            The outputs (B, T, O) and the last state (num_layers, B, H).

        Raises:
            ValueError: if an argument does not fit the network.

        >>> import jax, jaxrnn
        >>> rnn = jaxrnn.RNN(5, 4, 2)
        >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
        >>> outputs, h_last = rnn.apply(params, jax.numpy.ones((3, 6, 5)), h)
        >>> outputs.shape, h_last.shape
        ((3, 6, 2), (1, 3, 4))
        """
        h = self.initial_state(len(inputs)) if h is None else h
        inputs, h, lengths = check_inputs(self, params, inputs, h, lengths)
        x, valid = to_time_major((inputs, within_lengths(lengths, inputs.shape[1])))
        trajectories, h_last = forward(self.dynamics, params.cells, x, h, valid)
        return read_out(params.readout, trajectories[-1].states).swapaxes(0, 1), h_last

    def states(
        self,
        params: Params,
        inputs: Float[AnyArray, "B T I"] | Integer[AnyArray, "B T"],
        h: Float[AnyArray, "L B H"] | None = None,
        lengths: Integer[AnyArray, " B"] | None = None,
    ) -> Float[Array, "L B T H"]:
        """Compute the hidden states of all layers at all steps.

        `jax.grad` through this function computes the gradients of `params` and h by the equations
        of `jaxrnn.gradients.bptt`, for any loss of the states.

        Args:
            params: the parameters.
            inputs: features (B, T, I), or token ids (B, T).
            h: the state before the first step, (num_layers, B, H); zeros by default.
            lengths: the number of steps of each row, (B,), as in `apply`.

        Returns:
            The states h_1 … h_T, (num_layers, B, T, H).

        Raises:
            ValueError: if an argument does not fit the network.

        >>> import jax, jaxrnn
        >>> rnn = jaxrnn.RNN(5, 4, 2, num_layers=2)
        >>> params = rnn.init(jax.random.key(0))
        >>> rnn.states(params, jax.numpy.ones((3, 6, 5))).shape
        (2, 3, 6, 4)
        """
        h = self.initial_state(len(inputs)) if h is None else h
        inputs, h, lengths = check_inputs(self, params, inputs, h, lengths)
        x, valid = to_time_major((inputs, within_lengths(lengths, inputs.shape[1])))
        states = []
        for cell, h_0 in zip(params.cells, h, strict=True):
            x, _ = layer.unroll(cell, x, h_0, valid, self.dynamics)
            states.append(x.swapaxes(0, 1))
        return jnp.stack(states)

    def loss(
        self, params: Params, h: Float[AnyArray, "L B H"], batch: Batch
    ) -> tuple[Inexact[Array, ""], Inexact[Array, "L B H"]]:
        """Compute the loss of a batch and the last state, in plain JAX.

            L = Σ_t w_t ℓ(y_t, target_t), with weights w_t of sum 1 for reduction="mean"

        Args:
            params: the parameters.
            h: the state before the first step, (num_layers, B, H).
            batch: the inputs and targets.

        Returns:
            The loss, a scalar of at least 32 bits, and the last state (num_layers, B, H).

        Raises:
            ValueError: if an argument does not fit the network.

        >>> import jax, jaxrnn
        >>> rnn = jaxrnn.RNN(5, 4, 2)
        >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
        >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
        >>> loss, h_last = rnn.loss(params, h, batch)
        >>> loss.shape, h_last.shape
        ((), (1, 3, 4))
        """
        batch, h = check_batch(self, params, batch, h)
        weighted = to_time_major(weigh(batch, self.reduction, h.dtype))
        trajectories, h_last = forward(
            self.dynamics, params.cells, weighted.inputs, h, weighted.valid
        )
        outputs = read_out(params.readout, trajectories[-1].states)
        if weighted.counted is not None:
            passes = where_errors(weighted.counted, joined=callable(self.loss_function))
            outputs = jnp.where(passes, outputs, lax.stop_gradient(outputs))
        losses = as_loss(self.loss_function).value(outputs, weighted.targets)
        return share_of_loss(losses, weighted).sum(), h_last


@cache
def param_shapes(rnn: RNN) -> Params:
    """Return the shapes of a network's parameters as `Params`."""
    return jax.eval_shape(rnn.init, jax.random.key(0))


def check_params(rnn: RNN, params: Params) -> None:
    """Raise `ValueError` for parameters of another structure or shape, or of several dtypes."""
    validation.check_params(params, param_shapes(rnn))


def check_inputs(
    rnn: RNN,
    params: Params,
    inputs: AnyArray,
    h: AnyArray,
    lengths: AnyArray | None = None,
) -> tuple[Array, Inexact[Array, "L B H"], Int[Array, " B"] | None]:
    """Check and convert the inputs, h and lengths: inputs and h to the parameters' dtype.

    Raises:
        ValueError: if shapes or dtypes do not fit the network, an id is out of range, or a feature
            is not finite.
    """
    check_params(rnn, params)
    return validation.as_inputs(params, inputs, h, lengths)


def check_batch(
    rnn: RNN, params: Params, batch: Batch, h: AnyArray
) -> tuple[Batch, Inexact[Array, "L B H"]]:
    """Check and convert a batch and h; raise as `check_inputs` does.

    A target that does not count is replaced by one that does, because the loss function may not be
    defined for its value.
    """
    check_is_batch(batch)
    check_params(rnn, params)
    return validation.as_batch(params, batch, h, rnn.loss_function)
