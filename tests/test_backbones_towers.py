"""Two-tower models: images and texts in one space, each by an encoder that is loaded without the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import embedcache as ec
from embedcache.backbones import public_name, resolve, resolve_all, split_name, tower_of
from embedcache.backbones.base import BackboneSettings
from embedcache.encoding import EncoderReference, encode
from embedcache.errors import CheckpointError, MissingFeaturesError, UsageError
from tests import backbone_helpers as helpers
from tests.backbone_helpers import PHOTOS, as_bytes, close, prepared
from tests.tiny_checkpoints import TEXTS, edit_json, tower_checkpoint, write_json

KINDS = ("clip", "siglip")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP and a SigLIP."""
    folder = tmp_path_factory.mktemp("towers")
    for kind in KINDS:
        tower_checkpoint(folder / kind, kind)
    return folder


def own_features(folder: Path) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """``get_image_features`` of the photos and ``get_text_features`` of each text alone."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    items = prepared(resolve(f"hf:{folder}.image").load("cpu"), PHOTOS)
    pixels = torch.from_numpy(np.stack([item.array for item in items])).float() / 127.5 - 1
    padding = {"padding": "max_length", "max_length": 16} if model.config.model_type == "siglip" else {}
    with torch.inference_mode():
        tokens = [tokenizer(text, return_tensors="pt", **padding) for text in TEXTS]
        if padding:  # as the model was trained: what stands in the padding is read
            texts = [model.get_text_features(input_ids=one["input_ids"]).pooler_output[0] for one in tokens]
        else:
            texts = [model.get_text_features(**one).pooler_output[0] for one in tokens]
        return model.get_image_features(pixel_values=pixels).pooler_output, texts


@pytest.mark.parametrize("kind", KINDS)
def test_both_towers_equal_the_librarys_own_features(towers: Path, kind: str) -> None:
    images, texts = own_features(towers / kind)
    image, text = resolve_all([f"hf:{towers / kind}"])
    assert (image.name, text.name) == (f"hf:{kind}.image", f"hf:{kind}.text")
    assert (image.modality, text.modality) == ("image", "text")
    close(helpers.encode(image), images)
    close(helpers.encode(text), torch.stack(texts))
    close(helpers.encode(text, batch=1), torch.stack(texts))
    assert helpers.encode(image).shape[1] == helpers.encode(text).shape[1]


def test_siglip_pads_on_the_side_that_its_tokenizer_pads(tmp_path: Path) -> None:
    folder = tower_checkpoint(tmp_path / "siglip", "siglip")
    right = helpers.encode(resolve(f"hf:{folder}.text"))
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    left = helpers.encode(resolve(f"hf:{folder}.text"))
    close(left, torch.stack(own_features(folder)[1]))
    assert not np.allclose(left, right, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_is_loaded_without_the_other(towers: Path, kind: str) -> None:
    for backbone in resolve_all([f"hf:{towers / kind}"]):
        encoder: Any = backbone.load("cpu")
        names = {name for name, _ in encoder.module.named_parameters()}
        other = "text" if backbone.modality == "image" else "vision"
        assert not [name for name in names if other in name or ("visual" in name and backbone.modality == "text")]
        assert not encoder.module.training
        assert encoder.notes == ()
        assert isinstance(json.dumps(backbone.identity.architecture), str)


@pytest.mark.parametrize("kind", KINDS)
def test_only_its_own_weights_and_configuration_make_a_towers_identity(tmp_path: Path, kind: str) -> None:
    folder = tower_checkpoint(tmp_path / kind, kind)
    image, text = (one.identity for one in resolve_all([f"hf:{folder}"]))
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.final_layer_norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert resolve(f"hf:{folder}.image").identity == image
    assert resolve(f"hf:{folder}.text").identity != text
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", vision_config={**config["vision_config"], "layer_norm_eps": 0.5})
    assert resolve(f"hf:{folder}.image").identity != image
    assert image.weights != text.weights


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("clip", "visual_projection.weight"), ("clip", "text_projection.weight"),
        ("clip", "vision_model.post_layernorm.weight"), ("siglip", "text_model.head.weight"),
        ("siglip", "vision_model.head.probe"),
    ],
)  # fmt: skip
def test_a_weight_that_a_tower_lacks_is_refused(tmp_path: Path, kind: str, weight: str) -> None:
    folder = tower_checkpoint(tmp_path / kind, kind)
    tensors = load_file(folder / "model.safetensors")
    del tensors[weight]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    broken, whole = ("image", "text") if weight.startswith("vis") else ("text", "image")
    with pytest.raises(CheckpointError, match=weight.split(".", 1)[1].replace(".", r"\.")):
        resolve(f"hf:{folder}.{broken}").load("cpu")
    assert resolve(f"hf:{folder}.{whole}").load("cpu")


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.clip."])
def test_a_users_own_clip_takes_the_place_of_both_towers(towers: Path, tmp_path: Path, wrapper: str) -> None:
    other = tower_checkpoint(tmp_path / "clip", seed=5)
    tensors = {f"{wrapper}{name}": one for name, one in load_file(other / "model.safetensors").items()}
    save_file(tensors, tmp_path / "own.safetensors")
    found = resolve_all([f"hf:{towers / 'clip'}"], BackboneSettings(weights=str(tmp_path / "own.safetensors")))
    for mine, theirs in zip(found, resolve_all([f"hf:{other}"]), strict=True):
        close(helpers.encode(mine), helpers.encode(theirs))
        notes = "".join(mine.load("cpu").notes)
        assert "left out" not in notes


def test_the_projection_is_as_wide_as_the_whole_models(tmp_path: Path) -> None:
    """Some published files give the towers' configurations another width, which the whole model does not look at."""
    folder = tower_checkpoint(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", vision_config={**config["vision_config"], "projection_dim": 512})
    assert helpers.encode(resolve(f"hf:{folder}.image")).shape == (4, 10)


@pytest.mark.parametrize(("pooling", "dim"), [("pooler", 12), ("cls", 12), ("cls+mean", 24), ("max", 12)])
def test_other_poolings_of_an_image_tower(towers: Path, pooling: str, dim: int) -> None:
    found = resolve(f"hf:{towers / 'clip'}.image", BackboneSettings(pooling=pooling))
    assert helpers.encode(found).shape == (4, dim)


def test_layers_of_a_tower(towers: Path) -> None:
    layers = BackboneSettings(layer="-2,-1", pooling="mean")
    for backbone, dim in zip(resolve_all([f"hf:{towers / 'siglip'}"], layers), (24, 32), strict=True):
        assert helpers.encode(backbone).shape == (4, dim)
        assert backbone.identity.layer == "-2,-1"
    with pytest.raises(UsageError, match="'projection' is made of the last layer"):
        assert resolve(f"hf:{towers / 'clip'}.image", BackboneSettings(layer="-2")).identity
    with pytest.raises(UsageError, match="first token has seen no other"):
        assert resolve(f"hf:{towers / 'clip'}.text", BackboneSettings(pooling="cls")).identity


def test_settings_go_to_the_tower_that_they_mean_something_for(towers: Path) -> None:
    found = resolve_all([f"hf:{towers / 'clip'}"], BackboneSettings(lowercase=True, image_size=48))
    assert [one.settings for one in found] == [BackboneSettings(image_size=48), BackboneSettings(lowercase=True)]
    assert helpers.encode(found[0]).shape == (4, 10)
    assert found[1].identity.preprocessing["max_length"] == 16


# ---------------------------------------------------------------- names


def test_a_towers_name_is_taken_apart_where_no_folder_has_it(towers: Path, tmp_path: Path) -> None:
    assert tower_of("hf:openai/clip-vit-base-patch32.image") == ("hf:openai/clip-vit-base-patch32", "image")
    assert tower_of("demo-image") == ("demo-image", None)
    assert tower_of("demo-image.text") == ("demo-image", "text")
    assert tower_of("no-alias.text") == ("no-alias.text", None)
    assert split_name("hf:me/mine.text") == ("hf", "me/mine")
    assert public_name(f"hf:{towers / 'clip'}.image") == "hf:clip.image"
    plain = tower_checkpoint(tmp_path / "mine.image")
    assert [one.name for one in resolve_all([f"hf:{plain}"])] == ["hf:mine.image.image", "hf:mine.image.text"]


def test_one_backbone_of_two_must_be_named(towers: Path) -> None:
    with pytest.raises(UsageError, match=r"two towers: name hf:clip\.image or hf:clip\.text"):
        resolve(f"hf:{towers / 'clip'}")
    assert resolve(f"hf:{towers / 'clip'}.text").record["checkpoint"] == "hf:clip.text"


@pytest.mark.parametrize(
    ("name", "says"), [("hf:bert.image", "'bert': it has one tower"), ("timm:cnn.image", "has no towers")]
)
def test_a_tower_of_what_has_none_is_refused(home: Path, name: str, says: str) -> None:
    family, folder = name.split(":")
    with pytest.raises(UsageError, match=says):
        resolve(f"{family}:{home / folder}")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("siglip2", "keeps each photo's shape .*SigLIP 2 of a fixed resolution"),
        ("vit_mae", "hides most of a photo at random"),
        ("align", r"'align' is no model with two towers that is known here \(clip, siglip\)"),
    ],
)
def test_what_is_no_encoder_is_refused_in_words(tmp_path: Path, kind: str, says: str) -> None:
    folder = tower_checkpoint(tmp_path / "odd", "siglip")
    edit_json(folder / "config.json", model_type=kind)
    with pytest.raises(CheckpointError, match=says):
        resolve_all([f"hf:{folder}"])


