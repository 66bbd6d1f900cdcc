"""Which device, which precision to compute in, which to store: decided by measuring, never by hope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from embedcache.backbones.base import Backbone
from embedcache.errors import ItemError, UsageError
from embedcache.options import Options
from embedcache.provenance import FloatType, StoredType

if TYPE_CHECKING:
    from embedcache.backbones.base import Encoder

LARGEST_HALF = 65504.0
TRUSTED_COSINE = 0.999
FAITHFUL_COSINE = 0.9999


def chosen_device(device: str) -> str:
    """``auto`` is the first GPU, where torch can use one."""
    import torch

    if device != "auto":
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError("No CUDA device can be used: torch sees none. Use --device cpu, or run 'doctor'.")
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_encoder(backbone: Backbone, options: Options, payloads: Sequence[bytes]) -> tuple[Encoder, FloatType]:
    """The encoder on its device and the precision that it computes in.

    ``auto`` on CUDA tries float16, then bfloat16, on the first items against float32 and keeps what agrees (cosine
    of at least 0.999, everything finite); elsewhere it is float32.
    """
    device = chosen_device(options.device)
    encoder = backbone.load(device)
    if options.precision != "auto":
        encoder.cast(options.precision)
        return encoder, options.precision
    if not device.startswith("cuda"):
        return encoder, "float32"
    return _half_if_trusted(backbone, encoder, device, payloads)


def _half_if_trusted(
    backbone: Backbone, encoder: Encoder, device: str, payloads: Sequence[bytes]
) -> tuple[Encoder, FloatType]:
    prepared = [item for item in encoder.prepare(payloads) if not isinstance(item, ItemError)]
    if not prepared:
        return encoder, "float32"
    reference = encoder.forward(prepared).float().cpu().numpy()
    halves: tuple[FloatType, ...] = ("float16", "bfloat16")
    for half in halves:
        encoder = backbone.load(device)
        encoder.cast(half)
        if agrees(encoder.forward(prepared).float().cpu().numpy(), reference, TRUSTED_COSINE):
            return encoder, half
    return backbone.load(device), "float32"


def agrees(vectors: npt.NDArray[Any], reference: npt.NDArray[Any], cosine: float) -> bool:
    """Whether every vector is finite, within ``cosine`` of its reference, and zero only where it is; both (n, dim)."""
    if not np.isfinite(vectors).all():
        return False
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    norms, reference_norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    alike = (a * b).sum(1) >= cosine * norms * reference_norms
    return bool((alike & ((norms > 0) | (reference_norms == 0))).all())


def stored_type(vectors: npt.NDArray[np.float32], stored: Literal["auto"] | StoredType) -> StoredType:
    """float16 unless a vector overflows it or loses its direction in it."""
    if stored != "auto":
        return stored
    if vectors.size and np.abs(vectors).max() > LARGEST_HALF:
        return "float32"
    return "float16" if agrees(vectors.astype(np.float16), vectors, FAITHFUL_COSINE) else "float32"
