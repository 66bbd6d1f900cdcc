"""What ``verify`` finds: damage told from warnings, by bytes, ids, vectors, encoder and data."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import embedcache as ec
from cli import app
from embedcache import store, verification
from embedcache.cache import CachedDataset
from embedcache.catalog import DatasetFolder
from embedcache.errors import DataNotFoundError, UsageError
from embedcache.samples import items_path, write_parquet
from embedcache.store import DONE, FeatureFile, Layout
from embedcache.verification import Again, FileReport
from tests.fakes import FakeBackbone
from tests.test_extraction import write_images
from tests.test_store import flip

N = 300
Change = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that the fake backbone reads, two of them bad, and a cache of them."""
    folder = tmp_path_factory.mktemp("verify")
    write_images(folder / "photos", N)
    (folder / "photos" / "class0" / "00003.jpg").write_bytes(b"BAD")
    ec.extract("folder", folder / "photos", backbones=[FakeBackbone()], cache=folder / "cache")
    return folder


@pytest.fixture
def work(original: Path, tmp_path: Path) -> Path:
    """A copy of its own, from which the data can be found."""
    for name in ("photos", "cache"):
        shutil.copytree(original / name, tmp_path / name, copy_function=shutil.copy2)
    record = tmp_path / "cache" / "photos" / "dataset.json"
    record.write_text(record.read_text().replace(str(original), str(tmp_path)))
    return tmp_path


def dataset(work: Path) -> CachedDataset:
    return ec.open(work / "cache")["photos"]


def feature_path(work: Path) -> Path:
    [path] = (work / "cache" / "photos").glob("*.h5")
    return path


def report(work: Path, **arguments: Any) -> FileReport:
    [found] = verification.verify(dataset(work), **arguments)
    return found


def said(found: FileReport) -> dict[str, tuple[str, int]]:
    return {one.what: (one.severity, one.count) for one in found.findings}


def rewritten(path: Path, change: Change) -> None:
    """The same file with other ids, vectors or status, everything signed as it should be."""
    old = FeatureFile(path)
    ids, vectors, status = np.array(old.ids), np.array(old.features), np.array(old.status)
    content = np.array(old.content)
    change(ids, vectors, status)
    layout = Layout(ids, old.dim, old.layout.stored, old.provenance, old.layout.block_length)
    path.unlink()
    with store.create(path, layout, old.record) as writer:
        for block in range(layout.n_blocks):
            rows = layout.rows(block)
            writer.write_block(block, vectors[rows], content[rows], status[rows])
        writer.seal(old.record)


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_whole_file_has_no_finding(work: Path) -> None:
    found = report(work)
    assert found.findings == ()
    assert (found.rows, found.done, found.failed, found.pending, found.sealed) == (N, N - 1, 1, 0, True)
    done = call("verify", "--cache", work / "cache")
    assert done.exit_code == 0
    assert "whole" in done.stdout
    assert "299 rows done, 1 failed" in done.stdout


def test_a_flipped_bit_is_damage_in_its_block(work: Path) -> None:
    path = feature_path(work)
    flip(path, FeatureFile(path).header.extents["features"].offset + 260 * 8 * 2)
    found = report(work)
    assert said(found)["checksum"] == ("damage", 1)
    assert "blocks 1 do not" in found.findings[0].message
    assert call("verify", "photos", "--cache", work / "cache").exit_code == 1


def test_a_file_that_does_not_open_is_reported_and_the_others_are_checked(work: Path) -> None:
    path = feature_path(work)
    shutil.copy(path, path.with_name("image.other.0123456789ab.h5"))
    flip(path, 100)
    done = call("verify", "--cache", work / "cache", "--json")
    assert done.exit_code == 1
    assert {Path(one["path"]).name: one["damaged"] for one in json.loads(done.stdout)} == {
        path.name: True,
        "image.other.0123456789ab.h5": False,
    }


def test_vectors_that_are_not_finite_are_damage_and_zeros_a_warning(work: Path) -> None:
    def change(ids: np.ndarray, vectors: np.ndarray, status: np.ndarray) -> None:
        vectors[[7, 290]] = np.nan
        vectors[8, 3] = -np.inf
        vectors[[20, 21]] = 0
        vectors[22] = -0.0
        vectors[23, :4] = 0

    rewritten(feature_path(work), change)
    assert said(report(work)) == {"finite": ("damage", 3), "zeros": ("warning", 3)}


