"""What the README shows, runs; what it quotes, is what the experiments found."""

import contextlib
import io
import json
import re
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_from_top_to_bottom():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    names, told = {}, io.StringIO()
    with jax.enable_x64(False), contextlib.redirect_stdout(told):
        for block in blocks:
            exec(block, names)
    assert "right: every error is at most 1e-12" in told.getvalue()
    first, last = names["metrics"].loss[::299]
    assert 2.8 < first < 3.6
    assert last < 0.1
    assert "we hold these truths to be self-evident" in told.getvalue()
    algorithm = names["one_hop"](names["rnn"])
    arguments = (names["params"], algorithm.init(names["params"], names["h"]), names["batch"])
    truncated = names["jaxrnn"].gradients.truncated_bptt(names["rnn"], 0)
    _, expected = truncated.value_and_grad(
        names["params"], truncated.init(names["params"], names["h"]), names["batch"]
    )
    _, grads = algorithm.value_and_grad(*arguments)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_word_experiment_is_quoted_as_it_came_out():
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


def test_the_exploding_experiment_is_quoted_as_it_came_out():
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
