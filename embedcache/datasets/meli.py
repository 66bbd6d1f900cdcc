"""The MercadoLibre Data Challenge of 2019: titles of listings in Spanish and Portuguese, and their categories.

Two layouts are read: the challenge's own CSV files, and the JSON lines that the course *Aprendizaje Profundo* of the
Diplomatura en Ciencia de Datos (FAMAF, Córdoba) prepared of them, with word ids and their vocabulary. ``docs/datasets/
meli.md`` has the details.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedcache.datasets.base import PublishedTokens
from embedcache.datasets.sampling import Drawn, keys_of
from embedcache.datasets.streaming import Bar, csv_batches, first_line, header, json_batches
from embedcache.datasets.word_lists import WordLists, read_vocabulary, word_column
from embedcache.errors import DataNotFoundError, UsageError, unknown_name
from embedcache.samples import SPLITS, SampleTable, build, canonical_split, combined

LANGUAGES = ("spanish", "portuguese")
LABEL_QUALITIES = ("reliable", "unreliable")
WEIGHTS: Final = {"reliable": 1.0, "unreliable": 0.5}
"""Sample weights where ``weights`` is the word ``label_quality``."""
TRAIN_COLUMNS = ("title", "label_quality", "language", "category")
TEST_COLUMNS = ("id", "title", "language")

_TEXT = pa.large_string()
_PREPARED = re.compile(rf"({'|'.join(LANGUAGES)})\.(train|validation|test)\.jsonl(\.gz)?")
_FIELDS = pa.schema(
    [pa.field("title", _TEXT, nullable=False), ("category", _TEXT), ("language", _TEXT), ("label_quality", _TEXT)]
)
_WORD_IDS = pa.schema(
    [pa.field("title", _TEXT, nullable=False), pa.field("data", pa.list_(pa.int32()), nullable=False)]
)
_COLUMNS = ("id", "title", "split", "category", "language", "label_quality")


@dataclass(frozen=True)
class Source:
    """One file. language: of all its rows, None where each row says its own."""

    path: Path
    kind: Literal["csv", "jsonl"]
    split: str
    language: str | None = None

    @property
    def stem(self) -> str:
        """The file's name without its endings: what row numbers are counted in."""
        return re.sub(r"\.(csv|jsonl)(\.gz)?$", "", self.path.name)

    def batches(self, bar: Bar) -> Iterator[pa.Table]:
        """Its rows as tables of large strings; a column that it lacks is missing."""
        if self.kind == "jsonl":
            for table in json_batches(self.path, _FIELDS, bar):
                language = pc.fill_null(table["language"], self.language)
                yield table.set_column(table.column_names.index("language"), "language", language)
            return
        for batch in csv_batches(self.path, TRAIN_COLUMNS if self.split == "train" else TEST_COLUMNS, bar):
            yield pa.Table.from_batches([batch])


