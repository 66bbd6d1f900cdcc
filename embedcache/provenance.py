"""What a vector means: everything about an encoder that can change a number, and its short digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Modality: TypeAlias = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")

FloatType: TypeAlias = Literal["float16", "bfloat16", "float32"]
StoredType: TypeAlias = Literal["float16", "float32"]

FINGERPRINT_LENGTH = 12


def canonical_json(document: Any) -> str:
    """The one JSON text of ``document``: sorted keys, no spaces, no NaN. Raises ValueError on NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(document: Any, length: int = 32) -> str:
    """The first ``length`` hexadecimal digits of the SHA-256 of ``document``'s canonical JSON."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()[:length]


@dataclass(frozen=True)
class EncoderIdentity:
    """An encoder's identity short of its precision, known before any weight is on a device.

    weights: digest of all tensors (names, types, shapes, bytes), see ``backbones.checkpoints``.
    architecture: the configuration that decides the graph, as the family's library states it.
    preprocessing: everything done to an item before the first layer.
    """

    modality: Modality
    family: str
    weights: str
    architecture: Mapping[str, Any]
    pooling: str
    preprocessing: Mapping[str, Any]
    layer: str = "last"


@dataclass(frozen=True)
class Provenance:
    """The identity with its precisions: ``compute`` in the forward pass, ``stored`` on disk."""

    encoder: EncoderIdentity
    compute: FloatType
    stored: StoredType
    fingerprint: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", fingerprint(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; its digest is the fingerprint."""
        return {**asdict(self.encoder), "compute": self.compute, "stored": self.stored}

    def to_json(self) -> str:
        """Canonical JSON, as stored in a feature file's ``provenance`` attribute."""
        return canonical_json(self.to_dict())


def fingerprint(provenance: Mapping[str, Any]) -> str:
    """The 12 hexadecimal digits that name a provenance."""
    return digest_json(provenance, FINGERPRINT_LENGTH)


def flatten(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted path and leaf of a nested mapping, in sorted order."""
    for key in sorted(document):
        value = document[key]
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The leaves on which two provenances differ: (dotted path, left value, right value)."""
    a, b = dict(flatten(left)), dict(flatten(right))
    return [(path, a.get(path), b.get(path)) for path in sorted({*a, *b}) if a.get(path) != b.get(path)]
