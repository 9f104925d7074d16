"""Tests of training runs: resuming, evaluation, patience, populations, checkpoints and errors."""

import dataclasses
import errno
import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_equal, forged, timeless
from safetensors.numpy import load_file

import jaxrnn
from jaxrnn import gradients, lm, plotting
from jaxrnn.cli import console, plots
from jaxrnn.cli import main as cli
from jaxrnn.lm import Options, Text, batches, build, model, options, scoring
from jaxrnn.lm.options import members
from jaxrnn.lm.run.loop import evaluation_interval
from jaxrnn.lm.store import checkpoint, directory
from jaxrnn.lm.store.header import Header, TextRecord, to_json
from jaxrnn.training import nonfinite

TEXT = "to be or not to be, that is the question:\nwhether 'tis nobler in the mind\n" * 12
IN_MEMORY = Text.from_string(TEXT)
SMALL = Options(hidden_size=4, batch_size=2, length=3, steps=12, evaluate_every=6, save_every=0.0)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def run_to_end(started, stop=lambda: False):
    return list(lm.train(started, stop))


def checkpoints_of(path):
    return sorted((path / "checkpoints").iterdir())


def arrays(file):
    return {name: array.tobytes() for name, array in load_file(file).items()}


# Resuming


RESUMED = [*itertools.product(jaxrnn.gradients.RULES, ["stream", "lines"])]
QUICK = [(rule, "stream") for rule in ("bptt", "truncated_bptt", "rtrl", "uoro", "dni")]
QUICK += [("uoro", "lines")]


@pytest.mark.parametrize(
    ("rule", "kind"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row not in QUICK)) for row in RESUMED],
)
def test_a_resumed_run_ends_with_the_same_bytes(rule, kind, text, tmp_path):
    """The run resumes from a checkpoint in the middle. Everything after it is deleted before."""
    lines = kind == "lines"
    run_options = dataclasses.replace(
        SMALL, algorithm=rule, lines=lines, length=None if lines else 3, keep=99
    )
    first = lm.start(tmp_path / "run", text, run_options)
    run_to_end(first)
    *_, last = checkpoints_of(tmp_path / "run")
    expected, metrics = arrays(last), timeless(tmp_path / "run")
    for file in checkpoints_of(tmp_path / "run"):
        if int(file.stem[5:]) > 7:
            file.unlink()
    resumed = lm.resume(tmp_path / "run")
    assert 0 < resumed.done <= 7
    run_to_end(resumed)
    assert checkpoints_of(tmp_path / "run")[-1] == last
    assert arrays(last) == expected
    assert timeless(tmp_path / "run") == metrics


def test_the_metrics_have_the_learning_rate_of_each_step_and_the_time(text, tmp_path):
    """They follow the schedule of all steps, also where resuming has changed it."""
    before = time.time()
    half = dataclasses.replace(SMALL, schedule="linear", learning_rate=0.5, warmup=4)
    run_to_end(lm.start(tmp_path / "run", text, dataclasses.replace(half, steps=10)))
    run_to_end(lm.resume(tmp_path / "run", steps=14, learning_rate=0.25))
    records = directory.metrics(tmp_path / "run")
    rates = [each["learning_rate"] for each in records if "loss" in each]
    falling = 0.5 * (1 - np.arange(6) / 6), 0.25 * (1 - np.arange(6, 10) / 10)
    np.testing.assert_allclose(rates, [0, 0.125, 0.25, 0.375, *np.concatenate(falling)], rtol=1e-6)
    times = [each["time"] for each in records]
    assert times == sorted(times)
    assert before - 1 < times[0] < times[-1] < time.time() + 1
    several = dataclasses.replace(SMALL, schedule="constant", learning_rates=(0.1, 0.2), steps=2)
    run_to_end(lm.start(tmp_path / "several", text, several))
    assert directory.metrics(tmp_path / "several")[0]["learning_rate"] == [0.1, 0.2]