@dataclass(frozen=True)
class Meli:
    """Titles with their category. root: the folder of the files, or one file.

    language, label_quality: the only one that is read, None for both. splits: those that are read, () for all.
    weights: of samples by label quality. rows: that many random rows of the training files; seed: of that choice.
    """

    root: Path
    language: str | None = None
    label_quality: str | None = None
    weights: Mapping[str, float] | None = None
    rows: int | None = None
    seed: int = 0
    splits: tuple[str, ...] = ()

    adapter: ClassVar[str] = "meli"
    default_name: ClassVar[str] = "meli"

    @classmethod
    def open(
        cls,
        data: Path,
        language: str | None = None,
        label_quality: str | None = None,
        weights: str | Mapping[str, float] | None = None,
        rows: int | None = None,
        seed: int = 0,
        splits: str | Sequence[str] = (),
    ) -> Meli:
        """The data set in or below ``data``, or the one file that it is.

        weights: ``label_quality`` for 1 where reliable and 0.5 where not, or the weight of each label quality.
        """
        _check_word("language", language, LANGUAGES)
        _check_word("label_quality", label_quality, LABEL_QUALITIES)
        _check_whole("rows", rows, least=1)
        _check_whole("seed", seed, least=0)
        root = cls.find(data)
        if root is None:
            raise DataNotFoundError(_not_found(data))
        opened = cls(root, language, label_quality, _weights(weights), rows, seed, _splits(splits))
        opened.chosen()
        return opened

    @classmethod
    def find(cls, data: Path) -> Path | None:
        """``data`` or the first of its children that holds the files; a file is its own root."""
        if data.is_file():
            return data if _source(data) else None
        children = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
        return next((folder for folder in (data, *children) if _sources(folder)), None)

    @property
    def image_folder(self) -> Path:
        """There are no images."""
        return self.root

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folder, or the file."""
        return (self.root,)

    @property
    def claims(self) -> tuple[Path, ...]:
        """No folder of images."""
        return ()

    def settings(self) -> dict[str, Any]:
        """The options."""
        return {
            "language": self.language,
            "label_quality": self.label_quality,
            "weights": dict(self.weights) if self.weights is not None else None,
            "rows": self.rows,
            "seed": self.seed,
            "splits": list(self.splits),
        }

    def chosen(self) -> list[Source]:
        """The files that are read: training rows first. Raises DataNotFoundError where the options leave none."""
        there = _sources(self.root)
        wanted = [source for source in there if not self.splits or source.split in self.splits]
        wanted = [source for source in wanted if self.language in (None, source.language) or source.language is None]
        if not wanted:
            names = ", ".join(source.path.name for source in there) or "nothing"
            raise DataNotFoundError(
                f"{self.root} has no file for the language {self.language or 'any'} and the splits "
                f"{', '.join(self.splits) or 'all'}: it holds {names}."
            )
        return sorted(wanted, key=lambda source: SPLITS.index(source.split))

    def read(self) -> SampleTable:
        """A sample a row: title, category, language, label quality, split; no more than a few blocks beside them."""
        return self._read(shown=False)

    def read_with_progress(self) -> SampleTable:
        """The same, with a bar of bytes read and rows found on stderr."""
        return self._read(shown=True)

    def _read(self, *, shown: bool) -> SampleTable:
        table, counts = self._rows(shown)
        pa.default_memory_pool().release_unused()  # what parsing took would otherwise stay beside all that follows
        return self._built(table, counts)

    def _rows(self, shown: bool) -> tuple[pa.Table, Counter[str]]:
        """All wanted rows, every column in one piece, and what was left out, counted."""
        chosen, counts = self.chosen(), Counter[str]()
        trained, others = Drawn(self.rows), Drawn(None)
        with Bar(f"read {self.root.name}", [source.path for source in chosen], shown=shown) as bar:
            for source in chosen:
                self._gather(source, trained if source.split == "train" else others, counts, bar)
        found = [*trained.tables(), *others.tables()]
        if not found:
            raise UsageError(f"{self.root}: no row is left: {_said(counts) or 'the files have none'}.")
        if self.rows is not None:
            counts[f"training rows left out by rows={self.rows}, seed={self.seed}"] = max(0, trained.n_seen - self.rows)
        return pa.concat_tables(found).combine_chunks(), counts

    def _gather(self, source: Source, drawn: Drawn, counts: Counter[str], bar: Bar) -> None:
        """One file's rows that pass the filters, into ``drawn``."""
        first = 0
        for batch in source.batches(bar):
            rows = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            wanted = self._wanted(batch, counts)
            keys = keys_of(rows, self.seed, source.stem)
            taken = wanted & (keys <= drawn.bound)
            drawn.add(_completed(source, batch, rows, taken), keys[taken], int(wanted.sum()))

    def _wanted(self, batch: pa.Table, counts: Counter[str]) -> npt.NDArray[np.bool_]:
        """The rows that pass the filters: bool, (n_rows,)."""
        wanted = np.ones(batch.num_rows, bool)
        for name, value in (("language", self.language), ("label_quality", self.label_quality)):
            if value is not None and name in batch.column_names:
                same = np.asarray(pc.fill_null(pc.equal(batch[name], value), False))
                counts[f"rows left out whose {name} is not {value}"] += int((wanted & ~same).sum())
                wanted &= same
        return wanted

    def _built(self, table: pa.Table, counts: Counter[str]) -> SampleTable:
        titles = combined(table["title"])
        counts["titles are empty"] = pc.sum(pc.equal(titles, "")).as_py()
        lacking = pc.and_(pc.is_null(table["category"]), pc.not_equal(table["split"], "test"))
        counts["rows outside the test split without a category"] = pc.sum(lacking).as_py()
        return build(
            table["id"],
            split=table["split"],
            texts=pa.LargeListArray.from_arrays(pa.array(np.arange(len(titles) + 1)), titles),
            targets={"category": table["category"]},
            meta={"language": table["language"], "label_quality": table["label_quality"]},
            weight=_weight_column(table["label_quality"], self.weights) if self.weights is not None else None,
            notes=[_said(counts)] if _said(counts) else [],
        )

    # -------------------------------------------------------------------------------------------- published word ids

    def published_tokens(self, table: SampleTable, *, progress: bool = False) -> PublishedTokens | None:
        """The word ids that the prepared files hold for the texts of ``table``; None for the challenge's own CSV.

        Raises UsageError where the table holds two languages, each of which has a vocabulary of its own,
        DataNotFoundError where the vocabulary's file is missing.
        """
        prepared = [source for source in self.chosen() if source.kind == "jsonl"]
        if not prepared:
            return None
        language = _one_language(table, prepared)
        sources = [source for source in prepared if source.language == language]
        folder = self.root.parent if self.root.is_file() else self.root
        words = read_vocabulary(_plain_or_gzipped(folder, f"{language}_token_to_index.json"))
        joined = WordLists(combined(table.items["text"]["text"]))
        with Bar(f"read word ids of {self.root.name}", [source.path for source in sources], shown=progress) as bar:
            for source in sources:
                for batch in json_batches(source.path, _WORD_IDS, bar):
                    joined.add(combined(batch["title"]), combined(batch["data"]), source.path)
        tokens, offsets = joined.joined()
        return PublishedTokens(word_column(words, tokens), tokens, offsets, joined.notes())


