"""What is stored about a run, as typed records: run.json, and the metadata of a checkpoint.

A record is a NamedTuple or a dataclass. It is stored as a JSON object with the names of its fields.
`to_json` writes it; `from_json` reads it, and checks every value against the type of its field.
"""

import dataclasses
import inspect
import sys
from contextlib import suppress
from itertools import repeat
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from jaxrnn.lm.options import Options, check_options
from jaxrnn.lm.vocabulary import Vocabulary

# The held-out loss of a model, or of each member of a population. None stands for a loss that is
# not finite, which JSON cannot represent.
HeldOut = float | None | list[float | None]


class TextRecord(NamedTuple):
    """Identifies the text of a run.

    Attributes:
        name: the name that messages use for the text.
        sha256: the SHA-256 of its bytes, in hexadecimal.
        characters: the number of characters; of bytes, for a vocabulary of bytes.
        file: the path of the file; None for a text in memory, and in a checkpoint.
        encoding: the encoding of the file; None in a checkpoint.
    """

    name: str
    sha256: str
    characters: int | None = None
    file: str | None = None
    encoding: str | None = None


class VocabularyRecord(NamedTuple):
    """Identifies the vocabulary of a run by its size and its SHA-256."""

    size: int
    sha256: str


class Description(NamedTuple):
    """The content of run.json.

    Attributes:
        text: the text, with its current path.
        vocabulary: the vocabulary; None if an earlier version made the run.
    """

    text: TextRecord
    vocabulary: VocabularyRecord | None = None


class Header(NamedTuple):
    """The metadata of a checkpoint.

    Attributes:
        step: the number of updates made.
        options: the options of the run.
        text: the text of the run, without its path.
        vocabulary: the vocabulary.
        history: (step, held-out loss or losses) of each evaluation.
        made_with: the versions and the hardware on which the last digits of results may depend.
        context: ids of the held-out text that are read before a sample, see `Model`; empty if an
            earlier version made the checkpoint.
    """

    step: int
    options: Options
    text: TextRecord
    vocabulary: Vocabulary
    history: tuple[tuple[int, HeldOut], ...]
    made_with: dict[str, str]
    context: tuple[int, ...] = ()


def read_description(value: Any) -> Description:
    """Return the content of run.json.

    Args:
        value: the JSON value, which an earlier version may have written.

    Raises:
        ValueError: as `from_json` does.
    """
    return from_json(Description, _without(value, "format", "options", "made with"))


def read_header(value: Any) -> Header:
    """Return the metadata of a checkpoint.

    Args:
        value: the JSON value, which an earlier version may have written.

    Raises:
        ValueError: as `from_json` does, or if the step, the history or the options are invalid.
    """
    if "made with" in value:
        value = value | {"made_with": value["made with"]}
    if isinstance(value.get("options"), dict):
        value = value | {"options": _with_rule_options(value["options"])}
    header = from_json(Header, _without(value, "format", "position", "made with"))
    if not all(map(is_step, (header.step, *(step for step, _ in header.history)))):
        raise ValueError("a step is negative or at least 2³¹")
    if len(header.history) > header.step:
        raise ValueError("its history has more evaluations than it has steps")
    if not all(0 <= id_ < header.vocabulary.size for id_ in header.context):
        raise ValueError("its context has an id that is not in its vocabulary")
    check_options(header.options)
    return header


def is_step(value: Any) -> bool:
    """Return whether a JSON value is a valid step number."""
    return isinstance(value, int) and 0 <= value < 2**31


def is_held_out(value: Any) -> bool:
    """Return whether a JSON value is a loss, None, or a list of both."""
    with suppress(ValueError):
        from_json(HeldOut, value)
        return True
    return False


def to_json(record: Any) -> Any:
    """Convert a record to a JSON object. In a NamedTuple, fields that are None are left out."""
    if hasattr(record, "_asdict"):
        return {name: to_json(v) for name, v in record._asdict().items() if v is not None}
    return dataclasses.asdict(record) if isinstance(record, Options | Vocabulary) else record


def from_json(type_: Any, value: Any, name: str = "") -> Any:
    """Convert a JSON value to a type.

    Args:
        type_: a record, a list, tuple, dict, Literal or union of types, or a simple type. An int
            may stand for a float, but a bool is not an int.
        value: the value.
        name: the name of the value in messages, such as "options.steps".

    Raises:
        ValueError: if the value has another type, or a field of a record is missing or unknown.
    """
    if type(value) is type_:  # first, since a file may hold millions of strings or numbers
        return value
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (Union, UnionType):
        if type(value) in arguments:
            return value
        for member in arguments:
            with suppress(ValueError):
                return from_json(member, value, name)
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin in (list, tuple):
        any_length = origin is list or arguments[-1] is ...
        if isinstance(value, list | tuple) and (any_length or len(value) == len(arguments)):
            types = repeat(arguments[0]) if any_length else arguments
            elements = enumerate(zip(value, types, strict=False))
            return origin(from_json(kind, each, f"{name}[{i}]") for i, (each, kind) in elements)
    elif origin is dict:
        if isinstance(value, dict):
            return {key: from_json(arguments[1], v, f"{name}.{key}") for key, v in value.items()}
    elif dataclasses.is_dataclass(type_) or hasattr(type_, "_fields"):
        return _record(type_, value, name)
    elif isinstance(value, bool):
        if type_ is bool:
            return value
    elif type_ is float and isinstance(value, int):
        if abs(value) <= sys.float_info.max:
            return value
    elif isinstance(value, type_):
        return value
    raise ValueError(f"{name} has the invalid value {value!r:.100}")


def _record(type_: Any, value: Any, name: str) -> Any:
    """Convert a JSON object to a record."""
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'it'} must be an object, got {value!r:.100}")
    types, before = get_type_hints(type_), f"{name}." if name else ""
    for key in value:
        if key not in types:
            raise ValueError(f"this version does not know {before}{key:.100}")
    for parameter in inspect.signature(type_).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in value:
            raise ValueError(f"{before}{parameter.name} is missing")
    return type_(**{key: from_json(types[key], v, f"{before}{key}") for key, v in value.items()})


def _without(value: Any, *names: str) -> Any:
    """Return a JSON object without the entries that this version does not need."""
    if not isinstance(value, dict):
        return value
    return {name: each for name, each in value.items() if name not in names}


def _with_rule_options(values: dict[str, Any]) -> dict[str, Any]:
    """Move the options of a rule into `algorithm`; earlier versions stored them separately."""
    rule_options = ("window", "n", "rank")
    given = [f"{name}={values[name]!r}" for name in rule_options if values.get(name) is not None]
    values = _without(values, *rule_options)
    if given:
        values["algorithm"] = f"{values.get('algorithm')}({', '.join(given)})"
    return values
