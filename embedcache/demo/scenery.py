"""What is around a bird: a scene out of focus behind it, a perch below it, leaves and grass before it."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from embedcache.demo.body import FOOT
from embedcache.demo.chance import pick
from embedcache.demo.colours import DARK, LIGHT, Rgb, jittered, mixed
from embedcache.demo.pen import Pen, Points, Pose, smooth

Pixels = npt.NDArray[np.float32]

_SCENES: Final[dict[str, tuple[Rgb, Rgb, tuple[Rgb, ...]]]] = {
    "sky": ((150, 196, 232), (214, 230, 240), ((245, 248, 250), (230, 238, 246))),
    "leaves": ((96, 134, 74), (58, 96, 56), ((126, 164, 84), (74, 116, 60), (170, 190, 110))),
    "water": ((112, 152, 172), (70, 112, 134), ((148, 184, 198), (88, 128, 148))),
    "autumn": ((190, 150, 96), (134, 98, 66), ((214, 160, 84), (160, 112, 70), (120, 110, 70))),
    "dusk": ((216, 170, 164), (120, 112, 148), ((236, 192, 160), (150, 130, 160))),
    "mist": ((206, 212, 212), (170, 182, 178), ((188, 200, 192), (222, 226, 224))),
}
"""Colours at the top, at the bottom and of what floats between."""
_BARK: Final[tuple[Rgb, ...]] = ((104, 78, 58), (128, 104, 82), (86, 74, 66), (120, 116, 106))
_FOLIAGE: Final[tuple[Rgb, ...]] = ((92, 138, 62), (128, 150, 66), (172, 128, 60))
_STONE: Final[Rgb] = (128, 126, 122)
_GRASS: Final[Rgb] = (104, 140, 70)


def background(rng: np.random.Generator, pose: Pose) -> Pixels:
    """An out-of-focus scene, float32 (height, width, 3), 0 to 255."""
    top, bottom, blobs = _SCENES[pick(rng, tuple(_SCENES))]
    small = _gradient(jittered(rng, top), jittered(rng, bottom))
    draw = ImageDraw.Draw(small, "RGBA")
    flat = rng.uniform(0.3, 3.0)
    for _ in range(int(rng.integers(6, 26))):
        x, y, r = rng.uniform(0, 48), rng.uniform(0, 42), rng.uniform(1.5, 7)
        colour = jittered(rng, pick(rng, blobs), 14)
        draw.ellipse((x - r * flat, y - r, x + r * flat, y + r), fill=(*colour, 130))
    large = small.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.6))))
    return np.asarray(large.resize((pose.width, pose.height), Image.Resampling.BICUBIC), np.float32)


def _gradient(top: Rgb, bottom: Rgb) -> Image.Image:
    share = np.linspace(0, 1, 42)[:, None, None]
    rows = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(np.broadcast_to(rows, (42, 48, 3)).astype(np.uint8))


def draw_perch(pen: Pen, rng: np.random.Generator) -> None:
    """A rock or, more often, a branch under the feet."""
    colour = jittered(rng, pick(rng, _BARK), 8)
    if rng.random() < 0.3:
        _draw_rock(pen, rng, colour)
    else:
        _draw_branch(pen, rng, colour)


def _draw_rock(pen: Pen, rng: np.random.Generator, colour: Rgb) -> None:
    left, right = rng.uniform(0.6, 1.4, 2)
    top = [(-left, 1.1), (-0.5 * left, FOOT + 0.12), (0.0, FOOT), (0.5 * right, FOOT + 0.08), (right, 1.1)]
    pen.fill(smooth([*top, (1.2, 3.0), (-1.2, 3.0)]), mixed(colour, _STONE, 0.6))


def _draw_branch(pen: Pen, rng: np.random.Generator, colour: Rgb) -> None:
    thick, slope = rng.uniform(0.06, 0.15), rng.normal(0, 0.12)
    x = np.array([-2.2, -1.0, 0.05, 1.0, 2.2])
    y = FOOT + 0.02 + thick / 2 + slope * (x - 0.05) + rng.normal(0, 0.04, 5) * [1, 1, 0, 1, 1]
    pen.line(np.stack([x, y], axis=1), colour, thick)
    pen.line(np.stack([x, y - thick * 0.25], axis=1), mixed(colour, LIGHT, 0.25), thick * 0.25)
    for _ in range(int(rng.integers(0, 4))):
        at = rng.uniform(-1.2, 1.2)
        root = np.array([at, FOOT + 0.05 + slope * at])
        tip = root + rng.uniform((-0.3, -0.35), (0.3, 0.45))
        pen.line(np.stack([root, tip]), colour, 0.03)
        _draw_leaf(pen, rng, tip)


def _draw_leaf(pen: Pen, rng: np.random.Generator, at: Points) -> None:
    turn, long = rng.uniform(0, 2 * math.pi), rng.uniform(0.12, 0.26)
    along = np.array([math.cos(turn), math.sin(turn)]) * long
    across = np.array([-along[1], along[0]]) * 0.32
    shape = np.stack([at, at + along * 0.5 + across, at + along, at + along * 0.5 - across])
    green = jittered(rng, pick(rng, _FOLIAGE), 12)
    pen.fill(smooth(shape), green)
    pen.line(np.stack([at, at + along]), mixed(green, DARK, 0.3), 0.012)


def draw_clutter(pen: Pen, rng: np.random.Generator) -> None:
    """Now and then some leaves or blades of grass before the bird."""
    for _ in range(int(rng.choice(4, p=[0.45, 0.25, 0.2, 0.1]))):
        _draw_leaf(pen, rng, rng.uniform((-1.0, -0.2), (0.9, 0.8)))
    if rng.random() < 0.35:
        for x in rng.uniform(-1.0, 1.0, int(rng.integers(1, 5))):
            _draw_blade(pen, rng, x)


def _draw_blade(pen: Pen, rng: np.random.Generator, x: float) -> None:
    """A blade of grass that bends more towards its tip."""
    rise = np.linspace(0, 1, 8)
    tall, bend = rng.uniform(0.8, 1.5), rng.normal(0, 0.3)
    blade = np.stack([x + bend * rise**2, 1.5 - tall * rise], axis=1)
    edge = blade[::-1] + np.outer(1 - rise[::-1], [0.05, 0.0])
    pen.fill(np.concatenate([blade, edge]), jittered(rng, _GRASS, 16))