def test_zeros_alone_exit_with_0(work: Path) -> None:
    rewritten(feature_path(work), lambda ids, vectors, status: vectors.__setitem__(20, 0))
    done = call("verify", "--cache", work / "cache")
    assert done.exit_code == 0
    assert "warning: 1 done rows are all zeros" in done.stdout


def test_status_values_and_failed_rows_are_looked_at(work: Path) -> None:
    def change(ids: np.ndarray, vectors: np.ndarray, status: np.ndarray) -> None:
        status[5] = 7
        vectors[status == 2] = 1

    rewritten(feature_path(work), change)
    assert said(report(work)) == {"status": ("damage", 1), "failed": ("warning", 1)}


def test_ids_are_compared_with_the_sample_table(work: Path) -> None:
    def change(ids: np.ndarray, vectors: np.ndarray, status: np.ndarray) -> None:
        ids[10] = ids[11]
        ids[12] = b"who/is/this.jpg"

    rewritten(feature_path(work), change)
    assert said(report(work)) == {
        "duplicates": ("damage", 1),
        "unknown": ("warning", 1),
        "lacking": ("note", 2),
    }


def test_ids_that_only_hash_alike_are_not_called_repeated(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "id_hashes", lambda ids: np.zeros(len(ids), np.uint64))
    assert "duplicates" not in said(report(work))


@pytest.mark.parametrize("share", [1, 7, 100])
def test_several_passes_find_what_one_finds(work: Path, monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    def change(ids: np.ndarray, vectors: np.ndarray, status: np.ndarray) -> None:
        ids[200] = ids[3]
        ids[100] = b"x"

    rewritten(feature_path(work), change)
    monkeypatch.setattr(verification, "_IDS_IN_A_PASS", share)
    monkeypatch.setattr(verification, "_IDS_AT_ONCE", 64)
    assert {what: count for what, (_, count) in said(report(work)).items()} == {
        "duplicates": 1, "unknown": 1, "lacking": 2,
    }  # fmt: skip


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, unique=True))
def test_hashes_do_not_depend_on_the_stored_length(ids: list[bytes]) -> None:
    unique = sorted({one.rstrip(b"\0") for one in ids} - {b""})
    if not unique:
        return
    short, long = np.array(unique), np.array(unique, "S47")
    hashes = verification.id_hashes(short)
    assert np.array_equal(hashes, verification.id_hashes(long))
    assert len(set(hashes.tolist())) == len(unique)


def test_an_unfinished_file_is_checked_as_one(work: Path) -> None:
    feature_path(work).unlink()
    with pytest.raises(KeyboardInterrupt):
        ec.extract("photos", backbones=[FakeBackbone(fail_at=260)], cache=work / "cache")
    found = report(work)
    assert (found.sealed, found.done, found.failed, found.pending) == (False, 255, 1, N - 256)
    assert found.findings == ()
    [path] = (work / "cache" / "photos").glob("*.partial")
    flip(path, FeatureFile(path, partial=True).header.extents["features"].offset + 5)
    assert said(report(work)) == {"checksum": ("damage", 1)}


