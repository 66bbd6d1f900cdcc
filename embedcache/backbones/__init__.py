"""The table of backbones: families by prefix, aliases by name.

A backbone of a known family is one line in ALIASES (``aliases.py``). A new family is one file with ``resolve`` and
one line in FAMILIES.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from embedcache.backbones.aliases import ALIASES
from embedcache.backbones.base import Backbone, BackboneSettings
from embedcache.backbones.checkpoints import Checkpoint, is_local
from embedcache.backbones.towers import split_tower
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

WORD_IDS: Final = "words"
"""The one backbone without a checkpoint: its vocabulary is made of the training texts."""


def resolve(name: str, settings: BackboneSettings | None = None) -> Backbone:
    """The backbone that ``name`` means: an alias, or ``family:checkpoint``. Finds files, loads nothing.

    Of a model with two towers one must be named: ``NAME.image`` or ``NAME.text``. Raises UnknownNameError for a name
    in no table, CheckpointNotFoundError where its files are missing.
    """
    found = resolve_all([name], settings)
    if len(found) > 1:
        raise UsageError(f"{name} has two towers: name {' or '.join(one.name for one in found)}.")
    return found[0]


def resolve_all(names: Sequence[str], settings: BackboneSettings | None = None) -> list[Backbone]:
    """Several backbones with the same settings, each taking those that have a meaning for its modality.

    The name of a model with two towers means both, the one for images first.
    Raises UsageError for a setting that has a meaning for none of them, and for one weight file for several.
    """
    settings = settings or BackboneSettings()
    if len(names) > 1 and (single := [name for name in ("weights", "revision") if getattr(settings, name)]):
        raise UsageError(f"{' and '.join(single)} are of one checkpoint; {len(names)} backbones are named.")
    found = [(name, backbone) for name in names for backbone in _resolve(name, settings)]
    without_use = [_meaningless(name, backbone) for name, backbone in found]
    if found and (unused := sorted(set.intersection(*without_use) & set(settings.stated()))):
        raise UsageError(
            f"{', '.join(names)}: {', '.join(unused)} has no meaning for an encoder of {found[0][1].modality}s."
        )
    return [backbone for _, backbone in found]


MEANINGLESS: Final[Mapping[Modality, tuple[str, ...]]] = {
    "image": ("lowercase", "prompt", "max_length"),
    "text": ("image_size", "value_range", "channels"),
}
"""Settings that cannot apply to a modality."""

_OF_VOCABULARIES: Final = ("min_count", "max_words")
_OF_MODELS: Final = ("revision", "layer", "pooling", "prompt", "max_length")
MEANINGLESS_FOR: Final[Mapping[str, tuple[str, ...]]] = {
    "words": ("weights", *_OF_MODELS),
    "glove": (*_OF_VOCABULARIES, *_OF_MODELS),
    "word2vec": (*_OF_VOCABULARIES, *_OF_MODELS),
}
"""Settings that cannot apply to a family; those of vocabularies apply to ``words`` alone."""


def _meaningless(name: str, backbone: Backbone) -> set[str]:
    """The settings that a backbone has no use for."""
    family, checkpoint = split_name(name)
    published = ("lowercase", *_OF_VOCABULARIES) if (family, checkpoint) == ("words", "published") else ()
    return {*MEANINGLESS[backbone.modality], *MEANINGLESS_FOR.get(family, _OF_VOCABULARIES), *published}


def _resolve(name: str, settings: BackboneSettings) -> list[Backbone]:
    """The backbone of a name, or both towers of it."""
    base, tower = tower_of(name)
    family, checkpoint = split_name(base)
    settings = replace(settings, **with_own(base, settings.stated()))
    module = import_module(FAMILIES[family])
    if hasattr(module, "resolve_towers"):
        found = module.resolve_towers(public_name(base), checkpoint, settings, tower)
    elif tower is None:
        found = [module.resolve(public_name(base), checkpoint, settings)]
    else:
        raise UsageError(f"{base} has no towers: models of the family {family!r} encode one modality.")
    return [_with_own_settings(name, backbone, settings) for backbone in found]


def _with_own_settings(name: str, backbone: Any, settings: BackboneSettings) -> Backbone:
    """The backbone with those of the settings that have a meaning for it."""
    without_use = _meaningless(name, backbone)
    kept = {key: value for key, value in settings.stated().items() if key not in without_use}
    own: Backbone = replace(backbone, settings=BackboneSettings(**kept))
    return own


def with_own(name: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Stated settings, and below them the alias's own: what is stated wins."""
    return {**_own(name), **stated}


def without_own(name: str, settings: BackboneSettings) -> dict[str, Any]:
    """Settings of a resolved backbone that its user stated: those that its alias does not mean anyway."""
    own = _own(name)
    return {key: value for key, value in settings.stated().items() if key not in own or own[key] != value}


def _own(name: str) -> Mapping[str, Any]:
    base, _ = tower_of(name)
    return ALIASES[base].settings if base in ALIASES else {}


def tower_of(name: str) -> tuple[str, Modality | None]:
    """``clip-vit-base.image`` is one tower of ``clip-vit-base``; None for any other name, also of a folder."""
    base, tower = split_tower(name)
    family, _, checkpoint = name.partition(":")
    if tower is None or name in ALIASES or family in MEANINGLESS_FOR:
        return name, None
    if checkpoint and Path(checkpoint).expanduser().exists():
        return name, None
    return (base, tower) if base in ALIASES or family in FAMILIES else (name, None)


def split_name(name: str) -> tuple[str, str]:
    """Family and checkpoint of a name, without its tower. Raises UnknownNameError with the nearest names."""
    name, _ = tower_of(name)
    if name in ALIASES:
        return ALIASES[name].family, ALIASES[name].checkpoint
    if name == WORD_IDS:
        return name, "training"
    family, colon, checkpoint = name.partition(":")
    if colon and checkpoint and family in FAMILIES:
        return family, checkpoint
    hint = f"Or name any checkpoint as {', '.join(f'{known}:NAME' for known in FAMILIES)}."
    if colon and family in FAMILIES:
        raise UsageError(f"{name!r} names no checkpoint: write {family}:NAME or {family}:./FOLDER.")
    if colon:
        raise UnknownNameError(f"Unknown family {family!r} in {name!r}. Known: {', '.join(nearest(family, FAMILIES))}.")
    raise unknown_name("backbone", name, [*ALIASES, WORD_IDS], hint)


def public_name(name: str) -> str:
    """The name without any folder of this machine: ``hf:./models/mine`` is ``hf:mine``."""
    base, tower = tower_of(name)
    if tower is not None:
        return f"{public_name(base)}.{tower}"
    if name in ALIASES or name == WORD_IDS:
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
