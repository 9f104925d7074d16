"""The command `jaxrnn`: training here, and the other commands in modules of their own."""

import dataclasses
import io
import itertools
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import jax

import jaxrnn
from jaxrnn import lm
from jaxrnn.cli.distributed import (
    LOST,
    MISTAKE,
    Machines,
    agree,
    lost,
    repeat_interrupt,
    set_up,
    together,
    told_to_stop,
)
from jaxrnn.cli.flags import flag, given_options, with_flags
from jaxrnn.cli.help import help_of, overview
from jaxrnn.cli.launch import supervise
from jaxrnn.cli.parser import parse
from jaxrnn.cli.signature import read_command
from jaxrnn.gradients.own import is_own
from jaxrnn.lm import corpus
from jaxrnn.lm.model import continuation, stream, write
from jaxrnn.lm.options import Changes, Options, with_network_of
from jaxrnn.lm.store import directory
from jaxrnn.lm.store.header import to_json
from jaxrnn.network.checks import did_you_mean

try:
    from jaxrnn.cli import console, plots
    from jaxrnn.cli.check import check
    from jaxrnn.cli.compare import compare
    from jaxrnn.cli.explain import explain
    from jaxrnn.cli.flow import flow
    from jaxrnn.cli.task import task
except ImportError as error:  # the extra is not installed: print one line, not a stack trace
    sys.exit(f"jaxrnn: the command needs {error.name}: pip install 'jaxrnn[cli]'")

_HELP = {"-h", "--help"}
DEFAULT_OUT = Path("jaxrnn-run")
STANDARD_INPUT = Path("-")
DEFAULTS = Options()
NO_CHANGES = Changes()
DEFAULT_MACHINES = Machines()


def train(
    file: Annotated[Path | None, "FILE"] = None,
    /,
    *,
    out: Annotated[Path | None, "FOLDER"] = None,
    overwrite: bool = False,
    encoding: Annotated[str, "NAME"] = "utf-8",
    init_from: Annotated[Path | None, "RUN"] = None,
    quiet: bool = False,
    options: Options = DEFAULTS,
    machines: Machines = DEFAULT_MACHINES,
) -> int:
    """Train a language model on a text.

    The gradient on the first batch is compared with jax.grad before anything is trained. Ctrl-C
    saves the run, and jaxrnn resume goes on with it.

    Args:
        file: The text file, or - for standard input (default: the documentation topics that ship
            with Python).
        out: The folder of the run (default: jaxrnn-run, or if that exists jaxrnn-run-2 and so on).
        overwrite: Replace the run that is in the folder.
        encoding: The encoding of the text file (default: utf-8).
        init_from: Start from the weights, network and vocabulary of this run's best model, or of
            this checkpoint, instead of new ones.
        quiet: Print nothing.
        options: The network and how to train it.
        machines: The devices and processes to train on.

    Examples:
        jaxrnn train book.txt --out book
        jaxrnn train names.txt --lines --steps 500
        jaxrnn train book.txt --algorithm "ok(rank=4)"
    """
    if overwrite and out is None:
        raise ValueError("overwrite is for a folder: add --out FOLDER, or leave it out")
    if file is None and "encoding" in given_options(sys.argv[1:]):
        raise ValueError(f"encoding={encoding!r} is for a text of yours: name the FILE")
    if file == STANDARD_INPUT and (machines.supervises or machines.distributed):
        raise ValueError("several processes cannot share standard input: save the text to a file")
    if machines.supervises:
        return _supervise_training(machines, options, out, overwrite=overwrite, quiet=quiet)
    mesh = set_up(machines)
    console.stdout.quiet = quiet or jax.process_index() > 0

    def prepare():
        path = _free_path(DEFAULT_OUT) if out is None else out
        if not jax.process_index():
            directory.check_free(path, overwrite=overwrite)
        model = None if init_from is None else lm.load(init_from)
        merged = (
            options
            if model is None
            else with_network_of(options, model.options, given_options(sys.argv[1:]))
        )
        text = _open_text(file, encoding)
        return path, lm.prepare(text, merged, mesh, init_from=model)

    with console.working("reading the text"):
        path, training = together(prepare)
    _agree(training)
    console.text(training, given=file is not None)
    console.network(training)
    if init_from is not None:
        console.say("", f"with the weights and vocabulary of {init_from}")
    console.remarks(training.remarks)
    if file == STANDARD_INPUT:
        console.remarks(["the text is not kept: to resume this run, give it again as --text FILE"])
    gradient_check = lm.check_gradient(training)
    console.gradient(gradient_check, training.options.batch_size)
    if gradient_check.report is not None and not gradient_check.report.ok:
        finding = gradient_check.report.findings[0]
        raise ValueError(f"{finding}; nothing was trained, try other initial weights")
    return _train(lm.keep(training, path, overwrite=overwrite), new=True)


