"""The laws that gradient rules obey, for each rule of rule_table.py."""

import importlib
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    Case,
    assert_equal,
    chunks,
    gradient,
    gradient_for_draws,
    make_case,
    relative_error,
)
from jax import lax
from rule_table import KINDS, RULES, Rule, T, algorithm_of, every_kind_of_rule, every_rule, rules

import jaxrnn
from jaxrnn import gradients
from jaxrnn.gradients.engine.algorithm import batch_axes
from jaxrnn.gradients.table import options_of

USUAL: dict[str, Any] = {"num_layers": 2, "mask": True, "reduction": "mean"}


# Every rule


def test_what_a_rule_claims_is_what_it_is_held_to():
    """The least that it claims for any of its arguments; `jaxrnn train` goes by it."""

    def claims(rule: Rule) -> tuple[str, str]:
        if rule.window is not None:
            return ("exact", "exact") if rule.exact else ("truncated", "truncated")
        if rule.exact:
            return "exact", "exact" if rule.in_stacks else "approximate"
        return "unbiased" if rule.signs else "approximate", "approximate"

    least: dict[str, set[tuple[str, str]]] = {}
    for name, rule in RULES.items():
        least.setdefault(name.split("(")[0], set()).add(claims(rule))
    assert gradients.RULES.keys() == least.keys()
    for name, rule in gradients.RULES.items():
        strength = {"exact": 2, "truncated": 1, "unbiased": 1, "approximate": 0}
        assert (rule.claim, rule.claim_in_stacks) == min(
            least[name], key=lambda pair: [strength[one] for one in pair]
        )


@every_kind_of_rule
@pytest.mark.parametrize(("dtype", "mask"), [(jnp.float32, False), (jnp.float64, True)])
def test_gradient_is_a_finite_pytree_like_params(rule, dtype, mask):
    case = make_case(num_layers=2, mask=mask, reduction="mean", dtype=dtype)
    (loss, carry), grads = gradient(algorithm_of(rule, case.rnn), case)
    assert jax.tree.structure(grads) == jax.tree.structure(case.params)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), case.params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), grads) == like
    assert (loss.shape, loss.dtype) == ((), dtype)
    assert (carry.h.shape, carry.h.dtype) == (case.h.shape, dtype)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@every_rule
def test_loss_last_state_and_readout_gradient_are_exact(rule):
    case = make_case(**USUAL)
    (loss, carry), grads = gradient(algorithm_of(rule, case.rnn), case)
    (expected, expected_carry), expected_grads = gradient(algorithm_of("autodiff", case.rnn), case)
    assert_equal(
        (loss, carry.h, grads.readout), (expected, expected_carry.h, expected_grads.readout)
    )


@rules(first_step=True)
def test_one_step_from_a_fresh_carry_equals_autodiff(rule):
    case = make_case(T=1, num_layers=2, ids=True)
    _, grads = gradient(algorithm_of(rule, case.rnn), case)
    assert_equal(grads, gradient(algorithm_of("autodiff", case.rnn), case)[1])


@every_kind_of_rule
@pytest.mark.parametrize("ids", [False, True])
def test_second_call_does_not_retrace(rule, ids):
    case = make_case(ids=ids, num_layers=2)
    algorithm, traces = algorithm_of(rule, case.rnn), []

    @jax.jit
    def value_and_grad(params, carry, batch):
        traces.append(1)
        return algorithm.value_and_grad(params, carry, batch)

    carry = algorithm.init(case.params, case.h, key=jax.random.key(0))
    for _ in range(3):  # JAX's own cache of traces, without compiling
        (_, carry), _ = value_and_grad.trace(case.params, carry, case.batch).out_info
    assert len(traces) == 1


@every_kind_of_rule
def test_vmap_over_parameter_seeds_equals_a_loop(rule):
    case = make_case(**USUAL)
    algorithm = algorithm_of(rule, case.rnn)
    seeds = [case.rnn.init(jax.random.key(seed), jnp.float64) for seed in (3, 4)]
    one_by_one = [gradient(algorithm, case._replace(params=params))[1] for params in seeds]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    carry = algorithm.init(case.params, case.h, key=jax.random.key(7))
    value_and_grad = jax.vmap(algorithm.value_and_grad, in_axes=(0, None, None))
    (_, _), together = jax.jit(value_and_grad)(params, carry, case.batch)
    assert_equal(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one))


