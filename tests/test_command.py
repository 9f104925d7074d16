"""Tests of the `jaxrnn` command in its own process: its output and the files that it writes."""

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import Answer, jaxrnn_command, run_commands
from rich.cells import cell_len

import jaxrnn
from jaxrnn import lm

pytestmark = pytest.mark.process

TEXT = "the quick brown fox jumps over the lazy dog\n" * 60
SMALL = ("--hidden-size", "16", "--batch-size", "4", "--length", "8", "--steps", "60")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "fox.txt").write_text(TEXT)
    result = jaxrnn_command("train", "fox.txt", *SMALL, "--out", "fox", cwd=folder)
    return folder, result


def test_train_checks_its_gradient_trains_evaluates_samples_and_saves(trained):
    folder, result = trained
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    output = "\n".join(lines)
    error = re.search(r"largest error (\S+), in \S+: right", output)
    assert error
    assert float(error[1]) < 1e-12
    last = r"training  60/60 loss \d\.\d+, held out \d\.\d+, [\d,]+k? char/s, 0 s left"
    assert re.search(last, output)
    held_out = re.search(r"held out  (\S+) nats = (\S+) bits per character, after step \d+", output)
    assert held_out
    assert float(held_out[1]) / np.log(2) == pytest.approx(float(held_out[2]), abs=1e-3)
    assert "write more with: jaxrnn sample fox" in output
    before_samples = lines[: next(i for i, line in enumerate(lines) if line.startswith("held out"))]
    assert max(map(len, before_samples)) <= 80
    names = {"run.json", "metrics.jsonl", "checkpoints", "samples", "loss.png"}
    assert {path.name for path in (folder / "fox").iterdir()} == names


def test_sample_writes_what_was_asked_for(trained):
    folder, _ = trained
    options = ("--prompt", "the ", "--length", "30")
    one, again, several, stopped, likeliest = run_commands(
        [
            ("sample", "fox", *options),
            ("sample", "fox", *options),
            ("sample", "fox", *options, "--count", "3", "--top-k", "3", "--top-p", "0.9"),
            ("sample", "fox", *options, "--stop", "e"),
            ("sample", "fox", *options, "--beams", "4"),
        ],
        folder,
    )
    assert one.status == 0, one.stderr
    assert one.stdout.startswith("the ")
    assert len(one.stdout.rstrip("\n")) <= 34
    assert again.stdout == one.stdout
    assert several.stdout.count("the ") >= 3
    assert "─" not in several.stdout
    assert "e" not in stopped.stdout.removeprefix("the ")
    assert one.stdout.startswith(stopped.stdout.rstrip("\n"))
    assert "log-probability -" in likeliest.stdout


