"""What the command shows: lines, progress, a plot, and a walk through one word."""

import itertools
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxrnn import lm
from jaxrnn.analysis.walkthrough import Walkthrough
from jaxrnn.lm.model import Model, Score, units
from jaxrnn.lm.options import number_of_members
from jaxrnn.lm.store import directory as folder
from jaxrnn.lm.vocabulary import LINE, Vocabulary
from jaxrnn.network.rnn import param_shapes
from jaxrnn.training.nonfinite import Trouble
from jaxrnn.verification.report import HEADER, Report, cells

LONGEST = 2000  # characters of a message
WIDE = 70  # columns, below which progress leaves out what says the least

stdout = Console(highlight=False, soft_wrap=True, emoji=False)


def _reader_gone() -> None:
    raise BrokenPipeError


stdout.on_broken_pipe = _reader_gone  # rich would end the process without a word


def printable(text: str, *, but: str = "") -> str:
    """Show characters that would steer a terminal, and line ends, as escapes; `but` some."""
    return "".join(c if c.isprintable() or c in but else ascii(c)[1:-1] for c in text)


def _as_text(text: str) -> str:
    """Return what a model wrote; on a terminal without the characters that would steer it.

    The joiners U+200C and U+200D stay: words of many scripts and emoji contain them.
    """
    return printable(text, but="\n\t\u200c\u200d") if stdout.is_terminal else text


def brief(text: str) -> str:
    """Cut a message off that a foreign file has made too long to be read."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"


def say(label: str, text: str) -> None:
    """Print one line with its label."""
    stdout.print(f"[bold]{label:<9}[/bold] ", end="")
    stdout.print(brief(text), markup=False)


def text(training: lm.Run, *, given: bool) -> None:
    """Say what is trained on."""
    told, vocabulary = training.text, training.vocabulary
    say("text", told["name"] + ("" if given else ", since no FILE was given"))
    say("", f"{told['characters']:,} {'bytes' if vocabulary.level == 'byte' else 'characters'}, "
        f"{vocabulary.size:,} different {vocabulary.unit}s")  # fmt: skip


def network(training: lm.Run) -> None:
    """Say what is trained, and how many of it."""
    rnn = training.rnn
    layers = [f"{rnn.hidden_size} {rnn.activation}"] * rnn.num_layers
    leak = "" if rnn.leak == 1 else f", leak {rnn.leak}"
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(rnn)))
    sizes = " → ".join([str(rnn.input_size), *layers, str(rnn.output_size)])
    say("network", f"{sizes}{leak}, {size:,} parameters")
    if training.population:
        many = number_of_members(training.options)
        rates = training.options.learning_rates
        of_rates = f", at {len(rates)} learning rates" if rates else ""
        say("", f"{many} models at once{of_rates}, from {training.options.seeds} seeds each")


_CLAIMS = {
    "truncated": "exact for its truncated graph alone",
    "unbiased": "one draw of an unbiased rule",
    "approximate": "an approximate rule",
}


def gradient(found: lm.GradientCheck, batch_size: int) -> None:
    """Show how the gradient compares with the exact one; the whole report if it is wrong."""
    rows, report = len(found.batch.inputs), found.report
    some = "" if rows == batch_size else f"{rows} of {batch_size} rows of "
    what = f"{found.rule} against jax.grad on {some}the first batch {found.batch.inputs.shape}"
    if report is None:
        say("gradient", f"{what}: cosine {found.cosine:.4f}; {_CLAIMS[found.claim]}")
        return
    say("gradient", f"{what}, in float64:")
    if report.ok:
        say("", f"largest error {report.worst.error:.1e}, in {report.worst.name}: right")
    else:
        stdout.print(str(report), markup=False)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something is going on."""
    with stdout.status(what) if stdout.is_terminal and not stdout.quiet else nullcontext():
        yield


def report(found: Report) -> None:
    """Show a report: a table on a terminal, plain text elsewhere."""
    if not stdout.is_terminal:
        print(found)
        return
    rows = [cells(leaf) for leaf in found.leaves]
    widths = [max(map(len, column)) + 2 for column in zip(HEADER, *rows, strict=True)]
    fitting = sum(np.cumsum(widths) <= stdout.width + 2)  # the first columns say the most
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for column in HEADER[:fitting]:
        table.add_column(column, justify="left" if column == HEADER[0] else "right", no_wrap=True)
    for leaf, row in zip(found.leaves, rows, strict=True):
        table.add_row(*map(escape, row[:fitting]), style=None if leaf.ok else "red")
    if found.leaves:
        stdout.print(table)
    for remark in found.remarks():
        stdout.print(remark, markup=False, style="dim")
    stdout.print(found.verdict, markup=False, style="bold green" if found.ok else "bold red")


def samples(texts: list[str]) -> None:
    """Print generated texts, ruled off from each other where they are longer than a line."""
    if stdout.quiet:
        return
    ruled = len(texts) > 1 and any("\n" in text for text in texts)
    for text in texts:
        if ruled:
            stdout.rule(style="dim")
        print(_as_text(text))  # a console would expand its tabs
    if ruled:
        stdout.rule(style="dim")