def resume(
    path: Annotated[Path, "RUN"],
    /,
    *,
    text: Annotated[Path | None, "FILE"] = None,
    quiet: bool = False,
    changes: Changes = NO_CHANGES,
    machines: Machines = DEFAULT_MACHINES,
) -> int:
    """Resume a run from its newest good checkpoint.

    The result equals that of an uninterrupted run, unless an option changes how the model is
    trained. Options that only change when checkpoints are saved do not change the result.

    Args:
        path: The folder of the run.
        text: The file of the training text, if it has moved.
        quiet: Print nothing.
        changes: Options to change from here on; the others stay as they were.
        machines: The devices and processes to train on; they may differ from those before.

    Examples:
        jaxrnn resume jaxrnn-run
        jaxrnn resume jaxrnn-run --steps 8000
        jaxrnn resume jaxrnn-run --schedule linear
    """
    if machines.supervises:
        return supervise(machines, lambda: sys.argv[1:])
    mesh = set_up(machines)
    console.stdout.quiet = quiet or jax.process_index() > 0
    changed = dataclasses.asdict(changes)
    with console.working("reading the text"):
        training = together(lambda: lm.resume(path, text=text, mesh=mesh, **changed))
    _agree(training)
    console.text(training, given=True)
    console.network(training)
    console.remarks(training.remarks)
    console.say("resumed", f"{path} after step {training.done:,}")
    given = {name: value for name, value in changed.items() if name != "algorithm"}
    new = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    if new:
        console.say("", f"from here on with {new}")
    over = lm.over_because(training)
    if over == "steps":
        console.say("", "all its steps are done; to train longer, give a larger --steps")
    elif over == "patience":
        console.say("", "its patience has run out; to train longer, give a larger --patience")
    return _train(training)


def _supervise_training(
    machines: Machines, options: Options, out: Path | None, *, overwrite: bool, quiet: bool
) -> int:
    """Train in several processes; after a failure, resume if there is a checkpoint by then."""
    path = _free_path(DEFAULT_OUT) if out is None else out
    directory.check_free(path, overwrite=overwrite)
    begin = [*sys.argv[1:], *([] if out else ["--out", str(path)])]
    given = {name: getattr(machines, name) for name in ("processes", "devices", "timeout")}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if machines.compilation_cache is not None:
        flags.append(f"--compilation-cache={machines.compilation_cache}")
    if is_own(options.algorithm):
        flags.append(f"--algorithm={options.algorithm}")
    go_on = ["resume", str(path), *flags, *(["--quiet"] if quiet else [])]

    def inode():
        description = path / "run.json"
        return description.stat().st_ino if description.is_file() else None

    before = inode()  # of a run that is to be overwritten
    return supervise(machines, lambda: begin if inode() == before else go_on)


def _agree(training: lm.Run) -> None:
    """Check that all processes train the same run."""
    options = {f"option {name}": value for name, value in to_json(training.options).items()}
    text = {"text, by its SHA-256": training.text.sha256}
    agree(options | text | {"step to go on from": training.done})


def _train(training: lm.Run, *, new: bool = False) -> int:
    """Train until the run is over or this process is stopped, and return the exit status."""
    # Signals are handled until all processes are done: they may not all arrive at the same time.
    with told_to_stop() as signals:
        if jax.process_index():
            return _follow(training, signals)
        return _lead(training, signals, new=new)


def _follow(training: lm.Run, signals: list[int]) -> int:
    """Train in a process other than the first; only the first one prints and saves."""
    over = lm.over_because(training)
    for block in lm.train(training, lambda: bool(signals)):
        over = block.over
    if over == "trouble":
        return MISTAKE
    return _stopped(signals) if over == "stopped" else 0


def _lead(training: lm.Run, signals: list[int], *, new: bool) -> int:
    """Train in the first process, and print the results."""
    out, started = training.folder, time.perf_counter()
    assert out is not None
    first, over, trouble = training.done, lm.over_because(training), None
    blocks = lm.train(training, lambda: bool(signals))
    try:
        for block in console.with_progress(training, blocks):
            training, over, trouble = block.run, block.over, block.trouble
    except BrokenPipeError:  # save, and stop at the same step as the other processes
        signals.append(signal.SIGPIPE)
        for _ in blocks:
            pass
        return _unread()
    except ValueError as error:  # the run cannot be written, which only this process knows
        if jax.process_count() == 1 or lost(error):
            raise
        _exit_now(_mistake(error))
    done, seconds = training.done, time.perf_counter() - started
    console.say("trained", f"{done - first:,} steps in {seconds:.0f} s, {done:,} in all")
    if trouble is not None:
        console.trouble(trouble)
    if new and not done:
        directory.remove(out)
        result = "nothing was saved"
    else:
        result = f"{out} holds the state after step {done:,}"
        _plot_losses(out)
    if trouble is not None:
        raise ValueError(f"step {done + 1:,} is not finite ({trouble.what}): {result}")
    if over == "stopped":
        console.say("saved", f"{out}; go on with: jaxrnn resume {out}")
        return _stopped(signals)
    if over == "patience":
        evaluations = f"{training.options.patience} evaluations"
        console.say("stopped", f"after {evaluations} without a lower held-out loss")
    console.held_out(training)
    console.samples(write(lm.load(out), seed=training.options.seed))
    console.say("saved", f"{out}; write more with: jaxrnn sample {out}")
    return 0


