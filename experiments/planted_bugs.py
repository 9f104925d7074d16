"""Does `jaxrnn.verify` find and name the bugs that are planted in a backward pass?

Question: does it find every bug, does it name those of its catalogue correctly, and does it ever
report a correct gradient as wrong?

Setting, planted bugs: the backward pass is written in NumPy, batch-first, one step at a time, and
shares no code with jaxrnn. Every bug of the catalogue, and a few others, are planted in it for many
random networks and batches of random sizes, and `jaxrnn.verify` checks the result. A bug that does
not change the gradient of some network (for example a missing slope of the identity) must pass
there.

Setting, correct gradients: `jaxrnn.verify` checks

- gradients in float64 and in float32, with weights from 0.01 to 10 times their usual size;
- gradients that are computed in float32 and returned in float64, with the same weights;
- gradients of a cross-entropy with a guard, log(p + ε), with weights up to their usual size.

    python experiments/planted_bugs.py            about 25 minutes on two cores
    python experiments/planted_bugs.py --quick    one network, for tests
"""

import argparse
import dataclasses
import json
import time
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import jax
import numpy as np

import jaxrnn
from jaxrnn import plotting

Dtype = Literal["float64", "float32"]

PHI = {
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "relu": (lambda a: np.maximum(a, 0), lambda h: (h > 0) * 1.0),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda h: h * (1 - h)),
    "identity": (lambda a: a, np.ones_like),
}

# The planted bugs of the catalogue, and the name by which the report must call each.
NAMED = {
    "one-hop": "one-hop",
    "truncated": "truncated at",
    "no gain": "no gain",
    "no gain in the recurrence": "no gain",
    "gain of h_{t-1}": "gain of the wrong step",
    "gain of h_{t+1}": "gain of the wrong step",
    "W_hh not transposed": "W_hh not transposed",
    "h_t for h_{t-1}": "h_t for h_{t-1}",
    "forward in time": "time reversed",
    "deltas not turned round": "time reversed",
    "later targets": "targets shifted",
    "earlier targets": "targets shifted",
    "inputs for targets": "targets shifted",
    "h_0 forgotten": "h_0 forgotten",
    "h_0 counted twice": "h_0 counted twice",
    "sum for mean": "sum for mean",
    "mean for sum": "mean for sum",
    "mean over steps only": "mean over the wrong axis",
    "mean over sequences only": "mean over the wrong axis",
    "mean of each sequence": "mean over the wrong axis",
    "divided by the batch again": "mean taken twice",
    "sign": "sign",
    "scale": "scale",
    "twice": "counted twice",
    "half": "halved",
    "element-wise clip": "element-wise clip",
    "norm clip": "norm clip",
    "zero": "zero",
    "missing": "missing",
    "swapped": "swapped",
    "transposed": "transposed",
    "bias not summed over the batch": "not summed",
    "bias not summed over time": "not summed",
    "readout bias forgotten": "readout bias forgotten",
    "input error dropped": "input error dropped",
    "delta handed down": "input error through the wrong matrix",
    "W_xh not transposed": "input error through the wrong matrix",
    "W_hy not transposed": "W_hy not transposed",
    "mask forgotten": "mask forgotten",
    "= for +=": "= for +=",
    "first step left out": "a step left out",
    "last step left out": "a step left out",
    "leak forgotten": "leak forgotten",
    "detached every 3 steps": "cut into chunks",
    "slope of the state": "slope of the state",
    "target not subtracted": "target not subtracted",
}

# Planted bugs outside the catalogue. The report need only find them, at the right leaves.
UNNAMED = (
    "credit halved at every step",
    "wrong sign of the recurrent credit",
    "gain squared",
    "one element wrong",
    "noise",
    "W_hh from the wrong layer's input",
    "every other step forgotten",
)


