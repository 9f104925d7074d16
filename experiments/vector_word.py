"""Does the one-hop gradient fail to learn the word "vector"?

One "vector", fourteen "ectoaxg": whether "r" or "a" comes after "o" is for a memory of the "v",
four letters back, to say. The one-hop gradient passes no credit between steps. It was reported to
write "vectoaxg" from a "v", and full BPTT "vector", from one run of each. Here are 64 seeds of
each: the loss on the way, and the trained network's exact probability of going on from "v" with
"ector" and the end of the line.

    python experiments/vector_word.py            about a minute on two cores
    python experiments/vector_word.py --quick    seconds: tiny, and its numbers mean nothing

Source: the notebook "Vanilla RNN: Character-level language model with RNN" (2019-01-03), sections
4 and 5 (002_67cb450799f41c8f.txt), whose setting is kept, with what its program does but does not
say: the newline is a word of its own, input and target; a word's gradient is a sum, never divided
by its length; and an iteration is a pass over the words plus one for each word, so "iteration i" is
pass i - len(words), counted from 0. Its text of 15 lines ends without a newline (nothing blank
follows where it is printed), hence no empty word. Weights are 0.01 · standard normal, biases 0, in
float64; SGD of rate 0.1 after every word, in order, each read from h = 0. When a one-hop seed turns
the corner depends on rounding, so another machine may count a seed or two differently.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure

import jaxrnn

ONE_WORD = ("vector", "\n")
CORPUS = ("vector", *["ectoaxg"] * 14, "\n")
SAMPLES = 10  # words from each seed
LONGEST = 20  # characters after the "v", at most
QUANTILES = {"min": 0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1}
SMALL = jax.nn.initializers.normal(0.01)
# The best that a model of the last letter alone can do: unsure of r or a after each "o".
BIGRAM_LOSS = (math.log(15) + 14 * math.log(15 / 14)) / len(CORPUS)


class Setting(NamedTuple):
    """One way to train; `printed` has the iterations to report, with the source's loss if any."""

    name: str
    rule: Callable[[jaxrnn.RNN], jaxrnn.GradientAlgorithm]
    clip: float | None
    passes: int
    printed: Mapping[int, float | None]
    words: tuple[str, ...] = CORPUS
    hidden_size: int = 30


class Outcome(NamedTuple):
    """What came of a setting, for S seeds.

    Attributes:
        losses: the mean loss of a word in each pass, in nats, (S, passes).
        probability: P("vector" | "v") after the last pass, with the end of the line, (S,).
        samples: what each seed then wrote from "v", SAMPLES words each.
    """

    losses: np.ndarray
    probability: np.ndarray
    samples: list[list[str]]


def settings(quick: bool) -> list[Setting]:
    """List the settings: the source's three, and two that tell its claims apart."""
    passes, more = (101, 151) if quick else (1001, 5001)
    bptt, one_hop = jaxrnn.gradients.bptt, partial(jaxrnn.gradients.truncated_bptt, window=0)
    one_word = {100: 0.024105, 500: 0.002570, 1000: 0.001153}
    naive = {100: 0.276427, 500: 0.252572, 1000: 0.245807}
    exact = {100: 0.006938, 500: 0.000796, 1000: 0.000363}
    all_settings = [
        Setting("one word, one-hop", one_hop, None, passes, one_word, ONE_WORD, hidden_size=50),
        Setting("one-hop", one_hop, None, passes, naive),
        Setting("one-hop, longer", one_hop, None, more, {2000: None, 5000: None}),
        Setting("BPTT, clipped at 1", bptt, 1.0, passes, exact),
        Setting("BPTT, not clipped", bptt, None, passes, dict.fromkeys(exact)),
    ]
    return all_settings[1:4] if quick else all_settings


def run(setting: Setting, seeds: int) -> Outcome:
    """Train from `jax.random.key(0)`, …, `key(seeds - 1)`, all at once, and question the result."""
    vocabulary = jaxrnn.lm.Vocabulary.from_text("".join(setting.words))
    rnn = jaxrnn.RNN(
        vocabulary.size,
        setting.hidden_size,
        vocabulary.size,
        reduction="sum",
        input_init=SMALL,
        recurrent_init=SMALL,
        readout_init=SMALL,
    )
    algorithm = jaxrnn.gradients.stateless(setting.rule(rnn))
    optimizer = jaxrnn.clipped_sgd(0.1, clip=setting.clip)
    step = jaxrnn.make_train_step(algorithm, optimizer)
    words = jaxrnn.lm.batches.grouped(
        jaxrnn.lm.batches.pad_lines(vocabulary, setting.words), batch_size=1
    )
    vector = jax.tree.map(lambda leaf: leaf[0], words)
    h_0 = rnn.initial_state(batch_size=1)

    def one_pass(state, _):
        state, metrics = lax.scan(step, state, words)
        return state, metrics.loss.mean()

    @jax.jit
    @jax.vmap
    def train(params, key):
        state = jaxrnn.init_train_state(algorithm, optimizer, params, h_0, key=key)
        state, losses = lax.scan(one_pass, state, length=setting.passes)
        log_loss, _ = rnn.loss(state.params, h_0, vector)
        return state.params, losses, jnp.exp(-log_loss)

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    params, losses, probability = train(draw(rnn, keys), keys)
    prime, end = vocabulary.encode("v\n").tolist()
    ids = write(rnn, params, keys, prime, end)
    samples = [["v" + vocabulary.decode(row).split("\n")[0] for row in rows] for rows in ids]
    return Outcome(np.asarray(losses), np.asarray(probability), samples)


# Compiled once for all settings of one network.


