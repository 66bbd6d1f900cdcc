"""A thin wrapper around every call of the library that changes the disk: counted, cut off, failed or written down.

Installed in a child process only. A call belongs to the run where its path lies below the cache's folder. Writers
that are opaque (HDF5, Parquet, text files) are one call each; what they wrote is found in the file afterwards.
"""

# The calls themselves, and thousands of names as texts: pathlib would be in the way.
# ruff: noqa: PTH100, PTH112

from __future__ import annotations

import builtins
import errno
import io
import os
import pickle
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["none", "kill", "error", "signal", "pause", "log"]
Moment = Literal["before", "half", "after"]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_REAL = {name: getattr(os, name) for name in ("write", "read", "open", "pwrite", "close")}


@dataclass(frozen=True)
class Fault:
    """What befalls the ``at``-th call. code: the errno, or the signal. log: where the calls are written down."""

    kind: Kind = "none"
    at: int = -1
    moment: Moment = "before"
    code: int = 0
    log: str = ""

    def __str__(self) -> str:
        name = {"error": errno.errorcode.get(self.code), "signal": str(self.code)}.get(self.kind, "")
        return f"{self.kind} {name} {self.moment} call {self.at}"


class Calls:
    """Counts the calls of one run below ``root``, and lets one ``fault`` happen."""

    def __init__(self, root: Path, fault: Fault) -> None:
        self.root, self.fault = os.path.abspath(root), fault
        self.count = 0
        self.names: list[str] = []
        self.events: list[tuple[Any, ...]] = []
        self._inodes: dict[str, int] = {}
        self._last = 1 << 20
        self._open: dict[int, str] = {}
        self._lock = threading.RLock()
        self._inside = threading.local()

    # -------------------------------------------------------------------------------------------- installing

    def install(self) -> None:
        """Put the wrapper around the calls that the library makes."""
        import pyarrow.parquet as pq

        from embedcache import store

        if self.fault.kind == "signal":  # what a shell starts in the background ignores it, and so do its children
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._wrap(os, "open", self._path_of_open)
        self._wrap(os, "pwrite", self._path_of_fd, write=True)
        for name in ("fsync", "fdatasync", "posix_fallocate"):
            self._wrap(os, name, self._path_of_fd)
        for name in ("rename", "replace", "link"):
            self._wrap(os, name, lambda source, target, **_: os.fspath(target))
        for name in ("unlink", "mkdir"):
            self._wrap(os, name, lambda path, *_, **__: os.fspath(path))
        for module in (io, builtins):
            self._wrap(module, "open", self._path_of_file)
        self._wrap(store, "_write_hdf5", lambda path, layout: os.fspath(path))
        self._wrap(pq, "write_table", lambda table, where, **_: os.fspath(where))
        close = os.close

        def closing(fd: int) -> None:
            self._open.pop(fd, None)
            close(fd)

        os.close = closing

    def save(self) -> None:
        """Write the log to where the fault says."""
        if self.fault.log:
            fd = _REAL["open"](self.fault.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            _write_all(fd, pickle.dumps((self.count, self.names, self.events)))

    def note(self, *event: Any) -> None:
        """Something that is no call of the disk's, in its place among them."""
        with self._lock:
            self.events.append(event)

    # ---------------------------------------------------------------------------------------------- wrapping

    def _wrap(self, module: Any, name: str, path_of: Callable[..., str | None], *, write: bool = False) -> None:
        call = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "yes", False):
                return call(*args, **kwargs)
            path = path_of(*args, **kwargs)
            if path is None or not self._below(path):
                return call(*args, **kwargs)
            with self._lock:
                return self._counted(name, call, os.path.abspath(path), args, kwargs, write)

        setattr(module, name, wrapped)

    def _counted(self, name: str, call: Any, path: str, args: Any, kwargs: Any, write: bool) -> Any:
        hit = self.count == self.fault.at
        self.count += 1
        self.names.append(name)
        if hit and self.fault.moment == "before":
            self._strike()
        if hit and self.fault.moment == "half" and write:
            fd, data, offset = args
            _REAL["pwrite"](fd, memoryview(data)[: max(1, len(data) // 2)], offset)
            self._strike()
        self._inside.yes = True
        try:
            found = call(*args, **kwargs)
            if name == "open" and isinstance(found, int):
                self._open[found] = path
            if self.fault.kind == "log":
                self._record(name, path, args, found)
        finally:
            self._inside.yes = False
            if hit and self.fault.moment == "after":
                self._strike()
        return found

    def _strike(self) -> None:
        kind = self.fault.kind
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "signal":
            os.kill(os.getpid(), self.fault.code)
        if kind == "error":
            raise OSError(self.fault.code, os.strerror(self.fault.code))
        if kind == "pause":
            self._pause()

    def _pause(self) -> None:
        """Say that the place is reached, and wait for leave to go on; ``log`` names two FIFOs."""
        reached, go = self.fault.log.split("|")
        for path, flags, act in ((reached, os.O_WRONLY, lambda fd: _REAL["write"](fd, b".")),
                                 (go, os.O_RDONLY, lambda fd: _REAL["read"](fd, 1))):  # fmt: skip
            fd = _REAL["open"](path, flags)
            act(fd)
            _REAL["close"](fd)

    # ------------------------------------------------------------------------------------------ which file

    def _below(self, path: str) -> bool:
        full = os.path.abspath(path)
        return full == self.root or full.startswith(self.root + os.sep)

    def _path_of_open(self, path: Any, flags: int, *_: Any, **__: Any) -> str | None:
        name = os.fspath(path)
        return name if flags & WRITING or os.path.isdir(name) else None

    def _path_of_fd(self, fd: int, *_: Any) -> str | None:
        return self._open.get(fd)

    def _path_of_file(self, file: Any, mode: str = "r", *_: Any, **__: Any) -> str | None:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return None
        return os.fspath(file)

    # -------------------------------------------------------------------------------------------- the log

    def _record(self, name: str, path: str, args: Any, found: Any) -> None:
        """An event for the model of the disk: see ``power``."""
        if name == "pwrite":
            self.events.append(("write", self._inodes[path], args[2], bytes(args[1])[:found]))
        elif name in ("fsync", "fdatasync"):
            self.events.append(("syncdir", path) if os.path.isdir(path) else ("sync", self._inodes[path]))
        elif name in ("rename", "replace"):
            self._seen(os.path.abspath(args[0]))
            source = os.path.abspath(args[0])
            self._inodes[path] = self._inodes.pop(source)
            self.events.append(("rename", source, path))
        elif name == "link":
            self._inodes[path] = self._inodes[os.path.abspath(args[0])]
            self.events.append(("link", path, self._inodes[path]))
        elif name == "unlink":
            self._inodes.pop(path, None)
            self.events.append(("unlink", path))
        elif name == "mkdir":
            self.events.append(("mkdir", path))
        elif name == "posix_fallocate":
            self.events.append(("size", self._inodes[path], args[1] + args[2]))
        elif isinstance(found, int | None) and not os.path.isdir(path):
            self._seen(path)

    def _seen(self, path: str) -> None:
        """A file that is new to the log: what an opaque writer has put there is one write, not yet synced."""
        if path in self._inodes or path.endswith(".lock"):
            self._inodes.setdefault(path, -1)
            return
        self._last += 1
        self._inodes[path] = self._last
        self.events.append(("create", path, self._inodes[path]))
        with open(path, "rb") as raw:
            data = raw.read()
        if data:
            self.events.append(("write", self._inodes[path], 0, data))

    def know(self, files: dict[str, int]) -> None:
        """Files that are there, and durable, before the log begins."""
        self._inodes.update(files)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[_REAL["write"](fd, data) :]
