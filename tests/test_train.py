"""Tests of training: optimisers, one compilation, evaluation, non-finite steps, platforms."""

import dataclasses
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import assert_equal, loss_of, make_case

import jaxrnn
from jaxrnn import gradients
from jaxrnn.lm import batches

LOW, HIGH = -0.02, 0.02  # a range that clips some elements


def state_of(case, algorithm, optimizer):
    return jaxrnn.init_train_state(algorithm, optimizer, case.params, case.h, key=jax.random.key(0))


def repeated(batch: jaxrnn.Batch, times: int) -> jaxrnn.Batch:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], times, 0), batch)


def numpy_gradient(case, params, h):
    """Return the gradient and the next state by autodiff. The rules have their own tests."""
    (_, h), grads = jax.value_and_grad(case.rnn.loss, has_aux=True)(params, h, case.batch)
    return jax.tree.map(np.asarray, grads), h


@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
def test_clipped_sgd_and_adagrad_are_their_equations(rule):
    """Compares three steps with NumPy, which clips each element and then updates."""
    case = make_case(reduction="mean")
    optimizer = {"sgd": jaxrnn.clipped_sgd, "adagrad": jaxrnn.clipped_adagrad}[rule](0.1, clip=HIGH)
    algorithm = gradients.bptt(case.rnn)
    state = state_of(case, algorithm, optimizer)
    step = jax.jit(jaxrnn.make_train_step(algorithm, optimizer, continues=True))

    params, h = jax.tree.map(np.asarray, case.params), case.h
    squares = jax.tree.map(np.zeros_like, params)
    for _ in range(3):
        state, _ = step(state, case.batch)
        grads, h = numpy_gradient(case, params, h)
        clipped = jax.tree.map(lambda g: np.clip(g, LOW, HIGH), grads)
        assert any(np.any(np.abs(g) > HIGH) for g in jax.tree.leaves(grads))
        squares = jax.tree.map(lambda s, g: s + g**2, squares, clipped)
        if rule == "adagrad":
            clipped = jax.tree.map(lambda g, s: g / np.sqrt(s + 1e-8), clipped, squares)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, clipped)
    assert_equal(state.params, params)
    assert int(state.step) == 3


def test_without_a_clip_nothing_is_clipped():
    grads = {"w": jnp.array([1e6, -1e6])}
    optimizer = jaxrnn.clipped_sgd(1.0, clip=None)
    updates, _ = optimizer.update(grads, optimizer.init(grads))
    assert_equal(updates, {"w": np.array([-1e6, 1e6])})


@pytest.mark.parametrize("optimizer", [optax.adam(1e-2), optax.lion(1e-3), optax.sgd(0.1, 0.9)])
def test_any_optax_optimiser_lowers_the_loss(optimizer):
    case = make_case(ids=True, reduction="mean")
    algorithm = gradients.bptt(case.rnn)
    loop = jaxrnn.make_train_loop(jaxrnn.make_train_step(algorithm, optimizer))
    _, metrics = loop(state_of(case, algorithm, optimizer), repeated(case.batch, 100))
    assert metrics.loss[-1] < 0.8 * metrics.loss[0]


def test_the_loop_is_the_repeated_step():
    case = make_case(reduction="mean")
    algorithm, optimizer = gradients.truncated_bptt(case.rnn, 3), optax.adam(1e-2)
    step = jaxrnn.make_train_step(algorithm, optimizer, continues=True)
    state, losses = state_of(case, algorithm, optimizer), []
    for _ in range(4):
        state, metrics = jax.jit(step)(state, case.batch)
        losses.append(metrics.loss)
    looped, all_metrics = jaxrnn.make_train_loop(step)(
        state_of(case, algorithm, optimizer), repeated(case.batch, 4)
    )
    assert_equal(
        (looped.params, looped.carry, all_metrics.loss),
        (state.params, state.carry, jnp.stack(losses)),
    )


# New sequences, and those that continue


