"""The command `jaxrnn compare`: bias, variance and cost of gradient rules, side by side."""

from pathlib import Path
from typing import Annotated

from jaxrnn import gradients
from jaxrnn.analysis import compare as analysis
from jaxrnn.cli import console
from jaxrnn.cli.setting import SETTING, Setting, subject_of
from jaxrnn.lm.options import seed_key


def compare(
    rules: Annotated[tuple[str, ...], "RULE"] = (),
    /,
    *,
    draws: int = 64,
    rounds: int = 5,
    save: Annotated[Path | None, "FILE"] = None,
    setting: Setting = SETTING,
) -> int:
    """Compare gradient rules with the exact gradient.

    Bias, variance, cosine and cost of each rule are measured on one batch of a random network, or
    of a trained one with --run. A rule without random numbers has no variance.

    Args:
        rules: The rules, written as in jaxrnn train, or rules of your own, FILE.py:NAME (default:
            all of jaxrnn's).
        draws: Number of gradients to draw from each rule that has random numbers (default: 64).
        rounds: Number of times that the time of each rule is measured (default: 5).
        save: Save the whole comparison, leaf by leaf, to this file, as JSON.
        setting: The network and batch.

    Examples:
        jaxrnn compare bptt uoro "ok(rank=4)"
        jaxrnn compare bptt rflo --run jaxrnn-run
    """
    subject = subject_of(setting)
    names = rules or tuple(name for name in gradients.RULES if name != "autodiff")
    algorithms = {name: gradients.build(name, subject.rnn) for name in names}
    console.say("on", subject.about)
    with console.working(f"comparing {len(algorithms)} rules"):
        result = analysis.compare(
            algorithms,
            subject.rnn,
            subject.params,
            subject.batch,
            h=subject.h,
            key=seed_key(setting.seed),
            draws=draws,
            rounds=rounds,
        )
    console.comparison(result)
    if save is not None:
        console.save_json(result.to_dict(), save)
    return 0