@every_kind_of_rule
def test_carry_can_be_scanned(rule):
    case = make_case(ids=True, reduction="sum")
    algorithm = algorithm_of(rule, case.rnn)
    carry = algorithm.init(case.params, case.h, key=jax.random.key(0))

    def chunk(carry, batch):
        (_, carry), grads = algorithm.value_and_grad(case.params, carry, batch)
        return carry, grads

    parts = list(jaxrnn.chunks(case.batch, 3))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    scanned = jax.jit(lambda c: lax.scan(chunk, c, stacked))(carry)
    for i, part in enumerate(parts):
        carry, grads = jax.jit(chunk)(carry, part)
        assert_equal(grads, jax.tree.map(lambda leaf, i=i: leaf[i], scanned[1]))
    assert_equal(scanned[0], carry)


@every_kind_of_rule
def test_masked_positions_count_for_nothing(rule):
    """What stands at a masked position does not matter, and a mean is over the others."""
    case = make_case(**USUAL)
    algorithm = algorithm_of(rule, case.rnn)
    (loss, _), grads = gradient(algorithm, case)
    mask = jnp.asarray(case.batch.mask)
    for anything in (0, -100):
        other = case.batch._replace(targets=jnp.where(mask > 0, case.batch.targets, anything))
        (found, _), found_grads = gradient(algorithm, case._replace(batch=other))
        assert_equal((found, found_grads), (loss, grads))
    total = make_case(num_layers=2, mask=True, reduction="sum")
    (total_loss, _), total_grads = gradient(RULES[rule].build(total.rnn), total)
    mean = jax.tree.map(lambda leaf: leaf / mask.sum(), (total_loss, total_grads))
    assert_equal((loss, grads), mean)


@every_kind_of_rule
def test_nothing_counted_gives_zero_not_nan(rule):
    case = make_case(**USUAL)
    case = case._replace(batch=case.batch._replace(mask=jnp.zeros((3, T))))
    (loss, _), grads = gradient(algorithm_of(rule, case.rnn), case)
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves((loss, grads)))


@every_kind_of_rule
def test_after_a_reset_a_rule_equals_itself_on_the_two_parts_apart(rule):
    """A row that starts anew has the gradient of a fresh carry, the others that of their own.

    What is `Lasting` in the memory, what is learned and the random keys, is that before the reset.
    """
    case = make_case(**USUAL)
    algorithm, anew = algorithm_of(rule, case.rnn), np.array([0, 1, 0], bool)
    value_and_grad = jax.jit(algorithm.value_and_grad)
    carry = algorithm.init(case.params, case.h, key=KEYS[0])
    (_, carry), _ = value_and_grad(case.params, carry, of_rows(case.batch, np.ones(3, bool)))
    fresh = algorithm.init(case.params, jnp.zeros_like(case.h), key=KEYS[1])
    lasts = lambda node: isinstance(node, gradients.Lasting)  # noqa: E731
    fresh = jax.tree.map(lambda a, b: b if lasts(a) else a, fresh, carry, is_leaf=lasts)
    reset = jaxrnn.reset(algorithm, case.params, carry, anew)
    if rule == "truncated_bptt(2)":
        again = jax.jit(lambda rows: jaxrnn.reset(algorithm, case.params, carry, rows))
        assert_equal(again(anew), reset)
    assert_equal(reset.h, jnp.where(anew[:, None], 0, carry.h))
    for rows, expected in ((anew, fresh), (~anew, carry)):
        batch = of_rows(case.batch, rows)
        assert_equal(
            value_and_grad(case.params, reset, batch)[1],
            value_and_grad(case.params, expected, batch)[1],
        )


