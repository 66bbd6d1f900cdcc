"""Whether a cache holds what it promises: bytes, counts, ids, vectors; on request against encoder and data.

Files are read in blocks and ids in several passes, so that the memory it takes does not grow with a file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from embedcache.cache import CachedDataset, FeatureEntry, FeatureQuery, file_name
from embedcache.container import ItemFile
from embedcache.errors import CheckpointNotFoundError, DamagedFileError, DataNotFoundError, ItemError, UsageError
from embedcache.files import read_at, read_into
from embedcache.items import Read, fixed_length
from embedcache.options import usable_cores
from embedcache.provenance import Modality, Provenance, differences
from embedcache.ragged import TokenFile
from embedcache.samples import items_path, text_digests
from embedcache.store import DONE, FAILED, PENDING, FeatureFile

if TYPE_CHECKING:
    from embedcache.backbones.base import Backbone, Encoder
    from embedcache.datasets import Dataset

Severity = Literal["damage", "warning", "note"]
Found = Iterator["Finding"]

_CHUNK_BYTES = 1 << 19
_IDS_AT_ONCE = 1 << 14
_IDS_IN_A_PASS = 1 << 16
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
            findings = _checked(dataset, file)
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
        return [dataset.find_any(query).path]
    return [*dataset.folder.feature_paths(), *dataset.folder.partial_paths()]


def _report(dataset: CachedDataset, entry: FeatureEntry, file: ItemFile, findings: list[Finding]) -> FileReport:
    parts = (file.status[start : start + _IDS_AT_ONCE] for start in range(0, file.n_items, _IDS_AT_ONCE))
    counts = sum((np.bincount(part, minlength=256) for part in parts), np.zeros(256, np.int64))
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


def _checked(dataset: CachedDataset, file: ItemFile) -> list[Finding]:
    """All that the file and the sample table can tell by themselves; vectors and ids are looked at side by side."""
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="verify") as pool:
        ids = pool.submit(lambda: list(_identified(file, items_path(dataset.folder.path, _modality(file)))))
        found = list(_scanned_tokens(file)) if isinstance(file, TokenFile) else []
        found += _scanned(file, pool) if isinstance(file, FeatureFile) else []
        return [*found, *ids.result()]


def _modality(file: ItemFile) -> Modality:
    return "image" if file.modality == "image" else "text"


# ------------------------------------------------------------------------------------------ bytes and numbers


def _scanned(file: FeatureFile, pool: ThreadPoolExecutor) -> Found:
    """Checksums, status values, and what the vectors are, in one pass over the file."""
    bad: list[int] = []
    seen: Counter[str] = Counter()
    with file.reading() as fd:
        blocks = range(file.layout.n_blocks)
        for block, (whole, found) in zip(blocks, pool.map(partial(_block, file, fd), blocks), strict=True):
            seen.update(found)
            if not whole:
                bad.append(block)
    yield from _said(bad, seen)


def _block(file: FeatureFile, fd: int, block: int) -> tuple[bool, Counter[str]]:
    """Whether a block has its checksum, and its rows by what is odd about them.

    Read in pieces that stay in the processor's cache between hashing and looking.
    """
    rows = file.layout.rows(block)
    status = np.asarray(file.status[rows])
    seen = Counter({"status": int((status > FAILED).sum())})
    if (status == PENDING).all():
        return True, seen
    kind = np.dtype(file.layout.stored).newbyteorder("<")
    step = max(1, _CHUNK_BYTES // (file.dim * kind.itemsize))
    piece = np.frombuffer(_own_buffer(step * file.dim * kind.itemsize), kind).reshape(step, file.dim)
    first = np.empty(len(status), kind)
    state = xxhash.xxh3_64()
    for start in range(0, len(status), step):
        stop = min(start + step, len(status))
        vectors = piece[: stop - start]
        read_into(fd, vectors, file.extent_of(slice(rows.start + start, rows.start + stop)).offset)
        state.update(vectors.data)
        first[start:stop] = vectors[:, 0]
        if not _all_finite(vectors):
            seen["finite"] += int((~np.isfinite(vectors).all(1) & (status[start:stop] == DONE)).sum())
    for word, suspects in (("zeros", (first == 0) & (status == DONE)), ("failed", status == FAILED)):
        zero = sum(not _row(file, fd, rows.start + int(row)).any() for row in np.flatnonzero(suspects))
        seen[word] += zero if word == "zeros" else int(suspects.sum()) - zero
    return bool((status == PENDING).any()) or state.intdigest() == int(file.checksum[block]), seen


_buffers = local()


def _own_buffer(nbytes: int) -> bytearray:
    """This thread's buffer: new pages for each block would take as long as reading them."""
    if len(getattr(_buffers, "bytes", b"")) != nbytes:
        _buffers.bytes = bytearray(nbytes)
    found: bytearray = _buffers.bytes
    return found


