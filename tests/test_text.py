"""Tests of vocabularies (text to ids and back) and of batches of ids."""

import itertools
import unicodedata

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn.lm import Vocabulary, batches

TEXT = "naïve Ωmega\n\U0001f600 vector\r\n"


def test_encoding_and_decoding_give_back_the_text():
    vocabulary = jaxrnn.lm.Vocabulary.from_text(TEXT)
    ids = vocabulary.encode(TEXT)
    assert vocabulary.decode(ids) == TEXT
    assert len(ids) == len(TEXT)
    assert vocabulary.decode(jax.numpy.asarray(ids)) == TEXT


def test_ids_are_positions_in_sorted_order():
    vocabulary = jaxrnn.lm.Vocabulary.from_text("vector")
    assert vocabulary.symbols == tuple("ceortv")
    assert vocabulary.encode("cev").tolist() == [0, 1, 5]
    assert jaxrnn.lm.Vocabulary.from_text("rotcev") == vocabulary


def test_one_hot_has_a_one_at_the_id():
    vocabulary = jaxrnn.lm.Vocabulary.from_text("vector\n")
    assert np.array_equal(vocabulary.one_hot(vocabulary.encode("vec")), np.eye(7)[[6, 2, 1]])


def test_an_unknown_character_is_named_with_its_position():
    vocabulary = jaxrnn.lm.Vocabulary.from_text("vector")
    for unknown in "a~\U0001f600":
        with pytest.raises(ValueError, match=r"at position 2 .* its 6 characters are 'ceortv'"):
            vocabulary.encode("ve" + unknown + "o")


@pytest.mark.parametrize("symbols", [(), ("b", "a"), ("a", "a"), ("ab",)])
def test_a_vocabulary_is_sorted_and_not_empty(symbols):
    with pytest.raises(ValueError, match="a vocabulary"):
        jaxrnn.lm.Vocabulary(symbols)


def test_ids_of_another_vocabulary_are_refused():
    vocabulary = jaxrnn.lm.Vocabulary.from_text("vector")
    for ids in ([6], [-1], [0, 9]):
        with pytest.raises(ValueError, match=r"ids must lie in 0 … 5"):
            vocabulary.decode(ids)


@pytest.mark.parametrize("level", ["char", "byte"])
def test_unicode_normal_forms_are_not_changed(level):
    composed, decomposed = (unicodedata.normalize(form, "Zoë naïve") for form in ("NFC", "NFD"))
    vocabulary = Vocabulary.from_text(composed + decomposed, level)
    ids = [vocabulary.encode(text).tolist() for text in (composed, decomposed)]
    assert ids[0] != ids[1]
    assert [vocabulary.decode(one) for one in ids] == [composed, decomposed]


# Bytes

BYTES = Vocabulary.from_text("", "byte")


@pytest.mark.parametrize(
    "text",
    ["", TEXT, "e\u0301a\u0323\u0307", "\U0001f469\u200d\U0001f680\0\ufeff", "\u20ac\x80\xff"],
)
def test_bytes_are_those_of_utf_8_and_give_back_any_text(text):
    ids = BYTES.encode(text)
    assert ids.tolist() == list(text.encode())
    assert BYTES.decode(ids) == text


@pytest.mark.parametrize("ids", [[0x80], [0x61, 0xC3], [0xFF, 0x61], [0xC3, 0x61], [0xF0, 0x9F]])
def test_bytes_that_are_not_utf_8_are_replaced(ids):
    shown = BYTES.decode(ids)
    assert shown.count("\ufffd") == 1
    assert shown.replace("\ufffd", "") == "a" * ids.count(0x61)


# Words


def words_of(text):
    """Return the words of a text as one string, with each sentence between < and >."""
    vocabulary = Vocabulary.from_text(text, "word")
    words = [vocabulary.symbols[i] for i in vocabulary.encode(text)]
    return " ".join(words).replace("</s>", ">").replace("<s>", "<")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Pi is 3.14, not 3,141.59.", "< Pi is 3.14 , not 3,141.59 . >"),
        ("Don't, I\u2019m well-known", "< Don't , I\u2019m well-known >"),
        ("Yes. No! Why? So\u2026 then", "< Yes . > < No ! > < Why ? > < So \u2026 > < then >"),
        ("Hm... well", "< Hm . . . > < well >"),
        ("\u201cWhy?\u201d he (so!) did", "< \u201c Why ? \u201d > < he ( so ! ) > < did >"),
        ('He said "no." Then', '< He said " no . " > < Then >'),
        ("a\nb\n\nc\n \n\n\nd.\n\ne", "< a b > < c > < d . > < e >"),
        ("a.b v1.2 x", "< a . b v1 . 2 x >"),
        (" \n\n one ", "< one >"),
    ],
)
def test_a_text_is_cut_into_words_and_sentences(text, words):
    assert words_of(text) == words


