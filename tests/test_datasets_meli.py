"""The MeLi challenge of 2019 in both published layouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import embedcache as ec
from cli import app
from embedcache import samples
from embedcache.datasets import discover, open_dataset, sampling, streaming
from embedcache.datasets.base import LongDataset, PublishedTokens
from embedcache.datasets.meli import Meli
from embedcache.errors import DataNotFoundError, EmbedCacheError, UnknownNameError, UsageError
from embedcache.samples import SampleTable
from heads.fit import fit
from tests import heads_helpers
from tests.fakes import FakeBackbone
from tests.tiny_meli import (
    TEST,
    TRAIN,
    TRAIN_HEADER,
    Row,
    as_csv,
    as_lines,
    prepared,
    write,
    write_own,
    write_prepared,
)

ENDINGS = pytest.mark.parametrize("end", ["", ".gz"], ids=["plain", "gz"])
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def column(table: SampleTable, name: str) -> list[Any]:
    found: list[Any] = table.samples[name].to_pylist()
    return found


def titles_of(table: SampleTable) -> list[str]:
    """The title of each sample, through the items."""
    references, offsets = table.references("text")
    assert np.array_equal(offsets, np.arange(table.samples.num_rows + 1))
    found: list[str] = table.items["text"]["text"].take(pa.array(references)).to_pylist()
    return found


def word_lists(published: PublishedTokens | None, table: SampleTable) -> dict[str, list[str]]:
    """The words of each text."""
    assert published is not None
    words = published.vocabulary.to_pylist()
    parts = np.split(published.tokens, published.offsets[1:-1])
    texts = table.items["text"]["text"].to_pylist()
    return {text: [words[token] for token in part] for text, part in zip(texts, parts, strict=True)}


def many(n: int, **fields: str) -> list[Row]:
    return [Row(f"Título {row}", **{"category": f"C{row % 3}", **fields}) for row in range(n)]


# ----------------------------------------------------------------------------------------------- the challenge's own


@ENDINGS
def test_the_challenges_own_files_are_read_as_published(tmp_path: Path, end: str) -> None:
    table = Meli.open(write_own(tmp_path, end=end)).read()
    assert table.counts == {"samples": 7, "texts": 7}
    assert column(table, "id") == [*(f"train:{row}" for row in range(5)), "0", "1"]
    assert column(table, "split") == ["train"] * 5 + ["test"] * 2
    assert titles_of(table) == [row.title for row in TRAIN] + [row[1] for row in TEST]
    assert column(table, "target.category") == [row.category for row in TRAIN] + [None, None]
    assert column(table, "meta.language") == [row.language for row in TRAIN] + [row[2] for row in TEST]
    assert column(table, "meta.label_quality") == [row.label_quality for row in TRAIN] + [None, None]
    assert table.targets == ("category",)
    assert table.notes == ()
    assert "weight" not in table.samples.column_names


def test_without_its_test_file_the_train_file_is_enough(tmp_path: Path) -> None:
    assert column(Meli.open(write_own(tmp_path, test=None)).read(), "split") == ["train"] * 5


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "bom"])
def test_line_endings_and_byte_order_marks_change_nothing(tmp_path: Path, ending: str, mark: str) -> None:
    write(tmp_path / "train.csv", mark + as_csv(TRAIN_HEADER, TRAIN).replace("\n", ending))
    assert titles_of(Meli.open(tmp_path).read()) == [row.title for row in TRAIN]


@pytest.mark.parametrize(
    "title",
    [
        'Tv 32", Led',
        "línea\nrota",
        "línea\r\nrota",
        "NA",
        "null",
        " espacios ",
        "2019-01-01",
        "😀 ÑÁ ç",
        "'",
        '""',
        "1,5",
    ],
)
def test_titles_are_intact(tmp_path: Path, title: str) -> None:
    rows = [Row("antes"), Row(title), Row("después")]
    write_own(tmp_path / "own", rows, test=None)
    write_prepared(tmp_path / "prepared", {"train": [prepared(row) for row in rows]})
    for folder in ("own", "prepared"):
        assert titles_of(Meli.open(tmp_path / folder).read()) == ["antes", title, "después"]


def test_an_unescaped_inch_mark_inside_a_title_is_part_of_it(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", as_csv(TRAIN_HEADER, []) + 'Tv 32" Led,reliable,spanish,TELEVISIONS\n')
    assert titles_of(Meli.open(tmp_path).read()) == ['Tv 32" Led']


def test_empty_titles_stay_and_are_counted(tmp_path: Path) -> None:
    table = Meli.open(write_own(tmp_path, [Row(""), *TRAIN, Row("")], test=None)).read()
    assert titles_of(table) == ["", *(row.title for row in TRAIN), ""]
    assert table.notes == ("2 titles are empty",)


def test_training_rows_without_a_category_are_counted(tmp_path: Path) -> None:
    table = Meli.open(write_own(tmp_path, [*TRAIN, Row("sin", category="")])).read()
    assert column(table, "target.category")[5] is None
    assert table.notes == ("1 rows outside the test split without a category",)


def test_a_title_of_several_rows_is_one_item(tmp_path: Path) -> None:
    table = Meli.open(write_own(tmp_path, [*TRAIN, *TRAIN], test=None)).read()
    assert table.counts == {"samples": 10, "texts": 5}


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    header = ("category", "language", "title", "label_quality")
    write(tmp_path / "train.csv", as_csv(header, [[getattr(row, name) for name in header] for row in TRAIN]))
    assert column(Meli.open(tmp_path).read(), "target.category") == [row.category for row in TRAIN]


# -------------------------------------------------------------------------------------------- the course's prepared


@ENDINGS
def test_the_prepared_files_are_read_as_published(tmp_path: Path, end: str) -> None:
    write_prepared(tmp_path, end=end)
    table = Meli.open(write_prepared(tmp_path, language="portuguese", end=end)).read()
    assert column(table, "split") == ["train"] * 5 + ["validation"] * 5 + ["test"] * 5
    assert column(table, "id")[:5] == ["spanish.train:0", "spanish.train:1", "spanish.train:2", *PORTUGUESE_IDS]
    assert column(table, "meta.language")[:5] == ["spanish"] * 3 + ["portuguese"] * 2
    assert table.counts["texts"] == 5
    assert sorted(set(titles_of(table))) == sorted(row.title for row in TRAIN)
    assert None not in column(table, "target.category")


PORTUGUESE_IDS = ("portuguese.train:0", "portuguese.train:1")


@pytest.mark.parametrize("lacking", ["language", "label_quality", "category", "split", "data", "size"])
def test_a_field_that_is_missing_or_null_is_no_fault(tmp_path: Path, lacking: str) -> None:
    rows: list[dict[str, Any]] = [prepared(TRAIN[0]), prepared(TRAIN[1], **{lacking: None}), prepared(TRAIN[3])]
    del rows[2][lacking]
    table = Meli.open(write_prepared(tmp_path, {"train": rows})).read()
    assert column(table, "meta.language") == ["spanish"] * 3
    assert [value is None for value in column(table, "target.category")] == [False] + [lacking == "category"] * 2
    assert [value is None for value in column(table, "meta.label_quality")] == [False] + [
        lacking == "label_quality"
    ] * 2


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    lines = as_lines([prepared(row) for row in TRAIN[:2]])
    write(tmp_path / "spanish.train.jsonl", "\n" + lines.replace("\n", "\r\n \n") + "\n\t")
    assert column(Meli.open(tmp_path).read(), "id") == ["spanish.train:0", "spanish.train:1"]


def test_blocks_do_not_change_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(f"Título {'muy ' * (row % 7)}largo, {row}\nñ") for row in range(400)]
    write_own(tmp_path / "own", rows, end=".gz")
    write_prepared(tmp_path / "prepared", {"train": [prepared(row) for row in rows]})
    whole = {folder: Meli.open(tmp_path / folder).read() for folder in ("own", "prepared")}
    monkeypatch.setattr(streaming, "BLOCK", 600)
    for folder, table in whole.items():
        assert Meli.open(tmp_path / folder).read().samples.equals(table.samples)
        assert len(list(streaming.first_line(tmp_path / folder / "train.csv.gz") or "")) == (
            37 if folder == "own" else 0
        )


# ---------------------------------------------------------------------------------------------------------- options


def test_a_language_is_chosen(tmp_path: Path) -> None:
    table = Meli.open(write_own(tmp_path), language="spanish").read()
    assert column(table, "id") == ["train:0", "train:1", "train:3", "0"]
    assert table.notes == ("3 rows left out whose language is not spanish",)


def test_files_of_another_language_are_not_opened(tmp_path: Path) -> None:
    write_prepared(tmp_path)
    write(tmp_path / "portuguese.train.jsonl.gz", b"")
    table = Meli.open(tmp_path, language="spanish").read()
    assert set(column(table, "meta.language")) == {"spanish"}


@pytest.mark.parametrize(("quality", "ids"), [("reliable", ["train:0", "train:4"]), ("unreliable", None)])
def test_label_quality_filters_rows_that_have_one(tmp_path: Path, quality: str, ids: list[str] | None) -> None:
    table = Meli.open(write_own(tmp_path), label_quality=quality).read()
    assert column(table, "id") == [*(ids or ["train:1", "train:2", "train:3"]), "0", "1"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("label_quality", [1, 0.5, 0.5, 0.5, 1]), ({"reliable": 2, "unreliable": 0}, [2, 0, 0, 0, 2])],
)
def test_weights_follow_label_quality(tmp_path: Path, weights: Any, expected: list[float]) -> None:
    table = Meli.open(write_own(tmp_path), weights=weights).read()
    assert column(table, "weight") == [*expected, None, None]
    assert table.samples["weight"].type == pa.float64()


def test_a_label_quality_without_a_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weights has none for the label quality 'unreliable'"):
        Meli.open(write_own(tmp_path), weights={"reliable": 1.0}).read()


def test_random_rows_are_seeded_nested_and_uniform(tmp_path: Path) -> None:
    data = write_own(tmp_path, many(3000))
    chosen = {n: column(Meli.open(data, rows=n, splits="train").read(), "id") for n in (10, 100, 1000)}
    assert [len(ids) for ids in chosen.values()] == [10, 100, 1000]
    assert set(chosen[10]) < set(chosen[100]) < set(chosen[1000])
    numbers = [int(one.partition(":")[2]) for one in chosen[1000]]
    assert numbers == sorted(numbers)
    assert all(260 < count < 410 for count in np.histogram(numbers, 3, (0, 3000))[0])
    assert column(Meli.open(data, rows=100, splits="train").read(), "id") == chosen[100]
    other = column(Meli.open(data, rows=100, splits="train", seed=1).read(), "id")
    assert len(set(other) & set(chosen[100])) < 20


def test_random_rows_are_of_the_training_rows_that_pass_the_filters(tmp_path: Path) -> None:
    rows = [*many(50, language="spanish"), *many(50, language="portuguese")]
    table = Meli.open(write_own(tmp_path, rows), language="portuguese", rows=20).read()
    assert column(table, "split") == ["train"] * 20 + ["test"]
    assert set(column(table, "meta.language")) == {"portuguese"}
    assert "30 training rows left out by rows=20, seed=0" in table.notes[0]


def test_rows_are_drawn_across_the_files_of_both_languages(tmp_path: Path) -> None:
    for language in ("spanish", "portuguese"):
        rows = {"train": [prepared(row) for row in many(100, language=language)]}
        write_prepared(tmp_path, rows, language=language)
    languages = column(Meli.open(tmp_path, rows=100).read(), "meta.language")
    assert len(languages) == 100
    assert 30 < languages.count("spanish") < 70


def test_no_more_rows_than_there_are(tmp_path: Path) -> None:
    table = Meli.open(write_own(tmp_path), rows=1000).read()
    assert table.counts["samples"] == 7
    assert table.notes == ()


def test_a_drawing_holds_no_more_than_twice_its_limit() -> None:
    drawn = sampling.Drawn(70_000)
    everything = sampling.keys_of(np.arange(1_000_000), 3, "train")
    for start in range(0, 1_000_000, 10_000):
        keys = everything[start : start + 10_000]
        taken = keys <= drawn.bound
        drawn.add(pa.table({"row": np.arange(start, start + 10_000)[taken]}), keys[taken], 10_000)
        assert sum(table.num_rows for table in drawn._tables) <= 2 * 70_000 + 65_536
    found = pa.concat_tables(drawn.tables())["row"].to_pylist()
    assert found == sorted(np.argsort(everything)[:70_000].tolist())
    assert drawn.n_seen == 1_000_000


@pytest.mark.parametrize(("splits", "expected"), [("train", {"train"}), (["val", "test"], {"validation", "test"})])
def test_splits_are_chosen(tmp_path: Path, splits: Any, expected: set[str]) -> None:
    assert set(column(Meli.open(write_prepared(tmp_path), splits=splits).read(), "split")) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"language": "spanisch"}, UnknownNameError, "Did you mean 'spanish'"),
        ({"label_quality": "good"}, UnknownNameError, "reliable"),
        ({"splits": "holdout"}, UnknownNameError, "train"),
        ({"splits": "validation"}, DataNotFoundError, "it holds train.csv, test.csv"),
        ({"rows": 0}, UsageError, "rows .* from 1 on, got 0"),
        ({"rows": 1.5}, UsageError, "rows .* got 1.5"),
        ({"rows": True}, UsageError, "rows .* got True"),
        ({"seed": -1}, UsageError, "seed .* got -1"),
        ({"weights": "quality"}, UsageError, "label_quality"),
        ({"weights": {"reliable": -1}}, UsageError, "weight of 0 or more"),
        ({"weights": {"reliable": float("nan")}}, UsageError, "weight of 0 or more"),
        ({"weights": {"relaible": 1}}, UnknownNameError, "reliable"),
        ({"colour": "red"}, UsageError, "no option colour"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_dataset("meli", [write_own(tmp_path)], options)


def test_filters_that_leave_nothing_say_what_they_left_out(tmp_path: Path) -> None:
    data = write_own(tmp_path, [TRAIN[0]], test=None)
    with pytest.raises(UsageError, match="no row is left: 1 rows left out whose language is not portuguese"):
        Meli.open(data, language="portuguese").read()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": "spanish", "label_quality": "reliable", "rows": 3, "seed": 7},
        {"weights": "label_quality", "splits": ["train", "test"]},
    ],
)
def test_settings_open_the_same_data_set_again(tmp_path: Path, options: dict[str, Any]) -> None:
    meli = open_dataset("meli", [write_own(tmp_path)], options)
    remembered = json.loads(json.dumps(meli.settings()))
    assert open_dataset("meli", meli.sources, remembered) == meli


# --------------------------------------------------------------------------------------------------- finding files


def test_discovery_knows_the_challenge_by_its_header(tmp_path: Path) -> None:
    write_own(tmp_path / "meli2019", end=".gz")
    write_prepared(tmp_path / "meli-challenge-2019")
    (found,) = discover(tmp_path)
    assert found.adapter == found.default_name == "meli"
    assert found.sources == (tmp_path / "meli-challenge-2019",)
    assert Meli.open(tmp_path / "meli2019").read().counts["samples"] == 7


@pytest.mark.parametrize("header", ["title,category", "title,label_quality,language,category,price", "", "\xff"])
def test_other_train_files_are_not_the_challenge(tmp_path: Path, header: str) -> None:
    write(tmp_path / "train.csv", f"{header}\n".encode("latin-1"))
    write(tmp_path / "test.csv", as_csv(("id", "title", "language"), TEST))
    assert Meli.find(tmp_path) is None
    with pytest.raises(DataNotFoundError, match=r"No data set was found"):
        discover(tmp_path)
    with pytest.raises(DataNotFoundError, match=r"expected train\.csv with the columns title,label_quality"):
        Meli.open(tmp_path)


def test_what_is_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="No MeLi challenge"):
        Meli.open(tmp_path / "absent")
    write(tmp_path / "spanish.train.jsonl", '{"text": "no title"}\n')
    with pytest.raises(DataNotFoundError, match="No MeLi challenge"):
        Meli.open(tmp_path)


@pytest.mark.parametrize("name", ["train.csv", "test.csv.gz", "mine.csv"])
def test_one_file_may_be_named(tmp_path: Path, name: str) -> None:
    test = name.startswith("test")
    rows: Sequence[Sequence[str]] = TEST if test else TRAIN
    write(tmp_path / name, as_csv(("id", "title", "language") if test else TRAIN_HEADER, rows))
    table = Meli.open(tmp_path / name).read()
    assert set(column(table, "split")) == {"test" if test else "train"}
    assert table.counts["samples"] == len(rows)


def test_of_plain_and_gzipped_files_the_plain_one_is_read(tmp_path: Path) -> None:
    write_own(tmp_path, TRAIN[:2], end=".gz")
    write_own(tmp_path, TRAIN[:1])
    assert Meli.open(tmp_path).read().counts["samples"] == 3


# --------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("too,reliable,spanish,many,SOFAS", "5 fields where there are 4 columns"),
        ("few,reliable,SOFAS", "3 fields"),
        ("lone\rbreak,reliable,spanish,SOFAS", "line break that is not quoted"),
        ("latin,reliable,spanish,\udce9TAG\udce8RES", "not UTF-8"),
    ],
)
@ENDINGS
def test_a_damaged_line_of_csv_is_named(tmp_path: Path, line: str, what: str, end: str) -> None:
    text = as_csv(TRAIN_HEADER, [Row("a\nb"), Row("")]) + line + "\n" + as_csv(TRAIN_HEADER, TRAIN)
    write(tmp_path / f"train.csv{end}", text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=rf"train\.csv{end}, line 5: .*{what}"):
        Meli.open(tmp_path).read()


def test_a_quote_that_is_never_closed_is_named_where_it_opens(tmp_path: Path) -> None:
    rows = as_csv(TRAIN_HEADER, many(20)) + '"open,reliable,spanish,SOFAS\n' + as_csv(TRAIN_HEADER, many(5000))
    write(tmp_path / "train.csv", rows)
    with pytest.raises(UsageError, match=r"train\.csv, line 22: "):
        Meli.open(tmp_path).read()


FAULTS = {
    '{"title": "a", "category": ': "no JSON object",
    "null": "a JSON object was expected, got 'None'",
    '["title"]': "a JSON object was expected",
    '{"category": "SOFAS"}': "'title' is missing",
    '{"title": null}': "'title' is missing",
    '{"title": 7}': "'title' is no text but '7'",
    '{"title": "a", "category": ["SOFAS"]}': "'category' is no text",
    '{"title": "a", "title": "b"}': "there twice",
    '{"title": "\\ud83d"}': "half a surrogate pair",
    '{"title": "a"} {"title": "b"}': "no JSON object",
    '{"title": "a"} null': "no JSON object",
    '{"title": "\udcff"}': "not UTF-8",
    '{"title": "a", "x": ' + "[" * 100_000 + "}": "nested too deeply",
}


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("line", FAULTS, ids=[line[:30] for line in FAULTS])
def test_a_damaged_json_line_is_named(tmp_path: Path, line: str, place: int) -> None:
    lines = [json.dumps(prepared(row)) for row in TRAIN]
    lines.insert(place, line)
    write(tmp_path / "spanish.train.jsonl.gz", "\n".join(lines).encode("utf-8", "surrogateescape"))
    if place == 0 and '"title"' not in line:
        assert Meli.find(tmp_path) is None
        return
    with pytest.raises(UsageError, match=rf"spanish\.train\.jsonl\.gz, line {place + 1}: .*{FAULTS[line]}"):
        Meli.open(tmp_path).read()


def test_a_block_that_begins_with_null_does_not_reach_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow 26 would end the process."""
    lines = as_lines([prepared(TRAIN[0])])
    write(tmp_path / "spanish.train.jsonl", lines + "null\n" + lines)
    monkeypatch.setattr(streaming, "BLOCK", len(lines))
    with pytest.raises(UsageError, match="line 2: a JSON object was expected"):
        Meli.open(tmp_path).read()


