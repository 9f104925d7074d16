"""Tests that jaxrnn reproduces every figure that the four tutorials print, to the last digit.

The tutorials write matrices as (out, in), jaxrnn as their transposes. Their weights are printed
with rounding, or not at all. The claim about tutorials 002 and 003 is therefore: there are weights
that round to the printed ones and give every other printed figure to its last digit.
`nearest_weights` finds them. It minimises the largest misfit over all figures, where a misfit is
measured in half units of the last digit of its figure.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal
from jax.flatten_util import ravel_pytree
from scipy.optimize import linprog

import jaxrnn
from jaxrnn import gradients

FIGURES = json.loads((Path(__file__).parent / "data" / "seed_figures.json").read_text())

Weights = tuple[jax.Array, jax.Array, jax.Array]  # W_xh, W_hh, W_hy


class Printed(NamedTuple):
    """One printed NumPy array or number.

    Attributes:
        figures: the printed figures.
        computed: computes the same figures from a walkthrough.
        unit: the unit of the last digit, or None for that of a printed NumPy array.
    """

    figures: list | float
    computed: Callable[[jaxrnn.Walkthrough], Any]
    unit: float | None = None


def last_digit(figures: np.ndarray) -> np.ndarray:
    """Return the unit of each last digit, as NumPy prints an array: 8 decimals or scientific."""
    sizes = np.abs(figures[figures != 0])
    if sizes.size and (sizes.min() < 1e-4 or sizes.max() > 1e3 * sizes.min()):  # scientific
        return 10.0 ** (np.floor(np.log10(np.where(figures == 0, 1, np.abs(figures)))) - 8)
    return np.full(figures.shape, 1e-8)


def units(row: Printed) -> np.ndarray:
    figures = np.asarray(row.figures, float)
    return last_digit(figures) if row.unit is None else np.full(figures.shape, row.unit)


def walk_from(weights: Weights, batch: jaxrnn.Batch) -> jaxrnn.Walkthrough:
    """Compute the walkthrough of a batch with these weights and zero biases."""
    W_xh, W_hh, W_hy = weights
    rnn = jaxrnn.RNN(len(W_xh), len(W_hh), W_hy.shape[1], reduction="sum")
    cell = jaxrnn.Cell(W_xh, W_hh, jnp.zeros(len(W_hh)))
    readout = jaxrnn.Readout(W_hy, jnp.zeros(W_hy.shape[1]))
    return jaxrnn.walkthrough(rnn, jaxrnn.Params((cell,), readout), batch)


def nearest_weights(
    rows: list[Printed], guess: Weights, batch: jaxrnn.Batch
) -> tuple[Weights, float]:
    """Return the weights with the smallest largest misfit, and that misfit in half units."""
    start, unravel = ravel_pytree(guess)
    figures = np.concatenate([np.ravel(row.figures) for row in rows])
    half_units = np.concatenate([units(row).ravel() for row in rows]) / 2

    @jax.jit
    def computed(flat):
        walk = walk_from(unravel(flat), batch)
        return jnp.concatenate([jnp.ravel(row.computed(walk)) for row in rows])

    jacobian, flat, unit_step = jax.jit(jax.jacfwd(computed)), start, 1e-9
    for _ in range(4):  # Newton's method; each step is a linear programme in (step, largest misfit)
        misfit = (np.asarray(computed(flat)) - figures) / half_units
        slope = np.asarray(jacobian(flat)) * unit_step / half_units[:, None]
        least = np.ones((len(figures), 1))
        solution = linprog(
            c=[0] * len(start) + [1],
            A_ub=np.block([[slope, -least], [-slope, -least]]),
            b_ub=np.concatenate([-misfit, misfit]),
            bounds=[(None, None)] * len(start) + [(0, None)],
        )
        flat = flat + unit_step * solution.x[:-1]
    misfit = (np.asarray(computed(flat)) - figures) / half_units
    return unravel(flat), float(np.abs(misfit).max())


def transposed(figures: dict, *names: str) -> Weights:
    """Convert the (out, in) matrices of a tutorial."""
    W_xh, W_hh, W_hy = (jnp.asarray(figures[name], float).T for name in names)
    return W_xh, W_hh, W_hy


def count(rows: list[Printed]) -> int:
    return sum(np.size(row.figures) for row in rows)


# 000: the word model


@pytest.fixture(scope="module")
def word_model() -> tuple[jaxrnn.RNN, jaxrnn.Params]:
    draw = np.random.RandomState(10).uniform
    U, V, W = (draw(-np.sqrt(1 / 50), np.sqrt(1 / 50), (50, 50)) for _ in range(3))
    rnn = jaxrnn.RNN(50, 50, 50, use_bias=False, reduction="sum")
    cell = jaxrnn.Cell(jnp.asarray(U.T), jnp.asarray(W.T), None)
    return rnn, jaxrnn.Params((cell,), jaxrnn.Readout(jnp.asarray(V.T), None))


def test_000_its_second_prediction_and_its_most_likely_words(word_model):
    rnn, params = word_model
    figures = FIGURES["wildml_rnn"]
    outputs, _ = rnn.apply(params, np.array([figures["example_inputs"]]), rnn.initial_state(1))
    p = jax.nn.softmax(outputs[0])
    np.testing.assert_allclose(p[1], figures["o_1"], rtol=0, atol=0.5e-8)
    assert p.argmax(-1).tolist() == figures["predict"]
    assert np.size(figures["o_1"]) + np.size(figures["predict"]) == 60


def truncated_in_numpy(params, inputs, targets, truncate):
    """Compute the tutorial's truncated BPTT: `truncate` steps back from the step of each output."""
    (W_xh, W_hh, _), (W_hy, _) = params.cells[0], params.readout
    states = [np.zeros(len(W_hh))]
    for x in inputs:
        states.append(np.tanh(W_xh[x] + states[-1] @ W_hh))
    h = np.stack(states)  # h[t + 1] is the state after input t
    y = h[1:] @ W_hy
    p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    dy = p - np.eye(len(W_hy.T))[targets]
    dW_xh, dW_hh = np.zeros_like(W_xh), np.zeros_like(W_hh)
    for t in range(len(inputs)):
        delta = dy[t] @ W_hy.T * (1 - h[t + 1] ** 2)
        for s in range(t, max(-1, t - truncate - 1), -1):
            dW_hh += np.outer(h[s], delta)
            dW_xh[inputs[s]] += delta
            delta = delta @ W_hh.T * (1 - h[s] ** 2)
    cell = jaxrnn.Cell(dW_xh, dW_hh, None)
    return jaxrnn.Params((cell,), jaxrnn.Readout(h[1:].T @ dy, None))


