"""Data sets of Hugging Face's ``datasets`` that are on disk already, read without that library.

What ``save_to_disk`` writes are Arrow streams that ``state.json`` lists; what the hub holds are Parquet files named by
split. Both say in their schema which numbers stand for which class, and hold images as bytes, which are read from there
when they are encoded. https://huggingface.co/docs/datasets/about_arrow,
https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

from __future__ import annotations

import bisect
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedcache.datasets.base import MAX_IMAGE_BYTES, ImageFiles, ImageSource, read_image
from embedcache.datasets.table import Columns, Table
from embedcache.errors import DataNotFoundError, ItemError, UsageError, unknown_name
from embedcache.samples import SPLIT_NAMES, canonical_split, combined

Shards = Mapping[str, tuple[Path, ...]]
"""The files of each split; a split without a name is ``""``."""

CHUNKS_KEPT = 4
"""Row groups of Parquet whose images are held in memory: readers on threads go through them in order."""

_PARQUET = re.compile(r"(?P<split>[\w.]+?)(-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]+)?)?\.parquet")
_CACHED = re.compile(r".+-(?P<split>[\w.]+?)(-(?P<number>\d{5})-of-(?P<total>\d{5}))?\.arrow")
_LIST_FEATURES = ("Sequence", "List", "LargeList")


@dataclass(frozen=True)
class HfDataset(Table):
    """Rows of one data set. root: as given. files: for each split a path below it that stands for the split.

    config: which of several configurations (subsets) of a hub's data set.
    """

    root: Path = Path()
    config: str | None = None

    adapter: ClassVar[str] = "hf-dataset"

    @classmethod
    def open(
        cls,
        *data: Path,
        images: str | None = None,
        text: str | Sequence[str] = (),
        config: str | None = None,
        **columns: str | None,
    ) -> HfDataset:
        """The data set in the folder ``data``."""
        [root] = data
        base = _base(root, config)
        splits = find_splits(base)
        chosen = Columns(text=(text,) if isinstance(text, str) else tuple(text), **columns)
        if not chosen.text and chosen.image is None:
            raise UsageError(
                f"Say which columns hold texts or images: --text COLUMN or --image COLUMN. {root} has "
                f"{_described(_schema(next(iter(splits.values()))[0]))}."
            )
        files = tuple(base / name for name in splits)
        return cls(files, chosen, Path(images) if images else None, root, config)

    @property
    def default_name(self) -> str:
        """The folder's own name; for a clone of the hub's cache the data set's."""
        name = self.root.resolve().name
        return name.rpartition("--")[2] if name.startswith("datasets--") else name

    @property
    def image_folder(self) -> Path:
        """The folder that image paths are relative to, where images are paths."""
        return self.images or self.root

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folder."""
        return (self.root,)

    def settings(self) -> dict[str, Any]:
        """The columns, the configuration, and the folder of images where it was stated."""
        images = str(self.images) if self.images else None
        return {**asdict(self.columns), "images": images, "config": self.config}

    def image_source(self) -> ImageSource:
        """The images inside the files, or files beside them where the column holds paths."""
        splits = self._splits()
        column = self.columns.image
        if column is None or not _is_embedded(_field(_schema(next(iter(splits.values()))[0]), column)):
            return ImageFiles(self.image_folder)
        return EmbeddedImages(
            {name: tuple(map(Shard, shards)) for name, shards in splits.items()}, column, self.image_folder
        )

    def _splits(self) -> Shards:
        return find_splits(_base(self.root, self.config))

    def _name(self, file: Path) -> str:
        return "" if file == _base(self.root, self.config) else file.name

    def _split(self, file: Path) -> str | None:
        return canonical_split(self._name(file)) or None

    def _read(self, file: Path, known: dict[str, None]) -> pa.Table:
        """The columns that are asked for of one split, with class names for codes and items for images."""
        wanted: dict[str | None, str] = {self.columns.image: "image", **dict.fromkeys(self.columns.text, "text")}
        wanted |= {getattr(self.columns, name): name for name in ("id", "label", "split", "group", "weight")}
        tables = []
        for path in self._splits()[self._name(file)]:
            schema = _schema(path)
            known |= dict.fromkeys(schema.names)
            for column, meaning in wanted.items():
                if column is not None and column not in schema.names and meaning not in ("label", "split"):
                    raise unknown_name(f"{meaning} column in {path}:", column, schema.names)
            names = [name for name in schema.names if name in wanted]
            tables.append(self._decoded(Shard(path).columns(names, self.columns.image), _features(path, schema), path))
        try:
            together = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise UsageError(f"The files of {file} are not of one kind: {error}") from error
        return self._with_items(together, self._name(file))

    def _decoded(self, table: pa.Table, features: Mapping[str, Any], path: Path) -> pa.Table:
        """Codes of classes as their names."""
        for place, name in enumerate(table.column_names):
            if name != self.columns.image and name not in self.columns.text:
                decoded = _with_names(combined(table[name]), features.get(name), f"{path}, column {name!r}")
                table = table.set_column(place, name, decoded)
        return table

    def _with_items(self, table: pa.Table, split: str) -> pa.Table:
        """The column of images as item ids: ``train/17`` is the image in row 17 of train."""
        column = self.columns.image
        if column is None or not _is_embedded(table.schema.field(column).type):
            return table
        prefix = f"{split}/" if split else ""
        valid = np.asarray(table[column].is_valid())
        names = pa.array([f"{prefix}{row}" if there else None for row, there in enumerate(valid)], pa.large_string())
        return table.set_column(table.column_names.index(column), column, names)


# ------------------------------------------------------------------------------------------------ files on disk


def find_splits(base: Path) -> Shards:
    """The splits of a folder, in the order in which they are published, each with its files.

    Raises DataNotFoundError where there are none, UsageError where a file is lacking.
    """
    if (base / "dataset_dict.json").is_file():
        names = _strings(_json(base / "dataset_dict.json").get("splits"), base / "dataset_dict.json")
        return {_plain(name, base): _saved(base / _plain(name, base))[1] for name in names}
    if (base / "state.json").is_file():
        split, shards = _saved(base)
        return {split: shards}
    return _by_name(base) or _raise_not_found(base)


def _raise_not_found(base: Path) -> Shards:
    raise DataNotFoundError(
        f"No data set of Hugging Face in {base}: expected what save_to_disk writes (dataset_dict.json or state.json), "
        "or Parquet files named by split (train-00000-of-00001.parquet), also in data/ or a configuration's folder."
    )


def _base(root: Path, config: str | None) -> Path:
    """The folder of the splits: ``root``, the snapshot in a clone of the hub's cache, or a configuration's folder."""
    if not root.is_dir():
        raise DataNotFoundError(f"There is no folder {root}.")
    base = _snapshot(root) if (root / "snapshots").is_dir() else root
    if config is not None:
        return base / _plain(config, base)
    if any((base / name).is_file() for name in ("dataset_dict.json", "state.json")) or _by_name(base):
        return base
    children = sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    configs = [path for path in children if _by_name(path)]
    if len(configs) > 1:
        raise UsageError(
            f"{root} has {len(configs)} configurations: say which with --option config=NAME "
            f"({', '.join(path.name for path in configs)})."
        )
    return configs[0] if configs else base


def _snapshot(root: Path) -> Path:
    """The snapshot that ``main`` is, else the only one."""
    main = root / "refs" / "main"
    if main.is_file():
        found = root / "snapshots" / _plain(main.read_text(encoding="utf-8", errors="replace").strip(), root)
        if found.is_dir():
            return found
    snapshots = sorted(path for path in (root / "snapshots").iterdir() if path.is_dir())
    if len(snapshots) != 1:
        raise UsageError(f"{root} has {len(snapshots)} snapshots, none of them main: name one of their folders.")
    return snapshots[0]


def _saved(folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Split and files of what ``Dataset.save_to_disk`` wrote."""
    path = folder / "state.json"
    state = _json(path)
    files = state.get("_data_files")
    if not isinstance(files, list) or not files or not all(isinstance(entry, dict) for entry in files):
        raise UsageError(f"{path} names no data files: it is not what Dataset.save_to_disk writes.")
    if state.get("_indices_data_files"):
        raise UsageError(f"{path}: its rows were picked by an early release of datasets; load and save it once more.")
    names = _strings([entry.get("filename") for entry in files], path)
    shards = tuple(folder / _plain(name, folder) for name in names)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise DataNotFoundError(f"{folder} lacks {', '.join(missing[:3])}, which state.json lists.")
    split = state.get("_split")
    return (_plain(split, folder) if isinstance(split, str) and split else ""), shards