@pytest.mark.parametrize("keep", [0.6, 0.95])
def test_files_that_are_cut_off_are_said(tmp_path: Path, keep: float) -> None:
    rows = [prepared(row) for row in many(500)]
    for path in (write_own(tmp_path / "own", many(500), end=".gz") / "train.csv.gz",
                 write_prepared(tmp_path / "prepared", {"train": rows}) / "spanish.train.jsonl.gz"):  # fmt: skip
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        with pytest.raises(UsageError, match=r"damaged or cut off (here|after line \d+)"):
            Meli.open(path.parent).read()


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 1000)
    monkeypatch.setattr(streaming, "LONGEST_LINE", 5000)
    write(tmp_path / "spanish.train.jsonl", as_lines([prepared(TRAIN[0])]) + '{"title": "' + "a" * 10_000)
    with pytest.raises(UsageError, match="line 2: the line is longer than 5,000 bytes"):
        Meli.open(tmp_path).read()


def test_test_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 sample ids occur more than once"):
        Meli.open(write_own(tmp_path, test=[*TEST, TEST[0]])).read()


TEXTS = st.text(max_size=8)
SCRAPS = st.one_of(
    st.sampled_from([b"\n", b"\r\n", b",", b'"', b'""', b"\x00", b"\xff", b"{", b"}", b"null", b"[", b'"title"', b":"]),
    st.binary(max_size=5),
)