def _stopped(signals: list[int]) -> int:
    """Return the status of a stopped run; that of SIGTERM if another process got the signal."""
    return 128 + (signals[0] if signals else signal.SIGTERM)


def _plot_losses(out: Path) -> None:
    """Plot the losses of a run; print a note if that fails, since the run itself is fine."""
    try:
        plots.curves([out], out / "loss.png")
    except (ValueError, OSError) as error:
        console.remarks([f"loss.png was not drawn: {error}"])


def evaluate(
    path: Annotated[Path, "RUN"],
    file: Annotated[Path, "FILE"],
    /,
    *,
    encoding: Annotated[str, "NAME"] = "utf-8",
    unknown: Literal["refuse", "skip"] = "refuse",
    newest: bool = False,
    member: int | None = None,
) -> int:
    """Evaluate a trained model on a text.

    The hidden state is carried through the whole text.

    Args:
        path: The folder of a run, or a checkpoint.
        file: The text file, or - for standard input.
        encoding: The encoding of the text file (default: utf-8).
        unknown: What to do with characters that the model does not know: refuse them, naming them,
            or skip them (default: refuse).
        newest: Load the newest checkpoint instead of the best.
        member: Which model of a run of several, from 0 (default: the one of lowest held-out loss).

    Examples:
        jaxrnn eval jaxrnn-run other.txt
        jaxrnn eval jaxrnn-run other.txt --newest
    """
    model = lm.load(path, newest=newest, member=member)
    console.remarks(model.remarks)
    scores = lm.scores(model, _open_text(file, encoding), unknown=unknown)
    console.scored(model, console.with_share(scores))
    return 0


def sample(
    path: Annotated[Path, "RUN"],
    /,
    *,
    prompt: Annotated[str | None, "TEXT"] = None,
    length: int | None = None,
    count: int | None = None,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Annotated[str | None, "TEXT"] = None,
    beams: int | None = None,
    newest: bool = False,
    member: int | None = None,
    seed: int = 0,
) -> int:
    """Generate text with a trained model.

    Args:
        path: The folder of a run, or a checkpoint.
        prompt: The beginning of the text (default: a new line after some held-out text).
        length: Maximum number of characters (bytes, words) to generate. A model of lines also stops
            at the end of its line (default: 500, 100 words, or 50 with --beams).
        count: Number of texts (default: 1, or 10 different lines of a model of lines).
        temperature: 1 draws from the model's own distribution, less makes likely symbols even
            likelier, and 0 always takes the likeliest (default: 0.8).
        top_k: Draw only from this many of the likeliest symbols (default: all).
        top_p: Draw only from the likeliest symbols that together have this probability
            (default: 1).
        stop: Stop where this text appears.
        beams: Search for the likeliest text by beam search of this width, instead of drawing.
        newest: Load the newest checkpoint instead of the best.
        member: Which model of a run of several, from 0 (default: the one of lowest held-out loss).
        seed: Random seed; another seed gives another text (default: 0).

    Examples:
        jaxrnn sample jaxrnn-run
        jaxrnn sample jaxrnn-run --prompt "The " --temperature 0.5
        jaxrnn sample jaxrnn-run --beams 8 --length 100
    """
    model = lm.load(path, newest=newest, member=member)
    console.remarks(model.remarks)
    if beams is not None:
        drawing = {"temperature", "top_k", "top_p", "stop", "count", "seed"}
        if ignored := sorted(drawing & given_options(sys.argv[1:])):
            flags = ", ".join(map(flag, ignored))
            raise ValueError(f"--beams searches and does not draw: leave out {flags}")
        text, nats = continuation(model, prompt, 50 if length is None else length, beams)
        print(text)
        console.say("", f"log-probability {nats:.4f} nats")
        return 0
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop}
    settings |= {"prompt": prompt, "length": length, "seed": seed}
    if count is None and model.options.lines:
        console.samples(write(model, **settings))
    else:
        console.streamed(stream(model, count=1 if count is None else count, **settings))
    return 0


