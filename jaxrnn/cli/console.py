"""Terminal output of the command: labelled lines, progress bars and tables."""

import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxrnn import atomic, lm
from jaxrnn.analysis.compare import Comparison
from jaxrnn.cli.flags import with_flags
from jaxrnn.gradients.own import is_own
from jaxrnn.lm.model import Model, Score, units
from jaxrnn.lm.options import members, number_of_members
from jaxrnn.lm.store import directory
from jaxrnn.network.rnn import param_shapes
from jaxrnn.training.nonfinite import Trouble
from jaxrnn.tree import text_table
from jaxrnn.verification.claims import ClaimReport
from jaxrnn.verification.report import Report

LONGEST = 2000  # maximum length of a message, in characters
_MOST_UNKNOWN = 0.1  # above this share of unknown words a perplexity says little
WIDE = 70  # below this many columns the progress line leaves out the bar and the speed

stdout = Console(highlight=False, soft_wrap=True, emoji=False)


def _raise_broken_pipe() -> None:
    raise BrokenPipeError


stdout.on_broken_pipe = _raise_broken_pipe  # by default rich ends the process without a message


def printable(text: str, *, but: str = "") -> str:
    """Return the text with control characters and line ends escaped, except those in `but`."""
    return "".join(c if c.isprintable() or c in but else ascii(c)[1:-1] for c in text)


def _as_text(text: str) -> str:
    """Return generated text, on a terminal with its control characters escaped.

    The joiners U+200C and U+200D are kept, because words of many scripts and emoji contain them.
    """
    return printable(text, but="\n\t\u200c\u200d") if stdout.is_terminal else text


def brief(text: str) -> str:
    """Return the message, cut off if content from a file has made it too long to read."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"


def say(label: str, text: str) -> None:
    """Print one line of text after its label."""
    stdout.print(f"[bold]{label:<9}[/bold] ", end="")
    stdout.print(brief(text), markup=False)


def text(training: lm.Run, *, given: bool) -> None:
    """Print the name and size of the training text and the size of the vocabulary.

    Args:
        training: the run.
        given: whether the user named a file.
    """
    about, vocabulary = training.text, training.vocabulary
    say("text", about.name + ("" if given else ", since no FILE was given"))
    if vocabulary.level == "byte":  # the vocabulary has all bytes, whatever the text has
        say("", f"{about.characters:,} bytes, each one of {vocabulary.size:,} possible values")
    else:
        say("", f"{about.characters:,} characters, "
            f"{vocabulary.size:,} different {vocabulary.unit}s")  # fmt: skip


def network(training: lm.Run) -> None:
    """Print the sizes of the network, and the number of models if there are several."""
    rnn = training.rnn
    layers = [f"{rnn.hidden_size} {rnn.activation}"] * rnn.num_layers
    leak = "" if rnn.leak == 1 else f", leak {rnn.leak}"
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(rnn)))
    sizes = " → ".join([str(rnn.input_size), *layers, str(rnn.output_size)])
    say("network", f"{sizes}{leak}, {size:,} parameters")
    rule, claim = training.options.algorithm, lm.claim_of(training)
    own = " (a rule of your own counts as approximate)" if is_own(rule) else ""
    say("rule", f"{rule}: {_NATURES[claim]}{own}")
    if training.population:
        number = number_of_members(training.options)
        rates = training.options.learning_rates
        seeds = training.options.seeds
        each = "a seed each"
        if rates:
            each = f"{len(rates)} learning rates with {seeds} seed{'s' * (seeds > 1)} each"
        say("", f"{number} models at once, {each}")


_CLAIMS = {
    "truncated": "exact for its truncated graph alone",
    "unbiased": "one draw of an unbiased rule",
    "approximate": "an approximate rule",
}
_NATURES = {
    "exact": "exact",
    "truncated": "the exact gradient of a graph that is cut after some steps",
    "unbiased": "unbiased, its mean over random draws is the exact gradient",
    "approximate": "approximate, it differs from the exact gradient",
}


def gradient(check: lm.GradientCheck, batch_size: int) -> None:
    """Print how the gradient compares with the exact one; print the whole report if it is wrong."""
    rows, report = len(check.batch.inputs), check.report
    some = "" if rows == batch_size else f"{rows} of {batch_size} rows of "
    what = f"{check.rule} against jax.grad on {some}the first batch {check.batch.inputs.shape}"
    if report is None:
        say("gradient", f"{what}: cosine {check.cosine:.4f}; {_CLAIMS[check.claim]}")
        return
    say("gradient", f"{what}, in float64:")
    if report.ok:
        say("", f"largest error {report.worst.error:.1e}, in {report.worst.name}: right")
    else:
        stdout.print(str(report), markup=False)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show a status line on a terminal while the body of the `with` statement runs."""
    with stdout.status(what) if stdout.is_terminal and not stdout.quiet else nullcontext():
        yield


