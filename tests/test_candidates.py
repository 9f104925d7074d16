"""Tests of gradients from user code: low precision, foreign tensors, state, custom derivatives."""

import ctypes
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import make_case

import jaxrnn
from jaxrnn.cli.setting import Setting

RNG = np.random.default_rng(0)
W, X = RNG.normal(size=(3, 2)), RNG.normal(size=(5, 3))


def check(candidate, loss, *args, **options):
    return jaxrnn.check_grad(candidate, loss, *args, **options)


def test_a_batch_that_a_jitted_function_has_closed_over_is_read_as_it_is():
    """JAX keeps its ids as a constant in int32, and takes that for the array itself afterwards."""
    ids = np.arange(44).reshape(4, 11) % 5
    rnn = jaxrnn.RNN(5, 8, 5)
    with jax.enable_x64(False):
        params = rnn.init(jax.random.key(0))
        batch = jaxrnn.Batch(ids[:, 1:], ids[:, :-1])
        closed = jax.jit(lambda params: rnn.loss(params, rnn.initial_state(4), batch)[0])
        closed(params)
        rule = jaxrnn.gradients.bptt(rnn)
        assert jaxrnn.verify(rule, rnn, params, batch)
        assert jaxrnn.verify_claim(rule, rnn, params, batch, claim="approximate")
        assert np.isfinite(jaxrnn.gradient_flow(rnn, params, batch).share["cells[0].W_hh"]).all()


# Losses that compute in low precision


def in_float32(w, x):
    return jnp.tanh(x.astype(jnp.float32) @ w.astype(jnp.float32)).mean()


def in_float16(w, x):
    return jnp.tanh(x.astype(jnp.float16) @ w.astype(jnp.float16)).mean()


def in_numpy_float32(w, x):
    w, x = np.asarray(w, np.float32), np.asarray(x, np.float32)
    return np.tanh(x @ w).mean()


def by_hand(w, x, dtype=np.float64):
    """Compute the loss above and its correct gradient, in NumPy."""
    w, x = np.asarray(w, dtype), np.asarray(x, dtype)
    z = np.tanh(x @ w)
    return z.mean(), (x.T @ (1 - z**2) / dtype(z.size)).astype(np.float64)


def test_a_right_gradient_of_a_loss_in_float32_is_right_to_float32():
    assert check(jax.value_and_grad(in_float32), in_float32, W, X).ok
    report = check(by_hand, in_float32, W, X)
    assert report.ok, report.diagnosis
    assert report.diagnosis.startswith(
        "right, to float32 precision because the loss computes in float32"
    )


def test_a_wrong_gradient_of_a_loss_in_float32_is_wrong():
    report = check(lambda w, x: (by_hand(w, x)[0], 1.01 * by_hand(w, x)[1]), in_float32, W, X)
    assert "wrong: scale" in report.diagnosis


def test_a_gradient_of_a_loss_in_float16_is_never_certainly_wrong():
    report = check(jax.value_and_grad(in_float16), in_float16, W, X)
    assert report.ok or not any(finding.certain for finding in report.findings)


def test_finite_differences_of_a_loss_in_float32_estimate_their_own_precision():
    difference = jaxrnn.finite_difference()
    report = check(by_hand, in_numpy_float32, W, X, reference=difference)
    assert not any(finding.certain for finding in report.findings), report.diagnosis
    wrong = lambda w, x: (by_hand(w, x)[0], 2 * by_hand(w, x)[1])  # noqa: E731
    assert "it is 2.000" in check(wrong, in_numpy_float32, W, X, reference=difference).diagnosis


@pytest.mark.parametrize("guard", [1e-12, 1e-9, 1e-7])
def test_a_guard_in_the_candidate_is_nearly_right(guard):
    def loss(w, x):
        return -jnp.log(jax.nn.softmax(x @ w)[:, 0]).mean()

    def guarded(w, x):
        return -jnp.log(jax.nn.softmax(x @ w)[:, 0] + guard).mean()

    report = check(jax.value_and_grad(guarded), loss, W, X)
    (finding,) = report.findings
    assert (finding.bug, finding.certain) == ("nearly right", False)
    assert f"it agrees to {report.worst.error:.1g}" in report.diagnosis
    assert "wrong" not in report.diagnosis