def test_a_run_is_the_same_however_it_is_cut_into_blocks(text, tmp_path):
    whole = run_to_end(lm.prepare(IN_MEMORY, dataclasses.replace(SMALL, save_every=60.0)))
    single = run_to_end(lm.prepare(IN_MEMORY, SMALL))
    assert len(single) == 12 > len(whole)
    for a, b in zip(
        *(jax.tree.leaves(end[-1].run.state.params) for end in (whole, single)), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_steps_can_be_added_to_a_run_and_are_those_of_a_longer_one(text, tmp_path):
    run_options = dataclasses.replace(SMALL, schedule="constant")
    run_to_end(lm.start(tmp_path / "run", text, run_options))
    run_to_end(lm.resume(tmp_path / "run", steps=20))
    longer = dataclasses.replace(run_options, steps=20)
    run_to_end(lm.start(tmp_path / "longer", text, longer))
    assert arrays(checkpoints_of(tmp_path / "run")[-1]) == arrays(
        checkpoints_of(tmp_path / "longer")[-1]
    )


@pytest.mark.slow
def test_options_that_are_given_at_resuming_are_stored_in_the_run(text, tmp_path):
    """Each fact is stored in one file only. The new path of a moved text is remembered."""
    run_to_end(lm.start(tmp_path / "run", text, SMALL))
    moved = text.rename(tmp_path / "moved.txt")
    run_to_end(lm.resume(tmp_path / "run", text=moved, steps=20))
    assert lm.options_of(tmp_path / "run").steps == lm.load(tmp_path / "run").options.steps == 20
    described = (tmp_path / "run" / "run.json").read_text()
    assert str(moved) in described
    assert "options" not in json.loads(described)
    assert not (tmp_path / "run" / "vocabulary.json").exists()
    assert lm.resume(tmp_path / "run").options.steps == 20


def test_a_rule_of_the_users_own_is_run_at_resuming_only_if_it_is_named_again(text, tmp_path):
    """A run may come from somebody else, and its run.json may name any file."""
    rule = tmp_path / "own_rule.py"
    rule.write_text("import jaxrnn\nmine = jaxrnn.gradients.bptt\n")
    algorithm = f"{rule}:mine"
    run_to_end(lm.start(tmp_path / "run", text, dataclasses.replace(SMALL, algorithm=algorithm)))
    assert lm.resume(tmp_path / "run", algorithm=algorithm, steps=20).done == 12
    with pytest.raises(ValueError, match="cannot replace the run's rule"):
        lm.resume(tmp_path / "run", algorithm="rtrl")
    del sys.modules["own_rule"]
    rule.write_text("raise SystemExit('this was run')\n")
    lm.load(tmp_path / "run")
    with pytest.raises(ValueError, match="a file that resuming would run: if you trust it, give"):
        lm.resume(tmp_path / "run", steps=20)


def test_several_seeds_are_summed_up_by_their_median_and_learning_rates_by_a_table(capsys):
    """The best of several models is chosen on the text on which its loss would be reported."""
    seeds = lm.prepare(IN_MEMORY, dataclasses.replace(SMALL, seeds=3))
    console.held_out(seeds._replace(history=((6, [3.0, 2.0, 4.0]), (12, [2.5, 3.5, None]))))
    first, second, third = capsys.readouterr().out.splitlines()
    assert "3.5000 nats" in first
    assert "the median of 3 seeds" in first
    assert "the quartiles are 2.5000 and inf" in second
    assert "kept: seed 1, with 2.0000 after step 6" in third
    rates = lm.prepare(IN_MEMORY, dataclasses.replace(SMALL, learning_rates=(0.1, 0.01)))
    console.held_out(rates._replace(history=((6, [3.0, 2.0]), (12, [2.5, 2.25]))))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["held", "out"]
    assert [line.split() for line in lines[1:3]] == [
        ["learning", "rate", "0.1", "2.5000", "2.5000"],
        ["learning", "rate", "0.01", "2.2500", "2.0000", "lowest"],
    ]
    assert "kept: seed 0, learning rate 0.01, with 2.0000 after step 6" in lines[3]
    assert all(len(line) <= 80 for line in lines)


def test_the_progress_of_several_models_is_their_median(capsys):
    blocks = run_to_end(lm.prepare(IN_MEMORY, dataclasses.replace(SMALL, seeds=3, save_every=60.0)))
    list(console.with_progress(blocks[0].run._replace(history=()), iter(blocks)))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training")]
    evaluated = [block for block in blocks if block.held_out is not None]
    for line, block in zip(lines, evaluated, strict=True):
        held_out = np.median(block.held_out)
        assert f" median loss {np.median(block.metrics.loss):.4f}, held out {held_out:.4f}" in line


def test_runs_of_characters_and_of_bytes_have_axes_of_their_own(text, tmp_path, monkeypatch):
    """Their losses cannot be compared: a character may have several bytes."""
    for level in ("char", "byte"):
        options_of_run = dataclasses.replace(SMALL, level=level, steps=2)
        run_to_end(lm.start(tmp_path / level, text, options_of_run))
    figures, new = [], plotting.new_figure
    monkeypatch.setattr(
        plotting, "new_figure", lambda *size: figures.append(new(*size)) or figures[-1]
    )
    plots.curves([tmp_path / "char", tmp_path / "byte"], tmp_path / "both.png")
    plots.curves([tmp_path / "char"] * 2, tmp_path / "chars.png")
    both, chars = ([axes.get_ylabel() for axes in figure.axes] for figure in figures)
    assert [label.split(" (")[0] for label in both] == [
        "loss, nats per character",
        "loss, nats per byte",
    ]
    assert len(chars) == 1


def test_by_default_evaluations_are_rare_enough_to_take_a_tenth_of_the_time():
    """A batch of an evaluation takes about a third of a step, which is a backward pass too."""
    for steps in (24, 2000):
        run = lm.prepare(IN_MEMORY, dataclasses.replace(SMALL, steps=steps, evaluate_every=None))
        batches = run.held_out.number or 0
        assert evaluation_interval(run) == max(steps // 20, 4 * batches) >= 10 * batches / 3
    assert evaluation_interval(run) == 100 > 4 * batches
    assert evaluation_interval(lm.prepare(IN_MEMORY, SMALL)) == 6


CHANGES = {
    "learning_rate": 0.1, "schedule": "constant", "clip": 1e-3, "weight_decay": 0.5
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_an_option_that_is_changed_at_resuming_takes_effect_from_there(name, text, tmp_path):
    """A resumed run equals a new run with the changed option and the old state."""
    first = lm.start(tmp_path / "run", text, dataclasses.replace(SMALL, save_every=60.0))
    interrupted = run_to_end(first, stop=lambda: True)[-1].run
    run_options = dataclasses.replace(interrupted.options, **{name: CHANGES[name]})
    resumed = run_to_end(lm.resume(tmp_path / "run", **{name: CHANGES[name]}))[-1].run
    assert resumed.options == run_options == lm.options_of(tmp_path / "run")
    expected = run_to_end(lm.prepare(text, run_options)._replace(state=interrupted.state))[-1].run
    assert_equal(resumed.state.params, expected.state.params, 0)
    undisturbed = run_to_end(lm.prepare(text, interrupted.options))[-1].run
    with pytest.raises(AssertionError):
        assert_equal(resumed.state.params, undisturbed.state.params, 1e-6)
    assert lm.resume(tmp_path / "run").options == run_options


def test_a_run_that_ended_by_patience_goes_on_with_more_patience(text, tmp_path):
    run_options = dataclasses.replace(
        SMALL, steps=40, evaluate_every=1, patience=2, learning_rate=3.0, optimizer="sgd"
    )
    last = run_to_end(lm.start(tmp_path / "run", text, run_options))[-1]
    assert (last.over, last.run.done < 39) == ("patience", True)
    assert lm.over_because(lm.resume(tmp_path / "run")) == "patience"
    more = lm.resume(tmp_path / "run", patience=3)
    assert lm.over_because(more) == ""
    assert run_to_end(more)[-1].run.done > last.run.done


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 5},
            "hidden_size cannot be changed when a run is resumed, only steps, lea",
        ),
        ({"learning_rate": -1.0}, "learning_rate must be above 0 and finite, got -1.0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
    ],
)
def test_an_invalid_change_at_resuming_is_refused(changes, message, saved_run):
    with pytest.raises(ValueError, match=message):
        lm.resume(saved_run / "run", **changes)


def test_one_learning_rate_does_not_replace_many(text, tmp_path):
    lm.start(tmp_path / "run", text, dataclasses.replace(SMALL, learning_rates=(0.1, 0.2)))
    with pytest.raises(
        ValueError, match=r"learning_rate=0.3 cannot replace the run's 2 learning_r"
    ):
        lm.resume(tmp_path / "run", learning_rate=0.3)


# The gradient check before the first step


@pytest.mark.parametrize("lines", [False, True], ids=["stream", "lines"])
@pytest.mark.parametrize("rule", ["rflo", "truncated_bptt"])
def test_the_gradient_check_compares_the_rule_of_the_run(rule, lines):
    """The reported cosine to the exact gradient is the one that `jaxrnn.compare` computes."""
    run_options = dataclasses.replace(
        SMALL, algorithm=rule, lines=lines, length=None if lines else 12
    )
    prepared = lm.prepare(IN_MEMORY, run_options)
    check = lm.check_gradient(prepared)
    assert (check.rule, check.report) == (rule, None)
    assert check.claim == {"rflo": "approximate", "truncated_bptt": "truncated"}[rule]
    algorithms = {rule: gradients.build(run_options.algorithm, prepared.rnn)}
    params, batch = prepared.state.params, check.batch
    compared = jaxrnn.compare(
        algorithms, prepared.rnn, params, batch, key=jax.random.key(0), rounds=1, draws=2
    )
    assert check.cosine == pytest.approx(compared.rows[0].whole.cosine, rel=1e-9)
    assert check.cosine is not None
    assert check.cosine < 1


