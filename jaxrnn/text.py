"""Text and token ids: characters to integers and back."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a text in sorted order; a symbol's id is its place.

    >>> vocabulary = Vocabulary.from_text("vector")
    >>> vocabulary.symbols
    ('c', 'e', 'o', 'r', 't', 'v')
    >>> vocabulary.encode("vet")
    array([5, 1, 4], dtype=int32)
    >>> vocabulary.decode([5, 1, 4])
    'vet'
    """

    symbols: tuple[str, ...]

    def __post_init__(self):
        if not self.symbols:
            raise ValueError("a vocabulary needs at least one symbol, but the text is empty")
        if not all(isinstance(symbol, str) and len(symbol) == 1 for symbol in self.symbols):
            raise ValueError("a vocabulary's symbols must be single characters")
        if list(self.symbols) != sorted(set(self.symbols)):
            raise ValueError("a vocabulary's symbols must be sorted, each there once")

    @classmethod
    def from_text(cls, text: str) -> "Vocabulary":
        """Collect a text's characters, in the order of their code points."""
        return cls(tuple(sorted(set(text))))

    @property
    def size(self) -> int:
        """The number of symbols."""
        return len(self.symbols)

    @cached_property
    def _code_points(self) -> np.ndarray:
        return np.array([ord(symbol) for symbol in self.symbols], np.uint32)

    def encode(self, text: str) -> Int[np.ndarray, " N"]:
        """Turn a text of N characters into N ids.

        Raises:
            ValueError: if a character is not in the vocabulary; says which and where.
        """
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = np.searchsorted(self._code_points, code_points).astype(np.int32)
        known = self._code_points[np.minimum(ids, self.size - 1)] == code_points
        if not known.all():
            position = int(np.argmin(known))
            unknown, known_ones = text[position], "".join(self.symbols[:150])
            raise ValueError(
                f"character {unknown!r} (U+{ord(unknown):04X}) at position {position} is not in "
                f"the vocabulary; its {self.size} characters are {known_ones!r}"
                + (" and more" if self.size > 150 else "")
            )
        return ids

    def decode(self, ids: Iterable[int] | Int[np.ndarray, " N"] | Int[Array, " N"]) -> str:
        """Turn ids into the text."""
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            raise ValueError(
                f"ids must lie in 0 … {self.size - 1}, got {min(ids)} … {max(ids)}: "
                f"they are of another vocabulary"
            )
        return "".join(self.symbols[i] for i in ids)

    def one_hot(
        self, ids: Int[np.ndarray, "*batch"] | Int[Array, "*batch"]
    ) -> Float[Array, "*batch V"]:
        """Turn ids into one-hot vectors: what the network is spared by reading rows of W_xh."""
        return jax.nn.one_hot(ids, self.size)
