"""The command `jaxrnn explain`: every number of one forward and backward pass, with labels."""

import dataclasses
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from rich.cells import cell_len, set_cell_size

from jaxrnn import lm, plotting
from jaxrnn.analysis.walkthrough import Walkthrough, walkthrough
from jaxrnn.cli import console
from jaxrnn.cli.flags import flag, given_options
from jaxrnn.lm.build import INITIALIZERS
from jaxrnn.lm.options import Init, seed_key
from jaxrnn.lm.vocabulary import LINE, Vocabulary
from jaxrnn.network.batch import Batch
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params
from jaxrnn.verification.leaf import EXACT, relative_error

LONGEST = 20  # steps
MOST = 7  # units or symbols that are shown by default: they fit into 80 columns
LABEL, COLUMN = 10, 10  # widths in the terminal


def explain(
    word: Annotated[str, "WORD"],
    /,
    *,
    hidden_size: int = 3,
    init: Init = "normal",
    seed: int = 0,
    run: Annotated[Path | None, "RUN"] = None,
    all: bool = False,
    picture: Annotated[Path | None, "FILE"] = None,
) -> int:
    """Print every number of one backward pass.

    The forward pass is printed too. The network reads the characters of the word. At each step its
    target is the next character, and at the last step the end of the line. The loss is the sum over
    the steps, in float64. At the end the gradient is compared with that of jax.grad; the status is
    1 if they differ.

    Args:
        word: The word or text, of at most 20 characters (bytes, words).
        hidden_size: Number of hidden units (default: 3).
        init: Initial weights: "default", uniform, small-normal or normal, as in jaxrnn train
            (default: normal).
        seed: Random seed of the weights (default: 0).
        run: Use the trained model of this run, or of a checkpoint, instead of random weights.
        all: Show all units and symbols, instead of those of the word and 7 units.
        picture: Plot the states, the probabilities and their gradients to this file too.

    Examples:
        jaxrnn explain hello
        jaxrnn explain hello --hidden-size 2 --seed 1
        jaxrnn explain "the " --run jaxrnn-run --picture the.png
    """
    if not word:
        raise ValueError("the word is empty: give at least one character")
    with jax.enable_x64(True):
        start = ""
        if run is None:
            vocabulary = Vocabulary.from_text(word + LINE)
            size = vocabulary.size
            rnn = RNN(size, hidden_size, size, reduction="sum", **INITIALIZERS[init])
            params = rnn.init(seed_key(seed))
        else:
            if given := given_options(sys.argv[1:]) & {"hidden_size", "init", "seed"}:
                name = flag(min(given))
                raise ValueError(f"{name} is for random weights, and --run has its own: omit one")
            model = lm.load(run)
            start = LINE * model.options.lines
            console.remarks(model.remarks)
            vocabulary, rnn = model.vocabulary, dataclasses.replace(model.rnn, reduction="sum")
            params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, "float64"), model.params)
        ids = _encode(word, start, vocabulary, "the model" if run is None else str(run))
        batch = Batch(ids[None, :-1], ids[None, 1:])
        walk = walkthrough(rnn, params, batch)
        expected = jax.grad(lambda p: rnn.loss(p, rnn.initial_state(1), batch)[0])(params)
        walk, expected = jax.tree.map(np.asarray, (walk, expected))
        error = max(jax.tree.leaves(jax.tree.map(relative_error, walk.grads, expected)))
    shown = _select(walk, ids, vocabulary, everything=all)
    _print(rnn, walk, ids, shown)
    right = error <= EXACT
    result = f"equals jax.grad to {error:.0e}" if right else f"differs from jax.grad by {error:.0e}"
    print(f"\nThis gradient {result} (relative error)")
    if picture is not None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph")  # missing ones are drawn as boxes
                _plot(walk, ids, shown, picture)
        except OSError as problem:
            raise ValueError(f"cannot write {picture}: {problem.strerror}") from problem
        console.say("saved", str(picture))
    return 0 if right else 1


def _encode(word: str, start: str, vocabulary: Vocabulary, owner: str) -> np.ndarray:
    """Return the ids that the network reads, and the last target.

    Raises:
        ValueError: if the word is too long or too short, or has characters that are not in the
            vocabulary.
    """
    if vocabulary.level == "char":
        known = set(vocabulary.symbols)
        unknown = ", ".join(repr(c) for c in dict.fromkeys(word) if c not in known)
        if unknown:
            raise ValueError(f"{owner} does not know {unknown}: use characters of its text")
    ends = vocabulary.level != "word" and LINE in vocabulary.symbols
    ids = vocabulary.encode(start + word + LINE * ends)
    if len(ids) < 2:
        raise ValueError(f"{word!r} has one character and {owner} no end of the line: give two")
    if len(ids) - 1 > LONGEST:
        raise ValueError(
            f"the text has {len(ids) - 1} {vocabulary.unit}s and at most {LONGEST} are explained: "
            f"give a shorter one, or use jaxrnn.walkthrough in Python"
        )
    return ids


