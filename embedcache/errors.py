"""Every error that the project raises on purpose.

One base class; each child also subclasses the builtin it is a kind of, so that callers who have never
heard of this project catch what they expect. ``exit_code`` is what the command line leaves with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class EmbedCacheError(Exception):
    """Base of all errors raised on purpose. The message says what was found, expected and to be done."""

    exit_code = 1


class UsageError(EmbedCacheError, ValueError):
    """The request itself is wrong: an option, a key or a value that cannot be."""

    exit_code = 2


class UnknownNameError(UsageError, LookupError):
    """A name that is in no table; the message lists the known ones, nearest first."""


class DataNotFoundError(UsageError, FileNotFoundError):
    """No data where data was expected."""


class CheckpointNotFoundError(DataNotFoundError):
    """The files of a backbone are not on this machine."""


class CheckpointError(EmbedCacheError, ValueError):
    """A checkpoint that is there and cannot be used: missing weights, unknown settings."""


class MissingFeaturesError(UsageError, LookupError):
    """Features that were asked for are not in the cache. dataset, backbone, settings: what would extract them."""

    def __init__(
        self, message: str, dataset: str, backbone: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.dataset, self.backbone, self.settings = dataset, backbone, dict(settings or {})


class DamagedFileError(EmbedCacheError, ValueError):
    """A file of the cache that is not what its format promises."""


class IncompleteFileError(DamagedFileError):
    """A feature file with pending rows, opened as if it were complete."""


class LockedError(EmbedCacheError, BlockingIOError):
    """Another process is writing the same file."""


class ItemError(EmbedCacheError, ValueError):
    """One item that cannot be encoded. Extraction counts it, records the reason and goes on."""


class AllItemsFailedError(EmbedCacheError, RuntimeError):
    """Not one item could be encoded."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """All known names, those that look like ``name`` first."""
    names = sorted(known)
    alike = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    return alike + [other for other in names if other not in alike]


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """The error for a name that is in no table, with a suggestion where one is near."""
    names = nearest(name, known)
    alike = difflib.get_close_matches(name, names, n=1)
    suggestion = f" Did you mean {alike[0]!r}?" if alike else ""
    shown = names if len(names) <= 24 else [*names[:8], f"… ({len(names)} in all)"]
    listing = f" Known: {', '.join(shown)}." if names else ""
    return UnknownNameError(f"Unknown {kind} {name!r}.{suggestion}{listing}{' ' + hint if hint else ''}")