def numpy_gradient(
    rnn, h_0, bug="", *, window=2, factor=3.0, limit=0.1, leaf="cells[0].W_hh", other=""
):
    """Build a NumPy backward pass, (params, batch) -> (loss, grads), with at most one bug."""
    phi, slope = PHI[rnn.activation]
    layers, leak = rnn.num_layers, rnn.leak

    def value_and_grad(params, batch):
        params = jax.tree.map(np.asarray, params)
        inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
        B, T = inputs.shape[:2]
        x = np.eye(rnn.input_size)[inputs] if inputs.ndim == 2 else inputs
        weight = np.ones((B, T)) if batch.mask is None else np.asarray(batch.mask, float)
        count = weight.sum() if rnn.reduction == "mean" else 1.0
        weight = weight / count

        # forward
        layer_inputs, h_prevs, states, gains = [], [], [], []
        for l, (W_xh, W_hh, b_h) in enumerate(params.cells):
            hs, activations = [np.asarray(h_0[l], float)], []
            for t in range(T):
                a = x[:, t] @ W_xh + hs[-1] @ W_hh + (0 if b_h is None else b_h)
                activations.append(phi(a))
                hs.append((1 - leak) * hs[-1] + leak * activations[-1])
            layer_inputs.append(x)
            x = np.stack(hs[1:], 1)
            h_prevs.append(np.stack(hs[:-1], 1))
            states.append(x)
            gain = leak * slope(np.stack(activations, 1))
            if bug == "no gain":
                gain = leak * np.ones_like(gain)
            elif bug == "gain of h_{t-1}":
                gain = np.concatenate([leak * slope(hs[0])[:, None], gain[:, :-1]], 1)
            elif bug == "gain of h_{t+1}":
                gain = np.concatenate([gain[:, 1:], gain[:, -1:]], 1)
            elif bug == "slope of the state":
                gain = leak * slope(phi(x))
            elif bug == "gain squared":
                gain = gain**2 / leak
            elif bug == "leak forgotten":
                gain = gain / leak
            gains.append(gain)

        # loss
        W_hy, b_y = params.readout
        y = x @ W_hy + (0 if b_y is None else b_y)

        def dloss(y, targets, weight):
            if rnn.loss_function == "squared_error":
                return 2 * (y - targets) * weight[..., None]
            p = np.exp(y - y.max(-1, keepdims=True))
            p = p / p.sum(-1, keepdims=True)
            hot = np.eye(rnn.output_size)[targets] * (bug != "target not subtracted")
            return (p - hot) * weight[..., None]

        if rnn.loss_function == "squared_error":
            loss = (((y - targets) ** 2).sum(-1) * weight).sum()
        else:
            top = y.max(-1, keepdims=True)
            logs = np.log(np.exp(y - top).sum(-1)) + top[..., 0]
            loss = ((logs - np.take_along_axis(y, targets[..., None], -1)[..., 0]) * weight).sum()
        if bug == "later targets":
            targets = np.roll(targets, -1, 1)
        elif bug == "earlier targets":
            targets = np.roll(targets, 1, 1)
        elif bug == "inputs for targets":
            targets = inputs
        elif bug == "readout bias forgotten":
            y = x @ W_hy
        elif bug == "mean of each sequence":
            total = weight.sum(1, keepdims=True)
            weight = weight / np.where(total == 0, 1, total) / B
        elif bug == "mask forgotten":
            weight = np.ones_like(weight) / (weight.size if rnn.reduction == "mean" else 1.0)
        dy = dloss(y, targets, weight)
        if bug == "last step left out":
            dy[:, -1] = 0

        # backward
        def walk(errors, first, last):
            """Compute the deltas of every layer, from step `last` back to step `first`."""
            ds = [np.zeros((B, T, rnn.hidden_size)) for _ in range(layers)]
            dh_next = [np.zeros((B, rnn.hidden_size)) for _ in range(layers)]
            times = range(last, first - 1, -1)
            for t in reversed(times) if bug == "forward in time" else times:
                dh = errors[:, t]
                for l in reversed(range(layers)):
                    W_xh, W_hh, _ = params.cells[l]
                    dh = dh + dh_next[l]
                    d = ds[l][:, t] = gains[l][:, t] * dh
                    back = W_hh if bug == "W_hh not transposed" else W_hh.T
                    passed = leak * dh if bug == "no gain in the recurrence" else d
                    dh_next[l] = passed @ back + (1 - leak) * dh
                    if bug == "detached every 3 steps" and t % 3 == 0:
                        dh_next[l] = 0 * dh
                    elif bug == "credit halved at every step":
                        dh_next[l] = dh_next[l] / 2
                    elif bug == "wrong sign of the recurrent credit":
                        dh_next[l] = -dh_next[l]
                    if bug == "delta handed down":
                        dh = d
                    elif bug == "W_xh not transposed" and l > 0:
                        dh = d @ W_xh
                    else:
                        dh = d @ W_xh.T * (bug != "input error dropped")
            return ds

        errors = dy @ (W_hy if bug == "W_hy not transposed" else W_hy.T)
        if bug in ("one-hop", "truncated"):
            lags = 0 if bug == "one-hop" else window
            deltas = [np.zeros_like(gain) for gain in gains]
            for t in range(T):
                error_t = np.zeros_like(errors)
                error_t[:, t] = errors[:, t]
                for total, part in zip(deltas, walk(error_t, max(0, t - lags), t), strict=True):
                    total += part
        else:
            deltas = walk(errors, 0, T - 1)
        if bug == "deltas not turned round":
            deltas = [d[:, ::-1] for d in deltas]
        if bug == "first step left out":
            deltas = [np.concatenate([0 * d[:, :1], d[:, 1:]], 1) for d in deltas]
            dy = np.concatenate([0 * dy[:, :1], dy[:, 1:]], 1)
        if bug == "every other step forgotten":
            deltas = [d * (np.arange(T) % 2)[:, None] for d in deltas]

        # gradients
        grads = {}
        for l, d in enumerate(deltas):
            h_prev = states[l] if bug == "h_t for h_{t-1}" else h_prevs[l].copy()
            h_prev[:, 0] *= {"h_0 forgotten": 0, "h_0 counted twice": 2}.get(bug, 1)
            grads[f"cells[{l}].W_xh"] = np.einsum("bti,bth->ih", layer_inputs[l], d)
            grads[f"cells[{l}].W_hh"] = np.einsum("bti,bth->ih", h_prev, d)
            grads |= {f"cells[{l}].b_h": d.sum((0, 1))} if rnn.use_bias else {}
        grads["readout.W_hy"] = np.einsum("bth,bto->ho", x, dy)
        grads |= {"readout.b_y": dy.sum((0, 1))} if rnn.use_bias else {}
        change_grads(grads, deltas, B, T, count)
        return loss, to_params(grads)

    def change_grads(grads, deltas, B, T, count):
        """Plant the bugs that act on finished gradients, in place."""
        g = grads[leaf]
        scales = {"sum for mean": count, "mean over steps only": B, "mean over sequences only": T}
        scales |= {"mean for sum": 1 / (B * T), "divided by the batch again": 1 / B}
        if bug in scales:
            grads.update({name: scales[bug] * each for name, each in grads.items()})
        elif bug == "norm clip":
            norm = np.sqrt(sum((each**2).sum() for each in grads.values()))
            clip = float(f"{limit * norm:.2g}") / norm
            grads.update({name: clip * each for name, each in grads.items()})
        elif bug == "element-wise clip":
            clip = limit * max(np.abs(each).max() for each in grads.values())
            grads.update({name: np.clip(each, -clip, clip) for name, each in grads.items()})
        elif bug == "sign":
            grads[leaf] = -g
        elif bug == "scale":
            grads[leaf] = factor * g
        elif bug in ("twice", "half"):
            grads[leaf] = {"twice": 2, "half": 0.5}[bug] * g
        elif bug == "zero":
            grads[leaf] = 0 * g
        elif bug == "missing":
            grads[leaf] = None
        elif bug == "swapped":
            grads[leaf], grads[other] = grads[other], g
        elif bug == "transposed":
            grads[leaf] = g.T
        elif bug == "one element wrong":
            grads[leaf] = g.copy()
            grads[leaf].flat[-1] += 1e-6 * np.linalg.norm(g)
        elif bug == "noise":
            grads[leaf] = g * (1 + 1e-6 * np.random.default_rng(0).normal(size=g.shape))
        elif bug == "W_hh from the wrong layer's input":
            grads[leaf] = np.einsum("bti,bth->ih", deltas[0], deltas[0])
        elif bug == "bias not summed over the batch":
            grads["cells[0].b_h"] = deltas[0].sum(1)
        elif bug == "bias not summed over time":
            grads["cells[0].b_h"] = deltas[0].sum(0)
        elif bug == "= for +=":
            grads["cells[0].b_h"] = deltas[0][:, 0].sum(0)

    def to_params(grads):
        cells = [
            jaxrnn.Cell(*(grads.get(f"cells[{l}].{name}") for name in jaxrnn.Cell._fields))
            for l in range(layers)
        ]
        readout = jaxrnn.Readout(grads["readout.W_hy"], grads.get("readout.b_y"))
        return jaxrnn.Params(tuple(cells), readout)

    return value_and_grad