@pytest.mark.parametrize("layers", [1, 2])
def test_a_rule_is_checked_against_its_claim_for_the_number_of_layers(layers):
    run_options = dataclasses.replace(SMALL, num_layers=layers, algorithm="rtrl")
    check = lm.check_gradient(lm.prepare(IN_MEMORY, run_options))
    if layers == 1:
        assert (check.claim, check.cosine) == ("exact", None)
        assert check.report is not None
        assert check.report.ok
    else:
        assert (check.claim, check.report) == ("approximate", None)
        assert check.cosine is not None
        assert 0.5 < check.cosine < 1
    drawn = dataclasses.replace(run_options, algorithm="uoro", seeds=2)
    check = lm.check_gradient(lm.prepare(IN_MEMORY, drawn))
    assert check.claim == ("unbiased" if layers == 1 else "approximate")
    assert check.cosine is not None
    assert -1 < check.cosine < 1


def test_a_rule_with_a_large_memory_is_checked_on_fewer_rows(monkeypatch):
    monkeypatch.setattr("jaxrnn.lm.run.gradient._CARRIED", 1)
    run_options = dataclasses.replace(SMALL, algorithm="rtrl")
    check = lm.check_gradient(lm.prepare(IN_MEMORY, run_options))
    assert check.batch.inputs.shape == (1, 3)
    assert check.report is not None
    assert check.report.ok


@pytest.mark.slow
def test_a_rule_that_is_not_exact_as_claimed_does_not_train(text, tmp_path, monkeypatch):
    def wrong(rnn):
        return jaxrnn.gradients.truncated_bptt(rnn, 1)

    claimed = jaxrnn.gradients.RULES["parallel_bptt"]
    monkeypatch.setitem(jaxrnn.gradients.RULES, "parallel_bptt", claimed._replace(build=wrong))
    run_options = dataclasses.replace(SMALL, length=12, algorithm="parallel_bptt")
    check = lm.check_gradient(lm.prepare(text, run_options))
    assert check.report is not None
    assert check.report.findings[0].bug == "truncated at 1"
    monkeypatch.setattr(cli.console.stdout, "quiet", False)  # is restored after the test
    with pytest.raises(ValueError, match=r"nothing was trained"):
        cli.train(text, options=run_options, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


# Starting from a model


@pytest.mark.slow
def test_a_new_run_starts_from_a_models_weights_and_vocabulary(text, tmp_path):
    """The model may be a run or a checkpoint. The optimiser state and the step count are new."""
    run_to_end(lm.start(tmp_path / "run", text, dataclasses.replace(SMALL, num_layers=2)))
    best = lm.load(tmp_path / "run")
    other = Text.from_string(TEXT.replace("be", "not")[5:])
    (file,) = [file for file in checkpoints_of(tmp_path / "run") if int(file.stem[5:]) == best.step]
    for source in (tmp_path / "run", str(tmp_path / "run"), file, best):
        new = lm.prepare(other, Options(batch_size=3, length=4), init_from=source)
        assert_equal(new.state.params, best.params, 0)
        assert new.vocabulary == best.vocabulary
        assert (new.rnn, new.done) == (best.rnn, 0)
        assert new.options == dataclasses.replace(
            Options(batch_size=3, length=4), hidden_size=4, num_layers=2
        )
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(new.state.opt_state))
    run_options = dataclasses.replace(SMALL, num_layers=2)
    started = lm.start(tmp_path / "new", other, run_options, init_from=tmp_path / "run")
    run_to_end(started)
    resumed = lm.resume(tmp_path / "new", text=other, steps=14)
    assert (resumed.done, resumed.vocabulary) == (12, best.vocabulary)
    many = lm.prepare(
        other, dataclasses.replace(run_options, learning_rates=(0.1, 0.2)), init_from=best
    )
    for member in range(2):
        params = jax.tree.map(lambda leaf, n=member: leaf[n], many.state.params)
        assert_equal(params, best.params, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 5}, "hidden_size=5 contradicts the model .* hidden_size=4: leave it out"),
        ({"num_layers": 2}, "num_layers=2 contradicts the model .* num_layers=1"),
        ({"level": "word"}, "level='word' contradicts the model .* level='char'"),
        ({"leak": 0.5}, "leak=0.5 contradicts"),
        ({"activation": "relu"}, "activation='relu' contradicts"),
        ({"use_bias": False}, "use_bias=False contradicts"),
        ({"init": "normal"}, "init='normal' contradicts"),
        ({"vocabulary_size": 99}, "vocabulary_size=99 contradicts"),
    ],
)
def test_options_that_contradict_the_model_are_refused(changes, message, saved_run):
    with pytest.raises(ValueError, match=message) as raised:
        lm.prepare(IN_MEMORY, Options(**changes), init_from=saved_run / "run")
    assert "\n" not in str(raised.value)


def test_all_characters_that_the_model_does_not_know_are_named(saved_run):
    other = Text.from_string(TEXT + "é~" + TEXT + "é")
    message = r"has 2 characters that the model does not know: '~' \(U\+007E\), 'é' \(U\+00E9\);"
    for lines in (False, True):
        with pytest.raises(ValueError, match=message) as raised:
            lm.prepare(other, Options(lines=lines), init_from=saved_run / "run")
        assert "\n" not in str(raised.value)


def test_words_that_the_model_does_not_know_are_counted(tmp_path):
    words = dataclasses.replace(SMALL, level="word")
    model = lm.to_model(lm.prepare(IN_MEMORY, words))
    other = Text.from_string(TEXT + "a zebra and a quagga")
    new = lm.prepare(other, SMALL, init_from=model)
    (remark,) = new.remarks
    assert "5 words of a text in memory are not known to the model: each is <unk>" in remark
    assert lm.prepare(IN_MEMORY, SMALL, init_from=model).remarks == ()


def with_foreign_checkpoint(tmp_path, text):
    """Copy a checkpoint into a run with another vocabulary of the same size."""
    (tmp_path / "other.txt").write_text(TEXT.replace("e", "z").replace("o", "x"))
    for name, file in (("run", text), ("other", tmp_path / "other.txt")):
        run_to_end(lm.start(tmp_path / name, file, SMALL), stop=lambda: True)
    copy = tmp_path / "run" / "checkpoints" / "step-00000009.safetensors"
    shutil.copy(checkpoints_of(tmp_path / "other")[-1], copy)
    return tmp_path / "run"


