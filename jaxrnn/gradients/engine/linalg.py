"""Small dense linear algebra that is safe inside `lax.scan` on every device.

LAPACK's QR and SVD can hang on a CPU when they are called from within a loop (seen with JAX
0.10.2). The functions below replace them for matrices of a few rows.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.network import layer


def _orthonormal(
    u: Float[Array, "n N"], v: Float[Array, "n M"]
) -> tuple[Float[Array, "n N"], Float[Array, "n M"]]:
    """Rewrite Σ_k u_k ⊗ v_k with orthonormal u by the Gram-Schmidt process.

    A row of u that depends linearly on the rows before it becomes zero.

    Args:
        u: left factors, (n, N).
        v: right factors, (n, M).

    Returns:
        The new u (n, N) and v (n, M) with the same sum.
    """
    rows, eps = [], jnp.finfo(u.dtype).eps
    R = jnp.zeros((len(u), len(u)), u.dtype)
    for k, row in enumerate(u):
        smallest = len(u) * eps * jnp.linalg.norm(row)
        for j, other in enumerate(rows):
            projection = row @ other
            row, R = row - projection * other, R.at[k, j].set(projection)
        length = jnp.linalg.norm(row)
        length = jnp.where(length > smallest, length, 0)
        rows.append(jnp.where(length > 0, row / jnp.where(length > 0, length, 1), 0))
        R = R.at[k, k].set(length)
    return jnp.stack(rows), R.T @ v


def _eigenvectors(G: Float[Array, "n n"], sweeps: int = 4) -> Float[Array, "n n"]:
    """Compute W such that Wᵀ G W is diagonal, for a symmetric G, by Jacobi rotations.

    Each sweep rotates every pair of axes once. Disjoint pairs are rotated together, in the rounds
    of a round-robin tournament. After four sweeps of a 5 × 5 matrix, the off-diagonal part is about
    1e-10 of G. Its effect on the variance of `ok` is the square of that.
    """
    n, one = len(G), jnp.eye(len(G), dtype=G.dtype)

    def rotate(carry, opponent):
        G, W = carry
        difference = jnp.diag(G) - opponent @ jnp.diag(G)
        index = jnp.arange(n, dtype=G.dtype)
        earlier = opponent @ index > index  # breaks ties
        sign = jnp.where(difference == 0, jnp.where(earlier, 1, -1), jnp.sign(difference))
        angle = sign * jnp.arctan2(2 * (opponent * G).sum(1), jnp.abs(difference)) / 2
        rotation = jnp.cos(angle)[:, None] * one - jnp.sin(angle)[:, None] * opponent
        return (rotation.T @ G @ rotation, W @ rotation), None

    rounds = np.tile(_tournament(n), (sweeps if n > 2 else 1, 1, 1))  # n = 2 needs one rotation
    start = (G, layer.varying_like(one, G))
    return lax.scan(rotate, start, jnp.asarray(rounds, G.dtype))[0][1]


def _tournament(n: int) -> Float[np.ndarray, "rounds n n"]:
    """Return the pairings of a round-robin tournament; entry [i, j] of a round is 1 for a pair."""
    seats, rounds = list(range(n + n % 2)), []
    for _ in seats[1:]:
        pairing = np.zeros((len(seats), len(seats)))
        pairing[seats, seats[::-1]] = 1
        rounds.append(pairing[:n, :n])  # for odd n, the last seat is empty
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return np.array(rounds)
