"""How large a head is with all that it needs to label a photo or a text: backbones, tokenizers, the head itself.

The multi-label report's rule was 100 MB for everything: ``fit-head --max-size 100MB``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from embedcache.encoding import EncoderReference
from embedcache.errors import EmbedCacheError, UsageError
from embedcache.footprint import encoder_files
from embedcache.view import Features
from heads.fit import Task
from heads.record import HEAD
from heads.saved import FeatureBinding, FittedHead, bindings

_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_WEIGHT_BYTES: Final = 4
_MEAN_BYTES: Final = 22
"""About what a number of the training rows' mean takes in ``head.json``."""


@dataclass(frozen=True)
class Part:
    """What takes room. nbytes: None where it is not known, and ``why`` says so; ``about``: an estimate."""

    what: str
    nbytes: int | None
    why: str = ""
    about: bool = False

    def shown(self) -> str:
        """``head, about: 4.2 MB``."""
        size = "not known" if self.nbytes is None else readable(self.nbytes)
        return f"{self.what}{', about' if self.about else ''}: {size}{f' ({self.why})' if self.why else ''}"


def parse_size(text: str) -> int:
    """Bytes of ``100MB`` (10**6 each), ``64MiB`` (2**20), ``5000``. Raises UsageError."""
    found = _SIZE.fullmatch(text)
    unit = found.group(2).lower() if found else ""
    if found is None or unit not in _UNITS:
        raise UsageError(f"A size is written 100MB, 64MiB or 5000 (bytes); got {text!r}.")
    return int(float(found.group(1)) * _UNITS[unit])


def readable(nbytes: float) -> str:
    """``4.2 MB``: decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"


def total(parts: Sequence[Part]) -> int:
    """Bytes of what is known."""
    return sum(part.nbytes or 0 for part in parts)


def of_run(folder: Path, checkpoints: Mapping[str, str] | None = None) -> list[Part]:
    """The parts of a recorded run's head. checkpoints: by feature set, where an encoder came from a path."""
    head = FittedHead.load(folder / HEAD)
    own = sum(path.stat().st_size for path in (folder / HEAD).iterdir())
    return [*of_encoders(head.features, checkpoints or {}), Part("head", own)]


def of_encoders(found: Sequence[FeatureBinding], checkpoints: Mapping[str, str] | None = None) -> list[Part]:
    """Weights and tokenizer of each encoder on this machine; a file that several share counts once."""
    parts: list[Part] = []
    counted: set[Path] = set()
    for one in found:
        reference = EncoderReference(one.backbone, one.settings, one.compute, one.stored, one.fingerprint)
        try:
            files = encoder_files(reference, (checkpoints or {}).get(one.name))
        except EmbedCacheError as error:
            parts.append(Part(f"{one.name}", None, str(error)))
            continue
        for what, sizes in (("weights", files.weights), ("tokenizer", files.tokenizer)):
            fresh = {path: size for path, size in sizes.items() if path not in counted}
            shared = "shared with the above" if sizes and not fresh else ""
            if sizes:
                parts.append(Part(f"{one.name}, {what}", sum(fresh.values()), shared))
            counted |= set(fresh)
    return parts


def before_fitting(task: Task, features: Features, checkpoints: Mapping[str, str] | None = None) -> list[Part]:
    """The parts that a head on ``features`` will have: its encoders as they are, the largest candidate as estimated."""
    sizes = [estimated(task, {**task.config.fixed, **point}, sum(features.dims)) for point in task.found.points]
    known = [size for size in sizes if size is not None]
    head = Part("head", max(known), about=True) if known else Part("head", None, "it is measured when it is fitted")
    return [*of_encoders(bindings(features), checkpoints), head]


def estimated(task: Task, parameters: Mapping[str, Any], width: int) -> int | None:
    """About the bytes of a head on ``width`` numbers; None for kinds whose size their training decides."""
    hidden = task.head.canonical(parameters).get("hidden_layer_sizes", ())
    if task.head.name not in ("logistic", "mlp", "sklearn-mlp"):
        return None
    widths = [width, *([hidden] if isinstance(hidden, int) else hidden), len(task.classes)]
    weights = sum((narrow + 1) * wide for narrow, wide in pairwise(widths))
    return int(weights) * _WEIGHT_BYTES + width * _MEAN_BYTES


def check(label: str, parts: Sequence[Part], limit: int) -> None:
    """Raise UsageError with the breakdown where the parts take more than ``limit``, or an encoder's size is unknown."""
    unknown = [part for part in parts if part.nbytes is None and part.what != "head"]
    found = total(parts)
    if found <= limit and not unknown:
        return
    breakdown = "; ".join(part.shown() for part in parts)
    if found > limit:
        raise UsageError(f"{label} takes {readable(found)}, more than --max-size {readable(limit)}: {breakdown}.")
    raise UsageError(
        f"The size of {label} is not known, so --max-size {readable(limit)} cannot be held: {breakdown}. Bring the "
        "encoder's files, or say where they are: --checkpoint BACKBONE=PATH."
    )
