"""Whether a cache holds what it promises: bytes, counts, ids, vectors; on request against encoder and data.

Files are read in blocks and ids in several passes, so that the memory it takes does not grow with a file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from embedcache.cache import CachedDataset, FeatureEntry, FeatureQuery, file_name
from embedcache.errors import CheckpointNotFoundError, DamagedFileError, DataNotFoundError, ItemError, UsageError
from embedcache.files import read_at
from embedcache.items import Read, fixed_length
from embedcache.provenance import Modality, Provenance, differences
from embedcache.samples import items_path, text_digests
from embedcache.store import DONE, FAILED, PENDING, FeatureFile

if TYPE_CHECKING:
    from embedcache.backbones.base import Backbone, Encoder
    from embedcache.datasets import Dataset

Severity = Literal["damage", "warning", "note"]
Found = Iterator["Finding"]

_CHUNK_BYTES = 1 << 18
_IDS_AT_ONCE = 1 << 16
_IDS_IN_A_PASS = 1 << 18
_EXAMPLES = 3

TOLERANCE = {"float32": 2e-3, "float16": 5e-2, "bfloat16": 5e-2}
"""By compute precision: the largest ‖again - stored‖ / ‖stored‖ that other batches and devices explain."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found. damage: something is wrong; warning: it may be meant; note: good to know.

    what: a word for scripts (``checksum``, ``ids``, …). count: rows, blocks or items that it is about.
    """

    severity: Severity
    what: str
    message: str
    count: int = 1


@dataclass(frozen=True)
class FileReport:
    """What was found in one feature file. nbytes: its size; rows: those that are not pending were read."""

    dataset: str
    name: str
    path: Path
    sealed: bool
    rows: int
    done: int
    failed: int
    pending: int
    nbytes: int
    findings: tuple[Finding, ...]

    @property
    def damaged(self) -> bool:
        """Whether anything is wrong with it."""
        return any(one.severity == "damage" for one in self.findings)


@dataclass(frozen=True)
class Again:
    """How to encode some rows again.

    rows: how many of each file. backbone, weights: which, where the file's record does not lead to it (a local
    folder or file). data: where the data lie now.
    """

    rows: int
    seed: int = 0
    device: str = "auto"
    backbone: str | Backbone | None = None
    weights: str | None = None
    data: Path | None = None


def again(
    rows: int | None,
    backbone: str | None = None,
    weights: str | None = None,
    data: Path | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
) -> Again | None:
    """``Again`` from names; None where no row is to be encoded. backbone: where the file's own is found."""
    if rows is None:
        if backbone or weights:
            raise UsageError("--backbone and --weights say how to encode items again: give --recompute too.")
        return None
    return Again(rows, seed, device, backbone, weights, data)


def verify(
    dataset: CachedDataset,
    query: FeatureQuery | None = None,
    *,
    recompute: Again | None = None,
    against_data: Dataset | None = None,
) -> Iterator[FileReport]:
    """A report per feature file, unfinished ones checked as such; damaged ones are reported, never raised.

    query: one feature set; all of them where None. recompute: encode some rows again and compare.
    against_data: compare contents with the data as they are now.
    Raises UsageError where an encoder or data that are asked for are not on this machine.
    """
    for path in _paths(dataset, query):
        entry = FeatureEntry(path)
        try:
            file = entry.file
            findings = list(_checked(dataset, file))
            if recompute is not None:
                findings += _encoded_again(dataset, file, recompute)
            if against_data is not None:
                findings += _compared(file, dataset, against_data)
            yield _report(dataset, entry, file, findings)
        except UsageError:
            raise
        except (DamagedFileError, OSError) as error:
            if path.exists():
                yield _unreadable(dataset, entry, error)


def _paths(dataset: CachedDataset, query: FeatureQuery | None) -> list[Path]:
    if query is not None:
        return [dataset.find(query).path]
    return [*dataset.folder.feature_paths(), *dataset.folder.partial_paths()]


