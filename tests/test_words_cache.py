"""Word ids in the cache: a vocabulary of training texts that stays, rows of any length, and every command on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedcache as ec
from embedcache import datasets, housekeeping, ragged
from embedcache.backbones.base import BackboneSettings
from embedcache.cache import CachedDataset
from embedcache.datasets.base import PublishedTokens
from embedcache.datasets.table import Table
from embedcache.errors import (
    AllItemsFailedError,
    DamagedFileError,
    EmbedCacheError,
    ItemError,
    LockedError,
    MissingFeaturesError,
    UsageError,
)
from embedcache.extraction import Extraction
from embedcache.failures import read_failures
from embedcache.files import locked
from embedcache.housekeeping import lock_path
from embedcache.ragged import TokenFile
from embedcache.samples import SampleTable
from embedcache.verification import verify
from tests.fakes import FakeBackbone
from tests.test_store import flip, resign
from tests.test_verification import call

ROWS = [
    "s0,train,owl,The red bird",
    "s1,train,owl,the blue bird",
    "s2,train,jay,The red bird",
    "s3,test,jay,unseen bird",
    "s4,test,jay,   ",
]
LOWER = BackboneSettings(lowercase=True)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(ROWS)
    return tmp_path


def write(rows: list[str]) -> None:
    Path("t.csv").write_text("\n".join(["id,split,label,text", *rows]), encoding="utf-8")


def extract(*backbones: Any, **options: Any) -> Extraction:
    columns = {"id": "id", "split": "split", "label": "label", "text": "text"} | options.pop("columns", {})
    [done] = ec.extract("table", "t.csv", backbones=backbones or ["words"], cache="cache", **columns, **options)
    return done


def data() -> CachedDataset:
    return ec.open("cache")["t"]


def file(query: Any = "words") -> TokenFile:
    found = data().find_any(query)
    assert isinstance(found, TokenFile)
    return found


def texts(found: Any) -> list[str]:
    """Each row in words again."""
    words = found.words if isinstance(found, TokenFile) else found.vocabulary
    bounds = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    return [" ".join(words[token] for token in found.tokens[start:stop]) for start, stop in bounds]


# ---------------------------------------------------------------------------------------------------- extraction


def test_the_vocabulary_is_of_training_texts_by_frequency_then_alphabetically(work: Path) -> None:
    """``The red bird`` is one item and two samples: its words count twice."""
    done = extract()
    assert (done.action, done.n_items, done.n_encoded, done.n_failed, done.dim) == ("extract", 4, 4, 1, None)
    assert file().words == ["<pad>", "<unk>", "bird", "The", "red", "blue", "the"]
    assert texts(file()) == ["The red bird", "the blue bird", "<unk> bird", ""]
    assert list(read_failures(file().path).values()) == ["the text is empty"]
    assert done.notes[-1] == "a vocabulary of 7 words, built on the 3 samples of the split 'train'"
    assert [one.name for one in Path("cache/t").glob(".*.layout")] == []


def test_settings_decide_the_vocabulary_and_the_fingerprint(work: Path) -> None:
    found = [
        (extract(settings=settings), file(settings.stated() | {"backbone": "words"}).words[2:])
        for settings in (
            BackboneSettings(), LOWER, BackboneSettings(min_count=2), BackboneSettings(lowercase=True, max_words=2)
        )
    ]  # fmt: skip
    assert [words for _, words in found] == [
        ["bird", "The", "red", "blue", "the"],
        ["bird", "the", "red", "blue"],
        ["bird", "The", "red"],
        ["bird", "the"],
    ]
    assert len({one.fingerprint for one, _ in found}) == 4
    assert {one.action for one, _ in found} == {"extract"}
    assert extract(settings=LOWER).action == "reuse"


def test_without_published_splits_all_texts_count(work: Path) -> None:
    done = extract(columns={"split": None})
    assert "unseen" in file().words
    assert "all 5 samples: no split is published" in done.notes[-1]


def test_without_a_split_of_training_there_is_no_vocabulary(work: Path) -> None:
    write([row.replace(",train,", ",test,") for row in ROWS])
    with pytest.raises(UsageError, match=r"no sample is of the split 'train' \(splits: test\)"):
        extract()
    assert not list(Path("cache/t").glob("*.h5"))


def test_a_file_that_grows_keeps_its_vocabulary(work: Path) -> None:
    first = extract()
    write([*ROWS, "s5,train,owl,a green bird"])
    done = extract()
    assert (done.action, done.n_kept, done.n_encoded, done.fingerprint) == ("grow", 4, 1, first.fingerprint)
    assert texts(file()) == ["The red bird", "the blue bird", "<unk> bird", "", "<unk> <unk> bird"]
    assert "the vocabulary of 7 words that is there is kept" in done.notes[-1]
    assert "2 of 3 words in the new texts are unknown" in done.notes[-1]
    assert extract().action == "reuse"
    assert call("rm", "t", "--features", "words", "--yes").exit_code == 0
    again = extract()
    assert again.action == "extract"
    assert "green" in file().words
    assert again.fingerprint != first.fingerprint


def test_rows_of_texts_that_are_gone_stay_until_they_are_removed(work: Path) -> None:
    extract()
    write(ROWS[1:2] + ROWS[3:])
    assert extract().action == "reuse"
    assert file().n_items == 4
    before = file()
    done = call("rm", "t", "--unused", "--yes")
    assert "1 of 4 rows, which no sample uses" in done.stdout
    assert texts(file()) == ["the blue bird", "<unk> bird", ""]
    assert (file().fingerprint, file().words, file().record["dropped"]) == (before.fingerprint, before.words, 1)
    assert texts(before)[0] == "The red bird"
    write(["s4,train,jay,   "])
    extract(FakeBackbone("text"))
    assert "no sample uses any of its rows" in call("rm", "t", "--unused", "--yes").stdout
    assert [one.name for one in data().summaries()] == ["fake"]


def test_a_limit_is_of_texts_and_not_of_the_vocabulary(work: Path) -> None:
    assert extract(limit=1).n_items == 1
    words = file().words
    assert extract().n_items == 4
    assert file().words == words == ["<pad>", "<unk>", "bird", "The", "red", "blue", "the"]


def test_a_dry_run_says_what_would_be_and_writes_nothing(work: Path) -> None:
    done = extract(dry_run=True)
    assert (done.action, done.n_encoded) == ("extract", 4)
    assert done.estimate is not None
    assert done.estimate.nbytes
    assert not Path("cache").exists()


def test_texts_without_a_word_fail_or_stop(work: Path) -> None:
    with pytest.raises(ItemError, match="the text is empty"):
        extract(options=ec.Options(on_error="stop"))
    write(["s0,train,owl,  ", 's1,train,owl,"\t"'])
    with pytest.raises(AllItemsFailedError, match="None of the 2 texts"):
        extract()
    assert not list(Path("cache/t").glob("*.h5"))


def test_failed_texts_are_tried_again_where_asked(work: Path) -> None:
    extract()
    done = extract(options=ec.Options(retry_failed=True))
    assert (done.action, done.n_encoded, done.n_failed) == ("grow", 1, 1)
    assert texts(file()) == ["The red bird", "the blue bird", "<unk> bird", ""]


def test_another_process_holds_the_lock(work: Path) -> None:
    extract()
    found = file()
    write([*ROWS, "s5,train,owl,a green bird"])
    with locked(lock_path(found.path.parent, "words", found.provenance), wait=False):
        with pytest.raises(LockedError):
            extract()
        with pytest.raises(LockedError):
            housekeeping.nobody_writing(data()).__enter__()


def test_a_damaged_file_is_not_grown(work: Path) -> None:
    extract()
    flip(file().path, file().header.extents["tokens"].offset)
    write([*ROWS, "s5,train,owl,a green bird"])
    with pytest.raises(DamagedFileError, match=r"blocks \[0\] do not have their checksums"):
        extract()


def test_word_ids_need_no_torch(work: Path) -> None:
    from tests.test_layers import HEAVY, modules_after

    code = (
        "import embedcache as ec\n"
        "ec.extract('table', 't.csv', backbones=['words'], text='text', split='split', cache='cache')\n"
        "assert ec.open('cache')['t'].tokens('words').padded().shape == (4, 3)\n"
    )
    assert not modules_after(code, work) & HEAVY


# ------------------------------------------------------------------------------------------------------ published


WORDS = ["[PAD]", "[UNK]", "bird", "red"]


@dataclass(frozen=True)
class Publisher:
    """A table whose publisher gives ids: 2 for every word but ``red``, none for what is empty."""

    inner: Table
    words: tuple[str, ...] = tuple(WORDS)
    red: int = 3
    adapter = "table"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def published_tokens(self, table: SampleTable) -> PublishedTokens:
        rows = [
            [self.red if word == "red" else 2 for word in text.split()]
            for text in table.items["text"]["text"].to_pylist()
        ]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        flat = np.array([token for row in rows for token in row], np.int32)
        return PublishedTokens(pa.array(self.words, pa.large_string()), flat, offsets)


@pytest.fixture
def publish(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the publisher is made with."""
    how: dict[str, Any] = {}
    opened = Table.open

    def open_publisher(*data: Path, **columns: Any) -> Any:
        return Publisher(opened(*data, **columns), **how)

    monkeypatch.setitem(datasets.ADAPTERS, "table", type("T", (), {"open": staticmethod(open_publisher)}))  # type: ignore[arg-type]
    return how