class Shown(NamedTuple):
    """The units and symbols that are shown.

    Attributes:
        units: their indices, in increasing order.
        symbols: their ids, in increasing order.
        names: the names of all symbols.
        remarks: which units and symbols are shown, if others are left out.
    """

    units: np.ndarray
    symbols: np.ndarray
    names: list[str]
    remarks: list[str]


def _select(
    walk: Walkthrough, ids: np.ndarray, vocabulary: Vocabulary, *, everything: bool
) -> Shown:
    """Choose the units with the largest gradient, and the symbols of the word or the likeliest."""
    hidden, size = walk.h.shape[1], vocabulary.size
    units, symbols, own = np.arange(hidden), np.arange(size), np.unique(ids)
    if not everything:
        units = np.sort(np.argsort(-np.abs(walk.dh_raw).sum(0), kind="stable")[:MOST])
        likeliest = np.argsort(-walk.p.sum(0), kind="stable")
        others = likeliest[~np.isin(likeliest, own)][: max(0, MOST - len(own))]
        symbols = np.sort(np.concatenate([own, others]))
    remarks = []
    if len(units) < hidden:
        remarks.append(f"{len(units)} of {hidden} units, with the largest dh_raw")
    if len(symbols) < size:
        remarks.append(f"{len(symbols)} of {size} {vocabulary.unit}s, read or likeliest")
    names = [_name(symbol, vocabulary) for symbol in vocabulary.symbols]
    return Shown(units, symbols, names, remarks)


def _name(symbol: str, vocabulary: Vocabulary) -> str:
    """Return the name of a symbol, which fits into a column."""
    if vocabulary.level == "byte" and not symbol.isascii():
        return f"0x{ord(symbol):02X}"
    if vocabulary.level == "word":
        width = COLUMN - 2
        return symbol if cell_len(symbol) <= width else set_cell_size(symbol, width - 1) + "…"
    strange = len(ascii(symbol)) > 6 and not symbol.isprintable()
    strange = strange or unicodedata.combining(symbol)
    return f"U+{ord(symbol):04X}" if strange else repr(symbol)


