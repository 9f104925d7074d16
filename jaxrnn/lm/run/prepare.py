"""Preparation of a run in memory, before its first step, from a text and options."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrnn import gradients
from jaxrnn.lm import batches, build, corpus
from jaxrnn.lm.corpus import Corpus, Text
from jaxrnn.lm.model import Model, unknown_words
from jaxrnn.lm.options import Options, check_options, length_of, members, seed_key, with_network_of
from jaxrnn.lm.run.load import load
from jaxrnn.lm.run.placement import layout, spread
from jaxrnn.lm.run.state import Run
from jaxrnn.lm.store.header import TextRecord
from jaxrnn.lm.vocabulary import UNKNOWN
from jaxrnn.network.stack import Params
from jaxrnn.training.sharding import sharded
from jaxrnn.training.source import Source
from jaxrnn.training.step import TrainState, init_train_state, make_train_step

_DEFAULTS = Options()
_HELD_OUT = 1_000_000  # the largest number of symbols that are held out


def prepare(
    text: Text | str | Path,
    options: Options = _DEFAULTS,
    mesh: Mesh | None = None,
    *,
    init_from: Model | str | Path | None = None,
) -> Run:
    """Prepare a run in memory: encode its text and initialise its state.

    Args:
        text: the text to train on: the path of a file in UTF-8, or a `Text`.
        options: the options of the run.
        mesh: the devices over which the rows of each batch are sharded; default one device.
        init_from: a model, or the path of the run or checkpoint to load it from. The run starts
            from its weights and has its vocabulary. Network options that are at their defaults are
            those of the model. The optimiser and the step number start anew.

    Returns:
        The run before its first step, without a folder.

    Raises:
        ValueError: if an option is outside its range or contradicts the model, the text is too
            short for the options or has characters that are not in the model's vocabulary, or the
            batch size is not divisible by the number of devices.

    >>> run = prepare(Text.from_string("to be or not to be " * 9), Options(batch_size=2, length=8))
    >>> run.done, run.vocabulary.size
    (0, 7)
    """
    model = load(init_from) if isinstance(init_from, str | Path) else init_from
    if model is not None:
        options = with_network_of(options, model.options)
    check_options(options)
    text, size = corpus.as_text(text), options.vocabulary_size or 8000
    if model is None:
        read = corpus.read(text, level=options.level, size=size, lines=options.lines)
        run, first_state = make(text, read, options, mesh)
        return with_state(run, first_state())
    corpus.check_known(text, model.vocabulary, lines=options.lines)
    read = corpus.read(text, lines=options.lines, vocabulary=model.vocabulary)
    run, first_state = make(text, read, options, mesh, model.params)
    if unknown := unknown_words(read):
        remark = f"{unknown:,} words of {text.name} are not known to the model: each is {UNKNOWN}"
        run = run._replace(remarks=(remark,))
    return with_state(run, first_state())


def with_state(run: Run, state: TrainState) -> Run:
    """Return the run with this state, sharded over the devices if the run has a mesh."""
    return run._replace(state=state if run.layout is None else spread(run.layout, state))


def make(
    text: Text,
    read: Corpus,
    options: Options,
    mesh: Mesh | None = None,
    weights: Params | None = None,
) -> tuple[Run, Callable[[], TrainState]]:
    """Make a run from an encoded text.

    Args:
        text: the text.
        read: the encoded text.
        options: the options of the run.
        mesh: the devices over which the rows of each batch are sharded; default one device.
        weights: the initial parameters; default random.

    Returns:
        The run, whose state has shapes instead of arrays, and a function that returns the initial
        state.
    """
    vocabulary = read.vocabulary
    rnn = build.make_rnn(options, vocabulary.size)
    rule = partial(gradients.build, options.algorithm)
    algorithm = rule(rnn) if mesh is None else sharded(rule, rnn, mesh)
    source, held_out = sources(read, options)

    def initial(batch_size, key, rate):
        params_key, state_key = jax.random.split(key)
        optimizer, params = build.make_optimizer(options, rate), rnn.init(params_key)
        if weights is not None:  # converted to the default dtype of this process
            params = jax.tree.map(lambda new, old: jnp.asarray(old, new.dtype), params, weights)
        h = rnn.initial_state(batch_size)
        return init_train_state(algorithm, optimizer, params, h, key=state_key)

    def step(rate, state, batch):
        optimizer = build.make_optimizer(options, rate)
        return make_train_step(algorithm, optimizer, continues=source.continues)(state, batch)

    population = members(options)
    keys = [seed_key(member.seed) for member in population]
    if len(population) == 1:
        key, rate = keys[0], population[0].learning_rate
        make_state, whole_step = partial(initial, key=key, rate=rate), partial(step, rate)
    else:
        rates = jnp.array([member.learning_rate for member in population])
        whole_step = partial(jax.vmap(step, in_axes=(0, 0, None)), rates)

        def make_state(batch_size):
            return jax.jit(jax.vmap(partial(initial, batch_size)))(jnp.stack(keys), rates)

    file = text.file and str(text.file.resolve())
    record = TextRecord(text.name, read.sha256, read.characters, file, text.encoding)
    first_state = partial(make_state, options.batch_size)
    shapes = jax.eval_shape(first_state)
    run = Run(options, rnn, vocabulary, record, whole_step, shapes, source, held_out)
    if mesh is not None:
        run = run._replace(layout=layout(mesh, make_state, options.batch_size))
    return run, first_state


def sources(read: Corpus, options: Options) -> tuple[Source, Source]:
    """Return the training batches and the evaluation set of an encoded text."""
    return (_lines if options.lines else _stream)(read, options)


def _stream(read: Corpus, options: Options) -> tuple[Source, Source]:
    """Return the training batches and the evaluation set of one continuous text."""
    total, length = len(read.ids), length_of(options)
    held_out_size = max(2, min(math.ceil(options.held_out * total), _HELD_OUT))
    ids, held_out = corpus.cut(read.ids, max(total - held_out_size, 0))
    source = batches.stream(ids, options.batch_size, length)
    return source, batches.eval_set(held_out[:], options.batch_size, length)


def _lines(read: Corpus, options: Options) -> tuple[Source, Source]:
    """Return the training batches and the evaluation set of a text that is read line by line."""
    ends = read.vocabulary.ends
    rows = batches.find_lines(read.ids, ends) if ends else None
    total = 0 if rows is None else len(rows.starts)
    if rows is None or total < 2:
        raise ValueError(f"training on lines needs at least 2 that are not empty, got {total}")
    order = np.random.default_rng(options.seed).permutation(total)
    too_many = np.cumsum((rows.ends - rows.starts)[order]) > _HELD_OUT
    limit = int(too_many.argmax()) if too_many.any() else total
    number = max(1, min(round(options.held_out * total), limit))  # of held-out lines
    held_out, rows = (
        rows._replace(starts=rows.starts[indices], ends=rows.ends[indices])
        for indices in (order[:number], order[number:])
    )
    if len(rows.starts) < options.batch_size:
        raise ValueError(
            f"the text has {len(rows.starts)} lines to train on and {number} held out, but a batch "
            f"needs {options.batch_size}: use a smaller batch size, or hold out less"
        )
    length = length_of(options, max(rows.longest, held_out.longest))
    source = batches.shuffled(rows, options.batch_size, options.seed, length)
    return source, batches.eval_set_of_rows(held_out, options.batch_size, length)
