"""The forward pass and its loss, against NumPy written out step by step; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal, gradient, make_case

import jaxrnn

PHI = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "identity": lambda a: a,
}


def forward_in_numpy(rnn, params, inputs, h):
    """Return outputs (B, T, O) and the last states (L, B, H), one step and one layer at a time."""
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
    assert_equal(rnn.apply(params, batch.inputs, h), forward_in_numpy(rnn, params, batch.inputs, h))


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
    algorithm = jaxrnn.gradients.bptt(case.rnn)
    carry = algorithm.init(case.params, case.h)
    (loss, _), grads = algorithm.value_and_grad(case.params, carry, case.batch)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads)))


def test_a_custom_loss_sees_batch_first_arrays():
    seen = []

    def loss(outputs, targets):
        seen.append((outputs.shape, targets.shape))
        return jnp.square(outputs - targets).sum(-1) * jnp.arange(outputs.shape[1])  # late counts

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


def test_a_masked_target_may_be_anything():
    rnn, params, h, batch = make_case(loss_function="squared_error", mask=True)
    mask = np.asarray(batch.mask)
    holes = batch._replace(targets=jnp.where(mask[..., None] == 0, jnp.nan, batch.targets))
    assert (mask == 0).any()
    assert_equal(rnn.loss(params, h, holes), rnn.loss(params, h, batch))


def test_state_passed_on_continues_the_sequence():
    rnn, params, h, batch = make_case(num_layers=2)
    whole, h_last = rnn.apply(params, batch.inputs, h)
    first, h_between = rnn.apply(params, batch.inputs[:, :2], h)
    second, h_end = rnn.apply(params, batch.inputs[:, 2:], h_between)
    assert_equal((jnp.concatenate([first, second], 1), h_end), (whole, h_last))


def test_numpy_arrays_and_any_integer_dtype_do():
    rnn, params, h, batch = make_case(ids=True)
    expected = rnn.loss(params, h, batch)
    for dtype in (np.uint8, np.int16, np.int64):
        given = jaxrnn.Batch(np.asarray(batch.inputs, dtype), np.asarray(batch.targets, dtype))
        numpy_params = jax.tree.map(np.asarray, params)
        assert_equal(rnn.loss(numpy_params, np.asarray(h), given), expected)


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
def test_unroll_is_bptt_for_any_loss_on_top(network, dtype):
    """Gradients of cell, inputs (dx) and h_0 (dh), from all states and from the last one."""
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
    wanted = (0, 2) if ids else (0, 1, 2)
    by_hand = jax.value_and_grad(lambda *a: loss(rnn.unroll, *a), wanted)(*arguments)
    by_autodiff = jax.value_and_grad(lambda *a: loss(plain, *a), wanted)(*arguments)
    assert jax.tree.leaves(by_hand)[0].dtype == dtype
    assert_equal(by_hand, by_autodiff, 1e-12 if dtype == jnp.float64 else 1e-5)


def test_unroll_runs_the_layer_of_apply():
    rnn, params, h, batch = make_case(use_bias=False)
    states, h_last = rnn.unroll(params.cells[0], batch.inputs, h[0])
    outputs = states @ params.readout.W_hy
    assert_equal((outputs, h_last[None]), rnn.apply(params, batch.inputs, h))


def test_unroll_uses_its_hand_written_backward_pass():
    rnn, params, h, batch = make_case()
    grad = jax.grad(lambda cell: rnn.unroll(cell, batch.inputs, h[0])[0].sum())
    assert "custom_vjp" in str(
        jax.make_jaxpr(lambda cell: rnn.unroll(cell, batch.inputs, h[0]))(params.cells[0])
    )
    assert "custom_vjp" not in str(jax.make_jaxpr(rnn.loss)(params, h, batch))
    assert jax.tree.structure(grad(params.cells[0])) == jax.tree.structure(params.cells[0])


# What is refused, in one line that says the value and the remedy


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
def test_a_network_that_cannot_be_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        jaxrnn.RNN(**({"input_size": 5, "hidden_size": 4, "output_size": 2} | network))


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
def test_what_does_not_fit_the_network_is_refused(change, message):
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
    """So does the hand-written loss; a negative one does not stand for the last class."""
    case = make_case(ids=True)
    outside = case.batch._replace(targets=jnp.full((3, 6), target))
    assert jnp.isnan(jax.jit(case.rnn.loss)(case.params, case.h, outside)[0])
    (loss, _), _ = gradient(jaxrnn.gradients.bptt(case.rnn), case._replace(batch=outside))
    assert jnp.isnan(loss)
