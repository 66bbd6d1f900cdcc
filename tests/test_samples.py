"""The sample table: items once, references that lead back, subsets that nest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache import samples
from embedcache.errors import DamagedFileError, UsageError
from embedcache.samples import (
    build,
    canonical_split,
    items_path,
    load,
    nested_subset,
    save,
    text_id,
    write_parquet,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=4)


def test_three_questions_about_one_photo_encode_it_once() -> None:
    table = build(["q1", "q2", "q3"], images=["a.jpg"] * 3, texts=[["what?"], ["where?"], ["what?"]])
    assert table.counts == {"samples": 3, "images": 1, "texts": 2}
    assert table.items["image"]["id"].to_pylist() == ["a.jpg"]
    assert table.items["text"]["text"].to_pylist() == ["what?", "where?"]
    for modality, expected in (("image", [0, 0, 0]), ("text", [0, 1, 0])):
        references, offsets = table.references(modality)
        assert references.tolist() == expected
        assert offsets.tolist() == [0, 1, 2, 3]


def test_items_stand_in_order_of_appearance() -> None:
    table = build(list("12345"), images=["z", "a", None, "z", "m"], texts=[["y", "x"], [], ["x"], ["w"], ["y"]])
    assert table.items["image"]["id"].to_pylist() == ["z", "a", "m"]
    assert table.items["text"]["text"].to_pylist() == ["y", "x", "w"]


def test_references_are_ragged_and_follow_the_rows_asked_for() -> None:
    table = build(list("1234"), images=["a", None, "b", "a"], texts=[["x", "y"], [], ["y"], ["z", "x", "z"]])
    references, offsets = table.references("text")
    assert (references.tolist(), offsets.tolist()) == ([0, 1, 1, 2, 0, 2], [0, 2, 2, 3, 6])
    references, offsets = table.references("text", np.array([3, 1, 0]))
    assert (references.tolist(), offsets.tolist()) == ([2, 0, 2, 0, 1], [0, 3, 3, 5])
    references, offsets = table.references("image")
    assert (references.tolist(), offsets.tolist()) == ([0, 1, 0], [0, 1, 1, 2, 3])
    assert table.used_items("image", np.array([1, 2])).tolist() == [1]
    assert table.used_items("text", np.array([3, 2])).tolist() == [0, 1, 2]
    assert table.used_items("text").tolist() == [0, 1, 2]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(TEXT, max_size=4), max_size=8))
def test_references_lead_back_to_every_text(texts: list[list[str]]) -> None:
    table = build([str(row) for row in range(len(texts))], texts=texts)
    unique = table.items["text"]["text"].to_pylist()
    references, offsets = table.references("text")
    assert unique == list(dict.fromkeys(text for row in texts for text in row))
    assert [[unique[item] for item in references[a:b]] for a, b in pairwise(offsets)] == texts
    ids = table.items["text"]["id"].to_pylist()
    assert ids == [xxhash.xxh3_128_hexdigest(text.encode("utf-8")) for text in unique] == [text_id(t) for t in unique]


@pytest.mark.parametrize("slice_of", [False, True])
def test_arrow_columns_in_chunks_and_slices_are_taken_as_lists_are(slice_of: bool) -> None:
    lists = pa.chunked_array([[["no"], ["a", "b"]], [["b"], []], [["c"]]], pa.list_(pa.string()))
    ids = pa.chunked_array([["0", "1"], ["2"], ["3", "4"]])
    column, keys = (lists.slice(1), ids.slice(1)) if slice_of else (lists, ids)
    expected = build(keys.to_pylist(), texts=column.to_pylist(), weight=[1.0, None, 2.5, 3.0, 4.0][: len(keys)])
    weight = pa.chunked_array([[1.0, None], [2.5, 3.0, 4.0]]).slice(0, len(keys))
    table = build(keys, texts=column, weight=weight)
    assert table.samples.to_pylist() == expected.samples.to_pylist()
    assert table.items["text"].to_pylist() == expected.items["text"].to_pylist()


def test_a_modality_that_is_lacking_has_no_column() -> None:
    table = build(["1"], images=["a"])
    assert table.modalities == ("image",)
    assert table.samples.column_names == ["id", "split", "image"]
    assert build(["1"], texts=[["a"]], targets={"y": [1]}).targets == ("y",)


@pytest.mark.parametrize(
    ("ids", "says"), [(["a", "b", "a", "b", "c"], "2 sample ids .*'a', 'b'"), (["a", None], "no id")]
)
def test_ids_must_be_there_and_unique(ids: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build(ids)


def test_many_repeated_texts_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    texts = [f"text {number}" for number in rng.integers(0, 3_000, 100_000)]
    table = build([str(row) for row in range(len(texts))], texts=[[text] for text in texts])
    unique = table.items["text"]["text"].to_pylist()
    references, _ = table.references("text")
    assert unique == list(dict.fromkeys(texts))
    assert [unique[item] for item in references] == texts


@pytest.mark.parametrize(
    ("name", "expected"), [("Val", "validation"), (" dev ", "validation"), ("TRAINING", "train"), ("fold 1", "fold 1")]
)
def test_names_of_splits(name: str, expected: str) -> None:
    assert canonical_split(name) == expected


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    table = build(
        ["1", "2", "ü"],
        split=["train", None, "test"],
        images=["a.jpg", "a.jpg", None],
        texts=[["x", "鳥"], [], ["x"]],
        targets={"label": ["p", None, "q"], "score": [1.5, 2.5, None]},
        group=["g", "g", None],
        weight=[1.0, None, 0.5],
        meta={"page": [1, 2, 3]},
        notes=["3 notes"],
    )
    save(table, tmp_path)
    again = load(tmp_path, table.notes)
    assert again.samples.equals(table.samples)
    assert {name: items.to_pylist() for name, items in again.items.items()} == {
        name: items.to_pylist() for name, items in table.items.items()
    }
    assert (again.counts, again.notes, again.targets) == (table.counts, ("3 notes",), ("label", "score"))


@pytest.mark.parametrize("damage", ["missing", "torn", "other"])
def test_a_damaged_table_is_an_error_and_never_half_a_data_set(tmp_path: Path, damage: str) -> None:
    save(build(["1", "2"], texts=[["a"], ["b"]]), tmp_path)
    path = items_path(tmp_path, "text")
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        other = tmp_path / "other"
        other.mkdir()
        save(build(["1"], texts=[["z"]]), other)
        items_path(other, "text").rename(path)
    with pytest.raises(DamagedFileError, match="items"):
        load(tmp_path).references("text")


LABELS = st.one_of(st.none(), st.lists(st.sampled_from("abcd"), min_size=60, max_size=60))


@settings(max_examples=80, deadline=None)
@given(LABELS, st.integers(0, 60), st.integers(0, 70), st.integers(0, 5))
def test_subsets_nest_and_are_seeded(labels: list[str] | None, small: int, large: int, seed: int) -> None:
    small, large = sorted((small, large))
    inner, outer = (nested_subset(labels, 60, limit, seed) for limit in (small, large))
    assert len(inner) == min(small, 60)
    assert len(outer) == min(large, 60)
    assert set(inner.tolist()) <= set(outer.tolist()) <= set(range(60))
    assert (np.diff(outer) > 0).all()
    assert outer.tolist() == nested_subset(labels, 60, large, seed).tolist()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from("aaaabbc"), min_size=1, max_size=200), st.data())
def test_subsets_hold_classes_in_proportion(labels: list[str], data: st.DataObject) -> None:
    """Each class is off its share by less than one row, and by its share of the other classes' such rows."""
    limit = data.draw(st.integers(1, len(labels)))
    rows = nested_subset(labels, len(labels), limit, data.draw(st.integers(0, 3)))
    sizes = Counter(labels)
    found = Counter(labels[row] for row in rows)
    for name, size in sizes.items():
        share = size / len(labels)
        assert abs(found[name] - limit * share) <= 1 + len(sizes) * share