def of_rows(batch: jaxrnn.Batch, rows: np.ndarray) -> jaxrnn.Batch:
    """Return a batch in which these rows alone have any steps."""
    return batch._replace(lengths=np.where(rows, batch.inputs.shape[1], 0))


KEYS = tuple(jax.random.split(jax.random.key(7), 2))
LENGTHS = np.array([[4, 2, 0], [1, 4, 3]])  # of three rows in two chunks of four steps


@rules(quick=KINDS, chunking=True)
@pytest.mark.parametrize(
    "network", [{"leak": 0.6}, pytest.param({"ids": True}, marks=pytest.mark.slow)], ids=str
)
def test_a_row_with_a_length_is_that_row_by_itself(rule, network):
    """Row by row and step by step without padding, over two chunks: loss, gradient and carry."""
    case = make_case(T=8, **network)
    algorithm = algorithm_of(rule, case.rnn)
    value_and_grad = jax.jit(algorithm.value_and_grad)
    carry = algorithm.init(case.params, case.h, key=KEYS[0])
    axes = batch_axes(algorithm, case.params, case.h)
    parts, total, total_loss = [], None, 0.0
    for b in range(3):
        row = only(carry, axes, b)
        for chunk, lengths in zip(jaxrnn.chunks(case.batch, 4), LENGTHS, strict=True):
            for t in range(lengths[b]):
                here = np.s_[b : b + 1, t : t + 1]
                step = jax.tree.map(lambda leaf, here=here: leaf[here], chunk)
                (loss, row), grads = value_and_grad(case.params, row, step)
                total = grads if total is None else jax.tree.map(jnp.add, total, grads)
                total_loss += loss
        parts.append(row)
    found, found_loss = None, 0.0
    for chunk, lengths in zip(jaxrnn.chunks(case.batch, 4), LENGTHS, strict=True):
        padded = pad(chunk, lengths)
        (loss, carry), grads = value_and_grad(case.params, carry, padded)
        found = grads if found is None else jax.tree.map(jnp.add, found, grads)
        found_loss += loss
    assert_equal((found_loss, found), (total_loss, total))
    for b in range(3):
        assert_equal(only(carry, axes, b), parts[b])


@rules(exact=True)
def test_a_chunk_with_lengths_is_exact(rule):
    case = make_case(T=4, leak=0.6, num_layers=2 if RULES[rule].in_stacks else 1)
    algorithm, reference = (algorithm_of(name, case.rnn) for name in (rule, "autodiff"))
    batch = pad(case.batch, LENGTHS[0])
    (loss, carry), grads = gradient(algorithm, case._replace(batch=batch))
    expected_loss, expected, h = 0.0, None, []
    for b, length in enumerate(LENGTHS[0]):
        if length == 0:
            h.append(case.h[:, b : b + 1])
            continue
        here = np.s_[b : b + 1, :length]
        row = jax.tree.map(lambda leaf, here=here: leaf[here], case.batch)
        alone = case._replace(h=case.h[:, b : b + 1], batch=row)
        (row_loss, row_carry), row_grads = gradient(reference, alone)
        add = row_grads if expected is None else jax.tree.map(jnp.add, expected, row_grads)
        expected_loss, expected, h = expected_loss + row_loss, add, [*h, row_carry.h]
    assert_equal((loss, grads, carry.h), (expected_loss, expected, jnp.concatenate(h, 1)))


def pad(batch: jaxrnn.Batch, lengths: np.ndarray) -> jaxrnn.Batch:
    """Give a batch lengths, and nonsense after them."""
    after = np.arange(batch.inputs.shape[1]) >= lengths[:, None]
    inputs, targets = np.array(batch.inputs), np.array(batch.targets)
    inputs[after] = np.nan if inputs.ndim == 3 else -1
    targets[after] = -1
    return jaxrnn.Batch(inputs, targets, batch.mask, lengths)


def only(carry: jaxrnn.Carry, axes: jaxrnn.Carry, b: int) -> jaxrnn.Carry:
    """Return the carry of one row."""

    def take(leaf, axis):
        return leaf if axis < 0 else lax.slice_in_dim(leaf, b, b + 1, axis=axis)

    return jax.tree.map(take, carry, axes)


