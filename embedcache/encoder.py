"""Photos and texts to vectors as a scikit-learn transformer that asks the cache first: ``CachedEncoder``.

>>> import embedcache as ec                                                          # doctest: +SKIP
>>> from sklearn.linear_model import LogisticRegression                              # doctest: +SKIP
>>> from sklearn.pipeline import make_pipeline                                       # doctest: +SKIP
>>> make_pipeline(ec.CachedEncoder("roberta"), LogisticRegression()).fit(texts, y)   # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from embedcache import items as item_states
from embedcache.backbones import resolve, slug
from embedcache.backbones.base import Backbone, BackboneSettings
from embedcache.backbones.words_family import WordIds
from embedcache.catalog import DatasetFolder, dataset_folders
from embedcache.container import VECTORS, read_header
from embedcache.datasets import open_dataset, read_image
from embedcache.datasets.base import ImageFiles
from embedcache.errors import AllItemsFailedError, DamagedFileError, ItemError, UsageError, unknown_name
from embedcache.extraction import extract_rows
from embedcache.failures import failures_of
from embedcache.files import locked
from embedcache.jobs import satisfies
from embedcache.opening import OpenedDataset
from embedcache.options import Options, usable_cores
from embedcache.provenance import FloatType, Modality, Provenance, StoredType
from embedcache.samples import combined, read_parquet, text_id, write_parquet
from embedcache.store import DONE, FeatureFile

OWN: Final = ".encoder"
"""The folder in a cache where a CachedEncoder keeps what no data set of the cache has: a cache of its own."""
_NAMES: Final[Mapping[Modality, str]] = {"image": "images", "text": "texts"}
_LISTED: Final = "listed.parquet"
_ROOT: Final = Path("/")
_NAMED_FAILURES = 5

Digests = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


class CachedEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A frozen backbone as a transformer: image files or texts in, vectors out, each item encoded once for ever.

    backbone: an alias, ``family:checkpoint``, or a backbone that was made in Python; it decides what the items are.
    Of a model with two towers, one: ``clip-vit-base.image``. cache: the cache's folder; it is made where there is none.
    settings: a ``BackboneSettings``, or its fields as a mapping. options: an ``Options`` (device, precision …).
    on_error: ``raise`` names the items that cannot be encoded in an ItemError, ``nan`` gives them rows of NaN.

    An item is known by its bytes: wherever in the cache a data set or an earlier call has a vector of the same
    content by the same encoder, it is taken from there, whatever the file is called. The rest is encoded as
    ``extract`` would, and kept in ``.encoder`` in the cache's folder. Processes and threads may share a cache: one
    encodes at a time, the others find what it has made.

    After ``fit``: ``fingerprint_`` (what the numbers mean; another encoder is refused from then on), ``dim_``.
    """

    def __init__(
        self,
        backbone: str | Backbone,
        *,
        cache: str | Path = "cache",
        settings: BackboneSettings | Mapping[str, Any] | None = None,
        options: Options | None = None,
        on_error: Literal["raise", "nan"] = "raise",
    ) -> None:
        self.backbone = backbone
        self.cache = cache
        self.settings = settings
        self.options = options
        self.on_error = on_error

    def __sklearn_tags__(self) -> Any:
        """Lists of paths or texts, no matrix; may be used without being fitted."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.requires_fit = False
        return tags

    def fit(self, X: Any, y: Any = None) -> CachedEncoder:
        """Encode ``X`` into the cache, and remember which encoder that was. X: n paths, or n texts."""
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X: Any, y: Any = None, **_: Any) -> npt.NDArray[np.float32]:
        """``fit`` and ``transform`` in one pass."""
        vectors, self.fingerprint_ = self._vectors(X, None)
        self.dim_ = vectors.shape[1]
        return vectors

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Vectors, float32 (n, dim), in the order of ``X``; forward passes only for what the cache lacks.

        Raises ItemError with the first failed items and their reasons; UsageError for items that are no paths or
        texts, and where the backbone is no longer the one that it was fitted with.
        """
        return self._vectors(X, getattr(self, "fingerprint_", None))[0]

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """The backbone's name with a number, (dim,)."""
        check_is_fitted(self, "dim_")
        name = self.backbone if isinstance(self.backbone, str) else self.backbone.name
        return np.array([f"{slug(name)}_{number}" for number in range(self.dim_)], object)

    def __sklearn_is_fitted__(self) -> bool:
        """Whether ``fit`` has seen items."""
        return hasattr(self, "fingerprint_")

    def _vectors(self, X: Any, fingerprint: str | None) -> tuple[npt.NDArray[np.float32], str]:
        if self.on_error not in ("raise", "nan"):
            raise UsageError(f"on_error is 'raise' or 'nan', got {self.on_error!r}.")
        backbone = self._backbone()
        items = _items(X, backbone.modality)
        if not items.names:
            if fingerprint is None:
                raise UsageError("There are no items: an encoder is fitted on one at least.")
            return np.zeros((0, self.dim_), np.float32), fingerprint
        shelf = _Shelf(Path(self.cache), backbone, self.options or Options(), fingerprint)
        known = shelf.with_all(items)
        if self.on_error == "raise" and known.failures:
            raise _item_error(known.failures, len(items.names), backbone)
        return known.vectors, known.fingerprint

    def _backbone(self) -> Backbone:
        """The backbone, found on this machine and not loaded."""
        settings = self.settings
        if not isinstance(self.backbone, str):
            if settings is not None:
                raise UsageError("A backbone that was made in Python has its settings already.")
            found = self.backbone
        else:
            found = resolve(self.backbone, _stated(settings))
        if isinstance(found, WordIds):
            raise UsageError(f"{found.name} gives word ids, rows of any length: a CachedEncoder gives vectors.")
        return found


