"""CUB-200-2011 (Wah et al., 2011) with the ten captions per image of Reed et al. (CVPR 2016).

The index files are what counts: copies of the set hold stray images and lack some that are listed.
Captions unpack beside the images' folder as ``text_c10/<class>/<image>.txt``, one caption a line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from embedcache.datasets.base import read_lines
from embedcache.errors import DataNotFoundError, UsageError
from embedcache.samples import SampleTable, build

INDEX_FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
CAPTIONS_FOLDER = "text_c10"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Cub:
    """The published layout. root: the folder of ``images.txt``. captions: of ``text_c10``, if any."""

    root: Path
    captions: Path | None = None

    adapter: ClassVar[str] = "cub"
    default_name: ClassVar[str] = "cub"

    @classmethod
    def open(cls, data: Path, captions: str | None = None) -> Cub:
        """The data set in or below ``data``. Captions are looked for there unless a folder is given."""
        root = cls.find(data)
        if root is None:
            raise DataNotFoundError(
                f"No CUB-200-2011 in {data} or its folders: {', '.join(INDEX_FILES)} should lie beside images/."
            )
        stems = [os.path.splitext(path)[0] for path in _index(root / "images.txt").values()]
        if captions is None:
            return cls(root, _find_captions([root, root.parent, data], stems))
        given = Path(captions)
        folder = given if _holds_captions(given, stems) else _find_captions([given], stems)
        if folder is None:
            raise DataNotFoundError(f"No captions in {captions}: expected <class>/<image>.txt below it, as in images/.")
        return cls(root, folder)

    @classmethod
    def find(cls, data: Path) -> Path | None:
        """The folder of ``images.txt``: ``data`` or one of its children."""
        children = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
        for folder in (data, *children):
            if all((folder / name).is_file() for name in INDEX_FILES[:3]):
                return folder
        return None

    @property
    def image_folder(self) -> Path:
        """``images/``."""
        return self.root / "images"

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folder of the index."""
        return (self.root,)

    @property
    def claims(self) -> tuple[Path, ...]:
        """Folders that are this data set's, not labelled images of their own."""
        beside = (self.root.parent / "segmentations", self.root / "segmentations")
        return (self.root, *beside, *([self.captions] if self.captions else []))

    def settings(self) -> dict[str, Any]:
        """Where the captions are, if there are any."""
        return {"captions": str(self.captions) if self.captions else None}

    def read(self) -> SampleTable:
        """All images of the index: label, published split, captions."""
        paths = _index(self.root / "images.txt")
        labels = _index(self.root / "image_class_labels.txt")
        train = _index(self.root / "train_test_split.txt")
        names = _index(self.root / "classes.txt") if (self.root / "classes.txt").is_file() else {}
        _refuse_gaps(paths, labels, self.root / "image_class_labels.txt")
        _refuse_gaps(paths, train, self.root / "train_test_split.txt")
        if odd := [key for key in paths if train[key] not in ("0", "1")]:
            raise UsageError(
                f"{self.root / 'train_test_split.txt'}: expected 1 (train) or 0 (test) for image {odd[0]}, "
                f"got {train[odd[0]]!r}."
            )
        captions = [self._captions(path) for path in paths.values()] if self.captions else None
        return build(
            list(paths),
            split=["train" if train[key] == "1" else "test" for key in paths],
            images=list(paths.values()),
            texts=captions,
            targets={"label": [names.get(labels[key], labels[key]) for key in paths]},
            notes=_notes(captions),
        )

    def _captions(self, image: str) -> list[str]:
        """The captions of an image by its path below ``images/``; none where there is no file."""
        path = self.captions / f"{os.path.splitext(image)[0]}.txt" if self.captions else None
        if path is None or not path.is_file():
            return []
        return [line.strip() for _, line in read_lines(path)]


def _notes(captions: list[list[str]] | None) -> list[str]:
    if captions is None:
        return [f"no captions: no folder {CAPTIONS_FOLDER} was found (--captions PATH says where it is)"]
    lacking = sum(not texts for texts in captions)
    damaged = sum(REPLACEMENT in text for texts in captions for text in texts)
    notes = [f"{lacking} images without captions"] if lacking else []
    return notes + ([f"{damaged} captions hold replacement characters"] if damaged else [])


def _index(path: Path) -> dict[str, str]:
    """Lines of ``key value`` as a mapping, in file order. Raises UsageError with the line that is not one."""
    found: dict[str, str] = {}
    for number, line in read_lines(path):
        key, _, value = line.strip().partition(" ")
        if not value or key in found:
            raise UsageError(f"{path}, line {number}: expected a new 'id value', got {line!r}.")
        found[key] = value.strip()
    return found


def _refuse_gaps(paths: dict[str, str], other: dict[str, str], file: Path) -> None:
    if missing := [key for key in paths if key not in other]:
        raise UsageError(f"{file} lacks {len(missing)} images that images.txt lists (first: {missing[0]}).")


def _find_captions(folders: Iterable[Path], stems: Sequence[str]) -> Path | None:
    """The first ``text_c10`` in one of the folders or in a child of one, that has a file for some image."""
    for folder in folders:
        children = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        for candidate in (folder / CAPTIONS_FOLDER, *(child / CAPTIONS_FOLDER for child in children)):
            if _holds_captions(candidate, stems):
                return candidate
    return None


def _holds_captions(folder: Path, stems: Sequence[str]) -> bool:
    return folder.is_dir() and any((folder / f"{stem}.txt").is_file() for stem in stems)
