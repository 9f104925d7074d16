"""The help of the command: how it is called, its options in groups, and examples."""

import itertools
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from jaxrnn.cli.signature import Command

_NARROWEST, _WIDEST, _COLUMN = 40, 100, 24


def usage(command: Command) -> str:
    """Return how a command is called, in one line: `jaxrnn eval RUN FILE [options]`."""
    return " ".join(["jaxrnn", command.name, *(word.usage for word in command.words), "[options]"])


def help_of(command: Command) -> str:
    """Return the help of one command, for the width of the terminal."""
    width = _width()
    groups = itertools.groupby(command.arguments, lambda argument: argument.group)
    tables = [
        _table(group, [(one.usage, one.text) for one in arguments], min(_COLUMN, width // 3), width)
        for group, arguments in groups
    ]
    paragraphs = [_filled(paragraph, width) for paragraph in command.description]
    return _blocks(f"usage: {usage(command)}", *paragraphs, *tables, _examples(command.examples))


def overview(commands: Iterable[Command], about: str, examples: Sequence[str]) -> str:
    """Return the help of `jaxrnn` itself: one line for each command, for the terminal's width."""
    rows = [(command.name, "".join(command.description[:1])) for command in commands]
    column = max(len(name) for name, _ in rows) + 4
    return _blocks(
        "usage: jaxrnn COMMAND [options]",
        _filled(about, _width()),
        _table("Commands", rows, column, _width()),
        _examples(examples),
        _filled(
            "jaxrnn COMMAND --help shows the options of a command, and --version the versions.",
            _width(),
        ),
    )


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)


def _blocks(*blocks: str) -> str:
    return "\n\n".join(blocks) + "\n"


def _examples(examples: Iterable[str]) -> str:
    return "\n".join(["Examples:", *(f"  {example}" for example in examples)])


def _table(heading: str, rows: Iterable[tuple[str, str]], column: int, width: int) -> str:
    """Return rows of a name and a text that begins at a column, under a heading."""
    lines = [f"{heading}:"]
    for name, text in rows:
        first = f"  {name}  ".ljust(column)
        if len(first) > column:
            lines.append(first.rstrip())
            first = " " * column
        lines.append(_filled(text, width, first, " " * column))
    return "\n".join(lines)


def _filled(text: str, width: int, first: str = "", rest: str = "") -> str:
    """Return a text in lines: the first begins with `first`, the others with `rest`."""
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
    return "\n".join(lines or [first.rstrip()])
