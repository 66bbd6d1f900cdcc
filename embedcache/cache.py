"""Open a cache: what is in it, features of it, whether it is whole. The notebook's door.

>>> import embedcache as ec                              # doctest: +SKIP
>>> cache = ec.open("cache")                             # doctest: +SKIP
>>> X, y = cache["cub"].features("vit-large").split("train")  # doctest: +SKIP
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.catalog import DatasetFolder, DatasetRecord, dataset_folders
from embedcache.errors import DamagedFileError, DataNotFoundError, MissingFeaturesError, UsageError, unknown_name
from embedcache.failures import failures_path, read_failures
from embedcache.provenance import differences
from embedcache.samples import SampleTable
from embedcache.store import PARTIAL_SUFFIX, PENDING, FeatureFile
from embedcache.view import Captions, Features, assemble, samples_frame

if TYPE_CHECKING:
    import pandas as pd

FeatureQuery = str | Mapping[str, Any]


def open_cache(path: str | Path = "cache") -> Cache:
    """The cache at ``path``. Raises DataNotFoundError where there is no such folder."""
    root = Path(path)
    if not root.is_dir():
        raise DataNotFoundError(
            f"There is no cache folder {root}. 'extract' makes one: python cli.py extract --backbone vit-large"
        )
    return Cache(root)


@dataclass(frozen=True)
class FileSummary:
    """One line of ``ls``. done: share of rows that are not pending; size: bytes; age: seconds since sealing."""

    dataset: str
    name: str
    modality: str
    dim: int
    rows: int
    failed: int
    size: int
    age: float
    sealed: bool
    done: float
    fingerprint: str
    path: Path


class Cache(Mapping[str, "CachedDataset"]):
    """A folder of data sets, by name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> CachedDataset:
        folder = DatasetFolder(self.root, name)
        if not folder.exists:
            raise unknown_name("data set", name, list(self), f"Looked in {self.root}.")
        return CachedDataset(folder)

    def __iter__(self) -> Iterator[str]:
        return (folder.name for folder in dataset_folders(self.root))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def only(self) -> CachedDataset:
        """The only data set. Raises UsageError where there are several or none."""
        names = list(self)
        if len(names) != 1:
            listed = f"{len(names)} data sets ({', '.join(names)}): name one with --dataset" if names else "no data set"
            raise UsageError(f"The cache {self.root} holds {listed}.")
        return self[names[0]]

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r}): {', '.join(self) or 'empty'}"


class CachedDataset:
    """One data set of a cache: its samples, its feature files, features of it."""

    def __init__(self, folder: DatasetFolder) -> None:
        self.folder = folder
        self.name = folder.name

    @cached_property
    def record(self) -> DatasetRecord:
        """How the data set was read."""
        return self.folder.record()

    @cached_property
    def table(self) -> SampleTable:
        """Samples and items, as Arrow tables."""
        return self.folder.table()

    @property
    def samples(self) -> pd.DataFrame:
        """One row per sample: id, split, targets, groups, references to items."""
        return samples_frame(self.table.samples)

    @cached_property
    def files(self) -> tuple[FeatureFile, ...]:
        """The sealed feature files. Raises DamagedFileError at the first that is not whole."""
        return tuple(FeatureFile(path) for path in self.folder.feature_paths())

    def summaries(self) -> list[FileSummary]:
        """A line per feature file, unfinished ones included."""
        paths = [*self.folder.feature_paths(), *self.folder.partial_paths()]
        return [self._summary(path) for path in paths]

    def _summary(self, path: Path) -> FileSummary:
        sealed = not path.name.endswith(PARTIAL_SUFFIX)
        file = FeatureFile(path, partial=not sealed)
        return FileSummary(
            self.name,
            file_name(file),
            file.modality,
            file.dim,
            file.n_items,
            file.n_failed,
            file.size,
            time.time() - path.stat().st_mtime,
            sealed,
            float((file.status != PENDING).mean()),
            file.fingerprint,
            path,
        )

    def find(self, query: FeatureQuery) -> FeatureFile:
        """The feature file that a name or settings mean.

        ``name``, ``family:name``, either with ``@`` and the beginning of a fingerprint, or settings such as
        ``{"backbone": "roberta", "lowercase": True}``. A bare name means the one with default settings where
        several exist. Raises MissingFeaturesError where there is none, UsageError where it is not unique.
        """
        name, settings, prefix = parse_query(query)
        named = [file for file in self.files if name in names_of(file)]
        matching = [file for file in named if file.fingerprint.startswith(prefix)]
        if settings or (len(matching) > 1 and not prefix):
            exact = [file for file in matching if file.record.get("settings", {}) == settings]
            matching = exact if exact or settings else matching
        if len(matching) == 1:
            return matching[0]
        if matching:
            listed = "; ".join(f"{file_name(file)}@{file.fingerprint} {_stated(file)}" for file in matching)
            raise UsageError(f"{name!r} means several feature sets of {self.name}: {listed}. Add @ and a fingerprint.")
        raise self._missing(name, settings, prefix)

    def _missing(self, name: str, settings: Mapping[str, Any], prefix: str) -> MissingFeaturesError:
        have = ", ".join(f"{file_name(file)}@{file.fingerprint} {_stated(file)}".strip() for file in self.files)
        flags = "".join(_flag(key, value) for key, value in settings.items())
        wanted = f"{name}{f'@{prefix}' if prefix else ''}{f' with {dict(settings)}' if settings else ''}"
        return MissingFeaturesError(
            f"The data set {self.name!r} has no features of {wanted}; it has {have or 'none'}. To extract them: "
            f"python cli.py extract --dataset {self.name} --backbone {name}{flags}",
            self.name,
            name,
            settings,
        )

    def features(self, *queries: FeatureQuery, captions: Captions = "mean") -> Features:
        """The named feature sets side by side, on the samples that all of them have; all sets by default."""
        chosen: Sequence[FeatureQuery] = queries or [f"{file_name(file)}@{file.fingerprint}" for file in self.files]
        if not chosen:
            raise MissingFeaturesError(
                f"The data set {self.name!r} has no features yet: "
                f"python cli.py extract --dataset {self.name} --backbone vit-large",
                self.name,
            )
        files = [self.find(query) for query in chosen]
        if len({file.path for file in files}) < len(files):
            raise UsageError(f"A feature set is named twice: {', '.join(map(str, chosen))}.")
        names = [file_name(file) for file in files]
        unique = [
            name if names.count(name) == 1 else f"{name}@{file.fingerprint}"
            for name, file in zip(names, files, strict=True)
        ]
        return assemble(self.table, list(zip(unique, files, strict=True)), captions)

    def __repr__(self) -> str:
        lines = [f"{self.name}: " + ", ".join(f"{count:,} {what}" for what, count in self.table.counts.items())]
        for one in self.summaries():
            state = "" if one.sealed else f"  {one.done:.0%} done"
            failed = f"  {one.failed} failed" if one.failed else ""
            size = f"{one.dim:>5}  {one.rows:>9,} rows{failed}"
            lines.append(f"  {one.modality:5}  {one.name:24}  {size}  {one.fingerprint}{state}")
        return "\n".join(lines)