@FUZZ
@given(st.lists(st.builds(Row, TEXTS, TEXTS, TEXTS, TEXTS), min_size=1, max_size=4))
def test_whatever_is_in_a_row_comes_back(tmp_path: Path, rows: list[Row]) -> None:
    write_own(tmp_path / "own", rows, test=None)
    write_prepared(tmp_path / "prepared", {"train": [prepared(row) for row in rows]})
    for folder in ("own", "prepared"):
        table = Meli.open(tmp_path / folder).read()
        assert titles_of(table) == [row.title for row in rows]
        assert column(table, "target.category") == [row.category or None for row in rows]
        assert column(table, "meta.language") == [row.language for row in rows]


@FUZZ
@given(st.lists(SCRAPS, max_size=6), st.integers(0, 400), st.integers(0, 30), st.booleans())
def test_damage_gives_rows_or_an_error_of_ours(
    tmp_path: Path, scraps: list[bytes], at: int, gone: int, compressed: bool
) -> None:
    whole = as_csv(TRAIN_HEADER, TRAIN[:3]).encode(), as_lines([prepared(row) for row in TRAIN[:2]]).encode()
    for folder, name, raw in zip(("own", "prepared"), ("train.csv", "spanish.train.jsonl"), whole, strict=True):
        end = ".gz" if compressed else ""
        write(tmp_path / folder / f"{name}{end}", raw[:at] + b"".join(scraps) + raw[at + gone :])
        write(tmp_path / folder / f"spanish_token_to_index.json{end}", b"".join(scraps))
        try:
            table = Meli.open(tmp_path / folder / f"{name}{end}").read()
        except EmbedCacheError:
            continue
        assert table.counts["samples"] == len(titles_of(table))
        with suppress(EmbedCacheError):
            Meli.open(tmp_path / folder / f"{name}{end}").published_tokens(table)