@partial(jax.jit, static_argnums=0)
def draw(rnn: jaxrnn.RNN, keys: jax.Array) -> jaxrnn.Params:
    """Draw initial parameters from each key."""
    return jax.vmap(rnn.init)(keys)


@partial(jax.jit, static_argnums=0)
def write(
    rnn: jaxrnn.RNN, params: jaxrnn.Params, keys: jax.Array, prime: int, end: int
) -> jax.Array:
    """Let each network go on from the id `prime`: (S, SAMPLES, LONGEST) ids."""

    def sample(params, key):
        primes = jnp.full((SAMPLES, 1), prime)
        key = jax.random.fold_in(key, 1)
        return jaxrnn.lm.sample(rnn, params, primes, LONGEST, key=key, end=end)

    return jax.vmap(sample)(params, keys)


def summarize(setting: Setting, outcome: Outcome) -> dict[str, Any]:
    """Reduce an outcome to what the JSON file keeps: a number a seed, and what was written."""
    places = {i: i - len(setting.words) for i in setting.printed}
    reached = {i: place for i, place in places.items() if place < setting.passes}
    written = Counter(word for words in outcome.samples for word in words)
    return {
        "words": len(setting.words),
        "hidden_size": setting.hidden_size,
        "passes": setting.passes,
        "printed": setting.printed,
        "loss_at": {i: rounded(outcome.losses[:, place]) for i, place in reached.items()},
        "probability": rounded(outcome.probability),
        "samples_of_vector": [words.count("vector") for words in outcome.samples],
        "samples": dict(written.most_common(3)),
    }


def rounded(values: np.ndarray) -> list[float]:
    """Keep four significant digits."""
    return [float(f"{value:.4g}") for value in values]


def print_tables(results: dict[str, dict[str, Any]]) -> None:
    """Print the losses, and then what the trained networks write; quantiles are over the seeds."""
    heads = "".join(f"{head:>10}" for head in QUANTILES)
    print(f"mean loss of a word, in nats; the best bigram model has {BIGRAM_LOSS:.4f}")
    print(f"{'':20}{'iteration':>9}{heads}{'source':>10}{'seeds below':>13}")
    for name, result in results.items():
        for iteration, losses in result["loss_at"].items():
            row = "".join(f"{q:10.4g}" for q in np.quantile(losses, [*QUANTILES.values()]))
            source = result["printed"][iteration]
            if source is not None:
                row += f"{source:10.4g}{np.mean(np.less(losses, source)):13.0%}"
            print(f"{name:20}{iteration:9}{row}")
    print(f'\nP("vector" | "v") after the last pass, and {SAMPLES} samples from each seed')
    print(f"{'':20}{'passes':>9}{heads}{'above 1/2':>12}   samples")
    for name, result in results.items():
        learned = np.array(result["probability"]) > 0.5
        quantiles = np.quantile(result["probability"], [*QUANTILES.values()])
        row = "".join(f"{q:10.4f}" for q in quantiles) + f"{learned.sum():6} of {learned.size}"
        written = ", ".join(f"{word} {count}" for word, count in result["samples"].items())
        print(f"{name:20}{result['passes']:9}{row}   {written}")


def plot(outcomes: dict[str, Outcome], path: Path) -> None:
    """Draw the corpus's loss curves, every seed of them, and where P("vector" | "v") ended."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = {"one-hop, longer": "tab:orange", "BPTT, clipped at 1": "tab:blue"}
    for name, colour in colours.items():
        losses = outcomes[name].losses
        passes = np.arange(1, losses.shape[1] + 1)
        low, median, high = np.quantile(losses, [0.25, 0.5, 0.75], axis=0)
        left.plot(passes, losses.T, color=colour, linewidth=0.4, alpha=0.3)
        left.fill_between(passes, low, high, color=colour, alpha=0.2, linewidth=0)
        left.plot(passes, median, color=colour, linewidth=2, label=name.split(",")[0])
    left.axhline(BIGRAM_LOSS, color="black", linestyle=":", label="best bigram model")
    left.axvline(
        outcomes["one-hop"].losses.shape[1], color="gray", linestyle="--", label="the source stops"
    )
    left.set(xscale="log", yscale="log", xlabel="passes", ylabel="mean loss of a word (nats)")
    left.set_title("every seed (thin), median and quartiles", fontsize=10)

    colours = {"one-hop": "moccasin", **colours}
    right.hist(
        [outcomes[name].probability for name in colours],
        bins=list(np.linspace(0, 1, 11)),
        color=[*colours.values()],
        label=[f"{name}: {outcomes[name].losses.shape[1]} passes" for name in colours],
    )
    right.set(xlabel='P("vector" | "v") after the last pass', ylabel="seeds", xlim=(0, 1))
    right.set_title(f"{len(outcomes['one-hop'].losses)} seeds of each", fontsize=10)
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run every setting; print the tables; write the results and the plot."""
    parser = argparse.ArgumentParser(description="One-hop against BPTT on a word to remember.")
    parser.add_argument("--quick", action="store_true", help="tiny: 3 seeds, 101 passes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to fill")
    arguments = parser.parse_args()
    seeds = 3 if arguments.quick else 64
    chosen = settings(arguments.quick)
    with jax.enable_x64(True):
        outcomes = {setting.name: run(setting, seeds) for setting in chosen}

    results = {setting.name: summarize(setting, outcomes[setting.name]) for setting in chosen}
    versions = {package: version(package) for package in ("jax", "jaxrnn", "numpy")}
    report = {"seeds": seeds, "dtype": "float64", "versions": versions, "settings": results}
    print(f"seeds 0 … {seeds - 1}, float64, {versions}\n")
    print_tables(results)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "vector_word.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(outcomes, arguments.out / "vector_word.png")


if __name__ == "__main__":
    main()
