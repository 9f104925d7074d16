"""Optimal Kronecker-sum approximation of RTRL (Benzing et al. 2019, alg. 1 and 2, thm. 1).

The influence as a sum of r Kronecker products, M_t ≈ Σ_k u_k ⊗ A_k. A step makes r + 1 of them,

    Σ_k u_k ⊗ A_k J_t  +  s_t ⊗ diag(g_t)

and the r that replace them are, of all random ones with that mean, those of least variance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
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
        return jnp.einsum("bkp,bkji,bi->pj", influence.u, influence.A, error)

    return lift(rnn, layer_by_layer(forward(ForwardRule(init, advance, read, draws=True))))


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


# LAPACK's QR and SVD, called from within a loop, were seen to hang for ever on a CPU (JAX 0.10.2).
# For a handful of rows these two do as well, on any device.


def _orthonormal(
    u: Float[Array, "n N"], v: Float[Array, "n M"]
) -> tuple[Float[Array, "n N"], Float[Array, "n M"]]:
    """Write Σ_k u_k ⊗ v_k with orthonormal u by Gram and Schmidt; a dependent row becomes zero."""
    rows, eps = [], jnp.finfo(u.dtype).eps
    R = jnp.zeros((len(u), len(u)), u.dtype)
    for k, row in enumerate(u):
        smallest = len(u) * eps * jnp.linalg.norm(row)
        for j, other in enumerate(rows):
            share = row @ other
            row, R = row - share * other, R.at[k, j].set(share)
        length = jnp.linalg.norm(row)
        length = jnp.where(length > smallest, length, 0)
        rows.append(jnp.where(length > 0, row / jnp.where(length > 0, length, 1), 0))
        R = R.at[k, k].set(length)
    return jnp.stack(rows), R.T @ v


def _eigenvectors(G: Float[Array, "n n"], sweeps: int = 4) -> Float[Array, "n n"]:
    """Diagonalise a symmetric matrix by Jacobi's rotations: return W, with Wᵀ G W diagonal.

    Rotations of different axes are made at once, each sweep in the rounds of a tournament. What
    four sweeps leave is 1e-10 of G for five axes, and the variance feels the square of that.
    """
    n, one = len(G), jnp.eye(len(G), dtype=G.dtype)

    def turn(carry, opponent):
        G, W = carry
        apart = jnp.diag(G) - opponent @ jnp.diag(G)
        place = jnp.arange(n, dtype=G.dtype)
        earlier = opponent @ place > place  # decides between equals
        sign = jnp.where(apart == 0, jnp.where(earlier, 1, -1), jnp.sign(apart))
        angle = sign * jnp.arctan2(2 * (opponent * G).sum(1), jnp.abs(apart)) / 2
        rotation = jnp.cos(angle)[:, None] * one - jnp.sin(angle)[:, None] * opponent
        return (rotation.T @ G @ rotation, W @ rotation), None

    rounds = np.tile(_tournament(n), (sweeps if n > 2 else 1, 1, 1))  # two need but one rotation
    start = (G, layer.varying_like(one, G))
    return lax.scan(turn, start, jnp.asarray(rounds, G.dtype))[0][1]


def _tournament(n: int) -> Float[np.ndarray, "rounds n n"]:
    """Pair everyone with everyone once, in as few rounds as there are: 1 at [i, j] if they meet."""
    seats, rounds = list(range(n + n % 2)), []
    for _ in seats[1:]:
        meet = np.zeros((len(seats), len(seats)))
        meet[seats, seats[::-1]] = 1
        rounds.append(meet[:n, :n])  # whoever meets the last of an odd number rests
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return np.array(rounds)
