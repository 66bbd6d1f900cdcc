"""Tables of samples: CSV, TSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.datasets import open_dataset, read_image
from embedcache.datasets.table import Table
from embedcache.errors import DataNotFoundError, ItemError, UnknownNameError, UsageError
from embedcache.samples import SampleTable, text_id
from tests.tiny_multilabel import texts_of

TEXTS = [
    "plain",
    'commas, and "quotes"',
    "two\nlines",
    "two\r\nDOS lines",
    "tab\there",
    " spaces ",
    "naïve 鳥 🐦",
    "NA",
    "1.0",
]
LABELS = ["a", "b", "a", "c", "b", "a", "c", "null", "1"]


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def compressed(path: Path) -> Path:
    gz = path.with_name(path.name + ".gz")
    gz.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return gz


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "csv": write_csv,
    "tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "jsonl": write_lines,
    "ndjson": write_lines,
    "parquet": write_parquet,
}


def read(*files: Path, **options: Any) -> SampleTable:
    return open_dataset("table", files, options).read()


def raw(folder: Path, content: bytes | str, name: str = "bank.csv") -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "ndjson"])
def test_formats_of_text_give_the_same_samples(tmp_path: Path, kind: str, zipped: bool) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    path = WRITERS[kind](tmp_path / f"bank.{kind}", rows)
    table = read(compressed(path) if zipped else path, text="text", label="label")
    assert texts_of(table) == [[text] for text in TEXTS]
    assert table.samples["target.label"].to_pylist() == LABELS
    assert table.samples["id"].to_pylist() == [str(row) for row in range(len(TEXTS))]
    assert table.samples["split"].to_pylist() == [None] * len(TEXTS)
    assert table.modalities == ("text",)


def test_parquet_keeps_types_of_labels_and_categories(tmp_path: Path) -> None:
    columns = {
        "text": pa.array(TEXTS).dictionary_encode(),
        "label": pa.array(range(9), pa.int32()),
        "part": pa.array(["train", "test", "val"] * 3).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "bank.parquet")
    table = read(tmp_path / "bank.parquet", text="text", label="label", split="part")
    assert texts_of(table) == [[text] for text in TEXTS]
    assert table.samples["target.label"].to_pylist() == list(range(9))
    assert table.samples["split"].to_pylist() == ["train", "test", "validation"] * 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=6))
def test_any_text_survives_csv(pairs: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_csv(Path(folder) / "any.csv", [{"first": a, "second": b} for a, b in pairs])
        assert texts_of(read(path, text=["first", "second"])) == [list(pair) for pair in pairs]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=6))
def test_any_text_survives_json_lines(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder) / "any.jsonl", [{"text": text, "n": 1} for text in texts])
        assert texts_of(read(path, text="text")) == [[text] for text in texts]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_texts_that_look_like_times_stay_texts(tmp_path: Path, kind: str) -> None:
    times = ["2020-01-01", "2020-01-02 10:00:00"]
    path = WRITERS[kind](tmp_path / f"t.{kind}", [{"text": time, "label": time} for time in times])
    table = read(path, text="text", label="label")
    assert texts_of(table) == [[time] for time in times]
    assert table.samples["target.label"].to_pylist() == times


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_longer_than_the_parsers_block_is_read(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "word \n" * 400_000, "n": "1"}, {"text": "short", "n": "2"}]
    table = read(WRITERS[kind](tmp_path / f"long.{kind}", rows), text="text", label="n")
    assert [len(texts[0]) for texts in texts_of(table)] == [2_400_000, 5]


def test_one_file_per_split(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_csv(tmp_path / f"{split}.csv", [{"text": f"{split} {row}", "label": "x"} for row in range(2)])
    raw(tmp_path, "unrelated", "notes.csv")
    table = read(tmp_path, text="text", label="label")
    found = dict(zip(table.samples["id"].to_pylist(), table.samples["split"].to_pylist(), strict=True))
    assert found == {
        "train:0": "train", "train:1": "train", "valid:0": "validation", "valid:1": "validation",
        "test:0": "test", "test:1": "test",
    }  # fmt: skip


def test_compressed_files_are_splits_too(tmp_path: Path) -> None:
    for split in ("train", "test"):
        compressed(write_csv(tmp_path / f"{split}.csv", [{"text": split, "label": "x"}]))
    table = read(tmp_path, text="text", label="label")
    assert table.samples["id"].to_pylist() == ["test:0", "train:0"]
    assert table.samples["split"].to_pylist() == ["test", "train"]
    single = open_dataset("table", [tmp_path / "train.csv.gz"], {"text": "text"})
    assert single.default_name == "train"


def test_several_files_stand_in_the_order_given(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"{name}.csv", [{"text": name}]) for name in ("z", "a")]
    table = read(*paths, text="text")
    assert table.samples["id"].to_pylist() == ["z:0", "a:0"]
    assert table.samples["split"].to_pylist() == [None, None]


def test_a_split_file_without_labels_has_no_targets(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": 7}])
    write_lines(tmp_path / "test.jsonl", [{"text": "b"}])
    table = read(tmp_path, text="text", label="label")
    assert table.samples["split"].to_pylist() == ["test", "train"]
    assert table.samples["target.label"].to_pylist() == [None, 7]


def test_labels_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": 7}])
    write_lines(tmp_path / "test.jsonl", [{"text": "b", "label": "seven"}])
    with pytest.raises(UsageError, match="label"):
        read(tmp_path, text="text", label="label")


def test_every_column_means_what_was_said(tmp_path: Path) -> None:
    rows = [
        {"key": "k1", "photo": "a.jpg", "q": "red", "a": "bird", "y": "1", "part": "dev", "who": "p1", "w": "0.5"},
        {"key": "k2", "photo": "", "q": "blue", "a": "bird", "y": "", "part": "other", "who": "", "w": ""},
    ]
    options = {"id": "key", "image": "photo", "text": ["q", "a"], "label": "y", "split": "part", "group": "who"}
    table = read(write_csv(tmp_path / "t.csv", rows), **options, weight="w")
    assert table.samples.drop_columns(["texts"]).to_pylist() == [
        {"id": "k1", "split": "validation", "image": "a.jpg", "group": "p1", "weight": 0.5, "target.label": "1"},
        {"id": "k2", "split": "other", "image": None, "group": None, "weight": None, "target.label": None},
    ]
    assert texts_of(table) == [["red", "bird"], ["blue", "bird"]]
    assert table.counts == {"samples": 2, "images": 1, "texts": 3}


def test_columns_that_are_not_named_are_absent(tmp_path: Path) -> None:
    table = read(write_csv(tmp_path / "t.csv", [{"photo": "a.jpg", "label": "x"}]), image="photo")
    assert table.samples.column_names == ["id", "split", "image"]
    assert table.modalities == ("image",)


def test_a_table_needs_texts_or_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--text COLUMN or --image COLUMN"):
        read(write_csv(tmp_path / "t.csv", [{"text": "a"}]), label="text")


@pytest.mark.parametrize("option", ["id", "image", "text", "label", "split", "group", "weight"])
def test_an_unknown_column_offers_the_nearest(tmp_path: Path, option: str) -> None:
    path = write_csv(tmp_path / "t.csv", [{"category": "a", "query": "b"}])
    with pytest.raises(UnknownNameError, match=rf"{option} column in .*t\.csv.*'categroy'.*Did you mean 'category'"):
        read(path, **{"text": "query", option: "categroy"})


@pytest.mark.parametrize("option", ["label", "split"])
def test_a_column_that_no_file_has_is_refused(tmp_path: Path, option: str) -> None:
    paths = [write_csv(tmp_path / f"{name}.csv", [{"text": name, "label": "x"}]) for name in ("train", "test")]
    with pytest.raises(UnknownNameError, match=f"{option} column"):
        read(*paths, text="text", **{option: "lable"})


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bank\.csv has 2 columns named 'text'"):
        read(raw(tmp_path, "text,text\na,b\n"), text="text")


def test_empty_texts_stay_and_missing_ones_do_not(tmp_path: Path) -> None:
    table = read(raw(tmp_path, 'text,label\n"",a\n,b\n  ,c\nword,d\n'), text="text", label="label")
    assert texts_of(table) == [[""], [""], ["  "], ["word"]]
    rows = [{"text": None, "other": "x"}, {"text": "", "other": None}]
    table = read(write_parquet(tmp_path / "t.parquet", rows), text=["text", "other"])
    assert texts_of(table) == [["x"], [""]]


def test_a_text_of_many_rows_is_one_item(tmp_path: Path) -> None:
    table = read(write_csv(tmp_path / "t.csv", [{"text": text} for text in "abacab"]), text="text")
    assert table.items["text"]["text"].to_pylist() == ["a", "b", "c"]
    assert texts_of(table) == [[text] for text in "abacab"]


@pytest.mark.parametrize("value", ["heavy", "1,5", "0x1"])
def test_a_weight_that_is_no_number_is_shown(tmp_path: Path, value: str) -> None:
    path = write_csv(tmp_path / "t.csv", [{"text": "a", "w": "1"}, {"text": "b", "w": value}])
    with pytest.raises(UsageError, match=rf"weight.*'{value}'"):
        read(path, text="text", weight="w")


def test_repeated_and_blank_ids_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"id": key, "text": "x"} for key in ("a", "b", "a")])
    with pytest.raises(UsageError, match=r"1 sample ids occur more than once \('a'\)"):
        read(path, id="id", text="text")
    path = write_csv(tmp_path / "t.csv", [{"id": key, "text": "x"} for key in ("a", "", "")])
    with pytest.raises(UsageError, match="2 samples have no id"):
        read(path, id="id", text="text")


def test_image_paths_that_leave_the_folder_are_failures_of_their_items(tmp_path: Path) -> None:
    outside = raw(tmp_path, b"secret", "secret.jpg")
    inside = tmp_path / "photos"
    inside.mkdir()
    raw(inside, b"photo", "a.jpg")
    paths = ["a.jpg", "../secret.jpg", "x/../../secret.jpg", str(outside), "nul\0.jpg", "absent.jpg", "."]
    path = write_parquet(inside / "t.parquet", [{"photo": path} for path in paths])
    table = open_dataset("table", [path], {"image": "photo"})
    assert table.read().samples["image"].to_pylist() == paths
    assert read_image(table.image_folder, "a.jpg") == b"photo"
    for item in paths[1:5]:
        with pytest.raises(ItemError, match="leaves the data folder"):
            read_image(table.image_folder, item)
    with pytest.raises(ItemError, match="missing"):
        read_image(table.image_folder, "absent.jpg")
    with pytest.raises(ItemError, match="cannot be read"):
        read_image(table.image_folder, ".")


def test_images_are_below_the_folder_that_is_stated(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    path = write_csv(tmp_path / "t.csv", [{"photo": "a.jpg"}])
    assert open_dataset("table", [path], {"image": "photo"}).image_folder == tmp_path
    assert open_dataset("table", [path], {"image": "photo", "images": str(photos)}).image_folder == photos


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / f"t.{kind}", [{"text": "a", "label": "b"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert texts_of(read(path, text="text")) == [["a"]]


def test_line_endings_of_dos_are_no_part_of_a_value(tmp_path: Path) -> None:
    table = read(raw(tmp_path, "text,label\r\na,b\r\n"), text="text", label="label")
    assert texts_of(table) == [["a"]]
    assert table.samples["target.label"].to_pylist() == ["b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text,label\na,1\nb,2\nc,3,4\n", r"Row #4.*Expected 2 columns, got 3"),
        ("text,label\na,1\nb\n", r"Row #3.*Expected 2 columns, got 1"),
        (b"", "Empty CSV"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, content: bytes | str, says: str) -> None:
    with pytest.raises(UsageError, match=rf"bank\.csv cannot be read: .*{says}"):
        read(raw(tmp_path, content), text="text", label="label")


def test_a_label_that_is_not_utf8_is_named_and_a_text_fails_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bank\.csv, row 3: its label holds bytes that are not UTF-8"):
        read(raw(tmp_path, b"text,label\na,b\nc,caf\xe9\n"), text="text", label="label")
    table = read(raw(tmp_path, b"text,more,label\na,b,x\ncaf\xe9,caf\xe9,y\n"), text=("text", "more"), label="label")
    assert table.items["text"].to_pydict() == {
        "id": [text_id("a"), text_id("b"), xxhash.xxh3_128_hexdigest(b"caf\xe9")],
        "text": ["a", "b", "caf\ufffd"],
        "error": [None, None, "it is not UTF-8: unexpected end of data at byte 3"],
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("t.jsonl", b'{"text": "lone \\ud800"}\n'),
        ("t.parquet", b"PAR1 no"),
        ("t.csv.gz", b"not gzip"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UsageError, match=rf"{name} cannot be read"):
        read(raw(tmp_path, content, name), text="text")


def test_a_column_of_lists_gives_each_sample_several_texts(tmp_path: Path) -> None:
    rows = [{"text": ["a", "b"], "title": "t"}, {"text": [], "title": "u"}, {"text": None, "title": None}]
    path = write_lines(tmp_path / "t.jsonl", rows)
    assert texts_of(open_dataset("table", [path], {"text": "text"}).read()) == [["a", "b"], [], []]
    assert texts_of(open_dataset("table", [path], {"text": ("title", "text")}).read()) == [["t", "a", "b"], ["u"], []]


def test_a_column_of_objects_is_no_column_of_texts(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{"text": {"a": "b"}}])
    with pytest.raises(UsageError, match=r"text column in .*t\.jsonl holds no texts"):
        read(path, text="text")


def test_files_and_folders_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no table .*absent\.csv"):
        read(tmp_path / "absent.csv", text="text")
    with pytest.raises(DataNotFoundError, match="holds no table"):
        read(tmp_path, text="text")
    with pytest.raises(UsageError, match=r"t\.xlsx is no table that is known"):
        read(raw(tmp_path, b"", "t.xlsx"), text="text")
    raw(tmp_path, "text\na\n", "one.csv")
    raw(tmp_path, "text\na\n", "two.csv")
    with pytest.raises(UsageError, match="2 tables, none named as a split"):
        read(tmp_path, text="text")


def test_a_single_table_in_a_folder_is_the_one(tmp_path: Path) -> None:
    raw(tmp_path, "text\na\n", "bank.csv")
    assert Table.open(tmp_path, text="text").files == (tmp_path / "bank.csv",)


def test_what_is_remembered_reads_the_same_again(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"q": "a", "r": "b", "y": "c"}])
    table = open_dataset("table", [path], {"text": ["q", "r"], "label": "y", "images": str(tmp_path)})
    assert open_dataset("table", table.sources, json.loads(json.dumps(table.settings()))) == table


def test_banking77_counts_and_texts(shared_data: Path) -> None:
    table = read(shared_data / "banking77", text="text", label="category")
    assert Counter(table.samples["split"].to_pylist()) == {"train": 10_003, "test": 3_080}
    assert len(set(table.samples["target.label"].to_pylist())) == 77
    expected: dict[str, str] = {}
    for split in ("train", "test"):
        content = (shared_data / "banking77" / f"{split}.csv").read_text(encoding="utf-8")
        for row, line in enumerate(csv.DictReader(io.StringIO(content, newline=""))):
            expected[f"{split}:{row}"] = line["text"]
    found = {key: texts[0] for key, texts in zip(table.samples["id"].to_pylist(), texts_of(table), strict=True)}
    assert found == expected
    stripped = {key: text.strip() for key, text in found.items()}
    train = {text for key, text in stripped.items() if key.startswith("train")}
    assert sum(text in train for key, text in stripped.items() if key.startswith("test")) == 6
    assert table.counts["texts"] == len(set(expected.values()))
    assert any("\n" in text for text in found.values())


@pytest.mark.parametrize("content", ["null\n", '{"text": "a"}\n null\n', '{"text": "a"}\n[1]\n', '{"text": "a"}\n12'])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=rf"line {content.count(chr(10), 0, -1) + 1}: expected an object"):
        read(raw(tmp_path, content, "t.jsonl"), text="text")


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    content = '\ufeff{"text": "a"}\r\n\r\n  {"text": "b"}'
    assert texts_of(read(raw(tmp_path, content, "t.jsonl"), text="text")) == [["a"], ["b"]]
