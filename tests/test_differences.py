"""Tests of finite differences and complex steps as the reference, and of `check_grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import make_case

import jaxrnn
from jaxrnn import gradients

ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")
REFERENCES = {"finite": jaxrnn.finite_difference, "complex": jaxrnn.complex_step}


def verify(case, algorithm, reference):
    return jaxrnn.verify(
        algorithm, case.rnn, case.params, case.batch, h=case.h, reference=reference
    )


@pytest.mark.slow
@pytest.mark.parametrize("elements", [0, 1000], ids=["directions", "elements"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make", REFERENCES.values(), ids=REFERENCES)
def test_a_right_gradient_is_right_and_a_wrong_one_wrong(make, activation, elements):
    case = make_case(activation=activation, num_layers=2, leak=0.8, mask=True)
    reference = make(elements=elements, directions=6)
    report = verify(case, gradients.bptt(case.rnn), reference)
    assert report.ok, str(report)
    limit = 1e-12 if make is jaxrnn.complex_step else 1e-6
    assert all(leaf.error <= leaf.tolerance <= limit for leaf in report.leaves), str(report)
    assert all(leaf.directions == (0 if elements else 6) for leaf in report.leaves)
    wrong = verify(case, gradients.truncated_bptt(case.rnn, 4), reference)
    assert [finding.bug for finding in wrong.findings] == ["truncated at 4"]


@pytest.mark.parametrize("make", REFERENCES.values(), ids=REFERENCES)
def test_one_wrong_element_is_found_by_random_directions(make):
    case = make_case(H=30, I=20)

    def wrong(params, batch):
        algorithm = gradients.bptt(case.rnn)
        carry = algorithm.init(params, case.h)
        (loss, _), grads = algorithm.value_and_grad(params, carry, batch)
        W_hh = grads.cells[0].W_hh.at[3, 5].add(1e-4 * jnp.linalg.norm(grads.cells[0].W_hh))
        return loss, grads._replace(cells=(grads.cells[0]._replace(W_hh=W_hh),))

    report = verify(case, wrong, make())
    (finding,) = report.findings
    assert finding.leaves == ("cells[0].W_hh",)
    by_name = {leaf.name: leaf for leaf in report.leaves}
    assert by_name["cells[0].W_hh"].directions == 64
    assert 2e-5 < by_name["cells[0].W_hh"].error < 5e-4
    assert "but not where it is" in str(report)


def test_elements_at_a_kink_are_left_out_and_counted():
    """A relu has no slope at 0. It has one at the other three elements."""
    x = jnp.array([0.0, 1.0, -1.0, 2.0])
    report = jaxrnn.check_grad(
        lambda x: (jnp.sum(jnp.maximum(x, 0)), (x > 0) * 1.0),
        lambda x: jnp.sum(jnp.maximum(x, 0)),
        x,
        reference=jaxrnn.finite_difference(),
    )
    assert report.ok
    assert report.leaves[0].left_out == 1
    assert "1 elements left out, because the loss has a kink there" in str(report)


def test_no_finding_is_certain_where_every_element_is_at_a_kink():
    report = jaxrnn.check_grad(
        lambda x: (jnp.sum(jnp.abs(x)), jnp.sign(x)),
        lambda x: jnp.sum(jnp.abs(x)),
        jnp.zeros(3),
        reference=jaxrnn.finite_difference(),
    )
    (finding,) = report.findings
    assert finding.bug == "kinks"
    assert not finding.certain


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_the_step_follows_the_scale_of_each_element(scale, size):
    loss = lambda x: size * np.sum(np.sin(x / scale))  # noqa: E731
    grad = lambda x: (loss(x), size / scale * np.cos(np.asarray(x) / scale))  # noqa: E731
    x = scale * np.linspace(0.1, 1.4, 5)
    report = jaxrnn.check_grad(grad, loss, x, reference=jaxrnn.finite_difference())
    assert report.ok, str(report)
    assert report.leaves[0].error < 1e-9
    assert report.leaves[0].tolerance < 1e-7


def test_a_complex_step_refuses_a_loss_that_is_not_analytic():
    case = make_case(loss_function=lambda y, target: jnp.abs(y - target).sum(-1))
    with pytest.raises(ValueError, match="use finite_difference"):
        verify(case, gradients.bptt(case.rnn), jaxrnn.complex_step())
    assert verify(case, gradients.bptt(case.rnn), jaxrnn.finite_difference()).ok


def test_a_complex_step_refuses_a_loss_that_does_not_accept_complex_numbers():
    with pytest.raises(ValueError, match="the loss does not accept complex numbers"):
        jaxrnn.check_grad(
            lambda x: (float(x[0]), np.ones(1)),
            lambda x: float(x[0]),
            np.ones(1),
            reference=jaxrnn.complex_step(),
        )


def test_any_pytree_and_any_function_can_be_checked():
    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params["W"]) ** 2) + params["bias"] ** 2

    params = {"W": np.arange(6.0).reshape(3, 2) / 6, "bias": 0.3}
    x = np.linspace(-1, 1, 12).reshape(4, 3)
    assert jaxrnn.check_grad(jax.value_and_grad(loss), loss, params, x).ok

    def forgot_the_slope(params, x):
        z = np.tanh(np.asarray(x) @ np.asarray(params["W"]))
        dW = np.asarray(x).T @ (2 * z * (1 - z**2))
        return (z**2).sum() + params["bias"] ** 2, {"W": -dW, "bias": 2 * params["bias"]}

    report = jaxrnn.check_grad(forgot_the_slope, loss, params, x)
    (finding,) = report.findings
    assert (finding.bug, finding.leaves) == ("sign", ("W",))
    assert report.profiles == ()
    single = jaxrnn.check_grad(jax.value_and_grad(loss), loss, params, x, dtype="float32")
    assert single.ok
    assert 0 < single.worst.error < 1e-5


def test_a_loss_in_numpy_needs_finite_differences_as_its_reference():
    loss = lambda x: np.sum(np.square(np.asarray(x)))  # noqa: E731
    grad = lambda x: (loss(x), 2 * np.asarray(x))  # noqa: E731
    with pytest.raises(ValueError, match=r"reference=jaxrnn.finite_difference\(\)"):
        jaxrnn.check_grad(grad, loss, np.arange(3.0))
    assert jaxrnn.check_grad(grad, loss, np.arange(3.0), reference=jaxrnn.finite_difference()).ok
    half = jaxrnn.check_grad(
        lambda x: (loss(x), np.asarray(x)),
        loss,
        np.arange(3.0),
        reference=jaxrnn.finite_difference(),
    )
    assert [finding.bug for finding in half.findings] == ["halved"]
