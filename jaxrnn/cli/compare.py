"""The command `jaxrnn compare`: bias, variance and cost of gradient rules, side by side."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxrnn import gradients
from jaxrnn.analysis import compare as analysis
from jaxrnn.cli import console
from jaxrnn.cli.setting import SETTING, Setting, subject_of
from jaxrnn.lm.options import seed_key


def compare(
    rules: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RULE")] = (),
    /,
    *,
    setting: Annotated[Setting, tyro.conf.arg(name="")] = SETTING,
    draws: int = 64,
    rounds: int = 5,
    save: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> int:
    """Compare gradient rules with the exact gradient: bias, variance, cosine, and cost.

    The rules are compared on one batch of a random network, or of a trained one with --run. A rule
    without random numbers has no variance.

    Args:
        rules: The rules, written as in jaxrnn train, or rules of your own, FILE.py:NAME; default
            all of jaxrnn's.
        setting: The network and batch.
        draws: Number of gradients to draw from each rule that has random numbers.
        rounds: Number of times that the time of each rule is measured.
        save: Save the whole comparison, leaf by leaf, to this file, as JSON.
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
