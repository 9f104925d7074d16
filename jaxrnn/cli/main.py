"""The command `jaxrnn`: train, resume, eval, sample, plot, check, explain."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import numpy as np

from jaxrnn import gradients, lm
from jaxrnn.analysis.gradient_flow import gradient_flow
from jaxrnn.analysis.walkthrough import walkthrough
from jaxrnn.cli import check as trial
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
from jaxrnn.cli.launch import watch
from jaxrnn.lm import corpus
from jaxrnn.lm.build import INITIALIZERS
from jaxrnn.lm.model import continuation, stream, write
from jaxrnn.lm.model import evaluate as score_text
from jaxrnn.lm.options import Changes, Init, Options, of_model, seed_key, to_json
from jaxrnn.lm.store import directory as folder
from jaxrnn.lm.vocabulary import LINE, Vocabulary
from jaxrnn.network.batch import Batch
from jaxrnn.network.rnn import RNN
from jaxrnn.verification.verify import verify

try:
    import tyro

    from jaxrnn.cli import console, plots
except ImportError as error:  # the extra is missing: one line, not a stack trace
    sys.exit(f"jaxrnn: the command needs {error.name}: pip install 'jaxrnn[cli]'")

DEFAULT_OUT = Path("jaxrnn-run")
DEFAULTS = Options()
NO_CHANGES = Changes()
ALONE = Machines()
CHECK_DEFAULTS = trial.Options()


def train(
    file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    /,
    *,
    options: Annotated[Options, tyro.conf.arg(name="")] = DEFAULTS,
    machines: Annotated[Machines, tyro.conf.arg(name="")] = ALONE,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    overwrite: bool = False,
    encoding: str = "utf-8",
    init_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None,
    quiet: bool = False,
) -> int:
    """Train a model of a text, having first compared its gradient with jax.grad.

    Args:
        file: A text file. Without one: the documentation topics that ship with Python.
        options: How to train.
        machines: On what.
        out: The folder of the run; default jaxrnn-run, or jaxrnn-run-2 and so on.
        overwrite: Replace the run that is in the folder.
        encoding: The text file's encoding.
        init_from: Start from the weights, network and vocabulary of this run's best model, or of a
            checkpoint, instead of new ones.
        quiet: Print nothing.
    """
    if machines.watches:
        return _watch_training(machines, out, overwrite=overwrite, quiet=quiet)
    mesh = set_up(machines)
    console.stdout.quiet = quiet or jax.process_index() > 0

    def prepare():
        place = _free(DEFAULT_OUT) if out is None else out
        if not jax.process_index():
            folder.check_free(place, overwrite=overwrite)
        model = None if init_from is None else lm.load(init_from)
        chosen = options if model is None else of_model(options, model.options, _given())
        text = corpus.open_text(file, encoding)
        return place, lm.prepare(text, chosen, mesh, init_from=model)

    with console.working("reading the text"):
        place, training = together(prepare)
    _agree(training)
    console.text(training, given=file is not None)
    console.network(training)
    if init_from is not None:
        console.say("", f"with the weights and vocabulary of {init_from}")
    console.remarks(training.remarks)
    found = lm.check_gradient(training)
    console.gradient(found, training.options.batch_size)
    if found.report is not None and not found.report.ok:
        finding = found.report.findings[0]
        raise ValueError(f"{finding}; nothing was trained, try other initial weights")
    return _train(lm.keep(training, place, overwrite=overwrite), new=True)


def resume(
    place: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    machines: Annotated[Machines, tyro.conf.arg(name="")] = ALONE,
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    changes: Annotated[Changes, tyro.conf.arg(name="")] = NO_CHANGES,
    quiet: bool = False,
) -> int:
    """Go on with a run from its newest good checkpoint, exactly as if it had not been interrupted.

    With an option that changes how it trains, the results no longer equal those of a run that was
    left alone; what is saved and when does not matter.

    Args:
        place: The folder of the run.
        machines: On what; whatever it was before.
        text: Where its text lies now; default where it was.
        changes: What is to be otherwise from here on; default as it was.
        quiet: Print nothing.
    """
    if machines.watches:
        return watch(machines, lambda: sys.argv[1:])
    mesh = set_up(machines)
    console.stdout.quiet = quiet or jax.process_index() > 0
    told = dataclasses.asdict(changes)
    with console.working("reading the text"):
        training = together(lambda: lm.resume(place, text=text, mesh=mesh, **told))
    _agree(training)
    console.text(training, given=True)
    console.network(training)
    console.remarks(training.remarks)
    console.say("resumed", f"{place} after step {training.done:,}")
    new = ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)
    if new:
        console.say("", f"from here on with {new}")
    over = lm.over_because(training)
    if over == "steps":
        console.say("", "all its steps are made; for more of them say --steps N")
    elif over == "patience":
        console.say("", "its patience is over; for more of it say --patience N")
    return _train(training)


def _given() -> set[str]:
    """Return the names of the options that were typed."""
    typed = (word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--"))
    return {name[2:].replace("-", "_").removeprefix("no_") for name in typed}


def _watch_training(machines: Machines, out: Path | None, *, overwrite: bool, quiet: bool) -> int:
    """Train by several processes; once there is a checkpoint, starting again is resuming."""
    place = _free(DEFAULT_OUT) if out is None else out
    folder.check_free(place, overwrite=overwrite)
    begin = [*sys.argv[1:], *([] if out else ["--out", str(place)])]
    given = {name: getattr(machines, name) for name in ("processes", "devices", "timeout")}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if machines.compilation_cache is not None:
        flags.append(f"--compilation-cache={machines.compilation_cache}")
    go_on = ["resume", str(place), *flags, *(["--quiet"] if quiet else [])]

    def made():
        described = place / "run.json"
        return described.stat().st_ino if described.is_file() else None

    before = made()
    return watch(machines, lambda: begin if made() == before else go_on)


def _agree(training: lm.Run) -> None:
    """Make sure that all processes train the same run."""
    chosen = {f"option {name}": value for name, value in to_json(training.options).items()}
    text = {"text, by its SHA-256": training.text["sha256"]}
    agree(chosen | text | {"step to go on from": training.done})


def _train(training: lm.Run, *, new: bool = False) -> int:
    """Train until the run is over or this process is told to stop, and return the status."""
    with told_to_stop() as told:  # to the end: a second process may be told later than the first
        return _follow(training, told) if jax.process_index() else _lead(training, told, new=new)


def _follow(training: lm.Run, told: list[int]) -> int:
    """Train in a process that is not the first, which shows and keeps what comes of it."""
    over = lm.over_because(training)
    for block in lm.train(training, lambda: bool(told)):
        over = block.over
    if over == "trouble":
        return MISTAKE
    return _stopped(told) if over == "stopped" else 0


def _lead(training: lm.Run, told: list[int], *, new: bool) -> int:
    """Train, and show what came of it."""
    out, started = training.folder, time.perf_counter()
    assert out is not None
    begun, over, trouble = training.done, lm.over_because(training), None
    for block in console.with_progress(training, lm.train(training, lambda: bool(told))):
        training, over, trouble = block.run, block.over, block.trouble
    done, seconds = training.done, time.perf_counter() - started
    console.say("trained", f"{done - begun:,} steps in {seconds:.0f} s, {done:,} in all")
    if trouble is not None:
        console.trouble(trouble)
    if new and not done:
        folder.remove(out)
        kept = "nothing was learnt"
    else:
        kept = f"{out} holds the state after step {done:,}"
        _draw(out)
    if trouble is not None:
        raise ValueError(f"step {done + 1:,} is not finite ({trouble.what}): {kept}")
    if over == "stopped":
        console.say("saved", f"{out}; go on with: jaxrnn resume {out}")
        return _stopped(told)
    if over == "patience":
        console.say("stopped", f"{training.options.patience} evaluations without a better one")
    console.held_out(training)
    console.samples(write(lm.load(out), length=300, count=2, seed=training.options.seed))
    console.say("saved", f"{out}; write more with: jaxrnn sample {out}")
    return 0


def _stopped(told: list[int]) -> int:
    """Return the status of a run that was stopped: here, or else in another of its processes."""
    return 128 + (told[0] if told else signal.SIGTERM)


def _draw(out: Path) -> None:
    """Draw a run's picture; that it cannot be is no reason for a run to fail."""
    try:
        plots.curves([out], out / "loss.png")
    except (ValueError, OSError) as error:
        console.remarks([f"no picture: {error}"])