def test_eval_scores_a_whole_text(trained):
    """The score equals one pass of `RNN.loss` over the text, whatever the length of the chunks."""
    folder, _ = trained
    (folder / "other.txt").write_text(TEXT[7:1500])
    (answer,) = run_commands([("eval", "fox", "other.txt")], folder)
    assert answer.status == 0, answer.stderr
    model = lm.load(folder / "fox")
    ids = model.vocabulary.encode(TEXT[7:1500])[None]
    params = jax.tree.map(lambda leaf: leaf.astype("float32"), model.params)
    batch = jaxrnn.Batch(ids[:, :-1], ids[:, 1:])
    nats, _ = model.rnn.loss(params, model.rnn.initial_state(1), batch)
    piped = subprocess.run(
        [sys.executable, "-m", "jaxrnn.cli", "eval", "fox", "-"],
        cwd=folder, input=TEXT[7:1500], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert piped.stdout.split() == answer.stdout.split()
    printed = re.search(
        r"loss      (\S+) nats per character = (\S+) bits per character", answer.stdout
    )
    assert printed
    assert float(printed[1]) == pytest.approx(float(nats), abs=1e-4)
    assert "scored    1,492 characters" in answer.stdout


def test_plot_writes_a_picture_of_one_run_or_of_several(trained, tmp_path):
    folder, _ = trained
    one, two = run_commands(
        [
            ("plot", str(folder / "fox"), "--out", "one.png"),
            ("plot", str(folder / "fox"), str(folder / "fox"), "--out", "two.png"),
        ],
        tmp_path,
    )
    assert (one.status, two.status) == (0, 0), one.stderr + two.stderr
    for name in ("one.png", "two.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_training_without_out_finds_a_free_folder_and_quiet_prints_nothing(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    (tmp_path / "jaxrnn-run").mkdir()
    options = ("--algorithm", "truncated_bptt", "--quiet", "--seeds", "2")
    result = jaxrnn_command("train", "fox.txt", *SMALL, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout + result.stderr == ""
    assert (tmp_path / "jaxrnn-run-2" / "run.json").exists()
    assert not list((tmp_path / "jaxrnn-run").iterdir())


def test_the_gradient_check_before_training_names_the_rule_and_its_kind(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    claims = {
        "rflo": "an approximate rule",
        "uoro": "one draw of an unbiased rule",
        "truncated_bptt": "exact for its truncated graph alone",
    }
    short = ("--steps", "1", "--length", "12")
    (tmp_path / "own.py").write_text(OWN)
    claims |= {"own.py:one_hop": "an approximate rule"}
    commands = [
        ("train", "fox.txt", *SMALL[:4], *short, "--algorithm", rule, "--out", f"run-{number}")
        for number, rule in enumerate(claims)
    ]
    for answer, (rule, claim) in zip(run_commands(commands, tmp_path), claims.items(), strict=True):
        assert answer.status == 0, answer.stderr
        assert f"rule      {rule}: " in answer.stdout
        line = (
            rf"gradient  {rule} against jax.grad on the first batch \(4, 12\): cosine -?\d\.\d+; "
        )
        assert re.search(line + claim, answer.stdout), answer.stdout
        assert "right" not in answer.stdout.split("network")[1].split("training")[0]


def test_a_closed_output_pipe_stops_and_saves_the_training_with_one_line(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    endless = ("--steps", "10000000", "--evaluate-every", "50", "--out", "run")
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "jaxrnn.cli", "train", "fox.txt", *SMALL, *endless],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        try:
            next(line for line in process.stdout if line.startswith("training"))
            process.stdout.close()
            assert process.stderr
            error = process.stderr.read()
            process.wait(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGPIPE
    assert error == "jaxrnn: stopped, since nobody reads what it prints\n"
    assert lm.load(tmp_path / "run", newest=True).step >= 50


def test_a_model_of_lines_samples_whole_lines(tmp_path):
    (tmp_path / "names.txt").write_bytes(
        "\r\n".join(["anna", "bob", "hannah", "otto"] * 20).encode()
    )
    arguments = ("--lines", "--hidden-size", "16", "--batch-size", "8", "--steps", "500")
    trained, sampled, scored = run_commands(
        [
            ("train", "names.txt", *arguments, "--out", "n"),
            ("sample", "n", "--count", "20", "--temperature", "0.2"),
            ("eval", "n", "names.txt"),
        ],
        tmp_path,
    )
    assert trained.status == 0, trained.stderr
    assert set(sampled.stdout.split()) <= {"anna", "bob", "hannah", "otto"}
    assert len(sampled.stdout.split()) == 20
    assert "scored    420 characters, state carried from each line to its end" in scored.stdout


def test_a_run_is_resumed_with_new_options_and_its_model_starts_another(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "fox", tmp_path / "fox")
    (tmp_path / "dog.txt").write_text("the lazy dog jumps over the quick brown fox\n" * 60)
    more = ("--steps", "80", "--learning-rate", "0.001", "--patience", "9")
    short = ("--batch-size", "4", "--length", "8", "--steps", "20", "--out", "dog")
    resumed, started = run_commands(
        [
            ("resume", "fox", "--text", str(folder / "fox.txt"), *more),
            ("train", "dog.txt", "--init-from", "fox", *short),
        ],
        tmp_path,
    )
    assert resumed.status == 0, resumed.stderr
    assert "from here on with steps 80, learning_rate 0.001, patience 9" in resumed.stdout
    assert lm.options_of(tmp_path / "fox").learning_rate == 0.001
    assert started.status == 0, started.stderr
    assert "with the weights and vocabulary of fox" in started.stdout
    assert "27 → 16 tanh → 27".replace("27", str(len(set(TEXT)))) in started.stdout
    held_out = [float(loss) for loss in re.findall(r"held out (\d\.\d+),", started.stdout)]
    assert held_out[0] < 2.9  # new weights would begin at ln 28 = 3.3


def test_words_are_trained_scored_and_sampled(tmp_path):
    (tmp_path / "fox.txt").write_text("The fox jumps. The dog sleeps! A cat? " * 60)
    trained, of_bytes, sampled, scored = run_commands(
        [
            ("train", "fox.txt", *SMALL, "--level", "word", "--vocabulary-size", "9", "--out", "w"),
            ("train", "fox.txt", *SMALL, "--level", "byte", "--steps", "1", "--out", "b"),
            ("sample", "w", "--length", "30", "--prompt", "The dog"),
            ("eval", "w", "fox.txt"),
        ],
        tmp_path,
    )
    assert trained.status == 0, trained.stderr
    assert "2,280 characters, 9 different words" in trained.stdout
    assert "bytes, each one of 256 possible values" in of_bytes.stdout
    assert sampled.stdout.startswith("The ")
    assert re.search(r"loss      \S+ nats per word = perplexity \S+", scored.stdout)
    assert "240 words of 660 are not known (36.4%)" in scored.stdout
    assert "36% of the words are unknown" in scored.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_last_good_state(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    trouble = ("--activation", "identity", "--optimizer", "sgd", "--learning-rate", "3")
    trouble = (*trouble, "--evaluate-every", "60")
    (answer,) = run_commands(
        [("train", "fox.txt", *SMALL, *trouble, "--clip", "1e30", "--out", "bad")], tmp_path
    )
    assert answer.status == 2
    message = re.search(r"step (\d+) is not finite \((.*)\)", answer.stderr)
    assert message, answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    explanation = answer.stdout[answer.stdout.index("trouble   It began in") :]
    assert message[2] in " ".join(explanation.split())
    advice = explanation[explanation.index("Try ") :].split(".")[0]
    assert "--learning-rate or --clip" in " ".join(advice.split())
    assert max(map(len, explanation.splitlines())) <= 80
    saved = lm.load(tmp_path / "bad", newest=True)
    assert saved.step == int(message[1]) - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.params))


def test_a_first_step_that_is_not_finite_saves_nothing(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    trouble = ("--init", "normal", "--activation", "identity", "--hidden-size", "64")
    sizes = ("--batch-size", "2", "--length", "60")  # overflows in float32, not in float64
    (answer,) = run_commands([("train", "fox.txt", *trouble, *sizes, "--out", "bad")], tmp_path)
    assert answer.status == 2
    assert "step 1 is not finite" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert not (tmp_path / "bad").exists()


def rows_of(output: str, name: str) -> list[np.ndarray]:
    """Return the numbers of each printed row that has this name."""
    rows = re.findall(rf"^  {re.escape(name)} +([-\d.e+ ]+)$", output, re.MULTILINE)
    return [np.array(row.split(), float) for row in rows]


@pytest.mark.parametrize("width", [80, 60])
def test_explain_prints_the_numbers_of_the_walkthrough(width, monkeypatch, capsys):
    from rich.console import Console

    from jaxrnn.cli import console
    from jaxrnn.cli.explain import explain

    monkeypatch.setattr(console, "stdout", Console(width=width))
    assert explain("vector") == 0
    output = capsys.readouterr().out
    assert output.count("should answer") == 2 * 6
    assert max(map(len, output.splitlines())) <= width
    for name in ("h", "y", "p", "loss", "dy", "dh_next", "dh", "1 - h²", "dh_raw", "dh_0"):
        assert rows_of(output, name), name
    for name in ("W_xh", "W_hh", "W_hy", "dW_xh", "dW_hh", "dW_hy"):
        assert re.search(rf"^  {name} ", output, re.MULTILINE), name
    # Sums over the steps, and over all characters, are read back from the output.
    parts = -(-7 * 10 // (width - 10))  # of a row of seven characters
    p, dy, db_y = (np.concatenate(rows_of(output, name)) for name in ("p", "dy", "db_y"))
    np.testing.assert_allclose(p.reshape(6, 7).sum(1), 1, atol=1e-3)
    np.testing.assert_allclose(dy.reshape(6, 7)[::-1].sum(0), db_y, atol=1e-3)
    assert len(rows_of(output, "p")) == 6 * parts
    assert p.max() > 0.4  # something can be seen
    assert np.ptp(np.concatenate(rows_of(output, "1 - h²"))) > 0.5
    assert re.search(r"^This gradient equals jax.grad to [1-9]e-1[5-7] ", output, re.MULTILINE)


def test_explain_says_if_the_gradient_is_not_that_of_jax_grad(monkeypatch, capsys):
    explain = importlib.import_module("jaxrnn.cli.explain")

    def wrong(*arguments):
        walk = jaxrnn.walkthrough(*arguments)
        return walk._replace(grads=jax.tree.map(lambda leaf: 1.01 * leaf, walk.grads))

    monkeypatch.setattr(explain, "walkthrough", wrong)
    assert explain.explain("hi") == 1
    assert "This gradient differs from jax.grad by 1e-02" in capsys.readouterr().out


def test_explain_shows_a_trained_model_and_leaves_nothing_out_on_demand(trained):
    folder, _ = trained
    some, everything, wide, picture = run_commands(
        [
            ("explain", "the", "--run", "fox"),
            ("explain", "the", "--run", "fox", "--all"),
            ("explain", "日本\u0301\u200b", "--hidden-size", "2"),
            ("explain", "hi", "--run", "fox", "--picture", "hi.png"),
        ],
        folder,
    )
    for answer in (some, everything, wide, picture):
        assert answer.status == 0, answer.stderr
        assert max(map(cell_len, answer.stdout.splitlines())) <= 80
        assert "equals jax.grad to" in answer.stdout
    assert "7 of 16 units, with the largest dh_raw" in some.stdout
    assert "--all" not in everything.stdout
    units = set(re.findall(r"unit \d+", everything.stdout))
    assert units == {f"unit {unit}" for unit in range(16)}
    assert len(set(re.findall(r"unit \d+", some.stdout))) == 7
    assert {"U+0301", "U+200B", "'日'"} <= set(wide.stdout.split())
    assert (folder / "hi.png").stat().st_size > 10_000


CHECKPOINT = "fox/checkpoints/step-00000060.safetensors"
MISTAKES = {
    ("trian",): "there is no command trian (did you mean train?): jaxrnn --help shows all",
    ("--seed", "3", "train"): "there is no command --seed: jaxrnn --help shows all",
    ("train", "--hiden-size", "3"): "train has no option --hiden-size (did you mean --hidden-size",
    ("train", "--steps", "abc"): "--steps must be a whole number, got 'abc'",
    ("train", "--leak", "abc"): "--leak must be a number, got 'abc'",
    ("train", "--level", "chars"): "--level must be one of char, byte, word, got 'chars' (did you",
    ("train", "--steps"): "--steps has no value: write --steps INT",
    ("train", "--steps", "--seed", "3"): "--steps has no value: write --steps INT",
    ("train", "--overwrite=yes"): "--overwrite takes no value, got 'yes': leave that out",
    ("check", "--algorithm", "bppt"): "got 'bppt' (did you mean bptt?)",
    ("check", "bptt"): "check does not take the word 'bptt': jaxrnn check [options]",
    ("eval",): "eval needs RUN and FILE: jaxrnn eval RUN FILE [options]",
    ("eval", "fox"): "eval needs FILE: jaxrnn eval RUN FILE [options]",
    ("train", "missing.txt"): "cannot read missing.txt: No such file or directory",
    ("train", "."): "cannot read .: Is a directory",
    ("train", "empty.txt"): "empty.txt is empty: give a file with text in it",
    ("train", "short.txt"): "the text has 7 symbols to train on, fewer than the 2,049",
    ("train", "latin.txt"): "latin.txt is not utf-8: byte 0xe9 at position 3; name its encoding",
    ("train", "short.txt", "--encoding", "klingon"): "unknown encoding: klingon; try utf-8",
    (
        "train",
        "fox.txt",
        "--hidden-size",
        "0",
    ): "--hidden-size must be a whole number of at least 1",
    ("train", "fox.txt", "--algorithm", "truncated_bptt(window=-1)"): "window must be a",
    (
        "train",
        "fox.txt",
        "--out",
        "fox",
    ): "fox exists already: choose another folder, add --overwrite, or re",
    ("train", "fox.txt", "--overwrite"): "--overwrite is for a folder: add --out FOLDER, or leave",
    ("train", "--encoding", "latin-1"): "--encoding latin-1 is for a text of yours: name the FILE",
    ("sample", "fox", "--temperature", "0", "--top-k", "3"): "--top-k 3 would do nothing at temper",
    ("eval", CHECKPOINT, "fox.txt", "--newest"): "--newest is for a run, and " + CHECKPOINT,
    ("sample", "nowhere"): "nowhere does not exist: name the folder of a run",
    ("sample", "broken"): "broken/run.json is damaged: Expecting value",
    ("resume", "nowhere"): "nowhere does not exist: name the folder of a run",
    ("resume", "fox", "--text", "other.txt"): "other.txt is not the text that the run began with",
    ("resume", "fox", "--steps", "0"): "--steps must be at least 1, got 0",
    ("eval", "fox", "missing.txt"): "cannot read missing.txt: No such file or directory",
    ("eval", "fox", "latin.txt"): "latin.txt is not utf-8: byte 0xe9 at position 3",
    ("eval", "fox", "strange.txt"): "not know: 'é' (U+00E9); skip them with --unknown skip, or",
    ("eval", "fox", "fox.txt", "--member", "1"): "--member 1 does not exist: fox has one model",
    ("plot",): "plot needs the folder of a run: jaxrnn plot RUN",
    ("plot", "nowhere"): "nowhere does not exist: name the folder of a run",
    ("train", "fox.txt", "--algorithm", "bptt(window=3)"): "bptt has no option window: it takes",
    ("train", "fox.txt", "--learning-rate", "1", "--learning-rates", "1"): "contradict each other",
    ("train", "fox.txt", "--out", "fox.txt/deep"): "cannot write fox.txt/deep: ",
    ("train", "fox.txt", "--out", "/proc/run"): "cannot write /proc/run: ",
    (
        "sample",
        "fox",
        "--member",
        "0",
    ): "--member 0 does not exist: fox has one model: leave it out",
    ("sample", "fox", "--top-k", "0"): "--top-k must be a whole number of at least 1, got 0",
    ("sample", "fox", "--top-p", "2"): "--top-p must be above 0 and at most 1",
    ("sample", "fox", "--stop", ""): "--stop must be a text of at least one character",
    ("sample", "fox", "--beams", "2", "--count", "2"): "does not draw: leave out --count",
    ("sample", "fox", "--beams", "2", "--seed", "1", "--temperature", "1"): "out --seed, --temper",
    ("sample", "fox", "--prompt", "é"): "character 'é' (U+00E9) at position 0 is not in the vocab",
    ("sample", "fox", "--prompt", ""): "--prompt must be the beginning of a text, of one line, got",
    ("sample", "fox", "--seed", "-1"): "--seed must lie in 0 … 2⁶³ - 1, got -1",
    ("train", "fox.txt", "--seed", "99999999999999999999"): "--seed must lie in 0 … 2⁶³ - 1, got",
    ("explain", "vector", "--seed", "-1"): "--seed must lie in 0 … 2⁶³ - 1, got -1",
    ("train", "fox.txt", "--lines", "--held-out", "0.999"): "held out, but a batch needs 32: use a",
    (
        "train",
        "fox.txt",
        "--out",
        ".",
    ): "a run needs a folder of its own, but . is or",
    (
        "train",
        "fox.txt",
        "--out",
        "",
    ): "a run needs a folder of its own, but . is or",
    ("train", "fox.txt", "--learning-rates"): "--learning-rates is empty: give at least one, or",
    ("train", "fox.txt", "--encoding", "undefined"): "try utf-8, utf-16, latin-1 or cp1252",
    ("sample", "fox", "--beams", "999999999"): "--beams must lie in 1 … 10,000, got 999999999",
    ("train", "fox.txt", "--out", "fox.txt"): "fox.txt is a file, but a run needs a folder: name",
    ("resume", "fox.txt"): "fox.txt is not a run: it has no run.json",
    ("train", "fox.txt", "--out", "mine", "--overwrite"): "mine is not a run, and only runs are",
    ("train", "fox.txt", "--out", "fox.txt", "--overwrite"): "fox.txt is not a run, and only runs",
    ("sample", "fox", "--temperature", "-1"): "--temperature must be at least 0 (0 is greedy), got",
    ("sample", "fox", "--length", "0"): "--length must be at least 1, got 0",
    ("sample", "fox", "--count", "0"): "--count must be at least 1, got 0",
    (
        "eval",
        "fox",
        "wide.txt",
    ): "wide.txt begins with the bytes FF FE, the byte order mark of utf-16",
    ("sample", "fox", "--prompt", "-ab"): "if -ab is meant to be it, write --prompt=-ab",
    ("sample", "fox", "--stop", "--"): "if -- is meant to be it, write --stop=--",
    ("sample", "fox", "--prompt", "-a b"): "write --prompt='-a b'",
    ("train", "fox.txt", "--out", "-run"): "if -run is meant to be it, write --out=-run",
    ("train", "fox.txt", "--learning-rate", "-x"): "write --learning-rate=-x",
    ("train", "fox.txt", "--learning-rate", "-1e-3"): "must be above 0 and finite, got -0.001",
    ("train", "-fox.txt"): "write it last and after two dashes: -- -fox.txt",
    ("eval", "fox", "-fox.txt"): "write it last and after two dashes: -- -fox.txt",
    ("plot", "-fox"): "write it last and after two dashes: -- -fox",
    ("explain", "-ab"): "write it last and after two dashes: -- -ab",
    ("train", "--", "-fox.txt"): "cannot read -fox.txt: No such file or directory",
    ("sample", "fox", "--prompt=~-"): "character '~' (U+007E) at position 0",
    ("explain", ""): "the word is empty: give at least one character",
    (
        "explain",
        "a" * 21,
    ): "the text has 21 characters and at most 20 are explained: give a shorter",
    ("explain", "théß", "--run", "fox"): "fox does not know 'é', 'ß': use",
    ("explain", "hi", "--run", "fox", "--seed", "1"): "--seed is for random weights, and --run has",
    (
        "explain",
        "hi",
        "--picture",
        "no/hi.png",
    ): "cannot write no/hi.png: No such file or directory",
    ("resume", "fox", "--patience", "0"): "--patience must be at least 1, got 0",
    (
        "resume",
        "fox",
        "--learning-rate",
        "-1",
    ): "--learning-rate must be above 0 and finite, got",
    (
        "train",
        "fox.txt",
        "--init-from",
        "nowhere",
    ): "nowhere does not exist: name the folder of a run",
    ("train", "fox.txt", "--init-from", "fox.txt"): "fox.txt is damaged",
    (
        "train",
        "strange.txt",
        "--init-from",
        "fox",
    ): "1 character that the model does not know: 'é'",
    (
        "train",
        "fox.txt",
        "--init-from",
        "fox",
        "--hidden-size",
        "256",
    ): "--hidden-size 256 contradicts",
    ("train", "fox.txt", "--init-from", "fox", "--no-use-bias"): "--no-use-bias contradicts the m",
    ("train", "fox.txt", "--init-from", "fox", "--init", "normal"): "--init normal contradicts the",
    ("train", "empty.txt", "--init-from", "fox"): "empty.txt is empty: give a file with text in it",
}


@pytest.fixture(scope="module")
def mistake_answers(trained) -> dict[tuple[str, ...], Answer]:
    """Run every mistake_answers command. Check that none of them changed a file."""
    folder, _ = trained
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("too short")
    (folder / "other.txt").write_text(TEXT + "!")
    (folder / "wide.txt").write_text(TEXT, "utf-16")
    (folder / "strange.txt").write_text("café")
    (folder / "latin.txt").write_bytes("café au lait".encode("latin-1"))
    for name in ("broken", "mine"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "mine" / "thesis.txt").write_text("irreplaceable")
    (folder / "broken" / "run.json").write_text('{"network": ')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answers = run_commands(MISTAKES, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return dict(zip(MISTAKES, answers, strict=True))


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_lost(arguments, mistake_answers):
    answer = mistake_answers[arguments]
    assert answer.status == 2
    assert MISTAKES[arguments] in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


# A process that was started in the background ignores SIGINT, and its children inherit that.
WITH_SIGINT = """
import signal
from jaxrnn.cli import main as cli
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_run_and_prints_how_to_resume_it(signal_number, tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    endless = ("--steps", "10000000", "--evaluate-every", "100", "--out", "run")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", WITH_SIGINT, "train", "fox.txt", *SMALL, *endless],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        try:
            next(line for line in process.stdout if line.startswith("training"))
            process.send_signal(signal_number)
            output, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal_number, output + error
    assert error == ""
    assert "go on with: jaxrnn resume run" in output
    done = lm.load(tmp_path / "run", newest=True).step
    assert done >= 100
    (answer,) = run_commands([("resume", "run", "--steps", f"{done + 20}")], tmp_path)
    assert answer.status == 0, answer.stderr
    assert f"resumed   run after step {done:,}" in answer.stdout
    assert re.search(rf"trained   20 steps in \d+ s, {done + 20:,} in all", answer.stdout)


BACKWARD = """
import numpy as np

def loss_and_grads(params, batch):
    (W_xh, W_hh, b_h), (W_hy, b_y) = params.cells[0], params.readout
    x, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
    B, T = x.shape
    h = np.zeros((B, len(W_hh)))
    dy = np.zeros((B, T, len(b_y)))
    return 0.0, params

def raises(params, batch):
    return {}["loss"]
"""


SIZES = ("--hidden-size", "6", "--length", "7")


def test_check_says_right_with_status_0_and_wrong_with_status_1(tmp_path):
    sizes = (*SIZES, "--num-layers", "2", "--mask")
    wrong = ("--algorithm", "truncated_bptt(window=2)", "--claim", "exact", "--save", "report.json")
    right, wrong = run_commands([("check", *sizes), ("check", *sizes, *wrong)], tmp_path)
    assert right.status == 0, right.stderr
    assert "right: every error is at most 1e-12" in right.stdout
    assert wrong.status == 1, wrong.stderr
    assert "wrong: truncated at 2 in cells[0].W_xh" in wrong.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False
    assert report["findings"][0]["bug"] == "truncated at 2"


ONE_HOP = "truncated_bptt(window=0)"


def test_check_compare_and_flow_look_at_a_random_network_or_at_a_trained_one(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 20)
    small = ("--hidden-size", "5", "--batch-size", "2", "--length", "8", "--steps", "2")
    run = ("--run", "run")
    train, *answers, mistake = run_commands(
        [
            ("train", "text.txt", "--out", "run", *small),
            ("check", *run),
            ("compare", "bptt", ONE_HOP, *run, "--rounds", "1", "--save", "c.json"),
            ("flow", *run),
            ("flow", "--hidden-size", "4", "--out", "random.png"),
            ("flow", *run, "--hidden-size", "4"),
        ],
        tmp_path,
    )
    assert train.status == 0, train.stderr
    assert [answer.status for answer in answers] == [0, 0, 0, 0], answers
    check, compare, flow, _ = (answer.stdout for answer in answers)
    assert "right: every error is at most 1e-12" in check
    about = "the model of run after step 2, 2 rows of 8 steps held out"
    assert about in compare
    assert about in flow
    model, source = jaxrnn.lm.load(tmp_path / "run"), jaxrnn.lm.held_out(tmp_path / "run")
    _, h = model.rnn.apply(model.params, source(0).inputs, model.rnn.initial_state(2))
    rules, key = {ONE_HOP: jaxrnn.gradients.build(ONE_HOP, model.rnn)}, jax.random.key(0)
    expected = jaxrnn.compare(rules, model.rnn, model.params, source(1), h=h, key=key, rounds=1)
    _, row = json.loads((tmp_path / "c.json").read_text())["rows"]
    np.testing.assert_allclose(row["whole"]["bias"], expected.rows[0].whole.bias, rtol=1e-4)
    for picture in ("jaxrnn-flow.png", "random.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert mistake.status == 2
    assert mistake.stderr == (
        "jaxrnn: --hidden-size is for a random network, and the model of run has its own: leave "
        "it out\n"
    )


def test_task_trains_rules_and_counts_the_seeds_below_each_floor(tmp_path):
    """BPTT learns the nearer coin, and the last loss is that of the saved curve's last tenth."""
    rules = ("--algorithm", "bptt", "own.py:frozen", "--save", "losses.json")
    small = ("--hidden-size", "8", "--batch-size", "8", "--steps", "200", "--seeds", "3")
    (tmp_path / "own.py").write_text(FROZEN)
    task, unknown, option = run_commands(
        [
            ("task", "delayed_add(first=0, second=1)", *small, *rules, "--learning-rate", "0.02"),
            ("task", "coyp"),
            ("task", "copy(dealy=3)"),
        ],
        tmp_path,
    )
    assert task.status == 0, task.stderr
    _, _, floors, _, titles, bptt, frozen, *_ = task.stdout.splitlines()
    assert floors.startswith("floors    nothing 0.6616, first 0.5192, both 0.4545")
    assert titles.split("  ")[-3:] == ["< nothing", "< first", "< both"]
    assert bptt.split()[5:7] == ["3/3", "3/3"]  # below nothing, and below first
    assert frozen.split()[6:] == ["0/3", "0/3"]  # below first, and below both
    saved = json.loads((tmp_path / "losses.json").read_text())
    assert np.shape(saved["losses"]["bptt"]) == (3, 100)
    last = np.sort(np.mean(np.array(saved["losses"]["bptt"])[:, -10:], axis=1))
    assert bptt.split()[1:5] == [f"{last[1]:.4f}", f"{last[0]:.4f}", "…", f"{last[2]:.4f}"]
    assert (tmp_path / "jaxrnn-task.png").read_bytes().startswith(b"\x89PNG")
    assert (unknown.status, option.status) == (2, 2)
    assert "got 'coyp' (did you mean copy?)" in unknown.stderr
    assert "copy has no option dealy (did you mean delay?)" in option.stderr


FROZEN = """
import jax
from jaxrnn.gradients import GradientAlgorithm, bptt

def frozen(rnn):
    rule = bptt(rnn)
    def nothing(params, carry, batch):
        result, grads = rule.value_and_grad(params, carry, batch)
        return result, jax.tree.map(jax.numpy.zeros_like, grads)
    return GradientAlgorithm(rule.init, nothing)
"""


OWN = """
import jax
from jaxrnn.gradients import GradientAlgorithm, backward_rule, uoro

def one_hop(rnn):
    return backward_rule(rnn, lambda cell, tape, error: tape.gain * error)

def scaled(rnn, by=1.05):
    exact = uoro(rnn)
    def value_and_grad(params, carry, batch):
        answer, grads = exact.value_and_grad(params, carry, batch)
        return answer, jax.tree.map(lambda leaf: by * leaf, grads)
    return GradientAlgorithm(exact.init, value_and_grad)
"""

CLAIMS = {
    ("uoro",): (0, "right for an unbiased rule: the mean over 1,024 draws"),
    ("rflo",): (0, "right for an approximate rule, which promises no more than the loss: its cosi"),
    ("truncated_bptt(window=2)",): (0, "reference: the exact gradient's parts at the lags 0 … 2"),
    ("own.py:one_hop",): (1, "wrong: one-hop in cells[0].W_xh"),
    ("own:one_hop", "--claim", "approximate"): (0, "right for an approximate rule"),
    ("own.py:scaled", "--claim", "unbiased"): (1, "wrong: biased in readout.W_hy, readout.b_y"),
    ("own.py:sclaed",): (2, "own.py has no function sclaed (did you mean scaled?)"),
}


def test_check_asks_of_a_rule_what_it_claims(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    commands = [("check", "--algorithm", *claim, *SIZES) for claim in CLAIMS]
    for answer, (status, message) in zip(
        run_commands(commands, tmp_path), CLAIMS.values(), strict=True
    ):
        assert answer.status == status, answer.stdout + answer.stderr
        assert message in (answer.stderr if status == 2 else answer.stdout)


FUNCTIONS = {
    "backward:raises": (1, "wrong: raised: KeyError: 'loss' (backward.py, line 13, in r"),
    "backward:loss_and_grads": (1, "wrong: loss: the losses differ, 0 where the reference has"),
    "backward": (2, "must be MODULE:NAME"),
    "backward:nothing": (2, "backward has no function nothing; it has loss_and_grads, raises"),
    "nowhere:f": (2, "No module named 'nowhere'"),
    "torn:f": (2, "cannot import torn from"),
}


def test_check_runs_a_function_of_the_user(tmp_path):
    (tmp_path / "backward.py").write_text(BACKWARD)
    (tmp_path / "torn.py").write_text("def f(:")
    commands = [("check", "--function", function, *SIZES) for function in FUNCTIONS]
    answers = run_commands(commands, tmp_path)
    for answer, (status, message) in zip(answers, FUNCTIONS.values(), strict=True):
        assert answer.status == status
        assert message in (answer.stderr if status == 2 else answer.stdout)
        assert len(answer.stderr.splitlines()) == (status == 2)


def test_check_draws_a_table_on_a_terminal(monkeypatch):
    from rich.console import Console

    from jaxrnn.cli import console
    from jaxrnn.cli.setting import Setting, subject_of

    setup = subject_of(Setting(hidden_size=6, length=7))
    report = jaxrnn.verify(
        jaxrnn.gradients.bptt(setup.rnn), setup.rnn, setup.params, setup.batch, h=setup.h
    )
    for width, last in ((90, "reference"), (52, "worst at"), (30, "error")):
        terminal = Console(force_terminal=True, width=width, record=True)
        monkeypatch.setattr(console, "stdout", terminal)
        console.report(report)
        shown = terminal.export_text()
        header, first, *_ = shown.splitlines()
        assert header.rstrip().endswith(last)
        assert first.startswith("cells[0].W_xh")
        assert "…" not in shown
        assert "right: every error is at most" in " ".join(shown.split())


def test_a_report_of_a_claim_fits_a_narrow_terminal_and_breaks_between_words(monkeypatch):
    from rich.console import Console

    from jaxrnn.cli import console
    from jaxrnn.cli.setting import Setting, subject_of

    rnn, params, h, batch, _ = subject_of(Setting(hidden_size=6, length=7))
    rule = jaxrnn.gradients.rflo(rnn)
    report = jaxrnn.verify_claim(rule, rnn, params, batch, h=h, claim="approximate")
    for width in (60, 40):
        terminal = Console(force_terminal=True, width=width, record=True, soft_wrap=True)
        monkeypatch.setattr(console, "stdout", terminal)
        console.report(report)
        shown = terminal.export_text()
        assert max(map(len, shown.splitlines())) <= width
        assert report.diagnosis in " ".join(shown.split())