def _by_name(folder: Path) -> Shards:
    """Parquet files by split, or the Arrow files of the library's own cache, of which dataset_info.json says which."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    found: dict[str, list[tuple[re.Match[str] | None, Path]]] = {}
    for path in entries:
        if path.is_dir() and path.name.lower() in SPLIT_NAMES:
            inside = sorted(path.glob("*.parquet"))
            if inside:
                found[path.name] = [(None, file) for file in inside]
        elif (match := _PARQUET.fullmatch(path.name)) and path.is_file():
            found.setdefault(match["split"], []).append((match, path))
    if not found and (folder / "dataset_info.json").is_file():
        known = _json(folder / "dataset_info.json").get("splits")
        for path in entries:
            match = _CACHED.fullmatch(path.name)
            if match and isinstance(known, dict) and match["split"] in known and path.is_file():
                found.setdefault(match["split"], []).append((match, path))
    for name, files in found.items():
        _refuse_gaps(folder, name, [match for match, _ in files if match is not None])
    order = list(SPLIT_NAMES)
    names = sorted(found, key=lambda name: (order.index(name.lower()) if name.lower() in order else len(order), name))
    return {name: tuple(path for _, path in found[name]) for name in names}


def _refuse_gaps(folder: Path, split: str, matches: Sequence[re.Match[str]]) -> None:
    totals = {match["total"] for match in matches if match["total"]}
    if totals and (len(totals) > 1 or len(matches) != int(max(totals))):
        spoken = " and ".join(str(int(total)) for total in sorted(totals))
        raise UsageError(f"{folder} has {len(matches)} files of {split}, whose names speak of {spoken}.")


def _plain(name: str, folder: Path) -> str:
    """A name that stays in its folder."""
    if not name or name in (".", "..") or "/" in name or os.sep in name or "\0" in name:
        raise UsageError(f"{folder}: {name!r} is no name of a file or folder in it.")
    return name


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected one JSON object.")
    return found


def _strings(values: Any, path: Path) -> list[str]:
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise UsageError(f"{path}: expected a list of names, got {str(values)[:80]}.")
    if len(set(values)) < len(values):
        raise UsageError(f"{path} names something twice: {', '.join(values)[:80]}.")
    return values


# ----------------------------------------------------------------------------------------------- files as tables


@dataclass(frozen=True)
class Shard:
    """One Arrow or Parquet file."""

    path: Path

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet by its name."""
        return self.path.suffix == ".parquet"

    @cached_property
    def _arrow(self) -> pa.Table:
        return _guarded(self.path, lambda: _arrow_reader(self.path).read_all())

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        return _guarded(self.path, lambda: pq.ParquetFile(self.path, memory_map=True))

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each chunk or row group, and after those the number of rows."""
        if self.is_parquet:
            metadata = self._parquet.metadata
            lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        else:
            lengths = [batch.num_rows for batch in self._arrow.to_batches()]
        return [0, *accumulate(lengths)]

    def columns(self, names: Sequence[str], image: str | None) -> pa.Table:
        """Some columns, checked; of the images in Parquet only whether they are there."""
        found: pa.Table = _guarded(self.path, lambda: self._checked_columns(names, image))
        return found

    def _checked_columns(self, names: Sequence[str], image: str | None) -> pa.Table:
        found = self._of_parquet(names, image) if self.is_parquet else self._arrow.select(list(names))
        found.validate(full=True)
        return found

    def _of_parquet(self, names: Sequence[str], image: str | None) -> pa.Table:
        if image is None or not _is_embedded(kind := self._parquet.schema_arrow.field(image).type):
            return self._parquet.read(columns=list(names))
        others = [name for name in names if name != image]
        has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        table = self._parquet.read(columns=[*others, *([f"{image}.path"] if has_path else [])])
        if not has_path:
            there = pa.array([b""] * self._parquet.metadata.num_rows, pa.binary())
            table = pa.Table.from_arrays([*table.columns, there], [*table.column_names, image])
        return table

    def chunk(self, column: str, number: int) -> pa.Array:
        """One chunk or row group of a column, checked."""
        found: pa.Array = _guarded(self.path, lambda: self._checked_chunk(column, number))
        return found

    def _checked_chunk(self, column: str, number: int) -> pa.Array:
        if self.is_parquet:
            found = combined(self._parquet.read_row_group(number, columns=[column])[column])
        else:
            found = self._arrow[column].chunk(number)
        found.validate(full=True)
        return found


def _arrow_reader(path: Path) -> Any:
    """A stream, as datasets writes it; the file format too."""
    source = pa.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _guarded(path: Path, read: Any) -> Any:
    """Call; what the libraries make of a damaged file becomes one error."""
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, MemoryError, KeyError, IndexError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _schema(path: Path) -> pa.Schema:
    def read() -> pa.Schema:
        schema = pq.read_schema(path) if path.suffix == ".parquet" else _arrow_reader(path).schema
        _ = schema.names  # may be no UTF-8
        return schema

    return _guarded(path, read)


def _field(schema: pa.Schema, column: str) -> pa.DataType:
    if schema.names.count(column) != 1:
        raise unknown_name("image column", column, schema.names)
    return schema.field(column).type


def _is_embedded(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can hold the images themselves."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _described(schema: pa.Schema) -> str:
    """``image (Image), label (ClassLabel)``."""
    features = _schema_features(schema)
    kinds = {
        name: features[name].get("_type") if isinstance(features.get(name), dict) else None for name in schema.names
    }
    return ", ".join(
        f"{name} ({kinds[name] if kinds[name] not in (None, 'Value') else schema.field(name).type})"
        for name in schema.names
    )


# ---------------------------------------------------------------------------------------------- features: classes


def _features(path: Path, schema: pa.Schema) -> Mapping[str, Any]:
    """What the columns mean: in the file itself, else in dataset_info.json beside it."""
    found = _schema_features(schema)
    beside = path.parent / "dataset_info.json"
    if not found and beside.is_file():
        features = _json(beside).get("features")
        return features if isinstance(features, dict) else {}
    return found


def _schema_features(schema: pa.Schema) -> Mapping[str, Any]:
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel, or of a list of such; None for any other feature."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in _LIST_FEATURES:
        return _class_names(feature.get("feature"))
    names = feature.get("names")
    named = feature.get("_type") == "ClassLabel" and isinstance(names, list)
    return names if named and names and all(isinstance(name, str) for name in names) else None


def _with_names(column: pa.Array, feature: Any, where: str) -> pa.Array:
    """A column with class names for codes, -1 (no label) as null; lists as lists of one kind."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lists = _guarded_cast(column, pa.list_(kind.value_type), where)
        values = _with_names(lists.values, feature, where)
        offsets = pc.if_else(lists.is_valid(), lists.offsets[:-1], None)
        together = pa.concat_arrays([offsets.cast(pa.int32()), lists.offsets[-1:]])
        return pa.ListArray.from_arrays(together, values)
    names = _class_names(feature)
    if names is None or not pa.types.is_integer(kind):
        return column
    codes = pc.if_else(pc.equal(column, -1), pa.scalar(None, kind), column)
    extremes = pc.min_max(codes)
    if extremes["max"].is_valid and not 0 <= extremes["min"].as_py() <= extremes["max"].as_py() < len(names):
        raise UsageError(
            f"{where}: codes of {extremes['min']} to {extremes['max']}, where {len(names)} classes have names."
        )
    return pa.array(names, pa.string()).take(codes)


