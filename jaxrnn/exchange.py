"""Conversion of parameters to and from PyTorch, Flax and min-char-rnn, which need not be installed.

    jaxrnn, rows      torch 2 RNN and Linear          Flax 0.12 linen    min-char-rnn, columns
    W_xh (I, H)       weight_ih_l0 (H, I)             i kernel (I, H)    Wxh (H, I)
    W_hh (H, H)       weight_hh_l0 (H, H)             h kernel (H, H)    Whh (H, H)
    b_h  (H,)         bias_ih_l0 + bias_hh_l0 (H,)    i bias (H,)        bh (H, 1)
    W_hy (H, O)       weight (O, H)                   kernel (H, O)      Why (O, H)
    b_y  (O,)         bias (O,)                       bias (O,)          by (O, 1)

jaxrnn computes with row vectors (x W), min-char-rnn with column vectors (W x).

The arrays are copied and keep their dtype. Converting there and back returns the same parameters to
the last bit. For float64, JAX needs jax_enable_x64 and warns without it. Sizes are read from the
shapes of the arrays. The activation is not stored with the arrays, so it is an argument of the
`from_…` functions, as are the other arguments of `RNN`.

A bias that only one side has is set to -0.0, since x + -0.0 equals x to the last bit for every x,
while x + 0.0 turns x = -0.0 into +0.0. Therefore `from_…` builds a network without biases if every
bias is absent or -0.0 everywhere. Otherwise it sets absent biases to -0.0.
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

TORCH = ("tanh", "relu")  # the nonlinearities of torch.nn.RNN


def to_torch(rnn: RNN, params: Params) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Convert parameters to the state dicts of a `torch.nn.RNN` and of a `torch.nn.Linear` on it.

    The modules are `RNN(I, H, num_layers, nonlinearity=…, bias=…, batch_first=True)` and
    `Linear(H, O, bias=…)` of PyTorch 2. Convert each array with `torch.from_numpy` and pass the
    dicts to `load_state_dict`. bias_ih is b_h, and bias_hh is -0.0.

    Args:
        rnn: the network, with activation tanh or relu and leak 1.
        params: its parameters.

    Returns:
        The state dict of the RNN and that of the Linear, with NumPy arrays.

    Raises:
        ValueError: if params do not fit the network, or torch has no such network.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> rnn_state, linear_state = jaxrnn.exchange.to_torch(rnn, rnn.init(jax.random.key(0)))
    >>> rnn_state["weight_ih_l0"].shape, linear_state["weight"].shape
    ((4, 5), (2, 4))
    """
    checks.one_of("activation", rnn.activation, TORCH, " for torch.nn.RNN")
    cells, readout = _as_numpy(rnn, params, "torch.nn.RNN")
    state = {}
    for l, cell in enumerate(cells):
        state |= {f"weight_ih_l{l}": cell.W_xh.T, f"weight_hh_l{l}": cell.W_hh.T}
        if rnn.use_bias:
            state |= {f"bias_ih_l{l}": cell.b_h, f"bias_hh_l{l}": _or_zeros(None, cell.W_hh)}
    return _copies(state), _copies({"weight": readout.W_hy.T, "bias": readout.b_y})


def from_torch(
    rnn_state: Mapping[str, Any],
    linear_state: Mapping[str, Any],
    *,
    activation: str = "tanh",
    **network: Any,
) -> tuple[RNN, Params]:
    """Build a network and its parameters from a `torch.nn.RNN` and a `torch.nn.Linear` on it.

    Args:
        rnn_state: the `state_dict()` of the RNN, with tensors on the CPU or arrays. b_h is the sum
            of its two biases.
        linear_state: the `state_dict()` of the Linear.
        activation: the nonlinearity of the RNN, "tanh" or "relu".
        **network: further arguments of `RNN`, such as loss_function.

    Returns:
        The network and its parameters.

    Raises:
        ValueError: if an array is missing, not expected or of the wrong shape, or the arrays belong
            to another kind of network: bidirectional, with proj_size, an LSTM or a GRU.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> states = jaxrnn.exchange.to_torch(rnn, rnn.init(jax.random.key(0)))
    >>> same, params = jaxrnn.exchange.from_torch(*states)
    >>> same == rnn
    True
    """
    checks.one_of("activation", activation, TORCH, " for torch.nn.RNN")
    given = _leaves("rnn_state", rnn_state) | _leaves("linear_state", linear_state)
    name = "rnn_state['{}_l{}']".format
    for mark, kind in (
        ("_reverse'", "a bidirectional RNN"),
        ("['weight_hr_", "an RNN with proj_size"),
    ):
        for other in (array for array in given if mark in array):
            raise ValueError(f"{other} is of {kind}, which jaxrnn does not have: train one without")
    shape = np.shape(given.get(name("weight_hh", 0), 0))
    for gates, kind in ((3, "a GRU"), (4, "an LSTM")):
        if len(shape) == 2 and shape[0] == gates * shape[1]:
            raise ValueError(
                f"{name('weight_hh', 0)} has shape {tuple(shape)}, the ({gates}H, H) of {kind}, "
                f"which jaxrnn does not have: train a torch.nn.RNN"
            )

    source = "the state_dict() of a torch.nn.RNN, and that of a torch.nn.Linear"
    take = partial(_take, given, {}, source)
    use_bias = any("['bias_" in array for array in given)
    cells = [
        Cell(
            take(name("weight_ih", l), "HH" if l else "HI").T,
            take(name("weight_hh", l), "HH").T,
            take(name("bias_ih", l), "H") + take(name("bias_hh", l), "H") if use_bias else None,
        )
        for l in range(max(1, sum("['weight_ih_l" in array for array in given)))
    ]
    readout = Readout(
        take("linear_state['weight']", "OH").T, take("linear_state['bias']", "O", optional=True)
    )
    return _build(cells, readout, given, source, {"activation": activation} | network)