def draw(rng, *, B=None, T=None):
    """Draw a network of random sizes and options, its parameters, h_0 and a batch."""
    B, T = B or int(rng.integers(2, 6)), T or int(rng.integers(5, 13))
    I, H, O = (int(rng.integers(low, low + 6)) for low in (3, 3, 2))
    O = int(rng.choice([O, H, I]))
    loss = str(rng.choice(["softmax_cross_entropy", "squared_error"]))
    options: dict = {
        "num_layers": int(rng.choice([1, 2])),
        "activation": str(rng.choice(list(PHI))),
        "leak": float(rng.choice([1.0, 0.6])),
        "use_bias": bool(rng.random() < 0.8),
        "loss_function": loss,
        "reduction": str(rng.choice(["mean", "sum"])),
        "recurrent_init": jax.nn.initializers.orthogonal(float(rng.choice([0.7, 1.0, 1.3]))),
        "bias_init": jax.nn.initializers.normal(0.3),
    }
    rnn = jaxrnn.RNN(I, H, O, **options)
    params = rnn.init(jax.random.key(int(rng.integers(2**31))))
    inputs = rng.integers(0, I, (B, T)) if rng.random() < 0.5 else rng.normal(size=(B, T, I))
    targets = rng.integers(0, O, (B, T)) if "softmax" in loss else rng.normal(size=(B, T, O))
    mask = np.maximum(rng.random((B, T)) - 0.3, 0) if rng.random() < 0.4 else None
    h = 0.5 * rng.normal(size=(rnn.num_layers, B, H))
    return rnn, params, h, jaxrnn.Batch(inputs, targets, mask)


