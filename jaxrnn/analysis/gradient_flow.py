"""Where gradients vanish or explode: what reaches back how far.

dL/dW adds up all lags, and so hides both (Pascanu, Mikolov & Bengio 2013). Seen lag by lag they
show: in dℓ_t/dh_{t-k}, in the Jacobian ∂h_t/∂h_{t-k}, and in each lag's part of dL/dW.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxrnn.analysis.lags import affordable_lags, split_by_lag
from jaxrnn.network import checks, layer
from jaxrnn.network.batch import Batch, check_is_batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.forward_pass import forward_pass
from jaxrnn.network.layer import Cell, Tape
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params
from jaxrnn.tree import by_name


class GradientFlow(NamedTuple):
    """What reaches back how far; the axis K is the lag k = 0, 1, …, in recurrent steps.

    Attributes:
        credit: ‖dℓ_t/dh_{t-k}‖ for each layer, sequence and output t; nan where t - k < 1.
        singular_values: of ∂h_T/∂h_{T-k}, the layer's own, in the first sequence; falling. Those
            below 1e-16 of the largest are rounding; nan where the Jacobian is not finite.
        share: ⟨G_k, G⟩ / ‖G‖², the share of each leaf's gradient G that comes from lag k; negative
            where that lag speaks against the others. Over all T lags they sum to 1.
    """

    credit: Float[np.ndarray, "L K B T"]
    singular_values: Float[np.ndarray, "L K H"]
    share: dict[str, Float[np.ndarray, " K"]]

    def plot(self, path: str | Path) -> None:
        """Draw all three over the lag, and save the picture; needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("a plot needs matplotlib: pip install 'jaxrnn[cli]'") from error
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        reach, jacobian, share = figure.subplots(1, 3)
        layers, lags = self.credit.shape[:2]
        k = np.arange(lags)
        for number, (credit, values) in enumerate(
            zip(self.credit, self.singular_values, strict=True)
        ):
            name, color = f"layer {number}", f"C{number}"
            low, middle, high = np.nanquantile(credit.reshape(lags, -1), [0.25, 0.5, 0.75], axis=1)
            reach.plot(k, middle, color=color, label=name)
            reach.fill_between(k, low, high, color=color, alpha=0.2, linewidth=0)
            jacobian.plot(k, values[:, 0], color=color, label=f"{name}: largest")
            jacobian.plot(k, np.median(values, axis=1), color=color, linestyle="--", label="median")
        for leaf, its in self.share.items():
            share.plot(k, its, label=leaf, marker="." if lags < 30 else None)
        jacobian.axhline(1, color="gray", linewidth=0.7)
        share.axhline(0, color="gray", linewidth=0.7)
        reach.set(title="‖dℓ_t/dh_{t-k}‖, median and quartiles", yscale="log")
        jacobian.set(title="singular values of ∂h_T/∂h_{T-k}", yscale="log")
        share.set(title="share of each leaf's gradient")
        for axes in (reach, jacobian, share):
            axes.set(xlabel="lag k")
            if layers > 1 or axes is not reach:
                axes.legend(fontsize=8)
        figure.savefig(path, dpi=120)


def gradient_flow(
    rnn: RNN,
    params: Params,
    batch: Batch,
    *,
    h: Float[AnyArray, "L B H"] | None = None,
    lags: int | None = None,
) -> GradientFlow:
    """Take the gradient apart by time lag, in float64; O(K T B H (I + H) + K H³) per layer.

    Args:
        rnn: the network.
        params: its parameters.
        batch: on what.
        h: the state before the first step, (num_layers, B, H); zeros if not given.
        lags: K, how many lags, at most T; if not given all of them, but at most 200.

    Raises:
        ValueError: if arrays do not fit the network, lags is not in 1 … T, or it is called under
            `jax.jit`, `jax.vmap` or `jax.grad`.
    """
    check_is_batch(batch)
    if not all(map(checks.is_known, jax.tree.leaves((params, batch, h)))):
        raise ValueError(
            "gradient_flow computes in NumPy, and cannot be traced: call it outside of jax.jit, "
            "jax.vmap and jax.grad"
        )
    steps = batch.inputs.shape[1]
    lags = affordable_lags(rnn, steps) if lags is None else lags
    if not 1 <= lags <= steps:
        raise ValueError(f"lags must lie in 1 … {steps}, the steps of the batch, got {lags}")
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        start = rnn.initial_state(len(batch.inputs)) if h is None else h
        batch, start = check_batch(rnn, params, batch, start)
        found = split_by_lag(rnn, params, start, batch, lags)
        values = _singular_values(rnn, params, start, batch, lags)
    credit = np.full((rnn.num_layers, lags, *batch.inputs.shape[:2]), np.nan)
    for k, each in enumerate(np.asarray(found.credit)):  # (L, T, B) at the place t - k
        credit[:, k, :, k:] = each[:, : steps - k].swapaxes(1, 2)
    return GradientFlow(
        credit,
        np.asarray(values),
        {f"cells{name}": _shares(np.asarray(leaf)) for name, leaf in by_name(found.parts).items()},
    )


def _shares(parts: np.ndarray) -> np.ndarray:
    parts = parts.reshape(len(parts), -1)
    whole = parts.sum(0)
    return parts @ whole / (np.vdot(whole, whole) or 1.0)


@partial(jax.jit, static_argnames=("rnn", "lags"))
def _singular_values(
    rnn: RNN, params: Params, h: Array, batch: Batch, lags: int
) -> Float[Array, "L K H"]:
    def of_layer(cell: Cell, tape: Tape):
        W_hh_T = cell.W_hh.T

        def back(jacobian, step):  # row i is d(h_T)_i/dh_t
            gain_t, valid_t = step
            gain = jnp.broadcast_to(gain_t, jacobian.shape)
            pulled = layer.pull_back(W_hh_T, gain, jacobian, rnn.leak)
            jacobian = pulled if valid_t is None else jnp.where(valid_t, pulled, jacobian)
            return jacobian, jacobian

        same = jnp.eye(rnn.hidden_size, dtype=tape.gain.dtype)
        first = jax.tree.map(lambda leaf: leaf[::-1, 0][: lags - 1], (tape.gain, tape.valid))
        _, jacobians = lax.scan(back, same, first)
        jacobians = jnp.concatenate([same[None], jacobians])
        finite = jnp.isfinite(jacobians).all((-2, -1), keepdims=True)  # LAPACK complains of others
        values = jnp.linalg.svd(jnp.where(finite, jacobians, 0), compute_uv=False)
        return jnp.where(finite[..., 0], values, jnp.nan)

    return jnp.stack(list(map(of_layer, params.cells, forward_pass(rnn, params, h, batch).tapes)))
