"""Tests of checkpoints: a load returns exactly what was saved, or raises a clear error."""

import errno
import json
import os
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import forged, make_case

import jaxrnn
from jaxrnn import atomic, gradients
from jaxrnn.lm.store import checkpoint

RNG = np.random.default_rng(0)


def state_of(rule=gradients.uoro, optimizer=None):
    case = make_case(ids=True, dtype=jnp.float32)
    return jaxrnn.init_train_state(
        rule(case.rnn), optimizer or optax.adam(1e-3), case.params, case.h, key=jax.random.key(3)
    )


def bits(tree):
    def of_leaf(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(leaf) if key else leaf)
        return (data.dtype, data.shape, data.tobytes())

    return jax.tree.structure(tree), [of_leaf(leaf) for leaf in jax.tree.leaves(tree)]


def shapes(tree):
    return jax.eval_shape(lambda: tree)


def test_a_train_state_comes_back_to_the_last_bit(tmp_path):
    """With the optimiser, a rule's memory and keys, -0, denormal and non-finite numbers."""
    state = state_of()
    special = jnp.array([-0.0, 1e-45, jnp.nan, jnp.inf], jnp.float32)
    state = state._replace(carry=state.carry._replace(h=special))
    file = tmp_path / "a.safetensors"
    checkpoint.save(file, state, {"step": 7, "said": "naïve \ud800"})
    loaded = checkpoint.load(file)
    assert loaded.about == {"format": checkpoint.FORMAT, "step": 7, "said": "naïve \ud800"}
    assert bits(checkpoint.restore(loaded, shapes(state))) == bits(state)
    part = checkpoint.restore(loaded, shapes(state.params), "params")
    assert bits(part) == bits(state.params)


def test_equal_states_make_equal_files(tmp_path):
    for name in "ab":
        checkpoint.save(tmp_path / name, state_of(), {"step": 7})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.slow
def test_a_file_that_is_cut_off_or_changed_anywhere_is_never_loaded(tmp_path):
    """Cuts to every 64th length, flips 2,000 random bits and every bit of the first 300 bytes."""
    file, damaged = tmp_path / "good", tmp_path / "damaged"
    checkpoint.save(file, state_of(), {"step": 7})
    content = file.read_bytes()
    changes = [content[:length] for length in range(0, len(content), 64)]
    flips = [(int(RNG.integers(len(content))), 1 << int(RNG.integers(8))) for _ in range(2000)]
    flips += [(position, 1 << bit) for position in range(300) for bit in range(8)]
    for position, bit in flips:
        changed = bytearray(content)
        changed[position] ^= bit
        changes.append(bytes(changed))
    for change in changes:
        damaged.write_bytes(change)
        with pytest.raises(checkpoint.DamagedError, match="is damaged"):
            checkpoint.load(damaged)
    damaged.write_bytes(content)
    assert checkpoint.load(damaged).about["step"] == 7


FORGERIES = {
    "no JSON": ("{", "has no valid metadata"),
    "no object": ("[1]", "has no valid metadata"),
    "no format": ({"step": 1}, "has no valid metadata"),
    "nested too deeply": ("[" * 100_000, "has no valid metadata"),
    "a newer format": ({"format": 2}, "made by a newer jaxrnn, in format 2, and this one reads"),
    "an odd format": ({"format": "x"}, "made by a newer jaxrnn, in format 'x'"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_file_is_refused_in_one_line(forgery, tmp_path):
    about, message = FORGERIES[forgery]
    text = about if isinstance(about, str) else json.dumps(about)
    forged(tmp_path / "a", {"x": np.zeros(2)}, text)
    with pytest.raises(ValueError, match=message) as raised:
        checkpoint.load(tmp_path / "a")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("header", [2**63 - 1, checkpoint.MOST_HEADER + 1, 0])
def test_an_impossible_header_length_is_refused_before_anything_is_allocated(header, tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.write(header.to_bytes(8, "little"))
        file.truncate(2**40)  # a sparse file of one terabyte
    assert peak_memory(tmp_path / "a") < 2**16


def test_refusing_a_damaged_file_takes_less_memory_than_its_size(tmp_path):
    checkpoint.save(tmp_path / "a", {"weights": np.zeros(2**21)}, {})
    with (tmp_path / "a").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert peak_memory(tmp_path / "a") < 2**20


def peak_memory(damaged) -> int:
    """Return the peak number of bytes that are allocated while a damaged file is loaded."""
    tracemalloc.start()
    try:
        checkpoint.load(damaged)
        raise AssertionError("a damaged file was loaded")
    except checkpoint.DamagedError:
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_array_that_does_not_fit_raises_an_error_that_names_it(tmp_path):
    file, state = tmp_path / "a", state_of()
    checkpoint.save(file, state, {})
    loaded = checkpoint.load(file)
    wrong = {
        "holds no carry.memory[0].influence": state_of(gradients.rtrl),
        "holds no opt_state[0].trace": state_of(optimizer=optax.sgd(0.1, 0.9)),
        "carry.h in .* is float32 of shape": state._replace(
            carry=state.carry._replace(h=state.step)
        ),
        "step in .* is int32 of shape .* but float64 of": state._replace(step=jnp.zeros(())),
    }
    for message, other in wrong.items():
        with pytest.raises(ValueError, match=message.replace("[", r"\[")):
            checkpoint.restore(loaded, shapes(other))


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "a"
    checkpoint.save(file, state_of(), {"step": 1})
    before = file.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full if call == "fsync" else lambda a, b: full(a))
            with pytest.raises(OSError, match="No space left"):
                checkpoint.save(file, state_of(), {"step": 2})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_synced_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    """The file is synced, then renamed, and then its folder is synced."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1]
        )
    atomic.write(tmp_path / "a", "text")
    assert calls == ["fsync", "replace", "fsync"]
    assert (tmp_path / "a").read_text() == "text"


def test_a_file_of_too_many_arrays_is_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_ARRAYS", 20)
    forged(tmp_path / "a", {f"x{i}": np.zeros(1) for i in range(21)}, "{}")
    with pytest.raises(checkpoint.DamagedError, match="holds more than 20 arrays"):
        checkpoint.load(tmp_path / "a")
