"""The catalogue of bugs: common mistakes in a hand-written backward pass.

Each entry computes its wrong gradient on the batch of the candidate, so that a match to rounding
error is evidence. Bugs in the backward pass of a layer replace some of its `Pieces`, in every layer
or in one. Bugs at the outputs start from a wrong dL/dy_t. Changes to the finished gradient of a
leaf, such as a wrong sign or a clip, are in `jaxrnn.verification.diagnosis.leaf_catalogue`.
"""

from collections.abc import Callable, Iterator
from functools import partial
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
    """The wrong gradient that a bug causes.

    Attributes:
        bug: the name of the bug.
        text: what is wrong and where to look.
        grads: computes the gradient with this bug; where only the losses are compared, nothing is.
        loss: the loss with this bug; None if the bug does not change it.
        whole: whether the bug changes all these leaves together; False if it may occur in a single
            leaf.
        certain: whether it is a mistake; False if it may be intended.
    """

    bug: str
    text: str
    grads: Callable[[], Params]
    loss: float | None = None
    whole: bool = True
    certain: bool = True


Entry = tuple[str, str, Callable[[Pass], Iterator[tuple[str, Pieces]]]]


def _one_hop(p):
    def no_credit(p, cell, credit, delta):
        return 0 * credit

    yield "", RIGHT._replace(pull=no_credit)


def _no_gain(p):
    leak = p.rnn.leak

    def leak_alone(p, layer):
        return np.full_like(p.gain[layer], leak)

    def pull_without_gain(p, cell, credit, delta):
        return pull_back(p, cell, credit, leak * credit)

    def down_without_gain(p, cell, credit, delta):
        return pass_down(p, cell, credit, leak * credit)

    yield "", RIGHT._replace(gain=leak_alone)
    yield "only in the term for the previous step", RIGHT._replace(pull=pull_without_gain)
    yield "only in the term for the layer below", RIGHT._replace(down=down_without_gain)


def _gain_of_the_wrong_step(p):
    def gain_of_previous_step(p, layer):
        return np.concatenate([_slope(p, p.h_prev[layer][:1]), p.gain[layer][:-1]])

    def gain_of_next_step(p, layer):
        return np.concatenate([p.gain[layer][1:], p.gain[layer][-1:]])

    yield "it is that of step t - 1", RIGHT._replace(gain=gain_of_previous_step)
    yield "it is that of step t + 1", RIGHT._replace(gain=gain_of_next_step)


def _slope_of_the_state(p):
    def slope_of_state(p, layer):
        return _slope(p, np.asarray(p.rnn.dynamics.activation.function(p.h[layer])))

    yield "", RIGHT._replace(gain=slope_of_state)


def _leak_forgotten(p):
    def slope_without_leak(p, layer):
        return p.gain[layer] / p.rnn.leak

    def pull_without_leak(p, cell, credit, delta):
        return delta @ cell.W_hh.T

    yield "δ_t must be leak φ'(a_t) dL/dh_t", RIGHT._replace(gain=slope_without_leak)
    variant = "dL/dh_{t-1} lacks the term (1 - leak) dL/dh_t"
    yield variant, RIGHT._replace(pull=pull_without_leak)


def _not_transposed(p):
    def without_transpose(p, cell, credit, delta):
        return (1 - p.rnn.leak) * credit + delta @ cell.W_hh

    yield "", RIGHT._replace(pull=without_transpose)


def _h_for_h_prev(p):
    def states(p, layer):
        return p.h[layer]

    yield "", RIGHT._replace(h_prev=states)


def _time_reversed(p):
    def order_of_the_loop(delta):
        return delta[::-1]

    yield "the backward loop runs from the first step to the last", RIGHT._replace(forward=True)
    reversed_deltas = RIGHT._replace(contracted=order_of_the_loop)
    yield (
        "the deltas, collected from the last step to the first, were not reversed",
        reversed_deltas,
    )


def _cut_into_chunks(p):
    for size in range(2, min(len(p.error), 64)):
        yield (
            f"the chunks have {size} steps",
            RIGHT._replace(cut=lambda t, size=size: t % size == 0),
        )


def _first_state(times):
    def entry(p):
        def h_prev(p, layer):
            return np.concatenate([times * p.h_prev[layer][:1], p.h_prev[layer][1:]])

        yield "", RIGHT._replace(h_prev=h_prev)

    return entry


def _input_error_dropped(p):
    def no_error(p, cell, credit, delta):
        return 0 * pass_down(p, cell, credit, delta)

    yield "", RIGHT._replace(down=no_error)


