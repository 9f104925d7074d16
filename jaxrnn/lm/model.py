"""A trained model, and what it is for: writing, going on most likely, and scoring a text."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.lm import batches as data
from jaxrnn.lm import corpus
from jaxrnn.lm.corpus import Corpus, Text
from jaxrnn.lm.options import Options, length_of, seed_key
from jaxrnn.lm.sampling import beam_search
from jaxrnn.lm.sampling import stream as draw
from jaxrnn.lm.scoring import mean_loss, score
from jaxrnn.lm.vocabulary import LINE, SPECIAL, UNKNOWN, Vocabulary
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params

_MOST_BEAMS = 10_000
_LONG = 512  # steps of a text that are scored at once, in one row


class Model(NamedTuple):
    """A model as a checkpoint holds it.

    Attributes:
        rnn: the network.
        vocabulary: its symbols.
        params: its parameters.
        options: how it was trained.
        step: after how many updates.
        held_out: its held-out loss in nats a symbol, None if it was not evaluated there.
        remarks: about damaged checkpoints that were passed over.
    """

    rnn: RNN
    vocabulary: Vocabulary
    params: Params
    options: Options
    step: int
    held_out: float | None
    remarks: tuple[str, ...] = ()


class Score(NamedTuple):
    """How well a model foretells a text.

    Attributes:
        nats: the mean loss a symbol.
        symbols: how many were foretold, ends of lines and sentences among them.
        characters: how many the text has (bytes, for a model of bytes).
        unknown: how many of its words are none that the model knows.
    """

    nats: float
    symbols: int
    characters: int
    unknown: int


def units(nats: float, vocabulary: Vocabulary) -> str:
    """Say a loss in the field's terms: bits of a character or byte, perplexity of a word."""
    if vocabulary.level == "word":
        return f"perplexity {np.exp(nats):.4g}"
    return f"{nats / np.log(2):.4f} bits per {vocabulary.unit}"


