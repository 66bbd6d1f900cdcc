"""A picture of a bird: a species in some pose, light and background."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from embedcache.demo.body import Sitter, draw_body
from embedcache.demo.pen import SUPERSAMPLING, Pen, Pose
from embedcache.demo.scenery import Pixels, background, draw_clutter, draw_perch
from embedcache.demo.species import Species


def draw_bird(species: Species, rng: np.random.Generator) -> Image.Image:
    """One RGB picture of the species, about 144 x 128 pixels, in a pose and a light of its own."""
    pose = _random_pose(rng)
    pen = Pen(pose)
    sitter = Sitter.of(pen, species, rng)
    scene = background(rng, pose)
    draw_perch(pen, rng)
    draw_body(sitter, rng)
    draw_clutter(pen, rng)
    return _photograph(pen.layer, scene, rng)


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


def _photograph(layer: Image.Image, scene: Pixels, rng: np.random.Generator) -> Image.Image:
    """The layer before its scene, lit from above, with texture, light and noise."""
    painted = np.asarray(layer.reduce(SUPERSAMPLING), np.float32)
    alpha = painted[..., 3:] / 255
    lit = painted[..., :3] * alpha * _relief(layer) * (1 + rng.normal(0, 0.035, alpha.shape))
    picture = scene * (1 - alpha) + lit
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
