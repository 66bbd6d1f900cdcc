"""What this machine and a cache's folder can do: tried, not guessed. What is missing, and what happens then."""

from __future__ import annotations

import errno
import importlib.metadata
import mmap
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from uuid import uuid4

import numpy as np

from embedcache.files import locked, sync_data, sync_folder, write_at

State = Literal["works", "missing", "broken"]

NEEDED: Final = ("torch", "transformers", "timm", "h5py", "numpy", "pyarrow", "pillow", "safetensors", "filelock")
USEFUL: Final = ("sentence-transformers", "tifffile", "ray")
NETWORK: Final = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "afs", "9p", "fuse")
"""How the names of network file systems begin."""
DRIVER: Final = Path("/proc/driver/nvidia/version")

_OTHER_PROCESS = """
import sys
from filelock import FileLock, Timeout
try:
    FileLock(sys.argv[1]).acquire(timeout=0)
except Timeout:
    print("held")
else:
    print("free")
"""


@dataclass(frozen=True)
class Check:
    """One thing that was tried. missing: there is a fallback; broken: something needed does not work.

    fallback: what happens, or what to do, where it does not work.
    """

    name: str
    state: State
    detail: str
    fallback: str = ""


def examine(cache: Path) -> list[Check]:
    """Try everything, in the cache's folder, or where it is not there yet in the nearest folder above it."""
    return [*versions(), torch_device(), *folder_checks(cache)]


def folder_checks(cache: Path) -> list[Check]:
    """What the file system can do, in a folder of its own that is removed afterwards."""
    folder = _nearest(cache)
    found = [file_system(folder)]
    try:
        with _scratch(folder) as scratch:
            return [*found, *(_tried(name, probe, scratch) for name, probe in PROBES.items())]
    except OSError as error:
        detail = f"{folder} cannot be written to: {error.strerror or error}"
        hint = "A cache that is there can be read and heads can be fitted; nothing can be extracted into it."
        return [*found, Check("writing", "broken", detail, hint)]


def _nearest(cache: Path) -> Path:
    """The folder itself, or the nearest one above that exists."""
    path = cache.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    path = folder / f".doctor-{uuid4().hex[:8]}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _tried(name: str, probe: Callable[[Path], Check], scratch: Path) -> Check:
    """Run a probe; an error that it did not foresee is a failure of what it probes."""
    try:
        return probe(scratch)
    except OSError as error:
        return Check(name, "broken", f"{error.strerror or error}", "Choose another folder with --cache.")


# ------------------------------------------------------------------------------------------- the cache's folder


def file_system(folder: Path) -> Check:
    """Its type, where the system says so, and the room that is left."""
    kind = _kind_of(folder)
    free = shutil.disk_usage(folder).free
    detail = f"{kind}, {free / 1e9:,.1f} GB free"
    if kind.startswith(NETWORK):
        return Check("file system", "works", f"{detail}, a network file system", "What follows says what it can do.")
    return Check("file system", "works", detail)