def evaluate(
    place: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    file: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    /,
    *,
    encoding: str = "utf-8",
    newest: bool = False,
) -> int:
    """Score a text with a trained model, over the whole of it, the state carried from end to end.

    Args:
        place: The folder of a run, or a checkpoint.
        file: The text.
        encoding: The text's encoding.
        newest: Take the newest checkpoint instead of the best.
    """
    model = lm.load(place, newest=newest)
    console.remarks(model.remarks)
    scores = score_text(model, corpus.open_text(file, encoding))
    console.scored(model, console.with_share(scores))
    return 0


def sample(
    place: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    prime: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    length: int = 500,
    count: int = 1,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    beams: int | None = None,
    newest: bool = False,
    seed: int = 0,
) -> int:
    """Write text with a trained model, shown as it is made.

    Args:
        place: The folder of a run, or a checkpoint.
        prime: What the text begins with; default the start of a line.
        length: Characters (bytes, words) to write at most; a model of lines also stops at its
            line's end.
        count: How many texts.
        temperature: 1 is the model's own distribution, less is more cautious, 0 the likeliest.
        top_k: Draw among so many of the likeliest only.
        top_p: Draw among the likeliest that together have this probability only.
        stop: Stop where this text comes.
        beams: Search for the likeliest text, with so many kept at each step, instead of drawing.
        newest: Take the newest checkpoint instead of the best.
        seed: Another seed, another text.
    """
    model = lm.load(place, newest=newest)
    console.remarks(model.remarks)
    if beams is not None:
        if (top_k, top_p, stop, count) != (None, None, None, 1):
            raise ValueError("--beams searches and does not draw: leave out what is for drawing")
        text, nats = continuation(model, prime, length, beams)
        print(text)
        console.say("", f"log-probability {nats:.4f} nats")
        return 0
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop, "seed": seed}
    console.streamed(stream(model, prime=prime, length=length, count=count, **how))
    return 0