def test_published_ids_are_used_as_they_are(publish: dict[str, Any]) -> None:
    done = extract("words:published")
    assert texts(file("words:published")) == ["bird red bird", "bird bird bird", "bird bird", ""]
    assert file("published").words == WORDS
    assert done.notes[-1] == "the data set's own vocabulary of 4 words"
    assert list(read_failures(file("published").path).values()) == ["the text is empty"]
    assert extract("words:published").action == "reuse"
    write([*ROWS, "s5,train,owl,a red kite"])
    grown = extract("words:published")
    assert (grown.action, grown.n_encoded, grown.fingerprint) == ("grow", 1, done.fingerprint)
    assert texts(file("published"))[-1] == "bird red bird"
    assert extract().action == "extract"
    assert sorted(one.name for one in data().summaries()) == ["words", "words:published"]


def test_published_ids_that_changed_are_taken_anew(publish: dict[str, Any]) -> None:
    first = extract("words:published")
    publish["red"] = 1
    changed = extract("words:published")
    assert (changed.action, changed.fingerprint) == ("extract", first.fingerprint)
    assert texts(file("published"))[0] == "bird [UNK] bird"
    publish["words"] = (*WORDS, "more")
    assert extract("words:published").fingerprint != first.fingerprint


def test_published_ids_that_do_not_fit_are_refused(publish: dict[str, Any]) -> None:
    publish["red"] = 4
    with pytest.raises(EmbedCacheError, match="ids up to 4 for 4 words"):
        extract("words:published")


