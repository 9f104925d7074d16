"""A model's use: texts written piece by piece, the likeliest continuation, and scores."""

from itertools import pairwise

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn import lm
from jaxrnn.lm import Options, Text, model
from jaxrnn.lm.options import seed_key
from jaxrnn.lm.vocabulary import UNITS, Level
from jaxrnn.training import step as train

TEXT = "The mind? Oh, the naïve mind.\nThe end of the mind.\n\nA very good end!\nOh the end…\n" * 3
KINDS: list[tuple[Level, bool]] = [(level, lines) for level in UNITS for lines in (False, True)]
PRIMES = {"char": "nd. T", "byte": "naï", "word": "The  good ,"}


@pytest.fixture(scope="module")
def models():
    """Make a model of each kind, whose weights are large enough to prefer something."""
    made = {}
    for level, lines in KINDS:
        options = Options(
            level=level, lines=lines, hidden_size=4, batch_size=2, length=None if lines else 5,
            init="normal",
        )  # fmt: skip
        made[level, lines] = lm.to_model(lm.prepare(Text.from_string(TEXT), options))
    return made


def streamed(of_model, **how):
    """Return texts that were written piece by piece, joined."""
    return ["".join(pieces) for pieces in zip(*model.stream(of_model, **how), strict=True)]


def after_start(of_model, prime):
    """Return the ids that a text begins with."""
    vocabulary, lines = of_model.vocabulary, of_model.options.lines
    if vocabulary.level == "word":
        return [1] if prime is None else vocabulary.encode(prime)[:-1].tolist()
    return vocabulary.encode("\n" * (lines or prime is None) + (prime or "")).tolist()


def shown(of_model, prime, ids):
    """Return what is to be seen of a text's ids."""
    text = of_model.vocabulary.decode(ids)
    if prime is None or of_model.options.lines:
        text = text.removeprefix("\n")
    return text.split("\n")[0] if of_model.options.lines else text


def loss_of(of_model, ids, skip=0):
    """Compute the summed loss of ids that are read in one row, but for the first."""
    row = np.zeros(80, np.int32)  # of one size, so that it compiles once
    row[: len(ids)] = ids
    places = np.arange(len(row) - 1)
    mask = ((skip <= places) & (places < len(ids) - 1))[None].astype(float)
    batch = jaxrnn.Batch(row[None, :-1], row[None, 1:], mask)
    loss, _ = LOSS(of_model.rnn, of_model.params, of_model.rnn.initial_state(1), batch)
    return float(loss) * mask.sum()


LOSS = jax.jit(jaxrnn.RNN.loss, static_argnums=0)


# Writing


@pytest.mark.parametrize("primed", [False, True])
@pytest.mark.parametrize(("level", "lines"), KINDS)
def test_a_text_in_pieces_is_what_is_drawn_at_once(level, lines, primed, models):
    """Of any length, to the symbol; of lines, as far as the end that is drawn."""
    of_model, prime = models[level, lines], PRIMES[level] if primed else None
    if lines and primed and level == "char":
        prime = "nd of"
    start = after_start(of_model, prime)
    drawn = jaxrnn.lm.sample(
        of_model.rnn, of_model.params, np.tile(start, (3, 1)), 40, key=seed_key(5),
        temperature=1.5, top_k=9, end=of_model.vocabulary.ends[1] if lines else None,
    )  # fmt: skip
    for length in (1, 16, 17, 40):
        how = {"prime": prime, "length": length, "count": 3, "seed": 5, "temperature": 1.5}
        texts = [shown(of_model, prime, [*start, *row[:length].tolist()]) for row in drawn]
        assert streamed(of_model, top_k=9, **how) == texts
        assert model.write(of_model, top_k=9, **how) == texts
    assert len(set(texts)) == 3
    if level == "char" and not lines:
        assert {len(text) for text in texts} == {40 + len(prime or "")}
    if level == "word" and primed:
        assert all(text.startswith("The good,") for text in texts)
    if lines:
        assert not any("\n" in text for text in texts)
        assert any((np.asarray(row) == of_model.vocabulary.ends[1]).any() for row in drawn)


