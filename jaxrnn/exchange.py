"""Parameters to and from other libraries: PyTorch, Flax and min-char-rnn; none need be installed.

    here, for rows    torch 2 RNN and Linear          Flax 0.12 linen    min-char-rnn, for columns
    W_xh (I, H)       weight_ih_l0 (H, I)             i kernel (I, H)    Wxh (H, I)
    W_hh (H, H)       weight_hh_l0 (H, H)             h kernel (H, H)    Whh (H, H)
    b_h  (H,)         bias_ih_l0 + bias_hh_l0 (H,)    i bias (H,)        bh (H, 1)
    W_hy (H, O)       weight (O, H)                   kernel (H, O)      Why (O, H)
    b_y  (O,)         bias (O,)                       bias (O,)          by (O, 1)

What is converted is a copy, of the dtype it had, and the same to the last bit when it comes back;
for float64, JAX needs jax_enable_x64, and warns without. Sizes are read off the arrays, but no
library keeps the activation with them, so `from_…` are told it, and whatever else `RNN` takes.

A bias that one side has and the other has not is -0.0: x + -0.0 is x to the last bit, whatever x,
while +0.0 would turn -0.0 into +0.0. So a network whose biases are all absent or -0.0 throughout
is one without biases; in any other, a bias that is absent is filled in as -0.0.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network import checks
from jaxrnn.network.layer import Cell
from jaxrnn.network.rnn import RNN, check_params
from jaxrnn.network.stack import Params, Readout

TORCH = ("tanh", "relu")  # what torch.nn.RNN takes as its nonlinearity


def to_torch(rnn: RNN, params: Params) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the state dicts of a `torch.nn.RNN` and of a `torch.nn.Linear` on its output.

    They are those of `RNN(I, H, num_layers, nonlinearity=…, bias=…, batch_first=True)` and
    `Linear(H, O, bias=…)` in PyTorch 2, whose `load_state_dict` takes them with each array through
    `torch.from_numpy`. All of b_h is in bias_ih; bias_hh is -0.0.

    Raises:
        ValueError: if params are not this network's, or torch has no such network: one with a leak,
            or whose activation is neither tanh nor relu.
    """
    checks.one_of("activation", rnn.activation, TORCH, " for torch.nn.RNN")
    cells, readout = _as_numpy(rnn, params, "torch.nn.RNN")
    state = {}
    for l, cell in enumerate(cells):
        state |= {f"weight_ih_l{l}": cell.W_xh.T, f"weight_hh_l{l}": cell.W_hh.T}
        if rnn.use_bias:
            state |= {f"bias_ih_l{l}": cell.b_h, f"bias_hh_l{l}": _or_nothing(None, cell.W_hh)}
    return _copies(state), _copies({"weight": readout.W_hy.T, "bias": readout.b_y})


def from_torch(
    rnn_state: Mapping[str, Any],
    linear_state: Mapping[str, Any],
    *,
    activation: str = "tanh",
    **network: Any,
) -> tuple[RNN, Params]:
    """Build the network of a `torch.nn.RNN` and of a `torch.nn.Linear` on its output.

    Args:
        rnn_state: the RNN's `state_dict()`, tensors on the CPU or arrays; its biases are added.
        linear_state: the Linear's.
        activation: the RNN's nonlinearity, "tanh" or "relu".
        **network: further arguments of `RNN`, such as loss_function.

    Raises:
        ValueError: if an array is missing, has no place or does not fit, or they are of another
            kind of network: bidirectional, with proj_size, an LSTM or a GRU.
    """
    checks.one_of("activation", activation, TORCH, " for torch.nn.RNN")
    given = _leaves("rnn_state", rnn_state) | _leaves("linear_state", linear_state)
    name = "rnn_state['{}_l{}']".format
    for mark, kind in (
        ("_reverse'", "a bidirectional RNN"),
        ("['weight_hr_", "one with proj_size"),
    ):
        for found in (found for found in given if mark in found):
            raise ValueError(f"{found} is of {kind}, which jaxrnn does not have: train one without")
    shape = np.shape(given.get(name("weight_hh", 0), 0))
    for gates, kind in ((3, "a GRU"), (4, "an LSTM")):
        if len(shape) == 2 and shape[0] == gates * shape[1]:
            raise ValueError(
                f"{name('weight_hh', 0)} has shape {tuple(shape)}, the ({gates}H, H) of {kind}, "
                f"which jaxrnn does not have: train a torch.nn.RNN"
            )

    source = "the state_dict() of a torch.nn.RNN, and that of a torch.nn.Linear"
    take = partial(_take, given, {}, source)
    use_bias = any("['bias_" in found for found in given)
    cells = [
        Cell(
            take(name("weight_ih", l), "HH" if l else "HI").T,
            take(name("weight_hh", l), "HH").T,
            take(name("bias_ih", l), "H") + take(name("bias_hh", l), "H") if use_bias else None,
        )
        for l in range(max(1, sum("['weight_ih_l" in found for found in given)))
    ]
    readout = Readout(
        take("linear_state['weight']", "OH").T, take("linear_state['bias']", "O", optional=True)
    )
    return _build(cells, readout, given, source, {"activation": activation} | network)


