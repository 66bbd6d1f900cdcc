"""Vectors out of a cache into the formats that others read, and into a cache from elsewhere.

Everything goes out in sample order, in one step: a file of that name is whole or not there. What comes in is
marked as imported: its provenance says the family ``import``, and its weights are the digest of the matrix.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from embedcache import store, token_view
from embedcache.backbones import slug
from embedcache.cache import CachedDataset, FeatureQuery
from embedcache.errors import AllItemsFailedError, DataNotFoundError, EmbedCacheError, UsageError, unknown_name
from embedcache.failures import append_failures, keep_failures
from embedcache.files import locked, replacing
from embedcache.housekeeping import lock_path
from embedcache.items import fixed_length, positions, text_states
from embedcache.provenance import EncoderIdentity, Modality, Provenance, StoredType, fingerprint
from embedcache.ragged import TokenFile
from embedcache.samples import combined, read_parquet, write_parquet
from embedcache.store import DONE, FAILED, FeatureFile, Layout
from embedcache.token_view import Tokens
from embedcache.view import Features, FeatureSet

_ROWS_AT_ONCE = 8192
Column = npt.NDArray[Any]


# --------------------------------------------------------------------------------------------------------- export


@dataclass(frozen=True)
class Exported:
    """What was written. dims: by set, in ``unit``. left_out: samples by the reason why they are not in it."""

    paths: tuple[Path, ...]
    rows: int
    dims: Mapping[str, int]
    left_out: Mapping[str, int]
    unit: str = "numbers"


@dataclass(frozen=True)
class Export:
    """What goes out, row for row: ids, splits and targets as plain arrays, and the feature sets."""

    features: Features
    columns: Mapping[str, Column]
    about: Mapping[str, Any]

    @property
    def sets(self) -> dict[str, FeatureSet]:
        """Feature sets by the name that they go out under."""
        return dict(zip(set_names(self.features), self.features.sets, strict=True))

    def blocks(self, one: FeatureSet) -> Iterator[npt.NDArray[Any]]:
        """One set's vectors in sample order, some rows at a time, (rows, dim)."""
        for start in range(0, len(self.features), _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(self.features)))
            yield one.take(rows).gather()


def export(
    dataset: CachedDataset, path: Path, *queries: FeatureQuery, split: str | None = None, force: bool = False
) -> Exported:
    """Write feature sets (all of them by default) with ids, splits and targets; the suffix says in which format.

    Word ids go out by themselves, when they are named: ``.npz`` with tokens, offsets and vocabulary.
    Raises UsageError for a suffix that is not known, and where a file is there already and ``force`` is not given.
    """
    if path.suffix not in FORMATS:
        raise unknown_name("format", path.suffix or path.name, FORMATS, "The suffix of --to says which.")
    paths = (path, path.with_suffix(".parquet")) if path.suffix == ".npy" else (path,)
    if there := [str(one) for one in paths if one.exists() and not force]:
        raise UsageError(f"{', '.join(there)} is there already. Choose another name, or overwrite it with --force.")
    if any(isinstance(dataset.find_any(query), TokenFile) for query in queries):
        return _export_tokens(dataset, path, queries, split)
    features = dataset.features(*queries)
    if split is not None:
        features = _of_split(features, split)
    if not len(features):
        raise UsageError(f"No sample of {dataset.name} has all of the features: nothing was written.")
    FORMATS[path.suffix](path, Export(features, _columns(features), _about(dataset, features)))
    names = dict(zip(features.names, features.dims, strict=True))
    return Exported(paths, len(features), names, dict(features.left_out))


def _of_split(features: Features, split: str) -> Features:
    return features.take(_in_split(features, split))


def _in_split(units: Features | Tokens, split: str) -> npt.NDArray[np.bool_]:
    """Which units are of a published split. Raises UnknownNameError where there is none of that name."""
    known = sorted({str(name) for name in units.splits if name is not None})
    if split not in known:
        raise unknown_name("split", split, known)
    return np.asarray(units.splits == split)


