"""What configurations need and a cache lacks, found out before anything is fitted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.cache import Cache, CachedDataset, FeatureQuery, settings_flags
from embedcache.errors import MissingFeaturesError
from heads import head_named
from heads.base import TEXTS, TOKENS, reads
from heads.config import HeadConfig
from heads.table import Source


@dataclass(frozen=True)
class Lacking:
    """Backbones with the same settings whose features a data set lacks: one extraction makes them all.

    known: whether the cache knows the data set at all.
    """

    dataset: str
    backbones: tuple[str, ...]
    settings: Mapping[str, Any]
    known: bool

    def command(self, source: Source | None = None, cache: str | Path = "cache") -> str:
        """What extracts them, to be typed. source: how the data set is read where the cache does not know it."""
        named = "".join(f" --backbone {shlex.quote(one)}" for one in self.backbones)
        which = f"--dataset {shlex.quote(self.dataset)}"
        if not self.known and source is not None:
            options = "".join(f" --option {key}={shlex.quote(_text(value))}" for key, value in source.options.items())
            which = f"--dataset {source.adapter} --name {shlex.quote(self.dataset)}{options}"
        where = "" if str(cache) == "cache" else f" --cache {shlex.quote(str(cache))}"
        return f"python cli.py extract {which}{named}{settings_flags(self.settings)}{where}"


def _text(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def lacking(configs: Sequence[HeadConfig], cache: str | Path = "cache") -> list[Lacking]:
    """The extractions that these configurations are waiting for, in their order."""
    opened = Cache(Path(cache))
    found: dict[tuple[str, str], Lacking] = {}
    for config in configs:
        for dataset, known, backbone, settings in _missing(opened, config):
            key = dataset, repr(sorted(settings.items()))
            before = found[key].backbones if key in found else ()
            found[key] = Lacking(dataset, tuple(dict.fromkeys([*before, backbone])), settings, known)
    return list(found.values())


def check(
    configs: Sequence[HeadConfig], cache: str | Path = "cache", source: Source | None = None, hint: str = ""
) -> None:
    """Raise MissingFeaturesError with the commands for all that is lacking. hint: what else would help."""
    missing = lacking(configs, cache)
    if not missing:
        return
    what = "; ".join(f"{', '.join(one.backbones)} of {one.dataset}" for one in missing)
    commands = "\n".join(f"  {one.command(source, cache)}" for one in missing)
    raise MissingFeaturesError(
        f"The cache {cache} has no features of {what}. To extract them{hint}:\n{commands}", missing[0].dataset
    )


def _missing(cache: Cache, config: HeadConfig) -> Iterator[tuple[str, bool, str, dict[str, Any]]]:
    """Data set, whether it is there, backbone and settings of each feature set that is not there.

    What is there twice, or named by a fingerprint, is for whoever opens it to complain of.
    """
    if config.dataset is None and not len(cache):
        return
    there = config.dataset is None or config.dataset in cache
    dataset = None if not there else cache[config.dataset] if config.dataset is not None else cache.only()
    name = dataset.name if dataset is not None else str(config.dataset)
    for query in _queries(config, dataset):
        if dataset is not None and dataset.holds(query):
            continue
        settings = dict(query) if isinstance(query, Mapping) else {"backbone": query}
        yield name, dataset is not None, str(settings.pop("backbone")), settings


def _queries(config: HeadConfig, dataset: CachedDataset | None) -> list[FeatureQuery]:
    """What a configuration names; a head of words that names nothing needs word ids of any name."""
    what = reads(head_named(config.head))
    if what == TEXTS:
        return []
    sets = config.axis("features") or config.features or []
    if what == TOKENS and not sets and not (dataset is not None and dataset.has_words):
        return ["words"]
    return [query for names in sets for query in names if "@" not in str(query)]