# ---------------------------------------------------------------------------------------------- published word ids


@ENDINGS
def test_published_word_ids_are_used_as_they_are(tmp_path: Path, end: str) -> None:
    meli = Meli.open(write_prepared(tmp_path, end=end))
    table = meli.read()
    published = meli.published_tokens(table)
    assert published is not None
    assert published.vocabulary.to_pylist() == ["[PAD]", "[UNK]", "sofá", "cama", "<unused 4>", "funda"]
    assert published.tokens.dtype == np.int32
    assert published.offsets.dtype == np.int64
    assert published.notes == ()
    assert word_lists(published, table) == {
        TRAIN[0].title: ["sofá", "cama", "[UNK]", "[UNK]"],
        TRAIN[1].title: ["[UNK]", "[UNK]"],
        TRAIN[3].title: ["funda", "[UNK]"],
    }


def test_word_ids_follow_the_texts_of_the_table(tmp_path: Path) -> None:
    """Each text's one id tells its row, whatever part of the rows the table holds."""
    rows = {"train": [prepared(Row(f"t{row}"), data=[row] * (row % 4)) for row in range(500)]}
    write_prepared(tmp_path, rows, {"zero": 0, "last": 499})
    for options in ({}, {"rows": 50}, {"rows": 499, "seed": 5}):
        meli = Meli.open(tmp_path, **options)
        table = meli.read()
        published = meli.published_tokens(table)
        assert published is not None
        lists = np.split(published.tokens, published.offsets[1:-1])
        for text, found in zip(table.items["text"]["text"].to_pylist(), lists, strict=True):
            row = int(text[1:])
            assert found.tolist() == [row] * (row % 4)