def _check_word(option: str, value: Any, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise unknown_name(f"{option} of MeLi:", str(value), known)


def _check_whole(option: str, value: Any, least: int) -> None:
    if value is not None and (type(value) is not int or value < least):
        raise UsageError(f"{option} of MeLi must be a whole number from {least} on, got {value!r}.")


def _weights(stated: Any) -> Mapping[str, float] | None:
    if stated is None:
        return None
    if stated == "label_quality":
        return dict(WEIGHTS)
    if not isinstance(stated, Mapping) or not all(_is_weight(value) for value in stated.values()):
        raise UsageError(
            f"weights of MeLi is the word label_quality ({WEIGHTS}) or a weight of 0 or more for each label quality, "
            f"such as {{reliable: 1, unreliable: 0.5}}; got {stated!r}."
        )
    for name in stated:
        _check_word("label quality", name, LABEL_QUALITIES)
    return {name: float(value) for name, value in stated.items()}


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0


def _splits(stated: Any) -> tuple[str, ...]:
    names = [stated] if isinstance(stated, str) else list(stated)
    found = tuple(canonical_split(name) if isinstance(name, str) else str(name) for name in names)
    for name in found:
        _check_word("split", name, SPLITS)
    return found


# ----------------------------------------------------------------------------------------------------------- files


def _sources(root: Path) -> list[Source]:
    """The file that is meant, or those in a folder: the challenge's own if they are there, else the prepared ones."""
    if not root.is_dir():
        return [found] if (found := _source(root)) else []
    names = ("train.csv", "test.csv")
    own = [found for name in names if (path := _plain_or_gzipped(root, name)).is_file() and (found := _source(path))]
    if any(source.split == "train" for source in own):
        return own
    prepared = [f"{language}.{split}.jsonl" for split in SPLITS for language in LANGUAGES]
    paths = [path for name in prepared if (path := _plain_or_gzipped(root, name)).is_file()]
    return [found for path in paths if (found := _source(path))]


def _plain_or_gzipped(folder: Path, name: str) -> Path:
    """The plain file; the gzipped one where only that is there."""
    gzipped = folder / f"{name}.gz"
    return gzipped if gzipped.is_file() and not (folder / name).is_file() else folder / name


def _source(path: Path) -> Source | None:
    """What a file is: prepared JSON lines by its name and first line, a CSV by its header; None for any other."""
    if named := _PREPARED.fullmatch(path.name):
        line = (first_line(path) or "").strip()
        return Source(path, "jsonl", named[2], named[1]) if '"title"' in line or not line else None
    if not path.name.endswith((".csv", ".csv.gz")):
        return None
    columns = sorted(header(path))
    split = {tuple(sorted(TRAIN_COLUMNS)): "train", tuple(sorted(TEST_COLUMNS)): "test"}.get(tuple(columns))
    return Source(path, "csv", split) if split else None


def _not_found(data: Path) -> str:
    expected = (
        f"expected train.csv with the columns {','.join(TRAIN_COLUMNS)} (and test.csv with {','.join(TEST_COLUMNS)}), "
        "or spanish.train.jsonl and its like, plain or .gz"
    )
    near = data if data.is_file() else _plain_or_gzipped(data, "train.csv")
    found = f"; the first line of {near} is {(first_line(near) or '')[:80]!r}" if near.is_file() else ""
    return f"No MeLi challenge in {data} or its folders{found}: {expected}."


# ------------------------------------------------------------------------------------------------------------ rows


def _completed(source: Source, batch: pa.Table, rows: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_]) -> pa.Table:
    """The wanted rows of a batch with all columns that samples are made of."""
    if not wanted.all():
        batch, rows = batch.filter(pa.array(wanted)), rows[wanted]
    found = {name: batch[name] if name in batch.column_names else pa.nulls(len(rows), _TEXT) for name in _COLUMNS}
    if "id" not in batch.column_names:
        prefix, nothing = pa.scalar(f"{source.stem}:", _TEXT), pa.scalar("", _TEXT)
        found["id"] = pc.binary_join_element_wise(prefix, pa.array(rows).cast(_TEXT), nothing)
    found["split"] = pa.repeat(pa.scalar(source.split, _TEXT), len(rows))
    category = found["category"]
    found["category"] = pc.if_else(pc.equal(category, ""), pa.scalar(None, _TEXT), category)
    return pa.table(found)


