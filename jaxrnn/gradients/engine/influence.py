"""What rules that work forward in time share: they carry an influence along, whole or in part.

With s_t = (x_t, h_{t-1}, 1), what the weights θ = [W_xh; W_hh; b_h] read, θ is (N, H) with
N = I + H + 1, and the influence of θ_pj on unit i is

    M_t[p, j, i] = ∂h_t[i] / ∂θ_pj = (J_t M_{t-1}[p, j])[i] + s_t[p] g_t[j] 1[i = j]
    dL/dθ = Σ_t M_t e_t

(Williams & Zipser 1989; Marschall, Cho & Savin 2020). A rule says what it keeps of M, how that
advances, both for one sequence, and what gradient it makes of a batch's errors. Each row of a batch
has its own influence and its own random numbers, so that the gradient is the sum of the rows'.

The influence passes from chunk to chunk: with the parameters held fixed, the sum over chunks is the
same wherever they are cut. In a stack each layer has its own influence, and hands down the error of
the same step; what a lower layer's past did through an upper layer's state is left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm, Memory, check_key
from jaxrnn.gradients.engine.lift import LayerRule, layer_by_layer, lift
from jaxrnn.network import checks, layer
from jaxrnn.network.layer import Cell, Tape, is_ids
from jaxrnn.network.rnn import RNN

Influence = Any
Noise = Callable[..., Array]  # (key, step, dtype) -> the random numbers of one row's step


class Draws(NamedTuple):
    """One key a row, and the steps that the row has taken: from both follows the key of a step."""

    keys: Key[Array, " B"]
    steps: Int[Array, " B"]


class Past(NamedTuple):
    """The memory of a rule that works forward.

    Attributes:
        influence: the rule's own, for each row of the batch.
        draws: where its random numbers come from, or None.
    """

    influence: Influence
    draws: Draws | None


def influence_rule(
    rnn: RNN,
    init: Callable[[Cell], Influence],
    advance: Callable[..., Influence],
    read: Callable[[Influence, Float[Array, "B H"]], Float[Array, "N H"]],
    *,
    noise: Noise | None = None,
) -> GradientAlgorithm:
    """Build an algorithm that carries an influence, or an estimate of it, forward in time.

    `init` and `advance` see one sequence; the engine maps them over the rows of a batch. In a
    stack each layer has its own influence.

    Args:
        rnn: the network.
        init: cell -> the influence before the first step, any pytree.
        advance: (cell, influence, tape) -> the influence one step later. The tape is that of the
            step: `x` (I,) or an id, `h_prev` (H,) and `gain` (H,). With `noise` a fourth argument
            is what the step drew.
        read: (influence, e_t) -> the part of dL/dθ that the step adds, summed over the rows; the
            leaves of the influence begin with B.
        noise: (key, step, dtype) -> the random numbers of one row's step; None for a rule that
            draws none. The key is the row's and the step counts from 0.

    Raises:
        ValueError: by init, if the influence is larger than `jaxrnn.memory_limit`, or if a rule
            that draws random numbers gets no key.

    >>> import jax.numpy as jnp, jaxrnn
    >>> from jaxrnn.gradients import influence_rule
    >>> from jaxrnn.gradients.engine.influence import advance_influence, no_influence
    >>> def rtrl(rnn):
    ...     def advance(cell, M, tape):
    ...         return advance_influence(cell, M, tape, rnn.leak)
    ...     def read(M, error):
    ...         return jnp.einsum("bpji,bi->pj", M, error)
    ...     return influence_rule(rnn, no_influence, advance, read)
    """
    return lift(rnn, layer_by_layer(influence_layer(init, advance, read, noise)))


def influence_layer(
    init: Callable[[Cell], Influence],
    advance: Callable[..., Influence],
    read: Callable[[Influence, Float[Array, "B H"]], Float[Array, "N H"]],
    noise: Noise | None = None,
) -> LayerRule:
    """Make the rule for one layer out of the functions that `influence_rule` takes."""

    def init_rows(cell, h, key):
        (batch_size, hidden_size), one_row = h.shape, jax.eval_shape(init, cell)
        checks.fits(
            f"the influence of a layer (B={batch_size}, I={len(cell.W_xh)}, H={hidden_size})",
            batch_size * sum(leaf.size for leaf in jax.tree.leaves(one_row)),
            cell.W_hh.dtype,
            "use a smaller hidden_size or batch, or a rule that keeps less, such as bptt",
        )
        influence = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape)), init(cell)
        )
        if noise is None:
            return Past(influence, None)
        keys = jax.random.split(check_key(key), batch_size)
        return Past(influence, Draws(keys, jnp.zeros(batch_size, jnp.int32)))

    def grads(cell, past, tape, error):
        def advance_row(influence, tape_t, draws):
            if noise is None:
                return Past(advance(cell, influence, tape_t), None)
            drawn = noise(draws.keys, draws.steps, tape_t.gain.dtype)
            advanced = advance(cell, influence, tape_t, drawn)
            return Past(advanced, draws._replace(steps=draws.steps + 1))

        def one_step(carry, step):
            past, total = carry
            tape_t, error_t = step
            now = jax.vmap(advance_row)(past.influence, tape_t._replace(valid=None), past.draws)
            now = hold(past, now, tape_t.valid)
            part = read(now.influence, error_t)
            return (now, total + part.astype(total.dtype)), None

        steps, dtype = (tape, error), cell.W_hh.dtype
        start = (past, no_trace(cell).astype(layer.wide(dtype)))
        (past, total), _ = lax.scan(one_step, layer.varying_like(start, steps, cell), steps)
        total = total.astype(dtype)
        I, H = cell.W_xh.shape
        b_h = None if cell.b_h is None else total[I + H]
        gradient = Cell(total[:I], total[I : I + H], b_h)
        return gradient, layer.input_error(cell, tape.gain * error), past

    return LayerRule(init_rows, grads)


def random_signs(number: int) -> Noise:
    """Return the noise of a rule that draws ±1 with equal probability, `number` of them a step."""

    def draw(key, step, dtype):
        return jax.random.rademacher(jax.random.fold_in(key, step), (number,), dtype)

    return draw


def hold(before: Memory, now: Memory, valid: Bool[Array, " B"] | None) -> Memory:
    """Return a memory after a step: the new one of the rows that took it, the old one of others.

    Every leaf begins with the batch's axis.
    """
    if valid is None:
        return now

    def select(before, now):
        return jnp.where(jnp.expand_dims(valid, range(1, now.ndim)), now, before)

    return jax.tree.map(select, before, now)


def read_size(cell: Cell) -> int:
    """Return N, how many numbers each unit of a layer reads: I + H, and 1 for a bias."""
    return sum(cell.W_xh.shape) + (cell.b_h is not None)


def read_by(cell: Cell, tape: Tape) -> Float[Array, " N"]:
    """Put what the weights read at one step, s_t = (x_t, h_{t-1}, 1), into one vector."""
    x, h_prev, gain, _ = tape
    if is_ids(x):
        x = jax.nn.one_hot(x, len(cell.W_xh), dtype=gain.dtype)
    one = [] if cell.b_h is None else [jnp.ones_like(gain[:1])]
    return jnp.concatenate([x, h_prev, *one])


def no_trace(cell: Cell) -> Float[Array, "N H"]:
    """Return a number for each weight before the first step: zeros."""
    return jnp.zeros((read_size(cell), len(cell.W_hh)), cell.W_hh.dtype)


def eligibility_trace(slope: Callable[[Cell, Array], Array | float]) -> tuple[Any, Any, Any]:
    """Return `init`, `advance` and `read` of the influence of a weight on its own unit alone.

    E_t = slope(cell, g_t) ⊙ E_{t-1} + s_tᵀ g_t,        dL/dθ = Σ_t E_t ⊙ e_t
    """

    def advance(cell, trace, tape):
        kept = jnp.broadcast_to(slope(cell, tape.gain), trace.shape)
        return kept * trace + jnp.outer(read_by(cell, tape), tape.gain)

    def read(trace, error):
        return jnp.einsum("bpj,bj->pj", trace, error)

    return no_trace, advance, read


def no_influence(cell: Cell) -> Float[Array, "N H H"]:
    """Return the whole influence before the first step: zeros."""
    return jnp.zeros((read_size(cell), *cell.W_hh.shape), cell.W_hh.dtype)


def advance_influence(
    cell: Cell, M: Float[Array, "N H H"], tape: Tape, leak: float
) -> Float[Array, "N H H"]:
    """Take the whole influence one step on, exactly; O(N H³).

    The direct term goes where it is not zero: on the diagonal of the last two axes, and for an id
    in that id's row alone.
    """
    x, gain, s, units = tape.x, tape.gain, read_by(cell, tape), jnp.arange(len(cell.W_hh))
    M = layer.push_forward(cell, gain, M, leak)
    if is_ids(x):
        I = len(cell.W_xh)
        return M.at[x, units, units].add(gain).at[I:, units, units].add(jnp.outer(s[I:], gain))
    return M.at[:, units, units].add(jnp.outer(s, gain))


def balance(a: Array, b: Array) -> Float[Array, ""]:
    """Return ρ = √(‖a‖ / ‖b‖), which makes a / ρ and ρ b equally large; 1 where both are 0."""
    tiny = jnp.finfo(a.dtype).tiny
    return jnp.sqrt((jnp.linalg.norm(a) + tiny) / (jnp.linalg.norm(b) + tiny))
