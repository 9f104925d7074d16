"""What can be chosen for a run, and the parts that are made of it."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax
from jaxtyping import PRNGKeyArray

from jaxrnn import gradients
from jaxrnn.lm.vocabulary import Level
from jaxrnn.network import checks

Init = Literal["default", "uniform", "small-normal", "normal"]
_MOST_MEMBERS, _MOST_LAYERS = 10_000, 1000
_MOST = 2**31 - 1  # of a whole number: what 32 bits count
_MOST_LINE = 10_000  # symbols of a line that are read without having been asked for


@dataclass(frozen=True)
class Options:
    """How to train. What is None has a default that depends on the others."""

    level: Level = "char"
    """What the model reads and writes: characters, bytes, or words with sentence ends."""
    vocabulary_size: int | None = None
    """Words to know at most, the most frequent; default 8000. For --level word."""
    hidden_size: int = 256
    """Units in each layer (H)."""
    num_layers: int = 1
    """Layers in the stack."""
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    """The nonlinearity."""
    leak: float = 1.0
    """h = (1 - leak) h + leak φ(a); 1 is the vanilla network."""
    use_bias: bool = True
    """Whether there are b_h and b_y."""
    init: Init = "default"
    """Initial weights: LeCun normal with an orthogonal W_hh; uniform within 1/√fan-in; 0.01 times
    standard normal; or standard normal."""
    batch_size: int = 32
    """Rows of the text, or lines, read at once (B)."""
    length: int | None = None
    """Symbols that a row advances in a step: as far as gradients reach back (T); default 64. With
    --lines: as far as a line is read; default to its end."""
    lines: bool = False
    """Train on each line (of words: sentence) by itself, from h = 0 to its end, instead of on one
    long text."""
    steps: int = 4000
    """Updates to make."""
    algorithm: str = "bptt"
    """The gradient rule, with its options in parentheses: "truncated_bptt(window=8)". One of
    autodiff, bptt, checkpointed_bptt, dni, kernl, kf_rtrl, ok, parallel_bptt, rflo, rtrl, snap,
    truncated_bptt, uoro."""
    optimizer: Literal["adam", "rmsprop", "adagrad", "sgd"] = "adam"
    """Adam, RMSProp; or Adagrad or gradient descent with the settings of min-char-rnn."""
    learning_rate: float | None = None
    """The largest; default 0.003 for adam, 0.002 for rmsprop, 0.1 for the others."""
    learning_rates: tuple[float, ...] | None = None
    """Train a model with each of these, all at once in one program."""
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "cosine"
    """How the learning rate falls over the steps: not; to 0 along a cosine or a line; or by equal
    factors to a hundredth."""
    warmup: int = 0
    """Steps in which the learning rate first rises from 0."""
    weight_decay: float = 0.0
    """Of adam: the share of each weight, times the learning rate, that a step takes away."""
    clip: float | None = None
    """Largest gradient: for adam and rmsprop its norm, default 1; for adagrad and sgd each element,
    default 5 and 1."""
    held_out: float = 0.1
    """The share of the text kept for evaluation, of long texts at most a million symbols: its end,
    or lines chosen at random."""
    evaluate_every: int | None = None
    """Steps between evaluations; default a twentieth of all."""
    patience: int | None = None
    """Stop after so many evaluations without a better one; default never."""
    save_every: float = 60.0
    """Seconds between checkpoints, beside the one at each evaluation; 0: as often as can be."""
    keep: int = 2
    """How many of the newest evaluations' checkpoints to keep, beside the best. Those in between
    stay until the next evaluation."""
    seed: int = 0
    """For the weights, the order of lines and the samples."""
    seeds: int = 1
    """Train so many models at once in one program, with the seeds from --seed up."""


NETWORK = (  # what a model's weights fit, or made them
    "level", "vocabulary_size", "hidden_size", "num_layers", "activation", "leak", "use_bias",
    "init",
)  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """What may be otherwise when a run goes on. What is None stays as it is."""

    steps: int | None = None
    """Updates to make in all. The schedule of the learning rate follows them."""
    learning_rate: float | None = None
    """The largest learning rate, of all steps to come."""
    schedule: Literal["constant", "cosine", "linear", "exponential"] | None = None
    """How the learning rate falls over all the steps."""
    clip: float | None = None
    """Largest gradient, as in jaxrnn train."""
    weight_decay: float | None = None
    """Of adam: the share of each weight, times the learning rate, that a step takes away."""
    evaluate_every: int | None = None
    """Steps between evaluations."""
    patience: int | None = None
    """Stop after so many evaluations without a better one."""
    save_every: float | None = None
    """Seconds between checkpoints, beside the one at each evaluation."""
    keep: int | None = None
    """How many of the newest evaluations' checkpoints to keep, beside the best. Those in between
    stay until the next evaluation."""


class Member(NamedTuple):
    """One model of a population."""

    seed: int
    learning_rate: float


def check(options: Options) -> None:
    """Refuse options that cannot be, or contradict each other.

    Raises:
        ValueError: with the option, its value and what to do.
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
    for name, value in to_json(options).items():
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

    def only_for(name: str, given: bool, where: str, here: bool) -> None:
        if given and not here:
            raise ValueError(
                f"{name}={getattr(options, name)!r} is for {where} alone: leave it out, or use that"
            )

    sized = options.vocabulary_size is not None
    only_for("vocabulary_size", sized, "level word", options.level == "word")
    only_for(
        "weight_decay", options.weight_decay > 0, "optimizer adam", options.optimizer == "adam"
    )
    if options.learning_rate is not None and options.learning_rates:
        raise ValueError("learning_rate and learning_rates contradict each other: give one of them")
    if options.warmup >= options.steps:
        raise ValueError(f"warmup must be less than steps={options.steps}, got {options.warmup}")


