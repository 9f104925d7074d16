"""A whole run: text to batches, training, evaluation, samples.

Nothing is printed here; the command prints. `prepare` makes a `Run`, and `train` yields it forward
block by block.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from jaxrnn import data, gradients
from jaxrnn.checkpoint import SavedRun
from jaxrnn.gradients import GradientAlgorithm
from jaxrnn.network import LECUN_NORMAL, ORTHOGONAL, RNN, Batch, Initializer, Params
from jaxrnn.sample import sample
from jaxrnn.text import Vocabulary
from jaxrnn.train import (
    Metrics,
    TrainState,
    TrainStep,
    adagrad,
    evaluate,
    init_train_state,
    make_train_loop,
    make_train_step,
    sgd,
)

_UNIFORM = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1/√fan_in
_SMALL_NORMAL = jax.nn.initializers.normal(0.01)
_NORMAL = jax.nn.initializers.normal(1.0)

Init = Literal["default", "uniform", "small-normal", "normal"]
RULES = {  # what is exported under the name of its own file
    name: rule
    for name, rule in sorted(vars(gradients).items())
    if getattr(rule, "__module__", None) == f"{gradients.__name__}.{name}"
}
if TYPE_CHECKING:
    Algorithm = str
else:
    Algorithm = Literal[tuple(RULES)]


def _weights(init: Initializer, recurrent_init: Initializer) -> dict[str, Any]:
    return {"input_init": init, "recurrent_init": recurrent_init, "readout_init": init}


INITIALIZERS: dict[Init, dict[str, Any]] = {
    "default": _weights(LECUN_NORMAL, ORTHOGONAL),
    "uniform": _weights(_UNIFORM, _UNIFORM),
    "small-normal": _weights(_SMALL_NORMAL, _SMALL_NORMAL),
    "normal": _weights(_NORMAL, _NORMAL),
}

BLOCK = 50  # at most so many steps in one jitted call, between two signs of life
LINE = "\n"  # starts and ends a line


@dataclass(frozen=True)
class Options:
    """How to train."""

    hidden_size: int = 256
    """Units in each layer (H)."""
    num_layers: int = 1
    """Layers in the stack."""
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    """The nonlinearity."""
    leak: float = 1.0
    """h = (1 - leak) h + leak φ(a); 1 is the vanilla network."""
    init: Init = "default"
    """Initial weights: LeCun normal with an orthogonal W_hh; uniform within 1/√fan-in; 0.01 times
    standard normal; or standard normal."""
    batch_size: int = 32
    """Rows of the text, or lines, read at once (B)."""
    length: int = 64
    """Characters that a row advances in a step: as far as gradients reach back (T)."""
    lines: bool = False
    """Train on each line by itself, from h = 0 to its end, instead of on one long text."""
    steps: int = 4000
    """Updates to make."""
    algorithm: Algorithm = "bptt"
    """How gradients are computed."""
    window: int = 8
    """Recurrent steps that truncated_bptt reaches back; 0 is the one-hop gradient."""
    n: int = 1
    """Steps within which snap keeps a weight's influence."""
    rank: int = 1
    """Kronecker products that ok keeps."""
    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    """Adam; or Adagrad or gradient descent with the settings of min-char-rnn."""
    learning_rate: float | None = None
    """At the start, falling to 0 along a cosine; default 0.003 for adam, 0.1 for the others."""
    clip: float | None = None
    """Largest gradient: for adam its norm, default 1; for adagrad and sgd each element, default 5
    and 1."""
    held_out: float = 0.1
    """The share of the text kept for evaluation: its end, or lines chosen at random."""
    seed: int = 0
    """For the weights, the order of lines and the samples."""


class Run(NamedTuple):
    """A run before its first step.

    Attributes:
        options: how to train.
        rnn: the network.
        vocabulary: the characters of the whole text.
        step: the train step.
        state: the train state.
        source: step numbers to batches.
        held_out: the batches to evaluate on, (N, B, T).
    """

    options: Options
    rnn: RNN
    vocabulary: Vocabulary
    step: TrainStep
    state: TrainState
    source: data.Source
    held_out: Batch


