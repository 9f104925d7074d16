"""Contenders of the benchmarks: the same loss and gradients, computed with other libraries.

There is one function per library. Each takes a network with one tanh layer and biases, its
parameters and a batch of ids, and returns a call. The call computes the mean cross-entropy and all
its gradients, from h = 0 and in float32, and returns only when they are computed. Libraries whose
layers take vectors get the ids as one-hot rows, which are made in advance. Everything else is
written as users of the library write it.
"""

# pyright: reportMissingImports=false

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxrnn
from jaxrnn import RNN, Batch, Params, exchange

# A call, and a function that converts its result to (loss, gradients) in the form of jaxrnn.
Contender = tuple[Callable[[], Any], Callable[[Any], tuple[Any, Params]]]


def rule(make: Callable[[RNN], jaxrnn.GradientAlgorithm]) -> Callable[..., Contender]:
    """Build a contender from a rule of jaxrnn."""

    def contender(rnn: RNN, params: Params, batch: Batch) -> Contender:
        algorithm, h = make(rnn), rnn.initial_state(len(batch.inputs))
        step = jax.jit(algorithm.value_and_grad)
        run = partial(step, params, algorithm.init(params, h), jax.tree.map(jnp.asarray, batch))
        return _until_ready(run), lambda result: (result[0][0], result[1])

    return contender


