"""What people would say of a picture of a bird: a few of its attributes, and not all of them rightly.

Reed et al., "Learning Deep Representations of Fine-Grained Visual Descriptions" (2016),
https://arxiv.org/abs/1605.05395: ten sentences for each picture of CUB-200-2011.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from embedcache.demo.chance import pick
from embedcache.demo.species import CHOICES, SCHEME, Species

CAPTIONS_PER_IMAGE: Final = 10

_COLOUR_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "red": ("red", "red", "crimson", "scarlet"),
    "orange": ("orange", "orange", "rusty", "reddish orange"),
    "yellow": ("yellow", "yellow", "golden", "bright yellow"),
    "olive": ("olive", "olive green", "greenish brown", "drab green"),
    "green": ("green", "green", "bright green", "leafy green"),
    "teal": ("teal", "teal", "turquoise", "blue green"),
    "blue": ("blue", "blue", "deep blue", "azure"),
    "violet": ("purple", "violet", "purple", "dark purple"),
    "pink": ("pink", "pink", "rosy", "pinkish"),
    "brown": ("brown", "brown", "dark brown", "chestnut"),
    "tan": ("tan", "beige", "light brown", "buff"),
    "grey": ("grey", "gray", "grey", "ashy"),
    "black": ("black", "black", "dark", "jet black"),
    "white": ("white", "white", "cream", "whitish"),
    "none": ("faint", "thin", "hardly visible"),
}

_CONFUSED: Final[dict[str, tuple[str, ...]]] = {
    "red": ("orange", "pink", "brown"),
    "orange": ("red", "yellow", "tan"),
    "yellow": ("orange", "tan", "olive"),
    "olive": ("green", "brown", "yellow"),
    "green": ("olive", "teal", "blue"),
    "teal": ("blue", "green", "grey"),
    "blue": ("teal", "violet", "black"),
    "violet": ("blue", "pink", "black"),
    "pink": ("red", "violet", "white"),
    "brown": ("red", "tan", "black"),
    "tan": ("brown", "white", "yellow"),
    "grey": ("white", "black", "blue"),
    "black": ("grey", "brown", "blue"),
    "white": ("grey", "tan", "yellow"),
}

_SHAPE_WORDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "size": {
        "small": ("small", "tiny", "little"),
        "medium": ("medium sized", "mid sized", "average sized"),
        "large": ("large", "big", "rather big"),
    },
    "build": {
        "slender": ("slim", "slender", "sleek"),
        "rounded": ("round", "plump", "chubby"),
        "sturdy": ("sturdy", "stocky", "compact"),
    },
    "beak_shape": {
        "cone": ("short thick", "cone shaped", "stubby"),
        "needle": ("thin pointed", "short sharp", "needle like"),
        "dagger": ("long straight", "long pointed", "dagger like"),
        "hook": ("hooked", "curved", "parrot like"),
        "curve": ("long curved", "downcurved", "thin curved"),
    },
    "crest": {
        "none": ("smooth", "rounded", "plain"),
        "pointed": ("crested", "peaked", "pointed"),
        "plume": ("plumed", "feathery", "tufted"),
    },
    "tail_shape": {
        "square": ("short", "square", "plain"),
        "long": ("long", "pointed", "plain"),
        "forked": ("forked", "split", "pointed"),
        "fan": ("fanned", "broad", "short"),
    },
    "breast_mark": {
        "plain": ("plain", "clean", "pretty"),
        "streaks": ("streaked", "mottled", "patterned"),
        "spots": ("spotted", "mottled", "speckled"),
        "bars": ("barred", "striped", "patterned"),
        "band": ("banded", "striped", "patterned"),
    },
    "face_mark": {
        "plain": ("plain", "clean", "pretty"),
        "mask": ("masked", "dark", "patterned"),
        "brow": ("striped", "patterned", "pretty"),
        "cheek": ("spotted", "patterned", "pretty"),
    },
    "wing_mark": {
        "plain": ("plain", "clean", "smooth"),
        "bar": ("barred", "striped", "patterned"),
        "bars": ("double barred", "striped", "patterned"),
        "patch": ("patched", "marked", "patterned"),
    },
}

_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "crown": ("a {} crown", "a {} head", "a {} cap"),
    "back": ("a {} back", "{} upperparts", "a {} back and nape"),
    "wing": ("{} wings", "{} wing feathers", "{} coverts"),
    "breast": ("a {} breast", "a {} chest", "a {} throat and breast"),
    "belly": ("a {} belly", "{} underparts", "a {} abdomen"),
    "build": ("a {} body", "a {} shape"),
    "beak_shape": ("a {} bill", "a {} beak"),
    "beak": ("a {} bill", "a {} beak"),
    "crest": ("a {} head", "{} head feathers"),
    "tail_shape": ("a {} tail", "{} tail feathers"),
    "breast_mark": ("a {} front", "{} breast feathers"),
    "face_mark": ("a {} face", "a {} cheek"),
    "wing_mark": ("{} wings", "{} wing feathers"),
    "eye_ring": ("a {} eye ring", "a {} ring around its eye", "{} eyerings"),
    "legs": ("{} legs", "{} feet", "{} tarsus and feet"),
}

_MENTIONED: Final[dict[str, float]] = {
    "crown": 0.30,
    "back": 0.30,
    "wing": 0.30,
    "breast": 0.35,
    "belly": 0.30,
    "build": 0.08,
    "beak_shape": 0.25,
    "beak": 0.15,
    "crest": 0.05,
    "tail_shape": 0.02,
    "breast_mark": 0.02,
    "face_mark": 0.02,
    "wing_mark": 0.02,
    "eye_ring": 0.16,
    "legs": 0.20,
    "size": 0.30,
}
"""How often a caption mentions each attribute."""

MISTAKEN: Final = 0.22
"""How often what a caption mentions is not so."""

_TEMPLATES: Final = (
    "this {}bird has {}.",
    "a {}bird with {}.",
    "the {}bird has {}.",
    "this is a {}bird with {}.",
    "a {}bird that has {}.",
    "this particular {}bird has {}.",
    "here is a {}bird with {}, sitting on a branch.",
    "there is a {}bird here that has {}.",
    "if you look closely, the {}bird has {}.",
    "it seems to be a {}bird, and it has {}.",
)


def describe(species: Species, rng: np.random.Generator, count: int = CAPTIONS_PER_IMAGE) -> list[str]:
    """What ``count`` people would say of one picture, each in one lower-case sentence."""
    return [_caption(species, rng) for _ in range(count)]


def _caption(species: Species, rng: np.random.Generator) -> str:
    names = [name for name in _PHRASES if rng.random() < _MENTIONED[name]]
    names = names or [pick(rng, SCHEME)]
    phrases = [_phrase(species, str(name), rng) for name in rng.permutation(names)[:4]]
    size = f"{_word(species, 'size', rng)} " if rng.random() < _MENTIONED["size"] else ""
    text = pick(rng, _TEMPLATES).format(size, _joined(phrases))
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _phrase(species: Species, name: str, rng: np.random.Generator) -> str:
    return pick(rng, _PHRASES[name]).format(_word(species, name, rng))


def _word(species: Species, name: str, rng: np.random.Generator) -> str:
    value = _seen(name, getattr(species, name), rng)
    words = _SHAPE_WORDS.get(name, _COLOUR_WORDS)
    return pick(rng, words[value])


def _seen(name: str, value: str, rng: np.random.Generator) -> str:
    """The value, or now and then one that it could be mistaken for."""
    if rng.random() >= MISTAKEN:
        return value
    if value in _CONFUSED and name in SCHEME:
        return pick(rng, _CONFUSED[value])
    return pick(rng, CHOICES[name])


def _joined(phrases: Sequence[str]) -> str:
    """A list as English has it: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
