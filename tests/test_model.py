"""Tests of a trained model: streamed text, the most likely continuation, and scores."""

from itertools import pairwise

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn import lm
from jaxrnn.lm import Options, Text, model
from jaxrnn.lm.options import seed_key
from jaxrnn.lm.vocabulary import UNITS, Level, Vocabulary

TEXT = "The mind? Oh, the naïve mind.\nThe end of the mind.\n\nA very good end!\nOh the end…\n" * 3
KINDS: list[tuple[Level, bool]] = [(level, lines) for level in UNITS for lines in (False, True)]
PROMPTS = {"char": "nd. T", "byte": "naï", "word": "The  good ,"}


@pytest.fixture(scope="module")
def models():
    """Make a model of each kind, with weights so large that its predictions are not uniform."""
    models_by_kind = {}
    for level, lines in KINDS:
        options = Options(
            level=level, lines=lines, hidden_size=4, batch_size=2, length=None if lines else 5,
            init="normal",
        )  # fmt: skip
        models_by_kind[level, lines] = lm.to_model(lm.prepare(Text.from_string(TEXT), options))
    return models_by_kind


def stream_text(lm_model, **kwargs):
    """Return the texts that `model.stream` yields in pieces."""
    return ["".join(pieces) for pieces in zip(*model.stream(lm_model, **kwargs), strict=True)]


def start_ids(lm_model, prompt):
    """Return the ids that the model reads before it draws the first one."""
    vocabulary, lines = lm_model.vocabulary, lm_model.options.lines
    if prompt is None and not lines:
        return list(lm_model.context)
    if vocabulary.level == "word":
        return [1] if prompt is None else vocabulary.encode(prompt)[:-1].tolist()
    return vocabulary.encode("\n" * lines + (prompt or "")).tolist()


def shown_text(lm_model, prompt, ids):
    """Return the text that is shown for these ids."""
    if prompt is None and not lm_model.options.lines:
        ids = ids[len(lm_model.context) :]
    text = lm_model.vocabulary.decode(ids)
    if lm_model.options.lines:
        text = text.removeprefix("\n")
    return text.split("\n")[0] if lm_model.options.lines else text


def loss_of(lm_model, ids, skip=0):
    """Compute the summed loss of the ids, read in one row, without the first `skip` predictions."""
    row = np.zeros(80, np.int32)  # always of one size, so that LOSS is compiled once
    row[: len(ids)] = ids
    positions = np.arange(len(row) - 1)
    mask = ((skip <= positions) & (positions < len(ids) - 1))[None].astype(float)
    batch = jaxrnn.Batch(row[None, :-1], row[None, 1:], mask)
    loss, _ = LOSS(lm_model.rnn, lm_model.params, lm_model.rnn.initial_state(1), batch)
    return float(loss) * mask.sum()


LOSS = jax.jit(jaxrnn.RNN.loss, static_argnums=0)


# Text


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize(("level", "lines"), KINDS)
def test_a_streamed_text_is_the_one_that_is_drawn_at_once(level, lines, prompted, models):
    """This holds for any length. A line ends at the first end symbol that is drawn."""
    lm_model, prompt = models[level, lines], PROMPTS[level] if prompted else None
    if lines and prompted and level == "char":
        prompt = "nd of"
    start = start_ids(lm_model, prompt)
    drawn = jaxrnn.lm.sample(
        lm_model.rnn, lm_model.params, np.tile(start, (3, 1)), 40, key=seed_key(5),
        temperature=1.5, top_k=9, end=lm_model.vocabulary.ends[1] if lines else None,
    )  # fmt: skip
    for length in (1, 16, 17, 40):
        kwargs = {"prompt": prompt, "length": length, "count": 3, "seed": 5, "temperature": 1.5}
        texts = [shown_text(lm_model, prompt, [*start, *row[:length].tolist()]) for row in drawn]
        assert stream_text(lm_model, top_k=9, **kwargs) == texts
        assert model.write(lm_model, top_k=9, **kwargs) == texts
    assert len(set(texts)) == 3
    if level == "char" and not lines:
        assert {len(text) for text in texts} == {40 + len(prompt or "")}
    if level == "word" and prompted:
        assert all(text.startswith("The good,") for text in texts)
    if lines:
        assert not any("\n" in text for text in texts)
        assert any((np.asarray(row) == lm_model.vocabulary.ends[1]).any() for row in drawn)


