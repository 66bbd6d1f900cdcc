"""The few things that must be true of files: reserved, synced, replaced in one step, locked."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy.typing as npt
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from embedcache.errors import EmbedCacheError, LockedError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class DiskFullError(EmbedCacheError, OSError):
    """The disk cannot hold the file that is about to be written; nothing was written."""


def sync_data(fd: int) -> None:
    """Flush a file's bytes to the disk (``fdatasync``, or ``fsync`` where there is none)."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable; where folders cannot be synced, the file system answers for them."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


def sync_above(folder: Path) -> None:
    """Make the names of a new ``folder``, and of the new ones that it lies in, durable."""
    for parent in folder.absolute().parents:
        if os.access(parent, os.W_OK):
            sync_folder(parent)


def append(path: Path, text: str) -> None:
    """Add whole lines to a text file, and sync; a line that a crash cut off before is ended first."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and read_at(fd, 1, size - 1) != b"\n"
        write_at(fd, (torn * "\n" + text).encode(), size)
        sync_data(fd)
    finally:
        os.close(fd)
    if not size:
        sync_folder(path.parent)


def reserve(fd: int, size: int, path: Path) -> None:
    """Reserve ``size`` bytes for ``fd`` now, so that a full disk is an error before any work.

    Where the system or the file system has no ``posix_fallocate``, zeros are written over the part
    that has no bytes yet: slower, the same promise.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            _write_zeros(fd, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            _write_zeros(fd, size)
            return
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFullError(
            f"No room for {path}: it needs {size:,} bytes. Nothing was written; free some space "
            "or choose another folder with --cache."
        ) from error


def _write_zeros(fd: int, size: int) -> None:
    """Rewrite every page of holes with zeros; bytes that are there already are kept."""
    step = 1 << 20
    for start in range(0, size, step):
        length = min(step, size - start)
        kept = os.pread(fd, length, start)
        write_at(fd, kept + bytes(length - len(kept)), start)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """``pwrite`` all of ``data``: a short write goes on, an error is raised."""
    view = memoryview(data).cast("B")
    while len(view):
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def read_at(fd: int, length: int, offset: int) -> bytes:
    """``pread`` exactly ``length`` bytes, or as many as the file has."""
    parts: list[bytes] = []
    while length:
        part = os.pread(fd, min(length, 1 << 26), offset)
        if not part:
            break
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return b"".join(parts)


def read_into(fd: int, buffer: npt.NDArray[Any], offset: int) -> None:
    """``preadv`` until ``buffer`` is full. Raises OSError where the file ends before."""
    view = buffer.data.cast("B")
    while len(view):
        found = os.preadv(fd, [view], offset)
        if not found:
            raise OSError(errno.EIO, f"the file ends {len(view)} bytes early")
        view, offset = view[found:], offset + found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; on success it is synced and takes ``path``'s place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield beside
        fd = os.open(beside, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` to ``path`` as indented UTF-8 JSON, in one step."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock beside ``path``. It dies with its process, so a crash never leaves one behind.

    Where the file system has no locks, a file that only one process can create stands for one: it names its process,
    and one that a crash left behind on this machine is taken away.
    Raises LockedError at once where another process holds it and ``wait`` is false.
    """
    timeout = -1 if wait else 0
    lock: BaseFileLock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        try:
            lock.acquire(timeout=timeout)
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
                raise
            lock = SoftFileLock(path.with_name(f".{path.name}.softlock"))
            lock.acquire(timeout=timeout)
    except Timeout as error:
        raise LockedError(
            f"Another process is writing {path}. Wait for it to end, or run again with --wait."
        ) from error
    try:
        yield
    finally:
        lock.release()