@every_kind_of_rule
def test_a_rule_neither_promotes_ranks_nor_dtypes_implicitly(rule):
    case = make_case(**USUAL, leak=0.5, dtype=jnp.float16)
    batch = case.batch._replace(lengths=np.array([6, 3, 0]))
    algorithm = algorithm_of(rule, case.rnn)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        carry = algorithm.init(case.params, case.h, key=KEYS[0])
        traced = jax.jit(algorithm.value_and_grad).trace(case.params, carry, batch)
    (loss, carry_after), grads = traced.out_info
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float16)}
    shapes = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) for each in (carry, carry_after)
    )
    assert next(shapes) == next(shapes)


@pytest.mark.parametrize("rule", ["uoro", "kf_rtrl", "ok(1)", "kernl"])
def test_a_rule_that_draws_is_finite_in_float16(rule):
    case = make_case(dtype=jnp.float16)
    grads = gradient(algorithm_of(rule, case.rnn), case)[1]
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("rule", ["bptt", "rtrl"])
def test_many_terms_are_added_up_exactly_enough_in_bfloat16(rule):
    """2,000 terms of one sign: added up in bfloat16 itself, the sum would stop at 256 of them."""
    case = make_case(T=2000, B=1, I=2, H=2, ids=True, dtype=jnp.float32, leak=0.1)
    params = jax.tree.map(lambda leaf: (leaf / 8).astype(jnp.bfloat16), case.params)
    ones = case.batch._replace(inputs=0 * case.batch.inputs, targets=0 * case.batch.targets)
    low = case._replace(params=params, h=case.h.astype(jnp.bfloat16), batch=ones)
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (low.params, low.h))
    exact = gradient(algorithm_of("autodiff", case.rnn), low._replace(params=high[0], h=high[1]))
    found = gradient(algorithm_of(rule, case.rnn), low)
    assert_equal(found[1].cells[0].W_xh, exact[1].cells[0].W_xh, 0.05)


def test_the_limit_of_memory_is_the_callers():
    rnn = jaxrnn.RNN(2, 4, 2)
    params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    start = lambda: gradients.rtrl(rnn).init(params, h)  # noqa: E731
    start()
    with jaxrnn.memory_limit(1e-9):
        with pytest.raises(
            ValueError, match=r"more than 1e-09: .*raise the limit with jaxrnn.memo"
        ):
            start()
        with jaxrnn.memory_limit(float("inf")):
            start()
        with pytest.raises(ValueError, match="more than 1e-09"):
            start()
    start()
    with (
        pytest.raises(ValueError, match=r"gib must be above 0, got 0\.0"),
        jaxrnn.memory_limit(0.0),
    ):
        pass


def test_a_key_of_the_old_kind_is_as_good():
    case = make_case(num_layers=2)
    algorithm = algorithm_of("uoro", case.rnn)
    carry = algorithm.init(case.params, case.h, key=jax.random.PRNGKey(7))
    _, grads = jax.jit(algorithm.value_and_grad)(case.params, carry, case.batch)
    assert_equal(grads, gradient(algorithm, case)[1])


FILES = {
    "one_hop": """
from jaxrnn.gradients import backward_rule


def rule(rnn):
    def deltas(cell, tape, error):
        return tape.gain * error

    return backward_rule(rnn, deltas)
""",
    "whole_influence": """
import jax.numpy as jnp
from jaxrnn.gradients import influence_rule
from jaxrnn.gradients.engine.influence import advance_influence, no_influence


def rule(rnn):
    def advance(cell, M, tape):
        return advance_influence(cell, M, tape, rnn.leak)

    def read(M, error):
        return jnp.einsum("bpji,bi->pj", M, error)

    return influence_rule(rnn, no_influence, advance, read)
""",
}


