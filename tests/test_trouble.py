"""Tests of the diagnosis of steps that are not finite, by overflows that NumPy loops find too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import make_case

import jaxrnn
from jaxrnn import gradients
from jaxrnn.analysis.gradient_flow import GradientFlow
from jaxrnn.cli import console
from jaxrnn.training import nonfinite
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
    report = nonfinite.diagnose(case.rnn, algorithm, optimizer, state, case.batch)
    lines = str(report).splitlines()
    assert 2 <= len(lines) <= 6
    assert max(map(len, lines)) <= 80
    return report


def silent_case(**network):
    """Make a linear network whose states are all 0 and whose credits may overflow."""
    network = {"recurrent_init": ORTHOGONAL[1e10], "activation": "identity"} | network
    case = make_case(T=9, bias_init=ZEROS, dtype=jnp.float32, **network)
    batch = case.batch._replace(inputs=jnp.zeros_like(case.batch.inputs))
    return case._replace(h=jnp.zeros_like(case.h), batch=batch)


def scaled(case, **factors):
    """Multiply leaves by factors. The name W_hh_1 means W_hh of layer 1."""
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
    """Return the first quantity that is not finite, its time step, row and largest finite value."""
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
            for name, array in arrays.items():
                assert array.dtype == np.float32
                finite = np.abs(array[np.isfinite(array)]).max(initial=largest.get(name, 0))
                largest[name] = finite
                bad = ~np.isfinite(array).all(-1)
                if bad.any():
                    return name, t, int(bad.argmax()), finite
    raise AssertionError("every value is finite")


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
def test_an_overflow_in_the_forward_pass_is_located(activation, factors, readout, expected):
    loss = "squared_error" if expected == "losses" else "softmax_cross_entropy"
    case = make_case(
        T=9, num_layers=2, activation=activation, loss_function=loss, dtype=jnp.float32
    )
    case = scaled(case, **factors)
    W_hy = case.params.readout.W_hy * jnp.float32(readout)
    case = case._replace(
        params=case.params._replace(readout=case.params.readout._replace(W_hy=W_hy)),
        h=jnp.abs(case.h).at[:, 1].multiply(1e6),  # so that row 1 overflows first
    )
    what, t, row, largest = first_in_numpy(case)
    report = diagnose(case)
    assert (report.stage, report.what) == ("the forward pass", what)
    assert what == expected
    assert (report.time_step, report.row) == (t, row)
    assert 0 < t < 8
    assert row == 1
    assert report.largest == pytest.approx(float(largest), rel=1e-5)
    assert report.leaf is None or report.leaf in by_name(case.params)
    assert f"{what}, time step {t}, row 1; until then at most" in str(report).replace("\n", " ")


def test_a_step_is_run_in_its_own_dtype():
    """A step may overflow in float32 and not in float64. Then only the compiled loop is named."""
    case = scaled(make_case(T=6, activation="relu", dtype=jnp.float32), W_hh_0=1e8)
    assert diagnose(case).stage == "the forward pass"
    wide = case._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.float64), case.params))
    assert diagnose(wide).stage == "the compiled loop"


# The backward pass


@pytest.mark.parametrize("layers", [1, 2])
def test_an_overflow_in_the_backward_pass_is_located(layers):
    """All states are 0 for any W_hh, but the errors are not."""
    case = silent_case(num_layers=layers)
    mask = np.ones((3, 9), np.float32)
    mask[:, 7:], mask[[0, 2], 5:] = 0, 0  # row 1 has the last loss, at step 6
    batch = case.batch._replace(mask=mask)
    case = case._replace(batch=batch)
    if layers == 2:
        case = scaled(case, W_xh_1=1e12)  # the error from above is larger than the credit
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

    report = diagnose(case)
    assert report.stage == "the backward pass"
    assert (report.what, report.time_step, report.row, report.steps_back) == expected
    assert report.row == 1
    assert report.leaf == "cells[0].W_xh"
    assert 1e27 < (report.largest or 0) < np.finfo(np.float32).max
    assert report.advice == (f"length={(report.steps_back or 0) // 2}", "activation='tanh'",
                            "another `init`")  # fmt: skip


# The gradient, the rule's memory, the update


@pytest.mark.parametrize("leaf", ["cells[0].W_hh", "readout.b_y"])
def test_one_infinite_element_of_a_gradient_is_named_with_its_leaf(leaf):
    case = make_case(dtype=jnp.float32)
    bptt = gradients.bptt(case.rnn)

    def value_and_grad(params, carry, batch):
        aux, grads = bptt.value_and_grad(params, carry, batch)
        leaves = by_name(grads)
        leaves[leaf] = leaves[leaf].at[..., 1].set(jnp.inf)
        return aux, jax.tree.unflatten(jax.tree.structure(grads), leaves.values())

    def times_norm(updates, params=None):  # makes every parameter non-finite
        return jax.tree.map(lambda g: g * optax.tree.norm(updates), updates)

    algorithm = bptt._replace(value_and_grad=value_and_grad)
    report = diagnose(case, algorithm, optax.stateless(times_norm))
    index = "[0, 1]" if leaf == "cells[0].W_hh" else "[1]"
    assert (report.stage, report.leaf) == ("the rule's gradient", leaf)
    assert report.what == f"gradient of {leaf}{index}"
    assert report.time_step is None


def test_an_influence_that_overflows_is_reported_as_memory_of_the_rule():
    """All states are 0, but the influence of the bias on them grows from step to step."""
    case = silent_case()
    report = diagnose(case, gradients.rtrl(case.rnn), after=5)
    assert report.stage == "the rule's memory"
    assert report.what.startswith("memory[0].influence[0, ")
    assert report.advice[0] == "algorithm='bptt'"
    assert report.advice[-1] == "lower `learning_rate` or `clip`"


@pytest.mark.parametrize(
    ("rule", "network", "leaf"),
    [
        (gradients.bptt, {"readout_init": ZEROS, "recurrent_init": ORTHOGONAL[1.0]}, "readout.b_y"),
        (
            lambda rnn: gradients.truncated_bptt(rnn, 0),
            {},
            "cells[0].b_h",
        ),  # exact: overflows
    ],
)
def test_an_update_that_overflows_is_reported_for_the_optimiser(rule, network, leaf):
    """The first leaf is named. A truncated rule is not blamed for an overflow beyond its window."""
    case = silent_case(loss_function=steep, **network)
    algorithm = rule(case.rnn)
    report = diagnose(case, algorithm, optax.sgd(1e38))
    _, grads = algorithm.value_and_grad(
        case.params, algorithm.init(case.params, case.h), case.batch
    )
    assert (report.stage, report.leaf) == ("the optimiser's update", leaf)
    assert report.what.startswith(leaf)
    assert report.largest == jnp.abs(by_name(grads)[leaf]).max()
    assert report.advice[0] == "lower `learning_rate` or `clip`"


# Values that are not finite before the step


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
    report = nonfinite.diagnose(case.rnn, algorithm, optimizer, state, case.batch)
    assert report.stage == "the state before the step"
    assert report.what.startswith(name)
    assert report.flow is None


@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_data_that_are_not_finite_are_found_and_masked_targets_are_not(name):
    case = make_case(loss_function="squared_error", mask=True, dtype=jnp.float32)
    mask = jnp.ones((3, 6)).at[:, 2].set(0)
    data = getattr(case.batch, name).at[0, 2].set(jnp.nan).at[1, 4, 1].set(jnp.inf)
    case = case._replace(batch=case.batch._replace(mask=mask, **{name: data}))
    report = diagnose(case)
    assert (report.stage, report.what) == ("the batch", name)
    assert (report.time_step, report.row) == ((2, 0) if name == "inputs" else (4, 1))


# The report


def test_a_scaled_rotation_is_reported_to_grow_by_its_scale_at_every_lag():
    case = make_case(
        T=60, activation="identity", recurrent_init=ORTHOGONAL[2.0], mask=True, ids=True
    )
    report = diagnose(case)
    assert report.flow is not None
    growth = nonfinite.credit_growth(report.flow)
    assert growth.lags == (0, 1, 2, 5, 10, 20, 50)
    np.testing.assert_allclose((*growth.growth[1:], growth.overall), 2, rtol=1e-12)
    rows = str(report).splitlines()[-4:-1]
    assert rows[0].split() == ["lag", "k", *map(str, growth.lags)]
    assert rows[2].split() == ["growth", "per", "step", *["2"] * 6]
    np.testing.assert_allclose([float(x) for x in rows[1].split()[1:]], growth.credit, rtol=0.5)


def test_the_growth_of_the_credit_is_that_of_the_fastest_growing_layer_over_unmasked_outputs():
    """A credit of 3ᵏ grows by 3 a step, also if errors differ and some outputs are masked."""
    errors = np.array([[1.0, 0.0, 5.0, 0.1, 0.0, 0.0, 2.0, 0.0]])  # (B, T)
    k = np.arange(8)[:, None, None]
    late = np.where(np.arange(8) >= k, 1.0, np.nan)
    credit = np.stack([0.5**k * errors * late, 3.0**k * errors * late, 0.0**k * errors * late])
    growth = nonfinite.credit_growth(GradientFlow(credit, np.ones((3, 8, 4)), {}))
    assert (growth.layer, growth.lags) == (1, (0, 1, 2, 5))
    np.testing.assert_allclose(growth.growth, [np.nan, 3, 3, 3])
    np.testing.assert_allclose(growth.credit, [1.5, 3 * 2, 9 * 2, 243 * 2])


def test_no_flow_is_reported_where_float64_overflows_too():
    case = make_case(T=60, activation="identity", recurrent_init=ORTHOGONAL[1e10])
    report = diagnose(case)
    assert report.stage == "the forward pass"
    assert report.flow is None
    assert "lag" not in str(report)


def test_the_flow_is_computed_for_the_row_that_overflows_and_a_few_others():
    case = make_case(B=7, T=9, activation="relu", dtype=jnp.float32)
    case = scaled(case, W_hh_0=1e6)
    case = case._replace(h=case.h.at[:, 5].set(1e9))
    report = diagnose(case)
    assert report.row == 5
    assert report.flow is not None
    rows = np.array([5, 0, 1, 2])
    batch = jax.tree.map(lambda leaf: leaf[rows], case.batch)
    expected = jaxrnn.gradient_flow(case.rnn, case.params, batch, h=case.h[:, rows])
    np.testing.assert_array_equal(report.flow.credit, expected.credit)


@pytest.mark.parametrize("layers", [1, 12])
@pytest.mark.parametrize("growth", [1e-3, 0.123456, 1.0, 998.9, 1e3])
def test_every_report_fits_its_lines(growth, layers):
    """This holds also for exponents of three digits. Numbers are always separated by a space."""
    credit = np.broadcast_to(growth ** np.arange(60.0)[:, None, None], (layers, 60, 1, 1))
    report = nonfinite.Trouble(
        stage="the backward pass",
        what=f"deltas of layer {layers - 1}",
        time_step=999,
        row=99,
        steps_back=999,
        largest=1e38,
        flow=GradientFlow(credit, np.ones((layers, 60, 1)), {}),
        advice=("--length 499", "--activation tanh", "lower --learning-rate or --clip"),
    )
    lines = str(report).splitlines()
    assert len(lines) <= 6
    assert max(map(len, lines)) <= nonfinite.WIDTH
    assert lines[-3][15:].split()[0] == "1"
    assert [len(line[15:].split()) for line in lines[-4:-1]] == [7, 7, 6]


def test_line_breaks_do_not_split_an_option_at_its_hyphens():
    for width in range(30, 60):
        report = nonfinite.Trouble("it", "what", advice=("x" * width, "lower --learning-rate"))
        assert "--learning-rate" in str(report)


def test_the_command_names_its_flags_and_the_library_the_options(capsys):
    advice = (
        "length=499",
        "activation='tanh'",
        "another `init`",
        "lower `learning_rate` or `clip`",
    )
    report = nonfinite.Trouble("the forward pass", "outputs", advice=advice)
    assert " ".join(str(report).split()).endswith(f"Try {', '.join(advice)}.")
    console.trouble(report)
    flags = "--length 499, --activation tanh, another --init, lower --learning-rate or --clip"
    assert " ".join(capsys.readouterr().out.split()).endswith(f"Try {flags}.")


# Gradients that grow


def test_a_spike_is_a_norm_above_a_hundred_times_the_median_of_those_before():
    norms = np.array([1.0, 2.0, 3.0] * 10)
    assert nonfinite.first_spike(norms) is None
    assert nonfinite.first_spike(np.append(norms, [199.0, 200.0])) is None
    assert nonfinite.first_spike(np.append(norms, [201.0, 1e9])) == 30
    assert nonfinite.first_spike(np.append(norms, 21.0), factor=10.0) == 30
    # Norms after it do not count, and 20 norms before it are enough.
    assert nonfinite.first_spike(np.append(norms[:20], np.full(500, 1e6))) == 20
    assert nonfinite.first_spike(np.append(np.full(25, 1.0), [1e3] * 2)) == 25


def test_the_first_spike_agrees_with_its_definition():
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
        assert nonfinite.first_spike(norms, 30.0) == expected
        assert nonfinite.first_spike(1e-12 * norms, 30.0) == expected


def test_a_spike_needs_20_norms_and_ignores_those_that_are_not_finite():
    few = np.append(np.ones(19), 1e9)
    assert nonfinite.first_spike(few) is None
    assert nonfinite.first_spike(np.append(np.full(19, np.nan), few)) is None
    assert nonfinite.first_spike(np.append(few, 1e9)) == 20
    assert nonfinite.first_spike(np.array([*[np.inf, 1.0] * 20, np.inf])) is None
    assert nonfinite.first_spike(np.array([*[np.inf, 1.0] * 20, np.inf, 101.0])) == 41
    assert nonfinite.first_spike(np.zeros(0)) is None