SCRIPTS = {
    "Hindi": "हिन्दी में क्‍ष और ज्‌ञ लिखते हैं।",
    "Tamil": "தமிழ் மொழி இனிது, நண்பரே!",
    "Bengali": "আমি বাংলা ভাষায় কথা বলি।",
    "Thai": "ภาษาไทย ที่นี่​เก่า น้ำ",
    "Arabic": "العَرَبِيَّةُ لُغَةٌ، هَلْ تَعْرِفُ؟",
    "Persian": "می‌خواهم کتاب‌ها را ١٫٥",
    "Hebrew": "בְּרֵאשִׁית עַל־פְּנֵי הַמַּיִם, ד׳ צה״ל.",
    "Latin": "Zoë naïve Việt Nam, col·legi ¿qué?",
    "soft hyphens": "co­operate a⁠b",
    "bidi": "⁧(שלום)⁩ ‏«שָׁלוֹם»",
    "emoji": "ok 👩‍🚀 👍🏽 ❤️‍🔥 1️⃣ "
    "🏴󠁧󠁢󠁿",
    "flags": "🇫🇷 🇩🇪 go",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_of_every_script_stay_whole_and_are_decoded_again(script):
    """A word is the text between spaces and punctuation, also if the text comes in pieces."""
    text = SCRIPTS[script]
    vocabulary = Vocabulary.from_text(text, "word")
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids).rstrip("\n") == text
    space = "\u200b" if script == "Thai" else " "
    whole = {
        word.strip(",!.،؟।()«»¿?\u2067\u2069\u200f") for word in text.replace(space, " ").split()
    }
    assert whole <= {word.strip("\u2067\u2069\u200f") for word in vocabulary.symbols}
    for pieces in [list(text), *([text[:i], text[i:]] for i in range(len(text)))]:
        assert np.array_equal(np.concatenate(list(vocabulary.encode_pieces(pieces))), ids)


def test_adjacent_flags_and_emoji_are_separate_words():
    pair = "\U0001f1eb\U0001f1f7"
    assert words_of(pair * 2) == f"< {pair} {pair} >"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert words_of(family * 2 + "!") == f"< {family} {family} ! >"


def test_a_sentence_ends_in_other_scripts_too():
    assert words_of("यह है। वह क्या؟ x") == "< यह है । > < वह क्या ؟ > < x >"


def test_the_most_frequent_words_are_known_and_of_equally_frequent_ones_the_first():
    text = "b a c c b a d c"
    for size, known in {4: "c", 5: "ac", 6: "abc", 7: "abcd", 99: "abcd"}.items():
        vocabulary = Vocabulary.from_text(text, "word", size)
        assert vocabulary.symbols == ("<unk>", "<s>", "</s>", *known)
    vocabulary = Vocabulary.from_text(text, "word", 5)
    assert vocabulary.encode("a <s> b").tolist() == [1, 3, 0, 0, 0, 0, 2]
    assert vocabulary.ends == (1, 2)


PROSE = (
    'Pi is 3.14, or 3,141.59\u2026 Don\'t "stop?" he (well-known) said.\n\n'
    "\u00abYes!\u00bb  No end\n \n"
    "Last\u00a0one: 50% off...\r\n\r\nZoe\u0308 \U0001f600 \n"
)


def test_words_are_the_same_however_a_text_is_cut():
    vocabulary = Vocabulary.from_text(PROSE, "word")
    ids = vocabulary.encode(PROSE)
    cuts = [[PROSE[:i], "", PROSE[i:]] for i in range(len(PROSE) + 1)]
    for pieces in [*cuts, list(PROSE)]:
        assert np.array_equal(np.concatenate(list(vocabulary.encode_pieces(pieces))), ids)
        assert Vocabulary.from_text(pieces, "word") == vocabulary


