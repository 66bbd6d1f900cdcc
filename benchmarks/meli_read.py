"""Reading MeLi-shaped files of two million rows: time and peak memory, each in a process of its own.

Titles are made of a Spanish-like word list with Zipf frequencies; the same rows stand in a CSV and in gzipped JSON
lines with word ids. Goals: at most 10 s per million rows of the file, from opening it to the sample table, and 2 GB of
memory at the peak. The CSV is also read by ``pandas.read_csv``, of the same columns. A ``+`` stands for the published
word ids read and joined as well.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from benchmarks.rounds import Figure, Rounds, alternating, as_time, own_peak, speed_figure
from embedcache.datasets.meli import LANGUAGES, Meli

ROWS = 2_000_000
AT_ONCE = 50_000
WORDS, KEPT, CATEGORIES = 200_000, 50_000, 1_588
"""Distinct words, those of them in the prepared vocabulary, and classes."""
SECONDS_PER_MILLION, PEAK = 10.0, 2e9
REPEATS = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "spanish": {"language": "spanish"},
    "1M": {"rows": 1_000_000},
}
COLUMNS = ("title", "label_quality", "language", "category")
VOWELS, CONSONANTS = "aeioáó", "bcdfglmnprstñ"
SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS] + ["ción", "ía", "os"]


def run(repeats: int | None = None) -> list[Figure]:
    folder = Path(gettempdir()) / f"embedcache-meli-{ROWS}"
    write_files(folder, ROWS)
    beside = _pandas_figure(folder / "csv", repeats or REPEATS)
    kinds = [(kind, name) for kind in ("csv", "jsonl") for name in OPTIONS]
    read = [figure for kind, name in kinds for figure in _figures(folder / kind, name, "ours", repeats or REPEATS)]
    return [beside, *read, *_figures(folder / "jsonl", "spanish", "ours with word ids", repeats or REPEATS)]


def _pandas_figure(folder: Path, repeats: int) -> Figure:
    """The same CSV read by pandas, which makes no samples of its rows: no item ids, no texts without repeats."""
    peaks: list[int] = []
    ours, peer = partial(_measured, [], "ours", folder, {}), partial(_measured, peaks, "pandas", folder, {})
    rounds = alternating(ours, peer, repeats)
    note = f"{_condition({})}; pandas makes no samples, and takes {_gigabytes(statistics.median(peaks))}"
    return speed_figure("meli csv", "pandas", rounds, as_time, None, note)


def _figures(folder: Path, name: str, what: str, repeats: int) -> tuple[Figure, Figure]:
    """Time and peak memory beside their goals."""
    peaks: list[int] = []
    busy: list[float] = []
    seconds = tuple(_measured(peaks, what, folder, OPTIONS[name], busy) for _ in range(repeats))
    goal = SECONDS_PER_MILLION * ROWS / 1e6
    title = f"meli {folder.name} {name}{'+' if what != 'ours' else ''}"
    note = f"{_condition(OPTIONS[name])}; {as_time(statistics.median(busy))} of processor time"
    ratios = [peak / PEAK for peak in peaks]
    peak, spread = _gigabytes(statistics.median(peaks)), (min(ratios), max(ratios))
    return (
        speed_figure(title, "goal", Rounds(seconds, (goal,) * repeats), as_time, 1.0, note),
        Figure(title, peak, "goal", _gigabytes(PEAK), statistics.median(ratios), spread, 1.0, wanted="at most"),
    )


def _condition(options: dict[str, Any]) -> str:
    return f"{ROWS:,} rows, {options or 'all'}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _gigabytes(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB"


def _measured(
    peaks: list[int], what: str, folder: Path, options: dict[str, Any], busy: list[float] | None = None
) -> float:
    """Seconds of reading, imports left out; adds peak memory (bytes) to ``peaks``, processor seconds to ``busy``."""
    command = [sys.executable, "-m", "benchmarks.meli_read", what, str(folder), json.dumps(options)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    seconds, processor, peak = done.stdout.split()
    peaks.append(int(peak))
    if busy is not None:
        busy.append(float(processor))
    return float(seconds)


def _ours(folder: Path, options: dict[str, Any]) -> None:
    Meli.open(folder, **options).read()


def _ours_with_word_ids(folder: Path, options: dict[str, Any]) -> None:
    data = Meli.open(folder, **options)
    data.published_tokens(data.read())


def _pandas(folder: Path, _: dict[str, Any]) -> None:
    import pandas as pd

    pd.read_csv(folder / "train.csv", usecols=list(COLUMNS), keep_default_na=False)


# ------------------------------------------------------------------------------------------------------------ files


def write_files(folder: Path, rows: int, seed: int = 0) -> None:
    """``csv/train.csv`` and the same rows as ``jsonl/<language>.train.jsonl.gz``, unless they are there."""
    if (folder / "done").exists():
        return
    for kind in ("csv", "jsonl"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    words = _words(np.random.default_rng(seed))
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: 2 + number for number, word in enumerate(words[:KEPT])}
    for language in LANGUAGES:
        with gzip.open(folder / "jsonl" / f"{language}_token_to_index.json.gz", "wt", encoding="ascii") as file:
            json.dump(vocabulary, file)
    with ExitStack() as stack:
        plain = stack.enter_context(open(folder / "csv" / "train.csv", "w", encoding="utf-8", newline=""))
        packed = {
            language: stack.enter_context(gzip.open(folder / "jsonl" / f"{language}.train.jsonl.gz", "wt", 3, "ascii"))
            for language in LANGUAGES
        }
        table = csv.writer(plain, lineterminator="\n")
        table.writerow(COLUMNS)
        for start in range(0, rows, AT_ONCE):
            for numbers, *row in _rows(words, min(AT_ONCE, rows - start), np.random.default_rng([seed, start])):
                title = _title(numbers, words)
                table.writerow((title, *row))
                packed[row[1]].write(_json_line(title, numbers, words, row))
    (folder / "done").touch()


def _words(rng: np.random.Generator) -> list[str]:
    """Distinct words of two to five syllables."""
    found: dict[str, None] = {}
    while len(found) < WORDS:
        parts = rng.integers(0, len(SYLLABLES), (WORDS, 5))
        for row, length in zip(parts.tolist(), rng.integers(2, 6, WORDS).tolist(), strict=True):
            found["".join(SYLLABLES[part] for part in row[:length])] = None
    return list(found)[:WORDS]


def _rows(words: list[str], n: int, rng: np.random.Generator) -> Iterator[tuple[list[int], str, str, str]]:
    """Word numbers (Zipf), label quality, language and category; one row in eight is reliable, half are Spanish."""
    lengths = np.clip(rng.normal(7, 2, n).astype(int), 1, 14)
    numbers = (rng.zipf(1.25, int(lengths.sum())) - 1) % len(words)
    reliable, spanish, category = rng.random(n) < 1 / 8, rng.random(n) < 0.5, rng.zipf(1.1, n) % CATEGORIES
    ends = np.cumsum(lengths)
    for row in range(n):
        yield (
            numbers[ends[row] - lengths[row] : ends[row]].tolist(),
            "reliable" if reliable[row] else "unreliable",
            "spanish" if spanish[row] else "portuguese",
            f"{words[category[row]].upper()}_{category[row]}",
        )


def _title(numbers: list[int], words: list[str]) -> str:
    """Capitalised words; some titles have the quotes and commas that a CSV must quote."""
    title = " ".join(words[number].capitalize() for number in numbers)
    return f'{title}, {numbers[0] % 60}" X' if numbers[0] % 20 == 7 else title


def _json_line(title: str, numbers: list[int], words: list[str], row: list[str]) -> str:
    """As the course's files have it: ASCII, with tokens and their ids."""
    quality, language, category = row
    document = {
        "language": language,
        "label_quality": quality,
        "title": title,
        "category": category,
        "split": "train",
        "tokenized_title": [words[number] for number in numbers],
        "data": [number + 2 if number < KEPT else 1 for number in numbers],
        "target": len(category),
        "n_labels": CATEGORIES,
        "size": ROWS,
    }
    return json.dumps(document, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    began, before = time.perf_counter(), time.process_time()
    {"ours": _ours, "ours with word ids": _ours_with_word_ids, "pandas": _pandas}[sys.argv[1]](
        Path(sys.argv[2]), json.loads(sys.argv[3])
    )
    print(time.perf_counter() - began, time.process_time() - before, own_peak())
