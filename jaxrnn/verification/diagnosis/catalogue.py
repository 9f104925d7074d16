"""The catalogue of named bugs: wrong backward passes that people write.

Each entry computes its wrong gradient on the batch at hand, so that a match to rounding is evidence
and not a guess. Bugs in a layer's backward pass are wrong `Pieces` of it, in every layer or in one;
bugs at the outputs start from a wrong dL/dy_t. What was done to a leaf's gradient afterwards is in
`jaxrnn.verification.leaf_bugs`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network.layer import Cell
from jaxrnn.network.stack import Params
from jaxrnn.verification.diagnosis.backward_pass import (
    RIGHT,
    Pass,
    Pieces,
    contract_readout,
    gradient,
    pass_down,
    pull_back,
    with_d_outputs,
    with_loss_of,
)


class Wrong(NamedTuple):
    """A wrong gradient.

    Attributes:
        bug: its name: the field's term.
        text: what went wrong and where to look.
        grads: every leaf as this bug makes it.
        loss: the loss as this bug makes it, where it does.
        whole: whether it changes all these leaves together, or may be made at one leaf alone.
        certain: whether it is a bug; False for what somebody may have wanted.
    """

    bug: str
    text: str
    grads: Params
    loss: float | None = None
    whole: bool = True
    certain: bool = True


Entry = tuple[str, str, Callable[[Pass], Iterator[tuple[str, Pieces]]]]


def _one_hop(p):
    def nothing(p, cell, credit, delta):
        return 0 * credit

    yield "", RIGHT._replace(pull=nothing)


def _no_gain(p):
    leak = p.rnn.leak

    def leak_alone(p, layer):
        return np.full_like(p.gain[layer], leak)

    def pull_without_gain(p, cell, credit, delta):
        return pull_back(p, cell, credit, leak * credit)

    def down_without_gain(p, cell, credit, delta):
        return pass_down(p, cell, credit, leak * credit)

    yield "", RIGHT._replace(gain=leak_alone)
    yield "only in what goes to the step before", RIGHT._replace(pull=pull_without_gain)
    yield "only in what goes to the layer below", RIGHT._replace(down=down_without_gain)


def _gain_of_the_wrong_step(p):
    def one_early(p, layer):
        return np.concatenate([_slope(p, p.h_prev[layer][:1]), p.gain[layer][:-1]])

    def one_late(p, layer):
        return np.concatenate([p.gain[layer][1:], p.gain[layer][-1:]])

    yield "that of t - 1", RIGHT._replace(gain=one_early)
    yield "that of t + 1", RIGHT._replace(gain=one_late)


def _slope_of_the_state(p):
    def again(p, layer):
        return _slope(p, np.asarray(p.rnn.dynamics.activation.function(p.h[layer])))

    yield "", RIGHT._replace(gain=again)


def _leak_forgotten(p):
    def slope_alone(p, layer):
        return p.gain[layer] / p.rnn.leak

    def through_the_gain_alone(p, cell, credit, delta):
        return delta @ cell.W_hh.T

    yield "in the gain", RIGHT._replace(gain=slope_alone)
    way = "in the path (1 - leak) λ to the step before"
    yield way, RIGHT._replace(pull=through_the_gain_alone)


def _not_transposed(p):
    def straight(p, cell, credit, delta):
        return (1 - p.rnn.leak) * credit + delta @ cell.W_hh

    yield "", RIGHT._replace(pull=straight)


def _h_for_h_prev(p):
    def states(p, layer):
        return p.h[layer]

    yield "", RIGHT._replace(h_prev=states)


def _time_reversed(p):
    def in_order_of_the_loop(delta):
        return delta[::-1]

    yield "the loop runs from the first step to the last", RIGHT._replace(forward=True)
    reversed_deltas = RIGHT._replace(contracted=in_order_of_the_loop)
    yield "the deltas, collected from the last step on, were not reversed", reversed_deltas


def _cut_into_chunks(p):
    for size in range(2, min(len(p.error), 64)):
        yield f"{size} steps long", RIGHT._replace(cut=lambda t, size=size: t % size == 0)


def _first_state(times):
    def entry(p):
        def h_prev(p, layer):
            return np.concatenate([times * p.h_prev[layer][:1], p.h_prev[layer][1:]])

        yield "", RIGHT._replace(h_prev=h_prev)

    return entry


def _input_error_dropped(p):
    def nothing(p, cell, credit, delta):
        return 0 * pass_down(p, cell, credit, delta)

    yield "", RIGHT._replace(down=nothing)


def _input_error_unweighted(p):
    def delta_itself(p, cell, credit, delta):
        return delta

    def not_transposed(p, cell, credit, delta):
        return delta @ cell.W_xh

    yield "δ itself was passed down", RIGHT._replace(down=delta_itself)
    yield "W_xh is not transposed", RIGHT._replace(down=not_transposed)


IN_A_LAYER: tuple[Entry, ...] = (
    ("one-hop", "no credit passes from a step to the one before: add δ_{t+1} W_hhᵀ", _one_hop),
    ("no gain", "φ'(a_t) is missing between credit and delta: multiply by it", _no_gain),
    (
        "gain of the wrong step",
        "the gain is taken from another step's state: δ_t needs φ'(a_t), such as 1 - h_t²",
        _gain_of_the_wrong_step,
    ),
    (
        "slope of the state",
        "φ' was taken at h_t = φ(a_t) instead of a_t, as if the activation were applied twice",
        _slope_of_the_state,
    ),
    ("leak forgotten", "the leak is missing", _leak_forgotten),
    (
        "W_hh not transposed",
        "credit went back through W_hh instead of W_hhᵀ: rows are what W_hh reads",
        _not_transposed,
    ),
    (
        "h_t for h_{t-1}",
        "W_hh's gradient was contracted with h_t: it saw h_{t-1}, so Σ h_{t-1}ᵀ δ_t",
        _h_for_h_prev,
    ),
    ("time reversed", "steps are paired in the wrong order of time", _time_reversed),
    (
        "cut into chunks",
        "credit stops at chunk ends inside the sequence, as after a detach",
        _cut_into_chunks,
    ),
    (
        "h_0 forgotten",
        "h_0 was taken as zero in W_hh's gradient: the first step saw it, h_0ᵀ δ_1",
        _first_state(0),
    ),
    (
        "h_0 counted twice",
        "the first step's part h_0ᵀ δ_1 of W_hh's gradient is there twice",
        _first_state(2),
    ),
    (
        "input error dropped",
        "a layer handed no error to the layer below: add δ W_xhᵀ to what that one gets",
        _input_error_dropped,
    ),
    (
        "input error through the wrong matrix",
        "the layer below gets δ W_xhᵀ",
        _input_error_unweighted,
    ),
)


def wrongs(p: Pass, parts: tuple[Cell, ...]) -> Iterator[Wrong]:
    """Compute the wrong gradients of the catalogue, the likelier first.

    Args:
        p: the forward pass.
        parts: the gradient of each cell by time lag, each leaf with a leading K.
    """
    yield from _in_a_layer(p)
    yield from _truncated(p, parts)
    yield from _at_the_outputs(p)
    yield from _in_a_loop(p)


def _in_a_layer(p: Pass) -> Iterator[Wrong]:
    layers = p.rnn.num_layers
    for bug, text, pieces_of in IN_A_LAYER:
        for variant, pieces in pieces_of(p):
            if pieces.down is not RIGHT.down and layers == 1:
                continue
            shown = f"{text}; {variant}" if variant else text
            yield Wrong(bug, shown, gradient(p, pieces))
            for layer in range(layers) if 1 < layers <= 4 and bug != "cut into chunks" else ():
                yield Wrong(bug, f"{shown}; in layer {layer} only", gradient(p, pieces, {layer}))


def _truncated(p: Pass, parts: tuple[Cell, ...]) -> Iterator[Wrong]:
    exact = gradient(p)
    so_far = jax.tree.map(lambda part: part.cumsum(0), parts)
    for window in range(1, len(parts[0].W_hh)):
        cells = jax.tree.map(lambda total, window=window: total[window], so_far)
        text = (
            f"errors reach {window} recurrent steps back and no further, "
            f"as with truncated_bptt(window={window})"
        )
        yield Wrong(f"truncated at {window}", text, exact._replace(cells=cells))


def _at_the_outputs(p: Pass) -> Iterator[Wrong]:
    batch, readout = p.batch, p.params.readout
    for variant, targets in _shifted(p):
        loss, shifted = with_loss_of(p, batch._replace(targets=targets))
        text = f"the targets are shifted by one step: {variant}"
        yield Wrong("targets shifted", text, gradient(shifted), loss)
    if readout.b_y is not None and readout.b_y.any():
        loss, without = with_loss_of(p, batch, readout._replace(b_y=np.zeros_like(readout.b_y)))
        text = "the outputs, as the backward pass sees them, lack b_y"
        yield Wrong("readout bias forgotten", text, gradient(without), loss)
    if batch.mask is not None:
        loss, unmasked = with_loss_of(p, batch._replace(mask=None))
        text = "masked positions count: multiply dL/dy_t by the mask"
        yield Wrong("mask forgotten", text, gradient(unmasked), loss)
        for axis, name in ((1, "each sequence"), (0, "each time step")) * (
            p.rnn.reduction == "mean"
        ):
            total = batch.mask.sum(axis, keepdims=True)
            weights = batch.mask / np.where(total == 0, 1, total) / batch.mask.shape[1 - axis]
            ratio = weights * batch.mask.sum() / np.where(batch.mask == 0, 1, batch.mask)
            text = f"a mean over {name} by itself, and then over those"
            wrong = with_d_outputs(p, p.d_outputs * ratio.T[..., None])
            yield Wrong("mean over the wrong axis", text, gradient(wrong))
    if p.rnn.loss_function == "softmax_cross_entropy":
        one_hot = batch.targets.T[..., None] == np.arange(p.rnn.output_size)
        weights = 1.0 if batch.mask is None else batch.mask.T[..., None]
        if p.rnn.reduction == "mean":
            count = batch.targets.size if batch.mask is None else batch.mask.sum()
            weights = weights / (count or 1)
        text = "dL/dy is the softmax alone: subtract 1 at the target"
        wrong = with_d_outputs(p, p.d_outputs + weights * one_hot)
        yield Wrong("target not subtracted", text, gradient(wrong))
        yield from _guarded(p, weights * one_hot)
    if readout.W_hy.shape[0] == readout.W_hy.shape[1]:
        text = "the error went back through W_hy instead of W_hyᵀ"
        wrong = gradient(p._replace(error=p.d_outputs @ readout.W_hy))
        yield Wrong("W_hy not transposed", text, wrong)


def _guarded(p: Pass, weighted: np.ndarray) -> Iterator[Wrong]:
    """Put a guard into the loss, -log(p + ε).

    `weighted` is the weight of each position at its target, (T, B, O).
    """
    W_hy, b_y = p.params.readout
    outputs = p.h[-1] @ W_hy + (0 if b_y is None else b_y)
    powers = np.exp(outputs - outputs.max(-1, keepdims=True))
    softmax = powers / powers.sum(-1, keepdims=True)
    target = np.where(weighted > 0, softmax, 0).sum(-1, keepdims=True)
    for exponent in range(3, 16):
        guard = 10.0**-exponent
        wrong = with_d_outputs(p, p.d_outputs * target / (target + guard))
        loss = float(-(weighted * np.log(softmax + guard)).sum())
        text = f"it is that of a loss with a guard, -log(p + 1e-{exponent:02})"
        yield Wrong("guard", text, gradient(wrong), loss, certain=False)


def _shifted(p: Pass) -> Iterator[tuple[str, np.ndarray]]:
    inputs, targets = p.batch.inputs, p.batch.targets
    yield "each step has the next one's", np.roll(targets, -1, axis=1)
    yield "each step has the one before's", np.roll(targets, 1, axis=1)
    yield "each step has the next one's", np.concatenate([targets[:, 1:], targets[:, -1:]], axis=1)
    yield (
        "each step has the one before's",
        np.concatenate([targets[:, :1], targets[:, :-1]], axis=1),
    )
    if inputs.shape == targets.shape and inputs.max() < p.rnn.output_size:
        yield "each step has its input", inputs


def _in_a_loop(p: Pass) -> Iterator[Wrong]:
    """Leave steps or sequences out of the sums, the deltas being right."""
    steps, sequences = p.error.shape[:2]

    def only(rows):
        kept = np.zeros((steps, sequences, 1))
        kept[rows] = 1
        pieces = RIGHT._replace(contracted=lambda delta: kept * delta)
        cells = gradient(p, pieces).cells
        return Params(cells, contract_readout(p._replace(d_outputs=kept * p.d_outputs)))

    text = "the loop does not come to the {} step"
    if steps > 1:
        yield Wrong("a step left out", text.format("first"), only(np.s_[1:]))
        late = with_d_outputs(p, np.concatenate([p.d_outputs[:-1], 0 * p.d_outputs[-1:]]))
        yield Wrong("a step left out", text.format("last"), gradient(late))
    text = "only the part of the {} is there: add them up, += instead of ="
    if steps > 1:
        yield Wrong("= for +=", text.format("first step"), only(np.s_[:1]), whole=False)
        yield Wrong("= for +=", text.format("last step"), only(np.s_[-1:]), whole=False)
    if sequences > 1:
        yield Wrong("= for +=", text.format("first sequence"), only(np.s_[:, :1]), whole=False)
        yield Wrong("= for +=", text.format("last sequence"), only(np.s_[:, -1:]), whole=False)


def _slope(p: Pass, z: np.ndarray) -> np.ndarray:
    """Compute leak φ'(a) from z = φ(a)."""
    return np.asarray(p.rnn.dynamics.gain(jnp.asarray(z)))
