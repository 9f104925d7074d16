"""Tests of the reports of `verify` on right and wrong gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import make_case

import jaxrnn
from jaxrnn import gradients


def numpy_bptt(rnn, *, gain=True, transposed=True):
    """Make a backward pass in NumPy, as a user writes it: one layer, with or without a bug."""

    def value_and_grad(params, batch):
        (W_xh, W_hh, b_h), (W_hy, b_y) = jax.tree.map(np.asarray, (params.cells[0], params.readout))
        x, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
        B, T = targets.shape
        h, dh_next = [np.zeros((B, len(W_hh)))], np.zeros((B, len(W_hh)))
        for t in range(T):
            h.append(np.tanh(x[:, t] @ W_xh + h[-1] @ W_hh + b_h))
        loss, grads = 0.0, jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, params))
        cell, readout = grads.cells[0], grads.readout
        for t in reversed(range(T)):
            y = h[t + 1] @ W_hy + b_y
            p = np.exp(y) / np.exp(y).sum(1, keepdims=True)
            loss -= np.log(p[np.arange(B), targets[:, t]]).sum()
            dy = p - np.eye(len(b_y))[targets[:, t]]
            delta = (dy @ W_hy.T + dh_next) * ((1 - h[t + 1] ** 2) if gain else 1)
            for leaf, part in zip(
                (*cell, *readout),
                (x[:, t].T @ delta, h[t].T @ delta, delta.sum(0), h[t + 1].T @ dy, dy.sum(0)),
                strict=True,
            ):
                leaf += part
            dh_next = delta @ (W_hh.T if transposed else W_hh)
        return loss, grads

    return value_and_grad


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_right_gradient_is_right_in_float64_with_and_without_x64(x64, dtype):
    case = make_case(dtype=dtype, num_layers=2, mask=True)
    with jax.enable_x64(x64):
        report = jaxrnn.verify(gradients.bptt(case.rnn), case.rnn, case.params, case.batch)
    assert report.ok
    assert report
    assert report.diagnosis == "right: every error is at most 1e-12"
    assert len(report.leaves) == 8
    assert report.worst.error <= 1e-12
    assert "right" in str(report)


def test_a_function_in_numpy_is_right_without_a_bug_and_wrong_with_one():
    case = make_case()
    verify = lambda f: jaxrnn.verify(f, case.rnn, case.params, case.batch)  # noqa: E731
    assert verify(numpy_bptt(case.rnn)).ok
    wrong = verify(numpy_bptt(case.rnn, gain=False))
    assert not wrong.ok
    assert not wrong
    assert wrong.diagnosis.startswith("wrong: no gain in cells[0].W_xh, cells[0].W_hh, cells[0].b")
    assert not verify(numpy_bptt(case.rnn, transposed=False)).ok


def test_a_report_names_leaf_element_scale_and_losses():
    case = make_case()

    def doubled(params, batch):
        loss, grads = numpy_bptt(case.rnn)(params, batch)
        W_hy = np.array(grads.readout.W_hy)
        W_hy[2, 1] += 0.25
        cell = grads.cells[0]._replace(W_hh=2 * grads.cells[0].W_hh)
        return loss, grads._replace(cells=(cell,), readout=grads.readout._replace(W_hy=W_hy))

    report = jaxrnn.verify(doubled, case.rnn, case.params, case.batch)
    by_name = {leaf.name: leaf for leaf in report.leaves}
    assert by_name["cells[0].W_hh"].scale == pytest.approx(2)
    assert by_name["cells[0].W_hh"].cosine == pytest.approx(1)
    assert by_name["cells[0].W_hh"].error == pytest.approx(1)
    touched = by_name["readout.W_hy"]
    assert touched.worst == (2, 1)
    assert touched.candidate - touched.reference == pytest.approx(0.25)
    assert report.worst.name == "cells[0].W_hh"
    twice, unknown = report.findings
    assert (twice.bug, twice.leaves) == ("counted twice", ("cells[0].W_hh",))
    assert (unknown.bug, unknown.leaves) == ("unknown", ("readout.W_hy",))
    assert "only 1 of 8 elements are wrong" in report.diagnosis
    assert report.candidate_loss == pytest.approx(report.reference_loss)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_a_gradient_of_another_loss_is_reported_as_such():
    mean = make_case(reduction="mean")
    total = make_case(reduction="sum")
    report = jaxrnn.verify(gradients.bptt(total.rnn), mean.rnn, mean.params, mean.batch)
    assert "the losses differ" in report.diagnosis


def test_elements_that_are_not_finite_are_counted_and_never_right():
    case = make_case()

    def broken(params, batch):
        loss, grads = numpy_bptt(case.rnn)(params, batch)
        W_xh = np.array(grads.cells[0].W_xh)
        W_xh[0, 0] = np.nan
        return loss, grads._replace(cells=(grads.cells[0]._replace(W_xh=W_xh),))

    report = jaxrnn.verify(broken, case.rnn, case.params, case.batch)
    assert not report.ok
    assert report.worst.name == "cells[0].W_xh"
    assert (report.worst.not_finite, report.worst.worst) == (1, (0, 0))


def test_a_right_gradient_of_very_large_numbers_is_right():
    """1e200 squared overflows in float64. The report must not depend on it."""
    case = make_case(loss_function=lambda y, target: 1e200 * jnp.square(y - target).sum(-1))
    report = jaxrnn.verify(gradients.bptt(case.rnn), case.rnn, case.params, case.batch)
    assert report.ok
    assert report.worst.error <= 1e-12


def test_a_different_loss_is_the_first_finding_and_its_cause_is_named():
    mean = make_case(reduction="mean", T=5)
    total = make_case(reduction="sum", T=5)
    report = jaxrnn.verify(gradients.bptt(total.rnn), mean.rnn, mean.params, mean.batch)
    loss, scale = report.findings
    assert loss.bug == "loss"
    assert "not divided by the 15 positions" in loss.text
    assert scale.bug == "sum for mean"
    assert len(scale.leaves) == 5


def test_a_loss_of_shifted_targets_is_named():
    case = make_case()
    shifted = case.batch._replace(targets=np.roll(case.batch.targets, -1, axis=1))

    def off_by_one(params, batch):
        return numpy_bptt(case.rnn)(params, shifted)

    report = jaxrnn.verify(off_by_one, case.rnn, case.params, case.batch)
    assert [finding.bug for finding in report.findings] == ["loss", "targets shifted"]
    assert (
        "shifted by one step: each step has the target of the next step" in report.findings[0].text
    )


def verify_changed(change):
    """Verify a candidate whose correct (loss, gradient) is changed by a function."""
    case = make_case()

    def candidate(params, batch):
        return change(*numpy_bptt(case.rnn)(params, batch))

    return jaxrnn.verify(candidate, case.rnn, case.params, case.batch)


def with_W_xh(grads, W_xh):
    return grads._replace(cells=(grads.cells[0]._replace(W_xh=W_xh),))


class NoArray:
    def __array__(self, *_, **__):
        raise RuntimeError("this tensor requires grad")


def broken(W_xh):
    W_xh = np.array(W_xh)
    W_xh[2, 1] = np.inf
    return W_xh


# The message, and the change to a correct (loss, gradient) that it is about.
CHANGED_ANSWERS = {
    "it must return (loss, gradient), but returned a float": lambda loss, grads: loss,
    "it must return (loss, gradient), but returned a tuple of 3": lambda loss, grads: (loss, 1, 2),
    "the loss must be one number, but is a tuple": lambda loss, grads: grads,
    "the loss must be one number, but is a NoneType": lambda loss, grads: (None, grads),
    "is an array of shape (3,)": lambda loss, grads: (np.ones(3), grads),
    "leaves that are not in the parameters: more": lambda loss, grads: (loss, {"more": 1.0}),
    "they are compared in this order": lambda loss, grads: (loss, jax.tree.leaves(grads)),
}

# The message, and the change to the gradient of cells[0].W_xh that it is about.
CHANGED_LEAVES = {
    "missing in cells[0].W_xh: there is no gradient, or it is None": lambda W_xh: None,
    "transposed in cells[0].W_xh: it has shape (4, 5), but": lambda W_xh: W_xh.T,
    "its values are right; reshape it to (5, 4)": lambda W_xh: W_xh[None],
    "shape in cells[0].W_xh: it has shape (2, 2), but": lambda W_xh: np.ones((2, 2)),
    "dtype in cells[0].W_xh: has dtype float32, but": lambda W_xh: W_xh.astype(np.float32),
    "not an array of numbers but a str": lambda W_xh: "W",
    "a NoArray (this tensor requires grad)": lambda W_xh: NoArray(),
    "not finite in cells[0].W_xh: 1 elements are infinite or not a number, one at (2, 1)": broken,
}


@pytest.mark.parametrize("message", [*CHANGED_ANSWERS, *CHANGED_LEAVES])
def test_an_invalid_answer_is_a_finding(message):
    def change_leaf(loss, grads):
        return loss, with_W_xh(grads, CHANGED_LEAVES[message](grads.cells[0].W_xh))

    report = verify_changed(CHANGED_ANSWERS.get(message, change_leaf))
    assert not report.ok
    assert any(message in str(finding) for finding in report.findings), report.diagnosis
    assert "Traceback" not in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_an_invalid_leaf_is_the_only_finding_where_the_others_are_right():
    report = verify_changed(lambda loss, grads: (loss, with_W_xh(grads, None)))
    assert [finding.bug for finding in report.findings] == ["missing"]
    assert len(report.leaves) == 4
    report = verify_changed(lambda loss, grads: (loss, jax.tree.leaves(grads)))
    assert [finding.bug for finding in report.findings] == ["structure"]
    assert len(report.leaves) == 5


def test_a_candidate_that_raises_is_a_finding_that_says_where():
    case = make_case()

    def broken(params, batch):
        return np.ones(3)[len(batch.inputs)]

    report = jaxrnn.verify(broken, case.rnn, case.params, case.batch)
    (finding,) = report.findings
    assert finding.bug == "raised"
    assert "IndexError: index 3 is out of bounds" in finding.text
    assert "test_verification.py, line" in finding.text
    assert "in broken" in finding.text


def test_a_candidate_may_return_its_loss_as_an_array_of_one():
    assert verify_changed(lambda loss, grads: (np.full((1, 1), loss), grads)).ok


def test_a_gradient_in_float32_is_distinguished_from_a_bug():
    case = make_case()
    algorithm = gradients.bptt(case.rnn)

    def single(params, batch):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        carry = algorithm.init(params, case.rnn.initial_state(3))
        (loss, _), grads = algorithm.value_and_grad(params, carry, batch)
        return loss, grads

    report = jaxrnn.verify(single, case.rnn, case.params, case.batch)
    assert {finding.bug for finding in report.findings if finding.leaves} >= {"dtype"}
    assert "it was computed in lower precision than the float64" in report.diagnosis
    assert jaxrnn.verify(single, case.rnn, case.params, case.batch, dtype="float32").ok


def test_in_float32_the_tolerance_is_measured_and_reported():
    case = make_case(T=20, H=16, num_layers=2)
    report = jaxrnn.verify(
        gradients.bptt(case.rnn), case.rnn, case.params, case.batch, dtype="float32"
    )
    assert report.ok
    assert all(1e-7 < leaf.tolerance < 1e-3 for leaf in report.leaves)
    assert all(0 < leaf.error < leaf.tolerance for leaf in report.leaves)
    assert "in float32 an error of up to" in str(report)
    wrong = jaxrnn.verify(
        gradients.truncated_bptt(case.rnn, 3), case.rnn, case.params, case.batch, dtype="float32"
    )
    assert [finding.bug for finding in wrong.findings] == ["truncated at 3"]


def test_no_finding_is_certain_where_the_result_depends_on_rounding():
    """Over 100 steps of a chaotic network, the gradient depends on the rounding of float32."""
    case = make_case(T=100, H=12, recurrent_init=jax.nn.initializers.orthogonal(8.0))
    report = jaxrnn.verify(
        gradients.bptt(case.rnn), case.rnn, case.params, case.batch, dtype="float32"
    )
    assert not report.ok
    assert not any(finding.certain for finding in report.findings)
    assert "cannot tell: ill-conditioned" in report.diagnosis
    assert "use float64" in report.diagnosis


def test_another_algorithm_or_function_can_be_the_reference():
    case = make_case()
    arguments = (case.rnn, case.params, case.batch)
    window = gradients.truncated_bptt(case.rnn, 5)
    assert jaxrnn.verify(window, *arguments, reference=numpy_bptt(case.rnn)).ok
    report = jaxrnn.verify(window, *arguments, reference=gradients.truncated_bptt(case.rnn, 2))
    (finding,) = report.findings
    assert finding.bug == "reference"
    assert "equals jax.grad of rnn.loss, but not the reference" in finding.text


def test_the_gradient_is_compared_at_the_given_h_0():
    case = make_case()
    bptt = gradients.bptt(case.rnn)
    assert jaxrnn.verify(bptt, case.rnn, case.params, case.batch, h=case.h).ok
    assert not jaxrnn.verify(
        numpy_bptt(case.rnn), case.rnn, case.params, case.batch, h=case.h
    ).ok  # this one starts from zero


def test_a_second_call_compiles_nothing(caplog):
    case = make_case(I=3, H=2)
    bptt = gradients.bptt(case.rnn)
    compiled = []
    for _ in range(2):
        caplog.clear()
        with jax.log_compiles(True):
            assert jaxrnn.verify(bptt, case.rnn, case.params, case.batch).ok
        compiled.append("Compiling" in caplog.text)
    assert compiled == [True, False]


def test_no_finding_is_certain_where_the_reference_is_not_finite():
    case = make_case()
    params = jax.tree.map(lambda leaf: leaf * jnp.inf, case.params)
    report = jaxrnn.verify(gradients.bptt(case.rnn), case.rnn, params, case.batch)
    assert not report.ok
    assert report.diagnosis.startswith("cannot tell: not finite in cells[0].W_xh, cells[0].W_hh")
    assert "the parameters are not finite" in report.diagnosis
    with pytest.raises(ValueError, match=r"no leaves.*the parameters are not finite"):
        _ = report.worst


def test_a_truncated_gradient_is_right_where_it_is_exact():
    case = make_case()
    verdicts = [
        jaxrnn.verify(
            gradients.truncated_bptt(case.rnn, window), case.rnn, case.params, case.batch
        ).ok
        for window in (4, 5)
    ]
    assert verdicts == [False, True]
