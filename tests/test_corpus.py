"""Tests of reading a text into ids: pieces, encodings, lines, and the cache of ids on disk."""

import codecs
import hashlib
import os
import threading
from typing import Any

import jax
import numpy as np
import pytest

from jaxrnn.lm import Text, Vocabulary, batches, corpus
from jaxrnn.lm.corpus import OnDisk

TEXTS = {
    "utf-8": "naïve Ωmega\n\U0001f600 \ufeffe\u0301\r\nvec\rtor\n\r",
    "utf-16": "naïve Ωmega\n\U0001f600 \ufeffe\u0301\r\nvec\rtor\n\r",
    "latin-1": "naïve café ÿ\n\r\n\xa0x\r",
    "cp1252": "“naïve” – 5 €\r\n…\r",
}
SIZES = [1, 2, 3, 7, 2**22]


def open_file(tmp_path, content, encoding="utf-8"):
    """Write bytes, or a text in some encoding, to a file, and open it."""
    file = tmp_path / "text.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return corpus.open_text(file, encoding)


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    """Treat every text as a large one, with its ids on disk. Return the folder of the cache."""
    monkeypatch.setattr(corpus, "IN_MEMORY", 0)
    monkeypatch.setattr(corpus, "PIECE", 7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxrnn"


# Pieces


@pytest.mark.parametrize("piece", SIZES)
@pytest.mark.parametrize("encoding", TEXTS)
def test_a_file_is_decoded_the_same_in_pieces_of_any_size(encoding, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", piece)
    text = open_file(tmp_path, TEXTS[encoding], encoding)
    for _ in range(2):  # it can be read again
        assert "".join(corpus.pieces(text)) == TEXTS[encoding]
    read = corpus.read(text)
    assert read.vocabulary.decode(read.ids[:]) == TEXTS[encoding]
    assert read.characters == len(TEXTS[encoding])
    content = b"".join(text.blocks())
    read = corpus.read(text, level="byte")
    assert read.ids[:].tobytes() == content
    assert read.characters == text.size == len(content)


@pytest.mark.parametrize("piece", SIZES)
@pytest.mark.parametrize(
    ("mark", "encoding"), [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le")]
)
def test_a_byte_order_mark_is_not_a_character(mark, encoding, piece, tmp_path, monkeypatch):
    """This holds only at the beginning of the text."""
    monkeypatch.setattr(corpus, "PIECE", piece)
    text = open_file(tmp_path, mark + "a\ufeffb".encode(encoding), encoding)
    assert "".join(corpus.pieces(text)) == "a\ufeffb"
    assert corpus.read(text).characters == 3


@pytest.mark.parametrize("piece", SIZES)
@pytest.mark.parametrize(
    ("content", "encoding", "named"),
    [
        ("aé€".encode() + b"\xffb", "utf-8", "byte 0xff at position 6;"),
        (b"ab\xc3", "utf-8", "byte 0xc3 at position 2;"),
        (b"x" * 1234 + b"\xe2\x82z" * 9, "utf-8", "byte 0xe2 at position 1,234;"),
        ("ab".encode("utf-16") + b"c", "utf-16", "byte 0x63 at position 6;"),
        (b"abcdefgh\x81", "cp1252", "byte 0x81 at position 8;"),
        (b"\xff", "utf-8", "byte 0xff at position 0;"),
    ],
)
def test_a_byte_that_cannot_be_decoded_is_named_with_its_position(
    content, encoding, named, piece, tmp_path, monkeypatch
):
    monkeypatch.setattr(corpus, "PIECE", piece)
    text = open_file(tmp_path, content, encoding)
    for lines in (False, True):
        with pytest.raises(ValueError, match=f"is not {encoding}: {named}"):
            corpus.read(text, lines=lines)


OTHERS = {
    "utf-16": ("utf-16", "utf-8", "bytes FF FE, .* encoding='utf-16'$"),
    "utf-16 by mistake in latin-1": ("utf-16", "latin-1", "encoding='utf-16'$"),
    "big-endian utf-16": ("utf-16-be", "utf-8", "bytes FE FF, .* encoding='utf-16'$"),
    "the other utf-16": ("utf-16-be", "utf-16-le", "bytes FE FF, .* encoding='utf-16'$"),
    "utf-32": ("utf-32", "utf-8", "bytes FF FE 00 00, .* encoding='utf-32'$"),
    "utf-32 as utf-16": ("utf-32", "utf-16", "bytes FF FE 00 00, .* encoding='utf-32'$"),
    "utf-8 as cp1252": ("utf-8-sig", "cp1252", "bytes EF BB BF, .* encoding='utf-8'$"),
    "utf-16 without a mark": ("utf-16-le", "utf-8", "every other byte .* encoding='utf-16-le'$"),
    "utf-16-be without one": ("utf-16-be", "utf-16", "every other byte .* encoding='utf-16-be'$"),
    "utf-32 without a mark": ("utf-32-le", "utf-8", "encoding='utf-32-le'$"),
    "utf-8 as ascii": (
        "utf-8",
        "ascii",
        "is not ascii: byte 0xc3 at position 3; .*encoding='utf-8'$",
    ),
    "an unknown one": ("cp1251", "utf-8", "latin-1 decode nearly any bytes, to wrong characters"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_text_in_another_encoding_is_refused_and_the_right_one_named(case, tmp_path):
    """An encoding that decodes nearly any bytes is suggested only with that warning."""
    encoding, wrong, message = OTHERS[case]
    text = "The cafés of naïve men\n" if encoding != "cp1251" else "мир и война"
    if case == "utf-8 as ascii":
        text = "café"
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" and "without" not in case else b""
    opened = open_file(tmp_path, mark + text.encode(encoding))._replace(encoding=wrong)
    with pytest.raises(ValueError, match=message) as raised:
        corpus.read(opened)
    assert "\n" not in str(raised.value)
    assert ("latin-1 decode" in str(raised.value)) == (case == "an unknown one")
    assert corpus.read(opened, level="byte").characters == opened.size
    if (named := str(raised.value).rsplit(" ", 1)[1]).startswith("utf"):
        read = corpus.read(opened._replace(encoding=named))
        assert read.vocabulary.decode(read.ids[:]) == text


def test_a_text_may_contain_zero_bytes(tmp_path):
    """An example is a list of file names that are separated by zero bytes."""
    for content in (b"a file\0another one\0and a third\0", b"\0\0\0\0", b"a\0b"):
        assert corpus.read(open_file(tmp_path, content)).characters == len(content)


@pytest.mark.parametrize("piece", SIZES)
@pytest.mark.parametrize("level", ["char", "byte"])
def test_every_line_end_ends_a_line(level, piece, tmp_path, monkeypatch):
    """This holds also where a piece ends between the \\r and the \\n of one line end."""
    monkeypatch.setattr(corpus, "PIECE", piece)
    text = open_file(tmp_path, "é\r\nb\rcd\n\r\r\n\ne")
    read = corpus.read(text, level=level, lines=True)
    assert read.vocabulary.decode(read.ids[:]) == "\né\nb\ncd\n\n\n\ne\n"
    assert read.vocabulary.ends is not None
    rows = batches.find_lines(read.ids, read.vocabulary.ends)
    spans = zip(rows.starts, rows.ends, strict=True)
    lines = [read.vocabulary.decode(read.ids[start:end]) for start, end in spans]
    assert lines == ["\né", "\nb", "\ncd", "\ne"]
    unchanged = corpus.read(text, level=level)
    assert unchanged.vocabulary.decode(unchanged.ids[:]) == "é\r\nb\rcd\n\r\r\n\ne"


def test_line_ends_that_are_added_are_not_part_of_the_text():
    """The added line ends are not counted, and do not shift the positions in error messages."""
    text, vocabulary = Text.from_string("ab\nc"), Vocabulary.from_text("ab\n")
    assert corpus.read(text, lines=True).characters == 4
    for lines in (False, True):
        with pytest.raises(ValueError, match=r"'c' \(U\+0063\) at position 3 is not in"):
            corpus.read(text, vocabulary=vocabulary, lines=lines)


# Ids and their text


@pytest.mark.parametrize("symbols", [2, 256, 257, 65_536, 65_537])
def test_ids_are_of_the_smallest_type_that_holds_them(symbols):
    read = corpus.read(Text.from_string("".join(chr(0x10000 + i) for i in range(symbols))))
    assert np.array_equal(read.ids[:], np.arange(symbols))
    assert read.ids[:].dtype.itemsize == (1 if symbols <= 256 else 2 if symbols <= 65_536 else 4)


def test_a_text_is_identified_by_the_hash_of_its_bytes(tmp_path):
    content = codecs.BOM_UTF8 + b"a\r\nb"
    text, digest = open_file(tmp_path, content), hashlib.sha256(content).hexdigest()
    options: list[dict[str, Any]] = [{}, {"lines": True}, {"level": "byte"}, {"expected": digest}]
    for kwargs in options:
        assert corpus.read(text, **kwargs).sha256 == digest
    with pytest.raises(ValueError, match=f"its SHA-256 is {digest[:12]}…, and was 000000000000…"):
        corpus.read(text, expected="0" * 64)


REFUSED = {
    "a folder": (os.mkdir, "utf-8", "cannot read .*: Is a directory"),
    "nothing": (lambda file: None, "utf-8", "cannot read .*: No such file or directory"),
    "a pipe": (os.mkfifo, "utf-8", "is not a regular file"),
    "an empty file": (lambda file: file.write_bytes(b""), "utf-8", "is empty: give a file"),
    "a mark": (lambda file: file.write_bytes(codecs.BOM_UTF8), "utf-8", "is empty: give a file"),
    "another mark": (
        lambda file: file.write_bytes(codecs.BOM_UTF16_BE),
        "utf-16",
        "is empty: give a file",
    ),
    "no encoding": (lambda file: file.write_text("a"), "klingon", "unknown encoding: klingon; try"),
    "no encoding of texts": (lambda file: file.write_text("a"), "hex", "not a text encoding.* try"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_a_text_is_refused_in_one_line(case, tmp_path):
    """The error is raised at once: opening a pipe does not wait until somebody writes to it."""
    make, encoding, message = REFUSED[case]
    file = tmp_path / "text.txt"
    make(file)
    writer = threading.Timer(5, lambda: os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK)))
    writer.daemon = True
    if case == "a pipe":
        writer.start()
    with pytest.raises(ValueError, match=message) as raised:
        corpus.open_text(file, encoding)
    assert "\n" not in str(raised.value)
    assert not writer.finished.is_set()
    writer.cancel()


# On disk

PROSE = "The naïve end. A good, very good end!\r\nNo\rend \n\n\U0001f600 yes\n"


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_ids_on_disk_are_those_in_memory_and_are_encoded_once(
    level, lines, on_disk, tmp_path, monkeypatch
):
    text = open_file(tmp_path, PROSE)

    def cache_files():
        stats = {file: file.stat() for file in on_disk.iterdir()}
        return {file: (stat.st_ino, stat.st_mtime_ns) for file, stat in stats.items()}

    first, files = corpus.read(text, level=level, lines=lines), cache_files()
    again = corpus.read(text, level=level, lines=lines)
    assert len(files) == 2
    assert cache_files() == files
    monkeypatch.undo()
    expected = corpus.read(text, level=level, lines=lines)
    for read in (first, again):
        assert isinstance(read.ids, OnDisk)
        assert np.array_equal(read.ids[:], expected.ids[:])
        assert read.ids[:].dtype == expected.ids[:].dtype
        assert len(read.ids) == len(expected.ids)
        assert read._replace(ids=expected.ids) == expected


def test_a_word_that_is_split_between_pieces_of_a_large_text_is_whole(
    on_disk, tmp_path, monkeypatch
):
    """The split may lie between a letter and its marks, or between the bytes of a character."""
    words = "हिन्दी में क्\u200dष है। naïve e\u0301te\u0301 \U0001f469\u200d\U0001f680 עַל־פְּנֵי\n"
    text = open_file(tmp_path, words * 3)
    for size in range(1, 24):
        monkeypatch.setattr(corpus, "PIECE", size)
        read = corpus.read(text, level="word", cache=tmp_path / str(size))
        assert isinstance(read.ids, OnDisk)
        assert read.vocabulary.decode(read.ids[:]).splitlines() == [
            "हिन्दी में क्\u200dष है।",
            *[words.split("। ")[1].strip() + " हिन्दी में क्\u200dष है।"] * 2,
            words.split("। ")[1].strip(),
        ]


def test_texts_and_options_with_different_ids_have_different_files(on_disk, tmp_path):
    text, other = open_file(tmp_path, "abc\r\né"), Vocabulary.from_text("abcdé\r\n")
    variants: list[tuple[corpus.Text, dict[str, Any]]] = [
        (text, {}),
        (text, {"lines": True}),
        (text, {"level": "byte"}),
        (text, {"level": "word"}),
        (text, {"level": "word", "size": 4}),
        (text, {"vocabulary": other}),
        (text, {"vocabulary": other, "lines": True}),
        (text._replace(encoding="latin-1"), {}),
        (text._replace(encoding="cp1252"), {}),
        (Text.from_string("é\r\ncba"), {}),
    ]
    ids = [corpus.read(text, **kwargs).ids for text, kwargs in variants]
    assert len(set(ids)) == len(variants)
    assert corpus.read(text).ids == ids[0]


def test_an_incomplete_cache_is_not_used(on_disk, tmp_path, monkeypatch):
    text = open_file(tmp_path, PROSE)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus.atomic, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            corpus.read(text)
    (ids,) = on_disk.iterdir()
    ids.write_bytes(ids.read_bytes()[:-3])
    expected = Vocabulary.from_text(PROSE).encode(PROSE)
    assert np.array_equal(corpus.read(text).ids[:], expected)
    ids.unlink()
    assert np.array_equal(corpus.read(text).ids[:], expected)


@pytest.mark.parametrize("folder", ["text.txt/below", "x" * 300])
def test_a_cache_that_cannot_be_written_raises_an_error_of_one_line(folder, on_disk, tmp_path):
    text = open_file(tmp_path, PROSE)
    on_disk.parent.write_text("no folder")
    for cache in (tmp_path / folder, None):
        with pytest.raises(ValueError, match=r"cannot keep the ids .*: [A-Z].*XDG_CACHE") as raised:
            corpus.read(text, cache=cache)
        assert "\n" not in str(raised.value)


@pytest.fixture
def both(tmp_path):
    """Return the same ids in memory and on disk."""
    ids = np.random.default_rng(0).integers(0, 5, 101).astype(np.uint8)
    np.save(tmp_path / "ids.npy", ids)
    return ids, OnDisk(tmp_path / "ids.npy")


@pytest.mark.parametrize("position", [0, 1, 40, 101])
def test_ids_are_cut_equally_on_disk_and_in_memory(position, both):
    for a, b in zip(*(corpus.cut(ids, position) for ids in both), strict=True):
        assert len(a) == len(b)
        assert np.array_equal(a[:], b[:])
        for c, d in zip(*(corpus.cut(ids, len(ids) // 3) for ids in (a, b)), strict=True):
            assert np.array_equal(c[:], d[:])


def test_ids_on_disk_are_read_in_parts(both, monkeypatch):
    monkeypatch.setattr(batches, "_PART", 7)
    in_memory, on_disk = (list(batches.parts(ids)) for ids in both)
    assert [len(part) for part in on_disk] == [7] * 14 + [3]
    assert all(map(np.array_equal, in_memory, on_disk))
    assert np.array_equal(np.concatenate(on_disk), both[0])


@pytest.mark.parametrize("ends", [(0, 0), (1, 2)], ids=["lines", "sentences"])
def test_batches_from_disk_are_those_from_memory(ends, both, monkeypatch):
    if ends == (1, 2):  # sentences, none of which contains another
        ids, on_disk = both
        ids[:] = 3 + ids % 2
        ids[::7], ids[6::7] = 1, 2
        ids[-2:] = 3, 2
        np.save(on_disk.file, ids)
    whole = [batches.find_lines(ids, ends) for ids in both]
    monkeypatch.setattr(batches, "_PART", 7)
    rows = [batches.find_lines(ids, ends) for ids in both]
    for lines in (*whole, *rows):
        assert np.array_equal(lines.starts, whole[0].starts)
        assert np.array_equal(lines.ends, whole[0].ends)
    assert len(rows[0].starts) > 8
    steps = np.arange(9)
    sources = [
        [
            batches.stream(ids, 3, 4),
            batches.eval_set(ids, 3, 4),
            batches.stream(corpus.cut(ids, 30)[1], 3, 4),
            batches.shuffled(lines, 4, seed=1),
            batches.shuffled(lines, 4, seed=1, length=3),
            batches.eval_set_of_rows(lines, 4, 5),
        ]
        for ids, lines in zip(both, rows, strict=True)
    ]
    for in_memory, on_disk in zip(*sources, strict=True):
        a, b = in_memory(steps), on_disk(steps)
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
