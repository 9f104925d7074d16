"""Tests that the code of the README runs, and that its numbers are those of the experiments."""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    truths = "we hold these truths to be self-evident, that all men are created equal\n"
    Path("my-text.txt").write_text(truths * 60)
    names, output = {}, io.StringIO()
    with jax.enable_x64(False), contextlib.redirect_stdout(output):
        for block in blocks:
            exec(block, names)
    assert "se: the bias to expect from the noise of 64 draws alone" in output.getvalue()
    assert "right: every error is at most 1e-12" in output.getvalue()
    assert "wrong: truncated at 3 in cells[0].W_xh, cells[0].W_hh" in output.getvalue()
    assert "(1, … 4 times, 0, … 12 times), residual" in output.getvalue()
    first, last = names["metrics"].loss[::299]
    assert 2.8 < first < 3.6
    assert last < 0.1
    assert output.getvalue().count("we hold these truths to be self-evident") == 2
    best, score = names["best"], names["score"]
    assert f"best after step {best.step}: {best.held_out:.3f} nats" in output.getvalue()
    restarted = ~np.asarray(names["carry"].h[0]).any(-1)
    np.testing.assert_array_equal(restarted, names["ended"])
    assert best.held_out < 1.5  # its rows are short, and each is read from h = 0
    assert score.characters == 30
    assert score.nats < 1
    algorithm = names["one_hop"](names["rnn"])
    arguments = (names["params"], algorithm.init(names["params"], names["h"]), names["batch"])
    truncated = names["jaxrnn"].gradients.truncated_bptt(names["rnn"], 0)
    _, expected = truncated.value_and_grad(
        names["params"], truncated.init(names["params"], names["h"]), names["batch"]
    )
    _, grads = algorithm.value_and_grad(*arguments)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.process
