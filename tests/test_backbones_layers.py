"""Layers and poolings: known answers, and equality with the libraries' own ways of giving them."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedcache.backbones import resolve, resolve_all
from embedcache.backbones.base import Backbone, BackboneSettings, canonical_layer, layer_numbers
from embedcache.backbones.hf_family import AUTO_POOLING
from embedcache.backbones.poolings import OF_IMAGES, OF_TEXTS, pool_patches, pool_text
from embedcache.backbones.timm_family import _vectors
from embedcache.errors import UsageError
from tests.backbone_helpers import PHOTOS, as_bytes, close, encode, prepared
from tests.tiny_checkpoints import TEXTS, TINY, edit_json, timm_checkpoint, typed_checkpoint

LAYERS = ["last", "-1", "-2", "1", "0", "-2,-1", "-1,-3,1"]


def stated(name: str, **settings: Any) -> Backbone:
    return resolve(name, BackboneSettings(**settings))


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("layer", "canonical"),
    [("last", "last"), ("-1", "last"), (-1, "last"), (-2, "-2"), ("-4, -3", "-4,-3"), ([-2, -1], "-2,-1"), ("+3", "3")],
)
def test_a_choice_of_layers_is_written_in_one_way(layer: Any, canonical: str) -> None:
    assert canonical_layer(layer) == BackboneSettings(layer=layer).layer == canonical


def test_the_last_layer_is_minus_one() -> None:
    assert layer_numbers("last") == (-1,)
    assert layer_numbers("-4,-3,-2,-1") == (-4, -3, -2, -1)


@pytest.mark.parametrize("layer", ["", "first", "-2,", "1.5", "-1,-1"])
def test_what_is_no_choice_of_layers_is_refused(layer: str) -> None:
    with pytest.raises(UsageError, match="layer"):
        BackboneSettings(layer=layer)


def test_each_choice_of_layers_and_pooling_is_in_the_fingerprint(home: Path) -> None:
    found = [stated(f"hf:{home / 'bert'}", layer=layer).identity for layer in ("last", "-2", "-2,-1")]
    found += [stated(f"hf:{home / 'bert'}", pooling=pooling).identity for pooling in OF_TEXTS if pooling != "mean"]
    assert [one.layer for one in found[:3]] == ["last", "-2", "-2,-1"]
    assert len({(one.layer, one.pooling) for one in found}) == len(found)
    assert stated(f"hf:{home / 'bert'}", layer="-1").identity == found[0]
    timm = [stated(f"timm:{home / 'timm_vit'}", layer=layer).identity for layer in ("last", "-2")]
    assert [(one.layer, one.pooling) for one in timm] == [("last", "pre-logits"), ("-2", "mean")]


# ---------------------------------------------------------------- one right number


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("pooling", "known"),
    [("cls", [0, 0]), ("mean", [1, 2.5]), ("cls+mean", [(0, 1), (0, 2.5)]), ("max", [2, 5]), ("last", [2, 5])],
)
def test_padding_on_either_side_changes_no_pooling(side: str, pooling: str, known: list[Any]) -> None:
    """Tokens at 0 to 2 and at 0 to 5; padding holds a thousand."""
    full = torch.arange(6.0)
    short, pad = full[:3], torch.full((3,), 1000.0)
    rows = [torch.cat([short, pad] if side == "right" else [pad, short]), full]
    mask = torch.tensor([[1, 1, 1, 0, 0, 0] if side == "right" else [0, 0, 0, 1, 1, 1], [1] * 6])
    found = pool_text(torch.stack(rows).unsqueeze(-1), mask, pooling)
    assert found.tolist() == [list(one) if isinstance(one, tuple) else [one] for one in known]


@pytest.mark.parametrize(
    ("pooling", "known"), [("cls", [9.0]), ("mean", [2.5]), ("cls+mean", [9.0, 2.5]), ("max", [5.0])]
)
@pytest.mark.parametrize("shape", ["tokens", "NCHW", "NHWC"])
def test_patches_are_pooled_without_what_is_no_patch(pooling: str, known: list[float], shape: str) -> None:
    places = torch.arange(6.0)
    patches = {"tokens": places.view(1, 6, 1), "NCHW": places.view(1, 1, 2, 3), "NHWC": places.view(1, 2, 3, 1)}[shape]
    token = torch.tensor([[9.0]])
    assert pool_patches(patches, token, pooling, "x", channels_last=shape == "NHWC").tolist() == [known]


class OwnTimm:
    """Two blocks over two prefix tokens and four patches; block b adds 10 b, the final normalisation 100."""

    num_prefix_tokens = 2
    feature_info = (1, 2, 3)
    cls_token: Any = torch.zeros(1)

    def states(self, block: int) -> torch.Tensor:
        return torch.arange(6.0).view(1, 6, 1) + 10 * (block + 1)

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.states(2) + 100

    def forward_head(self, features: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        return torch.full((1, 1), 42.0 if pre_logits else -1.0)

    def forward_intermediates(
        self, pixels: torch.Tensor, indices: list[int], return_prefix_tokens: bool, norm: bool, output_fmt: str
    ) -> Any:
        assert (return_prefix_tokens, norm, output_fmt) == (True, False, "NLC")
        found = [self.states(index) for index in indices]
        return self.forward_features(pixels), [(one[:, 2:], one[:, :2]) for one in found]


@pytest.mark.parametrize(
    ("layer", "pooling", "known"),
    [
        ("last", "pre-logits", [42.0]),
        ("last", "cls", [130.0]),
        ("last", "mean", [133.5]),
        ("-2", "cls+mean", [20.0, 23.5]),
        ("1", "max", [15.0]),
        ("-1,1", "mean", [133.5, 13.5]),
        ("-3,-2,3", "cls", [10.0, 20.0, 130.0]),
    ],
)
def test_each_layer_and_pooling_of_timm_has_one_right_number(layer: str, pooling: str, known: list[float]) -> None:
    assert _vectors(OwnTimm(), pooling, layer, "tiny")(torch.zeros(1, 3, 8, 8)).tolist() == [known]


def test_a_register_is_no_class_token() -> None:
    model = OwnTimm()
    model.cls_token = None
    with pytest.raises(UsageError, match="no class token"):
        _vectors(model, "cls", "last", "tiny")(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("shape", "known"), [("NCHW", 2.5), ("NHWC", 2.5)])
def test_the_maps_of_a_cnn_have_one_right_mean(shape: str, known: float) -> None:
    maps = torch.arange(6.0).view((1, 1, 2, 3) if shape == "NCHW" else (1, 2, 3, 1))
    model = SimpleNamespace(output_fmt=shape, forward_features=lambda pixels: maps)
    assert _vectors(model, "mean", "last", "tiny")(torch.zeros(1, 3, 8, 8)).tolist() == [[known]]


# ---------------------------------------------------------------- the libraries' own ways


def text_states(folder: Path, text: str) -> tuple[torch.Tensor, ...]:
    """transformers' own hidden states of one text, the last one as its ``last_hidden_state``."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        output = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt"), output_hidden_states=True)
    return (*output.hidden_states[:-1], output.last_hidden_state)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2", "qwen3"])
