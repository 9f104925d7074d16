"""One style for all plots, with colours that colour-blind people can tell apart.

matplotlib, of the extra `cli`, is imported when a plot is drawn.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Okabe & Ito, Color Universal Design (2008), without their yellow, which is too light for a line.
BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK = COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
)  # fmt: skip
GRAY = "#7F7F7F"


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of jaxrnn's plots what is drawn within this context.

    Raises:
        ImportError: if matplotlib is not installed.

    >>> from jaxrnn import plotting
    >>> with plotting.style():
    ...     figure = plotting.new_figure(6, 4)
    ...     _ = figure.subplots().plot([1, 2, 4])
    """
    try:
        import matplotlib
        from cycler import cycler
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'jaxrnn[cli]'") from error
    rules: dict[Any, Any] = {
        "axes.prop_cycle": cycler(color=COLORS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "font.size": 10,
    }
    with matplotlib.rc_context(rules):
        yield


def new_figure(width: int | float, height: int | float) -> Any:
    """Return an empty `Figure` of matplotlib, of this width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def picture(path: str | Path, width: int | float, height: int | float) -> Iterator[Any]:
    """Yield an empty `Figure` in this style, and save it when the context ends.

    Args:
        path: the file to write, with the ending of a format that matplotlib knows.
        width: in inches.
        height: in inches.
    """
    with style():
        figure = new_figure(width, height)
        yield figure
        figure.savefig(path, dpi=110)