def devices(rnn: RNN, params: Params, batch: Batch) -> Contender | None:
    """Build bptt on all devices, with the batch sharded as by `jaxrnn train --devices N`."""
    mesh, h = jaxrnn.make_mesh(), rnn.initial_state(len(batch.inputs))
    if mesh.size == 1 or len(batch.inputs) % mesh.size:
        return None

    def put(tree, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.device_put(jax.tree.map(jnp.asarray, tree), sharding)

    (rows,) = mesh.axis_names
    algorithm = jaxrnn.sharded(jaxrnn.gradients.bptt, rnn, mesh)
    carry = algorithm.init(params, h)._replace(h=put(h, None, rows))
    run = partial(jax.jit(algorithm.value_and_grad), put(params), carry, put(batch, rows))
    return _until_ready(run), lambda result: (result[0][0], result[1])


def scan(rnn: RNN, params: Params, batch: Batch) -> Contender:
    """Build `jax.grad` through a single `lax.scan` that contains all computations."""

    def loss(params, inputs, targets):
        (cell,), readout = params

        def step(h, now):
            x, target = now
            h = jnp.tanh(cell.W_xh[x] + h @ cell.W_hh + cell.b_h)
            y = h @ readout.W_hy + readout.b_y
            return h, _cross_entropy(y, target)

        h = jnp.zeros((inputs.shape[0], rnn.hidden_size))
        return lax.scan(step, h, (inputs.T, targets.T))[1].mean()

    return _differentiated(loss, params, batch.inputs, batch.targets, lambda grads: grads)


def flax(rnn: RNN, params: Params, batch: Batch) -> Contender:
    """Build the network in Flax linen, with `RNN(SimpleCell)` and `Dense`."""
    from flax import linen

    layer, dense = linen.RNN(linen.SimpleCell(rnn.hidden_size)), linen.Dense(rnn.output_size)
    (cell,), readout = exchange.to_flax(rnn, params)
    variables = {"rnn": {"cell": cell["params"]}, "readout": readout["params"]}

    def loss(variables, x, targets):
        states = layer.apply({"params": variables["rnn"]}, x)
        outputs = dense.apply({"params": variables["readout"]}, states)
        return _cross_entropy(outputs, targets)

    def read(grads):
        return exchange.from_flax([grads["rnn"]["cell"]], grads["readout"])[1]

    return _differentiated(loss, variables, _one_hot(rnn, batch), batch.targets, read)


def haiku(rnn: RNN, params: Params, batch: Batch) -> Contender:
    """Build the network in Haiku: its VanillaRNN with tanh in place of ReLU, and `Linear`."""
    import haiku as hk

    class Vanilla(hk.RNNCore):
        def __call__(self, inputs, prev_state):
            drive = hk.Linear(rnn.hidden_size, name="input")(inputs)
            out = jnp.tanh(drive + hk.Linear(rnn.hidden_size, False, name="hidden")(prev_state))
            return out, out

        def initial_state(self, batch_size):
            return jnp.zeros((batch_size, rnn.hidden_size))

    def outputs(x):
        core = Vanilla(name="rnn")
        states, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
        return hk.Linear(rnn.output_size, name="readout")(states)

    (cell,), readout = params
    variables = {
        "rnn/input": {"w": cell.W_xh, "b": cell.b_h},
        "rnn/hidden": {"w": cell.W_hh},
        "readout": {"w": readout.W_hy, "b": readout.b_y},
    }
    network = hk.without_apply_rng(hk.transform(outputs))

    def loss(variables, x, targets):
        return _cross_entropy(network.apply(variables, x), targets)

    def read(grads):
        drive, hidden, last = (grads[name] for name in variables)
        cell = jaxrnn.Cell(drive["w"], hidden["w"], drive["b"])
        return Params((cell,), jaxrnn.Readout(last["w"], last["b"]))

    return _differentiated(loss, variables, _one_hot(rnn, batch), batch.targets, read)


def equinox(rnn: RNN, params: Params, batch: Batch) -> Contender:
    """Build the network in Equinox: a cell of two `Linear`s, in `lax.scan`, under `vmap`."""
    import equinox as eqx

    class Elman(eqx.Module):
        drive: eqx.nn.Linear
        hidden: eqx.nn.Linear
        readout: eqx.nn.Linear

        def __call__(self, x):
            def step(h, x_t):
                h = jnp.tanh(self.drive(x_t) + self.hidden(h))
                return h, self.readout(h)

            return lax.scan(step, jnp.zeros(rnn.hidden_size), x)[1]

    (cell,), readout = params

    def linear(weight, bias):
        fan_in, fan_out = weight.shape
        module = eqx.nn.Linear(fan_in, fan_out, use_bias=bias is not None, key=jax.random.key(0))
        module = eqx.tree_at(lambda layer: layer.weight, module, weight.T)
        return module if bias is None else eqx.tree_at(lambda layer: layer.bias, module, bias)

    model = Elman(linear(cell.W_xh, cell.b_h), linear(cell.W_hh, None), linear(*readout))

    def loss(model, x, targets):
        return _cross_entropy(jax.vmap(model)(x), targets)

    def read(grads):
        drive, hidden, last = grads.drive, grads.hidden, grads.readout
        cell = jaxrnn.Cell(drive.weight.T, hidden.weight.T, drive.bias)
        return Params((cell,), jaxrnn.Readout(last.weight.T, last.bias))

    return _differentiated(loss, model, _one_hot(rnn, batch), batch.targets, read)


def torch(rnn: RNN, params: Params, batch: Batch, *, compiled: bool = False) -> Contender:
    """Build the network in PyTorch, eager or compiled, with `nn.RNN` and `nn.Linear`."""
    import torch

    layer = torch.nn.RNN(rnn.input_size, rnn.hidden_size, batch_first=True)
    linear = torch.nn.Linear(rnn.hidden_size, rnn.output_size)
    for module, state in zip((layer, linear), exchange.to_torch(rnn, params), strict=True):
        module.load_state_dict({name: torch.from_numpy(leaf) for name, leaf in state.items()})
    x = torch.from_numpy(np.array(_one_hot(rnn, batch)))
    targets = torch.from_numpy(np.array(batch.targets, np.int64))

    def outputs(x):
        return linear(layer(x)[0])

    outputs = torch.compile(outputs) if compiled else outputs

    def run():
        layer.zero_grad()
        linear.zero_grad()
        loss = torch.nn.functional.cross_entropy(outputs(x).flatten(0, 1), targets.flatten())
        loss.backward()
        return loss

    def read(loss):
        grads = [
            {name: leaf.grad for name, leaf in module.named_parameters()}
            for module in (layer, linear)
        ]
        for name in ("bias_hh_l0",):  # both biases have the same gradient; count it once
            grads[0][name] = torch.zeros_like(grads[0][name])
        return loss.item(), exchange.from_torch(*grads)[1]

    return run, read


def numpy(rnn: RNN, params: Params, batch: Batch) -> Contender | None:
    """Build NumPy loops over the characters of one sequence, with column vectors."""
    if len(batch.inputs) > 1:
        return None
    columns = exchange.to_min_char_rnn(rnn, params)
    names: tuple[str, ...] = ("Wxh", "Whh", "Why", "bh", "by")
    Wxh, Whh, Why, bh, by = (columns[name] for name in names)
    answers = np.asarray(batch.targets)[0]
    rows = np.asarray(_one_hot(rnn, batch))[0][..., None]

    def run():
        h, p, loss = {-1: np.zeros_like(bh)}, {}, 0.0
        for t, answer in enumerate(answers):
            h[t] = np.tanh(Wxh @ rows[t] + Whh @ h[t - 1] + bh)
            y = Why @ h[t] + by
            p[t] = np.exp(y) / np.sum(np.exp(y))
            loss -= np.log(p[t][answer, 0])
        dWxh, dWhh, dWhy, dbh, dby = map(np.zeros_like, (Wxh, Whh, Why, bh, by))
        dh_next = np.zeros_like(bh)
        for t in reversed(range(len(rows))):
            dy = p[t].copy()
            dy[answers[t]] -= 1
            dWhy += dy @ h[t].T
            dby += dy
            dh_raw = (1 - h[t] ** 2) * (Why.T @ dy + dh_next)
            dWxh += dh_raw @ rows[t].T
            dWhh += dh_raw @ h[t - 1].T
            dbh += dh_raw
            dh_next = Whh.T @ dh_raw
        return loss, (dWxh, dWhh, dWhy, dbh, dby)

    def read(result):  # this loss is a sum, that of the others a mean
        loss, grads, steps = *result, len(rows)
        columns = {name: grad / steps for name, grad in zip(names, grads, strict=True)}
        return loss / steps, exchange.from_min_char_rnn(columns)[1]

    return run, read


CONTENDERS: dict[str, Callable[..., Contender | None]] = {
    "bptt": rule(jaxrnn.gradients.bptt),
    "bptt on devices": devices,
    "autodiff": rule(jaxrnn.gradients.autodiff),
    "jax.grad of a scan": scan,
    "Flax": flax,
    "Haiku": haiku,
    "Equinox": equinox,
    "torch": torch,
    "torch, compiled": partial(torch, compiled=True),
    "NumPy": numpy,
}


def _cross_entropy(outputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def _one_hot(rnn: RNN, batch: Batch) -> jax.Array:
    return jax.nn.one_hot(batch.inputs, rnn.input_size)


def _until_ready(run: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(run())


def _differentiated(loss, variables, x, targets, read) -> Contender:
    step = jax.jit(jax.value_and_grad(loss))
    run = partial(step, *jax.tree.map(jnp.asarray, (variables, x, targets)))
    return _until_ready(run), lambda result: (result[0], read(result[1]))
