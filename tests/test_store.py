"""The feature file: laid out whole, committed by blocks, sealed by name, refused when it is not itself."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache import files, store
from embedcache.errors import DamagedFileError, EmbedCacheError, IncompleteFileError
from embedcache.store import DONE, FAILED, FeatureFile, FeatureWriter, Layout

PROVENANCE = {"modality": "image", "weights": "ab" * 16}


def layout(n: int = 10, dim: int = 6, stored: str = "float16", block: int = 4) -> Layout:
    ids = np.array([f"bírd/{row}.jpg".encode() for row in range(n)])
    return Layout(ids, dim, stored, PROVENANCE, block)


def vectors(found: Layout) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.normal(size=(found.n_items, found.dim)).astype(found.stored)


def contents(found: Layout) -> np.ndarray:
    return np.frombuffer(b"".join(xxhash.xxh3_128_digest(item) for item in found.ids), np.uint8).reshape(-1, 16)


def write(writer: FeatureWriter, block: int, failed: tuple[int, ...] = ()) -> None:
    rows = writer.layout.rows(block)
    status = np.full(rows.stop - rows.start, DONE, np.uint8)
    data = vectors(writer.layout)[rows].copy()
    for row in failed:
        status[row - rows.start], data[row - rows.start] = FAILED, 0
    writer.write_block(block, data, contents(writer.layout)[rows], status)


def sealed(path: Path, found: Layout | None = None) -> FeatureFile:
    found = found or layout()
    with store.create(path, found, {"backbone": "fake"}) as writer:
        for block in writer.pending_blocks():
            write(writer, block)
        writer.seal({"backbone": "fake", "seconds": 1.5})
    return FeatureFile(path)


def test_a_sealed_file_gives_back_what_was_written(tmp_path: Path) -> None:
    file = sealed(tmp_path / "a.h5")
    assert np.array_equal(file.features, vectors(file.layout))
    assert np.array_equal(file.content, contents(file.layout))
    assert file.features.dtype == np.float16
    assert not file.features.flags.writeable
    assert [bytes(item).decode() for item in file.ids[:2]] == ["bírd/0.jpg", "bírd/1.jpg"]
    assert (file.status == DONE).all()
    assert file.provenance == PROVENANCE
    assert file.record == {"backbone": "fake", "seconds": 1.5}
    assert list(file.bad_blocks()) == []


def test_h5py_alone_reads_the_same_numbers_in_a_fresh_interpreter(tmp_path: Path) -> None:
    file = sealed(tmp_path / "a.h5")
    script = (
        "import sys, h5py\n"
        "with h5py.File(sys.argv[1], 'r') as f:\n"
        "    print(f['features'][...].tobytes().hex(), f['ids'].asstr()[3], bytes(f.attrs['fingerprint']).decode())\n"
        "assert not any(name.startswith('embedcache') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, file.path], capture_output=True, text=True, check=True)
    numbers, name, fingerprint = done.stdout.split()
    assert numbers == np.asarray(file.features).tobytes().hex()
    assert (name, fingerprint) == ("bírd/3.jpg", file.fingerprint)


def test_the_name_is_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = store.create(path, layout(), {})
    write(writer, 0)
    assert not path.exists()
    assert store.partial_path(path).exists()
    with pytest.raises(IncompleteFileError, match="2 blocks are pending"):
        writer.seal({})
    shutil.copy(store.partial_path(path), path)
    with pytest.raises(IncompleteFileError, match="not sealed"):
        FeatureFile(path)


def test_an_unfinished_file_opens_as_partial_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with store.create(path, layout(), {"backbone": "fake"}) as writer:
        write(writer, 1, failed=(5,))
    partial = FeatureFile(store.partial_path(path), partial=True)
    assert partial.status.tolist() == [0] * 4 + [1, 2, 1, 1] + [0] * 2
    assert partial.n_failed == 1
    with FeatureWriter(path) as again:
        assert again.pending_blocks() == [0, 2]
        write(again, 0)
        write(again, 2)
        again.seal({})
    assert FeatureFile(path).n_failed == 1


def test_a_seal_that_was_cut_off_leaves_a_file_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    writer = store.create(path, layout(), {})
    for block in writer.pending_blocks():
        write(writer, block)

    def cut_off(*_: object) -> None:
        raise OSError(errno.EIO, "pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "replace", cut_off)
        with pytest.raises(OSError, match="plug"):
            writer.seal({"torn": "x" * 500})
    with FeatureWriter(path) as again:
        assert again.pending_blocks() == []
        again.seal({})
    assert FeatureFile(path).n_pending == 0


def test_no_room_is_an_error_before_any_work_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "posix_fallocate", full)
    with pytest.raises(files.DiskFullError, match="it needs .* bytes") as caught:
        store.create(tmp_path / "a.h5", layout(), {})
    assert isinstance(caught.value, OSError)
    assert list(tmp_path.iterdir()) == []


def test_without_fallocate_the_space_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(files.os, "posix_fallocate")
    assert np.array_equal(sealed(tmp_path / "a.h5").features, vectors(layout()))


def test_the_space_is_reserved_to_the_end(tmp_path: Path) -> None:
    store.create(tmp_path / "a.h5", layout(n=5000, dim=64), {}).close()
    found = os.stat(tmp_path / "a.h5.partial")
    assert found.st_blocks * 512 >= found.st_size > 5000 * 64 * 2


def test_zero_items_are_refused() -> None:
    with pytest.raises(EmbedCacheError, match="0 × 6"):
        layout(n=0)


def test_an_existing_partial_is_never_overwritten(tmp_path: Path) -> None:
    store.create(tmp_path / "a.h5", layout(), {}).close()
    with pytest.raises(FileExistsError):
        store.create(tmp_path / "a.h5", layout(), {})


@pytest.mark.parametrize("fault", ["shape", "dtype", "pending"])
def test_a_block_that_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    with store.create(tmp_path / "a.h5", layout(), {}) as writer:
        data, content, status = np.zeros((4, 6), "f2"), np.zeros((4, 16), "u1"), np.ones(4, "u1")
        data = data[:3] if fault == "shape" else data.astype("f4") if fault == "dtype" else data
        status[2] = 0 if fault == "pending" else 1
        with pytest.raises(EmbedCacheError, match="Block 0"):
            writer.write_block(0, data, content, status)
        assert writer.pending_blocks() == [0, 1, 2]


def test_a_flipped_bit_in_the_vectors_is_found_by_checksum(tmp_path: Path) -> None:
    file = sealed(tmp_path / "a.h5")
    flip(file.path, file.header.extents["features"].offset + 4 * 6 * 2)
    assert list(FeatureFile(file.path).bad_blocks()) == [1]


def flip(path: Path, offset: int, bit: int = 1) -> None:
    with open(path, "r+b") as raw:
        raw.seek(offset)
        byte = raw.read(1)[0]
        raw.seek(offset)
        raw.write(bytes([byte ^ (1 << bit)]))


def test_no_flipped_bit_is_read_wrong(tmp_path: Path) -> None:
    """Every byte of a small file, a bit each: refused on opening, or found by the block's checksum."""
    pristine = sealed(tmp_path / "a.h5", layout(n=6, dim=2)).path
    features = FeatureFile(pristine).header.extents["features"]
    copy = tmp_path / "b.h5"
    shutil.copy(pristine, copy)
    offsets = [*range(0, pristine.stat().st_size, 7), *range(features.offset, features.end)]
    for offset in offsets:
        flip(copy, offset, bit=offset % 8)
        if features.offset <= offset < features.end:
            assert list(FeatureFile(copy).bad_blocks()), offset
        else:
            with pytest.raises(DamagedFileError):
                FeatureFile(copy)
        flip(copy, offset, bit=offset % 8)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.9999))
