"""From a layer's hidden states to one vector an item: the same few ways for every family.

Hidden states of texts come with a mask; those of images as tokens, of which the first ones (class token, registers)
are no patches, or as maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedcache.errors import UsageError

if TYPE_CHECKING:
    import torch

OF_TEXTS = ("cls", "mean", "cls+mean", "max", "last")
OF_IMAGES = ("cls", "mean", "cls+mean", "max")


def pool_text(tokens: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One of OF_TEXTS: (n, tokens, dim) and the mask (n, tokens) to (n, dim), twice that for ``cls+mean``; float32.

    Padding may stand on either side: ``cls`` is the first token that the mask keeps, ``last`` the last one.
    """
    if pooling == "cls":
        return first_of_mask(tokens, mask)
    if pooling == "last":
        return last_of_mask(tokens, mask)
    if pooling == "max":
        return tokens.float().masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)
    mean = mean_over_mask(tokens, mask)
    return mean if pooling == "mean" else _beside([first_of_mask(tokens, mask), mean])


def mean_over_mask(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the tokens that the mask keeps: (n, tokens, dim) and (n, tokens) to (n, dim), in float32."""
    weights = mask.unsqueeze(-1).float()
    return (tokens.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def first_of_mask(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first token that the mask keeps, (n, dim)."""
    return _at(tokens, mask.argmax(1))


def last_of_mask(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last token that the mask keeps, (n, dim): where a decoder has read the whole text."""
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return _at(tokens, last)


def _at(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return tokens.take_along_dim(places.view(-1, 1, 1), 1).squeeze(1).float()


def pool_patches(
    patches: torch.Tensor, class_token: torch.Tensor | None, pooling: str, name: str, *, channels_last: bool = False
) -> torch.Tensor:
    """One of OF_IMAGES: patches (n, patches, dim), or maps (n, dim, height, width), to (n, dim) in float32.

    class_token: (n, dim), None where there is none, and then ``cls`` is a UsageError. channels_last: maps are
    (n, height, width, dim).
    """
    if "cls" in pooling and class_token is None:
        raise UsageError(f"{name} has no class token. Use --pooling mean, max or pre-logits.")
    if pooling == "cls" and class_token is not None:
        return class_token.float()
    places: tuple[int, ...] = (1,) if patches.ndim == 3 else (1, 2) if channels_last else (2, 3)
    if pooling == "max":
        return patches.float().amax(places)
    mean = patches.float().mean(places)
    return mean if pooling == "mean" or class_token is None else _beside([class_token.float(), mean])


def concatenated(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The vectors of several layers, one after the other: (n, dim) each to (n, layers × dim)."""
    return vectors[0] if len(vectors) == 1 else _beside(vectors)


def _beside(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(list(vectors), 1)


def place_of(number: int, n: int, name: str, first: int = 0) -> int:
    """The index, from 0, of layer ``number`` among ``n`` layers, of which the first one is called ``first``.

    Raises UsageError for a layer that the model does not have.
    """
    index = number + n if number < 0 else number - first
    if not 0 <= index < n:
        raise UsageError(f"{name} has the layers {first} to {first + n - 1} (or -1 to {-n}); --layer names {number}.")
    return index
