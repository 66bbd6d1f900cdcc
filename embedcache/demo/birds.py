"""Birds from parameters: a small drawn data set in the published layout of CUB-200-2011.

A species is a set of named attributes (:class:`Species`); a picture is that species in some pose,
light and background; a caption says a few of the attributes, not all of them rightly. Species come
in genera of three. The second of a genus differs from the first only in what captions tell and
pictures hardly show (eye ring, legs, size); the third only in what pictures show and captions
hardly tell (markings, tail). So neither picture nor text is enough, and both together nearly are.

Everything follows from a seed. Colour schemes are divided by :func:`is_reserved`: the species of
the data set have reserved schemes, the species that the backbones were trained on never have.

Layout: https://www.vision.caltech.edu/datasets/cub_200_2011/. Captions: Reed et al., "Learning Deep
Representations of Fine-Grained Visual Descriptions" (2016), https://arxiv.org/abs/1605.05395.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from embedcache.errors import UsageError

Rgb = tuple[int, int, int]
Point = tuple[float, float]
Points = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

CAPTIONS_PER_IMAGE: Final = 10
JPEG_QUALITY: Final = 85
MAX_SPECIES: Final = 120
SUPERSAMPLING: Final = 2
SPECIES_PER_GENUS: Final = 3


class DataExistsError(UsageError, FileExistsError):
    """The data set would be drawn over files that are already there."""


# ------------------------------------------------------------------------------------------ species

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
        rest = {name: _pick(rng, CHOICES[name]) for name in CHOICES if name not in SCHEME}
        species = Species(**_random_scheme(rng), **rest)
        if is_reserved(species) == reserved:
            return species


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


def _random_scheme(rng: np.random.Generator) -> dict[str, str]:
    """Colours as birds wear them: some parts share one, and bellies are often pale."""
    back, accent = _pick(rng, _PLUMAGE), _pick(rng, _PLUMAGE)
    return {
        "crown": _pick(rng, (back, accent, _pick(rng, _PLUMAGE))),
        "back": back,
        "wing": _pick(rng, (back, _pick(rng, _PLUMAGE), _pick(rng, _PLUMAGE))),
        "breast": _pick(rng, (accent, accent, _pick(rng, _PLUMAGE))),
        "belly": _pick(rng, (accent, _pick(rng, _PALE), _pick(rng, _PALE))),
    }


def _named_genus(rng: np.random.Generator, founder: Species, taken: Iterable[str]) -> dict[str, Species]:
    """The founder, its twin in pictures and its twin in captions, under names not yet taken."""
    genus = _genus_name(rng, founder, taken)
    twin = _changed(rng, founder, TOLD)
    pattern = (
        "breast_mark",
        *rng.choice(["tail_shape", "face_mark", "wing_mark"], 2, replace=False),
    )
    cousin = _changed(rng, founder, pattern)
    first, second = _told_names(founder, twin)
    third = _SHOWN_NAMES[cousin.breast_mark]
    return {f"{first}_{genus}": founder, f"{second}_{genus}": twin, f"{third}_{genus}": cousin}


def _changed(rng: np.random.Generator, species: Species, names: Sequence[str]) -> Species:
    others = {n: [c for c in CHOICES[n] if c != getattr(species, n)] for n in names}
    return replace(species, **{name: _pick(rng, choices) for name, choices in others.items()})


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
_SHOWN_NAMES: Final = {
    "plain": "Plain",
    "streaks": "Streaked",
    "spots": "Spotted",
    "bars": "Barred",
    "band": "Banded",
}


def _genus_name(rng: np.random.Generator, founder: Species, taken: Iterable[str]) -> str:
    """Hue and family that no taken name ends in."""
    names = [f"{h}_{f}" for h, f in product(_HUES[founder.back], _FAMILIES[founder.beak_shape])]
    accents = [f"{h}-breasted_{n}" for h, n in product(_HUES[founder.breast], names)]
    ends = tuple(taken)
    for name in (*rng.permutation(names), *rng.permutation(accents)):
        if not any(end.endswith(f"_{name}") for end in ends):
            return str(name)
    raise UsageError("No bird names are left; ask for fewer species.")


def _told_names(first: Species, second: Species) -> tuple[str, str]:
    sizes = CHOICES["size"]
    if sizes.index(first.size) < sizes.index(second.size):
        return "Lesser", "Greater"
    return "Greater", "Lesser"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


# ----------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Pose:
    """Where and how a bird stands: pixels of the finished picture, angles in radians."""

    width: int
    height: int
    x: float
    y: float
    scale: float
    angle: float
    facing: int


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


class Pen:
    """Draws shapes given in the bird's own coordinates on an RGBA layer.

    The bird faces right, y points down, its body is about one unit long and centred near (0, 0).
    """

    def __init__(self, pose: Pose) -> None:
        """An empty layer, :data:`SUPERSAMPLING` times as wide and high as the pose's picture."""
        self.pose = pose
        self.size = (pose.width * SUPERSAMPLING, pose.height * SUPERSAMPLING)
        self.unit = pose.scale * SUPERSAMPLING
        self.layer = Image.new("RGBA", self.size)
        self.draw = ImageDraw.Draw(self.layer)

    def place(self, points: Points) -> list[Point]:
        """Bird coordinates, (n, 2), as pixels of the layer."""
        sin, cos = math.sin(self.pose.angle), math.cos(self.pose.angle)
        turned = points @ np.array([[cos, sin], [-sin, cos]]) * [self.pose.facing, 1]
        centre = np.array([self.pose.x, self.pose.y]) * SUPERSAMPLING
        return [(float(x), float(y)) for x, y in turned * self.unit + centre]

    def fill(self, points: Points, colour: Rgb) -> None:
        """A polygon."""
        self.draw.polygon(self.place(points), fill=colour)

    def line(self, points: Points, colour: Rgb, width: float) -> None:
        """A line through points; ``width`` in bird units."""
        pixels = max(1, round(width * self.unit))
        self.draw.line(self.place(points), fill=colour, width=pixels, joint="curve")

    def dot(self, centre: Point, radius: float, colour: Rgb) -> None:
        """A disc; ``radius`` in bird units."""
        self.draw.ellipse(self._box(centre, radius), fill=colour)

    def mask(self, points: Points) -> Image.Image:
        """A polygon as a grey image to clip others with."""
        mask = Image.new("L", self.size)
        ImageDraw.Draw(mask).polygon(self.place(points), fill=255)
        return mask

    def fill_inside(self, clip: Image.Image, points: Points, colour: Rgb) -> Image.Image:
        """A polygon cut to ``clip``; gives back what was painted, to clip further shapes with."""
        inside = ImageChops.multiply(self.mask(points), clip)
        self.layer.paste((*colour, 255), mask=inside)
        return inside

    def strokes_inside(self, clip: Image.Image, lines: Iterable[Points], colour: Rgb, width: float) -> None:
        """Lines cut to ``clip``."""
        mask = Image.new("L", self.size)
        draw, pixels = ImageDraw.Draw(mask), max(1, round(width * self.unit))
        for points in lines:
            draw.line(self.place(points), fill=255, width=pixels, joint="curve")
        self.layer.paste((*colour, 255), mask=ImageChops.multiply(mask, clip))

    def dots_inside(self, clip: Image.Image, centres: Points, radius: float, colour: Rgb) -> None:
        """Discs cut to ``clip``."""
        mask = Image.new("L", self.size)
        draw = ImageDraw.Draw(mask)
        for x, y in centres:
            draw.ellipse(self._box((x, y), radius), fill=255)
        self.layer.paste((*colour, 255), mask=ImageChops.multiply(mask, clip))

    def _box(self, centre: Point, radius: float) -> tuple[float, float, float, float]:
        ((x, y),) = self.place(np.array([centre]))
        r = radius * self.unit
        return x - r, y - r, x + r, y + r


