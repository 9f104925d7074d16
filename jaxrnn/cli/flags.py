"""The command line: which flags were given, and messages that name flags instead of arguments."""

import re
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
