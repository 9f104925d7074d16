"""The command as a person uses it: in its own process, what it prints and what lies on disk."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn import checkpoint, run

TEXT = "the quick brown fox jumps over the lazy dog\n" * 60
SMALL = ("--hidden-size", "16", "--batch-size", "4", "--length", "8", "--steps", "60")


def jaxrnn_command(*arguments, cwd, columns="80", **environment):
    return subprocess.run(
        [sys.executable, "-m", "jaxrnn.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ
        | {"COLUMNS": columns, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        | environment,
        check=False,
    )


MANY = """
import contextlib, io, json, sys
from jaxrnn import cli
results = []
for arguments in json.load(sys.stdin):
    out, err, sys.argv = io.StringIO(), io.StringIO(), ["jaxrnn", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            results.append((end.code, out.getvalue(), err.getvalue()))
json.dump(results, sys.stdout)
"""


class Answer(NamedTuple):
    """What a command left: its status, and what it wrote."""

    status: int
    stdout: str
    stderr: str


def one_after_another(commands: Iterable[tuple[str, ...]], cwd: Path) -> list[Answer]:
    """Run many commands in one process, for the time that it takes to start one."""
    result = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps(list(commands)),
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ
        | {"COLUMNS": "80", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        check=True,
    )
    return [Answer(*answer) for answer in json.loads(result.stdout)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "fox.txt").write_text(TEXT)
    result = jaxrnn_command("train", "fox.txt", *SMALL, "--out", "fox", cwd=folder)
    return folder, result


def test_train_shows_its_gradient_trains_evaluates_samples_and_saves(trained):
    folder, result = trained
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    told = "\n".join(lines)
    error = re.search(r"largest error (\S+), in \S+: right", told)
    assert error
    assert float(error[1]) < 1e-12
    assert re.search(r"training  60/60 loss \d\.\d+ \(\d\.\d+ bits\) .* char/s, 0 s left", told)
    held_out = re.search(r"held out  (\S+) nats = (\S+) bits per character", told)
    assert held_out
    assert float(held_out[1]) / np.log(2) == pytest.approx(float(held_out[2]), abs=1e-3)
    assert "write more with: jaxrnn sample fox" in told
    before_samples = lines[: next(i for i, line in enumerate(lines) if line.startswith("─"))]
    assert max(map(len, before_samples)) <= 80
    names = {"run.json", "vocabulary.json", "params.npz", "losses.jsonl", "loss.png"}
    assert {path.name for path in (folder / "fox").iterdir()} == names
    records = [json.loads(line) for line in (folder / "fox/losses.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 61))
    assert records[-1]["loss"] < records[0]["loss"]


def test_a_saved_run_gives_back_its_held_out_loss(trained):
    folder, _ = trained
    saved = checkpoint.load(folder / "fox")
    prepared = run.prepare(TEXT, run.Options(batch_size=4, length=8))
    assert prepared.vocabulary == saved.vocabulary
    loss = jaxrnn.evaluate(saved.rnn, saved.params, prepared.held_out)
    assert float(loss) == pytest.approx(saved.results["held_out_nats"], rel=1e-5)


def test_sample_writes_what_was_asked_for(trained):
    folder, _ = trained
    result = jaxrnn_command("sample", "fox", "--prime", "the ", "--length", "30", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the ")
    assert len(result.stdout.rstrip("\n")) <= 34
    again = jaxrnn_command("sample", "fox", "--prime", "the ", "--length", "30", cwd=folder)
    assert again.stdout == result.stdout


def test_training_without_out_finds_a_free_folder_and_never_overwrites(trained, tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    (tmp_path / "jaxrnn-run").mkdir()
    result = jaxrnn_command(
        "train", "fox.txt", *SMALL, "--algorithm", "truncated_bptt", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "jaxrnn-run-2" / "run.json").exists()
    assert not list((tmp_path / "jaxrnn-run").iterdir())


def test_training_on_lines_ends_them(tmp_path):
    (tmp_path / "names.txt").write_bytes(
        "\r\n".join(["anna", "bob", "hannah", "otto"] * 20).encode()
    )
    arguments = ("--lines", "--hidden-size", "16", "--batch-size", "8", "--steps", "300")
    result = jaxrnn_command("train", "names.txt", *arguments, "--out", "n", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = jaxrnn_command("sample", "n", "--count", "20", "--temperature", "0.2", cwd=tmp_path)
    assert set(result.stdout.split()) <= {"anna", "bob", "hannah", "otto"}
    assert len(result.stdout.split()) == 20


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    trouble = ("--activation", "identity", "--optimizer", "sgd", "--learning-rate", "3")
    result = jaxrnn_command(
        "train", "fox.txt", *SMALL, *trouble, "--clip", "1e30", "--out", "bad", cwd=tmp_path
    )
    assert result.returncode == 2
    message = re.search(r"step (\d+) is not finite", result.stderr)
    assert message, result.stderr
    assert len(result.stderr.splitlines()) == 1
    saved = checkpoint.load(tmp_path / "bad")
    assert saved.results["steps"] == int(message[1]) - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.params))


def test_a_first_step_that_is_not_finite_saves_nothing(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    trouble = ("--init", "normal", "--activation", "identity", "--hidden-size", "64")
    sizes = ("--batch-size", "2", "--length", "60")  # overflows in float32, not in float64
    result = jaxrnn_command("train", "fox.txt", *trouble, *sizes, "--out", "bad", cwd=tmp_path)
    assert result.returncode == 2
    assert "step 1 is not finite" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "bad").exists()


def test_explain_prints_the_numbers_of_the_walkthrough(tmp_path):
    result = jaxrnn_command("explain", "vector", "--hidden-size", "4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    told = result.stdout
    assert told.count("should answer") == 6
    for name in ("x", "h", "y", "p", "loss", "dy", "dh_next", "dh", "1 - h²", "dh_raw", "dh_0"):
        assert re.search(rf"^  {re.escape(name)} ", told, re.MULTILINE), name
    for name in ("dW_xh", "dW_hh", "db_h", "dW_hy", "db_y"):
        assert re.search(rf"^  {name} ", told, re.MULTILINE), name
    # db_y is the sum of dy: read back from what was printed.
    numbers = r"\[([^]]*)\]"
    dy = [np.fromstring(m, sep=" ") for m in re.findall(rf"^  dy +{numbers}", told, re.MULTILINE)]
    db_y = np.fromstring(re.findall(rf"^  db_y +{numbers}", told, re.MULTILINE)[0], sep=" ")
    np.testing.assert_allclose(sum(dy), db_y, atol=1e-7)
    assert max(map(len, told.splitlines())) <= 80


def test_explain_leaves_nothing_out(tmp_path):
    result = jaxrnn_command("explain", "hi", "--hidden-size", "40", cwd=tmp_path)
    assert result.returncode == 0
    assert "..." not in result.stdout


@pytest.mark.parametrize("command", [(), ("train",), ("sample",), ("explain",)])
def test_help_helps(command, tmp_path):
    result = jaxrnn_command(*command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "usage: jaxrnn" in result.stdout
    if not command:
        assert all(name in result.stdout for name in ("train", "sample", "explain"))


MISTAKES = {
    ("train", "missing.txt"): "cannot read missing.txt: No such file or directory",
    ("train", "."): "cannot read .: Is a directory",
    ("train", "empty.txt"): "empty.txt is empty: give a file with text in it",
    ("train", "short.txt"): "the text has 7 characters to train on, fewer than the 2,049",
    ("train", "latin.txt"): "latin.txt is not utf-8: byte 0xe9 at position 3; name its encoding",
    ("train", "short.txt", "--encoding", "klingon"): "unknown encoding: klingon; try utf-8",
    ("train", "fox.txt", "--hidden-size", "0"): "hidden_size must be a whole number of at least 1",
    ("train", "fox.txt", "--algorithm", "truncated_bptt", "--window", "-1"): "window must be a",
    ("train", "fox.txt", "--out", "fox"): "fox exists already: choose another --out, or say --over",
    ("sample", "nowhere"): "nowhere is no run: it holds no run.json",
    ("sample", "broken"): "the run broken is damaged:",
    ("sample", "fox", "--prime", "é"): "character 'é' (U+00E9) at position 0 is not in the vocab",
    ("sample", "fox", "--prime", ""): "prime must be the beginning of a text, of one line, got",
    ("sample", "fox", "--seed", "-1"): "seed must lie in 0 … 2⁶³ - 1, got -1",
    ("train", "fox.txt", "--seed", "99999999999999999999"): "seed must lie in 0 … 2⁶³ - 1, got",
    ("explain", "vector", "--seed", "-1"): "seed must lie in 0 … 2⁶³ - 1, got -1",
    ("train", "fox.txt", "--lines", "--held-out", "0.999"): "are fewer than a batch of 32: use a",
    ("train", "fox.txt", "--out", "mine", "--overwrite"): "mine is no run, and only runs are over",
    ("train", "fox.txt", "--out", "fox.txt", "--overwrite"): "fox.txt is no run, and only runs are",
    ("sample", "fox", "--temperature", "-1"): "temperature must be at least 0 (0 is greedy), got",
    ("sample", "fox", "--length", "0"): "length must be at least 1, got 0",
    ("sample", "fox", "--count", "0"): "count must be at least 1, got 0",
    ("explain", ""): "the word is empty: give at least one character",
}


@pytest.fixture(scope="module")
def mistaken(trained) -> dict[tuple[str, ...], Answer]:
    """Make every mistake, one after another; nothing on disk may have changed at the end."""
    folder, _ = trained
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("too short")
    (folder / "latin.txt").write_bytes("café au lait".encode("latin-1"))
    for name in ("broken", "mine"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "mine" / "thesis.txt").write_text("irreplaceable")
    (folder / "broken" / "run.json").write_text('{"network": ')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answers = one_after_another(MISTAKES, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return dict(zip(MISTAKES, answers, strict=True))


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_lost(arguments, mistaken):
    answer = mistaken[arguments]
    assert answer.status == 2
    assert MISTAKES[arguments] in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def damaged(folder, file, change):
    saved = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(change(saved)))


DAMAGES = {
    "another vocabulary": ("vocabulary.json", lambda symbols: symbols[:-1], "symbols for"),
    "symbols that are words": ("vocabulary.json", lambda symbols: ["be"], "single characters"),
    "no options": ("run.json", lambda run: run | {"options": {}}, "'lines' is missing"),
    "options that are none": ("run.json", lambda run: run | {"options": 3}, "is damaged"),
    "a network without its leak": (
        "run.json",
        lambda run: run | {"network": {k: v for k, v in run["network"].items() if k != "leak"}},
        "must describe the network by",
    ),
    "a network of another size": (
        "run.json",
        lambda run: run | {"network": run["network"] | {"hidden_size": 15}},
        "the network needs floats of",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused(damage, trained, tmp_path):
    file, change, message = DAMAGES[damage]
    shutil.copytree(trained[0] / "fox", tmp_path / "run")
    damaged(tmp_path / "run", file, change)
    with pytest.raises(ValueError, match=r"the run .* is damaged: ") as raised:
        checkpoint.load(tmp_path / "run")
    assert message in str(raised.value)


@pytest.mark.parametrize("value", [np.array(1), np.full((16, 16), np.nan)])
def test_damaged_parameters_are_refused(value, trained, tmp_path):
    shutil.copytree(trained[0] / "fox", tmp_path / "run")
    with np.load(tmp_path / "run" / "params.npz") as arrays:
        leaves = dict(arrays) | {"cells[0].W_hh": value}
    np.savez(tmp_path / "run" / "params.npz", allow_pickle=False, **leaves)
    with pytest.raises(ValueError, match=r"damaged: cells\[0\].W_hh"):
        checkpoint.load(tmp_path / "run")


def test_a_run_that_cannot_take_its_place_leaves_the_old_one(trained, tmp_path, monkeypatch):
    shutil.copytree(trained[0] / "fox", tmp_path / "run")
    saved, rename = checkpoint.load(tmp_path / "run"), Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(tmp_path / "run", saved, [1.0])
    assert checkpoint.load(tmp_path / "run").results == saved.results
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_is_overwritten_when_asked(trained, tmp_path):
    shutil.copytree(trained[0] / "fox", tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run")
    checkpoint.reserve(tmp_path / "run", overwrite=True)
    checkpoint.save(tmp_path / "run", saved._replace(results={"steps": 7}), [1.0])
    assert checkpoint.load(tmp_path / "run").results == {"steps": 7}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# A process that was started in the background is deaf to SIGINT, and so would its children be.
HEARING = """
import signal
from jaxrnn import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""


@pytest.mark.parametrize("seconds", [0, 6])
def test_interrupting_saves_what_was_learnt_and_leaves_no_empty_folder(seconds, tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    endless = ("--steps", "10000000", "--out", "run")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", HEARING, "train", "fox.txt", *SMALL, *endless],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        try:
            next(line for line in process.stdout if line.startswith("gradient"))
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            told, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, told + error
    assert "Traceback" not in error
    assert (tmp_path / "run").exists() == (seconds > 0)
    if seconds:
        assert checkpoint.load(tmp_path / "run").results["steps"] > 0


def test_an_unknown_option_is_named(tmp_path):
    result = jaxrnn_command("train", "--hiden-size", "3", cwd=tmp_path)
    assert result.returncode == 2
    assert "--hiden-size" in result.stderr
    assert "Traceback" not in result.stderr


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
    wrong = ("--algorithm", "truncated_bptt", "--window", "2", "--save", "report.json")
    right, wrong = one_after_another(
        [("check", *sizes), ("check", *sizes, *wrong, "--flow", "flow.png")], tmp_path
    )
    assert right.status == 0, right.stderr
    assert "right: every error is at most 1e-12" in right.stdout
    assert wrong.status == 1, wrong.stderr
    assert "wrong: truncated at 2 in cells[0].W_xh" in wrong.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False
    assert report["findings"][0]["bug"] == "truncated at 2"
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")


FUNCTIONS = {
    "backward:raises": (1, "wrong: raised: it raised KeyError: 'loss' (backward.py, line 13, in r"),
    "backward:loss_and_grads": (1, "wrong: loss: the losses differ, 0 where the reference has"),
    "backward": (2, "must be MODULE:NAME"),
    "backward:nothing": (2, "backward has no function nothing; it has loss_and_grads, raises"),
    "nowhere:f": (2, "No module named 'nowhere'"),
    "torn:f": (2, "cannot import torn from"),
}


def test_check_asks_somebodys_function(tmp_path):
    (tmp_path / "backward.py").write_text(BACKWARD)
    (tmp_path / "torn.py").write_text("def f(:")
    commands = [("check", "--function", function, *SIZES) for function in FUNCTIONS]
    answers = one_after_another(commands, tmp_path)
    for answer, (status, said) in zip(answers, FUNCTIONS.values(), strict=True):
        assert answer.status == status
        assert said in (answer.stderr if status == 2 else answer.stdout)
        assert len(answer.stderr.splitlines()) == (status == 2)


def test_check_draws_a_table_on_a_terminal(monkeypatch):
    from rich.console import Console

    from jaxrnn import display, trial

    chosen = trial.prepare(trial.Options(hidden_size=6, length=7))
    report = jaxrnn.verify(
        jaxrnn.gradients.bptt(chosen.rnn), chosen.rnn, chosen.params, chosen.batch, h=chosen.h
    )
    for width, last in ((90, "reference"), (52, "worst at"), (30, "error")):
        console = Console(force_terminal=True, width=width, record=True)
        monkeypatch.setattr(display, "console", console)
        display.report(report)
        shown = console.export_text()
        header, first, *_ = shown.splitlines()
        assert header.rstrip().endswith(last)
        assert first.startswith("cells[0].W_xh")
        assert "…" not in shown
        assert "right: every error is at most" in " ".join(shown.split())
