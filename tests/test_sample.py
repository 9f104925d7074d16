"""Tests of sampling (distribution, greedy choice, ends, truncation, pieces) and of beam search."""

import re
from itertools import islice, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal

import jaxrnn
from jaxrnn.lm.sampling import beam_search, stream
from jaxrnn.network.rnn import param_shapes

RNN = jaxrnn.RNN(5, 7, 5, readout_init=jax.nn.initializers.normal(2.0))
PARAMS = RNN.init(jax.random.key(0))
SMALL = jaxrnn.RNN(3, 7, 3, readout_init=jax.nn.initializers.normal(1.0))
STACK = jaxrnn.RNN(5, 7, 5, num_layers=2, readout_init=jax.nn.initializers.normal(2.0))
PROMPT, KEY = np.array([[1, 2]]), jax.random.key(0)


APPLY = jax.jit(RNN.apply)


def greedy_by_hand(prompt, length):
    """Append the most likely id `length` times, each after a forward pass over the whole row."""
    start = np.shape(prompt)[1]
    ids = np.pad(prompt, ((0, 0), (0, length)))  # of one length; what follows has no influence
    for t in range(start, start + length):
        outputs, _ = APPLY(PARAMS, ids, RNN.initial_state(len(ids)))
        ids[:, t] = np.asarray(outputs[:, t - 1]).argmax(-1)
    return ids[:, start:]


def test_temperature_zero_takes_the_most_likely_id_each_time():
    prompt = np.array([[0, 3], [4, 1]])
    ids = jaxrnn.lm.sample(RNN, PARAMS, prompt, 6, key=jax.random.key(1), temperature=0.0)
    assert np.array_equal(ids, greedy_by_hand(prompt, 6))


def truncated_by_hand(p, top_k, top_p):
    """Keep the k most likely ids, of these as few as reach top_p, and normalise the sum to 1."""
    order = np.argsort(-p)[:top_k]
    reached = np.cumsum(p[order]) / p[order].sum()
    order = order[: None if top_p is None else np.flatnonzero(reached >= top_p)[0] + 1]
    truncated = np.zeros_like(p)
    truncated[order] = p[order] / p[order].sum()
    return truncated


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (0.5, None, None),
        (1.0, None, None),
        (3.0, None, None),
        (1.0, 2, None),
        (3.0, 4, None),
        (1.0, None, 0.8),
        (3.0, None, 0.7),
        (3.0, 3, 0.6),
    ],
)
def test_draws_follow_the_softmax_at_that_temperature_truncated(temperature, top_k, top_p):
    """The frequencies of 20,000 first ids lie within 4 standard errors at this seed."""
    prompt = np.tile([[2, 4]], (20_000, 1))
    kwargs = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    ids = jaxrnn.lm.sample(RNN, PARAMS, prompt, 1, key=jax.random.key(2), **kwargs)
    outputs, _ = RNN.apply(PARAMS, prompt[:1], RNN.initial_state(1))
    p = truncated_by_hand(np.asarray(jax.nn.softmax(outputs[0, -1] / temperature)), top_k, top_p)
    frequency = np.bincount(ids[:, 0], minlength=5) / len(prompt)
    assert np.all(np.abs(frequency - p) <= 4 * np.sqrt(p * (1 - p) / len(prompt)))


@pytest.mark.parametrize("one", [{"top_k": 1}, {"top_p": 1e-9}])
def test_a_draw_among_one_id_is_greedy(one):
    prompt = np.array([[0, 3], [4, 1]])
    ids = jaxrnn.lm.sample(RNN, PARAMS, prompt, 9, key=jax.random.key(1), temperature=2.0, **one)
    assert np.array_equal(ids, greedy_by_hand(prompt, 9))


@pytest.mark.parametrize("all_ids", [{"top_k": 5}, {"top_k": 10**20}, {"top_p": 1.0}])
def test_a_draw_among_all_ids_is_the_plain_draw(all_ids):
    prompt = np.tile([[1]], (200, 1))
    plain = jaxrnn.lm.sample(RNN, PARAMS, prompt, 20, key=jax.random.key(1), temperature=2.0)
    ids = jaxrnn.lm.sample(
        RNN, PARAMS, prompt, 20, key=jax.random.key(1), temperature=2.0, **all_ids
    )
    assert np.array_equal(ids, plain)


def with_probabilities(p, dtype):
    """Make a network whose probabilities of the next id are always p."""
    rnn = jaxrnn.RNN(len(p), 3, len(p))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), param_shapes(rnn))
    readout = params.readout._replace(b_y=jnp.log(jnp.asarray(p, dtype)))
    return rnn, params._replace(readout=readout)