def test_a_guard_with_two_outputs_is_not_taken_for_a_clipped_bias():
    """The bias gradients of two outputs are opposite, so one clipping value could explain both."""

    def loss(params, x, guard=0.0):
        w, b = params
        return -jnp.log(jax.nn.softmax(x @ w + b)[:, 0] + guard).mean()

    params = (W, np.array([0.3, -0.2]))
    guarded = lambda params, x: loss(params, x, 1e-9)  # noqa: E731
    report = check(jax.value_and_grad(guarded), loss, params, X)
    assert [finding.bug for finding in report.findings] == ["nearly right"], report.diagnosis


def test_a_leaf_that_float32_represents_exactly_does_not_make_rounding_a_bug():
    """A saturated softmax has such errors: their sum, the gradient of b_y, is a whole number."""

    def loss(params, x):
        w, b = params
        return jnp.tanh(x @ w).sum() + 3 * b.sum()

    def in_float32(params, x):
        low = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, x))
        value, grads = jax.value_and_grad(loss)(*low)
        return value, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), grads)

    def with_another_b(params, x):
        value, (w, b) = in_float32(params, x)
        return value, (w, 1.5 * b)

    params = (W, np.array([0.3, -0.2]))
    report = check(in_float32, loss, params, X)
    assert [finding.bug for finding in report.findings] == ["nearly right"], report.diagnosis
    assert any(finding.certain for finding in check(with_another_b, loss, params, X).findings)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("guard", [1e-12, 1e-9, 1e-6, 1e-3])
def test_a_guard_in_the_loss_of_an_rnn_is_named_but_is_not_certain(guard, mask):
    case = make_case(reduction="mean", mask=mask)

    def guarded(outputs, targets):
        p = jnp.take_along_axis(jax.nn.softmax(outputs), targets[..., None], -1)[..., 0]
        return -jnp.log(p + guard)

    rule = jaxrnn.gradients.autodiff(dataclasses.replace(case.rnn, loss_function=guarded))
    report = jaxrnn.verify(rule, case.rnn, case.params, case.batch, h=case.h)
    assert {finding.bug for finding in report.findings} <= {"guard", "loss"}
    assert not any(finding.certain for finding in report.findings), report.diagnosis
    assert f"-log(p + {guard:.0e})" in report.diagnosis


def test_a_candidate_in_float32_with_elements_of_all_sizes_is_nearly_right():
    def loss(w, x):
        return ((w * x) ** 2).sum()

    def in_low_precision(w, x):
        value, grad = jax.value_and_grad(loss)(w.astype(jnp.float32), x.astype(jnp.float32))
        return value.astype(jnp.float64), grad.astype(jnp.float64)

    sizes = RNG.normal(size=30) * np.logspace(0, 6, 30)
    report = check(in_low_precision, loss, RNG.normal(size=30), sizes)
    assert [finding.bug for finding in report.findings] == ["nearly right"], report.diagnosis


@pytest.mark.slow
def test_rounding_to_float32_in_an_rnn_is_not_certain_and_one_wrong_element_is_found():
    case = make_case(reduction="mean")
    rule = jaxrnn.gradients.bptt(case.rnn)

    def in_low_precision(params, batch):
        low = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        carry = rule.init(low, case.rnn.initial_state(3))
        (loss, _), grads = rule.value_and_grad(low, carry, batch)
        return loss, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), grads)

    def one_element(params, batch):
        (loss, _), grads = rule.value_and_grad(
            params, rule.init(params, case.rnn.initial_state(3)), batch
        )
        W_hy = grads.readout.W_hy.at[0, 0].add(1e-7 * jnp.linalg.norm(grads.readout.W_hy))
        return loss, grads._replace(readout=grads.readout._replace(W_hy=W_hy))

    verify = lambda f: jaxrnn.verify(f, case.rnn, case.params, case.batch)  # noqa: E731
    assert [finding.certain for finding in verify(in_low_precision).findings] == [False]
    assert "only 1 of 8 elements are wrong" in verify(one_element).diagnosis


