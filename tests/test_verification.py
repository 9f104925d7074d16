"""What `verify` says of right and of wrong gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import make_case

import jaxrnn
from jaxrnn import gradients


def numpy_bptt(rnn, *, gain=True, transposed=True):
    """Somebody's own backward pass in NumPy, one layer, batch-first; with or without a bug."""

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
def test_a_right_gradient_is_right_in_float64_whatever_the_process_has(x64, dtype):
    case = make_case(dtype=dtype, num_layers=2, mask=True)
    with jax.enable_x64(x64):
        report = jaxrnn.verify(gradients.bptt(case.rnn), case.rnn, case.params, case.batch)
    assert report.ok
    assert report.diagnosis == ""
    assert len(report.leaves) == 8
    assert report.worst.error <= 1e-12
    assert "right" in str(report)


def test_a_function_in_numpy_is_right_without_a_bug_and_wrong_with_one():
    case = make_case()
    verify = lambda f: jaxrnn.verify(f, case.rnn, case.params, case.batch)  # noqa: E731
    assert verify(numpy_bptt(case.rnn)).ok
    wrong = verify(numpy_bptt(case.rnn, gain=False))
    assert not wrong.ok
    assert wrong.diagnosis.startswith("wrong: cells[0].W_xh, cells[0].W_hh, cells[0].b_h")
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
    assert report.diagnosis == "wrong: cells[0].W_hh, readout.W_hy"
    assert report.candidate_loss == pytest.approx(report.reference_loss)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_a_gradient_of_another_loss_is_said_to_be_one():
    mean = make_case(reduction="mean")
    total = make_case(reduction="sum")
    report = jaxrnn.verify(gradients.bptt(total.rnn), mean.rnn, mean.params, mean.batch)
    assert "the losses differ" in report.diagnosis


def test_what_is_not_finite_is_counted_and_never_right():
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


def test_a_right_gradient_of_great_size_is_right():
    """1e200 squared is no float64, and no reason to accuse anybody."""
    case = make_case(loss=lambda y, target: 1e200 * jnp.square(y - target).sum(-1))
    report = jaxrnn.verify(gradients.bptt(case.rnn), case.rnn, case.params, case.batch)
    assert report.ok
    assert report.worst.error <= 1e-12


def test_nobody_is_accused_where_the_reference_is_not_finite():
    case = make_case()
    params = jax.tree.map(lambda leaf: leaf * jnp.inf, case.params)
    report = jaxrnn.verify(gradients.bptt(case.rnn), case.rnn, params, case.batch)
    assert not report.ok
    assert report.diagnosis.startswith("cannot tell: the loss or gradient of the reference")


def test_a_truncated_gradient_is_not_accused_where_it_is_exact():
    case = make_case()
    verdicts = [
        jaxrnn.verify(
            gradients.truncated_bptt(case.rnn, window), case.rnn, case.params, case.batch
        ).ok
        for window in (4, 5)
    ]
    assert verdicts == [False, True]