def _export_tokens(dataset: CachedDataset, path: Path, queries: Sequence[FeatureQuery], split: str | None) -> Exported:
    """One set of word ids: of each sample its first text, as flat tokens with offsets, and the vocabulary."""
    if len(queries) > 1 or path.suffix != ".npz":
        raise UsageError(
            "Word ids are rows of any length: they are exported by themselves, to .npz (tokens, offsets, vocabulary); "
            f"got {len(queries)} feature sets and {path.suffix}."
        )
    found = dataset.tokens(queries[0])
    if split is not None:
        found = found.take(_in_split(found, split))
    if not len(found):
        raise UsageError(f"No sample of {dataset.name} has word ids: nothing was written.")
    about = {"dataset": dataset.name, "sets": {"tokens": token_view.about(found)}, "left_out": dict(found.left_out)}
    arrays = {
        **_columns(found.units),
        "tokens": found.tokens,
        "offsets": found.offsets,
        "vocabulary": np.array(found.vocabulary, np.str_),
        "about": np.array(json.dumps(about, ensure_ascii=False)),
    }
    with replacing(path) as beside, zipfile.ZipFile(beside, "w", allowZip64=True) as file:
        _write_arrays(file, arrays)
    return Exported((path,), len(found), {found.name: found.file.n_words}, dict(found.left_out), "words")


def set_names(features: Features) -> list[str]:
    """``features`` for the only set; else ``features.<name>``, with what no format minds in a name."""
    if len(features.sets) == 1:
        return ["features"]
    return [f"features.{name.replace('/', '_').replace(':', '_')}" for name in features.names]


def _about(dataset: CachedDataset, features: Features) -> dict[str, Any]:
    """Where it came from: names, fingerprints and provenance of the sets, left-out samples."""
    sets = {
        out: {"name": one.name, "fingerprint": one.file.fingerprint, "provenance": one.file.provenance}
        for out, one in zip(set_names(features), features.sets, strict=True)
    }
    return {"dataset": dataset.name, "sets": sets, "left_out": dict(features.left_out)}


def _columns(features: Features) -> dict[str, Column]:
    """ids, split and targets as arrays without Python objects, (units,)."""
    found = {"ids": features.ids, "split": features.splits}
    found |= {f"target.{name}": features.target(name) for name in features.table.targets}
    return {name: plain(values) for name, values in found.items()}


def plain(values: npt.NDArray[np.object_]) -> Column:
    """Numbers where all are numbers (NaN where there is none), else texts (empty where there is none).

    Lists, such as the labels of a multi-label target, become JSON.
    """
    some = [value for value in values if value is not None]
    if some and all(isinstance(value, bool | int) for value in some) and len(some) == len(values):
        return np.array(values.tolist(), np.int64)
    if some and all(isinstance(value, bool | int | float) for value in some):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.array([_as_text(value) for value in values], np.str_)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _write_npz(path: Path, out: Export) -> None:
    """Uncompressed, block by block: never more than a few rows in memory."""
    from numpy.lib import format as npy

    with replacing(path) as beside, zipfile.ZipFile(beside, "w", allowZip64=True) as file:
        _write_arrays(file, {**out.columns, "about": np.array(json.dumps(out.about, ensure_ascii=False))})
        for name, found in out.sets.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as one:
                kind = _kind(found)
                header = {"descr": kind.str, "fortran_order": False, "shape": (len(out.features), found.dim)}
                npy.write_array_header_2_0(one, header)
                for block in out.blocks(found):
                    one.write(np.ascontiguousarray(block, kind).tobytes())


def _write_arrays(file: zipfile.ZipFile, arrays: Mapping[str, Column]) -> None:
    from numpy.lib import format as npy

    for name, values in arrays.items():
        with file.open(f"{name}.npy", "w", force_zip64=True) as one:
            npy.write_array(one, values, allow_pickle=False)


def _write_npy(path: Path, out: Export) -> None:
    """All sets side by side; ids, split and targets as Parquet beside, the matrix last."""
    write_parquet(path.with_suffix(".parquet"), _arrow_columns(out))
    kind = np.result_type(*(_kind(one) for one in out.sets.values()))
    shape = (len(out.features), sum(one.dim for one in out.sets.values()))
    with replacing(path) as beside:
        matrix = np.lib.format.open_memmap(beside, "w+", kind, shape)
        column = 0
        for one in out.sets.values():
            row = 0
            for block in out.blocks(one):
                matrix[row : row + len(block), column : column + one.dim] = block
                row += len(block)
            column += one.dim
        matrix.flush()


def _arrow_columns(out: Export) -> pa.Table:
    """Ids, split and targets as one Parquet table, with where they came from in its metadata."""
    columns = {"id": pa.array(out.columns["ids"])}
    columns |= {name: pa.array(values) for name, values in out.columns.items() if name != "ids"}
    return pa.table(columns).replace_schema_metadata({"embedcache": json.dumps(out.about, ensure_ascii=False)})