def to_flax(rnn: RNN, params: Params) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the variables of a Flax linen `SimpleCell` for each layer, and of a `Dense` on top.

    They are those of `SimpleCell(H, activation_fn=…)` and `Dense(O, use_bias=…)` in Flax 0.12. A
    SimpleCell always has a bias, so it is -0.0 where b_h is None. `nn.RNN` holds its cell's params
    as "cell", and `nnx.SimpleCell` calls i and h dense_i and dense_h.

    Raises:
        ValueError: if params are not this network's, or it has a leak.
    """
    cells, readout = _as_numpy(rnn, params, "Flax's SimpleCell")
    layers = []
    for cell in cells:
        i = _copies({"kernel": cell.W_xh, "bias": _or_nothing(cell.b_h, cell.W_hh)})
        layers.append({"params": {"i": i, "h": _copies({"kernel": cell.W_hh})}})
    return layers, {"params": _copies({"kernel": readout.W_hy, "bias": readout.b_y})}


def from_flax(
    cells: Sequence[Mapping[str, Any]],
    readout: Mapping[str, Any],
    *,
    activation: str = "tanh",
    **network: Any,
) -> tuple[RNN, Params]:
    """Build the network of Flax linen `SimpleCell`s, one a layer, and of a `Dense` on the last.

    Args:
        cells: each cell's variables, or what they hold as "params", from the input up; residual,
            which is not in them, must have been False.
        readout: the Dense's.
        activation: the cells' activation_fn, by its name in `RNN`.
        **network: further arguments of `RNN`, such as loss_function.

    Raises:
        ValueError: if an array is missing, has no place or does not fit.
    """
    given = _leaves("readout", readout)
    for l, cell in enumerate(cells):
        given |= _leaves(f"cells[{l}]", cell)
    given = {found.replace("['params']", ""): leaf for found, leaf in given.items()}
    source = "a list of the variables of one SimpleCell a layer, and those of a Dense"
    take = partial(_take, given, {}, source)
    layers = [
        Cell(
            take(f"cells[{l}]['i']['kernel']", "HH" if l else "IH"),
            take(f"cells[{l}]['h']['kernel']", "HH"),
            take(f"cells[{l}]['i']['bias']", "H", optional=True),
        )
        for l in range(max(1, len(cells)))
    ]
    dense = Readout(take("readout['kernel']", "HO"), take("readout['bias']", "O", optional=True))
    return _build(layers, dense, given, source, {"activation": activation} | network)


def to_min_char_rnn(rnn: RNN, params: Params) -> dict[str, np.ndarray]:
    """Return min-char-rnn's Wxh (H, I), Whh (H, H), Why (O, H), bh (H, 1) and by (O, 1).

    They are those of Karpathy's `h = np.tanh(Wxh @ x + Whh @ h + bh)` and `y = Why @ h + by`, with
    columns x (I, 1), and I and O both its vocab_size. Without biases, bh and by are -0.0.

    Raises:
        ValueError: if params are not this network's, or it has a leak or several layers.
    """
    (cell, *above), readout = _as_numpy(rnn, params, "min-char-rnn")
    if above:
        raise ValueError(f"num_layers must be 1 for min-char-rnn, got {rnn.num_layers}")
    bh, by = _or_nothing(cell.b_h, cell.W_hh), _or_nothing(readout.b_y, readout.W_hy)
    weights = {"Wxh": cell.W_xh.T, "Whh": cell.W_hh.T, "Why": readout.W_hy.T}
    return _copies(weights | {"bh": bh[:, None], "by": by[:, None]})


def from_min_char_rnn(
    columns: Mapping[str, Any], *, activation: str = "tanh", **network: Any
) -> tuple[RNN, Params]:
    """Build the network of min-char-rnn's arrays, with the names and shapes of `to_min_char_rnn`.

    Args:
        columns: a dict of them, or the .npz that `np.load` opens.
        activation: "tanh", unless the loop was changed.
        **network: further arguments of `RNN`, such as loss_function.

    Raises:
        ValueError: if an array is missing, has no place or does not fit.
    """
    given, source = _leaves("columns", columns), "Wxh, Whh, Why, bh and by"
    take = partial(_take, given, {"1": (1, "it is a column")}, source)
    W_xh, W_hh = take("columns['Wxh']", "HI").T, take("columns['Whh']", "HH").T
    cell = Cell(W_xh, W_hh, take("columns['bh']", "H1")[:, 0])
    readout = Readout(take("columns['Why']", "OH").T, take("columns['by']", "O1")[:, 0])
    return _build([cell], readout, given, source, {"activation": activation} | network)


def _as_numpy(rnn: RNN, params: Params, library: str) -> Any:
    check_params(rnn, params)
    if rnn.leak != 1:
        raise ValueError(f"leak must be 1 for {library}, which has none, got {rnn.leak}")
    return jax.tree.map(np.asarray, params)


def _copies(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copy the arrays, so that they are writable and contiguous; leave out what is None."""
    return {name: np.array(a, order="C") for name, a in arrays.items() if a is not None}