def test_of_several_lists_of_a_text_the_first_is_used_and_said(tmp_path: Path) -> None:
    rows = {
        "train": [prepared(TRAIN[0], data=[2, 3]), prepared(TRAIN[0], data=[3, 2]), prepared(TRAIN[1], data=[])],
        "test": [prepared(TRAIN[0], data=[2]), prepared(TRAIN[1], data=[])],
    }
    meli = Meli.open(write_prepared(tmp_path, rows))
    table = meli.read()
    published = meli.published_tokens(table)
    assert word_lists(published, table) == {TRAIN[0].title: ["sofá", "cama"], TRAIN[1].title: []}
    assert published is not None
    assert published.notes == ("1 texts have several lists of word ids: the first is used",)


def test_texts_from_elsewhere_have_no_word_ids_and_are_counted(tmp_path: Path) -> None:
    meli = Meli.open(write_prepared(tmp_path))
    table = samples.build(["a", "b"], texts=[["de otra parte"], [TRAIN[3].title]])
    published = meli.published_tokens(table)
    assert published is not None
    assert published.offsets.tolist() == [0, 0, 2]
    assert published.notes == ("1 texts have no word ids in the published files",)


def test_ids_above_the_vocabulary_have_placeholders(tmp_path: Path) -> None:
    rows = {"train": [prepared(TRAIN[0], data=[7, 2])]}
    meli = Meli.open(write_prepared(tmp_path, rows))
    published = meli.published_tokens(meli.read())
    assert published is not None
    assert published.vocabulary.to_pylist()[5:] == ["funda", "<unused 6>", "<unused 7>"]