def _row(file: FeatureFile, fd: int, row: int) -> npt.NDArray[Any]:
    """One vector, read from the file."""
    vector = np.empty(file.dim, np.dtype(file.layout.stored).newbyteorder("<"))
    read_into(fd, vector, file.extent_of(slice(row, row + 1)).offset)
    return vector


def _all_finite(vectors: npt.NDArray[Any]) -> bool:
    """By the bits, which is several times as fast as numpy's own test of float16.

    What is not finite has all bits of the exponent set: as signed integers those are the largest of all where the sign
    bit is not set, as unsigned ones where it is.
    """
    size = vectors.dtype.itemsize
    positive, negative = (0x7C00, 0xFC00) if size == 2 else (0x7F800000, 0xFF800000)
    return bool(vectors.view(f"<i{size}").max() < positive and vectors.view(f"<u{size}").max() < negative)


def _scanned_tokens(file: TokenFile) -> Found:
    """Checksums, ids outside the vocabulary, and whether rows have tokens where they are done and only there.

    That offsets begin at 0, never fall and end at the last token was checked when the file was opened.
    """
    bad: list[int] = []
    seen: Counter[str] = Counter()
    with file.reading() as fd:
        for block in range(file.layout.n_blocks):
            data = file.read_block(fd, block)
            if xxhash.xxh3_64_intdigest(data) != int(file.checksum[block]):
                bad.append(block)
            tokens = np.frombuffer(data, "<i4")
            seen["vocabulary"] += int(((tokens < 0) | (tokens >= file.n_words)).sum())
    for start in range(0, file.n_items, _IDS_AT_ONCE):
        status = file.status[start : start + _IDS_AT_ONCE]
        empty = np.diff(file.offsets[start : start + _IDS_AT_ONCE + 1]) == 0
        seen["status"] += int((status > FAILED).sum())
        seen["empty"] += int((empty & (status == DONE)).sum())
        seen["unexpected"] += int((~empty & (status == FAILED)).sum())
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
        ("vocabulary", "damage", "ids lie outside the vocabulary"),
        ("empty", "damage", "done rows have no word"),
        ("unexpected", "warning", "failed rows have words"),
    )
    for what, severity, message in messages:
        if seen[what]:
            yield Finding(severity, what, f"{seen[what]:,} {message}", seen[what])


# ------------------------------------------------------------------------------------------------------- ids


def _identified(file: ItemFile, table: Path) -> Found:
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
        known, _ = _hashed(_ids_in_table(table), passes, number)
        same = np.array_equal(known, hashes)
        in_order = np.sort(hashes)
        if (in_order[1:] == in_order[:-1]).any():
            counts["repeated"] += _repeated(file, hashes, rows)
        if not same:
            counts["unknown"] += len(hashes) - int(_among(hashes, np.sort(known)).sum())
            counts["lacking"] += len(known) - int(_among(known, in_order).sum())
    yield from _said_of_ids(counts)


def _repeated(file: ItemFile, hashes: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]) -> int:
    """Rows whose id stands in a row before; hashes that only happen to agree do not count."""
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    rows = rows[order]
    return sum(bool(file.ids[rows[i]] == file.ids[rows[i + 1]]) for i in again)


def _said_of_ids(counts: Counter[str]) -> Found:
    if repeated := counts["repeated"]:
        yield Finding("damage", "duplicates", f"{repeated:,} ids occur more than once", repeated)
    if unknown := counts["unknown"]:
        message = f"{unknown:,} rows are of items that no sample uses: rm --unused drops them"
        yield Finding("warning", "unknown", message, unknown)
    if lacking := counts["lacking"]:
        yield Finding("note", "lacking", f"{lacking:,} items of the sample table have no row", lacking)