def test_a_missing_or_broken_item_table_is_damage(work: Path) -> None:
    table = work / "cache" / "photos" / "items.image.parquet"
    table.write_bytes(b"PAR1 this is none")
    assert report(work).damaged
    table.unlink()
    assert said(report(work))["items"] == ("damage", 1)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, vectors and table are looked at a share at a time: four times the rows, the same peak."""
    monkeypatch.setattr(verification, "_IDS_IN_A_PASS", 1 << 15)
    monkeypatch.setattr(verification, "_IDS_AT_ONCE", 1 << 13)

    def peak(n: int) -> int:
        folder = DatasetFolder(tmp_path, f"t{n}")
        ids = np.array([b"%032d" % row for row in range(n)])
        write_parquet(items_path(folder.path, "text"), pa.table({"id": pa.array(ids).cast(pa.large_string())}))
        path = folder.path / "text.fake.0123456789ab.h5"
        layout = Layout(ids, 4, "float16", {"modality": "text"}, 8192)
        with store.create(path, layout, {}) as writer:
            for block in range(layout.n_blocks):
                rows = layout.rows(block)
                size = rows.stop - rows.start
                status = np.ones(size, np.uint8)
                writer.write_block(block, np.ones((size, 4), np.float16), np.ones((size, 16), np.uint8), status)
            writer.seal({})
        tracemalloc.start()
        assert not [one for one in verification.verify(CachedDataset(folder)) if one.findings]
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    small, large = peak(180_000), peak(400_000)  # both hold more than the digest reads at once
    assert large < small + 2 * (400_000 - 180_000)  # a byte or two a row: the status


# ------------------------------------------------------------------------------------------------- recompute


def test_encoding_again_gives_the_same_vectors(work: Path) -> None:
    backbone = FakeBackbone()
    found = report(work, recompute=Again(10, backbone=backbone))
    assert backbone.encoded == 10
    assert said(found) == {"recompute": ("note", 10)}
    assert "tolerance 2e-03" in found.findings[0].message


def test_a_vector_that_the_encoder_does_not_give_is_damage(work: Path) -> None:
    def change(ids: np.ndarray, vectors: np.ndarray, status: np.ndarray) -> None:
        vectors[status == DONE] += 0.01

    rewritten(feature_path(work), change)
    found = report(work, recompute=Again(10, backbone=FakeBackbone()))
    assert said(found) == {"recompute": ("damage", 10)}


def test_items_that_changed_are_left_out_and_said(work: Path) -> None:
    for path in (work / "photos").rglob("*.jpg"):
        path.write_bytes(b"another " + path.read_bytes())
    assert said(report(work, recompute=Again(5, backbone=FakeBackbone()))) == {"recompute": ("warning", 5)}


def test_another_encoder_is_refused(work: Path) -> None:
    with pytest.raises(UsageError, match="weights differ from what the file states"):
        report(work, recompute=Again(5, backbone=FakeBackbone(weights="1" * 32)))


def test_an_encoder_or_data_that_are_not_here_are_refused(work: Path) -> None:
    with pytest.raises(UsageError, match="its encoder 'fake' is not on this machine.*--backbone"):
        report(work, recompute=Again(5))
    shutil.move(work / "photos", work / "elsewhere")
    with pytest.raises(DataNotFoundError, match="not on this machine.*--data"):
        report(work, recompute=Again(5, backbone=FakeBackbone()))
    moved = Again(5, backbone=FakeBackbone(), data=work / "elsewhere")
    assert said(report(work, recompute=moved)) == {"recompute": ("note", 5)}


def test_the_command_encodes_again_with_the_recorded_encoder(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n" + "".join(f"a bird {row}\n" for row in range(30)))
    cache = tmp_path / "cache"
    ec.extract("table", tmp_path / "t.csv", backbones=["demo-text"], text="text", cache=cache)
    (tmp_path / "t.csv").unlink()  # texts are in the cache itself
    done = call("verify", "t", "--recompute", "7", "--cache", cache, "--json")
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)
    assert [(one["what"], one["severity"], one["count"]) for one in found["findings"]] == [("recompute", "note", 7)]
    done = call("verify", "t", "--recompute", "7", "--backbone", "demo-image", "--cache", cache)
    assert done.exit_code == 2
    assert "cannot be encoded again with demo-image" in done.stderr
    assert call("verify", "--backbone", "demo-text", "--cache", cache).exit_code == 2


# ---------------------------------------------------------------------------------------------- against the data


def test_contents_are_compared_with_the_data_as_they_are(work: Path) -> None:
    photos = work / "photos"
    path = photos / "class1" / "00001.jpg"
    times = os.stat(path)
    path.write_bytes(b"image X")  # the same size and, below, the same time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (photos / "class2" / "00002.jpg").unlink()
    write_images(photos, 3, start=N)
    done = call("verify", "--against-data", "--cache", work / "cache", "--json")
    assert done.exit_code == 0
    [found] = json.loads(done.stdout)
    assert {one["what"]: one["count"] for one in found["findings"]} == {"changed": 1, "gone": 1, "new": 3}


def test_data_that_are_as_they_were_have_no_finding(work: Path) -> None:
    assert report(work, against_data=verification.remembered_data(dataset(work))).findings == ()


def test_lines_fit_a_terminal(work: Path) -> None:
    rewritten(feature_path(work), lambda ids, vectors, status: vectors.__setitem__(20, 0))
    for options in ([], ["--against-data"]):
        done = call("verify", "photos", *options, "--cache", work / "cache")
        assert max(map(len, done.stdout.splitlines())) <= 80
