"""What an adapter is, and how items are read from a data folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcache.errors import DataNotFoundError, ItemError, UsageError
from embedcache.samples import SampleTable

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2",
    ".avif",
})  # fmt: skip
MAX_IMAGE_BYTES = 512 << 20


class Dataset(Protocol):
    """A data set on disk. An adapter is a frozen dataclass whose fields are its settings.

    adapter: its name in the table. root: the folder that image ids are relative to.
    """

    adapter: ClassVar[str]

    @property
    def default_name(self) -> str:
        """The data set's name in the cache where none is given."""

    @property
    def image_folder(self) -> Path:
        """Image items are paths below this folder."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files or folders that were given; for the record."""

    def settings(self) -> dict[str, Any]:
        """What decides how it is read, as JSON: remembered beside the sample table."""

    def read(self) -> SampleTable:
        """Read samples and items; opens no image."""


@runtime_checkable
class LongDataset(Protocol):
    """A data set whose reading takes so long that people want to see how far it is."""

    def read_with_progress(self) -> SampleTable:
        """What ``read`` gives, with a bar on stderr."""


@dataclass(frozen=True, eq=False)
class PublishedTokens:
    """Word ids that a data set was published with, for the texts of a sample table.

    vocabulary: the word of each id; an id below the largest that has no word is called ``<unused 17>``. tokens: int32,
    flat; those of row ``i`` of ``table.items["text"]`` are ``tokens[offsets[i]:offsets[i + 1]]``; offsets: int64,
    (n_text_items + 1,). notes: what a reader should know, with counts.
    """

    vocabulary: pa.LargeStringArray
    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    notes: tuple[str, ...] = ()


def published_tokens(dataset: Dataset, table: SampleTable) -> PublishedTokens | None:
    """A data set's own word ids; None where its adapter has none."""
    own = getattr(dataset, "published_tokens", None)
    found: PublishedTokens | None = own(table) if own is not None else None
    return found


class ImageSource(Protocol):
    """Where image items are read. An adapter whose images are no files has a method ``image_source`` that gives one."""

    def read(self, item: str) -> bytes:
        """The item's bytes. Raises ItemError with a reason."""

    def stat(self, item: str) -> tuple[int, int]:
        """Size in bytes and time in nanoseconds of the file that holds the item: another pair, perhaps other bytes.

        Raises OSError or ValueError where there is none.
        """


@dataclass(frozen=True)
class ImageFiles:
    """Images that are files below ``folder``."""

    folder: Path

    def read(self, item: str) -> bytes:
        """The file's bytes."""
        return read_image(self.folder, item)

    def stat(self, item: str) -> tuple[int, int]:
        """The file's own size and time."""
        found = os.stat(os.path.join(self.folder, item))
        return found.st_size, found.st_mtime_ns


def image_source(dataset: Dataset) -> ImageSource:
    """How a data set's images are read: as it says itself, else as files below its image folder."""
    own = getattr(dataset, "image_source", None)
    found: ImageSource = own() if own is not None else ImageFiles(dataset.image_folder)
    return found


def read_image(folder: Path, item: str) -> bytes:
    """The bytes of an image item. Raises ItemError with a reason, also for a path that leaves the folder."""
    relative = PurePosixPath(item)
    if relative.is_absolute() or ".." in relative.parts or "\0" in item:
        raise ItemError("its path leaves the data folder")
    path = folder / relative
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_IMAGE_BYTES:
                raise ItemError(f"the file has {size:,} bytes; more than {MAX_IMAGE_BYTES:,} are not read")
            return file.read()
    except FileNotFoundError as error:
        raise ItemError("the file is missing") from error
    except OSError as error:
        raise ItemError(f"the file cannot be read: {error.strerror}") from error


def stated_folder(path: str | None) -> Path | None:
    """A folder of images that was stated, if one was. Raises DataNotFoundError where it is not there."""
    if path is None:
        return None
    if not Path(path).is_dir():
        raise DataNotFoundError(f"There is no folder of images {path} (--images).")
    return Path(path)


def is_image(name: str) -> bool:
    """Whether a file's name has an image's ending and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def walk_images(folder: Path) -> list[str]:
    """Paths of all images below ``folder``, relative, with forward slashes, sorted.

    Raises UsageError for a name that is not UTF-8, which no table can hold.
    """
    found: list[str] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_loop(parent, name))
        relative = Path(parent).relative_to(folder).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        found += [prefix + name for name in files if is_image(name)]
    _refuse_undecodable(found, folder)
    return sorted(found)


def _refuse_undecodable(paths: list[str], folder: Path) -> None:
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The name of an image below {folder} is not UTF-8: {os.fsencode(path)!r}. Rename it."
            ) from error


def _is_loop(parent: str, name: str) -> bool:
    """Whether a folder is a link to one that holds it."""
    path = Path(parent, name)
    return path.is_symlink() and Path(parent).resolve().is_relative_to(path.resolve())


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered non-empty lines of a text file; bytes that are not UTF-8 become replacement characters."""
    if not path.is_file():
        raise DataNotFoundError(f"There is no file {path}.")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
