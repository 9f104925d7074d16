"""Optimal Kronecker-sum approximation of RTRL (Benzing et al. 2019, alg. 1 and 2, thm. 1).

The influence as a sum of r Kronecker products, M_t ≈ Σ_k u_k ⊗ A_k. A step makes r + 1 of them,

    Σ_k u_k ⊗ A_k J_t  +  s_t ⊗ diag(g_t)

and the r that replace them are, of all random ones with that mean, those of least variance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import checks, layer
from jaxrnn.gradients.base import GradientAlgorithm, layer_by_layer, lift
from jaxrnn.gradients.forward import ForwardRule, forward, read_by, read_size
from jaxrnn.network import RNN


class KroneckerSum(NamedTuple):
    """M[p, j, i] ≈ Σ_k u[k, p] A[k, j, i]."""

    u: Float[Array, "r N"]
    A: Float[Array, "r H H"]


def ok(rnn: RNN, rank: int = 1) -> GradientAlgorithm:
    """Carry `rank` Kronecker products; O(B r H³) per step, O(B r H (I + H)) memory.

    Unbiased for one layer, with the least variance that so many products can have; `init` needs a
    key. In a stack it is applied layer by layer.

    Args:
        rnn: the network.
        rank: r, at least 1.

    Raises:
        ValueError: if rank is below 1 or not a whole number; by init, if it gets no key.
    """
    checks.whole("rank", rank, 1)

    def init(cell):
        H, dtype = len(cell.W_hh), cell.W_hh.dtype
        return KroneckerSum(
            jnp.zeros((rank, read_size(cell)), dtype), jnp.zeros((rank, H, H), dtype)
        )

    def advance(cell, past, tape, key):
        pushed = layer.push_forward(cell, tape.gain, past.A, rnn.leak)
        u = jnp.concatenate([past.u, read_by(cell, tape)[None]])
        A = jnp.concatenate([pushed, jnp.diag(tape.gain)[None]])
        signs = jax.random.rademacher(key, (rank + 1,), tape.gain.dtype)
        u, flat = reduce_rank(u, A.reshape(rank + 1, -1), signs)
        return KroneckerSum(u, flat.reshape(past.A.shape))

    def read(influence, error):
        return jnp.einsum("kp,kj->pj", influence.u, influence.A @ error)

    return lift(rnn, layer_by_layer(forward(ForwardRule(init, advance, read, draws=True))))


def reduce_rank(
    u: Float[Array, "n N"], v: Float[Array, "n M"], signs: Float[Array, " n"]
) -> tuple[Float[Array, "m N"], Float[Array, "m M"]]:
    """Replace Σ_k u_k ⊗ v_k by one product less, with the same mean over the signs.

    In the bases of the singular vectors the sum is diag(d). Its largest values stay; the others,
    too even to drop one, are mixed by an orthonormal Z with random signs, whose missing column z
    has z_i² = 1 - d_i (number - 1) / Σ d.
    """
    n, least = len(u), jnp.finfo(u.dtype).tiny
    (Q_u, R_u), (Q_v, R_v) = jnp.linalg.qr(_tall(u.T)), jnp.linalg.qr(_tall(v.T))
    P, d, Q = jnp.linalg.svd(R_u @ R_v.T)
    d = jnp.where(
        d > n * jnp.finfo(d.dtype).eps * d[0], d, 0
    )  # the root of a rounding is no mean one
    kept = jnp.arange(n - 1)  # if so many stay, the other n - kept become one less
    tail = jnp.cumsum(d[::-1])[::-1]  # Σ of d_i and all after it
    kept = jnp.argmax((n - 1 - kept) * d[:-1] <= tail[:-1])
    number, total = n - 1 - kept, jnp.maximum(tail[kept], least)
    i = jnp.arange(n)
    z = jnp.where(i < kept, 0, jnp.sqrt(jnp.maximum(0, 1 - d * number / total)))
    mirror = z - (i == n - 1)  # the Householder reflection that takes the last axis to z
    Z = jnp.eye(n, dtype=d.dtype) - 2 * jnp.outer(mirror, mirror) / jnp.maximum(
        mirror @ mirror, least
    )
    scale = jnp.sqrt(jnp.where(i < kept, d, total / number))
    mixed = (signs[:, None] * Z * scale)[:, :-1]
    return (Q_u @ (P @ mixed)).T[:, : u.shape[1]], (Q_v @ (Q.T @ mixed)).T[:, : v.shape[1]]


def _tall(columns: Float[Array, "N n"]) -> Float[Array, "M n"]:
    """Add rows of zeros where there are fewer rows than columns."""
    return jnp.pad(columns, ((0, max(0, columns.shape[1] - columns.shape[0])), (0, 0)))