def test_a_data_set_without_ids_of_its_own_says_so(work: Path) -> None:
    with pytest.raises(UsageError, match="publishes no word ids"):
        extract("words:published")


# ---------------------------------------------------------------------------------------------- seen from samples


def test_tokens_are_of_samples(work: Path) -> None:
    extract(settings=LOWER)
    found = data().tokens("words")
    assert texts(found) == ["the red bird", "the blue bird", "the red bird", "<unk> bird"]
    assert (found.ids.tolist(), found.sample_rows.tolist()) == (["s0", "s1", "s2", "s3"], [0, 1, 2, 3])
    assert found.left_out == {"its text failed in words": 1}
    assert found.target().tolist() == ["owl", "owl", "jay", "jay"]
    train, y = found.split("train")
    assert (len(train), y.tolist(), train.lengths.tolist()) == (3, ["owl", "owl", "jay"], [3, 3, 3])
    assert repr(found) == "Tokens('words': 4 texts of 6 words, 1 samples left out)"
    with pytest.raises(UsageError, match="Unknown split 'val'"):
        found.split("val")


def test_padded_rows_are_cut_and_filled(work: Path) -> None:
    extract(settings=LOWER)
    found = data().tokens()
    assert found.vocabulary == ["<pad>", "<unk>", "bird", "the", "red", "blue"]
    assert found.padded().tolist() == [[3, 4, 2], [3, 5, 2], [3, 4, 2], [1, 2, 0]]
    assert found.padded([3, 0], 2).tolist() == [[1, 2], [3, 4]]
    assert found.padded(found.splits == "test", 4).tolist() == [[1, 2, 0, 0]]
    assert found.padded([], 2).shape == (0, 2)
    assert found.padded().dtype == np.int64
    assert found.padded(length=0).shape == (4, 0)
    with pytest.raises(UsageError, match="negative"):
        found.padded(length=-1)


