"""Time whole training, in characters per second, against training loops of other libraries.

    python -m experiments.benchmarks.loop             some minutes on two cores
    python -m experiments.benchmarks.loop --quick     tiny, and its numbers mean nothing

A network with one tanh layer and biases reads a stream of ids in chunks and carries h from chunk to
chunk. Each step computes the gradient of the mean cross-entropy of one chunk, clips each element to
±5, and makes an Adagrad update with rate 0.1 as min-char-rnn does, in float32. The ids are random:
the arithmetic is the same as for a text, but there is nothing to learn. All batches are made in
advance, including the one-hot rows for torch and NumPy.

In every contender, a call trains for the same steps from the same parameters. The contenders are
timed in interleaved rounds, in a new random order in each round. Before a contender is timed, the
losses of its first 20 steps are compared with those of jaxrnn, with a rate of 0.003. With a rate of
0.1 the first steps make the network chaotic: two runs that differ by a rounding error, even in
float64, are far apart 20 steps later. A contender whose library is not installed is skipped; `pip
install '.[bench]'` installs all of them.

A ratio is the median over the rounds of the time of a contender divided by the time of jaxrnn in
one jit in the same round.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.benchmarks import measure
from jaxrnn import RNN, Batch, Params, exchange, plotting


class Size(NamedTuple):
    """Sizes of a problem, with O = I, and the number of steps of a call."""

    O: int
    H: int
    T: int
    B: int
    steps: int


Run = Callable[[], Any]  # trains from the initial parameters; returns the loss of each step

GRID = [
    Size(65, 100, 25, 1, 100),
    Size(65, 128, 50, 32, 10),
    Size(65, 256, 64, 64, 3),
]
QUICK = [Size(7, 5, 4, 1, 3), Size(7, 5, 4, 3, 3)]
CHECKED = 20  # steps whose losses are compared
RATE, CHECKED_RATE = 0.1, 0.003  # learning rates of the timing and of the comparison
SAME = 1e-5  # relative tolerance between two losses in float32


def one_jit(rnn: RNN, params: Params, batches: Batch, rate: float) -> Run:
    """Build a call that runs all steps in one jitted `make_train_loop`."""
    step, first = _training(jaxrnn.gradients.bptt, rnn, params, batches, rate)
    loop = jaxrnn.make_train_loop(step)
    batches = jax.tree.map(jnp.asarray, batches)

    def run():
        state, metrics = loop(jax.tree.map(jnp.copy, first), batches)
        return jax.block_until_ready((state, metrics))[1].loss

    return run


def one_by_one(
    rule: Callable[[RNN], jaxrnn.GradientAlgorithm],
    rnn: RNN,
    params: Params,
    batches: Batch,
    rate: float,
) -> Run:
    """Build a Python loop around one jitted step."""
    step, first = _training(rule, rnn, params, batches, rate)
    step = jax.jit(step, donate_argnums=0)
    pairs = zip(batches.inputs, batches.targets, strict=True)
    chunks = [Batch(*map(jnp.asarray, pair)) for pair in pairs]

    def run():
        state, losses = jax.tree.map(jnp.copy, first), []
        for batch in chunks:
            state, metrics = step(state, batch)
            losses.append(metrics.loss)
        jax.block_until_ready(state)
        return losses

    return run


def torch(rnn: RNN, params: Params, batches: Batch, rate: float) -> Run:
    """Build a loop in eager PyTorch, with `nn.RNN`, `nn.Linear` and `optim.Adagrad`.

    Only one of the two biases of the RNN is trained, because their sum would change twice as fast
    if both were.
    """
    import torch  # pyright: ignore[reportMissingImports]

    rows, targets = _one_hot(rnn, batches), np.array(batches.targets, np.int64)
    chunks = list(zip(map(torch.from_numpy, rows), map(torch.from_numpy, targets), strict=True))
    layer = torch.nn.RNN(rnn.input_size, rnn.hidden_size, batch_first=True)
    linear = torch.nn.Linear(rnn.hidden_size, rnn.output_size)
    layer.bias_hh_l0.requires_grad_(False)
    trained = [leaf for leaf in (*layer.parameters(), *linear.parameters()) if leaf.requires_grad]
    first = [
        {name: torch.from_numpy(leaf) for name, leaf in state.items()}
        for state in exchange.to_torch(rnn, params)
    ]

    def run():
        for module, state in zip((layer, linear), first, strict=True):
            module.load_state_dict(state)
        # Torch adds eps outside the root; this puts it inside, as in min-char-rnn.
        optimizer = torch.optim.Adagrad(trained, rate, initial_accumulator_value=1e-8, eps=0)
        h, losses = torch.zeros(1, targets.shape[1], rnn.hidden_size), []
        for x, answers in chunks:
            states, h = layer(x, h.detach())
            outputs = linear(states).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(outputs, answers.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_value_(trained, 5)
            optimizer.step()
            losses.append(loss.detach())
        return losses

    return run


def numpy(rnn: RNN, params: Params, batches: Batch, rate: float) -> Run | None:
    """Build the loop of min-char-rnn in NumPy, for one sequence, with column vectors."""
    if batches.inputs.shape[1] > 1:
        return None
    columns = exchange.to_min_char_rnn(rnn, params)
    first = [columns[name] for name in ("Wxh", "Whh", "Why", "bh", "by")]
    rows = _one_hot(rnn, batches)[:, 0, :, :, None]
    chunks = list(zip(rows, batches.targets[:, 0], strict=True))

    def gradient(weights, h_first, x, answers):
        Wxh, Whh, Why, bh, by = weights
        h, p, loss = {-1: h_first}, {}, 0.0
        for t, answer in enumerate(answers):
            h[t] = np.tanh(Wxh @ x[t] + Whh @ h[t - 1] + bh)
            y = np.exp(Why @ h[t] + by)
            p[t] = y / y.sum()
            loss -= np.log(p[t][answer, 0])
        grads = dWxh, dWhh, dWhy, dbh, dby = list(map(np.zeros_like, weights))
        dh_next = np.zeros_like(bh)
        for t in reversed(range(len(x))):
            dy = p[t] / len(x)
            dy[answers[t]] -= 1 / len(x)
            dWhy += dy @ h[t].T
            dby += dy
            da = (1 - h[t] ** 2) * (Why.T @ dy + dh_next)
            dWxh += da @ x[t].T
            dWhh += da @ h[t - 1].T
            dbh += da
            dh_next = Whh.T @ da
        return loss / len(x), grads, h[len(x) - 1]

    def run():
        weights, sums = [leaf.copy() for leaf in first], list(map(np.zeros_like, first))
        h, losses = np.zeros_like(first[3]), []
        for x, answers in chunks:
            loss, grads, h = gradient(weights, h, x, answers)
            for leaf, grad, total in zip(weights, grads, sums, strict=True):
                np.clip(grad, -5, 5, out=grad)
                total += grad * grad
                leaf -= rate * grad / np.sqrt(total + 1e-8)
            losses.append(loss)
        return losses

    return run


OURS = "jaxrnn, one jit"
CONTENDERS: dict[str, Callable[..., Run | None]] = {
    OURS: one_jit,
    "jaxrnn, a jitted step": partial(one_by_one, jaxrnn.gradients.bptt),
    "the same, autodiff": partial(one_by_one, jaxrnn.gradients.autodiff),
    "torch": torch,
    "NumPy": numpy,
}


def _training(rule, rnn, params, batches, rate):
    algorithm, optimizer = rule(rnn), jaxrnn.clipped_adagrad(rate)
    h = rnn.initial_state(batches.inputs.shape[1])
    first = jaxrnn.init_train_state(algorithm, optimizer, params, h, key=jax.random.key(1))
    return jaxrnn.make_train_step(algorithm, optimizer, continues=True), first


def _one_hot(rnn, batches):
    return np.eye(rnn.input_size, dtype=np.float32)[batches.inputs]


def problem(size: Size, steps: int) -> tuple[RNN, Params, Batch]:
    """Draw the parameters of a network, and the batches of `steps` steps of a stream of ids."""
    rnn = RNN(size.O, size.H, size.O)
    ids = np.random.default_rng(0).integers(0, size.O, size.B * size.T * steps + 1, np.int32)
    batches = jaxrnn.lm.batches.stream(ids, size.B, size.T)(np.arange(steps))
    return rnn, rnn.init(jax.random.key(0)), batches


def contenders(size: Size) -> Iterator[tuple[str, Run]]:
    """Yield the name and the call of every installed contender, after checking its losses."""
    reference = None
    for name, make in CONTENDERS.items():
        try:
            check = make(*problem(size, CHECKED), CHECKED_RATE)
            run = make(*problem(size, size.steps), RATE)
        except ImportError as error:
            print(f"skipped {name}: {error.name} is not installed", flush=True)
            continue
        if check is None or run is None:
            continue
        losses = np.asarray(check())
        reference = losses if reference is None else reference
        difference = np.max(np.abs(losses / reference - 1))
        if not difference < SAME:
            raise ValueError(
                f"{name} does not train as jaxrnn does at {size}: a loss differs by {difference}"
            )
        yield name, run


def measure_size(size: Size, rounds: int) -> dict[str, Any]:
    """Time every contender at one size; return its row of the report."""
    seconds = measure.in_turns(dict(contenders(size)), rounds)
    characters = size.steps * size.B * size.T
    return {
        "size": size._asdict(),
        "characters per second": {
            name: float(characters / np.median(times)) for name, times in seconds.items()
        },
        "ratios": {
            name: measure.ratio(times, seconds[OURS])
            for name, times in seconds.items()
            if name != OURS
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of thousands of characters per second, and the ratios."""
    speeds = [row["characters per second"] for row in rows]
    names = [name for name in CONTENDERS if any(name in speed for speed in speeds)]
    lines = [
        "| O, H, T, B, steps | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row, speed in zip(rows, speeds, strict=True):
        cells = [", ".join(map(str, row["size"].values()))]
        for name in names:
            ratio = f" ({row['ratios'][name]:.2f})" if name in row["ratios"] else ""
            cells.append(f"{_thousands(speed[name])}{ratio}" if name in speed else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _thousands(speed: float) -> str:
    return f"{speed / 1e3:,.0f}k"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot how many characters each contender trains on in a second, a panel for each size."""
    with plotting.picture(path, 11, 2.9) as figure:
        for axes, row in zip(figure.subplots(1, len(rows)), rows, strict=True):
            speeds = {name: row["characters per second"].get(name, 0) / 1e3 for name in CONTENDERS}
            colors = [plotting.BLUE if "jaxrnn" in name else plotting.GRAY for name in CONTENDERS]
            bars = axes.barh(list(speeds), list(speeds.values()), color=colors)
            labels = [f"{speed:,.0f}" if speed else "not run" for speed in speeds.values()]
            axes.bar_label(bars, labels, padding=3, fontsize=9)
            axes.invert_yaxis()
            axes.margins(x=0.22)
            axes.set_title("O={O} H={H} T={T} B={B}".format(**row["size"]))
            axes.label_outer()
        figure.supxlabel("thousand characters per second (higher is better)", fontsize=10)


def main() -> None:
    """Run the benchmark, print the table, and write the results and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--rounds", type=int, default=25, help="number of rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    arguments = parser.parse_args()
    rows = []
    for size in QUICK if arguments.quick else GRID:
        rows.append(measure_size(size, 1 if arguments.quick else arguments.rounds))
        print(f"\n{table(rows[-1:])}", flush=True)
    print(f"\n{table(rows)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"rows": rows, "versions": measure.where("torch")}
    (arguments.out / "loop.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, arguments.out / "loop.png")


if __name__ == "__main__":
    main()