def can_be_planted(bug, rnn, batch):
    """Return whether a bug can be planted in this network, on this batch."""
    needs = {
        "mean for sum": rnn.reduction == "sum",
        "sum for mean": rnn.reduction == "mean",
        "mean over steps only": rnn.reduction == "mean",
        "mean over sequences only": rnn.reduction == "mean",
        "mean of each sequence": rnn.reduction == "mean",
        "divided by the batch again": rnn.reduction == "mean",
        "bias not summed over the batch": rnn.use_bias,
        "bias not summed over time": rnn.use_bias,
        "= for +=": rnn.use_bias,
        "readout bias forgotten": rnn.use_bias,
        "swapped": rnn.num_layers > 1,
        "input error dropped": rnn.num_layers > 1,
        "delta handed down": rnn.num_layers > 1,
        "W_xh not transposed": rnn.num_layers > 1,
        "W_hy not transposed": rnn.hidden_size == rnn.output_size,
        "inputs for targets": batch.inputs.shape == batch.targets.shape
        and rnn.input_size <= rnn.output_size,
    }
    return needs.get(bug, True)


def bug_options(bug, rng):
    """Draw the place and the size of a bug: keyword arguments of `numpy_gradient`."""
    leaves = ["cells[0].W_xh", "cells[0].W_hh", "readout.W_hy"]
    any_leaf = bug not in ("swapped", "transposed", "W_hh from the wrong layer's input")
    return {
        "leaf": str(rng.choice(leaves)) if any_leaf else "cells[0].W_hh",
        "other": "cells[1].W_hh",
        "factor": float(rng.uniform(1.5, 5)),
        "window": int(rng.integers(1, 4)),
    }