def draw_bird(species: Species, rng: np.random.Generator) -> Image.Image:
    """One RGB picture of the species, about 144 x 128 pixels, in a pose and a light of its own."""
    pose = _random_pose(rng)
    pen = Pen(pose)
    sitter = _sitter(pen, species, rng)
    background = _background(rng, pose)
    _draw_perch(pen, rng)
    _draw_body(sitter, rng)
    _draw_clutter(pen, rng)
    return _photograph(pen.layer, background, rng)


def _random_pose(rng: np.random.Generator) -> Pose:
    width, height = int(rng.integers(132, 153)), int(rng.integers(120, 137))
    scale, facing = rng.uniform(50, 70), 1 if rng.random() < 0.5 else -1
    return Pose(
        width=width,
        height=height,
        x=width / 2 + 0.13 * scale * facing + rng.uniform(-9, 9),
        y=height / 2 + 0.08 * scale + rng.uniform(-6, 6),
        scale=scale,
        angle=rng.normal(0, 0.13),
        facing=facing,
    )


def _jittered(rng: np.random.Generator, colour: Rgb, spread: float = 9.0) -> Rgb:
    red, green, blue = (int(c) for c in np.clip(rng.normal(colour, spread), 0, 255))
    return red, green, blue


def _mixed(first: Rgb, second: Rgb, share: float) -> Rgb:
    """``share`` of the second colour in the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _smooth(points: Sequence[Point] | Points, steps: int = 6) -> Points:
    """A closed Catmull-Rom curve through the points, (len(points) * steps, 2)."""
    p1 = np.array(points)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    rough = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
    curve: Points = (rough + (3 * p1 - p0 - 3 * p2 + p3) * t**3) / 2
    return curve.reshape(-1, 2)


def _arc(centre: Point, radius: float, degrees: Point, count: int = 7) -> list[Point]:
    """Points on a circle; 0 degrees is ahead of the bird, 90 above it."""
    angles = np.radians(np.linspace(*degrees, count))
    return [(centre[0] + radius * math.cos(a), centre[1] - radius * math.sin(a)) for a in angles]


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a body are, in bird units."""

    head: Point
    head_radius: float
    depth: float

    @property
    def eye(self) -> Point:
        """Centre of the eye."""
        return self.head[0] + 0.30 * self.head_radius, self.head[1] - 0.12 * self.head_radius

    def on_head(self, points: Sequence[Point], scale: float = 1.0) -> Points:
        """Points given in head radii from the head's centre, (n, 2)."""
        return np.array(points) * self.head_radius * scale + self.head