def plot(
    places: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")],
    /,
    *,
    out: Annotated[Path | None, tyro.conf.arg(metavar="PICTURE")] = None,
) -> int:
    """Draw the training and held-out losses of runs; of many models the median and quartiles.

    Args:
        places: The folders of runs, at least one.
        out: The PNG to draw; default loss.png in the folder of one run, jaxrnn-loss.png
            here for several.
    """
    if not places:
        raise ValueError("plot needs the folder of a run: jaxrnn plot RUN")
    out = out or (places[0] / "loss.png" if len(places) == 1 else Path("jaxrnn-loss.png"))
    plots.curves(list(places), out)
    console.say("saved", str(out))
    return 0


def check(
    *,
    options: Annotated[trial.Options, tyro.conf.arg(name="")] = CHECK_DEFAULTS,
    save: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    flow: Annotated[Path | None, tyro.conf.arg(metavar="PICTURE")] = None,
) -> int:
    """Tell whether a gradient is right, and if not, name the bug; the status is 1 if it is wrong.

    The gradient is computed for a random network on a random batch, and compared with a reference
    leaf by leaf.

    Args:
        options: What to check.
        save: Save the whole report to this file, as JSON.
        flow: Draw to this PNG how far back the gradient reaches.
    """
    rnn, params, h, batch = trial.prepare(options)
    if options.function is None:
        candidate = gradients.build(options.algorithm, rnn)
    else:
        candidate = trial.load(options.function)
    with console.working("comparing"):
        report = verify(
            candidate,
            rnn,
            params,
            batch,
            h=h,
            reference=trial.reference(options),
            dtype=options.dtype,
        )
    console.report(report)
    if save is not None:
        save.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        console.say("saved", str(save))
    if flow is not None:
        gradient_flow(rnn, params, batch, h=h).plot(flow)
        console.say("saved", str(flow))
    return 0 if report.ok else 1