@pytest.mark.parametrize("old", [False, True], ids=["new", "of an older version"])
def test_a_checkpoint_with_another_vocabulary_is_refused(old, text, tmp_path):
    """A vocabulary of the same size is refused too, since its symbols would be permuted."""
    run = with_foreign_checkpoint(tmp_path, text)
    if old:
        convert_to_older_version(run)
    for use in (lm.resume, lambda run: lm.load(run, newest=True), lm.options_of):
        with pytest.raises(
            ValueError, match=r"SHA-256 .* is needed: it is of another run"
        ) as raised:
            use(run)
        assert "\n" not in str(raised.value)
    assert lm.load(run / "checkpoints" / "step-00000009.safetensors").step == 1


def test_a_checkpoint_of_another_text_is_refused(saved_run, tmp_path):
    shutil.copytree(saved_run / "run", tmp_path / "run")
    text = directory.newest(tmp_path / "run").header.text
    change_checkpoint(tmp_path / "run", text=to_json(text._replace(sha256="0" * 64)))
    for use in (lm.load, lm.resume):
        with pytest.raises(ValueError, match=r"was trained on another text than .* another run"):
            use(tmp_path / "run")


def convert_to_older_version(path):
    """Write run.json, vocabulary.json and the metadata of the newest checkpoint as they were."""
    described = json.loads((path / "run.json").read_text())
    del described["vocabulary"]
    described |= {"options": to_json(SMALL), "made with": {}}
    (path / "run.json").write_text(json.dumps(described))
    symbols = {"level": "char", "symbols": sorted(set(TEXT))}
    (path / "vocabulary.json").write_text(json.dumps(symbols))
    newest = directory.newest(path).checkpoint
    about = newest.about | {"made with": newest.about["made_with"], "position": 9}
    del about["made_with"], about["context"]
    about["options"] |= {"algorithm": "truncated_bptt", "window": 3, "n": None, "rank": None}
    forged(newest.file, load_file(newest.file), json.dumps(about))


@pytest.mark.slow
def test_a_run_of_an_older_version_is_loaded_resumed_and_overwritten(text, tmp_path):
    same = dataclasses.replace(SMALL, algorithm="truncated_bptt(window=3)")
    run_to_end(lm.start(tmp_path / "run", text, same), stop=lambda: True)
    convert_to_older_version(tmp_path / "run")
    assert lm.options_of(tmp_path / "run") == same
    model = lm.load(tmp_path / "run")
    assert model.vocabulary.symbols == tuple(sorted(set(TEXT)))
    assert model.context == ()
    assert len(lm.write(model, length=9)[0]) == 9
    assert run_to_end(lm.resume(tmp_path / "run", steps=14))[-1].run.done == 14
    assert "options" not in json.loads((tmp_path / "run" / "run.json").read_text())
    assert lm.options_of(tmp_path / "run").steps == 14
    assert lm.start(tmp_path / "run", text, SMALL, overwrite=True).done == 0


def test_a_run_that_is_told_to_stop_saves_and_goes_on_from_there(text, tmp_path):
    blocks = run_to_end(lm.start(tmp_path / "run", text, SMALL), stop=lambda: True)
    assert [block.over for block in blocks] == ["stopped"]
    assert blocks[0].saved == checkpoints_of(tmp_path / "run")[-1]
    assert lm.load(tmp_path / "run").context == lm.to_model(blocks[0].run).context != ()
    assert lm.resume(tmp_path / "run").done == blocks[0].run.done


def test_damaged_checkpoints_are_skipped_and_named(text, tmp_path):
    run_to_end(lm.start(tmp_path / "run", text, dataclasses.replace(SMALL, keep=3)))
    *_, good, worse, worst = checkpoints_of(tmp_path / "run")
    worst.write_bytes(worst.read_bytes()[:-9])
    worse.write_bytes(b"")
    resumed = lm.resume(tmp_path / "run")
    assert resumed.done == int(good.stem[5:])
    remarks = "\n".join(resumed.remarks)
    assert worst.name in remarks
    assert worse.name in remarks
    assert f"going back to {good.name}" in remarks
    for file in checkpoints_of(tmp_path / "run"):
        file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"has no checkpoint that can be read; .* is damaged"):
        lm.load(tmp_path / "run")


