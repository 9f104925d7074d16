"""Reading texts of any size and encoding them as ids.

A text larger than memory is read piece by piece and encoded once. Its ids are cached in an array on
disk, whose name depends on the SHA-256 of the text and on the vocabulary. The array is read by
offset, so that only the ids of the current batch are in memory.
"""

import codecs
import errno
import hashlib
import io
import json
import os
import platform
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from jaxrnn import atomic
from jaxrnn.lm.vocabulary import LINE, Level, Vocabulary, token_pattern

PIECE = 2**22  # the number of bytes read at once
TOPICS = "the documentation topics of Python"
IN_MEMORY = 2**26  # the largest size in bytes of a text whose ids are kept in memory


class Text(NamedTuple):
    """A text that can be read repeatedly.

    Functions that take a text also take the path of a UTF-8 file, as a `str` or a `Path`. Use this
    class for any other text: `Text.from_string` for a text in memory, `Text.from_file` for a file
    in another encoding.

    Attributes:
        name: the name that messages use for the text.
        blocks: a function that returns an iterator over the bytes of the text, block by block.
        size: the size in bytes.
        encoding: the encoding of the bytes.
        file: the path of the file; None for a text in memory.
    """

    name: str
    blocks: Callable[[], Iterator[bytes]]
    size: int
    encoding: str
    file: Path | None

    @classmethod
    def from_string(cls, text: str, name: str = "a text in memory") -> "Text":
        """Return a text in memory.

        Args:
            text: the text itself.
            name: the name that messages use for it.

        >>> Text.from_string("to be or not to be").size
        18
        """
        content = text.encode()
        return cls(name, lambda: iter([content]), len(content), "utf-8", None)

    @classmethod
    def from_file(cls, file: str | Path, encoding: str = "utf-8") -> "Text":
        """Return the text of a file, which is read when the text is used.

        Args:
            file: the path of the file.
            encoding: the encoding of the file, a name that Python knows.

        Raises:
            ValueError: if the file does not exist or is empty, or the encoding is unknown.
        """
        return open_text(file, encoding)


@dataclass(frozen=True)
class OnDisk:
    """The ids from `start` to `stop` in a .npy file, which is memory-mapped for each access."""

    file: Path
    start: int = 0
    stop: int | None = None

    def __len__(self) -> int:
        return len(self._mapped())

    def __getitem__(self, index: Any) -> Integer[np.ndarray, "..."]:
        return np.array(self._mapped()[index])

    def _mapped(self) -> np.ndarray:
        try:
            return np.load(self.file, mmap_mode="r")[self.start : self.stop]
        except OSError as error:
            raise ValueError(
                f"the ids of the text cannot be read from {self.file}: {error.strerror}; "
                f"jaxrnn resume encodes the text again"
            ) from error


Ids = Integer[np.ndarray, " _"] | OnDisk


class Corpus(NamedTuple):
    """A text encoded as ids.

    Attributes:
        vocabulary: the vocabulary.
        ids: the id of each symbol; for lines or sentences including their start and end symbols.
        characters: the number of characters in the text; of bytes, for a vocabulary of bytes.
        sha256: the SHA-256 of the bytes of the text, in hexadecimal.
    """

    vocabulary: Vocabulary
    ids: Ids
    characters: int
    sha256: str


def cut(ids: Ids, position: int) -> tuple[Ids, Ids]:
    """Return the ids before a position and those from it on; ids on disk are not read."""
    if isinstance(ids, OnDisk):
        return replace(ids, stop=ids.start + position), replace(ids, start=ids.start + position)
    return ids[:position], ids[position:]


def open_text(file: str | Path | None, encoding: str = "utf-8") -> Text:
    """Return the text of a file; for None, the documentation topics that ship with Python.

    Raises:
        ValueError: if the file does not exist or is empty, or the encoding is unknown.
    """
    if file is None:
        return documentation_topics()
    file = Path(file)
    try:
        b" ".decode(encoding, "replace")
    except (LookupError, UnicodeError) as error:
        raise ValueError(f"{error}; try utf-8, utf-16, latin-1 or cp1252") from error

    def blocks():
        with _reading(file), file.open("rb") as stream:
            while block := stream.read(PIECE):
                yield block

    def without_blocking(name, flags):  # opening a pipe would wait for a writer
        return os.open(name, flags | os.O_NONBLOCK)

    with _reading(file), open(file, "rb", opener=without_blocking) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{file} is not a regular file: give one that can be read repeatedly")
        beginning = stream.read(4).decode(encoding, "replace").removeprefix("\ufeff")
        if not status.st_size or (status.st_size <= 4 and not beginning):
            raise ValueError(f"{file} is empty: give a file with text in it")
    return Text(str(file), blocks, status.st_size, encoding, file)


