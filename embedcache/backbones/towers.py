"""Two-tower models: images and texts in one space, each by an encoder of its own.

``NAME`` means both towers, ``NAME.image`` and ``NAME.text`` one of them. A tower is loaded without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from embedcache.provenance import MODALITIES, Modality


@dataclass(frozen=True)
class Tower:
    """One half of a two-tower model of transformers.

    config: key of its part of the configuration. prefixes: of the names of its weights. kind: the class that is this
    half alone. projected: the class and the output that ``get_image_features`` and ``get_text_features`` give, where
    that is more than the half's own ``pooler_output``. padded: texts are padded to the full length and padding is
    not masked, as the model was trained.
    """

    modality: Modality
    config: str
    prefixes: tuple[str, ...]
    kind: str
    projected: tuple[str, str] | None = None
    padded: bool = False

    @property
    def pooling(self) -> str:
        """What ``auto`` means: the vector in the space that both towers share."""
        return "projection" if self.projected else "pooler"


TOWERS: Final[Mapping[str, tuple[Tower, Tower]]] = {
    "clip": (
        Tower(
            "image", "vision_config", ("vision_model.", "visual_projection."), "CLIPVisionModel",
            ("CLIPVisionModelWithProjection", "image_embeds"),
        ),
        Tower(
            "text", "text_config", ("text_model.", "text_projection."), "CLIPTextModel",
            ("CLIPTextModelWithProjection", "text_embeds"),
        ),
    ),
    "siglip": (
        Tower("image", "vision_config", ("vision_model.",), "SiglipVisionModel"),
        Tower("text", "text_config", ("text_model.",), "SiglipTextModel", padded=True),
    ),
}  # fmt: skip
"""By ``model_type``. SigLIP 2 of a fixed resolution is a ``siglip``; ``siglip2`` is its other kind (NaFlex)."""


def split_tower(name: str) -> tuple[str, Modality | None]:
    """``clip-vit-base.image`` is the tower ``image`` of ``clip-vit-base``; None for a name without a tower."""
    for modality in MODALITIES:
        base = name.removesuffix(f".{modality}")
        if base != name and base:
            return base, modality
    return name, None