class Block(NamedTuple):
    """Some steps of training.

    Attributes:
        state: after the last good one of them.
        metrics: of each; if it diverged, the last is the step that went wrong.
        characters: how many were read.
        diverged: whether a loss, gradient or update was not finite; then no block follows.
    """

    state: TrainState
    metrics: Metrics
    characters: int
    diverged: bool


def read_text(file: Path, encoding: str) -> str:
    """Read a text, its line ends as they are.

    Raises:
        ValueError: if there is no such file, it is empty, or not in this encoding.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not {encoding}: byte 0x{content[error.start]:02x} at position "
            f"{error.start:,}; name its encoding, for example --encoding latin-1"
        ) from error
    except LookupError as error:
        raise ValueError(f"{error}; try utf-8, utf-16, latin-1 or cp1252") from error
    if not text:
        raise ValueError(f"{file} is empty: give a file with text in it")
    return text


def documentation_topics() -> str:
    """Return the documentation topics that ship with CPython: English, about 465,000 characters."""
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise ValueError(
            "this Python comes without its documentation topics: give a FILE"
        ) from error
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def prepare(text: str, options: Options) -> Run:
    """Make everything that a run needs from its text.

    Raises:
        ValueError: if an option is outside its range, or the text is too short for the options.
    """
    for name in ("steps", "batch_size", "length"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    for name in ("learning_rate", "clip"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
    if not 0 < options.held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {options.held_out}")

    params_key, state_key = jax.random.split(seed_key(options.seed))
    vocabulary = Vocabulary.from_text(text + LINE if options.lines else text)
    rnn = RNN(
        vocabulary.size,
        options.hidden_size,
        vocabulary.size,
        num_layers=options.num_layers,
        activation=options.activation,
        leak=options.leak,
        **INITIALIZERS[options.init],
    )
    source, held_out = (_lines if options.lines else _stream)(text, vocabulary, options)
    algorithm = build(options.algorithm, rnn, window=options.window, n=options.n, rank=options.rank)
    if options.lines:
        algorithm = gradients.stateless(algorithm)
    optimizer = _optimizer(options)
    state = init_train_state(
        algorithm,
        optimizer,
        rnn.init(params_key),
        rnn.initial_state(options.batch_size),
        key=state_key,
    )
    step = make_train_step(algorithm, optimizer)
    return Run(options, rnn, vocabulary, step, state, source, held_out)


def seed_key(seed: int) -> PRNGKeyArray:
    """Make a key of a seed; ValueError if it is negative or above 2⁶³ - 1."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0 … 2⁶³ - 1, got {seed}")
    return jax.random.key(seed)


def train(run: Run) -> Iterator[Block]:
    """Train to the last step, or to the first that is not finite; the state is given back good."""
    loop = make_train_loop(run.step)
    steps, state = run.options.steps, run.state
    # Blocks of one size are one compilation; where no good size divides, the last one is another.
    block = max((size for size in range(10, BLOCK + 1) if steps % size == 0), default=BLOCK)
    for first in range(0, steps, block):
        batches = run.source(np.arange(first, min(first + block, steps)))
        # A copy is donated: the last good state outlives a step that fails or is interrupted.
        new_state, metrics = loop(jax.tree.map(jnp.copy, state), batches)
        if not metrics.finite.all():
            good = int(metrics.finite.argmin())
            batches = jax.tree.map(lambda leaf, n=good: leaf[:n], batches)
            state, _ = loop(jax.tree.map(jnp.copy, state), batches)
            metrics = jax.tree.map(lambda leaf, n=good: leaf[: n + 1], metrics)
            yield Block(state, metrics, 0, diverged=True)
            return
        mask = batches.mask
        characters = batches.inputs.size if mask is None else int(mask.sum())
        state = new_state
        yield Block(state, metrics, characters, diverged=False)


