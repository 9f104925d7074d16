"""What the command shows: lines, progress, a plot, and a walk through one word."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax
import matplotlib
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxrnn import run
from jaxrnn.network import Batch
from jaxrnn.text import Vocabulary
from jaxrnn.verification import Report
from jaxrnn.verification.compare import HEADER, cells
from jaxrnn.walkthrough import Walkthrough

console = Console(highlight=False, soft_wrap=True, emoji=False)


def say(label: str, text: str) -> None:
    """Print one line with its label."""
    console.print(f"[bold]{label:<9}[/bold] ", end="")
    console.print(text, markup=False)


def network(text: str, training: run.Run) -> None:
    """Say what is trained on what."""
    rnn = training.rnn
    say("", f"{len(text):,} characters, {training.vocabulary.size} different")
    layers = [f"{rnn.hidden_size} {rnn.activation}"] * rnn.num_layers
    leak = "" if rnn.leak == 1 else f", leak {rnn.leak}"
    size = sum(leaf.size for leaf in jax.tree.leaves(training.state.params))
    sizes = " → ".join([str(rnn.input_size), *layers, str(rnn.output_size)])
    say("network", f"{sizes}{leak}, {size:,} parameters")


def gradient(report: Report, batch: Batch) -> None:
    """Say how well the gradient agrees; all of the report where it does not."""
    say("gradient", f"bptt against jax.grad on the first batch {batch.inputs.shape}, in float64:")
    if report.ok:
        say("", f"largest error {report.worst.error:.1e}, in {report.worst.name}: right")
    else:
        console.print(str(report), markup=False)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something is going on."""
    with console.status(what) if console.is_terminal else nullcontext():
        yield


def report(found: Report) -> None:
    """Show a report: a table on a terminal, plain text elsewhere."""
    if not console.is_terminal:
        print(found)
        return
    rows = [cells(leaf) for leaf in found.leaves]
    widths = [max(map(len, column)) + 2 for column in zip(HEADER, *rows, strict=True)]
    fitting = sum(np.cumsum(widths) <= console.width + 2)  # the first columns say the most
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for column in HEADER[:fitting]:
        table.add_column(column, justify="left" if column == HEADER[0] else "right", no_wrap=True)
    for leaf, row in zip(found.leaves, rows, strict=True):
        table.add_row(*map(escape, row[:fitting]), style=None if leaf.ok else "red")
    if found.leaves:
        console.print(table)
    for remark in found.remarks():
        console.print(remark, markup=False, style="dim")
    console.print(found.verdict, markup=False, style="bold green" if found.ok else "bold red")


def samples(texts: list[str]) -> None:
    """Print generated texts, ruled off from each other where they are longer than a line."""
    ruled = len(texts) > 1 and any("\n" in text for text in texts)
    for text in texts:
        if ruled:
            console.rule(style="dim")
        print(text)  # as it is: a console would expand its tabs
    if ruled:
        console.rule(style="dim")


def with_progress(training: run.Run) -> Iterator[run.Block]:
    """Show a bar on a terminal, and ten plain lines elsewhere."""
    steps, told = training.options.steps, 0
    started = before = time.perf_counter()

    def describe(block, seconds):
        loss, bits = float(block.metrics.loss.mean()), float(block.metrics.bits.mean())
        speed = block.characters / seconds / 1000
        return f"loss {loss:.4f} ({bits:.4f} bits) {speed:,.0f}k char/s"

    columns = (
        TextColumn("[bold]training [/bold] {task.completed:,.0f}/{task.total:,.0f}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=steps, status="compiling …")
        for block in run.train(training):
            now, done = time.perf_counter(), int(block.state.step)
            status = describe(block, now - before)
            before = now
            progress.update(task, completed=done, status=status)
            if not console.is_terminal and done * 10 // steps > told:
                told = done * 10 // steps
                left = (now - started) * (steps / done - 1)
                say("training", f"{done:,}/{steps:,} {status}, {left:.0f} s left")
            yield block


def plot_losses(losses: list[float], held_out: float, folder: Path) -> None:
    """Draw the training loss over the steps, and the held-out loss at the end."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # takes its time: only when there is something to draw

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.7, label="training, one batch a step")
    axes.axhline(held_out, color="black", linestyle="--", label=f"held out: {held_out:.3f}")
    axes.set(xlabel="step", ylabel="loss, nats per character")
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
    plt.close(figure)


def walk(word: str, vocabulary: Vocabulary, walk: Walkthrough) -> None:
    """Print a walkthrough with its formulas."""

    def show(name, value):
        shown = np.array2string(
            value,
            precision=8,
            prefix=" " * 12,
            max_line_width=console.width,
            threshold=sys.maxsize,
        )
        print(f"  {name:<9} {shown}")

    def weights(params, prefix=""):
        (cell,), readout = params
        for name, leaf in (cell._asdict() | readout._asdict()).items():
            show(prefix + name, leaf)

    symbols = vocabulary.symbols
    answers = word[1:] + run.LINE
    print(f"characters  {' '.join(map(repr, symbols))}")
    print("\nparameters  (rows are what a weight reads, columns what it writes)")
    weights(walk.params)
    print("\nforward     h = tanh(x W_xh + h_prev W_hh + b_h)")
    print("            y = h W_hy + b_y   p = softmax(y)   loss = -ln p[answer]")
    for t, (read, answer) in enumerate(zip(word, answers, strict=True)):
        print(f"step {t}: reads {read!r}, should answer {answer!r}")
        for name in ("x", "h", "y", "p"):
            show(name, getattr(walk, name)[t])
        show("loss", walk.loss_t[t])
    print(f"loss        {walk.loss}   the sum")
    print("\nbackward    dy = p - onehot(answer)   dh = dy W_hyᵀ + dh_next")
    print("            dh_raw = (1 - h²) dh      dh_next = dh_raw W_hhᵀ, to the step before")
    for t in reversed(range(len(word))):
        print(f"step {t}:")
        for name in ("dy", "dh_next", "dh", "gain", "dh_raw"):
            show("1 - h²" if name == "gain" else name, getattr(walk, name)[t])
    print("\ngradients   dW_xh = Σ xᵀ dh_raw   dW_hh = Σ h_prevᵀ dh_raw   db_h = Σ dh_raw")
    print("            dW_hy = Σ hᵀ dy       db_y = Σ dy")
    weights(walk.grads, "d")
    show("dh_0", walk.dh_0)
