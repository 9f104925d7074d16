"""The options of a run: their defaults and their validation."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

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
        level: What one symbol is: a char, a byte or a word; words have marks for the ends of
            sentences (default: char).
        vocabulary_size: The number of words in the vocabulary, the most frequent ones; only for
            words (default: 8000).
        lines: Train on each line, or each sentence of words, separately and from h = 0, instead
            of on one continuous text.
        held_out: The share of the text that is held out for evaluation, at most a million symbols:
            the end of the text, or lines drawn at random (default: 0.1).
        batch_size: The number of rows in a batch (B): parts of the text, or lines (default: 32).
        length: The number of time steps in a batch (T), over which bptt propagates gradients; of
            lines the largest number of symbols that are read (default: 64, or the longest line).

    The network:
        hidden_size: The number of units in each layer (H) (default: 256).
        num_layers: The number of layers (default: 1).
        activation: The nonlinearity φ: tanh, relu, sigmoid or identity (default: tanh).
        leak: The leak rate in h = (1 - leak) h + leak φ(a); 1 is the vanilla network
            (default: 1.0).
        use_bias: Have the biases b_h and b_y (default: yes).
        init: The initial weights: "default" is LeCun normal with an orthogonal W_hh, uniform is
            within ±1/√fan-in, small-normal is 0.01 times standard normal, and normal is standard
            normal (default: default).

    The gradient:
        algorithm: The gradient rule, with its options in parentheses: "truncated_bptt(window=8)".
            One of autodiff, bptt, checkpointed_bptt, dni, kernl, kf_rtrl, ok, parallel_bptt, rflo,
            rtrl, snap, truncated_bptt, uoro; or a rule of your own, FILE.py:NAME or MODULE:NAME, a
            function rnn -> GradientAlgorithm (default: bptt).

    Learning:
        steps: The number of updates (default: 4000).
        optimizer: The optimiser: adam, rmsprop, adagrad or sgd (gradient descent). The last two
            have the settings of min-char-rnn (default: adam).
        learning_rate: The peak learning rate (default: 0.003 for adam, 0.002 for rmsprop, 0.1 for
            the others).
        schedule: How the learning rate decays over the steps: cosine or linear to 0, exponential to
            a hundredth of its peak, or constant (default: cosine).
        warmup: The number of steps over which the learning rate rises linearly from 0 to its peak
            (default: 0).
        weight_decay: The weight decay of adam: each step subtracts learning rate x weight decay x
            weight (default: 0.0).
        clip: The limit for gradient clipping: of the norm for adam and rmsprop, of each element for
            adagrad and sgd (default: 1, or 5 for adagrad).
        seed: The random seed for the weights, the order of lines and the samples (default: 0).

    Several models:
        seeds: Train this many models at once in one program, with consecutive seeds (default: 1).
        learning_rates: Train one model for each of these learning rates, all at once in one
            program.

    Evaluation and checkpoints:
        evaluate_every: The number of steps between evaluations (default: a twentieth of all steps,
            and more where evaluations would take over a tenth of the time).
        patience: Stop after this many evaluations without an improvement (default: never).
        save_every: Seconds between checkpoints, in addition to the one at each evaluation; 0 saves
            as often as possible (default: 60.0).
        keep: The number of checkpoints to keep, of the newest evaluations; the best one is kept
            too. Those between two evaluations are removed after the next evaluation (default: 2).

    >>> import jaxrnn
    >>> jaxrnn.lm.Options(hidden_size=512, algorithm="truncated_bptt(window=8)").optimizer
    'adam'
    """

    level: Level = "char"
    vocabulary_size: int | None = None
    hidden_size: int = 256
    num_layers: int = 1
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    leak: float = 1.0
    use_bias: bool = True
    init: Init = "default"
    batch_size: int = 32
    length: int | None = None
    lines: bool = False
    steps: int = 4000
    algorithm: Annotated[str, "RULE"] = "bptt"
    optimizer: Literal["adam", "rmsprop", "adagrad", "sgd"] = "adam"
    learning_rate: float | None = None
    learning_rates: tuple[float, ...] | None = None
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float | None = None
    held_out: float = 0.1
    evaluate_every: int | None = None
    patience: int | None = None
    save_every: float = 60.0
    keep: int = 2
    seed: int = 0
    seeds: int = 1


NETWORK = (  # the options that a new run takes from the model that it starts from
    "level", "vocabulary_size", "hidden_size", "num_layers", "activation", "leak", "use_bias",
    "init",
)  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """The options that can be changed when a run is resumed. A None leaves an option unchanged.

    Changes from here on:
        steps: The total number of updates, including those already made. The schedule of the
            learning rate is adapted to it.
        learning_rate: The peak learning rate for the remaining steps.
        schedule: How the learning rate decays over all the steps: cosine, linear, exponential or
            constant.
        clip: The limit for gradient clipping, as in jaxrnn train.
        weight_decay: The weight decay of adam: each step subtracts learning rate x weight decay x
            weight.
        evaluate_every: The number of steps between evaluations.
        patience: Stop after this many evaluations without an improvement.
        save_every: Seconds between checkpoints, in addition to the one at each evaluation.
        keep: The number of checkpoints to keep, of the newest evaluations; the best one is kept
            too. Those between two evaluations are removed after the next evaluation.
        algorithm: The rule of the run, again, where it is a function of your own, FILE.py:NAME or
            MODULE:NAME: resuming runs that file.
    """

    steps: int | None = None
    learning_rate: float | None = None
    schedule: Literal["constant", "cosine", "linear", "exponential"] | None = None
    clip: float | None = None
    weight_decay: float | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    save_every: float | None = None
    keep: int | None = None
    algorithm: Annotated[str | None, "RULE"] = None


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
