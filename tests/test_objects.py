"""Tests of what the public objects show of themselves, and of parameters in files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal, make_case
from safetensors.numpy import save_file

import jaxrnn
from jaxrnn import gradients, lm

NETWORKS = [{}, {"num_layers": 3}, {"num_layers": 2, "use_bias": False}]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_saved_parameters_come_back_to_the_last_bit(network, tmp_path):
    case = make_case(**network)
    for path in (tmp_path / "a.safetensors", str(tmp_path / "b")):
        jaxrnn.save(path, jax.tree.map(jnp.zeros_like, case.params))  # is replaced
        jaxrnn.save(path, case.params)
        params = jaxrnn.load(path)
        assert jax.tree.structure(params) == jax.tree.structure(case.params)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, case.params)))
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), case.params)
    jaxrnn.save(tmp_path / "small", small)
    loaded = jaxrnn.load(tmp_path / "small")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded, small)))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b", "small"]


def test_a_file_that_holds_no_parameters_is_refused_in_one_line(tmp_path):
    case, file = make_case(), tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        jaxrnn.load(file)
    jaxrnn.save(file, case.params)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is no safetensors file, or it is damaged: [^\n]+$"):
        jaxrnn.load(file)
    jaxrnn.save(file, case.params)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its parameters do not have the SHA-256 in"):
        jaxrnn.load(file)
    save_file({"cells[0].W_hh": np.ones((4, 4))}, file)
    with pytest.raises(ValueError, match=r"holds no cells\[0\].W_xh, so it was not written by"):
        jaxrnn.load(file)
    save_file({"params.readout.W_hy": np.ones((4, 4))}, file)
    with pytest.raises(ValueError, match=r"holds params.readout.W_hy, .* with jaxrnn.lm.load$"):
        jaxrnn.load(file)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_number_of_parameters_is_that_of_the_leaves(network):
    case = make_case(**network)
    number = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    assert case.rnn.num_params == number
    assert repr(case.rnn).endswith(f"# {number:,} parameters")
    assert f"Params: {number} numbers of float64" in repr(case.params)


def test_the_states_of_all_layers_give_the_outputs():
    case = make_case(num_layers=2, leak=0.6)
    lengths = np.array([6, 2, 0])
    states = case.rnn.states(case.params, case.batch.inputs, case.h, lengths)
    outputs, h_last = case.rnn.apply(case.params, case.batch.inputs, case.h, lengths)
    W_hy, b_y = case.params.readout
    assert b_y is not None
    assert_equal(states[-1] @ W_hy + b_y, outputs)
    assert_equal(states[:, :, -1], h_last)
    zeros = case.rnn.states(case.params, case.batch.inputs)
    assert_equal(zeros, case.rnn.states(case.params, case.batch.inputs, 0 * case.h))


def test_what_is_printed_is_short_and_has_no_arrays():
    """In a console ten lines of 100 columns at most, and for notebooks a table in HTML."""
    rnn = jaxrnn.RNN(5, 20, 3, num_layers=9)
    case = make_case(I=5, H=20, O=3, num_layers=9, T=7)
    text = lm.Text.from_string("to be or not to be " * 9)
    run = lm.prepare(text, lm.Options(batch_size=2, length=8, hidden_size=4, steps=3))
    one = make_case(B=1)
    flow = jaxrnn.gradient_flow(case.rnn, case.params, case.batch)
    report = jaxrnn.verify(gradients.truncated_bptt(one.rnn, 1), one.rnn, one.params, one.batch)
    rules = {"bptt": gradients.bptt(one.rnn)}
    table = jaxrnn.compare(rules, one.rnn, one.params, one.batch, key=jax.random.key(0), rounds=1)
    walk = jaxrnn.walkthrough(one.rnn, one.params, one.batch, one.h)
    (*_, block) = lm.train(run)
    shown = [rnn, case.params, one.params, report, flow, walk, run, lm.to_model(run), table]
    shown += [run.state, block]
    for thing in shown:
        lines = repr(thing).splitlines()
        assert 1 <= len(lines) <= 10, thing
        assert "array" not in repr(thing)
        assert all(len(line) <= 100 for line in lines) or thing is report, thing
    for thing in (report, table, flow, walk):
        page = thing._repr_html_()
        assert page.startswith("<table><tr><th>")
        assert page.count("<tr>") == page.count("</tr>") > 1
    assert repr(rnn) == (
        "RNN(input_size=5, hidden_size=20, output_size=3, num_layers=9)  # 7,143 parameters"
    )


def test_a_pytree_of_other_things_than_arrays_can_be_printed():
    case = make_case()
    for tree in (
        jax.tree.map(lambda leaf: leaf.shape[0], case.params),
        jax.eval_shape(case.rnn.init, jax.random.key(0)),
        jax.tree.map(lambda leaf: None, case.params),
        jaxrnn.Params((), jaxrnn.Readout(None, None)),  # pyright: ignore[reportArgumentType]
    ):
        assert repr(tree).startswith("Params")
