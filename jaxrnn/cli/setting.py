"""The network and the batch that `jaxrnn check`, `compare` and `flow` look at."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxrnn import lm
from jaxrnn.lm.build import INITIALIZERS
from jaxrnn.lm.options import Init, seed_key
from jaxrnn.network.batch import Batch
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params


@dataclass(frozen=True)
class Setting:
    """The network and batch: random ones, or a trained model and its held-out text."""

    run: Path | None = None
    """Use the trained model of this run on its held-out text, instead of a random network and
    batch."""
    text: Path | None = None
    """The file of the run's text, if it has moved."""
    # All sizes differ from each other and from B T, so that a wrong factor has only one cause.
    input_size: int = 20
    """Number of input features, or of different ids (I)."""
    hidden_size: int = 32
    """Units in each layer (H)."""
    output_size: int = 10
    """Number of outputs (O)."""
    num_layers: int = 1
    """Number of layers."""
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    """The activation function φ."""
    leak: float = 1.0
    """h = (1 - leak) h + leak φ(a); 1 is the vanilla network."""
    use_bias: bool = True
    """Whether the network has the biases b_h and b_y."""
    loss: Literal["softmax_cross_entropy", "squared_error"] = "softmax_cross_entropy"
    """The loss of each position."""
    reduction: Literal["mean", "sum"] = "mean"
    """Whether the loss is the mean or the sum over the positions."""
    inputs: Literal["ids", "features"] = "ids"
    """Whether the inputs are token ids or feature vectors."""
    batch_size: int = 4
    """Sequences in the batch (B)."""
    length: int = 12
    """Time steps of each sequence (T)."""
    mask: bool = False
    """Whether to mask some of the positions."""
    init: Init = "default"
    """Initial weights, as in jaxrnn train. Biases are drawn at random instead of zero, so that they
    affect the gradient."""
    seed: int = 0
    """Random seed of the weights and the batch."""


SETTING = Setting()


class Subject(NamedTuple):
    """A network with its parameters, an initial state and a batch.

    Attributes:
        rnn: the network.
        params: its parameters.
        h: the initial state, (num_layers, B, H).
        batch: the batch.
        about: what they are, in one line.
    """

    rnn: RNN
    params: Params
    h: jax.Array
    batch: Batch
    about: str


def subject_of(setting: Setting) -> Subject:
    """Draw a random network and batch, or load those of a run.

    Raises:
        ValueError: if an option is out of range, or is for a random network and there is a run.
    """
    for name in ("batch_size", "length"):
        if getattr(setting, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(setting, name)}")
    if setting.run is not None:
        return _of_run(setting, setting.run)
    if setting.text is not None:
        raise ValueError("text is for a run whose text has moved: add run=RUN, or leave it out")
    return _random(setting)


def _of_run(setting: Setting, run: Path) -> Subject:
    """Load the model of a run, and the beginning of its held-out text.

    Of a continuous text the second batch is taken, with the state after the first.
    """
    also = ("run", "text", "batch_size", "length", "seed")
    for field in fields(Setting):
        if field.name not in also and getattr(setting, field.name) != field.default:
            raise ValueError(
                f"{field.name} is for a random network, and the model of {run} has its own: leave "
                f"it out"
            )
    model, source = lm.load(run), lm.held_out(run, text=setting.text)
    rnn, params = model.rnn, model.params
    batch = source(0)
    h = rnn.initial_state(len(batch.inputs))
    if source.continues and source.number != 1:
        h, batch = rnn.apply(params, batch.inputs, h)[1], source(1)
    batch = jax.tree.map(lambda leaf: leaf[: setting.batch_size, : setting.length], batch)
    B, T = batch.inputs.shape
    about = f"the model of {run} after step {model.step:,}, {B} rows of {T} steps held out"
    return Subject(rnn, params, h[:, :B], batch, about)


def _random(setting: Setting) -> Subject:
    """Draw random parameters, an initial state and a batch."""
    rnn = RNN(
        setting.input_size,
        setting.hidden_size,
        setting.output_size,
        num_layers=setting.num_layers,
        activation=setting.activation,
        leak=setting.leak,
        use_bias=setting.use_bias,
        loss_function=setting.loss,
        reduction=setting.reduction,
        bias_init=jax.nn.initializers.normal(0.1),
        **INITIALIZERS[setting.init],
    )
    params_key, state_key = jax.random.split(seed_key(setting.seed))
    rng, positions = np.random.default_rng(setting.seed), (setting.batch_size, setting.length)
    if setting.inputs == "ids":
        inputs = rng.integers(0, setting.input_size, positions)
    else:
        inputs = rng.standard_normal((*positions, setting.input_size))
    if setting.loss == "squared_error":
        targets = rng.standard_normal((*positions, setting.output_size))
    else:
        targets = rng.integers(0, setting.output_size, positions)
    mask = rng.random(positions) < 0.7 if setting.mask else None
    h = rnn.initial_state(setting.batch_size)
    h = h + 0.5 * jax.random.normal(state_key, h.shape)
    B, T = positions
    about = f"a random network of {setting.hidden_size} units, {B} sequences of {T} steps"
    return Subject(rnn, rnn.init(params_key), h, Batch(inputs, targets, mask), about)
