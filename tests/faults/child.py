"""What runs in a process of its own: an extraction with a fault, and the judge of what a fault has left.

Every process is forked by a fork server in which all imports are done, so that a fault costs milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import embedcache as ec
from embedcache import extraction, samples, store
from embedcache.backbones.base import BackboneSettings
from embedcache.catalog import DatasetFolder, DatasetRecord
from embedcache.engines import local as _local  # noqa: F401  imported once, in the fork server
from embedcache.errors import DamagedFileError, EmbedCacheError, LockedError
from embedcache.failures import failures_path, read_failures
from embedcache.store import DONE, PENDING, FeatureFile, FeatureWriter
from tests.fakes import FakeBackbone, FakeEncoder, known_vector
from tests.faults.calls import Calls, Fault
from tests.faults.world import DIM, WEIGHTS, World

tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
NAME = "photos"
LOCKED, FAILED = 7, 5  # an error that nobody foresaw leaves with 1
COMPARED = ("features", "ids", "status", "content", "checksum")


@dataclass(frozen=True)
class Spec:
    """One run. disk: the folder that is faulted, in which ``cache`` lies. told: where forward passes and commits are
    written down as they happen, so that they outlive the process; known: inodes that are durable before it."""

    world: World
    disk: str
    told: str
    fault: Fault = field(default_factory=Fault)
    weights: str = WEIGHTS
    wait: bool = False
    cli: bool = False
    sync: bool = True
    limit: int | None = None
    known: Mapping[str, int] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """The cache under test."""
        return Path(self.disk) / "cache"


def backbone(weights: str = WEIGHTS) -> FakeBackbone:
    """The encoder whose answers are known."""
    return FakeBackbone(dim=DIM, weights=weights)


def extract(spec: Spec, fake: FakeBackbone) -> Any:
    """The request that every run makes."""
    store.BLOCK_ROWS["image"] = spec.world.block
    options = ec.Options(batch_size=4, workers=1, wait=spec.wait, sync=spec.sync)
    [done] = ec.extract(
        "folder", spec.world.photos, backbones=[fake], name=NAME, cache=spec.cache, options=options, limit=spec.limit
    )
    return done


def run(spec: Spec) -> None:
    """One extraction in this process, with its fault; leaves by exit code."""
    calls = Calls(Path(spec.disk), spec.fault)
    calls.know(dict(spec.known))
    told = _tell(spec.told, calls)
    calls.install()
    try:
        if spec.cli:
            _through_the_command_line(spec)
        else:
            extract(spec, backbone(spec.weights))
    except LockedError as error:
        os.write(told, json.dumps({"error": str(error)}).encode() + b"\n")
        sys.exit(LOCKED)
    except (EmbedCacheError, OSError) as error:
        os.write(told, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        sys.exit(FAILED)
    finally:
        if spec.fault.kind != "pause":
            calls.save()


def _through_the_command_line(spec: Spec) -> None:
    import cli

    store.BLOCK_ROWS["image"] = spec.world.block
    extraction.resolve_all = lambda names, settings: [backbone(spec.weights)]
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    cli.app(
        ["extract", "--dataset", "folder", "--name", NAME, "--data", str(spec.world.photos), "--backbone", "fake",
         "--cache", str(spec.cache), "--batch-size", "4", "--workers", "1"]
    )  # fmt: skip


def _tell(path: str, calls: Calls) -> int:
    """Write every forward pass and every committed block down, in the order in which they happen."""
    told = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    forward, write_block = FakeEncoder.forward, FeatureWriter.write_block

    def counting(self: FakeEncoder, batch: Any) -> Any:
        os.write(told, json.dumps({"forward": len(batch)}).encode() + b"\n")
        calls.note("forward", len(batch))
        return forward(self, batch)

    def committing(self: FeatureWriter, block: int, *arrays: Any) -> None:
        write_block(self, block, *arrays)
        rows = self.layout.rows(block)
        ids = [bytes(item).decode() for item in self.layout.ids[rows]]
        os.write(told, json.dumps({"committed": ids}).encode() + b"\n")
        calls.note("committed", tuple(ids))

    FakeEncoder.forward, FeatureWriter.write_block = counting, committing
    return told


def read_told(path: str) -> tuple[int, set[str], list[str]]:
    """Forward passes, ids of committed rows, errors; a line that was cut off was never said."""
    forward, committed, errors = 0, set(), []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        forward += entry.get("forward", 0)
        committed |= set(entry.get("committed", ()))
        errors += [entry["error"]] if "error" in entry else []
    return forward, committed, errors


# --------------------------------------------------------------------------------------------------- the judge


@dataclass
class Verdict:
    """What a fault has left. wrong: everything that must not be; refused: files that were refused, and replaced."""

    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    encoded: int = 0
    committed: int = 0
    action: str = ""


def judge(spec: Spec, out: str, committed: frozenset[str], may_refuse: bool) -> None:
    """Look at the cache as it was left, run again without help, compare; the verdict goes to ``out`` as JSON."""
    verdict = Verdict()
    try:
        there = _as_left(spec, verdict, may_refuse)
        verdict.committed = len(there)
        if lost := sorted(committed - there):
            verdict.wrong.append(f"{len(lost)} committed rows are lost: {lost[:3]}")
        _again(spec, verdict)
    except Exception as error:
        verdict.wrong.append(f"{type(error).__name__}: {error}")
    Path(out).write_text(json.dumps(asdict(verdict)), encoding="utf-8")


def _as_left(spec: Spec, verdict: Verdict, may_refuse: bool) -> set[str]:
    """Ids of the rows that are committed, sealed or not; every one of them must be right, every table readable."""
    folder = DatasetFolder(spec.cache, NAME)
    _tables(folder, verdict)
    there: set[str] = set()
    for path in [*folder.feature_paths(), *folder.partial_paths()]:
        try:
            file = FeatureFile(path, partial=path.name.endswith(store.PARTIAL_SUFFIX))
        except DamagedFileError as error:
            verdict.refused.append(f"{path.name}: {error}")
            if not may_refuse:
                verdict.wrong.append(f"unreadable: {error}")
            continue
        if file.provenance["weights"] == spec.weights:
            there |= _right_rows(file, spec.world, verdict)
        if bad := list(file.bad_blocks()):
            verdict.wrong.append(f"{path.name}: blocks {bad} do not have their checksums")
    return there


def _right_rows(file: FeatureFile, world: World, verdict: Verdict) -> set[str]:
    there = set()
    for item, vector, status in zip(file.ids, file.features, file.status, strict=True):
        if status == PENDING:
            continue
        name = bytes(item).decode()
        payload = (world.photos / name).read_bytes() if (world.photos / name).exists() else None
        if status == DONE and payload is not None and not np.array_equal(vector, known_vector(payload, DIM)):
            verdict.wrong.append(f"{name} has a wrong vector")
        there.add(name)
    return there


def _tables(folder: DatasetFolder, verdict: Verdict) -> None:
    for path in sorted(folder.path.glob("*.parquet")):
        try:
            samples.read_parquet(path)
        except DamagedFileError as error:
            verdict.wrong.append(str(error))
    if folder.exists:
        DatasetRecord.load(folder.path / "dataset.json")
        folder.table()


def _again(spec: Spec, verdict: Verdict) -> None:
    """The rerun finishes without help, makes what an uninterrupted run makes, and leaves nothing to do."""
    fake = backbone(spec.weights)
    done = extract(spec, fake)
    verdict.encoded, verdict.action = fake.encoded, done.action
    file = FeatureFile(done.path)
    right = np.load(spec.world.right)
    for name in COMPARED:
        if np.asarray(getattr(file, name)).tobytes() != right[name].tobytes():
            verdict.wrong.append(f"/{name} is not that of an uninterrupted run")
    if read_failures(file.path) != json.loads(str(right["failures"])):
        verdict.wrong.append(f"the failures' reasons are {read_failures(file.path)}")
    folder = DatasetFolder(spec.cache, NAME)
    if left := [*folder.partial_paths(), *folder.path.glob(".*.layout")]:
        verdict.wrong.append(f"left over: {left}")
    _tables(folder, verdict)
    if folder.record().counts["samples"] != len(file.ids):
        verdict.wrong.append("dataset.json does not have the counts")
    if extract(spec, fake).action != "reuse" or fake.encoded != verdict.encoded:
        verdict.wrong.append("a second rerun had work to do")


def read(spec: Spec) -> None:
    """Read every sealed file, right to the last row; what is being written beside it is none of a reader's business."""
    verdict = Verdict()
    for path in DatasetFolder(spec.cache, NAME).feature_paths():
        _right_rows(FeatureFile(path), spec.world, verdict)
    sys.exit(len(verdict.wrong))


def answers(spec: Spec) -> None:
    """Run without a fault, and keep the arrays as what is right."""
    done = extract(spec, backbone(spec.weights))
    file = FeatureFile(done.path)
    arrays = {name: np.asarray(getattr(file, name)) for name in COMPARED}
    np.savez(spec.world.right, **arrays, failures=json.dumps(read_failures(file.path)))
    assert failures_path(file.path).exists() == bool(spec.world.bad)
    assert BackboneSettings() == FakeBackbone().settings