def test_by_default_every_batch_starts_from_the_zero_state_and_goes_on_only_if_told():
    """A learning rate of 0: the losses of batches apart, and of the whole sequence."""
    case = make_case(reduction="mean", T=6)
    rnn, optimizer = case.rnn, optax.sgd(0.0)
    case = case._replace(h=rnn.initial_state(3))
    parts = jaxrnn.chunks(case.batch, 2)
    algorithm = gradients.rtrl(rnn)
    loss = lambda batch: rnn.loss(case.params, case.h, batch)[0]  # noqa: E731
    for continues in (False, True):
        step = jaxrnn.make_train_step(algorithm, optimizer, continues=continues)
        state, metrics = jaxrnn.make_train_loop(step)(
            state_of(case, algorithm, optimizer), parts.all()
        )
        if continues:
            assert_equal(metrics.loss.mean(), loss(case.batch))
            assert jnp.any(state.carry.h)
        else:
            assert_equal(metrics.loss, jnp.stack([loss(part) for part in parts]))
            assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(state.carry))
        mean_loss = jaxrnn.evaluate(rnn, case.params, parts.all(), continues=continues)
        assert_equal(mean_loss, metrics.loss.mean())
    assert_equal(jaxrnn.evaluate(rnn, case.params, parts), loss(case.batch))


@pytest.mark.parametrize("rule", ["uoro", "kf_rtrl", "ok", "kernl"])
def test_the_random_numbers_of_every_batch_are_new(rule):
    case = make_case(reduction="mean")
    algorithm = gradients.build(rule, case.rnn)
    step = jax.jit(jaxrnn.make_train_step(algorithm, optax.sgd(0.0)))
    case = case._replace(h=jnp.zeros_like(case.h))
    state, results = state_of(case, algorithm, optax.sgd(0.0)), []
    for _ in range(3):
        state, metrics = step(state, case.batch)
        results.append(metrics)
    for before, after in itertools.pairwise(results):
        assert_equal(after.loss, before.loss)
        assert abs(after.grad_norm - before.grad_norm) > 1e-6
    _, again = step(state_of(case, algorithm, optax.sgd(0.0)), case.batch)
    assert_equal(again, results[0])


@pytest.mark.parametrize("rule", ["dni", "kernl"])
def test_what_a_rule_has_learned_is_not_forgotten_where_a_sequence_ends(rule):
    """Three batches in one step each leave the learned part as three calls of the rule do."""
    case = make_case(reduction="mean")
    algorithm, optimizer = gradients.build(rule, case.rnn), optax.sgd(0.0)
    step = jax.jit(jaxrnn.make_train_step(algorithm, optimizer))
    state = state_of(case, algorithm, optimizer)
    learned = lambda state: (  # noqa: E731
        state.carry.memory[0] if rule == "dni" else state.carry.memory[0].influence.kernel
    )
    values = [learned(state)]
    for _ in range(3):
        state, _ = step(state, case.batch)
        values.append(learned(state))
    sizes = [float(jnp.abs(new - old).max()) for old, new in itertools.pairwise(map(flat, values))]
    assert min(sizes) > 1e-4
    assert len(set(sizes)) == 3
    assert not jnp.any(state.carry.h)


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def test_a_source_and_a_step_that_contradict_each_other_are_refused():
    case = make_case(reduction="mean")
    algorithm, optimizer = gradients.bptt(case.rnn), optax.sgd(0.1)
    whole = jaxrnn.chunks(case.batch, 2)
    apart = dataclasses.replace(whole, continues=False)
    for source, continues in ((whole, False), (apart, True)):
        loop = jaxrnn.make_train_loop(
            jaxrnn.make_train_step(algorithm, optimizer, continues=continues)
        )
        with pytest.raises(ValueError, match=r"source .*: use continues=source.continues"):
            loop(state_of(case, algorithm, optimizer), source)
        with pytest.raises(ValueError, match=r"source .*: use continues=source.continues"):
            jaxrnn.evaluate(case.rnn, case.params, source, continues=continues)
    endless = dataclasses.replace(apart, number=None)
    loop = jaxrnn.make_train_loop(jaxrnn.make_train_step(algorithm, optimizer))
    with pytest.raises(ValueError, match=r"no end: give the number of steps"):
        loop(state_of(case, algorithm, optimizer), endless)
    state, metrics = loop(state_of(case, algorithm, optimizer), endless, 2)
    state, more = loop(state, endless, 1)  # goes on with the third batch
    _, expected = loop(state_of(case, algorithm, optimizer), apart)
    assert_equal(jnp.append(metrics.loss, more.loss), expected.loss)