def as_text(text: Text | str | Path | None, encoding: str | None = None) -> Text:
    """Convert the path of a file to a `Text`, as `open_text` does; return a `Text` unchanged.

    Raises:
        ValueError: as `open_text` does, or if an encoding is given for a `Text`, which has its own.
    """
    if not isinstance(text, Text):
        return open_text(text, encoding or "utf-8")
    if encoding is not None:
        raise ValueError(
            f"encoding={encoding!r} is for the path of a file, but {text.name} has an encoding "
            f"already: leave it out"
        )
    return text


def documentation_topics() -> Text:
    """Return the documentation topics that ship with CPython: English, about 465,000 characters."""
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise ValueError(
            "this Python installation has no documentation topics: give a FILE"
        ) from error
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    return Text.from_string(text, f"{TOPICS} {platform.python_version()}")


def read(
    text: Text,
    *,
    level: Level = "char",
    size: int = 8000,
    lines: bool = False,
    vocabulary: Vocabulary | None = None,
    expected: str | None = None,
    cache: Path | None = None,
    skip_unknown: bool = False,
) -> Corpus:
    r"""Encode a text as ids.

    Args:
        text: the text.
        level: what one symbol is.
        size: the size of the vocabulary, for level "word".
        lines: whether the text is read line by line. Each line is then enclosed by "\n",
            independently of the line ends in the text (\n, \r\n or \r).
        vocabulary: the vocabulary of a trained model; default the vocabulary of the text.
        expected: the SHA-256 that the text must have; None for any.
        cache: the folder for ids of large texts; default jaxrnn in $XDG_CACHE_HOME or ~/.cache.
        skip_unknown: whether characters that are not in the vocabulary are left out.

    Raises:
        ValueError: if the SHA-256 is not the expected one, or the text is not in its encoding or
            has a character that is not in the vocabulary.
    """
    level = vocabulary.level if vocabulary else level
    digest = hashlib.sha256()
    for block in text.blocks():
        digest.update(block)
    if expected not in (None, digest.hexdigest()):
        raise ValueError(
            f"{text.name} is not the text that the run began with: its SHA-256 is "
            f"{digest.hexdigest()[:12]}…, and was {expected[:12]}…; restore the text and name it "
            f"with text=FILE, or start a new run"
        )
    framed = lines and level != "word"
    if vocabulary is None:
        whole = chain(pieces(text, level, lines=lines), [LINE] * framed)
        vocabulary = Vocabulary.from_text(whole, level, size)
    characters = 0

    def counting():
        nonlocal characters
        for piece in pieces(text, level, lines=lines):
            characters += len(piece)
            yield piece

    frame = [vocabulary.encode(LINE)] if framed else []
    parts = chain(frame, vocabulary.encode_pieces(counting(), skip_unknown=skip_unknown), frame)
    dtype = np.min_scalar_type(vocabulary.size - 1)
    if text.size <= IN_MEMORY:
        ids = np.concatenate([np.zeros(0, dtype), *(part.astype(dtype) for part in parts)])
        return Corpus(vocabulary, ids, characters, digest.hexdigest())

    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jaxrnn")
    identity = [digest.hexdigest(), text.encoding, lines, level, vocabulary.symbols]
    identity += ["without unknown characters"] * skip_unknown
    identity += [token_pattern().pattern] * (level == "word")  # the ids depend on it
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    ids, description = folder / f"{name}.npy", folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (ids.is_file() and description.is_file()):  # the description is written last
            _write(ids, parts, dtype)
            content = json.dumps({"text": text.name, "characters": characters}) + "\n"
            atomic.write(description, content)
        characters = json.loads(description.read_text())["characters"]
    except OSError as error:
        raise ValueError(
            f"cannot keep the ids of a large text in {folder}: {error.strerror}; "
            f"name another folder with XDG_CACHE_HOME"
        ) from error
    return Corpus(vocabulary, OnDisk(ids), characters, digest.hexdigest())


def check_known(
    text: Text,
    vocabulary: Vocabulary,
    *,
    lines: bool = False,
    remedy: str = "replace them, or train a new model",
) -> None:
    """Raise `ValueError` unless all the characters of a text are in a vocabulary.

    The message lists the missing characters, and then the remedy.
    """
    if vocabulary.level != "char":  # every byte is in the vocabulary; unknown words are <unk>
        return
    needed = Vocabulary.from_text(chain(pieces(text, lines=lines), [LINE] * lines))
    unknown = sorted(set(needed.symbols) - set(vocabulary.symbols))
    if not unknown:
        return
    shown = ", ".join(f"{symbol!r} (U+{ord(symbol):04X})" for symbol in unknown[:10])
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    raise ValueError(
        f"{text.name} has {len(unknown)} character{'s' * (len(unknown) > 1)} that the model does "
        f"not know: {shown}{more}; {remedy}"
    )