def test_words_are_decoded_with_the_usual_spaces():
    text = "Pi is 3.14, (or so)! Don't\n«stop»: 50 % \u201cOff\u201d\u2026"
    vocabulary = Vocabulary.from_text(text, "word")
    shown = vocabulary.decode(vocabulary.encode(text))
    assert shown == "Pi is 3.14, (or so)!\nDon't «stop»: 50% \u201cOff\u201d\u2026\n"


def test_straight_quotation_marks_and_dashes_are_written_as_in_prose():
    """They are then cut into the same words and sentences again."""
    text = (
        '"I know," he said, "and \'tis (so -- yes) good."\n"You do.\nWhy," he asked, "no?"\n'
        "He -- who else?\n-- came.\n"
    )
    vocabulary = Vocabulary.from_text(text, "word")
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert np.array_equal(vocabulary.encode(vocabulary.decode(ids)), ids)


def test_a_sentence_that_starts_before_the_end_of_another_is_on_its_own_line():
    vocabulary = Vocabulary.from_text("The country", "word")
    _, start, end = range(3)
    The, country = vocabulary.encode("The country")[1:-1].tolist()
    for ids in ([start, country, start, The], [country, start, start, The], [country, end, The]):
        assert vocabulary.decode(ids) == "country\nThe"


def test_the_text_of_the_first_words_is_the_beginning_of_the_whole_text():
    """This holds for any ids, since a model may draw the start of a sentence anywhere."""
    vocabulary = Vocabulary.from_text(PROSE + "“‘[{}]’” 'tis - --", "word")
    draw = np.random.default_rng(0).integers
    for ids in (vocabulary.encode(PROSE), draw(0, vocabulary.size, 300), draw(0, 5, 50)):
        shown = [vocabulary.decode(ids[:n]) for n in range(len(ids) + 1)]
        assert all(after.startswith(before) for before, after in itertools.pairwise(shown))
        assert "<s>" not in shown[-1]


@pytest.mark.parametrize(
    ("symbols", "level", "message"),
    [
        (("", "a"), "char", "symbols must be strings that are not empty"),
        (tuple(map(chr, range(255))), "byte", "must have all 256 bytes in order"),
        (("a", "b"), "word", "must begin with <unk>, <s>, </s>"),
        (("<unk>", "<s>", "</s>"), "word", "needs at least one symbol, but the text is empty"),
        (("<unk>", "<s>", "</s>", "<s>", "a"), "word", "must be sorted and unique"),
        (("<unk>", "<s>", "</s>", "b", "a"), "word", "must be sorted and unique"),
    ],
)
def test_an_invalid_vocabulary_is_refused(symbols, level, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(symbols, level)


def test_a_vocabulary_of_too_few_words_is_refused():
    with pytest.raises(ValueError, match=r"a size of at least 4, .*, got 3"):
        Vocabulary.from_text("a b", "word", 3)


# Streams


def test_the_rows_of_a_stream_continue_from_batch_to_batch():
    ids = np.arange(100, dtype=np.int32)
    source = batches.stream(ids, batch_size=3, length=4)
    batch = source(np.arange(5))
    assert batch.inputs.shape == (5, 3, 4)
    for row in range(3):
        read = batch.inputs[:, row].ravel()
        assert np.array_equal(read, read[0] + np.arange(20))
    assert np.array_equal(batch.targets, batch.inputs + 1)
    assert batch.inputs[0, :, 0].tolist() == [0, 33, 66]


def test_a_stream_has_every_transition_of_the_text_and_no_other():
    """Each target is the successor of its input, also where a row passes the end of the text."""
    ids = np.arange(50, dtype=np.int32)
    batch = batches.stream(ids, batch_size=2, length=7)(np.arange(14))
    assert np.array_equal(batch.targets, batch.inputs + 1)
    assert set(batch.inputs.ravel()) == set(range(49))


def test_a_batch_depends_only_on_its_step():
    ids = np.random.default_rng(0).integers(0, 9, 200)
    rows = batches.pad_lines(jaxrnn.lm.Vocabulary.from_text("abc\n"), ["a", "bc", "cab", "b"])
    for source in (batches.stream(ids, 3, 5), batches.shuffled(rows, 3, seed=1)):
        together = source(np.arange(20))
        for step in (0, 7, 19):
            alone = source(step)
            same = jax.tree.map(lambda a, b, s=step: np.array_equal(a, b[s]), alone, together)
            assert all(jax.tree.leaves(same))


def test_a_text_shorter_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"has 20 symbols .* fewer than the 21 of one batch"):
        batches.stream(np.zeros(20, np.int32), 4, 5)
    assert batches.stream(np.zeros(21, np.int32), 4, 5)(np.arange(1)).inputs.shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("characters", "batch_size", "length"), [(23, 4, 3), (2, 8, 5), (61, 5, 4)]
)
def test_whole_text_holds_every_transition_once(characters, batch_size, length):
    ids = np.arange(1, characters + 1)
    batch = batches.eval_set(ids, batch_size, length).all()
    counted = np.asarray(batch.mask, bool)
    assert sorted(batch.inputs[counted]) == list(range(1, characters))
    assert np.array_equal(batch.targets[counted], batch.inputs[counted] + 1)
    rows = batch.inputs.swapaxes(0, 1).reshape(batch.inputs.shape[1], -1)
    for row, mask in zip(rows, counted.swapaxes(0, 1).reshape(rows.shape), strict=True):
        assert np.array_equal(row[mask], row[0] + np.arange(mask.sum()))