def _or_nothing(bias: Any, weights: Any) -> Any:
    """Return the bias after weights (·, N), or what adds nothing to x W where there is none."""
    return np.full_like(weights[0], -0.0) if bias is None else bias


def _leaves(name: str, tree: Any) -> dict[str, Any]:
    """Return what dicts in dicts hold, by names such as "cells[0]['i']['kernel']"."""
    if not isinstance(tree, Mapping):
        return {name: tree}
    return {
        inner: leaf
        for key, below in tree.items()
        for inner, leaf in _leaves(f"{name}[{key!r}]", below).items()
    }


def _take(
    given: dict[str, Any],
    bound: dict[str, tuple[Any, str]],
    source: str,
    name: str,
    axes: str,
    *,
    optional: bool = False,
) -> Any:
    """Take an array out of those given, having compared its dtype and its axes with those bound.

    `axes` are letters, such as "HI"; the first array that has a letter binds it to a size.
    """
    if name not in given:
        if optional:
            return None
        raise ValueError(f"{name} is missing: hand over {source}")
    leaf = given.pop(name)
    try:
        array = np.asarray(leaf.detach() if hasattr(leaf, "detach") else leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be read by NumPy: {error}") from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, but parameters are floats: convert it")
    dtype, first = bound.setdefault("dtype", (array.dtype, name))
    if array.dtype != dtype:
        raise ValueError(f"{name} has dtype {array.dtype}, but {first} has {dtype}: convert one")
    if array.ndim != len(axes):
        raise ValueError(f"{name} has shape {array.shape}, but needs ({', '.join(axes)})")
    origin, pairs = f"{name} has shape {array.shape}", zip(axes, array.shape, strict=True)
    sizes = [bound.setdefault(axis, (size, origin)) for axis, size in pairs]
    for size, (needed, reason) in zip(array.shape, sizes, strict=True):
        if size != needed:
            expected = tuple(needed for needed, _ in sizes)
            raise ValueError(f"{origin}, but needs ({', '.join(axes)}) = {expected}: {reason}")
    return array


def _build(
    cells: list[Cell], readout: Readout, rest: dict[str, Any], source: str, network: dict[str, Any]
) -> tuple[RNN, Params]:
    """Describe the network that these arrays are of, and copy them; nothing may be left over."""
    if rest:
        raise ValueError(f"{next(iter(rest))} has no place here: hand over {source}, and no more")
    biases = [bias for bias in (*(cell.b_h for cell in cells), readout.b_y) if bias is not None]
    found: dict[str, Any] = {
        "input_size": cells[0].W_xh.shape[0],
        "hidden_size": readout.W_hy.shape[0],
        "output_size": readout.W_hy.shape[1],
        "num_layers": len(cells),
        "use_bias": any(np.any((bias != 0) | ~np.signbit(bias)) for bias in biases),
        "leak": 1.0,
    }
    for name in (name for name in found if name in network):
        raise ValueError(
            f"{name} must be left out, as it is known to be {found[name]!r}, got {network[name]!r}"
        )
    if found["use_bias"]:
        cells = [cell._replace(b_h=_or_nothing(cell.b_h, cell.W_hh)) for cell in cells]
        readout = readout._replace(b_y=_or_nothing(readout.b_y, readout.W_hy))
    else:
        cells = [cell._replace(b_h=None) for cell in cells]
        readout = readout._replace(b_y=None)
    params = jax.tree.map(lambda a: jnp.array(a, a.dtype), Params(tuple(cells), readout))
    return RNN(**found, **network), params
