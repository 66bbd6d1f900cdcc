"""The table of backbones: families by prefix, aliases by name.

A backbone of a known family is one line in ALIASES. A new family is one file with ``resolve`` and one
line in FAMILIES.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Final

from embedcache.backbones.base import Alias, Backbone, BackboneSettings
from embedcache.backbones.checkpoints import Checkpoint, is_local
from embedcache.errors import UnknownNameError, UsageError, nearest, unknown_name
from embedcache.provenance import Modality

FAMILIES: Final = {
    "timm": "embedcache.backbones.timm_family",
    "hf": "embedcache.backbones.hf_family",
    "st": "embedcache.backbones.st_family",
    "glove": "embedcache.backbones.words_family",
    "word2vec": "embedcache.backbones.words_family",
    "words": "embedcache.backbones.words_family",
}

_CUB = "CUB report"
_SHIPPED = Path(__file__).parent.parent / "demo" / "backbones"
ALIASES: Final = {
    "vit-large": Alias("hf", "google/vit-large-patch32-384", "image", 1024, 306, "Apache-2.0", "384 px", used_by=_CUB),
    "vit-large-in21k": Alias(
        "hf", "google/vit-large-patch32-224-in21k", "image", 1024, 306, "Apache-2.0", "224 px", used_by=_CUB
    ),
    "swin-tiny": Alias(
        "hf", "microsoft/swin-tiny-patch4-window7-224", "image", 768, 28, "Apache-2.0", "224 px", used_by=_CUB
    ),
    "mpnet": Alias(
        "st", "sentence-transformers/all-mpnet-base-v2", "text", 768, 109, "Apache-2.0", "384 tokens", used_by=_CUB
    ),
    "bert": Alias("hf", "bert-base-uncased", "text", 768, 109, "Apache-2.0", "512 tokens", used_by=_CUB),
    "roberta": Alias("hf", "roberta-base", "text", 768, 124, "MIT", "512 tokens", used_by=_CUB),
    "demo-image": Alias("timm", str(_SHIPPED / "image"), "image", 1024, 0.57, "MIT", "112 px", used_by="demo"),
    "demo-text": Alias("hf", str(_SHIPPED / "text"), "text", 128, 0.34, "MIT", "64 tokens", used_by="demo"),
    "words": Alias("words", "training", "text", 0, 0, "MIT", "words"),
}


def resolve(name: str, settings: BackboneSettings | None = None) -> Backbone:
    """The backbone that ``name`` means: an alias, or ``family:checkpoint``. Finds files, loads nothing.

    Raises UnknownNameError for a name in no table, CheckpointNotFoundError where its files are missing.
    """
    return resolve_all([name], settings)[0]


def resolve_all(names: Sequence[str], settings: BackboneSettings | None = None) -> list[Backbone]:
    """Several backbones with the same settings, each taking those that have a meaning for its modality.

    Raises UsageError for a setting that has a meaning for none of them, and for one weight file for several.
    """
    settings = settings or BackboneSettings()
    if len(names) > 1 and (single := [name for name in ("weights", "revision") if getattr(settings, name)]):
        raise UsageError(f"{' and '.join(single)} are of one checkpoint; {len(names)} backbones are named.")
    found = [_resolve(name, settings) for name in names]
    without_use = [_meaningless(name, backbone) for name, backbone in zip(names, found, strict=True)]
    if found and (unused := sorted(set.intersection(*without_use) & set(settings.stated()))):
        raise UsageError(
            f"{', '.join(names)}: {', '.join(unused)} has no meaning for an encoder of {found[0].modality}s."
        )
    return found


MEANINGLESS: Final[Mapping[Modality, tuple[str, ...]]] = {
    "image": ("lowercase", "prompt", "max_length"),
    "text": ("image_size", "value_range", "channels"),
}
"""Settings that cannot apply to a modality."""

_OF_VOCABULARIES: Final = ("min_count", "max_words")
MEANINGLESS_FOR: Final[Mapping[str, tuple[str, ...]]] = {
    "words": ("weights", "revision", "pooling", "layer", "prompt", "max_length"),
    "glove": (*_OF_VOCABULARIES, "revision", "pooling", "layer", "prompt", "max_length"),
    "word2vec": (*_OF_VOCABULARIES, "revision", "pooling", "layer", "prompt", "max_length"),
}
"""Settings that cannot apply to a family; those of vocabularies apply to ``words`` alone."""


def _meaningless(name: str, backbone: Backbone) -> set[str]:
    """The settings that a backbone has no use for."""
    family, checkpoint = split_name(name)
    published = ("lowercase", *_OF_VOCABULARIES) if (family, checkpoint) == ("words", "published") else ()
    return {*MEANINGLESS[backbone.modality], *MEANINGLESS_FOR.get(family, _OF_VOCABULARIES), *published}


def _resolve(name: str, settings: BackboneSettings) -> Backbone:
    family, checkpoint = split_name(name)
    module = import_module(FAMILIES[family])
    backbone: Backbone = module.resolve(public_name(name), checkpoint, settings)
    without_use = _meaningless(name, backbone)
    kept = {key: value for key, value in settings.stated().items() if key not in without_use}
    own: Backbone = replace(backbone, settings=BackboneSettings(**kept))  # type: ignore[type-var]
    return own


def split_name(name: str) -> tuple[str, str]:
    """Family and checkpoint of a name. Raises UnknownNameError with the nearest names."""
    if name in ALIASES:
        return ALIASES[name].family, ALIASES[name].checkpoint
    family, colon, checkpoint = name.partition(":")
    if colon and checkpoint and family in FAMILIES:
        return family, checkpoint
    hint = f"Or name any checkpoint as {', '.join(f'{known}:NAME' for known in FAMILIES)}."
    if colon:
        raise UnknownNameError(f"Unknown family {family!r} in {name!r}. Known: {', '.join(nearest(family, FAMILIES))}.")
    raise unknown_name("backbone", name, ALIASES, hint)


def public_name(name: str) -> str:
    """The name without any folder of this machine: ``hf:./models/mine`` is ``hf:mine``."""
    if name in ALIASES:
        return name
    family, checkpoint = split_name(name)
    if is_local(checkpoint) or family in ("glove", "word2vec"):
        return f"{family}:{Path(checkpoint).expanduser().resolve().name}"
    return name


def slug(name: str) -> str:
    """A backbone's name as part of a file name."""
    last = name.rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.") or "backbone"


def fetch(name: str, revision: str | None = None) -> Checkpoint:
    """Bring a backbone's files from the hub into its cache folder on this machine."""
    from embedcache.backbones import checkpoints

    family, checkpoint = split_name(name)
    if is_local(checkpoint) or family in MEANINGLESS_FOR:
        kind = "a file or folder of this machine" if family != "words" else "no checkpoint"
        raise UsageError(f"{name} is {kind}: there is nothing to fetch.")
    if family == "timm":
        from embedcache.backbones.timm_family import full_name

        checkpoint = f"timm/{full_name(checkpoint.removeprefix('timm/'))}"
    return checkpoints.fetch(checkpoint, revision, name)
