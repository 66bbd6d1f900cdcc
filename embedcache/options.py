"""How an extraction runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from embedcache.provenance import FloatType, StoredType


@dataclass(frozen=True)
class Options:
    """How to extract; nothing here changes what a vector means but ``precision`` and ``stored``.

    device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``. precision: of the forward pass; ``auto`` is fp32 on a
    CPU and a checked half precision on CUDA, and is satisfied by what is there. stored: ``auto`` is float16 unless
    the first vectors would lose by it. check: ``stat`` trusts size and time, ``content`` reads every item.
    on_error: ``skip`` marks a bad item failed and goes on, ``stop`` raises at the first.
    """

    device: str = "auto"
    precision: Literal["auto"] | FloatType = "auto"
    stored: Literal["auto"] | StoredType = "auto"
    batch_size: int | None = None
    workers: int | None = None
    check: Literal["stat", "content"] = "stat"
    on_error: Literal["skip", "stop"] = "skip"
    retry_failed: bool = False
    wait: bool = False
    sync: bool = True
    progress: bool = False


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
