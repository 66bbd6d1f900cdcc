"""How large a head is with all that it needs to label a photo or a text: backbones, tokenizers, the head itself.

The multi-label report's rule was 100 MB for everything: ``fit-head --max-size 100MB``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.encoding import EncoderReference
from embedcache.errors import EmbedCacheError, UsageError
from embedcache.footprint import encoder_files
from embedcache.view import Features
from heads.base import keeps_rows, reads
from heads.oversampling import oversampled
from heads.preview import chosen_by, drafted
from heads.record import HEAD
from heads.saved import FeatureBinding, FittedHead, bindings
from heads.task import Task

_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_ROWS: Final = 64
_TEXTS: Final = 4000
"""Training samples that a draft of a head is fitted on, at least; of a head whose words they are, so many."""


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
    own = sum(path.stat().st_size for path in (folder / HEAD).rglob("*") if path.is_file())
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
    return [*of_encoders(bindings(features), checkpoints), Part("head", estimated(task, features), about=True)]


def estimated(task: Task, features: Features) -> int:
    """About the bytes of a head: its largest candidate is drafted on a few samples, and the draft is saved.

    Of a fusion of answers, one head for each feature set. Neighbours grow with the rows in proportion, the words of
    ``tfidf`` more slowly than that: with many texts this is an upper bound.
    """
    if task.fuses_answers and len(features.sets) > 1:
        alone = {one.sets[0].file.fingerprint: one for one in task.sets if len(one.sets) == 1}
        return sum(estimated(task, alone[one.file.fingerprint]) for one in features.sets)
    return max(_of_candidate(task, features, point) for point in _of_different_shape(task, features))


def _of_different_shape(task: Task, features: Features) -> list[Mapping[str, Any]]:
    """Candidates without those that differ in fractions alone (penalties, rates), which decide no shape."""
    shapes: dict[str, Mapping[str, Any]] = {}
    for point in chosen_by(task, features):
        fractions = reads(task.head) != "texts"
        shape = {name: value for name, value in point.items() if not (fractions and isinstance(value, float))}
        shapes.setdefault(repr(sorted(shape.items(), key=lambda item: item[0])), point)
    return list(shapes.values())


def _of_candidate(task: Task, features: Features, point: Mapping[str, Any]) -> int:
    """Bytes of one candidate fitted on all training samples."""
    order, texts = _in_turn(task), reads(task.head) == "texts"
    steps = point.get("transform", task.config.transform)
    least = max(_ROWS, len(task.classes), _components(steps, sum(features.dims)), _TEXTS if texts else 0)
    more = min(len(order), 2 * least)
    size = _saved(task, features, point, order[:more])
    if more == len(order) or not (texts or keeps_rows(task.head)):
        return size
    each = (size - _saved(task, features, point, order[: more // 2])) / (more - more // 2)
    return int(size + each * (len(order) * _repeats(task) - more))


def _in_turn(task: Task) -> npt.NDArray[np.int64]:
    """Training samples by chance, but one of each class or label first."""
    train = task.splits.train
    drawn = train[np.random.default_rng(task.config.seed).permutation(len(train))]
    codes = task.codes[drawn]
    single = codes.ndim == 1
    first = np.unique(codes, return_index=True)[1] if single else np.unique(codes[:, codes.any(0)].argmax(0))
    return np.concatenate([drawn[first], np.delete(drawn, first)])


def _repeats(task: Task) -> float:
    """How many times each training sample is trained on, in the mean."""
    train = task.splits.train
    return len(oversampled(train, task.codes[train], task.config.oversample)) / len(train)


def _components(steps: Any, width: int) -> int:
    """Rows that principal components need: as many as they are; of a share of the variance, all there may be."""
    if isinstance(steps, Mapping):
        return max((_components(own, width) for own in steps.values()), default=0)
    wanted = [step["pca"] for step in steps or () if isinstance(step, Mapping) and "pca" in step]
    return max((one if isinstance(one, int) else width for one in wanted), default=0)


def _saved(task: Task, features: Features, point: Mapping[str, Any], samples: npt.NDArray[np.int64]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        drafted(task, features, point, np.sort(samples)).save(Path(folder) / HEAD)
        return sum(path.stat().st_size for path in (Path(folder) / HEAD).iterdir())


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