def _anatomy(build: str) -> Anatomy:
    shape = _BUILDS[build]
    head = (0.36 + 0.3 * shape.neck, -0.40 - shape.neck - 0.08 * (shape.depth - 1))
    return Anatomy(head=head, head_radius=0.215 * shape.head, depth=shape.depth)


@dataclass(frozen=True)
class Sitter:
    """A bird about to be drawn: who it is, with which pen, in which shades of its colours."""

    pen: Pen
    species: Species
    body: Anatomy
    shades: dict[str, Rgb]

    def shade(self, part: str) -> Rgb:
        """The colour of a part of this very bird."""
        return self.shades[str(getattr(self.species, part))]


def _sitter(pen: Pen, species: Species, rng: np.random.Generator) -> Sitter:
    shades = {name: _jittered(rng, colour) for name, colour in COLOURS.items()}
    return Sitter(pen, species, _anatomy(species.build), shades)


def _draw_body(sitter: Sitter, rng: np.random.Generator) -> None:
    """The bird from back to front."""
    _draw_legs(sitter)
    _draw_tail(sitter)
    _draw_crest(sitter)
    _draw_beak(sitter)
    outline = _outline(sitter.body)
    sitter.pen.fill(outline, sitter.shade("back"))
    whole = sitter.pen.mask(outline)
    front = _draw_underparts(sitter, whole)
    _draw_breast_mark(sitter, front, rng)
    _draw_head(sitter, whole)
    _draw_wing(sitter)
    _draw_eye(sitter)


def _outline(body: Anatomy) -> Points:
    """Head, back and underparts in one curve."""
    d = body.depth
    head = _arc(body.head, body.head_radius, (-25, 150), 6)
    back = [(0.02, -0.30 * d - 0.03), (-0.30, -0.14 * d), (-0.60, 0.14)]
    under = [(-0.56, 0.24), (-0.30, 0.33 * d), (0.02, 0.42 * d), (0.30, 0.29 * d), (0.47, 0.02)]
    return _smooth([*head, *back, *under])


