"""The species of the demo's data set, in genera of three, under invented names.

The second of a genus differs from the first only in what captions tell and pictures hardly show (eye ring, legs,
size); the third only in what pictures show and captions hardly tell (markings, tail). So neither picture nor text
is enough, and both together nearly are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np

from embedcache.demo.chance import pick
from embedcache.demo.species import CHOICES, TOLD, Species, random_species
from embedcache.errors import UsageError

MAX_SPECIES: Final = 120

_FAMILIES: Final = {
    "cone": ("Finch", "Bunting", "Seedling"),
    "needle": ("Warbler", "Wrenlet", "Pipling"),
    "dagger": ("Spearbill", "Lancebill", "Dabber"),
    "hook": ("Shrikelet", "Hookbill", "Clipbill"),
    "curve": ("Sipper", "Sicklebill", "Honeyling"),
}
_HUES: Final = {
    "red": ("Scarlet", "Ruby", "Ember"),
    "orange": ("Amber", "Tangerine", "Apricot"),
    "yellow": ("Lemon", "Saffron", "Butter"),
    "olive": ("Moss", "Caper", "Lichen"),
    "green": ("Emerald", "Fern", "Clover"),
    "teal": ("Lagoon", "Jade", "Tealwater"),
    "blue": ("Azure", "Cobalt", "Sky"),
    "violet": ("Plum", "Amethyst", "Heather"),
    "pink": ("Rose", "Coral", "Peony"),
    "brown": ("Umber", "Chestnut", "Cocoa"),
    "tan": ("Sand", "Biscuit", "Oat"),
    "grey": ("Ash", "Slate", "Pewter"),
    "black": ("Soot", "Ink", "Raven"),
    "white": ("Snow", "Chalk", "Milk"),
}
_MARKED: Final = {
    "plain": "Plain",
    "streaks": "Streaked",
    "spots": "Spotted",
    "bars": "Barred",
    "band": "Banded",
}


def demo_species(count: int = 20, seed: int = 0) -> dict[str, Species]:
    """The data set's species under their invented names, genus after genus.

    Raises :class:`UsageError` for fewer than 2 or more than :data:`MAX_SPECIES`.
    """
    if not 2 <= count <= MAX_SPECIES:
        raise UsageError(f"Got {count} species; a data set has 2 to {MAX_SPECIES} of them.")
    rng = np.random.default_rng((seed, 0))
    named: dict[str, Species] = {}
    seen: set[tuple[str, str]] = set()
    while len(named) < count:
        founder = random_species(rng, reserved=True)
        if (founder.back, founder.breast) not in seen:
            seen.add((founder.back, founder.breast))
            named.update(_named_genus(rng, founder, named))
    return dict(list(named.items())[:count])


def _named_genus(rng: np.random.Generator, founder: Species, taken: Iterable[str]) -> dict[str, Species]:
    """The founder, its twin in pictures and its twin in captions, under names not yet taken."""
    genus = _genus_name(rng, founder, taken)
    twin = _changed(rng, founder, TOLD)
    cousin = _changed(rng, founder, ("breast_mark", *rng.choice(["tail_shape", "face_mark", "wing_mark"], 2, False)))
    first, second = _size_names(founder, twin)
    third = _MARKED[cousin.breast_mark]
    return {f"{first}_{genus}": founder, f"{second}_{genus}": twin, f"{third}_{genus}": cousin}


def _changed(rng: np.random.Generator, species: Species, names: Sequence[str]) -> Species:
    """The species with another value for each of the named attributes."""
    others = {n: [c for c in CHOICES[n] if c != getattr(species, n)] for n in names}
    return replace(species, **{name: pick(rng, choices) for name, choices in others.items()})


def _genus_name(rng: np.random.Generator, founder: Species, taken: Iterable[str]) -> str:
    """Hue and family that no taken name ends in."""
    names = [f"{h}_{f}" for h, f in product(_HUES[founder.back], _FAMILIES[founder.beak_shape])]
    accents = [f"{h}-breasted_{n}" for h, n in product(_HUES[founder.breast], names)]
    ends = tuple(taken)
    for name in (*rng.permutation(names), *rng.permutation(accents)):
        if not any(end.endswith(f"_{name}") for end in ends):
            return str(name)
    raise UsageError("No bird names are left; ask for fewer species.")


def _size_names(first: Species, second: Species) -> tuple[str, str]:
    """How two species of different sizes are told apart by name."""
    sizes = CHOICES["size"]
    if sizes.index(first.size) < sizes.index(second.size):
        return "Lesser", "Greater"
    return "Greater", "Lesser"
