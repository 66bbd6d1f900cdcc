"""The token file: written whole, read back, refused when it is not itself."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcache import files, ragged, store
from embedcache.container import DONE, FAILED, Header
from embedcache.errors import DamagedFileError, EmbedCacheError, IncompleteFileError
from embedcache.ragged import TokenFile, TokenRows, take_rows
from embedcache.store import FeatureFile
from tests import test_store
from tests.test_hostile import EDITS, edited, replaced, time_limit
from tests.test_store import flip, resign

PROVENANCE = {"modality": "text", "weights": "none", "architecture": {"vocabulary": "ab"}}
RECORD = {"backbone": "words", "seconds": 1.5}


def token_rows(n: int = 5) -> TokenRows:
    """Rows of 0, 1, 2 … words; the first failed."""
    offsets = np.concatenate([[0], np.cumsum(np.arange(n))])
    tokens = np.arange(offsets[-1], dtype=np.int32) % 4
    ids = np.array([xxhash.xxh3_128_hexdigest(b"%d" % row).encode() for row in range(n)])
    content = np.frombuffer(bytes.fromhex(ids.tobytes().decode()), np.uint8).reshape(n, 16)
    words = np.array([word.encode() for word in ("<pad>", "<unk>", "ñandú", "red")])
    return TokenRows(ids, content, ragged.status_of(offsets), tokens, offsets, words)


def written(path: Path, rows: TokenRows | None = None) -> TokenFile:
    return ragged.write(path, rows or token_rows(), PROVENANCE, RECORD)


def open_wholly(path: Path) -> tuple[bytes, ...]:
    file = TokenFile(path)
    parts = (file.tokens, file.offsets, file.vocabulary, file.content, file.status, file.checksum, file.ids)
    assert (file.modality, file.record, file.words) is not None
    return tuple(np.asarray(part).tobytes() for part in parts)


def test_a_token_file_gives_back_what_was_written(tmp_path: Path) -> None:
    file, rows = written(tmp_path / "a.h5"), token_rows()
    assert np.array_equal(file.tokens, rows.tokens)
    assert np.array_equal(file.offsets, rows.offsets)
    assert np.array_equal(file.content, rows.content)
    assert file.words == ["<pad>", "<unk>", "ñandú", "red"]
    assert file.status.tolist() == [FAILED, DONE, DONE, DONE, DONE]
    assert (file.n_items, file.n_failed, file.n_tokens, file.n_words) == (5, 1, 10, 4)
    assert (file.provenance, file.record) == (PROVENANCE, RECORD)
    assert not file.tokens.flags.writeable
    assert list(file.bad_blocks()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_h5py_alone_reads_the_same_in_a_fresh_interpreter(tmp_path: Path) -> None:
    file = written(tmp_path / "a.h5")
    script = (
        "import sys, h5py\n"
        "with h5py.File(sys.argv[1], 'r') as f:\n"
        "    print(f['tokens'][...].tobytes().hex(), f['offsets'][-1], f['vocabulary'].asstr()[2],\n"
        "          bytes(f.attrs['kind']).decode(), bytes(f.attrs['fingerprint']).decode())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, file.path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [file.tokens.tobytes().hex(), "10", "ñandú", "tokens", file.fingerprint]


def test_tokens_come_in_blocks_with_a_checksum_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "BLOCK_TOKENS", 4)
    file = written(tmp_path / "a.h5")
    assert file.checksum.tolist() == [
        xxhash.xxh3_64_intdigest(file.tokens[start : start + 4].tobytes()) for start in (0, 4, 8)
    ]
    flip(file.path, file.header.extents["tokens"].offset + 4 * 5)
    assert list(TokenFile(file.path).bad_blocks()) == [1]
    with pytest.raises(DamagedFileError, match=r"blocks \[1\]"):
        TokenFile(file.path).rows()


def test_a_file_takes_the_place_of_another_in_one_step(tmp_path: Path) -> None:
    old = written(tmp_path / "a.h5")
    left = tmp_path / ".a.h5.0123abcd.layout"
    left.write_bytes(b"left by a kill")
    new = written(tmp_path / "a.h5", token_rows(9))
    assert (old.n_items, new.n_items, len(np.asarray(old.tokens))) == (5, 9, 10)
    assert not left.exists()


@pytest.mark.parametrize("call", ["replace", "fsync", "pwrite"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    written(tmp_path / "a.h5")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="plug"):
            written(tmp_path / "a.h5", token_rows(9))
    assert TokenFile(tmp_path / "a.h5").n_items == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "posix_fallocate", full)
    with pytest.raises(files.DiskFullError, match="it needs .* bytes"):
        written(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": np.zeros(0, np.int32), "offsets": np.zeros(6, np.int64)},
        {"tokens": np.full(10, 4, np.int32)},
        {"tokens": np.full(10, -1, np.int32)},
        {"offsets": np.array([0, 0, 2, 1, 6, 10])},
        {"offsets": np.array([1, 1, 2, 3, 6, 10])},
        {"offsets": np.array([0, 1, 2, 3, 6, 9])},
        {"offsets": np.array([0, 10])},
        {"status": np.ones(4, np.uint8)},
        {"content": np.zeros((5, 15), np.uint8)},
        {"vocabulary": np.zeros(0, "S1")},
    ],
)
def test_rows_that_do_not_agree_are_refused_before_anything_is_written(change: dict[str, Any]) -> None:
    with pytest.raises(EmbedCacheError):
        replace(token_rows(), **change)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.data())
def test_rows_are_taken_as_lists_would_be(lengths: list[int], data: st.DataObject) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(offsets[-1], dtype=np.int32)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9)), np.int64)
    taken, bounds = take_rows(tokens, offsets, rows)
    lists = [tokens[offsets[row] : offsets[row + 1]].tolist() for row in rows]
    assert [taken[a:b].tolist() for a, b in pairwise(bounds)] == lists


def test_consecutive_rows_are_a_view() -> None:
    rows = token_rows()
    taken, _ = take_rows(rows.tokens, rows.offsets, np.arange(1, 4))
    assert np.shares_memory(taken, rows.tokens)


# --------------------------------------------------------------------------------------- damaged, or another's work


def test_no_flipped_bit_is_read_wrong(tmp_path: Path) -> None:
    pristine = written(tmp_path / "a.h5").path
    tokens = TokenFile(pristine).header.extents["tokens"]
    for offset in [*range(0, pristine.stat().st_size, 7), *range(tokens.offset, tokens.end), 120, 121]:
        flip(pristine, offset, bit=offset % 8)
        if tokens.offset <= offset < tokens.end:
            assert list(TokenFile(pristine).bad_blocks()), offset
        else:
            with pytest.raises(DamagedFileError):
                TokenFile(pristine)
        flip(pristine, offset, bit=offset % 8)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.9999))
def test_a_file_that_is_cut_short_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = written(tmp_path_factory.mktemp("cut") / "a.h5").path
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DamagedFileError):
        TokenFile(path)


def test_the_two_kinds_are_not_taken_for_each_other(tmp_path: Path) -> None:
    tokens, vectors = written(tmp_path / "t.h5").path, test_store.sealed(tmp_path / "v.h5").path
    with pytest.raises(DamagedFileError, match="holds word ids; vectors are expected"):
        FeatureFile(tokens)
    with pytest.raises(DamagedFileError, match="holds vectors; word ids are expected"):
        TokenFile(vectors)
    with pytest.raises(DamagedFileError, match="no feature file"):
        TokenFile(tmp_path / "none.h5")
    for path, reader in ((tokens, FeatureFile), (vectors, TokenFile)):
        with open(path, "r+b") as raw:  # the other kind's number, and a digest that fits
            header = Header.unpack(raw.read(store.USERBLOCK), path)
            raw.seek(120)
            raw.write((1 - header.kind).to_bytes(2, "little"))
        resign(path)
        with pytest.raises(DamagedFileError):
            reader(path)


def tampered(folder: Path, change: Callable[[h5py.File], Any]) -> Path:
    """A token file that a forger changed with HDF5 and signed again."""
    path = folder / "bad.h5"
    shutil.copy(written(folder / "good.h5").path, path)
    with h5py.File(path, "r+") as file:
        change(file)
    resign(path)
    return path


def assigned(name: str, values: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file[name].__setitem__(..., values)


@pytest.mark.parametrize(
    "change",
    [
        replaced("tokens", data=np.zeros(10, "<i8")),
        replaced("tokens", data=np.zeros(9, "<i4")),
        replaced("tokens", data=np.zeros((10, 1), "<i4")),
        replaced("tokens", shape=(10,), dtype="<i4", chunks=(2,)),
        replaced("tokens", shape=(0,), dtype="<i4"),
        replaced("offsets", data=np.zeros(5, "<i8")),
        replaced("offsets", data=np.arange(6, dtype="<i4")),
        replaced("vocabulary", data=np.arange(4)),
        replaced("vocabulary", shape=(4,), dtype=h5py.string_dtype()),
        replaced("ids", shape=(4,), dtype="S32"),
        replaced("status", data=np.ones(4, "u1")),
        replaced("content", data=np.ones((5, 15), "u1")),
        replaced("checksum", data=np.ones(2, "<u8")),
        assigned("offsets", [0, 0, 2, 1, 6, 10]),
        assigned("offsets", [0, 0, 1, 3, 6, 2**62]),
        assigned("offsets", [-5, 0, 1, 3, 6, 10]),
        lambda file: file.attrs.__setitem__("kind", np.bytes_(b"vectors")),
        lambda file: file.attrs.__delitem__("kind"),
        lambda file: file.attrs.__setitem__("block_length", np.int64(0)),
        lambda file: file.attrs.__setitem__("provenance", np.bytes_(b'{"modality":"text"}')),
        lambda file: file.create_group("more"),
        lambda file: file.__delitem__("vocabulary"),
    ],
)
def test_what_is_not_of_this_format_is_refused_though_it_is_signed(
    tmp_path: Path, change: Callable[[h5py.File], Any]
) -> None:
    with time_limit(60), pytest.raises(DamagedFileError, match="bad.h5"):
        open_wholly(tampered(tmp_path, change))


def test_a_pending_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompleteFileError):
        TokenFile(tampered(tmp_path, assigned("status", [2, 1, 0, 1, 1])))


def test_no_byte_of_another_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\1\0\0\0" * 1024)
    external = [(str(tmp_path / "secret.bin"), 0, 4096)]
    with pytest.raises(DamagedFileError, match="not contiguous"):
        TokenFile(tampered(tmp_path, replaced("tokens", shape=(10,), dtype="<i4", external=external)))


@cache
def pristine(folder: Path) -> tuple[bytes, tuple[bytes, ...]]:
    path = written(folder / "pristine.h5").path
    return path.read_bytes(), open_wholly(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_damaged_bytes_are_never_read_as_other_values(folder: Path, edits: Any) -> None:
    data, values = pristine(folder)
    path = folder / "fuzzed.h5"
    path.write_bytes(edited(data, edits))
    with time_limit(60):
        try:
            found = open_wholly(path)
        except DamagedFileError:
            return
        assert found == values or list(TokenFile(path).bad_blocks())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_damage_that_is_signed_anew_is_refused_or_consistent(folder: Path, edits: Any) -> None:
    data, _ = pristine(folder)
    path = folder / "forged.h5"
    path.write_bytes(data[: store.USERBLOCK] + edited(data[store.USERBLOCK :], edits))
    resign(path)
    with time_limit(60):
        try:
            parts = open_wholly(path)
        except DamagedFileError:
            return
        assert sum(map(len, parts)) <= path.stat().st_size
