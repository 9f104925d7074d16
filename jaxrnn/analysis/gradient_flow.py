"""Gradient flow: how gradients vanish or explode with the time lag.

dL/dW is a sum over all time lags, which hides vanishing and exploding terms (Pascanu, Mikolov &
Bengio 2013). Here they are separated by the lag k: the credit dℓ_t/dh_{t-k}, the Jacobian
∂h_t/∂h_{t-k}, and the part of dL/dW at lag k.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxrnn import plotting
from jaxrnn.analysis.lags import affordable_lags, split_by_lag
from jaxrnn.network import checks, layer
from jaxrnn.network.batch import Batch, check_counts, check_is_batch
from jaxrnn.network.checks import AnyArray
from jaxrnn.network.forward_pass import forward_pass
from jaxrnn.network.layer import Cell, Tape
from jaxrnn.network.rnn import RNN, check_batch
from jaxrnn.network.stack import Params
from jaxrnn.tree import by_name, copied, html_table


class GradientFlow(NamedTuple):
    """The gradient by time lag; the axis K is the lag k = 0, 1, … in recurrent steps.

    Attributes:
        credit: ‖dℓ_t/dh_{t-k}‖ for each layer, sequence and output t; nan if t - k < 1.
        singular_values: the singular values of ∂h_T/∂h_{T-k} within each layer, for the first
            sequence, in descending order. Those below 1e-16 times the largest are rounding errors.
            They are nan if the Jacobian is not finite.
        share: ⟨G_k, G⟩ / ‖G‖², the share of lag k in the gradient G of each leaf. It is negative if
            G_k points against G. Over all T lags the shares sum to 1.
    """

    credit: Float[np.ndarray, "L K B T"]
    singular_values: Float[np.ndarray, "L K H"]
    share: dict[str, Float[np.ndarray, " K"]]

    def __repr__(self) -> str:
        """Return, for each layer, how the credit grows with the lag, and the sizes."""
        layers, lags, batch_size, steps = self.credit.shape
        lines = [
            f"GradientFlow over {lags} lags of {batch_size} sequences of {steps} steps; median "
            f"‖dℓ_t/dh_(t-k)‖:"
        ]
        for number in range(min(layers, 8)):
            first, last = self._median(number, 0), self._median(number, lags - 1)
            lines.append(
                f"  layer {number}: from {first:.3g} to {last:.3g} at k={lags - 1}, "
                f"times {_per_step(first, last, lags):.3g} a step"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return a table of the credit and the largest singular value over lags, for a notebook."""
        layers, lags = self.credit.shape[:2]
        shown = sorted(
            {*range(min(lags, 4)), *(2**n for n in range(2, 9) if 2**n < lags), lags - 1}
        )
        titles = ["lag", *(f"layer {l}: {what}" for l in range(layers) for what in _MEASURES)]
        rows = []
        for k in shown:
            values = ((self._median(l, k), self.singular_values[l, k, 0]) for l in range(layers))
            rows.append([str(k), *(f"{value:.3g}" for pair in values for value in pair)])
        return html_table(titles, rows, ["below 1 a step the gradient vanishes, above it explodes"])

    def _median(self, layer: int, lag: int) -> float:
        return float(np.nanmedian(self.credit[layer, lag]))

    def plot(self, path: str | Path | None = None, *, ax: Any = None) -> Any:
        """Plot credit, singular values and shares over the lag, each for at most seven lines.

        Args:
            path: the file to write, with the ending of a format that matplotlib knows; by default
                none is written.
            ax: three `Axes` of matplotlib to draw in; by default those of a new figure.

        Returns:
            The `Figure` of matplotlib.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        with plotting.style():
            if ax is None:
                ax = plotting.new_figure(12, 3.8).subplots(1, 3)
            credit, jacobian, share = ax
            self._plot_credit(credit)
            self._plot_jacobian(jacobian)
            self._plot_share(share)
            for axes in ax:
                axes.set(xlabel="lag k, in steps")
                if len(axes.lines) > 1:
                    axes.legend()
            figure = credit.figure
            if path is not None:
                figure.savefig(path, dpi=110)
        return figure

    def _plot_credit(self, axes: Any) -> None:
        layers, lags = self.credit.shape[:2]
        for number in range(min(layers, len(plotting.COLORS))):
            quartiles = np.nanquantile(
                self.credit[number].reshape(lags, -1), [0.25, 0.5, 0.75], axis=1
            )
            color = plotting.COLORS[number]
            axes.plot(np.arange(lags), quartiles[1], color=color, label=f"layer {number}")
            axes.fill_between(
                np.arange(lags), quartiles[0], quartiles[2], color=color, alpha=0.2, linewidth=0
            )
        axes.set(yscale="log", ylabel="‖d loss at t / d state at t - k‖")
        axes.set_title("How far back the loss reaches (quartiles)")

    def _plot_jacobian(self, axes: Any) -> None:
        layers, lags = self.credit.shape[:2]
        for number in range(min(layers, len(plotting.COLORS))):
            values, color = self.singular_values[number], plotting.COLORS[number]
            name = f"layer {number}: " if layers > 1 else ""
            axes.plot(np.arange(lags), values[:, 0], color=color, label=f"{name}largest")
            if layers <= 3:
                median = np.median(values, axis=1)
                axes.plot(np.arange(lags), median, "--", color=color, label=f"{name}median")
        axes.axhline(1, color=plotting.GRAY, linewidth=0.7)
        axes.set(yscale="log", ylabel="singular values of d state at T / d state at T - k")
        axes.set_title("Below 1 gradients vanish, above they explode")

    def _plot_share(self, axes: Any) -> None:
        leaves = [leaf for leaf in self.share if leaf.endswith(("W_xh", "W_hh"))]
        for leaf in leaves[: len(plotting.COLORS)]:
            values = self.share[leaf]
            axes.plot(np.arange(len(values)), values, "." if len(values) == 1 else "-", label=leaf)
        axes.axhline(0, color=plotting.GRAY, linewidth=0.7)
        axes.set(ylabel="share of the leaf's gradient")
        axes.set_title("Which lags make up the gradient")


_MEASURES = ("median ‖dℓ_t/dh_(t-k)‖", "largest singular value of ∂h_T/∂h_(T-k)")


def _per_step(first: float, last: float, lags: int) -> float:
    """Return the factor by which the credit grows with each lag, as a geometric mean."""
    return (last / first) ** (1 / (lags - 1)) if lags > 1 and first > 0 else float("nan")


def gradient_flow(
    rnn: RNN,
    params: Params,
    batch: Batch,
    *,
    h: Float[AnyArray, "L B H"] | None = None,
    lags: int | None = None,
) -> GradientFlow:
    """Split the exact gradient by time lag, in float64; O(K T B H (I + H) + K H³) per layer.

        dL/dW = G = Σ_k G_k,    credit ‖dℓ_t/dh_{t-k}‖,    singular values of ∂h_T/∂h_{T-k}

    as in Pascanu, Mikolov & Bengio (2013).

    Args:
        rnn: the network.
        params: its parameters.
        batch: the sequences, inputs (B, T) or (B, T, I).
        h: the initial hidden state, (num_layers, B, H); default zeros.
        lags: K, the number of lags, at most T; default T, but at most 200 and fewer for networks so
            large that all the parts would not fit into 1 GiB.

    Returns:
        Credit, singular values and shares, as NumPy arrays.

    Raises:
        ValueError: if arrays do not fit the network, lags is not in 1 … T, or the function is
            called under `jax.jit`, `jax.vmap` or `jax.grad`.

    >>> import jax, jaxrnn
    >>> rnn = jaxrnn.RNN(input_size=5, hidden_size=4, output_size=2)
    >>> batch = jaxrnn.Batch(jax.numpy.ones((3, 6, 5)), jax.numpy.ones((3, 6), int))
    >>> flow = jaxrnn.gradient_flow(rnn, rnn.init(jax.random.key(0)), batch)
    >>> flow.credit.shape  # (L, K, B, T)
    (1, 6, 3, 6)
    >>> round(float(flow.share["cells[0].W_hh"].sum()), 6)
    1.0
    """
    check_is_batch(batch)
    check_counts(batch)
    if not all(map(checks.is_known, jax.tree.leaves((params, batch, h)))):
        raise ValueError(
            "gradient_flow uses NumPy and cannot be traced: call it outside of jax.jit, jax.vmap "
            "and jax.grad"
        )
    steps = batch.inputs.shape[1]
    lags = affordable_lags(rnn, steps) if lags is None else lags
    if not 1 <= lags <= steps:
        raise ValueError(f"lags must lie in 1 … {steps}, the steps of the batch, got {lags}")
    params, h, batch = copied((params, h, batch))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        start = rnn.initial_state(len(batch.inputs)) if h is None else h
        batch, start = check_batch(rnn, params, batch, start)
        split = split_by_lag(rnn, params, start, batch, lags)
        values = _singular_values(rnn, params, start, batch, lags)
    credit = np.full((rnn.num_layers, lags, *batch.inputs.shape[:2]), np.nan)
    for k, at_lag in enumerate(np.asarray(split.credit)):  # (L, T, B), indexed by t - k
        credit[:, k, :, k:] = at_lag[:, : steps - k].swapaxes(1, 2)
    return GradientFlow(
        credit,
        np.asarray(values),
        {f"cells{name}": _shares(np.asarray(leaf)) for name, leaf in by_name(split.parts).items()},
    )


def _shares(parts: np.ndarray) -> np.ndarray:
    """Compute ⟨G_k, G⟩ / ‖G‖² with G = Σ_k G_k, for the parts G_k of one leaf, (K, ...)."""
    parts = parts.reshape(len(parts), -1)
    whole = parts.sum(0)
    return parts @ whole / (np.vdot(whole, whole) or 1.0)


@partial(jax.jit, static_argnames=("rnn", "lags"))
def _singular_values(
    rnn: RNN, params: Params, h: Array, batch: Batch, lags: int
) -> Float[Array, "L K H"]:
    """Compute the singular values of ∂h_T/∂h_{T-k} of each layer, for the first sequence."""

    def of_layer(cell: Cell, tape: Tape):
        W_hh_T = cell.W_hh.T

        def back(jacobian, step):  # row i is d(h_T)_i/dh_t
            gain_t, valid_t = step
            gain = jnp.broadcast_to(gain_t, jacobian.shape)
            pulled = layer.pull_back(W_hh_T, gain, jacobian, rnn.leak)
            jacobian = pulled if valid_t is None else jnp.where(valid_t, pulled, jacobian)
            return jacobian, jacobian

        identity = jnp.eye(rnn.hidden_size, dtype=tape.gain.dtype)
        steps = jax.tree.map(lambda leaf: leaf[::-1, 0][: lags - 1], (tape.gain, tape.valid))
        _, jacobians = lax.scan(back, identity, steps)
        jacobians = jnp.concatenate([identity[None], jacobians])
        finite = jnp.isfinite(jacobians).all((-2, -1), keepdims=True)  # LAPACK fails on others
        values = jnp.linalg.svd(jnp.where(finite, jacobians, 0), compute_uv=False)
        return jnp.where(finite[..., 0], values, jnp.nan)

    return jnp.stack(list(map(of_layer, params.cells, forward_pass(rnn, params, h, batch).tapes)))
