"""Tests of the diagnosis: wrong gradients are found and their bug named; right ones pass.

The bugs are planted in the NumPy backward pass of experiments/planted_bugs.py, which does not use
jaxrnn. The networks have random options and sizes.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import planted_bugs
import pytest
from cases import assert_equal, make_case
from planted_bugs import NAMED, UNNAMED, numpy_gradient

import jaxrnn
from jaxrnn import gradients
from jaxrnn.analysis import lags
from jaxrnn.network.rnn import check_batch
from jaxrnn.tree import by_name
from jaxrnn.verification.diagnosis import backward_pass, catalogue, leaf_catalogue, search
from jaxrnn.verification.leaf import relative_error

SEEDS = (56, 38, 1)  # with the first two, every bug can be planted and changes a leaf


@cache
def network(seed):
    """Draw a random network, and compute its right gradient."""
    rnn, params, h, batch = planted_bugs.draw(np.random.default_rng(seed))
    _, right = numpy_gradient(rnn, h)(planted_bugs.in_float64(params), batch)
    return rnn, params, h, batch, right


def wrong_leaves(grads, right):
    """Return the names of the leaves that a planted bug changed or left out."""
    right, grads = by_name(right), by_name(grads)
    return {
        name
        for name, leaf in right.items()
        if name not in grads
        or grads[name].shape != leaf.shape
        or relative_error(grads[name], leaf) > 1e-12
    }


def reports(bug):
    """Plant a bug in every network that allows it. Yield each report and the changed leaves."""
    rng = np.random.default_rng(0)
    for rnn, params, h, batch, right in map(network, SEEDS):
        if planted_bugs.can_be_planted(bug, rnn, batch):
            wrong = numpy_gradient(rnn, h, bug, **planted_bugs.bug_options(bug, rng))
            _, grads = wrong(planted_bugs.in_float64(params), batch)
            yield jaxrnn.verify(wrong, rnn, params, batch, h=h), wrong_leaves(grads, right)


@pytest.mark.slow
@pytest.mark.parametrize("bug", NAMED)
def test_a_bug_of_the_catalogue_is_found_and_named(bug):
    changed = 0
    for report, leaves in reports(bug):
        assert report.ok == (not leaves), report
        if leaves:
            changed += 1
            assert {leaf for finding in report.findings for leaf in finding.leaves} == leaves
            for finding in report.findings:
                names = (finding.bug, *finding.alike)
                assert any(name.startswith(NAMED[bug]) for name in names), str(report)
            assert len(report.findings) == (2 if bug == "swapped" else 1), str(report)
    assert changed > 0


@pytest.mark.slow
@pytest.mark.parametrize("bug", UNNAMED)
def test_a_bug_outside_the_catalogue_is_found_and_its_leaves_are_named(bug):
    changed = 0
    for report, leaves in reports(bug):
        assert report.ok == (not leaves), report
        if leaves:
            changed += 1
            (finding,) = report.findings
            assert finding.bug == "unknown"
            assert set(finding.leaves) == leaves
            assert {profile.leaf for profile in report.profiles} == {
                leaf for leaf in leaves if leaf.startswith("cells")
            }
    assert changed > 0


def test_every_entry_of_the_catalogue_is_planted():
    names = {entry[0] for entry in catalogue.IN_A_LAYER} | {
        scale.bug for scale in leaf_catalogue.SCALES
    }
    for rnn, params, h, batch, _ in map(network, SEEDS):
        p = backward_pass.run_forward(rnn, params, jnp.asarray(h), batch)
        parts = jax.tree.map(lambda leaf: np.zeros((3, *leaf.shape)), params.cells)
        names |= {wrong.bug for wrong in catalogue.wrongs(p, parts) if wrong.certain}
        names |= {scale.bug for scale in leaf_catalogue.scales_of(p)}
    names = {"truncated at" if name.startswith("truncated at") else name for name in names}
    assert names <= set(NAMED.values())


@pytest.mark.parametrize(
    ("bug", "coefficient"),
    [
        ("credit halved at every step", lambda k: 0.5**k),
        ("wrong sign of the recurrent credit", lambda k: (-1.0) ** k),
        ("one-hop", lambda k: float(k == 0)),
        ("truncated", lambda k: float(k <= 3)),
    ],
)
def test_the_lag_profile_has_the_weight_of_each_lag(bug, coefficient):
    case = make_case(B=3, T=6, I=5, H=7, O=4, ids=True)
    wrong = numpy_gradient(case.rnn, case.h, bug, window=3)
    report = jaxrnn.verify(wrong, case.rnn, case.params, case.batch, h=case.h)
    assert len(report.profiles) == 3
    for profile in report.profiles:
        assert profile.residual < 1e-12
        expected = [coefficient(k) for k in range(6)]
        np.testing.assert_allclose(profile.coefficients, expected, rtol=0, atol=1e-6)


def test_a_gradient_that_is_not_a_weighted_sum_of_lags_leaves_a_residual():
    case = make_case(B=3, T=6, I=5, H=7, O=4)
    wrong = numpy_gradient(case.rnn, case.h, "W_hh not transposed")
    report = jaxrnn.verify(wrong, case.rnn, case.params, case.batch, h=case.h)
    assert all(profile.residual > 1e-3 for profile in report.profiles if "W" in profile.leaf)


def test_lags_that_a_leaf_cannot_distinguish_have_no_coefficient():
    """A bias of 4 units has 4 numbers, but there are 6 lags."""
    case = make_case(B=3, T=6, I=5, H=4, O=2)
    wrong = numpy_gradient(case.rnn, case.h, "credit halved at every step")
    report = jaxrnn.verify(wrong, case.rnn, case.params, case.batch, h=case.h)
    coefficients = {profile.leaf: profile.coefficients for profile in report.profiles}
    assert np.isnan(coefficients["cells[0].b_h"]).all()
    assert not np.isnan(coefficients["cells[0].W_hh"]).any()
    assert "lag weights of cells[0].b_h: this leaf has too few elements" in str(report)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_lags_of_a_gradient_add_up_to_it(layers):
    case = make_case(num_layers=layers, leak=0.7, mask=True)
    split = lags.split_by_lag(case.rnn, case.params, case.h, case.batch, 6)
    total = jax.tree.map(lambda part: part.sum(0), split.parts)
    algorithm = gradients.autodiff(case.rnn)
    carry = algorithm.init(case.params, case.h)
    _, grads = algorithm.value_and_grad(case.params, carry, case.batch)
    assert_equal(total, grads.cells)


def test_the_hand_written_backward_pass_is_exact_in_every_kind_of_network():
    for rnn, params, h, batch, right in map(network, SEEDS):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)
        batch, h = check_batch(rnn, params, batch, h)
        assert_equal(
            backward_pass.gradient(backward_pass.run_forward(rnn, params, h, batch)), right
        )


PAIRS = {
    ("one-hop", "sign"): {"one-hop": "cells", "sign": "readout.W_hy"},
    ("no gain", "zero"): {"no gain": "cells", "zero": "readout.W_hy"},
    ("W_hh not transposed", "missing"): {"missing": "readout.W_hy", "W_hh not": "cells"},
    ("h_t for h_{t-1}", "scale"): {"h_t for": "cells[0].W_hh", "scale": "readout.W_hy"},
}


@pytest.mark.parametrize("pair", PAIRS)
def test_two_bugs_on_different_leaves_are_two_findings(pair):
    case = make_case(B=3, T=6, I=5, H=7, O=4)
    first, second = (numpy_gradient(case.rnn, case.h, b, leaf="readout.W_hy") for b in pair)

    def both(params, batch):
        loss, grads = first(params, batch)
        return loss, grads._replace(readout=second(params, batch)[1].readout)

    report = jaxrnn.verify(both, case.rnn, case.params, case.batch, h=case.h)
    assert len(report.findings) == 2
    for name, leaves in PAIRS[pair].items():
        (finding,) = (each for each in report.findings if each.bug.startswith(name))
        assert all(leaf.startswith(leaves) for leaf in finding.leaves)


def test_a_bug_is_named_through_a_wrong_constant_over_all_leaves():
    case = make_case(B=3, T=6, I=5, H=7, O=4, reduction="mean")
    one_hop = numpy_gradient(case.rnn, case.h, "one-hop")

    def summed(params, batch):
        loss, grads = one_hop(params, batch)
        return loss, jax.tree.map(lambda leaf: 18 * leaf, grads)

    report = jaxrnn.verify(summed, case.rnn, case.params, case.batch, h=case.h)
    assert [finding.bug for finding in report.findings] == ["sum for mean", "one-hop"]


def test_candidate_bugs_whose_gradients_overflow_raise_no_warning():
    """Without the slopes, the credit grows by 10⁸ at each of 60 steps. Warnings are errors here."""
    case = make_case(T=60, recurrent_init=jax.nn.initializers.orthogonal(1e8))
    wrong = numpy_gradient(case.rnn, case.h, "sign", leaf="readout.W_hy")
    report = jaxrnn.verify(wrong, case.rnn, case.params, case.batch, h=case.h)
    assert "sign" in [finding.bug for finding in report.findings]


def test_a_batch_in_which_nothing_counts_is_refused():
    """Its gradient is zero whatever a rule does, so that it would prove nothing."""
    case = make_case(reduction="mean")
    batch = case.batch._replace(mask=np.zeros((3, 6)))
    with pytest.raises(ValueError, match="every position of this batch has weight 0"):
        jaxrnn.verify(gradients.bptt(case.rnn), case.rnn, case.params, batch)


def test_a_bug_that_explains_only_a_part_of_the_error_is_no_match():
    """Near the tolerance, many gradients lie within it. A match must explain the whole error."""
    r = np.ones(4)
    off = np.array([1.0, -1.0, 1.0, -1.0])
    case = search.Case({"x": r + 1.5e-12 * off}, {"x": r}, {"x": 1e-12}, None)
    assert case.wrong == ["x"]
    assert not case.matches("x", r + 1.0e-12 * off)
    assert case.matches("x", r + 1.5e-12 * off)


def test_a_bug_in_one_layer_of_a_stack_is_named_with_its_layer():
    case = make_case(num_layers=2)
    p = backward_pass.run_forward(case.rnn, case.params, case.h, case.batch)
    pieces = next(catalogue.IN_A_LAYER[1][2](p))[1]
    for layer in (0, 1):
        wrong = (0.0, backward_pass.gradient(p, pieces, {layer}))
        loss, _ = case.rnn.loss(case.params, case.h, case.batch)
        report = jaxrnn.verify(
            lambda params, batch, loss=loss, wrong=wrong: (loss, wrong[1]),
            case.rnn,
            case.params,
            case.batch,
            h=case.h,
        )
        (finding,) = report.findings
        assert finding.bug == "no gain"
        assert f"in the layer cells[{layer}] alone" in finding.text


def test_an_input_error_that_one_layer_drops_is_named_with_its_layer():
    case = make_case(num_layers=3)
    algorithm = gradients.bptt(case.rnn)

    def dropped_by_layer_1(params, batch):
        (loss, _), grads = algorithm.value_and_grad(params, algorithm.init(params, case.h), batch)
        lowest = jax.tree.map(jnp.zeros_like, grads.cells[0])
        return loss, grads._replace(cells=(lowest, *grads.cells[1:]))

    report = jaxrnn.verify(dropped_by_layer_1, case.rnn, case.params, case.batch, h=case.h)
    (finding,) = report.findings
    assert finding.bug == "input error dropped"
    assert "in the layer cells[1] alone" in finding.text
    assert len(finding.leaves) == 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_right_gradient_has_no_certain_finding_at_any_size_of_weights(dtype):
    """This is a small version. experiments/planted_bugs.py runs a thousand cases in each dtype."""
    rng = np.random.default_rng(0)
    for rnn, params, h, batch, _ in map(network, SEEDS):
        bptt = gradients.bptt(rnn)
        for scale in 10 ** rng.uniform(-2, 1, 12):
            weights = jax.tree.map(
                lambda leaf, s=scale: s * rng.normal(size=leaf.shape) / np.sqrt(len(leaf)), params
            )
            candidates = (bptt,) if dtype == "float32" else (bptt, numpy_gradient(rnn, h))
            for candidate in candidates:
                report = jaxrnn.verify(candidate, rnn, weights, batch, h=h, dtype=dtype)
                assert not any(finding.certain for finding in report.findings), str(report)
