"""Reading a command line: the call that it asks for, or the mistake in it in one line."""

import dataclasses
import inspect
import shlex
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from jaxrnn.cli.help import usage
from jaxrnn.cli.signature import Argument, Command
from jaxrnn.network.checks import did_you_mean


def parse(command: Command, words: Sequence[str]) -> partial[int]:
    """Return the call of a command that a command line asks for.

    Args:
        command: the command.
        words: what follows its name on the command line.

    Raises:
        ValueError: if there is a mistake in the command line.
    """
    options, values, plain, left = command.options, {}, [], list(words)
    while left:
        word = left.pop(0)
        name, equals, text = word.partition("=")
        if word == "--":
            plain += left
            left = []
        elif not _is_flag(word):
            plain.append(word)
        elif name not in options:
            raise ValueError(_unknown(command, word))
        elif options[name].kind is bool:
            if equals:
                raise ValueError(f"{name} takes no value, got {text!r}: leave that out")
            values[options[name]] = not name.startswith("--no-")
        else:
            texts = [text] if equals else _take(left, many=options[name].many)
            if not (texts or options[name].many):
                raise ValueError(_without_value(options[name], left, options))
            values[options[name]] = _value(options[name], texts)
    return _call(command, values | _placed(command, plain))


def _is_flag(word: str) -> bool:
    """Return whether a word begins with a dash, and is neither a number nor the dash alone."""
    try:
        float(word)
    except ValueError:
        return word.startswith("-") and word != "-"
    return False


def _take(left: list[str], *, many: bool) -> list[str]:
    """Take the next value, or the next values, from the words that are left."""
    taken = []
    while left and not _is_flag(left[0]) and (many or not taken):
        taken.append(left.pop(0))
    return taken


def _value(argument: Argument, texts: list[str]) -> Any:
    values = tuple(map(argument.value, texts))
    return values if argument.many else values[0]


def _placed(command: Command, plain: list[str]) -> dict[Argument, Any]:
    """Return the arguments that are words of the command line with their values."""
    values, left = {}, list(plain)
    for word in command.words:
        texts = left if word.many else left[:1]
        left = left[len(texts) :]
        if texts or word.many:
            values[word] = _value(word, texts)
    if left:
        raise ValueError(f"{command.name} does not take the word {left[0]!r}: {usage(command)}")
    missing = [word.metavar for word in command.words if word.is_required and word not in values]
    if missing:
        raise ValueError(f"{command.name} needs {' and '.join(missing)}: {usage(command)}")
    return values


def _call(command: Command, values: dict[Argument, Any]) -> partial[int]:
    """Return the call of the function, with the fields of its dataclasses put together."""
    parameters = inspect.signature(command.function).parameters
    words = [values.get(word, word.default) for word in command.words]
    keywords: dict[str, Any] = {}
    for argument, value in values.items():
        if argument.owner:
            owner = keywords.get(argument.owner, parameters[argument.owner].default)
            keywords[argument.owner] = dataclasses.replace(owner, **{argument.name: value})
        elif not argument.is_word:
            keywords[argument.name] = value
    return partial(command.function, *words, **keywords)


def _unknown(command: Command, word: str) -> str:
    """Return the message for an option that the command does not have."""
    if not word.startswith("--"):
        return (
            f"{word} is not an option: if it is meant to be a file or a word, write it last and "
            f"after two dashes: -- {shlex.quote(word)}"
        )
    name = word.partition("=")[0]
    names = {flag.removeprefix("--") for flag in command.options}
    meant = did_you_mean(name.removeprefix("--"), names, "--")
    return f"{command.name} has no option {name}{meant}: see jaxrnn {command.name} --help"


def _without_value(option: Argument, left: list[str], known: Iterable[str]) -> str:
    """Return the message for an option without a value, before the words that are left."""
    flag = option.flags[0]
    if left and left[0].partition("=")[0] not in known:
        value = left[0]
        return (
            f"{flag} has no value: if {value} is meant to be it, write {flag}={shlex.quote(value)}"
        )
    return f"{flag} has no value: write {option.usage}"