def test_losses_are_printed_to_the_digit_where_they_differ():
    loss = lambda w: jnp.square(w).sum()  # noqa: E731
    off = lambda w: (loss(w) * (1 + 1e-10), 2 * w)  # noqa: E731
    report = check(off, loss, W)
    actual, expected = (
        report.diagnosis.split("the losses differ, ")[1].split(";")[0].split(" where")
    )
    assert actual != expected.removeprefix(" the reference has ")


# What can be differentiated


def with_a_float32_state(w, x):
    """Scan from an initial state in float32, as the default cells of Flax do."""
    step = lambda h, x_t: (jnp.tanh(x_t @ w + h), None)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros(2, jnp.float32), x)[0].sum()


def test_a_loss_that_cannot_be_traced_in_float64_is_compared_in_float32():
    report = check(jax.value_and_grad(with_a_float32_state), with_a_float32_state, W, X)
    assert report.ok, report.diagnosis
    assert "to float32 precision because the loss cannot be traced in float64" in report.diagnosis
    wrong = lambda w, x: (with_a_float32_state(w, x), jnp.ones_like(w))  # noqa: E731
    assert "wrong" in check(wrong, with_a_float32_state, W, X).diagnosis


def with_all_kinds(params, key, function, name, steps, flag, empty):
    noise = jax.random.normal(key, params["w"].shape, params["w"].dtype)
    scale = {"twice": 2.0}[name] if flag else 1.0
    total = sum(function(scale * params["w"] + noise).sum() for _ in range(steps))
    return total + params["nothing"].sum() + empty.sum()


def test_keys_functions_strings_integers_and_empty_leaves_are_passed_on():
    args = (jax.random.key(1), jnp.tanh, "twice", 3, True, np.zeros((0, 2)))
    params = {"w": W, "nothing": np.zeros((0, 3))}
    right = jax.value_and_grad(with_all_kinds)
    assert check(right, with_all_kinds, params, *args).ok

    def wrong(*args):
        loss, grads = right(*args)
        return loss, grads | {"w": 3 * grads["w"]}

    assert "scale" in check(wrong, with_all_kinds, params, *args).diagnosis


@pytest.mark.parametrize(
    ("params", "loss", "message"),
    [
        (W + 1j, lambda w: jnp.abs(w).sum(), "must hold real floats, but array is complex128"),
        ({"n": 3, "w": W}, lambda p: p["w"].sum(), r"must hold real floats, but .*n.* is int"),
        (W, lambda w: w.sum(0), r"loss_fn returns an array of shape \(2,\), but a loss is one"),
    ],
)
def test_a_loss_without_a_real_gradient_raises_an_error_that_says_why(params, loss, message):
    with pytest.raises(ValueError, match=message):
        check(jax.value_and_grad(loss), loss, params)


# Custom derivative rules in the loss


def make_act(slope):
    @jax.custom_vjp
    def act(a):
        return jnp.tanh(a)

    act.defvjp(lambda a: (jnp.tanh(a), jnp.tanh(a)), lambda z, g: (g * slope(z),))
    return act


def make_loss(slope):
    act = make_act(slope)
    return lambda w, x: act(x @ w).mean()


def make_loss_by_jvp(slope):
    @jax.custom_jvp
    def act(a):
        return jnp.tanh(a)

    act.defjvp(lambda primals, tangents: (act(*primals), tangents[0] * slope(jnp.tanh(*primals))))
    return lambda w, x: act(x @ w).mean()


RIGHT = lambda z: 1 - z**2  # noqa: E731
WRONG = lambda z: 1 - jnp.tanh(z) ** 2  # noqa: E731


@pytest.mark.parametrize("make", [make_loss, make_loss_by_jvp])
@pytest.mark.parametrize("reference", [None, jaxrnn.finite_difference()])
def test_a_wrong_rule_in_the_loss_does_not_pass_as_right(make, reference):
    loss = make(WRONG)
    report = check(jax.value_and_grad(loss), loss, W, X, reference=reference)
    assert not report.ok
    assert all(finding.certain for finding in report.findings)
    assert "smooth" not in report.diagnosis
    assert "act, written by hand, is wrong" in report.reference
    right = check(by_hand, loss, W, X, reference=reference)
    assert right.ok, right.diagnosis


