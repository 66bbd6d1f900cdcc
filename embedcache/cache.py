"""Open a cache: what is in it, features of it, whether it is whole. The notebook's door.

>>> import embedcache as ec                              # doctest: +SKIP
>>> cache = ec.open("cache")                             # doctest: +SKIP
>>> X, y = cache["cub"].features("vit-large").split("train")  # doctest: +SKIP
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.backbones import MEANINGLESS
from embedcache.backbones.base import LAST_LAYER, canonical_layer
from embedcache.catalog import DatasetFolder, DatasetRecord, dataset_folders
from embedcache.container import TOKENS, VECTORS, Header, ItemFile, read_header
from embedcache.errors import DamagedFileError, DataNotFoundError, MissingFeaturesError, UsageError, unknown_name
from embedcache.failures import failures_of, read_failures
from embedcache.provenance import MODALITIES, Modality, differences
from embedcache.ragged import TokenFile
from embedcache.samples import SampleTable
from embedcache.store import PARTIAL_SUFFIX, PENDING, FeatureFile
from embedcache.token_view import Tokens, tokens_of
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
    """One line of ``ls``. done: share of rows that are not pending; size: bytes; age: seconds since sealing.

    kind: ``vectors`` or ``tokens``; of word ids, dim is the size of the vocabulary.
    damage: why the file cannot be used, None where it can; nothing but path, size and age is known of a damaged one.
    """

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
    damage: str | None = None
    kind: str = "vectors"

    @property
    def width(self) -> str:
        """Numbers in a vector, or words of a vocabulary."""
        return f"{self.dim:,} words" if self.kind == "tokens" else f"{self.dim}"


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
        self._entries: dict[tuple[Path, Any], FeatureEntry] = {}

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

    @property
    def entries(self) -> tuple[FeatureEntry, ...]:
        """The sealed feature files as they are now, none of them opened."""
        found = [(path, _identity(path)) for path in self.folder.feature_paths()]
        self._entries = {key: self._entries.get(key) or FeatureEntry(key[0]) for key in found if key[1] is not None}
        return tuple(self._entries.values())

    @property
    def files(self) -> tuple[FeatureFile, ...]:
        """The sealed files of vectors. Raises DamagedFileError at the first that is not whole."""
        return tuple(_vectors(entry.file) for entry in self.entries if entry.kind == VECTORS)

    def summaries(self) -> list[FileSummary]:
        """A line per feature file, unfinished and damaged ones included."""
        partial = [FeatureEntry(path) for path in self.folder.partial_paths()]
        found = [self._summary(entry) for entry in (*self.entries, *partial)]
        return [one for one in found if one is not None]

    def _summary(self, entry: FeatureEntry) -> FileSummary | None:
        """The line of one file; None where it was sealed or removed meanwhile."""
        try:
            found = entry.path.stat()
        except FileNotFoundError:
            return None
        age = time.time() - found.st_mtime
        common: dict[str, Any] = {
            "dataset": self.name,
            "size": found.st_size,
            "age": age,
            "sealed": entry.sealed,
            "path": entry.path,
        }
        try:
            file = entry.file
        except (DamagedFileError, OSError) as error:
            if not entry.path.exists():
                return None
            about: dict[str, Any] = {"name": entry.label, "modality": entry.modality, "fingerprint": ""}
            return FileSummary(**common, **about, dim=0, rows=0, failed=0, done=0.0, damage=str(error))
        return FileSummary(
            **common,
            name=file_name(file),
            modality=file.modality,
            dim=file.n_words if isinstance(file, TokenFile) else _vectors(file).dim,
            rows=file.n_items,
            failed=file.n_failed,
            done=float((file.status != PENDING).mean()),
            fingerprint=file.fingerprint,
            kind="tokens" if isinstance(file, TokenFile) else "vectors",
        )

    def find(self, query: FeatureQuery) -> FeatureFile:
        """The file of vectors that a name or settings mean (``find_any``). Raises UsageError where it has word ids."""
        return _vectors(self.find_any(query))

    def find_any(self, query: FeatureQuery) -> ItemFile:
        """The file, of vectors or of word ids, that a name or settings mean; no other file is opened for it.

        ``name``, ``family:name``, either with ``@`` and the beginning of a fingerprint, or settings such as
        ``{"backbone": "roberta", "lowercase": True}``. A bare name means the one with default settings where
        several exist. Raises MissingFeaturesError where there is none, UsageError where it is not unique,
        DamagedFileError where it is not whole.
        """
        matching = self._matching(query)
        name, settings, prefix = parse_query(query)
        if len(matching) == 1:
            return matching[0].file
        if matching:
            listed = "; ".join(entry.described for entry in matching)
            raise UsageError(f"{name!r} means several feature sets of {self.name}: {listed}. Add @ and a fingerprint.")
        raise self._missing(name, settings, prefix)

    def holds(self, query: FeatureQuery) -> bool:
        """Whether there are features that a name or settings mean; no file is opened for it."""
        return all(self._matching(one) for one in self._towers(query))

    @property
    def has_words(self) -> bool:
        """Whether there are word ids of any name; no file is opened for it."""
        return any(entry.kind == TOKENS for entry in self.entries)

    def _matching(self, query: FeatureQuery) -> list[FeatureEntry]:
        name, settings, prefix = parse_query(query)
        matching = [entry for entry in self.entries if name in entry.names and entry.begins_with(prefix)]
        if settings or (len(matching) > 1 and not prefix):
            exact = [entry for entry in matching if entry.settings == settings]
            matching = exact if exact or settings else matching
        return matching

    def _towers(self, query: FeatureQuery) -> list[FeatureQuery]:
        """The query itself; of a name that no feature set has but its towers have, a query for each of them."""
        name, settings, prefix = parse_query(query)
        if prefix or any(name in entry.names for entry in self.entries):
            return [query]
        there = [one for one in MODALITIES if any(f"{name}.{one}" in entry.names for entry in self.entries)]
        return [_tower_query(name, one, settings) for one in there] or [query]

    def _missing(self, name: str, settings: Mapping[str, Any], prefix: str) -> MissingFeaturesError:
        have = ", ".join(entry.described for entry in self.entries)
        wanted = f"{name}{f'@{prefix}' if prefix else ''}{f' with {dict(settings)}' if settings else ''}"
        return MissingFeaturesError(
            f"The data set {self.name!r} has no features of {wanted}; it has {have or 'none'}. To extract them: "
            f"python cli.py extract --dataset {self.name} --backbone {name}{settings_flags(settings)}",
            self.name,
            name,
            settings,
        )

    def features(self, *queries: FeatureQuery, captions: Captions = "mean") -> Features:
        """The named feature sets side by side, on the samples that all of them have; all sets by default.

        The name of a model with two towers means those of its towers that are there, the one for images first.
        """
        chosen: Sequence[FeatureQuery] = [one for query in queries for one in self._towers(query)] or [
            f"{file_name(file)}@{file.fingerprint}" for file in self.files
        ]
        if not chosen:
            raise MissingFeaturesError(
                f"The data set {self.name!r} has no features yet: "
                f"python cli.py extract --dataset {self.name} --backbone vit-large",
                self.name,
            )
        return self._assembled([self.find(query) for query in chosen], chosen, captions)

    def with_words(self, *queries: FeatureQuery, captions: Captions = "mean") -> Features:
        """The same for heads that read word ids too: those are a set without numbers. By default the word ids alone."""
        named = [one for query in queries for one in self._towers(query)]
        chosen = named or [self._only_words()]
        return self._assembled([self.find_any(query) for query in chosen], chosen, captions)

    def _only_words(self) -> FeatureQuery:
        """The word ids that there are. Raises MissingFeaturesError where there are none, UsageError for several."""
        found = [entry for entry in self.entries if entry.kind == TOKENS]
        if not found:
            raise self._missing("words", {}, "")
        if len(found) > 1:
            listed = "; ".join(entry.described for entry in found)
            raise UsageError(f"{self.name} has several sets of word ids: {listed}. Name one, with @ and a fingerprint.")
        return f"{file_name(found[0].file)}@{found[0].file.fingerprint}"

    def _assembled(self, files: Sequence[ItemFile], chosen: Sequence[FeatureQuery], captions: Captions) -> Features:
        if len({file.path for file in files}) < len(files):
            raise UsageError(f"A feature set is named twice: {', '.join(map(str, chosen))}.")
        names = [file_name(file) for file in files]
        unique = [
            name if names.count(name) == 1 else f"{name}@{file.fingerprint}"
            for name, file in zip(names, files, strict=True)
        ]
        return assemble(self.table, list(zip(unique, files, strict=True)), captions)

    def tokens(self, query: FeatureQuery = "words", *, captions: Captions = "first") -> Tokens:
        """The word ids that a name or settings mean, of the samples that have any; of several texts the first.

        captions: ``first`` or ``each``. Raises UsageError where the name means vectors.
        """
        file = self.find_any(query)
        if not isinstance(file, TokenFile):
            raise UsageError(f"{file_name(file)!r} has vectors, not word ids: use .features({file_name(file)!r}).")
        return tokens_of(self.table, file_name(file), file, captions)

    def __repr__(self) -> str:
        lines = [f"{self.name}: " + ", ".join(f"{count:,} {what}" for what, count in self.record.counts.items())]
        for one in self.summaries():
            if one.damage is not None:
                lines.append(f"  {one.modality:5}  {one.name:24}  damaged: {one.path.name}")
                continue
            state = "" if one.sealed else f"  {one.done:.0%} done"
            failed = f"  {one.failed} failed" if one.failed else ""
            size = f"{one.width:>5}  {one.rows:>9,} rows{failed}"
            lines.append(f"  {one.modality:5}  {one.name:24}  {size}  {one.fingerprint}{state}")
        return "\n".join(lines)


class FeatureEntry:
    """A file of vectors or word ids by its path: opened, and checked, when something is asked of it that needs it.

    Names and settings are peeked at in the userblock, which only opening proves to be whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sealed = not path.name.endswith(PARTIAL_SUFFIX)

    @cached_property
    def file(self) -> ItemFile:
        """The file, opened. Raises DamagedFileError where it is not whole."""
        if self.sealed and self.kind == TOKENS:
            return TokenFile(self.path)
        return FeatureFile(self.path, partial=not self.sealed)

    @property
    def damage(self) -> str | None:
        """Why it cannot be opened; None where it can."""
        try:
            _ = self.file
        except (DamagedFileError, OSError) as error:
            return str(error)
        return None

    @cached_property
    def _header(self) -> Header | None:
        return read_header(self.path)

    @property
    def kind(self) -> int:
        """Vectors or tokens, as its userblock says; vectors where there is none."""
        return self._header.kind if self._header is not None else VECTORS

    @property
    def _record(self) -> Mapping[str, Any]:
        return self._header.record if self._header is not None else {}

    @property
    def names(self) -> set[str]:
        """The names that it answers to; for a file that cannot be read, the one in its file name."""
        return names_of(self._record) or {self.label}

    @property
    def settings(self) -> Any:
        """What was stated about its encoder."""
        return self._record.get("settings", {})

    @property
    def label(self) -> str:
        """The backbone as the file's name has it: for people, where nothing better can be read."""
        return self.path.name.partition(".")[2].removesuffix(PARTIAL_SUFFIX).rsplit(".", 2)[0]

    @property
    def modality(self) -> str:
        """The modality as the file's name has it."""
        return self.path.name.partition(".")[0]

    def begins_with(self, prefix: str) -> bool:
        """Whether its fingerprint, or that in the name of a damaged one, begins with ``prefix``."""
        if not prefix:
            return True
        if self.damage is not None:
            return self.path.name.removesuffix(".h5").rpartition(".")[2].startswith(prefix)
        return self.file.fingerprint.startswith(prefix)

    @property
    def described(self) -> str:
        """Name, fingerprint and settings, for messages."""
        if self.damage is not None:
            return f"{self.label} (damaged: {self.path.name})"
        return f"{file_name(self.file)}@{self.file.fingerprint} {_stated(self.file)}".strip()


