"""``ls``, ``info`` and ``rm``: damaged files hide nothing, nothing goes that was not named, readers keep their maps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import embedcache as ec
from cli import app
from embedcache import cache as caches
from embedcache import housekeeping, store
from embedcache.backbones.base import BackboneSettings
from embedcache.cache import CachedDataset
from embedcache.errors import DamagedFileError, LockedError, MissingFeaturesError, UnknownNameError
from embedcache.failures import failures_path, read_failures
from embedcache.files import locked
from embedcache.housekeeping import lock_path
from embedcache.jobs import Job
from embedcache.opening import OpenedDataset, find
from embedcache.store import FeatureFile, partial_path
from tests.fakes import FakeBackbone, known_vector
from tests.test_extraction import write_images
from tests.test_store import PROVENANCE, flip, layout, sealed
from tests.test_verification import call

N = 300


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos in a working folder, with two encoders' vectors of them."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", N)
    (tmp_path / "photos" / "class0" / "00003.jpg").write_bytes(b"BAD")
    extract(FakeBackbone(name="one"), FakeBackbone(name="two", dim=4))
    return tmp_path


def extract(*backbones: FakeBackbone, **options: Any) -> None:
    ec.extract("folder", "photos", backbones=backbones, cache="cache", **options)


def photos() -> CachedDataset:
    return ec.open("cache")["photos"]


def path_of(name: str) -> Path:
    return photos().find(name).path


def damaged(name: str) -> Path:
    path = path_of(name)
    flip(path, 5000)
    return path


def names() -> set[str]:
    return {path.name for path in Path("cache/photos").iterdir() if not path.name.endswith(".lock")}


# ------------------------------------------------------------------------------------------------- ls and info


def test_a_damaged_file_is_listed_and_hides_no_other(work: Path) -> None:
    path = damaged("one")
    done = call("ls")
    assert done.exit_code == 0, done.output
    assert "300 samples, 300 images" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert f"damaged: {path.name}" in done.stdout
    lines = {one["name"]: one for one in json.loads(call("ls", "--json").stdout)}
    assert lines["one"]["damage"]
    assert (lines["two"]["rows"], lines["two"]["failed"], lines["two"]["damage"]) == (N, 1, None)
    assert f"damaged: {path.name}" in repr(photos())


def test_a_damaged_file_is_named_when_it_is_asked_for(work: Path) -> None:
    path = damaged("one")
    with pytest.raises(DamagedFileError, match=path.name):
        photos().find("one")
    with pytest.raises(DamagedFileError, match=path.name):
        photos().features()
    with pytest.raises(MissingFeaturesError, match=f"damaged: {path.name}.*two@"):
        photos().find("three")
    assert photos().features("two").matrix().shape == (N - 1, 4)
    assert len(caches.failures(photos())) == 2


def test_a_file_without_a_readable_header_goes_by_its_file_name(work: Path) -> None:
    path = path_of("one")
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(DamagedFileError, match="is not a feature file"):
        photos().find("one")
    assert [(one.name, one.modality) for one in photos().summaries() if one.damage] == [("one", "image")]


@pytest.mark.parametrize("content", ["", "[]", '{"name": 1}', "\0\xff", '{"sources": 3, "notes": 4}'])
def test_a_damaged_record_hides_no_feature_file(work: Path, content: str) -> None:
    Path("cache/photos/dataset.json").write_text(content)
    done = call("ls")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("  image ") == 2
    assert "dataset.json" in done.stdout


def test_folders_that_cannot_be_data_sets_are_passed_over(work: Path) -> None:
    for odd in (".trash", "a b", "ü"):
        shutil.copytree("cache/photos", Path("cache", odd))
    os.mkfifo("cache/photos/image.pipe.0123.h5")
    assert list(ec.open("cache")) == ["photos"]
    assert len(photos().summaries()) == 2


def test_an_unfinished_file_is_listed_with_how_far_it_is(work: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(FakeBackbone(name="three", dim=5, fail_at=280))
    done = call("ls")
    assert "85% done" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    [line] = [one for one in json.loads(call("ls", "--json").stdout) if not one["sealed"]]
    assert (line["name"], line["done"]) == ("three", 256 / 300)


def test_one_data_set_sees_files_that_come_and_change(work: Path) -> None:
    dataset = photos()
    assert len(dataset.files) == 2
    extract(FakeBackbone(name="three", dim=5))
    assert len(dataset.files) == 3
    write_images(Path("photos"), 1, start=N)
    extract(FakeBackbone(name="three", dim=5))
    assert dataset.find("three").n_items == N + 1


def test_finding_one_feature_set_opens_no_other(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    original = FeatureFile.__init__

    def counted(self: FeatureFile, path: Path, **options: Any) -> None:
        opened.append(path)
        original(self, path, **options)

    monkeypatch.setattr(FeatureFile, "__init__", counted)
    dataset = photos()
    assert len(dataset.samples) == N
    assert opened == []
    dataset.find("two")
    dataset.find("two")
    assert [path.name.split(".")[1] for path in opened] == ["two"]


def test_a_reader_that_has_mapped_nothing_yet_is_not_given_another_files_bytes(work: Path) -> None:
    reader = FeatureFile(path_of("one"))
    write_images(Path("photos"), 30, start=N)
    extract(FakeBackbone(name="one"))
    row = reader.ids.tolist().index(b"class2/00005.jpg")
    assert np.array_equal(reader.features[row], known_vector(b"image 5", 8))
    with pytest.raises(DamagedFileError, match="was replaced while it was open"):
        list(reader.bad_blocks())


def test_the_difference_of_two_encoders_is_said_in_words(work: Path) -> None:
    lower = FakeBackbone(name="lower", weights="1" * 32, settings=BackboneSettings(lowercase=True))
    extract(lower)
    done = call("info", "photos", "--diff", "one", "lower")
    assert done.stdout.splitlines() == ["weights differ", "lower-casing: off → on"]
    done = call("info", "photos", "--diff", "one", "two", "--json")
    assert json.loads(done.stdout) == ["architecture dim: 8 → 4"]
    assert call("info", "photos", "--diff", "one", "one").stdout == "The two mean the same.\n"


BASE = {
    "modality": "image", "family": "hf", "weights": "0" * 32, "architecture": {"hidden": 8}, "pooling": "mean",
    "layer": "last", "compute": "float32", "stored": "float16",
    "preprocessing": {
        "size": [224, 224], "crop": None, "mean": [0.5, 0.5], "lowercase": False, "prompt": "", "max_length": 128,
        "value_range": None, "tokenizer": {"vocab.txt": "aa"}, "exif": True,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("weights", "1" * 32, "weights differ"),
        ("pooling", "cls", "pooling: mean → cls"),
        ("layer", "-2", "layer: last → -2"),
        ("preprocessing.size", [384, 384], "size: 224, 224 → 384, 384"),
        ("preprocessing.crop", [200, 200], "crop: not stated → 200, 200"),
        ("preprocessing.mean", [0.4, 0.5], "normalisation mean: 0.5, 0.5 → 0.4, 0.5"),
        ("preprocessing.lowercase", True, "lower-casing: off → on"),
        ("preprocessing.prompt", "query: ", "prompt: none → query: "),
        ("preprocessing.max_length", 64, "maximum length: 128 → 64"),
        ("preprocessing.value_range", [0.0, 65535.0], "value range: not stated → 0.0, 65535.0"),
        ("preprocessing.tokenizer", {"vocab.txt": "bb"}, "tokenizer differs (vocab.txt)"),
        ("compute", "float16", "compute precision: float32 → float16"),
        ("stored", "float32", "stored precision: float16 → float32"),
        ("architecture", {"hidden": 9}, "architecture hidden: 8 → 9"),
    ],
)
def test_each_cause_of_another_fingerprint_has_its_words(tmp_path: Path, path: str, value: Any, words: str) -> None:
    changed = json.loads(json.dumps(BASE))
    *parents, leaf = path.split(".")
    where = changed
    for parent in parents:
        where = where[parent]
    where[leaf] = value
    found = layout()
    files = [
        sealed(tmp_path / f"{number}.h5", store.Layout(found.ids, 6, "float16", provenance, 4))
        for number, provenance in enumerate((BASE, changed))
    ]
    assert files[0].fingerprint != files[1].fingerprint
    assert caches.difference(files[0], files[1]) == [words]


def test_failures_are_listed_and_tried_again(work: Path) -> None:
    done = call("info", "photos", "--failed")
    assert done.stdout.count("class0/00003.jpg: it is bad") == 2
    done = call("info", "photos", "--failed", "--features", "two", "--json")
    assert list(json.loads(done.stdout).values()) == [{"class0/00003.jpg": "it is bad"}]
    backbone = FakeBackbone(name="one")
    extract(backbone)
    assert backbone.encoded == 0
    extract(backbone, options=ec.Options(retry_failed=True))
    assert (backbone.encoded, photos().find("one").n_failed) == (0, 1)
    (work / "photos" / "class0" / "00003.jpg").write_bytes(b"good now")
    extract(backbone)
    assert (backbone.encoded, photos().find("one").n_failed) == (1, 0)
    assert read_failures(path_of("one")) == {}
    assert not failures_path(path_of("one")).exists()


def test_of_a_hundred_feature_files_only_the_one_that_is_meant_is_opened(tmp_path: Path) -> None:
    """Listing names and finding one reads a header a file; an open file costs one descriptor."""
    folder = tmp_path / "cache" / "many"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")
    for number in range(100):
        provenance = {**PROVENANCE, "weights": f"{number}"}
        found = store.Layout(layout().ids, 6, "float16", provenance, 4)
        path = folder / f"image.b{number}.{number:012x}.h5"
        with store.create(path, found, {"backbone": f"b{number}"}, sync=False) as writer:
            for block in writer.pending_blocks():
                rows = found.rows(block)
                n = rows.stop - rows.start
                writer.write_block(block, np.ones((n, 6), "f2"), np.ones((n, 16), "u1"), np.ones(n, "u1"))
            writer.seal({"backbone": f"b{number}"})
    dataset = ec.open(tmp_path / "cache")["many"]
    assert dataset.find("b7").dim == 6
    assert sum("file" in entry.__dict__ for entry in dataset.entries) == 1
    before = descriptors()
    assert len(dataset.files) == 100
    assert descriptors() <= before + 100


def descriptors() -> int:
    """Open files of this process; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.exists() else 0