@pytest.mark.parametrize("make", [make_loss, make_loss_by_jvp])
def test_a_right_rule_in_the_loss_is_right_and_its_check_is_noted(make):
    loss = make(RIGHT)
    report = check(jax.value_and_grad(loss), loss, W, X)
    assert report.ok, report.diagnosis
    assert report.worst.error <= 1e-12
    assert "act" in " ".join(report.notes)


def test_a_wrong_factor_in_the_rule_is_named():
    loss = make_loss(lambda z: 2 * RIGHT(z))
    assert "counted twice" in check(jax.value_and_grad(loss), loss, W, X).diagnosis


def test_a_wrong_rule_in_an_rnns_own_loss_is_found():
    act = make_act(WRONG)
    case = make_case(loss_function=lambda y, t: act(y - t).sum(-1))
    report = jaxrnn.verify(jaxrnn.gradients.bptt(case.rnn), case.rnn, case.params, case.batch)
    assert not report.ok


# Memory and state


def test_a_candidate_that_writes_to_its_arguments_is_right_and_noted():
    def writes(w, x):
        loss, grads = by_hand(w, x)
        ctypes.memset(w.unsafe_buffer_pointer(), 0, w.nbytes)  # as torch.from_numpy's add_ would
        return loss, grads

    report = check(writes, lambda w, x: jnp.tanh(x @ w).mean(), W, X)
    assert report.ok, report.diagnosis
    assert "wrote to its arguments ([0])" in " ".join(report.notes)


class Accumulates:
    """A candidate whose calls add up their gradients, as in PyTorch without `zero_grad`."""

    def __init__(self):
        self.grads = np.zeros_like(W)

    def __call__(self, w, x):
        loss, grads = by_hand(w, x)
        self.grads = self.grads + grads
        return loss, self.grads


def test_a_candidate_with_another_answer_at_its_second_call_is_not_repeatable():
    loss = lambda w, x: jnp.tanh(x @ w).mean()  # noqa: E731
    (finding,) = check(Accumulates(), loss, W, X).findings
    assert finding.bug == "not repeatable"
    assert "gives twice the gradient: was zero_grad forgotten" in finding.text
    rng = np.random.default_rng(0)

    def dropout(w, x):
        return by_hand(w, x * rng.integers(0, 2, x.shape))

    for reference in (None, jaxrnn.finite_difference()):
        (finding,) = check(dropout, loss, W, X, reference=reference).findings
        assert (finding.bug, finding.leaves) == ("not repeatable", ("array",))
    calls = []

    def once(w, x):
        calls.append(1)
        return by_hand(w, x) if len(calls) == 1 else 1 / 0

    assert "a second call with the same arguments fails" in check(once, loss, W, X).diagnosis


class Tensor:
    """A PyTorch tensor that requires grad, imitated: NumPy cannot read it before `detach`."""

    def __init__(self, value):
        self.value, self.shape = value, np.shape(value)

    def __array__(self, *args, **options):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use detach()")

    def detach(self):
        return self

    def cpu(self):
        return self.value


def test_tensors_that_require_grad_are_accepted():
    loss = lambda w, x: jnp.tanh(x @ w).mean()  # noqa: E731
    tensors = lambda w, x: tuple(map(Tensor, by_hand(w, x)))  # noqa: E731
    assert check(tensors, loss, W, X).ok
    vector = lambda w, x: (Tensor(np.ones(3)), by_hand(w, x)[1])  # noqa: E731
    assert "but is an array of shape (3,)" in check(vector, loss, W, X).diagnosis


def test_a_right_gradient_is_reported_as_right_although_its_loss_differs():
    loss = lambda w, x: jnp.tanh(x @ w).mean()  # noqa: E731
    twice = lambda w, x: (2 * by_hand(w, x)[0], by_hand(w, x)[1])  # noqa: E731
    report = check(twice, loss, W, X)
    assert "the losses differ" in report.diagnosis
    assert "the gradient is that of the reference" in report.diagnosis
    assert "cannot agree" not in report.diagnosis


