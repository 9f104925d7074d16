"""Tests of the exchange with other libraries: exact round trips, and the same outputs export."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BIAS, assert_equal, make_case

import jaxrnn
from jaxrnn.exchange import (
    from_flax,
    from_min_char_rnn,
    from_torch,
    to_flax,
    to_min_char_rnn,
    to_torch,
)
from jaxrnn.tree import by_name

FORMATS = {
    "torch": (to_torch, lambda states, **network: from_torch(*states, **network)),
    "flax": (to_flax, lambda variables, **network: from_flax(*variables, **network)),
    "columns": (to_min_char_rnn, from_min_char_rnn),
}
STACKS = [("torch", 1), ("torch", 3), ("flax", 1), ("flax", 3), ("columns", 1)]
LIKE_FLOAT32 = 1e-6


def bits(tree):
    """Return the dtype, shape and bytes of each leaf, by its name."""
    arrays = {name: np.asarray(leaf) for name, leaf in by_name(tree).items()}
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


def with_odd_numbers(leaf, dtype):
    """Set two elements to -0 and a denormal, which a sum or a flush to zero would change."""
    array, tiny = np.array(leaf, dtype), jnp.finfo(dtype).smallest_subnormal
    array.flat[:2] = -0.0, -tiny
    return jnp.array(array)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("library", "num_layers"), STACKS)
def test_a_round_trip_is_the_identity_to_the_last_bit(library, num_layers, use_bias, dtype):
    export, load = FORMATS[library]
    network = {"activation": "relu", "reduction": "sum", "bias_init": BIAS}
    case = make_case(num_layers=num_layers, use_bias=use_bias, **network)
    params = jax.tree.map(lambda leaf: with_odd_numbers(leaf, dtype), case.params)
    rnn, loaded = load(export(case.rnn, params), **network)
    assert rnn == case.rnn
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert bits(loaded) == bits(params)


@pytest.mark.parametrize("library", FORMATS)
def test_biases_of_plus_zero_remain_biases(library):
    export, load = FORMATS[library]
    rnn = jaxrnn.RNN(5, 4, 2)
    params = rnn.init(jax.random.key(0))
    assert load(export(rnn, params))[0] == rnn
    assert bits(load(export(rnn, params))[1]) == bits(params)


@pytest.mark.parametrize("library", FORMATS)
def test_converted_parameters_are_copies(library):
    export, load = FORMATS[library]
    case = make_case()
    before, exported = bits(case.params), export(case.rnn, case.params)
    _, params = load(exported)
    for array in jax.tree.leaves(exported):
        array[...] = 7
    assert bits(case.params) == before
    assert bits(params) == before


@pytest.mark.parametrize("library", FORMATS)
def test_numpy_parameters_convert_as_those_of_jax_do(library):
    export, _ = FORMATS[library]
    case = make_case()
    exported = export(case.rnn, jax.tree.map(np.asarray, case.params))
    assert bits(exported) == bits(export(case.rnn, case.params))
    assert all(type(array) is np.ndarray for array in jax.tree.leaves(exported))
    contiguous = [array.flags.c_contiguous for array in jax.tree.leaves(exported)]
    assert all(contiguous)  # safetensors requires this


def test_both_biases_of_torch_are_added():
    case = make_case(num_layers=2)
    rnn_state, linear_state = to_torch(case.rnn, case.params)
    added = np.arange(8.0).reshape(2, 4)
    for l in range(2):
        rnn_state[f"bias_hh_l{l}"] += added[l]
    _, params = from_torch(rnn_state, linear_state)
    for before, after, b in zip(case.params.cells, params.cells, added, strict=True):
        assert before.b_h is not None
        assert_equal(after, before._replace(b_h=before.b_h + b))


def test_a_missing_bias_is_replaced_by_minus_zeros():
    case = make_case(num_layers=2)
    rnn_state, linear_state = to_torch(case.rnn, case.params)
    weights = {name: array for name, array in rnn_state.items() if "weight" in name}
    rnn, params = from_torch(rnn_state, {"weight": linear_state["weight"]})
    assert rnn.use_bias
    assert bits(params.cells) == bits(case.params.cells)
    assert bits(params.readout.b_y) == bits(np.full(2, -0.0))
    rnn, params = from_torch(weights, linear_state)
    assert rnn.use_bias
    assert bits(params.readout) == bits(case.params.readout)
    assert [bits(cell.b_h) for cell in params.cells] == [bits(np.full(4, -0.0))] * 2


def test_converting_float64_to_float32_gives_a_warning():
    case = make_case()
    columns = to_min_char_rnn(case.rnn, case.params)
    with jax.enable_x64(False), pytest.warns(UserWarning, match="jax_enable_x64"):
        _, params = from_min_char_rnn(columns)
    assert params.readout.W_hy.dtype == jnp.float32


def outputs(rnn: jaxrnn.RNN, params: jaxrnn.Params, case) -> Any:
    return rnn.apply(params, case.batch.inputs, case.h)


def outputs_of_torch(layers, linear, case):
    torch = pytest.importorskip("torch")
    inputs, h = (torch.from_numpy(np.array(a)) for a in (case.batch.inputs, case.h))
    with torch.no_grad():
        states, h_last = layers(inputs, h)
        return linear(states).numpy(), h_last.numpy()


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_torch_computes_the_same_with_our_parameters(num_layers, activation, use_bias):
    torch = pytest.importorskip("torch")
    network = {"num_layers": num_layers, "activation": activation, "use_bias": use_bias}
    case = make_case(dtype=jnp.float32, **network)
    layers = torch.nn.RNN(5, 4, num_layers, activation, use_bias, batch_first=True)
    linear = torch.nn.Linear(4, 2, use_bias)
    for module, state in zip((layers, linear), to_torch(case.rnn, case.params), strict=True):
        tensors = {name: torch.from_numpy(array) for name, array in state.items()}
        module.load_state_dict(tensors, strict=True)
    expected = outputs(case.rnn, case.params, case)
    assert_equal(outputs_of_torch(layers, linear, case), expected, LIKE_FLOAT32)


@pytest.mark.parametrize("linear_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_we_compute_the_same_with_parameters_of_torch(num_layers, activation, bias, linear_bias):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = torch.nn.RNN(5, 4, num_layers, activation, bias, batch_first=True)
    linear = torch.nn.Linear(4, 2, linear_bias)
    rnn, params = from_torch(
        layers.state_dict(), dict(linear.named_parameters()), activation=activation
    )
    assert rnn.use_bias == (bias or linear_bias)
    case = make_case(dtype=jnp.float32, num_layers=num_layers)
    expected = outputs_of_torch(layers, linear, case)
    assert_equal(outputs(rnn, params, case), expected, LIKE_FLOAT32)


def flax_modules(num_layers, activation, use_bias, **kwargs):
    linen: Any = pytest.importorskip("flax.linen")
    cell = linen.SimpleCell(4, activation_fn=getattr(jax.nn, activation), **kwargs)
    return [cell] * num_layers, linen.Dense(2, use_bias=use_bias, **kwargs)


def outputs_of_flax(cells, dense, variables, case):
    x, h_last = case.batch.inputs, []
    for cell, params, h in zip(cells, variables[0], case.h, strict=True):
        states = []
        for x_t in x.swapaxes(0, 1):
            h, y_t = cell.apply(params, h, x_t)
            states.append(y_t)
        x = jnp.stack(states, 1)
        h_last.append(h)
    return dense.apply(variables[1], x), jnp.stack(h_last)


def init_by_flax(cells, dense, key):
    keys = jax.random.split(key, len(cells) + 1)
    sizes = [5] + [4] * (len(cells) - 1)
    variables = [
        cell.init(k, jnp.zeros((1, 4)), jnp.zeros((1, size)))
        for cell, k, size in zip(cells, keys[1:], sizes, strict=True)
    ]
    return variables, dense.init(keys[0], jnp.zeros((1, 4)))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_flax_computes_the_same_with_our_parameters(num_layers, activation, use_bias):
    cells, dense = flax_modules(num_layers, activation, use_bias)
    network = {"num_layers": num_layers, "activation": activation, "use_bias": use_bias}
    case = make_case(dtype=jnp.float32, **network)
    variables = to_flax(case.rnn, case.params)
    drawn = init_by_flax(cells, dense, jax.random.key(0))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, drawn)
    expected = outputs(case.rnn, case.params, case)
    assert_equal(outputs_of_flax(cells, dense, variables, case), expected, LIKE_FLOAT32)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_we_compute_the_same_with_parameters_of_flax(num_layers, use_bias, frozen):
    cells, dense = flax_modules(num_layers, "relu", use_bias, bias_init=BIAS)
    variables = init_by_flax(cells, dense, jax.random.key(1))
    inputs = variables
    if frozen:  # and without the "params" level
        freeze = pytest.importorskip("flax.core").freeze
        inputs = [freeze(cell["params"]) for cell in inputs[0]], freeze(inputs[1]["params"])
    rnn, params = from_flax(*inputs, activation="relu")
    case = make_case(dtype=jnp.float32, num_layers=num_layers)
    expected = outputs_of_flax(cells, dense, variables, case)
    assert_equal(outputs(rnn, params, case), expected, LIKE_FLOAT32)


@pytest.mark.parametrize("use_bias", [True, False])
def test_min_char_rnn_computes_the_same_with_our_parameters(use_bias, tmp_path):
    case = make_case(use_bias=use_bias)
    arrays: dict[str, Any] = to_min_char_rnn(case.rnn, case.params)
    np.savez(tmp_path / "columns.npz", **arrays)
    with np.load(tmp_path / "columns.npz") as columns:
        Wxh, Whh, Why, bh, by = (columns[name] for name in ("Wxh", "Whh", "Why", "bh", "by"))
        rnn, params = from_min_char_rnn(columns)
    for row, inputs in enumerate(np.asarray(case.batch.inputs)):
        h, ys = np.asarray(case.h)[0, row][:, None], []
        for x in inputs:
            h = np.tanh(Wxh @ x[:, None] + Whh @ h + bh)
            ys.append(Why @ h + by)
        y, h_last = outputs(rnn, params, case)
        assert_equal((y[row], h_last[0, row]), (np.concatenate(ys, 1).T, h[:, 0]))


CASE = make_case()
STACK, LEAKY = make_case(num_layers=3), make_case(leak=0.5)
SIGMOID = make_case(activation="sigmoid")
STATE, LINEAR = to_torch(CASE.rnn, CASE.params)
CELLS, DENSE = to_flax(CASE.rnn, CASE.params)
COLUMNS = to_min_char_rnn(CASE.rnn, CASE.params)
NO_BIAS = {name: array for name, array in STATE.items() if "weight" in name}
TWO_LAYERS = STATE | {f"{name[:-1]}1": array for name, array in STATE.items()}
EYE = {"kernel": np.eye(4)}


def gates(number):
    return {name: np.concatenate([array] * number) for name, array in STATE.items()}


MISTAKES = [
    (lambda: to_torch(*LEAKY[:2]), "leak must be 1 for torch.nn.RNN, which has none, got 0.5"),
    (lambda: to_torch(*SIGMOID[:2]), "one of tanh, relu for torch.nn.RNN, got 'sigmoid'"),
    (lambda: to_torch(STACK.rnn, CASE.params), "params do not have the structure of this RNN's"),
    (lambda: to_flax(STACK.rnn, CASE.params), "params do not have the structure of this RNN's"),
    (lambda: to_flax(*LEAKY[:2]), "leak must be 1 for Flax's SimpleCell, which has none, got 0.5"),
    (
        lambda: to_min_char_rnn(*LEAKY[:2]),
        "leak must be 1 for min-char-rnn, which has none, got 0.5",
    ),
    (lambda: to_min_char_rnn(*STACK[:2]), "num_layers must be 1 for min-char-rnn, got 3"),
    (
        lambda: from_torch(STATE, LINEAR, activation="sigmoid"),
        "activation must be one of tanh, relu for torch.nn.RNN, got 'sigmoid'",
    ),
    (
        lambda: from_torch(STATE | {"weight_ih_l0_reverse": STATE["weight_ih_l0"]}, LINEAR),
        "rnn_state['weight_ih_l0_reverse'] is of a bidirectional RNN, which jaxrnn does not",
    ),
    (
        lambda: from_torch(STATE | {"weight_hr_l0": STATE["weight_ih_l0"]}, LINEAR),
        "rnn_state['weight_hr_l0'] is of an RNN with proj_size, which jaxrnn does not have",
    ),
    (
        lambda: from_torch(gates(3), LINEAR),
        "rnn_state['weight_hh_l0'] has shape (12, 4), the (3H, H) of a GRU, which jaxrnn",
    ),
    (
        lambda: from_torch(gates(4), LINEAR),
        "rnn_state['weight_hh_l0'] has shape (16, 4), the (4H, H) of an LSTM, which jaxrnn",
    ),
    (
        lambda: from_torch({}, LINEAR),
        "rnn_state['weight_ih_l0'] is missing: hand over the state_dict() of a torch.nn.RNN, and",
    ),
    (
        lambda: from_torch(STATE | {"weight_ih_l2": STATE["weight_ih_l0"]}, LINEAR),
        "rnn_state['weight_ih_l1'] is missing: hand over",
    ),
    (
        lambda: from_torch(NO_BIAS | {"bias_ih_l0": STATE["bias_ih_l0"]}, LINEAR),
        "rnn_state['bias_hh_l0'] is missing: hand over",
    ),
    (
        lambda: from_torch(STATE | {"scale": STATE["bias_ih_l0"]}, LINEAR),
        "rnn_state['scale'] has no place here: hand over the state_dict() of a torch.nn.RNN, and",
    ),
    (
        lambda: from_torch(STATE, {"weight": np.zeros((2, 9))}),
        "linear_state['weight'] has shape (2, 9), but needs (O, H) = (2, 4): "
        "rnn_state['weight_ih_l0'] has shape (4, 5)",
    ),
    (
        lambda: from_torch(STATE | {"weight_hh_l0": np.zeros((4, 3))}, LINEAR),
        "rnn_state['weight_hh_l0'] has shape (4, 3), but needs (H, H) = (4, 4): rnn_state['weight",
    ),
    (
        lambda: from_torch(TWO_LAYERS, LINEAR),
        "rnn_state['weight_ih_l1'] has shape (4, 5), but needs (H, H) = (4, 4): rnn_state['weight",
    ),
    (
        lambda: from_torch(STATE, LINEAR | {"bias": np.zeros(3)}),
        "linear_state['bias'] has shape (3,), but needs (O) = (2,): linear_state['weight'] has",
    ),
    (
        lambda: from_torch(STATE, {"weight": np.zeros((2, 4), np.float32)}),
        "linear_state['weight'] has dtype float32, but rnn_state['weight_ih_l0'] has float64",
    ),
    (
        lambda: from_torch(STATE, {"weight": np.zeros((2, 4), int)}),
        "linear_state['weight'] has dtype int64, but parameters are floats: convert it",
    ),
    (
        lambda: from_torch(STATE, {"weight": [[1.0, 2.0], [3.0]]}),
        "linear_state['weight'] cannot be read by NumPy: ",
    ),
    (
        lambda: from_torch(STATE, LINEAR, hidden_size=9),
        "hidden_size must be left out, as it is known to be 4, got 9",
    ),
    (
        lambda: from_flax(CELLS, DENSE, leak=0.5),
        "leak must be left out, as it is known to be 1.0, got 0.5",
    ),
    (
        lambda: from_flax([], DENSE),
        "cells[0]['i']['kernel'] is missing: hand over a list of the variables of one SimpleCell",
    ),
    (
        lambda: from_flax([{"params": {"i": EYE}}], DENSE),
        "cells[0]['h']['kernel'] is missing: hand over",
    ),
    (
        lambda: from_flax([{"i": EYE, "h": EYE | {"bias": np.ones(4)}}], DENSE),
        "cells[0]['h']['bias'] has no place here: hand over a list of the variables of one",
    ),
    (
        lambda: from_flax([{"i": {"kernel": np.ones((4, 5))}, "h": EYE}], DENSE),
        "cells[0]['h']['kernel'] has shape (4, 4), but needs (H, H) = (5, 5): cells[0]['i']['ker",
    ),
    (
        lambda: from_min_char_rnn({name: COLUMNS[name] for name in ("Wxh", "Whh", "Why", "by")}),
        "columns['bh'] is missing: hand over Wxh, Whh, Why, bh and by",
    ),
    (
        lambda: from_min_char_rnn(COLUMNS | {"bh": COLUMNS["bh"][:, 0]}),
        "columns['bh'] has shape (4,), but needs (H, 1)",
    ),
    (
        lambda: from_min_char_rnn(COLUMNS | {"by": np.ones((2, 3))}),
        "columns['by'] has shape (2, 3), but needs (O, 1) = (2, 1): it is a column",
    ),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_a_mistake_raises_an_error_of_one_line(mistake, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        mistake()
    assert "\n" not in str(raised.value)
