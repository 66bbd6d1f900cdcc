"""Extraction: encoded once, resumed, grown, never stale; shown by counting forward passes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache as ec
from embedcache.backbones.base import BackboneSettings
from embedcache.cache import failures
from embedcache.errors import AllItemsFailedError, ItemError, UsageError
from embedcache.extraction import Extraction
from embedcache.failures import append_failures, read_failures
from embedcache.files import locked
from embedcache.jobs import Job
from embedcache.opening import OpenedDataset, find
from embedcache.store import FAILED, FeatureFile
from tests import fakes
from tests.fakes import FakeBackbone, known_vector

N = 600


def write_images(folder: Path, n: int = N, start: int = 0) -> None:
    """Files that the fake backbone reads: their bytes are their name."""
    for row in range(start, start + n):
        path = folder / f"class{row % 3}" / f"{row:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"image {row}".encode())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos")
    return tmp_path / "photos"


def run(photos: Path, backbone: FakeBackbone, **arguments: Any) -> Extraction:
    cache = photos.parent / "cache"
    [done] = ec.extract("folder", photos, backbones=[backbone], cache=cache, **arguments)
    return done


def check(file: FeatureFile, photos: Path, dim: int = 8) -> None:
    """Every row that is done has the vector of its item's bytes as they are on disk now."""
    for item, vector, status in zip(file.ids, file.features, file.status, strict=True):
        if status != FAILED:
            payload = (photos / bytes(item).decode()).read_bytes()
            assert np.array_equal(vector, known_vector(payload, dim)), item


def test_each_item_is_encoded_once(photos: Path) -> None:
    backbone = FakeBackbone()
    first = run(photos, backbone)
    assert (first.action, first.n_encoded, first.n_items, backbone.encoded) == ("extract", N, N, N)
    assert first.path is not None
    check(FeatureFile(first.path), photos)
    second = run(photos, backbone)
    assert (second.action, second.n_encoded, second.n_kept, backbone.encoded) == ("reuse", 0, N, N)


def test_texts_are_encoded_once_however_many_samples_use_them(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"text {row % 50},a\n" for row in range(500)))
    backbone = FakeBackbone("text")
    [done] = ec.extract("table", table, backbones=[backbone], text="text", label="label", cache=tmp_path / "c")
    assert (done.n_samples, done.n_items, backbone.encoded) == (500, 50, 50)
    x = ec.open(tmp_path / "c")["t"].features().matrix()
    assert np.array_equal(x[[3, 53]], np.stack([known_vector(b"text 3", 8)] * 2))


def test_a_limit_is_nested_and_costs_nothing_later(photos: Path) -> None:
    backbone = FakeBackbone()
    small = run(photos, backbone, limit=100)
    assert (small.n_items, backbone.encoded) == (100, 100)
    grown = run(photos, backbone)
    assert (grown.action, grown.n_encoded, grown.n_kept, backbone.encoded) == ("grow", N - 100, 100, N)
    assert grown.path is not None
    check(FeatureFile(grown.path), photos)
    assert run(photos, backbone, limit=100).action == "reuse"
    assert len(list(grown.path.parent.glob("*.h5*"))) == 1


def test_only_news_is_encoded_and_readers_keep_what_they_mapped(photos: Path) -> None:
    backbone = FakeBackbone()
    first = run(photos, backbone)
    assert first.path is not None
    reader = FeatureFile(first.path)
    before = np.array(reader.features)
    write_images(photos, 20, start=N)
    changed = photos / "class0" / "00000.jpg"
    changed.write_bytes(b"another image")
    (photos / "class1" / "00001.jpg").unlink()
    done = run(photos, backbone)
    assert (done.action, done.n_encoded, backbone.encoded) == ("grow", 21, N + 21)
    assert done.path == first.path
    after = FeatureFile(first.path)
    assert after.n_items == N + 20
    row = after.ids.tolist().index(b"class0/00000.jpg")
    assert np.array_equal(after.features[row], known_vector(b"another image", 8))
    assert np.array_equal(reader.features, before)


def test_a_change_that_keeps_size_and_time_is_found_when_contents_are_checked(photos: Path) -> None:
    backbone = FakeBackbone()
    run(photos, backbone)
    path = photos / "class0" / "00003.jpg"
    times = os.stat(path)
    path.write_bytes(b"image X")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(photos, backbone).n_encoded == 0
    assert run(photos, backbone, options=ec.Options(check="content")).n_encoded == 1


def test_touching_files_encodes_nothing(photos: Path) -> None:
    backbone = FakeBackbone()
    run(photos, backbone)
    for path in photos.rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert run(photos, backbone).action == "reuse"
    assert backbone.encoded == N