def test_the_partial_files_of_a_killed_process_are_removed(text, tmp_path):
    run_to_end(lm.start(tmp_path / "run", text, SMALL), stop=lambda: True)
    partial = tmp_path / "run" / "checkpoints" / ".jaxrnn-abc.part"
    partial.write_bytes(b"half")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1.0, "grad_norm": 1.0}\n{"step": 3, "lo')
    shutil.rmtree(tmp_path / "run" / "samples")
    resumed = lm.resume(tmp_path / "run")
    assert resumed.done == 1
    next(lm.train(resumed))
    assert not partial.exists()
    assert [each["step"] for each in directory.metrics(tmp_path / "run")] == [1, 2]


def test_resuming_on_another_machine_gives_a_remark(text, tmp_path, monkeypatch):
    run_to_end(lm.start(tmp_path / "run", text, SMALL), stop=lambda: True)
    assert lm.resume(tmp_path / "run").remarks == ()
    monkeypatch.setattr(os, "cpu_count", lambda: 99)
    (remark,) = lm.resume(tmp_path / "run").remarks
    assert "processors" in remark
    assert "(here 99): the last digits may differ" in remark


def test_a_run_that_cannot_be_written_is_refused(text, tmp_path, monkeypatch):
    run_to_end(lm.start(tmp_path / "run", text, SMALL), stop=lambda: True)

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(directory, "rewind", read_only)
    with pytest.raises(ValueError, match=r"cannot write .*run: Read-only file system; its last"):
        next(lm.train(lm.resume(tmp_path / "run")))


def test_a_run_that_cannot_be_overwritten_says_why_and_stands(text, tmp_path, monkeypatch):
    lm.start(tmp_path / "run", text, SMALL)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(directory, "write_description", full)
        with pytest.raises(ValueError, match=r"cannot write .*run: No space left on device"):
            lm.start(tmp_path / "run", text, SMALL, overwrite=True)
    assert lm.resume(tmp_path / "run").done == 0


def test_two_processes_cannot_train_one_run(text, tmp_path):
    started = lm.start(tmp_path / "run", text, SMALL)
    training: Any = lm.train(started)
    next(training)
    with pytest.raises(ValueError, match="is being trained by another process"):
        next(lm.train(started))
    training.close()
    next(lm.train(started))


def test_a_run_whose_loop_is_left_is_saved(text, tmp_path):
    run_options = dataclasses.replace(SMALL, save_every=60.0)
    training: Any = lm.train(lm.start(tmp_path / "run", text, run_options))
    block = next(training)
    training.close()
    assert block.saved is None
    assert lm.resume(tmp_path / "run").done == block.run.done > 0


def test_steps_that_are_trained_again_are_recorded_once(text, tmp_path):
    started = lm.start(tmp_path / "run", text, SMALL)
    for _ in range(2):
        next(lm.train(started))
    assert [each["step"] for each in directory.metrics(tmp_path / "run")] == [1]


# Files of a run


def test_a_run_that_another_process_has_created_meanwhile_is_not_replaced(tmp_path):
    def fill(new, name="late"):
        if name == "late":
            directory.create(tmp_path / "run", lambda new: fill(new, "early"))
        (new / "run.json").write_text(name)

    with pytest.raises(ValueError, match="exists already"):
        directory.create(tmp_path / "run", fill)
    assert (tmp_path / "run" / "run.json").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_is_being_trained_is_not_overwritten(text, tmp_path):
    training: Any = lm.train(lm.start(tmp_path / "run", text, SMALL))
    next(training)
    with pytest.raises(ValueError, match="is being trained by another process"):
        lm.start(tmp_path / "run", text, SMALL, overwrite=True)
    training.close()
    assert lm.start(tmp_path / "run", text, SMALL, overwrite=True).done == 0
    assert lm.resume(tmp_path / "run").done == 0


def test_files_that_do_not_belong_to_a_run_are_never_overwritten_or_removed(text, tmp_path):
    lm.start(tmp_path / "run", text, SMALL)
    (tmp_path / "run" / "notes.txt").write_text("irreplaceable")
    with pytest.raises(ValueError, match=r"holds 'notes.txt', which is not part of a run"):
        lm.start(tmp_path / "run", text, SMALL, overwrite=True)
    directory.remove(tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").read_text() == "irreplaceable"
    (tmp_path / "run" / "notes.txt").unlink()
    directory.remove(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def header(step, history=(), **changes):
    """Return the metadata of a checkpoint of some run."""
    run_options = dataclasses.replace(SMALL, **changes)
    text, vocabulary = TextRecord("a text", "0" * 64), lm.Vocabulary(("a", "b"))
    return Header(step, run_options, text, vocabulary, history, {})


def test_a_new_checkpoint_is_kept_beside_damaged_later_ones(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (1, 9, 2):
        assert directory.save(tmp_path, {"x": np.zeros(1)}, header(step, keep=1)).exists()
    assert [int(file.stem[5:]) for file in checkpoints_of(tmp_path)] == [2]


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5}
    (tmp_path / "checkpoints").mkdir()
    history = []
    for step, loss in losses.items():
        history.append((step, loss))
        directory.save(tmp_path, {"x": np.full(2, step)}, header(step, tuple(history), keep=2))
    assert [int(file.stem[5:]) for file in checkpoints_of(tmp_path)] == [2, 4, 5]
    assert directory.best(tmp_path).header.step == 2
    assert directory.newest(tmp_path).header.step == 5
    checkpoints_of(tmp_path)[0].write_bytes(b"")
    assert directory.best(tmp_path).header.step == 5


@pytest.mark.process
def test_the_same_checkpoints_are_kept_for_any_timing_and_after_any_kill(
    text, tmp_path, monkeypatch
):
    """An error in `Path.unlink` stands for a process that is killed before it removes a file."""
    run_options = dataclasses.replace(SMALL, steps=8, evaluate_every=2, keep=2)
    run_to_end(
        lm.start(tmp_path / "seldom", text, dataclasses.replace(run_options, save_every=60.0))
    )
    run_to_end(lm.start(tmp_path / "often", text, run_options))
    expected = [file.name for file in checkpoints_of(tmp_path / "seldom")]
    assert {"step-00000006.safetensors", "step-00000008.safetensors"} <= set(expected)
    assert len(expected) <= 3
    assert [file.name for file in checkpoints_of(tmp_path / "often")] == expected
    unlink = Path.unlink
    for step in (3, 6, 8):

        def killed(path, *args, step=step, **kwargs):
            if any(file.stem[5:] == f"{step:08}" for file in path.parent.iterdir()):
                raise InterruptedError
            unlink(path, *args, **kwargs)

        run = tmp_path / f"killed-{step}"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(ValueError, match="cannot write"):
                run_to_end(lm.start(run, text, run_options))
        assert [file.name for file in checkpoints_of(run)] != expected
        run_to_end(lm.resume(run))
        assert [file.name for file in checkpoints_of(run)] == expected


def test_a_folder_holds_the_whole_run(text, tmp_path):
    blocks = run_to_end(lm.start(tmp_path / "run", text, SMALL))
    run = tmp_path / "run"
    described = json.loads((run / "run.json").read_text())
    assert described["text"]["file"] == str(text)
    assert lm.options_of(run) == SMALL
    assert lm.load(run).vocabulary.symbols == tuple(sorted(set(TEXT)))
    assert described["vocabulary"]["sha256"] == lm.load(run).vocabulary.sha256
    records = directory.metrics(run)
    assert [each["step"] for each in records if "loss" in each] == list(range(1, 13))
    evaluated = {each["step"]: each["held_out"] for each in records if "held_out" in each}
    assert evaluated == dict(blocks[-1].run.history)
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "step-00000006.txt",
        "step-00000012.txt",
    ]
    header = directory.newest(run).header
    assert header.text.sha256 == described["text"]["sha256"]
    assert header.text.file is None


def test_the_held_out_loss_is_that_of_the_texts_end(text, tmp_path):
    """Each row is read in one piece to its end. The best checkpoint has this loss."""
    blocks = run_to_end(lm.start(tmp_path / "run", text, SMALL))
    model = lm.load(tmp_path / "run")
    best = min(loss for _, loss in blocks[-1].run.history)
    assert model.held_out == best
    ids = model.vocabulary.encode(TEXT)
    ids = ids[len(ids) - -(-len(ids) // 10) :]
    row = -(-(len(ids) - 1) // 2)
    total = 0.0
    for start in (0, row):
        part = ids[start : start + row + 1][None]
        batch = jaxrnn.Batch(part[:, :-1], part[:, 1:])
        loss, _ = model.rnn.loss(model.params, model.rnn.initial_state(1), batch)
        total += float(loss) * (part.shape[1] - 1)
    assert total / (len(ids) - 1) == pytest.approx(best, rel=1e-5)


def test_patience_ends_a_run_that_does_not_get_better(text):
    run_options = dataclasses.replace(
        SMALL, steps=400, evaluate_every=1, patience=3, learning_rate=3.0, optimizer="sgd"
    )
    blocks = run_to_end(lm.prepare(IN_MEMORY, run_options))
    losses = [loss for _, loss in blocks[-1].run.history]
    assert blocks[-1].over == "patience"
    assert len(losses) - 1 - int(np.argmin(losses)) == 3
    assert len(losses) < 400


# Steps that are not finite


def with_nan_after(started, step):
    """Make the loss and the parameters of a run nan from the update after `step` on."""

    def poison(state, batch):
        new, metrics = started.step(state, batch)
        bad = jnp.where(state.step == step, jnp.nan, 1.0)
        params = jax.tree.map(lambda leaf: leaf * bad, new.params)
        loss = metrics.loss * bad
        return new._replace(params=params), metrics._replace(loss=loss, finite=jnp.isfinite(loss))

    return started._replace(step=poison)


def test_a_step_that_is_not_finite_ends_the_run_with_the_last_good_state(
    text, tmp_path, monkeypatch
):
    run_options = dataclasses.replace(SMALL, save_every=60.0)
    diagnosis = nonfinite.Trouble("a stage", "something")
    monkeypatch.setattr("jaxrnn.lm.run.loop._diagnose", lambda *_: diagnosis)
    blocks = run_to_end(with_nan_after(lm.start(tmp_path / "run", text, run_options), 9))
    assert blocks[-1].over == "trouble"
    assert np.isnan(blocks[-1].metrics.loss[-1])
    assert blocks[-1].run.done == 9
    assert blocks[-1].saved == checkpoints_of(tmp_path / "run")[-1]
    assert directory.metrics(tmp_path / "run")[-1] == {"step": 10, "loss": None} | {
        name: directory.metrics(tmp_path / "run")[-1][name]
        for name in ("grad_norm", "learning_rate", "time")
    }
    good = run_to_end(lm.prepare(IN_MEMORY, run_options), stop=iter([False] * 20).__next__)
    short = run_to_end(with_nan_after(lm.prepare(IN_MEMORY, run_options), 9))
    assert_equal(blocks[-1].run.state.params, short[-1].run.state.params, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(blocks[-1].run.state.params))
    assert len(good[-1].run.history) == 2


def test_a_norm_that_grows_a_hundredfold_is_reported_once(tmp_path):
    started = lm.prepare(IN_MEMORY, dataclasses.replace(SMALL, steps=60))

    def with_spikes(state, batch):
        new, metrics = started.step(state, batch)
        spike = jnp.where((state.step == 40) | (state.step == 45), 1e5, 1.0)
        return new, metrics._replace(grad_norm=metrics.grad_norm * spike)

    steps = [block.spike_step for block in run_to_end(started._replace(step=with_spikes))]
    assert [step for step in steps if step is not None] == [41]


# Populations


@pytest.mark.slow
@pytest.mark.parametrize("lines", [False, True])
def test_a_member_of_a_population_is_the_model_trained_alone(lines, text):
    run_options = dataclasses.replace(
        SMALL, seed=5, seeds=2, learning_rates=(0.01, 0.03), lines=lines,
        length=None if lines else 3,
    )  # fmt: skip
    many = run_to_end(lm.prepare(IN_MEMORY, run_options))[-1]
    assert many.metrics.loss.shape[1:] == (4,)
    for number, member in enumerate(members(run_options)):
        alone = dataclasses.replace(
            run_options, seed=member.seed, seeds=1, learning_rates=(member.learning_rate,)
        )
        prepared = lm.prepare(IN_MEMORY, alone)._replace(
            source=lm.prepare(IN_MEMORY, run_options).source
        )
        last = run_to_end(prepared)[-1].run
        of_member = jax.tree.map(lambda leaf, n=number: leaf[n], many.run.state.params)
        assert_equal(of_member, last.state.params, 1e-10)
        if not lines:  # with lines, the held-out ones depend on the seed
            assert many.held_out[number] == pytest.approx(last.history[-1][1], rel=1e-10)
    assert members(run_options)[2] == options.Member(5, 0.03)


def test_a_population_resumes_exactly_and_gives_its_best_member(text, tmp_path):
    run_options = dataclasses.replace(SMALL, seeds=3, keep=99)
    blocks = run_to_end(lm.start(tmp_path / "run", text, run_options))
    expected = arrays(checkpoints_of(tmp_path / "run")[-1])
    losses = blocks[-1].held_out
    model = lm.load(tmp_path / "run", newest=True)
    best = int(np.argmin(losses))
    assert_equal(
        model.params, jax.tree.map(lambda leaf: leaf[best], blocks[-1].run.state.params), 0
    )
    assert model.held_out == min(losses)
    seed = run_options.seed
    for member, loss in enumerate(losses):
        one = lm.load(tmp_path / "run", newest=True, member=member)
        params = jax.tree.map(lambda leaf, i=member: leaf[i], blocks[-1].run.state.params)
        assert_equal(one.params, params, 0)
        assert one.held_out == loss
        which = f"member {member} of 3 models: seed {seed + member}, learning rate 0."
        assert one.remarks[-1].startswith(which)
        assert (", the lowest of them" in one.remarks[-1]) == (member == best)
    for member in (-1, 3):
        message = f"member={member} does not exist: .* has the models 0 … 2"
        with pytest.raises(ValueError, match=message):
            lm.load(tmp_path / "run", member=member)
    checkpoints_of(tmp_path / "run")[-1].unlink()
    run_to_end(lm.resume(tmp_path / "run"))
    assert arrays(checkpoints_of(tmp_path / "run")[-1]) == expected


def test_a_member_that_is_not_finite_leaves_the_others_alone(text, tmp_path):
    trouble = {"optimizer": "sgd", "activation": "identity", "clip": 1e30}
    run_options = dataclasses.replace(SMALL, learning_rates=(0.1, 1e20), steps=30, **trouble)
    last = run_to_end(lm.start(tmp_path / "run", text, run_options))[-1]
    assert last.over == "steps"
    assert np.isfinite(last.held_out[0])
    assert not np.isfinite(last.held_out[1])
    model = lm.load(tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.params))


# Errors


def change_checkpoint(path, **about):
    """Rewrite the newest checkpoint with changed metadata."""
    newest = directory.newest(path).checkpoint
    forged(newest.file, load_file(newest.file), json.dumps(newest.about | about))


INVALID_METADATA = {
    "an option of another version": ({"options": {"sorcery": 1}}, "does not know options.sorcery"),
    "an option that cannot be": (
        {"options": {"steps": "many"}},
        "options.steps has the invalid value 'many'",
    ),
    "a network of another size": ({"options": {"hidden_size": 5}}, "is needed: it is of another"),
    "a gigantic network": ({"options": {"hidden_size": 10**9}}, "is needed: it is of another"),
    "another vocabulary": (
        {"vocabulary": {"level": "char", "symbols": sorted({*TEXT, "~"})}},
        "is needed: it is of another",
    ),
    "no vocabulary": ({"vocabulary": 3}, "cannot be used: vocabulary must be an object, got 3"),
    "a vocabulary that is none": (
        {"vocabulary": {"level": "char", "symbols": []}},
        "the text is e",
    ),
    "a history that is none": (
        {"history": [1]},
        r"cannot be used: history\[0\] has the invalid value 1",
    ),
    "a loss that is none": (
        {"history": [[1, "low"]]},
        r"history\[0\]\[1\] has the invalid value 'low'",
    ),
    "no step": ({"step": None}, "step has the invalid value None"),
    "steps that are lists": (
        {"history": [[[1], 2.0]]},
        r"history\[0\]\[0\] has the invalid value \[1\]",
    ),
    "options that are none": ({"options": None}, "options must be an object, got None"),
    "versions that are none": ({"made_with": [1]}, r"made_with has the invalid value \[1\]"),
    "a context of another vocabulary": (
        {"context": [0, 99]},
        "its context has an id that is not in",
    ),
    "no text": ({"text": {"name": "a text"}}, "text.sha256 is missing"),
    "a number of a later version": ({"mood": 3}, "this version does not know mood"),
    "more evaluations than steps": (
        {"step": 0, "history": [[0, 1.0]]},
        "has more evaluations than it has steps",
    ),
    "steps without end": (
        {"options": {"steps": 10**18}},
        "steps must be at most 2,147,483,647, got",
    ),
    "a batch without end": ({"options": {"batch_size": 2**31}}, "batch_size must be at most 2,147"),
    "a step without end": ({"step": 10**18}, "a step is negative or at least 2³¹"),
    "a step below 0": ({"step": -1}, "a step is negative or at least 2³¹"),
    "a loss without end": (
        {"history": [[1, 10**400]]},
        r"history\[0\]\[1\] has the invalid value 1",
    ),
    "a length that is no whole number": (
        {"options": {"length": 8.5}},
        "options.length has the invalid value 8.5",
    ),
}


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept")
    (path / "text.txt").write_text(TEXT)
    run_to_end(lm.start(path / "run", path / "text.txt", SMALL), stop=lambda: True)
    return path


@pytest.mark.parametrize("case", INVALID_METADATA)
def test_a_checkpoint_with_invalid_metadata_is_refused(case, saved_run, tmp_path):
    about, message = INVALID_METADATA[case]
    shutil.copytree(saved_run / "run", tmp_path / "run")
    if about.get("options"):
        about = {"options": to_json(SMALL) | about["options"]}
    change_checkpoint(tmp_path / "run", **about)
    for use in (lm.load, lm.resume):
        with pytest.raises(ValueError, match=message) as raised:
            use(tmp_path / "run")
        assert "\n" not in str(raised.value)


def test_a_str_is_a_path_wherever_a_text_is_expected(text, tmp_path, monkeypatch):
    """So is a `Path`. A text in memory is a `Text`."""
    monkeypatch.chdir(tmp_path)
    for same in ("text.txt", text, Text.from_file("text.txt"), IN_MEMORY):
        started = lm.start("run", same, SMALL, overwrite=True)
        assert (started.text.characters, started.vocabulary.symbols[-1]) == (len(TEXT), "w")
        assert lm.prepare(same, SMALL).text.sha256 == started.text.sha256
        assert lm.resume("run", text=same).text.sha256 == started.text.sha256
        score = model.evaluate(lm.load("run"), same)
        assert score.characters == len(TEXT)
    for use in (
        lambda missing: lm.start("other", missing, SMALL),
        lambda missing: lm.prepare(missing, SMALL),
        lambda missing: lm.resume("run", text=missing),
        lambda missing: model.evaluate(lm.load("run"), missing),
    ):
        with pytest.raises(ValueError, match=r"cannot read nosuchfile.txt: No such file"):
            use("nosuchfile.txt")
        for content in ("to be or not to be", TEXT):
            with pytest.raises(ValueError, match=r"give jaxrnn.lm.Text.from_string") as raised:
                use(content)
            assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"encoding='latin-1' is for the path of a file"):
        lm.start("other", IN_MEMORY, SMALL, encoding="latin-1")


def test_a_run_of_a_text_in_memory_needs_it_again_to_resume(tmp_path):
    run_to_end(lm.start(tmp_path / "run", IN_MEMORY, SMALL), stop=lambda: True)
    with pytest.raises(
        ValueError, match=r"a text in memory, which has no file: give the text again"
    ):
        lm.resume(tmp_path / "run")
    assert lm.resume(tmp_path / "run", text=IN_MEMORY).done == 1


def test_a_text_that_has_changed_is_refused_and_a_moved_one_can_be_named(saved_run, tmp_path):
    shutil.copytree(saved_run / "run", tmp_path / "run")
    (tmp_path / "moved.txt").write_text(TEXT)
    assert lm.resume(tmp_path / "run", text=tmp_path / "moved.txt").done > 0
    (tmp_path / "moved.txt").write_text(TEXT + "!")
    with pytest.raises(ValueError, match="is not the text that the run began with: its SHA-256"):
        lm.resume(tmp_path / "run", text=tmp_path / "moved.txt")


def test_a_memory_of_another_rule_is_refused(saved_run, tmp_path):
    shutil.copytree(saved_run / "run", tmp_path / "run")
    change_checkpoint(tmp_path / "run", options=to_json(SMALL) | {"algorithm": "rtrl"})
    with pytest.raises(ValueError, match=r"holds no carry.memory\[0\].influence: it is of another"):
        lm.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1, got 1.0"),
        ({"learning_rate": -0.1}, "learning_rate must be above 0 and finite, got -0.1"),
        ({"clip": 0.0}, "clip must be above 0 and finite, got 0.0"),
        ({"seed": -1}, "seed must lie in 0 … .*, got -1"),
        ({"seed": 10**20}, "seed must lie in 0 … .*, got 1"),
        ({"batch_size": 1000}, "the text has 450 symbols to train on, fewer than the 64,001"),
        ({"lines": True}, "training on lines needs at least 2 that are not empty, got 1"),
        ({"algorithm": "bptt(window=3)"}, "bptt has no option window: it takes none"),
        ({"algorithm": "ok(rank=0)"}, "rank must be a whole number of at least 1, got 0"),
        ({"vocabulary_size": 9}, "vocabulary_size=9 applies only to level word"),
        (
            {"weight_decay": 0.1, "optimizer": "sgd"},
            "weight_decay=0.1 applies only to optimizer ad",
        ),
        ({"learning_rate": 0.1, "learning_rates": (0.1,)}, "contradict each other"),
        ({"learning_rates": (0.1, 0.0)}, r"learning_rates\[1\] must be above 0 and finite, got 0"),
        ({"warmup": 4000}, "warmup must be less than steps=4000, got 4000"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"save_every": -1.0}, "save_every must be at least 0 and finite, got -1.0"),
        ({"level": "word", "vocabulary_size": 3}, "needs a size of at least 4, .* got 3"),
    ],
)
def test_invalid_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lm.prepare(Text.from_string("a" * 499 + "b"), Options(**changes))