def _report(dataset: CachedDataset, entry: FeatureEntry, file: FeatureFile, findings: list[Finding]) -> FileReport:
    blocks = (np.bincount(file.status[file.layout.rows(block)], minlength=256) for block in range(file.layout.n_blocks))
    counts = sum(blocks, np.zeros(256, np.int64))
    return FileReport(
        dataset.name,
        file_name(file),
        file.path,
        entry.sealed,
        file.n_items,
        int(counts[DONE]),
        int(counts[FAILED]),
        int(counts[PENDING]),
        file.size,
        tuple(findings),
    )


def _unreadable(dataset: CachedDataset, entry: FeatureEntry, error: Exception) -> FileReport:
    finding = Finding("damage", "file", str(error))
    size = entry.path.stat().st_size
    return FileReport(dataset.name, entry.label, entry.path, entry.sealed, 0, 0, 0, 0, size, (finding,))


def _checked(dataset: CachedDataset, file: FeatureFile) -> Found:
    """All that the file and the sample table can tell by themselves."""
    yield from _scanned(file)
    yield from _identified(file, items_path(dataset.folder.path, _modality(file)))


def _modality(file: FeatureFile) -> Modality:
    return "image" if file.modality == "image" else "text"


# ------------------------------------------------------------------------------------------ bytes and numbers


def _scanned(file: FeatureFile) -> Found:
    """Checksums, status values, and what the vectors are, in one pass over the file."""
    bad: list[int] = []
    seen: Counter[str] = Counter()
    with file.reading() as fd:
        for block in range(file.layout.n_blocks):
            rows = file.layout.rows(block)
            status = np.asarray(file.status[rows])
            seen["status"] += int((status > FAILED).sum())
            if (status == PENDING).all():
                continue
            extent = file.extent_of(rows)
            data = read_at(fd, extent.nbytes, extent.offset)
            if (status != PENDING).all() and xxhash.xxh3_64_intdigest(data) != int(file.checksum[block]):
                bad.append(block)
            vectors = np.frombuffer(data, np.dtype(file.layout.stored).newbyteorder("<")).reshape(-1, file.dim)
            seen.update(_odd_rows(vectors, status))
    yield from _said(bad, seen)


def _said(bad: list[int], seen: Counter[str]) -> Found:
    if bad:
        listed = ", ".join(map(str, bad[:_EXAMPLES])) + (" …" if len(bad) > _EXAMPLES else "")
        yield Finding("damage", "checksum", f"blocks {listed} do not have their checksum", len(bad))
    messages: tuple[tuple[str, Severity, str], ...] = (
        ("status", "damage", "rows have a status that is not 0, 1 or 2"),
        ("finite", "damage", "done rows hold a number that is not finite"),
        ("zeros", "warning", "done rows are all zeros"),
        ("failed", "warning", "failed rows are not zeros"),
    )
    for what, severity, message in messages:
        if seen[what]:
            yield Finding(severity, what, f"{seen[what]:,} {message}", seen[what])


