"""Where a step that is not finite began, by overflows that a NumPy loop finds too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import make_case

import jaxrnn
from jaxrnn import gradients
from jaxrnn.analysis.gradient_flow import GradientFlow
from jaxrnn.training import nonfinite as trouble
from jaxrnn.tree import by_name

ZEROS = jax.nn.initializers.zeros
ORTHOGONAL = {gain: jax.nn.initializers.orthogonal(gain) for gain in (1.0, 2.0, 1e3, 1e10)}


def steep(outputs, targets):
    return 100 * outputs.sum(-1)


def diagnose(case, algorithm=None, optimizer=None, *, after=0, carry=None):
    algorithm, optimizer = algorithm or gradients.bptt(case.rnn), optimizer or optax.sgd(0.1)
    state = jaxrnn.init_train_state(
        algorithm, optimizer, case.params, case.h, key=jax.random.key(0)
    )
    state = state._replace(step=jnp.int32(after), carry=carry or state.carry)
    found = trouble.diagnose(case.rnn, algorithm, optimizer, state, case.batch)
    lines = str(found).splitlines()
    assert 2 <= len(lines) <= 6
    assert max(map(len, lines)) <= 80
    return found


def silent_case(**network):
    """Make a linear network whose states are all 0, though its credits may overflow."""
    network = {"recurrent_init": ORTHOGONAL[1e10], "activation": "identity"} | network
    case = make_case(T=9, bias_init=ZEROS, dtype=jnp.float32, **network)
    batch = case.batch._replace(inputs=jnp.zeros_like(case.batch.inputs))
    return case._replace(h=jnp.zeros_like(case.h), batch=batch)


def scaled(case, **factors):
    """Multiply leaves by their names, such as W_hh_1 for that of layer 1."""
    params = case.params
    for name, factor in factors.items():
        leaf, _, number = name.rpartition("_")
        cell = params.cells[int(number)]
        cell = cell._replace(**{leaf: jnp.abs(getattr(cell, leaf)) * jnp.float32(factor)})
        cells = (*params.cells[: int(number)], cell, *params.cells[int(number) + 1 :])
        params = params._replace(cells=cells)
    return case._replace(params=params)


# The forward pass


def first_in_numpy(case):
    """Return what is not finite first, its time step and row, and its largest until then."""
    largest = {}
    cells, readout = jax.tree.map(np.asarray, case.params)
    h, inputs, targets = list(np.asarray(case.h)), np.asarray(case.batch.inputs), case.batch.targets
    phi = {"identity": lambda a: a, "relu": lambda a: np.maximum(a, 0)}[case.rnn.activation]
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(inputs.shape[1]):
            x, arrays = inputs[:, t], {}
            for i, cell in enumerate(cells):
                x = h[i] = phi(x @ cell.W_xh + h[i] @ cell.W_hh + cell.b_h)
                arrays[f"states of layer {i}"] = x
            arrays["outputs"] = y = x @ readout.W_hy + readout.b_y
            if case.rnn.loss_function == "squared_error":
                arrays["losses"] = np.square(y - np.asarray(targets[:, t])).sum(-1, keepdims=True)
            for what, array in arrays.items():
                assert array.dtype == np.float32
                finite = np.abs(array[np.isfinite(array)]).max(initial=largest.get(what, 0))
                largest[what] = finite
                bad = ~np.isfinite(array).all(-1)
                if bad.any():
                    return what, t, int(bad.argmax()), finite
    raise AssertionError("all is finite")


@pytest.mark.parametrize(
    ("activation", "factors", "readout", "expected"),
    [
        ("identity", {"W_hh_0": 1e7}, 1e-30, "states of layer 0"),
        ("relu", {"W_hh_1": 1e7}, 1e-30, "states of layer 1"),
        ("identity", {"W_hh_0": 1e5, "W_hh_1": 1e7}, 1e-30, "states of layer 1"),
        ("relu", {"W_hh_0": 1e3}, 1e22, "outputs"),
        ("identity", {"W_hh_0": 1e3}, 1e4, "losses"),
    ],
)
def test_an_overflow_in_the_forward_pass_is_found_where_it_is(
    activation, factors, readout, expected
):
    loss = "squared_error" if expected == "losses" else "softmax_cross_entropy"
    case = make_case(
        T=9, num_layers=2, activation=activation, loss_function=loss, dtype=jnp.float32
    )
    case = scaled(case, **factors)
    W_hy = case.params.readout.W_hy * jnp.float32(readout)
    case = case._replace(
        params=case.params._replace(readout=case.params.readout._replace(W_hy=W_hy)),
        h=jnp.abs(case.h).at[:, 1].multiply(1e6),  # so that one row is ahead of the others
    )
    what, t, row, largest = first_in_numpy(case)
    found = diagnose(case)
    assert (found.stage, found.what) == ("the forward pass", what)
    assert what == expected
    assert (found.time_step, found.row) == (t, row)
    assert 0 < t < 8
    assert row == 1
    assert found.largest == pytest.approx(float(largest), rel=1e-5)
    assert found.leaf is None or found.leaf in by_name(case.params)
    assert f"{what}, time step {t}, row 1; until then at most" in str(found).replace("\n", " ")


def test_a_step_is_run_in_its_own_dtype():
    """What overflows in float32 need not in float64; then nothing is found, and that is said."""
    case = scaled(make_case(T=6, activation="relu", dtype=jnp.float32), W_hh_0=1e8)
    assert diagnose(case).stage == "the forward pass"
    wide = case._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.float64), case.params))
    assert diagnose(wide).stage == "the compiled loop"


# The backward pass


@pytest.mark.parametrize("layers", [1, 2])
def test_an_overflow_in_the_backward_pass_is_found_where_it_is(layers):
    """All states are 0, whatever W_hh is; the errors are not."""
    case = silent_case(num_layers=layers)
    mask = np.ones((3, 9), np.float32)
    mask[:, 7:], mask[[0, 2], 5:] = 0, 0  # row 1 speaks last, at step 6
    batch = case.batch._replace(mask=mask)
    case = case._replace(batch=batch)
    if layers == 2:
        case = scaled(case, W_xh_1=1e12)  # what comes down is larger than what goes back
    cells, readout = jax.tree.map(np.asarray, case.params)
    uniform = np.full((3, 2), 0.5, np.float32)
    credit = np.zeros((layers, 3, 4), np.float32)
    expected = None
    for t in reversed(range(9)):
        d_y = (uniform - np.eye(2)[np.asarray(batch.targets)[:, t]]) * mask[:, t, None]
        error = d_y.astype(np.float32) @ readout.W_hy.T
        for i in reversed(range(layers)):
            with np.errstate(over="ignore", invalid="ignore"):
                credit[i] = error + credit[i] @ cells[i].W_hh.T
                error = credit[i] @ cells[i].W_xh.T
            bad = ~np.isfinite(credit[i]).all(-1)
            if bad.any() and expected is None:
                expected = f"deltas of layer {i}", t, int(bad.argmax()), 6 - t

    found = diagnose(case)
    assert found.stage == "the backward pass"
    assert (found.what, found.time_step, found.row, found.steps_back) == expected
    assert found.row == 1
    assert found.leaf == "cells[0].W_xh"
    assert 1e27 < (found.largest or 0) < np.finfo(np.float32).max
    assert found.advice == (f"--length {(found.steps_back or 0) // 2}", "--activation tanh",
                            "another --init")  # fmt: skip


# The gradient, the rule's memory, the update


@pytest.mark.parametrize("leaf", ["cells[0].W_hh", "readout.b_y"])
def test_a_rule_with_one_infinite_element_is_told_by_its_leaf(leaf):
    case = make_case(dtype=jnp.float32)
    bptt = gradients.bptt(case.rnn)

    def value_and_grad(params, carry, batch):
        aux, grads = bptt.value_and_grad(params, carry, batch)
        leaves = by_name(grads)
        leaves[leaf] = leaves[leaf].at[..., 1].set(jnp.inf)
        return aux, jax.tree.unflatten(jax.tree.structure(grads), leaves.values())

    def times_norm(updates, params=None):  # then no parameter is finite
        return jax.tree.map(lambda g: g * optax.tree.norm(updates), updates)

    algorithm = bptt._replace(value_and_grad=value_and_grad)
    found = diagnose(case, algorithm, optax.stateless(times_norm))
    place = "[0, 1]" if leaf == "cells[0].W_hh" else "[1]"
    assert (found.stage, found.leaf) == ("the rule's gradient", leaf)
    assert found.what == f"gradient of {leaf}{place}"
    assert found.time_step is None


def test_an_influence_that_overflows_is_told_as_the_rules_memory():
    """All states are 0; what they do to the bias grows from step to step."""
    case = silent_case()
    found = diagnose(case, gradients.rtrl(case.rnn), after=5)
    assert found.stage == "the rule's memory"
    assert found.what.startswith("memory[0].influence[0, ")
    assert found.advice[0] == "--algorithm bptt"
    assert found.advice[-1] == "lower --learning-rate or --clip"


@pytest.mark.parametrize(
    ("rule", "network", "leaf"),
    [
        (gradients.bptt, {"readout_init": ZEROS, "recurrent_init": ORTHOGONAL[1.0]}, "readout.b_y"),
        (lambda rnn: gradients.truncated_bptt(rnn, 0), {}, "cells[0].b_h"),  # exact ones overflow
    ],
)
def test_an_update_that_overflows_is_the_optimisers(rule, network, leaf):
    """Its first leaf is named, and a rule is not blamed for what it does not compute."""
    case = silent_case(loss_function=steep, **network)
    algorithm = rule(case.rnn)
    found = diagnose(case, algorithm, optax.sgd(1e38))
    _, grads = algorithm.value_and_grad(
        case.params, algorithm.init(case.params, case.h), case.batch
    )
    assert (found.stage, found.leaf) == ("the optimiser's update", leaf)
    assert found.what.startswith(leaf)
    assert found.largest == jnp.abs(by_name(grads)[leaf]).max()
    assert "--learning-rate" in found.advice[0]


# What was wrong before


@pytest.mark.parametrize(
    "name", ["params.cells[0].W_hh", "carry.h", "carry.memory[0].influence", "params.readout.b_y"]
)
def test_a_state_that_is_not_finite_before_the_step_is_named(name):
    case = make_case(dtype=jnp.float32)
    algorithm, optimizer = gradients.rtrl(case.rnn), optax.sgd(0.1)
    key = jax.random.key(0)
    state = jaxrnn.init_train_state(algorithm, optimizer, case.params, case.h, key=key)
    leaves = by_name(state)
    leaves[name] = leaves[name].at[-1].set(jnp.nan)
    state = jax.tree.unflatten(jax.tree.structure(state), leaves.values())
    found = trouble.diagnose(case.rnn, algorithm, optimizer, state, case.batch)
    assert found.stage == "the state before the step"
    assert found.what.startswith(name)
    assert found.flow is None


@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_data_that_are_not_finite_are_found_and_masked_targets_are_not(name):
    case = make_case(loss_function="squared_error", mask=True, dtype=jnp.float32)
    mask = jnp.ones((3, 6)).at[:, 2].set(0)
    data = getattr(case.batch, name).at[0, 2].set(jnp.nan).at[1, 4, 1].set(jnp.inf)
    case = case._replace(batch=case.batch._replace(mask=mask, **{name: data}))
    found = diagnose(case)
    assert (found.stage, found.what) == ("the batch", name)
    assert (found.time_step, found.row) == ((2, 0) if name == "inputs" else (4, 1))


# What is told


def test_a_scaled_rotation_is_told_to_grow_by_its_scale_at_every_lag():
    case = make_case(
        T=60, activation="identity", recurrent_init=ORTHOGONAL[2.0], mask=True, ids=True
    )
    found = diagnose(case)
    assert found.flow is not None
    told = trouble.reach(found.flow)
    assert told.lags == (0, 1, 2, 5, 10, 20, 50)
    np.testing.assert_allclose((*told.growth[1:], told.overall), 2, rtol=1e-12)
    rows = str(found).splitlines()[-4:-1]
    assert rows[0].split() == ["lag", "k", *map(str, told.lags)]
    assert rows[2].split() == ["growth", "per", "step", *["2"] * 6]
    np.testing.assert_allclose([float(x) for x in rows[1].split()[1:]], told.credit, rtol=0.5)


def test_the_reach_is_of_the_layer_that_grows_most_and_of_the_outputs_that_count():
    """Over outputs whose errors differ, and some of which are masked, 3ᵏ is 3 a step."""
    errors = np.array([[1.0, 0.0, 5.0, 0.1, 0.0, 0.0, 2.0, 0.0]])  # (B, T)
    k = np.arange(8)[:, None, None]
    late = np.where(np.arange(8) >= k, 1.0, np.nan)
    credit = np.stack([0.5**k * errors * late, 3.0**k * errors * late, 0.0**k * errors * late])
    told = trouble.reach(GradientFlow(credit, np.ones((3, 8, 4)), {}))
    assert (told.layer, told.lags) == (1, (0, 1, 2, 5))
    np.testing.assert_allclose(told.growth, [np.nan, 3, 3, 3])
    np.testing.assert_allclose(told.credit, [1.5, 3 * 2, 9 * 2, 243 * 2])


def test_no_flow_is_told_where_float64_overflows_too():
    case = make_case(T=60, activation="identity", recurrent_init=ORTHOGONAL[1e10])
    found = diagnose(case)
    assert found.stage == "the forward pass"
    assert found.flow is None
    assert "lag" not in str(found)


def test_the_flow_is_of_the_row_in_question_and_a_few_others():
    case = make_case(B=7, T=9, activation="relu", dtype=jnp.float32)
    case = scaled(case, W_hh_0=1e6)
    case = case._replace(h=case.h.at[:, 5].set(1e9))
    found = diagnose(case)
    assert found.row == 5
    assert found.flow is not None
    rows = np.array([5, 0, 1, 2])
    batch = jax.tree.map(lambda leaf: leaf[rows], case.batch)
    expected = jaxrnn.gradient_flow(case.rnn, case.params, batch, h=case.h[:, rows])
    np.testing.assert_array_equal(found.flow.credit, expected.credit)


@pytest.mark.parametrize("layers", [1, 12])
@pytest.mark.parametrize("growth", [1e-3, 0.123456, 1.0, 998.9, 1e3])
def test_what_is_told_fits_its_lines(growth, layers):
    """Also numbers with three digits of exponent, and no two of them run together."""
    credit = np.broadcast_to(growth ** np.arange(60.0)[:, None, None], (layers, 60, 1, 1))
    found = trouble.Trouble(
        stage="the backward pass",
        what=f"deltas of layer {layers - 1}",
        time_step=999,
        row=99,
        steps_back=999,
        largest=1e38,
        flow=GradientFlow(credit, np.ones((layers, 60, 1)), {}),
        advice=("--length 499", "--activation tanh", "lower --learning-rate or --clip"),
    )
    lines = str(found).splitlines()
    assert len(lines) <= 6
    assert max(map(len, lines)) <= trouble.WIDTH
    assert lines[-3][15:].split()[0] == "1"
    assert [len(line[15:].split()) for line in lines[-4:-1]] == [7, 7, 6]


def test_no_option_is_broken_at_its_hyphens():
    for width in range(30, 60):
        found = trouble.Trouble("it", "what", advice=("x" * width, "lower --learning-rate"))
        assert "--learning-rate" in str(found)


# Gradients that grow


def test_a_norm_is_growing_above_a_hundred_times_the_median_of_those_before():
    norms = np.array([1.0, 2.0, 3.0] * 10)
    assert trouble.growing(norms) is None
    assert trouble.growing(np.append(norms, [199.0, 200.0])) is None
    assert trouble.growing(np.append(norms, [201.0, 1e9])) == 30
    assert trouble.growing(np.append(norms, 21.0), factor=10.0) == 30
    # Those after it do not count, nor do those before it from 20 on alone.
    assert trouble.growing(np.append(norms[:20], np.full(500, 1e6))) == 20
    assert trouble.growing(np.append(np.full(25, 1.0), [1e3] * 2)) == 25


def test_growing_is_the_plain_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        norms = np.exp(rng.normal(0, 2, 60))
        norms[rng.random(60) < 0.1] = np.nan
        expected = next(
            (
                i
                for i in range(60)
                if np.isfinite(norms[:i]).sum() >= 20 and norms[i] > 30 * np.nanmedian(norms[:i])
            ),
            None,
        )
        assert trouble.growing(norms, 30.0) == expected
        assert trouble.growing(1e-12 * norms, 30.0) == expected


def test_too_few_norms_are_not_judged_and_those_that_are_not_finite_do_not_count():
    few = np.append(np.ones(19), 1e9)
    assert trouble.growing(few) is None
    assert trouble.growing(np.append(np.full(19, np.nan), few)) is None
    assert trouble.growing(np.append(few, 1e9)) == 20
    assert trouble.growing(np.array([*[np.inf, 1.0] * 20, np.inf])) is None
    assert trouble.growing(np.array([*[np.inf, 1.0] * 20, np.inf, 101.0])) == 41
    assert trouble.growing(np.zeros(0)) is None
