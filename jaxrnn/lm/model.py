"""A trained model: sampling texts, the most likely continuation, and scoring a text."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxrnn.lm import batches, corpus
from jaxrnn.lm.corpus import Corpus, Text
from jaxrnn.lm.options import Options, length_of, seed_key
from jaxrnn.lm.sampling import beam_search
from jaxrnn.lm.sampling import stream as draw
from jaxrnn.lm.scoring import mean_loss, score
from jaxrnn.lm.vocabulary import END, LINE, SPECIAL, START, UNKNOWN, Vocabulary
from jaxrnn.network.rnn import RNN
from jaxrnn.network.stack import Params

CONTEXT = 256  # the largest number of symbols that are read before a text without a prompt
_LENGTHS = {"char": 500, "byte": 500, "word": 100}  # of a text that fills a screen
_LINES, _LINES_DRAWN = 10, 40  # the different lines to show, of those that are drawn
_MOST_BEAMS = 10_000
_LONG = 512  # time steps in each chunk of a text that is scored


class Model(NamedTuple):
    """A model loaded from a checkpoint.

    Attributes:
        rnn: the network.
        vocabulary: the vocabulary.
        params: the parameters.
        options: the options of the run that trained the model.
        step: the number of updates made.
        held_out: the held-out loss in nats per symbol; None if there was no evaluation at `step`.
        remarks: messages about damaged checkpoints that were skipped, and about which model of
            several it is.
        context: the ids of some text of the held-out part, at most 256, which the model reads
            before it samples a text without a prompt; empty for a model of lines.
    """

    rnn: RNN
    vocabulary: Vocabulary
    params: Params
    options: Options
    step: int
    held_out: float | None
    remarks: tuple[str, ...] = ()
    context: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Return the network, the symbols, the step and the held-out loss."""
        symbol = {"char": "characters", "byte": "bytes", "word": "words"}[self.vocabulary.level]
        loss = "no evaluation at this step"
        if self.held_out is not None:
            loss = f"held out {self.held_out:.4f} nats = {units(self.held_out, self.vocabulary)}"
        return (
            f"Model of {self.vocabulary.size:,} {symbol} after {self.step:,} steps: {loss}\n"
            f"  {self.rnn!r}\n"
            f"  trained by {self.options.algorithm} with {self.options.optimizer}"
            f"{', line by line' if self.options.lines else ''}"
        )


class Score(NamedTuple):
    """The loss of a model on a text.

    Attributes:
        nats: the mean cross-entropy in nats per symbol.
        symbols: the number of symbols predicted, including the ends of lines and sentences.
        characters: the number of characters in the text (bytes, for a model of bytes).
        unknown: the number of words in the text that are not in the vocabulary.
        words: the number of words and signs in the text; 0 if symbols are not words.
        skipped: the number of characters that were left out, since they are not in the vocabulary.
    """

    nats: float
    symbols: int
    characters: int
    unknown: int
    words: int = 0
    skipped: int = 0


def units(nats: float, vocabulary: Vocabulary) -> str:
    """Return a loss as text: bits per character or byte, or the perplexity for words."""
    if vocabulary.level == "word":
        return f"perplexity {np.exp(nats):.4g}"
    return f"{nats / np.log(2):.4f} bits per {vocabulary.unit}"


