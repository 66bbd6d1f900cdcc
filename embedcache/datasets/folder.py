"""A folder of images: flat, ``class/image`` or ``split/class/image``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from embedcache.datasets.base import is_image, walk_images
from embedcache.errors import DataNotFoundError, UsageError
from embedcache.samples import SPLIT_NAMES, SampleTable, build, canonical_split


@dataclass(frozen=True)
class Folder:
    """Images below ``root``.

    label: ``parent`` (the folder that holds the image), ``none``, or a regular expression whose first group
    is the label; None is ``parent`` where images lie in folders. group: a regular expression whose first
    group names what an image belongs to (a patient, a slide). Both are searched in the path below ``root``.
    """

    root: Path
    label: str | None = None
    group: str | None = None

    adapter: ClassVar[str] = "folder"

    @classmethod
    def open(cls, data: Path, label: str | None = None, group: str | None = None) -> Folder:
        """Images in or below ``data``."""
        if not data.is_dir():
            raise DataNotFoundError(f"There is no folder {data}.")
        for name, pattern in (("label", label), ("group", group)):
            if pattern not in (None, "none", "parent"):
                _compiled(str(pattern), name)
        return cls(data, label, group)

    @classmethod
    def find(cls, data: Path) -> list[Path]:
        """Folders below ``data`` that hold labelled images: ``class/image`` or ``split/class/image``."""
        children = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
        return [child for child in children if not child.name.startswith(".") and _has_classes(child)]

    @property
    def default_name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name

    @property
    def image_folder(self) -> Path:
        """The folder itself."""
        return self.root

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folder."""
        return (self.root,)

    def settings(self) -> dict[str, Any]:
        """How labels and groups are read."""
        return {"label": self.label, "group": self.group}

    def read(self) -> SampleTable:
        """One sample per image; its id is its path."""
        paths = walk_images(self.root)
        if not paths:
            raise DataNotFoundError(f"The folder {self.root} holds no images.")
        split = _splits(paths)
        labels = self._labels(paths, published=split is not None)
        return build(
            paths,
            split=split,
            images=paths,
            targets={"label": labels} if labels is not None else None,
            group=_matches(paths, self.group, "group") if self.group else None,
        )

    def _labels(self, paths: Sequence[str], *, published: bool) -> list[str | None] | None:
        depth = 2 if published else 1
        nested = any(path.count("/") >= depth for path in paths)
        if self.label == "none" or (self.label is None and not nested):
            return None
        if self.label in (None, "parent"):
            return [PurePosixPath(path).parent.name if path.count("/") >= depth else None for path in paths]
        return _matches(paths, str(self.label), "label")


def _has_classes(folder: Path) -> bool:
    """Whether two or more subfolders hold images, directly or below folders named as splits."""
    children = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    splits = [child for child in children if child.name.lower() in SPLIT_NAMES]
    classes = [path for split in splits for path in sorted(split.iterdir()) if path.is_dir()] if splits else children
    holding = {path.name for path in classes if any(is_image(entry.name) for entry in path.iterdir())}
    return len(holding) >= 2


def _splits(paths: Sequence[str]) -> list[str | None] | None:
    """The splits of images whose first folder names one; None where not every first folder does."""
    first = [path.split("/", 1)[0].lower() if "/" in path else "" for path in paths]
    return [canonical_split(name) for name in first] if all(name in SPLIT_NAMES for name in first) else None


def _compiled(pattern: str, option: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--{option} {pattern!r} is no regular expression: {error}.") from error
    if compiled.groups < 1:
        raise UsageError(f"--{option} {pattern!r} needs a group in parentheses that holds the {option}.")
    return compiled


def _matches(paths: Sequence[str], pattern: str, option: str) -> list[str | None]:
    compiled = _compiled(pattern, option)
    found = [match.group(1) if (match := compiled.search(path)) else None for path in paths]
    if not any(value is not None for value in found):
        raise UsageError(f"--{option} {pattern!r} matches none of {len(paths)} paths (first: {paths[0]!r}).")
    return found
