"""Tests of `verify_claim`: rules pass for their own claims, and planted errors fail."""

import jax
import jax.numpy as jnp
import pytest
from cases import make_case

import jaxrnn
from jaxrnn import gradients

CASE = make_case()


def claim_report(algorithm, claim, **options):
    rnn, params, h, batch = CASE
    return jaxrnn.verify_claim(algorithm, rnn, params, batch, h=h, claim=claim, **options)


def planted(change):
    """Return uoro with a gradient that is changed by a function of its leaves."""
    rule = gradients.uoro(CASE.rnn)

    def value_and_grad(params, carry, batch):
        answer, grads = rule.value_and_grad(params, carry, batch)
        return answer, jax.tree.map(change, grads)

    return jaxrnn.GradientAlgorithm(rule.init, value_and_grad)


@pytest.mark.parametrize("name", ["bptt", "ok", "rflo", "truncated_bptt", "uoro"])
def test_a_rule_of_the_table_is_right_for_its_claim(name):
    rule = gradients.RULES[name]
    window = {"window": 8} if rule.claim == "truncated" else {}
    report = claim_report(rule.build(CASE.rnn), rule.claim, **window)
    assert report.ok, report.diagnosis


def test_a_rule_that_is_wrong_for_its_claim_is_reported():
    rnn = CASE.rnn
    assert not claim_report(gradients.truncated_bptt(rnn, 2), "truncated", window=3)
    assert not claim_report(gradients.truncated_bptt(rnn, 2), "unbiased")
    assert not claim_report(gradients.rflo(rnn), "exact")
    biased = claim_report(planted(lambda leaf: 1.01 * leaf), "unbiased")
    assert "biased in readout.W_hy" in biased.diagnosis
    infinite = claim_report(planted(lambda leaf: leaf / 0), "approximate")
    assert "not finite" in infinite.diagnosis
    assert not claim_report(planted(lambda leaf: leaf[None]), "approximate")


def test_a_bias_that_the_noise_hides_is_not_called_one_and_a_larger_one_is():
    """The whole credit is noisy in W_hh; a bias of the size of the exact gradient is visible."""
    exact = gradients.autodiff(CASE.rnn)
    carry = exact.init(CASE.params, CASE.h)
    grads = exact.value_and_grad(CASE.params, carry, CASE.batch)[1]
    shift = {leaf.shape: leaf for leaf in jax.tree.leaves(grads)}

    def shifted(by):
        report = claim_report(planted(lambda g: g + by * jnp.asarray(shift[g.shape])), "unbiased")
        assert isinstance(report, jaxrnn.ClaimReport)
        return {leaf.name: leaf.unbiased for leaf in report.leaves}["cells[0].W_hh"]

    assert shifted(1e-3)
    assert not shifted(2.0)
