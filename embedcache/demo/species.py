"""Species of birds as named attributes, and which of them the demo's data set may have.

Colour schemes are divided by :func:`is_reserved`: the species of the data set have reserved schemes, the species
that the shipped backbones were trained on never have.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from embedcache.demo.chance import pick
from embedcache.demo.colours import COLOURS

_PLUMAGE: Final = tuple(COLOURS)
_PALE: Final = ("white", "tan", "yellow", "grey", "pink", "orange")

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "crown": _PLUMAGE,
    "back": _PLUMAGE,
    "wing": _PLUMAGE,
    "breast": _PLUMAGE,
    "belly": _PLUMAGE,
    "build": ("slender", "rounded", "sturdy"),
    "beak_shape": ("cone", "needle", "dagger", "hook", "curve"),
    "beak": ("black", "grey", "orange", "yellow"),
    "crest": ("none", "pointed", "plume"),
    "tail_shape": ("square", "long", "forked", "fan"),
    "breast_mark": ("plain", "streaks", "spots", "bars", "band"),
    "face_mark": ("plain", "mask", "brow", "cheek"),
    "wing_mark": ("plain", "bar", "bars", "patch"),
    "eye_ring": ("none", "white", "yellow", "red", "blue"),
    "legs": ("black", "grey", "orange", "pink", "yellow", "blue"),
    "size": ("small", "medium", "large"),
}
"""The values each attribute of a species can take, in the order of their class indices."""

SCHEME: Final = ("crown", "back", "wing", "breast", "belly")
"""The colours that tell one genus from another, and the demo's species from those trained on."""
TOLD: Final = ("eye_ring", "legs", "size")
"""What captions tell and pictures hardly show."""
SHOWN: Final = ("tail_shape", "breast_mark", "face_mark", "wing_mark")
"""What pictures show and captions hardly tell."""


@dataclass(frozen=True)
class Species:
    """One kind of bird; each value is one of :data:`CHOICES` under the field's name."""

    crown: str
    back: str
    wing: str
    breast: str
    belly: str
    build: str
    beak_shape: str
    beak: str
    crest: str
    tail_shape: str
    breast_mark: str
    face_mark: str
    wing_mark: str
    eye_ring: str
    legs: str
    size: str

    def labels(self) -> dict[str, int]:
        """Class index of each attribute, by its name."""
        return {f.name: CHOICES[f.name].index(getattr(self, f.name)) for f in fields(self)}


def is_reserved(species: Species) -> bool:
    """Whether the species' colour scheme belongs to the data set, and so never to training."""
    labels = species.labels()
    return sum(weight * labels[name] for weight, name in enumerate(SCHEME, start=1)) % 4 == 0


def random_species(rng: np.random.Generator, *, reserved: bool = False) -> Species:
    """A random species of the training side, or of the data set's side if ``reserved``."""
    while True:
        rest = {name: pick(rng, CHOICES[name]) for name in CHOICES if name not in SCHEME}
        species = Species(**_random_scheme(rng), **rest)
        if is_reserved(species) == reserved:
            return species


def _random_scheme(rng: np.random.Generator) -> dict[str, str]:
    """Colours as birds wear them: some parts share one, and bellies are often pale."""
    back, accent = pick(rng, _PLUMAGE), pick(rng, _PLUMAGE)
    return {
        "crown": pick(rng, (back, accent, pick(rng, _PLUMAGE))),
        "back": back,
        "wing": pick(rng, (back, pick(rng, _PLUMAGE), pick(rng, _PLUMAGE))),
        "breast": pick(rng, (accent, accent, pick(rng, _PLUMAGE))),
        "belly": pick(rng, (accent, pick(rng, _PALE), pick(rng, _PALE))),
    }