_DARK: Final[Rgb] = (34, 32, 38)
_LIGHT: Final[Rgb] = (250, 248, 242)
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
    "fan": [
        [(-0.4, 0.08), (-0.92, 0.06), (-1.03, 0.24), (-1.02, 0.44), (-0.88, 0.62), (-0.42, 0.26)],
    ],
}
_BEAKS: Final[dict[str, list[Point]]] = {
    "cone": [(0.70, -0.42), (1.25, -0.16), (1.58, 0.22), (1.15, 0.42), (0.70, 0.50)],
    "needle": [(0.80, -0.12), (1.75, 0.10), (0.80, 0.26)],
    "dagger": [(0.75, -0.26), (2.45, 0.12), (0.75, 0.36)],
    "hook": [(0.70, -0.40), (1.30, -0.30), (1.58, 0.05), (1.50, 0.55), (1.28, 0.24), (0.75, 0.42)],
    "curve": [
        (0.8, -0.2), (1.6, -0.1), (2.1, 0.3), (2.3, 0.8), (1.9, 0.42), (1.5, 0.2), (0.8, 0.24)
    ],
}
_CREST: Final = [(0.55, -0.75), (-0.25, -1.35), (-1.05, -1.75), (-0.85, -1.05), (-0.85, -0.4)]
_PLUMES: Final = [(-0.35, -1.75), (0.05, -1.95), (0.5, -1.85)]
_CAP: Final = [(1.3, -0.30), (0.4, -0.42), (-0.5, -0.22), (-1.25, 0.15), (-1.4, -1.2), (0.3, -1.6)]
_MASK: Final = [
    (1.2, -0.12), (0.5, -0.42), (-0.3, -0.36), (-0.9, 0.0), (-0.3, 0.16), (0.5, 0.2), (1.2, 0.2)
]
_BROW: Final = [(0.9, -0.4), (0.3, -0.5), (-0.3, -0.42), (-0.9, -0.1)]
_BELLY: Final = [
    (-0.7, 0.22), (-0.35, 0.16), (0.05, 0.08), (0.34, -0.05), (0.7, 0.1), (0.4, 0.7), (-0.4, 0.7)
]
_THROAT: Final = [(0.3, 0.06), (-0.02, 0.14)]
_BREAST: Final = [(0.20, -0.08), (0.16, 0.14), (0.30, 0.24), (0.6, 0.3), (0.7, -0.2)]
_BAND: Final = [(0.2, -0.1), (0.36, -0.02), (0.56, -0.14), (0.56, 0.0), (0.36, 0.12), (0.2, 0.04)]
_PATCH: Final = [(-0.15, 0.0), (-0.38, 0.04), (-0.5, 0.14), (-0.36, 0.2), (-0.14, 0.14)]
# fmt: on


def _draw_legs(sitter: Sitter) -> None:
    pen, colour = sitter.pen, sitter.shade("legs")
    for hip, foot in ((0.10, 0.16), (-0.06, -0.02)):
        pen.line(np.array([(hip, 0.30), (foot - 0.03, 0.47), (foot, FOOT)]), colour, 0.026)
        for toe in (-0.09, 0.06, 0.11):
            pen.line(np.array([(foot, FOOT), (foot + toe, FOOT + 0.025)]), colour, 0.024)


def _draw_tail(sitter: Sitter) -> None:
    colour = _mixed(sitter.shade("wing"), _DARK, 0.18)
    for feathers in _TAILS[sitter.species.tail_shape]:
        shape = np.array(feathers)
        sitter.pen.fill(shape, colour)
        for share in (0.35, 0.65):
            tip = 0.98 * (shape[1] * (1 - share) + shape[-2] * share)
            sitter.pen.line(np.array([(-0.45, 0.17), tip]), _mixed(colour, _DARK, 0.35), 0.014)


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
    sitter.pen.line(np.stack([corner, tip]), _mixed(colour, _DARK, 0.5), 0.016)


def _draw_underparts(sitter: Sitter, whole: Image.Image) -> Image.Image:
    """Belly and breast; gives back the mask of both."""
    hx, hy = sitter.body.head
    breast = [*((hx + x, hy + y) for x, y in _THROAT), *_BREAST]
    lower = sitter.pen.fill_inside(whole, _smooth(_BELLY), sitter.shade("belly"))
    upper = sitter.pen.fill_inside(whole, _smooth(breast), sitter.shade("breast"))
    return ImageChops.lighter(lower, upper)


def _draw_breast_mark(sitter: Sitter, front: Image.Image, rng: np.random.Generator) -> None:
    pen, mark = sitter.pen, sitter.species.breast_mark
    colour = _contrast(sitter.shade("breast"))
    if mark == "streaks":
        streaks = (np.stack([at, np.add(at, (-0.03, 0.085))]) for at in _grid(rng, 0.115, 0.13))
        pen.strokes_inside(front, streaks, colour, 0.03)
    if mark == "spots":
        pen.dots_inside(front, _grid(rng, 0.125, 0.12), 0.028, colour)
    if mark == "bars":
        pen.strokes_inside(front, _bars(), colour, 0.032)
    if mark == "band":
        pen.fill_inside(front, _smooth(_BAND), colour)