def _kind_of(folder: Path) -> str:
    """``ext4``, ``nfs``, …; ``unknown`` where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "unknown"
    here = str(folder.resolve())
    fitting = [(len(where), kind) for _, where, kind, *_ in mounts if f"{here}/".startswith(f"{where.rstrip('/')}/")]
    return max(fitting)[1] if fitting else "unknown"


def locking(scratch: Path) -> Check:
    """A second process must see that the first one holds a lock, and that it has let go."""
    path = scratch / "probe"
    command = [sys.executable, "-c", _OTHER_PROCESS, str(path.with_name(f".{path.name}.lock"))]

    def other() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]

    with locked(path, wait=False):
        held = other()
    free = other()
    if (held, free) == ("held", "free"):
        return Check("locking", "works", "a second process waits, and goes on when the first is done")
    detail = f"a second process found the lock {held!r} while it was held and {free!r} when it was not"
    return Check("locking", "broken", detail, "Do not let two processes write to this cache at the same time.")


def allocation(scratch: Path) -> Check:
    """Whether space can be reserved before it is written."""
    fallback = "Zeros are written first: slower, and a full disk is an error before any work all the same."
    if not hasattr(os, "posix_fallocate"):
        return Check("allocation", "missing", "this system has no posix_fallocate", fallback)
    with open(scratch / "allocation", "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return Check("allocation", "missing", "the file system cannot reserve space", fallback)
            raise
    return Check("allocation", "works", "space is reserved before it is written")


def mapping(scratch: Path) -> Check:
    """Whether a map sees what is written beside it, as a reader of an unfinished file must."""
    path = scratch / "mapping"
    path.write_bytes(bytes(mmap.PAGESIZE))
    mapped = np.memmap(path, np.uint8, "r")
    fd = os.open(path, os.O_RDWR)
    try:
        write_at(fd, b"seen", 100)
        sync_data(fd)
    finally:
        os.close(fd)
    if mapped[100:104].tobytes() != b"seen":
        hint = "Features may be read stale. Keep the cache on another file system."
        return Check("mapping", "broken", "a map does not see what was written", hint)
    return Check("mapping", "works", "a map sees what is written")


def renaming(scratch: Path) -> Check:
    """Whether a name is replaced in one step while a reader keeps what it mapped."""
    old, new = scratch / "old", scratch / "new"
    old.write_bytes(b"old" * 2000)
    new.write_bytes(b"new" * 2000)
    mapped = np.memmap(old, np.uint8, "r")
    os.replace(new, old)
    kept, replaced = mapped[:3].tobytes() == b"old", old.read_bytes()[:3] == b"new"
    if kept and replaced and not new.exists():
        return Check("renaming", "works", "a file is replaced in one step; readers keep what they mapped")
    detail = "a replaced file changes under its readers" if replaced else "a file was not replaced by renaming"
    return Check("renaming", "broken", detail, "Do not extract while others read, or use another file system.")


def syncing(scratch: Path) -> Check:
    """Whether files and folders can be synced: what a power loss must not take."""
    with open(scratch / "sync", "wb") as file:
        file.write(b"x")
        file.flush()
        sync_data(file.fileno())
        os.fsync(file.fileno())
    sync_folder(scratch)
    return Check("syncing", "works", "files and folders are synced")


PROBES: Final[dict[str, Callable[[Path], Check]]] = {
    "locking": locking,
    "allocation": allocation,
    "mapping": mapping,
    "renaming": renaming,
    "syncing": syncing,
}


# ----------------------------------------------------------------------------------------------------- the machine


def versions() -> list[Check]:
    """The libraries that are needed, and those that are good to have."""
    found = [Check("python", "works", platform.python_version())]
    for name in (*NEEDED, *USEFUL):
        try:
            found.append(Check(name, "works", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            needed = name in NEEDED
            found.append(
                Check(name, "broken" if needed else "missing", "not installed", f"To have it: pip install {name}")
            )
    return found


def torch_device() -> Check:
    """Whether torch can use the GPU that is there, if there is one."""
    try:
        import torch
    except ImportError as error:
        return Check("device", "broken", f"torch cannot be imported: {error}", "pip install torch")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
        return Check("device", "works", f"{torch.cuda.device_count()} GPU ({', '.join(sorted(names))})")
    if torch.backends.mps.is_available():
        return Check("device", "works", "Apple GPU (mps)")
    return _without_gpu(has_nvidia(), torch.version.cuda)


def has_nvidia() -> bool:
    """Whether an NVIDIA driver is there."""
    return DRIVER.exists() or shutil.which("nvidia-smi") is not None


def _without_gpu(nvidia: bool, built_for: str | None) -> Check:
    """Why torch uses no GPU. built_for: the CUDA version that torch was built with, None for a CPU-only build."""
    if not nvidia:
        return Check("device", "works", "CPU; there is no NVIDIA driver")
    if built_for is None:
        detail = "an NVIDIA driver is there, and torch is a CPU-only build: everything runs on the CPU"
        return Check("device", "missing", detail, "Install torch with CUDA: see pytorch.org/get-started/locally")
    detail = f"an NVIDIA driver is there, and torch (CUDA {built_for}) can use no GPU: everything runs on the CPU"
    return Check("device", "missing", detail, "See what nvidia-smi says: the driver may be older than this CUDA.")
