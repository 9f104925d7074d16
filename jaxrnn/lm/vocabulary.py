"""The vocabulary: conversion of text to ids of characters, bytes or words, and back.

A text may be given whole or in pieces, for a file larger than memory. Words and sentences may
extend over several pieces.
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

LINE = "\n"  # the symbol that starts and ends a line
BYTES = tuple(map(chr, range(256)))  # a byte is represented by the character with its code point
# The symbols for an unknown word and for the start and end of a sentence. The pattern below never
# matches one of them as a word.
UNKNOWN, START, END = SPECIAL = ("<unk>", "<s>", "</s>")


def _ranges(codes: Iterable[int]) -> str:
    """Return the content of a regular expression's character class for these code points."""
    runs: list[list[int]] = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)


# Between two letters these characters are part of the word: apostrophes, hyphens, the Hebrew maqaf
# and gershayim, the Catalan dot and the Tibetan tsheg.
_WITHIN = "['’\u2010\u2011\u05be\u05f4·\u0f0b-]"
_ENDS = ".!?…।॥؟۔։።。！？｡"  # the signs that end a sentence, in many scripts
_CLOSING = "\"'”’»)\\]」』）"


@cache
def token_pattern() -> re.Pattern[str]:
    """Return the regular expression that splits a text into tokens.

    It matches a number, a word, a flag or a sign (emoji joined by U+200D are one sign). It also
    matches the empty string where a sentence ends, and an empty line. As in rule WB4 of Unicode
    Standard Annex 29, combining marks, joiners, other format characters and the skin tones of emoji
    belong to the character before them. The zero-width space does not: it separates words.
    """
    # The Hebrew geresh (U+05F3) follows a letter like an apostrophe, also at the end of a word.
    attached = _ranges(
        code
        for code in range(0x80, sys.maxunicode + 1)
        if (unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cf") and code != 0x200B)
        or 0x1F3FB <= code <= 0x1F3FF
        or code == 0x05F3
    )
    some = rf"(?![\0-\x7f])[{attached}]+"  # skips the long class at ASCII characters, for speed
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
_STRAIGHT = ('"', "'")  # marks that both open and close a quotation


@dataclass(frozen=True)
class Vocabulary:
    r"""The symbols of a text. The id of a symbol is its index in `symbols`.

    At the level "char" the symbols are the characters of the text, sorted. At "byte" they are the
    256 bytes. At "word" the first three are <unk> for an unknown word and <s> and </s> for the
    start and end of a sentence; words, numbers and signs follow, sorted. A combining mark or a
    joiner belongs to the character before it.

    Attributes:
        symbols: the symbols, V in number.
        level: what one symbol is.

    Raises:
        ValueError: if the symbols do not fit the level, or are not sorted and unique.

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
            raise ValueError("a vocabulary of bytes must have all 256 bytes in order")
        special = SPECIAL if self.level == "word" else ()
        rest = self.symbols[len(special) :]
        if self.symbols[: len(special)] != special:
            raise ValueError(f"a vocabulary of words must begin with {', '.join(SPECIAL)}")
        if not rest:
            raise ValueError("a vocabulary needs at least one symbol, but the text is empty")
        if self.level != "word" and max(map(len, rest)) > 1:
            raise ValueError("a vocabulary's symbols must be single characters")
        if list(rest) != sorted(set(rest) - set(special)):
            raise ValueError("a vocabulary's symbols must be sorted and unique")

    @classmethod
    def from_text(
        cls, text: str | Iterable[str], level: Level = "char", size: int = 8000
    ) -> "Vocabulary":
        """Return the vocabulary of a text.

        Args:
            text: a text, or its pieces in order.
            level: what one symbol is.
            size: the largest number of symbols at the level "word", including the three special
                ones. The most frequent words are kept; of equally frequent words, those that come
                first in sorted order.

        Raises:
            ValueError: if the text is empty, or `size` leaves no room for a word.
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
            counts = Counter(word for words in _words(pieces) for word in words)
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
        """The name of one symbol: character, byte or word."""
        return UNITS[self.level]

    @property
    def ends(self) -> tuple[int, int] | None:
        """The ids that start and end a line (they are the same), or a sentence at "word".

        None if the vocabulary has no line end.
        """
        if self.level == "word":
            return SPECIAL.index(START), SPECIAL.index(END)
        return (self._ids[LINE], self._ids[LINE]) if LINE in self._ids else None

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id of each symbol."""
        return {symbol: id_ for id_, symbol in enumerate(self.symbols)}

    @cached_property
    def _id_of_code_point(self) -> np.ndarray:
        """The id of each code point; -1 for code points that are not symbols."""
        ids = np.full(0x110000, -1, np.int32)
        ids[[ord(symbol) for symbol in self.symbols]] = np.arange(self.size)
        return ids

    def encode(self, text: str) -> Int[np.ndarray, " N"]:
        """Convert a text to ids: one for each character, byte of its UTF-8, or word.

        At the level "word" each sentence is enclosed by the ids of <s> and </s>. A sentence ends
        with a sign such as . ! ? or …, or at an empty line.

        Raises:
            ValueError: if a character is not in the vocabulary; the message has its position.
        """
        if self.level == "byte":
            text = text.encode("utf-8", "surrogatepass").decode("latin-1")
        return np.concatenate([np.zeros(0, np.int32), *self.encode_pieces([text])])

    def encode_pieces(
        self, pieces: Iterable[str], *, skip_unknown: bool = False
    ) -> Iterator[Int[np.ndarray, " N"]]:
        """Convert the pieces of a text to ids, piece by piece.

        Args:
            pieces: the pieces in order; at the level "byte" each byte is a character of `BYTES`.
            skip_unknown: whether characters that are not in the vocabulary are left out.

        Raises:
            ValueError: as `encode` does.
        """
        if self.level == "word":
            ids, unknown = self._ids, SPECIAL.index(UNKNOWN)
            for words in _words(pieces):
                yield np.array([ids.get(word, unknown) for word in words], np.int32)
            return
        offset = 0
        for piece in pieces:
            ids = self._id_of_code_point[_code_points(piece)]
            if skip_unknown:
                ids = ids[ids >= 0]
            if ids.size and ids.min() < 0:
                position = int(ids.argmin())
                unknown, known = piece[position], "".join(self.symbols[:150])
                raise ValueError(
                    f"character {unknown!r} (U+{ord(unknown):04X}) at position "
                    f"{offset + position} is not in "
                    f"the vocabulary; its {self.size} characters are {known!r}"
                    + (" and more" if self.size > 150 else "")
                )
            offset += len(piece)
            yield ids

    def decode(self, ids: Iterable[int] | Integer[np.ndarray, " N"] | Integer[Array, " N"]) -> str:
        """Convert ids to text.

        Words are joined with the usual spaces, and each sentence is on its own line. A straight
        quotation mark opens a quotation at the start of a sentence and closes it after the sign
        that ends one; elsewhere opening and closing marks alternate. Bytes that are not valid UTF-8
        are decoded as U+FFFD.

        Raises:
            ValueError: if an id is out of range.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            raise ValueError(
                f"ids must lie in 0 … {self.size - 1}, got {min(ids)} … {max(ids)}: "
                f"they belong to another vocabulary"
            )
        symbols = [self.symbols[i] for i in ids]
        if self.level == "byte":
            return bytes(ids).decode("utf-8", "replace")
        return _sentences(symbols) if self.level == "word" else "".join(symbols)

    def one_hot(
        self, ids: Integer[np.ndarray, "*batch"] | Integer[Array, "*batch"]
    ) -> Float[Array, "*batch V"]:
        """Convert ids to one-hot vectors; the network itself reads rows of W_xh by id instead."""
        return jax.nn.one_hot(ids, self.size)


def _code_points(text: str) -> Integer[np.ndarray, " N"]:
    """Return the code point of each character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _words(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Split a text into words, piece by piece, with START and END around each sentence."""
    in_sentence = False
    for piece in _whole_words(pieces):
        words = []
        for token in token_pattern().findall(piece):
            if not token or token.isspace():
                words += [END] * in_sentence
                in_sentence = False
                continue
            words += [token] if in_sentence else [START, token]
            in_sentence = True
        yield words
    yield [END] * in_sentence


def _whole_words(pieces: Iterable[str]) -> Iterator[str]:
    """Split a text so that each piece ends where a word begins.

    A word and the space after it are thus in the same piece.
    """
    rest = ""
    for piece in pieces:
        rest += piece
        *before, last = rest.rsplit(None, 1) or [""]
        start = rest.rindex(last) if before else 0
        yield rest[:start]
        rest = rest[start:]
    yield rest


def _sentences(words: Iterable[str]) -> str:
    """Join words with spaces, except before and after signs that are written without a space.

    The text of the first words is the beginning of the whole text. A sentence that starts before
    the end of another one, as a model may write it, is on its own line too.
    """
    text, no_space, quoting = "", True, False
    for word in words:
        # The first character that is not an invisible format character.
        first = next((c for c in word if unicodedata.category(c) != "Cf"), word[0])
        attached, attaches = first in _NO_SPACE_BEFORE, first in _NO_SPACE_AFTER
        if word in _STRAIGHT:
            inside = quoting and word == '"'
            attaches = text[-1:] in ("", LINE) or not (inside or text[-1] in _ENDS)
            attached, quoting = not attaches, attaches if word == '"' else quoting
        elif word == "-":
            attached = text.endswith("-")  # a dash of several hyphens
        if word == END or (word == START and text[-1:] not in ("", LINE)):
            text += LINE
        elif word != START:
            text += word if no_space or attached else " " + word
        no_space = word in (START, END) or attaches
    return text