@dataclass(frozen=True)
class _Items:
    """Different items in order of appearance, and which of them each input is.

    names: paths below the root of the file system, or texts. content: xxh3-128, uint8 (different items, 16).
    row: the item of each input, int64 (n,). failures: of items that cannot be read, by number.
    """

    modality: Modality
    names: Sequence[str]
    content: Digests
    row: Rows
    failures: Mapping[int, str]


@dataclass(frozen=True)
class _Known:
    """vectors: float32 (n, dim), NaN where an item failed. failures: item to reason."""

    vectors: npt.NDArray[np.float32]
    failures: Mapping[str, str]
    fingerprint: str


def _stated(settings: BackboneSettings | Mapping[str, Any] | None) -> BackboneSettings:
    """The settings. Raises UnknownNameError for a field that they do not have."""
    if isinstance(settings, BackboneSettings):
        return settings
    known = [item.name for item in fields(BackboneSettings)]
    for name in settings or {}:
        if name not in known:
            raise unknown_name("setting of a backbone:", str(name), known)
    return BackboneSettings(**(settings or {}))


def _items(X: Any, modality: Modality) -> _Items:
    """Inputs as different items with their digests. Raises UsageError for what is no path or text."""
    given = _listed(X)
    wanted = (str, os.PathLike) if modality == "image" else (str,)
    for position, one in enumerate(given):
        if not isinstance(one, wanted):
            expected = "a path of an image file" if modality == "image" else "a text"
            raise UsageError(f"Item {position} is a {type(one).__name__}; this backbone reads {modality}s: {expected}.")
    plain = [_below_root(one) if modality == "image" else str(one) for one in given]
    place = {name: number for number, name in enumerate(dict.fromkeys(plain))}
    row = np.array([place[name] for name in plain], np.int64)
    names = list(place)
    if modality == "text":
        return _Items(modality, names, *_of_texts(names, row))
    return _Items(modality, names, *_of_images(names, row))


def _listed(X: Any) -> list[Any]:
    """A list, an array, a column of a table; (n, 1) too, as column transformers hand it over."""
    if isinstance(X, str | bytes | os.PathLike):
        raise UsageError(f"Expected a list of items, got a single {type(X).__name__}.")
    found = X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(found, np.ndarray):
        if found.ndim == 2 and found.shape[1] == 1:
            found = found[:, 0]
        if found.ndim != 1:
            raise UsageError(f"Expected n items, (n,), got an array of shape {found.shape}.")
        return list(found.tolist())
    return list(found)


def _below_root(path: Any) -> str:
    """An image's absolute path without its first slash: its id in the encoder's own data set."""
    found = Path(path).expanduser().resolve().relative_to(_ROOT).as_posix()
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The name of an image is not UTF-8: {os.fsencode(found)!r}. Rename it.") from error
    return found