def test_each_language_has_word_ids_of_its_own(tmp_path: Path) -> None:
    write_prepared(tmp_path)
    write_prepared(tmp_path, language="portuguese", vocabulary={"[PAD]": 0, "[UNK]": 1, "máquina": 2})
    both = Meli.open(tmp_path)
    with pytest.raises(UsageError, match="in portuguese and spanish, .* --option language=spanish"):
        both.published_tokens(both.read())
    for language, word in (("spanish", "sofá"), ("portuguese", "máquina")):
        table = Meli.open(tmp_path, language=language).read()
        for meli in (both, Meli.open(tmp_path, language=language)):
            published = meli.published_tokens(table)
            assert published is not None
            assert published.vocabulary[2].as_py() == word


def test_the_challenges_own_files_have_no_word_ids(tmp_path: Path) -> None:
    meli = Meli.open(write_own(tmp_path))
    assert meli.published_tokens(meli.read()) is None


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    meli = Meli.open(write_prepared(tmp_path, vocabulary=None))
    with pytest.raises(DataNotFoundError, match=r"spanish_token_to_index\.json"):
        meli.published_tokens(meli.read())


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"a": -1}',
        '{"a": 1.5}',
        '{"a": true}',
        '{"a": 0, "b": 0}',
        '{"a": 99999999999}',
        '{"\\ud800": 1}',
    ],
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path, document: str) -> None:
    meli = Meli.open(write_prepared(tmp_path, vocabulary=None))
    write(tmp_path / "spanish_token_to_index.json", document)
    with pytest.raises(UsageError, match=r"spanish_token_to_index\.json"):
        meli.published_tokens(meli.read())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, None], r"line 2: 'data' is no list of whole numbers"),
        ([1, 2.5], r"line 2: 'data' is no list"),
        ([1, 1 << 40], r"line 2: 'data' is no list"),
        ("1 2", r"line 2: 'data' is no list"),
        (None, r"line 2: the field 'data' is missing"),
        ([1, -1], r"'Tv Led 32\" Smart, Full Hd' has the word id -1"),
        ([1 << 30], r"has the word id 1073741824"),
    ],
)
def test_word_ids_that_are_none_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    meli = Meli.open(write_prepared(tmp_path, {"train": [prepared(TRAIN[0]), prepared(TRAIN[1], data=data)]}))
    with pytest.raises(UsageError, match=message):
        meli.published_tokens(meli.read())


