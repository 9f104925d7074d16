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


@pytest.mark.slow
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


def missing(experiment: str, *figures: str) -> list[str]:
    """Return the figures that the README's paragraph about an experiment lacks."""
    blocks = [" ".join(block.split()) for block in re.split(r"\n\n|\n(?=- )", README)]
    (about,) = [b for b in blocks if re.search(rf"python (-m )?experiments[./]{experiment}\b", b)]
    # A figure stands by itself: "0.45" is not in "0.4545", and "38" not in "1.38" or "1,381".
    return [
        f for f in figures if not re.search(rf"(?<![\w.,]){re.escape(f)}(?![\w]|[.,]\d)", about)
    ]


def results(experiment: str) -> dict:
    return json.loads((ROOT / f"experiments/{experiment}.json").read_text())


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def test_a_figure_that_the_readme_does_not_quote_is_missing():
    assert missing("vector_word.py", "38", "3", "0.2458", "0.245", "64") == ["3", "0.245"]


def test_the_quoted_speed_is_that_of_the_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    step = importlib.import_module("experiments.benchmarks.step")
    assert step.table(results("benchmarks/step")["rows"]) in README


def test_the_quoted_planted_bugs_are_those_of_the_experiment():
    report = results("planted_bugs")
    assert report["not found"] == 0
    for counts in report["right gradients"].values():
        assert (counts["asked"], counts["accused"]) == (1000, 0)
    figures = [len(report["called"]), report["planted"], report["networks"], report["named"]]
    figures += [report["of those in the catalogue"], 1000]
    assert missing("planted_bugs.py", *(f"{figure:,}" for figure in figures)) == []
    names = {name for calls in report["called"].values() for name in calls}
    names = {"truncated at" if name.startswith("truncated") else name for name in names}
    kinds = len(names - {"unknown", "changes nothing"})
    assert re.search(rf"\b{kinds}\s+kinds\s+of\s+bugs\b", README)


def test_the_quoted_word_results_are_those_of_the_experiment():
    report = results("vector_word")
    learned = {
        name: sum(p > 0.5 for p in setting["probability"])
        for name, setting in report["settings"].items()
    }
    assert report["seeds"] == learned["BPTT, clipped at 1"] == 64
    below = np.mean(np.less(report["settings"]["one-hop"]["loss_at"]["1000"], 0.245807))
    figures = ["64", str(learned["one-hop"]), str(learned["one-hop, longer"]), percent(below)]
    assert missing("vector_word.py", *figures) == []


def test_the_quoted_exploding_gradients_are_those_of_the_experiment():
    report = results("exploding_gradient")
    source = report["source"]
    figures = [
        percent(source["share with max |w| > 1"], 2),
        f"{source['draws']:,}",
        percent(source["share vanished or gone of those"]),
        percent(source["share gone"]),
        f"{100 * source['share below the printed']:.1f}th",
        f"{source['median of max |dhs[40]|']:.1f}",
        percent(report["foretold"]["identity"]["radius"], 1),
    ]
    assert missing("exploding_gradient.py", *figures) == []


def test_the_quoted_comparison_of_rules_is_that_of_the_experiment():
    report = results("rules")
    learning = report["learning"]
    floors, last, best = (learning[name] for name in ("floors", "last_tenth", "best_tenth"))
    below = {rule: int(np.less(losses, floors["first"]).sum()) for rule, losses in last.items()}
    assert report["sizes"]["seeds"] == 32
    assert {below[rule] for rule in ("bptt", "rtrl", "ok(1)", "kf_rtrl")} == {32}
    assert {below[rule] for rule in ("one-hop", "snap(1)", "kernl", "dni")} == {0}
    figures = [f"{floors[name]:.4f}" for name in ("first", "both")] + [str(below["uoro"]), "32"]
    figures += [f"{np.median(last[rule]):.4f}" for rule in ("rtrl", "ok(1)", "kf_rtrl", "uoro")]
    figures += [f"{min(best['one-hop']):.4f}"]
    for task in ("copy", "text"):
        for step in ("0", "3000"):
            cosine = report["quality"][task][step]["rules"]["one-hop"]["cosine"]
            figures.append(f"{cosine:.2f}")
    assert missing("rules.py", *figures) == []


def test_the_quoted_growth_is_that_of_the_benchmark():
    report = results("benchmarks/growth")
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
    (about,) = [block for block in README.split("\n\n") if "T = 16384" in block]
    for figure in (1e3 * parallel["seconds"], 1e3 * bptt["seconds"]):
        assert f"{figure:.1f}" in about
    for quantity in ("flops", "bytes"):
        assert f"{parallel[quantity] / bptt[quantity]:.1f} times" in about


def test_the_quoted_loss_of_power_is_that_of_the_experiment():
    report = results("power_loss")
    kills, damage, full = report["kills"], report["damage"], report["full disk"]
    assert len(kills) == sum(kill["same bytes"] for kill in kills) == 200
    total = damage["cut off"] + damage["bytes changed"]
    assert damage["bytes changed"] == 2000
    assert damage["went back to the one before"] == total
    assert full["same bytes once there is room"]
    assert missing("power_loss.py", "200", f"{total:,}") == []


def test_the_quoted_memory_for_a_large_text_is_that_of_the_benchmark():
    report = results("benchmarks/large_text")
    assert report["text, GiB"] >= 1
    peak = report["largest resident memory, GiB"]
    assert peak < 1.5
    assert missing("benchmarks.large_text", f"{peak:.1f}") == []


def test_the_quoted_signals_are_those_of_the_experiment():
    summary = results("signals")["summary"]
    trials = sum(counts["trials"] for counts in summary.values())
    assert {counts["trials"] for counts in summary.values()} == {50}
    for wrong in ("with somebody left after 10 s", "restarted"):
        assert {counts[wrong] for counts in summary.values()} == {0}
    assert all(counts["as they should"] == counts["trials"] for counts in summary.values())
    assert missing("signals.py", "50", str(trials)) == []