@pytest.mark.parametrize(
    ("name", "known"), [("one_hop", "truncated_bptt(window=0)"), ("whole_influence", "rtrl")]
)
def test_a_new_rule_is_one_file_of_at_most_15_lines_and_one_row(name, known, tmp_path, monkeypatch):
    assert len(FILES[name].strip().splitlines()) <= 15
    (tmp_path / f"{name}.py").write_text(FILES[name])
    monkeypatch.syspath_prepend(tmp_path)
    build = importlib.import_module(name).rule
    monkeypatch.setitem(gradients.RULES, name, gradients.Rule(build, "approximate", "approximate"))
    case = make_case(leak=0.7, ids=True, num_layers=2)
    (loss, _), grads = gradient(gradients.build(name, case.rnn), case)
    (known_loss, _), known_grads = gradient(gradients.build(known, case.rnn), case)
    assert_equal((loss, grads), (known_loss, known_grads))


def test_every_option_of_every_rule_can_be_written_as_text():
    rnn, options = make_case().rnn, {}
    for name, rule in gradients.RULES.items():
        assert isinstance(gradients.build(name, rnn), jaxrnn.GradientAlgorithm)
        for option, default in options_of(rule).items():
            options[f"{name}({option}={default!r})"] = {option: default}
    assert len(options) == 7
    for text, expected in options.items():
        assert gradients.parse(text)[1] == expected
        assert isinstance(gradients.build(text, rnn), jaxrnn.GradientAlgorithm)
    carry = gradients.build(" ok( rank = 3 )", rnn).init(
        make_case().params, make_case().h, key=jax.random.key(0)
    )
    assert carry.memory[0].influence.u.shape[1] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ok(rank=0)", "rank must be a whole number of at least 1, got 0"),
        ("ok(rnk=4)", r"ok has no option rnk \(did you mean rank\?\): it takes ok\(rank=1\)"),
        ("bptt(window=8)", "bptt has no option window: it takes none"),
        (
            "trunkated_bptt",
            r"algorithm must be one of autodiff, .*\(did you mean truncated_bptt\?\)",
        ),
        ("truncated_bptt(8)", "algorithm must be a name with its options in parentheses"),
        ("snap(n=open('x'))", "algorithm must be a name with its options in parentheses"),
        ("snap(**{})", "algorithm must be a name with its options in parentheses"),
        ("snap(n=1", "algorithm must be a name with its options in parentheses"),
        ("", "algorithm must be a name with its options in parentheses"),
    ],
)
def test_what_is_wrong_in_the_text_of_a_rule_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        gradients.build(text, make_case().rnn)


# Exact rules

# Each activation twice, and all combinations of the other three: every pair of values occurs.
NETWORKS = [
    {"activation": activation, "leak": leak, "ids": ids, "num_layers": layers, "mask": layers > 1}
    for activation, networks in {
        "tanh": [(1.0, False, 1), (0.3, True, 2)],
        "relu": [(1.0, False, 2), (0.3, True, 1)],
        "sigmoid": [(1.0, True, 1), (0.3, False, 2)],
        "identity": [(1.0, True, 2), (0.3, False, 1)],
    }.items()
    for leak, ids, layers in networks
]
EDGES = [
    {"num_layers": 3, "leak": 0.6, "ids": True},
    {"use_bias": False, "reduction": "mean"},
    {"use_bias": False, "num_layers": 2, "ids": True},
    {"loss_function": "squared_error", "mask": True, "reduction": "mean", "leak": 0.2},
    {
        "loss_function": lambda y, target: jnp.log(jnp.cosh(y - target)).mean(-1),
        "reduction": "mean",
    },
    {"B": 1, "I": 1, "loss_function": "squared_error"},
    {"H": 1, "B": 1, "I": 1, "O": 1, "loss_function": "squared_error"},
    {"T": 2, "B": 2, "H": 2, "num_layers": 2},
    {"T": 2, "H": 1, "ids": True},
    {"T": 1, "leak": 0.5},
]


def describe(network: dict) -> str:
    return ",".join(f"{k}={v if not callable(v) else 'custom'}" for k, v in network.items())


