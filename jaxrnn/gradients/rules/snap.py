"""SnAp-n, the sparse n-step approximation of RTRL (Menick et al. 2020, §3).

The influence of a weight into unit j on unit i is kept only if W_hh connects j to i by at most
n - 1 steps. All other entries of the influence are set to zero.
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
    """A masked influence; mask[j, i] is whether the weights into unit j may influence unit i."""

    M: Float[Array, "N H H"]
    mask: Bool[Array, "H H"]


def snap(rnn: RNN, n: int = 1) -> GradientAlgorithm:
    """Build SnAp-n: RTRL with the influence restricted to units that a weight reaches in n steps.

        M_t[p, j, i] = mask[j, i] ((J_t M_{t-1}[p, j])[i] + s_t[p] g_t[j] 1[i = j])
        dL/dθ = Σ_t M_t e_t

    mask[j, i] is 1 if W_hh connects unit j to unit i by at most n - 1 steps, and 0 otherwise.
    `init` computes it from the zeros of W_hh. The other symbols are those of `rtrl`. With n = 1
    only the influence of a weight on its own unit remains, an eligibility trace:

        E_t = J_t[j, j] E_{t-1} + s_tᵀ g_t,        dL/dθ = Σ_t E_t ⊙ e_t

    Approximate, for one layer and for stacks. With a dense W_hh and n ≥ 2 the mask is all ones, and
    the rule is `rtrl`. In a stack the rule is applied layer by layer, as `rtrl`.

    Cost per layer: for n = 1, O(B H (I + H)) operations per step and memory, one number per weight
    and row. For n ≥ 2 the full masked influence is stored, at the cost of `rtrl`.

    Paper: Menick et al. 2020, §3.

    Args:
        rnn: the network.
        n: the number of steps, at least 1.

    Raises:
        ValueError: if n is below 1 or not a whole number; by init, if the influence of a layer
            needs more memory than `jaxrnn.memory_limit`.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(5, 4, 2)
    >>> params, h = rnn.init(jax.random.key(0)), rnn.initial_state(3)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> rule = jaxrnn.gradients.snap(rnn, n=1)
    >>> (loss, carry), grads = jax.jit(rule.value_and_grad)(params, rule.init(params, h), batch)
    >>> carry.memory[0].influence.shape  # (B, N, H): one number per weight
    (3, 10, 4)
    """
    checks.whole("n", n, 1)

    def decay(cell, gain):
        return (1 - rnn.leak) + gain * jnp.diag(cell.W_hh)  # J_t[j, j]

    return influence_rule(rnn, *(eligibility_trace(decay) if n == 1 else _reachable(rnn, n)))


def _reachable(rnn: RNN, n: int) -> tuple[Any, Any, Any]:
    def init(cell):
        return Masked(no_influence(cell), _connected(n - 1, cell))

    def advance(cell, influence, tape):
        M = advance_influence(cell, influence.M, tape, rnn.leak)
        return influence._replace(M=jnp.where(influence.mask[None], M, 0))

    def read(influence, error):
        return jnp.einsum("bpji,bi->pj", influence.M, error)

    return init, advance, read


def _connected(steps: int, cell: Cell) -> Bool[Array, "H H"]:
    """Return whether W_hh connects unit j (row) to unit i (column) by at most `steps` steps."""
    H, connections = len(cell.W_hh), (cell.W_hh != 0).astype(jnp.float32)

    def extend(_, reached):
        return reached | (reached.astype(connections.dtype) @ connections > 0)

    return lax.fori_loop(0, min(steps, H - 1), extend, jnp.eye(H, dtype=bool))
