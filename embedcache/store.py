"""The feature file: the vectors that one encoder gave to the items of one data set, in one HDF5 file.

The whole file is laid out before the first vector: every dataset contiguous and allocated, its bytes
reserved. After that HDF5 never writes to it again. Vectors land by ``pwrite`` at known offsets, a block at
a time: vectors, content digests and checksum; ``fdatasync``; then the block's status bytes. A process that
is killed anywhere leaves either nothing or a ``.partial`` that opens, and every block whose status says done
is whole. Sealing verifies the checksums, writes a digest of every byte outside ``/features`` and renames
``.partial`` away: the name is the commit.

ARCHITECTURE.md describes the format for readers in other languages.
"""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple
from uuid import uuid4

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from embedcache.errors import DamagedFileError, EmbedCacheError, IncompleteFileError
from embedcache.files import DiskFullError, read_at, reserve, sync_data, sync_folder, write_at
from embedcache.provenance import MODALITIES, StoredType, canonical_json, fingerprint

MAGIC: Final = b"embedcache-hdf5\0"
FORMAT_VERSION: Final = 1
USERBLOCK: Final = 4096
ALIGNMENT: Final = 4096
_SEAL_DIGEST_AT: Final = 24
PARTIAL_SUFFIX: Final = ".partial"
MAX_BLOCK_BYTES: Final = 64 << 20
BLOCK_ROWS: Final = {"image": 256, "text": 8192}
_IDS_AT_ONCE: Final = 1 << 16

PENDING, DONE, FAILED = 0, 1, 2

DATASETS: Final = ("features", "content", "status", "checksum", "ids")
_MUTABLE: Final = DATASETS[:4]
"""Datasets whose bytes change after the layout, in the order of the header's extents."""

# magic, format version, sealed (0 or 1), length of the record, seal digest, layout digest,
# extents of _MUTABLE (offset, bytes)
_HEADER: Final = struct.Struct("<16sHHI16s16s8Q")
_RECORD_AT: Final = 256

FloatArray = npt.NDArray[np.floating[Any]]


class Extent(NamedTuple):
    """A run of bytes in a file."""

    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """The offset just past the run."""
        return self.offset + self.nbytes


_SEAL_DIGEST: Final = Extent(_SEAL_DIGEST_AT, 16)


@dataclass(frozen=True)
class Header:
    """The userblock: what can be known of a file before HDF5 parses a byte of it.

    layout_digest: xxh3-128 of what never changes after the layout: every byte outside the userblock and
        the datasets that are filled. It guards a ``.partial``, even one whose sealing was cut off.
    seal_digest: xxh3-128 of every byte outside ``/features``, its own 16 bytes taken as zeros.
    record: the run's record (when, how fast, on what) and names; nothing that decides what a vector means.
    """

    sealed: bool
    extents: Mapping[str, Extent]
    record: Mapping[str, Any] = field(default_factory=dict)
    layout_digest: bytes = bytes(16)
    seal_digest: bytes = bytes(16)

    def pack(self) -> bytes:
        """The 4,096 bytes of the userblock."""
        text = json.dumps(self.record, ensure_ascii=False, sort_keys=True).encode()
        if len(text) > USERBLOCK - _RECORD_AT:
            raise EmbedCacheError(f"The run's record takes {len(text)} bytes; {USERBLOCK - _RECORD_AT} fit.")
        numbers = [number for name in _MUTABLE for number in self.extents[name]]
        head = _HEADER.pack(
            MAGIC, FORMAT_VERSION, self.sealed, len(text), self.seal_digest, self.layout_digest, *numbers
        )
        return (head.ljust(_RECORD_AT, b"\0") + text).ljust(USERBLOCK, b"\0")

    @classmethod
    def unpack(cls, block: bytes, path: Path) -> Header:
        """Parse a userblock. Raises DamagedFileError on anything but this format's own bytes."""
        if len(block) < USERBLOCK or not block.startswith(MAGIC):
            raise DamagedFileError(
                f"{path} is not a feature file: it should begin with {MAGIC.rstrip(bytes(1)).decode()!r}."
            )
        _, version, sealed, length, seal_digest, layout_digest, *numbers = _HEADER.unpack_from(block)
        if version != FORMAT_VERSION:
            raise DamagedFileError(
                f"{path} has format version {version}; this release reads {FORMAT_VERSION}. "
                "Read it with the release that wrote it, or extract again."
            )
        extents = {
            name: Extent(*pair)
            for name, pair in zip(_MUTABLE, zip(numbers[::2], numbers[1::2], strict=True), strict=True)
        }
        record = _parse_record(block[_RECORD_AT : _RECORD_AT + length])
        return cls(bool(sealed), extents, record, layout_digest, seal_digest)

    def holes(self) -> list[Extent]:
        """The bytes that the file's digest leaves out: of a sealed file, ``/features`` alone."""
        if self.sealed:
            return [self.extents["features"], _SEAL_DIGEST]
        return [Extent(0, USERBLOCK), *self.extents.values()]


