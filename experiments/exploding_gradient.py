"""Does a recurrent weight above 1 make the gradient of an RNN explode?

Question: which property of W_hh predicts whether the gradient explodes or vanishes: its largest
weight, its largest singular value or its spectral radius?

Setting: a network without inputs, h_t = φ(h_{t-1} W_hh), starts from a random h_0. The loss gives
a random gradient at h_T and none at earlier states. The experiment measures the growth of dL/dh
per step of the backward pass,

    g = (‖dL/dh_0‖ / ‖dL/dh_T‖)^(1/T),        T = 50

and compares it with the spectral radius ρ of W_hh, for ReLU, tanh and the identity, over many
draws of W_hh = s · standard normal. The gradient explodes if g > 1 and vanishes if g < 1. If g = 0
the gradient is "gone": its Jacobian was zero at some step (ReLU: no unit was active). A gradient
that is gone also counts as vanished. The same draws are used for every s. All computations are in
float64, and gradients come from the hand-written VJP of `RNN.unroll`.

    python experiments/exploding_gradient.py            one to three minutes on two cores
    python experiments/exploding_gradient.py --quick    seconds: few draws, imprecise numbers

Source: the last part of the notebook 000_c1062123b65c6d58.txt, with H=5, T=50, ReLU and s=1. It
claims that the gradient explodes if a weight is above 1 and vanishes if it is below 1, and shows
this on one draw. Its array element dhs[40] is dL/dh nine steps before the last state.
"""

import argparse
import json
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxrnn
from jaxrnn import plotting

Activation = Literal["relu", "tanh", "identity"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "tanh", "identity")
STEPS = 50
SEED = 0
SMALL_H, LARGE_H = 5, 100
SCALES = np.geomspace(0.3, 4, 37)  # s √H, which is approximately ρ
QUARTILES = (0.25, 0.5, 0.75)
BACK = 9  # steps from the last state back to the source's dhs[40]
LARGEST = 13301.88317498  # the largest |element| of dhs[40] that the source printed


class Draws(NamedTuple):
    """Weights, initial states and gradients at h_T of N networks, all standard normal."""

    W_hh: Float[Array, "N H H"]
    h_0: Float[Array, "N H"]
    d_last: Float[Array, "N H"]


def draw(seed: int, H: int, count: int) -> Draws:
    """Draw `count` networks of H units."""
    weight_key, state_key, gradient_key = jax.random.split(jax.random.key(seed), 3)
    return Draws(
        jax.random.normal(weight_key, (count, H, H)),
        jax.random.normal(state_key, (count, H)),
        jax.random.normal(gradient_key, (count, H)),
    )


def last_state(
    activation: Activation, W_hh: Float[Array, "H H"], h: Float[Array, " H"], steps: int
) -> Float[Array, " H"]:
    """Run a network without inputs for `steps` steps and return its last state."""
    H = len(h)
    rnn = jaxrnn.RNN(1, H, 1, activation=activation, use_bias=False)
    cell = jaxrnn.Cell(jnp.zeros((1, H)), W_hh, None)
    return rnn.unroll(cell, jnp.zeros((1, steps, 1)), h[None])[1][0]


@partial(jax.jit, static_argnames=("activation", "before", "back"))
def credit(activation: Activation, draws: Draws, before: int, back: int) -> Float[Array, "N H"]:
    """Compute dL/dh after `before` steps, from the gradient at the state `back` steps later."""

    def through_network(W_hh, h_0, d_last):
        h = last_state(activation, W_hh, h_0, before) if before else h_0
        _, pull_back = jax.vjp(lambda h: last_state(activation, W_hh, h, back), h)
        return pull_back(d_last)[0]

    return jax.vmap(through_network)(*draws)


@partial(jax.jit, static_argnames="activation")
def end_jacobian(activation: Activation, draws: Draws) -> Float[Array, "N H H"]:
    """Compute the one-step Jacobian ∂h_{T+1}/∂h_T."""

    def of_network(W_hh, h_0, _):
        h_last = last_state(activation, W_hh, h_0, STEPS)
        return jax.jacrev(lambda h: last_state(activation, W_hh, h, 1))(h_last)

    return jax.vmap(of_network)(*draws)


def spectral_radius(matrices: np.ndarray) -> np.ndarray:
    """Compute the largest |eigenvalue| of each matrix (N, H, H)."""
    return np.abs(np.linalg.eigvals(matrices)).max(-1)


def growth(activation: Activation, draws: Draws) -> np.ndarray:
    """Compute g, the growth of the gradient per step, at every scale: (scales, N)."""
    rows = []
    for s in SCALES / np.sqrt(draws.h_0.shape[-1]):
        d_h0 = credit(activation, draws._replace(W_hh=s * draws.W_hh), before=0, back=STEPS)
        ratio = jnp.linalg.norm(d_h0, axis=-1) / jnp.linalg.norm(draws.d_last, axis=-1)
        rows.append(np.asarray(ratio) ** (1 / STEPS))
    return np.stack(rows)