@pytest.mark.slow
@pytest.mark.parametrize("truncate", [0, 4, 9])
def test_000_bptt_truncate_is_the_window(word_model, truncate):
    """With `bptt_truncate=4` an error reaches five pre-activations, which is a window of 4."""
    rnn, params = word_model
    inputs = FIGURES["wildml_rnn"]["example_inputs"]
    targets = [*inputs[1:], 0]
    batch = jaxrnn.Batch(np.array([inputs]), np.array([targets]))
    algorithm = gradients.truncated_bptt(rnn, truncate)
    _, grads = algorithm.value_and_grad(params, algorithm.init(params, rnn.initial_state(1)), batch)
    expected = truncated_in_numpy(jax.tree.map(np.asarray, params), inputs, targets, truncate)
    assert_equal(grads, expected)


@pytest.mark.slow
def test_000_its_truncated_gradient_is_reported_as_truncated_at_4(word_model):
    rnn, params = word_model
    inputs = FIGURES["wildml_rnn"]["example_inputs"]
    targets = [*inputs[1:], 0]
    batch = jaxrnn.Batch(np.array([inputs]), np.array([targets]))

    def by_the_tutorial(params, batch):
        loss, _ = rnn.loss(params, rnn.initial_state(1), batch)
        params = jax.tree.map(np.asarray, params)
        return loss, truncated_in_numpy(params, inputs, targets, truncate=4)

    report = jaxrnn.verify(by_the_tutorial, rnn, params, batch)
    (finding,) = report.findings
    assert (finding.bug, finding.leaves) == ("truncated at 4", ("cells[0].W_xh", "cells[0].W_hh"))
    for profile in report.profiles:
        kept, lost = profile.coefficients[:5], profile.coefficients[5:]
        np.testing.assert_allclose(kept, 1, atol=1e-6)
        assert len(lost) == 5
        np.testing.assert_allclose(lost[:4], 0, atol=1e-6)  # nine steps back, W_hh reads h_0 = 0