def _vectors(file: ItemFile) -> FeatureFile:
    """A file of vectors. Raises UsageError where it is one of word ids."""
    if isinstance(file, FeatureFile):
        return file
    name = file_name(file)
    raise UsageError(
        f"{name!r} has word ids, rows of any length, not vectors: use .tokens({name!r}) for a head that learns its own "
        "embedding, or name a backbone that gives vectors."
    )


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes when another file takes a path's place; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def names_of(record: Mapping[str, Any]) -> set[str]:
    """The names that a feature file with such a record answers to."""
    backbone, checkpoint = str(record.get("backbone", "")), str(record.get("checkpoint", ""))
    last = {name.rsplit(":", 1)[-1].rsplit("/", 1)[-1] for name in (backbone, checkpoint)}
    return {backbone, checkpoint, *last} - {""}


def file_name(file: ItemFile) -> str:
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
    if (layer := canonical_layer(settings.pop("layer", LAST_LAYER))) != LAST_LAYER:
        settings["layer"] = layer
    return _reduced(name), settings, ""


def _tower_query(name: str, modality: Modality, settings: Mapping[str, Any]) -> FeatureQuery:
    """One tower of a name, with those of the settings that have a meaning for it."""
    own = {key: value for key, value in settings.items() if key not in MEANINGLESS[modality]}
    return {"backbone": f"{name}.{modality}", **own} if own else f"{name}.{modality}"


