"""Optimal Kronecker-sum approximation of RTRL (Benzing et al. 2019, alg. 1 and 2, thm. 1).

The influence is estimated by a sum of r Kronecker products, M_t ≈ Σ_k u_k ⊗ A_k. One step gives
r + 1 products,

    Σ_k u_k ⊗ A_k J_t  +  s_t ⊗ diag(g_t)

They are replaced by r random products with the same mean and the least possible variance.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import (
    Noise,
    influence_rule,
    random_signs,
    weight_inputs,
    weight_inputs_size,
)
from jaxrnn.gradients.engine.linalg import _eigenvectors, _orthonormal
from jaxrnn.network import checks, layer
from jaxrnn.network.rnn import RNN


class KroneckerSum(NamedTuple):
    """The factors of an influence: M[p, j, i] ≈ Σ_k u[k, p] A[k, j, i]."""

    u: Float[Array, "r N"]
    A: Float[Array, "r H H"]


def ok(rnn: RNN, rank: int = 1, *, noise: Noise | None = None) -> GradientAlgorithm:
    """Build the optimal Kronecker-sum approximation of RTRL, with `rank` Kronecker products.

        M_t ≈ Σ_k u_k ⊗ A_k,        k = 1 … rank
        dL/dθ ≈ Σ_t Σ_k u_k ⊗ (A_k e_t)

    Each step computes the rank + 1 products Σ_k u_k ⊗ A_k J_t + s_t ⊗ diag(g_t), where
    s_t = (x_t, h_{t-1}, 1) is the input of the weights and g_t = leak φ'(a_t). It replaces them by
    `rank` random products with the same mean, of the least variance that a step allows.

    Unbiased for one layer: the mean over the signs is the gradient of `rtrl`. In a stack the rule
    is applied layer by layer and is approximate, as `rtrl`.

    Cost per layer: O(B r H³) operations per step and O(B r H (I + H)) memory, with r the rank.

    Paper: Benzing et al. 2019, algorithms 1 and 2, theorem 1.

    Args:
        rnn: the network.
        rank: the number of Kronecker products, at least 1.
        noise: (key, step, dtype) -> the signs of a step, (rank + 1,). The default draws random
            signs.

    Raises:
        ValueError: if rank is below 1 or not a whole number; by init, if it gets no key.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.ok(rnn, rank=2)
    >>> carry = rule.init(params, h, key=jax.random.key(1))
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, carry, batch)
    >>> carry.memory[0].influence.A.shape  # (B, rank, H, H)
    (3, 2, 4, 4)
    """
    checks.whole("rank", rank, 1)

    def init(cell):
        H, dtype = len(cell.W_hh), cell.W_hh.dtype
        return KroneckerSum(
            jnp.zeros((rank, weight_inputs_size(cell)), dtype), jnp.zeros((rank, H, H), dtype)
        )

    def advance(cell, past, tape, signs):
        pushed = layer.push_forward(cell, tape.gain, past.A, rnn.leak)
        u = jnp.concatenate([past.u, weight_inputs(cell, tape)[None]])
        A = jnp.concatenate([pushed, jnp.diag(tape.gain)[None]])
        u, flat = reduce_rank(u, A.reshape(rank + 1, -1), signs)
        return KroneckerSum(u, flat.reshape(past.A.shape))

    def read(influence, error):
        return jnp.einsum("bkp,bkji,bi->pj", influence.u, influence.A, error)

    return influence_rule(rnn, init, advance, read, noise=noise or random_signs(rank + 1))


def reduce_rank(
    u: Float[Array, "n N"], v: Float[Array, "n M"], signs: Float[Array, " n"]
) -> tuple[Float[Array, "m N"], Float[Array, "m M"]]:
    """Replace the n products Σ_k u_k ⊗ v_k by n - 1 with the same mean over the signs.

    First the sum is written as Σ_k d_k p_k ⊗ q_k with orthonormal p and q (a singular value
    decomposition). The products with the largest d_k are kept unchanged. The m + 1 others are mixed
    into m products by the columns of an orthonormal matrix Z, with random signs. The column z that
    is left out of Z has z_k² = 1 - m d_k / Σ d, with the sum over these m + 1 products (Benzing et
    al. 2019, theorem 1).

    Args:
        u: left factors, (n, N).
        v: right factors, (n, M).
        signs: ±1, (n,).

    Returns:
        The left factors (n - 1, N) and the right factors (n - 1, M).
    """
    n, least = len(u), jnp.finfo(u.dtype).tiny
    p, v = _orthonormal(u, v)
    W = _eigenvectors(v @ v.T)
    p, v = W.T @ p, W.T @ v
    d = jnp.linalg.norm(v, axis=1)
    order = jnp.argsort(-d)
    p, d, q = p[order], d[order], v[order] / jnp.maximum(d[order], least)[:, None]
    # Set rounding errors in d to 0: the factors contain √d, which is large for a rounding error.
    d = jnp.where(d > n * jnp.finfo(d.dtype).eps * d[0], d, 0)

    tail = jnp.cumsum(d[::-1])[::-1]  # Σ_{l ≥ k} d_l
    kept = jnp.argmax(jnp.arange(n - 1, 0, -1, dtype=d.dtype) * d[:-1] <= tail[:-1])
    number, total, k = (n - 1 - kept).astype(d.dtype), tail[kept], jnp.arange(n)
    z = jnp.where(k < kept, 0, jnp.sqrt(jnp.maximum(0, 1 - d * number / jnp.maximum(total, least))))
    last = (k == n - 1).astype(z.dtype)
    mirror = z + last  # the Householder reflection that maps the last axis to -z
    Z = jnp.eye(n, dtype=d.dtype) - 2 * jnp.outer(mirror, mirror) / (mirror @ mirror)
    sizes = jnp.sqrt(jnp.where(k < kept, d, total / number))
    mixed = (signs[:, None] * Z * sizes[None])[:, :-1]
    return mixed.T @ p, mixed.T @ q