# ---------------------------------------------------------------- from extraction to heads


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four photos with a caption each."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number, photo in enumerate(PHOTOS):
        (folder / f"{number}.png").write_bytes(photo)
    lines = [f"{number}.png,{text},{number % 2}" for number, text in enumerate(TEXTS)]
    (folder / "pairs.csv").write_text("\n".join(["image,text,label", *lines]), encoding="utf-8")
    return folder


def extracted(data: Path, backbone: str, cache: Path, **options: Any) -> list[ec.Extraction]:
    columns = {"image": "image", "text": ["text"], "label": "label", "images": str(data)}
    return ec.extract("table", data / "pairs.csv", backbones=[backbone], cache=cache, **columns, **options)


def test_one_name_extracts_both_and_means_both_in_features(towers: Path, pairs: Path, tmp_path: Path) -> None:
    name = f"hf:{towers / 'clip'}"
    found = extracted(pairs, name, tmp_path / "cache")
    assert [(one.backbone, one.modality, one.dim) for one in found] == [
        ("hf:clip.image", "image", 10),
        ("hf:clip.text", "text", 10),
    ]
    assert [one.action for one in extracted(pairs, name, tmp_path / "cache")] == ["reuse", "reuse"]
    dataset = ec.open(tmp_path / "cache").only()
    both = dataset.features("hf:clip")
    assert both.matrix().shape == (4, 20)
    parts = [dataset.features(f"hf:clip.{tower}").matrix() for tower in ("image", "text")]
    np.testing.assert_array_equal(both.matrix(), np.concatenate(parts, 1))
    np.testing.assert_array_equal(dataset.features(name).matrix(), both.matrix())
    np.testing.assert_array_equal(dataset.features("clip").matrix(), both.matrix())
    assert dataset.features(f"{name}.text").matrix().shape == (4, 10)
    assert dataset.features(f"hf:clip.image@{found[0].fingerprint}").matrix().shape == (4, 10)


