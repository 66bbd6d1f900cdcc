"""Files from elsewhere: refused or neutralised; no foreign byte is read, no code is run, nothing hangs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedcache as ec
from embedcache import store
from embedcache.backbones.checkpoints import digest_tensors, read_tensors
from embedcache.datasets import read_image
from embedcache.datasets.base import walk_images
from embedcache.errors import CheckpointError, DamagedFileError, EmbedCacheError, ItemError
from embedcache.store import FeatureFile, Layout
from tests.fakes import FakeBackbone
from tests.test_store import PROVENANCE, layout, resign, sealed
from tests.test_verification import call

FORMAT_1 = Path(__file__).parent / "data" / "format1.h5"


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """End the process where a library loops forever: no Python handler would run inside it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def open_wholly(path: Path) -> tuple[bytes, ...]:
    """Everything that a reader can be asked for."""
    file = FeatureFile(path)
    parts = (file.features, file.content, file.status, file.checksum, file.ids)
    assert (file.modality, file.dim, file.record) is not None
    return tuple(np.asarray(part).tobytes() for part in parts)


def refused(path: Path) -> str:
    with pytest.raises(DamagedFileError) as caught:
        open_wholly(path)
    assert path.name in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------- a file of format 1


def write_format1(path: Path) -> None:
    """What ``tests/data/format1.h5`` was made with; it is kept as it is, whatever the store becomes."""
    ids = np.array([f"bírd/{row}.jpg".encode() for row in range(5)])
    provenance = {
        "modality": "image", "family": "known", "weights": "00" * 16, "architecture": {}, "pooling": "mean",
        "layer": "last", "preprocessing": {}, "compute": "float32", "stored": "float16",
    }  # fmt: skip
    record = {"backbone": "known", "checkpoint": "known:numbers", "settings": {}}
    vectors = np.arange(15, dtype=np.float16).reshape(5, 3) / 4 - 1
    vectors[3] = 0
    content = np.arange(80, dtype=np.uint8).reshape(5, 16)
    status = np.array([1, 1, 1, 2, 1], np.uint8)
    found = Layout(ids, 3, "float16", provenance, 2)
    with store.create(path, found, record) as writer:
        for block in range(found.n_blocks):
            rows = found.rows(block)
            writer.write_block(block, vectors[rows], content[rows], status[rows])
        writer.seal(record)


def test_a_file_of_format_1_reads_to_known_values(tmp_path: Path) -> None:
    path = tmp_path / "image.known.0123.h5"
    shutil.copy(FORMAT_1, path)
    file = FeatureFile(path)
    assert [bytes(item).decode() for item in file.ids] == [f"bírd/{row}.jpg" for row in range(5)]
    expected = [[-1, -0.75, -0.5], [-0.25, 0, 0.25], [0.5, 0.75, 1], [0, 0, 0], [2, 2.25, 2.5]]
    assert np.array_equal(file.features, expected)
    assert file.features.dtype == np.float16
    assert file.status.tolist() == [1, 1, 1, 2, 1]
    assert file.content[4].tolist() == list(range(64, 80))
    assert list(file.bad_blocks()) == []
    assert (file.fingerprint, file.record["backbone"]) == ("78986aca44a0", "known")
    assert path.read_bytes() == FORMAT_1.read_bytes()


def test_h5py_alone_reads_format_1() -> None:
    with h5py.File(FORMAT_1) as file:
        assert file["features"][4].tolist() == [2, 2.25, 2.5]
        assert file["ids"].asstr()[0] == "bírd/0.jpg"
        assert int(file.attrs["format_version"]) == 1


# ------------------------------------------------------------------------------------------------ feature files


def tampered(folder: Path, change: Callable[[h5py.File], Any]) -> Path:
    """A sealed file that a forger changed with HDF5 and signed again."""
    path = folder / "bad.h5"
    shutil.copy(sealed(folder / "good.h5").path, path)
    with h5py.File(path, "r+") as file:
        change(file)
    resign(path)
    return path


def attribute(name: str, value: Any) -> Callable[[h5py.File], Any]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


