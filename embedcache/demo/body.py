"""A bird's body: where its parts are, and how each is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageChops

from embedcache.demo.colours import COLOURS, DARK, LIGHT, Rgb, contrast, jittered, mixed
from embedcache.demo.pen import Pen, Point, Points, arc, smooth
from embedcache.demo.species import Species

FOOT: Final = 0.62
"""How far below the body's centre a bird's feet are, in bird units."""

# The shapes below stay as compact as their numbers: one polygon, one line.
# fmt: off
_TAILS: Final[dict[str, list[list[Point]]]] = {
    "square": [[(-0.42, 0.06), (-0.88, 0.30), (-0.94, 0.45), (-0.44, 0.26)]],
    "long": [[(-0.42, 0.06), (-1.22, 0.52), (-1.30, 0.62), (-1.22, 0.64), (-0.46, 0.26)]],
    "forked": [
        [(-0.42, 0.06), (-0.80, 0.22), (-1.16, 0.30), (-0.80, 0.36), (-0.46, 0.24)],
        [(-0.42, 0.10), (-0.78, 0.34), (-1.04, 0.60), (-0.70, 0.46), (-0.44, 0.27)],
    ],
    "fan": [[(-0.4, 0.08), (-0.92, 0.06), (-1.03, 0.24), (-1.02, 0.44), (-0.88, 0.62), (-0.42, 0.26)]],
}
_BEAKS: Final[dict[str, list[Point]]] = {
    "cone": [(0.70, -0.42), (1.25, -0.16), (1.58, 0.22), (1.15, 0.42), (0.70, 0.50)],
    "needle": [(0.80, -0.12), (1.75, 0.10), (0.80, 0.26)],
    "dagger": [(0.75, -0.26), (2.45, 0.12), (0.75, 0.36)],
    "hook": [(0.70, -0.40), (1.30, -0.30), (1.58, 0.05), (1.50, 0.55), (1.28, 0.24), (0.75, 0.42)],
    "curve": [(0.8, -0.2), (1.6, -0.1), (2.1, 0.3), (2.3, 0.8), (1.9, 0.42), (1.5, 0.2), (0.8, 0.24)],
}
_CREST: Final = [(0.55, -0.75), (-0.25, -1.35), (-1.05, -1.75), (-0.85, -1.05), (-0.85, -0.4)]
_PLUMES: Final = [(-0.35, -1.75), (0.05, -1.95), (0.5, -1.85)]
_CAP: Final = [(1.3, -0.30), (0.4, -0.42), (-0.5, -0.22), (-1.25, 0.15), (-1.4, -1.2), (0.3, -1.6)]
_MASK: Final = [(1.2, -0.12), (0.5, -0.42), (-0.3, -0.36), (-0.9, 0.0), (-0.3, 0.16), (0.5, 0.2), (1.2, 0.2)]
_BROW: Final = [(0.9, -0.4), (0.3, -0.5), (-0.3, -0.42), (-0.9, -0.1)]
_BELLY: Final = [(-0.7, 0.22), (-0.35, 0.16), (0.05, 0.08), (0.34, -0.05), (0.7, 0.1), (0.4, 0.7), (-0.4, 0.7)]
_THROAT: Final = [(0.3, 0.06), (-0.02, 0.14)]
_BREAST: Final = [(0.20, -0.08), (0.16, 0.14), (0.30, 0.24), (0.6, 0.3), (0.7, -0.2)]
_BAND: Final = [(0.2, -0.1), (0.36, -0.02), (0.56, -0.14), (0.56, 0.0), (0.36, 0.12), (0.2, 0.04)]
_PATCH: Final = [(-0.15, 0.0), (-0.38, 0.04), (-0.5, 0.14), (-0.36, 0.2), (-0.14, 0.14)]
# fmt: on


@dataclass(frozen=True)
class Build:
    """Proportions of a body, as factors of the usual bird's."""

    depth: float
    head: float
    neck: float