def _reduced(name: str) -> str:
    """``hf:./models/mine`` is stored as ``hf:mine``."""
    family, colon, checkpoint = name.partition(":")
    is_path = checkpoint.startswith((".", "/", "~"))
    return f"{family}:{Path(checkpoint).name}" if colon and is_path else name


def _stated(file: ItemFile) -> str:
    settings = file.record.get("settings")
    if not isinstance(settings, Mapping) or not settings:
        return ""
    return "(" + ", ".join(f"{key}={value}" for key, value in settings.items()) + ")"


def settings_flags(settings: Mapping[str, Any]) -> str:
    """Settings of a feature set as options of ``extract``, a blank before each."""
    return "".join(_flag(key, value) for key, value in settings.items())


def _flag(key: str, value: Any) -> str:
    option = f" --{key.replace('_', '-')}"
    if value is True:
        return option
    text = shlex.quote(_option_text(value))
    return f"{option}={text}" if text.startswith("-") else f"{option} {text}"


def _option_text(value: Any) -> str:
    """A setting as the command line takes it: numbers with commas between them."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def failures(dataset: CachedDataset, query: FeatureQuery | None = None) -> dict[str, dict[str, str]]:
    """Failed items with their reasons, by feature set (``name@fingerprint``; a damaged file by its name)."""
    if query is not None:
        file = dataset.find_any(query)
        return {f"{file_name(file)}@{file.fingerprint}": failures_of(file)}
    return {
        entry.path.name if entry.damage else f"{file_name(entry.file)}@{entry.file.fingerprint}": (
            read_failures(entry.path) if entry.damage else failures_of(entry.file)
        )
        for entry in dataset.entries
    }


WORDS: Mapping[str, str] = {
    "modality": "modality",
    "family": "family",
    "pooling": "pooling",
    "layer": "layer",
    "compute": "compute precision",
    "stored": "stored precision",
    "architecture.vocabulary": "vocabulary",
    "architecture.words": "words in the vocabulary",
    "preprocessing.lowercase": "lower-casing",
    "preprocessing.min_count": "minimum count",
    "preprocessing.max_words": "maximum number of words",
    "preprocessing.words": "rule for words",
    "preprocessing.prompt": "prompt",
    "preprocessing.max_length": "maximum length",
    "preprocessing.size": "size",
    "preprocessing.shortest_edge": "shorter side",
    "preprocessing.crop": "crop",
    "preprocessing.crop_rounding": "rounding of the crop",
    "preprocessing.interpolation": "interpolation",
    "preprocessing.mean": "normalisation mean",
    "preprocessing.std": "normalisation standard deviation",
    "preprocessing.scale": "scale of the pixels",
    "preprocessing.exif": "EXIF rotation",
    "preprocessing.value_range": "value range",
    "preprocessing.channels": "channels",
    "preprocessing.decoder": "decoder",
}
"""What the leaves of a provenance are called; other leaves go by their path."""

_ABSENT = "not stated"


def difference(left: ItemFile, right: ItemFile) -> list[str]:
    """In words, what differs between two encoders: ``pooling: mean → cls``, ``weights differ``."""
    found = differences(left.provenance, right.provenance)
    weights = ["weights differ"] if any(path == "weights" for path, _, _ in found) else []
    tokenizer = [path.split(".", 2)[2] for path, _, _ in found if path.startswith("preprocessing.tokenizer.")]
    if tokenizer:
        weights.append(f"tokenizer differs ({', '.join(tokenizer)})")
    return weights + [
        f"{_word(path)}: {_value(a)} → {_value(b)}"
        for path, a, b in found
        if path != "weights" and not path.startswith("preprocessing.tokenizer.")
    ]


def _word(path: str) -> str:
    if path in WORDS:
        return WORDS[path]
    where, _, leaf = path.partition(".")
    return f"{where} {leaf}" if leaf else where


def _value(value: Any) -> str:
    """A leaf as people write it."""
    if value is None:
        return _ABSENT
    if isinstance(value, bool):
        return "on" if value else "off"
    if value == "":
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(_value(one) for one in value) or "none"
    return str(value) if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