def changed(options: Options, **changes: Any) -> Options:
    """Return the options of a run that goes on with changes, which are fields of `Changes`.

    Raises:
        ValueError: if one may not change, or the options cannot be then.
    """
    may = [field.name for field in dataclasses.fields(Changes)]
    for name in changes:
        if name not in may:
            raise ValueError(
                f"{name} cannot change when a run goes on, only {', '.join(may)}: start a new run"
            )
    new = {name: value for name, value in changes.items() if value is not None}
    if "learning_rate" in new and options.learning_rates:
        raise ValueError(
            f"learning_rate={new['learning_rate']} cannot replace the run's "
            f"{len(options.learning_rates)} learning_rates: leave it out, or start a new run"
        )
    options = dataclasses.replace(options, **new)
    check(options)
    return options


def of_model(options: Options, model: Options, given: Collection[str] | None = None) -> Options:
    """Return the options of a new run that starts from a model, with the model's network.

    Args:
        options: of the new run.
        model: of the model.
        given: the names of the options that somebody has chosen; default those that are not at
            their defaults.

    Raises:
        ValueError: if one of them contradicts the model.
    """
    if given is None:
        given = [name for name in NETWORK if getattr(options, name) != getattr(Options, name)]
    for name in NETWORK:
        value, of_its_own = getattr(options, name), getattr(model, name)
        if name in given and value != of_its_own:
            raise ValueError(
                f"{name}={value!r} contradicts the model to start from, which has "
                f"{name}={of_its_own!r}: leave it out"
            )
    return dataclasses.replace(options, **{name: getattr(model, name) for name in NETWORK})


def seed_key(seed: int) -> PRNGKeyArray:
    """Make a key of a seed; ValueError if it is negative or above 2⁶³ - 1."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0 … 2⁶³ - 1, got {seed}")
    return jax.random.key(seed)


def number_of_members(options: Options) -> int:
    """Count the models that are trained at once."""
    return options.seeds * (len(options.learning_rates or ()) or 1)


def members(options: Options) -> tuple[Member, ...]:
    """List the models that are trained at once, learning rate by learning rate."""
    default = {"adam": 0.003, "rmsprop": 0.002}.get(options.optimizer, 0.1)
    one = default if options.learning_rate is None else options.learning_rate
    seeds = range(options.seed, options.seed + options.seeds)
    return tuple(Member(seed, rate) for rate in options.learning_rates or (one,) for seed in seeds)


def length_of(options: Options, longest_line: int | None = None) -> int:
    """Tell how many steps a batch has: T, or of lines the longest's unless they are cut.

    Raises:
        ValueError: if the longest line is so long that it can hardly be meant.
    """
    if longest_line is None:
        return 64 if options.length is None else options.length
    if options.length is None and longest_line > _MOST_LINE:
        raise ValueError(
            f"the longest line has {longest_line:,} symbols, and all are padded to it: say how far "
            f"to read, such as --length 200, or train without --lines"
        )
    return longest_line if options.length is None else min(options.length, longest_line)


def to_json(options: Options) -> dict[str, Any]:
    """Write the options down."""
    return dataclasses.asdict(options)


def from_json(described: Any) -> Options:
    """Read options that were written down; those that are not there have their defaults.

    Raises:
        ValueError: if one is not known, or its value cannot be.
    """
    if not isinstance(described, dict):
        raise ValueError(f"options must be an object, got {described!r:.100}")
    kinds, described = get_type_hints(Options), _with_rule_options(described)
    for name, value in described.items():
        if name not in kinds:
            raise ValueError(f"it has an option that this version does not know: {name!r:.100}")
        if not _fits(value, kinds[name]):
            raise ValueError(f"its option {name} has a value that cannot be: {value!r:.100}")
    rates = described.get("learning_rates")
    chosen: dict[str, Any] = described | {"learning_rates": None if rates is None else tuple(rates)}
    options = Options(**chosen)
    check(options)
    return options


def _with_rule_options(described: dict[str, Any]) -> dict[str, Any]:
    """Move the options of a rule, which had names of their own in earlier versions, to the rule."""
    earlier = ("window", "n", "rank")
    values = {name: described[name] for name in earlier if described.get(name) is not None}
    described = {name: value for name, value in described.items() if name not in earlier}
    if values:
        written = ", ".join(f"{name}={value!r}" for name, value in values.items())
        described["algorithm"] = f"{described.get('algorithm')}({written})"
    return described


def _fits(value: Any, kind: Any) -> bool:
    """Say whether a value from JSON is of a kind."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_fits(v, get_args(kind)[0]) for v in value)
    if get_args(kind):  # a union
        return any(_fits(value, one) for one in get_args(kind))
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