def test_the_check_of_the_backward_pass_of_the_readme_has_the_shown_output(tmp_path):
    (code,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "dh_next" in b)
    (shown,) = re.findall(r"```console\n\$ jaxrnn (check .*?)```", README, re.DOTALL)
    command, *lines = shown.splitlines()

    def run():
        return subprocess.run(
            [sys.executable, "-m", "jaxrnn.cli", *command.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    (tmp_path / "backward.py").write_text(code)
    wrong = run()
    assert wrong.returncode == 1
    printed = wrong.stdout.splitlines()
    assert [line.split()[0] for line in printed] == [line.split()[0] for line in lines]
    assert printed[-4:] == lines[-4:]
    (tmp_path / "backward.py").write_text(code.replace("W_hh.T @ dh_raw", "W_hh @ dh_raw"))
    right = run()
    assert right.returncode == 0
    assert all(float(line.split()[1]) < 1e-15 for line in right.stdout.splitlines()[1:6])


def test_the_quoted_speed_is_that_of_the_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    step = importlib.import_module("experiments.benchmarks.step")
    report = json.loads((ROOT / "experiments/benchmarks/step.json").read_text())
    assert step.table(report["rows"]) in README


def test_the_quoted_planted_bugs_are_those_of_the_experiment():
    report = json.loads((ROOT / "experiments/planted_bugs.json").read_text())
    text = " ".join(README.split())
    assert report["networks"] == 50
    assert (
        f"random networks, {len(report['called'])} bugs were planted {report['planted']:,} times"
        in text
    )
    assert report["not found"] == 0
    assert (
        f"{report['named']:,} of {report['of those in the catalogue']:,} in the catalogue" in text
    )
    for counts in report["right gradients"].values():
        assert (counts["asked"], counts["accused"]) == (1000, 0)
    names = {name for calls in report["called"].values() for name in calls}
    names = {"truncated at" if name.startswith("truncated") else name for name in names}
    assert f"compared with {len(names - {'unknown', 'changes nothing'})} kinds of bugs" in text


def test_the_quoted_word_results_are_those_of_the_experiment():
    report = json.loads((ROOT / "experiments/vector_word.json").read_text())
    learned = {
        name: sum(p > 0.5 for p in setting["probability"])
        for name, setting in report["settings"].items()
    }
    assert report["seeds"] == 64
    assert learned["BPTT, clipped at 1"] == 64
    assert f"BPTT learns the word in 64, the one-hop gradient in {learned['one-hop']}," in README
    assert f"passes in {learned['one-hop, longer']}." in README
    below = np.mean(np.less(report["settings"]["one-hop"]["loss_at"]["1000"], 0.245807))
    assert f"({below:.0%}".replace("%", " % of seeds are below") in README


def test_the_quoted_exploding_gradients_are_those_of_the_experiment():
    report = json.loads((ROOT / "experiments/exploding_gradient.json").read_text())
    source = report["source"]
    text = " ".join(README.split())
    assert (
        f"{source['share with max |w| > 1']:.2%} of {source['draws']:,} draws".replace("%", " %")
        in text
    )
    assert f"{source['share vanished or gone of those']:.0%} vanish".replace("%", " %") in text
    assert f"{source['share gone']:.0%} to exactly zero".replace("%", " %") in text
    assert f"the {100 * source['share below the printed']:.1f}th percentile" in text
    assert f"median is {source['median of max |dhs[40]|']:.1f}" in text
    radius = report["foretold"]["identity"]["radius"]
    assert f"(right in {radius:.1%})".replace("%", " %") in text


def test_the_quoted_comparison_of_rules_is_that_of_the_experiment():
    report = json.loads((ROOT / "experiments/rules.json").read_text())
    learning, text = report["learning"], " ".join(README.split())
    assert report["sizes"]["seeds"] == 32
    floors = learning["floors"]
    assert f"has at best {floors['first']:.4f} nats" in text
    assert f"one that knows both {floors['both']:.4f}." in text
    last, best = learning["last_tenth"], learning["best_tenth"]
    below = {rule: int(np.less(losses, floors["first"]).sum()) for rule, losses in last.items()}
    median = {rule: f"{np.median(losses):.4f}" for rule, losses in last.items()}
    assert {below[rule] for rule in ("bptt", "rtrl", "ok(1)", "kf_rtrl")} == {32}
    assert {below[rule] for rule in ("one-hop", "snap(1)", "kernl", "dni")} == {0}
    assert (
        f"RTRL ends at {median['rtrl']} in the median, `ok` at {median['ok(1)']} and `kf_rtrl` at "
        f"{median['kf_rtrl']}, all below the first of these in 32 of 32 seeds; `uoro` in "
        f"{below['uoro']}, at {median['uoro']}." in text
    )
    assert f"one-hop to {min(best['one-hop']):.4f} in its best seed" in text
    cosine = {
        task: [
            report["quality"][task][step]["rules"]["one-hop"]["cosine"] for step in ("0", "3000")
        ]
        for task in ("copy", "text")
    }
    assert "falls from {:.2f} to {:.2f} as a network learns".format(*cosine["copy"]) in text
    assert "on text it rises from {:.2f} to {:.2f}.".format(*cosine["text"]) in text


def test_the_quoted_growth_is_that_of_the_benchmark():
    report = json.loads((ROOT / "experiments/benchmarks/growth.json").read_text())
    rows = {row.split("`")[1]: row for row in README.splitlines() if row.startswith("| `")}
    rows |= {"snap(1)": rows["snap(n=1)"], "snap(2)": rows["snap(n)"], "ok(1)": rows["ok(rank=r)"]}
    for rule, costs in report["over_H"].items():
        measured = "{seconds:.1f}, {bytes:.1f} |".format(**costs["exponents"])
        assert rule == "bptt" or rows[rule].endswith(measured)
    for rule, costs in report["over_T"].items():
        assert rows[rule].endswith(f"memory in T: {costs['exponent']:.2f} |")
    parallel, bptt = (report["parallel"][rule] for rule in ("parallel_bptt", "bptt"))
    assert (parallel["loops"].count(16384), bptt["loops"].count(16384)) == (1, 2)
    assert max(parallel["error"], bptt["error"]) < 2e-15
    assert f"{1e3 * parallel['seconds']:.1f} ms against {1e3 * bptt['seconds']:.1f}, for" in README
    for quantity in ("flops", "bytes"):
        assert f"{parallel[quantity] / bptt[quantity]:.1f} times the" in README


def test_the_quoted_loss_of_power_is_that_of_the_experiment():
    report = json.loads((ROOT / "experiments/power_loss.json").read_text())
    kills, damage, full = report["kills"], report["damage"], report["full disk"]
    assert len(kills) == sum(kill["same bytes"] for kill in kills) == 200
    total = damage["cut off"] + damage["bytes changed"]
    assert damage["bytes changed"] == 2000
    assert damage["went back to the one before"] == total
    assert full["same bytes once there is room"]
    text = " ".join(README.split())
    assert f"200 of 200 killed runs ended so, and {total:,} of {total:,} damaged files" in text


def test_the_quoted_memory_for_a_large_text_is_that_of_the_benchmark():
    report = json.loads((ROOT / "experiments/benchmarks/large_text.json").read_text())
    assert report["text, GiB"] >= 1
    peak = report["largest resident memory, GiB"]
    assert peak < 1.5
    assert f"training on 1 GiB takes {peak:.1f} GiB of memory" in " ".join(README.split())
