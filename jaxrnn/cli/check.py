"""A gradient's trial by `jaxrnn check`: a random network and batch, and the function on trial."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxrnn.lm.build import INITIALIZERS
from jaxrnn.lm.options import Init, seed_key
from jaxrnn.network.batch import Batch
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params
from jaxrnn.verification.problem import Dtype
from jaxrnn.verification.references import Reference, complex_step, finite_difference


@dataclass(frozen=True)
class Options:
    """Which gradient to check, on what network and batch."""

    algorithm: str = "bptt"
    """The gradient to check: one of jaxrnn's rules, as in jaxrnn train;"""
    function: str | None = None
    """or your own function (params, batch) -> (loss, gradient), as MODULE:NAME; the module is
    looked for in this folder."""
    reference: Literal["autodiff", "finite-difference", "complex-step"] = "autodiff"
    """What to compare with. The last two ask the loss alone."""
    dtype: Dtype = "float64"
    """What the gradient is computed in; the reference is always in float64."""
    # No two sizes are alike, nor is B T one of them, so that a wrong factor has one meaning.
    input_size: int = 20
    """Features, or different ids (I)."""
    hidden_size: int = 32
    """Units in each layer (H)."""
    output_size: int = 10
    """Outputs (O)."""
    num_layers: int = 1
    """Layers in the stack."""
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    """The nonlinearity."""
    leak: float = 1.0
    """h = (1 - leak) h + leak φ(a); 1 is the vanilla network."""
    use_bias: bool = True
    """Whether there are b_h and b_y."""
    loss: Literal["softmax_cross_entropy", "squared_error"] = "softmax_cross_entropy"
    """The loss of each position."""
    reduction: Literal["mean", "sum"] = "mean"
    """Whether the loss is the positions' mean or their sum."""
    inputs: Literal["ids", "features"] = "ids"
    """Token ids, or vectors of numbers."""
    batch_size: int = 4
    """Sequences (B)."""
    length: int = 12
    """Steps (T)."""
    mask: bool = False
    """Whether to mask a part of the positions."""
    init: Init = "default"
    """Initial weights, as in jaxrnn train. Biases are drawn at random, so that they matter."""
    seed: int = 0
    """For the weights and the batch."""


class Trial(NamedTuple):
    """What to compare, on what; the state is zero for somebody's function, which is not told it."""

    rnn: RNN
    params: Params
    h: jax.Array
    batch: Batch


def prepare(options: Options) -> Trial:
    """Draw a network and a batch.

    Raises:
        ValueError: if an option is outside its range.
    """
    for name in ("batch_size", "length"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    rnn = RNN(
        options.input_size,
        options.hidden_size,
        options.output_size,
        num_layers=options.num_layers,
        activation=options.activation,
        leak=options.leak,
        use_bias=options.use_bias,
        loss_function=options.loss,
        reduction=options.reduction,
        bias_init=jax.nn.initializers.normal(0.1),
        **INITIALIZERS[options.init],
    )
    params_key, state_key = jax.random.split(seed_key(options.seed))
    rng, positions = np.random.default_rng(options.seed), (options.batch_size, options.length)
    if options.inputs == "ids":
        inputs = rng.integers(0, options.input_size, positions)
    else:
        inputs = rng.standard_normal((*positions, options.input_size))
    if options.loss == "squared_error":
        targets = rng.standard_normal((*positions, options.output_size))
    else:
        targets = rng.integers(0, options.output_size, positions)
    mask = rng.random(positions) < 0.7 if options.mask else None
    h = rnn.initial_state(options.batch_size)
    if options.function is None:
        h = h + 0.5 * jax.random.normal(state_key, h.shape)
    return Trial(rnn, rnn.init(params_key), h, Batch(inputs, targets, mask))


def reference(options: Options) -> Reference | None:
    """Make the reference; None is autodiff."""
    references = {
        "autodiff": lambda: None,
        "finite-difference": finite_difference,
        "complex-step": complex_step,
    }
    return references[options.reference]()


def load(function: str) -> Callable[..., Any]:
    """Import somebody's function by MODULE:NAME, from the current folder or what is installed.

    Raises:
        ValueError: if there is no such module or function, or the module fails.
    """
    module_name, colon, name = function.partition(":")
    if not (colon and module_name and name):
        raise ValueError(
            f"--function must be MODULE:NAME, such as backward:grads, got {function!r}"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name.removesuffix(".py").replace("/", "."))
    except Exception as error:  # whatever somebody's module does when it is imported
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot import {module_name} from {folder}: {said}") from error
    found = getattr(module, name, None)
    if not callable(found):
        others = [key for key, value in vars(module).items() if callable(value)]
        others = [key for key in others if not key.startswith("_")]
        raise ValueError(
            f"{module_name} has no function {name}; it has {', '.join(others) or 'none'}"
        )
    return found