def _guarded_cast(column: pa.Array, kind: pa.DataType, where: str) -> pa.Array:
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise UsageError(f"{where}: {error}") from error


# --------------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class EmbeddedImages:
    """Images inside Arrow or Parquet files; item ``train/17`` is that in row 17 of the split train."""

    splits: Mapping[str, tuple[Shard, ...]]
    column: str
    folder: Path
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    _kept: OrderedDict[tuple[Path, int], pa.Array] = field(default_factory=OrderedDict, compare=False, repr=False)

    @cached_property
    def _starts(self) -> Mapping[str, list[int]]:
        """The first row of each file of a split, and after those the number of rows."""
        return {name: [0, *accumulate(shard.starts[-1] for shard in shards)] for name, shards in self.splits.items()}

    def read(self, item: str) -> bytes:
        """The bytes that are there; where a path stands in their place, the file's."""
        shard, row = self._place(item)
        try:
            value = self._value(shard, row)
        except UsageError as error:
            raise ItemError(str(error)) from error
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value.get("path"):
            return read_image(self.folder, value["path"])
        if not content:
            raise ItemError("there is no image in its row")
        if len(content) > MAX_IMAGE_BYTES:
            raise ItemError(f"the image has {len(content):,} bytes; more than {MAX_IMAGE_BYTES:,} are not read")
        return bytes(content)

    def stat(self, item: str) -> tuple[int, int]:
        """Size and time of the file that holds the image."""
        found = os.stat(self._place(item)[0].path)
        return found.st_size, found.st_mtime_ns

    def _value(self, shard: Shard, row: int) -> Any:
        """What one row of the column holds: a mapping of bytes and path, bytes, or None."""
        number = bisect.bisect_right(shard.starts, row) - 1
        values = self._chunk(shard, number)
        return _guarded(shard.path, lambda: values[row - shard.starts[number]].as_py())

    def _chunk(self, shard: Shard, number: int) -> pa.Array:
        """One chunk of the column; the last few are kept."""
        key = (shard.path, number)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = shard.chunk(self.column, number)
            self._kept.move_to_end(key)
            while len(self._kept) > CHUNKS_KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def _place(self, item: str) -> tuple[Shard, int]:
        split, _, digits = item.rpartition("/")
        starts = self._starts.get(split)
        if starts is None or not re.fullmatch(r"[0-9]{1,18}", digits) or int(digits) >= starts[-1]:
            raise ItemError("the data set has no such row any more")
        shard = bisect.bisect_right(starts, int(digits)) - 1
        return self.splits[split][shard], int(digits) - starts[shard]
