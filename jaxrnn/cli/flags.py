"""The command line: which flags were given, and messages that name flags instead of arguments."""

import itertools
import re
import shlex
from collections.abc import Collection, Sequence


def given_options(arguments: Sequence[str]) -> set[str]:
    """Return the names of the options on a command line, as arguments in Python."""
    flags = (word.partition("=")[0] for word in arguments if word.startswith("--"))
    return {name[2:].replace("-", "_").removeprefix("no_") for name in flags}


def flag(name: str) -> str:
    """Return the flag of an argument: --learning-rate for learning_rate."""
    return f"--{name.replace('_', '-')}"


def with_flags(message: str, names: Collection[str]) -> str:
    """Replace the arguments that a message of the library names by the flags of the command.

    Args:
        message: the message.
        names: the names of the arguments that are flags of the command.

    >>> with_flags("steps must be at least 1, got 0", ["steps"])
    '--steps must be at least 1, got 0'
    >>> with_flags("give overwrite=True, or encoding='utf-16'", ["overwrite", "encoding"])
    'give --overwrite, or --encoding utf-16'
    >>> with_flags("lower `learning_rate` or `clip`", ["learning_rate", "clip"])
    'lower --learning-rate or --clip'
    """
    apart = r"(?<![\w./'\"=-])"  # not within a path, a quotation or another name
    any_name, long_name = "|".join(names), "|".join(name for name in names if "_" in name) or "(?!)"

    def with_value(match: re.Match[str]) -> str:
        name, value = match.groups()
        if value in ("True", "False"):
            return flag(name if value == "True" else f"no_{name}")
        return f"{flag(name)} {value.strip(chr(39))}"

    message = re.sub(rf"`({any_name})`", lambda m: flag(m[1]), message)
    message = re.sub(rf"{apart}({any_name})=('[^']*'|[^\s,;:]*[^\s,;:.])", with_value, message)
    message = re.sub(rf"^({any_name})(?= (?:must|and|is|was)\b)", lambda m: flag(m[1]), message)
    return re.sub(rf"{apart}({long_name})(?![\w./(=])", lambda m: flag(m[1]), message)


def hint_for_dash(arguments: Sequence[str], errors: str) -> str:
    """Return what to write instead if a value that begins with a dash was read as an option.

    Args:
        arguments: the command line.
        errors: the error message of the parser.
    """
    missing = re.search(r"Missing value for argument '([^']*)'", errors)
    unknown = re.search(r"Unrecognized options: (-[^-\s]\S*)", errors)
    if missing and missing[1].startswith("--"):
        for option, value in itertools.pairwise(arguments):
            if option.replace("_", "-") == missing[1] and value.startswith("-"):
                quoted = f"{missing[1]}={shlex.quote(value)}"
                return f"{missing[1]} has no value: if {value} is meant to be it, write {quoted}"
    elif missing or unknown:
        for value in arguments:
            if unknown[1] == value if unknown else re.match(r"-[^-]", value):
                return (
                    f"{value} is not an option: if it is meant to be a file or a word, write it "
                    f"last and after two dashes: -- {shlex.quote(value)}"
                )
    return ""