def report(result: Report | ClaimReport) -> None:
    """Print a report: with a table on a terminal, as plain text elsewhere."""
    if not stdout.is_terminal:
        print(result)
        return
    titles, rows = result.table()
    table(titles, rows, ["red" if row[0] in result.wrong_leaves else "" for row in rows])
    _remarks(result.remarks())
    style = "bold green" if result.ok else "bold red"
    stdout.print(result.diagnosis, markup=False, style=style, soft_wrap=False)


def comparison(result: Comparison) -> None:
    """Print a comparison of rules: with a table on a terminal, as plain text elsewhere."""
    if not stdout.is_terminal:
        print(result)
        return
    table(*result.table())
    _remarks(result.remarks())


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] | None = None
) -> None:
    """Print a table; on a terminal as many of its columns as fit, sorted by importance.

    Args:
        titles: the title of each column.
        rows: the cells of each row.
        styles: the style of each row.
    """
    if not rows:
        return
    if not stdout.is_terminal:
        print("\n".join(text_table(titles, rows)))
        return
    widths = [max(map(len, column)) + 2 for column in zip(titles, *rows, strict=True)]
    fitting = sum(np.cumsum(widths) <= stdout.width + 2)
    drawn = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for number, title in enumerate(titles[:fitting]):
        drawn.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row, style in zip(rows, styles or [""] * len(rows), strict=True):
        drawn.add_row(*map(escape, row[:fitting]), style=style)
    stdout.print(drawn)


def _remarks(lines: Iterable[str]) -> None:
    for line in lines:
        stdout.print(line, markup=False, style="dim", soft_wrap=False)