def test_seeds_give_other_subsets_and_labels_may_be_missing() -> None:
    labels = np.array([None, "a", 3] * 100, object)
    first, second = (nested_subset(labels, 300, 30, seed).tolist() for seed in (0, 1))
    assert first != second
    assert Counter(str(labels[row]) for row in first) == {"None": 10, "a": 10, "3": 10}


def test_a_crash_between_two_tables_leaves_tables_that_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that are gone go from the disk only after the samples that refer to them."""
    before = build(["1", "2"], images=["old", "kept"], texts=[["x"], ["y"]])
    after = build(["1", "2"], images=["kept", "new"], texts=[["y"], ["z"]])
    for crash in range(6):
        folder = tmp_path / str(crash)
        folder.mkdir()
        save(before, folder)
        calls = count()

        def write(path: Path, table: pa.Table, crash: int = crash, calls: Iterator[int] = calls) -> None:
            if next(calls) == crash:
                raise KeyboardInterrupt
            write_parquet(path, table)

        with monkeypatch.context() as patched:
            patched.setattr(samples, "write_parquet", write)
            with suppress(KeyboardInterrupt):
                save(after, folder)
        found = load(folder)
        for modality in ("image", "text"):
            found.references(modality)
        save(after, folder)
        assert [load(folder).items[modality].num_rows for modality in ("image", "text")] == [2, 2]
