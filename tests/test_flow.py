"""Tests of `gradient_flow`: how far back in time the gradient reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal, make_case

import jaxrnn


def flow_of(case, **options):
    return jaxrnn.gradient_flow(case.rnn, case.params, case.batch, h=case.h, **options)


@pytest.mark.parametrize("layers", [1, 2])
def test_credit_is_the_derivative_of_each_output_by_each_state(layers):
    """Compares with autodiff of the loss of output t by a perturbation of h_{t-k} in each layer."""
    case = make_case(B=2, T=5, num_layers=layers, leak=0.7, mask=True)
    flow = flow_of(case)
    inputs, mask = case.batch.inputs, jnp.asarray(case.batch.mask)

    def losses(perturbation):  # (L, T, B, H)
        h, outputs = list(case.h), []
        for t in range(5):
            x = inputs[:, t]
            for i, cell in enumerate(case.params.cells):
                h[i] = x = case.rnn.step(cell, x, h[i]) + perturbation[i, t]
            outputs.append(x @ case.params.readout.W_hy + case.params.readout.b_y)
        logs = jax.nn.log_softmax(jnp.stack(outputs, 1))
        targets = jnp.asarray(case.batch.targets)[..., None]
        return -jnp.take_along_axis(logs, targets, -1)[..., 0] * mask  # (B, T)

    jacobian = jax.jacobian(losses)(jnp.zeros((layers, 5, 2, 4)))  # (B, T, L, T, B, H)
    for b in range(2):
        for t in range(5):
            for k in range(t + 1):
                expected = jnp.linalg.norm(jacobian[b, t, :, t - k, b], axis=-1)
                np.testing.assert_allclose(flow.credit[:, k, b, t], expected, atol=1e-14)
            assert np.isnan(flow.credit[:, t + 1 :, b, t]).all()


def test_singular_values_are_those_of_the_jacobian():
    case = make_case(B=2, T=5, activation="sigmoid", leak=0.6)
    flow = flow_of(case)
    cell = case.params.cells[0]
    states, _ = case.rnn.unroll(cell, case.batch.inputs, case.h[0])

    def last(h, steps):
        x = case.batch.inputs[:1, 5 - steps :]
        return case.rnn.unroll(cell, x, h)[1][0] if steps else h[0]

    for k in range(5):
        jacobian = jax.jacobian(last)(states[:1, 4 - k], k)[:, 0]
        assert_equal(flow.singular_values[0, k], np.linalg.svd(jacobian, compute_uv=False))


def test_a_scaled_rotation_grows_by_its_scale_at_every_step():
    """In a linear network of g times an orthogonal matrix, every singular value is gᵏ."""
    case = make_case(activation="identity", recurrent_init=jax.nn.initializers.orthogonal(1.5), T=9)
    values = flow_of(case).singular_values[0]
    assert_equal(values, 1.5 ** np.arange(9)[:, None] * np.ones((9, 4)))


def test_a_jacobian_that_overflows_is_nan_and_is_not_passed_to_lapack(capfd):
    scale = jax.nn.initializers.orthogonal(1e200)
    case = make_case(activation="identity", recurrent_init=scale, T=4)
    values = flow_of(case).singular_values[0]
    assert np.isfinite(values[:2]).all()
    assert np.isnan(values[2:]).all()
    assert capfd.readouterr() == ("", "")


def test_shares_sum_to_one_and_fewer_lags_give_the_same_credit():
    case = make_case(num_layers=2, mask=True)
    flow = flow_of(case)
    assert set(flow.share) == {f"cells[{i}].{name}" for i in (0, 1) for name in jaxrnn.Cell._fields}
    for share in flow.share.values():
        assert share.shape == (6,)
        assert share.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_array_equal(flow_of(case, lags=2).credit, flow.credit[:, :2])


def test_a_plot_is_a_picture(tmp_path):
    flow = flow_of(make_case(num_layers=2))
    figure = flow.plot(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == 3
    assert all(1 < len(axes.lines) <= 8 for axes in figure.axes)  # seven, and one for orientation
    assert flow.plot(ax=figure.subplots(1, 3)) is figure
    assert len(figure.axes) == 6


@pytest.mark.parametrize("lags", [0, 7])
def test_lags_must_lie_within_the_batch(lags):
    with pytest.raises(ValueError, match=rf"lags must lie in 1 … 6, .* got {lags}"):
        flow_of(make_case(), lags=lags)


def test_lags_are_counted_from_the_end_of_a_padded_row():
    """In padding the state does not change, so its Jacobian is the identity."""
    case = make_case(leak=0.6)
    padded = case.batch._replace(lengths=np.array([4, 6, 2]))
    flow = jaxrnn.gradient_flow(case.rnn, case.params, padded, h=case.h)
    rows = jax.tree.map(lambda leaf: leaf[:1, :4], case.batch)
    alone = jaxrnn.gradient_flow(case.rnn, case.params, rows, h=case.h[:, :1])
    np.testing.assert_allclose(flow.singular_values[:, :3], 1)
    np.testing.assert_allclose(flow.singular_values[:, 2:], alone.singular_values, rtol=1e-12)
    np.testing.assert_allclose(flow.credit[:, :4, 0, :4], alone.credit[:, :, 0], rtol=1e-12)