# In the quick tests: each activation, with ids and features, leaks, stacks and masks among them.
QUICK = [*NETWORKS[1::2], EDGES[1], EDGES[3], EDGES[7]]


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(network, marks=[pytest.mark.slow] * (network not in QUICK))
        for network in NETWORKS + EDGES
    ],
    ids=describe,
)
def test_exact_rules_equal_autodiff(network):
    case = make_case(**network)
    expected = gradient(algorithm_of("autodiff", case.rnn), case)
    for name, rule in RULES.items():
        if name == "autodiff" or not (rule.exact and rule.in_stacks >= (case.rnn.num_layers > 1)):
            continue
        (loss, carry), grads = gradient(algorithm_of(name, case.rnn), case)
        assert_equal((loss, carry.h, grads), (expected[0][0], expected[0][1].h, expected[1]))


def neighbours(outputs, targets):
    """A loss that puts the outputs of neighbouring steps together."""
    return jnp.square(outputs - jnp.roll(outputs, 1, axis=1) - targets).sum(-1)


@pytest.mark.parametrize(
    ("rule", "loss"),
    [
        ("bptt", "softmax_cross_entropy"),
        ("bptt", neighbours),
        *[
            pytest.param(rule, loss, marks=pytest.mark.slow)
            for rule, loss in [
                ("bptt", "squared_error"),
                ("checkpointed_bptt", "softmax_cross_entropy"),
                ("checkpointed_bptt", "squared_error"),
                ("checkpointed_bptt", neighbours),
            ]
        ],
    ],
)
@pytest.mark.parametrize("length", [130, 128])  # of bptt's segments the last is shorter; or equal
def test_backpropagation_in_segments_is_exact(rule, loss, length):
    how = {"num_layers": 2, "leak": 0.7, "mask": True, "reduction": "mean", "loss_function": loss}
    case = make_case(T=length, B=4, O=2000, ids=True, **how)
    (found, carry), grads = gradient(algorithm_of(rule, case.rnn), case)
    (expected, expected_carry), exact = gradient(algorithm_of("autodiff", case.rnn), case)
    assert_equal((found, carry.h, grads), (expected, expected_carry.h, exact))


UNBIASED = [name for name, rule in RULES.items() if rule.signs]


@pytest.mark.parametrize("rule", UNBIASED)
@pytest.mark.parametrize("network", [{"leak": 0.7}, {"ids": True, "I": 2}], ids=describe)
def test_the_mean_over_all_signs_is_the_gradient(rule, network):
    """Not by chance: a row of the batch for each pattern of signs that three steps can draw."""
    case = make_case(**{"B": 1, "T": 3, "I": 1, "H": 2, **network}, reduction="mean")
    table = jnp.array(list(product((-1.0, 1.0), repeat=3 * RULES[rule].signs)))
    grads = gradient_for_draws(RULES[rule].build, case, table.reshape(len(table), 3, -1))
    expected = gradient(algorithm_of("autodiff", case.rnn), case)[1]
    assert_equal(jax.tree.map(lambda leaf: leaf.mean(0), grads), expected)
    assert relative_error(jax.tree.map(lambda leaf: leaf[0], grads), expected) > 1e-2


@rules(exact=False)
def test_what_does_not_claim_to_be_exact_is_not(rule):
    case = make_case()
    grads = gradient(algorithm_of(rule, case.rnn), case)[1]
    assert relative_error(grads, gradient(algorithm_of("autodiff", case.rnn), case)[1]) > 1e-3


@rules(in_stacks=False)
def test_a_rule_of_one_layer_is_exact_at_the_top_of_a_stack_and_not_below(rule):
    case = make_case(num_layers=2)
    grads = gradient(algorithm_of(rule, case.rnn), case)[1]
    expected = gradient(algorithm_of("autodiff", case.rnn), case)[1]
    assert_equal(grads.cells[1], expected.cells[1])
    assert relative_error(grads.cells[0], expected.cells[0]) > 1e-3