def test_consecutive_rows_are_a_view_of_the_file(work: Path) -> None:
    write([f"s{row},train,owl,bird number {row}" for row in range(9)])
    extract()
    found = data().tokens()
    assert np.shares_memory(found.tokens, found.file.tokens)
    assert np.shares_memory(found.take(np.arange(2, 6)).tokens, found.file.tokens)
    assert texts(found.take([4, 1])) == ["bird number 4", "bird number 1"]


def test_of_several_texts_the_first_or_each(work: Path) -> None:
    Path("t.csv").write_text("q,a\nred bird, \n  ,blue\nowl,jay\n,\n")
    [_] = ec.extract("table", "t.csv", backbones=["words"], cache="cache", text=["q", "a"])
    assert texts(data().tokens()) == ["red bird", "blue", "owl"]
    each = data().tokens(captions="each")
    assert texts(each) == ["red bird", "blue", "owl", "jay"]
    assert each.sample_rows.tolist() == [0, 1, 2, 2]
    with pytest.raises(UsageError, match="cannot be averaged"):
        data().tokens(captions="mean")


def test_features_and_tokens_are_not_taken_for_each_other(work: Path) -> None:
    with pytest.raises(MissingFeaturesError):
        extract() and data().features()
    extract(FakeBackbone("text"))
    assert data().features().names == ("fake",)
    with pytest.raises(UsageError, match=r"use \.tokens\('words'\)"):
        data().features("words")
    with pytest.raises(UsageError, match=r"use \.features\('fake'\)"):
        data().tokens("fake")
    with pytest.raises(MissingFeaturesError, match="--backbone words:published"):
        data().tokens("words:published")


def test_a_fit_with_all_feature_sets_leaves_word_ids_out(work: Path) -> None:
    write([f"s{row},{'train' if row < 30 else 'test'},{'owl' if row % 2 else 'jay'},bird {row}" for row in range(40)])
    extract("words")
    extract(FakeBackbone("text"))
    done = call("fit-head", "--dry-run")
    assert (done.exit_code, "fake (8 numbers)" in done.stderr) == (0, True)
    done = call("fit-head", "--dry-run", "--features", "words")
    assert (done.exit_code, "use .tokens('words')" in done.stderr) == (2, True)
    flip(file().path, 5000)
    assert call("fit-head", "--dry-run").exit_code == 0


# ------------------------------------------------------------------------------------------------- the commands


def test_ls_and_info_know_word_ids(work: Path) -> None:
    write([*ROWS, "s9,train,owl," + " ".join(f"w{row}" for row in range(1993))])
    extract()
    listed = call("ls").stdout
    assert "2,000 words" in listed
    assert "damaged" not in listed
    [line] = json.loads(call("ls", "--json").stdout)
    assert (line["kind"], line["dim"], line["rows"], line["failed"]) == ("tokens", 2000, 5, 1)
    assert "2,000 words" in repr(data())
    shown = json.loads(call("info", "t", "--features", "words").stdout)
    assert shown["provenance"]["architecture"]["words"] == 2000
    assert "the text is empty" in call("info", "t", "--failed").stdout
    extract(settings=LOWER)
    prefixes = [f"words@{entry.file.fingerprint}" for entry in data().entries]
    assert "lower-casing: " in call("info", "t", "--diff", *prefixes).stdout


def findings(**options: Any) -> list[tuple[str, str]]:
    [report] = verify(data(), **options)
    return [(one.severity, one.what) for one in report.findings]


