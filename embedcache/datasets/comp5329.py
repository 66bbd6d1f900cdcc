"""The multi-label set of COMP5329 (University of Sydney): photos with a caption and some of 18 numbered labels.

``train.csv`` and ``test.csv`` look like CSV and are not quite: quotes inside captions are not escaped, and copies are
about with DOS line ends, an empty fourth column, or line breaks inside captions. So they are read by what is certain
here: a row begins with the name of an image, the last thing in it is its caption. ``docs/datasets/comp5329.md`` has
the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from embedcache.datasets.base import is_image, stated_folder
from embedcache.errors import DataNotFoundError, UsageError
from embedcache.samples import SampleTable, build

FILES = {"train.csv": "train", "test.csv": "test"}
LABELS = frozenset(map(str, range(1, 20))) - {"12"}
"""The published labels: 18 numbers."""

IMAGE_FOLDERS = ("data", "images")
NAMED_LINES = 20
"""Lines that a note names for one reason; the others are counted."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_HEADER = re.compile(r'"?ImageID"?,(?P<labels>"?Labels"?,)?"?Caption"?[\s,]*')
_NAME = r'"?(?P<id>[^",\s]+\.(?:jpe?g|png))"?[ \t]*,'
_ROW = {
    True: re.compile(_NAME + r'[ \t]*"?(?P<labels>[0-9 \t]*)"?[ \t]*,(?P<caption>.*)', re.I | re.S),
    False: re.compile(_NAME + r"(?P<labels>)(?P<caption>.*)", re.I | re.S),
}
"""A line that begins a row, by whether the file has labels."""
_NAMED = re.compile(_NAME, re.I)
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Comp5329:
    """The published layout. root: the folder of ``train.csv`` and ``test.csv``. images: of the photos, if any."""

    root: Path
    images: Path | None = None

    adapter: ClassVar[str] = "comp5329"
    default_name: ClassVar[str] = "comp5329"

    @classmethod
    def open(cls, data: Path, images: str | None = None) -> Comp5329:
        """The data set in or below ``data``. Photos are looked for beside the files unless a folder is given."""
        root = cls.find(data)
        if root is None:
            raise DataNotFoundError(
                f"No COMP5329 data set in {data} or its folders: {' or '.join(FILES)} should lie there, with the "
                "header ImageID,Labels,Caption (ImageID,Caption in the test file)."
            )
        return cls(root, stated_folder(images) or _find_images(root))

    @classmethod
    def find(cls, data: Path) -> Path | None:
        """The folder of the files, by their headers: ``data`` or one of its children."""
        children = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
        return next((folder for folder in (data, *children) if any(_tables(folder))), None)

    @property
    def image_folder(self) -> Path:
        """``data/`` or ``images/``; the files' own folder where there are no photos."""
        return self.images or self.root

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folder of the files."""
        return (self.root,)

    @property
    def claims(self) -> tuple[Path, ...]:
        """Folders that are this data set's, not labelled images of their own."""
        return (self.image_folder,)

    def settings(self) -> dict[str, Any]:
        """Where the photos are, if there are any."""
        return {"images": str(self.images) if self.images else None}

    def read(self) -> SampleTable:
        """One sample per row, in file order, training rows first; a test row's labels are null.

        Raises UsageError where a file has no row that is certain.
        """
        seen: set[str] = set()
        parsed = [(FILES[path.name], parse(path, seen)) for path in _tables(self.root)]
        rows = [(split, row) for split, one in parsed for row in one.rows]
        ids = [row.image for _, row in rows]
        labels = pa.array([row.labels for _, row in rows], pa.list_(pa.string()))
        texts = [[row.caption] if row.caption else [] for _, row in rows]
        return build(
            ids,
            split=[split for split, _ in rows],
            images=ids if self.images else None,
            texts=texts,
            targets={"labels": labels} if labels.null_count < len(labels) else None,
            notes=[*(note for _, one in parsed for note in one.notes()), *_notes(self, rows)],
        )


@dataclass(frozen=True)
class Row:
    """One row. line: where it begins. labels: in numeric order; None where there are none. caption: None if unsure."""

    line: int
    image: str
    labels: list[str] | None
    caption: str | None