@pytest.mark.parametrize("level", ["char", "byte"])
def test_a_text_without_a_prompt_follows_held_out_text_that_is_not_shown(level, models):
    lm_model = models[level, False]
    context = lm_model.vocabulary.decode(lm_model.context)
    assert len(context) > 10
    assert context in TEXT[-len(TEXT) // 10 - 1 :]
    assert context[-1] in "\n "
    prompted = model.write(lm_model, prompt=context, length=20, count=2, seed=3)
    texts = model.write(lm_model, length=20, count=2, seed=3)
    assert [context + text for text in texts] == prompted
    best, nats = model.continuation(lm_model, None, 5)
    assert model.continuation(lm_model, context, 5) == (context + best, nats)


def test_a_text_begins_with_a_line_or_a_sentence_or_else_a_word_or_a_character():
    cases: tuple[tuple[Level, str, str], ...] = (
        ("char", "an old\nline and more", "an old\nline and "),
        ("char", "an old text, or\nso", "an old text, or\n"),
        ("byte", "한국어한국어", "한국어한국"),
        ("byte", "abc", "ab"),
        ("char", "abc", "abc"),
    )
    for level, text, end in cases:
        vocabulary = Vocabulary.from_text(text, level)
        ids = vocabulary.encode(text).tolist()
        assert vocabulary.decode(model.context_of(vocabulary, ids)) == end
    words = Vocabulary.from_text("Yes. No, no. So", "word")
    ids = words.encode("Yes. No, no. So").tolist()
    assert model.context_of(words, ids) == tuple(ids[:-2])
    assert words.symbols[ids[-3]] == "<s>"


@pytest.mark.parametrize("level", UNITS)
def test_a_model_of_lines_writes_ten_different_lines(level, models):
    lines = model.write(models[level, True], length=6, seed=1, temperature=0.3)
    assert len(set(lines)) == len(lines) == 10
    drawn = model.write(models[level, True], length=6, seed=1, temperature=0.3, count=40)
    assert len(set(drawn)) < 40
    assert lines == list(dict.fromkeys(drawn))[:10]
    assert len(model.write(models[level, True], length=6, temperature=0.0)) == 1
    assert len(model.write(models[level, False], length=6)) == 1


@pytest.fixture
def draws(monkeypatch):
    """Return a function that makes models draw the given ids, `size` at a time."""

    def set_ids(ids, size):
        rows = [np.array(ids[start : start + size])[None] for start in range(0, len(ids), size)]
        monkeypatch.setattr(model, "draw", lambda *_, **__: iter(rows))

    return set_ids


@pytest.mark.parametrize("size", [1, 2, 3, 5, 99])
@pytest.mark.parametrize(("level", "lines"), KINDS)
def test_a_stop_is_not_shown_nor_anything_after_it(level, lines, size, models, draws):
    """The stop may lie anywhere, also across pieces. The prompt may contain it."""
    lm_model = models[level, lines]
    prompt, rest = {
        "char": ("end", " end. The mind"), "byte": ("naï", "ve naïve ïend"),
        "word": ("The end", " the mind, the end of the mind"),
    }[level]  # fmt: skip
    rest += "" if lines else ".\nThe end\n"
    vocabulary = lm_model.vocabulary
    text = vocabulary.decode(vocabulary.encode(prompt + rest)).rstrip("\n")
    ids = vocabulary.encode(text + "\n" * (level != "word"))[len(start_ids(lm_model, prompt)) :]
    if lines and level != "word":
        ids = vocabulary.encode(rest + "\n")
    kwargs = {"prompt": prompt, "length": len(ids)}
    new = text[len(prompt) :]
    for first in range(len(new)):
        for last in range(first + 1, min(first + 5, len(new)) + 1):
            stop = new[first:last]
            draws(ids, size)
            expected = prompt + new[: new.index(stop)]
            assert stream_text(lm_model, stop=stop, **kwargs) == [expected]
    for never in ("\0", "e\0", text[-1] + "\0", "end\0", "nd\n\0", prompt + "\0"):
        draws(ids, size)
        whole = stream_text(lm_model, **kwargs)
        draws(ids, size)
        assert stream_text(lm_model, stop=never, **kwargs) == whole
        assert whole[0].rstrip("\n") == text


@pytest.mark.parametrize("size", [1, 2, 3, 99])
def test_an_incomplete_character_is_never_shown(size, models, draws):
    lm_model, text = models["byte", False], "é\U0001f600e\u0301 €\ufffd\ufffda\U0001f469\u200d"
    draws(list(text.encode()), size)
    pieces = [piece for (piece,) in model.stream(lm_model, length=len(text.encode()))]
    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == 2
    draws(list(text.encode()), size)
    assert stream_text(lm_model, length=4) == ["é\ufffd"]  # the length counts bytes


def test_a_text_is_shown_as_soon_as_it_is_drawn(models, draws):
    """Only text that may be the beginning of the stop is held back."""
    lm_model = models["char", False]
    draws(lm_model.vocabulary.encode("the end the mind"), 4)
    pieces = [piece for (piece,) in model.stream(lm_model, length=16, stop="the mend")]
    assert pieces == ["", "the end ", "", "the mind"]


# The most likely continuation


@pytest.mark.parametrize(
    ("level", "lines"), [("char", False), ("byte", False), ("char", True), ("word", True)]
)
def test_the_score_of_a_continuation_is_the_loss_of_its_symbols(level, lines, models):
    """The score of a line includes its end symbol, and nothing after it."""
    lm_model, prompt = models[level, lines], "The"
    start, ends = start_ids(lm_model, prompt), lm_model.vocabulary.ends
    end = ends[1] if lines else None
    ids, _ = jaxrnn.lm.beam_search(
        lm_model.rnn, lm_model.params, np.array(start), 9, beams=5, end=end
    )
    ids = ids.tolist()
    ids = ids[: ids.index(end) + 1] if end in ids else ids
    text, nats = model.continuation(lm_model, prompt, 9, beams=5)
    assert text == shown_text(lm_model, prompt, start + ids)
    assert (len(ids) < 9) == lines
    assert nats == pytest.approx(-loss_of(lm_model, start + ids, skip=len(start) - 1), rel=1e-6)


# Scores


@pytest.mark.parametrize("positions", [1, 2**20])
@pytest.mark.parametrize(("level", "lines"), KINDS)
def test_a_score_is_the_loss_of_every_symbol(level, lines, positions, models, monkeypatch):
    """A text is read with one state, each line with its own. The parts drop no symbol."""
    monkeypatch.setattr("jaxrnn.lm.scoring._POSITIONS", positions)
    monkeypatch.setattr(model, "_LONG", 16)
    lm_model, text = models[level, lines], "The mind?\nOh\n\nA very good end of the mind…"
    vocabulary = lm_model.vocabulary
    if not lines:
        rows = [vocabulary.encode(text)]
    elif level == "word":
        rows = [
            vocabulary.encode(line) for line in ("The mind?", "Oh", "A very good end of the mind…")
        ]
    else:
        rows = [vocabulary.encode(f"\n{line}\n") for line in text.split("\n") if line]
    *before, (done, score) = model.scores(lm_model, Text.from_string(text))
    assert model.evaluate(lm_model, Text.from_string(text)) == score
    shares = [share for share, _ in before] + [done]
    assert score.symbols == sum(len(row) - 1 for row in rows)
    total = sum(loss_of(lm_model, row) for row in rows)
    assert score.nats * score.symbols == pytest.approx(total, rel=1e-6)
    assert shares[-1] == 1.0
    assert all(a < b for a, b in pairwise(shares))
    assert bool(before) == (positions < 2**20)
    assert score.characters == len(text.encode() if level == "byte" else text)
    assert score.unknown == (sum(row.tolist().count(0) for row in rows) if level == "word" else 0)


def test_unknown_words_are_counted(models):
    for lines in (False, True):
        score = model.evaluate(
            models["word", lines], Text.from_string("The zebra. A quagga, the end!")
        )
        assert (score.unknown, score.words) == (2, 9)  # signs count


@pytest.mark.parametrize("lines", [False, True])
def test_unknown_characters_can_be_skipped(lines, models):
    lm_model, known = models["char", lines], Text.from_string("The mind\nOh the end\n")
    text = Text.from_string("The~ mind\nOhé the end\n~")
    with pytest.raises(ValueError, match=r"'~' .*, 'é' .*; skip them with unknown='skip'"):
        model.evaluate(lm_model, text)
    skipped = model.evaluate(lm_model, text, unknown="skip")
    assert skipped == model.evaluate(lm_model, known)._replace(skipped=3)
    with pytest.raises(ValueError, match="unknown='skip' is for models of characters"):
        model.evaluate(models["word", lines], text, unknown="skip")


# Mistakes

MISTAKES = {
    "an unknown character": ("char", False, {"prompt": "The ~"}, "'~' .* at position 4 is not in"),
    "one in a line": ("char", True, {"prompt": "The ~"}, "'~' .* at position 4 is not in"),
    "an empty prompt": ("char", False, {"prompt": ""}, "prompt must be the beginning of a text"),
    "an empty line": ("byte", True, {"prompt": ""}, "prompt must be the beginning of a text"),
    "no word": ("word", False, {"prompt": " \n"}, "prompt must be the beginning of a text"),
    "two lines": ("char", True, {"prompt": "T\nO"}, r"of one line, got 'T\\nO'"),
    "two sentences": ("word", True, {"prompt": "The. End"}, "of one line, got 'The. End'"),
    "no text": ("char", False, {"count": 0}, "count must be at least 1, got 0"),
    "no symbol": ("char", False, {"length": 0}, "length must be at least 1, got 0"),
    "an empty stop": ("char", False, {"stop": ""}, "stop must be a text of at least one"),
    "a temperature below 0": ("char", False, {"temperature": -1.0}, "temperature must be at least"),
    "a seed below 0": ("char", False, {"seed": -1}, "seed must lie in"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_raises_an_error_of_one_line_before_anything_is_drawn(case, models):
    level, lines, kwargs, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message) as raised:
        model.stream(models[level, lines], **kwargs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("level", "lines", "text", "message"),
    [
        ("char", False, "T", "needs at least 2 symbols, got 1"),
        ("word", False, " ", "needs at least 2 symbols, got 0"),
        ("char", True, "\n\r\n", "has no line that is not empty"),
        ("word", True, " ", "has no line that is not empty"),
        (
            "char",
            False,
            "The ~",
            r"1 character that the model does not know: '~' \(U\+007E\); skip",
        ),
        ("char", True, "The ~", r"1 character that the model does not know: '~' \(U\+007E\); skip"),
    ],
)
def test_a_text_that_cannot_be_scored_is_refused_at_once(level, lines, text, message, models):
    with pytest.raises(ValueError, match=message):
        model.evaluate(models[level, lines], Text.from_string(text))


def test_a_model_of_one_symbol_predicts_it_with_certainty():
    lm_model = lm.to_model(
        lm.prepare(Text.from_string("a" * 50), Options(hidden_size=2, batch_size=2, length=5))
    )
    assert model.write(lm_model, length=5, prompt="a") == ["aaaaaa"]
    score = model.evaluate(lm_model, Text.from_string("aaa"))
    assert (score.nats, score.symbols) == (0.0, 2)
