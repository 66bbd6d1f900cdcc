"""What tests of backbones share: photos, encoding with one, the libraries' own way."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from embedcache.backbones.base import Backbone, Encoder, Prepared
from tests.tiny_checkpoints import TEXTS, encoded, picture

Vectors = npt.NDArray[np.float32]
PHOTOS = [encoded(picture(*size, seed=number)) for number, size in enumerate([(40, 52), (64, 33), (32, 32), (90, 50)])]


def prepared(encoder: Encoder, payloads: Sequence[bytes]) -> list[Prepared]:
    items = encoder.prepare(payloads)
    assert all(isinstance(item, Prepared) for item in items)
    return [item for item in items if isinstance(item, Prepared)]


def encode(backbone: Backbone, payloads: Sequence[bytes] | None = None, batch: int = 64) -> Vectors:
    """Vectors of payloads (some texts or photos by default), float32 (n, dim)."""
    encoder = backbone.load("cpu")
    payloads = payloads if payloads is not None else PHOTOS if backbone.modality == "image" else as_bytes(TEXTS)
    items = prepared(encoder, payloads)
    batches = [encoder.forward(items[start : start + batch]) for start in range(0, len(items), batch)]
    return torch.cat(batches).numpy()


def as_bytes(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def close(found: Vectors, expected: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=tolerance, atol=tolerance)


def plain_hidden(folder: Path, texts: Sequence[str] = TEXTS, **options: Any) -> list[torch.Tensor]:
    """transformers' own last hidden states, one text at a time, without any padding."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [model(**tokenizer(text, return_tensors="pt", **options)).last_hidden_state[0] for text in texts]


def plain_images(folder: Path) -> Any:
    """transformers' own processor and model on the photos."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    images = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in PHOTOS]
    with torch.inference_mode():
        return model(**AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt"))