def summarize(scale: float, radius: np.ndarray, g: np.ndarray) -> dict[str, float | list[float]]:
    """Compute the shares and quartiles of the draws of one activation, size and scale."""
    live = g > 0
    return {
        "scale": rounded(scale),
        "radius": rounded(np.median(radius)),
        "gone": rounded(np.mean(~live)),
        "exploded": rounded(np.mean(g > 1)),
        "growth_quartiles": [rounded(q) for q in np.quantile(g[live], QUARTILES)],
        "ratio_quartiles": [rounded(q) for q in np.quantile((g / radius)[live], QUARTILES)],
    }


def rounded(value: np.floating | float) -> float:
    """Return `value` rounded to four significant digits."""
    return float(f"{value:.4g}")


def prediction_accuracy(activation: Activation, draws: Draws, g: np.ndarray) -> dict[str, float]:
    """Compute how often "this quantity is above 1" predicts "g > 1" correctly, over all scales."""
    scales = SCALES[:, None] / np.sqrt(draws.h_0.shape[-1])
    weights = np.asarray(draws.W_hh)
    largest = scales * np.abs(weights).max((1, 2))
    singular = scales * np.linalg.norm(weights, 2, axis=(1, 2))
    radius = scales * spectral_radius(weights)
    at_end = [
        spectral_radius(np.asarray(end_jacobian(activation, draws._replace(W_hh=s * draws.W_hh))))
        for s in scales[:, 0]
    ]
    candidates = np.geomspace(0.3, 10, 200)
    accuracies = [np.mean((g > 1) == (radius > candidate)) for candidate in candidates]
    shares = {
        "exploded": np.mean(g > 1),
        "weight": np.mean((g > 1) == (largest > 1)),
        "singular": np.mean((g > 1) == (singular > 1)),
        "radius": np.mean((g > 1) == (radius > 1)),
        "best_radius": np.max(accuracies),
        "best_threshold": candidates[np.argmax(accuracies)],
        "radius_at_end": np.mean((g > 1) == (np.stack(at_end) > 1)),
        "vanished_of_weight_above_1": np.mean(g[largest > 1] < 1),
        "exploded_of_weight_below_1": np.mean(g[largest < 1] > 1),
    }
    return {name: rounded(share) for name, share in shares.items()}


def source_setting(count: int) -> dict[str, float]:
    """Repeat the setting of the source (one draw, ReLU, H=5, s=1) with `count` draws."""
    draws = draw(SEED + 1, SMALL_H, count)
    d_h0 = np.asarray(credit("relu", draws, before=0, back=STEPS))
    d_h40 = np.asarray(credit("relu", draws, before=STEPS - BACK, back=BACK))
    g = (np.linalg.norm(d_h0, axis=-1) / np.linalg.norm(draws.d_last, axis=-1)) ** (1 / STEPS)
    largest = np.abs(d_h40).max(-1)
    above = np.abs(draws.W_hh).max((1, 2)) > 1
    values = {
        "share gone": np.mean(g == 0),
        "share vanished otherwise": np.mean((g > 0) & (g < 1)),
        "share exploded": np.mean(g > 1),
        "share with max |w| > 1": np.mean(above),
        "share vanished or gone of those": np.mean(g[above] < 1),
        "median of max |dhs[40]|": np.median(largest),
        "share below the printed": np.mean(largest < LARGEST),
        "share below, of what is not 0": np.mean(largest[largest > 0] < LARGEST),
    }
    return {"draws": count} | {name: rounded(value) for name, value in values.items()}