def test_settings_pick_the_feature_sets_of_both_towers(towers: Path, pairs: Path, tmp_path: Path) -> None:
    for settings in (BackboneSettings(), BackboneSettings(lowercase=True, pooling="mean", layer="-2")):
        extracted(pairs, f"hf:{towers / 'siglip'}", tmp_path / "cache", settings=settings)
    dataset = ec.open(tmp_path / "cache").only()
    assert dataset.features("hf:siglip").matrix().shape == (4, 24)
    stated = {"backbone": "hf:siglip", "lowercase": True, "pooling": "mean", "layer": -2}
    assert dataset.features(stated).matrix().shape == (4, 28)


def test_a_tower_for_what_the_data_set_lacks_is_skipped_and_said(towers: Path, pairs: Path, tmp_path: Path) -> None:
    image, text = ec.extract(pairs, name="photos", backbones=[f"hf:{towers / 'clip'}"], cache=tmp_path / "cache")
    assert (image.action, text.action, text.reason) == ("extract", "skip", "photos has no texts")
    assert ec.open(tmp_path / "cache").only().features("hf:clip").matrix().shape == (4, 10)


def test_features_that_are_not_there_name_the_backbone(pairs: Path, tmp_path: Path) -> None:
    ec.extract(pairs, name="photos", backbones=["demo-image"], cache=tmp_path / "cache")
    with pytest.raises(MissingFeaturesError, match="--backbone clip-vit-base --pooling cls --layer=-2"):
        ec.open(tmp_path / "cache").only().find({"backbone": "clip-vit-base", "layer": -2, "pooling": "cls"})


def test_a_tower_encodes_new_items_as_extraction_did(towers: Path, pairs: Path, tmp_path: Path) -> None:
    _, text = extracted(pairs, f"hf:{towers / 'clip'}", tmp_path / "cache")
    assert text.fingerprint is not None
    file = ec.open(tmp_path / "cache").only().find("hf:clip.text")
    reference = EncoderReference("hf:clip.text", {}, "float32", file.layout.stored, text.fingerprint)
    new = encode(reference, TEXTS, "text", checkpoint=str(towers / "clip")).vectors
    stored = ec.open(tmp_path / "cache").only().features("hf:clip.text").matrix()
    np.testing.assert_array_equal(new, stored)


def test_a_processor_in_one_file_with_its_tokenizer_is_found(tmp_path: Path) -> None:
    """As transformers writes a whole processor today."""
    folder = tower_checkpoint(tmp_path / "clip")
    expected = helpers.encode(resolve(f"hf:{folder}.image"))
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    write_json(folder / "processor_config.json", {"image_processor": processor, "processor_class": "CLIPProcessor"})
    close(helpers.encode(resolve(f"hf:{folder}.image"), PHOTOS), expected)
    assert prepared(resolve(f"hf:{folder}.text").load("cpu"), as_bytes(TEXTS))