def _odd_rows(vectors: npt.NDArray[Any], status: npt.NDArray[np.uint8]) -> dict[str, int]:
    """Rows by what is odd about them. vectors: (rows, dim), status: (rows,)."""
    found = {"finite": 0, "zeros": 0, "failed": 0}
    step = max(1, _CHUNK_BYTES // (vectors.shape[1] * vectors.dtype.itemsize))
    for start in range(0, len(vectors), step):
        part, state = vectors[start : start + step], status[start : start + step]
        if not _all_finite(part):
            found["finite"] += int((~np.isfinite(part).all(1) & (state == DONE)).sum())
        perhaps = np.flatnonzero((part[:, 0] == 0) & (state == DONE))
        found["zeros"] += int((~part[perhaps].any(1)).sum())
        failed = np.flatnonzero(state == FAILED)
        found["failed"] += int(part[failed].any(1).sum())
    return found


def _all_finite(part: npt.NDArray[Any]) -> bool:
    """By the bits of the exponent: several times as fast as numpy's own test of float16."""
    half = part.dtype.itemsize == 2
    bits: npt.NDArray[Any] = part.view("<u2" if half else "<u4")
    infinity = 0x7C00 if half else 0x7F800000
    return bool((bits & infinity).max() < infinity)


# ------------------------------------------------------------------------------------------------------- ids


def _identified(file: FeatureFile, table: Path) -> Found:
    """Ids that occur twice, that no sample knows, and items that have no row.

    Ids are compared by 64-bit hashes, a share of them in each pass; what looks repeated is compared in full.
    """
    if not table.is_file():
        yield Finding("damage", "items", f"there is no table {table.name} beside it")
        return
    counts: Counter[str] = Counter()
    passes = -(-max(file.n_items, _rows_in(table)) // _IDS_IN_A_PASS)
    for number in range(passes):
        hashes, rows = _hashed(_ids_in_file(file), passes, number)
        order = np.argsort(hashes, kind="stable")
        hashes, rows = hashes[order], rows[order]
        again = np.flatnonzero(hashes[1:] == hashes[:-1])
        counts["repeated"] += sum(bool(file.ids[rows[i]] == file.ids[rows[i + 1]]) for i in again)
        known, _ = _hashed(_ids_in_table(table), passes, number)
        counts["unknown"] += len(hashes) - int(_among(hashes, np.sort(known)).sum())
        counts["lacking"] += len(known) - int(_among(known, hashes).sum())
    yield from _said_of_ids(counts)


def _said_of_ids(counts: Counter[str]) -> Found:
    if repeated := counts["repeated"]:
        yield Finding("damage", "duplicates", f"{repeated:,} ids occur more than once", repeated)
    if unknown := counts["unknown"]:
        message = f"{unknown:,} rows are of items that no sample uses: rm --unused drops them"
        yield Finding("warning", "unknown", message, unknown)
    if lacking := counts["lacking"]:
        yield Finding("note", "lacking", f"{lacking:,} items of the sample table have no row", lacking)


def _ids_in_file(file: FeatureFile) -> Iterator[npt.NDArray[np.bytes_]]:
    with file.reading() as fd:
        for start in range(0, file.n_items, _IDS_AT_ONCE):
            extent = file.ids_of(slice(start, min(start + _IDS_AT_ONCE, file.n_items)))
            yield np.frombuffer(read_at(fd, extent.nbytes, extent.offset), file.ids.dtype)


def _rows_in(table: Path) -> int:
    with _parsing(table), pq.ParquetFile(table) as opened:
        return int(opened.metadata.num_rows)


def _ids_in_table(table: Path) -> Iterator[npt.NDArray[np.bytes_]]:
    with _parsing(table), pq.ParquetFile(table) as opened:
        for batch in opened.iter_batches(_IDS_AT_ONCE, columns=["id"]):
            yield fixed_length(batch.column(0))


@contextmanager
def _parsing(table: Path) -> Iterator[None]:
    """What a parser says of a table that is none, as damage."""
    try:
        yield
    except (pa.ArrowException, OSError, IndexError) as error:
        raise DamagedFileError(f"Cannot read the table {table}: {error}") from error


def _hashed(
    parts: Iterable[npt.NDArray[np.bytes_]], passes: int, number: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The share of the ids' hashes that a pass looks at, and their rows; uint64 and int64, (share,)."""
    hashes, rows, start = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    for part in parts:
        found = id_hashes(part)
        here = np.flatnonzero(found % np.uint64(passes) == number)
        hashes.append(found[here])
        rows.append(here + start)
        start += len(part)
    return np.concatenate(hashes), np.concatenate(rows)


def id_hashes(ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint64]:
    """64-bit hashes of ids, uint64 (n,); the same whatever the fixed length that an id is stored in."""
    width = -(-ids.dtype.itemsize // 8) * 8
    words = np.ascontiguousarray(ids.astype(f"S{width}")).view("<u8").reshape(len(ids), -1)
    total = np.zeros(len(ids), np.uint64)
    with np.errstate(over="ignore"):
        for column in range(words.shape[1]):
            mixed = words[:, column] * np.uint64((2 * column + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1))
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            total += mixed ^ (mixed >> np.uint64(32))
    return total


def _among(some: npt.NDArray[np.uint64], ordered: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of ``some`` are in ``ordered``, which is sorted."""
    if not len(ordered):
        return np.zeros(len(some), bool)
    at = np.minimum(np.searchsorted(ordered, some), len(ordered) - 1)
    found: npt.NDArray[np.bool_] = ordered[at] == some
    return found


# ----------------------------------------------------------------------------------------------- encoded again


def _encoded_again(dataset: CachedDataset, file: FeatureFile, again: Again) -> Found:
    """Encode some done rows with the encoder that the file states, and compare."""
    if file.provenance.get("family") == "import":
        yield Finding("note", "recompute", "imported vectors cannot be encoded again", 0)
        return
    named = again.backbone
    backbone = _resolved(file, named, again.weights) if named is None or isinstance(named, str) else named
    _refuse_another(backbone, file)
    read = _reader(dataset, file, again.data)
    done = np.flatnonzero(np.asarray(file.status) == DONE)
    rng = np.random.default_rng(again.seed)
    rows = np.sort(rng.choice(done, min(again.rows, len(done)), replace=False)).astype(np.int64)
    if len(rows):
        yield _distances(file, _load(backbone, file, again.device), rows, read)


def _resolved(file: FeatureFile, named: str | None, weights: str | None) -> Backbone:
    """The encoder that a file's record names, or the one that is said. Raises UsageError where it is not here."""
    from embedcache.backbones import resolve
    from embedcache.backbones.base import BackboneSettings

    record = file.record
    name = named or str(record.get("backbone"))
    settings = record.get("settings")
    stated: dict[str, Any] = dict(settings) if isinstance(settings, dict) else {}
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()}
    revision = record.get("commit") if named is None else None
    try:
        return resolve(name, BackboneSettings(revision=revision, weights=weights, **stated))
    except (UsageError, CheckpointNotFoundError, TypeError) as error:
        raise UsageError(
            f"{file.path.name} cannot be encoded again: its encoder {name!r} is not on this machine. {error} "
            "Say where it is with --backbone, such as hf:./folder."
        ) from error


def _refuse_another(backbone: Backbone, file: FeatureFile) -> None:
    """The encoder must be the file's own: comparing another's vectors would prove nothing."""
    compute, stored = file.provenance["compute"], file.provenance["stored"]
    here = json.loads(Provenance(backbone.identity, compute, stored).to_json())
    if different := [path for path, _, _ in differences(file.provenance, here)]:
        raise UsageError(
            f"{file.path.name} cannot be encoded again with {backbone.name}: {', '.join(different[:5])} differ from "
            "what the file states. Name the encoder that made it with --backbone."
        )


def _reader(dataset: CachedDataset, file: FeatureFile, data: Path | None) -> Read:
    """Row of the file to the item's bytes."""
    from embedcache.items import positions, reader_of_images, reader_of_texts

    if file.modality == "image":
        from embedcache.datasets import image_source

        return reader_of_images(image_source(remembered_data(dataset, data)).read, file.ids)
    items = dataset.table.items["text"]
    return reader_of_texts(items["text"], positions(file.ids, fixed_length(items["id"])))


def remembered_data(dataset: CachedDataset, data: Path | None = None) -> Dataset:
    """The data that a data set was read from. Raises DataNotFoundError where they are not on this machine."""
    from embedcache.opening import find

    try:
        [(_, found)] = find(dataset.name, data, None, dataset.folder.cache, {})
    except UsageError as error:
        raise DataNotFoundError(
            f"The data of {dataset.name} are not on this machine: {error} Say where they lie with --data."
        ) from error
    if missing := [str(path) for path in (*found.sources, found.image_folder) if not path.exists()]:
        raise DataNotFoundError(
            f"The data of {dataset.name} are not on this machine: there is no {', '.join(dict.fromkeys(missing))}. "
            "Say where they lie with --data."
        )
    return found


def _load(backbone: Backbone, file: FeatureFile, device: str) -> Encoder:
    from embedcache.precision import chosen_device

    encoder = backbone.load(chosen_device(device))
    encoder.cast(file.provenance["compute"])
    return encoder


def _distances(file: FeatureFile, encoder: Encoder, rows: npt.NDArray[np.int64], read: Read) -> Finding:
    """Encode ``rows`` and say how far the farthest is from what is stored."""
    from embedcache.engines.base import Work
    from embedcache.engines.local import LocalEngine

    engine = LocalEngine(encoder, file.modality, batch_size=min(16, len(rows)))
    [encoded] = engine.encode([Work(0, rows, read)])
    same = (encoded.content == np.asarray(file.content)[rows]).all(1)
    same[list(encoded.failures)] = False
    gone = f"; {int((~same).sum())} could not be compared: their items changed" if not same.all() else ""
    if not same.any():
        return Finding("warning", "recompute", f"0 rows encoded again{gone}", len(rows))
    tolerance = TOLERANCE.get(file.provenance["compute"], TOLERANCE["float32"])
    far = relative_distances(encoded.vectors[same], np.asarray(file.features[rows[same]]))
    wrong = int((~(far <= tolerance)).sum())
    message = f"{int(same.sum())} rows encoded again: the farthest by {far.max():.1e}, tolerance {tolerance:.0e}{gone}"
    if wrong:
        names = [bytes(name).decode(errors="replace") for name in file.ids[rows[same][~(far <= tolerance)]][:_EXAMPLES]]
        return Finding("damage", "recompute", f"{wrong} of {message} ({', '.join(names)})", wrong)
    return Finding("note" if same.all() else "warning", "recompute", message, int(same.sum()))


def relative_distances(again: npt.NDArray[Any], stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """‖again - stored‖ / ‖stored‖ of each row; both (n, dim), float64 (n,). Zeros compare with zeros."""
    a, b = again.astype(np.float64), stored.astype(np.float64)
    norms = np.linalg.norm(b, axis=1)
    found: npt.NDArray[np.float64] = np.linalg.norm(a - b, axis=1) / np.where(norms > 0, norms, 1.0)
    return found


# ----------------------------------------------------------------------------------------------- against the data


def _compared(file: FeatureFile, dataset: CachedDataset, data: Dataset) -> Found:
    """Contents as they were encoded against the data as they are now."""
    from embedcache.items import positions

    items = data.read().items
    modality = _modality(file)
    if modality not in items:
        yield Finding("warning", "data", f"the data have no {modality}s any more", file.n_items)
        return
    known = fixed_length(items[modality]["id"])
    there = positions(file.ids, known)
    counts = Counter(gone=int((there < 0).sum()), new=len(known) - len(np.unique(there[there >= 0])))
    if modality == "image":
        counts.update(_contents(file, data, np.flatnonzero(there >= 0)))
    else:
        counts["changed"] += _wrong_texts(dataset)
    for what, message in (
        ("changed", "items are not what was encoded: extract again"),
        ("unreadable", "items cannot be read now"),
        ("gone", "rows are of items that are not in the data any more"),
        ("new", "items of the data have no row: extract again"),
    ):
        if counts[what]:
            yield Finding("warning", what, f"{counts[what]:,} {message}", counts[what])


def _contents(file: FeatureFile, data: Dataset, rows: npt.NDArray[np.int64]) -> Counter[str]:
    """Digest images on threads, a few at a time; what could not be read when it was encoded is left out."""
    from concurrent.futures import ThreadPoolExecutor

    from embedcache.datasets import image_source

    source = image_source(data)

    def state(row: int) -> str:
        if not (content := bytes(file.content[row])).strip(b"\0"):
            return "unknown"
        try:
            payload = source.read(bytes(file.ids[row]).decode())
        except ItemError:
            return "unreadable"
        return "same" if xxhash.xxh3_128_digest(payload) == content else "changed"

    found: Counter[str] = Counter()
    with ThreadPoolExecutor(thread_name_prefix="digest") as pool:
        for start in range(0, len(rows), 1024):
            found.update(pool.map(state, rows[start : start + 1024].tolist()))
    return found


def _wrong_texts(dataset: CachedDataset) -> int:
    """Texts in the cache's own table that do not have the digest that is their id."""
    from embedcache.samples import combined

    items = dataset.table.items["text"]
    digests = text_digests(combined(items["text"]).cast(pa.large_string()))
    stated = fixed_length(items["id"])
    return sum(digest.tobytes().hex().encode() != item for digest, item in zip(digests, stated.tolist(), strict=True))
