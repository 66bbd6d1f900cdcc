"""A backbone that costs next to nothing: what is left to measure is everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import embedcache as ec
from embedcache.backbones.base import BackboneSettings, Prepared
from embedcache.errors import ItemError
from embedcache.provenance import EncoderIdentity, FloatType, Modality


class StandInEncoder:
    """Vectors (n, dim) from the first eight bytes of each text: finite, cheap, different enough."""

    def __init__(self, dim: int) -> None:
        self.device = torch.device("cpu")
        self.notes: tuple[str, ...] = ()
        self._direction = torch.linspace(-1, 1, dim)

    def prepare(self, payloads: Sequence[bytes]) -> list[Prepared | ItemError]:
        """The last eight bytes as one number."""
        return [Prepared(np.frombuffer(payload[-8:].rjust(8), np.int64)) for payload in payloads]

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """A multiple of one direction for each item."""
        numbers = torch.from_numpy(np.concatenate([item.array for item in batch]))
        return (numbers % 997 + 1).float()[:, None] / 997 * self._direction

    def cast(self, dtype: FloatType) -> None:
        """Always float32."""


@dataclass(frozen=True)
class StandIn:
    """A text backbone without a checkpoint."""

    dim: int
    name: str = "fake:stand-in"
    modality: Modality = "text"
    settings: BackboneSettings = field(default_factory=BackboneSettings)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> EncoderIdentity:
        """As of a checkpoint whose weights are its ``dim``."""
        return EncoderIdentity(
            modality="text",
            family="fake",
            weights=f"{self.dim:032x}",
            architecture={"dim": self.dim},
            pooling="mean",
            preprocessing={},
        )

    def load(self, device: str) -> StandInEncoder:
        """Nothing to load."""
        return StandInEncoder(self.dim)


def extract_texts(table: Path, dim: int, cache: Path) -> ec.Extraction:
    """Extract the texts of a CSV that ``write_texts`` wrote, through the real path, as the data set ``texts``."""
    options = ec.Options(device="cpu", stored="float16", sync=False)
    done = ec.extract(
        "table",
        table,
        backbones=[StandIn(dim)],
        name="texts",
        cache=cache,
        options=options,
        text="text",
        label="label",
    )[0]
    if done.n_failed:
        raise RuntimeError(f"{done.n_failed} of {done.n_items} texts failed: {done.failures}")
    return done


def write_texts(path: Path, rows: int) -> None:
    """A CSV of ``rows`` short distinct texts (40 characters on average) with one of 77 labels each."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,label\n")
        for start in range(0, rows, 10_000):
            file.writelines(
                f"question number {row} about card {row * 7919 % 1_000_003},class{row % 77}\n"
                for row in range(start, min(start + 10_000, rows))
            )