def test_an_interrupted_run_goes_on_where_it_was(photos: Path) -> None:
    broken = FakeBackbone(fail_at=400)
    with pytest.raises(KeyboardInterrupt):
        run(photos, broken)
    [partial] = (photos.parent / "cache" / "photos").glob("*.partial")
    assert FeatureFile(partial, partial=True).n_pending == N - 256
    whole = FakeBackbone()
    done = run(photos, whole)
    assert (done.action, done.n_encoded, whole.encoded) == ("resume", N - 256, N - 256)
    assert done.path is not None
    check(FeatureFile(done.path), photos)
    assert not partial.exists()


def test_a_killed_process_loses_at_most_two_blocks(photos: Path) -> None:
    script = (
        "import os, signal, sys\nimport embedcache as ec\nfrom tests.fakes import FakeBackbone, FakeEncoder\n"
        "forward = FakeEncoder.forward\n"
        "def killing(self, batch):\n"
        "    if self._backbone.encoded >= 512: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return forward(self, batch)\n"
        "FakeEncoder.forward = killing\n"
        "ec.extract('folder', sys.argv[1], backbones=[FakeBackbone()], cache=sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, photos, photos.parent / "cache"], check=False)
    assert done.returncode == -signal.SIGKILL
    backbone = FakeBackbone()
    resumed = run(photos, backbone)
    assert resumed.action == "resume"
    assert backbone.encoded <= N - 256
    assert resumed.path is not None
    check(FeatureFile(resumed.path), photos)
    assert FeatureFile(resumed.path).n_pending == 0


def test_an_unfinished_file_of_other_items_is_set_aside_and_its_rows_are_taken_over(photos: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, FakeBackbone(fail_at=400))
    write_images(photos, 10, start=N)
    backbone = FakeBackbone()
    done = run(photos, backbone)
    assert (done.action, backbone.encoded) == ("grow", N + 10 - 256)
    assert any("has other items" in note and "set-aside-1" in note for note in done.notes)
    assert len(list((photos.parent / "cache" / "photos").glob("*.set-aside-1"))) == 1
    assert done.path is not None
    check(FeatureFile(done.path), photos)


def test_what_lies_under_the_name_of_the_unfinished_file_is_set_aside_and_said(photos: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, FakeBackbone(fail_at=400))
    [partial] = (photos.parent / "cache" / "photos").glob("*.partial")
    foreign = partial.read_bytes()
    whole = run(photos, FakeBackbone(scale=2.0))
    assert whole.path is not None
    stranger = Path(f"{whole.path}.partial")
    whole.path.unlink()
    for content, word in ((foreign, "is of another encoder"), (b"nonsense", "is damaged")):
        stranger.write_bytes(content)
        done = run(photos, FakeBackbone(scale=2.0))
        assert [note for note in done.notes if "set aside as" in note and word in note]
        assert done.n_encoded == N
        whole.path.unlink()
    assert partial.exists()


def test_a_line_of_failures_that_a_crash_left_is_not_a_failure(photos: Path) -> None:
    done = run(photos, FakeBackbone())
    assert done.path is not None
    append_failures(done.path, {"class0/00000.jpg": "it was bad before it was tried again"})
    assert run(photos, FakeBackbone()).failures == {}
    assert list(failures(ec.open(photos.parent / "cache")["photos"]).values()) == [{}]


def test_a_committed_row_whose_item_has_changed_since_is_encoded_again(photos: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, FakeBackbone(fail_at=400))
    (photos / "class0" / "00000.jpg").write_bytes(b"changed meanwhile")
    backbone = FakeBackbone()
    done = run(photos, backbone)
    assert backbone.encoded == N - 256 + 1
    assert done.path is not None
    check(FeatureFile(done.path), photos)


def test_another_encoder_gets_a_file_of_its_own(photos: Path) -> None:
    paths = {run(photos, backbone).path for backbone in (
        FakeBackbone(),
        FakeBackbone(weights="1" * 32),
        FakeBackbone(scale=2.0),
        FakeBackbone(settings=BackboneSettings(lowercase=True)),
    )}  # fmt: skip
    paths |= {run(photos, FakeBackbone(), options=ec.Options(stored="float32")).path}
    paths |= {run(photos, FakeBackbone(), options=ec.Options(precision="float16")).path}
    assert len(paths) == 6


def test_auto_precision_is_satisfied_by_what_is_sealed(photos: Path) -> None:
    backbone = FakeBackbone()
    first = run(photos, backbone, options=ec.Options(precision="float16", stored="float32"))
    assert run(photos, backbone).path == first.path
    assert backbone.casts == ["float16"]
    assert backbone.encoded == N


@pytest.mark.parametrize(("scale", "stored"), [(1.0, "float16"), (1e5, "float32"), (1e-9, "float32")])
def test_vectors_are_stored_in_half_precision_where_nothing_is_lost(photos: Path, scale: float, stored: str) -> None:
    done = run(photos, FakeBackbone(scale=scale))
    assert done.path is not None
    assert FeatureFile(done.path).layout.stored == stored


def test_bad_items_are_counted_with_reasons_and_the_rest_goes_on(photos: Path) -> None:
    (photos / "class0" / "00000.jpg").write_bytes(b"BAD image")
    (photos / "class1" / "00001.jpg").write_bytes(b"INF image")
    (photos / "class2" / "00002.jpg").unlink()
    (photos / "class2" / "00002.jpg").symlink_to("nowhere")
    backbone = FakeBackbone()
    done = run(photos, backbone)
    assert done.path is not None
    assert read_failures(done.path) == {
        "class0/00000.jpg": "it is bad",
        "class1/00001.jpg": "its vector is not finite",
        "class2/00002.jpg": "the file is missing",
    }
    file = FeatureFile(done.path)
    assert (done.n_failed, file.n_failed, file.n_items) == (3, 3, N)
    assert not np.asarray(file.features)[file.status == FAILED].any()
    check(file, photos)
    counted = backbone.encoded
    assert (run(photos, backbone).action, backbone.encoded) == ("reuse", counted)


def test_failures_can_be_retried_and_mended_files_are_noticed(photos: Path) -> None:
    bad = photos / "class0" / "00000.jpg"
    bad.write_bytes(b"BAD image")
    backbone = FakeBackbone()
    run(photos, backbone)
    retried = run(photos, backbone, options=ec.Options(retry_failed=True))
    assert (retried.action, retried.n_encoded, retried.n_failed) == ("grow", 1, 1)
    bad.write_bytes(b"good again")
    mended = run(photos, backbone)
    assert (mended.n_encoded, mended.n_failed, mended.failures) == (1, 0, {})
    assert mended.path is not None
    check(FeatureFile(mended.path), photos)


def test_a_first_block_of_failures_does_not_stop_the_rest(tmp_path: Path) -> None:
    write_images(tmp_path / "photos")
    for path in sorted((tmp_path / "photos").rglob("*.jpg"))[:300]:
        path.write_bytes(b"BAD")
    done = run(tmp_path / "photos", FakeBackbone())
    assert (done.n_failed, done.dim) == (300, 8)


def test_nothing_but_failures_is_an_error_and_leaves_no_feature_file(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 5)
    for path in (tmp_path / "photos").rglob("*.jpg"):
        path.write_bytes(b"BAD")
    with pytest.raises(AllItemsFailedError, match="None of the 5 image items .* it is bad"):
        run(tmp_path / "photos", FakeBackbone())
    assert not list((tmp_path / "cache").rglob("*.h5*"))


def test_stop_at_the_first_bad_item(photos: Path) -> None:
    (photos / "class0" / "00000.jpg").write_bytes(b"BAD image")
    with pytest.raises(ItemError, match=r"Stopped at class0/00000.jpg: it is bad"):
        run(photos, FakeBackbone(), options=ec.Options(on_error="stop"))


def test_a_later_overflow_is_a_failed_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "photos", 300)
    run(tmp_path / "photos", FakeBackbone(), limit=10)
    (tmp_path / "photos" / "class0" / "00000.jpg").write_bytes(b"monster")
    monkeypatch.setattr(
        fakes, "known_vector", lambda payload, dim: known_vector(payload, dim) * 1e6 ** (payload == b"monster")
    )
    done = run(tmp_path / "photos", FakeBackbone())
    assert "overflows float16" in done.failures["class0/00000.jpg"]


