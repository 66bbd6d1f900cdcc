"""A user's own torch module as a backbone: for networks that no library here has."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from embedcache.backbones import checkpoints, statedicts
from embedcache.backbones.base import BackboneSettings
from embedcache.backbones.images import ImagePreprocessing
from embedcache.errors import UsageError
from embedcache.provenance import EncoderIdentity, Modality

if TYPE_CHECKING:
    import torch
    from torch import nn

    from embedcache.backbones.encoders import ImageEncoder

LIBRARIES = ("torch", "torchvision", "timm", "transformers")


@dataclass(frozen=True)
class TorchBackbone:
    """A copy of an image module, its vectors and its preprocessing; see ``torch_backbone``."""

    name: str
    module: nn.Module
    preprocessing: ImagePreprocessing
    vectors: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
    version: str = "1"
    notes: tuple[str, ...] = ()
    settings: BackboneSettings = field(default_factory=BackboneSettings)
    modality: Modality = "image"

    @cached_property
    def identity(self) -> EncoderIdentity:
        """Weights by their digest; the graph by the module's printed structure and the source of its own classes."""
        return EncoderIdentity(
            modality="image",
            family="torch",
            weights=checkpoints.digest_tensors(self.module.state_dict()),
            architecture={
                "structure": xxhash.xxh3_128_hexdigest(repr(self.module).encode()),
                "source": {
                    name: xxhash.xxh3_128_hexdigest(text.encode()) for name, text in sources(self.module).items()
                },
                "version": self.version,
            },
            pooling="module" if self.vectors is None else xxhash.xxh3_128_hexdigest(_source(self.vectors).encode()),
            preprocessing=self.preprocessing.to_dict(),
        )

    @property
    def record(self) -> Mapping[str, Any]:
        """Names that cannot change a number."""
        return {"checkpoint": f"torch:{self.name}", "commit": None}

    def load(self, device: str) -> ImageEncoder:
        """A frozen copy on ``device``."""
        from embedcache.backbones.encoders import ImageEncoder

        module = copy.deepcopy(self.module)
        return ImageEncoder(module, self.preprocessing, self._vectors_of(module), device, self.notes)

    def _vectors_of(self, module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def vectors(pixels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = module(pixels) if self.vectors is None else self.vectors(module, pixels)
            if found.ndim != 2:
                raise UsageError(
                    f"{self.name} gives {tuple(found.shape)} for {len(pixels)} images, not (n, dim): pool it in the "
                    "module, or with vectors=."
                )
            return found.float()

        return vectors


def torch_backbone(
    name: str,
    module: nn.Module,
    preprocessing: ImagePreprocessing,
    *,
    weights: str | Path | None = None,
    vectors: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None,
    version: str = "1",
) -> TorchBackbone:
    """Any torch module that turns images into vectors, as a backbone for ``extract(backbones=[…])``.

    preprocessing: what is done to an image before the module. weights: a state dict's file (safetensors, or torch's,
    read as tensors alone), loaded into the module: all of it, wrappers taken off, a classifier that the module lacks
    left out and said. vectors: ``(module, pixels) -> (n, dim)`` where the module itself gives something else;
    pixels are float32 (n, 3, height, width). version: change it when something changes that neither weights, printed
    structure nor source of the module's classes show, such as a global that ``forward`` reads.

    Raises CheckpointError, with names, for weights that are missing, have no place or another shape.

    >>> import torch, embedcache as ec
    >>> own = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())
    >>> square = ec.ImagePreprocessing("bilinear", None, (32, 32), None, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> ec.torch_backbone("colours", own, square).identity.family
    'torch'
    """
    notes: tuple[str, ...] = ()
    module = copy.deepcopy(module).cpu()  # what is trained on later is another backbone
    if weights is not None:
        tensors = checkpoints.read_tensors([Path(weights).expanduser()])
        notes = statedicts.note_of(name, statedicts.load_strictly(module, tensors, name))
    return TorchBackbone(name, module, preprocessing, vectors, version, notes)


def sources(module: nn.Module) -> dict[str, str]:
    """Source text of the classes that a module is made of, by name, those of the libraries left out."""
    kinds = {type(part) for part in module.modules()}
    own = [kind for kind in kinds if kind.__module__.split(".")[0] not in LIBRARIES]
    return {kind.__qualname__: _source(kind) for kind in sorted(own, key=lambda kind: kind.__qualname__)}


def _source(thing: Any) -> str:
    """Its source text; where there is none (typed at a prompt), its name."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return str(getattr(thing, "__qualname__", type(thing).__qualname__))
