"""The command `jaxrnn flow`: how far back in time the gradient reaches."""

from pathlib import Path
from typing import Annotated

from jaxrnn.analysis.gradient_flow import gradient_flow
from jaxrnn.cli import console
from jaxrnn.cli.setting import SETTING, Setting, subject_of

PICTURE = Path("jaxrnn-flow.png")


def flow(
    *,
    out: Annotated[Path, "PICTURE"] = PICTURE,
    setting: Setting = SETTING,
) -> int:
    """Plot how far back in time a gradient reaches.

    Does it vanish or explode? Of a random network on a random batch, or of a trained one with
    --run, the picture shows the gradient of the loss with respect to earlier states, the singular
    values of the Jacobians, and the share of each time lag in the gradient of the weights.

    Args:
        out: The PNG file to write (default: jaxrnn-flow.png).
        setting: The network and batch.

    Examples:
        jaxrnn flow --length 50
        jaxrnn flow --run jaxrnn-run --length 50 --out flow.png
    """
    subject = subject_of(setting)
    with console.working("computing"):
        result = gradient_flow(subject.rnn, subject.params, subject.batch, h=subject.h)
    console.say("on", subject.about)
    print(result)
    result.plot(out)
    console.say("saved", str(out))
    return 0