def _write_parquet(path: Path, out: Export) -> None:
    """One column of lists of a fixed length per feature set."""
    import pyarrow.parquet as pq

    plain_columns = _arrow_columns(out)
    fields = [
        pa.field(name, pa.list_(pa.from_numpy_dtype(_kind(one).newbyteorder("=")), one.dim))
        for name, one in out.sets.items()
    ]
    schema = pa.schema([*plain_columns.schema, *fields], plain_columns.schema.metadata)
    blocks = zip(*(out.blocks(one) for one in out.sets.values()), strict=True)
    with replacing(path) as beside, pq.ParquetWriter(beside, schema) as writer:
        start = 0
        for together in blocks:
            n = len(together[0])
            vectors = [_lists(block, field) for block, field in zip(together, fields, strict=True)]
            writer.write_table(pa.table([*plain_columns.slice(start, n).columns, *vectors], schema=schema))
            start += n


def _lists(block: npt.NDArray[Any], field: pa.Field) -> pa.Array:
    flat = np.ascontiguousarray(block, block.dtype.newbyteorder("=")).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type)


def _write_safetensors(path: Path, out: Export) -> None:
    """Texts as UTF-8 bytes, uint8 (n, longest), padded with zeros: the format holds numbers alone."""
    from safetensors.numpy import save_file

    tensors = {name: _as_bytes(values) if values.dtype.kind == "U" else values for name, values in out.columns.items()}
    for name, one in out.sets.items():
        tensors[name] = np.concatenate(list(out.blocks(one)))
    texts = [name for name, values in out.columns.items() if values.dtype.kind == "U"]
    about = {**out.about, "texts": texts, "texts_are": "UTF-8 bytes, padded with zeros"}
    with replacing(path) as beside:
        save_file(tensors, beside, {"embedcache": json.dumps(about, ensure_ascii=False)})


def _as_bytes(texts: Column) -> npt.NDArray[np.uint8]:
    """uint8, (n, length of the longest in bytes)."""
    encoded = np.char.encode(texts, "utf-8")
    width = max(1, encoded.dtype.itemsize)
    return np.ascontiguousarray(encoded.astype(f"S{width}")).view(np.uint8).reshape(len(texts), width)


def _write_hdf5(path: Path, out: Export) -> None:
    """Plain and contiguous: ``ids``, ``split``, ``targets/<name>``, and a dataset per feature set."""
    import h5py

    with replacing(path) as beside, h5py.File(beside, "x") as file:
        file.attrs["embedcache"] = json.dumps({k: v for k, v in out.about.items() if k != "sets"}, ensure_ascii=False)
        for name, values in out.columns.items():
            where = f"targets/{name.removeprefix('target.')}" if name.startswith("target.") else name
            data = np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values
            width = max(1, data.dtype.itemsize)
            text = h5py.string_dtype("utf-8", width) if values.dtype.kind == "U" else None
            file.create_dataset(where, data=data.astype(text or data.dtype), dtype=text)
        for name, one in out.sets.items():
            dataset = file.create_dataset(name, (len(out.features), one.dim), _kind(one))
            row = 0
            for block in out.blocks(one):
                dataset[row : row + len(block)] = block
                row += len(block)
            dataset.attrs["name"] = one.name
            dataset.attrs["fingerprint"] = one.file.fingerprint
            dataset.attrs["provenance"] = json.dumps(one.file.provenance, ensure_ascii=False)


def _kind(one: FeatureSet) -> np.dtype[Any]:
    """The type that a set's vectors go out in: as stored, or float32 where captions are averaged."""
    return np.dtype(one.file.layout.stored if one.single else "float32").newbyteorder("<")


FORMATS: Final[Mapping[str, Callable[[Path, Export], None]]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
    ".h5": _write_hdf5,
}
"""By suffix."""


# --------------------------------------------------------------------------------------------------------- import


@dataclass(frozen=True)
class Imported:
    """What became of an import. unmatched: rows of the file that belong to no item; lacking: items without a row."""

    file: FeatureFile
    matched_by: str
    n_items: int
    n_failed: int
    unmatched: int
    lacking: int


@dataclass(frozen=True)
class Foreign:
    """A matrix from elsewhere. ids: texts, (n,). vectors: float16 or float32, (n, dim)."""

    ids: pa.Array
    vectors: npt.NDArray[Any]

    @property
    def digest(self) -> str:
        """xxh3-128 of type, shape and bytes, 32 hexadecimal digits."""
        state = xxhash.xxh3_128(f"{self.vectors.dtype.str}{self.vectors.shape}".encode())
        state.update(np.ascontiguousarray(self.vectors).data)
        return state.hexdigest()


