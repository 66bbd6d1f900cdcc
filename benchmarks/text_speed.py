"""Texts: extraction beside sentence-transformers' own ``encode``, and what encoding every text once saves.

Both read the same checkpoint on the same cores and the same texts of mixed length; loading is in neither. ``encode``
has the batch size at which it is fastest; extraction finds its own, and digests, stores and syncs besides. The goal is
to be no slower. Checkpoints: a random BERT of a twentieth of the usual size, made here, and the small trained one
beside the repository where it is.

The other figure is a table as VQA's: every question stands in it several times. Its peer is the same table with as
many rows of distinct questions of the same lengths; the goal is nine tenths of the number of repeats.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import embedcache as ec
from benchmarks.rounds import Figure, alternating, as_time, seconds, speed_figure
from embedcache.options import usable_cores

SHARED = Path(__file__).parents[2] / "shared" / "data"
STORIES = SHARED / "weights" / "hf_stories260k"
QUESTIONS = SHARED / "banking77" / "train.csv"
TEXTS = 2000
REPEATED = 4
BATCHES = (16, 32, 64, 128)
TRIED = 512
REPEATS = 5


@dataclass(frozen=True)
class Checkpoint:
    """A sentence-transformers folder. words: for the note under the table."""

    folder: Path
    words: str


def run(repeats: int | None = None) -> list[Figure]:
    texts = _texts()
    with TemporaryDirectory() as work, _checkpoints(Path(work), texts) as checkpoints:
        figures = [_beside_encode(one, texts, Path(work), repeats or REPEATS) for one in checkpoints]
        return [*figures, _of_repeats(checkpoints[0], texts, Path(work), repeats or REPEATS)]


# ---------------------------------------------------------------- the two figures


def _beside_encode(checkpoint: Checkpoint, texts: Sequence[str], work: Path, repeats: int) -> Figure:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(checkpoint.folder), device="cpu", local_files_only=True)
    table = _table(work / "texts.csv", texts)
    batch = min(BATCHES, key=lambda size: seconds(lambda: _encode(model, texts[:TRIED], size)))
    _extract(checkpoint, table)
    rounds = alternating(
        lambda: _extract(checkpoint, table).seconds, lambda: seconds(lambda: _encode(model, texts, batch)), repeats
    )
    lengths = [len(text.split()) for text in texts]
    note = (
        f"{len(texts):,} texts of {min(lengths)} to {max(lengths)} words, {checkpoint.words}, {usable_cores()} cores; "
        f"encode is at its best with {batch} a batch"
    )
    return speed_figure("text_speed", "encode", rounds, lambda took: f"{len(texts) / took:.0f}/s", 1.0, note)


def _of_repeats(checkpoint: Checkpoint, texts: Sequence[str], work: Path, repeats: int) -> Figure:
    """As many rows, a quarter of the forward passes."""
    by_length = sorted(texts, key=len)
    once = [text for text in by_length[::REPEATED] for _ in range(REPEATED)][: len(texts)]
    repeated, distinct = _table(work / "repeated.csv", once), _table(work / "distinct.csv", by_length)
    rounds = alternating(
        lambda: _extract(checkpoint, repeated).seconds,
        lambda: _extract(checkpoint, distinct).seconds,
        repeats,
    )
    note = f"{len(texts):,} rows, every question {REPEATED} times, beside as many distinct ones; {checkpoint.words}"
    return speed_figure("text_repeats", "distinct", rounds, as_time, 0.9 * REPEATED, note)


def _encode(model: Any, texts: Sequence[str], batch: int) -> None:
    model.encode(list(texts), batch_size=batch, show_progress_bar=False)


def _extract(checkpoint: Checkpoint, table: Path) -> ec.Extraction:
    """Through the real path, into a cache of its own."""
    with TemporaryDirectory() as cache:
        done = ec.extract(
            "table",
            table,
            backbones=[f"st:{checkpoint.folder}"],
            name="texts",
            cache=cache,
            options=ec.Options(device="cpu"),
            text="text",
            label="none",
        )[0]
    if done.n_failed:
        raise RuntimeError(f"{done.n_failed} of {done.n_items} texts failed: {done.failures}")
    return done


# ---------------------------------------------------------------- texts and checkpoints


def _texts() -> list[str]:
    """Distinct questions of bank customers where they lie, else as many invented ones with lengths like theirs."""
    if QUESTIONS.is_file():
        with open(QUESTIONS, newline="", encoding="utf-8") as file:
            found = list(dict.fromkeys(row["text"] for row in csv.DictReader(file)))
        chosen = np.random.default_rng(0).permutation(len(found))[:TEXTS]
        return [found[index] for index in chosen]
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(2.3, 0.6, TEXTS), 3, 70).astype(int)
    return [
        " ".join([f"word{index}", *(f"w{word}" for word in rng.integers(0, 2000, n))])
        for index, n in enumerate(lengths)
    ]


def _table(path: Path, texts: Sequence[str]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "none"])
        writer.writerows([text, "one"] for text in texts)
    return path


@contextmanager
def _checkpoints(work: Path, texts: Sequence[str]) -> Iterator[list[Checkpoint]]:
    """The one that is made here, and the trained one where it is."""
    found = [Checkpoint(_random_bert(work / "bert", texts), "a random BERT of 4 layers and 256 dims")]
    if STORIES.is_dir():
        shutil.copytree(STORIES, work / "stories")
        found.append(Checkpoint(_with_modules(work / "stories", 64), "a trained model of 5 layers and 64 dims"))
    yield found


def _random_bert(folder: Path, texts: Sequence[str]) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = sorted({word for text in texts for word in text.lower().replace("?", " ?").split()})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(vocabulary), intermediate_size=1024, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    return _with_modules(folder, 256)


def _with_modules(folder: Path, width: int) -> Path:
    """Makes a transformers folder one of sentence-transformers: mean pooling, normalisation."""
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir()
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules.items())
    ]
    (folder / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    return folder