@dataclass(frozen=True)
class Parsed:
    """What is certain of a file, and by reason the numbers of the lines that are not."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    doubts: dict[str, list[int]] = field(default_factory=dict)

    def doubt(self, reason: str, *lines: int) -> None:
        """Keep lines that are not certain."""
        self.doubts.setdefault(reason, []).extend(lines)

    def notes(self) -> list[str]:
        """A sentence per reason, with the lines."""
        return [f"{self.path.name}: {reason}: {_named(lines)}" for reason, lines in self.doubts.items()]


def parse(path: Path, seen: set[str] | None = None) -> Parsed:
    """Rows of one file. seen: images that other files have; those of this one are added.

    Raises UsageError where nothing is certain.
    """
    seen = set() if seen is None else seen
    lines = _lines(path)
    header = _HEADER.fullmatch(lines[0][1]) if lines else None
    if header is None:
        raise UsageError(f"{path}: expected the header ImageID,Labels,Caption or ImageID,Caption.")
    parsed, found = Parsed(path), list[_Found]()
    current: _Found | None = None
    for number, line in lines[1:]:
        begun = _ROW[header["labels"] is not None].fullmatch(line)
        if begun is None and _NAMED.match(line) is None:
            if current is None:
                parsed.doubt("lines that belong to no row, left out", number)
            else:
                current.more.append((number, line))
            continue
        reason = _why_not(begun, seen)
        current = None
        if begun is None or reason:
            parsed.doubt(reason, number)
            continue
        seen.add(begun["id"])
        current = _Found(number, begun["id"], begun["labels"].split(), begun["caption"])
        found.append(current)
    parsed.rows.extend(Row(one.line, one.image, _sorted(one.labels), _caption(one, parsed)) for one in found)
    if not parsed.rows:
        raise UsageError(f"{path}: not one row is certain. {'; '.join(parsed.notes()) or 'It has only a header.'}")
    return parsed


@dataclass(frozen=True)
class _Found:
    """A row as it stands in the file: its first line, and lines after it that begin no row."""

    line: int
    image: str
    labels: list[str]
    first: str
    more: list[tuple[int, str]] = field(default_factory=list)


def _why_not(begun: re.Match[str] | None, seen: set[str]) -> str:
    """Why a line that begins with an image's name is no certain row; empty where it is one."""
    if begun is None or not LABELS.issuperset(begun["labels"].split()):
        return "rows whose labels are not numbers of 1 to 19 without 12, left out"
    return "rows of an image that another row has, left out" if begun["id"] in seen else ""


def _sorted(labels: Iterable[str]) -> list[str] | None:
    return sorted(set(labels), key=int) or None


def _caption(found: _Found, parsed: Parsed) -> str | None:
    """The caption of a row: all that follows the labels, less the quotes around it and an empty fourth column."""
    first = _without_stray_column(found.first)
    more = [number for number, _ in found.more]
    if more and _is_wrapped(first) and first.count('"') % 2 == 0:
        parsed.doubt("lines after a caption that is whole, left out", *more)
        return _unwrapped(first)
    whole = _without_stray_column("\n".join([found.first, *(line for _, line in found.more)]))
    if _is_wrapped(whole):
        return _unwrapped(whole)
    if whole.startswith('"') and (whole.count('"') % 2 or '",' in whole):
        parsed.doubt("rows whose caption does not end where its quotes do, read without caption", found.line)
        return None
    return whole.strip()


def _without_stray_column(text: str) -> str:
    """A caption that ends in a comma would stand in quotes: what is here is an empty column."""
    return text.strip().rstrip(", \t\n")


def _is_wrapped(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def _unwrapped(text: str) -> str:
    """The text between the outer quotes; inner ones are as published (unescaped), or all doubled (as CSV has it)."""
    inner = text[1:-1]
    return (inner if '"' in inner.replace('""', "") else inner.replace('""', '"')).strip()


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not blank. Only line ends count: a caption may hold other separators of Unicode."""
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    return [(number, line) for number, line in enumerate(_LINE_END.split(text), 1) if line.strip()]


def _tables(folder: Path) -> list[Path]:
    """The files of a folder that have the header, training first."""
    return [folder / name for name in FILES if _has_header(folder / name)]


def _has_header(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        first = _LINE_END.split(file.read(256).decode("utf-8-sig", errors="replace"))[0]
    return _HEADER.fullmatch(first) is not None


def _find_images(root: Path) -> Path | None:
    for name in IMAGE_FOLDERS:
        if (root / name).is_dir():
            return root / name
    return root if any(is_image(path.name) for path in root.iterdir()) else None


def _notes(found: Comp5329, rows: Sequence[tuple[str, Row]]) -> list[str]:
    """Counts of what is not as published."""
    others = [name for name in FILES if (found.root / name).is_file() and not _has_header(found.root / name)]
    notes = [f"{name} is not read: its header is not this data set's" for name in others]
    if found.images is None:
        where = " or ".join(f"{name}/" for name in IMAGE_FOLDERS)
        notes.append(f"no images: there is no folder {where} beside the files (--images says where they are)")
    for n, what in (
        (sum(row.labels is None for split, row in rows if split == "train"), "training rows without labels"),
        (sum(row.caption == "" for _, row in rows), "rows without a caption"),
        (sum(REPLACEMENT in (row.caption or "") for _, row in rows), "captions hold replacement characters"),
    ):
        if n:
            notes.append(f"{n} {what}")
    return notes


def _named(lines: Sequence[int]) -> str:
    """``2 (lines 17, 19)``."""
    shown = ", ".join(map(str, sorted(lines)[:NAMED_LINES]))
    rest = f" and {len(lines) - NAMED_LINES} more" if len(lines) > NAMED_LINES else ""
    return f"{len(lines)} (line{'s' if len(lines) > 1 else ''} {shown}{rest})"