def _input_error_unweighted(p):
    def delta_itself(p, cell, credit, delta):
        return delta

    def not_transposed(p, cell, credit, delta):
        return delta @ cell.W_xh

    yield "it got δ_t itself", RIGHT._replace(down=delta_itself)
    yield "it got δ_t W_xh, without the transpose", RIGHT._replace(down=not_transposed)


IN_A_LAYER: tuple[Entry, ...] = (
    ("one-hop", "no error goes back in time: add δ_{t+1} W_hhᵀ to dL/dh_t", _one_hop),
    ("no gain", "the slope φ'(a_t) is missing: δ_t is φ'(a_t) times dL/dh_t", _no_gain),
    (
        "gain of the wrong step",
        "the slope in δ_t is that of another step: it must be φ'(a_t), which for tanh is 1 - h_t²",
        _gain_of_the_wrong_step,
    ),
    (
        "slope of the state",
        "the slope is φ'(h_t) instead of φ'(a_t): for tanh it is 1 - h_t², not 1 - tanh(h_t)²",
        _slope_of_the_state,
    ),
    ("leak forgotten", "the leak is missing in the backward pass", _leak_forgotten),
    (
        "W_hh not transposed",
        "δ_t was multiplied by W_hh instead of W_hhᵀ: since a_t = … + h_{t-1} W_hh, "
        "the previous step gets δ_t W_hhᵀ",
        _not_transposed,
    ),
    (
        "h_t for h_{t-1}",
        "dL/dW_hh was computed with h_t instead of h_{t-1}: it is Σ_t h_{t-1}ᵀ δ_t",
        _h_for_h_prev,
    ),
    ("time reversed", "states and errors of different time steps are combined", _time_reversed),
    (
        "cut into chunks",
        "errors stop at chunk boundaries inside the sequence, as after detach or stop_gradient",
        _cut_into_chunks,
    ),
    (
        "h_0 forgotten",
        "dL/dW_hh was computed with h_0 = 0: add the term h_0ᵀ δ_1 of the first step",
        _first_state(0),
    ),
    (
        "h_0 counted twice",
        "dL/dW_hh contains the term h_0ᵀ δ_1 of the first step twice",
        _first_state(2),
    ),
    (
        "input error dropped",
        "the layer below gets no error: its dL/dh_t must include δ_t W_xhᵀ of the layer above",
        _input_error_dropped,
    ),
    (
        "input error through the wrong matrix",
        "the layer below gets a wrong error: it must be δ_t W_xhᵀ",
        _input_error_unweighted,
    ),
)