def pieces(text: Text, level: Level = "char", *, lines: bool = False) -> Iterator[str]:
    r"""Decode a text piece by piece, without a byte order mark.

    Args:
        text: the text.
        level: what one symbol is. For "byte" each byte is returned as a character of `BYTES`.
        lines: whether to convert all line ends to "\n"; otherwise they are not changed.

    Raises:
        ValueError: if the text is not in its encoding. The message has the byte, its position and
            the encoding that the text seems to have.
    """
    encoding = "latin-1" if level == "byte" else text.encoding
    decoder: Any = codecs.getincrementaldecoder(encoding)()
    if lines:
        decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
    before, first = 0, True
    for block in chain(text.blocks(), [None]):
        if before == 0 and level != "byte":
            _check_beginning(text.name, block or b"", encoding)
        try:
            piece = decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            position = before + len(block or b"") - len(error.object) + error.start
            problem = f"byte 0x{error.object[error.start]:02x} at position {position:,}"
            raise ValueError(
                f"{text.name} is not {encoding}: {problem}; {_remedy(text, encoding)}"
            ) from error
        before += len(block or b"")
        yield piece.removeprefix("\ufeff") if first else piece
        first = first and not piece


_MARKS = (  # each byte order mark with the encodings that it fits, the most common one first
    (codecs.BOM_UTF32_LE, ("utf-32", "utf-32-le")),
    (codecs.BOM_UTF32_BE, ("utf-32", "utf-32-be")),
    (codecs.BOM_UTF16_LE, ("utf-16", "utf-16-le")),
    (codecs.BOM_UTF16_BE, ("utf-16", "utf-16-be")),
    (codecs.BOM_UTF8, ("utf-8", "utf-8-sig")),
)
_UNMARKED = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")  # encodings with zero bytes


def _check_beginning(name: str, beginning: bytes, encoding: str) -> None:
    """Raise `ValueError` if the first bytes are those of another Unicode encoding.

    The check is needed because many encodings decode such bytes to wrong characters without an
    error.
    """
    codec = codecs.lookup(encoding).name
    for mark, encodings in _MARKS:
        if beginning.startswith(mark):
            if codec in encodings:
                return
            raise ValueError(
                f"{name} begins with the bytes {mark.hex(' ').upper()}, the byte order mark of "
                f"{encodings[0]}, so it is not {encoding}: name its encoding, "
                f"encoding={encodings[0]!r}"
            )
    unmarked = _unmarked(beginning)
    if unmarked and not (codec == unmarked or f"{codec}-le" == unmarked):
        raise ValueError(
            f"every other byte of {name} is zero, as in {unmarked}, so it is not {encoding}: "
            f"name its encoding, encoding={unmarked!r}"
        )


def _unmarked(beginning: bytes) -> str | None:
    """Return the encoding of a text without a byte order mark, recognised by its zero bytes."""
    zero = np.frombuffer(beginning[: min(4096, len(beginning) // 4 * 4)], np.uint8) == 0
    if len(zero) < 8:
        return None
    shares = zero.reshape(-1, 4).mean(0)  # the share of zeros at each position of four bytes
    patterns = ((0, 1, 1, 1), (1, 1, 1, 0), (0, 1, 0, 1), (1, 0, 1, 0))
    close = [bool(np.all(np.abs(shares - pattern) < 0.2)) for pattern in patterns]
    return _UNMARKED[close.index(True)] if any(close) else None


def _remedy(text: Text, encoding: str) -> str:
    """Return the advice for a text that is not in the given encoding."""
    block = next(text.blocks(), b"")
    if codecs.lookup(encoding).name != "utf-8":
        with suppress(UnicodeDecodeError):
            # An incremental decoder, since the block may end within a character.
            codecs.getincrementaldecoder("utf-8")().decode(block)
            return "it seems to be in UTF-8: encoding='utf-8'"
    if any(block.startswith(mark) for mark, _ in _MARKS):
        return "its byte order mark is right, so the file is damaged or truncated"
    return (
        "name its encoding; cp1252 (Western European) and latin-1 decode nearly "
        "any bytes, to wrong characters if the text is in another encoding"
    )


def _write(file: Path, parts: Iterator[Integer[np.ndarray, " M"]], dtype: np.dtype) -> None:
    """Write the parts to a .npy file as one array, which is never in memory as a whole."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    with atomic.written(file) as out:
        # The header is written last, when the length is known; its size does not depend on it.
        length, reserved = 0, out.write(bytes(128))
        for part in parts:
            length += len(part)
            out.write(part.astype(dtype).tobytes())
        out.seek(0)
        np.lib.format.write_array_header_1_0(out, header | {"shape": (length,)})
        if out.tell() != reserved:
            raise ValueError(f"the header takes {out.tell()} bytes, but {reserved} are reserved")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Convert an `OSError` from reading a file to a `ValueError` with a remedy."""
    try:
        yield
    except OSError as error:
        path = str(file)
        shown = path if len(path) <= 200 and "\n" not in path else f"{path[:40]!r}…"
        remedy = ""
        if isinstance(error, FileNotFoundError) or error.errno == errno.ENAMETOOLONG:
            remedy = (
                ""
                if shown == path and " " not in path
                else ("; if it is the text itself, give jaxrnn.lm.Text.from_string(text)")
            )
        raise ValueError(f"cannot read {shown}: {error.strerror}{remedy}") from error
