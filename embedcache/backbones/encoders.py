"""Frozen torch modules behind the ``Encoder`` seam: what is the same for every family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from embedcache.backbones.base import Prepared
from embedcache.backbones.images import ImagePreprocessing
from embedcache.errors import ItemError
from embedcache.provenance import FloatType


def frozen(module: nn.Module, device: str) -> nn.Module:
    """In ``eval()``, without gradients, in float32, on ``device``."""
    return module.to(device=device, dtype=torch.float32).eval().requires_grad_(False)


def to_device(array: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Onto the device; through pinned memory, without waiting, where it is a GPU."""
    if device.type != "cuda":
        return array.to(device)
    return array.pin_memory().to(device, non_blocking=True)


class ImageEncoder:
    """An image model: stacks arrays, rescales and normalises on the device, runs ``vectors``.

    vectors: normalised pixels (n, 3, height, width) to vectors (n, dim).
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: ImagePreprocessing,
        vectors: Callable[[torch.Tensor], torch.Tensor],
        device: str,
        notes: Sequence[str] = (),
    ) -> None:
        self.device = torch.device(device)
        self.notes = tuple(notes)
        self.dtype = torch.float32
        self.module = frozen(module, device)
        self._layout = torch.contiguous_format
        if self.device.type == "cpu":  # convolutions take a third of the time; a model without any does not care
            self._layout = torch.channels_last
            self.module.to(memory_format=torch.channels_last)
        self._preprocessing = preprocessing
        self._vectors = vectors
        self._mean = torch.tensor(preprocessing.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(-1, 1, 1)

    def cast(self, dtype: FloatType) -> None:
        """Compute in ``dtype``; pixels are still rescaled and normalised in float32."""
        self.dtype = getattr(torch, dtype)
        self.module.to(dtype=self.dtype)

    def prepare(self, payloads: Sequence[bytes]) -> list[Prepared | ItemError]:
        """Image files' bytes to arrays of one shape."""
        return [self._prepare_one(payload) for payload in payloads]

    def _prepare_one(self, payload: bytes) -> Prepared | ItemError:
        try:
            return self._preprocessing(payload)
        except ItemError as error:
            return error

    @torch.inference_mode()
    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Vectors (n, dim) of a batch of images."""
        pixels = to_device(torch.from_numpy(np.stack([item.array for item in batch])), self.device)
        scaled = (
            pixels.contiguous(memory_format=self._layout)
            .float()
            .mul_(self._preprocessing.scale)
            .sub_(self._mean)
            .div_(self._std)
        )
        return self._vectors(scaled.to(self.dtype))


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    pad_token_id: int | None

    def __call__(self, texts: list[str], **options: Any) -> Any: ...


class TextEncoder:
    """A text model: tokenizes, pads a batch to its longest text, runs ``vectors``.

    vectors: token ids and mask, both int64 (n, tokens), to vectors (n, dim).
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Tokenizer,
        vectors: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        device: str,
        *,
        max_length: int,
        lowercase: bool,
        prompt: str,
        notes: Sequence[str] = (),
    ) -> None:
        self.device = torch.device(device)
        self.notes = tuple(notes)
        self.module = frozen(module, device)
        self._tokenizer = tokenizer
        self._vectors = vectors
        self._max_length = max_length
        self._lowercase = lowercase
        self._prompt = prompt
        self._turn = Lock()

    def cast(self, dtype: FloatType) -> None:
        """Compute in ``dtype``."""
        self.module.to(dtype=getattr(torch, dtype))

    def prepare(self, payloads: Sequence[bytes]) -> list[Prepared | ItemError]:
        """UTF-8 texts to token ids, all at once: the tokenizer has threads of its own."""
        checked = [readable_text(payload) for payload in payloads]
        texts = [self._prompt + text for text in checked if isinstance(text, str)]
        if self._lowercase:
            texts = [text.lower() for text in texts]
        with self._turn:  # truncation is a state of the tokenizer: another thread's would cut, or not cut, these texts
            tokens = iter(self._tokenize(texts) if texts else [])
        return [next(tokens) if isinstance(text, str) else text for text in checked]

    def _tokenize(self, texts: list[str]) -> list[Prepared | ItemError]:
        rows = self._tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        long = [index for index, row in enumerate(rows) if len(row) > self._max_length]
        if long:
            cut = self._tokenizer([texts[index] for index in long], truncation=True, max_length=self._max_length)
            for index, row in zip(long, cut["input_ids"], strict=True):
                rows[index] = row
        truncated = set(long)
        return [
            Prepared(np.asarray(row, np.int64), index in truncated)
            if len(row)
            else ItemError("its tokenizer finds no token in it")
            for index, row in enumerate(rows)
        ]

    @torch.inference_mode()
    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Vectors (n, dim) of a batch of texts."""
        longest = max(item.length for item in batch)
        ids = torch.full((len(batch), longest), self._tokenizer.pad_token_id or 0, dtype=torch.int64)
        mask = torch.zeros((len(batch), longest), dtype=torch.int64)
        for row, item in enumerate(batch):
            ids[row, : item.length] = torch.from_numpy(item.array)
            mask[row, : item.length] = 1
        return self._vectors(to_device(ids, self.device), to_device(mask, self.device))


def readable_text(payload: bytes) -> str | ItemError:
    """The text of a payload, or why it cannot be encoded: bytes that are not UTF-8, or nothing in it."""
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        return ItemError(f"it is not UTF-8: {error}")
    return text if text.strip() else ItemError("the text is empty")