def plot(
    paths: Annotated[tuple[Path, ...], "RUN"],
    /,
    *,
    out: Annotated[Path | None, "PICTURE"] = None,
) -> int:
    """Plot the training and held-out losses of runs.

    Of several models trained at once, the median and the quartiles are plotted.

    Args:
        paths: The folders of one or more runs.
        out: The PNG file to write (default: loss.png in the folder of a single run, or
            jaxrnn-loss.png in the current folder for several).

    Examples:
        jaxrnn plot jaxrnn-run
        jaxrnn plot jaxrnn-run jaxrnn-run-2 --out both.png
    """
    if not paths:
        raise ValueError("plot needs the folder of a run: jaxrnn plot RUN")
    out = out or (paths[0] / "loss.png" if len(paths) == 1 else Path("jaxrnn-loss.png"))
    plots.curves(list(paths), out)
    console.say("saved", str(out))
    return 0


COMMANDS = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "sample": sample,
    "plot": plot,
    "check": check,
    "compare": compare,
    "flow": flow,
    "explain": explain,
    "task": task,
}
ABOUT = "The laboratory for the gradient of a vanilla (Elman) RNN."
EXAMPLES = (
    "jaxrnn train book.txt --out book",
    'jaxrnn sample book --prompt "The "',
    "jaxrnn check --algorithm rtrl",
)


def main() -> None:
    """Run the command; a mistake of the user ends it with one line on stderr and status 2."""
    sys.unraisablehook = repeat_interrupt
    for output in (sys.stdout, sys.stderr):  # replace characters that the console cannot show
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")
    try:
        status = run(sys.argv[1:])
    except BrokenPipeError:
        status = _unread()
        if jax.distributed.is_initialized():
            _exit_now(status)
    except Exception as error:
        if not lost(error):
            status = _mistake(error)
        else:
            message = "another process of the run was lost; the last checkpoint is kept"
            print(f"jaxrnn: process {jax.process_index()}: {message}", file=sys.stderr)
            _exit_now(LOST)
    except KeyboardInterrupt as interrupt:
        print("jaxrnn: stopped", file=sys.stderr)
        _exit_now(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    sys.exit(status)


def _unread() -> int:
    """Discard what is still printed to a closed pipe; say so on stderr, and return the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print("jaxrnn: stopped, since nobody reads what it prints", file=sys.stderr)
    return 128 + signal.SIGPIPE


def _exit_now(status: int) -> NoReturn:
    """End this process at once.

    Python's own exit would wait for the other processes of a run, and may crash where a
    computation of JAX was interrupted.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(words: Sequence[str]) -> int:
    """Run the command that a command line asks for, or print its help, and return the status.

    Raises:
        ValueError: if there is a mistake in the command line.
    """
    name, *rest = words or ["--help"]
    if name in _HELP:
        print(overview(itertools.starmap(read_command, COMMANDS.items()), ABOUT, EXAMPLES), end="")
        return 0
    if name == "--version":
        python = platform.python_version()
        print(f"jaxrnn {jaxrnn.__version__}, JAX {jax.__version__}, Python {python}")
        return 0
    if name not in COMMANDS:
        meant = did_you_mean(name, COMMANDS)
        raise ValueError(f"there is no command {name}{meant}: jaxrnn --help shows all")
    command = read_command(name, COMMANDS[name])
    if _HELP.intersection(itertools.takewhile(lambda word: word != "--", rest)):
        print(help_of(command), end="")
        return 0
    return parse(command, rest)()


def _mistake(error: Exception) -> int:
    """Print the user's mistake in one line and return its status; raise other errors again."""
    if isinstance(error, ValueError | OSError):
        message = with_flags(console.brief(str(error)), _flags())
        print(f"jaxrnn: {console.printable(message)}", file=sys.stderr)
    elif isinstance(error, MemoryError | OverflowError | jax.errors.JaxRuntimeError):
        reason = console.brief((str(error).splitlines() or [type(error).__name__])[0])
        print(f"jaxrnn: too large for this machine ({reason}): use smaller sizes", file=sys.stderr)
    else:
        raise error
    return MISTAKE


def _flags() -> set[str]:
    """Return the names of the options of all commands."""
    commands = itertools.starmap(read_command, COMMANDS.items())
    return {option.name for command in commands for option in command.options.values()}


def _open_text(file: Path | None, encoding: str) -> lm.Text:
    """Return the text of a file, or of standard input for a dash."""
    if file != STANDARD_INPUT:
        return corpus.open_text(file, encoding)
    content = sys.stdin.buffer.read()
    if not content:
        raise ValueError("standard input is empty: pipe a text into the command")
    return lm.Text("standard input", lambda: iter([content]), len(content), encoding, None)


def _free_path(first: Path) -> Path:
    """Return the first of the paths NAME, NAME-2, NAME-3, … that does not exist."""
    names = itertools.chain([first.name], (f"{first.name}-{n}" for n in itertools.count(2)))
    return next(path for path in map(first.with_name, names) if not path.exists())


if __name__ == "__main__":
    main()
