"""Which data sets are meant, and what reading them gives: by adapter, by remembered name, by path, or all found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedcache import items as item_states
from embedcache import samples as tables
from embedcache import store
from embedcache.catalog import DatasetFolder, DatasetRecord, dataset_folders
from embedcache.datasets import ADAPTERS, LOCATIONS, Dataset, discover, open_dataset
from embedcache.datasets.base import LongDataset, PublishedTokens, published_tokens
from embedcache.errors import UsageError, unknown_name
from embedcache.files import locked, sync_above
from embedcache.items import ItemStates
from embedcache.samples import SampleTable


def find(
    dataset: str | Path | None,
    data: str | Path | Sequence[str | Path] | None,
    name: str | None,
    cache: Path,
    dataset_options: Mapping[str, Any],
) -> list[tuple[str, Dataset]]:
    """The data sets that are meant, each with its name in the cache; nothing is read yet."""
    paths = _paths(data)
    if dataset is None:
        if any(value not in (None, (), []) for value in dataset_options.values()) or name is not None:
            raise UsageError("Options of a data set, or a name for it, need --dataset to say which.")
        return [(one.default_name, one) for root in paths or [Path("data")] for one in discover(root)]
    word = str(dataset)
    remembered = _is_name(word) and DatasetFolder(cache, word).exists
    if word in ADAPTERS and (paths or not remembered):
        opened = open_dataset(word, paths or [Path("data")], dataset_options)
    elif remembered:
        return [(word, _remembered(DatasetFolder(cache, word).record(), paths, dataset_options))]
    elif Path(word).is_dir():
        opened = open_dataset("folder", [Path(word)], dataset_options)
    elif Path(word).is_file():
        opened = open_dataset("table", [Path(word)], dataset_options)
    else:
        known = [*ADAPTERS, *(folder.name for folder in dataset_folders(cache))]
        raise unknown_name("data set", word, known, "It is neither a folder nor a file here.")
    return [(name or opened.default_name, opened)]


def _paths(data: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if data is None:
        return []
    return [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]


def _is_name(word: str) -> bool:
    return "/" not in word and os.sep not in word and word not in (".", "..", "")


def _remembered(record: DatasetRecord, paths: list[Path], options: Mapping[str, Any]) -> Dataset:
    """A data set by its name alone: where and how it was read before, with what is stated now in its place."""
    stated = {key: value for key, value in options.items() if value not in (None, (), [])}
    settings = {key: value for key, value in record.settings.items() if value not in (None, (), [])}
    if paths:
        settings = {key: value for key, value in settings.items() if key not in LOCATIONS}
    return open_dataset(record.adapter, paths or [Path(path) for path in record.sources], {**settings, **stated})


@dataclass(frozen=True)
class OpenedDataset:
    """A data set that was read, and its folder in the cache."""

    dataset: Dataset
    folder: DatasetFolder
    table: SampleTable
    record: DatasetRecord

    @classmethod
    def read(cls, name: str, dataset: Dataset, cache: Path, *, progress: bool = False) -> OpenedDataset:
        """Read the sample table; refuse to take the place of another data set of the same name.

        progress: show a bar on stderr where reading takes long.
        """
        folder = DatasetFolder(cache, name)
        table = dataset.read_with_progress() if progress and isinstance(dataset, LongDataset) else dataset.read()
        if folder.exists:
            _refuse_another(folder, dataset, table)
        record = DatasetRecord(
            name,
            dataset.adapter,
            dataset.settings(),
            tuple(str(path) for path in dataset.sources),
            table.counts,
            table.notes,
            store.now(),
        )
        return cls(dataset, folder, table, record)

    def save(self, states: ItemStates | None = None) -> None:
        """Write tables and record, with what is now known of the images' contents, under the data set's lock."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        if not self.folder.exists:
            sync_above(self.folder.path)
        with locked(self.folder.path / "tables", wait=True):
            found = dict(self.table.items)
            if "image" in found:
                known = states if states is not None else no_states()
                found["image"] = item_states.remembering(found["image"], known, self.remembered())
            self.folder.save(self.record, replace(self.table, items=found))

    @cached_property
    def published(self) -> PublishedTokens | None:
        """The data set's own word ids, read once; None where it has none."""
        return published_tokens(self.dataset, self.table)

    def remembered(self) -> pa.Table | None:
        """The image items as they were saved last."""
        path = tables.items_path(self.folder.path, "image")
        return tables.read_parquet(path) if path.exists() else None


def no_states() -> ItemStates:
    """Nothing is known of any item."""
    nothing = np.zeros(0, np.int64)
    return ItemStates(np.zeros(0, "S1"), np.zeros((0, 16), np.uint8), np.zeros(0, bool), nothing, nothing)


def _refuse_another(folder: DatasetFolder, dataset: Dataset, table: SampleTable) -> None:
    """The same name for other data would mix two data sets: refused where no sample is shared."""
    old = folder.record()
    same_source = [str(path) for path in dataset.sources] == list(old.sources)
    if old.adapter == dataset.adapter and same_source:
        return
    ids = pc.is_in(table.samples["id"], value_set=tables.combined(folder.table().samples["id"]))
    if old.adapter == dataset.adapter and pc.any(ids).as_py():
        return
    raise UsageError(
        f"The cache's data set {folder.name!r} was read by the adapter {old.adapter!r} from "
        f"{', '.join(old.sources)}, and shares no sample with {', '.join(str(path) for path in dataset.sources)}. "
        f"Give this one another name with --name, or remove the old one: python cli.py rm {folder.name}"
    )
