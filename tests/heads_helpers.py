"""Tiny caches made by hand, for the tests of heads: every vector and every label is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedcache import ragged, samples
from embedcache.backbones import resolve
from embedcache.backbones.base import BackboneSettings
from embedcache.catalog import DatasetFolder, DatasetRecord
from embedcache.samples import SampleTable, text_id
from embedcache.store import DONE, FAILED, Layout, create
from embedcache.view import Features
from embedcache.word_ids import provenance
from embedcache.words import build_vocabulary, tokenize
from heads.config import parse
from heads.fit import FittedRun, fit
from heads.task import Task, prepare

CLASSES = ("finch", "heron", "plover")


def save_table(cache: Path, table: SampleTable, name: str = "tiny", adapter: str = "table") -> DatasetFolder:
    """A data set's folder in the cache, without features."""
    folder = DatasetFolder(cache, name)
    folder.save(DatasetRecord(name, adapter, {}, ("tiny.csv",), table.counts, table.notes, "2024-01-01"), table)
    return folder


def add_features(
    folder: DatasetFolder,
    modality: Any,
    vectors: Mapping[str, Sequence[float]],
    *,
    name: str | None = None,
    failed: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    weights: str = "a",
) -> Path:
    """A sealed feature file. vectors: by image path or by text; ``failed`` items get zeros and the status failed."""
    name = name or f"my-{modality}"
    items = [*vectors, *failed]
    dim = len(next(iter(vectors.values())))
    rows = np.array([vectors.get(item, np.zeros(dim)) for item in items], np.float32)
    ids = np.array([(text_id(item) if modality == "text" else item).encode() for item in items])
    layout = Layout(ids, dim, "float32", {"modality": modality, "name": name, "weights": weights}, 64)
    slug = "".join(letter if letter.isalnum() else "-" for letter in name)
    path = folder.path / f"{modality}.{slug}.{weights}.h5"
    record = {"backbone": name, "checkpoint": f"fake:{name}", "settings": dict(settings or {})}
    status = np.array([FAILED if item in failed else DONE for item in items], np.uint8)
    with create(path, layout, record, sync=False) as writer:
        for block in range(layout.n_blocks):
            part = layout.rows(block)
            writer.write_block(block, rows[part], np.zeros((len(rows[part]), 16), np.uint8), status[part])
        writer.seal(record)
    return path


def add_words(folder: DatasetFolder, texts: Sequence[str], *, lowercase: bool = False) -> Path:
    """A sealed file of word ids, as extraction writes it, whose vocabulary has every word of the texts."""
    backbone = resolve("words", BackboneSettings(lowercase=lowercase))
    split = tokenize(pa.array(texts, pa.string()), lowercase=lowercase)
    vocabulary = build_vocabulary(split.words, np.bincount(split.numbers))
    rows = ragged.TokenRows(
        np.array([text_id(text).encode() for text in texts]),
        np.zeros((len(texts), 16), np.uint8),
        ragged.status_of(split.offsets),
        vocabulary.of(split.words)[split.numbers],
        split.offsets,
        np.array([word.encode() for word in vocabulary.words]),
    )
    record = {"backbone": "words", "checkpoint": "words:training", "settings": backbone.settings.stated()}
    path = folder.path / f"text.words.{lowercase:d}.h5"
    ragged.write(path, rows, provenance(backbone, vocabulary.words), record)
    return path


def image_name(row: int) -> str:
    """The image of a sample of ``separable``."""
    return f"{row:03d}.jpg"


