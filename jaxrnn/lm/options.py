"""The options of a run: their defaults and their validation."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax
from jaxtyping import PRNGKeyArray

from jaxrnn import gradients
from jaxrnn.gradients.own import is_own
from jaxrnn.lm.vocabulary import Level
from jaxrnn.network import checks

Init = Literal["default", "uniform", "small-normal", "normal"]
_MOST_MEMBERS, _MOST_LAYERS = 10_000, 1000
_MOST = 2**31 - 1  # the largest value of an integer option (int32)
_MOST_LINE = 10_000  # the longest line, in symbols, that is read whole if `length` is not set


@dataclass(frozen=True)
class Options:
    """The options of a new run. A None is replaced by a default that depends on other options.

    The text:
        level            "char", "byte" or "word": what one symbol is
        vocabulary_size  the number of words, None for 8000; with level="word"
        lines            True: each line is a sequence of its own, read from h = 0
        held_out         0.1, the share of the text that is held out for evaluation
        batch_size       32 rows in a batch (B)
        length           the time steps in a batch (T): None for 64, or for the longest line

    The network:
        hidden_size      256 units in each layer (H)
        num_layers       1 layer
        activation       "tanh", "relu", "sigmoid" or "identity"
        leak             1.0 is the vanilla network; above 0
        use_bias         True: there are biases b_h and b_y
        init             "default", "uniform", "small-normal" or "normal": the initial weights

    Learning:
        algorithm        "bptt", or any rule of `jaxrnn.gradients.RULES`: "ok(rank=4)"
        optimizer        "adam", "rmsprop", "adagrad" or "sgd"
        learning_rate    its peak; None for 0.003 (adam), 0.002 (rmsprop) or 0.1
        learning_rates   several: one model for each, all at once
        schedule         "cosine", "linear", "exponential" or "constant": its decay
        warmup           0 steps over which it rises
        weight_decay     0.0; with optimizer="adam"
        clip             None for 1 (norm; adam, rmsprop), 5 (adagrad) or 1 (sgd; each element)
        steps            4000 updates
        seed             0, for the weights, the order of lines and the samples
        seeds            1 model; more are trained at once, with consecutive seeds

    Evaluation and files:
        evaluate_every   steps between evaluations, None for a twentieth of all or more
        patience         stop after so many evaluations without an improvement; None for never
        save_every       60.0 seconds between checkpoints
        keep             2 checkpoints of the newest evaluations, and the best one

    >>> import jaxrnn
    >>> jaxrnn.lm.Options(hidden_size=512, algorithm="truncated_bptt(window=8)").optimizer
    'adam'
    """

    level: Level = "char"
    """What one symbol is: a character, a byte, or a word (with marks for the ends of sentences)."""
    vocabulary_size: int | None = None
    """The number of words in the vocabulary, the most frequent ones; default 8000. Only for
    --level word."""
    hidden_size: int = 256
    """The number of units in each layer (H)."""
    num_layers: int = 1
    """The number of layers."""
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    """The nonlinearity φ."""
    leak: float = 1.0
    """The leak rate in h = (1 - leak) h + leak φ(a); 1 is the vanilla network."""
    use_bias: bool = True
    """Whether the network has the biases b_h and b_y."""
    init: Init = "default"
    """The distribution of the initial weights. default: LeCun normal, with an orthogonal W_hh;
    uniform: within ±1/√fan-in; small-normal: 0.01 times standard normal; normal: standard
    normal."""
    batch_size: int = 32
    """The number of rows in a batch (B): parts of the text, or lines with --lines."""
    length: int | None = None
    """The number of time steps in a batch (T), over which bptt propagates gradients; default 64.
    With --lines: the largest number of symbols read of a line; default the whole line."""
    lines: bool = False
    """Train on each line (with --level word: each sentence) separately, starting from h = 0,
    instead of on one continuous text."""
    steps: int = 4000
    """The number of updates."""
    algorithm: str = "bptt"
    """The gradient rule, with its options in parentheses: "truncated_bptt(window=8)". One of
    autodiff, bptt, checkpointed_bptt, dni, kernl, kf_rtrl, ok, parallel_bptt, rflo, rtrl, snap,
    truncated_bptt, uoro; or a rule of your own, FILE.py:NAME or MODULE:NAME, a function rnn ->
    GradientAlgorithm."""
    optimizer: Literal["adam", "rmsprop", "adagrad", "sgd"] = "adam"
    """The optimiser. adagrad and sgd (gradient descent) have the settings of min-char-rnn."""
    learning_rate: float | None = None
    """The peak learning rate; default 0.003 for adam, 0.002 for rmsprop, 0.1 for the others."""
    learning_rates: tuple[float, ...] | None = None
    """Train one model for each of these learning rates, all at once in one program."""
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "cosine"
    """How the learning rate decays over the steps. cosine and linear: to 0; exponential: to a
    hundredth of its peak; constant: not at all."""
    warmup: int = 0
    """The number of steps over which the learning rate rises linearly from 0 to its peak."""
    weight_decay: float = 0.0
    """The weight decay of adam: each step subtracts learning rate x weight decay x weight."""
    clip: float | None = None
    """The limit for gradient clipping. adam and rmsprop clip the norm, by default at 1; adagrad and
    sgd clip each element, by default at 5 and at 1."""
    held_out: float = 0.1
    """The share of the text that is held out for evaluation, at most a million symbols: the end of
    the text, or lines drawn at random with --lines."""
    evaluate_every: int | None = None
    """The number of steps between evaluations; default a twentieth of all steps, and more where
    evaluations would take over a tenth of the time."""
    patience: int | None = None
    """Stop after this many evaluations without an improvement; default never."""
    save_every: float = 60.0
    """Seconds between checkpoints, in addition to the one at each evaluation; 0 saves as often as
    possible."""
    keep: int = 2
    """The number of checkpoints to keep, of the newest evaluations; the best one is kept too.
    Checkpoints between two evaluations are removed after the next evaluation."""
    seed: int = 0
    """The random seed for the weights, the order of lines and the samples."""
    seeds: int = 1
    """Train this many models at once in one program, with consecutive seeds from --seed."""


NETWORK = (  # the options that a new run takes from the model that it starts from
    "level", "vocabulary_size", "hidden_size", "num_layers", "activation", "leak", "use_bias",
    "init",
)  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """The options that can be changed when a run is resumed. A None leaves an option unchanged."""

    steps: int | None = None
    """The total number of updates, including those already made. The schedule of the learning rate
    is adapted to it."""
    learning_rate: float | None = None
    """The peak learning rate for the remaining steps."""
    schedule: Literal["constant", "cosine", "linear", "exponential"] | None = None
    """How the learning rate decays over all the steps."""
    clip: float | None = None
    """The limit for gradient clipping, as in jaxrnn train."""
    weight_decay: float | None = None
    """The weight decay of adam: each step subtracts learning rate x weight decay x weight."""
    evaluate_every: int | None = None
    """The number of steps between evaluations."""
    patience: int | None = None
    """Stop after this many evaluations without an improvement."""
    save_every: float | None = None
    """Seconds between checkpoints, in addition to the one at each evaluation."""
    keep: int | None = None
    """The number of checkpoints to keep, of the newest evaluations; the best one is kept too.
    Checkpoints between two evaluations are removed after the next evaluation."""
    algorithm: str | None = None
    """The rule of the run, again, where it is a function of your own, FILE.py:NAME or MODULE:NAME:
    resuming runs that file."""


class Member(NamedTuple):
    """The seed and the learning rate of one model of a population."""

    seed: int
    learning_rate: float


def check_options(options: Options) -> None:
    """Check that each option is in its range and that the options do not contradict each other.

    Args:
        options: the options to check.

    Raises:
        ValueError: if an option is invalid; the message names it, its value and the remedy.
    """
    for name, kind in get_type_hints(Options).items():
        if get_origin(kind) is Literal:
            checks.one_of(name, getattr(options, name), get_args(kind))
    rates = options.learning_rates
    if rates is not None and not rates:
        raise ValueError("learning_rates is empty: give at least one, or leave it out")
    if number_of_members(options) > _MOST_MEMBERS:
        raise ValueError(
            f"seeds and learning_rates make {number_of_members(options):,} models, more than "
            f"{_MOST_MEMBERS:,} at once: train fewer"
        )
    if options.num_layers > _MOST_LAYERS:
        raise ValueError(f"num_layers must be at most {_MOST_LAYERS}, got {options.num_layers}")
    least = {"steps": 1, "batch_size": 1, "keep": 1, "seeds": 1, "warmup": 0}
    least |= {"length": 1, "evaluate_every": 1, "patience": 1}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {value}")
    for name, value in dataclasses.asdict(options).items():
        if name != "seed" and isinstance(value, int) and value > _MOST:
            raise ValueError(f"{name} must be at most {_MOST:,}, got {value:,}")
    rates = {f"learning_rates[{i}]": rate for i, rate in enumerate(rates or ())}
    rates |= {"learning_rate": options.learning_rate, "clip": options.clip}
    for name, value in rates.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
    for name in ("weight_decay", "save_every"):
        value = getattr(options, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    seed_key(options.seed)
    gradients.parse(options.algorithm)
    if not 0 < options.held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {options.held_out}")

    def only_for(name: str, is_set: bool, setting: str, applies: bool) -> None:
        if is_set and not applies:
            raise ValueError(
                f"{name}={getattr(options, name)!r} applies only to {setting}: leave it out, or "
                f"use {setting}"
            )

    has_size = options.vocabulary_size is not None
    only_for("vocabulary_size", has_size, "level word", options.level == "word")
    only_for(
        "weight_decay", options.weight_decay > 0, "optimizer adam", options.optimizer == "adam"
    )
    if options.learning_rate is not None and options.learning_rates:
        raise ValueError("learning_rate and learning_rates contradict each other: give one of them")
    if options.warmup >= options.steps:
        raise ValueError(f"warmup must be less than steps={options.steps}, got {options.warmup}")


def with_changes(options: Options, **changes: Any) -> Options:
    """Return the options of a resumed run with some of them changed.

    Args:
        options: the options of the run so far.
        **changes: new values of fields of `Changes`; None leaves an option unchanged.

    Raises:
        ValueError: if an option cannot be changed, or the changed options are invalid.
    """
    changeable = [field.name for field in dataclasses.fields(Changes)]
    for name in changes:
        if name not in changeable:
            raise ValueError(
                f"{name} cannot be changed when a run is resumed, only {', '.join(changeable)}: "
                f"start a new run"
            )
    new_values = {name: value for name, value in changes.items() if value is not None}
    if is_own(options.algorithm) and "algorithm" not in new_values:
        raise ValueError(
            f"the rule of this run, {options.algorithm}, is a file that resuming would run: if you "
            f"trust it, give algorithm={options.algorithm!r}"
        )
    if new_values.get("algorithm", options.algorithm) != options.algorithm:
        raise ValueError(
            f"algorithm={new_values['algorithm']!r} cannot replace the run's rule, "
            f"{options.algorithm}: start a new run"
        )
    if "learning_rate" in new_values and options.learning_rates:
        raise ValueError(
            f"learning_rate={new_values['learning_rate']} cannot replace the run's "
            f"{len(options.learning_rates)} learning_rates: leave it out, or start a new run"
        )
    options = dataclasses.replace(options, **new_values)
    check_options(options)
    return options


def with_network_of(
    options: Options, model: Options, given: Collection[str] | None = None
) -> Options:
    """Return the options of a new run that starts from the weights of a model.

    The options in `NETWORK` are those of the model.

    Args:
        options: the options of the new run.
        model: the options of the model.
        given: the names of the options that the user has set; default all options that differ from
            their defaults.

    Raises:
        ValueError: if one of the given options contradicts the model.
    """
    if given is None:
        given = [name for name in NETWORK if getattr(options, name) != getattr(Options, name)]
    for name in NETWORK:
        value, model_value = getattr(options, name), getattr(model, name)
        if name in given and value != model_value:
            raise ValueError(
                f"{name}={value!r} contradicts the model to start from, which has "
                f"{name}={model_value!r}: leave it out"
            )
    return dataclasses.replace(options, **{name: getattr(model, name) for name in NETWORK})


def seed_key(seed: int) -> PRNGKeyArray:
    """Return the random key of a seed; raise `ValueError` if it is negative or above 2⁶³ - 1."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0 … 2⁶³ - 1, got {seed}")
    return jax.random.key(seed)


