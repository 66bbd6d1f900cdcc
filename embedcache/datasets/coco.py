"""COCO (Lin et al., 2014; captions: Chen et al., 2015): photos with captions and the categories of their objects.

One sample per photo; its labels are the categories that occur in it, so that a head is a multi-label one. The same JSON
is used by many other sets: ``captions.json`` and ``instances.json`` without a split's name are read too.
Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, cast

import pyarrow as pa

from embedcache.datasets.base import is_image, stated_folder
from embedcache.errors import DataNotFoundError, UsageError
from embedcache.samples import SPLIT_NAMES, SampleTable, build, canonical_split

Kind: TypeAlias = Literal["captions", "instances", "image_info"]

ANNOTATIONS = "annotations"
MASKS = ("segmentation", "bbox", "keypoints")
"""What objects have that is not read: nine tenths of the largest file."""

_FILE = re.compile(r"(?P<kind>captions|instances|image_info)(_(?P<name>[a-z-]+)(?P<year>[0-9]{4})?)?\.json")
_KEYS = re.compile(rb'"(images|annotations|categories)"')
_SPLITS = {**SPLIT_NAMES, "test-dev": "test"}


@dataclass(frozen=True)
class Part:
    """The files of one split. name: ``train2017``; empty where files name no split. folder: of its images, if any."""

    name: str
    split: str | None
    files: Mapping[Kind, Path]
    folder: str | None


@dataclass(frozen=True)
class Coco:
    """Photos below ``images``, if there are any; annotations below ``root``.

    year: of the annotations, where they are of one. supercategories: label by ``animal`` in place of ``dog``, ``cat``.
    """

    root: Path
    images: Path | None = None
    year: str | None = None
    supercategories: bool = False

    adapter: ClassVar[str] = "coco"
    default_name: ClassVar[str] = "coco"

    @classmethod
    def open(
        cls, data: Path, images: str | None = None, year: int | str | None = None, supercategories: bool = False
    ) -> Coco:
        """The data set in or below ``data``. Annotations of several years: the latest, unless one is stated."""
        root = cls.find(data)
        if root is None:
            raise DataNotFoundError(
                f"No COCO annotations in {data} or its folders: captions_train2017.json, instances_train2017.json and "
                f"their like (or captions.json, instances.json) should lie there or in {ANNOTATIONS}/."
            )
        if not isinstance(supercategories, bool):
            raise UsageError(f"The option supercategories is true or false, got {supercategories!r}.")
        years = _years(root)
        if year is not None and str(year) not in years:
            raise UsageError(f"There are no annotations of {year} in {root}; there are: {', '.join(years) or 'none'}.")
        chosen = str(year) if year is not None else max(years, default=None)
        return cls(root, stated_folder(images) or _find_images(root, chosen), chosen, supercategories)

    @classmethod
    def find(cls, data: Path) -> Path | None:
        """The folder of the annotations, or that of ``annotations/``: ``data`` or one of its children."""
        children = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
        return next((folder for folder in (data, *children) if any(_annotated(folder))), None)

    @property
    def image_folder(self) -> Path:
        """The folder of ``train2017/`` and so on, or of the images themselves."""
        return self.images or self.root

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folder that holds annotations and, as a rule, images."""
        return (self.root,)

    @property
    def claims(self) -> tuple[Path, ...]:
        """Folders that are this data set's, not labelled images of their own."""
        if self.images is None:
            return ()
        return tuple(self.images / part.folder for part in self.parts() if part.folder is not None)

    def settings(self) -> dict[str, Any]:
        """Where the images are, which year is read, and what labels are."""
        images = str(self.images) if self.images else None
        return {"images": images, "year": self.year, "supercategories": self.supercategories}

    def parts(self) -> list[Part]:
        """The splits that have captions or instances, and a test set that has a list of images; training first."""
        found: dict[str, dict[Kind, Path]] = {}
        for match, path in _chosen(self.root, self.year):
            found.setdefault(_split_name(match), {})[cast(Kind, match["kind"])] = path
        if "image_info" in found.get(f"test{self.year or ''}", {}):
            found.pop(f"test-dev{self.year or ''}", None)  # its images are among those of the whole test set
        names = sorted(found, key=lambda name: (list(_SPLITS).index(_stem(name)) if name else -1, name))
        return [
            Part(
                name,
                canonical_split(_SPLITS[_stem(name)]) if name else None,
                found[name],
                _image_folder_of(self.images, name) if self.images else None,
            )
            for name in names
        ]

    def read(self) -> SampleTable:
        """One sample per photo, in the order of the files. Raises UsageError with what is wrong in which of them."""
        counts: Counter[str] = Counter()
        rows = [row for part in self.parts() for row in self._rows(part, counts)]
        if not rows:
            raise DataNotFoundError(f"The COCO annotations in {self.root} list no images.")
        unique = len({row.image for row in rows}) == len(rows)
        labels = [row.labels for row in rows]
        return build(
            [row.image if unique or not row.part.name else f"{row.part.name}:{row.image}" for row in rows],
            split=[row.part.split for row in rows],
            images=[row.path for row in rows] if self.images else None,
            texts=[row.captions for row in rows] if any("captions" in row.part.files for row in rows) else None,
            targets={"labels": pa.array(labels, pa.list_(pa.string()))}
            if any(one is not None for one in labels)
            else None,
            notes=[*self._where(), *(f"{n} {what}" for what, n in counts.items() if n)],
        )

    def _rows(self, part: Part, counts: Counter[str]) -> Iterator[_Row]:
        documents = {kind: _Document.load(path) for kind, path in part.files.items()}
        images: dict[str, str] = {}
        for document in documents.values():
            images |= document.images()
        captions = documents["captions"].captions(images, counts) if "captions" in documents else {}
        found = documents["instances"].labels(images, self.supercategories, counts) if "instances" in documents else {}
        counts["images without captions"] += len(images.keys() - captions.keys()) if "captions" in documents else 0
        for image, name in images.items():
            path = None if part.folder is None else f"{part.folder}/{name}" if part.folder else name
            labels = sorted(found.get(image, ())) if "instances" in documents else None
            yield _Row(part, image, path, captions.get(image, []), labels)

    def _where(self) -> Iterator[str]:
        """What is lacking, or was not chosen."""
        if self.images is None:
            yield f"no images: there are none beside the annotations in {self.root.name} (--images says where they are)"
        else:
            lacking = [part.name for part in self.parts() if part.folder is None]
            if lacking:
                yield f"no images of {', '.join(lacking)}: no folder of that name is in {self.images}"
        if others := [year for year in _years(self.root) if year != self.year]:
            yield f"annotations of {', '.join(others)} are there too, and not read (--option year={others[-1]})"
        read = [path for part in self.parts() for path in part.files.values()]
        if unread := [path.name for match, path in _annotated(self.root) if not match["year"] and path not in read]:
            yield f"{', '.join(unread)} not read: other files name their splits"


