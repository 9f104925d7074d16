"""The command `jaxrnn`: train, sample, check, explain."""

import io
import json
import platform
import signal
import sys
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import jax
import numpy as np

try:
    import tyro

    from jaxrnn import display
except ImportError as error:  # the extra is missing: one line, not a stack trace
    sys.exit(f"jaxrnn: the command needs {error.name}: pip install 'jaxrnn[cli]'")

from jaxrnn import checkpoint, gradients, run, trial
from jaxrnn.network import RNN, Batch
from jaxrnn.text import Vocabulary
from jaxrnn.verification import gradient_flow, verify
from jaxrnn.walkthrough import walkthrough

DEFAULT_OUT = Path("jaxrnn-run")
DEFAULTS = run.Options()
CHECK_DEFAULTS = trial.Options()


def train(
    file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    /,
    *,
    options: Annotated[run.Options, tyro.conf.arg(name="")] = DEFAULTS,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    overwrite: bool = False,
    encoding: str = "utf-8",
) -> int:
    """Train a character model, having first shown that its gradient is right.

    Args:
        file: A text file. Without one: the documentation topics that ship with Python.
        options: How to train.
        out: The folder to save the run in; default jaxrnn-run, or jaxrnn-run-2 and so on.
        overwrite: Replace the folder if it exists.
        encoding: The text file's encoding.
    """
    if file is None:
        text, name = run.documentation_topics(), "the documentation topics of Python "
        name += platform.python_version()
        display.say("text", f"{name}, since no FILE was given")
    else:
        text, name = run.read_text(file, encoding), str(file)
        display.say("text", name)
    training = run.prepare(text, options)
    display.network(text, training)
    out = _reserve(out, overwrite)
    try:
        return _train(training, out, name)
    finally:
        checkpoint.release(out)


def _train(training: run.Run, out: Path, name: str) -> int:
    first = jax.tree.map(lambda leaf: leaf[0], training.source(np.arange(1)))
    report = verify(gradients.bptt(training.rnn), training.rnn, training.state.params, first)
    display.gradient(report, first)
    if not report.ok:
        raise ValueError(f"{report.findings[0]}; nothing was trained, try other initial weights")

    state, losses, diverged, stopped = training.state, [], False, False
    started = time.perf_counter()
    try:
        for block in display.with_progress(training):
            state, diverged = block.state, block.diverged
            losses.extend(np.asarray(block.metrics.loss).tolist())
    except KeyboardInterrupt:
        stopped = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what was learnt will be saved, come what may
    seconds, good = time.perf_counter() - started, int(state.step)
    display.say("trained", f"{good:,} of {training.options.steps:,} steps in {seconds:.0f} s")
    remedy = "try a smaller --learning-rate or --clip, or --activation tanh"
    if good == 0:
        if diverged:
            raise ValueError(f"step 1 is not finite (loss {losses[0]:.4g}): {remedy}")
        raise KeyboardInterrupt

    held_out = run.held_out_loss(training, state.params)
    display.say("held out", f"{held_out:.4f} nats = {held_out / np.log(2):.4f} bits per character")
    saved = checkpoint.SavedRun(
        training.rnn,
        training.vocabulary,
        state.params,
        options=asdict(training.options) | {"text": name},
        results={"steps": good, "seconds": seconds, "held_out_nats": held_out} | _versions(),
    )
    losses, last = losses[:good], losses[-1]
    checkpoint.save(out, saved, losses, also=partial(display.plot_losses, losses, held_out))
    if diverged:
        raise ValueError(
            f"step {good + 1:,} is not finite (loss {last:.4g}): training stopped, "
            f"{out} holds the state after step {good:,}; {remedy}"
        )
    display.samples(run.write(saved, length=300, count=2, seed=training.options.seed))
    display.say("saved", f"{out}; write more with: jaxrnn sample {out}")
    return 130 if stopped else 0


def sample(
    folder: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    prime: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    length: int = 500,
    count: int = 1,
    temperature: float = 0.8,
    seed: int = 0,
) -> int:
    """Write text with a trained model.

    Args:
        folder: The folder of a run, as jaxrnn train saved it.
        prime: What the text begins with; default the start of a line.
        length: Characters to write at most; a model of lines also stops at its line's end.
        count: How many texts.
        temperature: 1 is the model's own distribution, less is more cautious, 0 the likeliest.
        seed: Another seed, another text.
    """
    saved = checkpoint.load(folder)
    display.samples(
        run.write(
            saved, prime=prime, length=length, count=count, temperature=temperature, seed=seed
        )
    )
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
        candidate = run.build(
            options.algorithm, rnn, window=options.window, n=options.n, rank=options.rank
        )
    else:
        candidate = trial.load(options.function)
    with display.working("comparing"):
        report = verify(
            candidate,
            rnn,
            params,
            batch,
            h=h,
            reference=trial.reference(options),
            dtype=options.dtype,
        )
    display.report(report)
    if save is not None:
        save.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        display.say("saved", str(save))
    if flow is not None:
        gradient_flow(rnn, params, batch, h=h).plot(flow)
        display.say("saved", str(flow))
    return 0 if report.ok else 1


def explain(
    word: Annotated[str, tyro.conf.arg(metavar="WORD")],
    /,
    *,
    hidden_size: int = 3,
    init: run.Init = "small-normal",
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
    vocabulary = Vocabulary.from_text(word + run.LINE)
    rnn = RNN(
        vocabulary.size,
        hidden_size,
        vocabulary.size,
        reduction="sum",
        **run.INITIALIZERS[init],
    )
    ids = vocabulary.encode(word + run.LINE)
    key = run.seed_key(seed)
    with jax.enable_x64(True):
        params = rnn.init(key)
        walk = walkthrough(rnn, params, Batch(ids[None, :-1], ids[None, 1:]))
        display.walk(word, vocabulary, jax.tree.map(np.asarray, walk))
    return 0


COMMANDS = {"train": train, "sample": sample, "check": check, "explain": explain}


def main() -> None:
    """Run the command; a mistake in what was typed or given ends with one line and status 2."""
    for stream in (sys.stdout, sys.stderr):  # a console that lacks a character shows another
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="jaxrnn",
            description="The laboratory for the gradient of a vanilla (Elman) RNN.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    except (ValueError, OSError) as error:
        print(f"jaxrnn: {error}", file=sys.stderr)
        status = 2
    except (MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"jaxrnn: too large for this machine ({said}): use smaller sizes", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("jaxrnn: stopped", file=sys.stderr)
        status = 130
    sys.exit(status)


def _reserve(out: Path | None, overwrite: bool) -> Path:
    """Reserve the folder of a new run before any work is done: the default's first free name."""
    if out is not None:
        checkpoint.reserve(out, overwrite=overwrite)
        return out
    number, out = 1, DEFAULT_OUT
    while out.exists():
        number += 1
        out = DEFAULT_OUT.with_name(f"{DEFAULT_OUT}-{number}")
    checkpoint.reserve(out)
    return out


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("jaxrnn", "jax", "jaxlib", "optax", "numpy")}


if __name__ == "__main__":
    main()
