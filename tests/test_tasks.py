"""Tests of the tasks: batches against NumPy, floors against predictors with the same knowledge.

Stochastic claims are tested at a fixed seed, to 4.5 standard errors of the mean over many
independent sequences.
"""

from functools import partial
from itertools import product

import jax
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import tasks

KEY = jax.random.key(0)
IDS = np.random.default_rng(0).integers(0, 5, 40) % 4  # 0 occurs more often than the others
TASKS = {
    "copy": (tasks.copy(4, symbols=3, recall=2), 8),
    "adding": (tasks.adding(), 7),
    "add": (tasks.delayed_add(2, 3), 7),
    "text": (tasks.text(IDS, 5), 7),
}


def drawn(task, batch_size, length):
    draw = jax.jit(task.draw, static_argnums=(0, 1))
    return jax.tree.map(np.asarray, draw(batch_size, length, key=KEY))


def assert_mean(samples, expected):
    """Assert that the mean over independent samples (N, …) is within 4.5 standard errors."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    deviation = np.abs(samples.mean(0) - expected) / np.where(error > 0, error, 1e-12)
    assert np.max(deviation) < 4.5


def entropy(*p):
    return -sum(q * np.log(q) for q in p if q > 0)


# All tasks


@pytest.mark.parametrize("name", TASKS)
def test_draws_are_the_same_under_jit_and_vmap_and_depend_on_the_key(name):
    task, length = TASKS[name]
    keys = jax.random.split(KEY)

    def draw(key):
        return task.draw(4, length, key=key)

    plain, other = map(draw, keys)
    jitted, mapped = jax.jit(lambda keys: (draw(keys[0]), jax.vmap(draw)(keys)))(keys)
    jax.tree.map(np.testing.assert_array_equal, jitted, plain)
    jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, b), mapped, plain, other)
    assert not np.array_equal(plain.inputs, other.inputs)


@pytest.mark.parametrize("name", TASKS)
def test_a_network_of_the_sizes_of_a_task_accepts_its_batches(name):
    task, length = TASKS[name]
    rnn = jaxrnn.RNN(task.input_size, 3, task.output_size, loss_function=task.loss)
    batch = drawn(task, 4, length)
    loss = jax.jit(lambda batch: rnn.loss(rnn.init(KEY), rnn.initial_state(4), batch)[0])
    assert np.isfinite(loss(batch))
    for leaf in batch[:2]:
        assert leaf.shape[:2] == (4, length)
        assert leaf.dtype == (np.int32 if leaf.ndim == 2 else np.float64)


@pytest.mark.parametrize("name", TASKS)
def test_floors_are_sorted_from_the_worst_to_the_best(name):
    floors = list(TASKS[name][0].floors.values())
    assert all(isinstance(floor, float) for floor in floors)
    assert floors == sorted(floors, reverse=True)
    assert len(set(floors)) == len(floors)


def test_networks_of_two_equal_tasks_are_equal_and_compile_once():
    one, other = (jaxrnn.RNN(2, 3, 2, loss_function=tasks.delayed_add().loss) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)


# copy


@pytest.mark.parametrize(("delay", "symbols", "recall"), [(1, 2, 1), (4, 3, 2), (7, 8, 10)])
def test_copy_has_symbols_a_delay_and_a_recall(delay, symbols, recall):
    task = tasks.copy(delay, symbols, recall)
    blank, go = symbols, symbols + 1
    assert (task.input_size, task.output_size) == (symbols + 2, symbols + 1)
    batch = jax.jit(lambda key: task.draw(50, key=key))(KEY)  # this task has one length only
    assert batch.mask is None
    for inputs, targets in zip(np.asarray(batch.inputs), np.asarray(batch.targets), strict=True):
        symbols_shown = list(inputs[:recall])
        assert list(inputs) == [*symbols_shown, *[blank] * (delay - 1), go, *[blank] * recall]
        assert list(targets) == [blank] * (recall + delay) + symbols_shown


def test_copy_draws_every_symbol_equally_often_at_each_position():
    symbols = drawn(tasks.copy(2, 3, 4), 3000, 8 + 2).inputs[:, :4]
    assert_mean(symbols[..., None] == np.arange(3), 1 / 3)
    assert_mean((symbols[:, :-1] == symbols[:, 1:]), 1 / 3)  # successive symbols are independent


def test_the_loss_of_copy_without_memory_is_its_floor():
    """The loss is exact for any draw: blanks are certain, then all symbols are equally likely."""
    task = tasks.copy(delay=5, symbols=8, recall=10)
    targets = drawn(task, 20, 25).targets
    certain = np.log([1e-300] * 8 + [1])
    guess = np.log([1 / 8] * 8 + [1e-300])
    outputs = np.where(np.arange(25)[:, None] < 15, certain, guess)
    losses = -np.take_along_axis(np.broadcast_to(outputs, (20, 25, 9)), targets[..., None], -1)
    assert losses.mean() == pytest.approx(task.floors["timing"], rel=1e-14)
    assert task.floors == {"timing": pytest.approx(10 * np.log(8) / 25), "symbols": 0}
    assert tasks.copy(100).floors["timing"] == pytest.approx(10 * np.log(8) / (100 + 20))


# adding


@pytest.mark.parametrize("length", [2, 7])
def test_adding_marks_one_number_in_each_half_and_has_their_sum_as_the_last_target(length):
    batch = drawn(tasks.adding(), 300, length)
    half = length // 2
    positions = set()
    last = np.arange(length) == length - 1
    for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True):
        value, marker = inputs.T
        assert ((value >= 0) & (value < 1)).all()
        assert set(marker) <= {0, 1}
        assert marker[:half].sum() == marker[half:].sum() == 1
        positions |= set(np.flatnonzero(marker))
        np.testing.assert_array_equal(mask, last)
        np.testing.assert_allclose(targets[:, 0], last * np.dot(value, marker), rtol=1e-15)
    assert positions == set(range(length))


def test_adding_marks_every_pair_of_positions_equally_often():
    marker = drawn(tasks.adding(), 5000, 6).inputs[..., 1]
    assert_mean(marker[:, :3, None] * marker[:, None, 3:], 1 / 9)


def test_the_losses_of_adding_are_its_floors():
    """The losses agree to 4.5 standard errors. `floors` are integrals over uniform numbers."""
    task = tasks.adding()
    batch = drawn(task, 20_000, 6)
    value, marker = np.moveaxis(batch.inputs, -1, 0)
    first, second = (value * marker)[:, :3].sum(1), (value * marker)[:, 3:].sum(1)
    answers = {"nothing": 1, "second": 0.5 + second, "both": first + second}
    assert list(answers) == list(task.floors)
    for name, answer in answers.items():
        assert_mean((batch.targets[:, -1, 0] - answer) ** 2, task.floors[name])
    u = (np.arange(1000) + 0.5) / 1000  # the midpoint rule
    assert task.floors["second"] == pytest.approx(np.mean((u - 0.5) ** 2), rel=1e-5)
    assert task.floors["nothing"] == pytest.approx(np.var(u[:, None] + u), rel=1e-5)


# add

DELAYS = [(5, 9), (9, 5), (0, 3)]


@pytest.mark.parametrize(("first", "second"), DELAYS)
def test_the_floors_of_add_are_those_of_an_enumeration_and_of_the_paper(first, second):
    """Enumerates all pairs. The best prediction is the mean over indistinguishable pairs."""
    odds = {(a, b): 0.5 + 0.5 * a - 0.25 * b for a, b in product((0, 1), repeat=2)}
    predictors = {"nothing": lambda a, b: (), "first": lambda a, b: a, "both": lambda a, b: (a, b)}
    floors = tasks.delayed_add(first, second).floors
    assert list(floors) == list(predictors)
    for name, known in predictors.items():
        expected = 0
        for pair, p in odds.items():
            indistinguishable = [odds[other] for other in odds if known(*other) == known(*pair)]
            q = np.mean(indistinguishable)
            terms = [(p, q), (1 - p, 1 - q)]
            expected -= sum(a * np.log(b) for a, b in terms if a > 0) / 4
        assert floors[name] == pytest.approx(expected, rel=1e-14)
    assert [round(floor, 4) for floor in floors.values()] == [0.6616, 0.5192, 0.4545]


@pytest.mark.parametrize(("first", "second"), DELAYS)
def test_the_targets_of_add_are_functions_of_the_coins_at_its_delays(first, second):
    batch = drawn(tasks.delayed_add(first, second), 50, 14)
    x, p = batch.inputs[..., 0], batch.targets[..., 0]
    before = max(first, second)
    assert set(x.flat) == {0, 1}
    np.testing.assert_array_equal(batch.inputs[..., 1], 1 - x)
    np.testing.assert_array_equal(batch.targets[..., 1], 1 - p)
    for t in range(14):
        np.testing.assert_array_equal(batch.mask[:, t], t >= before)
        if t >= before:
            expected = 0.5 + 0.5 * x[:, t - first] - 0.25 * x[:, t - second]
            np.testing.assert_array_equal(p[:, t], expected)


@pytest.mark.parametrize(("first", "second"), DELAYS)
def test_the_masked_targets_of_add_belong_to_one_sequence_of_earlier_coins(first, second):
    """Each p determines two coins. A coin that two positions share has the same value in both."""
    p = drawn(tasks.delayed_add(first, second), 3000, 14).targets[..., 0]
    x_first, x_second = p > 0.6, (p == 0.25) | (p == 0.75)
    gap = second - first
    late, early = (x_second, x_first) if gap > 0 else (x_first, x_second)
    np.testing.assert_array_equal(late[:, abs(gap) :], early[:, : -abs(gap)])
    assert_mean(p, 0.625)
    assert_mean(x_first, 0.5)
    assert_mean(x_second, 0.5)
    assert_mean(x_first & x_second, 0.25)


def test_the_losses_of_add_are_its_floors():
    """With the log of the best guesses as outputs, the losses agree to 4.5 standard errors."""
    task = tasks.delayed_add(first=2, second=1)
    batch = drawn(task, 2000, 20)
    x = batch.inputs[..., 0]
    x_first, x_second = np.roll(x, 2, 1), np.roll(x, 1, 1)
    guesses = {
        "nothing": np.full_like(x, 0.625),
        "first": np.where(x_first == 1, 0.875, 0.375),
        "both": 0.5 + 0.5 * x_first - 0.25 * x_second,
    }
    for name, guess in guesses.items():
        outputs = 3 + np.log(np.maximum(np.stack([guess, 1 - guess], -1), 1e-300))
        losses = np.asarray(jax.jit(tasks.soft_cross_entropy)(outputs, batch.targets))
        weights = batch.mask / batch.mask.sum(1, keepdims=True)
        assert_mean((losses * weights).sum(1), task.floors[name])


def test_soft_cross_entropy_of_one_hot_targets_is_the_cross_entropy():
    random = np.random.default_rng(0)
    outputs, targets = 9 * random.normal(size=(3, 6, 4)), random.integers(0, 4, (3, 6))
    soft = jax.jit(tasks.soft_cross_entropy)(outputs, np.eye(4)[targets])
    hard = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(outputs, targets)
    np.testing.assert_allclose(soft, hard, rtol=1e-12)


def test_a_network_that_learns_both_delays_reaches_the_floor_of_both():
    task = tasks.delayed_add(1, 2)
    rnn = jaxrnn.RNN(task.input_size, 8, task.output_size, loss_function=task.loss)
    algorithm, optimizer = jaxrnn.gradients.bptt(rnn), optax.adam(0.03)
    state = jaxrnn.init_train_state(
        algorithm, optimizer, jax.jit(rnn.init)(KEY), rnn.initial_state(16), key=KEY
    )
    source = task.source(16, 12, key=jax.random.key(1))
    loop = jaxrnn.make_train_loop(jaxrnn.make_train_step(algorithm, optimizer))
    state, metrics = loop(state, source, 200)
    assert metrics.loss[0] > task.floors["first"]
    loss, _ = jax.jit(rnn.loss)(state.params, rnn.initial_state(500), drawn(task, 500, 12))
    assert task.floors["both"] - 0.01 < loss < task.floors["both"] + 0.01


# text


def test_text_draws_every_window_equally_often():
    """All ids differ, so a window determines its start. Agrees to 4.5 standard errors."""
    batch = drawn(tasks.text(np.arange(10) * 3, 30), 4000, 4)
    starts = batch.inputs[:, 0] // 3
    np.testing.assert_array_equal(batch.inputs, (starts[:, None] + np.arange(4)) * 3)
    np.testing.assert_array_equal(batch.targets, (starts[:, None] + np.arange(1, 5)) * 3)
    assert_mean(starts[:, None] == np.arange(6), 1 / 6)


def test_text_of_one_window_is_drawn_whole():
    batch = drawn(tasks.text(IDS, 4), 3, len(IDS) - 1)
    np.testing.assert_array_equal(batch.inputs, [IDS[:-1]] * 3)
    np.testing.assert_array_equal(batch.targets, [IDS[1:]] * 3)


def test_the_losses_of_text_are_its_floors():
    """The floors are exact means over all windows of length 1, which are equally likely."""
    floors = tasks.text(IDS, 7).floors
    pairs = list(zip(IDS[:-1].tolist(), IDS[1:].tolist(), strict=True))
    following = [b for _, b in pairs]
    guesses = {
        "uniform": lambda a, b: 1 / 7,
        "frequencies": lambda a, b: following.count(b) / len(pairs),
        "pairs": lambda a, b: pairs.count((a, b)) / sum(other == a for other, _ in pairs),
    }
    assert list(floors) == list(guesses)
    for name, guess in guesses.items():
        expected = -np.mean([np.log(guess(a, b)) for a, b in pairs])
        assert floors[name] == pytest.approx(expected, rel=1e-13)


def test_the_floors_of_text_are_those_of_two_simple_texts():
    alternating = tasks.text(np.array([0, 1] * 50 + [0]), 2).floors
    assert alternating == pytest.approx(
        {"uniform": np.log(2), "frequencies": np.log(2), "pairs": 0}, abs=1e-14
    )
    coin = tasks.text(np.array([0, 0, 1, 1] * 25 + [0]), 2).floors
    assert coin == pytest.approx(dict.fromkeys(coin, entropy(0.5, 0.5)), abs=1e-14)


def test_batches_are_in_single_precision_without_x64():
    every = [tasks.copy(5), tasks.adding(), tasks.delayed_add(), tasks.text(np.arange(9) % 3, 3)]
    ids, features = "int32", "float32"
    expected = [[ids] * 2, [features] * 3, [features] * 3, [ids] * 2]
    with jax.enable_x64(False):
        for task, length, dtypes in zip(every, (25, 8, 10, 8), expected, strict=True):
            batch = jax.eval_shape(partial(task.draw, 2, length), key=jax.random.key(0))
            assert [leaf.dtype for leaf in jax.tree.leaves(batch)] == dtypes
