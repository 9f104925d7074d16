"""The parts of `jaxrnn check`: its options, a random network and batch, and the user's function."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxrnn.gradients.own import is_own, load
from jaxrnn.gradients.table import options_of, parse
from jaxrnn.lm.build import INITIALIZERS
from jaxrnn.lm.options import Init, seed_key
from jaxrnn.network.batch import Batch
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params
from jaxrnn.verification.claims import ClaimReport, verify_claim
from jaxrnn.verification.problem import Dtype
from jaxrnn.verification.references import Reference, complex_step, finite_difference
from jaxrnn.verification.report import Report
from jaxrnn.verification.verify import verify


@dataclass(frozen=True)
class CheckOptions:
    """The gradient to check, and the network and batch to check it on."""

    algorithm: str = "bptt"
    """The gradient rule to check, written as in jaxrnn train, or a rule of your own, FILE.py:NAME
    or MODULE:NAME, a function rnn -> GradientAlgorithm."""
    claim: Literal["exact", "unbiased", "approximate"] | None = None
    """What the rule is checked for; default its own claim, and exact for a rule of your own."""
    function: str | None = None
    """Check your own function (params, batch) -> (loss, gradient) instead, given as MODULE:NAME.
    The module may lie in the current folder."""
    reference: Literal["autodiff", "finite-difference", "complex-step"] = "autodiff"
    """The reference to compare with. The last two only evaluate the loss."""
    dtype: Dtype = "float64"
    """Precision of the gradient. The reference is always computed in float64."""
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


class CheckSetup(NamedTuple):
    """The network, its parameters, its initial state and the batch of a check.

    The initial state is zero for the user's own function, which does not receive it.
    """

    rnn: RNN
    params: Params
    h: jax.Array
    batch: Batch


def draw_setup(options: CheckOptions) -> CheckSetup:
    """Draw random parameters, an initial state and a batch for a network of the given options.

    Raises:
        ValueError: if an option is out of range.
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
    return CheckSetup(rnn, rnn.init(params_key), h, Batch(inputs, targets, mask))


def named_reference(options: CheckOptions) -> Reference | None:
    """Return the reference that the options name, or None for autodiff."""
    references = {
        "autodiff": lambda: None,
        "finite-difference": finite_difference,
        "complex-step": complex_step,
    }
    return references[options.reference]()


def check_claim(options: CheckOptions, setup: CheckSetup) -> Report | ClaimReport:
    """Check a rule against its claim, or the user's function against the reference.

    A reference or a dtype other than the default asks for the comparison with that reference.

    Raises:
        ValueError: if the rule or function cannot be loaded, or options contradict each other.
    """
    rnn, params, h, batch = setup
    reference = named_reference(options)
    candidate: Any
    if options.function is not None:
        if options.claim is not None:
            raise ValueError("claim is for --algorithm: a --function must be exact")
        candidate, claim, window = load(options.function), "exact", None
    else:
        rule, arguments = parse(options.algorithm)
        candidate = rule.build(rnn, **arguments)
        own_claim = "exact" if is_own(options.algorithm) else rule.claim_for(rnn)
        claim = options.claim or own_claim
        window = (options_of(rule) | arguments).get("window") if claim == "truncated" else None
    if claim == "exact" or reference is not None or options.dtype != "float64":
        return verify(candidate, rnn, params, batch, h=h, reference=reference, dtype=options.dtype)
    return verify_claim(candidate, rnn, params, batch, claim=claim, window=window, h=h)