def _contrast(colour: Rgb) -> Rgb:
    """A darker shade of light colours, a lighter one of dark colours."""
    bright = sum(colour) > 3 * 105
    return _mixed(colour, _DARK if bright else _LIGHT, 0.62)


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
    pen.fill_inside(whole, _smooth(body.on_head(_CAP)), sitter.shade("crown"))
    if mark == "mask":
        pen.fill_inside(whole, _smooth(body.on_head(_MASK)), _DARK)
    if mark == "brow":
        pen.strokes_inside(whole, [body.on_head(_BROW)], _LIGHT, 0.045)
    if mark == "cheek":
        colour = _contrast(sitter.shade("back"))
        pen.dots_inside(whole, body.on_head([(0.02, 0.38)]), 0.085, colour)


def _draw_wing(sitter: Sitter) -> None:
    pen, colour, d = sitter.pen, sitter.shade("wing"), sitter.body.depth
    above = [(0.22, -0.16 * d), (0.02, -0.22 * d), (-0.32, -0.06), (-0.82, 0.24)]
    shape = _smooth([*above, (-0.40, 0.22 * d), (-0.02, 0.20 * d), (0.17, 0.06)])
    edge = _mixed(colour, _DARK, 0.45)
    pen.fill(np.add(shape, (0.0, 0.022)), edge)
    pen.fill(shape, colour)
    wing = pen.mask(shape)
    pen.strokes_inside(wing, _quills(), edge, 0.016)
    _draw_wing_mark(sitter, wing, _contrast(colour))


def _quills() -> Iterator[Points]:
    """Lines between the long feathers of a wing, (3, 2) each."""
    for i in range(4):
        yield np.array([(-0.12, 0.02 + 0.07 * i), (-0.42, 0.08 + 0.06 * i), (-0.8, 0.2 + 0.05 * i)])


def _draw_wing_mark(sitter: Sitter, wing: Image.Image, colour: Rgb) -> None:
    bars = {"bar": (0.0,), "bars": (0.03, -0.13)}.get(sitter.species.wing_mark, ())
    lines = (np.array([(x + 0.10, -0.30), (x, 0.0), (x - 0.12, 0.30)]) for x in bars)
    sitter.pen.strokes_inside(wing, lines, colour, 0.045)
    if sitter.species.wing_mark == "patch":
        sitter.pen.fill_inside(wing, _smooth(_PATCH), colour)


def _draw_eye(sitter: Sitter) -> None:
    pen, (x, y) = sitter.pen, sitter.body.eye
    if sitter.species.eye_ring != "none":
        pen.dot((x, y), 0.058, sitter.shade("eye_ring"))
    pen.dot((x, y), 0.048, (22, 20, 24))
    pen.dot((x + 0.016, y - 0.018), 0.016, (255, 255, 255))


_SCENES: Final[dict[str, tuple[Rgb, Rgb, tuple[Rgb, ...]]]] = {
    "sky": ((150, 196, 232), (214, 230, 240), ((245, 248, 250), (230, 238, 246))),
    "leaves": ((96, 134, 74), (58, 96, 56), ((126, 164, 84), (74, 116, 60), (170, 190, 110))),
    "water": ((112, 152, 172), (70, 112, 134), ((148, 184, 198), (88, 128, 148))),
    "autumn": ((190, 150, 96), (134, 98, 66), ((214, 160, 84), (160, 112, 70), (120, 110, 70))),
    "dusk": ((216, 170, 164), (120, 112, 148), ((236, 192, 160), (150, 130, 160))),
    "mist": ((206, 212, 212), (170, 182, 178), ((188, 200, 192), (222, 226, 224))),
}


def _background(rng: np.random.Generator, pose: Pose) -> Pixels:
    """An out-of-focus scene, float32 (height, width, 3), 0 to 255."""
    top, bottom, blobs = _SCENES[_pick(rng, tuple(_SCENES))]
    small = _gradient(_jittered(rng, top), _jittered(rng, bottom))
    draw = ImageDraw.Draw(small, "RGBA")
    flat = rng.uniform(0.3, 3.0)
    for _ in range(int(rng.integers(6, 26))):
        x, y, r = rng.uniform(0, 48), rng.uniform(0, 42), rng.uniform(1.5, 7)
        colour = _jittered(rng, blobs[int(rng.integers(len(blobs)))], 14)
        draw.ellipse((x - r * flat, y - r, x + r * flat, y + r), fill=(*colour, 130))
    large = small.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.6))))
    return np.asarray(large.resize((pose.width, pose.height), Image.Resampling.BICUBIC), np.float32)