def import_vectors(
    dataset: CachedDataset, path: Path, name: str, modality: Modality, ids: Path | None = None
) -> Imported:
    """Make a sealed feature file of a matrix with ids; ids are item ids or sample ids.

    path: ``.npz`` with ``ids`` and ``features``, or ``.npy`` with ``ids`` (Parquet with a column ``id``, ``.npy``,
    or a text file with an id a line; default: the Parquet file of the same name). Rows that are not finite fail,
    with that reason. Raises UsageError where the file does not fit, AllItemsFailedError where no row is finite.
    """
    if modality not in dataset.table.modalities:
        raise UsageError(f"{dataset.name} has no {modality}s; it has {', '.join(dataset.table.modalities)}s.")
    foreign = read_foreign(path, ids)
    rows, matched_by, unmatched = _matched(dataset, foreign, modality, path)
    wanted = np.flatnonzero(rows >= 0)
    layout = _layout(fixed_length(dataset.table.items[modality]["id"])[wanted], foreign, modality)
    file = _written(dataset, layout, name, path, foreign.vectors, rows[wanted], _contents(dataset, modality, wanted))
    return Imported(file, matched_by, file.n_items, file.n_failed, unmatched, len(rows) - len(wanted))


def _layout(ids: npt.NDArray[np.bytes_], foreign: Foreign, modality: Modality) -> Layout:
    """The file to be: its provenance says where the vectors are from, as far as that can be known."""
    dim = foreign.vectors.shape[1]
    stored: StoredType = "float16" if foreign.vectors.dtype.itemsize == 2 else "float32"
    identity = EncoderIdentity(modality, "import", foreign.digest, {"dim": dim}, "none", {}, layer="none")
    provenance = json.loads(Provenance(identity, stored, stored).to_json())
    return Layout(ids, dim, stored, provenance, store.block_length(modality, dim, stored))


def _written(
    dataset: CachedDataset,
    layout: Layout,
    name: str,
    path: Path,
    vectors: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    content: npt.NDArray[np.uint8],
) -> FeatureFile:
    """Lay out, write and seal under the lock; rows that are not finite fail."""
    finite = np.array([bool(np.isfinite(vectors[row]).all()) for row in rows])
    if not finite.any():
        raise AllItemsFailedError(f"None of the {len(rows)} vectors of {path} is finite. No feature file was written.")
    modality: Modality = layout.provenance["modality"]
    where = dataset.folder.feature_path(modality, slug(name), fingerprint(layout.provenance))
    record: dict[str, Any] = {
        "backbone": name, "checkpoint": f"import:{slug(name)}", "commit": None, "settings": {},
        "dataset": dataset.name, "imported": path.name, "started": store.now(), "finished": store.now(),
    }  # fmt: skip
    with locked(lock_path(dataset.folder.path, name, layout.provenance), wait=False):
        if where.exists() or store.partial_path(where).exists():
            raise UsageError(f"{where} is there already: these vectors were imported before. 'rm' removes them.")
        with store.create(where, layout, record) as writer:
            failed = layout.ids[~finite].tolist()
            append_failures(where, {item.decode(): "its vector is not finite" for item in failed})
            for block in range(layout.n_blocks):
                here = layout.rows(block)
                data = np.where(finite[here, None], vectors[rows[here]], 0).astype(layout.stored)
                status = np.where(finite[here], DONE, FAILED).astype(np.uint8)
                writer.write_block(block, data, content[here], status)
            writer.seal(record)
        file = FeatureFile(where)
        keep_failures(file)
    return file