def test_layers_of_texts_equal_transformers_one_by_one(tmp_path: Path, kind: str, layer: str) -> None:
    folder = typed_checkpoint(tmp_path / kind, kind)
    found = encode(stated(f"hf:{folder}", layer=layer, pooling="mean"))
    numbers = layer_numbers(canonical_layer(layer))
    states = [text_states(folder, text) for text in TEXTS]
    close(found, torch.stack([torch.cat([one[number][0].mean(0) for number in numbers]) for one in states]))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers", "dinov3_vit", "clip_vision_model"])
def test_layers_of_images_equal_transformers(tmp_path: Path, kind: str, layer: str) -> None:
    """Class token and mean of the patches side by side, as DINOv2's linear evaluation has them."""
    from transformers import AutoModel

    folder = typed_checkpoint(tmp_path / kind, kind)
    encoder = stated(f"hf:{folder}", layer=layer, pooling="cls+mean").load("cpu")
    items = prepared(encoder, PHOTOS)
    pixels = torch.from_numpy(np.stack([item.array for item in items])).float() / 127.5 - 1
    with torch.inference_mode():
        output = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels, output_hidden_states=True)
    states = (*output.hidden_states[:-1], output.last_hidden_state)
    first = 3 if TINY[kind].get("num_register_tokens") else 1
    chosen = [states[number] for number in layer_numbers(canonical_layer(layer))]
    close(encoder.forward(items).numpy(), torch.cat([torch.cat([h[:, 0], h[:, first:].mean(1)], 1) for h in chosen], 1))


