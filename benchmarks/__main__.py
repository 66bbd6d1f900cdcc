"""``python -m benchmarks [NAME …] [--repeats N] [--json FILE]``: one table, one line per figure.

Nothing here asserts on time: the table says whether a goal is met, and the exit code is 0 either way.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks import BENCHMARKS
from benchmarks.rounds import Figure

WIDTH = 80
COLUMNS = ("benchmark", "ours", "peer", "", "ratio", "spread", "goal", "met")
WIDTHS = (19, 8, 12, 8, 5, 10, 6, 3)


def main() -> None:
    options = _options()
    figures: list[Figure] = []
    print(_line(COLUMNS), "-" * WIDTH, sep="\n", flush=True)
    for name in options.names or BENCHMARKS:
        found: list[Figure] = import_module(BENCHMARKS[name]).run(options.repeats)
        figures += found
        for figure in found:
            print(_line(_cells(figure)), flush=True)
    print(*_notes(figures), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps([_document(figure) for figure in figures], indent=2) + "\n", "utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Speed and memory beside their peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--repeats", type=int, help="rounds of each; default: each benchmark's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats must be positive, got {options.repeats}")
    return options


def _line(cells: Sequence[str]) -> str:
    """Cells in their columns; names to the left, numbers to the right."""
    left = (0, 2)
    padded = [
        cell.ljust(width) if index in left else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    ]
    return " ".join(padded).rstrip()


def _cells(figure: Figure) -> tuple[str, ...]:
    sign = "≥" if figure.wanted == "at least" else "≤"
    return (
        figure.benchmark,
        figure.ours,
        figure.named,
        figure.peer,
        f"{figure.ratio:.3g}",
        "–".join(f"{value:.3g}" for value in figure.spread),
        "" if figure.goal is None else f"{sign} {figure.goal:g}",
        {True: "yes", False: "no", None: ""}[figure.met],
    )


def _notes(figures: Sequence[Figure]) -> list[str]:
    """Under what conditions, and what ratio and spread are."""
    said = [
        "",
        "ratio: of the medians of alternating rounds, the peer's time over ours (memory: ours over the promise).",
    ]
    said += [f"{figure.benchmark}: {figure.note}." for figure in figures if figure.note]
    return [line for text in said for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ") or [""]]


def _document(figure: Figure) -> dict[str, object]:
    return {**asdict(figure), "met": figure.met}


if __name__ == "__main__":
    main()