def test_truncated_texts_are_counted(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("text\nshort\nLONG one\nLONG two\n")
    [done] = ec.extract("table", table, backbones=[FakeBackbone("text")], text="text", cache=tmp_path / "c")
    assert done.n_truncated == 2


def test_a_dry_run_says_what_would_happen_and_writes_nothing(photos: Path) -> None:
    backbone = FakeBackbone()
    told = run(photos, backbone, dry_run=True)
    assert (told.action, told.n_encoded, told.n_items) == ("extract", N, N)
    assert told.estimate is not None
    assert told.estimate.seconds is not None
    assert told.estimate.seconds > 0
    assert told.estimate.nbytes == N * (8 * 2 + 64)
    assert not (photos.parent / "cache").exists()
    run(photos, backbone)
    assert run(photos, backbone, dry_run=True).action == "reuse"


def test_a_modality_that_the_data_set_lacks_is_skipped_and_said(photos: Path) -> None:
    done = run(photos, FakeBackbone("text"))
    assert (done.action, done.reason) == ("skip", "photos has no texts")


def test_a_name_is_enough_once_the_data_set_is_known(photos: Path) -> None:
    cache = photos.parent / "cache"
    ec.extract("folder", photos, name="scope", backbones=[FakeBackbone()], cache=cache, label=r"class(\d)")
    [again] = ec.extract("scope", backbones=[FakeBackbone(name="other", weights="2" * 32)], cache=cache)
    assert (again.dataset, again.n_encoded) == ("scope", N)
    assert set(ec.open(cache)["scope"].samples["label"]) == {"0", "1", "2"}


def test_a_folder_without_labels_is_a_data_set_too(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(b"a")
    [done] = ec.extract(tmp_path / "flat", name="scope", backbones=[FakeBackbone()], cache=tmp_path / "cache")
    assert done.n_items == 1
    assert ec.open(tmp_path / "cache")["scope"].table.targets == ()


def test_other_data_never_takes_the_name_of_a_data_set(photos: Path, tmp_path: Path) -> None:
    run(photos, FakeBackbone())
    other = tmp_path / "elsewhere" / "photos"
    write_images(other, 5, start=10_000)
    with pytest.raises(UsageError, match="shares no sample"):
        ec.extract("folder", other, backbones=[FakeBackbone()], cache=tmp_path / "cache")
    moved = tmp_path / "moved" / "photos"
    shutil.copytree(photos, moved)
    backbone = FakeBackbone()
    [done] = ec.extract("folder", moved, backbones=[backbone], cache=tmp_path / "cache")
    assert (done.action, backbone.encoded) == ("reuse", 0)


def test_a_cache_works_where_it_is_copied_to(photos: Path, tmp_path: Path) -> None:
    run(photos, FakeBackbone())
    shutil.move(tmp_path / "cache", tmp_path / "copy")
    backbone = FakeBackbone()
    [done] = ec.extract("folder", photos, backbones=[backbone], cache=tmp_path / "copy")
    assert (done.action, backbone.encoded) == ("reuse", 0)


def test_a_second_writer_leaves_with_a_clear_word_and_changes_nothing(photos: Path) -> None:
    run(photos, FakeBackbone(), limit=10)
    cache = photos.parent / "cache"
    before = {path: path.read_bytes() for path in cache.rglob("*.h5")}
    [(name, dataset)] = find("folder", photos, None, cache, {})
    job = Job(OpenedDataset.read(name, dataset, cache), FakeBackbone(), ec.Options(), None, 0)
    script = (
        "import sys\nimport embedcache as ec\nfrom tests.fakes import FakeBackbone\n"
        "from embedcache.errors import LockedError\n"
        "try: ec.extract('folder', sys.argv[1], backbones=[FakeBackbone()], cache=sys.argv[2])\n"
        "except LockedError as error: print(error); sys.exit(7)\n"
    )
    with locked(job.lock_path(), wait=False):
        other = subprocess.run(
            [sys.executable, "-c", script, photos, cache], capture_output=True, text=True, check=False
        )
    assert other.returncode == 7, other.stderr
    assert "--wait" in other.stdout
    assert {path: path.read_bytes() for path in cache.rglob("*.h5")} == before


def test_the_record_names_what_it_was_made_with(photos: Path) -> None:
    done = run(photos, FakeBackbone(settings=BackboneSettings(lowercase=True)))
    assert done.path is not None
    record = FeatureFile(done.path).record
    assert (record["backbone"], record["checkpoint"], record["settings"]) == ("fake", "fake:fake", {"lowercase": True})
    assert record["encoded"] == N
    assert set(record["versions"]) >= {"python", "torch", "h5py"}
    document = json.loads((done.path.parent / "dataset.json").read_text())
    assert (document["adapter"], document["counts"]) == ("folder", {"samples": N, "images": N})


def test_a_damaged_feature_file_is_said_and_not_reused(photos: Path) -> None:
    backbone = FakeBackbone()
    first = run(photos, backbone)
    assert first.path is not None
    with open(first.path, "r+b") as raw:
        raw.seek(5000)
        raw.write(b"\xff\xfe\xfd")
    again = run(photos, backbone)
    assert backbone.encoded == 2 * N
    assert any("damaged" in note for note in again.notes)