@pytest.mark.parametrize("pooling", OF_IMAGES)
@pytest.mark.parametrize("layer", ["last", "-2", "1", "-4,-3,-2,-1"])
def test_layers_of_timm_equal_its_intermediates(home: Path, layer: str, pooling: str) -> None:
    import timm

    encoder = stated(f"timm:{home / 'timm_vit'}", layer=layer, pooling=pooling).load("cpu")
    items = prepared(encoder, PHOTOS)
    model = timm.create_model(f"local-dir:{home / 'timm_vit'}", pretrained=True, num_classes=0).eval()
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        pixels = (torch.from_numpy(np.stack([item.array for item in items])) / 255 - mean) / std
        tokens = [
            torch.cat([one[1], one[0]], 1)
            for one in model.get_intermediate_layers(pixels, 6, return_prefix_tokens=True)
        ]
        tokens[-1] = model.forward_features(pixels)
    ways = {
        "cls": lambda h: h[:, 0], "mean": lambda h: h[:, 1:].mean(1), "max": lambda h: h[:, 1:].amax(1),
        "cls+mean": lambda h: torch.cat([h[:, 0], h[:, 1:].mean(1)], 1),
    }  # fmt: skip
    numbers = [number - 1 if number > 0 else number for number in layer_numbers(layer)]
    close(encoder.forward(items).numpy(), torch.cat([ways[pooling](tokens[number]) for number in numbers], 1), 1e-4)