@pytest.mark.parametrize("name", ["provenance", "fingerprint", "block_length"])
@pytest.mark.parametrize(
    "value",
    [
        None, 10**12, -1, 0, 3.5, "text of any length", np.bytes_(b"\xff\xfe"), np.bytes_(b"[]"), np.bytes_(b"null"),
        np.bytes_(b'{"a": NaN}'), np.bytes_(b"[" * 5000), np.zeros((2, 2)), h5py.Empty("f4"), np.array([b"a", b"b"]),
        np.bytes_(json.dumps(PROVENANCE | {"modality": "smell"}).encode()),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_attributes_of_the_wrong_kind_are_damage(tmp_path: Path, name: str, value: Any) -> None:
    with time_limit(60):
        refused(tampered(tmp_path, attribute(name, value)))


def test_a_provenance_that_is_signed_and_says_nothing_is_damage(tmp_path: Path) -> None:
    """Its fingerprint is right, and it has no modality: no later KeyError."""
    for number, provenance in enumerate(({}, {"modality": None}, {"modality": ["image"]}, {"weights": "x"})):
        (tmp_path / str(number)).mkdir()
        path = sealed(tmp_path / str(number) / "a.h5", Layout(layout().ids, 6, "float16", PROVENANCE, 4)).path
        text = store.canonical_json(provenance)
        with h5py.File(path, "r+") as file:
            for name, value in (("provenance", text), ("fingerprint", store.fingerprint(provenance))):
                del file.attrs[name]
                file.attrs[name] = np.bytes_(value.encode())
        resign(path)
        assert "names no modality" in refused(path)


def replaced(name: str, **options: Any) -> Callable[[h5py.File], Any]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced("features", shape=(10**12, 10**6), dtype="f2", chunks=(1, 1000)),
        replaced("features", shape=(10, 0), dtype="f2"),
        replaced("features", shape=(0, 6), dtype="f2"),
        replaced("features", shape=(), dtype="f2"),
        replaced("features", data=np.ones((10, 6), ">f2")),
        replaced("features", data=np.ones((10, 6), "c8")),
        replaced("features", data=np.ones((10, 6), [("a", "f2")])),
        replaced("features", shape=(10, 6), dtype=h5py.vlen_dtype("f2")),
        replaced("features", shape=(10, 6), dtype=h5py.ref_dtype),
        replaced("ids", shape=(10,), dtype=h5py.string_dtype()),
        replaced("ids", data=np.zeros(10, "V16")),
        replaced("ids", data=np.arange(10)),
        replaced("ids", shape=(10,), dtype=h5py.string_dtype("utf-8", 1 << 30), chunks=(1,)),
        replaced("status", data=np.ones(10, "i1")),
        replaced("status", data=np.ones(11, "u1")),
        replaced("content", data=np.ones((10, 15), "u1")),
        replaced("checksum", data=np.ones(9, "<u8")),
        replaced("checksum", data=h5py.Empty("<u8")),
        lambda file: file.move("status", "state"),
        lambda file: file.create_group("more"),
        lambda file: (file.__delitem__("ids"), file.create_group("ids")),
        lambda file: (file.__delitem__("ids"), file.__setitem__("ids", np.dtype("S4"))),
    ],
)
def test_datasets_of_the_wrong_kind_are_damage(tmp_path: Path, change: Callable[[h5py.File], Any]) -> None:
    with time_limit(60):
        refused(tampered(tmp_path, change))