def in_float64(params):
    """Convert parameters to NumPy arrays in float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def plant(networks, seed):
    """Plant every bug in random networks; return how often it got each name."""
    rng = np.random.default_rng(seed)
    calls = {bug: Counter() for bug in (*NAMED, *UNNAMED)}
    for _ in range(networks):
        rnn, params, h, batch = draw(rng)
        _, right = numpy_gradient(rnn, h)(in_float64(params), batch)
        for bug in filter(partial(can_be_planted, rnn=rnn, batch=batch), calls):
            wrong = numpy_gradient(rnn, h, bug, **bug_options(bug, rng))
            report = jaxrnn.verify(wrong, rnn, params, batch, h=h)
            names = {finding.bug for finding in report.findings}
            if (
                len(report.findings) == 1
                and (expected := NAMED.get(bug)) in report.findings[0].alike
            ):
                names = {expected}
            if report.ok:
                _, grads = wrong(in_float64(params), batch)
                pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(right), strict=True)
                same = all(np.abs(a - b).max() <= 1e-12 * np.abs(b).max() for a, b in pairs)
                names = {"changes nothing" if same else "not found"}
            calls[bug]["; ".join(sorted(names))] += 1
    return calls


def check_correct(networks, draws, seed):
    """Check correct gradients; count all, those reported as wrong, and those left undecided."""
    rng, counts = np.random.default_rng(seed), {}
    for _ in range(networks):
        rnn, params, h, batch = draw(rng)
        bptt, autodiff = jaxrnn.gradients.bptt(rnn), jaxrnn.gradients.autodiff(rnn)
        candidates: dict[Dtype, tuple] = {
            "float64": (bptt, numpy_gradient(rnn, h)),
            "float32": (bptt, autodiff),
        }
        in_float32 = [computed_in_float32(side, h) for side in (bptt, autodiff)]
        entropy = dataclasses.replace(rnn, loss_function="softmax_cross_entropy")
        guarded = [with_guard(entropy, h, guard) for guard in GUARDS]
        ids = np.random.default_rng(seed).integers(0, rnn.output_size, batch.inputs.shape[:2])
        for _ in range(draws):
            scale = 10 ** rng.uniform(-2, 1)

            def redrawn(leaf, scale=scale):
                return scale * rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0])

            weights = jax.tree.map(redrawn, params)
            for dtype, sides in candidates.items():
                for side in sides:
                    report = jaxrnn.verify(side, rnn, weights, batch, h=h, dtype=dtype)
                    add(counts, dtype, report)
            for side in in_float32:
                add(counts, "float32 inside", jaxrnn.verify(side, rnn, weights, batch, h=h))
            excess = max(scale, 1)
            ordinary = jax.tree.map(lambda leaf, excess=excess: leaf / excess, weights)
            for side in guarded:
                report = jaxrnn.verify(side, entropy, ordinary, batch._replace(targets=ids), h=h)
                add(counts, "epsilon guard", report)
    return counts


def add(counts, column, report):
    """Count the report on a correct gradient."""
    certain = any(finding.certain for finding in report.findings)
    count = counts.setdefault(column, Counter())
    count["asked"] += 1
    count["accused"] += certain
    count["cannot tell"] += bool(report.findings) and not certain


def computed_in_float32(algorithm, h_0):
    """Build a candidate that computes in float32 and returns its gradient in float64."""
    value_and_grad = jax.jit(algorithm.value_and_grad)

    def candidate(params, batch):
        params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
        carry = algorithm.init(params, np.asarray(h_0, np.float32))
        (loss, _), grads = value_and_grad(params, carry, batch)
        return loss, in_float64(grads)

    return candidate


GUARDS = (1e-12, 1e-9)


def with_guard(rnn, h_0, guard):
    """Build a candidate whose loss is -log(p + guard), differentiated by JAX."""

    def loss(outputs, targets):
        p = jax.nn.softmax(outputs)
        return -jax.numpy.log(jax.numpy.take_along_axis(p, targets[..., None], -1)[..., 0] + guard)

    algorithm = jaxrnn.gradients.autodiff(dataclasses.replace(rnn, loss_function=loss))
    value_and_grad = jax.jit(algorithm.value_and_grad)

    def candidate(params, batch):
        (value, _), grads = value_and_grad(params, algorithm.init(params, h_0), batch)
        return value, grads

    return candidate


def is_name_of(bug, called):
    """Return whether a report called a bug of the catalogue by its name."""
    return bug in NAMED and called.startswith(NAMED[bug]) and ";" not in called


def plot(report, path):
    """Plot what became of the planted bugs and of the right gradients."""
    bugs = {
        "called by its name": plotting.BLUE,
        "unknown": plotting.SKY,
        "another name": plotting.AMBER,
        "missed": plotting.ORANGE,
    }
    answers = {"right": plotting.BLUE, "cannot tell": plotting.SKY, "accused": plotting.ORANGE}
    counts = {"in the catalogue": Counter(), "not in it": Counter()}
    for bug, calls in report["called"].items():
        row = counts["in the catalogue" if bug in NAMED else "not in it"]
        for called, number in calls.items():
            if called == "not found":
                row["missed"] += number
            elif is_name_of(bug, called):
                row["called by its name"] += number
            elif called != "changes nothing":
                row["unknown" if called == "unknown" else "another name"] += number
    right = {
        name: {
            "right": row["asked"] - row["accused"] - row["cannot tell"],
            "cannot tell": row["cannot tell"],
            "accused": row["accused"],
        }
        for name, row in report["right gradients"].items()
    }
    with plotting.picture(path, 11, 3.2) as figure:
        panels = figure.subplots(1, 2)
        for axes, rows, colors, title in (
            (panels[0], counts, bugs, "Planted bugs"),
            (panels[1], right, answers, "Right gradients"),
        ):
            left = np.zeros(len(rows))
            for answer, color in colors.items():
                numbers = np.array([row[answer] for row in rows.values()], float)
                total = f"{answer}: {numbers.sum():,.0f}"
                if numbers.any() or color == plotting.ORANGE:
                    axes.barh(list(rows), numbers, left=left, color=color, label=total)
                left += numbers
            axes.invert_yaxis()
            wrong = list(colors)[-1]
            number = sum(row[wrong] for row in rows.values())
            axes.set(
                title=f"{title}: {number} of {left.sum():,.0f} {wrong}", xlabel="number of cases"
            )
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3)


def main():
    """Run the experiment, print a summary, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one network, for tests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    networks, draws = (1, 2) if arguments.quick else (50, 10)

    started = time.perf_counter()
    calls = plant(networks, arguments.seed)
    verdicts = check_correct(networks, draws, arguments.seed + 1)
    planted = sum(sum(counts.values()) for counts in calls.values())
    nothing = sum(counts["changes nothing"] for counts in calls.values())
    missed = sum(counts["not found"] for counts in calls.values())
    named = sum(
        count for bug in NAMED for called, count in calls[bug].items() if is_name_of(bug, called)
    )
    nameable = sum(
        count
        for bug in NAMED
        for called, count in calls[bug].items()
        if called not in ("changes nothing", "not found")
    )
    print(f"seed {arguments.seed}, {networks} random networks")
    print(f"{planted} bugs planted, {nothing} of them change nothing; not found: {missed}")
    print(f"bugs of the catalogue with the right name: {named} of {nameable}")
    for column, counts in verdicts.items():
        print(
            f"correct gradients, {column}: {counts['accused']} of {counts['asked']} "
            f"reported as wrong, {counts['cannot tell']} left undecided"
        )
    print(f"{time.perf_counter() - started:.0f} s")
    result = {
        "seed": arguments.seed,
        "networks": networks,
        "planted": planted,
        "changed nothing": nothing,
        "not found": missed,
        "named": named,
        "of those in the catalogue": nameable,
        "called": calls,
        "right gradients": verdicts,
        "versions": {name: version(name) for name in ("jaxrnn", "jax", "jaxlib", "numpy")},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "planted_bugs.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