def explain(
    word: Annotated[str, tyro.conf.arg(metavar="WORD")],
    /,
    *,
    hidden_size: int = 3,
    init: Init = "small-normal",
    seed: int = 0,
) -> int:
    """Show every number of the forward and backward pass for one word, step by step.

    The network reads the word's characters and is to answer with the next one each time, at last
    with the line's end. The loss is summed over the word; numbers are in float64.

    Args:
        word: The word.
        hidden_size: Hidden units.
        init: Initial weights, as in jaxrnn train.
        seed: For the weights.
    """
    if not word:
        raise ValueError("the word is empty: give at least one character")
    vocabulary = Vocabulary.from_text(word + LINE)
    rnn = RNN(
        vocabulary.size,
        hidden_size,
        vocabulary.size,
        reduction="sum",
        **INITIALIZERS[init],
    )
    ids = vocabulary.encode(word + LINE)
    key = seed_key(seed)
    with jax.enable_x64(True):
        params = rnn.init(key)
        walk = walkthrough(rnn, params, Batch(ids[None, :-1], ids[None, 1:]))
        console.walk(word, vocabulary, jax.tree.map(np.asarray, walk))
    return 0


COMMANDS = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "sample": sample,
    "plot": plot,
    "check": check,
    "explain": explain,
}


def main() -> None:
    """Run the command; a mistake in what was typed or given ends with one line and status 2."""
    sys.unraisablehook = repeat_interrupt
    for output in (sys.stdout, sys.stderr):  # a console that lacks a character shows another
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")
    try:
        status = _parsed(sys.argv[1:])()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads it any more
        print("jaxrnn: stopped, since nobody reads what it prints", file=sys.stderr)
        status = 128 + signal.SIGPIPE
    except Exception as error:
        if not lost(error):
            status = _mistake(error)
        else:
            said = "another process of the run is gone; its last checkpoint stands"
            print(f"jaxrnn: process {jax.process_index()}: {said}", file=sys.stderr, flush=True)
            os._exit(LOST)  # JAX would wait for the others
    except KeyboardInterrupt as interrupt:
        print("jaxrnn: stopped", file=sys.stderr, flush=True)
        status = 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
        if jax.distributed.is_initialized():
            os._exit(status)  # JAX would wait for the others
    sys.exit(status)


def _parsed(arguments: list[str]) -> Callable[[], int]:
    """Return the command that was typed, to be called without arguments.

    Raises:
        SystemExit: if the arguments cannot be understood, or ask for help.
    """

    def deferred(command):
        return functools.wraps(command)(lambda *args, **kwargs: partial(command, *args, **kwargs))

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {name: deferred(command) for name, command in COMMANDS.items()},
                prog="jaxrnn",
                description="The laboratory for the gradient of a vanilla (Elman) RNN.",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit:
        dashed = _taken_for_an_option(arguments, said.getvalue())
        print(
            f"jaxrnn: {dashed}" if dashed else said.getvalue(),
            file=sys.stderr,
            end="\n" * bool(dashed),
        )
        raise


def _taken_for_an_option(arguments: list[str], said: str) -> str:
    """Say what to write where a value that begins with a dash was taken for an option."""
    missing = re.search(r"Missing value for argument '([^']*)'", said)
    unknown = re.search(r"Unrecognized options: (-[^-\s]\S*)", said)
    if missing and missing[1].startswith("--"):
        for option, value in itertools.pairwise(arguments):
            if option.replace("_", "-") == missing[1] and value.startswith("-"):
                written = f"{missing[1]}={shlex.quote(value)}"
                return f"{missing[1]} has no value: if {value} is meant to be it, write {written}"
    elif missing or unknown:
        for value in arguments:
            if unknown[1] == value if unknown else re.match(r"-[^-]", value):
                return (
                    f"{value} is no option: if it is meant to be a file or a word, write it last "
                    f"and after two dashes: -- {shlex.quote(value)}"
                )
    return ""


def _mistake(error: Exception) -> int:
    """Answer what was typed or given with one line; raise what is nobody's mistake but ours."""
    if isinstance(error, ValueError | OSError):
        print(f"jaxrnn: {console.printable(console.brief(str(error)))}", file=sys.stderr)
    elif isinstance(error, MemoryError | OverflowError | jax.errors.JaxRuntimeError):
        said = console.brief((str(error).splitlines() or [type(error).__name__])[0])
        print(f"jaxrnn: too large for this machine ({said}): use smaller sizes", file=sys.stderr)
    else:
        raise error
    return MISTAKE


def _free(first: Path) -> Path:
    """Return the first free one of the names NAME, NAME-2, NAME-3, …."""
    names = itertools.chain([first.name], (f"{first.name}-{n}" for n in itertools.count(2)))
    return next(place for place in map(first.with_name, names) if not place.exists())


if __name__ == "__main__":
    main()