@pytest.mark.parametrize("pooling", OF_TEXTS)
def test_texts_equal_the_pipeline_for_features(home: Path, pooling: str) -> None:
    from transformers import AutoModel, AutoTokenizer, pipeline

    folder = home / "bert"
    own = pipeline(
        "feature-extraction", AutoModel.from_pretrained(folder), tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    ways: dict[str, Any] = {
        "cls": lambda h: h[0], "mean": lambda h: h.mean(0), "max": lambda h: h.amax(0), "last": lambda h: h[-1],
        "cls+mean": lambda h: torch.cat([h[0], h.mean(0)]),
    }  # fmt: skip
    expected = [ways[pooling](torch.tensor(own(text))[0]) for text in TEXTS]
    close(encode(stated(f"hf:{folder}", pooling=pooling)), torch.stack(expected))


def test_images_equal_the_pipeline_for_features(home: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel, pipeline

    folder = home / "vit"
    processor = AutoImageProcessor.from_pretrained(folder)
    own = pipeline("image-feature-extraction", AutoModel.from_pretrained(folder), image_processor=processor)
    hidden = torch.tensor([own(Image.open(io.BytesIO(photo)).convert("RGB"))[0] for photo in PHOTOS])
    close(encode(stated(f"hf:{folder}", pooling="cls")), hidden[:, 0], 1e-2)
    close(encode(stated(f"hf:{folder}", pooling="max")), hidden[:, 1:].amax(1), 1e-2)


def test_the_last_token_of_a_decoder_has_read_the_whole_text(tmp_path: Path) -> None:
    """As Qwen3-Embedding pools: batches of texts of many lengths against each text alone, its last token."""
    folder = typed_checkpoint(tmp_path / "qwen3", "qwen3")
    backbone = resolve(f"hf:{folder}")
    assert backbone.identity.pooling == "last"
    expected = torch.stack([text_states(folder, text)[-1][0, -1] for text in TEXTS])
    close(encode(backbone), expected)
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    close(encode(resolve(f"hf:{folder}")), expected)
    with pytest.raises(UsageError, match="first token has seen no other"):
        assert stated(f"hf:{folder}", pooling="cls").identity


def test_the_mean_of_a_deit_leaves_its_distillation_token_out(tmp_path: Path) -> None:
    folder = typed_checkpoint(tmp_path / "deit", "deit")
    encoder: Any = stated(f"hf:{folder}", pooling="mean").load("cpu")
    items = prepared(encoder, PHOTOS)
    pixels = torch.from_numpy(np.stack([item.array for item in items])).float() / 127.5 - 1
    hidden = encoder.module(pixel_values=pixels).last_hidden_state
    close(encoder.forward(items).numpy(), hidden[:, 2:].mean(1))


def test_vgg_gives_what_comes_after_the_relu_of_its_seventh_layer(tmp_path: Path) -> None:
    """timm says 512 features; a probe says 4,096."""
    folder = timm_checkpoint(tmp_path / "vgg", "vgg11", mlp_ratio=0.01)
    encoder: Any = resolve(f"timm:{folder}").load("cpu")
    items = prepared(encoder, PHOTOS[:2])
    found = encoder.forward(items)
    head = encoder.module.pre_logits
    pixels = torch.from_numpy(np.stack([item.array for item in items])).float()
    mean, std = (torch.tensor(one).view(-1, 1, 1) * 255 for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        features = encoder.module.features((pixels - mean) / std)
        seventh = head.fc2(torch.relu(head.fc1(features))).flatten(1)
    assert found.shape == (2, 4096)
    assert encoder.module.num_features == 512
    assert (seventh < 0).any()
    assert (found - torch.relu(seventh)).norm() < 1e-3 * found.norm()


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(("layer", "says"), [("3", "0 to 2"), ("-4", "-1 to -3"), ("-2,9", "names 9")])
def test_a_layer_that_the_model_does_not_have(home: Path, layer: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        encode(stated(f"hf:{home / 'bert'}", layer=layer))


@pytest.mark.parametrize("layer", ["0", "7", "-7"])
def test_timm_counts_layers_from_one(home: Path, layer: str) -> None:
    with pytest.raises(UsageError, match="layers 1 to 6"):
        stated(f"timm:{home / 'timm_vit'}", layer=layer).load("cpu")


def test_a_cnn_gives_its_penultimate_layer_and_no_other(home: Path) -> None:
    with pytest.raises(UsageError, match="is its penultimate layer"):
        stated(f"timm:{home / 'cnn'}", layer="-2").load("cpu")


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("hf:bert", {"pooling": "pooler", "layer": "-2"}, "'pooler' is made of the last layer"),
        ("timm:timm_vit", {"pooling": "pre-logits", "layer": "-2"}, "'pre-logits' is made of the last layer"),
        ("hf:vit", {"pooling": "last"}, "image models have no last"),
        ("timm:cnn", {"pooling": "last"}, "timm models have no last"),
        ("hf:bert", {"pooling": "pre-logits"}, "text models have no pre-logits"),
    ],
)
def test_a_pooling_without_meaning_is_refused_before_anything_is_loaded(
    home: Path, name: str, settings: dict[str, Any], says: str
) -> None:
    family, folder = name.split(":")
    with pytest.raises(UsageError, match=says):
        assert stated(f"{family}:{home / folder}", **settings).identity


def test_layers_have_a_meaning_for_images_and_texts(home: Path) -> None:
    found = resolve_all([f"hf:{home / 'vit'}", f"hf:{home / 'bert'}"], BackboneSettings(layer="-2"))
    assert [one.identity.layer for one in found] == ["-2", "-2"]
    assert [one.settings for one in found] == [BackboneSettings(layer="-2")] * 2


# ---------------------------------------------------------------- every type of transformers with a pooling of its own


def test_every_type_has_a_tiny_configuration() -> None:
    assert set(TINY) == set(AUTO_POOLING)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_each_type_encodes_alone_as_in_a_batch(tmp_path: Path, kind: str) -> None:
    backbone = resolve(f"hf:{typed_checkpoint(tmp_path / kind, kind)}")
    assert backbone.identity.pooling == AUTO_POOLING[kind]
    encoder: Any = backbone.load("cpu")
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    items = prepared(encoder, PHOTOS if backbone.modality == "image" else as_bytes(TEXTS))
    together = encoder.forward(items)
    close(torch.cat([encoder.forward([item]) for item in items]).numpy(), together.numpy(), 1e-4)
    assert together.shape[0] == 4
    assert len(np.unique(together.numpy(), axis=0)) == 4