def streamed(parts: Iterator[list[str]]) -> None:
    """Print a text as it is made; several when all are there."""
    first = next(parts)
    if len(first) > 1:
        samples(["".join(row) for row in zip(first, *parts, strict=True)])
        return
    for (new,) in itertools.chain([first], parts):
        print(_as_text(new), end="", flush=True)
    print()


def remarks(lines: Iterable[str]) -> None:
    """Print what is to be noted, beside the output."""
    for line in () if stdout.quiet else lines:
        print(f"jaxrnn: note: {printable(brief(line))}", file=sys.stderr)


def with_progress(training: lm.Run, blocks: Iterator[lm.Block]) -> Iterator[lm.Block]:
    """Show a bar on a terminal and plain lines elsewhere, one for each evaluation."""
    steps, unit = training.options.steps, training.vocabulary.unit
    started = before = time.perf_counter()
    first, held_out, characters = training.done, "", 0  # characters since the last evaluation

    wide = stdout.width >= WIDE
    columns = (
        TextColumn("[bold]training [/bold] {task.completed:,.0f}/{task.total:,.0f}"),
        *([BarColumn(bar_width=None)] if wide else []),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(compact=True),
    )
    visible = stdout.is_terminal and not stdout.quiet
    with Progress(*columns, console=stdout, disable=not visible) as progress:
        task = progress.add_task("training", total=steps, completed=first, status="compiling …")
        for block in blocks:
            now, done = time.perf_counter(), block.run.done
            characters += block.characters
            speed = characters / (now - before)
            speed = f"{speed / 1000:,.0f}k" if speed >= 10_000 else f"{speed:,.0f}"
            losses = block.metrics.loss[np.isfinite(block.metrics.loss)]
            loss = np.median(losses) if losses.size else np.nan
            if block.held_out is not None:
                held_out = f", held out {folder.lowest(block.held_out):.4f}"
            status = f"loss {loss:.4f}{held_out}"
            status += f", {speed} {unit[:4]}/s" if wide else ""
            progress.update(task, completed=done, status=status)
            if not visible and block.held_out is not None:
                left = (now - started) * (steps - done) / max(1, done - first)
                say("training", f"{done:,}/{steps:,} {status}, {left:.0f} s left")
            if block.held_out is not None:
                before, characters = now, 0
            if block.growing is not None:
                norm = np.max(block.metrics.grad_norm)
                say("warning", f"the gradient's norm rose above 100 times its median at step "
                    f"{block.growing:,}, to {norm:.2g}")  # fmt: skip
            yield block


def with_share(scores: Iterator[tuple[float, Score]]) -> Score:
    """Show on a terminal how much of a text has been scored, and return the last score."""
    last = None
    with Progress(
        TextColumn("[bold]scoring[/bold]"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        console=stdout,
        disable=not stdout.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=1.0)
        for share, last in scores:  # noqa: B007
            progress.update(task, completed=share)
    assert last is not None
    return last


def scored(model: Model, found: Score) -> None:
    """Say how well a text was foretold."""
    vocabulary, nats = model.vocabulary, found.nats
    say("model", f"after step {model.step:,}")
    say("scored", f"{found.symbols:,} {vocabulary.unit}s, state carried from "
        f"{'each line' if model.options.lines else 'the first'} to its end")  # fmt: skip
    say("loss", f"{nats:.4f} nats per {vocabulary.unit} = {units(nats, vocabulary)}")
    if vocabulary.level == "word":
        bits = nats * found.symbols / found.characters / np.log(2)
        say("", f"{bits:.4f} bits per character; {found.unknown:,} words are not known")


def held_out(training: lm.Run) -> None:
    """Say the held-out loss at last, and the best if that was another."""
    history, vocabulary = training.history, training.vocabulary
    if not history:
        return
    best_step, best = min(history, key=lambda each: folder.lowest(each[1]))
    lowest = folder.lowest(best)
    say("held out", f"{lowest:.4f} nats = {units(lowest, vocabulary)}, after step {best_step:,}")
    last_step, last = history[-1]
    if training.population:
        said = [np.nan if loss is None else loss for loss in last]
        low, middle, high = np.nanquantile(said, [0.25, 0.5, 0.75])
        say("", f"the best of {len(said)} models; at the last step the median is {middle:.4f}")
        say("", f"and the quartiles are {low:.4f} and {high:.4f}")
    elif last_step != best_step:
        say("", f"the best checkpoint; the last has {folder.lowest(last):.4f}")


def trouble(found: Trouble) -> None:
    """Say where something that is not finite began, and what to try."""
    for number, line in enumerate(str(found).splitlines()):
        say("" if number else "trouble", line)


def walk(word: str, vocabulary: Vocabulary, walk: Walkthrough) -> None:
    """Print a walkthrough with its formulas."""

    def show(name, value):
        shown = np.array2string(
            value,
            precision=8,
            prefix=" " * 12,
            max_line_width=stdout.width,
            threshold=sys.maxsize,
        )
        print(f"  {name:<9} {shown}")

    def weights(params, prefix=""):
        (cell,), readout = params
        for name, leaf in (cell._asdict() | readout._asdict()).items():
            show(prefix + name, leaf)

    symbols = vocabulary.symbols
    answers = word[1:] + LINE
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
