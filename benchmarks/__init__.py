"""Speed and memory beside named peers, every figure a ratio within one run.

A benchmark is one file with ``run(repeats)`` and one line here.
"""

from __future__ import annotations

from typing import Final

BENCHMARKS: Final = {
    "extract_speed": "benchmarks.extract_speed",
    "text_speed": "benchmarks.text_speed",
    "read_speed": "benchmarks.read_speed",
    "grid_speed": "benchmarks.grid_speed",
    "head_speed": "benchmarks.head_speed",
    "meli_read": "benchmarks.meli_read",
    "memory": "benchmarks.memory",
    "safety_cost": "benchmarks.safety_cost",
    "words_speed": "benchmarks.words_speed",
}