@dataclass(frozen=True)
class _Row:
    part: Part
    image: str
    path: str | None
    captions: list[str]
    labels: list[str] | None


@dataclass(frozen=True)
class _Document:
    """One parsed file; every access checks what it takes."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> _Document:
        """Parse one file; outlines of objects are let go as soon as they are read."""
        try:
            content = json.loads(path.read_bytes(), object_hook=_without_masks)
        except (ValueError, RecursionError, OSError) as error:
            raise UsageError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
        if not isinstance(content, dict):
            raise UsageError(f"{path}: expected one JSON object with images and annotations.")
        return cls(path, content)

    def images(self) -> dict[str, str]:
        """File names by image id, in file order."""
        found: dict[str, str] = {}
        for number, image in self._entries("images"):
            key = self._id(image, "id", f"image {number}")
            name = image.get("file_name")
            if not isinstance(name, str) or not name.strip() or "\0" in name:
                raise self._wrong(f"image {key} has no file_name")
            if found.setdefault(key, _text(name)) != _text(name):
                raise self._wrong(f"two images have the id {key}")
        return found

    def captions(self, images: Mapping[str, str], counts: Counter[str]) -> dict[str, list[str]]:
        """Captions by image id, in order of annotation id; without spaces around them."""
        found: dict[str, list[str]] = {}
        annotations = [annotation for _, annotation in self._entries("annotations")]
        for annotation in sorted(annotations, key=_number):
            key = self._id(annotation, "image_id", "an annotation")
            caption = annotation.get("caption")
            if not isinstance(caption, str):
                raise self._wrong(f"an annotation of image {key} has no caption")
            if not caption.strip():
                counts["empty captions, left out"] += 1
            elif key in images:
                found.setdefault(key, []).append(_text(caption.strip()))
            else:
                counts["captions of images that are not listed"] += 1
        return found

    def labels(self, images: Mapping[str, str], above: bool, counts: Counter[str]) -> dict[str, set[str]]:
        """Names of the categories in each image; above: of their supercategories. Crowds count as objects do."""
        names = self._categories("supercategory" if above else "name")
        found: dict[str, set[str]] = {}
        for _, annotation in self._entries("annotations"):
            key = self._id(annotation, "image_id", "an annotation")
            name = names.get(self._id(annotation, "category_id", f"an annotation of image {key}"))
            if name is None:
                counts["objects of a category that is not listed"] += 1
            elif key not in images:
                counts["objects in images that are not listed"] += 1
            else:
                found.setdefault(key, set()).add(name)
        return found

    def _categories(self, word: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for number, category in self._entries("categories"):
            key, name = self._id(category, "id", f"category {number}"), category.get(word)
            if not isinstance(name, str) or not name:
                raise self._wrong(f"category {key} has no {word}")
            found[key] = _text(name)
        return found

    def _entries(self, key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        entries = self.content.get(key)
        if not isinstance(entries, list):
            raise self._wrong(f"there is no list of {key}")
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, dict):
                raise self._wrong(f"entry {number} of {key} is no object")
            yield number, entry

    def _id(self, entry: Mapping[str, Any], key: str, what: str) -> str:
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self._wrong(f"{what} has no {key}")
        return _text(str(value))

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"{self.path} is not as COCO's: {what}.")


def _without_masks(entry: dict[str, Any]) -> dict[str, Any]:
    for key in MASKS:
        entry.pop(key, None)
    return entry


def _number(annotation: Mapping[str, Any]) -> int:
    found = annotation.get("id")
    return found if isinstance(found, int) else 0


def _text(text: str) -> str:
    """The text; halves of surrogate pairs, which JSON can hold and UTF-8 cannot, become replacement characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _files(root: Path) -> Iterator[tuple[re.Match[str], Path]]:
    """The files of a folder, and of ``annotations/`` in it, that are COCO's by name and first words."""
    for folder in (root, root / ANNOTATIONS):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = _FILE.fullmatch(path.name)
            if match and (match["name"] is None or match["name"] in _SPLITS) and _looks_right(path):
                yield match, path