@pytest.mark.slow
def test_000_a_mean_over_examples_divides_by_their_words():
    """The tutorial divides by a generator, which fails. The mean is over the counted positions."""
    rnn = jaxrnn.RNN(50, 50, 50, use_bias=False)
    params = rnn.init(jax.random.key(0))
    examples = [[8, 15, 20, 9], [14, 48]]
    inputs, mask = np.zeros((2, 3), int), np.zeros((2, 3))
    targets = np.zeros((2, 3), int)
    for row, words in enumerate(examples):
        inputs[row, : len(words) - 1], targets[row, : len(words) - 1] = words[:-1], words[1:]
        mask[row, : len(words) - 1] = 1
    loss, _ = rnn.loss(params, rnn.initial_state(2), jaxrnn.Batch(inputs, targets, mask))
    total = 0.0
    for words in examples:
        outputs, _ = rnn.apply(params, np.array([words[:-1]]), rnn.initial_state(1))
        log_p = jax.nn.log_softmax(outputs[0])
        total -= sum(float(log_p[t, word]) for t, word in enumerate(words[1:]))
    assert_equal(loss, total / 4)


def test_000_the_gradient_explodes_as_much_as_printed():
    """The printed draw is unknown, but some of 2,000 draws also reach 10⁴ ten steps back."""
    figures = np.abs(FIGURES["exploding"]["dhs_40"])
    keys = jax.random.split(jax.random.key(0), 3)
    rnn = jaxrnn.RNN(1, 5, 1, activation="relu", use_bias=False)

    def ten_steps_back(W_hh, h_0, d_last):
        cell = jaxrnn.Cell(jnp.zeros((1, 5)), W_hh, None)
        run = lambda h, steps: rnn.unroll(cell, jnp.zeros((1, steps, 1)), h)[1]  # noqa: E731
        h_40 = run(h_0[None], 41)
        return jax.vjp(lambda h: run(h, 9), h_40)[1](d_last[None])[0][0]

    W_hh = jax.random.normal(keys[0], (2000, 5, 5))
    h_0, d_last = (jax.random.normal(key, (2000, 5)) for key in keys[1:])
    largest = jnp.abs(jax.jit(jax.vmap(ten_steps_back))(W_hh, h_0, d_last)).max(-1)
    assert len(figures) == 5
    assert 0.005 < float(jnp.mean(largest > figures.max())) < 0.05


# 001: the cell and the layers