def number(value: float) -> str:
    """Return a number with four decimals, or in scientific notation if that would hide it.

    >>> number(-0.25), number(0.0), number(1.5e-5), number(-1234.5)
    ('-0.2500', '0', '1.5e-05', '-1.2e+03')
    """
    if value == 0:
        return "0"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 99.99995 else f"{value:.1e}"


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Any]]) -> None:
    """Print rows of numbers with labels; columns that do not fit are continued below."""

    def right(text):
        return " " * (COLUMN - cell_len(text)) + text

    def left(text):
        return set_cell_size(f"  {text}", LABEL)

    fitting = max(1, (console.stdout.width - LABEL) // COLUMN)
    for first in range(0, len(columns), fitting):
        part = slice(first, first + fitting)
        print(left(title) + "".join(map(right, columns[part])))
        for label, values in rows:
            print(left(label) + "".join(right(number(value)) for value in values[part]))


def _print(rnn: RNN, walk: Walkthrough, ids: np.ndarray, shown: Shown) -> None:
    """Print the quantities of a walkthrough, with the equations."""
    units, symbols = shown.units, shown.symbols
    unit_names = [f"unit {unit}" for unit in units]
    names = [shown.names[symbol] for symbol in symbols]

    def weights(params: Params, d: str = ""):
        (cell,), readout = params
        by_symbol = zip(names, cell.W_xh[symbols][:, units], strict=True)
        by_unit = zip(unit_names, cell.W_hh[units][:, units], strict=True)
        to_symbols = zip(unit_names, readout.W_hy[units][:, symbols], strict=True)
        b_h = [] if cell.b_h is None else [(f"{d}b_h", cell.b_h[units])]
        b_y = [] if readout.b_y is None else [(f"{d}b_y", readout.b_y[symbols])]
        _table(f"{d}W_xh", unit_names, [*by_symbol])
        _table(f"{d}W_hh", unit_names, [*by_unit, *b_h])
        _table(f"{d}W_hy", names, [*to_symbols, *b_y])

    def step(t: int, symbol_rows: Sequence[str], unit_rows: Sequence[str], *, forward: bool):
        read, answer = shown.names[ids[t]], shown.names[ids[t + 1]]
        print(f"step {t}: reads {read}, should answer {answer}")
        tables = [
            (unit_names, [(slope if row == "gain" else row, getattr(walk, row)[t][units])
                          for row in unit_rows]),
            (names, [(row, getattr(walk, row)[t][symbols]) for row in symbol_rows]),
        ]  # fmt: skip
        for columns, rows in tables if forward else tables[::-1]:
            _table("", columns, rows)

    vanilla = rnn.leak == 1
    slope = "1 - h²" if vanilla and rnn.activation == "tanh" else "gain"
    h = f"{rnn.activation}(a)"
    if not vanilla:
        h = f"{1 - rnn.leak:g} h_prev + {rnn.leak:g} {h}"
    if shown.remarks:
        print("shown      ", "\n            ".join((*shown.remarks, "--all shows all")), end="\n\n")
    print("parameters  (a row for each input, a column for each output)")
    weights(walk.params)
    print("\nforward     a = x W_xh + h_prev W_hh + b_h")
    print(f"            h = {h}")
    print("            y = h W_hy + b_y   p = softmax(y)")
    print("            loss = -ln p[answer]")
    for t in range(len(walk.x)):
        step(t, ("y", "p"), ("h",), forward=True)
        print(f"  loss    {number(float(walk.loss_t[t])):>{COLUMN}}")
    print(f"loss      {number(float(walk.loss)):>{COLUMN}}   the sum over the steps")
    print("\nbackward    dy = p - onehot(answer)")
    print("            dh = dy W_hyᵀ + dh_next")
    print(f"            dh_raw = {'(1 - h²)' if slope != 'gain' else 'gain'} dh")
    through = "" if vanilla else f" + {1 - rnn.leak:g} dh"
    print(f"            dh_next = dh_raw W_hhᵀ{through}, for step t - 1")
    for t in reversed(range(len(walk.x))):
        step(t, ("dy",), ("dh_next", "dh", "gain", "dh_raw"), forward=False)
    print("before step 0:")
    _table("", unit_names, [("dh_0", walk.dh_0[units])])
    print("\ngradients   dW_xh = Σ xᵀ dh_raw   dW_hh = Σ h_prevᵀ dh_raw")
    print("            dW_hy = Σ hᵀ dy   db_h = Σ dh_raw   db_y = Σ dy")
    weights(walk.grads, "d")


def _plot(walk: Walkthrough, ids: np.ndarray, shown: Shown, path: Path) -> None:
    """Plot h, p, dh and the slopes over the steps, to a picture file."""
    unit_names = [f"unit {unit}" for unit in shown.units]
    names = [shown.names[symbol] for symbol in shown.symbols]
    steps = [shown.names[read] for read in ids[:-1]]
    panels: list[tuple[str, Any, list[str], bool]] = [
        ("States h", walk.h[:, shown.units], unit_names, True),
        ("Probabilities p, answer framed", walk.p[:, shown.symbols], names, False),
        ("Gradient of the states dh", walk.dh[:, shown.units], unit_names, True),
        ("Slopes of the activation", walk.gain[:, shown.units], unit_names, False),
    ]
    height = min(2.4 + 0.25 * (len(unit_names) + len(names)), 30)
    with plotting.picture(path, max(8.0, 3 + 0.8 * len(steps)), height) as figure:
        for axes, (title, values, rows, signed) in zip(
            figure.subplots(2, 2).flat, panels, strict=True
        ):
            _heatmap(figure, axes, values, signed=signed)
            axes.set(title=title, xlabel="reads, from the first step to the last")
            axes.set_xticks(range(len(steps)), steps)
            axes.set_yticks(range(len(rows)), rows)
            if rows is names:
                for t, answer in enumerate(np.searchsorted(shown.symbols, ids[1:])):
                    axes.add_patch(_frame(t, answer))


def _heatmap(figure: Any, axes: Any, values: np.ndarray, *, signed: bool) -> None:
    """Draw a matrix (T, N) with one column for each step; 0 is white, also if it is signed."""
    largest = max(float(np.abs(values).max()), 1e-300)
    image = axes.imshow(
        values.T,
        aspect="auto",
        cmap="PuOr" if signed else "Blues",
        vmin=-largest if signed else 0,
        vmax=largest if signed else 1,
    )
    figure.colorbar(image, ax=axes)


def _frame(t: int, row: int) -> Any:
    """Return a frame around one cell of a heatmap."""
    from matplotlib.patches import Rectangle

    return Rectangle((t - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=plotting.ORANGE, linewidth=2)
