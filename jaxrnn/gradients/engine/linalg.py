"""Small dense linear algebra that is safe inside `lax.scan` on every device.

LAPACK's QR and SVD, called from within a loop, were seen to hang on a CPU (JAX 0.10.2). For a
handful of rows the functions below do as well.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.network import layer


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