def _parse_record(text: bytes) -> dict[str, Any]:
    """The record, or nothing where a crash tore it; in a sealed file the digest has vouched for it."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return {}


def digest_outside(fd: int, excluded: Sequence[Extent]) -> bytes:
    """xxh3-128 of a file's bytes outside the ``excluded`` runs."""
    holes = sorted(excluded)
    state = xxhash.xxh3_128()
    position, size = 0, os.fstat(fd).st_size
    for hole in [*holes, Extent(size, 0)]:
        while position < min(hole.offset, size):
            part = read_at(fd, min(1 << 20, hole.offset - position), position)
            state.update(part)
            position += len(part)
        position = max(position, hole.end)
    return state.digest()


@dataclass(frozen=True)
class Layout:
    """All that must be known before the first block.

    ids: item ids, fixed-length UTF-8 bytes (numpy ``S``), (n_items,).
    block_length: rows in a block; the last block may be shorter.
    """

    ids: npt.NDArray[np.bytes_]
    dim: int
    stored: StoredType
    provenance: Mapping[str, Any]
    block_length: int

    def __post_init__(self) -> None:
        if not len(self.ids) or self.dim < 1:
            raise EmbedCacheError(f"A feature file needs items and numbers, got {len(self.ids)} × {self.dim}.")

    @property
    def n_items(self) -> int:
        """Rows."""
        return len(self.ids)

    @property
    def n_blocks(self) -> int:
        """Blocks, the last one included where it is shorter."""
        return -(-self.n_items // self.block_length)

    def rows(self, block: int) -> slice:
        """The rows of a block."""
        start = block * self.block_length
        return slice(start, min(start + self.block_length, self.n_items))


def block_length(modality: str, dim: int, stored: StoredType) -> int:
    """Rows per block: 256 images or 8,192 texts, halved until it takes at most 64 MiB."""
    length = BLOCK_ROWS[modality]
    while length > 1 and length * dim * np.dtype(stored).itemsize > MAX_BLOCK_BYTES:
        length //= 2
    return length


def partial_path(path: Path) -> Path:
    """Where an unsealed file of that name stands."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def create(
    path: Path,
    layout: Layout,
    record: Mapping[str, Any],
    *,
    sync: bool = True,
    carry: Callable[[FeatureWriter], None] | None = None,
) -> FeatureWriter:
    """Lay out ``path``'s ``.partial`` whole, reserved and synced, and return its writer.

    carry: fills in rows of the ``.partial`` that stands there, before the new one takes its place in one step.
    The caller holds the file's lock. Raises DiskFullError, with nothing left behind, where it cannot fit.
    """
    partial = partial_path(path)
    if carry is None and partial.exists():
        raise FileExistsError(f"{partial} is there already: resume it or set it aside first.")
    for killed in path.parent.glob(f".{glob.escape(path.name)}.*.layout"):
        killed.unlink()
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.layout")
    try:
        extents = _lay_out(beside, layout, path)
        fd = os.open(beside, os.O_RDWR)
        try:
            reserve(fd, os.fstat(fd).st_size, path)
            header = Header(False, extents, record)
            header = replace(header, layout_digest=digest_outside(fd, header.holes()))
            write_at(fd, header.pack(), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        if carry is not None:
            _carry(carry, path, beside)
        os.replace(beside, partial)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)
    return FeatureWriter(path, sync=sync)


def _lay_out(beside: Path, layout: Layout, path: Path) -> dict[str, Extent]:
    """HDF5 tells of a full or failing disk in many words, on closing as RuntimeError; here it is an OSError."""
    try:
        return _write_hdf5(beside, layout)
    except (OSError, RuntimeError) as error:
        if any(f"errno = {code}," in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise DiskFullError(f"No room to lay out {path}. Nothing was written; free some space first.") from error
        raise error if isinstance(error, OSError) else OSError(f"HDF5 could not lay out {path}: {error}") from error


def _carry(carry: Callable[[FeatureWriter], None], path: Path, beside: Path) -> None:
    """Let rows be filled in while nobody knows the file yet: one sync is enough."""
    with FeatureWriter(path, sync=False, at=beside) as writer:
        carry(writer)
        writer.sync()


def _write_hdf5(path: Path, layout: Layout) -> dict[str, Extent]:
    """Let HDF5 write everything it will ever write; return where the changing datasets lie."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "ids": ((layout.n_items,), h5py.string_dtype("utf-8", layout.ids.dtype.itemsize)),
        "status": ((layout.n_items,), np.uint8),
        "content": ((layout.n_items, 16), np.uint8),
        "checksum": ((layout.n_blocks,), np.dtype("<u8")),
        "features": ((layout.n_items, layout.dim), np.dtype(layout.stored).newbyteorder("<")),
    }
    with h5py.File(
        path, "x", userblock_size=USERBLOCK, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT
    ) as file:
        datasets = {name: _allocate(file, name, *shapes[name]) for name in shapes}
        for start in range(0, layout.n_items, _IDS_AT_ONCE):
            some = slice(start, start + _IDS_AT_ONCE)
            datasets["ids"][some] = layout.ids[some].astype(shapes["ids"][1])
        text = canonical_json(layout.provenance)
        file.attrs["provenance"] = np.bytes_(text.encode())
        file.attrs["fingerprint"] = np.bytes_(fingerprint(layout.provenance).encode())
        file.attrs["format_version"] = np.int64(FORMAT_VERSION)
        file.attrs["block_length"] = np.int64(layout.block_length)
        return {name: _extent(datasets[name]) for name in _MUTABLE}


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plist))


