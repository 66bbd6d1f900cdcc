"""Word ids and mean word vectors: titles a second through the whole of ``extract``, from a CSV file to sealed files.

Reading the table, the samples' own tables, digests, splitting, counting, writing and syncing are all in the time. The
promise for word ids is 50,000 titles a second on two cores. Mean vectors (300 numbers, every second word has one) stand
beside a plain loop that splits each text, looks its words up and averages them with NumPy, in memory, nothing written.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import embedcache as ec
from benchmarks.rounds import Figure, alternating, seconds, speed_figure
from embedcache.options import usable_cores
from embedcache.words import read_vectors, split_words

TITLES = 200_000
PROMISE = 50_000
DIM = 300
REPEATS = 3


def run(repeats: int | None = None) -> list[Figure]:
    with TemporaryDirectory() as folder:
        texts = write_titles(Path(folder) / "titles.csv")
        write_vectors(Path(folder) / "vectors.txt", texts)
        return [_word_ids(Path(folder), repeats or REPEATS), _means(Path(folder), texts, repeats or REPEATS)]


def _word_ids(folder: Path, repeats: int) -> Figure:
    _extract(folder, "words")
    rates = [TITLES / seconds(lambda: _extract(folder, "words")) for _ in range(repeats)]
    ratios = [rate / PROMISE for rate in rates]
    return Figure(
        "word_ids", f"{statistics.median(rates) / 1e3:.0f}k/s", "promise", f"{PROMISE / 1e3:.0f}k/s",
        statistics.median(ratios), (min(ratios), max(ratios)), 1.0,
        note=f"{TITLES:,} titles of about 10 words, end to end, {usable_cores()} cores; ours over the promise",
    )  # fmt: skip


def _means(folder: Path, texts: list[str], repeats: int) -> Figure:
    backbone = f"glove:{folder / 'vectors.txt'}"
    vectors = read_vectors(folder / "vectors.txt")

    def loop() -> None:
        for text in texts:
            found = [vectors.rows[word] for word in split_words(text) if word in vectors.rows]
            if found:
                vectors.matrix[found].mean(0)

    rounds = alternating(lambda: seconds(lambda: _extract(folder, backbone)), lambda: seconds(loop), repeats)
    note = f"{TITLES:,} titles, {len(vectors):,} vectors of {DIM} numbers, end to end, reading them included"
    return speed_figure("mean_vectors", "loop", rounds, lambda took: f"{TITLES / took / 1e3:.0f}k/s", None, note)


def _extract(folder: Path, backbone: str) -> None:
    with TemporaryDirectory(dir=folder) as cache:
        ec.extract(
            "table", folder / "titles.csv", backbones=[backbone], text=["title"], label="category", cache=cache
        )  # fmt: skip


def write_titles(path: Path, n: int = TITLES, seed: int = 0) -> list[str]:
    """A CSV of titles whose words are as frequent as Zipf's law has it, accents and figures among them; the titles."""
    rng = np.random.default_rng(seed)
    words = np.array([f"{stem}{number}" for number in range(10_000) for stem in ("sillón", "casa", "kit ", "de")])
    rank = rng.zipf(1.3, n * 12) % len(words)
    lengths = rng.integers(4, 13, n)
    ends = np.cumsum(lengths)
    texts = [" ".join(words[rank[end - length : end]]) for end, length in zip(ends, lengths, strict=True)]
    lines = (f'"{text}, {row % 977}",{row % 632}\n' for row, text in enumerate(texts))
    path.write_text("title,category\n" + "".join(lines), encoding="utf-8")
    return [f"{text}, {row % 977}" for row, text in enumerate(texts)]


def write_vectors(path: Path, texts: list[str], dim: int = DIM) -> None:
    """Vectors in GloVe's format of every second distinct word."""
    words = sorted({word for text in texts for word in split_words(text)})[::2]
    numbers = np.random.default_rng(0).normal(size=(len(words), dim)).round(4)
    lines = (f"{word} {' '.join(map(str, row))}\n" for word, row in zip(words, numbers.tolist(), strict=True))
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    for figure in run():
        print(figure)
