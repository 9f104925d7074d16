"""Text and token ids: characters, bytes or words to integers, and back.

A text may come whole or in pieces: a file larger than memory is read piece by piece, and its words
and sentences may go on from one to the next.
"""

import hashlib
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Integer

Level = Literal["char", "byte", "word"]
UNITS: dict[Level, str] = {"char": "character", "byte": "byte", "word": "word"}

LINE = "\n"  # starts and ends a line
BYTES = tuple(map(chr, range(256)))  # each stands for the byte of its code point
UNKNOWN, START, END = SPECIAL = ("<unk>", "<s>", "</s>")  # no text has one of these as its word


def _ranges(codes: Iterable[int]) -> str:
    """Return the part of a regular expression's character class that matches these code points."""
    runs: list[list[int]] = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)


# Apostrophes, hyphens, the Hebrew maqaf and gershayim, the Catalan dot and the Tibetan tsheg:
# between two letters they are a part of the word.
_WITHIN = "['’\u2010\u2011\u05be\u05f4·\u0f0b-]"
_ENDS = ".!?…।॥؟۔։።。！？｡"  # of a sentence, in the scripts that have such signs
_CLOSING = "\"'”’»)\\]」』）"


@cache
def token_pattern() -> re.Pattern[str]:
    """Return the regular expression that cuts a text into words.

    It matches a number, a word, a flag or a sign, where emoji joined by U+200D are one sign;
    nothing, where a sentence ends; and a line without anything on it. As in rule WB4 of Unicode
    Standard Annex 29, combining marks, joiners, other format characters and the skin tones of emoji
    belong to the character before them. The zero-width space does not: it separates words.
    """
    # The Hebrew geresh is written like an apostrophe after a letter, also at the end of a word.
    attached = _ranges(
        code
        for code in range(0x80, sys.maxunicode + 1)
        if (unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cf") and code != 0x200B)
        or 0x1F3FB <= code <= 0x1F3FF
        or code == 0x05F3
    )
    some = rf"(?![\0-\x7f])[{attached}]+"  # asks for the long class only where it can match
    any_ = rf"(?:{some})?"
    word = rf"\w+(?:{some}\w*)*"
    return re.compile(
        rf"{any_}(?:\d+(?:[.,٫٬]\d+)+{any_}|{word}(?:{_WITHIN}{any_}{word})*"
        rf"|[\U0001f1e6-\U0001f1ff]{{2}}{any_}"
        rf"|[^\w\s]{any_}(?:(?<=\u200d)[^\w\s]{any_})*)"
        rf"|{some}"
        rf"|(?<=[{_ENDS}])(?=\s)|(?<=[{_ENDS}][{_CLOSING}])(?=\s)"
        rf"|(?<=[{_ENDS}][{_CLOSING}]{{2}})(?=\s)|\n\s*\n"
    )


_NO_SPACE_BEFORE = set(".,;:!?…)]}%’”»›\u200b،؛؟۔।॥։።、。，！？；：）」』】》〉")
_NO_SPACE_AFTER = set("([{‘“«‹¿¡\u200b（「『【《〈")


@dataclass(frozen=True)
class Vocabulary:
    r"""The symbols of a text; a symbol's id is its place.

    At the level "char" symbols are a text's characters, sorted. At "byte" they are the 256 bytes of
    its UTF-8. At "word" they are an unknown word, a sentence's start and its end, and then words,
    numbers and signs, sorted; a combining mark or a joiner belongs to the character before it.

    >>> vocabulary = Vocabulary.from_text("vector")
    >>> vocabulary.symbols
    ('c', 'e', 'o', 'r', 't', 'v')
    >>> vocabulary.encode("vet")
    array([5, 1, 4], dtype=int32)
    >>> vocabulary.decode([5, 1, 4])
    'vet'
    >>> words = Vocabulary.from_text("The end. The very end.", level="word", size=6)
    >>> words.symbols
    ('<unk>', '<s>', '</s>', '.', 'The', 'end')
    >>> words.decode(words.encode("The good end."))
    'The <unk> end.\n'
    """

    symbols: tuple[str, ...]
    level: Level = "char"

    def __post_init__(self):
        if self.level not in get_args(Level):
            raise ValueError(f"level must be one of {', '.join(UNITS)}, got {self.level!r}")
        if not all(isinstance(symbol, str) and symbol for symbol in self.symbols):
            raise ValueError("a vocabulary's symbols must be strings that are not empty")
        if self.level == "byte" and self.symbols != BYTES:
            raise ValueError("a vocabulary of bytes has the 256 of them, in their order")
        special = SPECIAL if self.level == "word" else ()
        rest = self.symbols[len(special) :]
        if self.symbols[: len(special)] != special:
            raise ValueError(f"a vocabulary of words begins with {', '.join(SPECIAL)}")
        if not rest:
            raise ValueError("a vocabulary needs at least one symbol, but the text is empty")
        if self.level != "word" and max(map(len, rest)) > 1:
            raise ValueError("a vocabulary's symbols must be single characters")
        if list(rest) != sorted(set(rest) - set(special)):
            raise ValueError("a vocabulary's symbols must be sorted, each there once")

    @classmethod
    def from_text(
        cls, text: str | Iterable[str], level: Level = "char", size: int = 8000
    ) -> "Vocabulary":
        """Collect a text's symbols.

        Args:
            text: a text, or its pieces in order.
            level: what a symbol is.
            size: of words, how many to know at most, the three special ones among them: the most
                frequent, and of equally frequent ones those that come first in sorted order.
        """
        pieces = [text] if isinstance(text, str) else text
        if level == "byte":
            return cls(BYTES, level)
        if level == "word":
            if size <= len(SPECIAL):
                raise ValueError(
                    f"a vocabulary of words needs a size of at least {len(SPECIAL) + 1}, for "
                    f"{', '.join(SPECIAL)} and a word, got {size}"
                )
            counts = Counter(word for found in _words(pieces) for word in found)
            ranked = sorted(counts.keys() - set(SPECIAL), key=lambda word: (-counts[word], word))
            return cls((*SPECIAL, *sorted(ranked[: size - len(SPECIAL)])), level)
        seen = np.zeros(0x110000, bool)
        for piece in pieces:
            seen[_code_points(piece)] = True
        return cls(tuple(map(chr, np.flatnonzero(seen).tolist())), level)

    @property
    def size(self) -> int:
        """The number of symbols."""
        return len(self.symbols)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the level and the symbols, in hexadecimal."""
        return hashlib.sha256(json.dumps([self.level, self.symbols]).encode()).hexdigest()

    @property
    def unit(self) -> str:
        """What one symbol is: a character, a byte or a word."""
        return UNITS[self.level]

    @property
    def ends(self) -> tuple[int, int] | None:
        """The ids that start and end a line (the same one), or a sentence of words."""
        if self.level == "word":
            return SPECIAL.index(START), SPECIAL.index(END)
        return (self._ids[LINE], self._ids[LINE]) if LINE in self._ids else None

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: place for place, symbol in enumerate(self.symbols)}

    @cached_property
    def _places(self) -> np.ndarray:
        """The id of each code point, and -1 for what is no symbol."""
        places = np.full(0x110000, -1, np.int32)
        places[[ord(symbol) for symbol in self.symbols]] = np.arange(self.size)
        return places

    def encode(self, text: str) -> Int[np.ndarray, " N"]:
        """Turn a text into ids: one a character, a byte of its UTF-8, or a word.

        Words come sentence by sentence, each between its start and its end. A sentence ends with
        . ! ? or …, or at an empty line.

        Raises:
            ValueError: if a character is not in the vocabulary; says which and where.
        """
        if self.level == "byte":
            text = text.encode("utf-8", "surrogatepass").decode("latin-1")
        return np.concatenate([np.zeros(0, np.int32), *self.encode_pieces([text])])

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[Int[np.ndarray, " N"]]:
        """Turn a text's pieces into ids, piece by piece; bytes come as the characters of `BYTES`.

        Raises:
            ValueError: as `encode` does.
        """
        if self.level == "word":
            ids, unknown = self._ids, SPECIAL.index(UNKNOWN)
            for found in _words(pieces):
                yield np.array([ids.get(word, unknown) for word in found], np.int32)
            return
        before = 0
        for piece in pieces:
            ids = self._places[_code_points(piece)]
            if ids.size and ids.min() < 0:
                position = int(ids.argmin())
                unknown, known_ones = piece[position], "".join(self.symbols[:150])
                raise ValueError(
                    f"character {unknown!r} (U+{ord(unknown):04X}) at position "
                    f"{before + position} is not in "
                    f"the vocabulary; its {self.size} characters are {known_ones!r}"
                    + (" and more" if self.size > 150 else "")
                )
            before += len(piece)
            yield ids

    def decode(self, ids: Iterable[int] | Integer[np.ndarray, " N"] | Integer[Array, " N"]) -> str:
        """Turn ids into the text; of words, with usual spaces and a line for each sentence.

        Bytes that are no UTF-8 are shown as U+FFFD.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            raise ValueError(
                f"ids must lie in 0 … {self.size - 1}, got {min(ids)} … {max(ids)}: "
                f"they are of another vocabulary"
            )
        symbols = [self.symbols[i] for i in ids]
        if self.level == "byte":
            return bytes(ids).decode("utf-8", "replace")
        return _sentences(symbols) if self.level == "word" else "".join(symbols)

    def one_hot(
        self, ids: Integer[np.ndarray, "*batch"] | Integer[Array, "*batch"]
    ) -> Float[Array, "*batch V"]:
        """Turn ids into one-hot vectors: what the network is spared by reading rows of W_xh."""
        return jax.nn.one_hot(ids, self.size)


def _code_points(text: str) -> Integer[np.ndarray, " N"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _words(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Cut a text into words, with START and END around each sentence, piece by piece."""
    inside = False
    for piece in _whole_words(pieces):
        found = []
        for token in token_pattern().findall(piece):
            if not token or token.isspace():
                found += [END] * inside
                inside = False
                continue
            found += [token] if inside else [START, token]
            inside = True
        yield found
    yield [END] * inside


def _whole_words(pieces: Iterable[str]) -> Iterator[str]:
    """Move the pieces' ends to where a word begins: a word and the space after it stay together."""
    rest = ""
    for piece in pieces:
        rest += piece
        *before, last = rest.rsplit(None, 1) or [""]
        start = rest.rindex(last) if before else 0
        yield rest[:start]
        rest = rest[start:]
    yield rest


def _sentences(words: Iterable[str]) -> str:
    """Join words by spaces, except before and after the signs that are written without one."""
    text, close = "", True
    for word in words:
        seen = next((c for c in word if unicodedata.category(c) != "Cf"), word[0])
        if word == END:
            text += LINE
        elif word != START:
            text += word if close or seen in _NO_SPACE_BEFORE else " " + word
        close = word in (START, END) or seen in _NO_SPACE_AFTER
    return text
