"""Out into every format and back: the same numbers in sample order, in one step; what comes in says that it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import embedcache as ec
from embedcache import exchange, files, verification
from embedcache.cache import CachedDataset
from embedcache.errors import AllItemsFailedError, DataNotFoundError, UsageError
from embedcache.failures import read_failures
from embedcache.verification import Again
from tests.fakes import FakeBackbone, known_vector
from tests.test_verification import call

N = 40


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Captioned birds: samples share images, a text failed, targets are texts, numbers and missing."""
    monkeypatch.chdir(tmp_path)
    for row in range(N // 2):
        (tmp_path / f"{row}.jpg").write_bytes(f"image {row}".encode())
    rows = [
        f"s{row},{'BAD' if row == 9 else 'büßen'} {row},{row // 2}.jpg,{'train' if row < 30 else 'test'},"
        f"{'owl' if row % 3 else ''},{row}\n"
        for row in range(N)
    ]
    (tmp_path / "t.csv").write_text("id,text,image,split,label,weight\n" + "".join(rows))
    columns = {"id": "id", "text": "text", "image": "image", "split": "split", "label": "label", "weight": "weight"}
    backbones = [FakeBackbone("image", "st:org/eye", dim=5), FakeBackbone("text", "ear", dim=3)]
    ec.extract("table", "t.csv", backbones=backbones, cache="cache", **columns)
    return tmp_path


def birds() -> CachedDataset:
    return ec.open("cache")["t"]


IDS = [f"s{row}" for row in range(N) if row != 9]
EYE = np.stack([known_vector(f"image {int(name[1:]) // 2}".encode(), 5) for name in IDS]).astype(np.float16)
EAR = np.stack([known_vector(f"büßen {name[1:]}".encode(), 3) for name in IDS]).astype(np.float16)
LABELS = ["owl" if int(name[1:]) % 3 else "" for name in IDS]
SPLITS = ["train" if int(name[1:]) < 30 else "test" for name in IDS]


def read(path: Path) -> dict[str, Any]:
    """What each format's own library reads."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        found = {name: np.array(table[name].to_pylist()) for name in table.column_names}
        return {"ids": found.pop("id"), **found}
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as opened:
            texts = json.loads(opened.metadata()["embedcache"])["texts"]
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        decoded = {name: [bytes(row).rstrip(b"\0").decode() for row in found[name]] for name in texts}
        return {**found, **{name: np.array(values) for name, values in decoded.items()}}
    with h5py.File(path) as file:
        found = {name: file[name].asstr()[...] for name in ("ids", "split")}
        found |= {f"target.{name}": one.asstr()[...] for name, one in file["targets"].items()}
        return found | {name: file[name][...] for name in file if name.startswith("features")}


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".safetensors", ".h5"])
def test_each_format_holds_the_same_in_sample_order(work: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_ROWS_AT_ONCE", 7)
    path = Path(f"out{suffix}")
    done = exchange.export(birds(), path)
    assert (done.rows, done.left_out) == (N - 1, {"its text failed in ear": 1})
    found = read(path)
    assert found["ids"].tolist() == IDS
    assert found["split"].tolist() == SPLITS
    assert found["target.label"].tolist() == LABELS
    assert np.array_equal(found["features.st_org_eye"], EYE)
    assert np.array_equal(found["features.ear"], EAR)
    assert np.asarray(found["features.ear"]).dtype in (np.float16, np.float64)  # Parquet's lists come back as floats


def test_npy_has_its_rows_beside_it(work: Path) -> None:
    done = call("export", "t", "--to", "out.npy", "--features", "ear,eye")
    assert done.exit_code == 0, done.output
    assert np.array_equal(np.load("out.npy"), np.hstack([EAR, EYE]))
    table = pd.read_parquet("out.parquet")
    assert table["id"].tolist() == IDS
    assert table["target.label"].tolist() == LABELS
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_provenance_goes_along(work: Path) -> None:
    call("export", "t", "--to", "out.h5", "--features", "eye")
    file = birds().find("eye")
    with h5py.File("out.h5") as found:
        assert found["features"].attrs["fingerprint"] == file.fingerprint
        assert json.loads(found["features"].attrs["provenance"]) == file.provenance
        assert str(work) not in str(dict(found.attrs))


def test_one_split_and_one_set(work: Path) -> None:
    done = call("export", "t", "--to", "out.npz", "--features", "eye", "--split", "test", "--json")
    assert json.loads(done.stdout)["rows"] == 10
    found = read(Path("out.npz"))
    assert set(found["split"]) == {"test"}
    assert np.array_equal(found["features"], EYE[-10:])
    assert "Known: test, train" in call("export", "t", "--to", "b.npz", "--split", "dev").stderr


def test_nothing_is_overwritten_unless_it_is_asked_for(work: Path) -> None:
    for name in ("out.npz", "out.parquet"):
        Path(name).write_text("mine")
    for name in ("out.npz", "out.npy"):  # the Parquet file of the .npy is there
        done = call("export", "t", "--to", name)
        assert done.exit_code == 2
        assert "--force" in done.stderr
    assert Path("out.npz").read_text() == "mine"
    assert not Path("out.npy").exists()
    assert call("export", "t", "--to", "out.npz", "--force").exit_code == 0
    assert len(read(Path("out.npz"))["ids"]) == N - 1


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet", ".safetensors", ".h5"])
def test_an_export_that_fails_leaves_what_was_there(work: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(f"out{suffix}")
    path.write_text("mine")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", broken)
    assert call("export", "t", "--to", path, "--force").exit_code == 1
    assert path.read_text() == "mine"
    assert not list(work.glob(".*.tmp"))


def test_an_unknown_format_lists_the_known_ones(work: Path) -> None:
    assert "Did you mean '.parquet'?" in call("export", "t", "--to", "out.parqet").stderr
    assert ".safetensors" in call("export", "t", "--to", "out").stderr


def test_values_become_plain_arrays() -> None:
    def plain(*values: Any) -> Any:
        found = np.empty(len(values), object)
        found[:] = values
        return exchange.plain(found)

    assert plain(3, 4).dtype == np.int64
    assert np.array_equal(plain(3, None), [3.0, np.nan], equal_nan=True)
    assert plain("a", None).tolist() == ["a", ""]
    assert plain(["a", "b"], []).tolist() == ['["a", "b"]', "[]"]
    assert plain("a", 1).tolist() == ["a", "1"]


# --------------------------------------------------------------------------------------------------------- import


def import_(path: str, *options: str, modality: str = "text", name: str = "mine") -> Any:
    return call("import", "t", path, "--as", name, "--modality", modality, *options)


def test_what_was_exported_comes_back_by_sample_id(work: Path) -> None:
    call("export", "t", "--to", "out.npz", "--features", "eye")
    done = import_("out.npz", modality="image")
    assert done.exit_code == 0, done.output
    assert "matched by sample id" in done.stdout
    assert np.array_equal(birds().features("mine", "ear").matrix(), np.hstack([EYE, EAR]))
    assert call("verify").exit_code == 0


def test_a_foreign_matrix_is_marked_as_imported(work: Path) -> None:
    items = birds().table.items["text"]["id"].to_pylist()
    vectors = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    np.savez("f.npz", ids=np.array(items), features=vectors)
    done = json.loads(import_("f.npz", "--json").stdout)
    assert (done["matched_by"], done["items"], done["unmatched"], done["lacking"]) == ("item id", N, 0, 0)
    file = birds().find("mine")
    assert file.provenance["family"] == "import"
    assert file.provenance["weights"] == exchange.read_foreign(Path("f.npz")).digest
    assert (file.layout.stored, file.record["imported"]) == ("float32", "f.npz")
    assert np.array_equal(file.features, vectors)
    assert str(work) not in json.dumps({**file.record, **file.provenance})
    vectors[0, 0] += 1
    np.savez("f.npz", ids=np.array(items), features=vectors)
    assert import_("f.npz", name="other").exit_code == 0
    assert birds().find("other").fingerprint != file.fingerprint
    [found] = verification.verify(birds(), "mine", recompute=Again(3))
    assert [one.message for one in found.findings] == ["imported vectors cannot be encoded again"]


def test_ids_may_stand_beside_a_npy(work: Path) -> None:
    call("export", "t", "--to", "out.npy", "--features", "ear")
    assert import_("out.npy").exit_code == 0
    Path("ids.txt").write_text("".join(f"{name}\n" for name in IDS))
    np.save("ids.npy", np.array(IDS))
    for beside in ("ids.txt", "ids.npy"):
        np.save("other.npy", EAR + len(beside))
        assert import_("other.npy", "--ids", beside, name=beside).exit_code == 0
        assert np.array_equal(birds().features(beside).matrix(), EAR + len(beside))
    Path("out.parquet").unlink()
    assert "say where they are with --ids" in import_("out.npy", name="x").stderr


def test_rows_and_items_without_partner_are_counted(work: Path) -> None:
    np.savez("f.npz", ids=np.array(["s1", "s3", "nobody", "s5"]), features=np.ones((4, 2), np.float32))
    done = import_("f.npz")
    assert "1 rows of the file belong to no item" in done.stdout
    assert f"{N - 3} texts of the data set have no vector" in done.stdout
    assert birds().features("mine").ids.tolist() == ["s1", "s3", "s5"]


def test_rows_that_are_not_finite_fail_with_that_reason(work: Path) -> None:
    vectors = np.ones((3, 2))
    vectors[1, 0], vectors[2, 1] = np.nan, 1e300  # too large for float32
    np.savez("f.npz", ids=np.array(["s1", "s3", "s5"]), features=vectors)
    assert "2 failed" in import_("f.npz").stdout
    assert set(read_failures(birds().find("mine").path).values()) == {"its vector is not finite"}
    assert birds().features("mine").ids.tolist() == ["s1"]
    np.savez("f.npz", ids=np.array(["s1"]), features=np.full((1, 2), np.inf))
    with pytest.raises(AllItemsFailedError, match="is finite"):
        exchange.import_vectors(birds(), Path("f.npz"), "none", "text")


def test_samples_that_share_an_item_must_agree(work: Path) -> None:
    np.savez("f.npz", ids=np.array(["s0", "s1"]), features=np.eye(2, dtype=np.float32))
    with pytest.raises(UsageError, match="'s0' and 's1' share one image"):
        exchange.import_vectors(birds(), Path("f.npz"), "mine", "image")


def test_the_same_twice_is_refused(work: Path) -> None:
    np.savez("f.npz", ids=np.array(["s1"]), features=np.ones((1, 2), np.float32))
    assert import_("f.npz").exit_code == 0
    done = import_("f.npz")
    assert done.exit_code == 2
    assert "imported before" in done.stderr


@pytest.mark.parametrize(
    ("ids", "features", "said"),
    [
        (["s1", "s1"], np.ones((2, 3)), "repeated"),
        (["s1"], np.ones((2, 3)), "2 rows and 1 ids"),
        (["s1"], np.ones((1, 3), int), "expected floats"),
        (["s1"], np.ones(1), "expected floats"),
        (["s1"], np.ones((1, 0)), "expected floats"),
        (["x"], np.ones((1, 3)), "is an item id or a sample id"),
        ([1.5], np.ones((1, 3)), "expected texts"),
        ([None], np.ones((1, 3)), "without pickle"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(work: Path, ids: list[Any], features: np.ndarray, said: str) -> None:
    np.savez("f.npz", ids=np.array(ids), features=features)
    done = import_("f.npz")
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(birds().files) == 2


class Canary:
    """Unpickling it writes a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary"),)


def test_no_pickle_is_run(work: Path) -> None:
    np.save("f.npy", np.array([[Canary()]], object), allow_pickle=True)
    np.savez("f.npz", ids=np.array([Canary()], object), features=np.ones((1, 2)))
    Path("ids.txt").write_text("s1\n")
    np.save("good.npy", np.ones((1, 2)))
    np.save("ids.npy", np.array([Canary()], object), allow_pickle=True)
    for arguments in (["f.npy", "--ids", "ids.txt"], ["f.npz"], ["good.npy", "--ids", "ids.npy"]):
        done = import_(*arguments)
        assert done.exit_code == 2, done.output
    assert not Path("canary").exists()


@pytest.mark.parametrize("content", [b"", b"PK\3\4junk", b"\x93NUMPY\1\0", b"\x93NUMPY\1\0\4\0{'a'", b"\0" * 99])
@pytest.mark.parametrize("name", ["f.npz", "f.npy"])
def test_garbage_is_refused(work: Path, name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    Path("ids.txt").write_text("s1\n")
    done = import_(name, "--ids", "ids.txt")
    assert done.exit_code == 2, done.output
    assert "defect" not in done.stderr
    with pytest.raises(DataNotFoundError):
        exchange.read_foreign(Path("nothing.npz"))