def test_chunks_are_the_sequence_with_padding_only_after_its_end():
    """The loss and the state over the chunks are those of the whole batch, with any lengths."""
    case = make_case(T=7, mask=True)
    for lengths in (None, np.array([7, 2, 0])):
        batch = case.batch._replace(lengths=lengths)
        expected, h_last = loss_of(case.rnn, case.params, case.h, batch)
        for length in (7, 3, 1, 9):
            h, total = case.h, 0.0
            for chunk in jaxrnn.chunks(batch, length):
                assert chunk.inputs.shape[:2] == (3, length)
                loss, h = loss_of(case.rnn, case.params, h, chunk)
                total += loss
            assert_equal((total, h), (expected, h_last))


def test_metrics_are_of_the_batch_before_the_update():
    case = make_case(reduction="mean")
    algorithm = gradients.bptt(case.rnn)
    _, metrics = jaxrnn.make_train_step(algorithm, jaxrnn.clipped_sgd())(
        state_of(case, algorithm, jaxrnn.clipped_sgd()), case.batch
    )
    (loss, _), grads = algorithm.value_and_grad(
        case.params, algorithm.init(case.params, case.h), case.batch
    )
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(grads)))
    assert_equal((metrics.loss, metrics.grad_norm), (loss, norm))
    assert metrics.finite


def test_the_state_is_donated_and_the_callers_arrays_are_not():
    case = make_case(reduction="mean")
    algorithm, optimizer = gradients.truncated_bptt(case.rnn, 2), jaxrnn.clipped_adagrad()
    loop = jaxrnn.make_train_loop(jaxrnn.make_train_step(algorithm, optimizer))
    state = state_of(case, algorithm, optimizer)
    loop(state, repeated(case.batch, 2))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((case.params, case.h)))


@pytest.mark.parametrize("algorithm", [gradients.bptt, gradients.kf_rtrl])
def test_a_train_loop_compiles_once_for_any_number_of_steps(algorithm):
    """Steps in several calls give the same bits as in one call."""
    case = make_case(reduction="mean", ids=True)
    algorithm, optimizer = algorithm(case.rnn), optax.adam(1e-2)
    loop = jaxrnn.make_train_loop(jaxrnn.make_train_step(algorithm, optimizer))
    batches = repeated(case.batch, 6)
    carried = state_of(case, algorithm, optimizer)
    for count in (2, 0, 1, 3):
        carried, metrics = loop(carried, batches, count)
        assert np.asarray(metrics.finite).sum() == count
    whole, _ = loop(state_of(case, algorithm, optimizer), batches, 6)
    assert loop.__wrapped__._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(carried.params), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("algorithm", [gradients.bptt, lambda r: gradients.truncated_bptt(r, 3)])
def test_a_train_step_lowers_for_every_platform(algorithm):
    case = make_case(ids=True, dtype=jnp.float32)
    algorithm, optimizer = algorithm(case.rnn), jaxrnn.clipped_adagrad()
    step = jax.jit(jaxrnn.make_train_step(algorithm, optimizer))
    state = state_of(case, algorithm, optimizer)
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(state, case.batch)
    assert exported.platforms == ("cpu", "cuda", "tpu")


# Evaluation


