"""What is known of the aliases, and which of their files are here: for ``backbones`` and its page in ``docs/``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcache.backbones import checkpoints
from embedcache.backbones.aliases import ALIASES
from embedcache.backbones.base import Alias
from embedcache.errors import unknown_name

TITLES = {"image": "Images", "both": "Images and texts", "text": "Texts"}
"""Of the groups of a listing, by modality; those for both put them in one space."""


@dataclass(frozen=True)
class Listed:
    """An alias, its line of the table, and the folder of its files on this machine, where they are here."""

    name: str
    alias: Alias
    folder: Path | None

    @property
    def checkpoint(self) -> str:
        """``family:checkpoint``, as it can be named without the alias; empty for what comes with the package."""
        return "" if self.alias.ships else f"{self.alias.family}:{self.alias.checkpoint}"

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON."""
        shown = {**asdict(self.alias), "checkpoint": self.alias.checkpoint if self.checkpoint else ""}
        return {**shown, "here": self.folder is not None, "folder": str(self.folder) if self.folder else None}


def listed(names: Iterable[str] = ()) -> list[Listed]:
    """Some aliases, or all of them. Looks into the hub's cache folder; no network, no model library.

    Raises UnknownNameError.
    """
    chosen = list(names) or list(ALIASES)
    for name in chosen:
        if name not in ALIASES:
            raise unknown_name("alias", name, ALIASES)
    return [Listed(name, ALIASES[name], folder_of(ALIASES[name])) for name in chosen]


def folder_of(alias: Alias) -> Path | None:
    """Where an alias's files are on this machine; None where they are not."""
    if alias.ships:
        return Path(alias.checkpoint)
    found = checkpoints.cached(alias.checkpoint, None)
    return found.folder if found else None


def parameters_of(alias: Alias) -> str:
    """Millions of parameters in three digits: ``0.57``, ``11.2``, ``306``."""
    return f"{alias.parameters:.3g}" if alias.parameters < 1000 else f"{alias.parameters:.0f}"