def _extent(dataset: h5py.Dataset) -> Extent:
    return Extent(dataset.id.get_offset(), dataset.id.get_storage_size())


class FeatureFile:
    """A feature file, checked and mapped. Opening refuses pending rows unless ``partial`` is asked for.

    features: read-only memmap, (n_items, dim), float16 or float32; failed rows are zeros.
    ids: item ids, numpy bytes, (n_items,). content: uint8, (n_items, 16). status: uint8, (n_items,).
    """

    def __init__(self, path: Path, *, partial: bool = False) -> None:
        self.path = path
        try:
            with open(path, "rb") as raw:
                self._read(raw, partial)
        except FileNotFoundError as error:
            raise DamagedFileError(f"There is no feature file {path}.") from error
        if not partial and self.n_pending:
            raise IncompleteFileError(f"{path} has {self.n_pending} pending rows: run the extraction again.")

    def _read(self, raw: BinaryIO, partial: bool) -> None:
        """Check, parse and map one and the same file, whatever takes its name meanwhile."""
        self.header = self._check_bytes(raw.fileno(), partial)
        found = os.fstat(raw.fileno())
        self.size, self._inode = found.st_size, (found.st_dev, found.st_ino)
        self._bytes = np.memmap(raw, np.uint8, "r")
        self.layout, self._extents = _read_hdf5(raw, self.path, self._bytes)
        self._check_extents()

    def _check_bytes(self, fd: int, partial: bool) -> Header:
        header = Header.unpack(read_at(fd, USERBLOCK, 0), self.path)
        if not header.sealed and not partial:
            raise IncompleteFileError(f"{self.path} is not sealed: run its extraction again to finish it.")
        header = replace(header, sealed=not partial)
        size = os.fstat(fd).st_size
        if any(extent.end > size for extent in header.extents.values()):
            raise DamagedFileError(f"{self.path} is cut short: it has {size:,} bytes and declares more.")
        expected = header.layout_digest if partial else header.seal_digest
        if digest_outside(fd, header.holes()) != expected:
            raise DamagedFileError(
                f"{self.path} is damaged: its metadata does not have the digest that was "
                "written with it. Remove it and extract again, or restore it from a copy."
            )
        return header

    def _check_extents(self) -> None:
        for name in _MUTABLE:
            if self._extents[name] != self.header.extents[name]:
                raise DamagedFileError(f"{self.path}: /{name} does not lie where the header says.")

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """Item ids in row order, UTF-8 bytes, (n_items,)."""
        return self.layout.ids

    @property
    def provenance(self) -> dict[str, Any]:
        """What the vectors mean, as a JSON document."""
        return dict(self.layout.provenance)

    @property
    def fingerprint(self) -> str:
        """The 12 hexadecimal digits of the provenance."""
        return fingerprint(self.layout.provenance)

    @property
    def modality(self) -> str:
        """``image`` or ``text``."""
        return str(self.layout.provenance["modality"])

    @property
    def record(self) -> dict[str, Any]:
        """When, how fast and on what the file was made, and the names it goes by."""
        return dict(self.header.record)

    @property
    def n_items(self) -> int:
        """Rows."""
        return self.layout.n_items

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.layout.dim

    @cached_property
    def features(self) -> np.memmap[Any, Any]:
        """The vectors, mapped read-only; no byte is copied."""
        return self._map("features", self.layout.stored, (self.n_items, self.dim))

    @cached_property
    def content(self) -> npt.NDArray[np.uint8]:
        """xxh3-128 digests of the items' bytes as they were encoded, uint8, (n_items, 16)."""
        return self._map("content", "u1", (self.n_items, 16))

    @cached_property
    def status(self) -> npt.NDArray[np.uint8]:
        """0 pending, 1 done, 2 failed; uint8, (n_items,)."""
        return self._map("status", "u1", (self.n_items,))

    @cached_property
    def checksum(self) -> npt.NDArray[np.uint64]:
        """xxh3-64 of each block of rows, uint64, (n_blocks,)."""
        return self._map("checksum", "<u8", (self.layout.n_blocks,))

    @property
    def n_pending(self) -> int:
        """Rows that wait to be encoded; zero in every sealed file."""
        return int(np.count_nonzero(self.status == PENDING))

    @property
    def n_failed(self) -> int:
        """Rows whose item could not be encoded."""
        return int(np.count_nonzero(self.status == FAILED))

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
        little = np.dtype(dtype).newbyteorder("<")
        shaped: Any = _view(self._bytes, self._extents[name], little).reshape(shape)
        found: np.memmap[Any, Any] = shaped
        return found

    @contextmanager
    def reading(self) -> Iterator[int]:
        """A descriptor of this very file. Raises DamagedFileError where another has taken its name since."""
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise DamagedFileError(f"{self.path} was removed or sealed while it was open: open it again.") from error
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != self._inode:
                raise DamagedFileError(f"{self.path} was replaced while it was open: open it again.")
            yield fd
        finally:
            os.close(fd)

    def extent_of(self, rows: slice) -> Extent:
        """Where the vectors of consecutive rows lie in the file."""
        return _bytes_of(self.layout, self._extents["features"], rows)

    def ids_of(self, rows: slice) -> Extent:
        """Where the ids of consecutive rows lie in the file."""
        width = self.ids.dtype.itemsize
        return Extent(self._extents["ids"].offset + rows.start * width, (rows.stop - rows.start) * width)

    def bad_blocks(self, on_block: Callable[[int], None] = lambda block: None) -> Iterator[int]:
        """Blocks whose rows do not have their checksum. Reads the file, never through a map."""
        with self.reading() as fd:
            for block in range(self.layout.n_blocks):
                rows = self.layout.rows(block)
                if (self.status[rows] != PENDING).all():
                    data = read_at(fd, *_bytes_of(self.layout, self._extents["features"], rows)[::-1])
                    if xxhash.xxh3_64_intdigest(data) != int(self.checksum[block]):
                        yield block
                on_block(block)