@rules(exact=True, chunking=True)
@pytest.mark.parametrize("ids", [False, True])
def test_the_sum_over_chunks_of_an_exact_rule_is_the_gradient_of_the_whole(rule, ids):
    case = make_case(ids=ids, leak=0.7)
    algorithm = algorithm_of(rule, case.rnn)
    value_and_grad = jax.jit(algorithm.value_and_grad)
    carry, total = algorithm.init(case.params, case.h), None
    for chunk in jaxrnn.chunks(case.batch, 2):
        (_, carry), grads = value_and_grad(case.params, carry, chunk)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    assert_equal(total, gradient(algorithm_of("autodiff", case.rnn), case)[1])


def test_autodiff_is_value_and_grad_of_the_loss():
    case = make_case(num_layers=2)
    (loss, h), grads = jax.value_and_grad(case.rnn.loss, has_aux=True)(
        case.params, case.h, case.batch
    )
    (found, carry), found_grads = gradient(algorithm_of("autodiff", case.rnn), case)
    assert_equal((found, carry.h, found_grads), (loss, h, grads))


# Some small ones, and those of the benchmark of speed that are quick enough: H, T, B.
FLOAT32_SIZES = [(8, 40, 4), (64, 100, 1), (32, 200, 16), (64, 50, 32)]
FLOAT32_SIZES += [(100, 25, 1), (128, 50, 32), (256, 64, 64), (128, 1000, 8), (64, 200, 128)]


@pytest.mark.slow
def test_float32_gradient_is_as_accurate_as_autodiff(full_optimisation):
    """Over sizes, the geometric mean of the errors against float64 is no larger."""
    ratios = []
    for seed, (H, length, B) in enumerate(FLOAT32_SIZES):
        sizes = {"B": B, "T": length, "H": H, "I": 20, "O": 20, "ids": True, "seed": seed}
        low = make_case(**sizes, reduction="mean", dtype=jnp.float32)
        high = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (low.params, low.h))
        reference = gradient(gradients.autodiff(low.rnn), low._replace(params=high[0], h=high[1]))[
            1
        ]
        by_hand = relative_error(*flat(gradient(gradients.bptt(low.rnn), low)[1], reference))
        by_autodiff = relative_error(
            *flat(gradient(gradients.autodiff(low.rnn), low)[1], reference)
        )
        ratios.append(by_hand / by_autodiff)
    assert np.exp(np.mean(np.log(ratios))) <= 1.0, ratios


def flat(*trees):
    """Make one vector of each pytree."""
    return [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in trees]


@pytest.fixture
def full_optimisation():
    """Compile as a user's process does; elsewhere the tests save the time."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


# Memory


def held(rule: str, **sizes) -> int:
    """Count the bytes of the compiled program: its working memory and what passes on."""
    case = make_case(ids=True, dtype=jnp.float32, **sizes)
    batch = case.batch._replace(inputs=case.batch.inputs.astype(jnp.int32))  # or it is copied
    algorithm = RULES[rule].build(case.rnn)
    carry = algorithm.init(case.params, case.h, key=jax.random.key(0))
    cost = jaxrnn.cost_analysis(algorithm.value_and_grad, case.params, carry, batch)
    return cost.temp_bytes + sum(leaf.nbytes for leaf in jax.tree.leaves(carry))


def test_the_outputs_of_a_large_vocabulary_are_never_all_held(full_optimisation):
    steps, outputs = 400, 4000
    case = {"T": steps, "B": 4, "O": outputs}
    all_of_them = 4 * steps * 4 * outputs
    assert held("bptt", **case) < all_of_them < held("autodiff", **case)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "exponent"), [("bptt", 1), ("checkpointed_bptt", 1 / 2)])
def test_memory_grows_with_this_power_of_the_steps(rule, exponent):
    sizes = {"H": 16, "I": 1, "O": 1, "loss_function": "squared_error"}
    short, long = (held(rule, T=steps, **sizes) for steps in (2**10, 2**14))
    assert np.log2(long / short) / 4 == pytest.approx(exponent, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "exponent"),
    [
        *[("rtrl", 3), ("snap(2)", 3)],
        *[(rule, 2) for rule in ("snap(1)", "rflo", "kernl", "dni", "uoro", "kf_rtrl", "ok(1)")],
    ],
)
def test_memory_grows_with_this_power_of_the_units(rule, exponent):
    few, many = (
        held(rule, H=units, T=2, I=1, O=1, loss_function="squared_error") for units in (64, 128)
    )
    assert np.log2(many / few) == pytest.approx(exponent, abs=0.2)


# Truncation


def gradient_of_the_defining_graph(case: Case, window: int) -> jaxrnn.Params:
    """Σ_t ∇ℓ_t, with `stop_gradient` on every layer's h_{t-window-1}: written out, loop by loop."""
    rnn, params, h, batch = case

    def advance(params, states, x):
        new = []
        for cell, state in zip(params.cells, states, strict=True):
            x = rnn.step(cell, x, state)
            new.append(x)
        return new

    states = [list(h)]  # h_0, h_1, …, each a list of layers
    for t in range(batch.inputs.shape[1]):
        states.append(advance(params, states[-1], batch.inputs[:, t]))

    def loss_at(params, t):
        first = max(0, t - window)
        now = [lax.stop_gradient(state) for state in states[first]]
        for s in range(first, t + 1):
            now = advance(params, now, batch.inputs[:, s])
        log_p = jax.nn.log_softmax(now[-1] @ params.readout.W_hy + params.readout.b_y)
        losses = -jnp.take_along_axis(log_p, batch.targets[:, t, None], axis=1)[:, 0]
        return losses.sum() if batch.mask is None else (losses * batch.mask[:, t]).sum()

    def total(params):
        return sum(loss_at(params, t) for t in range(batch.inputs.shape[1]))

    return jax.jit(jax.grad(total))(params)


