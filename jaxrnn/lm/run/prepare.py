"""Texts to runs: a run before its first step, in memory."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrnn.lm import batches as data
from jaxrnn.lm import build, corpus, options
from jaxrnn.lm.corpus import Corpus, Text
from jaxrnn.lm.model import Model, unknown_words
from jaxrnn.lm.options import Options
from jaxrnn.lm.run.load import load
from jaxrnn.lm.run.placement import layout, spread
from jaxrnn.lm.run.state import Run
from jaxrnn.lm.vocabulary import UNKNOWN
from jaxrnn.network.stack import Params
from jaxrnn.training.sharding import sharded
from jaxrnn.training.step import TrainState, init_train_state, make_train_step

_HELD_OUT = 1_000_000  # symbols that are held out at most


def prepare(
    text: Text | str | Path,
    chosen: Options,
    mesh: Mesh | None = None,
    *,
    init_from: Model | str | Path | None = None,
) -> Run:
    """Make everything that a run needs from its text, in memory.

    Args:
        text: what to train on: the path of its file in UTF-8, or a `Text`.
        chosen: how to train.
        mesh: the devices that share the rows of each batch; default one device.
        init_from: a model, or the run or checkpoint that holds it, to start from: its weights and
            its vocabulary. Options of the network that are at their defaults are the model's; the
            optimiser and the steps begin anew.

    Raises:
        ValueError: if an option is outside its range or contradicts the model, or the text does not
            fit the options or has characters that the model does not know, or the batch does not
            divide by the devices.
    """
    source = load(init_from) if isinstance(init_from, str | Path) else init_from
    if source is not None:
        chosen = options.of_model(chosen, source.options)
    options.check(chosen)
    text, size = corpus.as_text(text), chosen.vocabulary_size or 8000
    if source is None:
        read = corpus.read(text, level=chosen.level, size=size, lines=chosen.lines)
        run, first_state = make(text, read, chosen, mesh)
        return begun(run, first_state())
    corpus.check_known(text, source.vocabulary, lines=chosen.lines)
    read = corpus.read(text, lines=chosen.lines, vocabulary=source.vocabulary)
    run, first_state = make(text, read, chosen, mesh, source.params)
    if unknown := unknown_words(read):
        remark = f"{unknown:,} words of {text.name} are not known to the model: each is {UNKNOWN}"
        run = run._replace(remarks=(remark,))
    return begun(run, first_state())


def begun(run: Run, state: TrainState) -> Run:
    """Give a run its state, on all its devices."""
    return run._replace(state=state if run.layout is None else spread(run.layout, state))


def make(
    text: Text,
    read: Corpus,
    chosen: Options,
    mesh: Mesh | None = None,
    weights: Params | None = None,
) -> tuple[Run, Callable[[], TrainState]]:
    """Make a run of an encoded text, with the shapes of its state, and what makes its first one.

    The first state has the `weights`, or draws them if there are none.
    """
    vocabulary = read.vocabulary
    rnn = build.make_rnn(chosen, vocabulary.size)
    source, held_out = (_lines if chosen.lines else _stream)(read, chosen)
    rule = partial(build.make_algorithm, chosen)
    algorithm = rule(rnn) if mesh is None else sharded(rule, rnn, mesh)

    def initial(batch_size, key, rate):
        params_key, state_key = jax.random.split(key)
        optimizer, params = build.make_optimizer(chosen, rate), rnn.init(params_key)
        if weights is not None:  # in the precision of this process
            params = jax.tree.map(lambda new, old: jnp.asarray(old, new.dtype), params, weights)
        h = rnn.initial_state(batch_size)
        return init_train_state(algorithm, optimizer, params, h, key=state_key)

    def step(rate, state, batch):
        return make_train_step(algorithm, build.make_optimizer(chosen, rate))(state, batch)

    members = options.members(chosen)
    keys = [options.seed_key(member.seed) for member in members]
    if len(members) == 1:
        key, rate = keys[0], members[0].learning_rate
        make_state, whole_step = partial(initial, key=key, rate=rate), partial(step, rate)
    else:
        rates = jnp.array([member.learning_rate for member in members])
        whole_step = partial(jax.vmap(step, in_axes=(0, 0, None)), rates)

        def make_state(batch_size):
            return jax.jit(jax.vmap(partial(initial, batch_size)))(jnp.stack(keys), rates)

    told = {
        "name": text.name,
        "file": text.file and str(text.file.resolve()),
        "encoding": text.encoding,
        "sha256": read.sha256,
        "characters": read.characters,
    }
    state = partial(make_state, chosen.batch_size)
    run = Run(chosen, rnn, vocabulary, told, whole_step, jax.eval_shape(state), source, held_out)
    if mesh is not None:
        run = run._replace(layout=layout(mesh, make_state, chosen.batch_size))
    return run, state


def _stream(read: Corpus, chosen: Options) -> tuple[data.Source, data.EvalSet]:
    total, length = len(read.ids), options.length_of(chosen)
    kept = max(2, min(math.ceil(chosen.held_out * total), _HELD_OUT))
    ids, held_out = corpus.cut(read.ids, max(total - kept, 0))
    source = data.stream(ids, chosen.batch_size, length)
    return source, data.passage(held_out[:], chosen.batch_size, length)


def _lines(read: Corpus, chosen: Options) -> tuple[data.Source, data.EvalSet]:
    ends = read.vocabulary.ends
    rows = data.find_lines(read.ids, ends) if ends else None
    total = 0 if rows is None else len(rows.starts)
    if rows is None or total < 2:
        raise ValueError(f"training on lines needs at least 2 that are not empty, got {total}")
    order = np.random.default_rng(chosen.seed).permutation(total)
    long = np.cumsum((rows.ends - rows.starts)[order]) > _HELD_OUT
    most = int(long.argmax()) if long.any() else total
    kept = max(1, min(round(chosen.held_out * total), most))
    held_out, rows = (
        rows._replace(starts=rows.starts[picked], ends=rows.ends[picked])
        for picked in (order[:kept], order[kept:])
    )
    if len(rows.starts) < chosen.batch_size:
        raise ValueError(
            f"{len(rows.starts)} lines to train on, beside {kept} held out, are fewer than a batch "
            f"of {chosen.batch_size}: use a smaller batch size, or hold out less"
        )
    length = options.length_of(chosen, max(rows.longest, held_out.longest))
    source = data.shuffled(rows, chosen.batch_size, chosen.seed, length)
    return source, data.rows_passage(held_out, chosen.batch_size, length)
