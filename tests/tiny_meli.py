"""Tiny trees of the MeLi challenge in both published layouts."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TRAIN_HEADER = ("title", "label_quality", "language", "category")
TEST_HEADER = ("id", "title", "language")


class Row(NamedTuple):
    """A row of ``train.csv``."""

    title: str
    label_quality: str = "unreliable"
    language: str = "spanish"
    category: str = "SOFAS"


TRAIN = (
    Row("Sofá Cama 3 Cuerpos Ñandú", "reliable", "spanish", "SOFAS"),
    Row('Tv Led 32" Smart, Full Hd', "unreliable", "spanish", "TELEVISIONS"),
    Row("Máquina De Lavar Roupas 12kg Coração", "unreliable", "portuguese", "WASHING_MACHINES"),
    Row("Funda 🎸 Guitarra", "unreliable", "spanish", "GUITAR_CASES"),
    Row("Televisão 4k \\ Preta / 110v", "reliable", "portuguese", "TELEVISIONS"),
)
TEST = (("0", "Mesa Ratona, Paraíso", "spanish"), ("1", "Kit Maternidade Bolsa", "portuguese"))

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "sofá": 2, "cama": 3, "funda": 5}


def write(path: Path, text: str | bytes) -> Path:
    """A file, gzipped where its name says so."""
    raw = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith(".gz") else raw)
    return path


def as_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as the standard library writes them, which quotes a lone carriage return only where it quotes all."""
    out = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if any("\r" in field for row in rows for field in row) else csv.QUOTE_MINIMAL
    csv.writer(out, lineterminator="\n", quoting=quoting).writerows([header, *rows])
    return out.getvalue()


def write_own(
    folder: Path, train: Sequence[Sequence[str]] = TRAIN, test: Sequence[Sequence[str]] | None = TEST, end: str = ""
) -> Path:
    """The challenge's own files. end: ``.gz`` for gzipped ones."""
    write(folder / f"train.csv{end}", as_csv(TRAIN_HEADER, train))
    if test is not None:
        write(folder / f"test.csv{end}", as_csv(TEST_HEADER, test))
        write(folder / "sample_submission.csv", as_csv(("id", "category"), [(row[0], "SOFAS") for row in test]))
    return folder


def prepared(row: Row, split: str = "train", **fields: Any) -> dict[str, Any]:
    """A row as the course's files have it; its words are looked up in ``VOCABULARY``."""
    words = [word for word in row.title.lower().split() if len(word) >= 3 and word.isalpha()]
    found = {
        "language": row.language,
        "label_quality": row.label_quality,
        "title": row.title,
        "category": row.category,
        "split": split,
        "tokenized_title": words,
        "data": [VOCABULARY.get(word, 1) for word in words],
        "target": 0,
        "n_labels": 632,
        "size": 3,
    }
    return {**found, **fields}


def as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """JSON lines as pandas writes them: ASCII only, slashes escaped."""
    return "".join(json.dumps(row).replace("/", "\\/") + "\n" for row in rows)


def write_prepared(
    folder: Path,
    rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    vocabulary: Mapping[str, Any] | None = VOCABULARY,
    language: str = "spanish",
    end: str = ".gz",
) -> Path:
    """The course's files of one language. rows: by split; by default the language's rows of ``TRAIN``, one of each."""
    own = [row for row in TRAIN if row.language == language]
    rows = rows or {split: [prepared(row, split) for row in own[i:] + own[:i]] for i, split in enumerate(SPLITS)}
    for split, some in rows.items():
        write(folder / f"{language}.{split}.jsonl{end}", as_lines(some))
    if vocabulary is not None:
        write(folder / f"{language}_token_to_index.json{end}", json.dumps(vocabulary))
    return folder


SPLITS = ("train", "validation", "test")