def test_verify_finds_what_is_wrong(work: Path) -> None:
    from embedcache.verification import again

    extract()
    assert findings() == []
    assert findings(recompute=again(9)) == [("note", "recompute")]
    done = call("verify", "--recompute", "3", "--against-data")
    assert (done.exit_code, "3 rows done, 1 failed" in done.stdout) == (0, True)
    offset = file().header.extents["tokens"].offset
    flip(file().path, offset)
    assert findings() == [("damage", "checksum")]
    assert findings(recompute=again(9))[-1] == ("damage", "recompute")
    flip(file().path, offset)
    flip(file().path, offset + 3, bit=7)
    assert findings() == [("damage", "checksum"), ("damage", "vocabulary")]
    assert call("verify").exit_code == 1
    flip(file().path, 5000)
    assert findings() == [("damage", "file")]


def test_verify_finds_rows_that_contradict_their_status(work: Path) -> None:
    extract()
    path = file().path
    offset = file().header.extents["status"].offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(bytes([2, 1, 1, 1]))
    resign(path)
    assert findings() == [("damage", "empty"), ("warning", "unexpected")]


def test_verify_compares_with_the_data(work: Path) -> None:
    extract()
    write([ROWS[1], *ROWS[3:], "s5,train,owl,a green bird"])
    done = call("verify", "--against-data")
    assert done.exit_code == 0
    assert "1 rows are of items that are not in the data any more" in done.stdout
    assert "1 items of the data have no row" in done.stdout


def test_export_writes_tokens_offsets_and_vocabulary(work: Path) -> None:
    extract()
    done = call("export", "t", "--to", "w.npz", "--features", "words")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "4 samples: words (7 words)")
    with np.load("w.npz") as out:
        words = out["vocabulary"][out["tokens"]]
        assert [" ".join(part) for part in np.split(words, out["offsets"][1:-1])] == texts(data().tokens())
        assert out["ids"].tolist() == ["s0", "s1", "s2", "s3"]
        assert out["target.label"].tolist() == ["owl", "owl", "jay", "jay"]
        assert json.loads(str(out["about"]))["sets"]["tokens"]["fingerprint"] == file().fingerprint
    done = call("export", "t", "--to", "w.npz", "--features", "words", "--split", "test", "--force")
    with np.load("w.npz") as out:
        assert (out["ids"].tolist(), out["tokens"].tolist()) == (["s3"], [1, 2])
    for arguments in (["w.parquet", "--features", "words"], ["x.npz", "--features", "words,fake"]):
        extract(FakeBackbone("text"))
        assert call("export", "t", "--to", *arguments).exit_code == 2
    assert call("export", "t", "--to", "v.npz").exit_code == 0
    with np.load("v.npz") as out:
        assert out["features"].shape == (5, 8)


def test_rm_removes_word_ids_and_what_a_kill_left(work: Path) -> None:
    extract()
    left = file().path.with_name(f".{file().path.name}.0123abcd.layout")
    left.write_bytes(b"x")
    assert "left by a run that was cut off" in call("rm", "t", "--unused", "--yes").stdout
    assert not left.exists()
    flip(file().path, 5000)
    assert call("rm", "t", "--features", "words", "--yes").exit_code == 0
    assert data().entries == ()
    assert not list(Path("cache/t").glob("*.failed.jsonl"))


def test_a_copied_row_of_a_damaged_block_is_refused_when_unused_rows_go(work: Path) -> None:
    extract()
    flip(file().path, file().header.extents["tokens"].offset)
    with pytest.raises(DamagedFileError, match="checksums"):
        housekeeping.without_unused(housekeeping.Shrinkage(file().path, np.arange(3), 4))
    assert file().n_items == 4


def test_many_texts_take_several_blocks(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "BLOCK_TOKENS", 256)
    write([f"s{row},train,owl,bird number {row % 700} of {row % 31}" for row in range(1000)])
    extract()
    assert file().layout.n_blocks == -(-file().n_tokens // 256) > 10
    assert texts(file())[:2] == ["bird number 0 of 0", "bird number 1 of 1"]
    assert findings() == []
