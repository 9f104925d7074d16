"""Tests of `compare`, the bias, variance and cost of rules, and of `cost_analysis`."""

import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal, gradient, make_case
from jax import ShapeDtypeStruct, lax
from jax.flatten_util import ravel_pytree

import jaxrnn
from jaxrnn import GradientAlgorithm, gradients
from jaxrnn.analysis.compare import Comparison, compare
from jaxrnn.analysis.cost import COUNTS, Cost, cost_analysis, seconds_of
from jaxrnn.tree import by_name

KEY = jax.random.key(5)
DRAWS = 64


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def noise_of(params):
    """Return M, the magnitude of the noise of each element. No two are equal."""
    elements, unravel = ravel_pytree(params)
    return unravel(jnp.linspace(0.1, 0.5, elements.size))


def noisy(rnn, scale=1.0) -> GradientAlgorithm:
    """Make a rule: g = scale · r + s ⊙ M, with r exact and random signs s from the carry's key."""
    exact = gradients.autodiff(rnn)

    def init(params, h, key=None):
        return jaxrnn.Carry(h, key)

    def value_and_grad(params, carry, batch):
        (loss, after), r = exact.value_and_grad(params, carry._replace(memory=()), batch)
        key, signs_key = jax.random.split(carry.memory)
        elements, unravel = ravel_pytree(noise_of(params))
        noise = unravel(elements * jax.random.rademacher(signs_key, elements.shape, elements.dtype))
        grads = jax.tree.map(lambda r, noise: scale * r + noise, r, noise)
        return (loss, after._replace(memory=key)), grads

    return GradientAlgorithm(init, value_and_grad)


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def compared(case) -> Comparison:
    rules = {
        "autodiff": gradients.autodiff(case.rnn),
        "one-hop": gradients.truncated_bptt(case.rnn, 0),
        "noisy": noisy(case.rnn),
        "a rule of a name that is long, one and a half": noisy(case.rnn, 1.5),
    }
    return compare(
        rules, case.rnn, case.params, case.batch, key=KEY, h=case.h, draws=DRAWS, rounds=1
    )


def test_autodiff_has_no_error(compared):
    row = compared.rows[0]
    for estimate in (row.whole, *row.leaves.values()):
        assert estimate[:3] == (0, 0, 0)
        assert estimate.cosine == pytest.approx(1, abs=1e-12)
    assert row.rule == "autodiff"


def test_the_error_of_a_deterministic_rule_is_bias_and_not_variance(case, compared):
    row = compared.rows[1]
    exact = gradient(gradients.autodiff(case.rnn), case)[1]
    one_hop = gradient(gradients.truncated_bptt(case.rnn, 0), case)[1]
    assert row.draws == 1
    assert list(row.leaves) == list(by_name(case.params))
    pairs = [
        (g, r) for g, r in zip(by_name(one_hop).values(), by_name(exact).values(), strict=True)
    ]
    for estimate, (g, r) in zip(
        (row.whole, *row.leaves.values()), [(one_hop, exact), *pairs], strict=True
    ):
        g, r = flat(g), flat(r)
        lengths = np.linalg.norm(g), np.linalg.norm(r)
        assert estimate.bias == pytest.approx(np.linalg.norm(g - r) / lengths[1], abs=1e-12)
        assert estimate.cosine == pytest.approx(g @ r / np.prod(lengths), abs=1e-12)
        assert (estimate.standard_error, estimate.variance) == (0, 0)


def test_estimates_are_those_of_the_draws_computed_one_by_one(case, compared):
    row, rule = compared.rows[2], noisy(case.rnn)
    draw = jax.jit(rule.value_and_grad)
    draws = np.stack(
        [
            flat(draw(case.params, rule.init(case.params, case.h, key=key), case.batch)[1])
            for key in jax.random.split(KEY, DRAWS)
        ]
    )
    r = flat(gradient(gradients.autodiff(case.rnn), case)[1])
    norm = np.linalg.norm(r)
    expected = {
        "bias": np.linalg.norm(draws.mean(0) - r) / norm,
        "variance": draws.var(0, ddof=1).sum() / norm**2,
        "cosine": (draws @ r / np.linalg.norm(draws, axis=1)).mean() / norm,
    }
    assert row.draws == DRAWS
    assert_equal({name: getattr(row.whole, name) for name in expected}, expected)
    assert row.whole.standard_error == pytest.approx(np.sqrt(expected["variance"] / DRAWS))


