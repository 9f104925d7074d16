"""Rules that work forward in time: each carries the influence of the weights, or an estimate of it.

The weights of a layer are θ = [W_xh; W_hh; b_h], (N, H) with N = I + H + 1. Their input at step t
is s_t = (x_t, h_{t-1}, 1). The influence of θ_pj on unit i is

    M_t[p, j, i] = ∂h_t[i] / ∂θ_pj = (J_t M_{t-1}[p, j])[i] + s_t[p] g_t[j] 1[i = j]
    dL/dθ = Σ_t M_t e_t

(Williams & Zipser 1989; Marschall, Cho & Savin 2020). A rule consists of three functions, and of a
fourth if it draws random numbers: the initial influence of one sequence, its update by one step,
the gradient from the influence and the errors of a batch, and the noise of a step. Each row of a
batch has its own influence and its own random numbers, and the gradient is the sum over the rows.

The influence passes from chunk to chunk: with `reduction="sum"` and the parameters held fixed, the
sum of the gradients of the chunks does not depend on where they are cut. In a stack each layer has
its own influence and passes the error of the same step to the layer below. The effect of a lower
layer on later steps of an upper layer is left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrnn.gradients.engine.algorithm import GradientAlgorithm, Lasting, Memory, check_key
from jaxrnn.gradients.engine.lift import LayerRule, layer_by_layer, lift
from jaxrnn.network import checks, layer
from jaxrnn.network.layer import Cell, Tape, is_ids
from jaxrnn.network.rnn import RNN

Influence = Any
Noise = Callable[..., Array]  # (key, step, dtype) -> the random numbers of one row's step


class Draws(NamedTuple):
    """The key of each row and the number of its steps so far; both determine the key of a step."""

    keys: Key[Array, " B"]
    steps: Int[Array, " B"]


class InfluenceMemory(NamedTuple):
    """The memory of a rule that works forward in time.

    Attributes:
        influence: the influence, or the estimate of it, of each row of the batch.
        draws: the `Draws` of the rule, which go on in the next sequence; None if it draws none.
    """

    influence: Influence
    draws: Lasting | None


def influence_rule(
    rnn: RNN,
    init: Callable[[Cell], Influence],
    advance: Callable[..., Influence],
    read: Callable[[Influence, Float[Array, "B H"]], Float[Array, "N H"]],
    *,
    noise: Noise | None = None,
) -> GradientAlgorithm:
    """Build an algorithm that carries an influence, or an estimate of it, forward in time.

        M_t = advance(cell, M_{t-1}, tape_t),        dL/dθ = Σ_t read(M_t, e_t)

    `init` and `advance` are written for one sequence and are mapped over the rows of a batch. In a
    stack each layer has its own influence. The algorithm is exact for one layer if M_t is the
    influence of `jaxrnn.gradients.rtrl` (Williams & Zipser 1989).

    Args:
        rnn: the network.
        init: cell -> the influence before the first step, any pytree. What the rule learns across
            sequences is wrapped in `jaxrnn.gradients.Lasting`.
        advance: (cell, influence, tape) -> the influence one step later. The tape is that of the
            step: `x` (I,) or an id, `h_prev` (H,) and `gain` (H,). With `noise`, the random numbers
            of the step are the fourth argument.
        read: (influence, e_t) -> the contribution of the step to dL/dθ, (N, H), summed over the
            rows. The leaves of the influence have a leading axis B, and e_t is (B, H).
        noise: (key, step, dtype) -> the random numbers of one step of one row; None for a rule that
            draws none. The key is that of the row, and steps count from 0.

    Returns:
        The algorithm, with an `InfluenceMemory` for each layer as its memory.

    Raises:
        ValueError: by init, if the influence needs more memory than `jaxrnn.memory_limit`, or if a
            rule that draws random numbers gets no key.

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


def check_memory_is_kept(before: Influence, after: Influence) -> None:
    """Raise `ValueError` unless `advance` has kept the structure and the shapes of an influence."""
    shapes = [jax.tree.map(jnp.shape, each) for each in (before, after)]
    if shapes[0] != shapes[1]:
        rows = [jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], each) for each in (before, after)]
        raise ValueError(
            f"advance(cell, influence, tape) must keep the shapes of the influence, {rows[0]}, "
            f"got {rows[1]}"
        )