def _contents(dataset: CachedDataset, modality: Modality, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Content digests of items as they are remembered, zeros where they are not; uint8, (n, 16)."""
    items = dataset.table.items[modality]
    if modality == "text":
        return text_states(fixed_length(items["id"])).content[wanted]
    if "content" not in items.column_names:
        return np.zeros((len(wanted), 16), np.uint8)
    digests = [one or bytes(16) for one in items["content"].to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)[wanted]


def read_foreign(path: Path, ids: Path | None = None) -> Foreign:
    """Read a matrix and its ids; nothing in the files is ever run. Raises UsageError where they do not fit."""
    if not path.is_file():
        raise DataNotFoundError(f"There is no file {path}.")
    if path.suffix not in (".npz", ".npy"):
        raise UsageError(f"{path} cannot be imported: expected .npz with 'ids' and 'features', or .npy with --ids.")
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        names, vectors = _of_npz(found, path) if path.suffix == ".npz" else (_read_ids(path, ids), found)
    except EmbedCacheError:
        raise
    except Exception as error:  # numpy's and zip's parsers meet damage with errors of many kinds (tokens, memory)
        raise UsageError(f"{path} cannot be read as {path.suffix} without pickle: {error}") from error
    return _foreign(names, vectors, path)


def _of_npz(found: Any, path: Path) -> tuple[pa.Array, npt.NDArray[Any]]:
    missing = {"ids", "features"} - set(found.files)
    if missing:
        raise UsageError(f"{path} holds {sorted(found.files)}; 'ids' and 'features' are expected.")
    return _texts(found["ids"], path), found["features"]


def _read_ids(path: Path, ids: Path | None) -> pa.Array:
    """Ids of a matrix that has none of its own."""
    beside = ids or path.with_suffix(".parquet")
    if not beside.is_file():
        raise DataNotFoundError(f"There is no file {beside} with the ids of {path}: say where they are with --ids.")
    if beside.suffix == ".parquet":
        table = read_parquet(beside)
        if "id" not in table.column_names:
            raise UsageError(f"{beside} has no column 'id', only {', '.join(table.column_names)}.")
        return combined(table["id"]).cast(pa.large_string())
    if beside.suffix == ".npy":
        return _texts(np.load(beside, allow_pickle=False), beside)
    return pa.array(beside.read_text(encoding="utf-8-sig").splitlines(), pa.large_string())


def _texts(values: npt.NDArray[Any], path: Path) -> pa.Array:
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise UsageError(f"The ids in {path} are {values.dtype} {values.shape}; expected texts or integers, (n,).")
    texts = [one.decode() if isinstance(one, bytes) else str(one) for one in values.tolist()]
    return pa.array(texts, pa.large_string())


def _foreign(ids: pa.Array, vectors: npt.NDArray[Any], path: Path) -> Foreign:
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or 0 in vectors.shape:
        raise UsageError(f"The matrix in {path} is {vectors.dtype} {vectors.shape}; expected floats, (n, dim).")
    if len(ids) != len(vectors):
        raise UsageError(f"{path} has {len(vectors):,} rows and {len(ids):,} ids.")
    if len(ids.unique()) < len(ids) or ids.null_count:
        raise UsageError(f"Ids of {path} are repeated or missing: {len(ids):,} rows, {len(ids.unique()):,} ids.")
    kind = "<f2" if vectors.dtype.itemsize == 2 else "<f4"
    with np.errstate(over="ignore"):
        return Foreign(ids, vectors.astype(kind, copy=False))


def _matched(
    dataset: CachedDataset, foreign: Foreign, modality: Modality, path: Path
) -> tuple[npt.NDArray[np.int64], str, int]:
    """For each item its row in the matrix or -1; by which ids; how many rows of the matrix belong to no item."""
    names = fixed_length(foreign.ids)
    rows = positions(fixed_length(dataset.table.items[modality]["id"]), names)
    if (rows >= 0).any():
        return rows, "item id", len(names) - int((rows >= 0).sum())
    rows, used = _by_sample(dataset, foreign, modality, path)
    if not used:
        raise UsageError(
            f"No id of {path} is an item id or a sample id of {dataset.name} (its first: "
            f"{foreign.ids[0].as_py()!r}; a sample id: {dataset.table.samples['id'][0].as_py()!r})."
        )
    return rows, "sample id", len(names) - used


def _by_sample(
    dataset: CachedDataset, foreign: Foreign, modality: Modality, path: Path
) -> tuple[npt.NDArray[np.int64], int]:
    """Through samples that have exactly one item; samples that share an item must agree on its vector."""
    of_sample = positions(fixed_length(dataset.table.samples["id"]), fixed_length(foreign.ids))
    references, offsets = dataset.table.references(modality)
    single = np.flatnonzero((np.diff(offsets) == 1) & (of_sample >= 0))
    items, found = references[offsets[single]], of_sample[single]
    rows = np.full(dataset.table.items[modality].num_rows, -1, np.int64)
    rows[items[::-1]] = found[::-1]
    for item, row in zip(items[rows[items] != found], found[rows[items] != found], strict=True):
        if not np.array_equal(foreign.vectors[rows[item]], foreign.vectors[row], equal_nan=True):
            raise UsageError(
                f"{path}: samples {foreign.ids[int(rows[item])].as_py()!r} and {foreign.ids[int(row)].as_py()!r} "
                f"share one {modality} and have different vectors. Use item ids."
            )
    return rows, len(single)