def names_of(file: FeatureFile) -> set[str]:
    """The names that a feature file answers to."""
    backbone = str(file.record.get("backbone", ""))
    checkpoint = str(file.record.get("checkpoint", ""))
    last = {name.rsplit(":", 1)[-1].rsplit("/", 1)[-1] for name in (backbone, checkpoint)}
    return {backbone, checkpoint, *last} - {""}


def file_name(file: FeatureFile) -> str:
    """The name that a feature file is shown under."""
    return str(file.record.get("backbone") or file.path.stem)


def parse_query(query: FeatureQuery) -> tuple[str, dict[str, Any], str]:
    """Name, settings and fingerprint prefix of a query; a local folder's path is reduced to its name."""
    if isinstance(query, str):
        name, _, prefix = query.partition("@")
        return _reduced(name), {}, prefix
    settings = dict(query)
    if "backbone" not in settings:
        raise UsageError(f"A feature set by its settings needs the key 'backbone', got {sorted(settings)}.")
    name = str(settings.pop("backbone"))
    return _reduced(name), settings, ""


def _reduced(name: str) -> str:
    """``hf:./models/mine`` is stored as ``hf:mine``."""
    family, colon, checkpoint = name.partition(":")
    is_path = checkpoint.startswith((".", "/", "~"))
    return f"{family}:{Path(checkpoint).name}" if colon and is_path else name


def _stated(file: FeatureFile) -> str:
    settings = file.record.get("settings") or {}
    return "(" + ", ".join(f"{key}={value}" for key, value in settings.items()) + ")" if settings else ""


def _flag(key: str, value: Any) -> str:
    option = f" --{key.replace('_', '-')}"
    return option if value is True else f"{option} {value}"


def failures(dataset: CachedDataset, query: FeatureQuery | None = None) -> dict[str, dict[str, str]]:
    """Failed items with their reasons, by feature set (``name@fingerprint``)."""
    files = dataset.files if query is None else (dataset.find(query),)
    return {f"{file_name(file)}@{file.fingerprint}": read_failures(file.path) for file in files}


def problems(file: FeatureFile) -> list[str]:
    """What is wrong with an open feature file's vectors; an empty list where nothing is."""
    bad = list(file.bad_blocks())
    return [f"block {block}: its rows do not have their checksum" for block in bad]


def verify(dataset: CachedDataset) -> dict[Path, list[str]]:
    """Problems by feature file; files without problems map to empty lists."""
    found: dict[Path, list[str]] = {}
    for path in dataset.folder.feature_paths():
        try:
            found[path] = problems(FeatureFile(path))
        except DamagedFileError as error:
            found[path] = [str(error)]
    return found


def difference(left: FeatureFile, right: FeatureFile) -> list[str]:
    """In words, what differs between two encoders."""
    return [f"{path}: {a!r} → {b!r}" for path, a, b in differences(left.provenance, right.provenance)]


def removable(dataset: CachedDataset, query: FeatureQuery | None) -> list[Path]:
    """What ``rm`` would remove: one feature file with its list of failures, or the data set's folder."""
    if query is None:
        return [dataset.folder.path]
    path = dataset.find(query).path
    return [one for one in (path, failures_path(path)) if one.exists()]


def remove(paths: Sequence[Path]) -> None:
    """Remove files and folders that ``removable`` named."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
