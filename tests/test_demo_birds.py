"""The demo's drawn data set, and the backbones that are shipped for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import embedcache.demo.birds as birds
from embedcache.errors import UsageError

BACKBONES = Path(birds.__file__).parent / "backbones"


def rows(path: Path) -> dict[int, str]:
    """A list of the published layout: value by id."""
    pairs = (line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {int(key): value for key, value in pairs}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five species of six pictures each."""
    folder = tmp_path_factory.mktemp("birds")
    return birds.draw_cub(folder, species=5, images_per_species=6, seed=3)


def test_lists_agree_with_each_other_and_with_the_pictures(drawn: Path) -> None:
    root = drawn / "CUB_200_2011"
    images, classes = rows(root / "images.txt"), rows(root / "classes.txt")
    labels = {key: int(value) for key, value in rows(root / "image_class_labels.txt").items()}
    assert list(images) == list(labels) == list(rows(root / "train_test_split.txt"))
    assert list(images) == list(range(1, 31))
    assert list(classes) == [1, 2, 3, 4, 5]
    assert Counter(labels.values()) == dict.fromkeys(classes, 6)
    assert all(images[key].startswith(f"{classes[label]}/") for key, label in labels.items())
    on_disk = {path.relative_to(root / "images") for path in root.rglob("*.jpg")}
    assert on_disk == {Path(name) for name in images.values()}


def test_class_folders_carry_their_id_and_files_their_species(drawn: Path) -> None:
    for key, name in rows(drawn / "CUB_200_2011" / "images.txt").items():
        folder, _, file = name.partition("/")
        number, _, kind = folder.partition(".")
        assert int(number) == (key - 1) // 6 + 1
        assert file == f"{kind}_{(key - 1) % 6 + 1:04d}.jpg"


def test_half_of_each_species_is_train(drawn: Path) -> None:
    root = drawn / "CUB_200_2011"
    labels, split = rows(root / "image_class_labels.txt"), rows(root / "train_test_split.txt")
    assert Counter(labels[key] for key, part in split.items() if part == "1") == dict.fromkeys(labels.values(), 3)
    assert set(split.values()) == {"0", "1"}


def test_ten_captions_stand_beside_every_picture(drawn: Path) -> None:
    for name in rows(drawn / "CUB_200_2011" / "images.txt").values():
        text = (drawn / "text_c10" / name).with_suffix(".txt").read_text(encoding="utf-8")
        captions = text.splitlines()
        assert len(captions) == birds.CAPTIONS_PER_IMAGE == 10
        assert all(caption.endswith(".") and caption == caption.lower() for caption in captions)
        assert "{" not in text
        assert "  " not in text


def test_pictures_are_rgb_jpegs_that_are_not_flat(drawn: Path) -> None:
    for path in drawn.rglob("*.jpg"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            assert all(120 <= side <= 152 for side in picture.size)
            assert np.asarray(picture).std() > 8


def test_a_seed_draws_the_same_bytes_and_another_seed_does_not(drawn: Path, tmp_path: Path) -> None:
    same = birds.draw_cub(tmp_path / "same", species=5, images_per_species=6, seed=3)
    other = birds.draw_cub(tmp_path / "other", species=5, images_per_species=6, seed=4)
    assert contents(same) == contents(drawn)
    assert contents(other).keys() != contents(drawn).keys()


@pytest.mark.parametrize("taken", ["CUB_200_2011", "text_c10"])
def test_files_that_are_there_are_never_drawn_over(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    (tmp_path / taken / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(FileExistsError, match=taken):
        birds.draw_cub(tmp_path, species=2, images_per_species=2)
    assert contents(tmp_path) == {f"{taken}/mine.txt": b"keep"}


@pytest.mark.parametrize(("species", "images"), [(1, 4), (birds.MAX_SPECIES + 1, 4), (2, 1)])
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, species: int, images: int) -> None:
    with pytest.raises(UsageError, match="Got"):
        birds.draw_cub(tmp_path, species=species, images_per_species=images)
    assert not contents(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_training_species_are_never_the_data_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trained = {birds.random_species(rng) for _ in range(500)}
    shown = set(birds.demo_species(birds.MAX_SPECIES, seed).values())
    assert all(birds.is_reserved(species) for species in shown)
    assert not any(birds.is_reserved(species) for species in trained)
    assert not trained & shown


@pytest.mark.parametrize("seed", range(5))
def test_twins_of_a_genus_differ_only_in_what_they_should(seed: int) -> None:
    kinds = [asdict(species) for species in birds.demo_species(30, seed).values()]
    for founder, twin, cousin in zip(kinds[::3], kinds[1::3], kinds[2::3], strict=True):
        assert {name for name in founder if founder[name] != twin[name]} == set(birds.TOLD)
        changed = {name for name in founder if founder[name] != cousin[name]}
        assert "breast_mark" in changed
        assert changed < set(birds.SHOWN)


def test_the_most_species_have_as_many_names() -> None:
    kinds = birds.demo_species(birds.MAX_SPECIES)
    assert len(kinds) == len(set(kinds.values())) == birds.MAX_SPECIES
    assert all(name.replace("_", "").replace("-", "").isalpha() for name in kinds)


def test_labels_count_within_the_choices() -> None:
    species = birds.random_species(np.random.default_rng(0))
    named = {name: birds.CHOICES[name][index] for name, index in species.labels().items()}
    assert named == asdict(species)


def test_shipped_backbones_are_small_and_free_of_paths() -> None:
    files = contents(BACKBONES)
    assert {"image/config.json", "image/model.safetensors"} <= files.keys()
    assert {"text/config.json", "text/model.safetensors", "text/tokenizer.json"} <= files.keys()
    assert sum(map(len, files.values())) < 4_000_000
    for name, content in files.items():
        if name.endswith(".json"):
            assert not any(word in content for word in (b"/home", b"/work", b"/tmp", b"/root"))


def test_shipped_image_backbone_loads_as_timm_loads() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(f"local-dir:{BACKBONES / 'image'}", pretrained=True)
    assert model.num_classes == 0
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 112, 112)


def test_shipped_text_backbone_loads_without_missing_keys() -> None:
    transformers = pytest.importorskip("transformers")
    folder = BACKBONES / "text"
    _, loading = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(loading.values())
    tokens = transformers.AutoTokenizer.from_pretrained(folder).tokenize("A Crimson bird of 1907")
    assert "crimson" in tokens
    assert "[UNK]" not in tokens