def _of_texts(names: Sequence[str], row: Rows) -> tuple[Digests, Rows, dict[int, str]]:
    """Digests, rows and failures of texts; one with half a surrogate pair is no text that can be kept."""
    content = np.zeros((len(names), 16), np.uint8)
    failures: dict[int, str] = {}
    for number, name in enumerate(names):
        try:
            content[number] = np.frombuffer(xxhash.xxh3_128_digest(name.encode()), np.uint8)
        except UnicodeEncodeError:
            failures[number] = "it is not UTF-8"
    return content, row, failures


def _of_images(names: Sequence[str], row: Rows) -> tuple[Digests, Rows, dict[int, str]]:
    """Digests, rows and failures of image files, read on threads."""
    stat = ImageFiles(_ROOT).stat
    states = item_states.image_states(stat, item_states.fixed_length(pa.array(names, pa.large_string())), None)
    read = item_states.reader_of_images(lambda item: read_image(_ROOT, item), states.ids)
    content = item_states.with_digests(states, np.arange(len(names)), read, usable_cores()).content
    failures: dict[int, str] = {}
    for number in np.flatnonzero(~content.any(1)).tolist():
        try:
            read(number)
            failures[number] = "it changed while it was read"
        except ItemError as error:
            failures[number] = str(error)
    return content, row, failures


class _Shelf:
    """The vectors of one encoder, wherever in a cache they are.

    fingerprint: the one that must be; None lets the files that are there decide, or the first extraction.
    """

    def __init__(self, cache: Path, backbone: Backbone, options: Options, fingerprint: str | None) -> None:
        self.cache, self.backbone = cache, backbone
        self.options = replace(options, wait=True, on_error="skip", check="content")
        self.fingerprint = fingerprint
        self.folder = DatasetFolder(cache / OWN, _NAMES[backbone.modality])

    def with_all(self, items: _Items) -> _Known:
        """Vectors of all items: those that are there, then those that are encoded now."""
        self._decide(items.content)
        vectors, missing = self._found(items)
        failures: dict[int, str] = dict(items.failures)
        if len(missing):
            self.folder.path.mkdir(parents=True, exist_ok=True)
            with locked(self.folder.path / "listed", wait=True):
                self._decide(items.content)
                vectors, missing = self._found(items)  # another process may have encoded them meanwhile
                if len(missing):
                    failures |= self._encode(items, missing)
                    vectors, missing = self._found(items, without=failures)
            failures |= {int(number): "it changed while it was encoded" for number in missing}
        if vectors is None or self.fingerprint is None:
            raise _item_error({_shown(items, n): why for n, why in failures.items()}, len(items.names), self.backbone)
        for number in failures:
            vectors[number] = np.nan
        named = {_shown(items, number): reason for number, reason in sorted(failures.items())}
        return _Known(vectors[items.row], named, self.fingerprint)

    def _files(self) -> Iterator[FeatureFile]:
        """Sealed files of this encoder in every data set of the cache, and in the encoder's own."""
        for folder in (*dataset_folders(self.cache), self.folder):
            for path in folder.feature_paths(self.backbone.modality):
                if (header := read_header(path)) is None or header.kind != VECTORS:
                    continue
                try:
                    file = FeatureFile(path)
                except (DamagedFileError, FileNotFoundError):
                    continue  # 'verify' names it; here it is as if it were not there
                if satisfies(file, self.backbone, self.options):
                    yield file

    def _decide(self, content: Digests) -> None:
        """Settle on one fingerprint: the given one, else that which has the most of these items, then the most rows."""
        if self.fingerprint is None:
            hits: dict[str, tuple[int, int]] = {}
            for file in self._files():
                own, rows = hits.get(file.fingerprint, (0, 0))
                found = int((_rows_in(file, content) >= 0).sum())
                hits[file.fingerprint] = own + found, rows + file.n_items
            self.fingerprint = max(hits, key=lambda mark: (*hits[mark], mark), default=None)
        if self.fingerprint is not None:
            self._pin(self.fingerprint)

    def _pin(self, fingerprint: str) -> None:
        """Encode in the precisions that ``fingerprint`` means. Raises UsageError where no precision of it does."""
        for compute in get_args(FloatType):
            for stored in get_args(StoredType):
                if Provenance(self.backbone.identity, compute, stored).fingerprint == fingerprint:
                    self.options = replace(self.options, precision=compute, stored=stored)
                    return
        now = Provenance(self.backbone.identity, "float32", "float16").fingerprint
        raise UsageError(
            f"This CachedEncoder was fitted with {self.backbone.name}@{fingerprint}; the files on this machine make "
            f"{self.backbone.name}@{now}. Those are other numbers: bring the same checkpoint, or fit again."
        )

    def _found(
        self, items: _Items, without: Mapping[int, str] | None = None
    ) -> tuple[npt.NDArray[np.float32] | None, Rows]:
        """Vectors (different items, dim) of what the files have, and the items that they lack.

        without: failed items, which are not missing.
        """
        failed = np.array(sorted({*items.failures, *(without or {})}), np.int64)
        missing = np.setdiff1d(np.arange(len(items.names)), failed)
        vectors: npt.NDArray[np.float32] | None = None
        for file in self._files():
            if file.fingerprint != self.fingerprint:
                continue
            if vectors is None:
                vectors = np.zeros((len(items.names), file.dim), np.float32)
            rows = _rows_in(file, items.content[missing])
            here = rows >= 0
            vectors[missing[here]] = file.features[rows[here]]
            missing = missing[~here]
            if not len(missing):
                break
        return vectors, missing

    def _encode(self, items: _Items, missing: Rows) -> dict[int, str]:
        """Encode what is missing into the encoder's own data set; failures by item. The lock is held.

        Of files with the same content the first one is encoded.
        """
        _, first, same = np.unique(items.content[missing], axis=0, return_index=True, return_inverse=True)
        names = [items.names[number] for number in missing[first]]
        opened, rows = self._listed(names, items.modality)
        try:
            done = extract_rows(opened, self.backbone, self.options, rows)
        except AllItemsFailedError as error:
            return dict.fromkeys(missing.tolist(), str(error))
        self.fingerprint = done.fingerprint
        self._pin(str(done.fingerprint))
        assert done.path is not None
        reasons = failures_of(FeatureFile(done.path))
        ids = [name if items.modality == "image" else text_id(name) for name in names]
        own = {number: ids[one] for number, one in zip(missing.tolist(), same.reshape(-1).tolist(), strict=True)}
        return {number: reasons[name] for number, name in own.items() if name in reasons}

    def _listed(self, names: Sequence[str], modality: Modality) -> tuple[OpenedDataset, Rows]:
        """The encoder's own data set with these items in it, a table like any other, and their rows."""
        path = self.folder.path / _LISTED
        ids = [name if modality == "image" else text_id(name) for name in names]
        fresh = pa.table({"id": pa.array(ids, pa.large_string()), modality: pa.array(names, pa.large_string())})
        if path.exists():
            before = read_parquet(path).cast(fresh.schema)
            new = pc.invert(pc.is_in(fresh["id"], value_set=combined(before["id"])))
            listed = pa.concat_tables([before, fresh.filter(new)])
        else:
            listed = fresh
        write_parquet(path, listed)
        columns = {"id": "id", modality: modality, "images": str(_ROOT) if modality == "image" else None}
        opened = OpenedDataset.read(self.folder.name, open_dataset("table", [path], columns), cache=self.folder.cache)
        rows = pc.index_in(pa.array(ids, pa.large_string()), value_set=combined(listed["id"]))
        return opened, np.asarray(rows).astype(np.int64)