def number_of_members(options: Options) -> int:
    """Return the number of models that are trained at once."""
    return options.seeds * (len(options.learning_rates or ()) or 1)


def members(options: Options) -> tuple[Member, ...]:
    """Return the models that are trained at once: all seeds for each learning rate in turn."""
    default = {"adam": 0.003, "rmsprop": 0.002}.get(options.optimizer, 0.1)
    single = default if options.learning_rate is None else options.learning_rate
    rates = options.learning_rates or (single,)
    seeds = range(options.seed, options.seed + options.seeds)
    return tuple(Member(seed, rate) for rate in rates for seed in seeds)


def length_of(options: Options, longest_line: int | None = None) -> int:
    """Return the number of time steps in a batch (T).

    Args:
        options: the options of the run.
        longest_line: the number of time steps of the longest line; None for one continuous text.

    Raises:
        ValueError: if `length` is not set and the longest line has more than 10,000 symbols.
    """
    if longest_line is None:
        return 64 if options.length is None else options.length
    if options.length is None and longest_line > _MOST_LINE:
        raise ValueError(
            f"the longest line has {longest_line:,} symbols, and all lines are padded to its "
            f"length: read less of each line, as with length=200, or train with lines=False"
        )
    return longest_line if options.length is None else min(options.length, longest_line)
