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
from embedcache.errors import UnknownNameError, UsageError, nearest, unknown_name
from embedcache.provenance import Modality

FAMILIES: Final = {
    "timm": "embedcache.backbones.timm_family",
    "hf": "embedcache.backbones.hf_family",
    "st": "embedcache.backbones.st_family",
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
    meaningless = set(MEANINGLESS["image"]) | set(MEANINGLESS["text"])
    for backbone in found:
        meaningless &= set(MEANINGLESS[backbone.modality])
    if unused := sorted(meaningless & set(settings.stated())):
        raise UsageError(
            f"{', '.join(names)}: {', '.join(unused)} has no meaning for an encoder of {found[0].modality}s."
        )
    return found


MEANINGLESS: Final[Mapping[Modality, tuple[str, ...]]] = {
    "image": ("lowercase", "prompt", "max_length"),
    "text": ("image_size", "value_range", "channels"),
}
"""Settings that cannot apply to a modality."""


def _resolve(name: str, settings: BackboneSettings) -> Backbone:
    family, checkpoint = split_name(name)
    settings = replace(settings, **with_own(name, settings.stated()))
    module = import_module(FAMILIES[family])
    backbone: Backbone = module.resolve(public_name(name), checkpoint, settings)
    kept = {key: value for key, value in settings.stated().items() if key not in MEANINGLESS[backbone.modality]}
    own: Backbone = replace(backbone, settings=BackboneSettings(**kept))  # type: ignore[type-var]
    return own


def with_own(name: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Stated settings, and below them the alias's own: what is stated wins."""
    own = ALIASES[name].settings if name in ALIASES else {}
    return {**own, **stated}


def without_own(name: str, settings: BackboneSettings) -> dict[str, Any]:
    """Settings of a resolved backbone that its user stated: those that its alias does not mean anyway."""
    own = ALIASES[name].settings if name in ALIASES else {}
    return {key: value for key, value in settings.stated().items() if key not in own or own[key] != value}


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
    if is_local(checkpoint):
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
    if is_local(checkpoint):
        raise UsageError(f"{name} is a folder of this machine: there is nothing to fetch.")
    if family == "timm":
        from embedcache.backbones.timm_family import full_name

        checkpoint = f"timm/{full_name(checkpoint.removeprefix('timm/'))}"
    return checkpoints.fetch(checkpoint, revision, name)