class TimeRNN:
    """The layer of the tutorial in NumPy: the states, and the gradients dx, dh and of the cell."""

    def __init__(self, cell):
        self.cell = jax.tree.map(np.asarray, cell)

    def forward(self, xs, h):
        self.xs, self.hs = xs, [h]
        for t in range(xs.shape[1]):
            a = xs[:, t] @ self.cell.W_xh + self.hs[-1] @ self.cell.W_hh + self.cell.b_h
            self.hs.append(np.tanh(a))
        return np.stack(self.hs[1:], 1)

    def backward(self, dhs):
        dh, dxs = 0, np.zeros_like(self.xs)
        total = jax.tree.map(np.zeros_like, self.cell)
        for t in reversed(range(dhs.shape[1])):
            da = (dhs[:, t] + dh) * (1 - self.hs[t + 1] ** 2)
            grads = (self.xs[:, t].T @ da, self.hs[t].T @ da, da.sum(0))
            total = jaxrnn.Cell(*(a + b for a, b in zip(total, grads, strict=True)))
            dxs[:, t], dh = da @ self.cell.W_xh.T, da @ self.cell.W_hh.T
        return total, dxs, dh


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.float64, 1e-12)])
def test_001_time_rnn_states_dx_dh_and_gradients(dtype, tolerance):
    rng = np.random.default_rng(0)
    rnn = jaxrnn.RNN(5, 10, 4)
    cell = rnn.init(jax.random.key(0), dtype).cells[0]
    xs, dhs = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 7, 5), (3, 7, 10)))
    h = 0.3 * rng.standard_normal((3, 10)).astype(dtype)
    layer = TimeRNN(cell)
    states, pull_back = jax.vjp(lambda *a: rnn.unroll(*a)[0], cell, jnp.asarray(xs), jnp.asarray(h))
    assert states.dtype == dtype
    assert_equal(states, layer.forward(xs, h), tolerance)
    assert_equal(pull_back(jnp.asarray(dhs)), layer.backward(dhs), tolerance)


def test_001_a_stateful_layer_continues_from_its_last_state():
    rnn = jaxrnn.RNN(5, 10, 4)
    cell = rnn.init(jax.random.key(0)).cells[0]
    xs = jax.random.normal(jax.random.key(1), (3, 8, 5))
    whole, _ = rnn.unroll(cell, xs, jnp.zeros((3, 10)))
    first, h = rnn.unroll(cell, xs[:, :3], jnp.zeros((3, 10)))
    second, _ = rnn.unroll(cell, xs[:, 3:], h)
    assert_equal(jnp.concatenate([first, second], 1), whole)


def test_001_the_second_step_differs_from_the_first():
    """The tutorial draws new weights at each call, so it prints step 1 twice. A cell does not."""
    rnn = jaxrnn.RNN(5, 10, 4, use_bias=False)
    cell = rnn.init(jax.random.key(0)).cells[0]
    h_1 = rnn.step(cell, jnp.array([[1.0, 2, 3, 4, 5]]), jnp.zeros((1, 10)))
    h_2 = rnn.step(cell, jnp.array([[2.0, 3, 4, 5, 6]]), h_1)
    again = rnn.step(cell, jnp.array([[1.0, 2, 3, 4, 5]]), jnp.zeros((1, 10)))
    assert_equal(h_1, again)
    assert not jnp.allclose(h_1, h_2)


def test_001_tanh_does_not_overflow():
    rnn = jaxrnn.RNN(5, 10, 4)
    cell = rnn.init(jax.random.key(0)).cells[0]
    states, pull_back = jax.vjp(
        lambda x: rnn.unroll(cell, x, jnp.zeros((1, 10)))[0], 1e4 * jnp.ones((1, 3, 5))
    )
    assert jnp.isfinite(states).all()
    assert jnp.isfinite(pull_back(states)[0]).all()


# 002: the character model

VECTOR = FIGURES["vector_word"]
VECTOR_BATCH = jaxrnn.Batch(np.array([VECTOR["inputs"]]), np.array([VECTOR["targets"]]))
PRINTED_002 = [
    Printed(VECTOR["Wxh"], lambda walk: walk.params.cells[0].W_xh.T),
    # The last two digits of a float64 that is printed in full are rounding errors.
    Printed(VECTOR["loss"], lambda walk: walk.loss, unit=1e-13),
    *(
        Printed(row, lambda walk, t=t, quantity=quantity: quantity(walk)[t])
        for name, quantity in {
            "hs": lambda walk: walk.h,
            "ys": lambda walk: walk.y,
            "ps": lambda walk: walk.p,
            "dy": lambda walk: walk.dy,
            "dby": lambda walk: walk.dy,
            "dh_naive": lambda walk: walk.error,
            "dhraw_naive": lambda walk: walk.gain * walk.error,
        }.items()
        for t, row in enumerate(VECTOR[name])
    ),
]


