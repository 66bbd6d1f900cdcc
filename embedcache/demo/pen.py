"""A pen that draws in a bird's own coordinates, and the curves it follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

from embedcache.demo.colours import Rgb

Point = tuple[float, float]
Points = npt.NDArray[np.float64]

SUPERSAMPLING: Final = 2


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
        self.draw.line(self.place(points), fill=colour, width=self._pixels(width), joint="curve")

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
        return self._paint(self.mask(points), clip, colour)

    def strokes_inside(self, clip: Image.Image, lines: Iterable[Points], colour: Rgb, width: float) -> None:
        """Lines cut to ``clip``."""
        mask = Image.new("L", self.size)
        draw = ImageDraw.Draw(mask)
        for points in lines:
            draw.line(self.place(points), fill=255, width=self._pixels(width), joint="curve")
        self._paint(mask, clip, colour)

    def dots_inside(self, clip: Image.Image, centres: Points, radius: float, colour: Rgb) -> None:
        """Discs cut to ``clip``."""
        mask = Image.new("L", self.size)
        draw = ImageDraw.Draw(mask)
        for x, y in centres:
            draw.ellipse(self._box((x, y), radius), fill=255)
        self._paint(mask, clip, colour)

    def _paint(self, mask: Image.Image, clip: Image.Image, colour: Rgb) -> Image.Image:
        """Paint where both are; gives back where that is."""
        inside = ImageChops.multiply(mask, clip)
        self.layer.paste((*colour, 255), mask=inside)
        return inside

    def _pixels(self, width: float) -> int:
        return max(1, round(width * self.unit))

    def _box(self, centre: Point, radius: float) -> tuple[float, float, float, float]:
        ((x, y),) = self.place(np.array([centre]))
        r = radius * self.unit
        return x - r, y - r, x + r, y + r


def smooth(points: Sequence[Point] | Points, steps: int = 6) -> Points:
    """A closed Catmull-Rom curve through the points, (len(points) * steps, 2)."""
    p1 = np.array(points)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    rough = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
    curve: Points = (rough + (3 * p1 - p0 - 3 * p2 + p3) * t**3) / 2
    return curve.reshape(-1, 2)


def arc(centre: Point, radius: float, degrees: Point, count: int = 7) -> list[Point]:
    """Points on a circle; 0 degrees is ahead of the bird, 90 above it."""
    angles = np.radians(np.linspace(*degrees, count))
    return [(centre[0] + radius * math.cos(a), centre[1] - radius * math.sin(a)) for a in angles]
