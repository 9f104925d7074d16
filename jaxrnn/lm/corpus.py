"""Texts of any size to ids: a text larger than memory is read piece by piece, and encoded once.

What is encoded from a large text lies in a cache, an array named after the SHA-256 of the text and
of the vocabulary, and is read by offset: a part of it is in memory only while a batch is made.
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

from jaxrnn.lm.store import atomic as files
from jaxrnn.lm.vocabulary import LINE, Level, Vocabulary, token_pattern

PIECE = 2**22  # bytes read at once
TOPICS = "the documentation topics of Python"
IN_MEMORY = 2**26  # bytes of a text up to which its ids are kept in memory


class Text(NamedTuple):
    """A text that can be read again and again.

    Where a text is asked for, a `str` or a `Path` is the path of its file, in UTF-8. This class is
    for other texts: `Text.from_string` for one in memory, `Text.from_file` for another encoding.

    Attributes:
        name: what people call it.
        blocks: gives its bytes, block by block.
        size: in bytes.
        encoding: of the bytes.
        file: where it lies; None for one in memory.
    """

    name: str
    blocks: Callable[[], Iterator[bytes]]
    size: int
    encoding: str
    file: Path | None

    @classmethod
    def from_string(cls, text: str, name: str = "a text in memory") -> "Text":
        """Return a text that is in memory.

        >>> Text.from_string("to be or not to be").size
        18
        """
        content = text.encode()
        return cls(name, lambda: iter([content]), len(content), "utf-8", None)

    @classmethod
    def from_file(cls, file: str | Path, encoding: str = "utf-8") -> "Text":
        """Open a text file.

        Raises:
            ValueError: if there is no such file, it is empty, or the encoding is not known.
        """
        return open_text(file, encoding)


@dataclass(frozen=True)
class OnDisk:
    """Ids in a file of NumPy's, from `start` to `stop`: mapped into memory while they are read."""

    file: Path
    start: int = 0
    stop: int | None = None

    def __len__(self) -> int:
        return len(self._mapped())

    def __getitem__(self, places: Any) -> Integer[np.ndarray, "..."]:
        return np.array(self._mapped()[places])

    def _mapped(self) -> np.ndarray:
        try:
            return np.load(self.file, mmap_mode="r")[self.start : self.stop]
        except OSError as error:
            raise ValueError(
                f"the ids of the text cannot be read from {self.file}: {error.strerror}; "
                f"jaxrnn resume makes them again"
            ) from error


Ids = Integer[np.ndarray, " _"] | OnDisk


class Corpus(NamedTuple):
    """A text as ids.

    Attributes:
        vocabulary: its symbols.
        ids: one a symbol; of whole lines, with what starts and ends them.
        characters: how many the text has; bytes, for a vocabulary of bytes.
        sha256: of the text's bytes, in hexadecimal.
    """

    vocabulary: Vocabulary
    ids: Ids
    characters: int
    sha256: str


def cut(ids: Ids, place: int) -> tuple[Ids, Ids]:
    """Cut ids in two, without reading them if they are on disk."""
    if isinstance(ids, OnDisk):
        return replace(ids, stop=ids.start + place), replace(ids, start=ids.start + place)
    return ids[:place], ids[place:]


