"""The network and the batch that `jaxrnn check`, `compare` and `flow` look at."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

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
    """The network and batch: random ones, or a trained model and its held-out text.

    A trained network:
        run: Use the trained model of this run on its held-out text, instead of a random network and
            batch.
        text: The file of the run's text, if it has moved.

    A random network:
        input_size: Number of input features, or of different ids (I) (default: 20).
        hidden_size: Units in each layer (H) (default: 32).
        output_size: Number of outputs (O) (default: 10).
        num_layers: Number of layers (default: 1).
        activation: The nonlinearity φ: tanh, relu, sigmoid or identity (default: tanh).
        leak: The leak rate in h = (1 - leak) h + leak φ(a); 1 is the vanilla network
            (default: 1.0).
        use_bias: Have the biases b_h and b_y (default: yes).
        init: The initial weights, as in jaxrnn train: "default", uniform, small-normal or normal.
            Biases are drawn at random instead of zero, so that they affect the gradient
            (default: default).
        seed: Random seed of the weights, the batch and the draws of a rule (default: 0).

    The batch and its loss:
        loss: The loss of each position: softmax_cross_entropy or squared_error (default:
            softmax_cross_entropy).
        reduction: The loss is the mean or the sum over the positions (default: mean).
        inputs: The inputs are token ids, or vectors of features (default: ids).
        batch_size: Sequences in the batch (B) (default: 4).
        length: Time steps of each sequence (T) (default: 12).
        mask: Mask some of the positions.
    """

    run: Annotated[Path | None, "RUN"] = None
    text: Path | None = None
    # All sizes differ from each other and from B T, so that a wrong factor has only one cause.
    input_size: int = 20
    hidden_size: int = 32
    output_size: int = 10
    num_layers: int = 1
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    leak: float = 1.0
    use_bias: bool = True
    loss: Literal["softmax_cross_entropy", "squared_error"] = "softmax_cross_entropy"
    reduction: Literal["mean", "sum"] = "mean"
    inputs: Literal["ids", "features"] = "ids"
    batch_size: int = 4
    length: int = 12
    mask: bool = False
    init: Init = "default"
    seed: int = 0


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
