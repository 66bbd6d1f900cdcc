"""The final fit repeated with other seeds: how much of a score is the luck of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Scores = Mapping[str, Mapping[str, float]]
"""Values by split and metric."""


@dataclass(frozen=True)
class Spread:
    """One score over several seeds, in their order."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """The sample's standard deviation: over the number of seeds less one."""
        return stdev(self.values)

    def shown(self, metric: str) -> str:
        """``82.0 ± 1.3 %``; losses in nats."""
        if metric == "log_loss":
            return f"{self.mean:.3f} ± {self.deviation:.3f}"
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f} %"


@dataclass(frozen=True)
class Repeats:
    """The final fit with each of several seeds; the head that is kept is that of the first one."""

    seeds: tuple[int, ...]
    scores: Mapping[str, Mapping[str, Spread]]

    def document(self) -> dict[str, Any]:
        """For ``metrics.json``: by split and metric the mean, the deviation and each seed's value."""
        scores = {
            split: {
                name: {"mean": one.mean, "deviation": one.deviation, "values": list(one.values)}
                for name, one in own.items()
            }
            for split, own in self.scores.items()
        }
        return {"seeds": list(self.seeds), "kept": self.seeds[0], "scores": scores}

    @property
    def said(self) -> str:
        """Which seeds, and which head is kept."""
        first, last = self.seeds[0], self.seeds[-1]
        said = f"fitted with {len(self.seeds)} seeds ({first} to {last}); the head that is kept is that of seed {first}"
        spreads = [one for own in self.scores.values() for one in own.values()]
        same = bool(spreads) and all(len(set(one.values)) == 1 for one in spreads)
        return f"{said}; all gave the same scores: nothing random is left in this head" if same else said


def seeds_of(first: int, count: int) -> tuple[int, ...]:
    """The seeds of ``count`` fits."""
    return tuple(range(first, first + count))


def gathered(seeds: Sequence[int], scores: Sequence[Scores]) -> Repeats:
    """Scores by seed as one spread for each split and metric. Every fit was scored on the same splits."""
    found = {
        split: {name: Spread(tuple(float(one[split][name]) for one in scores)) for name in own}
        for split, own in scores[0].items()
    }
    return Repeats(tuple(seeds), found)