def test_a_file_that_is_cut_short_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = sealed(tmp_path_factory.mktemp("cut") / "a.h5").path
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DamagedFileError):
        FeatureFile(path)


@pytest.mark.parametrize("kind", ["chunked", "external link", "soft link", "virtual", "extra", "external storage"])
def test_hdf5_that_is_not_plain_is_refused(tmp_path: Path, kind: str) -> None:
    """Signed as a sealed file would be, so that it is the schema that refuses it."""
    good = sealed(tmp_path / "good.h5")
    path = tmp_path / "bad.h5"
    shutil.copy(good.path, path)
    (tmp_path / "secret.bin").write_bytes(b"s" * 4096)
    with h5py.File(path, "r+") as file:
        if kind == "extra":
            file["more"] = [1]
        else:
            _replace_features(file, kind, tmp_path)
    resign(path)
    with pytest.raises(DamagedFileError):
        FeatureFile(path)


def _replace_features(file: h5py.File, kind: str, folder: Path) -> None:
    del file["features"]
    if kind == "chunked":
        file.create_dataset("features", (10, 6), "f2", chunks=(1, 6))
    elif kind == "external link":
        file["features"] = h5py.ExternalLink(str(folder / "good.h5"), "/features")
    elif kind == "soft link":
        file["features"] = h5py.SoftLink("/content")
    elif kind == "virtual":
        virtual = h5py.VirtualLayout((10, 6), "f2")
        virtual[...] = h5py.VirtualSource(folder / "good.h5", "features", (10, 6))
        file.create_virtual_dataset("features", virtual)
    else:
        file.create_dataset("features", (10, 6), "f2", external=[(str(folder / "secret.bin"), 0, 120)])


def resign(path: Path) -> None:
    """Write the digest that the bytes have now: what a forger would do."""
    from dataclasses import replace

    with open(path, "r+b") as raw:
        header = store.Header.unpack(raw.read(store.USERBLOCK), path)
        digest = store.digest_outside(raw.fileno(), header.holes())
        raw.seek(0)
        raw.write(replace(header, seal_digest=digest).pack())


def test_another_format_version_is_refused_by_name(tmp_path: Path) -> None:
    path = sealed(tmp_path / "a.h5").path
    with open(path, "r+b") as raw:
        raw.seek(16)
        raw.write((2).to_bytes(2, "little"))
    with pytest.raises(DamagedFileError, match="format version 2"):
        FeatureFile(path)


@pytest.mark.parametrize(
    ("modality", "dim", "stored", "rows"),
    [("image", 1024, "float16", 256), ("text", 768, "float32", 8192), ("text", 4096, "float32", 4096)],
)
def test_blocks_take_at_most_64_mib(modality: str, dim: int, stored: str, rows: int) -> None:
    assert store.block_length(modality, dim, stored) == rows