def _gradient(top: Rgb, bottom: Rgb) -> Image.Image:
    share = np.linspace(0, 1, 42)[:, None, None]
    rows = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(np.broadcast_to(rows, (42, 48, 3)).astype(np.uint8))


_BARK: Final[tuple[Rgb, ...]] = ((104, 78, 58), (128, 104, 82), (86, 74, 66), (120, 116, 106))


def _draw_perch(pen: Pen, rng: np.random.Generator) -> None:
    colour = _jittered(rng, _BARK[int(rng.integers(len(_BARK)))], 8)
    if rng.random() < 0.3:
        _draw_rock(pen, rng, colour)
    else:
        _draw_branch(pen, rng, colour)


def _draw_rock(pen: Pen, rng: np.random.Generator, colour: Rgb) -> None:
    wide = rng.uniform(0.6, 1.4, 2)
    top = [
        (-wide[0], 1.1),
        (-0.5 * wide[0], FOOT + 0.12),
        (0.0, FOOT),
        (0.5 * wide[1], FOOT + 0.08),
        (wide[1], 1.1),
    ]
    pen.fill(_smooth([*top, (1.2, 3.0), (-1.2, 3.0)]), _mixed(colour, (128, 126, 122), 0.6))


def _draw_branch(pen: Pen, rng: np.random.Generator, colour: Rgb) -> None:
    thick, slope = rng.uniform(0.06, 0.15), rng.normal(0, 0.12)
    x = np.array([-2.2, -1.0, 0.05, 1.0, 2.2])
    y = FOOT + 0.02 + thick / 2 + slope * (x - 0.05) + rng.normal(0, 0.04, 5) * [1, 1, 0, 1, 1]
    pen.line(np.stack([x, y], axis=1), colour, thick)
    pen.line(np.stack([x, y - thick * 0.25], axis=1), _mixed(colour, _LIGHT, 0.25), thick * 0.25)
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
    shape = [at, at + along * 0.5 + across, at + along, at + along * 0.5 - across]
    green = _jittered(rng, ((92, 138, 62), (128, 150, 66), (172, 128, 60))[int(rng.integers(3))], 12)
    pen.fill(_smooth([(float(x), float(y)) for x, y in shape]), green)
    pen.line(np.stack([at, at + along]), _mixed(green, _DARK, 0.3), 0.012)


def _draw_clutter(pen: Pen, rng: np.random.Generator) -> None:
    """Now and then a twig or some leaves before the bird."""
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
    pen.fill(np.concatenate([blade, edge]), _jittered(rng, (104, 140, 70), 16))