def test_a_nucleus_of_probability_one_has_ids_that_rounding_would_lose(monkeypatch):
    rnn, params = with_probabilities([1.0, 1e-9, 1e-18, 1e-27, 1e-36], jnp.float32)
    monkeypatch.setattr(jax.random, "categorical", lambda key, logits: logits.argmin(-1))
    ids = jaxrnn.lm.sample(rnn, params, np.array([[0]]), 1, key=jax.random.key(0), top_p=1.0)
    assert ids.item() == 4


@pytest.mark.parametrize(
    ("few", "number"), [({"top_k": 1}, 1), ({"top_k": 3}, 3), ({"top_p": 0.5}, 2)]
)
def test_of_equally_likely_ids_only_the_smaller_ones_are_drawn(few, number):
    rnn, params = with_probabilities([0.25, 0.25, 0.25, 0.25], jnp.float64)
    prompt = np.tile([[1]], (100, 1))
    ids = jaxrnn.lm.sample(rnn, params, prompt, 1, key=jax.random.key(0), **few)
    assert set(np.ravel(ids)) == set(range(number))


PRECISIONS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_small_temperature_draws_all_ids_of_the_largest_probability_and_no_others(dtype):
    """This holds down to the smallest float64. Division by it overflows in every precision."""
    rnn, params = with_probabilities([0.1, 0.25, 0.05, 0.35, 0.25], dtype)
    tied = with_probabilities([0.1, 0.3, 0.05, 0.25, 0.3], dtype)[1]
    prompt, key = np.tile([[2]], (40, 1)), jax.random.key(0)
    for temperature in (1e-3, 1e-4, 1e-5, 1e-8, 1e-37, 1e-39, 1e-45, 1e-310, 5e-324):
        for kwargs in ({}, {"top_p": 0.999, "top_k": 4}):
            kwargs |= {"key": key, "temperature": temperature}
            assert set(np.ravel(jaxrnn.lm.sample(rnn, params, prompt, 1, **kwargs))) == {3}
            assert set(np.ravel(jaxrnn.lm.sample(rnn, tied, prompt, 1, **kwargs))) == {1, 4}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("top_p", "number"), [(0.5, 1500), (0.9, 2700), (1e-50, 1)])
def test_a_nucleus_is_the_same_set_in_every_precision(top_p, number, dtype, monkeypatch):
    rnn, params = with_probabilities(np.full(3000, 1.0), dtype)
    count = lambda key, logits: jnp.isfinite(logits).sum(-1)  # noqa: E731
    monkeypatch.setattr(jax.random, "categorical", count)
    ids = jaxrnn.lm.sample(rnn, params, np.array([[0]]), 1, key=jax.random.key(0), top_p=top_p)
    assert abs(ids.item() - number) <= 1


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_draws_have_the_same_random_numbers_in_every_precision(dtype):
    """Random numbers in float16 are so coarse that unlikely ids would be drawn too rarely."""
    p = np.array([0.9985, 0.0005, 0.0005, 0.0005])
    ids = jaxrnn.lm.sample(
        *with_probabilities(p, dtype), np.tile([[0]], (20_000, 1)), 1, key=jax.random.key(1)
    )
    frequency = np.bincount(np.ravel(ids), minlength=4) / 20_000
    assert np.all(np.abs(frequency - p) <= 4 * np.sqrt(p * (1 - p) / 20_000))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_log_probability_of_a_long_sequence_keeps_its_digits(dtype):
    rnn, params = with_probabilities(np.full(5, 1.0), dtype)
    _, score = beam_search(rnn, params, np.array([0]), 2000, beams=2)
    assert float(score) == pytest.approx(-2000 * np.log(5), rel=1e-5)


def test_the_second_draw_is_conditioned_on_the_first():
    prompt = np.tile([[1]], (20_000, 1))
    ids = np.asarray(jaxrnn.lm.sample(RNN, PARAMS, prompt, 2, key=jax.random.key(3)))
    first = int(np.bincount(ids[:, 0]).argmax())
    outputs, _ = RNN.apply(PARAMS, np.array([[1, first]]), RNN.initial_state(1))
    p = np.asarray(jax.nn.softmax(outputs[0, -1]))
    after = ids[ids[:, 0] == first, 1]
    frequency = np.bincount(after, minlength=5) / len(after)
    assert np.all(np.abs(frequency - p) < 4 * np.sqrt(p * (1 - p) / len(after)))


def test_after_its_end_a_row_has_only_ends_and_other_rows_go_on():
    ids = np.asarray(
        jaxrnn.lm.sample(RNN, PARAMS, np.tile([[1]], (50, 1)), 30, key=jax.random.key(4), end=2)
    )
    assert ids.shape == (50, 30)
    ended = ids == 2
    firsts = np.where(ended.any(1), ended.argmax(1), 30)
    assert len(set(firsts)) > 3
    for row, first in zip(ids, firsts, strict=True):
        assert (row[first:] == 2).all()


