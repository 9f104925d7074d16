"""SnAp-n, the sparse n-step approximation of RTRL (Menick et al. 2020, §3).

The influence is kept where a weight reaches a unit within n steps of its own: a weight into unit j
on unit i, if W_hh leads from j to i in at most n - 1 steps. Elsewhere it is taken for zero.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm
from jaxrnn.gradients.engine.influence import (
    advance_influence,
    eligibility_trace,
    influence_rule,
    no_influence,
)
from jaxrnn.network import checks
from jaxrnn.network.layer import Cell
from jaxrnn.network.rnn import RNN


class Masked(NamedTuple):
    """An influence, and which unit's weights may have one on which unit."""

    M: Float[Array, "N H H"]
    mask: Bool[Array, "H H"]


def snap(rnn: RNN, n: int = 1) -> GradientAlgorithm:
    """Carry along the influence of weights on units that they reach within n steps.

    n = 1 keeps that on a weight's own unit alone, which decays by J_t[j, j]: O(B H (I + H)) per
    step and memory, as many numbers as there are weights. For n ≥ 2 the whole influence is held
    under a mask, as `rtrl` holds it and at its cost. The mask is that of W_hh's zeros when `init`
    is called; with a dense W_hh, n = 2 is already RTRL. In a stack it is applied layer by layer.

    Args:
        rnn: the network.
        n: steps, at least 1.

    Raises:
        ValueError: if n is below 1 or not a whole number; by init, if the influence of a layer is
            more than `jaxrnn.memory_limit`.
    """
    checks.whole("n", n, 1)

    def slope(cell, gain):
        return (1 - rnn.leak) + gain * jnp.diag(cell.W_hh)  # J_t[j, j]

    return influence_rule(rnn, *(eligibility_trace(slope) if n == 1 else _reachable(rnn, n)))


def _reachable(rnn: RNN, n: int) -> tuple[Any, Any, Any]:
    def init(cell):
        return Masked(no_influence(cell), _within(n - 1, cell))

    def advance(cell, influence, tape):
        M = advance_influence(cell, influence.M, tape, rnn.leak)
        return influence._replace(M=jnp.where(influence.mask[None], M, 0))

    def read(influence, error):
        return jnp.einsum("bpji,bi->pj", influence.M, error)

    return init, advance, read


def _within(steps: int, cell: Cell) -> Bool[Array, "H H"]:
    """Say from which unit, the row, W_hh leads to which unit in at most so many steps."""
    H, leads = len(cell.W_hh), (cell.W_hh != 0).astype(jnp.float32)

    def one_further(_, reached):
        return reached | (reached.astype(leads.dtype) @ leads > 0)

    return lax.fori_loop(0, min(steps, H - 1), one_further, jnp.eye(H, dtype=bool))
