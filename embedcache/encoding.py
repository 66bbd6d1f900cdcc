"""Encode a few items now, without a cache: what ``predict`` does with a photo and a caption it has never seen.

The numbers are those that extraction would store: same preprocessing, same compute precision, rounded to the
stored one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.backbones import resolve, split_name, tower_of, with_own
from embedcache.backbones.base import Backbone, BackboneSettings
from embedcache.engines.base import Work
from embedcache.engines.local import LocalEngine
from embedcache.errors import CheckpointNotFoundError, ItemError, UsageError
from embedcache.options import Options
from embedcache.precision import load_encoder
from embedcache.provenance import FloatType, Modality, Provenance, StoredType

_BLOCK = 256


@dataclass(frozen=True)
class EncoderReference:
    """An encoder as a head remembers it.

    backbone, settings: what to resolve. compute, stored: its precisions. fingerprint: what its numbers mean.
    """

    backbone: str
    settings: Mapping[str, Any]
    compute: FloatType
    stored: StoredType
    fingerprint: str


@dataclass(frozen=True)
class Encodings:
    """vectors: stored type, (n, dim); rows of failed items are zeros. failures: position to reason."""

    vectors: npt.NDArray[Any]
    failures: Mapping[int, str]


class OpenedEncoder:
    """An encoder that a head remembers, loaded: any number of items, block after block.

    checkpoint: its folder or weight file, where it was made with one. Raises UsageError where the backbone on this
    machine is another one, naming both fingerprints.
    """

    def __init__(
        self,
        reference: EncoderReference,
        modality: Modality,
        *,
        checkpoint: str | None = None,
        options: Options | None = None,
    ) -> None:
        backbone = resolved(reference, checkpoint)
        found = Provenance(backbone.identity, reference.compute, reference.stored).fingerprint
        if found != reference.fingerprint:
            raise UsageError(
                f"The head was fitted on {reference.backbone}@{reference.fingerprint}; the files on this machine make "
                f"{reference.backbone}@{found}. Those are other numbers: bring the same checkpoint, or fit a head on "
                "these."
            )
        options = replace(options or Options(), precision=reference.compute)
        encoder, _ = load_encoder(backbone, options, [])
        self._stored = reference.stored
        self._engine = LocalEngine(encoder, modality, workers=options.workers, batch_size=options.batch_size)

    def encode(self, items: Sequence[Path] | Sequence[str]) -> Encodings:
        """Vectors of image files or texts; at least one."""
        works = [Work(start // _BLOCK, rows, lambda row: _payload(items[row])) for start, rows in _blocks(len(items))]
        encoded = list(self._engine.encode(works))
        failures = {int(one.work.rows[at]): reason for one in encoded for at, reason in one.failures.items()}
        dim = max(one.vectors.shape[1] for one in encoded)
        vectors = np.concatenate([_widened(one.vectors, dim) for one in encoded]).astype(self._stored)
        return Encodings(vectors, failures)


def encode(
    reference: EncoderReference,
    items: Sequence[Path] | Sequence[str],
    modality: Modality,
    *,
    checkpoint: str | None = None,
    options: Options | None = None,
) -> Encodings:
    """Vectors of image files or texts by the very encoder that ``reference`` means; as ``OpenedEncoder``."""
    return OpenedEncoder(reference, modality, checkpoint=checkpoint, options=options).encode(items)


def resolved(reference: EncoderReference, checkpoint: str | None) -> Backbone:
    """The backbone by its name, or from the folder or weight file that is given."""
    settings = _tupled(reference.settings)
    try:
        if checkpoint is None:
            return resolve(reference.backbone, BackboneSettings(**settings))
        if Path(checkpoint).expanduser().is_dir():
            tower = tower_of(reference.backbone)[1]
            folder = f"{split_name(reference.backbone)[0]}:{checkpoint}{f'.{tower}' if tower else ''}"
            return resolve(folder, BackboneSettings(**with_own(reference.backbone, settings)))
        return resolve(reference.backbone, BackboneSettings(**settings, weights=checkpoint))
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{error} If {reference.backbone} came from a folder or a weight file, say where it is: "
            f"--checkpoint {reference.backbone}=PATH"
        ) from error


def _tupled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they were before they became JSON."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def _blocks(n: int) -> list[tuple[int, npt.NDArray[np.int64]]]:
    return [(start, np.arange(start, min(start + _BLOCK, n))) for start in range(0, n, _BLOCK)]


def _widened(vectors: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """A block in which every item failed has no width of its own."""
    return vectors if vectors.shape[1] == dim else np.zeros((len(vectors), dim), np.float32)


def _payload(item: Path | str) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", "surrogatepass")
    try:
        return item.read_bytes()
    except FileNotFoundError as error:
        raise ItemError("the file is missing") from error
    except OSError as error:
        raise ItemError(f"the file cannot be read: {error.strerror}") from error