def held_out_loss(run: Run, params: Params) -> float:
    """Compute the mean loss on the text that was kept back, in nats per character."""
    loss = partial(evaluate, run.rnn, stateful=not run.options.lines)
    return float(jax.jit(loss)(params, run.held_out))


def write(
    saved: SavedRun,
    *,
    prime: str | None = None,
    length: int = 500,
    count: int = 1,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[str]:
    """Write texts with a trained model.

    Args:
        saved: the run.
        prime: what each text begins with; the start of a line if not given.
        length: characters to write; a model of lines stops at its line's end before that.
        count: how many texts.
        temperature: as in `jaxrnn.sample`.
        seed: of the draws.

    Raises:
        ValueError: for a character that the model does not know, or an argument out of its range.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    vocabulary, of_lines = saved.vocabulary, saved.options["lines"]
    start = LINE if LINE in vocabulary.symbols else vocabulary.symbols[0]
    if prime is not None:
        if not prime or (of_lines and LINE in prime):
            raise ValueError(f"prime must be the beginning of a text, of one line, got {prime!r}")
        start = LINE + prime if of_lines else prime
    drawn = sample(
        saved.rnn,
        saved.params,
        np.tile(vocabulary.encode(start), (count, 1)),
        length,
        key=seed_key(seed),
        temperature=temperature,
        end=int(vocabulary.encode(LINE)[0]) if of_lines else None,
    )
    texts = [start.removeprefix(LINE) + vocabulary.decode(row) for row in np.asarray(drawn)]
    return [text.split(LINE, 1)[0] for text in texts] if of_lines else texts


def _stream(text: str, vocabulary: Vocabulary, options: Options) -> tuple[data.Source, Batch]:
    ids = vocabulary.encode(text)
    cut = len(ids) - max(2, math.ceil(options.held_out * len(ids)))
    source = data.stream(ids[: max(cut, 0)], options.batch_size, options.length)
    return source, data.whole_text(ids[cut:], options.batch_size, options.length)


def _lines(text: str, vocabulary: Vocabulary, options: Options) -> tuple[data.Source, Batch]:
    lines = [line for line in (line.rstrip("\r") for line in text.split(LINE)) if line]
    if len(lines) < 2:
        raise ValueError(f"training on lines needs at least 2 that are not empty, got {len(lines)}")
    order = np.random.default_rng(options.seed).permutation(len(lines))
    kept = max(1, round(options.held_out * len(lines)))
    rows = data.pad_lines(vocabulary, [lines[i] for i in order], start=LINE, end=LINE)
    held_out = jax.tree.map(lambda leaf: leaf[:kept], rows)
    rows = jax.tree.map(lambda leaf: leaf[kept:], rows)
    if len(rows.inputs) < options.batch_size:
        raise ValueError(
            f"{len(rows.inputs)} lines to train on, beside {kept} held out, are fewer than a batch "
            f"of {options.batch_size}: use a smaller batch size, or hold out less"
        )
    source = data.shuffled(rows, options.batch_size, options.seed)
    return source, data.grouped(held_out, options.batch_size)


def build(name: Algorithm, rnn: RNN, **settings: int) -> GradientAlgorithm:
    """Make a gradient algorithm by its name, with those of the settings that it takes."""
    takes = inspect.signature(RULES[name]).parameters
    return RULES[name](rnn, **{key: value for key, value in settings.items() if key in takes})


def _optimizer(options: Options) -> optax.GradientTransformation:
    default = 0.003 if options.optimizer == "adam" else 0.1
    start = default if options.learning_rate is None else options.learning_rate
    learning_rate = optax.cosine_decay_schedule(start, options.steps)
    clip = {} if options.clip is None else {"clip": options.clip}
    if options.optimizer == "adagrad":
        return adagrad(learning_rate, **clip)
    if options.optimizer == "sgd":
        return sgd(learning_rate, **clip)
    return optax.chain(optax.clip_by_global_norm(clip.get("clip", 1.0)), optax.adam(learning_rate))