WINDOWS = [rule.window for rule in RULES.values() if rule.window is not None]


@pytest.mark.parametrize("window", [*WINDOWS, T + 3])
@pytest.mark.parametrize(
    "network",
    [
        {"num_layers": 2, "mask": True},
        *[
            pytest.param(network, marks=pytest.mark.slow)
            for network in ({"ids": True}, {"num_layers": 3, "leak": 0.3})
        ],
    ],
    ids=describe,
)
def test_truncated_bptt_is_the_gradient_of_its_defining_graph(window, network):
    case = make_case(**network)
    grads = gradient(gradients.truncated_bptt(case.rnn, window), case)[1]
    assert_equal(grads, gradient_of_the_defining_graph(case, window))


@rules(quick=KINDS, chunking=True)
def test_sum_over_chunks_does_not_depend_on_where_they_are_cut(rule):
    assert_equal_for_any_chunks(rule, num_layers=2, ids=True, leak=0.4, mask=True)


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.window is not None])
def test_features_that_a_window_keeps_serve_errors_of_the_next_chunk(rule):
    assert_equal_for_any_chunks(rule, leak=0.4, mask=True)


def assert_equal_for_any_chunks(rule: str, **network):
    case = make_case(**network)
    algorithm = algorithm_of(rule, case.rnn)
    whole = gradient(algorithm, case)[1]
    value_and_grad = jax.jit(algorithm.value_and_grad)
    for lengths in ((1, 1, 4), (4, 1, 1)):
        carry, total = algorithm.init(case.params, case.h, key=jax.random.key(7)), None
        for chunk in chunks(case.batch, *lengths):
            (_, carry), grads = value_and_grad(case.params, carry, chunk)
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        assert_equal(total, whole)


def test_bptt_in_chunks_forgets_what_lies_before_the_chunk():
    """Only h passes: each chunk's gradient is autodiff's from the state it began with."""
    case = make_case()
    algorithm = gradients.bptt(case.rnn)
    carry = algorithm.init(case.params, case.h)
    for chunk in chunks(case.batch, 2, 4):
        expected = gradient(
            algorithm_of("autodiff", case.rnn), case._replace(h=carry.h, batch=chunk)
        )
        (_, carry), grads = jax.jit(algorithm.value_and_grad)(case.params, carry, chunk)
        assert_equal(grads, expected[1])


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match="window must be a whole number of at least 0, got -1"):
        gradients.truncated_bptt(make_case().rnn, -1)
