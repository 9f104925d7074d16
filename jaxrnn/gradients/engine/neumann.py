"""The terms of the Neumann series λ = Σ_k 𝒥ᵏ e, each through all layers of a stack.

Term k is the part of the credit λ_t that comes from the outputs at t + k, along all paths with k
recurrent steps in any layers. A term needs one batched matmul over all T for each layer and no
loop over time.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn.network import layer
from jaxrnn.network.layer import Cell, Tape
from jaxrnn.network.stack import walk_down

Term = tuple[tuple[Array, ...], tuple[Array, ...]]  # credits and deltas, (T, B, H) for each layer


def first_term(
    cells: tuple[Cell, ...], tapes: tuple[Tape, ...], error: Float[Array, "T B H"]
) -> Term:
    """Compute term 0: propagate e_t of the top layer down through the layers within step t."""
    return _propagate_down(cells, tapes, error, [jnp.zeros_like(error)] * len(cells))


def next_term(
    cells: tuple[Cell, ...], tapes: tuple[Tape, ...], credits: tuple[Array, ...], leak: float
) -> Term:
    """Compute term k + 1 from the credits of term k: one step back, then down the layers."""
    pulled = [
        _shift_back(layer.pull_back(cell.W_hh.T, tape.gain, credit, leak))
        for cell, tape, credit in zip(cells, tapes, credits, strict=True)
    ]
    return _propagate_down(cells, tapes, jnp.zeros_like(pulled[-1]), pulled)


def _propagate_down(cells, tapes, error, pulled) -> Term:
    def visit(error, cell, tape, pulled):
        credit = error + pulled
        delta = tape.gain * credit
        return layer.input_error(cell, delta), (credit, delta)

    credits, deltas = zip(*walk_down(visit, error, cells, tapes, pulled), strict=True)
    return credits, deltas


def _shift_back(pulled: Float[Array, "T B H"]) -> Float[Array, "T B H"]:
    """Shift the credit that step t sends back to row t-1; the last row becomes zero."""
    return jnp.concatenate([pulled[1:], jnp.zeros_like(pulled[:1])])