def test_verify_says_how_to_check_a_loss_of_ones_own():
    case = make_case()

    def loss(params):
        return case.rnn.loss(params, case.h, case.batch)[0] + (params.cells[0].W_hh ** 2).sum()

    penalized = lambda params, batch: jax.value_and_grad(loss)(params)  # noqa: E731
    report = jaxrnn.verify(penalized, case.rnn, case.params, case.batch, h=case.h)
    assert report.findings[0].text.endswith("check a loss of your own with jaxrnn.check_grad")


# The text of a diagnosis


@pytest.mark.slow
def test_a_factor_with_two_possible_causes_is_reported_with_both():
    """T and O are both 4, so a gradient that is 4 times too large may be summed over either."""
    case = make_case(T=4, O=4, ids=True, reduction="mean")
    rule = jaxrnn.gradients.bptt(case.rnn)

    def times_T(params, batch):
        (loss, _), grads = rule.value_and_grad(params, rule.init(params, case.h * 0), batch)
        return loss, jax.tree.map(lambda leaf: 4 * leaf, grads)

    diagnosis = jaxrnn.verify(times_T, case.rnn, case.params, case.batch).diagnosis
    assert "summed, not averaged, over the 4 steps or the 4 outputs" in diagnosis


def test_the_default_sizes_of_the_check_command_all_differ():
    sizes = Setting()
    numbers = [sizes.input_size, sizes.hidden_size, sizes.output_size, sizes.batch_size]
    numbers += [sizes.length, sizes.batch_size * sizes.length, sizes.num_layers]
    assert len(set(numbers)) == len(numbers)


def test_a_leaf_of_zeros_is_reported_as_zero_only():
    loss = lambda w, x: jnp.tanh(x @ w).mean()  # noqa: E731
    diagnosis = check(lambda w, x: (loss(w, x), 0 * w), loss, W, X).diagnosis
    assert diagnosis == "wrong: zero in array: every element is zero: nothing was added to it"


def test_a_factor_near_1_is_printed_to_the_digit_where_it_differs():
    loss = lambda w: (w[0] * w[1] + w[2]).sum()  # noqa: E731
    report = check(lambda w: (loss(w), (1 + 1e-5) * jax.grad(loss)(w)), loss, np.arange(1.0, 4.0))
    assert "it is 1.00001 times the exact value" in report.diagnosis


def test_the_leaves_of_a_dict_are_named_by_its_keys():
    loss = lambda p: (p["W_f"] ** 2).sum() + p["in"]["b"].sum() * p["0x"].sum()  # noqa: E731
    params = {"W_f": W, "in": {"b": np.ones(2)}, "0x": np.ones(2)}
    report = check(jax.value_and_grad(loss), loss, params)
    assert {leaf.name for leaf in report.leaves} == {"W_f", "in.b", "['0x']"}


@pytest.mark.slow
def test_a_leaf_with_too_few_numbers_for_its_lags_is_reported():
    case = make_case(T=12, H=1, I=1, ids=True)
    rule = jaxrnn.gradients.truncated_bptt(case.rnn, 2)
    report = jaxrnn.verify(rule, case.rnn, case.params, case.batch)
    assert "lag weights of cells[0].b_h: this leaf has too few elements" in str(report)


@pytest.mark.parametrize(
    ("loss", "at"),
    [
        (lambda w: jax.nn.relu(w).sum() + (w**2).sum(), np.array([0.0, 1.0, -1.0])),
        (lambda w: jnp.tanh(1e4 * w).sum() + (w**2).sum(), np.array([1.0, 1e-5, -1.0])),
    ],
)
def test_a_complex_step_is_never_certain_at_a_kink_or_where_it_overflows(loss, at):
    report = check(jax.value_and_grad(loss), loss, at, reference=jaxrnn.complex_step())
    assert not any(finding.certain for finding in report.findings), report.diagnosis