def stream(
    model: Model,
    *,
    prime: str | None = None,
    length: int = 500,
    count: int = 1,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    seed: int = 0,
) -> Iterator[list[str]]:
    """Write texts, and give what is new in each of them as it is made.

    Args:
        model: the model.
        prime: what each text begins with; the start of a line or sentence if not given.
        length: symbols to write; a model of lines stops at its line's end before that.
        count: how many texts.
        temperature: as in `jaxrnn.lm.sample`.
        top_k: as there.
        top_p: as there.
        stop: a text at which each ends, which is not shown.
        seed: of the draws.

    Raises:
        ValueError: for a character that the model does not know, or an argument out of its range.
    """
    for name, value in {"count": count, "length": length}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if stop == "":
        raise ValueError("stop must be a text of at least one character")
    start, end = _start(model, prime), _end(model)
    drawn = draw(
        model.rnn,
        model.params,
        np.tile(start, (count, 1)),
        key=seed_key(seed),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        end=end,
        piece=max(16, length // 50),  # each is decoded with all before it
    )

    def texts():
        rows = [start.tolist() for _ in range(count)]
        before = len(_shown(model, prime, rows[0])[0])  # where to look for the stop
        shown, over, room = [""] * count, [False] * count, len(start) + length
        while not all(over):
            piece = next(drawn, None)
            new = []
            for b in range(count):
                rows[b] = (rows[b] + ([] if piece is None else piece[b].tolist()))[:room]
                last = piece is None or len(rows[b]) == room
                text, ended = _shown(model, prime, rows[b], stop, before, last=last)
                new.append("" if over[b] else text[len(shown[b]) :])
                shown[b] = shown[b] if over[b] else text
                over[b] = over[b] or ended or last
            yield new

    return texts()


def write(model: Model, **how: Any) -> list[str]:
    """Write texts, as `stream` does, and return them whole."""
    return ["".join(parts) for parts in zip(*stream(model, **how), strict=True)]


def continuation(
    model: Model, prime: str | None = None, length: int = 50, beams: int = 8
) -> tuple[str, float]:
    """Find the likeliest continuation by beam search: the whole text, and its log-probability."""
    if not 1 <= beams <= _MOST_BEAMS:
        raise ValueError(f"beams must lie in 1 … {_MOST_BEAMS:,}, got {beams}")
    start = _start(model, prime)
    ids, nats = beam_search(model.rnn, model.params, start, length, beams=beams, end=_end(model))
    return _shown(model, prime, [*start.tolist(), *np.asarray(ids).tolist()])[0], float(nats)


def evaluate(model: Model, text: Text | str | Path) -> Iterator[tuple[float, Score]]:
    """Score a whole text, its state carried from its first symbol to its last.

    Of a model of lines each line is read from h = 0.

    Args:
        model: the model.
        text: the path of a file in UTF-8, or a `Text`.

    Returns:
        The share that is done, and the score so far; at last of the whole.

    Raises:
        ValueError: if the text cannot be read or is too short, or has a symbol that the model does
            not know.
    """
    text = corpus.as_text(text)
    lines = model.options.lines
    read = corpus.read(text, lines=lines, vocabulary=model.vocabulary)
    if lines:
        rows = data.find_lines(read.ids, _ends(model.vocabulary))
        if not len(rows.starts):
            raise ValueError(f"{text.name} has no line that is not empty")
        length = length_of(replace(model.options, length=None), rows.longest)
        passage = data.rows_passage(rows, model.options.batch_size, length)
    else:
        passage = data.passage(read.ids, 1, _LONG)
    strange = unknown_words(read)

    def scores():
        parts = []
        for part in score(model.rnn, model.params, passage):
            parts.append(part)
            symbols = int(sum(part.positions for part in parts))
            nats = float(mean_loss(parts))
            yield part.done, Score(nats, symbols, read.characters, strange)

    return scores()


def unknown_words(read: Corpus) -> int:
    """Count the words of a text that its vocabulary does not have; 0 where symbols are no words."""
    if read.vocabulary.level != "word":
        return 0
    unknown = SPECIAL.index(UNKNOWN)
    return sum(int((part == unknown).sum()) for part in data.parts(read.ids))


def _ends(vocabulary: Vocabulary) -> tuple[int, int]:
    ends = vocabulary.ends
    if ends is None:
        raise ValueError("the vocabulary has no line end, so there are no lines")
    return ends


def _end(model: Model) -> int | None:
    return _ends(model.vocabulary)[1] if model.options.lines else None


def _start(model: Model, prime: str | None) -> np.ndarray:
    """Encode what a text begins with."""
    vocabulary, of_lines = model.vocabulary, model.options.lines
    of_words = vocabulary.level == "word"
    start = np.array([vocabulary.ends[0] if vocabulary.ends else 0])
    if prime is None:
        return start
    ids = vocabulary.encode(prime)
    ids = ids[:-1] if of_words else ids  # its last sentence goes on
    if not len(ids) or (of_lines and LINE in vocabulary.decode(ids)):
        raise ValueError(f"prime must be the beginning of a text, of one line, got {prime!r}")
    return np.append(start, ids) if of_lines and not of_words else ids


def _shown(
    model: Model,
    prime: str | None,
    ids: list[int],
    stop: str | None = None,
    before: int = 0,
    *,
    last: bool = True,
) -> tuple[str, bool]:
    """Decode a text as far as it can be shown, and say whether it has come to its end.

    If more is to come, what may yet turn out to be a part of the stop or of a character is held
    back.
    """
    text, over, of_lines = model.vocabulary.decode(ids), False, model.options.lines
    if prime is None or of_lines:
        text = text.removeprefix(LINE)  # the start of the line
    if not last and model.vocabulary.level == "byte":
        text = text.rstrip("\ufffd")
    if of_lines and LINE in text:
        text, over = text[: text.index(LINE)], True
    if stop is not None and stop in text[before:]:
        return text[: text.index(stop, before)], True
    if last or over:
        return text, over
    begun = [n for n in range(1, len(stop or "")) if text[before:].endswith((stop or "")[:n])]
    return text[: len(text) - max(begun, default=0)], False