_BUILDS: Final = {
    "slender": Build(depth=0.80, head=0.92, neck=0.06),
    "rounded": Build(depth=1.14, head=1.10, neck=-0.03),
    "sturdy": Build(depth=0.98, head=1.0, neck=0.0),
}


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a body are, in bird units."""

    head: Point
    head_radius: float
    depth: float

    @classmethod
    def of(cls, build: str) -> Anatomy:
        """The anatomy of a body that is slender, rounded or sturdy."""
        shape = _BUILDS[build]
        head = (0.36 + 0.3 * shape.neck, -0.40 - shape.neck - 0.08 * (shape.depth - 1))
        return cls(head=head, head_radius=0.215 * shape.head, depth=shape.depth)

    @property
    def eye(self) -> Point:
        """Centre of the eye."""
        return self.head[0] + 0.30 * self.head_radius, self.head[1] - 0.12 * self.head_radius

    def on_head(self, points: Sequence[Point], scale: float = 1.0) -> Points:
        """Points given in head radii from the head's centre, (n, 2)."""
        return np.array(points) * self.head_radius * scale + self.head

    def outline(self) -> Points:
        """Head, back and underparts in one curve."""
        d = self.depth
        head = arc(self.head, self.head_radius, (-25, 150), 6)
        back = [(0.02, -0.30 * d - 0.03), (-0.30, -0.14 * d), (-0.60, 0.14)]
        under = [(-0.56, 0.24), (-0.30, 0.33 * d), (0.02, 0.42 * d), (0.30, 0.29 * d), (0.47, 0.02)]
        return smooth([*head, *back, *under])


@dataclass(frozen=True)
class Sitter:
    """A bird about to be drawn: who it is, with which pen, in which shades of its colours."""

    pen: Pen
    species: Species
    body: Anatomy
    shades: dict[str, Rgb]

    @classmethod
    def of(cls, pen: Pen, species: Species, rng: np.random.Generator) -> Sitter:
        """One bird of the species, in shades of its own."""
        shades = {name: jittered(rng, colour) for name, colour in COLOURS.items()}
        return cls(pen, species, Anatomy.of(species.build), shades)

    def shade(self, part: str) -> Rgb:
        """The colour of a part of this very bird."""
        return self.shades[str(getattr(self.species, part))]


def draw_body(sitter: Sitter, rng: np.random.Generator) -> None:
    """The bird from back to front."""
    _draw_legs(sitter)
    _draw_tail(sitter)
    _draw_crest(sitter)
    _draw_beak(sitter)
    outline = sitter.body.outline()
    sitter.pen.fill(outline, sitter.shade("back"))
    whole = sitter.pen.mask(outline)
    front = _draw_underparts(sitter, whole)
    _draw_breast_mark(sitter, front, rng)
    _draw_head(sitter, whole)
    _draw_wing(sitter)
    _draw_eye(sitter)


def _draw_legs(sitter: Sitter) -> None:
    pen, colour = sitter.pen, sitter.shade("legs")
    for hip, foot in ((0.10, 0.16), (-0.06, -0.02)):
        pen.line(np.array([(hip, 0.30), (foot - 0.03, 0.47), (foot, FOOT)]), colour, 0.026)
        for toe in (-0.09, 0.06, 0.11):
            pen.line(np.array([(foot, FOOT), (foot + toe, FOOT + 0.025)]), colour, 0.024)


def _draw_tail(sitter: Sitter) -> None:
    colour = mixed(sitter.shade("wing"), DARK, 0.18)
    for feathers in _TAILS[sitter.species.tail_shape]:
        shape = np.array(feathers)
        sitter.pen.fill(shape, colour)
        for share in (0.35, 0.65):
            tip = 0.98 * (shape[1] * (1 - share) + shape[-2] * share)
            sitter.pen.line(np.array([(-0.45, 0.17), tip]), mixed(colour, DARK, 0.35), 0.014)


def _draw_crest(sitter: Sitter) -> None:
    pen, body, colour = sitter.pen, sitter.body, sitter.shade("crown")
    if sitter.species.crest == "pointed":
        pen.fill(body.on_head(_CREST), colour)
    if sitter.species.crest == "plume":
        for tip in _PLUMES:
            pen.line(body.on_head([(0.05, -0.8), tip]), colour, 0.025)
            pen.dot(body.on_head([tip])[0], 0.045, colour)


def _draw_beak(sitter: Sitter) -> None:
    colour = sitter.shade("beak")
    shape = sitter.body.on_head(_BEAKS[sitter.species.beak_shape], scale=1.1)
    sitter.pen.fill(shape, colour)
    corner, tip = sitter.body.on_head([(0.8, 0.10)])[0], shape[np.argmax(shape[:, 0])]
    sitter.pen.line(np.stack([corner, tip]), mixed(colour, DARK, 0.5), 0.016)