def wrongs(p: Pass, parts: tuple[Cell, ...]) -> Iterator[Wrong]:
    """Yield the wrong gradients of the catalogue, the more common bugs first.

    Args:
        p: the forward pass.
        parts: the gradient of each cell by time lag, each leaf with a leading axis of lags.
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
            full_text = f"{text}; {variant}" if variant else text
            yield Wrong(bug, full_text, partial(gradient, p, pieces))
            for layer in range(layers) if 1 < layers <= 4 and bug != "cut into chunks" else ():
                in_layer = partial(gradient, p, pieces, {layer})
                yield Wrong(bug, f"{full_text}; in the layer cells[{layer}] alone", in_layer)


def _truncated(p: Pass, parts: tuple[Cell, ...]) -> Iterator[Wrong]:
    readout = contract_readout(p)
    totals = jax.tree.map(lambda part: part.cumsum(0), parts)

    def up_to(window):
        return Params(jax.tree.map(lambda total: total[window], totals), readout)

    for window in range(1, len(parts[0].W_hh)):
        text = (
            f"errors reach {window} recurrent steps back and no further, "
            f"as with truncated_bptt(window={window})"
        )
        yield Wrong(f"truncated at {window}", text, partial(up_to, window))


def _at_the_outputs(p: Pass) -> Iterator[Wrong]:
    batch, readout = p.batch, p.params.readout
    for variant, targets in _shifted(p):
        loss, shifted = with_loss_of(p, batch._replace(targets=targets))
        text = f"the targets are shifted by one step: {variant}"
        yield Wrong("targets shifted", text, partial(gradient, shifted), loss)
    if readout.b_y is not None and readout.b_y.any():
        loss, without = with_loss_of(p, batch, readout._replace(b_y=np.zeros_like(readout.b_y)))
        text = "dL/dy_t was computed from outputs y_t without b_y"
        yield Wrong("readout bias forgotten", text, partial(gradient, without), loss)
    if batch.mask is not None:
        loss, unmasked = with_loss_of(p, batch._replace(mask=None))
        text = "masked positions contribute: multiply dL/dy_t by the mask"
        yield Wrong("mask forgotten", text, partial(gradient, unmasked), loss)
        for axis, name in ((1, "each sequence"), (0, "each time step")) * (
            p.rnn.reduction == "mean"
        ):
            total = batch.mask.sum(axis, keepdims=True)
            weights = batch.mask / np.where(total == 0, 1, total) / batch.mask.shape[1 - axis]
            ratio = weights * batch.mask.sum() / np.where(batch.mask == 0, 1, batch.mask)
            text = f"it is a mean of means, one for {name}: divide by the sum of the whole mask"
            wrong = with_d_outputs(p, p.d_outputs * ratio.T[..., None])
            yield Wrong("mean over the wrong axis", text, partial(gradient, wrong))
    if p.rnn.loss_function == "softmax_cross_entropy":
        one_hot = batch.targets.T[..., None] == np.arange(p.rnn.output_size)
        weights = 1.0 if batch.mask is None else batch.mask.T[..., None]
        if p.rnn.reduction == "mean":
            count = batch.targets.size if batch.mask is None else batch.mask.sum()
            weights = weights / (count or 1)
        text = "dL/dy_t is the softmax alone: subtract 1 at the target"
        wrong = with_d_outputs(p, p.d_outputs + weights * one_hot)
        yield Wrong("target not subtracted", text, partial(gradient, wrong))
        yield from _guarded(p, weights * one_hot)
    if readout.W_hy.shape[0] == readout.W_hy.shape[1]:
        text = "dL/dy_t was multiplied by W_hy instead of W_hyᵀ: dL/dh_t gets dL/dy_t W_hyᵀ"
        wrong = p._replace(error=p.d_outputs @ readout.W_hy)
        yield Wrong("W_hy not transposed", text, partial(gradient, wrong))


def _guarded(p: Pass, weighted: np.ndarray) -> Iterator[Wrong]:
    """Yield the gradients of the loss with a guard, -log(p + ε).

    `weighted` holds the weight of each position at its target and 0 elsewhere, (T, B, O).
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
        text = f"the loss has a guard against log(0): -log(p + 1e-{exponent:02})"
        yield Wrong("guard", text, partial(gradient, wrong), loss, certain=False)


def _shifted(p: Pass) -> Iterator[tuple[str, np.ndarray]]:
    inputs, targets = p.batch.inputs, p.batch.targets
    yield "each step has the target of the next step", np.roll(targets, -1, axis=1)
    yield "each step has the target of the previous step", np.roll(targets, 1, axis=1)
    yield (
        "each step has the target of the next step",
        np.concatenate([targets[:, 1:], targets[:, -1:]], axis=1),
    )
    yield (
        "each step has the target of the previous step",
        np.concatenate([targets[:, :1], targets[:, :-1]], axis=1),
    )
    if inputs.shape == targets.shape and inputs.max() < p.rnn.output_size:
        yield "each step has its input as target", inputs


def _in_a_loop(p: Pass) -> Iterator[Wrong]:
    """Yield gradients in which some steps or sequences are left out of the sums."""
    steps, sequences = p.error.shape[:2]

    def only(rows):
        mask = np.zeros((steps, sequences, 1))
        mask[rows] = 1
        pieces = RIGHT._replace(contracted=lambda delta: mask * delta)
        cells = gradient(p, pieces).cells
        return Params(cells, contract_readout(p._replace(d_outputs=mask * p.d_outputs)))

    text = "the backward loop leaves out the {} step"
    if steps > 1:
        yield Wrong("a step left out", text.format("first"), partial(only, np.s_[1:]))
        without_last = with_d_outputs(p, np.concatenate([p.d_outputs[:-1], 0 * p.d_outputs[-1:]]))
        yield Wrong("a step left out", text.format("last"), partial(gradient, without_last))
    text = "it is the contribution of the {} alone: accumulate with += instead of ="
    if steps > 1:
        yield Wrong("= for +=", text.format("first step"), partial(only, np.s_[:1]), whole=False)
        yield Wrong("= for +=", text.format("last step"), partial(only, np.s_[-1:]), whole=False)
    if sequences > 1:
        yield Wrong(
            "= for +=", text.format("first sequence"), partial(only, np.s_[:, :1]), whole=False
        )
        yield Wrong(
            "= for +=", text.format("last sequence"), partial(only, np.s_[:, -1:]), whole=False
        )


def _slope(p: Pass, z: np.ndarray) -> np.ndarray:
    """Compute leak φ'(a) from z = φ(a)."""
    return np.asarray(p.rnn.dynamics.gain(jnp.asarray(z)))