def _bytes_of(layout: Layout, features: Extent, rows: slice) -> Extent:
    """Where the vectors of ``rows`` lie."""
    row = layout.dim * np.dtype(layout.stored).itemsize
    return Extent(features.offset + rows.start * row, (rows.stop - rows.start) * row)


def _view(whole: np.memmap[Any, Any], extent: Extent, dtype: npt.DTypeLike) -> np.memmap[Any, Any]:
    """A run of a mapped file's bytes as numbers: one map, and so one descriptor, a file."""
    view: Any = whole[extent.offset : extent.end].view(dtype)
    found: np.memmap[Any, Any] = view
    return found


def _read_hdf5(raw: BinaryIO, path: Path, whole: np.memmap[Any, Any]) -> tuple[Layout, dict[str, Extent]]:
    """The layout that the HDF5 metadata declares, refused unless it is exactly this format's."""
    try:
        with h5py.File(raw, "r") as file:
            return _read_layout(file, path, whole)
    except DamagedFileError:
        raise
    except (EmbedCacheError, OSError, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise DamagedFileError(f"{path}: its HDF5 metadata cannot be read ({error}).") from error


def _read_layout(file: h5py.File, path: Path, whole: np.memmap[Any, Any]) -> tuple[Layout, dict[str, Extent]]:
    if set(file) != set(DATASETS):
        raise DamagedFileError(f"{path} holds {sorted(file)}; a feature file holds {sorted(DATASETS)}.")
    datasets = {name: _plain_dataset(file, name, path) for name in DATASETS}
    length = file.attrs["block_length"]
    if not isinstance(length, np.integer) or length < 1:
        raise DamagedFileError(f"{path}: its block length is {length!r}, expected a positive integer.")
    _check_shapes(datasets, int(length), path)
    extents = {name: _extent(dataset) for name, dataset in datasets.items()}
    for name, dataset in datasets.items():
        if extents[name].nbytes != math.prod(dataset.shape) * dataset.dtype.itemsize or extents[name].end > len(whole):
            raise DamagedFileError(f"{path} is cut short: /{name} declares more bytes than there are.")
    stored: StoredType = "float16" if datasets["features"].dtype.itemsize == 2 else "float32"
    ids = _view(whole, extents["ids"], f"S{datasets['ids'].dtype.itemsize}")
    return Layout(ids, datasets["features"].shape[1], stored, _read_provenance(file, path), int(length)), extents


def _check_shapes(datasets: Mapping[str, h5py.Dataset], length: int, path: Path) -> None:
    """Types, ranks and lengths are this format's, and agree."""
    ids = datasets["ids"].dtype
    text = h5py.check_string_dtype(ids)
    expected = {
        "features": (2, ("<f2", "<f4")), "ids": (1, (ids.str,)), "status": (1, ("|u1",)),
        "content": (2, ("|u1",)), "checksum": (1, ("<u8",)),
    }  # fmt: skip
    for name, (rank, kinds) in expected.items():
        dataset = datasets[name]
        if dataset.ndim != rank or dataset.dtype.str not in kinds or text is None or not text.length:
            raise DamagedFileError(f"{path}: /{name} is {dataset.dtype} {dataset.shape}, not of this format.")
    n, dim = datasets["features"].shape
    lengths = {"ids": (n,), "status": (n,), "content": (n, 16), "checksum": (-(-n // length),)}
    if not (n and dim) or any(datasets[name].shape != shape for name, shape in lengths.items()):
        raise DamagedFileError(f"{path}: the shapes of its datasets do not agree.")


def _read_provenance(file: h5py.File, path: Path) -> dict[str, Any]:
    """The provenance, which its fingerprint vouches for."""
    texts = {name: file.attrs[name] for name in ("provenance", "fingerprint")}
    if not all(isinstance(text, bytes) for text in texts.values()):
        raise DamagedFileError(f"{path}: its provenance and fingerprint are not fixed-length texts.")
    provenance = json.loads(texts["provenance"].decode())
    if not isinstance(provenance, dict) or provenance.get("modality") not in MODALITIES:
        raise DamagedFileError(f"{path}: its provenance names no modality of {', '.join(MODALITIES)}.")
    if fingerprint(provenance) != texts["fingerprint"].decode():
        raise DamagedFileError(f"{path}: its fingerprint is not that of its provenance.")
    return provenance


def _plain_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A dataset behind a hard link, contiguous, in this very file; anything else is refused."""
    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        raise DamagedFileError(f"{path}: /{name} is not a dataset of this file.")
    plist = dataset.id.get_create_plist()
    plain = plist.get_layout() == h5py.h5d.CONTIGUOUS and plist.get_external_count() == 0
    if not plain or dataset.id.get_offset() is None:
        raise DamagedFileError(f"{path}: /{name} is not contiguous bytes of this file.")
    return dataset


class FeatureWriter:
    """Writes the blocks of one ``.partial`` and seals it. One writer a file: the caller holds the lock."""

    def __init__(self, path: Path, *, sync: bool = True, at: Path | None = None) -> None:
        self.path = path
        self.partial = at or partial_path(path)
        self._file = FeatureFile(self.partial, partial=True)
        self.layout = self._file.layout
        self._extents = self._file.header.extents
        self._fd = os.open(self.partial, os.O_RDWR)
        self._sync = sync_data if sync else lambda fd: None

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what is committed stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def sync(self) -> None:
        """Until all that was written is on disk."""
        sync_data(self._fd)

    def pending_blocks(self) -> list[int]:
        """Blocks that are not committed, read from the bytes on disk."""
        extent = self._extents["status"]
        status = np.frombuffer(read_at(self._fd, extent.nbytes, extent.offset), np.uint8)
        starts = np.arange(0, self.layout.n_items, self.layout.block_length)
        return [int(block) for block in np.flatnonzero(np.minimum.reduceat(status, starts) == PENDING)]

    def write_block(
        self, block: int, vectors: FloatArray, content: npt.NDArray[np.uint8], status: npt.NDArray[np.uint8]
    ) -> None:
        """Commit one block: bytes, sync, then the status that says they are there, sync.

        Once this returns the block outlives a power loss, so that one loses no more than a kill: the block that is
        being written and the one that is being filled.

        vectors: (rows, dim) in the stored type. content: uint8, (rows, 16). status: uint8, (rows,), none pending.
        """
        if not status.all():
            raise EmbedCacheError(f"Block {block} must be without pending rows.")
        self.write_rows(block, vectors, content, status)

    def write_rows(
        self, block: int, vectors: FloatArray, content: npt.NDArray[np.uint8], status: npt.NDArray[np.uint8]
    ) -> None:
        """Like ``write_block``, for a block of which only the rows whose status is not pending are known yet."""
        rows = self.layout.rows(block)
        n = rows.stop - rows.start
        if vectors.shape != (n, self.layout.dim) or content.shape != (n, 16) or status.shape != (n,):
            raise EmbedCacheError(f"Block {block} has {n} rows; got {vectors.shape} and {status.shape}.")
        if vectors.dtype != np.dtype(self.layout.stored):
            raise EmbedCacheError(f"Block {block} must be {self.layout.stored}, got {vectors.dtype}.")
        data = np.ascontiguousarray(vectors, vectors.dtype.newbyteorder("<"))
        checksum = struct.pack("<Q", xxhash.xxh3_64_intdigest(data.data))
        write_at(self._fd, data.data, _bytes_of(self.layout, self._extents["features"], rows).offset)
        write_at(self._fd, content.tobytes(), self._extents["content"].offset + 16 * rows.start)
        write_at(self._fd, checksum, self._extents["checksum"].offset + 8 * block)
        self._sync(self._fd)
        write_at(self._fd, status.tobytes(), self._extents["status"].offset + rows.start)
        self._sync(self._fd)

    def seal(self, record: Mapping[str, Any]) -> Path:
        """Verify, sign and rename. Raises DamagedFileError where a block is not what was written."""
        if pending := self.pending_blocks():
            raise IncompleteFileError(f"{self.partial}: {len(pending)} blocks are pending.")
        self._sync(self._fd)
        if bad := list(self._file.bad_blocks()):
            raise DamagedFileError(
                f"{self.partial}: blocks {bad[:5]} do not have their checksums; the disk did not keep what was "
                "written. Remove the file and extract again."
            )
        header = replace(self._file.header, sealed=True, record=record)
        write_at(self._fd, header.pack(), 0)
        digest = digest_outside(self._fd, header.holes())
        write_at(self._fd, digest, _SEAL_DIGEST_AT)
        os.fsync(self._fd)
        self.close()
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)
        return self.path


def now() -> str:
    """The time in UTC, ISO 8601, to the second: for records."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