# Lines


def test_lines_are_padded_masked_and_ended():
    vocabulary = jaxrnn.lm.Vocabulary.from_text("vector\n")
    batch = batches.pad_lines(vocabulary, ["vector", "to"])
    assert vocabulary.decode(batch.inputs[0]) == "vector"
    assert vocabulary.decode(batch.targets[0]) == "ector\n"
    assert np.asarray(batch.mask).tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert vocabulary.decode(batch.targets[1, :2]) == "o\n"
    with_start = batches.pad_lines(vocabulary, ["to"], start="\n")
    assert (vocabulary.decode(with_start.inputs[0]), vocabulary.decode(with_start.targets[0])) == (
        "\nto",
        "to\n",
    )


@pytest.mark.parametrize(("lines", "message"), [([], "no line"), (["ab", ""], "line 2 is empty")])
def test_empty_lines_are_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        batches.pad_lines(jaxrnn.lm.Vocabulary.from_text("ab\n"), lines)


def test_each_pass_draws_every_line_once_in_a_new_order():
    vocabulary = jaxrnn.lm.Vocabulary.from_text("abcdefg\n")
    source = batches.shuffled(batches.pad_lines(vocabulary, list("abcdefg")), batch_size=2, seed=3)
    drawn = source(np.arange(14)).inputs.ravel()
    passes = [drawn[i : i + 7].tolist() for i in range(0, 28, 7)]
    assert all(sorted(one) == list(range(1, 8)) for one in passes)
    assert len(set(map(tuple, passes))) == 4
    other = batches.shuffled(batches.pad_lines(vocabulary, list("abcdefg")), batch_size=2, seed=4)
    assert not np.array_equal(other(np.arange(14)).inputs.ravel(), drawn)


@pytest.mark.parametrize("batch_size", [0, 3])
def test_more_rows_than_lines_are_refused(batch_size):
    rows = batches.pad_lines(jaxrnn.lm.Vocabulary.from_text("ab\n"), ["a", "b"])
    with pytest.raises(ValueError, match=rf"batch_size must lie in 1 … 2, .*{batch_size}"):
        batches.shuffled(rows, batch_size, seed=0)


def test_sizes_below_one_are_refused():
    ids, rows = np.zeros(50, np.int32), jaxrnn.Batch(np.zeros((3, 2), int), np.zeros((3, 2), int))
    for make in (
        lambda: batches.stream(ids, 0, 5),
        lambda: batches.stream(ids, 2, -1),
        lambda: batches.eval_set(ids, 0, 5),
        lambda: batches.eval_set_of_rows(rows, 0),
    ):
        with pytest.raises(ValueError, match=r"(batch_size|length) must be at least 1, got"):
            make()


def test_grouped_lines_hold_each_once():
    vocabulary = jaxrnn.lm.Vocabulary.from_text("abcde\n")
    rows = batches.pad_lines(vocabulary, list("abcde"))
    groups = batches.eval_set_of_rows(rows, 2).all()
    assert groups.inputs.shape == (3, 2, 1)
    assert sorted(groups.inputs[np.asarray(groups.mask, bool)]) == [1, 2, 3, 4, 5]