@pytest.fixture(scope="module")
def vector_weights() -> tuple[Weights, float]:
    guess = transposed(VECTOR, "Wxh", "Whh_recovered", "Why_recovered")
    return nearest_weights(PRINTED_002, guess, VECTOR_BATCH)


@pytest.fixture(scope="module")
def vector_walk(vector_weights) -> jaxrnn.Walkthrough:
    return walk_from(vector_weights[0], VECTOR_BATCH)


def test_002_every_figure_to_its_last_digit(vector_weights):
    assert count(PRINTED_002) == 269
    assert vector_weights[1] <= 1


def test_002_no_weights_fit_a_walkthrough_with_a_wrong_gradient():
    """The fit above can fail: with h_t in place of the slope 1 - h_t², no weights fit."""
    wrong = [
        Printed(row, lambda walk, t=t: (walk.error * walk.h)[t])
        for t, row in enumerate(VECTOR["dhraw_naive"])
    ]
    guess = transposed(VECTOR, "Wxh", "Whh_recovered", "Why_recovered")
    others = PRINTED_002[: -len(wrong)]
    assert nearest_weights([*others, *wrong], guess, VECTOR_BATCH)[1] > 1e3


def test_002_its_naive_gradient_is_the_window_of_0(vector_walk):
    """The gradient is the sum over the word of the naive dhraw that the tutorial prints."""
    walk = vector_walk
    rnn = jaxrnn.RNN(7, 4, 7, reduction="sum")
    algorithm = gradients.truncated_bptt(rnn, 0)
    carry = algorithm.init(walk.params, rnn.initial_state(1))
    _, grads = algorithm.value_and_grad(walk.params, carry, VECTOR_BATCH)
    naive = np.asarray(walk.gain * walk.error)
    np.testing.assert_allclose(naive, VECTOR["dhraw_naive"], rtol=0, atol=0.5e-8)
    expected = jaxrnn.Cell(walk.x.T @ naive, walk.h_prev.T @ naive, naive.sum(0))
    assert_equal(grads.cells[0], expected)


def test_002_its_naive_gradient_is_reported_as_one_hop(vector_walk):
    rnn = jaxrnn.RNN(7, 4, 7, reduction="sum")

    def naive(params, batch):
        """Compute the gradient as the tutorial does: dh = Why.T dy, without the credit of t + 1."""
        (W_xh, W_hh, b_h), (W_hy, b_y) = jax.tree.map(np.asarray, (params.cells[0], params.readout))
        h, loss = [np.zeros(4)], 0.0
        grads = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
        (dW_xh, dW_hh, db_h), (dW_hy, db_y) = grads.cells[0], grads.readout
        for x, target in zip(
            np.asarray(batch.inputs)[0], np.asarray(batch.targets)[0], strict=True
        ):
            h.append(np.tanh(W_xh[x] + h[-1] @ W_hh + b_h))
            y = h[-1] @ W_hy + b_y
            dy = np.exp(y) / np.exp(y).sum()
            loss -= np.log(dy[target])
            dy[target] -= 1
            dhraw = (1 - h[-1] ** 2) * (W_hy @ dy)
            for total, part in (
                (dW_hy, np.outer(h[-1], dy)),
                (db_y, dy),
                (dW_hh, np.outer(h[-2], dhraw)),
                (db_h, dhraw),
            ):
                total += part
            dW_xh[x] += dhraw
        return loss, grads

    report = jaxrnn.verify(naive, rnn, vector_walk.params, VECTOR_BATCH)
    (finding,) = report.findings
    assert finding.bug == "one-hop"
    assert finding.leaves == ("cells[0].W_xh", "cells[0].W_hh", "cells[0].b_h")
    profile = next(profile for profile in report.profiles if profile.leaf == "cells[0].W_hh")
    np.testing.assert_allclose(profile.coefficients[:5], [1, 0, 0, 0, 0], atol=1e-6)
    assert np.isnan(profile.coefficients[5])  # five steps before the last, W_hh reads h_0 = 0