# -------------------------------------------------------------------------------------------------------- progress


def test_progress_is_shown_where_extraction_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("embedcache.datasets.streaming.PATIENCE", 0)
    write_own(tmp_path / "data", many(20))
    for shown in (False, True):
        options = ec.Options(progress=shown, sync=False)
        backbones = [FakeBackbone("text")]
        ec.extract("meli", tmp_path / "data", backbones=backbones, cache=tmp_path / f"{shown}", options=options)
        assert ("22 rows" in capsys.readouterr().err) is shown


def test_only_data_sets_that_take_long_show_progress(tmp_path: Path) -> None:
    assert isinstance(Meli.open(write_own(tmp_path)), LongDataset)
    assert not isinstance(open_dataset("table", [tmp_path / "train.csv"], {"text": "title"}), LongDataset)


# ------------------------------------------------------------------------------------------------------ end to end


def test_from_titles_to_a_head_on_one_language(tmp_path: Path) -> None:
    for language, words in (("spanish", ("sofá", "tv")), ("portuguese", ("cama", "mesa"))):
        rows = [Row(f"{word} {row}", language=language, category=word.upper()) for row in range(30) for word in words]
        parts = {"train": rows[:40], "test": [*rows[40:], Row("BAD", language=language)]}
        prepared_rows = {split: [prepared(row, split) for row in some] for split, some in parts.items()}
        write_prepared(tmp_path / "data", prepared_rows, language=language)
    cache, options = tmp_path / "cache", ec.Options(device="cpu", sync=False)
    read = partial(ec.extract, "meli", backbones=[FakeBackbone("text")], cache=cache, options=options)
    (done,) = read(tmp_path / "data", weights="label_quality")
    assert (done.n_items, done.n_encoded, done.n_failed) == (121, 121, 1)
    assert set(column(ec.open(cache)["meli"].table, "weight")) == {0.5}
    assert read()[0].action == "reuse"
    task = heads_helpers.prepared(cache, select={"filter": {"language": "spanish"}}, head="logistic")
    assert task.classes == ("SOFÁ", "TV")
    assert (len(task.splits.train) + len(task.splits.validation), len(task.splits.test)) == (40, 20)
    (run,) = fit(task)
    assert set(run.scored) == {"validation", "test"}


def test_the_command_line_passes_options(tmp_path: Path) -> None:
    write_own(tmp_path / "data", [*many(30), *many(30, language="portuguese"), *[Row("")] * 30])
    words = ["extract", "--dataset", "meli", "--data", str(tmp_path / "data"), "--backbone", "demo-text"]
    words += ["--option", "language=spanish", "--option", "rows=40", "--option", "splits=[train]"]
    words += ["--option", "weights={reliable: 1, unreliable: 0.25}", "--cache", str(tmp_path / "cache"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    table = ec.open(tmp_path / "cache")["meli"].table
    assert table.counts["samples"] == 40
    assert json.loads(done.output)[0]["n_failed"] == 1  # the empty title: one item of many samples
    assert set(column(table, "meta.language")) == {"spanish"}
    assert set(column(table, "weight")) == {0.25}


def test_the_adapter_is_listed_with_its_options() -> None:
    done = CliRunner().invoke(app, ["datasets", "--json"])
    assert json.loads(done.output)["meli"]["options"] == [
        "label_quality", "language", "rows", "seed", "splits", "weights",
    ]  # fmt: skip