def _rows_in(file: FeatureFile, content: Digests) -> Rows:
    """The row of each digest in a file, (n,); -1 where it has no vector of that content."""
    there = pc.index_in(_binary(content), value_set=_binary(np.ascontiguousarray(file.content)))
    rows = np.asarray(pc.fill_null(there, -1)).astype(np.int64)
    done = rows >= 0
    done[done] = np.asarray(file.status)[rows[done]] == DONE
    return np.where(done & content.any(1), rows, -1)


def _binary(digests: Digests) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(digests.tobytes())])


def _shown(items: _Items, number: int) -> str:
    name = items.names[number]
    return str(_ROOT / name) if items.modality == "image" else name


def _item_error(failures: Mapping[str, str], n: int, backbone: Backbone) -> ItemError:
    listed = list(failures.items())
    first = "; ".join(f"{name[:200]!r}: {reason}" for name, reason in listed[:_NAMED_FAILURES])
    more = f"; and {len(listed) - _NAMED_FAILURES:,} more" if len(listed) > _NAMED_FAILURES else ""
    return ItemError(
        f"{len(listed):,} of {n:,} different {backbone.modality}s cannot be encoded with {backbone.name} "
        f"({first}{more}). Leave them out, or ask for rows of NaN: on_error='nan'."
    )
