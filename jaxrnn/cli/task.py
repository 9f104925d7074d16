"""The command `jaxrnn task`: train gradient rules on a task whose best losses are known."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Float

from jaxrnn import gradients, plotting, tasks
from jaxrnn.cli import console
from jaxrnn.gradients import GradientAlgorithm
from jaxrnn.lm.options import seed_key
from jaxrnn.network import checks
from jaxrnn.network.batch import Batch
from jaxrnn.network.rnn import RNN
from jaxrnn.training.step import init_train_state, make_train_step
from jaxrnn.tree import plain

PICTURE = Path("jaxrnn-task.png")
BLOCKS = 100  # points of a curve
LAST = 10  # the loss at the end is the mean over this part of the steps: the last tenth


@dataclass(frozen=True)
class TaskOptions:
    """The network, and how it is trained on a task.

    The gradient:
        algorithm: One or more gradient rules, written as in jaxrnn train, or rules of your own,
            FILE.py:NAME. All start from the same weights and read the same sequences (default:
            bptt).

    The network:
        hidden_size: The number of hidden units (H) (default: 32).
        activation: The nonlinearity φ: tanh, relu, sigmoid or identity (default: tanh).
        leak: The leak rate in h = (1 - leak) h + leak φ(a); 1 is the vanilla network
            (default: 1.0).

    Learning:
        batch_size: The number of sequences in a batch (B) (default: 32).
        length: The number of time steps of each sequence (T) (default: that of the task).
        steps: The number of updates, each on new sequences (default: 2000).
        learning_rate: The learning rate of Adam, which is constant; the norm of the gradient is
            clipped at 1 (default: 0.003).
        seeds: Train this many networks with each rule, in one program (default: 4).
        seed: The random seed of the first network (default: 0).
    """

    algorithm: Annotated[tuple[str, ...], "RULE"] = ("bptt",)
    hidden_size: int = 32
    activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh"
    leak: float = 1.0
    batch_size: int = 32
    length: int | None = None
    steps: int = 2000
    learning_rate: float = 0.003
    seeds: int = 4
    seed: int = 0


TASK = TaskOptions()


def task(
    name: Annotated[str, "TASK"],
    /,
    *,
    out: Annotated[Path, "PICTURE"] = PICTURE,
    save: Annotated[Path | None, "FILE"] = None,
    options: TaskOptions = TASK,
) -> int:
    """Train rules on a task whose best losses are known.

    Losses and best possible losses are plotted. Each update reads new sequences from h = 0, so the
    training loss is the loss on sequences that the network has not seen. Printed are the loss over
    the last tenth of the steps, as median and quartiles of the seeds, and how many seeds are below
    each of the best losses of a network that has learned only a part of the task.

    Args:
        name: The task: copy, adding or delayed_add, with options in parentheses if there are any.
        out: The PNG file of the losses to write (default: jaxrnn-task.png).
        save: Save the losses to this file, as JSON.
        options: The network, and how it is trained.

    Examples:
        jaxrnn task delayed_add --algorithm bptt uoro
        jaxrnn task "copy(delay=5)" --algorithm rtrl --seeds 8
    """
    for option in ("steps", "seeds", "batch_size"):
        checks.whole(option, getattr(options, option), 1)
    if not 0 < options.learning_rate < math.inf:
        raise ValueError(f"learning_rate must be above 0, got {options.learning_rate}")
    made = tasks.build(name)
    given = () if options.length is None else (options.length,)
    draw = partial(made.draw, options.batch_size, *given)
    B, T = jax.eval_shape(lambda: draw(key=jax.random.key(0))).inputs.shape[:2]
    rnn = RNN(
        made.input_size,
        options.hidden_size,
        made.output_size,
        activation=options.activation,
        leak=options.leak,
        loss_function=made.loss,
    )
    rules = {rule: gradients.build(rule, rnn) for rule in options.algorithm}
    console.say("task", f"{name}, {B} new sequences of {T} steps in each update")
    console.say("network", f"{rnn.num_params:,} parameters, {options.seeds} seeds for each rule")
    floors = ", ".join(f"{part} {floor:.4g}" for part, floor in made.floors.items())
    console.say("floors", floors)
    console.say("", "the lowest losses of a network that has learned this part alone")
    losses: dict[str, np.ndarray] = {}  # (seeds, steps)
    curves: dict[str, np.ndarray] = {}  # (seeds, points)
    with console.counted(len(rules) * options.steps) as advance:
        for rule, algorithm in rules.items():
            advance(0, rule)
            blocks = []
            for block in _train(rnn, algorithm, draw, options):
                blocks.append(block)
                advance(block.shape[1], f"{rule}, loss {np.median(block[:, -1]):.4f}")
            losses[rule] = np.concatenate(blocks, axis=1)
            curves[rule] = np.stack([block.mean(1) for block in blocks], axis=1)
    console.table(*_table(losses, made.floors))
    _plot(name, curves, options.steps, made.floors, out)
    console.say("saved", str(out))
    if save is not None:
        result = {"task": name, "options": dataclasses.asdict(options), "floors": made.floors}
        lists = {rule: values.tolist() for rule, values in curves.items()}
        console.save_json(plain(result | {"losses": lists}), save)
    return 0


def _train(
    rnn: RNN, algorithm: GradientAlgorithm, draw: Callable[..., Batch], options: TaskOptions
) -> Iterator[Float[np.ndarray, "seeds steps"]]:
    """Train all seeds at once, and yield the losses of about `BLOCKS` blocks of steps."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(options.learning_rate))
    step = make_train_step(algorithm, optimizer)

    def init(key):
        params_key, state_key = jax.random.split(key)
        h = rnn.initial_state(options.batch_size)
        return init_train_state(algorithm, optimizer, rnn.init(params_key), h, key=state_key)

    def update(key, state, number):
        state, metrics = step(state, draw(key=jax.random.fold_in(key, number)))
        return state, metrics.loss

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    def run(key, state, numbers):
        return lax.scan(partial(update, key), state, numbers)

    seeds = range(options.seed, options.seed + options.seeds)
    keys = jnp.stack([jax.random.split(seed_key(seed)) for seed in seeds])
    state = jax.jit(jax.vmap(init))(keys[:, 0])
    size = max(1, options.steps // BLOCKS)
    for first in range(0, options.steps, size):
        numbers = np.arange(first, min(first + size, options.steps))
        state, losses = run(keys[:, 1], state, numbers)
        yield np.asarray(losses)


def _table(
    losses: Mapping[str, np.ndarray], floors: Mapping[str, float]
) -> tuple[list[str], list[list[str]]]:
    """Return the loss of each rule over the last tenth of the steps, and the seeds below floors.

    The loss is the median of the seeds. A loss that is not finite counts as infinite.
    """
    reached = [part for part, floor in floors.items() if floor > 0]
    titles = ["rule", "loss", "quartiles"]
    titles += [f"< {part}" for part in reached]
    rows = []
    for rule, values in losses.items():
        last = values[:, -max(1, values.shape[1] // LAST) :].mean(1)
        last = np.where(np.isfinite(last), last, np.inf)
        low, middle, high = np.quantile(last, [0.25, 0.5, 0.75], method="inverted_cdf")
        below = [f"{np.sum(last < floors[part])}/{len(last)}" for part in reached]
        rows.append([rule, f"{middle:.4f}", f"{low:.4f} … {high:.4f}", *below])
    return titles, rows


def _plot(
    name: str,
    curves: Mapping[str, np.ndarray],
    steps: int,
    floors: Mapping[str, float],
    path: Path,
) -> None:
    """Plot median and quartiles of the losses over the steps, and the floors of the task."""
    with plotting.picture(path, 7.5, 4.5) as figure:
        axes = figure.subplots()
        for number, (rule, values) in enumerate(curves.items()):
            color = plotting.COLORS[number % len(plotting.COLORS)]
            style = "-" if number < len(plotting.COLORS) else "--"
            where = (np.arange(values.shape[1]) + 1) * (steps / values.shape[1])
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
            axes.plot(where, middle, style, color=color, label=rule)
            axes.fill_between(where, low, high, color=color, alpha=0.15, linewidth=0)
        for part, floor in floors.items():
            axes.axhline(floor, color=plotting.GRAY, linestyle=":", zorder=0)
            axes.annotate(
                f"{part}: {floor:.4g}", (1, floor), xycoords=("axes fraction", "data"), fontsize=8,
                xytext=(4, 0), textcoords="offset points", va="center", annotation_clip=False,
            )  # fmt: skip
        axes.set(xlabel="update", ylabel="loss, median and quartiles of seeds (lower is better)")
        axes.set_title(f"{name}: dotted, the best losses of a network that knows this part")
        axes.legend()