# ----------------------------------------------------------------------------------------------------------- rm


def test_a_feature_set_goes_with_its_failures_and_its_unfinished_file(work: Path) -> None:
    path = path_of("one")
    shutil.copy(path, partial_path(path))
    before = names()
    done = call("rm", "photos", "--features", "one", "--yes")
    assert done.exit_code == 0, done.output
    assert before - names() == {path.name, partial_path(path).name, failures_path(path).name}
    assert path.name in done.stdout


def test_it_asks_and_no_means_no(work: Path) -> None:
    before = names()
    for answer in ("n\n", "\n", ""):
        CliRunner().invoke(app, ["rm", "photos"], input=answer)
        assert names() == before
    done = CliRunner().invoke(app, ["rm", "photos"], input="y\n")
    assert done.exit_code == 0
    assert not Path("cache/photos").exists()
    assert Path("photos").exists()


def test_damaged_and_unfinished_files_can_be_removed_by_name(work: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(FakeBackbone(name="three", dim=5, fail_at=280))
    damaged("one")
    for name in ("one", "three"):
        assert call("rm", "photos", "--features", name, "--yes").exit_code == 0
    assert {one.name for one in photos().summaries()} == {"two"}
    with pytest.raises(MissingFeaturesError):
        housekeeping.removable(photos(), "one")


def test_nothing_goes_while_another_process_writes(work: Path) -> None:
    file = photos().find("two")
    path = lock_path(Path("cache/photos"), "two", file.provenance)
    script = (
        "import sys, pathlib\nfrom embedcache.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), wait=False):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        before = names()
        for options in (["--features", "one"], [], ["--unused"]):
            done = call("rm", "photos", *options, "--yes")
            assert done.exit_code == 1
            assert "Another process is writing to photos" in done.stderr
        assert names() == before
        other.communicate()


def test_the_lock_is_the_one_that_extraction_holds(work: Path) -> None:
    backbone = FakeBackbone(name="org/my one", settings=BackboneSettings(lowercase=True))
    [(name, dataset)] = find("folder", "photos", None, Path("cache"), {})
    opened = OpenedDataset.read(name, dataset, cache=Path("cache"))
    extract(backbone)
    file = photos().find("org/my one")
    job = Job(opened, backbone, ec.Options(), None, 0)
    assert lock_path(Path("cache/photos"), "org/my one", file.provenance) == job.lock_path()
    with locked(job.lock_path(), wait=False), pytest.raises(LockedError), housekeeping.nobody_writing(photos()):
        pass


def leave(name: str) -> Path:
    path = Path("cache/photos", name)
    path.write_bytes(b"x" * 10)
    return path


def test_what_crashes_left_goes_and_nothing_else(work: Path) -> None:
    gone = {
        leave(name).name
        for name in (
            ".image.one.0123456789ab.h5.0a1b2c3d.layout",
            ".samples.parquet.0a1b2c3d.tmp",
            "image.one.0123456789ab.h5.partial.set-aside-2",
            "image.gone.0123456789ab.failed.jsonl",
            "image.bad.0123456789ab.h5.partial",
        )
    }
    stay = {leave(name).name for name in ("notes.txt", "mine.tmp", "image.h5.backup")}
    before = names()
    done = call("rm", "photos", "--unused", "--yes")
    assert done.exit_code == 0, done.output
    assert before - names() == gone
    assert stay < names()
    assert "Nothing to remove" in call("rm", "photos", "--unused").stdout


def test_an_unfinished_file_stays_unless_it_holds_nothing_new(work: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(FakeBackbone(name="three", dim=5, fail_at=280))
    done = call("rm", "photos", "--unused", "--yes")
    assert "stays: the same extraction goes on with it" in done.stdout
    backbone = FakeBackbone(name="three", dim=5)
    [partial] = Path("cache/photos").glob("*.partial")
    shutil.copy(partial, "kept")
    extract(backbone)
    assert backbone.encoded < N
    shutil.copy("kept", partial)
    assert [one.path for one in housekeeping.left_over(photos()).removals] == [partial]


def test_rows_that_no_sample_uses_go_and_readers_keep_their_map(work: Path) -> None:
    reader = FeatureFile(path_of("one"))
    for row in range(0, N, 2):
        Path(f"photos/class{row % 3}/{row:05d}.jpg").unlink()
    for name, dim in (("one", 8), ("two", 4)):
        extract(FakeBackbone(name=name, dim=dim))
    assert photos().find("one").n_items == N
    fingerprints = {file.fingerprint for file in photos().files}
    done = call("rm", "photos", "--unused", "--yes")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("150 of 300 rows, which no sample uses") == 2
    for name, dim in (("one", 8), ("two", 4)):
        file = photos().find(name)
        assert (file.n_items, file.record["dropped"]) == (150, 150)
        for item, vector, status in zip(file.ids, file.features, file.status, strict=True):
            payload = Path("photos", bytes(item).decode()).read_bytes()
            assert status == 2 or np.array_equal(vector, known_vector(payload, dim))
        assert read_failures(file.path) == {"class0/00003.jpg": "it is bad"}
    assert {file.fingerprint for file in photos().files} == fingerprints
    assert call("verify").exit_code == 0
    assert reader.features.shape == (N, 8)
    row = reader.ids.tolist().index(b"class0/00000.jpg")
    assert np.array_equal(reader.features[row], known_vector(b"image 0", 8))
    again = FakeBackbone(name="one")
    extract(again)
    assert again.encoded == 0


def test_a_damaged_block_is_never_copied_under_a_new_checksum(work: Path) -> None:
    path = path_of("one")
    flip(path, FeatureFile(path).header.extents["features"].offset + 3)
    content = path.read_bytes()
    Path("photos/class0/00000.jpg").unlink()
    extract(FakeBackbone(name="two", dim=4))
    done = call("rm", "photos", "--unused", "--yes")
    assert done.exit_code == 1
    assert "nothing was rewritten" in done.stderr
    write_images(Path("photos"), 5, start=N)
    with pytest.raises(DamagedFileError, match="no row of it is copied"):
        extract(FakeBackbone(name="one"))
    assert path.read_bytes() == content


def test_a_file_of_which_nothing_is_used_goes_whole(work: Path) -> None:
    shutil.rmtree("photos")
    write_images(Path("photos"), 9, start=N)
    extract(FakeBackbone(name="two", dim=4))
    path = path_of("one")
    call("rm", "photos", "--unused", "--yes")
    assert not path.exists()
    assert not failures_path(path).exists()
    assert photos().find("two").n_items == 9


def test_a_rewriting_that_fails_leaves_the_file_as_it_was(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos/class0/00000.jpg").unlink()
    extract(FakeBackbone(name="one"))
    content = path_of("one").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.FeatureWriter, "write_block", full)
        assert call("rm", "photos", "--unused", "--yes").exit_code == 1
    assert path_of("one").read_bytes() == content
    assert not list(Path("cache/photos").glob("*.partial"))


def test_a_data_set_outside_the_cache_cannot_be_named(work: Path) -> None:
    (work / "other").mkdir()
    shutil.copy("cache/photos/dataset.json", "other")
    for name in ("../other", "/etc", ".", ".."):
        done = call("rm", name, "--yes")
        assert done.exit_code == 2, name
    with pytest.raises(UnknownNameError):
        ec.open("cache")["nothing"]
    assert (work / "other" / "dataset.json").exists()
