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

import glob
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from embedcache import container
from embedcache.container import (
    CHANGING,
    DONE,
    FAILED,
    FORMAT_VERSION,
    PENDING,
    SEAL_DIGEST_AT,
    USERBLOCK,
    VECTORS,
    Extent,
    Header,
    ItemFile,
    digest_outside,
)
from embedcache.errors import DamagedFileError, EmbedCacheError, IncompleteFileError
from embedcache.files import read_at, reserve, sync_data, sync_folder, write_at
from embedcache.provenance import StoredType, canonical_json, fingerprint

__all__ = [
    "BLOCK_ROWS", "DONE", "FAILED", "PARTIAL_SUFFIX", "PENDING", "USERBLOCK", "Extent", "FeatureFile", "FeatureWriter",
    "Header", "Layout", "block_length", "create", "digest_outside", "now", "partial_path",
]  # fmt: skip

PARTIAL_SUFFIX: Final = ".partial"
MAX_BLOCK_BYTES: Final = 64 << 20
BLOCK_ROWS: Final = {"image": 256, "text": 8192}
_IDS_AT_ONCE: Final = 1 << 16

DATASETS: Final = (*CHANGING[VECTORS], "ids")

FloatArray = npt.NDArray[np.floating[Any]]


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
        with container.laying_out(path):
            extents = _write_hdf5(beside, layout)
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
    with container.new_hdf5(path) as file:
        datasets = {name: container.allocate(file, name, *shapes[name]) for name in shapes}
        for start in range(0, layout.n_items, _IDS_AT_ONCE):
            some = slice(start, start + _IDS_AT_ONCE)
            datasets["ids"][some] = layout.ids[some].astype(shapes["ids"][1])
        text = canonical_json(layout.provenance)
        file.attrs["provenance"] = np.bytes_(text.encode())
        file.attrs["fingerprint"] = np.bytes_(fingerprint(layout.provenance).encode())
        file.attrs["format_version"] = np.int64(FORMAT_VERSION)
        file.attrs["block_length"] = np.int64(layout.block_length)
        return {name: container.extent(datasets[name]) for name in CHANGING[VECTORS]}


class FeatureFile(ItemFile):
    """A feature file, checked and mapped. Opening refuses pending rows unless ``partial`` is asked for.

    features: read-only memmap, (n_items, dim), float16 or float32; failed rows are zeros.
    """

    kind = VECTORS
    layout: Layout

    def _declared(self, raw: BinaryIO) -> dict[str, Extent]:
        with container.parsing(raw, self.path) as file:
            self.layout, extents = _read_layout(file, self.path, self._bytes)
        return extents

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.layout.dim

    @cached_property
    def features(self) -> np.memmap[Any, Any]:
        """The vectors, mapped read-only; no byte is copied."""
        return self._map("features", self.layout.stored, (self.n_items, self.dim))

    def extent_of(self, rows: slice) -> Extent:
        """Where the vectors of consecutive rows lie in the file."""
        return _bytes_of(self.layout, self._extents["features"], rows)

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


def _read_layout(file: h5py.File, path: Path, whole: np.memmap[Any, Any]) -> tuple[Layout, dict[str, Extent]]:
    datasets = container.plain_datasets(file, DATASETS, path)
    length = container.read_block_length(file, path)
    _check_shapes(datasets, length, path)
    extents = container.whole_extents(datasets, len(whole), path)
    stored: StoredType = "float16" if datasets["features"].dtype.itemsize == 2 else "float32"
    ids = container.view(whole, extents["ids"], f"S{datasets['ids'].dtype.itemsize}")
    provenance = container.read_provenance(file, path)
    return Layout(ids, datasets["features"].shape[1], stored, provenance, length), extents


def _check_shapes(datasets: Mapping[str, h5py.Dataset], length: int, path: Path) -> None:
    """Types, ranks and lengths are this format's, and agree."""
    expected = {
        "features": (2, ("<f2", "<f4")), "status": (1, ("|u1",)), "content": (2, ("|u1",)), "checksum": (1, ("<u8",)),
    }  # fmt: skip
    container.check_kinds(datasets, expected, ("ids",), path)
    n, dim = datasets["features"].shape
    lengths = {"ids": (n,), "status": (n,), "content": (n, 16), "checksum": (-(-n // length),)}
    if not (n and dim) or any(datasets[name].shape != shape for name, shape in lengths.items()):
        raise DamagedFileError(f"{path}: the shapes of its datasets do not agree.")


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
        write_at(self._fd, digest, SEAL_DIGEST_AT)
        os.fsync(self._fd)
        self.close()
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)
        return self.path


def now() -> str:
    """The time in UTC, ISO 8601, to the second: for records."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