def _photograph(layer: Image.Image, background: Pixels, rng: np.random.Generator) -> Image.Image:
    """The layer before its background, lit from above, with texture, light and noise."""
    painted = np.asarray(layer.reduce(SUPERSAMPLING), np.float32)
    alpha = painted[..., 3:] / 255
    lit = painted[..., :3] * alpha * _relief(layer) * (1 + rng.normal(0, 0.035, alpha.shape))
    picture = background * (1 - alpha) + lit
    exposure = rng.uniform(0.72, 1.18) * (1 + rng.normal(0, 0.05, 3))
    contrast = rng.uniform(0.75, 1.1)
    picture = ((picture - 128) * contrast + 128) * exposure + rng.normal(0, 5, picture.shape)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _relief(layer: Image.Image) -> Pixels:
    """Brightness factor that makes a flat shape look round, (height, width, 1)."""
    small = layer.getchannel("A").reduce(2 * SUPERSAMPLING)
    soft = small.filter(ImageFilter.GaussianBlur(4))
    down, right = np.gradient(np.asarray(soft, np.float32))
    shade = Image.fromarray(np.clip(1.0 + down * 0.018 - np.abs(right) * 0.004, 0.55, 1.35))
    size = (layer.width // SUPERSAMPLING, layer.height // SUPERSAMPLING)
    return np.asarray(shade.resize(size, Image.Resampling.BILINEAR), np.float32)[..., None]


# ----------------------------------------------------------------------------------------- captions

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
    names = names or [_pick(rng, SCHEME)]
    phrases = [_phrase(species, str(name), rng) for name in rng.permutation(names)[:4]]
    size = f"{_word(species, 'size', rng)} " if rng.random() < _MENTIONED["size"] else ""
    text = _pick(rng, _TEMPLATES).format(size, _joined([p for p in phrases if p]))
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _phrase(species: Species, name: str, rng: np.random.Generator) -> str:
    return _pick(rng, _PHRASES[name]).format(_word(species, name, rng))


def _word(species: Species, name: str, rng: np.random.Generator) -> str:
    value = _seen(name, getattr(species, name), rng)
    words = _SHAPE_WORDS.get(name, _COLOUR_WORDS)
    return _pick(rng, words[value])


def _seen(name: str, value: str, rng: np.random.Generator) -> str:
    """The value, or now and then one that it could be mistaken for."""
    if rng.random() >= MISTAKEN:
        return value
    if value in _CONFUSED and name in SCHEME:
        return _pick(rng, _CONFUSED[value])
    return _pick(rng, CHOICES[name])


def _joined(phrases: Sequence[str]) -> str:
    """A list as English has it: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


# ----------------------------------------------------------------------------- the published layout


@dataclass(frozen=True)
class Sheet:
    """One picture of the data set: its ids, its split and its name below the folders."""

    image_id: int
    class_id: int
    kind: str
    stem: str
    train: bool


def draw_cub(folder: Path, *, species: int = 20, images_per_species: int = 40, seed: int = 0) -> Path:
    """Draws the data set under ``folder`` and gives ``folder`` back.

    Pictures and lists go to ``CUB_200_2011``, ten captions per picture to ``text_c10``; half of
    each species is train, half test. The same numbers draw the same bytes. Raises
    :class:`DataExistsError` where either folder already has files, :class:`UsageError` for numbers
    that cannot be.
    """
    if images_per_species < 2:
        raise UsageError(f"Got {images_per_species} images per species; 2 are the fewest to split.")
    kinds = demo_species(species, seed)
    for name in ("CUB_200_2011", "text_c10"):
        _refuse_existing(folder / name)
    sheets = list(_sheets(kinds, images_per_species, seed))
    for sheet in sheets:
        _write_sheet(folder, sheet, kinds[sheet.kind], seed)
    _write_lists(folder / "CUB_200_2011", sheets)
    return folder


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise DataExistsError(
            f"{folder} already has files, and the demo draws only into an empty folder. "
            "Choose another folder, or remove this one to draw it again."
        )


def _sheets(kinds: Iterable[str], per_species: int, seed: int) -> Iterator[Sheet]:
    rng = np.random.default_rng((seed, 1))
    for index, kind in enumerate(kinds):
        train = rng.permutation(per_species) < (per_species + 1) // 2
        for number in range(per_species):
            image_id = index * per_species + number + 1
            stem = f"{index + 1:03d}.{kind}/{kind}_{number + 1:04d}"
            yield Sheet(image_id, index + 1, kind, stem, bool(train[number]))


def _write_sheet(folder: Path, sheet: Sheet, species: Species, seed: int) -> None:
    rng = np.random.default_rng((seed, 2, sheet.image_id))
    picture = folder / "CUB_200_2011" / "images" / f"{sheet.stem}.jpg"
    captions = folder / "text_c10" / f"{sheet.stem}.txt"
    for path in (picture, captions):
        path.parent.mkdir(parents=True, exist_ok=True)
    draw_bird(species, rng).save(picture, quality=JPEG_QUALITY)
    captions.write_text("\n".join(describe(species, rng)) + "\n", encoding="utf-8")


def _write_lists(root: Path, sheets: Sequence[Sheet]) -> None:
    classes = {sheet.class_id: sheet.stem.partition("/")[0] for sheet in sheets}
    _write_list(root / "images.txt", ((s.image_id, f"{s.stem}.jpg") for s in sheets))
    _write_list(root / "image_class_labels.txt", ((s.image_id, s.class_id) for s in sheets))
    _write_list(root / "train_test_split.txt", ((s.image_id, int(s.train)) for s in sheets))
    _write_list(root / "classes.txt", classes.items())


def _write_list(path: Path, rows: Iterable[tuple[int, int | str]]) -> None:
    path.write_text("".join(f"{key} {value}\n" for key, value in rows), encoding="utf-8")
