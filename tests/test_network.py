"""Tests of the forward pass and the loss against NumPy loops, and of the errors for bad input."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, apply, assert_equal, gradient, loss_of, make_case

import jaxrnn
from jaxrnn.lm.build import INITIALIZERS

PHI = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "identity": lambda a: a,
}


def forward_in_numpy(rnn, params, inputs, h):
    """Compute outputs (B, T, O) and last states (L, B, H), one step and one layer at a time."""
    params, h = jax.tree.map(np.asarray, (params, h))
    states, outputs = list(h), []
    for t in range(inputs.shape[1]):
        x = np.asarray(inputs[:, t])
        if x.ndim == 1:
            x = np.eye(rnn.input_size)[x]
        for layer, cell in enumerate(params.cells):
            a = x @ cell.W_xh + states[layer] @ cell.W_hh + (0 if cell.b_h is None else cell.b_h)
            x = (1 - rnn.leak) * states[layer] + rnn.leak * PHI[rnn.activation](a)
            states[layer] = x
        b_y = 0 if params.readout.b_y is None else params.readout.b_y
        outputs.append(x @ params.readout.W_hy + b_y)
    return np.stack(outputs, 1), np.stack(states)


@pytest.mark.parametrize("activation", PHI)
@pytest.mark.parametrize(
    "network",
    [{"ids": True}, {"num_layers": 2, "leak": 0.3}, {"num_layers": 2, "use_bias": False}],
    ids=str,
)
def test_apply_is_the_recurrence(activation, network):
    rnn, params, h, batch = make_case(activation=activation, **network)
    assert_equal(
        apply(rnn, params, batch.inputs, h), forward_in_numpy(rnn, params, batch.inputs, h)
    )


def losses_in_numpy(rnn, outputs, targets):
    if rnn.loss_function == "squared_error":
        return ((outputs - targets) ** 2).sum(-1)
    p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(p, np.asarray(targets)[..., None], -1)[..., 0])


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "squared_error"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mask", [False, True])
def test_loss_is_the_masked_mean_or_sum(loss, reduction, mask):
    rnn, params, h, batch = make_case(loss_function=loss, reduction=reduction, mask=mask)
    outputs, h_last = forward_in_numpy(rnn, params, batch.inputs, h)
    losses = losses_in_numpy(rnn, outputs, batch.targets)
    weights = np.ones_like(losses) if batch.mask is None else np.asarray(batch.mask)
    expected = (weights * losses).sum() / (weights.sum() if reduction == "mean" else 1)
    assert_equal(rnn.loss(params, h, batch), (expected, h_last))


def test_softmax_cross_entropy_and_its_gradient_survive_large_outputs():
    case = make_case(readout_init=jax.nn.initializers.constant(1e4))
    (loss, _), grads = gradient(jaxrnn.gradients.bptt(case.rnn), case)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads)))


def test_a_custom_loss_sees_batch_first_arrays():
    seen = []

    def loss(outputs, targets):
        seen.append((outputs.shape, targets.shape))
        return jnp.square(outputs - targets).sum(-1) * jnp.arange(outputs.shape[1])

    rnn, params, h, batch = make_case(loss_function=loss)
    outputs, h_last = forward_in_numpy(rnn, params, batch.inputs, h)
    expected = (((outputs - batch.targets) ** 2).sum(-1) * np.arange(6)).sum()
    assert_equal(rnn.loss(params, h, batch), (expected, h_last))
    assert set(seen) == {((3, 6, 2), (3, 6, 2))}


@pytest.mark.parametrize("rule", ["autodiff", "bptt"])
def test_a_custom_loss_in_another_dtype_does_not_change_that_of_the_gradient(rule):
    loss = lambda y, target: jnp.square(y - target).sum(-1).astype(jnp.float64)  # noqa: E731
    case = make_case(loss_function=loss, dtype=jnp.float32)
    wide = case.batch._replace(targets=np.asarray(case.batch.targets, np.float64))
    algorithm = getattr(jaxrnn.gradients, rule)(case.rnn)
    (value, _), grads = gradient(algorithm, case._replace(batch=wide))
    assert {leaf.dtype for leaf in jax.tree.leaves((value, grads))} == {jnp.dtype(jnp.float32)}


LOSSES_OF_POSITIVE_TARGETS = {
    "relative": lambda y, t: (jnp.abs(y - t) / t).sum(-1),
    "Poisson": lambda y, t: (jnp.exp(y) - t * y + jax.lax.lgamma(t + 1)).sum(-1),
    "gamma": lambda y, t: (y + t * jnp.exp(-y) - jnp.log(t)).sum(-1),
    "KL": lambda y, t: (t * (jnp.log(t) - jax.nn.log_softmax(y))).sum(-1),
    "log ratio": lambda y, t: jnp.square(jnp.log(jax.nn.softplus(y) / t)).sum(-1),
    "power": lambda y, t: (t**y).sum(-1),
}


@pytest.mark.parametrize("rule", ["autodiff", "bptt"])
@pytest.mark.parametrize("loss", [*LOSSES_OF_POSITIVE_TARGETS, "squared_error"])
def test_the_target_at_a_masked_position_has_no_influence(rule, loss):
    function = LOSSES_OF_POSITIVE_TARGETS.get(loss, loss)
    rnn, params, h, batch = make_case(loss_function=function, mask=True, reduction="mean")
    targets, mask = 1 + np.asarray(batch.targets) ** 2, np.array(batch.mask)
    mask[1] = 0  # this row is masked completely
    masked = (mask == 0)[..., None]
    case = Case(rnn, params, h, jaxrnn.Batch(batch.inputs, targets, mask))
    algorithm = getattr(jaxrnn.gradients, rule)(rnn)
    expected = gradient(algorithm, case)
    assert masked.any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    for anything in (np.nan, np.inf, 0.0, -1e30):
        changed = jaxrnn.Batch(batch.inputs, np.where(masked, anything, targets), mask)
        assert_equal(gradient(algorithm, case._replace(batch=changed)), expected)
    empty = jaxrnn.Batch(batch.inputs, np.full_like(targets, np.nan), np.zeros((3, 6)))
    (value, _), grads = gradient(algorithm, case._replace(batch=empty))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves((value, grads)))


def test_the_target_at_a_masked_position_may_be_an_invalid_id():
    rnn, params, h, batch = make_case(ids=True, mask=True)
    targets = np.where(np.asarray(batch.mask) == 0, -100, np.asarray(batch.targets))
    assert_equal(rnn.loss(params, h, batch._replace(targets=targets)), rnn.loss(params, h, batch))


@pytest.mark.parametrize("ids", [False, True])
def test_the_state_of_a_row_does_not_change_after_its_length(ids):
    """The outputs, state and loss are those of each row without its padding."""
    rnn, params, h, batch = make_case(num_layers=2, leak=0.6, ids=ids)
    lengths = np.array([6, 2, 0])
    padding = np.arange(6) >= lengths[:, None]
    inputs = np.array(batch.inputs)
    inputs[padding] = -7 if ids else np.nan
    padded = jaxrnn.Batch(inputs, np.where(padding, -100, batch.targets), None, lengths)
    loss, h_last = loss_of(rnn, params, h, padded)
    outputs, h_applied = apply(rnn, params, inputs, h, lengths)
    assert_equal(h_applied, h_last)
    total = 0.0
    for b, length in enumerate(lengths):
        row = jaxrnn.Batch(batch.inputs[b : b + 1, :length], batch.targets[b : b + 1, :length])
        if length == 0:
            assert_equal(h_last[:, b], h[:, b])
            continue
        row_loss, row_last = loss_of(rnn, params, h[:, b : b + 1], row)
        assert_equal(h_last[:, b : b + 1], row_last)
        assert_equal(outputs[b, :length], apply(rnn, params, row.inputs, h[:, b : b + 1])[0][0])
        total += row_loss
    assert_equal(loss, total)
    mean, _ = loss_of(dataclasses.replace(rnn, reduction="mean"), params, h, padded)
    assert_equal(mean, total / lengths.sum())


def test_unroll_stops_each_row_at_its_length():
    rnn, params, h, batch = make_case()
    lengths = np.array([6, 2, 0])
    cell, inputs = params.cells[0], np.array(batch.inputs)
    inputs[np.arange(6) >= lengths[:, None]] = np.nan

    def loss(cell, h):
        states, h_last = rnn.unroll(cell, inputs, h, lengths)
        return jnp.sin(states[1, :2]).sum() + jnp.square(h_last[1]).sum()

    def alone(cell, h):
        states, h_last = rnn.unroll(cell, batch.inputs[1:2, :2], h[1:2])
        return jnp.sin(states).sum() + jnp.square(h_last).sum()

    padded, expected = (jax.jit(jax.grad(f, (0, 1)))(cell, h[0]) for f in (loss, alone))
    assert_equal(padded, expected)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("rule", ["autodiff", "bptt"])
def test_a_mean_over_many_positions_does_not_vanish_in_low_precision(rule, dtype):
    """The batch has 65,536 positions, which float16 cannot represent."""
    case = make_case(B=512, T=128, H=3, I=3, O=3, reduction="mean", dtype=jnp.float32)
    low = jax.tree.map(lambda leaf: leaf.astype(dtype), (case.params, case.h))
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), low)
    algorithm = getattr(jaxrnn.gradients, rule)(case.rnn)
    (loss, _), grads = gradient(algorithm, case._replace(params=low[0], h=low[1]))
    reference = jaxrnn.gradients.autodiff(case.rnn)
    exact = gradient(reference, case._replace(params=high[0], h=high[1]))
    assert loss.dtype == jnp.float32
    assert_equal(loss, exact[0][0], 1e-3)
    tolerance = 20 * float(jnp.finfo(dtype).eps)
    assert_equal(grads.readout.W_hy, exact[1].readout.W_hy, tolerance)
    assert_equal(grads.cells[0].W_hh, exact[1].cells[0].W_hh, tolerance)


def test_state_passed_on_continues_the_sequence():
    rnn, params, h, batch = make_case(num_layers=2)
    whole, h_last = apply(rnn, params, batch.inputs, h)
    first, h_between = apply(rnn, params, batch.inputs[:, :2], h)
    second, h_end = apply(rnn, params, batch.inputs[:, 2:], h_between)
    assert_equal((jnp.concatenate([first, second], 1), h_end), (whole, h_last))


def test_numpy_arrays_and_any_integer_dtype_are_accepted():
    rnn, params, h, batch = make_case(ids=True)
    expected = rnn.loss(params, h, batch)
    for dtype in (np.uint8, np.int16, np.int64):
        arrays = jaxrnn.Batch(np.asarray(batch.inputs, dtype), np.asarray(batch.targets, dtype))
        numpy_params = jax.tree.map(np.asarray, params)
        assert_equal(rnn.loss(numpy_params, np.asarray(h), arrays), expected)


def test_initial_parameters_follow_the_initialisers():
    normal = jax.nn.initializers.normal(1.0)
    small = jax.nn.initializers.normal(0.01)
    uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    rnn = jaxrnn.RNN(
        100, 400, 50, num_layers=2, input_init=uniform, recurrent_init=small, readout_init=normal
    )
    first, second = rnn.init(jax.random.key(0)).cells
    readout = rnn.init(jax.random.key(0)).readout
    assert float(jnp.abs(first.W_xh).max()) == pytest.approx(1 / 10, rel=1e-3)
    assert float(jnp.abs(second.W_xh).max()) == pytest.approx(1 / 20, rel=1e-3)
    assert float(first.W_hh.std()) == pytest.approx(0.01, rel=0.01)
    assert float(readout.W_hy.std()) == pytest.approx(1, rel=0.02)
    assert all(not b.any() for b in (first.b_h, readout.b_y) if b is not None)
    assert not jnp.array_equal(first.W_hh, second.W_hh)


def test_default_recurrent_weights_are_orthogonal():
    W_hh = jaxrnn.RNN(3, 20, 2).init(jax.random.key(1)).cells[0].W_hh
    assert_equal(W_hh @ W_hh.T, np.eye(20), 1e-6)


NETWORKS = [jaxrnn.RNN(5, 4, 2, **weights) for weights in INITIALIZERS.values()]


@pytest.mark.parametrize("rnn", NETWORKS, ids=INITIALIZERS)
def test_a_network_can_be_pickled_copied_and_replaced(rnn):
    for other in (pickle.loads(pickle.dumps(rnn)), copy.deepcopy(rnn), copy.copy(rnn)):
        assert (other, hash(other)) == (rnn, hash(rnn))
    for field in dataclasses.fields(rnn):
        assert dataclasses.replace(rnn, **{field.name: getattr(rnn, field.name)}) == rnn
    assert dataclasses.replace(rnn, reduction="sum").reduction == "sum"
    with pytest.raises(ValueError, match="num_layers must be a whole number of at least 1, got 0"):
        dataclasses.replace(rnn, num_layers=0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_in_low_precision_are_those_of_float32_rounded(dtype):
    rnn = jaxrnn.RNN(5, 4, 2, num_layers=2)
    wide = rnn.init(jax.random.key(0), jnp.float32)
    params = rnn.init(jax.random.key(0), dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert_equal(params, jax.tree.map(lambda leaf: leaf.astype(dtype), wide), 0)


def test_a_network_is_a_frozen_hashable_description():
    assert jaxrnn.RNN(5, 4, 2) == jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    assert len({jaxrnn.RNN(5, 4, 2), jaxrnn.RNN(5, 4, 2), jaxrnn.RNN(5, 4, 3)}) == 2
    with pytest.raises(AttributeError):
        setattr(jaxrnn.RNN(5, 4, 2), "leak", 0.5)  # noqa: B010


# One layer


@pytest.mark.parametrize(
    ("network", "dtype"),
    [
        ({}, jnp.float64),
        ({}, jnp.float32),
        ({"ids": True}, jnp.float64),
        ({"ids": True, "leak": 0.4}, jnp.float32),
        ({"leak": 0.4, "use_bias": False}, jnp.float64),
        ({"activation": "relu"}, jnp.float64),
        ({"activation": "sigmoid", "leak": 0.7}, jnp.float64),
        ({"activation": "identity", "use_bias": False}, jnp.float64),
    ],
    ids=str,
)
def test_unroll_has_the_gradient_of_autodiff_for_any_loss_of_its_states(network, dtype):
    """Compares gradients of the cell, inputs (dx) and h_0 (dh), for a loss of all states."""
    ids = network.get("ids", False)
    rnn, params, h, batch = make_case(dtype=dtype, **network)

    def loss(unroll, cell, inputs, h):
        states, h_last = unroll(cell, inputs, h)
        return jnp.sin(3 * states).sum() + jnp.square(h_last).sum()

    def plain(cell, inputs, h):
        states = []
        for t in range(inputs.shape[1]):
            h = rnn.step(cell, inputs[:, t], h)
            states.append(h)
        return jnp.stack(states, 1), h

    arguments = (params.cells[0], batch.inputs, h[0])
    argnums = (0, 2) if ids else (0, 1, 2)
    by_hand = jax.jit(jax.value_and_grad(lambda *a: loss(rnn.unroll, *a), argnums))(*arguments)
    by_autodiff = jax.jit(jax.value_and_grad(lambda *a: loss(plain, *a), argnums))(*arguments)
    assert jax.tree.leaves(by_hand)[0].dtype == dtype
    assert_equal(by_hand, by_autodiff, 1e-12 if dtype == jnp.float64 else 1e-5)


def test_unroll_and_the_readout_give_the_outputs_of_apply():
    rnn, params, h, batch = make_case(use_bias=False)
    states, h_last = rnn.unroll(params.cells[0], batch.inputs, h[0])
    outputs = states @ params.readout.W_hy
    assert_equal((outputs, h_last[None]), apply(rnn, params, batch.inputs, h))


def test_unroll_uses_its_hand_written_derivative():
    """Its backward loop carries only the credit. That of autodiff also carries weight gradients."""
    rnn, params, h, batch = make_case()

    def by_hand(cell):
        return rnn.unroll(cell, batch.inputs, h[0])[0].sum()

    def plain(params):
        return rnn.loss(params, h, batch)[0]

    assert "custom_jvp" in str(jax.make_jaxpr(by_hand)(params.cells[0]))
    assert "custom_jvp" not in str(jax.make_jaxpr(rnn.loss)(params, h, batch))
    assert carried_shapes(jax.grad(by_hand), params.cells[0]) == {h[0].shape}
    assert carried_shapes(jax.grad(plain), params) >= {h[0].shape, params.cells[0].W_hh.shape}


def carried_shapes(grad, at) -> set[tuple[int, ...]]:
    """Return the shapes of the arrays that the backward loop of a gradient carries."""
    scans = [eqn for eqn in jax.make_jaxpr(grad)(at).eqns if eqn.primitive.name == "scan"]
    (backward,) = [eqn for eqn in scans if eqn.params["reverse"]]
    whole = [var.aval.shape for var in backward.outvars]
    per_step = [var.shape for var in backward.params["jaxpr"].out_avals]
    return {shape for shape, step in zip(whole, per_step, strict=True) if shape == step}


@pytest.mark.parametrize("network", [{}, {"ids": True, "leak": 0.4}], ids=str)
def test_unroll_has_forward_mode_and_second_derivatives(network):
    rnn, params, h, batch = make_case(B=2, T=3, I=2, H=2, **network)
    identity = jaxrnn.Readout(jnp.eye(2), jnp.zeros(2))

    def by_hand(cell, h):
        states, h_last = rnn.unroll(cell, batch.inputs, h)
        return jnp.sin(states).sum() + jnp.square(h_last).sum()

    def plain(cell, h):
        states, h_last = rnn.apply(jaxrnn.Params((cell,), identity), batch.inputs, h[None])
        return jnp.sin(states).sum() + jnp.square(h_last).sum()

    at = (params.cells[0], h[0])
    for derivative in (
        jax.jacfwd,
        jax.hessian,
        lambda f, argnums: jax.jacrev(jax.grad(f), argnums),
    ):
        by_unroll = jax.jit(derivative(by_hand, argnums=(0, 1)))(*at)
        assert_equal(by_unroll, jax.jit(derivative(plain, argnums=(0, 1)))(*at))


PROGRAMS = {
    "step": lambda rnn, params, h, x: rnn.step(params.cells[0], x[:, 0], h[0]),
    "unroll": lambda rnn, params, h, x: jax.jacfwd(
        lambda cell: rnn.unroll(cell, x, h[0], np.array([1, 6, 0]))[0].sum()
    )(params.cells[0]),
    "apply": lambda rnn, params, h, x: rnn.apply(params, x, h, np.array([1, 6, 0])),
    "evaluate": lambda rnn, params, h, x: jaxrnn.evaluate(
        rnn, params, jaxrnn.Batch(x[None], x[None] % 5)
    ),
    "train": lambda rnn, params, h, x: jaxrnn.make_train_step(
        jaxrnn.gradients.bptt(rnn), jaxrnn.clipped_adagrad()
    )(
        jaxrnn.init_train_state(
            jaxrnn.gradients.bptt(rnn), jaxrnn.clipped_adagrad(), params, h, key=jax.random.key(0)
        ),
        jaxrnn.Batch(x, x),
    ),
    "sample": lambda rnn, params, h, x: jaxrnn.lm.sample(
        rnn, params, x, 3, key=jax.random.key(0), temperature=0.5, top_k=3, top_p=0.9, end=1
    ),
    "most likely": lambda rnn, params, h, x: jaxrnn.lm.beam_search(
        rnn, params, x[0], 3, beams=3, end=1
    ),
    "walkthrough": lambda rnn, params, h, x: jaxrnn.walkthrough(
        rnn, params, jaxrnn.Batch(x[:1], x[:1])
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_promotes_ranks_or_dtypes_implicitly(program):
    rnn, params, h, batch = make_case(ids=True, O=5, dtype=jnp.float32)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda *a: PROGRAMS[program](rnn, *a), params, h, batch.inputs)


# Invalid arguments: one line that names the value and the remedy


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"input_size": -3}, "input_size must be a whole number of at least 1, got -3"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"leak": 0.0}, "leak must be above 0 and at most 1 .* got 0.0"),
        ({"leak": 1.5}, "leak must be above 0 and at most 1 .* got 1.5"),
        (
            {"loss_function": "hinge"},
            "loss_function must be one of softmax_cross_entropy, squared_error",
        ),
    ],
)
def test_invalid_sizes_and_options_of_a_network_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        jaxrnn.RNN(**({"input_size": 5, "hidden_size": 4, "output_size": 2} | network))


def nan_at(*index):
    inputs = np.ones((3, 6, 5))
    inputs[index] = np.nan
    return inputs


def half(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)


def with_batch(**changes):
    return lambda case: case._replace(batch=case.batch._replace(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_batch(inputs=np.full((3, 6), 5)), r"inputs hold the id 5, .* 0 … 4 \(input_size=5\)"),
        (with_batch(inputs=np.full((3, 6), -1)), "inputs hold the id -1"),
        (with_batch(targets=np.full((3, 6), 2)), r"targets hold the id 2, .*\(output_size=2\)"),
        (with_batch(inputs=np.zeros((3, 6))), "inputs of shape .* must be ids.*float64.*astype"),
        (with_batch(targets=np.zeros((3, 6))), "targets of shape .* must be ids.*float64"),
        (with_batch(inputs=np.zeros((3, 6, 4))), r"inputs have shape \(3, 6, 4\).*I=5"),
        (with_batch(inputs=np.zeros((3, 0), int)), r"inputs are empty, with shape \(3, 0\)"),
        (with_batch(targets=np.zeros((3, 5), int)), r"targets has shape \(3, 5\).*\(3, 6\)"),
        (with_batch(mask=np.ones((6, 3))), r"mask has shape \(6, 3\), but needs \(3, 6\)"),
        (with_batch(mask=-np.ones((3, 6))), r"mask holds -1.0 at \[0, 0\], .* at least 0"),
        (with_batch(mask=np.full((3, 6), np.nan)), r"mask holds nan at \[0, 0\]"),
        (with_batch(mask=np.ones((3, 6), complex)), "mask have dtype complex128: pass .* real"),
        (with_batch(inputs=np.full((3, 6), 2**32)), "inputs hold the id 4294967296, .* 0 … 4"),
        (
            with_batch(targets=np.full((3, 6), 2**40 + 1, np.uint64)),
            "targets hold the id 109951162",
        ),
        (with_batch(inputs=nan_at(2, 5, 1)), r"inputs hold nan at \[2, 5, 1\]: set it to 0, or"),
        (with_batch(inputs=np.ones((3, 6, 5), complex)), "inputs have dtype complex128: pass a"),
        (with_batch(inputs=np.ones((3, 6, 5), object)), "inputs have dtype object: pass a JAX"),
        (with_batch(targets=np.full((3, 6), "a")), "targets have dtype <U1: pass a JAX or NumPy"),
        (with_batch(lengths=np.array([7, 1, 1])), "lengths must lie in 0 … 6, the steps T, got 7"),
        (with_batch(lengths=np.array([-1, 1, 1])), "lengths must lie in 0 … 6, .* got -1"),
        (with_batch(lengths=np.ones(3)), "lengths must be integers, but have dtype float64"),
        (with_batch(lengths=np.ones((2,), int)), r"lengths has shape \(2,\), but needs \(3,\)"),
        (
            lambda c: c._replace(params=c.params._replace(readout=half(c.params.readout))),
            r"params.readout.W_hy has dtype bfloat16, but params.cells\[0\].W_xh has float64",
        ),
        (
            lambda c: c._replace(params=jax.tree.map(lambda leaf: leaf.astype(int), c.params)),
            r"params.cells\[0\].W_xh has dtype int64, but parameters are floats: convert it",
        ),
        (lambda c: c._replace(h=jnp.zeros((1, 2, 4))), r"h has shape \(1, 2, 4\).*initial_state"),
        (
            lambda c: c._replace(params=jaxrnn.RNN(5, 3, 2).init(jax.random.key(0))),
            r"params.cells\[0\].W_xh has shape \(5, 3\), but this RNN needs \(5, 4\)",
        ),
        (
            lambda c: c._replace(params=jaxrnn.RNN(5, 4, 2, num_layers=2).init(jax.random.key(0))),
            "params do not have the structure of this RNN's",
        ),
    ],
)
def test_arrays_that_do_not_fit_the_network_are_refused(change, message):
    rnn, params, h, batch = change(make_case(ids=True))
    with pytest.raises(ValueError, match=message) as raised:
        rnn.loss(params, h, batch)
    assert "\n" not in str(raised.value)
    algorithm = jaxrnn.gradients.bptt(rnn)
    with pytest.raises(ValueError, match=message):
        algorithm.value_and_grad(params, jaxrnn.Carry(h, ()), batch)


@pytest.mark.parametrize(
    "changes", [{"inputs": np.full((3, 6), 5)}, {"inputs": np.full((3, 6), -1)}]
)
def test_under_jit_an_id_out_of_range_gives_nan_and_not_another_token(changes):
    rnn, params, h, batch = make_case(ids=True)
    loss, _ = jax.jit(rnn.loss)(params, h, batch._replace(**changes))
    assert jnp.isnan(loss)


@pytest.mark.parametrize("target", [2, -1, -2])
def test_under_jit_a_target_out_of_range_gives_nan(target):
    """The hand-written loss gives nan too. A negative target does not mean the last class."""
    case = make_case(ids=True)
    outside = case.batch._replace(targets=jnp.full((3, 6), target))
    assert jnp.isnan(jax.jit(case.rnn.loss)(case.params, case.h, outside)[0])
    (loss, _), _ = gradient(jaxrnn.gradients.bptt(case.rnn), case._replace(batch=outside))
    assert jnp.isnan(loss)
