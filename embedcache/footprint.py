"""How large an encoder is on disk: its weight files and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.backbones.base import Backbone
from embedcache.backbones.checkpoints import weight_files
from embedcache.backbones.hf_family import TOKENIZER_FILES, HfBackbone
from embedcache.backbones.st_family import StBackbone
from embedcache.backbones.timm_family import TimmBackbone
from embedcache.backbones.words_family import WordVectorsBackbone
from embedcache.encoding import EncoderReference, resolved
from embedcache.errors import DataNotFoundError


@dataclass(frozen=True)
class EncoderFiles:
    """The files that an encoder needs, with their bytes. Those that it shares with another encoder count once."""

    weights: Mapping[Path, int]
    tokenizer: Mapping[Path, int]


def encoder_files(reference: EncoderReference, checkpoint: str | None = None) -> EncoderFiles:
    """The files on this machine of the encoder that a head was fitted on; loads nothing.

    checkpoint: its folder or weight file, where it was made with one. A model with two towers is one file: it counts
    whole for either. Raises DataNotFoundError where there are no files to measure.
    """
    if not reference.backbone:
        raise DataNotFoundError("its vectors came from elsewhere, with no word of the encoder")
    return files_of(resolved(reference, checkpoint))


def files_of(backbone: Backbone) -> EncoderFiles:
    """The files of a backbone. Raises DataNotFoundError for one that has none."""
    weights: tuple[Path, ...]
    tokenizer: tuple[Path, ...] = ()
    known: Any = backbone
    if isinstance(known, HfBackbone):
        weights = known.files
        tokenizer = _tokenizer(known.folder) if known.modality == "text" else ()
    elif isinstance(known, StBackbone):
        folders = [known.folder / str(module["path"]) for module in known.modules]
        own = [folder for folder in folders if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))]
        weights = tuple(path for folder in own for path in weight_files(folder))
        tokenizer = _tokenizer(folders[0])
    elif isinstance(known, TimmBackbone):
        weights = known.files
    elif isinstance(known, WordVectorsBackbone):
        weights = (known.path,)
    else:
        raise DataNotFoundError(f"{backbone.name} was made in Python and has no files")
    return EncoderFiles(_sizes(weights), _sizes(tokenizer))


def _tokenizer(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in TOKENIZER_FILES if (folder / name).exists())


def _sizes(paths: tuple[Path, ...]) -> dict[Path, int]:
    """By the file itself, not by the link that a hub's cache has to it."""
    return {path.resolve(): path.stat().st_size for path in paths}
