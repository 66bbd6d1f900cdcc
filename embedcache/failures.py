"""Failures are data: which items could not be encoded, and why, beside each feature file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from embedcache.container import FAILED, ItemFile
from embedcache.files import append, replacing


def failures_path(feature_path: Path) -> Path:
    """Where the failed items of a feature file are listed."""
    return feature_path.with_suffix(".failed.jsonl")


def read_failures(path: Path) -> dict[str, str]:
    """Failed items of a feature file with their reasons; a line that was cut off by a crash is passed over."""
    found: dict[str, str] = {}
    listed = failures_path(path)
    for line in listed.read_bytes().split(b"\n") if listed.exists() else []:
        try:
            entry = json.loads(line)
            found[str(entry["id"])] = str(entry["reason"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def append_failures(path: Path, failures: Mapping[str, str]) -> None:
    """Add failed items to a feature file's list, durably: a failed row without its reason is never committed."""
    if not failures:
        return
    lines = (json.dumps({"id": name, "reason": failures[name]}, ensure_ascii=False) + "\n" for name in failures)
    append(failures_path(path), "".join(lines))


def failures_of(file: ItemFile) -> dict[str, str]:
    """The rows that are failed in a file with their reasons; lines of a list that a crash left behind do not count."""
    failed = [bytes(item).decode() for item in file.ids[np.asarray(file.status) == FAILED]]
    reasons = read_failures(file.path) if failed else {}
    return {name: reasons.get(name, "its reason was not recorded") for name in failed}


def keep_failures(file: ItemFile) -> None:
    """Rewrite the list of failures with the rows that are failed in the sealed file, and only those."""
    listed = failures_path(file.path)
    found = failures_of(file)
    if not found:
        listed.unlink(missing_ok=True)
        return
    with replacing(listed) as beside, open(beside, "w", encoding="utf-8") as out:
        for name, reason in found.items():
            out.write(json.dumps({"id": name, "reason": reason}, ensure_ascii=False) + "\n")


def some_failures(file: ItemFile, n: int = 5) -> dict[str, str]:
    """The first ``n`` failed items with their reasons."""
    return dict(list(failures_of(file).items())[:n])