def save_json(value: object, path: Path) -> None:
    """Save a value as JSON, and say so."""
    try:
        atomic.write(path, json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    say("saved", str(path))


def samples(texts: list[str]) -> None:
    """Print generated texts, kept apart if any of them has several lines.

    They are separated by rules on a terminal and by blank lines elsewhere.
    """
    if stdout.quiet:
        return
    apart = len(texts) > 1 and any("\n" in text for text in texts)
    ruled = apart and stdout.is_terminal
    for number, text in enumerate(texts):
        if ruled:
            stdout.rule(style="dim")
        elif apart and number:
            print()
        print(_as_text(text))  # rich's console would expand the tabs
    if ruled:
        stdout.rule(style="dim")


def streamed(parts: Iterator[list[str]]) -> None:
    """Print one text while it is generated, or several texts when all are complete."""
    first = next(parts)
    if len(first) > 1:
        samples(["".join(row) for row in zip(first, *parts, strict=True)])
        return
    for (new,) in itertools.chain([first], parts):
        print(_as_text(new), end="", flush=True)
    print()


def remarks(lines: Iterable[str]) -> None:
    """Print notes to stderr, one a line."""
    for line in () if stdout.quiet else lines:
        print(f"jaxrnn: note: {printable(brief(line))}", file=sys.stderr)


def with_progress(training: lm.Run, blocks: Iterator[lm.Block]) -> Iterator[lm.Block]:
    """Yield the blocks of a training run, and show its progress.

    The progress is a bar on a terminal, and elsewhere a line for each evaluation.
    """
    steps, unit = training.options.steps, training.vocabulary.unit
    started, first, held_out = time.perf_counter(), training.done, ""
    characters, seconds = 0, 0.0  # of training since the last evaluation

    many = "median " if training.population else ""
    visible = stdout.is_terminal and not stdout.quiet and not lm.over_because(training)
    with Progress(*_columns(), console=stdout, disable=not visible) as progress:
        task = progress.add_task("training", total=steps, completed=first, status="compiling …")
        for block in blocks:
            now, done = time.perf_counter(), block.run.done
            characters, seconds = characters + block.characters, seconds + block.seconds
            speed = characters / seconds
            speed = f"{speed / 1000:,.0f}k" if speed >= 10_000 else f"{speed:,.0f}"
            losses = block.metrics.loss[np.isfinite(block.metrics.loss)]
            loss = np.median(losses) if losses.size else np.nan
            if block.held_out is not None:
                values = np.array(block.held_out, float)  # None becomes nan
                held_out = f", held out {np.median(np.where(np.isnan(values), np.inf, values)):.4f}"
            status = f"{many}loss {loss:.4f}{held_out}"
            status += f", {speed} {unit[:4]}/s" if stdout.width >= WIDE else ""
            progress.update(task, completed=done, status=status)
            if not visible and block.held_out is not None:
                left = (now - started) * (steps - done) / max(1, done - first)
                say("training", f"{done:,}/{steps:,} {status}, {left:.0f} s left")
            if block.held_out is not None:
                characters, seconds = 0, 0.0
            if block.spike_step is not None:
                norm = np.max(block.metrics.grad_norm)
                say("warning", f"the gradient's norm rose above 100 times its median at step "
                    f"{block.spike_step:,}, to {norm:.2g}")  # fmt: skip
            yield block


def _columns() -> list[ProgressColumn]:
    """Return the columns of the progress of training; a narrow terminal has no room for a bar."""
    return [
        TextColumn("[bold]training [/bold] {task.completed:,.0f}/{task.total:,.0f}"),
        *([BarColumn(bar_width=None)] if stdout.width >= WIDE else []),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(compact=True),
    ]


@contextmanager
def counted(total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar on a terminal; the body calls `advance(steps, status)`."""
    visible = stdout.is_terminal and not stdout.quiet
    with Progress(*_columns(), console=stdout, disable=not visible, transient=True) as progress:
        bar = progress.add_task("", total=total, status="compiling …")
        yield lambda steps, status: progress.update(bar, advance=steps, status=status)


def with_share(scores: Iterator[tuple[float, Score]]) -> Score:
    """Return the last score; on a terminal, show the share of the text that has been scored."""
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


def scored(model: Model, score: Score) -> None:
    """Print the loss of a model on a text."""
    vocabulary, nats = model.vocabulary, score.nats
    say("model", f"after step {model.step:,}")
    say("scored", f"{score.symbols:,} {vocabulary.unit}s, state carried from "
        f"{'each line' if model.options.lines else 'the first'} to its end")  # fmt: skip
    say("loss", f"{nats:.4f} nats per {vocabulary.unit} = {units(nats, vocabulary)}")
    if vocabulary.level == "word":
        bits = nats * score.symbols / score.characters / np.log(2)
        share = score.unknown / max(1, score.words)
        say("", f"{bits:.4f} bits per character; {score.unknown:,} words of {score.words:,} are "
            f"not known ({share:.1%})")  # fmt: skip
        if share > _MOST_UNKNOWN:
            what = "each is scored as <unk>, so this perplexity is not that of the text"
            remarks([f"{share:.0%} of the words are unknown: {what}"])
    if score.skipped:
        say("", f"{score.skipped:,} unknown characters were skipped")


def held_out(training: lm.Run) -> None:
    """Print the held-out loss: the lowest one of a model, and of several models a summary."""
    history, vocabulary = training.history, training.vocabulary
    if not history:
        return
    if training.population:
        _held_out_of_members(training)
        return
    best_step, best = min(history, key=lambda evaluation: directory.lowest(evaluation[1]))
    lowest, last = directory.lowest(best), directory.lowest(history[-1][1])
    say("held out", f"{lowest:.4f} nats = {units(lowest, vocabulary)}, after step {best_step:,}")
    if history[-1][0] != best_step:
        say("", f"the best checkpoint; the last has {last:.4f}")


def _held_out_of_members(training: lm.Run) -> None:
    """Print the median of the seeds, or a row for each learning rate, and which model is kept.

    The best of several models is chosen on the held-out text, so its loss there is no estimate. A
    model that is no longer finite counts as one with an infinite loss.
    """
    options, steps = training.options, [step for step, _ in training.history]
    losses = np.array([losses for _, losses in training.history], float)  # None becomes nan
    losses = np.where(np.isnan(losses), np.inf, losses)
    last, lowest = losses[-1], losses.min(0)
    rates = options.learning_rates
    if rates:
        medians_of = f", medians of {options.seeds} seeds" if options.seeds > 1 else ""
        say("held out", f"nats at the last step, and lowest{medians_of}")
        rows = lowest.reshape(len(rates), -1)
        medians = np.stack([np.median(last.reshape(rows.shape), 1), np.median(rows, 1)], 1)
        for rate, (at_end, least) in zip(rates, medians.tolist(), strict=True):
            mark = "  lowest" if least == medians[:, 1].min() else ""
            say("", f"learning rate {rate:<8g} {at_end:8.4f} {least:8.4f}{mark}")
    else:
        low, middle, high = np.quantile(last, [0.25, 0.5, 0.75], method="inverted_cdf")
        say("held out", f"{middle:.4f} nats = {units(middle, training.vocabulary)}, the median of "
            f"{len(last)} seeds")  # fmt: skip
        say("", f"at the last step; the quartiles are {low:.4f} and {high:.4f}")
    number = int(lowest.argmin())
    kept, step = members(options)[number], steps[int(losses[:, number].argmin())]
    rate = f", learning rate {kept.learning_rate:g}" if rates else ""
    say("", f"kept: seed {kept.seed}{rate}, with {lowest[number]:.4f} after step {step:,}")


def trouble(diagnosis: Trouble) -> None:
    """Print where the first non-finite value appeared, and which flags to try."""
    names = [field.name for field in dataclasses.fields(lm.Options)]
    diagnosis = diagnosis._replace(advice=tuple(with_flags(a, names) for a in diagnosis.advice))
    for number, line in enumerate(str(diagnosis).splitlines()):
        say("" if number else "trouble", line)
