"""A data set's folder in the cache: its record, its tables, its feature files.

``cache/<name>/dataset.json`` says how the data set was read, so that later commands need its name alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcache import samples as tables
from embedcache.errors import DamagedFileError, UsageError
from embedcache.files import write_json
from embedcache.provenance import Modality
from embedcache.samples import SampleTable
from embedcache.store import PARTIAL_SUFFIX

RECORD = "dataset.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class DatasetRecord:
    """What ``dataset.json`` holds.

    sources: where it was read, as given; a hint for reading again, never part of what the data set is.
    """

    name: str
    adapter: str
    settings: Mapping[str, Any]
    sources: tuple[str, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    read: str

    @classmethod
    def load(cls, path: Path) -> DatasetRecord:
        """Parse ``dataset.json``. Raises DamagedFileError where it is not one."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            document["sources"], document["notes"] = tuple(document["sources"]), tuple(document["notes"])
            return cls(**document)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class DatasetFolder:
    """``cache/<name>``."""

    cache: Path
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot name a data set: use letters, digits, '_', '-' and '.', a letter or digit first."
            )

    @property
    def path(self) -> Path:
        """The folder."""
        return self.cache / self.name

    @property
    def exists(self) -> bool:
        """Whether a data set of that name has been read into this cache."""
        return (self.path / RECORD).is_file()

    def record(self) -> DatasetRecord:
        """How it was read."""
        return DatasetRecord.load(self.path / RECORD)

    def table(self) -> SampleTable:
        """Its samples and items, as saved."""
        return tables.load(self.path, self.record().notes)

    def save(self, record: DatasetRecord, table: SampleTable) -> None:
        """Write tables and record; the record last, so that it never promises tables that are not there."""
        tables.save(table, self.path)
        write_json(self.path / RECORD, asdict(record))

    def feature_paths(self, modality: Modality | None = None) -> list[Path]:
        """Sealed feature files, sorted by name."""
        return _plain_files(self.path.glob(f"{modality or '*'}.*.h5"))

    def partial_paths(self, modality: Modality | None = None) -> list[Path]:
        """Feature files that are not sealed."""
        return _plain_files(self.path.glob(f"{modality or '*'}.*.h5{PARTIAL_SUFFIX}"))

    def feature_path(self, modality: Modality, slug: str, fingerprint: str) -> Path:
        """Where a feature file stands; the name is for people and never parsed."""
        return self.path / f"{modality}.{slug}.{fingerprint}.h5"


def dataset_folders(cache: Path) -> Iterator[DatasetFolder]:
    """The data sets of a cache, sorted by name."""
    for record in sorted(cache.glob(f"*/{RECORD}")):
        if _NAME.fullmatch(record.parent.name):
            yield DatasetFolder(cache, record.parent.name)


def _plain_files(paths: Iterable[Path]) -> list[Path]:
    """Sorted; hidden names (files in the making) and what is no file (a pipe would be waited for) left out."""
    return sorted(path for path in paths if not path.name.startswith(".") and path.is_file())
