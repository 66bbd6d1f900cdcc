"""Run big frozen backbones once, keep every vector, train light heads in seconds.

``import embedcache as ec`` is the notebook's door: ``ec.open`` a cache, ``ec.extract`` into one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcache.backbones.base import BackboneSettings
    from embedcache.backbones.images import ImagePreprocessing
    from embedcache.backbones.torch_module import torch_backbone
    from embedcache.cache import Cache
    from embedcache.cache import open_cache as open
    from embedcache.encoder import CachedEncoder
    from embedcache.extraction import Extraction, extract
    from embedcache.options import Options

__version__ = "0.1.0"
__all__ = [
    "BackboneSettings",
    "Cache",
    "CachedEncoder",
    "Extraction",
    "ImagePreprocessing",
    "Options",
    "extract",
    "open",
    "torch_backbone",
]

_WHERE = {
    "BackboneSettings": ("embedcache.backbones.base", "BackboneSettings"),
    "Cache": ("embedcache.cache", "Cache"),
    "CachedEncoder": ("embedcache.encoder", "CachedEncoder"),
    "open": ("embedcache.cache", "open_cache"),
    "Extraction": ("embedcache.extraction", "Extraction"),
    "Options": ("embedcache.options", "Options"),
    "extract": ("embedcache.extraction", "extract"),
    "ImagePreprocessing": ("embedcache.backbones.images", "ImagePreprocessing"),
    "torch_backbone": ("embedcache.backbones.torch_module", "torch_backbone"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: ``import embedcache`` alone costs nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