def open_text(file: str | Path | None, encoding: str = "utf-8") -> Text:
    """Open a text file; without one, the documentation topics that ship with Python.

    Raises:
        ValueError: if there is no such file, it is empty, or the encoding is not known.
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

    def at_once(name, flags):  # a pipe would keep us waiting for a writer
        return os.open(name, flags | os.O_NONBLOCK)

    with _reading(file), open(file, "rb", opener=at_once) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{file} is no file that can be read again: give a regular file")
        begins = stream.read(4).decode(encoding, "replace").removeprefix("\ufeff")
        if not status.st_size or (status.st_size <= 4 and not begins):
            raise ValueError(f"{file} is empty: give a file with text in it")
    return Text(str(file), blocks, status.st_size, encoding, file)


def as_text(text: Text | str | Path | None, encoding: str | None = None) -> Text:
    """Return a text; a `str` or a `Path` is the path of its file, as in `open_text`.

    Raises:
        ValueError: as `open_text` does, or if an encoding is given for a `Text`, which has its own.
    """
    if not isinstance(text, Text):
        return open_text(text, encoding or "utf-8")
    if encoding is not None:
        raise ValueError(
            f"encoding={encoding!r} is for the path of a file, and {text.name} has its own: "
            f"leave it out"
        )
    return text


def documentation_topics() -> Text:
    """Return the documentation topics that ship with CPython: English, about 465,000 characters."""
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise ValueError(
            "this Python comes without its documentation topics: give a FILE"
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
) -> Corpus:
    r"""Encode a text.

    Args:
        text: the text.
        level: what a symbol is.
        size: of a vocabulary of words.
        lines: whether it is read line by line: then each line is between two "\n", whatever ended
            it (\n, \r\n or \r).
        vocabulary: that of a trained model, instead of the text's own.
        expected: the SHA-256 that the text must have.
        cache: the folder for ids of large texts; default jaxrnn in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        ValueError: if the text is not the expected one, not in its encoding, or has a symbol that
            is not in the vocabulary.
    """
    level = vocabulary.level if vocabulary else level
    digest = hashlib.sha256()
    for block in text.blocks():
        digest.update(block)
    if expected not in (None, digest.hexdigest()):
        raise ValueError(
            f"{text.name} is not the text that the run began with: its SHA-256 is "
            f"{digest.hexdigest()[:12]}…, and was {expected[:12]}…; restore it and name it with "
            f"--text FILE, or train anew"
        )
    framed = lines and level != "word"
    if vocabulary is None:
        whole = chain(pieces(text, level, lines=lines), [LINE] * framed)
        vocabulary = Vocabulary.from_text(whole, level, size)
    counted = 0

    def counting():
        nonlocal counted
        for piece in pieces(text, level, lines=lines):
            counted += len(piece)
            yield piece

    frame = [vocabulary.encode(LINE)] if framed else []
    parts = chain(frame, vocabulary.encode_pieces(counting()), frame)
    dtype = np.min_scalar_type(vocabulary.size - 1)
    if text.size <= IN_MEMORY:
        ids = np.concatenate([np.zeros(0, dtype), *(part.astype(dtype) for part in parts)])
        return Corpus(vocabulary, ids, counted, digest.hexdigest())

    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jaxrnn")
    identity = [digest.hexdigest(), text.encoding, lines, level, vocabulary.symbols]
    identity += [token_pattern().pattern] * (level == "word")  # how it is cut into words
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    ids, facts = folder / f"{name}.npy", folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (ids.is_file() and facts.is_file()):  # the facts are written last
            _write(ids, parts, dtype)
            files.write(facts, json.dumps({"text": text.name, "characters": counted}) + "\n")
        counted = json.loads(facts.read_text())["characters"]
    except OSError as error:
        raise ValueError(
            f"cannot keep the ids of a large text in {folder}: {error.strerror}; "
            f"name another folder with XDG_CACHE_HOME"
        ) from error
    return Corpus(vocabulary, OnDisk(ids), counted, digest.hexdigest())


def check_known(text: Text, vocabulary: Vocabulary, *, lines: bool = False) -> None:
    """Raise `ValueError` with all the characters of a text that are not in a vocabulary."""
    if vocabulary.level != "char":  # bytes are all known, and other words are <unk>
        return
    own = Vocabulary.from_text(chain(pieces(text, lines=lines), [LINE] * lines))
    unknown = sorted(set(own.symbols) - set(vocabulary.symbols))
    if not unknown:
        return
    shown = ", ".join(f"{symbol!r} (U+{ord(symbol):04X})" for symbol in unknown[:10])
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    raise ValueError(
        f"{text.name} has {len(unknown)} character{'s' * (len(unknown) > 1)} that the model does "
        f"not know: {shown}{more}; "
        f"replace them, or train a new model"
    )


def pieces(text: Text, level: Level = "char", *, lines: bool = False) -> Iterator[str]:
    r"""Decode a text piece by piece, its line ends as they are; or as lines, which all end in "\n".

    Bytes come as the characters of `BYTES`. A byte order mark is no character.

    Raises:
        ValueError: if the text is not in its encoding, with the byte, its position and the encoding
            that the text seems to have.
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
            wrong = f"byte 0x{error.object[error.start]:02x} at position {position:,}"
            raise ValueError(
                f"{text.name} is not {encoding}: {wrong}; {_remedy(text, encoding)}"
            ) from error
        before += len(block or b"")
        yield piece.removeprefix("\ufeff") if first else piece
        first = first and not piece