def _draw_underparts(sitter: Sitter, whole: Image.Image) -> Image.Image:
    """Belly and breast; gives back the mask of both."""
    hx, hy = sitter.body.head
    breast = [*((hx + x, hy + y) for x, y in _THROAT), *_BREAST]
    lower = sitter.pen.fill_inside(whole, smooth(_BELLY), sitter.shade("belly"))
    upper = sitter.pen.fill_inside(whole, smooth(breast), sitter.shade("breast"))
    return ImageChops.lighter(lower, upper)


def _draw_breast_mark(sitter: Sitter, front: Image.Image, rng: np.random.Generator) -> None:
    pen, mark = sitter.pen, sitter.species.breast_mark
    colour = contrast(sitter.shade("breast"))
    if mark == "streaks":
        streaks = (np.stack([at, np.add(at, (-0.03, 0.085))]) for at in _grid(rng, 0.115, 0.13))
        pen.strokes_inside(front, streaks, colour, 0.03)
    if mark == "spots":
        pen.dots_inside(front, _grid(rng, 0.125, 0.12), 0.028, colour)
    if mark == "bars":
        pen.strokes_inside(front, _bars(), colour, 0.032)
    if mark == "band":
        pen.fill_inside(front, smooth(_BAND), colour)


def _grid(rng: np.random.Generator, dx: float, dy: float) -> Points:
    """Staggered, slightly unruly places over the breast and belly, (n, 2)."""
    rows, columns = np.arange(-0.2, 0.42, dy), np.arange(-0.3, 0.56, dx)
    points = [(x + dx / 2 * (i % 2), y) for i, y in enumerate(rows) for x in columns]
    return np.array(points) + rng.normal(0, 0.012, (len(points), 2))


def _bars() -> Iterator[Points]:
    """Wavy lines across the breast, (9, 2) each."""
    for offset in np.arange(-0.12, 0.48, 0.095):
        x = np.linspace(-0.45, 0.6, 9)
        yield np.stack([x, offset + 0.05 * np.sin(x * 14) - 0.25 * (x - 0.1)], axis=1)


def _draw_head(sitter: Sitter, whole: Image.Image) -> None:
    pen, body, mark = sitter.pen, sitter.body, sitter.species.face_mark
    pen.fill_inside(whole, smooth(body.on_head(_CAP)), sitter.shade("crown"))
    if mark == "mask":
        pen.fill_inside(whole, smooth(body.on_head(_MASK)), DARK)
    if mark == "brow":
        pen.strokes_inside(whole, [body.on_head(_BROW)], LIGHT, 0.045)
    if mark == "cheek":
        colour = contrast(sitter.shade("back"))
        pen.dots_inside(whole, body.on_head([(0.02, 0.38)]), 0.085, colour)


def _draw_wing(sitter: Sitter) -> None:
    pen, colour, d = sitter.pen, sitter.shade("wing"), sitter.body.depth
    above = [(0.22, -0.16 * d), (0.02, -0.22 * d), (-0.32, -0.06), (-0.82, 0.24)]
    shape = smooth([*above, (-0.40, 0.22 * d), (-0.02, 0.20 * d), (0.17, 0.06)])
    edge = mixed(colour, DARK, 0.45)
    pen.fill(np.add(shape, (0.0, 0.022)), edge)
    pen.fill(shape, colour)
    wing = pen.mask(shape)
    pen.strokes_inside(wing, _quills(), edge, 0.016)
    _draw_wing_mark(sitter, wing, contrast(colour))


def _quills() -> Iterator[Points]:
    """Lines between the long feathers of a wing, (3, 2) each."""
    for i in range(4):
        yield np.array([(-0.12, 0.02 + 0.07 * i), (-0.42, 0.08 + 0.06 * i), (-0.8, 0.2 + 0.05 * i)])


def _draw_wing_mark(sitter: Sitter, wing: Image.Image, colour: Rgb) -> None:
    bars = {"bar": (0.0,), "bars": (0.03, -0.13)}.get(sitter.species.wing_mark, ())
    lines = (np.array([(x + 0.10, -0.30), (x, 0.0), (x - 0.12, 0.30)]) for x in bars)
    sitter.pen.strokes_inside(wing, lines, colour, 0.045)
    if sitter.species.wing_mark == "patch":
        sitter.pen.fill_inside(wing, smooth(_PATCH), colour)


def _draw_eye(sitter: Sitter) -> None:
    pen, (x, y) = sitter.pen, sitter.body.eye
    if sitter.species.eye_ring != "none":
        pen.dot((x, y), 0.058, sitter.shade("eye_ring"))
    pen.dot((x, y), 0.048, (22, 20, 24))
    pen.dot((x + 0.016, y - 0.018), 0.016, (255, 255, 255))