def test_002_dividing_each_gradient_in_a_loop_changed_nothing(vector_walk):
    """`dparam = dparam / n` only binds a name, so the gradients remain sums, as the loss is."""
    assert_equal(vector_walk.loss, vector_walk.loss_t.sum())
    assert_equal(vector_walk.grads.readout.b_y, vector_walk.dy.sum(0))


# 003: one step by hand

STEP = FIGURES["one_step"]
STEP_BATCH = jaxrnn.Batch(np.array([[STEP["input"]]]), np.array([[STEP["target"]]]))
PRINTED_003 = [
    Printed(STEP["Wxh"], lambda walk: walk.params.cells[0].W_xh.T),
    Printed(STEP["Whh"], lambda walk: walk.params.cells[0].W_hh.T),
    Printed(STEP["Why"], lambda walk: walk.params.readout.W_hy.T),
    Printed(STEP["hs"], lambda walk: walk.h[0]),
    Printed(STEP["ys"], lambda walk: walk.y[0]),
    Printed(STEP["ps"], lambda walk: walk.p[0]),
    Printed(STEP["p_target"], lambda walk: walk.p[0, STEP["target"]], unit=1e-11),
    Printed(STEP["loss"], lambda walk: walk.loss, unit=1e-11),
    Printed(STEP["dy"], lambda walk: walk.dy[0]),
    Printed(STEP["dWhy"], lambda walk: walk.grads.readout.W_hy.T),
    Printed(STEP["dby"], lambda walk: walk.grads.readout.b_y),
    Printed(STEP["dh"], lambda walk: walk.dh[0]),
    Printed(STEP["one_minus_h2"], lambda walk: walk.gain[0]),
    Printed(STEP["dhraw"], lambda walk: walk.dh_raw[0]),
    Printed(STEP["dhnext"], lambda walk: walk.dh_0),  # the credit for the step before
    Printed(STEP["dWhh"], lambda walk: walk.grads.cells[0].W_hh.T),
    # Two notebook cells add to an array and were run 2 and 13 times, so they print multiples.
    Printed(STEP["dbh_printed"], lambda walk: sum([walk.dh_raw[0]] * STEP["dbh_cell_runs"])),
    Printed(
        STEP["dWxh_printed"],
        lambda walk: sum([jnp.outer(walk.dh_raw[0], walk.x[0])] * STEP["dWxh_cell_runs"]),
    ),
]


def test_003_every_figure_to_its_last_digit():
    assert count(PRINTED_003) == 102
    weights, misfit = nearest_weights(
        PRINTED_003, transposed(STEP, "Wxh", "Whh", "Why"), STEP_BATCH
    )
    assert misfit <= 1
    cell = walk_from(weights, STEP_BATCH).grads.cells[0]
    dhraw = np.asarray(STEP["dhraw"])
    np.testing.assert_allclose(np.asarray(cell.b_h), dhraw, rtol=0, atol=0.5e-8)
    np.testing.assert_allclose(cell.W_xh, np.outer(np.eye(4)[2], dhraw), rtol=0, atol=0.5e-8)


TRAINING = FIGURES["vector_training"]


@pytest.mark.parametrize(
    ("setting", "printed"),
    [
        ("one word, one-hop", TRAINING["one_word"]["loss_at"]),
        ("one-hop", TRAINING["corpus"]["one_hop"]["loss_at"]),
        ("BPTT, clipped at 1", TRAINING["corpus"]["bptt"]["loss_at"]),
    ],
)
def test_002_its_training_losses_lie_among_those_of_64_seeds(setting, printed):
    """The tutorial set no seed. experiments/vector_word.py trained the same network 64 times."""
    path = Path(__file__).parent.parent / "experiments" / "vector_word.json"
    result = json.loads(path.read_text())["settings"][setting]
    assert result["words"] == (2 if setting.startswith("one word") else 16)
    for iteration, loss in printed.items():
        losses = result["loss_at"][iteration]
        assert len(losses) == 64
        assert min(losses) <= loss <= max(losses)


