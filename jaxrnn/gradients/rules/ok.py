"""Optimal Kronecker-sum approximation of RTRL (Benzing et al. 2019, alg. 1 and 2, thm. 1).

The influence as a sum of r Kronecker products, M_t ≈ Σ_k u_k ⊗ A_k. A step makes r + 1 of them,

    Σ_k u_k ⊗ A_k J_t  +  s_t ⊗ diag(g_t)

and the r that replace them are, of all random ones with that mean, those of least variance.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import (
    Noise,
    influence_rule,
    random_signs,
    read_by,
    read_size,
)
from jaxrnn.gradients.engine.linalg import _eigenvectors, _orthonormal
from jaxrnn.network import checks, layer
from jaxrnn.network.rnn import RNN


class KroneckerSum(NamedTuple):
    """M[p, j, i] ≈ Σ_k u[k, p] A[k, j, i]."""

    u: Float[Array, "r N"]
    A: Float[Array, "r H H"]


def ok(rnn: RNN, rank: int = 1, *, noise: Noise | None = None) -> GradientAlgorithm:
    """Carry `rank` Kronecker products; O(B r H³) per step, O(B r H (I + H)) memory.

    Unbiased for one layer, with the least variance that so many products can have; `init` needs a
    key. In a stack it is applied layer by layer.

    Args:
        rnn: the network.
        rank: r, at least 1.
        noise: (key, step, dtype) -> the signs of a step, (r + 1,); random ones if not given.

    Raises:
        ValueError: if rank is below 1 or not a whole number; by init, if it gets no key.
    """
    checks.whole("rank", rank, 1)

    def init(cell):
        H, dtype = len(cell.W_hh), cell.W_hh.dtype
        return KroneckerSum(
            jnp.zeros((rank, read_size(cell)), dtype), jnp.zeros((rank, H, H), dtype)
        )

    def advance(cell, past, tape, signs):
        pushed = layer.push_forward(cell, tape.gain, past.A, rnn.leak)
        u = jnp.concatenate([past.u, read_by(cell, tape)[None]])
        A = jnp.concatenate([pushed, jnp.diag(tape.gain)[None]])
        u, flat = reduce_rank(u, A.reshape(rank + 1, -1), signs)
        return KroneckerSum(u, flat.reshape(past.A.shape))

    def read(influence, error):
        return jnp.einsum("bkp,bkji,bi->pj", influence.u, influence.A, error)

    return influence_rule(rnn, init, advance, read, noise=noise or random_signs(rank + 1))


def reduce_rank(
    u: Float[Array, "n N"], v: Float[Array, "n M"], signs: Float[Array, " n"]
) -> tuple[Float[Array, "m N"], Float[Array, "m M"]]:
    """Replace Σ_k u_k ⊗ v_k by one product less, with the same mean over the signs.

    Written as Σ_k d_k p_k ⊗ q_k with orthonormal p and q, the largest d stay as they are; the
    others, too even to drop one, are mixed by an orthonormal Z with random signs, whose missing
    column z has z_k² = 1 - d_k (number - 1) / Σ d.
    """
    n, least = len(u), jnp.finfo(u.dtype).tiny
    p, v = _orthonormal(u, v)
    W = _eigenvectors(v @ v.T)
    p, v = W.T @ p, W.T @ v
    d = jnp.linalg.norm(v, axis=1)
    order = jnp.argsort(-d)
    p, d, q = p[order], d[order], v[order] / jnp.maximum(d[order], least)[:, None]
    d = jnp.where(d > n * jnp.finfo(d.dtype).eps * d[0], d, 0)  # a rounding's root is no rounding

    tail = jnp.cumsum(d[::-1])[::-1]  # Σ of d_k and all after it
    kept = jnp.argmax(jnp.arange(n - 1, 0, -1, dtype=d.dtype) * d[:-1] <= tail[:-1])
    number, total, k = (n - 1 - kept).astype(d.dtype), tail[kept], jnp.arange(n)
    z = jnp.where(k < kept, 0, jnp.sqrt(jnp.maximum(0, 1 - d * number / jnp.maximum(total, least))))
    last = (k == n - 1).astype(z.dtype)
    mirror = z + last  # of the Householder reflection that takes the last axis to -z
    Z = jnp.eye(n, dtype=d.dtype) - 2 * jnp.outer(mirror, mirror) / (mirror @ mirror)
    sizes = jnp.sqrt(jnp.where(k < kept, d, total / number))
    mixed = (signs[:, None] * Z * sizes[None])[:, :-1]
    return mixed.T @ p, mixed.T @ q
