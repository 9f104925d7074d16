"""Networks, batches and comparisons that the tests share: small, and no two sizes alike."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save as serialize

import jaxrnn

EXACT = 1e-12
BIAS = jax.nn.initializers.normal(0.3)  # one function, so that equal networks compile once


class Case(NamedTuple):
    rnn: jaxrnn.RNN
    params: jaxrnn.Params
    h: jax.Array
    batch: jaxrnn.Batch


def make_case(
    *, B=3, T=6, I=5, H=4, O=2, ids=False, mask=False, seed=0, dtype=jnp.float64, **network
) -> Case:
    """Draw a network with weights of ordinary size, a state that is not zero, and a batch."""
    keys = iter(jax.random.split(jax.random.key(seed), 6))
    rnn = jaxrnn.RNN(I, H, O, **({"reduction": "sum", "bias_init": BIAS} | network))
    params = rnn.init(next(keys), dtype)
    h = 0.5 * jax.random.normal(next(keys), (rnn.num_layers, B, H), dtype)
    inputs_key, targets_key, mask_key = next(keys), next(keys), next(keys)
    if ids:
        inputs = jax.random.randint(inputs_key, (B, T), 0, I)
    else:
        inputs = jax.random.normal(inputs_key, (B, T, I), dtype)
    if rnn.loss_function == "softmax_cross_entropy":
        targets = jax.random.randint(targets_key, (B, T), 0, O)
    else:
        targets = jax.random.normal(targets_key, (B, T, O), dtype)
    weights = None
    if mask:  # zeros, and fractions
        weights = jnp.maximum(0, jax.random.uniform(mask_key, (B, T), dtype, -0.6)).at[0, 0].set(1)
    return Case(rnn, params, h, jaxrnn.Batch(inputs, targets, weights))


def gradient(algorithm: jaxrnn.GradientAlgorithm, case: Case) -> tuple[Any, jaxrnn.Params]:
    """Compute (loss, carry) and the gradient under jit, from the case's state."""
    carry = algorithm.init(case.params, case.h, key=jax.random.key(7))
    return jax.jit(algorithm.value_and_grad)(case.params, carry, case.batch)


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
