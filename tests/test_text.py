"""Text to ids and back, and ids to batches."""

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn import data

TEXT = "naïve Ωmega\n\U0001f600 vector\r\n"


def test_encoding_and_decoding_give_back_the_text():
    vocabulary = jaxrnn.Vocabulary.from_text(TEXT)
    ids = vocabulary.encode(TEXT)
    assert vocabulary.decode(ids) == TEXT
    assert len(ids) == len(TEXT)
    assert vocabulary.decode(jax.numpy.asarray(ids)) == TEXT


def test_ids_are_places_in_sorted_order():
    vocabulary = jaxrnn.Vocabulary.from_text("vector")
    assert vocabulary.symbols == tuple("ceortv")
    assert vocabulary.encode("cev").tolist() == [0, 1, 5]
    assert jaxrnn.Vocabulary.from_text("rotcev") == vocabulary


def test_one_hot_has_a_one_at_the_id():
    vocabulary = jaxrnn.Vocabulary.from_text("vector\n")
    assert np.array_equal(vocabulary.one_hot(vocabulary.encode("vec")), np.eye(7)[[6, 2, 1]])


def test_an_unknown_character_is_named_with_its_place():
    vocabulary = jaxrnn.Vocabulary.from_text("vector")
    for unknown in "a~\U0001f600":
        with pytest.raises(ValueError, match=r"at position 2 .* its 6 characters are 'ceortv'"):
            vocabulary.encode("ve" + unknown + "o")


@pytest.mark.parametrize("symbols", [(), ("b", "a"), ("a", "a"), ("ab",)])
def test_a_vocabulary_is_sorted_and_not_empty(symbols):
    with pytest.raises(ValueError, match="a vocabulary"):
        jaxrnn.Vocabulary(symbols)


def test_ids_of_another_vocabulary_are_refused():
    vocabulary = jaxrnn.Vocabulary.from_text("vector")
    for ids in ([6], [-1], [0, 9]):
        with pytest.raises(ValueError, match=r"ids must lie in 0 … 5"):
            vocabulary.decode(ids)


# Streams


def test_stream_rows_go_on_where_they_stopped():
    ids = np.arange(100, dtype=np.int32)
    source = data.stream(ids, batch_size=3, length=4)
    batch = source(np.arange(5))
    assert batch.inputs.shape == (5, 3, 4)
    for row in range(3):
        read = batch.inputs[:, row].ravel()
        assert np.array_equal(read, read[0] + np.arange(20))
    assert np.array_equal(batch.targets, batch.inputs + 1)
    assert batch.inputs[0, :, 0].tolist() == [0, 33, 66]


def test_a_stream_reads_every_transition_and_no_false_one():
    """Also past the end of the text: no target is the successor of another place's input."""
    ids = np.arange(50, dtype=np.int32)
    batch = data.stream(ids, batch_size=2, length=7)(np.arange(14))
    assert np.array_equal(batch.targets, batch.inputs + 1)
    assert set(batch.inputs.ravel()) == set(range(49))


def test_a_batch_depends_on_its_step_alone():
    ids = np.random.default_rng(0).integers(0, 9, 200)
    rows = data.pad_lines(jaxrnn.Vocabulary.from_text("abc\n"), ["a", "bc", "cab", "b"])
    for source in (data.stream(ids, 3, 5), data.shuffled(rows, 3, seed=1)):
        together = source(np.arange(20))
        for step in (0, 7, 19):
            alone = source(np.array([step]))
            same = jax.tree.map(lambda a, b, s=step: np.array_equal(a[0], b[s]), alone, together)
            assert all(jax.tree.leaves(same))


def test_a_text_shorter_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"has 20 symbols .* fewer than the 21 of one batch"):
        data.stream(np.zeros(20, np.int32), 4, 5)
    assert data.stream(np.zeros(21, np.int32), 4, 5)(np.arange(1)).inputs.shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("characters", "batch_size", "length"), [(23, 4, 3), (2, 8, 5), (61, 5, 4)]
)
def test_whole_text_holds_every_transition_once(characters, batch_size, length):
    ids = np.arange(1, characters + 1)
    batch = data.whole_text(ids, batch_size, length)
    counted = np.asarray(batch.mask, bool)
    assert sorted(batch.inputs[counted]) == list(range(1, characters))
    assert np.array_equal(batch.targets[counted], batch.inputs[counted] + 1)
    rows = batch.inputs.swapaxes(0, 1).reshape(batch.inputs.shape[1], -1)
    for row, mask in zip(rows, counted.swapaxes(0, 1).reshape(rows.shape), strict=True):
        assert np.array_equal(row[mask], row[0] + np.arange(mask.sum()))


# Lines


def test_lines_are_padded_masked_and_ended():
    vocabulary = jaxrnn.Vocabulary.from_text("vector\n")
    batch = data.pad_lines(vocabulary, ["vector", "to"])
    assert vocabulary.decode(batch.inputs[0]) == "vector"
    assert vocabulary.decode(batch.targets[0]) == "ector\n"
    assert np.asarray(batch.mask).tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert vocabulary.decode(batch.targets[1, :2]) == "o\n"
    begun = data.pad_lines(vocabulary, ["to"], start="\n")
    assert (vocabulary.decode(begun.inputs[0]), vocabulary.decode(begun.targets[0])) == (
        "\nto",
        "to\n",
    )


@pytest.mark.parametrize(("lines", "message"), [([], "no line"), (["ab", ""], "line 2 is empty")])
def test_lines_without_anything_to_read_are_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        data.pad_lines(jaxrnn.Vocabulary.from_text("ab\n"), lines)


def test_each_pass_draws_every_line_once_in_a_new_order():
    vocabulary = jaxrnn.Vocabulary.from_text("abcdefg\n")
    source = data.shuffled(data.pad_lines(vocabulary, list("abcdefg")), batch_size=2, seed=3)
    drawn = source(np.arange(14)).inputs.ravel()
    passes = [drawn[i : i + 7].tolist() for i in range(0, 28, 7)]
    assert all(sorted(one) == list(range(1, 8)) for one in passes)
    assert len(set(map(tuple, passes))) == 4
    other = data.shuffled(data.pad_lines(vocabulary, list("abcdefg")), batch_size=2, seed=4)
    assert not np.array_equal(other(np.arange(14)).inputs.ravel(), drawn)


@pytest.mark.parametrize("batch_size", [0, 3])
def test_more_rows_than_lines_are_refused(batch_size):
    rows = data.pad_lines(jaxrnn.Vocabulary.from_text("ab\n"), ["a", "b"])
    with pytest.raises(ValueError, match=rf"batch_size must lie in 1 … 2, .*{batch_size}"):
        data.shuffled(rows, batch_size, seed=0)


def test_sizes_below_one_are_refused():
    ids, rows = np.zeros(50, np.int32), jaxrnn.Batch(np.zeros((3, 2), int), np.zeros((3, 2), int))
    for make in (
        lambda: data.stream(ids, 0, 5),
        lambda: data.stream(ids, 2, -1),
        lambda: data.whole_text(ids, 0, 5),
        lambda: data.grouped(rows, 0),
    ):
        with pytest.raises(ValueError, match=r"(batch_size|length) must be at least 1, got"):
            make()


def test_grouped_lines_hold_each_once():
    vocabulary = jaxrnn.Vocabulary.from_text("abcde\n")
    rows = data.pad_lines(vocabulary, list("abcde"))
    groups = data.grouped(rows, 2)
    assert groups.inputs.shape == (3, 2, 1)
    assert sorted(groups.inputs[np.asarray(groups.mask, bool)]) == [1, 2, 3, 4, 5]
