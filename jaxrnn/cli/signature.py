"""The arguments of a command, as the signature and the docstrings of its function give them.

A positional argument of the function is a word of the command line and a keyword is an option. A
keyword whose default is a dataclass stands for one option for each field. The help is written in
the docstrings of the function and of the dataclasses: their sections are the groups of options, and
the section `Examples` has command lines. `Annotated[Path, "RUN"]` names what the help shows for a
value.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from jaxrnn.cli.flags import flag
from jaxrnn.network.checks import one_of

_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "FILE"}
_KINDS = {int: "a whole number", float: "a number"}


class Argument(NamedTuple):
    """One argument of a command.

    Attributes:
        name: its name in Python.
        kind: the type of one value: int, float, str, Path, bool or a Literal.
        many: whether it takes several values.
        metavar: what the help shows for a value.
        default: its value if it is not given; `inspect.Parameter.empty` if it must be given.
        is_word: whether it is a word of the command line, and not an option.
        owner: the argument of the function that has this field; "" for the argument itself.
        group: the heading of its group in the help.
        text: its description.
    """

    name: str
    kind: Any
    many: bool
    metavar: str
    default: Any
    is_word: bool
    owner: str
    group: str
    text: str

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of this option: its own, and one with `no` that turns it off."""
        return (flag(self.name), flag(f"no_{self.name}"))[: 1 + (self.kind is bool)]

    @property
    def is_required(self) -> bool:
        """Whether the command needs it."""
        return self.default is inspect.Parameter.empty

    @property
    def usage(self) -> str:
        """How it is written: `RUN`, `[FILE]`, `--steps INT`, `--lines`."""
        shown = f"{self.metavar} [{self.metavar} …]" if self.many else self.metavar
        if self.is_word:
            return shown if self.is_required else f"[{shown}]"
        if self.kind is bool:
            return ", ".join(self.flags if self.default else self.flags[:1])
        return f"{self.flags[0]} {shown}"

    def value(self, text: str) -> Any:
        """Return the value that is written as this text.

        Raises:
            ValueError: if it is not of this argument's kind.
        """
        name = self.metavar if self.is_word else self.flags[0]
        if get_origin(self.kind) is Literal:
            one_of(name, text, get_args(self.kind))
            return text
        try:
            return self.kind(text)
        except ValueError:
            raise ValueError(f"{name} must be {_KINDS[self.kind]}, got {text!r}") from None


class Command(NamedTuple):
    """One command.

    Attributes:
        name: its name on the command line.
        function: the function that it calls.
        description: its paragraphs; the first is the summary.
        arguments: its arguments, in the order of the help.
        examples: command lines.
    """

    name: str
    function: Callable[..., int]
    description: list[str]
    arguments: list[Argument]
    examples: list[str]

    @property
    def words(self) -> list[Argument]:
        """The arguments that are words of the command line."""
        return [argument for argument in self.arguments if argument.is_word]

    @property
    def options(self) -> dict[str, Argument]:
        """The options by their flags."""
        options = (argument for argument in self.arguments if not argument.is_word)
        return {name: option for option in options for name in option.flags}


def read_command(name: str, function: Callable[..., int]) -> Command:
    """Return the command that calls a function."""
    paragraphs, sections = _read_docstring(function)
    own, hints = _entries(sections.get("Args", "")), get_type_hints(function, include_extras=True)
    arguments = []
    for parameter in inspect.signature(function).parameters.values():
        if dataclasses.is_dataclass(parameter.default):
            arguments += _fields(parameter.name, type(parameter.default))
            continue
        is_word = parameter.kind is parameter.POSITIONAL_ONLY
        place = ("Arguments" if is_word else "Options", own.get(parameter.name, ""))
        arguments.append(
            _argument(
                parameter.name, hints[parameter.name], parameter.default, *place, is_word=is_word
            )
        )
    examples = textwrap.dedent(sections.get("Examples", "")).strip().splitlines()
    return Command(name, function, paragraphs, arguments, examples)


def _fields(owner: str, kind: Any) -> list[Argument]:
    """Return the fields of a dataclass as options, in the order of its docstring."""
    _, sections = _read_docstring(kind)
    places = {
        name: (group, text)
        for group, section in sections.items()
        for name, text in _entries(section).items()
    }
    hints = get_type_hints(kind, include_extras=True)
    names = sorted(hints, key=lambda name: [*places, *hints].index(name))
    return [
        _argument(
            name, hints[name], getattr(kind, name), *places.get(name, ("Options", "")), owner=owner
        )
        for name in names
    ]


def _argument(
    name: str,
    hint: Any,
    default: Any,
    group: str,
    text: str,
    *,
    is_word: bool = False,
    owner: str = "",
) -> Argument:
    """Return an argument whose type is the annotation's, apart from None."""
    metavar = None
    if get_origin(hint) is Annotated:
        hint, metavar = get_args(hint)
    if get_origin(hint) in (UnionType, Union):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    many = get_origin(hint) is tuple
    kind = get_args(hint)[0] if many else hint
    metavar = metavar or _METAVARS.get(kind, "NAME")
    return Argument(name, kind, many, metavar, default, is_word, owner, group, text)


def _read_docstring(documented: Any) -> tuple[list[str], dict[str, str]]:
    """Return the paragraphs before the first section, and the sections by their headings."""
    text = inspect.cleandoc(documented.__doc__ or "")
    description, *parts = re.split(r"^(\S.*):\n(?= )", text, flags=re.MULTILINE)
    paragraphs = [" ".join(part.split()) for part in description.split("\n\n") if part.strip()]
    bodies = (re.split(r"^(?=\S)", part, flags=re.MULTILINE)[0] for part in parts[1::2])
    return paragraphs, dict(zip(parts[::2], bodies, strict=True))


def _entries(section: str) -> dict[str, str]:
    """Return the entries `name: text` of a section, each text in one line."""
    _, *parts = re.split(r"^(\w+):(?=\s)", textwrap.dedent(section), flags=re.MULTILINE)
    texts = (" ".join(part.split()) for part in parts[1::2])
    return dict(zip(parts[::2], texts, strict=True))