def test_no_byte_of_another_file_is_read_through_external_storage(tmp_path: Path) -> None:
    """Also where the names and shapes are right: the bytes would be those of the secret."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\x11\x22" * 2048)
    for name, kind, shape in (("features", "f2", (10, 6)), ("ids", "S12", (10,)), ("content", "u1", (10, 16))):
        path = tampered(tmp_path, replaced(name, shape=shape, dtype=kind, external=[(str(secret), 0, 4096)]))
        assert "not contiguous" in refused(path) or "not of this format" in refused(path)
        path.unlink()
        (tmp_path / "good.h5").unlink()


@pytest.mark.parametrize("where", ["features", "content", "status", "checksum"])
def test_a_header_that_points_elsewhere_is_damage(tmp_path: Path, where: str) -> None:
    path = sealed(tmp_path / "a.h5").path
    with open(path, "r+b") as raw:
        header = store.Header.unpack(raw.read(store.USERBLOCK), path)
        for extent in ((0, 0), (2**63, 2**63), (2**64 - 1, 2**64 - 1), (4096, 10), (header.extents[where][0] + 1, 4)):
            moved = replace(header, extents={**header.extents, where: store.Extent(*extent)})
            raw.seek(0)
            raw.write(moved.pack())
            raw.flush()
            with time_limit(60):
                refused(path)
                resign(path)
                refused(path)


@pytest.mark.parametrize(
    "record", [b"", b"[1, 2]", b"\xff" * 9, b"[" * 3800, b'{"backbone": 7, "settings": [1]}', b"7"]
)
def test_a_record_of_any_kind_is_only_a_record(tmp_path: Path, record: bytes) -> None:
    """It names things and decides nothing: a cache with such a file can be listed and searched."""
    folder = tmp_path / "cache" / "a"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")
    path = sealed(folder / "image.x.0123.h5").path
    with open(path, "r+b") as raw:
        block = bytearray(raw.read(store.USERBLOCK))
        block[20:24] = len(record).to_bytes(4, "little")
        block[256:] = record.ljust(store.USERBLOCK - 256, b"\0")
        raw.seek(0)
        raw.write(block)
    with open(path, "r+b") as raw:
        header = store.Header.unpack(bytes(block), path)
        digest = store.digest_outside(raw.fileno(), header.holes())
        raw.seek(24)
        raw.write(digest)
    assert isinstance(FeatureFile(path).record, dict)
    assert call("ls", "--cache", tmp_path / "cache").exit_code == 0
    assert call("info", "a", "--failed", "--cache", tmp_path / "cache").exit_code == 0
    done = call("fit-head", "--dataset", "a", "--features", "nothing", "--cache", tmp_path / "cache")
    assert "defect" not in done.stderr


KINDS = st.sampled_from(["flip", "insert", "delete", "zero"])
EDITS = st.lists(st.tuples(KINDS, st.floats(0, 0.9999), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4)


def edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for kind, place, some in edits:
        at = int(place * len(data))
        if kind == "flip":
            data = (
                data[:at]
                + bytes(a ^ b for a, b in zip(data[at : at + len(some)], some, strict=False))
                + data[at + len(some) :]
            )
        elif kind == "insert":
            data = data[:at] + some + data[at:]
        else:
            data = data[:at] + (b"" if kind == "delete" else bytes(len(some))) + data[at + len(some) :]
    return data


@cache
def pristine(folder: Path) -> tuple[bytes, tuple[bytes, ...]]:
    path = sealed(folder / "pristine.h5", layout(n=6, dim=2)).path
    return path.read_bytes(), open_wholly(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, keep=st.floats(0.2, 1))
def test_damaged_bytes_are_never_read_as_other_values(folder: Path, edits: Any, keep: float) -> None:
    data, values = pristine(folder)
    path = folder / "fuzzed.h5"
    changed = edited(data, edits)
    path.write_bytes(changed[: int(keep * len(changed))] if keep < 0.9 else changed)
    with time_limit(60):
        try:
            found = open_wholly(path)
        except DamagedFileError:
            return
        assert found == values or list(FeatureFile(path).bad_blocks())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_damage_that_is_signed_anew_is_refused_or_consistent(folder: Path, edits: Any) -> None:
    """Whoever can write the digest can write the values; no other error, no hang, nothing outside the file."""
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


# ------------------------------------------------------------------------------------- weights, tables and data


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.safetensors", "model.pt"])
def test_pickled_weights_run_no_code(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    for number, write in enumerate((pickled, saved_by_torch, legacy)):
        path = tmp_path / f"{number}" / name
        path.parent.mkdir()
        write({"weight": torch.ones(2), "evil": Canary(canary)}, path)
        with pytest.raises(CheckpointError):
            read_tensors([path])
        assert not canary.exists()


def pickled(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps({"evil": value["evil"]}))


def saved_by_torch(value: Any, path: Path) -> None:
    torch.save(value, path)


def legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, suffix=st.sampled_from([".bin", ".safetensors"]))
def test_weights_that_are_damaged_are_a_clear_error(folder: Path, edits: Any, suffix: str) -> None:
    good, path = folder / f"good{suffix}", folder / f"bad{suffix}"
    if not good.exists():
        from safetensors.torch import save_file

        tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
        save_file(tensors, good) if suffix == ".safetensors" else torch.save(tensors, good)
    path.write_bytes(edited(good.read_bytes(), edits))
    try:
        assert len(digest_tensors(read_tensors([path]))) == 32
    except EmbedCacheError as error:
        assert path.name in str(error)  # noqa: PT017


@pytest.mark.parametrize("item", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "..", "a\0.jpg", "a/../b.jpg"])
def test_paths_do_not_leave_the_data_folder(tmp_path: Path, item: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "data" / "a").mkdir(parents=True)
    with pytest.raises(ItemError, match="leaves the data folder"):
        read_image(tmp_path / "data", item)
    (tmp_path / "data" / "t.csv").write_text(f"image\n{item}\nok.jpg\n".replace("\0", "_"))
    (tmp_path / "data" / "ok.jpg").write_bytes(b"fine")
    ec.extract("table", tmp_path / "data" / "t.csv", backbones=[FakeBackbone()], image="image", cache=tmp_path / "c")
    file = ec.open(tmp_path / "c")["t"].find("fake")
    assert file.n_failed == 1


def test_links_that_loop_end(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.jpg").write_bytes(b"x")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with time_limit(60):
        assert [path for path in walk_images(tmp_path) if path.endswith("x.jpg")] == ["a/x.jpg"]
        with pytest.raises(ItemError, match="cannot be read"):
            read_image(tmp_path, "self.jpg")


ODD = [
    "a b.jpg", "ü.jpg", "日本.jpg", "new\nline.jpg", "tab\t.jpg", "'quote\".jpg", "-rf.jpg",
    "%s{0}.jpg", "<b>.jpg", "🦉.jpg",
]  # fmt: skip


def test_odd_names_are_only_names(tmp_path: Path) -> None:
    for name in ODD:
        (tmp_path / "photos" / "k").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "k" / name).write_bytes(b"BAD" if name.startswith("-") else name.encode())
    ec.extract("folder", tmp_path / "photos", backbones=[FakeBackbone()], cache=tmp_path / "c")
    features = ec.open(tmp_path / "c")["photos"].features()
    assert sorted(features.ids) == sorted(f"k/{name}" for name in ODD if name != "-rf.jpg")
    assert call("verify", "--against-data", "--cache", tmp_path / "c").exit_code == 0
    assert "k/-rf.jpg: it is bad" in call("info", "photos", "--failed", "--cache", tmp_path / "c").stdout
    for suffix in (".npz", ".parquet", ".safetensors", ".h5"):
        done = call("export", "photos", "--to", tmp_path / f"out{suffix}", "--cache", tmp_path / "c")
        assert done.exit_code == 0, done.output


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A cache with one data set of texts."""
    (tmp_path / "t.csv").write_text("text,label\na,x\nb,y\nc,x\n")
    ec.extract(
        "table", tmp_path / "t.csv", backbones=[FakeBackbone("text")], text="text", label="label", cache=tmp_path / "c"
    )
    return tmp_path / "c"