def test_very_long_lines_need_an_explicit_length():
    text = "a\n" * 40 + "b" * 20_000
    with pytest.raises(ValueError, match=r"the longest line has 20,001 symbols.*length=200"):
        lm.prepare(Text.from_string(text), Options(lines=True))
    cut = lm.prepare(Text.from_string(text), Options(lines=True, length=5, hidden_size=3))
    assert cut.source(np.arange(1)).inputs.shape == (1, 32, 5)


def test_links_pipes_and_folders_in_a_run_are_not_followed(saved_run, tmp_path):
    shutil.copytree(saved_run / "run", tmp_path / "run")
    good = checkpoints_of(tmp_path / "run")[-1]
    os.mkfifo(good.with_name("step-00000070.safetensors"))
    good.with_name("step-00000080.safetensors").mkdir()
    assert lm.load(tmp_path / "run", newest=True).step == int(good.stem[5:])
    (tmp_path / "run" / "samples").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "samples").symlink_to(tmp_path / "elsewhere")
    for use in (lm.load, lm.resume):
        with pytest.raises(ValueError, match=r"samples is a link, and links in a run are not foll"):
            use(tmp_path / "run")


INVALID_RUN_JSON = {
    "nothing": "{}",
    "no object": "[1]",
    "no options": '{"text": {"file": null, "name": null, "encoding": null}}',
    "a file that is a number": '{"options": {}, "text": {"file": 5, "name": "", "encoding": ""}}',
    "nested too deeply": "[" * 100_000,
}