def near(code: int, dim: int, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Four times the code's unit vector, and noise."""
    return 4 * np.eye(dim)[code % dim] + rng.normal(scale=noise, size=dim)


def separable(
    cache: Path,
    *,
    n: int = 60,
    split: Sequence[str | None] | None = None,
    labels: Sequence[Any] | None = None,
    noise: float = 0.1,
    dim: int = 4,
    **columns: Any,
) -> DatasetFolder:
    """``n`` images of three classes in turn, far from each other; two thirds train, one third test."""
    labels = list(labels) if labels is not None else [CLASSES[row % 3] for row in range(n)]
    split = split if split is not None else ["train" if row % 9 < 6 else "test" for row in range(n)]
    ids = [f"s{row:03d}" for row in range(n)]
    images = [image_name(row) for row in range(n)]
    table = samples.build(ids, split=split, images=images, targets={"label": labels}, **columns)
    folder = save_table(cache, table)
    rng = np.random.default_rng(0)
    codes = {label: code for code, label in enumerate(dict.fromkeys(map(str, labels)))}
    vectors = {image: near(codes[str(label)], dim, rng, noise) for image, label in zip(images, labels, strict=True)}
    add_features(folder, "image", vectors)
    return folder


def captioned(cache: Path, *, n: int = 72, captions: int = 3, **columns: Any) -> DatasetFolder:
    """Four classes of which the image tells the half and the captions the other half; both together tell all."""
    rng = np.random.default_rng(1)
    images = [image_name(row) for row in range(n)]
    texts = [[f"caption {number} of {row}" for number in range(captions)] for row in range(n)]
    split = ["train" if row % 12 < 8 else "test" for row in range(n)]
    codes = [row % 4 for row in range(n)]
    table = samples.build(
        [f"s{row:03d}" for row in range(n)],
        split=split,
        images=images,
        texts=texts,
        targets={"label": [f"class {code}" for code in codes]},
        **columns,
    )
    folder = save_table(cache, table)
    add_features(folder, "image", {image: near(codes[row] // 2, 3, rng, 0.3) for row, image in enumerate(images)})
    add_features(
        folder,
        "text",
        {text: near(codes[row] % 2, 2, rng, 0.3) for row, own in enumerate(texts) for text in own},
    )
    return folder


COLOURS = ("red", "blue")


def described(cache: Path, *, n: int = 72, blank: int | None = None, **columns: Any) -> DatasetFolder:
    """Four classes of which the image tells the half and one word the other; texts of five to ten words.

    blank: a row whose text is empty.
    """
    rng = np.random.default_rng(3)
    images, codes = [image_name(row) for row in range(n)], [row % 4 for row in range(n)]
    fillers, digits = rng.integers(0, 6, n), rng.integers(0, 10, (n, 4)).astype(str)
    texts = [" ".join([*["so"] * fillers[row], COLOURS[code % 2], *digits[row]]) for row, code in enumerate(codes)]
    if blank is not None:
        texts[blank] = " "
    table = samples.build(
        [f"s{row:03d}" for row in range(n)],
        split=["train" if row % 12 < 8 else "test" for row in range(n)],
        images=images,
        **{"texts": [[text] for text in texts], "targets": {"label": [f"class {code}" for code in codes]}, **columns},
    )
    folder = save_table(cache, table)
    add_features(folder, "image", {image: near(codes[row] // 2, 3, rng, 0.3) for row, image in enumerate(images)})
    add_words(folder, texts)
    return folder


LABELS = ("1", "2", "3", "10")


def label_lists(n: int) -> list[list[str]]:
    """Some of ``LABELS`` for each row; every sixteenth has none, the last label is rare."""
    return [[label for place, label in enumerate(LABELS) if row >> place & 1] for row in range(n)]


def tagged(
    cache: Path,
    *,
    n: int = 96,
    labels: Sequence[Sequence[str] | None] | None = None,
    split: Sequence[str | None] | None = None,
    noise: float = 0.2,
    failed_images: Collection[str] = (),
    failed_texts: Collection[str] = (),
    adapter: str = "table",
    **columns: Any,
) -> DatasetFolder:
    """Images with several labels each: the image tells the first two of ``LABELS``, the caption the others.

    Two thirds train, one third test, in blocks of sixteen that hold every set of labels once.
    """
    labels = label_lists(n) if labels is None else labels
    images, texts = [image_name(row) for row in range(n)], [f"caption of {row}" for row in range(n)]
    split = split if split is not None else ["test" if row // 16 % 3 == 2 else "train" for row in range(n)]
    target = pa.array(labels, pa.list_(pa.string()))
    table = samples.build(
        images, split=split, images=images, texts=[[text] for text in texts], targets={"labels": target}, **columns
    )
    folder = save_table(cache, table, adapter=adapter)
    rng = np.random.default_rng(2)
    own = np.array([[label in row for label in LABELS] for row in label_lists(n)], float)
    vectors = 2 * own - 1 + rng.normal(scale=noise, size=own.shape)
    by_image = {image: row[:2] for image, row in zip(images, vectors, strict=True) if image not in failed_images}
    by_text = {text: row[2:] for text, row in zip(texts, vectors, strict=True) if text not in failed_texts}
    add_features(folder, "image", by_image, failed=failed_images)
    add_features(folder, "text", by_text, failed=failed_texts)
    return folder


def prepared(cache: Path, **document: Any) -> Task:
    """A task from the keys of a grid file."""
    return prepare(parse({"jobs": 1, **document}), cache)


def fitted(cache: Path, **document: Any) -> list[FittedRun]:
    """Runs from the keys of a grid file."""
    return fit(prepared(cache, **document))


def bare(table: SampleTable) -> Features:
    """All samples, without vectors: what splits are made from."""
    return Features(table, (), np.arange(table.samples.num_rows), "mean", {})
