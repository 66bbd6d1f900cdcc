"""Pictures and captions of the demo: they are those that the shipped backbones were trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from embedcache.demo.captions import describe
from embedcache.demo.drawing import draw_bird
from embedcache.demo.genera import demo_species
from embedcache.demo.species import CHOICES, Species, random_species


def first_species() -> Species:
    return next(iter(demo_species().values()))


def pixels(species: Species, seed: int = 1) -> np.ndarray:
    return np.asarray(draw_bird(species, np.random.default_rng(seed)), np.float64)


def test_a_picture_is_the_one_it_has_always_been() -> None:
    """Mean colours of its nine parts; another drawing would ask for backbones trained anew."""
    picture = draw_bird(first_species(), np.random.default_rng(1))
    assert picture.size == (141, 128)
    parts = np.asarray(picture.resize((3, 3), Image.Resampling.BOX), int)
    known = [
        [[173, 121, 87], [167, 114, 84], [190, 137, 109]],
        [[147, 127, 98], [181, 131, 111], [169, 131, 88]],
        [[156, 111, 90], [148, 108, 82], [148, 117, 83]],
    ]
    assert np.abs(parts - known).max() <= 2


def test_captions_are_those_they_have_always_been() -> None:
    assert describe(first_species(), np.random.default_rng(1), count=3) == [
        "this tiny bird has beige wings.",
        "this is a bird with a cream cap.",
        "here is a bird with a yellow chest and azure tarsus and feet, sitting on a branch.",
    ]


@pytest.mark.parametrize("attribute", [name for name in CHOICES if name != "size"])
def test_every_value_of_an_attribute_shows(attribute: str) -> None:
    """``size`` alone has no picture: birds are photographed from as near as they let one."""
    usual = replace(first_species(), breast_mark="plain", eye_ring="white")
    drawn = [pixels(replace(usual, **{attribute: value})) for value in CHOICES[attribute]]
    for i, one in enumerate(drawn):
        assert all(np.abs(one - other).max() > 8 for other in drawn[:i])


def test_a_bird_poses_anew_for_each_picture() -> None:
    assert pixels(first_species(), 1).shape != pixels(first_species(), 2).shape


def test_everything_about_every_species_can_be_said() -> None:
    rng = np.random.default_rng(0)
    captions = [caption for _ in range(300) for caption in describe(random_species(rng), rng)]
    assert len(captions) == 3_000
    assert all(caption.endswith(".") and "{" not in caption for caption in captions)
    assert not any(f" a {vowel}" in caption for caption in captions for vowel in "aeiou")