@pytest.mark.parametrize("case", INVALID_RUN_JSON)
def test_an_invalid_run_json_is_refused_in_one_line(case, saved_run, tmp_path):
    shutil.copytree(saved_run / "run", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(INVALID_RUN_JSON[case])
    for use in (lm.load, lm.resume):
        with pytest.raises(ValueError, match=r"run.json is damaged: ") as raised:
            use(tmp_path / "run")
        assert "\n" not in str(raised.value)


def test_invalid_records_are_left_out_of_the_metrics(tmp_path):
    lines = ['{"step": 1, "loss": {}}', '{"step": 2, "loss": [1.0, null]}', '{"step": "x"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "loss": 1}']))
    assert [each["step"] for each in directory.metrics(tmp_path)] == [2]


def test_a_checkpoint_that_is_too_large_to_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_HEADER", 1000)
    with pytest.raises(ValueError, match=r"takes .* bytes, more than can be read again"):
        checkpoint.save(tmp_path / "a", {"x": np.zeros(1)}, {"said": "x" * 1000})
    assert not list(tmp_path.iterdir())


# Schedules


def test_schedules_have_their_rates():
    def rates(**kwargs: Any) -> np.ndarray:
        """Return the rate of each step, which is the update of SGD for a gradient of 1."""
        run_options = Options(optimizer="sgd", learning_rate=2.0, clip=1.0, steps=10, **kwargs)
        optimizer = build.make_optimizer(run_options, 2.0)
        params = {"x": jnp.zeros(())}
        state, steps = optimizer.init(params), []
        for _ in range(10):
            updates: Any
            updates, state = optimizer.update({"x": jnp.ones(())}, state, params)
            steps.append(-float(updates["x"]))
        return np.array(steps)

    t = np.arange(10)
    np.testing.assert_allclose(rates(schedule="constant"), 2.0)
    np.testing.assert_allclose(rates(schedule="linear"), 2 * (1 - t / 10), atol=1e-6)
    np.testing.assert_allclose(rates(schedule="cosine"), 1 + np.cos(np.pi * t / 10), atol=1e-6)
    np.testing.assert_allclose(rates(schedule="exponential"), 2 * 0.01 ** (t / 10), rtol=1e-6)
    warm = rates(schedule="constant", warmup=4)
    np.testing.assert_allclose(warm, 2 * np.minimum(1, t / 4), rtol=1e-6)