def test_evaluation_is_the_mean_over_the_whole_text():
    """In padded chunks, the loss is the same as with each row in one piece."""
    rnn = jaxrnn.RNN(6, 4, 6)
    params = rnn.init(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 6, 46)
    mean_loss = jaxrnn.evaluate(rnn, params, batches.eval_set(ids, 3, 4))
    rows = np.stack([ids[15 * b : 15 * b + 16] for b in range(3)])
    expected, _ = rnn.loss(params, rnn.initial_state(3), jaxrnn.Batch(rows[:, :-1], rows[:, 1:]))
    assert_equal(mean_loss, expected)


def test_evaluation_of_lines_reads_each_line_from_the_zero_state():
    vocabulary = jaxrnn.lm.Vocabulary.from_text("abc\n")
    rnn = jaxrnn.RNN(4, 5, 4)
    params = rnn.init(jax.random.key(1))
    lines = ["abc", "a", "bb", "cab", "ccc"]
    rows = batches.pad_lines(vocabulary, lines)
    mean_loss = jaxrnn.evaluate(rnn, params, batches.eval_set_of_rows(rows, 2))
    expected, _ = rnn.loss(params, rnn.initial_state(5), rows)
    assert_equal(mean_loss, expected)


# Weighted means, and steps that are not finite


def test_evaluation_is_a_weighted_mean_over_all_positions():
    """The batches have different weights, a mask and lengths. The reduction makes no difference."""
    case = make_case(mask=True, reduction="mean")
    lengths = np.array([[6, 2, 0], [1, 6, 3]])
    each = [case.batch._replace(lengths=row_lengths) for row_lengths in lengths]
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    rnn = dataclasses.replace(case.rnn, reduction="sum")
    h = rnn.initial_state(3)
    total, weight = 0.0, 0.0
    for batch, row_lengths in zip(each, lengths, strict=True):
        total += rnn.loss(case.params, h, batch)[0]
        weight += (np.asarray(batch.mask) * (np.arange(6) < row_lengths[:, None])).sum()
    for network in (rnn, case.rnn):
        mean_loss = jaxrnn.evaluate(network, case.params, batches)
        assert_equal(mean_loss, total / weight)


@pytest.mark.parametrize("where", ["loss", "gradient", "update"])
def test_a_step_is_finite_only_if_loss_gradient_and_parameters_are(where):
    case = make_case(reduction="mean", dtype=jnp.float32)
    algorithm = gradients.bptt(case.rnn)
    if where == "loss":
        case = case._replace(h=jnp.full_like(case.h, jnp.nan))
    if where == "gradient":
        algorithm = algorithm._replace(value_and_grad=with_one_infinite_element(algorithm))
    optimizer = optax.sgd(1e38 if where == "update" else 0.1)
    optimizer = optax.chain(optax.scale(1e30 if where == "update" else 1.0), optimizer)
    step = jaxrnn.make_train_step(algorithm, optimizer)
    assert not step(state_of(case, algorithm, optimizer), case.batch)[1].finite


def with_one_infinite_element(algorithm):
    def value_and_grad(params, carry, batch):
        aux, grads = algorithm.value_and_grad(params, carry, batch)
        W_hy = grads.readout.W_hy.at[0, 0].set(jnp.inf)
        return aux, grads._replace(readout=grads.readout._replace(W_hy=W_hy))

    return value_and_grad


def test_a_gradient_whose_square_overflows_is_still_finite():
    case = make_case(
        reduction="mean", dtype=jnp.float32, loss_function=lambda y, target: 1e25 * y.sum(-1)
    )
    algorithm, optimizer = gradients.bptt(case.rnn), jaxrnn.clipped_sgd(clip=1.0)
    _, metrics = jaxrnn.make_train_step(algorithm, optimizer)(
        state_of(case, algorithm, optimizer), case.batch
    )
    assert jnp.isinf(metrics.grad_norm)
    assert metrics.finite