def print_tables(report: dict[str, Any]) -> None:
    """Print growth against ρ, the accuracy of each predictor, and the setting of the source."""
    print(
        "quartiles of g/ρ, growth per step over spectral radius, of the gradients that are not gone"
    )
    heads = ("s √H", "ρ", "gone", "g > 1", "25 %", "50 %", "75 %")
    print(f"{'':10}{'H':>4}" + "".join(f"{head:>8}" for head in heads))
    for row in report["growth"]:
        if row["scale"] in map(rounded, SCALES[::18]):
            sizes = f"{row['H']:4}{row['scale']:8.2f}{row['radius']:8.2f}"
            shares = f"{row['gone']:8.1%}{row['exploded']:8.1%}"
            quartiles = "".join(f"{q:8.3f}" for q in row["ratio_quartiles"])
            print(f"{row['activation']:10}{sizes}{shares}{quartiles}")
    print(f"\nH={SMALL_H}, all scales: how often 'this is above 1' predicts 'g > 1' correctly")
    heads = (
        "max |w|",
        "σ_max",
        "ρ",
        "ρ(J) at T",
        "best threshold",
        "g > 1",
        "g < 1 though max |w| > 1",
    )
    print(f"{'':10}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    for activation, row in report["foretold"].items():
        best = f"{row['best_radius']:.1%} (> {row['best_threshold']:.2f})"
        predictions = f"{row['weight']:10.1%}{row['singular']:8.1%}{row['radius']:8.1%}"
        predictions += f"{row['radius_at_end']:12.1%}{best:>17}"
        shares = f"{row['exploded']:8.1%}{row['vanished_of_weight_above_1']:27.1%}"
        print(f"{activation:10}{predictions}{shares}")
    print("\nsetting of the source: ReLU, H=5, W_hh standard normal")
    for name, value in report["source"].items():
        print(f"  {name:35}{value:.6g}")
    print(f"  (the source printed a largest |dL/dh|, {BACK} steps back, of {LARGEST:.1f})")


def plot(
    radii: dict[int, np.ndarray], growths: dict[tuple[str, int], np.ndarray], path: Path
) -> None:
    """Plot g against ρ: every 30th draw of the small network, and quartiles of both sizes."""
    with plotting.picture(path, 11, 4.2) as figure:
        panels = figure.subplots(1, len(ACTIVATIONS), sharex=True, sharey=True)
        for axes, activation in zip(panels, ACTIVATIONS, strict=True):
            for H, colour in {SMALL_H: plotting.BLUE, LARGE_H: plotting.ORANGE}.items():
                radius, g = radii[H].ravel(), growths[activation, H].ravel()
                live = g > 0
                gone = f" ({np.mean(~live):.0%} gone)" if np.mean(live) < 0.99 else ""
                centres, (low, median, high) = binned_quartiles(radius[live], g[live])
                if H == SMALL_H:
                    axes.plot(
                        radius[::30], g[::30], ".", color=plotting.GRAY, markersize=1.5, alpha=0.5
                    )
                axes.fill_between(centres, low, high, color=colour, alpha=0.3, linewidth=0)
                axes.plot(centres, median, color=colour, linewidth=2, label=f"H = {H}{gone}")
            axes.axline((1, 1), (10, 10), color="black", linestyle="--", linewidth=1, label="g = ρ")
            axes.axhline(1, color="black", linestyle=":", linewidth=1)
            axes.set(xscale="log", yscale="log", xlim=(0.1, 10), ylim=(0.03, 10), title=activation)
            axes.set_xlabel("spectral radius ρ of W_hh")
            axes.legend(fontsize=9, loc="upper left")
        panels[0].set_ylabel(
            "growth of the gradient per step, g\n(median and quartiles; above 1 it explodes)"
        )


def binned_quartiles(radius: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the quartiles of g in bins of ρ, without bins of fewer than 20 draws.

    Returns:
        The centre of each bin, (bins,), and the quartiles of g in it, (3, bins).
    """
    edges = np.geomspace(0.1, 10, 31)
    bins = np.digitize(radius, edges)
    filled = [b for b in range(1, len(edges)) if np.sum(bins == b) >= 20]
    quartiles = [np.quantile(g[bins == b], QUARTILES) for b in filled]
    return np.sqrt(edges[np.array(filled) - 1] * edges[filled]), np.transpose(quartiles)


def main() -> None:
    """Run the experiment, print the tables, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few draws, for tests")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    counts = {SMALL_H: 100, LARGE_H: 20} if arguments.quick else {SMALL_H: 2000, LARGE_H: 1000}
    radii, growths, rows, accuracies = {}, {}, [], {}
    with jax.enable_x64(True):
        for H, count in counts.items():
            draws = draw(SEED, H, count)
            scales = SCALES[:, None] / np.sqrt(H)
            radii[H] = scales * spectral_radius(np.asarray(draws.W_hh))
            for activation in ACTIVATIONS:
                growths[activation, H] = g = growth(activation, draws)
                for figures in map(summarize, SCALES, radii[H], g):
                    rows.append({"activation": activation, "H": H, **figures})
                if H == SMALL_H:
                    accuracies[activation] = prediction_accuracy(activation, draws, g)
        source = source_setting(1000 if arguments.quick else 100_000)

    versions = {package: version(package) for package in ("jax", "jaxrnn", "numpy")}
    report = {"seed": SEED, "steps": STEPS, "draws": counts, "dtype": "float64"}
    report |= {"versions": versions, "growth": rows, "foretold": accuracies, "source": source}
    print(f"seed {SEED}, T={STEPS}, float64, draws per scale: {counts}, {versions}\n")
    print_tables(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (arguments.out / "exploding_gradient.json").write_text(text + "\n")
    plot(radii, growths, arguments.out / "exploding_gradient.png")


if __name__ == "__main__":
    main()