def to_flax(rnn: RNN, params: Params) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Convert parameters to the variables of Flax linen `SimpleCell`s and of a `Dense` on top.

    The modules are a `SimpleCell(H, activation_fn=…)` for each layer and a `Dense(O, use_bias=…)`
    of Flax 0.12. A SimpleCell always has a bias; if b_h is None it is -0.0. `nn.RNN` stores the
    params of its cell under "cell", and `nnx.SimpleCell` names i and h dense_i and dense_h.

    Args:
        rnn: the network, with leak 1.
        params: its parameters.

    Returns:
        A list of the variables of each cell, and the variables of the Dense, with NumPy arrays.

    Raises:
        ValueError: if params do not fit the network, or it has a leak.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> cells, dense = jaxrnn.exchange.to_flax(rnn, rnn.init(jax.random.key(0)))
    >>> cells[0]["params"]["i"]["kernel"].shape, dense["params"]["kernel"].shape
    ((5, 4), (4, 2))
    """
    cells, readout = _as_numpy(rnn, params, "Flax's SimpleCell")
    layers = []
    for cell in cells:
        i = _copies({"kernel": cell.W_xh, "bias": _or_zeros(cell.b_h, cell.W_hh)})
        layers.append({"params": {"i": i, "h": _copies({"kernel": cell.W_hh})}})
    return layers, {"params": _copies({"kernel": readout.W_hy, "bias": readout.b_y})}


def from_flax(
    cells: Sequence[Mapping[str, Any]],
    readout: Mapping[str, Any],
    *,
    activation: str = "tanh",
    **network: Any,
) -> tuple[RNN, Params]:
    """Build a network and its parameters from Flax linen `SimpleCell`s and a `Dense` on top.

    Args:
        cells: the variables of each layer's cell, or their "params", the layer at the input first.
            The cells must have `residual=False`, which cannot be checked from the variables.
        readout: the variables of the Dense, or their "params".
        activation: the activation_fn of the cells, by its name in `RNN`.
        **network: further arguments of `RNN`, such as loss_function.

    Returns:
        The network and its parameters.

    Raises:
        ValueError: if an array is missing, not expected or of the wrong shape.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> variables = jaxrnn.exchange.to_flax(rnn, rnn.init(jax.random.key(0)))
    >>> same, params = jaxrnn.exchange.from_flax(*variables)
    >>> same == rnn
    True
    """
    given = _leaves("readout", readout)
    for l, cell in enumerate(cells):
        given |= _leaves(f"cells[{l}]", cell)
    given = {name.replace("['params']", ""): leaf for name, leaf in given.items()}
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
    """Convert parameters to the arrays of Karpathy's min-char-rnn.

        h = np.tanh(Wxh @ x + Whh @ h + bh),        y = Why @ h + by

    for column vectors x (I, 1), where I and O are both min-char-rnn's vocab_size.

    Args:
        rnn: the network, with one layer and leak 1.
        params: its parameters.

    Returns:
        Wxh (H, I), Whh (H, H), Why (O, H), bh (H, 1) and by (O, 1) by name, as NumPy arrays. For a
        network without biases, bh and by are -0.0.

    Raises:
        ValueError: if params do not fit the network, or it has a leak or several layers.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=5)
    >>> arrays = jaxrnn.exchange.to_min_char_rnn(rnn, rnn.init(jax.random.key(0)))
    >>> {name: array.shape for name, array in arrays.items()}
    {'Wxh': (4, 5), 'Whh': (4, 4), 'Why': (5, 4), 'bh': (4, 1), 'by': (5, 1)}
    """
    (cell, *above), readout = _as_numpy(rnn, params, "min-char-rnn")
    if above:
        raise ValueError(f"num_layers must be 1 for min-char-rnn, got {rnn.num_layers}")
    bh, by = _or_zeros(cell.b_h, cell.W_hh), _or_zeros(readout.b_y, readout.W_hy)
    weights = {"Wxh": cell.W_xh.T, "Whh": cell.W_hh.T, "Why": readout.W_hy.T}
    return _copies(weights | {"bh": bh[:, None], "by": by[:, None]})


def from_min_char_rnn(
    columns: Mapping[str, Any], *, activation: str = "tanh", **network: Any
) -> tuple[RNN, Params]:
    """Build a network and its parameters from the arrays of min-char-rnn.

    Args:
        columns: the arrays by name, with the names and shapes of `to_min_char_rnn`: a dict, or what
            `np.load` returns for an .npz file.
        activation: the activation; that of min-char-rnn is "tanh".
        **network: further arguments of `RNN`, such as loss_function.

    Returns:
        The network and its parameters.

    Raises:
        ValueError: if an array is missing, not expected or of the wrong shape.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=5)
    >>> arrays = jaxrnn.exchange.to_min_char_rnn(rnn, rnn.init(jax.random.key(0)))
    >>> same, params = jaxrnn.exchange.from_min_char_rnn(arrays)
    >>> same == rnn
    True
    """
    given, source = _leaves("columns", columns), "Wxh, Whh, Why, bh and by"
    take = partial(_take, given, {"1": (1, "it is a column")}, source)
    W_xh, W_hh = take("columns['Wxh']", "HI").T, take("columns['Whh']", "HH").T
    cell = Cell(W_xh, W_hh, take("columns['bh']", "H1")[:, 0])
    readout = Readout(take("columns['Why']", "OH").T, take("columns['by']", "O1")[:, 0])
    return _build([cell], readout, given, source, {"activation": activation} | network)


def _as_numpy(rnn: RNN, params: Params, library: str) -> Any:
    """Return the parameters as NumPy arrays; raise `ValueError` if they do not fit the network."""
    check_params(rnn, params)
    if rnn.leak != 1:
        raise ValueError(f"leak must be 1 for {library}, which has none, got {rnn.leak}")
    return jax.tree.map(np.asarray, params)


def _copies(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return writable, contiguous copies of the arrays that are not None."""
    return {name: np.array(a, order="C") for name, a in arrays.items() if a is not None}