@pytest.fixture
def draws(monkeypatch):
    """Let a model draw what it is told, so many symbols at a time."""

    def tell(ids, size):
        rows = [np.array(ids[at : at + size])[None] for at in range(0, len(ids), size)]
        monkeypatch.setattr(model, "draw", lambda *_, **__: iter(rows))

    return tell


@pytest.mark.parametrize("size", [1, 2, 3, 5, 99])
@pytest.mark.parametrize(("level", "lines"), KINDS)
def test_a_stop_is_not_shown_nor_anything_after_it(level, lines, size, models, draws):
    """Wherever it lies, also across pieces; the prime may contain it."""
    of_model = models[level, lines]
    prime, rest = {
        "char": ("end", " end. The mind"), "byte": ("naï", "ve naïve ïend"),
        "word": ("The end", " the mind, the end of the mind"),
    }[level]  # fmt: skip
    rest += "" if lines else ".\nThe end\n"
    vocabulary = of_model.vocabulary
    text = vocabulary.decode(vocabulary.encode(prime + rest)).rstrip("\n")
    ids = vocabulary.encode(text + "\n" * (level != "word"))[len(after_start(of_model, prime)) :]
    if lines and level != "word":
        ids = vocabulary.encode(rest + "\n")
    told = {"prime": prime, "length": len(ids)}
    new = text[len(prime) :]
    for first in range(len(new)):
        for last in range(first + 1, min(first + 5, len(new)) + 1):
            stop = new[first:last]
            draws(ids, size)
            expected = prime + new[: new.index(stop)]
            assert streamed(of_model, stop=stop, **told) == [expected]
    for never in ("\0", "e\0", text[-1] + "\0", "end\0", "nd\n\0", prime + "\0"):
        draws(ids, size)
        whole = streamed(of_model, **told)
        draws(ids, size)
        assert streamed(of_model, stop=never, **told) == whole
        assert whole[0].rstrip("\n") == text


@pytest.mark.parametrize("size", [1, 2, 3, 99])
def test_no_half_of_a_character_is_ever_shown(size, models, draws):
    of_model, text = models["byte", False], "é\U0001f600e\u0301 €\ufffd\ufffda\U0001f469\u200d"
    draws(list(text.encode()), size)
    pieces = [piece for (piece,) in model.stream(of_model, length=len(text.encode()))]
    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == 2
    draws(list(text.encode()), size)
    assert streamed(of_model, length=4) == ["é\ufffd"]  # the length is that of bytes


def test_a_text_is_shown_as_it_is_made(models, draws):
    """Held back is only what may be a part of the stop."""
    of_model = models["char", False]
    draws(of_model.vocabulary.encode("the end the mind"), 4)
    pieces = [piece for (piece,) in model.stream(of_model, length=16, stop="the mend")]
    assert pieces == ["", "the end ", "", "the mind"]


# The likeliest


@pytest.mark.parametrize(
    ("level", "lines"), [("char", False), ("byte", False), ("char", True), ("word", True)]
)
def test_a_continuation_is_as_likely_as_what_it_shows(level, lines, models):
    """Of a line, its end among it; nothing counts after that."""
    of_model, prime = models[level, lines], "The"
    start, ends = after_start(of_model, prime), of_model.vocabulary.ends
    end = ends[1] if lines else None
    ids, _ = jaxrnn.lm.beam_search(
        of_model.rnn, of_model.params, np.array(start), 9, beams=5, end=end
    )
    ids = ids.tolist()
    ids = ids[: ids.index(end) + 1] if end in ids else ids
    text, nats = model.continuation(of_model, prime, 9, beams=5)
    assert text == shown(of_model, prime, start + ids)
    assert (len(ids) < 9) == lines
    assert nats == pytest.approx(-loss_of(of_model, start + ids, skip=len(start) - 1), rel=1e-6)


# Scores