def test_bias_and_variance_of_known_noise_lie_within_their_standard_errors(case, compared):
    """Runs at a fixed seed. The sample variance of n signs has variance 2 / n(n - 1)."""
    exact = by_name(gradient(gradients.autodiff(case.rnn), case)[1])
    unbiased, scaled = compared.rows[2:]
    for name, M in by_name(noise_of(case.params)).items():
        norm = np.linalg.norm(exact[name])
        variance, fourth = (float((np.asarray(M) ** power).sum()) for power in (2, 4))
        error = np.sqrt(2 * fourth / (DRAWS * (DRAWS - 1))) / norm**2
        for row in (unbiased, scaled):
            assert abs(row.leaves[name].variance - variance / norm**2) <= 4 * error
        estimate = unbiased.leaves[name]
        assert 0 < estimate.bias <= 2.5 * estimate.standard_error
        estimate = scaled.leaves[name]
        assert abs(estimate.bias - 0.5) <= 2.5 * estimate.standard_error


def test_a_table_is_at_most_80_columns_wide_and_has_a_line_for_each_rule(compared):
    title, *lines = str(compared).splitlines()
    assert re.sub(" +", " ", title) == "rule bias ± se variance cosine Mflop MiB µs/step ratio"
    assert [line.split()[0] for line in lines[:3]] == ["autodiff", "one-hop", "noisy"]
    assert re.match(r"a rule of a\S* .*…half ", lines[3])
    assert lines[4] == "T=6, B=3; ratio: time over autodiff's"
    assert "64 draws" in lines[5]
    assert max(map(len, (title, *lines))) <= 80
    huge = compared.rows[3]
    huge = huge._replace(
        whole=huge.whole._replace(bias=1.2e-100, standard_error=1.2e-100, variance=1.2e200),
        cost=Cost(10**15 + 1, 10**15, 1, 1, ()),
        seconds=1.2345e-10,
        ratio=1234567.8,
    )
    widest = str(compared._replace(rows=(*compared.rows, huge)))
    assert max(map(len, widest.splitlines())) == 80


def test_a_table_of_deterministic_rules_does_not_mention_draws(compared):
    alone = compared._replace(rows=compared.rows[:2])
    assert "±" not in str(alone)
    assert "draws" not in str(alone)


def test_to_dict_can_be_written_as_json(compared):
    plain = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert (plain["steps"], plain["batch_size"]) == (6, 3)
    row = plain["rows"][2]
    assert row["rule"] == "noisy"
    assert row["whole"]["variance"] == compared.rows[2].whole.variance
    assert row["leaves"]["cells[0].W_hh"]["bias"] == compared.rows[2].leaves["cells[0].W_hh"].bias
    assert row["cost"]["flops"] == compared.rows[2].cost.flops
    assert row["cost"]["loops"] == list(compared.rows[2].cost.loops)


def test_where_the_exact_gradient_is_zero_errors_are_absolute_and_there_is_no_cosine():
    case = make_case(T=2, loss_function=lambda y, target: 0 * y.sum(-1))
    rules = {"bptt": gradients.bptt(case.rnn), "noisy": noisy(case.rnn)}
    result = compare(rules, case.rnn, case.params, case.batch, key=KEY, draws=3, rounds=1)
    exact, drawn = result.rows
    assert exact.whole[:3] == (0, 0, 0)
    assert np.isnan([exact.whole.cosine, drawn.whole.cosine]).all()
    total = float((flat(noise_of(case.params)) ** 2).sum())
    assert drawn.whole.variance / 2 <= total <= 2 * drawn.whole.variance
    assert result.to_dict()["rows"][0]["whole"]["cosine"] is None
    assert "nan" in str(result)


def test_a_gradient_of_zero_has_cosine_zero():
    case = make_case(T=2)
    bptt = gradients.bptt(case.rnn)

    def zero(params, carry, batch):
        answer, grads = bptt.value_and_grad(params, carry, batch)
        return answer, jax.tree.map(jnp.zeros_like, grads)

    rules = {"nothing": GradientAlgorithm(bptt.init, zero)}
    row = compare(rules, case.rnn, case.params, case.batch, key=KEY, rounds=1).rows[0]
    assert row.whole.cosine == 0
    assert row.whole.bias == pytest.approx(1)


def test_the_time_is_a_median_per_step_and_the_ratio_a_median_over_rounds(monkeypatch):
    case = make_case(T=2)
    measured = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 80.0]])  # autodiff, and the rule
    monkeypatch.setattr("jaxrnn.analysis.compare.seconds_of", lambda runs, rounds: measured)
    rules = {"bptt": gradients.bptt(case.rnn)}
    row = compare(rules, case.rnn, case.params, case.batch, key=KEY, rounds=3).rows[0]
    assert row.seconds == 3 / 2
    assert row.ratio == 3  # of 3, 1 and 20


def test_calls_are_timed_alternately_and_short_ones_repeatedly(monkeypatch):
    called, clock = [], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def task(name, seconds):
        def run():
            called.append(name)
            clock[0] += seconds

        return run

    seconds = seconds_of([task("a", 0.002), task("b", 0.02)], rounds=2)
    assert "".join(called) == "ab" + "ab" + 2 * "aaab"  # warm-up, estimate, two rounds
    assert_equal(seconds, np.array([[0.002, 0.002], [0.02, 0.02]]))


