"""Words: one rule to split texts, vocabularies by count, vectors as others publish them, and their means."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedcache as ec
from embedcache import verification
from embedcache.backbones import fetch, resolve, resolve_all
from embedcache.backbones.base import BackboneSettings
from embedcache.encoding import EncoderReference, encode
from embedcache.errors import CheckpointError, CheckpointNotFoundError, ItemError, UnknownNameError, UsageError
from embedcache.failures import read_failures
from embedcache.words import build_vocabulary, embedding_matrix, read_vectors, split_words, tokenize
from embedcache.words.vocabulary import MAX_WORD_BYTES

GLOVE = "the 1 0 0\n, 0 2 0\nred 0 0 4\nbird 2 2 2\n. . . 9 9 9\nthe 5 5 5\n"


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    path = tmp_path / "glove.txt"
    path.write_text(GLOVE, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The red bird.", ["The", "red", "bird", "."]),
        ("don't  pay\t1,000.50€", ["don", "'", "t", "pay", "1", ",", "000", ".", "50", "€"]),
        ("Ñandú q\u0301", ["Ñandú", "q", "\u0301"]),
        ("camio\u0301n", ["camión"]),
        ("snake_case-kebab", ["snake_case", "-", "kebab"]),
        ("a\0b", ["a", "b"]),
        (" \n\t ", []),
        ("🦉🦉", ["🦉", "🦉"]),
    ],
)
def test_the_rule_has_one_answer(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert split_words(text, lowercase=True) == [word.lower() for word in words]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=9), st.booleans())
def test_many_texts_at_once_are_split_as_each_by_itself(texts: list[str], lowercase: bool) -> None:
    found = tokenize(pa.array(texts, pa.large_string()), lowercase=lowercase)
    rows = [
        [found.words[number] for number in found.numbers[start:stop]]
        for start, stop in zip(found.offsets[:-1], found.offsets[1:], strict=True)
    ]
    assert rows == [split_words(text, lowercase=lowercase) for text in texts]
    assert len(set(found.words)) == len(found.words)


def test_more_texts_than_are_split_at_once() -> None:
    texts = pa.array([f"w{row % 7} x" if row % 5 else "" for row in range(10_000)], pa.large_string())
    done: list[int] = []
    found = tokenize(texts, advance=done.append)
    assert (sum(done), len(found.offsets), len(found.words)) == (10_000, 10_001, 8)
    assert np.diff(found.offsets).tolist() == [2 if row % 5 else 0 for row in range(10_000)]


# -------------------------------------------------------------------------------------------------- vocabularies


def test_words_are_ordered_by_count_and_then_alphabetically() -> None:
    words, counts = ["b", "never", "a", "c", "z"], [2, 0, 2, 5, 1]
    assert build_vocabulary(words, counts).words == ("<pad>", "<unk>", "c", "a", "b", "z")
    assert build_vocabulary(words, counts, min_count=2).words == ("<pad>", "<unk>", "c", "a", "b")
    assert build_vocabulary(words, counts, max_words=2).words == ("<pad>", "<unk>", "c", "a")
    assert build_vocabulary(words, counts).of(["a", "never", "c", "new"]).tolist() == [3, 1, 2, 1]


def test_a_word_that_is_too_long_has_no_id() -> None:
    long = "é" * (MAX_WORD_BYTES // 2)
    assert build_vocabulary([long, long + "x"], [1, 1]).words[2:] == (long,)


def test_digests_of_vocabularies_are_of_words_in_order() -> None:
    digests = {build_vocabulary(words, counts).digest for words, counts in ((["a", "b"], [2, 1]), (["a", "b"], [1, 2]))}
    assert len(digests | {build_vocabulary(["ab"], [1]).digest}) == 3


@pytest.mark.parametrize("limits", [{"min_count": 0}, {"max_words": 0}])
def test_limits_of_a_vocabulary_are_positive(limits: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="positive"):
        build_vocabulary(["a"], [1], **limits)
    with pytest.raises(UsageError, match="positive"):
        BackboneSettings(**limits)


# ------------------------------------------------------------------------------------------------------- vectors


def test_glove_is_read_to_known_numbers(glove: Path) -> None:
    found = read_vectors(glove)
    assert list(found.rows) == ["the", ",", "red", "bird", ". . ."]
    assert found.matrix.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 4], [2, 2, 2], [9, 9, 9]]
    assert (found.duplicates, found.undecodable, found.cased, found.dim) == (1, 0, False, 3)


def test_the_same_vectors_in_any_wrapping_have_one_digest(glove: Path, tmp_path: Path) -> None:
    text = GLOVE.encode()
    (tmp_path / "word2vec.txt").write_bytes(b"6 3\n" + text.replace(b"1 0 0", b"1.0 0 0.00 ").replace(b"\n", b"\r\n"))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text))
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(text))
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(text))
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("glove.txt", text)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("in/a.txt", text)
        archive.writestr("b.txt", "the 1\n")
    names = ["word2vec.txt", "a.txt.gz", "a.txt.bz2", "a.txt.xz", "one.zip", "two.zip/in/a.txt"]
    assert {read_vectors(tmp_path / name).digest for name in names} == {read_vectors(glove).digest}
    with pytest.raises(CheckpointError, match=r"2 files; name the one .*two\.zip/in/a\.txt"):
        read_vectors(tmp_path / "two.zip")
    with pytest.raises(CheckpointNotFoundError, match="holds no c"):
        read_vectors(tmp_path / "two.zip" / "c")
    glove.write_text(GLOVE.replace("4", "4.5"))
    assert read_vectors(glove).digest != read_vectors(tmp_path / "a.txt.gz").digest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a 1 2\nb 1\n", "line 2: it has 1 numbers, the lines before it 2"),
        (b"a 1 2\nb 1 two\n", "line 2: b'two' is no number"),
        (b"a 1 2\nb 1 2\nc nan 1\n", "line 3: b'nan' is no number"),
        (b"a 1 2\nb 1 1e99\n", "line 2: b'1e99' is no number"),
        (b"a 1 2\n 1 2\n", "line 2: there is no word"),
        (b"a 1 2\nb 1  2\n", "line 2: b'' is no number"),
        (b"", "line 1: expected a word and its numbers"),
        (b"3 2\na 1 2\nb 1 2\n", "states 3 words in its first line and has 2"),
        (b"2 2\na 1 2\nb 1 2 x\n", "line 3: b'x' is no number"),
    ],
)
def test_a_line_that_is_malformed_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_vectors(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_line_far_down_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedcache.words import vectors

    monkeypatch.setattr(vectors, "_AT_ONCE", 64)
    lines = [f"w{row} {row} 1" for row in range(100)]
    path = tmp_path / "v.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_vectors(path).matrix[:, 0].tolist() == list(range(100))
    lines[70] = "w70 1"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(CheckpointError, match="line 71: it has 1 numbers"):
        read_vectors(path)


def test_files_that_are_cut_or_binary_or_missing_say_so(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(GLOVE.encode() * 50)[:60])
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4" + bytes(30))
    (tmp_path / "v.bin").write_bytes(b"1 2\na \0\0\0\0\0\0\0\0")
    for name, message in (("cut.gz", "cannot be read"), ("cut.zip", "cannot be read"), ("v.bin", "binary format")):
        with pytest.raises(CheckpointError, match=message):
            read_vectors(tmp_path / name)
    with pytest.raises(CheckpointNotFoundError, match="no file of word vectors"):
        read_vectors(tmp_path / "none.txt")


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"caf\xe9 1 2\nna\xefve 3 4\n")
    found = read_vectors(tmp_path / "v.txt")
    assert (list(found.rows), found.undecodable) == (["caf\ufffd", "na\ufffdve"], 2)


def test_real_glove_vectors(shared_data: Path) -> None:
    [path] = (shared_data / "glove").iterdir()
    found = read_vectors(path)
    assert (len(found) + found.duplicates, found.dim, found.cased) == (2446, 50, False)
    lines = path.read_bytes().split(b"\n")
    for number in (0, 1, 500, 2445):
        word, *numbers = lines[number].split()
        assert np.array_equal(found.matrix[found.rows[word.decode()]], np.array(numbers, np.float32))


# ------------------------------------------------------------------------------------------- embedding matrices


def test_an_embedding_matrix_has_the_words_rows(glove: Path) -> None:
    vectors = read_vectors(glove)
    vocabulary = ["<pad>", "<unk>", "red", "blue", "Bird"]
    found = embedding_matrix(vocabulary, vectors)
    assert found.matrix.tolist() == [[0] * 3, [0] * 3, [0, 0, 4], [0] * 3, [2, 2, 2]]
    assert (found.known.tolist(), found.coverage) == ([False, False, True, False, True], 0.5)
    assert found.matrix.dtype == np.float32
    drawn = embedding_matrix(vocabulary, vectors, unknown="random", seed=1).matrix
    assert np.array_equal(drawn, embedding_matrix(vocabulary, vectors, unknown="random", seed=1).matrix)
    assert not np.array_equal(drawn, embedding_matrix(vocabulary, vectors, unknown="random", seed=2).matrix)
    assert not drawn[0].any()
    assert drawn[1].all()
    assert np.array_equal(drawn[[2, 4]], found.matrix[[2, 4]])
    with pytest.raises(UnknownNameError, match="ones"):
        embedding_matrix(vocabulary, vectors, unknown="ones")  # type: ignore[arg-type]


def test_a_word_that_is_called_padding_has_no_vector_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("<pad> 1 1\nred 2 2\n")
    found = embedding_matrix(["<pad>", "red"], read_vectors(tmp_path / "v.txt"))
    assert found.matrix.tolist() == [[0, 0], [2, 2]]


# -------------------------------------------------------------------------------------------------- mean vectors


def test_a_texts_vector_is_the_mean_of_its_words(glove: Path) -> None:
    encoder = resolve(f"glove:{glove}").load("cpu")
    texts = ["The red, red bird zzz", "bird", "zzz yyy", "  ", b"\xff"]
    prepared = encoder.prepare([text.encode() if isinstance(text, str) else text for text in texts])
    good = [item for item in prepared if not isinstance(item, ItemError)]
    assert np.allclose(encoder.forward(good), [[0.6, 0.8, 2.0], [2, 2, 2]])
    assert [str(item) for item in prepared[2:4]] == ["none of its words (2) has a vector", "the text is empty"]
    assert "not UTF-8" in str(prepared[4])
    alone = np.concatenate([encoder.forward([item]) for item in good])
    assert np.array_equal(alone, encoder.forward(good))
    encoder.cast("bfloat16")
    assert encoder.forward(good).dtype == encoder.forward(good).float().dtype


def test_texts_are_lower_cased_as_the_vectors_need_it(glove: Path, tmp_path: Path) -> None:
    cased = tmp_path / "cased.txt"
    cased.write_text("The 1 1\nthe 3 3\n")
    assert resolve(f"glove:{glove}").identity.preprocessing["lowercase"] is True
    as_is, lower = (resolve(f"glove:{cased}", BackboneSettings(lowercase=on)) for on in (False, True))
    assert as_is.identity != lower.identity
    for backbone, expected in ((as_is, 1), (lower, 3)):
        encoder = backbone.load("cpu")
        [item] = encoder.prepare([b"The"])
        assert encoder.forward([item]).tolist() == [[expected, expected]]  # type: ignore[list-item]


def test_both_names_and_any_wrapping_mean_the_same_encoder(glove: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(b"6 3\n" + GLOVE.encode()))
    assert resolve(f"glove:{glove}").identity == resolve(f"word2vec:{packed}").identity
    assert resolve(f"glove:{glove}").name == "glove:glove.txt"


@pytest.mark.parametrize(
    ("name", "setting"),
    [("glove:{}", {"pooling": "cls"}), ("glove:{}", {"min_count": 2}), ("words", {"prompt": "x"}),
     ("words:published", {"lowercase": True}), ("demo-text", {"max_words": 5}), ("words", {"weights": "x"})],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(glove: Path, name: str, setting: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="has no meaning"):
        resolve(name.format(glove), BackboneSettings(**setting))  # type: ignore[arg-type]


def test_each_backbone_takes_the_settings_that_mean_something_to_it(glove: Path) -> None:
    words, mean = resolve_all(["words", f"glove:{glove}"], BackboneSettings(min_count=3, lowercase=True))
    assert words.settings.stated() == {"min_count": 3, "lowercase": True}
    assert mean.settings.stated() == {"lowercase": True}


def test_there_is_nothing_to_fetch_or_to_load(glove: Path) -> None:
    for name in ("words", f"glove:{glove}", "word2vec:elsewhere.txt"):
        with pytest.raises(UsageError, match="nothing to fetch"):
            fetch(name)
    with pytest.raises(UsageError, match="not vectors"):
        resolve("words").load("cpu")
    with pytest.raises(UnknownNameError, match="training"):
        resolve("words:trainin")


def test_mean_vectors_are_features_as_any(glove: Path, tmp_path: Path) -> None:
    """Extracted once per text, verified against the file, and given to new texts for prediction."""
    (tmp_path / "t.csv").write_text("text,label\nthe bird,x\nThe Bird,x\nthe bird,y\nzzz,y\nred,x\n")
    cache = tmp_path / "cache"
    [done] = ec.extract(
        "table", tmp_path / "t.csv", backbones=[f"glove:{glove}"], text="text", label="label", cache=cache
    )
    assert (done.n_items, done.n_encoded, done.n_failed, done.dim) == (4, 4, 1, 3)
    [again] = ec.extract("t", backbones=[f"word2vec:{glove}"], cache=cache)
    assert (again.action, again.n_encoded) == ("reuse", 0)
    dataset = ec.open(cache)["t"]
    features = dataset.features("glove.txt")
    assert np.allclose(features.matrix(), [[1.5, 1, 1], [1.5, 1, 1], [1.5, 1, 1], [0, 0, 4]])
    assert features.left_out == {"its text failed in glove:glove.txt": 1}
    file = dataset.find("glove:glove.txt")
    assert list(read_failures(file.path).values()) == ["none of its words (1) has a vector"]
    assert (file.record["duplicates"], file.record["undecodable"]) == (1, 0)
    recompute = verification.again(9, backbone=f"glove:{glove}")
    [report] = verification.verify(dataset, recompute=recompute)
    assert [one.message[:22] for one in report.findings] == ["3 rows encoded again: "]
    reference = EncoderReference(
        "glove:glove.txt", {}, file.provenance["compute"], file.provenance["stored"], file.fingerprint
    )
    found = encode(reference, ["a RED bird", "zzz"], "text", checkpoint=str(glove))
    assert np.allclose(found.vectors[0], [1, 1, 3])
    assert found.failures == {1: "none of its words (1) has a vector"}
    with pytest.raises(CheckpointNotFoundError, match="--checkpoint"):
        encode(reference, ["red"], "text")