@pytest.mark.parametrize("positions", [1, 2**20])
@pytest.mark.parametrize(("level", "lines"), KINDS)
def test_a_score_is_the_loss_of_every_symbol(level, lines, positions, models, monkeypatch):
    """The state carried through the whole, or each line alone; none dropped, in any parts."""
    monkeypatch.setattr(train, "_POSITIONS", positions)
    monkeypatch.setattr(model, "_LONG", 16)
    of_model, text = models[level, lines], "The mind?\nOh\n\nA very good end of the mind…"
    vocabulary = of_model.vocabulary
    if not lines:
        rows = [vocabulary.encode(text)]
    elif level == "word":
        rows = [
            vocabulary.encode(line) for line in ("The mind?", "Oh", "A very good end of the mind…")
        ]
    else:
        rows = [vocabulary.encode(f"\n{line}\n") for line in text.split("\n") if line]
    *before, (done, score) = model.evaluate(of_model, Text.from_string(text))
    shares = [share for share, _ in before] + [done]
    assert score.symbols == sum(len(row) - 1 for row in rows)
    total = sum(loss_of(of_model, row) for row in rows)
    assert score.nats * score.symbols == pytest.approx(total, rel=1e-6)
    assert shares[-1] == 1.0
    assert all(a < b for a, b in pairwise(shares))
    assert bool(before) == (positions < 2**20)
    assert score.characters == len(text.encode() if level == "byte" else text)
    assert score.unknown == (sum(row.tolist().count(0) for row in rows) if level == "word" else 0)


def test_unknown_words_are_counted(models):
    for lines in (False, True):
        *_, (_, score) = model.evaluate(
            models["word", lines], Text.from_string("The zebra. A quagga, the end!")
        )
        assert score.unknown == 2


# Mistakes

MISTAKES = {
    "an unknown character": ("char", False, {"prime": "The ~"}, "'~' .* at position 4 is not in"),
    "one in a line": ("char", True, {"prime": "The ~"}, "'~' .* at position 4 is not in"),
    "an empty prime": ("char", False, {"prime": ""}, "prime must be the beginning of a text"),
    "an empty line": ("byte", True, {"prime": ""}, "prime must be the beginning of a text"),
    "no word": ("word", False, {"prime": " \n"}, "prime must be the beginning of a text"),
    "two lines": ("char", True, {"prime": "T\nO"}, r"of one line, got 'T\\nO'"),
    "two sentences": ("word", True, {"prime": "The. End"}, "of one line, got 'The. End'"),
    "no text": ("char", False, {"count": 0}, "count must be at least 1, got 0"),
    "no symbol": ("char", False, {"length": 0}, "length must be at least 1, got 0"),
    "an empty stop": ("char", False, {"stop": ""}, "stop must be a text of at least one"),
    "a temperature below 0": ("char", False, {"temperature": -1.0}, "temperature must be at least"),
    "a seed below 0": ("char", False, {"seed": -1}, "seed must lie in"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_one_line_before_anything_is_written(case, models):
    level, lines, how, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message) as raised:
        model.stream(models[level, lines], **how)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("level", "lines", "text", "message"),
    [
        ("char", False, "T", "needs at least 2 symbols, got 1"),
        ("word", False, " ", "needs at least 2 symbols, got 0"),
        ("char", True, "\n\r\n", "has no line that is not empty"),
        ("word", True, " ", "has no line that is not empty"),
        ("char", False, "The ~", "'~' .* at position 4 is not in"),
        ("char", True, "The ~", "'~' .* at position 4 is not in"),
    ],
)
def test_a_text_that_cannot_be_scored_is_refused_at_once(level, lines, text, message, models):
    with pytest.raises(ValueError, match=message):
        model.evaluate(models[level, lines], Text.from_string(text))


def test_a_model_of_one_symbol_is_sure_of_it():
    of_model = lm.to_model(
        lm.prepare(Text.from_string("a" * 50), Options(hidden_size=2, batch_size=2, length=5))
    )
    assert model.write(of_model, length=5, prime="a") == ["aaaaaa"]
    *_, (_, score) = model.evaluate(of_model, Text.from_string("aaa"))
    assert (score.nats, score.symbols) == (0.0, 2)
