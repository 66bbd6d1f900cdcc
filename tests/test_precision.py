"""Half precision is trusted only after it agreed with float32; storage in it only where nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from embedcache import precision
from embedcache.backbones.base import Prepared
from embedcache.errors import UsageError
from embedcache.options import Options
from embedcache.precision import agrees, chosen_device, load_encoder, stored_type
from tests.fakes import FakeBackbone, FakeEncoder


class Halving(FakeEncoder):
    """Gives other vectors in the precisions that ``broken`` names."""

    broken: tuple[str, ...] = ()

    def __init__(self, backbone: FakeBackbone) -> None:
        super().__init__(backbone)
        self.dtype = "float32"

    def cast(self, dtype: str) -> None:  # type: ignore[override]
        self.dtype = dtype

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        vectors = super().forward(batch)
        return -vectors if self.dtype in self.broken else vectors


@pytest.mark.parametrize(
    ("broken", "kept"), [((), "float16"), (("float16",), "bfloat16"), (("float16", "bfloat16"), "float32")]
)
def test_half_precision_is_kept_only_where_it_agrees(
    monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...], kept: str
) -> None:
    class Backbone(FakeBackbone):
        def load(self, device: str) -> FakeEncoder:
            encoder = Halving(self)
            encoder.broken = broken
            encoder.prepare([b"one", b"two"])
            return encoder

    monkeypatch.setattr(precision, "chosen_device", lambda device: "cuda")
    encoder, compute = load_encoder(Backbone(), Options(), [b"one", b"two"])
    assert (compute, encoder.dtype) == (kept, kept)  # type: ignore[attr-defined]


def test_on_a_cpu_auto_is_float32() -> None:
    backbone = FakeBackbone()
    assert load_encoder(backbone, Options(device="cpu"), [])[1] == "float32"
    assert backbone.casts == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="No CUDA device"):
        chosen_device("cuda:1")


def test_agreement() -> None:
    a = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert agrees(a, a, 0.999)
    assert not agrees(np.array([[1.0, 0.1], [0.0, 0.0]]), a, 0.999)
    assert not agrees(np.array([[np.inf, 0.0], [0.0, 0.0]]), a, 0.999)
    assert not agrees(np.zeros((2, 2)), a, 0.999)


def test_stated_storage_is_kept() -> None:
    assert stored_type(np.full((1, 2), 1e30, np.float32), "float16") == "float16"
    assert stored_type(np.ones((1, 2), np.float32), "float32") == "float32"
