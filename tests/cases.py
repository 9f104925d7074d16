"""Networks, batches and comparisons that the tests share: small, and no two sizes alike."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save as serialize

import jaxrnn
from jaxrnn.lm.store import directory

EXACT = 1e-12
DEFAULT_INIT = tuple(
    getattr(jaxrnn.RNN, name) for name in ("input_init", "recurrent_init", "readout_init")
)
BIAS = jax.nn.initializers.normal(0.3)  # one function, so that equal networks compile once


# Without jit every operation of these would be a program of its own.
apply = jax.jit(jaxrnn.RNN.apply, static_argnums=0)
loss_of = jax.jit(jaxrnn.RNN.loss, static_argnums=0)


class Case(NamedTuple):
    rnn: jaxrnn.RNN
    params: jaxrnn.Params
    h: jax.Array
    batch: jaxrnn.Batch


@cache
def make_case(
    *, B=3, T=6, I=5, H=4, O=2, ids=False, mask=False, seed=0, dtype=jnp.float64, **network
) -> Case:
    """Draw a network with weights of ordinary size, a state that is not zero, and a batch.

    Everything is drawn in NumPy, which compiles nothing.
    """
    rng = np.random.default_rng((seed, 7))
    rnn = jaxrnn.RNN(I, H, O, **({"reduction": "sum", "bias_init": BIAS} | network))
    params = draw_params(rnn, rng, dtype)
    h = 0.5 * rng.normal(size=(rnn.num_layers, B, H))
    inputs = rng.integers(0, I, (B, T)) if ids else rng.normal(size=(B, T, I))
    if rnn.loss_function == "softmax_cross_entropy":
        targets = rng.integers(0, O, (B, T))
    else:
        targets = rng.normal(size=(B, T, O))
    weights = None
    if mask:  # zeros, and fractions
        weights = np.maximum(0, rng.uniform(-0.6, 1, (B, T)))
        weights[0, 0] = 1

    def array(leaf):
        return jnp.asarray(leaf if leaf.dtype.kind == "i" else leaf.astype(dtype))

    return Case(rnn, params, array(h), jax.tree.map(array, jaxrnn.Batch(inputs, targets, weights)))


def draw_params(rnn: jaxrnn.RNN, rng: np.random.Generator, dtype: Any) -> jaxrnn.Params:
    """Draw parameters as the defaults of `RNN.init` do, or by it where a network has others."""
    if (rnn.input_init, rnn.recurrent_init, rnn.readout_init) != DEFAULT_INIT:
        return rnn.init(jax.random.key(0), dtype)
    H = rnn.hidden_size

    def leaf(*shape, scale=None):
        scale = shape[0] ** -0.5 if scale is None else scale
        return jnp.asarray((scale * rng.normal(size=shape)).astype(dtype))

    def bias(size):
        return leaf(size, scale=0.3) if rnn.use_bias else None

    cells = []
    for fan_in in [rnn.input_size] + [H] * (rnn.num_layers - 1):
        orthogonal = np.linalg.qr(rng.normal(size=(H, H)))[0]
        W_hh = jnp.asarray(orthogonal.astype(dtype))
        cells.append(jaxrnn.Cell(leaf(fan_in, H), W_hh, bias(H)))
    readout = jaxrnn.Readout(leaf(H, rnn.output_size), bias(rnn.output_size))
    return jaxrnn.Params(tuple(cells), readout)


def gradient(algorithm: jaxrnn.GradientAlgorithm, case: Case) -> tuple[Any, jaxrnn.Params]:
    """Compute (loss, carry) and the gradient, from the case's state, in one compiled program."""
    return _from_the_start(algorithm)(case.params, case.h, case.batch)


@cache
def _from_the_start(algorithm: jaxrnn.GradientAlgorithm) -> Callable[..., Any]:
    @jax.jit
    def value_and_grad(params, h, batch):
        carry = algorithm.init(params, h, key=jax.random.key(7))
        return algorithm.value_and_grad(params, carry, batch)

    return value_and_grad


def gradient_for_draws(
    build: Callable[..., jaxrnn.GradientAlgorithm], case: Case, table: jax.Array
) -> jaxrnn.Params:
    """Compute the gradient of a case as if its random numbers were those of a table.

    The table is (draws, T, numbers of a step); the gradient's leaves begin with the draws.
    """

    def grads(steps):
        algorithm = build(case.rnn, noise=lambda key, step, dtype: steps[step].astype(dtype))
        carry = algorithm.init(case.params, case.h, key=jax.random.key(0))
        return algorithm.value_and_grad(case.params, carry, case.batch)[1]

    return jax.jit(jax.vmap(grads))(jnp.asarray(table))


def relative_error(actual: Any, expected: Any) -> float:
    """Return the largest ‖a - b‖ / ‖b‖ over the leaves; infinite where structures differ."""
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        return float("inf")

    def leaf_error(a, b):
        if jnp.issubdtype(getattr(a, "dtype", float), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
        scale = np.linalg.norm(b)
        return np.linalg.norm(a - b) / (scale if scale > 0 else 1.0)

    errors = jax.tree.leaves(jax.tree.map(leaf_error, actual, expected))
    return float(np.max(errors)) if np.isfinite(errors).all() else float("inf")


def assert_equal(actual: Any, expected: Any, tolerance: float = EXACT) -> None:
    """Assert that two pytrees are equal, each leaf relative to its norm."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.1e}, above {tolerance:.0e}"


def chunks(batch: jaxrnn.Batch, *lengths: int) -> list[jaxrnn.Batch]:
    """Cut a batch along time into chunks of these lengths."""
    ends = np.cumsum(lengths)
    assert ends[-1] == batch.inputs.shape[1]
    return [
        jax.tree.map(lambda leaf, s=slice(end - length, end): leaf[:, s], batch)
        for length, end in zip(lengths, ends, strict=True)
    ]


def forged(file: Path, arrays: dict[str, np.ndarray], about: str) -> None:
    """Write a checkpoint with a right checksum, that says whatever somebody wants it to say."""
    content = serialize(arrays, {"jaxrnn": f"{'0' * 64} {about}"})
    place = content.index(b'"jaxrnn":"') + len('"jaxrnn":"')
    checksum = hashlib.sha256(content).hexdigest().encode()
    file.write_bytes(content[:place] + checksum + content[place + 64 :])


def timeless(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run without the times, which no two runs share."""
    return [{**each, "time": 0} for each in directory.metrics(run)]