def _looks_right(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        begin = file.read(1 << 14)
    return begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _KEYS.search(begin) is not None


def _annotated(root: Path) -> Iterator[tuple[re.Match[str], Path]]:
    """Files with captions or instances: a list of images alone is no data set."""
    return (pair for pair in _files(root) if pair[0]["kind"] != "image_info")


def _chosen(root: Path, year: str | None) -> list[tuple[re.Match[str], Path]]:
    """The files of one year; those that name no split where none does."""
    found = [(match, path) for match, path in _files(root) if match["year"] == year]
    return [pair for pair in found if pair[0]["name"]] or found


def _years(root: Path) -> list[str]:
    return sorted({match["year"] for match, _ in _annotated(root) if match["year"]})


def _split_name(match: re.Match[str]) -> str:
    """``train2017``; empty where a file names none."""
    return f"{match['name'] or ''}{match['year'] or ''}"


def _stem(name: str) -> str:
    """``train2017`` without its year."""
    return name.rstrip("0123456789")


def _find_images(root: Path, year: str | None) -> Path | None:
    """``images/`` or the folder itself: the first that has images of a split."""
    names = {_split_name(match) for match, _ in _chosen(root, year)}
    for folder in (root / "images", root, *([root.parent] if root.name == ANNOTATIONS else [])):
        if folder.is_dir() and any(_image_folder_of(folder, name) is not None for name in names):
            return folder
    return None


def _image_folder_of(images: Path, name: str) -> str | None:
    """Where the images of a split lie below ``images``: in a folder of its name, or in ``images`` itself."""
    for folder in (name, name.replace("test-dev", "test"), _stem(name)):
        if folder and (images / folder).is_dir():
            return folder
    holds = images.is_dir() and any(is_image(path.name) for path in images.iterdir())
    return "" if holds else None
