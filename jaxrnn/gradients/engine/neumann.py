"""The Neumann series λ = Σ_k 𝒥ᵏ e, term by term, through all layers of a stack.

Term k is what the errors say k recurrent steps back, through whichever layers they go on their way
down: the part of the credit λ_t that comes from the outputs at t + k. Each term is one batched
matmul over all T for each layer, without a loop over time.
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
    """Take the error, e_t at the top layer, down through the layers within its own step."""
    return _down(cells, tapes, error, [jnp.zeros_like(error)] * len(cells))


def next_term(
    cells: tuple[Cell, ...], tapes: tuple[Tape, ...], credits: tuple[Array, ...], leak: float
) -> Term:
    """Take a term's credits one step back in time, and down through the layers from there."""
    pulled = [
        _one_step_earlier(layer.pull_back(cell.W_hh.T, tape.gain, credit, leak))
        for cell, tape, credit in zip(cells, tapes, credits, strict=True)
    ]
    return _down(cells, tapes, jnp.zeros_like(pulled[-1]), pulled)


def _down(cells, tapes, error, pulled) -> Term:
    def visit(error, cell, tape, pulled):
        credit = error + pulled
        delta = tape.gain * credit
        return layer.input_error(cell, delta), (credit, delta)

    credits, deltas = zip(*walk_down(visit, error, cells, tapes, pulled), strict=True)
    return credits, deltas


def _one_step_earlier(pulled: Float[Array, "T B H"]) -> Float[Array, "T B H"]:
    """Move what step t sends back to where step t-1 receives it; nothing comes after the last."""
    return jnp.concatenate([pulled[1:], jnp.zeros_like(pulled[:1])])