def test_equal_keys_give_equal_rows_and_different_keys_different_rows():
    prompt = np.zeros((4, 1), int)
    one, same, other = (
        jaxrnn.lm.sample(RNN, PARAMS, prompt, 20, key=jax.random.key(k)) for k in (5, 5, 6)
    )
    assert jnp.array_equal(one, same)
    assert not jnp.array_equal(one, other)
    assert not jnp.array_equal(one[0], one[1])


def test_a_jitted_caller_may_pass_temperature_top_p_and_end():
    prompt, key = np.tile([[1]], (50, 1)), jax.random.key(4)

    def draw(temperature, top_p, end):
        return jaxrnn.lm.sample(
            RNN, PARAMS, prompt, 9, key=key, temperature=temperature, top_k=4, top_p=top_p, end=end
        )

    for choice in ((0.0, 0.5, 2), (0.7, 0.5, 2), (0.7, 1.0, 3)):
        assert jnp.array_equal(jax.jit(draw)(*choice), draw(*choice))


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("piece", [1, 3, 20])
def test_pieces_of_any_size_join_to_one_sample(piece, end):
    prompt, key = np.array([[0, 3], [4, 1], [2, 2]]), jax.random.key(9)
    kwargs = {"key": key, "temperature": 1.5, "top_k": 4, "top_p": 0.9, "end": end}
    pieces = list(islice(stream(RNN, PARAMS, prompt, **kwargs, piece=piece), -(-20 // piece)))
    assert {ids.shape for ids in pieces} == {(3, piece)}
    drawn = np.concatenate(pieces, 1)
    assert np.array_equal(drawn, jaxrnn.lm.sample(RNN, PARAMS, prompt, drawn.shape[1], **kwargs))


def test_a_stream_ends_with_the_piece_in_which_its_last_row_ends():
    prompt = np.tile([[1]], (8, 1))
    kwargs = {"key": jax.random.key(4), "temperature": 2.0, "end": 2}
    ids = np.asarray(jaxrnn.lm.sample(RNN, PARAMS, prompt, 200, **kwargs))
    longest = 1 + (ids == 2).argmax(1).max()
    assert (ids == 2).any(1).all()
    for piece in (1, 7, longest - 1, longest, longest + 1):
        pieces = islice(stream(RNN, PARAMS, prompt, **kwargs, piece=int(piece)), 200)
        assert len(list(pieces)) == -(-longest // piece)


def test_a_stream_without_an_end_goes_on_and_compiles_once(monkeypatch):
    apply, traced = jaxrnn.RNN.apply, []
    monkeypatch.setattr(jaxrnn.RNN, "apply", lambda *args: traced.append(args) or apply(*args))
    pieces = stream(RNN, PARAMS, np.array([[0]]), key=jax.random.key(0), top_k=3, piece=11)
    next(pieces)
    first = len(traced)
    assert first > 0
    assert len(list(islice(pieces, 40))) == 40
    assert len(traced) == first


def log_probabilities(rnn, params, prompt, ids, end=None):
    """Compute the log probability of each row of ids after the prompt, up to its first end."""
    rows = np.concatenate([np.tile(prompt, (len(ids), 1)), ids], 1)
    outputs, _ = rnn.apply(params, rows, rnn.initial_state(len(ids)))
    log_p = np.asarray(jax.nn.log_softmax(outputs))[:, len(prompt) - 1 : -1]
    log_p = np.take_along_axis(log_p, ids[:, :, None], 2)[:, :, 0]
    after_end = np.cumsum(ids == end, 1) > (ids == end)
    return np.where(after_end, 0, log_p).sum(1)


@pytest.mark.parametrize("end", [None, 0])
@pytest.mark.parametrize("beams", [27, 200])
def test_enough_beams_find_the_most_likely_of_all_sequences(beams, end):
    prompt = np.array([1, 2])
    sequences = np.array(list(product(range(3), repeat=4)))
    after_end = np.cumsum(sequences == end, 1) > (sequences == end)
    sequences = sequences[np.all(~after_end | (sequences == end), 1)]
    best, greedy = [], []
    for seed in range(6):
        params = SMALL.init(jax.random.key(seed))
        ids, score = beam_search(SMALL, params, prompt, 4, beams=beams, end=end)
        scores = log_probabilities(SMALL, params, prompt, sequences, end)
        assert np.array_equal(ids, sequences[scores.argmax()])
        assert_equal(score, scores.max())
        best.append(tuple(np.ravel(ids)))
        greedy.append(tuple(np.ravel(beam_search(SMALL, params, prompt, 4, beams=1, end=end)[0])))
    assert best != greedy
    assert end is None or 0 < sum(end in ids[:-1] for ids in best) < len(best)


@pytest.mark.parametrize("end", [None, 3])
@pytest.mark.parametrize("beams", [1, 2, 8])
def test_the_score_of_a_beam_search_is_the_log_probability_of_its_ids(beams, end):
    params, prompt = STACK.init(jax.random.key(0)), np.array([4, 1])
    ids, score = beam_search(STACK, params, prompt, 12, beams=beams, end=end)
    assert_equal(score, log_probabilities(STACK, params, prompt, np.asarray(ids)[None], end)[0])


@pytest.mark.parametrize("end", [None, 2])
def test_one_beam_is_greedy(end):
    for first in range(5):
        ids, _ = beam_search(RNN, PARAMS, np.array([first]), 12, beams=1, end=end)
        greedy = jaxrnn.lm.sample(
            RNN, PARAMS, np.array([[first]]), 12, key=jax.random.key(0), temperature=0.0, end=end
        )
        assert np.array_equal(ids, greedy[0])


def test_a_caller_may_map_the_search_over_primes_ends_and_parameters():
    params = jax.vmap(STACK.init)(jax.random.split(jax.random.key(0), 3))
    prompts, ends = jnp.array([[0, 3], [4, 1], [2, 2]]), jnp.array([1, 2, 3])

    def search(params, prompt, end):
        return beam_search(STACK, params, prompt, 6, beams=4, end=end)

    ids, scores = jax.jit(jax.vmap(search))(params, prompts, ends)
    for i, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        alone = search(jax.tree.map(lambda leaf, i=i: leaf[i], params), prompt, end)
        assert_equal((ids[i], scores[i]), alone)


MISTAKES = [
    (jaxrnn.lm.sample, {"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
    (
        jaxrnn.lm.sample,
        {"top_p": 0.0},
        "top_p must be above 0 and at most 1 (1 keeps every id), got 0",
    ),
    (
        jaxrnn.lm.sample,
        {"top_p": 1.1},
        "top_p must be above 0 and at most 1 (1 keeps every id), got 1",
    ),
    (
        jaxrnn.lm.sample,
        {"top_p": np.nan},
        "top_p must be above 0 and at most 1 (1 keeps every id), go",
    ),
    (jaxrnn.lm.sample, {"end": -1}, "end must be an id in 0 … 4, got -1"),
    (stream, {"piece": 0}, "piece must be a whole number of at least 1, got 0"),
    (
        stream,
        {"prompt": PROMPT[:, :0]},
        "prompt must be ids (B, P) with at least one each, got shape",
    ),
    (stream, {"prompt": PROMPT + 9}, "inputs hold the id 11, but must lie in 0 … 4"),
    (stream, {"params": SMALL.init(KEY)}, "params.cells[0].W_xh has shape (3, 7), but"),
    (stream, {"temperature": -1.0}, "temperature must be at least 0 (0 is greedy), got -1.0"),
    (stream, {"top_k": -2}, "top_k must be a whole number of at least 1, got -2"),
    (stream, {"top_p": 2.0}, "top_p must be above 0 and at most 1 (1 keeps every id), got 2.0"),
    (stream, {"end": 5}, "end must be an id in 0 … 4, got 5"),
    (
        beam_search,
        {"prompt": PROMPT[0, :0]},
        "prompt must be ids (P,), at least one, got shape (0,)",
    ),
    (beam_search, {"prompt": PROMPT[0] - 2}, "inputs hold the id -1, but must lie in 0 … 4"),
    (beam_search, {"beams": 0}, "beams must be a whole number of at least 1, got 0"),
    (beam_search, {"length": 0}, "length must be at least 1, got 0"),
    (beam_search, {"end": 5}, "end must be an id in 0 … 4, got 5"),
]


@pytest.mark.parametrize(("function", "mistake", "message"), MISTAKES)
def test_a_mistake_raises_an_error_at_the_call(function, mistake, message):
    arguments = {
        jaxrnn.lm.sample: {"prompt": PROMPT, "length": 5, "key": KEY},
        stream: {"prompt": PROMPT, "key": KEY},
        beam_search: {"prompt": PROMPT[0], "length": 5},
    }[function]
    with pytest.raises(ValueError, match=re.escape(message)):
        function(**{"rnn": RNN, "params": PARAMS} | arguments | mistake)


def test_a_stack_is_sampled_with_the_states_of_all_its_layers():
    rnn = jaxrnn.RNN(5, 7, 5, num_layers=2)
    params = rnn.init(jax.random.key(0))
    prompt = np.array([[0, 3, 1]])
    ids = np.asarray(
        jaxrnn.lm.sample(rnn, params, prompt, 4, key=jax.random.key(0), temperature=0.0)
    )
    whole = np.concatenate([prompt, ids], 1)
    outputs, _ = rnn.apply(params, whole, rnn.initial_state(1))
    assert_equal(np.asarray(outputs)[:, 2:-1].argmax(-1), ids)