def _or_zeros(bias: Any, weights: Any) -> Any:
    """Return the bias that belongs to weights (·, N), or -0.0 (N,) if it is None."""
    return np.full_like(weights[0], -0.0) if bias is None else bias


def _leaves(name: str, tree: Any) -> dict[str, Any]:
    """Return the leaves of nested dicts, by names such as "cells[0]['i']['kernel']"."""
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
    """Remove an array from `given` and return it, after checking its dtype and shape.

    Args:
        given: the arrays by name.
        bound: the sizes of the axes so far, and under "dtype" the dtype, each with its origin for
            error messages. The first array with an axis adds its size.
        source: what the user should pass, for error messages.
        name: the name of the array.
        axes: a letter for each axis, such as "HI".
        optional: whether to return None if the array is missing.

    Raises:
        ValueError: if the array is missing, or its dtype or shape does not fit the others.
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
    """Build the network that the arrays belong to, and its parameters as JAX arrays.

    Args:
        cells: the cells, as NumPy arrays.
        readout: the readout, as NumPy arrays.
        rest: the arrays that were not used; it is an error if there are any.
        source: what the user should pass, for error messages.
        network: the arguments of `RNN` that the user gave.
    """
    if rest:
        raise ValueError(f"{next(iter(rest))} has no place here: hand over {source}, and no more")
    biases = [bias for bias in (*(cell.b_h for cell in cells), readout.b_y) if bias is not None]
    sizes: dict[str, Any] = {
        "input_size": cells[0].W_xh.shape[0],
        "hidden_size": readout.W_hy.shape[0],
        "output_size": readout.W_hy.shape[1],
        "num_layers": len(cells),
        "use_bias": any(np.any((bias != 0) | ~np.signbit(bias)) for bias in biases),
        "leak": 1.0,
    }
    for name in (name for name in sizes if name in network):
        raise ValueError(
            f"{name} must be left out, as it is known to be {sizes[name]!r}, got {network[name]!r}"
        )
    if sizes["use_bias"]:
        cells = [cell._replace(b_h=_or_zeros(cell.b_h, cell.W_hh)) for cell in cells]
        readout = readout._replace(b_y=_or_zeros(readout.b_y, readout.W_hy))
    else:
        cells = [cell._replace(b_h=None) for cell in cells]
        readout = readout._replace(b_y=None)
    params = jax.tree.map(lambda a: jnp.array(a, a.dtype), Params(tuple(cells), readout))
    return RNN(**sizes, **network), params