def matmuls(length, inner=1):
    """Analyse the cost of (3, 4) @ (4, 4) in two nested scans."""

    def repeat(body, length):
        return lambda x, w: lax.scan(lambda c, _: (body(c, w), None), x, length=length)[0]

    function = repeat(repeat(lambda x, w: x @ w, inner), length)
    return cost_analysis(function, jnp.ones((3, 4)), jnp.ones((4, 4)))


def test_the_body_of_a_loop_is_counted_as_often_as_it_runs():
    assert matmuls(10).flops == 10 * 2 * 3 * 4 * 4
    assert matmuls(20).flops == 2 * matmuls(10).flops
    assert matmuls(5, inner=7).flops == 35 * 2 * 3 * 4 * 4


@jax.custom_vjp
def by_hand(x):
    return jnp.sin(x)


by_hand.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (3 * (g * jnp.cos(x)),))

# Functions of x (6, 4), and the number of their floating-point operations.
KNOWN = {
    "elementwise": (lambda x: jnp.tanh(x) * 2, 48),
    "moves": (lambda x: jnp.concatenate([x.T[1:], jnp.zeros((1, 6))]), 0),
    "reduction": (lambda x: x.sum(0), 24),
    "argmax": (lambda x: x.argmax(1), 24),
    "cumulative": (lambda x: jnp.cumsum(x, 0), 24),
    "sort": (lambda x: jnp.sort(x, 0), 24 * 3),
    "integers": (lambda x: jnp.arange(7) * 3 + 1, 0),
    "gather": (lambda x: x[jnp.array([0, 0, 1])], 0),
    "scatter-add": (lambda x: x.at[jnp.array([0, 0, 1])].add(x[:3]), 12),
    "batched matmul": (lambda x: x.reshape(6, 2, 2) @ x.reshape(6, 2, 2), 6 * 2 * 8),
    "dead code": (lambda x: (x @ x.T, x + 1)[1], 24),
    "dear branch": (
        lambda x: lax.cond(x.shape[0] > jnp.int32(x[0, 0]), jnp.sin, loop, x),
        480,
    ),
    "remat": (jax.checkpoint(jnp.sin), 24),
    "custom_vjp": (by_hand, 24),
    "its backward pass": (lambda x: jax.vjp(by_hand, x)[1](x)[0], 72),
    "while": (lambda x: lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + 1, x), 25),
    "for": (lambda x: lax.fori_loop(0, 5, lambda _, x: x + 1, x), 120),
    "decomposition": (lambda x: jnp.linalg.eigh(x[:4], symmetrize_input=False), 16),
    "random bits": (lambda x: jax.random.bits(jax.random.key(0), (7,)), 7),
}


def loop(x):
    return lax.fori_loop(0, 20, lambda _, x: x + 1, x)


@pytest.mark.parametrize("name", KNOWN)
def test_operations_of_a_known_program(name):
    function, flops = KNOWN[name]
    assert cost_analysis(function, ShapeDtypeStruct((6, 4), jnp.float64)).flops == pytest.approx(
        flops, abs=1
    )


def test_every_operation_with_a_count_of_its_own_occurs_in_a_rule():
    case, programs = make_case(ids=True), []
    for rule in (gradients.bptt(case.rnn), gradients.ok(case.rnn)):
        carry = rule.init(case.params, case.h, key=KEY)
        programs.append(str(jax.make_jaxpr(rule.value_and_grad)(case.params, carry, case.batch)))
    for operation in COUNTS:
        assert f" {operation}[" in " ".join(programs), operation


def test_ids_save_the_matmul_of_the_input():
    flops = []
    for ids in (False, True):
        case = make_case(ids=ids)
        flops.append(cost_analysis(case.rnn.apply, case.params, case.batch.inputs, case.h).flops)
    assert flops[0] - flops[1] == 2 * (3 * 6) * 5 * 4


def cost_of(rule, T, **network):
    case = make_case(T=T, **network)
    algorithm = rule(case.rnn)
    return cost_analysis(
        algorithm.value_and_grad, case.params, algorithm.init(case.params, case.h), case.batch
    )


def test_bptt_has_two_loops_over_time_and_parallel_bptt_one():
    assert cost_of(gradients.bptt, 37).loops.count(37) == 2
    assert cost_of(gradients.parallel_bptt, 37).loops.count(37) == 1


def test_working_memory_grows_with_the_length():
    short, long = (cost_of(gradients.bptt, T) for T in (40, 400))
    assert 5 < long.temp_bytes / short.temp_bytes < 15
    assert long.output_bytes == short.output_bytes


def test_large_arrays_are_not_allocated_to_be_counted():
    matrix = ShapeDtypeStruct((10**6, 10**6), jnp.float64)
    cost = cost_analysis(lambda a, b: a @ b, matrix, matrix)
    assert cost.flops == 2 * 10**18
    assert (cost.argument_bytes, cost.output_bytes) == (16 * 10**12, 8 * 10**12)
