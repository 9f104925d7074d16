"""Plants every bug of the catalogue in an independent backward pass; is it found, and named?

    python experiments/planted_bugs.py

The backward pass is somebody's own: NumPy, batch-first, a step at a time, and nothing of it from
jaxrnn. Each bug is planted in it for many random networks and batches, all sizes at random, and
`jaxrnn.verify` is asked. Asked as well are bugs that the catalogue does not have, two bugs at once,
and the same pass without a bug.
"""

import jax
import numpy as np

import jaxrnn

PHI = {
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "relu": (lambda a: np.maximum(a, 0), lambda h: (h > 0) * 1.0),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda h: h * (1 - h)),
    "identity": (lambda a: a, np.ones_like),
}

# What is planted, and the name that the report must give it.
NAMED = {
    "one-hop": "one-hop",
    "truncated": "truncated at",
    "no gain": "no gain",
    "gain of h_{t-1}": "gain of the wrong step",
    "W_hh not transposed": "W_hh not transposed",
    "h_t for h_{t-1}": "h_t for h_{t-1}",
    "forward in time": "time reversed",
    "deltas not turned round": "time reversed",
    "later targets": "targets shifted",
    "earlier targets": "targets shifted",
    "h_0 forgotten": "h_0 forgotten",
    "h_0 counted twice": "h_0 counted twice",
    "sum for mean": "sum for mean",
    "mean for sum": "mean for sum",
    "mean over steps only": "mean over the wrong axis",
    "mean over sequences only": "mean over the wrong axis",
    "sign": "sign",
    "scale": "scale",
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
    "mask forgotten": "mask forgotten",
    "= for +=": "= for +=",
    "first step left out": "a step left out",
    "last step left out": "a step left out",
    "leak forgotten": "leak forgotten",
    "detached every 3 steps": "cut into chunks",
    "slope of the state": "slope of the state",
    "target not subtracted": "target not subtracted",
}

# Not in the catalogue: only to be found, at the right leaves.
UNNAMED = (
    "credit halved at every step",
    "wrong sign of the recurrent credit",
    "gain squared",
    "one element wrong",
    "noise",
    "W_hh from the wrong layer's input",
    "every other step forgotten",
)


def somebodys(rnn, h_0, bug="", *, window=2, factor=3.0, limit=0.1, leaf="cells[0].W_hh", other=""):
    """Write a backward pass by hand, with or without a bug: (params, batch) -> (loss, grads)."""
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
        read, before, after, gains = [], [], [], []
        for l, (W_xh, W_hh, b_h) in enumerate(params.cells):
            hs, zs = [np.asarray(h_0[l], float)], []
            for t in range(T):
                a = x[:, t] @ W_xh + hs[-1] @ W_hh + (0 if b_h is None else b_h)
                zs.append(phi(a))
                hs.append((1 - leak) * hs[-1] + leak * zs[-1])
            read.append(x)
            x = np.stack(hs[1:], 1)
            before.append(np.stack(hs[:-1], 1))
            after.append(x)
            gain = leak * slope(np.stack(zs, 1))
            if bug == "no gain":
                gain = leak * np.ones_like(gain)
            elif bug == "gain of h_{t-1}":
                gain = np.concatenate([leak * slope(hs[0])[:, None], gain[:, :-1]], 1)
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
        elif bug == "readout bias forgotten":
            y = x @ W_hy
        elif bug == "mask forgotten":
            weight = np.ones_like(weight) / (weight.size if rnn.reduction == "mean" else 1.0)
        dy = dloss(y, targets, weight)
        if bug == "last step left out":
            dy[:, -1] = 0

        # backward
        def walk(errors, first, last):
            """Go back from step `last` to step `first`; return every layer's deltas."""
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
                    dh_next[l] = d @ back + (1 - leak) * dh
                    if bug == "detached every 3 steps" and t % 3 == 0:
                        dh_next[l] = 0 * dh
                    elif bug == "credit halved at every step":
                        dh_next[l] = dh_next[l] / 2
                    elif bug == "wrong sign of the recurrent credit":
                        dh_next[l] = -dh_next[l]
                    dh = d @ W_xh.T * (bug != "input error dropped")
            return ds

        errors = dy @ W_hy.T
        if bug in ("one-hop", "truncated"):
            reach = 0 if bug == "one-hop" else window
            deltas = [np.zeros_like(gain) for gain in gains]
            for t in range(T):
                one = np.zeros_like(errors)
                one[:, t] = errors[:, t]
                for total, part in zip(deltas, walk(one, max(0, t - reach), t), strict=True):
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
            saw = after[l] if bug == "h_t for h_{t-1}" else before[l].copy()
            saw[:, 0] *= {"h_0 forgotten": 0, "h_0 counted twice": 2}.get(bug, 1)
            grads[f"cells[{l}].W_xh"] = np.einsum("bti,bth->ih", read[l], d)
            grads[f"cells[{l}].W_hh"] = np.einsum("bti,bth->ih", saw, d)
            grads |= {f"cells[{l}].b_h": d.sum((0, 1))} if rnn.use_bias else {}
        grads["readout.W_hy"] = np.einsum("bth,bto->ho", x, dy)
        grads |= {"readout.b_y": dy.sum((0, 1))} if rnn.use_bias else {}
        outside(grads, deltas, B, T, count)
        return loss, packed(grads)

    def outside(grads, deltas, B, T, count):
        """Do what is done to a gradient that is already there, in place."""
        g = grads[leaf]
        every = {"sum for mean": count, "mean over steps only": B, "mean over sequences only": T}
        every |= {"mean for sum": 1 / (B * T)}
        if bug in every:
            grads.update({name: every[bug] * each for name, each in grads.items()})
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

    def packed(grads):
        cells = [
            jaxrnn.Cell(*(grads.get(f"cells[{l}].{name}") for name in jaxrnn.Cell._fields))
            for l in range(layers)
        ]
        readout = jaxrnn.Readout(grads["readout.W_hy"], grads.get("readout.b_y"))
        return jaxrnn.Params(tuple(cells), readout)

    return value_and_grad


def draw(rng, *, B=None, T=None):
    """Draw a network, its parameters, a state and a batch, all sizes and kinds at random."""
    B, T = B or int(rng.integers(2, 6)), T or int(rng.integers(5, 13))
    I, H, O = (int(rng.integers(low, low + 6)) for low in (3, 3, 2))
    loss = str(rng.choice(["softmax_cross_entropy", "squared_error"]))
    kind: dict = {
        "num_layers": int(rng.choice([1, 2])),
        "activation": str(rng.choice(list(PHI))),
        "leak": float(rng.choice([1.0, 0.6])),
        "use_bias": bool(rng.random() < 0.8),
        "loss": loss,
        "reduction": str(rng.choice(["mean", "sum"])),
        "recurrent_init": jax.nn.initializers.orthogonal(float(rng.choice([0.7, 1.0, 1.3]))),
        "bias_init": jax.nn.initializers.normal(0.3),
    }
    rnn = jaxrnn.RNN(I, H, O, **kind)
    params = rnn.init(jax.random.key(int(rng.integers(2**31))))
    inputs = rng.integers(0, I, (B, T)) if rng.random() < 0.5 else rng.normal(size=(B, T, I))
    targets = rng.integers(0, O, (B, T)) if "softmax" in loss else rng.normal(size=(B, T, O))
    mask = np.maximum(rng.random((B, T)) - 0.3, 0) if rng.random() < 0.4 else None
    h = 0.5 * rng.normal(size=(rnn.num_layers, B, H))
    return rnn, params, h, jaxrnn.Batch(inputs, targets, mask)