def _weight_column(qualities: pa.ChunkedArray, weights: Mapping[str, float]) -> pa.Array:
    """The weight of each row, float64; null where a row has no label quality. Raises UsageError where one has none."""
    names = list(weights)
    places = pc.index_in(combined(qualities), value_set=pa.array(names, _TEXT))
    if (unknown := pc.unique(combined(qualities).filter(pc.is_null(places))).drop_null()) and len(unknown):
        raise UsageError(f"weights has none for the label quality {', '.join(map(repr, unknown.to_pylist()[:3]))}.")
    return pa.array(list(weights.values()), pa.float64()).take(places)


def _said(counts: Counter[str]) -> str:
    return "; ".join(f"{count:,} {what}" for what, count in counts.items() if count)


# ------------------------------------------------------------------------------------------------ published word ids


def _one_language(table: SampleTable, prepared: Sequence[Source]) -> str:
    """The only language of a sample table, which has files."""
    there = {str(source.language) for source in prepared}
    found = there
    if "meta.language" in table.samples.column_names:
        found = set(pc.unique(table.samples["meta.language"].drop_null()).to_pylist()) or there
    if len(found) > 1:
        raise UsageError(
            f"The samples are in {' and '.join(sorted(found))}, and each language has word ids of its own: "
            "read one, with --option language=spanish."
        )
    (language,) = found
    if language not in there:
        raise DataNotFoundError(f"There are no prepared files with word ids for the language {language!r}.")
    return language