def influence_layer(
    init: Callable[[Cell], Influence],
    advance: Callable[..., Influence],
    read: Callable[[Influence, Float[Array, "B H"]], Float[Array, "N H"]],
    noise: Noise | None = None,
) -> LayerRule:
    """Build a rule for one layer from the functions that `influence_rule` takes."""

    def init_rows(cell, h, key):
        (batch_size, hidden_size), one_row = h.shape, jax.eval_shape(init, cell)
        checks.fits(
            f"the influence of a layer (B={batch_size}, I={len(cell.W_xh)}, H={hidden_size})",
            batch_size * sum(leaf.size for leaf in jax.tree.leaves(one_row)),
            cell.W_hh.dtype,
            "use a smaller hidden_size or batch, or a rule that needs less memory, such as bptt",
        )
        influence = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape)), init(cell)
        )
        if noise is None:
            return InfluenceMemory(influence, None)
        keys = jax.random.split(check_key(key), batch_size)
        return InfluenceMemory(influence, Lasting(Draws(keys, jnp.zeros(batch_size, jnp.int32))))

    def grads(cell, memory, tape, error):
        def advance_row(influence, tape_t, draws):
            if noise is None:
                return InfluenceMemory(advance(cell, influence, tape_t), None)
            keys, steps = draws.value
            noise_t = noise(keys, steps, tape_t.gain.dtype)
            influence = advance(cell, influence, tape_t, noise_t)
            return InfluenceMemory(influence, Lasting(Draws(keys, steps + 1)))

        def one_step(carry, step):
            memory, total = carry
            tape_t, error_t = step
            new = jax.vmap(advance_row)(memory.influence, tape_t._replace(valid=None), memory.draws)
            check_memory_is_kept(memory.influence, new.influence)
            new = keep_ended(memory, new, tape_t.valid)
            contribution = read(new.influence, error_t)
            checks.result("read(influence, error)", contribution, total.shape, "(N, H)")
            return (new, total + contribution.astype(total.dtype)), None

        steps, dtype = (tape, error), cell.W_hh.dtype
        start = (memory, no_trace(cell).astype(layer.wide(dtype)))
        (memory, total), _ = lax.scan(one_step, layer.varying_like(start, steps, cell), steps)
        total = total.astype(dtype)
        I, H = cell.W_xh.shape
        b_h = None if cell.b_h is None else total[I + H]
        gradient = Cell(total[:I], total[I : I + H], b_h)
        return gradient, layer.input_error(cell, tape.gain * error), memory

    return LayerRule(init_rows, grads)


def random_signs(number: int) -> Noise:
    """Return a noise function that draws `number` random signs ±1 per step."""

    def draw(key, step, dtype):
        return jax.random.rademacher(jax.random.fold_in(key, step), (number,), dtype)

    return draw


def keep_ended(old: Memory, new: Memory, valid: Bool[Array, " B"] | None) -> Memory:
    """Return the new memory, but keep the old memory of the rows that have ended.

    Args:
        old: the memory before the step; every leaf has a leading axis B.
        new: the memory after the step.
        valid: whether the step is within its row's length, (B,); None if it is for all rows.
    """
    if valid is None:
        return new

    def select(old, new):
        return jnp.where(jnp.expand_dims(valid, range(1, new.ndim)), new, old)

    return jax.tree.map(select, old, new)


def weight_inputs_size(cell: Cell) -> int:
    """Return N, the number of inputs of each unit of a layer: I + H, plus 1 if there is a bias."""
    return sum(cell.W_xh.shape) + (cell.b_h is not None)


def weight_inputs(cell: Cell, tape: Tape) -> Float[Array, " N"]:
    """Return the input of the weights at one step, s_t = (x_t, h_{t-1}, 1), as one vector."""
    x, h_prev, gain, _ = tape
    if is_ids(x):
        x = jax.nn.one_hot(x, len(cell.W_xh), dtype=gain.dtype)
    one = [] if cell.b_h is None else [jnp.ones_like(gain[:1])]
    return jnp.concatenate([x, h_prev, *one])


def no_trace(cell: Cell) -> Float[Array, "N H"]:
    """Return the initial eligibility trace, one zero per weight."""
    return jnp.zeros((weight_inputs_size(cell), len(cell.W_hh)), cell.W_hh.dtype)


def eligibility_trace(decay: Callable[[Cell, Array], Array | float]) -> tuple[Any, Any, Any]:
    """Return `init`, `advance` and `read` for the influence of each weight on its own unit only.

    E_t = decay(cell, g_t) ⊙ E_{t-1} + s_tᵀ g_t,        dL/dθ = Σ_t E_t ⊙ e_t
    """

    def advance(cell, trace, tape):
        factor = jnp.broadcast_to(decay(cell, tape.gain), trace.shape)
        return factor * trace + jnp.outer(weight_inputs(cell, tape), tape.gain)

    def read(trace, error):
        return jnp.einsum("bpj,bj->pj", trace, error)

    return no_trace, advance, read


def no_influence(cell: Cell) -> Float[Array, "N H H"]:
    """Return the full influence before the first step, which is zero."""
    return jnp.zeros((weight_inputs_size(cell), *cell.W_hh.shape), cell.W_hh.dtype)


def advance_influence(
    cell: Cell, M: Float[Array, "N H H"], tape: Tape, leak: float
) -> Float[Array, "N H H"]:
    """Compute the exact full influence M_t from M_{t-1}; O(N H³).

    M_t[p, j, i] = (J_t M_{t-1}[p, j])[i] + s_t[p] g_t[j] 1[i = j]

    The direct term is added only where it is not zero: on the diagonal of the last two axes, and
    for a token id only in the row of that id.
    """
    x, gain, s, units = tape.x, tape.gain, weight_inputs(cell, tape), jnp.arange(len(cell.W_hh))
    M = layer.push_forward(cell, gain, M, leak)
    if is_ids(x):
        I = len(cell.W_xh)
        return M.at[x, units, units].add(gain).at[I:, units, units].add(jnp.outer(s[I:], gain))
    return M.at[:, units, units].add(jnp.outer(s, gain))


def balance(a: Array, b: Array) -> Float[Array, ""]:
    """Return ρ = √(‖a‖ / ‖b‖), so that a / ρ and ρ b have the same norm; 1 if both are 0."""
    tiny = jnp.finfo(a.dtype).tiny
    return jnp.sqrt((jnp.linalg.norm(a) + tiny) / (jnp.linalg.norm(b) + tiny))
