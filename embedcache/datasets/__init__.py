"""The table of data-set adapters. A new data set is one file with an adapter and one line here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from embedcache.datasets.base import Dataset, image_source, read_image
from embedcache.datasets.coco import Coco
from embedcache.datasets.comp5329 import Comp5329
from embedcache.datasets.cub import Cub
from embedcache.datasets.folder import Folder
from embedcache.datasets.hf_dataset import HfDataset
from embedcache.datasets.meli import Meli
from embedcache.datasets.table import Columns, Table
from embedcache.datasets.vqa import Vqa
from embedcache.errors import DataNotFoundError, UsageError, unknown_name

__all__ = ["ADAPTERS", "Dataset", "discover", "image_source", "open_dataset", "options_of", "read_image"]

ADAPTERS: Final[Mapping[str, Any]] = {
    "cub": Cub,
    "comp5329": Comp5329,
    "coco": Coco,
    "meli": Meli,
    "vqa": Vqa,
    "folder": Folder,
    "table": Table,
    "hf-dataset": HfDataset,
}

PUBLISHED: Final = ("cub", "comp5329", "coco", "vqa", "meli")
"""Adapters that know their published layout by its files, in the order in which they are asked."""

LOCATIONS: Final = frozenset({"captions", "images"})
"""Options that say where something lies: they are forgotten where the data are said to lie elsewhere."""

LAYOUTS: Final = {
    "cub": "CUB_200_2011/images.txt, image_class_labels.txt, train_test_split.txt; text_c10/ beside it",
    "vqa": "VQA v1, v2: [v2_]OpenEnded_mscoco_train2014_questions.json …, plain, .gz or .zip; COCO's train2014/",
    "comp5329": "train.csv and test.csv with the header ImageID,Labels,Caption; photos in data/ beside them",
    "coco": "captions_*.json and instances_*.json, also in annotations/; photos in train2017/ … or images/",
    "meli": "train.csv (title,label_quality,language,category), test.csv (id,title,language); or "
    "<language>.<split>.jsonl with <language>_token_to_index.json beside; plain or .gz",
    "folder": "images: flat, class/image or split/class/image",
    "table": "CSV, TSV, JSON lines or Parquet with columns for text, image, label (never guessed)",
    "hf-dataset": "a data set of Hugging Face on disk: of save_to_disk, or Parquet as on the hub; columns as for table",
}


def open_dataset(adapter: str, data: Sequence[Path], options: Mapping[str, Any] | None = None) -> Dataset:
    """The data set that ``adapter`` finds in ``data``. options: the adapter's own; None means not stated.

    Raises UsageError for an option that the adapter does not have.
    """
    if adapter not in ADAPTERS:
        raise unknown_name("data set", adapter, ADAPTERS)
    kind = ADAPTERS[adapter]
    stated = {name: value for name, value in (options or {}).items() if value not in (None, (), [])}
    known = options_of(adapter)
    if unknown := sorted(set(stated) - set(known)):
        raise UsageError(f"The data set {adapter!r} has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    if adapter != "table" and len(data) != 1:
        raise UsageError(f"The data set {adapter!r} takes one data folder, got {len(data)}.")
    opened: Dataset = kind.open(*data, **stated)
    return opened


def options_of(adapter: str) -> list[str]:
    """Names of an adapter's own options, sorted."""
    from dataclasses import fields

    found = set(inspect.signature(ADAPTERS[adapter].open).parameters) - {"data"}
    if "columns" in found:
        found |= {item.name for item in fields(Columns)}
    return sorted(found - {"columns"})


def discover(data: Path) -> list[Dataset]:
    """Every data set in a published layout in or below ``data``, then labelled folders of images."""
    if not data.is_dir():
        raise DataNotFoundError(f"There is no data folder {data}. {how_to_bring_data()}")
    found: list[Dataset] = []
    claimed: set[Path] = set()
    for adapter in PUBLISHED:
        if ADAPTERS[adapter].find(data) is not None:
            opened = ADAPTERS[adapter].open(data)
            found.append(opened)
            claimed |= set(opened.claims)
    found += [Folder.open(root) for root in Folder.find(data) if not _overlaps(root, claimed)]
    if not found:
        raise DataNotFoundError(f"No data set was found in {data}. {how_to_bring_data()}")
    return found


def _overlaps(folder: Path, claimed: set[Path]) -> bool:
    """Whether a folder is, holds or lies in one that a data set has already."""
    return any(folder == taken or taken in folder.parents or folder in taken.parents for taken in claimed)


def how_to_bring_data() -> str:
    """What to do where no data set was found."""
    layouts = "; ".join(f"{name}: {layout}" for name, layout in LAYOUTS.items())
    return (
        f"Put one there, say where it is with --data, or name one with --dataset ({layouts}). "
        "To try everything without data: python cli.py demo."
    )
