"""The demo's species: which are whose, and how those of a genus differ."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from embedcache.demo.genera import MAX_SPECIES, demo_species
from embedcache.demo.species import CHOICES, SHOWN, TOLD, is_reserved, random_species


@pytest.mark.parametrize("seed", range(5))
def test_training_species_are_never_the_data_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trained = {random_species(rng) for _ in range(500)}
    shown = set(demo_species(MAX_SPECIES, seed).values())
    assert all(is_reserved(species) for species in shown)
    assert not any(is_reserved(species) for species in trained)
    assert not trained & shown


@pytest.mark.parametrize("seed", range(5))
def test_twins_of_a_genus_differ_only_in_what_they_should(seed: int) -> None:
    kinds = [asdict(species) for species in demo_species(30, seed).values()]
    for founder, twin, cousin in zip(kinds[::3], kinds[1::3], kinds[2::3], strict=True):
        assert {name for name in founder if founder[name] != twin[name]} == set(TOLD)
        changed = {name for name in founder if founder[name] != cousin[name]}
        assert "breast_mark" in changed
        assert changed < set(SHOWN)


def test_the_most_species_have_as_many_names() -> None:
    kinds = demo_species(MAX_SPECIES)
    assert len(kinds) == len(set(kinds.values())) == MAX_SPECIES
    assert all(name.replace("_", "").replace("-", "").isalpha() for name in kinds)


def test_labels_count_within_the_choices() -> None:
    species = random_species(np.random.default_rng(0))
    named = {name: CHOICES[name][index] for name, index in species.labels().items()}
    assert named == asdict(species)