def test_002_training_on_the_corpus_reaches_the_printed_loss():
    """This trains one seed for 101 passes of BPTT. The tolerance is the spread over 64 seeds."""
    corpus, bptt = TRAINING["corpus"], TRAINING["corpus"]["bptt"]
    words = [*corpus["words"], "\n"]
    vocabulary = jaxrnn.lm.Vocabulary.from_text("".join(words))
    small = jax.nn.initializers.normal(0.01)
    rnn = jaxrnn.RNN(
        vocabulary.size,
        corpus["hidden"],
        vocabulary.size,
        reduction="sum",
        input_init=small,
        recurrent_init=small,
        readout_init=small,
    )
    algorithm = gradients.bptt(rnn)
    optimizer = jaxrnn.clipped_sgd(0.1, clip=float(bptt["clip"][1]))
    state = jaxrnn.init_train_state(
        algorithm,
        optimizer,
        rnn.init(jax.random.key(0)),
        rnn.initial_state(1),
        key=jax.random.key(0),
    )
    rows = jaxrnn.lm.batches.pad_lines(vocabulary, words)
    passes = jax.tree.map(lambda leaf: np.tile(leaf[:, None], (101, *[1] * leaf.ndim)), rows)
    loop = jaxrnn.make_train_loop(jaxrnn.make_train_step(algorithm, optimizer))
    _, metrics = loop(state, passes)
    mean_loss = np.asarray(metrics.loss).reshape(101, len(words)).mean(1)
    assert mean_loss[100 - len(words)] == pytest.approx(bptt["loss_at"]["100"], rel=0.2)
    assert mean_loss[0] > 10


def test_all_431_printed_figures_are_asserted():
    assert 60 + count(PRINTED_002) + count(PRINTED_003) == 431


# The walkthrough itself


def test_a_walkthrough_is_bptt(vector_walk):
    rnn, params = jaxrnn.RNN(7, 4, 7, reduction="sum"), vector_walk.params
    h = 0.2 * jnp.ones((1, 1, 4))
    walk = jaxrnn.walkthrough(rnn, params, VECTOR_BATCH, h)
    algorithm = gradients.bptt(rnn)
    (loss, _), grads = algorithm.value_and_grad(params, algorithm.init(params, h), VECTOR_BATCH)
    assert_equal((walk.loss, walk.grads), (loss, grads))
    d_h = jax.grad(lambda h: rnn.loss(params, h, VECTOR_BATCH)[0])(h)
    assert_equal(walk.dh_0, d_h[0, 0])


@pytest.mark.parametrize("leak", [1.0, 0.4])
def test_the_quantities_of_a_walkthrough_satisfy_their_equations(leak):
    """With features and a leak, each quantity satisfies its equation."""
    rnn = jaxrnn.RNN(3, 4, 2, leak=leak, loss_function="squared_error", reduction="sum")
    params = rnn.init(jax.random.key(0))
    inputs, targets = (jax.random.normal(jax.random.key(1), (1, 5, n)) for n in (3, 2))
    walk = jaxrnn.walkthrough(rnn, params, jaxrnn.Batch(inputs, targets))
    assert_equal(walk.x, inputs[0])
    assert_equal(walk.dh, walk.error + walk.dh_next)
    assert_equal(walk.dh_raw, walk.gain * walk.dh)
    assert_equal(walk.error, walk.dy @ params.readout.W_hy.T)
    W_hh = params.cells[0].W_hh
    assert_equal(walk.dh_next[:-1], (1 - leak) * walk.dh[1:] + walk.dh_raw[1:] @ W_hh.T)
    assert_equal(walk.h_prev[1:], walk.h[:-1])
    assert_equal(walk.loss, walk.loss_t.sum())
