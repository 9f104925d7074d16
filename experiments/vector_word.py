"""Does the one-hop gradient fail to learn the word "vector"?

Question: the corpus has one word "vector" and fourteen words "ectoaxg". To choose between "r" and
"a" after "o", a network must remember the "v" four letters before. The one-hop gradient passes no
credit between steps. The source reports, from one run of each, that after a "v" a network trained
with the one-hop gradient writes "vectoaxg" and one trained with full BPTT writes "vector". Does
this hold for other seeds?

Setting: 64 seeds of each rule. The experiment measures the loss during training, and the exact
probability that the trained network continues "v" with "ector" and the end of the line.

    python experiments/vector_word.py            about a minute on two cores
    python experiments/vector_word.py --quick    seconds: tiny, and its numbers mean nothing

Source: the notebook "Vanilla RNN: Character-level language model with RNN" (2019-01-03), sections
4 and 5 (002_67cb450799f41c8f.txt). The experiment uses its setting: weights are 0.01 · standard
normal, biases are 0, in float64; SGD with rate 0.1 makes an update after every word, in order, and
each word starts from h = 0. It also follows the program of the notebook where the text does not
describe it:

- The newline is a word of its own, as input and target.
- The gradient of a word is a sum, which is not divided by the length of the word.
- The iteration number is the number of the pass plus the number of words, so "iteration i" is pass
  i - len(words), counted from 0.
- The text of 15 lines ends without a newline (no blank line follows where it is printed), so there
  is no empty word.

The pass in which a one-hop seed learns the word depends on rounding, so counts may differ by a seed
or two on another machine.
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

import jaxrnn
from jaxrnn import plotting

ONE_WORD = ("vector", "\n")
CORPUS = ("vector", *["ectoaxg"] * 14, "\n")
SAMPLES = 10  # words sampled from the network of each seed
LONGEST = 20  # maximum number of characters after the "v"
QUANTILES = {"min": 0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1}
SMALL = jax.nn.initializers.normal(0.01)
# The lowest loss of a model that knows only the last letter, so not whether r or a follows "o".
BIGRAM_LOSS = (math.log(15) + 14 * math.log(15 / 14)) / len(CORPUS)


class Setting(NamedTuple):
    """A training setting.

    Attributes:
        name: its name in the tables and in the JSON file.
        rule: builds the gradient rule of a network.
        clip: the gradient clip of SGD, or None.
        passes: passes over the words.
        printed: iterations whose loss is reported, with the loss that the source prints, if any.
        words: the words of the corpus.
        hidden_size: H.
    """

    name: str
    rule: Callable[[jaxrnn.RNN], jaxrnn.GradientAlgorithm]
    clip: float | None
    passes: int
    printed: Mapping[int, float | None]
    words: tuple[str, ...] = CORPUS
    hidden_size: int = 30


class Outcome(NamedTuple):
    """Result of a setting, for S seeds.

    Attributes:
        losses: the mean loss per word in each pass, in nats, (S, passes).
        probability: P("vector" | "v") after the last pass, including the end of the line, (S,).
        samples: SAMPLES words that each trained network writes after "v".
    """

    losses: np.ndarray
    probability: np.ndarray
    samples: list[list[str]]


def settings(quick: bool) -> list[Setting]:
    """Return the three settings of the source, and two more that separate its claims."""
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
    """Train with the keys of seeds 0, …, `seeds - 1`, all at once, and sample from the result."""
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
    algorithm = setting.rule(rnn)
    optimizer = jaxrnn.clipped_sgd(0.1, clip=setting.clip)
    step = jaxrnn.make_train_step(algorithm, optimizer)
    lines = jaxrnn.lm.batches.pad_lines(vocabulary, setting.words)
    words = jaxrnn.lm.batches.eval_set_of_rows(lines, batch_size=1).all()
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
    prompt, end = vocabulary.encode("v\n").tolist()
    ids = write(rnn, params, keys, prompt, end)
    samples = [["v" + vocabulary.decode(row).split("\n")[0] for row in rows] for rows in ids]
    return Outcome(np.asarray(losses), np.asarray(probability), samples)


# These two functions compile once for all settings with the same network.


@partial(jax.jit, static_argnums=0)
def draw(rnn: jaxrnn.RNN, keys: jax.Array) -> jaxrnn.Params:
    """Draw initial parameters with each key."""
    return jax.vmap(rnn.init)(keys)


@partial(jax.jit, static_argnums=0)
def write(
    rnn: jaxrnn.RNN, params: jaxrnn.Params, keys: jax.Array, prompt: int, end: int
) -> jax.Array:
    """Draw samples from each network after the id `prompt`: ids (S, SAMPLES, LONGEST)."""

    def sample(params, key):
        prompts = jnp.full((SAMPLES, 1), prompt)
        key = jax.random.fold_in(key, 1)
        return jaxrnn.lm.sample(rnn, params, prompts, LONGEST, key=key, end=end)

    return jax.vmap(sample)(params, keys)


def summarize(setting: Setting, outcome: Outcome) -> dict[str, Any]:
    """Return the entry of the JSON file: one number per seed, and the most frequent samples."""
    indices = {i: i - len(setting.words) for i in setting.printed}
    reached = {i: index for i, index in indices.items() if index < setting.passes}
    written = Counter(word for words in outcome.samples for word in words)
    return {
        "words": len(setting.words),
        "hidden_size": setting.hidden_size,
        "passes": setting.passes,
        "printed": setting.printed,
        "loss_at": {i: rounded(outcome.losses[:, index]) for i, index in reached.items()},
        "probability": rounded(outcome.probability),
        "samples_of_vector": [words.count("vector") for words in outcome.samples],
        "samples": dict(written.most_common(3)),
    }


def rounded(values: np.ndarray) -> list[float]:
    """Return the values rounded to four significant digits."""
    return [float(f"{value:.4g}") for value in values]


def print_tables(results: dict[str, dict[str, Any]]) -> None:
    """Print the losses, and the samples of the trained networks; quantiles are over the seeds."""
    heads = "".join(f"{head:>10}" for head in QUANTILES)
    print(f"mean loss per word, in nats; the best bigram model has {BIGRAM_LOSS:.4f}")
    print(f"{'':20}{'iteration':>9}{heads}{'source':>10}{'seeds below':>13}")
    for name, result in results.items():
        for iteration, losses in result["loss_at"].items():
            row = "".join(f"{q:10.4g}" for q in np.quantile(losses, [*QUANTILES.values()]))
            source = result["printed"][iteration]
            if source is not None:
                row += f"{source:10.4g}{np.mean(np.less(losses, source)):13.0%}"
            print(f"{name:20}{iteration:9}{row}")
    print(f'\nP("vector" | "v") after the last pass, and {SAMPLES} samples per seed')
    print(f"{'':20}{'passes':>9}{heads}{'above 1/2':>12}   samples")
    for name, result in results.items():
        learned = np.array(result["probability"]) > 0.5
        quantiles = np.quantile(result["probability"], [*QUANTILES.values()])
        row = "".join(f"{q:10.4f}" for q in quantiles) + f"{learned.sum():6} of {learned.size}"
        written = ", ".join(f"{word} {count}" for word, count in result["samples"].items())
        print(f"{name:20}{result['passes']:9}{row}   {written}")


def plot(outcomes: dict[str, Outcome], path: Path) -> None:
    """Plot the loss curve of every seed, and a histogram of the final P("vector" | "v")."""
    with plotting.picture(path, 10, 4) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        colours = {"one-hop, longer": plotting.ORANGE, "BPTT, clipped at 1": plotting.BLUE}
        for name, colour in colours.items():
            losses = outcomes[name].losses
            passes = np.arange(1, losses.shape[1] + 1)
            low, median, high = np.quantile(losses, [0.25, 0.5, 0.75], axis=0)
            left.plot(passes, losses.T, color=colour, linewidth=0.4, alpha=0.3)
            left.fill_between(passes, low, high, color=colour, alpha=0.2, linewidth=0)
            left.plot(passes, median, color=colour, linewidth=2, label=name.split(",")[0])
        left.axhline(BIGRAM_LOSS, color="black", linestyle=":", label="best bigram model")
        left.axvline(
            outcomes["one-hop"].losses.shape[1],
            color=plotting.GRAY,
            linestyle="--",
            label="last pass of the source",
        )
        left.set(
            xscale="log",
            yscale="log",
            xlabel="passes",
            ylabel="mean loss per word (nats, lower is better)",
        )
        left.set_title("loss of every seed (thin), median and quartiles", fontsize=10)

        colours = {"one-hop": plotting.AMBER, **colours}
        right.hist(
            [outcomes[name].probability for name in colours],
            bins=list(np.linspace(0, 1, 11)),
            color=[*colours.values()],
            label=[f"{name}: {outcomes[name].losses.shape[1]} passes" for name in colours],
        )
        right.set(
            xlabel='P("vector" | "v") after the last pass', ylabel="number of seeds", xlim=(0, 1)
        )
        right.set_title(
            f"probability of the word, {len(outcomes['one-hop'].losses)} seeds per setting",
            fontsize=10,
        )
        for axes in (left, right):
            axes.legend(fontsize=8)


def main() -> None:
    """Run every setting, print the tables, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny: 3 seeds, 101 passes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    seeds = 3 if arguments.quick else 64
    selected = settings(arguments.quick)
    with jax.enable_x64(True):
        outcomes = {setting.name: run(setting, seeds) for setting in selected}

    results = {setting.name: summarize(setting, outcomes[setting.name]) for setting in selected}
    versions = {package: version(package) for package in ("jax", "jaxrnn", "numpy")}
    report = {"seeds": seeds, "dtype": "float64", "versions": versions, "settings": results}
    print(f"seeds 0 … {seeds - 1}, float64, {versions}\n")
    print_tables(results)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "vector_word.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(outcomes, arguments.out / "vector_word.png")


if __name__ == "__main__":
    main()
