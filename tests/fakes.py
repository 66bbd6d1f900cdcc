"""Stand-in backbones with known answers, which count what they are asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash

from embedcache.backbones.base import BackboneSettings, Prepared
from embedcache.errors import ItemError
from embedcache.provenance import EncoderIdentity, FloatType, Modality


def known_vector(payload: bytes, dim: int) -> np.ndarray:
    """The vector that a FakeBackbone gives to a payload: numbers in [0, 1), exact in float16."""
    seed = xxhash.xxh3_64_intdigest(payload)
    return np.random.default_rng(seed).integers(0, 1024, dim).astype(np.float32) / 1024


class FakeEncoder:
    """Looks vectors up instead of computing them. Payloads that begin with BAD fail, INF gives infinities."""

    device = torch.device("cpu")
    notes: tuple[str, ...] = ()

    def __init__(self, backbone: FakeBackbone) -> None:
        self._backbone = backbone
        self._vectors: dict[bytes, np.ndarray] = {}

    def cast(self, dtype: FloatType) -> None:
        self._backbone.casts.append(dtype)

    def prepare(self, payloads: Sequence[bytes]) -> list[Prepared | ItemError]:
        return [self._prepare(payload) for payload in payloads]

    def _prepare(self, payload: bytes) -> Prepared | ItemError:
        if payload.startswith(b"BAD"):
            return ItemError("it is bad")
        key = xxhash.xxh3_64_digest(payload)
        vector = known_vector(payload, self._backbone.dim) * self._backbone.scale
        self._vectors[key] = np.full_like(vector, np.inf) if payload.startswith(b"INF") else vector
        return Prepared(np.frombuffer(key, np.uint8), truncated=payload.startswith(b"LONG"))

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        self._backbone.batches.append(len(batch))
        if self._backbone.fail_at is not None and sum(self._backbone.batches) >= self._backbone.fail_at:
            raise self._backbone.failure
        return torch.from_numpy(np.stack([self._vectors.pop(item.array.tobytes()) for item in batch]))


@dataclass(frozen=True)
class FakeBackbone:
    """Encodes by hashing. batches: sizes of the forward passes so far. fail_at: items after which it fails."""

    modality: Modality = "image"
    name: str = "fake"
    dim: int = 8
    scale: float = 1.0
    weights: str = "0" * 32
    settings: BackboneSettings = field(default_factory=BackboneSettings)
    batches: list[int] = field(default_factory=list)
    casts: list[str] = field(default_factory=list)
    fail_at: int | None = None
    failure: BaseException = field(default_factory=lambda: KeyboardInterrupt())

    @property
    def encoded(self) -> int:
        """Items that went through a forward pass."""
        return sum(self.batches)

    @property
    def identity(self) -> EncoderIdentity:
        return EncoderIdentity(
            self.modality, "fake", self.weights, {"dim": self.dim, "scale": self.scale}, "mean",
            {"lowercase": self.settings.lowercase},
        )  # fmt: skip

    @property
    def record(self) -> Mapping[str, Any]:
        return {"checkpoint": f"fake:{self.name}", "commit": None}

    def load(self, device: str) -> FakeEncoder:
        return FakeEncoder(self)