def stream(
    model: Model,
    *,
    prompt: str | None = None,
    length: int | None = None,
    count: int = 1,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    seed: int = 0,
) -> Iterator[list[str]]:
    """Sample texts from a model, piece by piece.

    Args:
        model: the model.
        prompt: the beginning of each text. Without a prompt the model first reads its `context`,
            so that its state is that of a model within a text, and the texts begin after it. A
            model of lines reads the start of a line.
        length: the largest number of symbols to sample; default 500 characters or bytes, or 100
            words. A model of lines stops earlier, at the end of its line.
        count: the number of texts.
        temperature: as in `jaxrnn.lm.sample`.
        top_k: as in `jaxrnn.lm.sample`.
        top_p: as in `jaxrnn.lm.sample`.
        stop: a string at which each text ends; it is not part of the text.
        seed: the random seed.

    Returns:
        An iterator over pieces: for each of the `count` texts, the characters that are new. The
        first piece begins with the prompt.

    Raises:
        ValueError: if `prompt` has a character that is not in the vocabulary, or an argument is
            outside its range.
    """
    length = _LENGTHS[model.vocabulary.level] if length is None else length
    for name, value in {"count": count, "length": length}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if stop == "":
        raise ValueError("stop must be a text of at least one character")
    for name, value in {"top_k": top_k, "top_p": top_p}.items():
        if value is not None and temperature == 0:
            raise ValueError(
                f"{name}={value} would do nothing at temperature 0, which takes the likeliest: "
                f"leave one of them out"
            )
    (start, hidden), end = _start(model, prompt), _end(model)
    drawn = draw(
        model.rnn,
        model.params,
        np.tile(start, (count, 1)),
        key=seed_key(seed),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        end=end,
        piece=max(16, length // 50),  # the whole text is decoded again after each piece
    )

    def texts():
        rows = [start[hidden:].tolist() for _ in range(count)]
        prompt_end = len(_decode(model, rows[0])[0])  # `stop` is searched for from here on
        shown, finished, total = [""] * count, [False] * count, len(rows[0]) + length
        while not all(finished):
            piece = next(drawn, None)
            new = []
            for b in range(count):
                rows[b] = (rows[b] + ([] if piece is None else piece[b].tolist()))[:total]
                last = piece is None or len(rows[b]) == total
                text, ended = _decode(model, rows[b], stop, prompt_end, last=last)
                new.append("" if finished[b] else text[len(shown[b]) :])
                shown[b] = shown[b] if finished[b] else text
                finished[b] = finished[b] or ended or last
            yield new

    return texts()


def write(
    model: Model,
    *,
    prompt: str | None = None,
    length: int | None = None,
    count: int | None = None,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Sample texts from a model.

    Args:
        model: the model.
        prompt: the beginning of each text, as in `stream`, like all other arguments.
        length: the largest number of symbols to sample.
        count: the number of texts; default 1, and for a model of lines 10 lines, each different
            from the others, or fewer if the model writes too few different ones.
        temperature: below 1 the likely symbols become more likely; 0 takes the likeliest.
        top_k: sample only from the k likeliest symbols.
        top_p: sample only from the likeliest symbols that have this probability together.
        stop: a string at which each text ends; it is not part of the text.
        seed: the random seed.

    Returns:
        The texts, each beginning with the prompt.

    Raises:
        ValueError: as `stream` does.
    """
    different = count is None and model.options.lines
    pieces = stream(
        model,
        prompt=prompt,
        length=length,
        count=_LINES_DRAWN if different else 1 if count is None else count,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
        seed=seed,
    )
    texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
    return list(dict.fromkeys(texts))[:_LINES] if different else texts


def continuation(
    model: Model, prompt: str | None = None, length: int = 50, beams: int = 8
) -> tuple[str, float]:
    """Return the most likely continuation of a text, found by beam search (Lowerre 1976).

    Args:
        model: the model.
        prompt: the beginning of the text, as in `stream`.
        length: the largest number of symbols to add.
        beams: the number of sequences kept at each step, in 1 … 10,000.

    Returns:
        The text, beginning with the prompt, and the log-probability of the continuation in nats.

    Raises:
        ValueError: if `prompt` has a character that is not in the vocabulary, or an argument is
            outside its range.
    """
    if not 1 <= beams <= _MOST_BEAMS:
        raise ValueError(f"beams must lie in 1 … {_MOST_BEAMS:,}, got {beams}")
    start, hidden = _start(model, prompt)
    ids, nats = beam_search(model.rnn, model.params, start, length, beams=beams, end=_end(model))
    return _decode(model, [*start[hidden:].tolist(), *np.asarray(ids).tolist()])[0], float(nats)


def evaluate(
    model: Model, text: Text | str | Path, *, unknown: Literal["refuse", "skip"] = "refuse"
) -> Score:
    """Evaluate a model on a text.

    The hidden state is carried through the whole text. A model of lines starts each line from
    h = 0. `scores` does the same part by part, for a text that takes long.

    Args:
        model: the model.
        text: the path of a file in UTF-8, or a `Text`, such as `Text.from_string("to be")`.
        unknown: what to do with characters that are not in the vocabulary: "refuse" the text,
            naming them, or "skip" them. A model of words reads words it does not know as <unk>.

    Returns:
        The score of the whole text.

    Raises:
        ValueError: if the text cannot be read, is too short, or has a character that is not in the
            vocabulary.
    """
    *_, (_, score) = scores(model, text, unknown=unknown)
    return score


def scores(
    model: Model, text: Text | str | Path, *, unknown: Literal["refuse", "skip"] = "refuse"
) -> Iterator[tuple[float, Score]]:
    """Evaluate a model on a text, part by part, as `evaluate` does at once.

    Args:
        model: the model.
        text: the path of a file in UTF-8, or a `Text`.
        unknown: as in `evaluate`.

    Returns:
        An iterator over (the share of the text that was read, the `Score` of that share). The last
        item has the share 1 and the score of the whole text.

    Raises:
        ValueError: if the text cannot be read, is too short, or has a character that is not in the
            vocabulary.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"model must be a jaxrnn.lm.Model, got a {type(model).__name__}: lm.load(path) loads "
            f"one, and lm.to_model(run) is that of a run"
        )
    text = corpus.as_text(text)
    lines = model.options.lines
    level, skip = model.vocabulary.level, unknown == "skip"
    if skip and level != "char":
        reads = "reads all bytes" if level == "byte" else f"reads unknown words as {UNKNOWN}"
        raise ValueError(f"unknown={unknown!r} is for models of characters; this one {reads}")
    if not skip:
        remedy = "skip them with unknown='skip', or evaluate another text"
        corpus.check_known(text, model.vocabulary, lines=lines, remedy=remedy)
    read = corpus.read(text, lines=lines, vocabulary=model.vocabulary, skip_unknown=skip)
    framed = 2 if lines else 0
    skipped = read.characters - (len(read.ids) - framed) if skip else 0
    if lines:
        rows = batches.find_lines(read.ids, _ends(model.vocabulary))
        if not len(rows.starts):
            raise ValueError(f"{text.name} has no line that is not empty")
        length = length_of(replace(model.options, length=None), rows.longest)
        eval_set = batches.eval_set_of_rows(rows, model.options.batch_size, length)
    else:
        eval_set = batches.eval_set(read.ids, 1, _LONG)
    unknown_number, words = unknown_words(read), _words(read)

    def parts_of_text():
        parts = []
        for part in score(model.rnn, model.params, eval_set):
            parts.append(part)
            symbols = int(sum(part.positions for part in parts))
            nats = float(mean_loss(parts))
            yield (
                part.done,
                Score(nats, symbols, read.characters - skipped, unknown_number, words, skipped),
            )

    return parts_of_text()


def unknown_words(read: Corpus) -> int:
    """Return the number of words that are not in the vocabulary; 0 if symbols are not words."""
    if read.vocabulary.level != "word":
        return 0
    unknown = SPECIAL.index(UNKNOWN)
    return sum(int((part == unknown).sum()) for part in batches.parts(read.ids))


def _words(read: Corpus) -> int:
    """Return the number of words, without the marks of sentences; 0 if symbols are not words."""
    if read.vocabulary.level != "word":
        return 0
    ends = [SPECIAL.index(mark) for mark in (START, END)]
    return sum(int((~np.isin(part, ends)).sum()) for part in batches.parts(read.ids))


def _ends(vocabulary: Vocabulary) -> tuple[int, int]:
    """Return the ids that start and end a line or sentence."""
    ends = vocabulary.ends
    if ends is None:
        raise ValueError("the vocabulary has no line end, so there are no lines")
    return ends


def _end(model: Model) -> int | None:
    """Return the id that ends a line; None for a model of continuous text."""
    return _ends(model.vocabulary)[1] if model.options.lines else None


def context_of(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[int, ...]:
    """Return the ids up to a place where a new text may begin, in the second half of the ids.

    It is the last one where a line or a sentence begins, or else a word, or else a character.
    """
    symbols, half = [vocabulary.symbols[i] for i in ids], len(ids) // 2
    for before in (START if vocabulary.level == "word" else LINE, " "):
        for number in range(len(ids), half, -1):
            if symbols[number - 1] == before:
                return tuple(ids[:number])
    number = len(ids)
    if vocabulary.level == "byte":
        starts = [n for n in range(half + 1, len(ids)) if not "\x80" <= symbols[n] < "\xc0"]
        number = max(starts, default=number)
    return tuple(ids[:number])


def _start(model: Model, prompt: str | None) -> tuple[np.ndarray, int]:
    """Return the ids that the model reads before it samples, (P,), and how many are not shown."""
    vocabulary, has_lines = model.vocabulary, model.options.lines
    has_words = vocabulary.level == "word"
    start = np.array([vocabulary.ends[0] if vocabulary.ends else 0])
    if prompt is None:
        start = np.array(model.context) if model.context else start
        return start, len(start)
    ids = vocabulary.encode(prompt)
    ids = ids[:-1] if has_words else ids  # drop </s>: the model continues the last sentence
    if not len(ids) or (has_lines and LINE in vocabulary.decode(ids)):
        raise ValueError(f"prompt must be the beginning of a text, of one line, got {prompt!r}")
    return (np.append(start, ids), 1) if has_lines and not has_words else (ids, 0)


def _decode(
    model: Model,
    ids: list[int],
    stop: str | None = None,
    prompt_end: int = 0,
    *,
    last: bool = True,
) -> tuple[str, bool]:
    """Decode a text as far as it is certain, and return whether the text has ended.

    Unless these are the `last` ids, the end of the text is withheld if it may become a part of
    `stop` or is an incomplete character.
    """
    text, ended, has_lines = model.vocabulary.decode(ids), False, model.options.lines
    if not last and model.vocabulary.level == "byte":
        text = text.rstrip("\ufffd")
    if has_lines and LINE in text:
        text, ended = text[: text.index(LINE)], True
    if stop is not None and stop in text[prompt_end:]:
        return text[: text.index(stop, prompt_end)], True
    if last or ended:
        return text, ended
    # The lengths of the beginnings of `stop` with which the text ends.
    partial = [n for n in range(1, len(stop or "")) if text[prompt_end:].endswith((stop or "")[:n])]
    return text[: len(text) - max(partial, default=0)], False