GARBAGE = [b"", b"PAR1", b"PAR1" + b"\0" * 64 + b"PAR1", b"{}", b"\x89HDF\r\n\x1a\n", b"PK\3\4", os.urandom(200)]


@pytest.mark.parametrize("name", ["dataset.json", "samples.parquet", "items.text.parquet"])
@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_in_place_of_a_table_is_a_clear_error(small: Path, name: str, content: bytes) -> None:
    (small / "t" / name).write_bytes(content)
    for command in (
        ["ls"],
        ["info", "t"],
        ["verify"],
        ["fit-head"],
        ["rm", "t", "--unused"],
        ["export", "t", "--to", "x.npz"],
    ):
        done = call(*command, "--cache", small)
        assert "defect" not in done.stderr, (command, done.stderr)
        assert "Traceback" not in done.output
    assert call("ls", "--cache", small).exit_code == 0


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("samples.parquet", {"id": [1, 2]}),
        ("samples.parquet", {"other": ["a"]}),
        ("samples.parquet", {"id": ["a"], "split": [None], "texts": ["not a list"]}),
        ("samples.parquet", {"id": ["a"], "split": [None], "texts": [["0" * 32]]}),
        ("items.text.parquet", {"id": ["a"]}),
        ("items.text.parquet", {"text": ["a"]}),
        ("items.text.parquet", {"id": [b"\xff"], "text": [None]}),
    ],
)
def test_tables_with_other_columns_are_damage(small: Path, name: str, columns: dict[str, Any]) -> None:
    from embedcache.samples import write_parquet

    write_parquet(small / "t" / name, pa.table(columns))
    for command in (["ls"], ["info", "t"], ["verify"], ["fit-head"], ["export", "t", "--to", "x.npz"]):
        done = call(*command, "--cache", small)
        assert "defect" not in done.stderr, (command, done.stderr)