_MARKS = (  # what a text may begin with, and the encodings that read it rightly, the usual first
    (codecs.BOM_UTF32_LE, ("utf-32", "utf-32-le")),
    (codecs.BOM_UTF32_BE, ("utf-32", "utf-32-be")),
    (codecs.BOM_UTF16_LE, ("utf-16", "utf-16-le")),
    (codecs.BOM_UTF16_BE, ("utf-16", "utf-16-be")),
    (codecs.BOM_UTF8, ("utf-8", "utf-8-sig")),
)
_UNMARKED = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")  # which have bytes of zero


def _check_beginning(name: str, beginning: bytes, encoding: str) -> None:
    """Raise `ValueError` if the first bytes are those of another Unicode encoding.

    Many encodings decode them without an error, to wrong characters.
    """
    given = codecs.lookup(encoding).name
    for mark, fitting in _MARKS:
        if beginning.startswith(mark):
            if given in fitting:
                return
            raise ValueError(
                f"{name} begins with the bytes {mark.hex(' ').upper()}, the byte order mark of "
                f"{fitting[0]}, and is not {encoding}: name its encoding, --encoding {fitting[0]}"
            )
    unmarked = _unmarked(beginning)
    if unmarked and not (given == unmarked or f"{given}-le" == unmarked):
        raise ValueError(
            f"every other byte of {name} is zero, as in {unmarked}, and it is not {encoding}: "
            f"name its encoding, --encoding {unmarked}"
        )


def _unmarked(beginning: bytes) -> str | None:
    """Return the encoding whose pattern of zero bytes a text without a byte order mark has."""
    zero = np.frombuffer(beginning[: min(4096, len(beginning) // 4 * 4)], np.uint8) == 0
    if len(zero) < 8:
        return None
    shares = zero.reshape(-1, 4).mean(0)  # by the place in four bytes
    patterns = ((0, 1, 1, 1), (1, 1, 1, 0), (0, 1, 0, 1), (1, 0, 1, 0))
    close = [bool(np.all(np.abs(shares - pattern) < 0.2)) for pattern in patterns]
    return _UNMARKED[close.index(True)] if any(close) else None


def _remedy(text: Text, encoding: str) -> str:
    """Say which encoding a text may have that is not in the one it was said to be in."""
    block = next(text.blocks(), b"")
    if codecs.lookup(encoding).name != "utf-8":
        with suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder("utf-8")().decode(block)  # may be cut within a character
            return "it seems to be in UTF-8: --encoding utf-8"
    if any(block.startswith(mark) for mark, _ in _MARKS):
        return "its byte order mark is right, so the file is damaged or cut off"
    return (
        "name its encoding with --encoding; cp1252 (Western European) and latin-1 decode nearly "
        "any bytes, to wrong characters if the text is in another one"
    )


def _write(file: Path, parts: Iterator[Integer[np.ndarray, " M"]], dtype: np.dtype) -> None:
    """Write parts as one array of NumPy's, never all of it in memory."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    with files.written(file) as out:
        length, room = 0, out.write(bytes(128))  # a header's size, whatever the length
        for part in parts:
            length += len(part)
            out.write(part.astype(dtype).tobytes())
        out.seek(0)
        np.lib.format.write_array_header_1_0(out, header | {"shape": (length,)})
        if out.tell() != room:
            raise ValueError(f"the header takes {out.tell()} bytes, and has room for {room}")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = str(file)
        told = path if len(path) <= 200 and "\n" not in path else f"{path[:40]!r}…"
        remedy = ""
        if isinstance(error, FileNotFoundError) or error.errno == errno.ENAMETOOLONG:
            remedy = (
                ""
                if told == path and " " not in path
                else ("; if it is the text itself, give jaxrnn.lm.Text.from_string(text)")
            )
        raise ValueError(f"cannot read {told}: {error.strerror}{remedy}") from error