def test_the_score_of_an_evaluation_set_does_not_depend_on_its_parts(monkeypatch):
    rnn = jaxrnn.RNN(6, 4, 6)
    params = rnn.init(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 6, 97)
    eval_set = batches.eval_set(ids, 2, 5)
    whole = jaxrnn.evaluate(rnn, params, batches.eval_set(ids, 2, 5))
    monkeypatch.setattr("jaxrnn.lm.scoring._POSITIONS", 30)
    parts = list(scoring.score(rnn, params, eval_set))
    assert len(parts) == 4
    assert sum(part.positions for part in parts) == 96
    assert_equal(scoring.mean_loss(parts), np.asarray(whole))


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.bool_, np.uint64])
def test_parameters_that_are_not_floats_are_refused_before_anything_is_computed(
    dtype, saved_run, tmp_path
):
    shutil.copytree(saved_run / "run", tmp_path / "run")
    newest = directory.newest(tmp_path / "run").checkpoint
    arrays = load_file(newest.file)
    whole = {n: a.astype(dtype) if n.startswith("params.") else a for n, a in arrays.items()}
    forged(newest.file, whole, json.dumps(newest.about))
    message = rf"params\.\S+ has dtype {np.dtype(dtype)}, but parameters are floats"
    for use in (lm.load, lm.resume, lm.options_of):
        with pytest.raises(ValueError, match=message):
            use(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        lm.load(newest.file)


def test_a_loss_that_is_too_large_to_plot_is_named_with_its_file_and_step(saved_run, tmp_path):
    shutil.copytree(saved_run / "run", tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1e308}\n')
    with pytest.raises(
        ValueError, match=r"metrics.jsonl, record \d+ \(step 2\): a loss above 1e\+"
    ):
        plots.curves([tmp_path / "run"], tmp_path / "loss.png")


def test_losses_of_another_number_of_models_are_named_with_their_file_and_step(saved_run, tmp_path):
    shutil.copytree(saved_run / "run", tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": [1.0, 2.0]}\n')
    with pytest.raises(
        ValueError, match=r"record \d+ \(step 2\): a loss of 2 models, not 1, cannot"
    ):
        plots.curves([tmp_path / "run"], tmp_path / "loss.png")


def test_curves_are_labelled_with_their_run_only_among_several(saved_run, monkeypatch):
    labels = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot", lambda *args, label, **kwargs: labels.append(label)
    )
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda *args, **kwargs: None)
    for number, name in ((1, ""), (2, "run: ")):
        labels.clear()
        plots.curves([saved_run / "run"] * number, saved_run / "loss.png")
        assert labels == [f"{name}training"] * number


def test_long_texts_from_files_are_cut_before_they_are_printed(capsys):
    console.remarks(["x" * 10**6])
    console.say("text", "y" * 10**6)
    assert len("".join(capsys.readouterr())) < 5000