def _ids_in_file(file: ItemFile) -> Iterator[npt.NDArray[np.bytes_]]:
    with file.reading() as fd:
        for start in range(0, file.n_items, _IDS_AT_ONCE):
            extent = file.ids_of(slice(start, min(start + _IDS_AT_ONCE, file.n_items)))
            yield np.frombuffer(read_at(fd, extent.nbytes, extent.offset), file.ids.dtype)


def _rows_in(table: Path) -> int:
    with _parsing(table), pq.ParquetFile(table) as opened:
        return int(opened.metadata.num_rows)


def _ids_in_table(table: Path) -> Iterator[npt.NDArray[np.bytes_]]:
    with _parsing(table), pq.ParquetFile(table, pre_buffer=False) as opened:
        for batch in opened.iter_batches(_IDS_AT_ONCE, columns=["id"], use_threads=False):
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


def _encoded_again(dataset: CachedDataset, file: ItemFile, again: Again) -> Found:
    """Encode some done rows with the encoder that the file states, and compare."""
    if isinstance(file, TokenFile):
        yield from _split_again(dataset, file, again)
    if not isinstance(file, FeatureFile):
        return
    if file.provenance.get("family") == "import":
        yield Finding("note", "recompute", "imported vectors cannot be encoded again", 0)
        return
    named = again.backbone
    backbone = _resolved(file, named, again.weights) if named is None or isinstance(named, str) else named
    _refuse_another(backbone, file)
    read = _reader(dataset, file, again.data)
    done = np.flatnonzero(np.asarray(file.status) == DONE)
    rows = _some(done, again)
    if len(rows):
        yield _distances(file, _load(backbone, file, again.device), rows, read)


def _some(rows: npt.NDArray[np.int64], again: Again) -> npt.NDArray[np.int64]:
    """As many random rows as are asked for, sorted."""
    rng = np.random.default_rng(again.seed)
    return np.sort(rng.choice(rows, min(again.rows, len(rows)), replace=False)).astype(np.int64)


def _split_again(dataset: CachedDataset, file: TokenFile, again: Again) -> Found:
    """Split some texts again by the file's rule and vocabulary: the ids must be the same."""
    from embedcache.items import positions
    from embedcache.ragged import take_rows
    from embedcache.samples import combined
    from embedcache.word_ids import split_again
    from embedcache.words import RULE

    if file.provenance["preprocessing"].get("words") != RULE:
        yield Finding("note", "recompute", "its ids were not made by the rule of this release: not compared", 0)
        return
    items = dataset.table.items["text"]
    here = positions(np.asarray(file.ids), fixed_length(items["id"]))
    rows = _some(np.flatnonzero((np.asarray(file.status) == DONE) & (here >= 0)), again)
    tokens, offsets = split_again(file, combined(items["text"]).take(pa.array(here[rows])))
    stored, bounds = take_rows(file.tokens, file.offsets, rows)
    wrong = [
        row for row in range(len(rows))
        if not np.array_equal(tokens[offsets[row] : offsets[row + 1]], stored[bounds[row] : bounds[row + 1]])
    ]  # fmt: skip
    if wrong:
        names = ", ".join(bytes(file.ids[rows[row]]).decode() for row in wrong[:_EXAMPLES])
        yield Finding(
            "damage", "recompute", f"{len(wrong)} of {len(rows)} texts have other words now ({names})", len(wrong)
        )
    else:
        yield Finding("note", "recompute", f"{len(rows)} texts split again: the same ids", len(rows))


def _resolved(file: FeatureFile, named: str | None, weights: str | None) -> Backbone:
    """The encoder that a file's record names, or the one that is said. Raises UsageError where it is not here."""
    from embedcache.backbones import resolve, with_own
    from embedcache.backbones.base import BackboneSettings

    record = file.record
    name = named or str(record.get("backbone"))
    settings = record.get("settings")
    stated: dict[str, Any] = dict(settings) if isinstance(settings, dict) else {}
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()}
    stated = with_own(str(record.get("backbone")), stated)
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
    return reader_of_texts(items, positions(file.ids, fixed_length(items["id"])))


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


def _compared(file: ItemFile, dataset: CachedDataset, data: Dataset) -> Found:
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


def _contents(file: ItemFile, data: Dataset, rows: npt.NDArray[np.int64]) -> Counter[str]:
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
