"""Sampling: the distribution, greed, ends and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal

import jaxrnn

RNN = jaxrnn.RNN(5, 7, 5, readout_init=jax.nn.initializers.normal(2.0))
PARAMS = RNN.init(jax.random.key(0))


def continued_by_hand(prime, length):
    """Take the likeliest id each time, reading the whole sequence anew for each."""
    ids = np.asarray(prime)
    for _ in range(length):
        outputs, _ = RNN.apply(PARAMS, ids, RNN.initial_state(len(ids)))
        ids = np.concatenate([ids, np.asarray(outputs[:, -1:]).argmax(-1)], 1)
    return ids[:, np.shape(prime)[1] :]


def test_temperature_zero_takes_the_likeliest_each_time():
    prime = np.array([[0, 3], [4, 1]])
    ids = jaxrnn.sample(RNN, PARAMS, prime, 6, key=jax.random.key(1), temperature=0.0)
    assert np.array_equal(ids, continued_by_hand(prime, 6))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax_at_that_temperature(temperature):
    """Frequencies of the first id over 20,000 rows, within 4 standard errors at this seed."""
    prime = np.tile([[2, 4]], (20_000, 1))
    ids = jaxrnn.sample(RNN, PARAMS, prime, 1, key=jax.random.key(2), temperature=temperature)
    outputs, _ = RNN.apply(PARAMS, prime[:1], RNN.initial_state(1))
    p = np.asarray(jax.nn.softmax(outputs[0, -1] / temperature))
    frequency = np.bincount(ids[:, 0], minlength=5) / len(prime)
    assert np.all(np.abs(frequency - p) < 4 * np.sqrt(p * (1 - p) / len(prime)))


def test_the_second_draw_is_conditioned_on_the_first():
    prime = np.tile([[1]], (20_000, 1))
    ids = np.asarray(jaxrnn.sample(RNN, PARAMS, prime, 2, key=jax.random.key(3)))
    first = int(np.bincount(ids[:, 0]).argmax())
    outputs, _ = RNN.apply(PARAMS, np.array([[1, first]]), RNN.initial_state(1))
    p = np.asarray(jax.nn.softmax(outputs[0, -1]))
    after = ids[ids[:, 0] == first, 1]
    frequency = np.bincount(after, minlength=5) / len(after)
    assert np.all(np.abs(frequency - p) < 4 * np.sqrt(p * (1 - p) / len(after)))


def test_after_the_end_there_is_nothing_but_ends_and_other_rows_go_on():
    ids = np.asarray(
        jaxrnn.sample(RNN, PARAMS, np.tile([[1]], (50, 1)), 30, key=jax.random.key(4), end=2)
    )
    assert ids.shape == (50, 30)
    ended = ids == 2
    firsts = np.where(ended.any(1), ended.argmax(1), 30)
    assert len(set(firsts)) > 3
    for row, first in zip(ids, firsts, strict=True):
        assert (row[first:] == 2).all()


def test_a_key_gives_the_same_rows_and_another_key_others():
    prime = np.zeros((4, 1), int)
    one, same, other = (
        jaxrnn.sample(RNN, PARAMS, prime, 20, key=jax.random.key(k)) for k in (5, 5, 6)
    )
    assert jnp.array_equal(one, same)
    assert not jnp.array_equal(one, other)
    assert not jnp.array_equal(one[0], one[1])


def test_a_jitted_caller_may_pass_temperature_and_end():
    prime = np.tile([[1]], (50, 1))

    @jax.jit
    def draw(temperature, end):
        key = jax.random.key(4)
        return jaxrnn.sample(RNN, PARAMS, prime, 9, key=key, temperature=temperature, end=end)

    for temperature in (0.0, 0.7):
        plain = jaxrnn.sample(
            RNN, PARAMS, prime, 9, key=jax.random.key(4), temperature=temperature, end=2
        )
        assert jnp.array_equal(draw(temperature, 2), plain)


def test_samples_are_those_of_a_stack_with_its_own_states():
    rnn = jaxrnn.RNN(5, 7, 5, num_layers=2)
    params = rnn.init(jax.random.key(0))
    prime = np.array([[0, 3, 1]])
    ids = np.asarray(jaxrnn.sample(rnn, params, prime, 4, key=jax.random.key(0), temperature=0.0))
    whole = np.concatenate([prime, ids], 1)
    outputs, _ = rnn.apply(params, whole, rnn.initial_state(1))
    assert_equal(np.asarray(outputs)[:, 2:-1].argmax(-1), ids)
