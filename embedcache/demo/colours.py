"""The colours that birds have, and what light does to them."""

from __future__ import annotations

from typing import Final

import numpy as np

Rgb = tuple[int, int, int]

COLOURS: Final[dict[str, Rgb]] = {
    "red": (205, 52, 46),
    "orange": (238, 134, 44),
    "yellow": (243, 208, 70),
    "olive": (134, 138, 66),
    "green": (64, 150, 84),
    "teal": (42, 156, 160),
    "blue": (58, 108, 200),
    "violet": (128, 84, 172),
    "pink": (238, 150, 168),
    "brown": (128, 86, 56),
    "tan": (208, 176, 132),
    "grey": (140, 146, 152),
    "black": (46, 46, 54),
    "white": (242, 240, 232),
}
DARK: Final[Rgb] = (34, 32, 38)
LIGHT: Final[Rgb] = (250, 248, 242)


def jittered(rng: np.random.Generator, colour: Rgb, spread: float = 9.0) -> Rgb:
    """The colour with normal noise of the standard deviation ``spread`` in each channel."""
    red, green, blue = (int(c) for c in np.clip(rng.normal(colour, spread), 0, 255))
    return red, green, blue


def mixed(first: Rgb, second: Rgb, share: float) -> Rgb:
    """``share`` of the second colour in the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def contrast(colour: Rgb) -> Rgb:
    """A darker shade of light colours, a lighter one of dark colours."""
    bright = sum(colour) > 3 * 105
    return mixed(colour, DARK if bright else LIGHT, 0.62)
