"""Real weights on real input, against the libraries that they come from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from embedcache.backbones import resolve
from embedcache.backbones.base import Backbone, BackboneSettings, Prepared
from embedcache.backbones.checkpoints import read_tensors
from embedcache.errors import CheckpointError

Vectors = npt.NDArray[np.float32]
ARCHITECTURE = "mobilenetv2_100"


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> Path:
    return shared_data / "weights"


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[bytes]:
    """Photos of many sizes, two of each class."""
    folders = sorted((shared_data / "clothing" / "test").iterdir())
    return [path.read_bytes() for folder in folders for path in sorted(folder.glob("*.jpg"))[:2]]


@pytest.fixture(scope="module")
def questions(shared_data: Path) -> list[str]:
    """Customers' questions, the longest among them."""
    with (shared_data / "banking77" / "test.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    return texts[:40] + sorted(texts, key=len)[-5:]


@pytest.fixture(scope="module")
def mobilenet(weights: Path) -> Backbone:
    return resolve(f"timm:{ARCHITECTURE}", BackboneSettings(weights=str(weights / "timm_mobilenetv2_100.safetensors")))


def encode(backbone: Backbone, payloads: Sequence[bytes]) -> Vectors:
    encoder = backbone.load("cpu")
    items = [item for item in encoder.prepare(payloads) if isinstance(item, Prepared)]
    assert len(items) == len(payloads)
    return encoder.forward(items).numpy()


def relative(found: Vectors, expected: Vectors) -> float:
    """The largest distance between two vectors of one item, over the length of the expected one."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def opened(photo: bytes) -> Image.Image:
    return Image.open(io.BytesIO(photo)).convert("RGB")


def plain_timm(weights: Path) -> Any:
    model = timm.create_model(ARCHITECTURE, num_classes=0)
    model.load_state_dict(read_tensors([weights / "timm_mobilenetv2_100.safetensors"]))
    return model.eval()


def test_timm_vectors_equal_plain_timm_with_a_batch_of_one(
    mobilenet: Backbone, weights: Path, photos: list[bytes]
) -> None:
    model = plain_timm(weights)
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    with torch.inference_mode():
        plain = torch.cat([model(transform(opened(photo)).unsqueeze(0)) for photo in photos]).numpy()
    found = encode(mobilenet, photos)
    assert found.shape == (20, 1280)
    assert relative(found, plain) < 2e-3
    assert relative(found[::-1], plain) > 0.1


def test_preprocessing_is_what_the_weights_expect(mobilenet: Any) -> None:
    own = mobilenet.preprocessing
    assert (own.shortest_edge, own.crop) == (256, (224, 224))
    assert own.mean == pytest.approx((0.485, 0.456, 0.406))
    assert own.std == pytest.approx((0.229, 0.224, 0.225))


def test_transformers_vectors_equal_its_own_processor_and_model(weights: Path, photos: list[bytes]) -> None:
    """Their processor resizes tensors and ours images: a grey level here and there, three in a thousand at the end."""
    folder = weights / "hf_mobilenet_v2"
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        plain = [model(**processor(opened(photo), return_tensors="pt")).pooler_output[0] for photo in photos]
    backbone = resolve(f"hf:{folder}")
    assert backbone.identity.pooling == "pre-logits"
    assert relative(encode(backbone, photos), torch.stack(plain).numpy()) < 5e-3


def test_one_network_under_two_families_gives_one_vector(mobilenet: Any, weights: Path, photos: list[bytes]) -> None:
    """On the same pixels; the two checkpoints resize otherwise (bicubic and bilinear)."""
    hf: Any = resolve(f"hf:{weights / 'hf_mobilenet_v2'}")
    by_timm, by_hf = mobilenet.load("cpu"), hf.load("cpu")
    items = by_timm.prepare(photos)
    assert relative(by_hf.forward(items).numpy(), by_timm.forward(items).numpy()) < 2e-3


def test_text_vectors_equal_a_masked_mean_by_hand(weights: Path, questions: list[str]) -> None:
    folder = weights / "hf_stories260k"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    expected = []
    with torch.inference_mode():
        for text in questions:
            tokens = tokenizer(text, return_tensors="pt")
            hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
            kept = tokens["attention_mask"][0].bool()
            expected.append(sum(hidden[0][kept]) / kept.sum())
    backbone = resolve(f"hf:{folder}")
    found = encode(backbone, [text.encode() for text in questions])
    assert backbone.identity.pooling == "mean"
    assert found.shape == (45, 64)
    assert relative(found, torch.stack(expected).numpy()) < 1e-4


def test_a_text_longer_than_the_model_is_cut_and_counted(weights: Path) -> None:
    encoder = resolve(f"hf:{weights / 'hf_stories260k'}").load("cpu")
    items = [item for item in encoder.prepare([b"once upon a time " * 400, b"once"]) if isinstance(item, Prepared)]
    assert [(item.length, item.truncated) for item in items] == [(512, True), (items[1].length, False)]
    assert torch.isfinite(encoder.forward(items)).all()


def test_a_checkpoint_of_the_wild_is_read_as_tensors(weights: Path) -> None:
    tensors = read_tensors([weights / "resnet20-12fca82f.th"])
    assert "conv1.weight" in tensors
    assert not any(name.startswith("module.") for name in tensors)


@pytest.mark.parametrize("architecture", ["resnet18", ARCHITECTURE])
def test_a_checkpoint_of_another_network_says_what_it_is(weights: Path, architecture: str) -> None:
    file = weights / "resnet20-12fca82f.th"
    with pytest.raises(CheckpointError) as caught:
        resolve(f"timm:{architecture}", BackboneSettings(weights=str(file))).load("cpu")
    message = str(caught.value)
    assert f"the weights in {file.name} are not those of timm's {architecture}" in message
    assert "are missing (" in message
    assert "looks like a CIFAR ResNet-20" in message
    assert len(message) < 1_800
    assert "\n" not in message


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_maps_of_a_real_cnn_are_pooled_as_by_hand(weights: Path, photos: list[bytes], pooling: str) -> None:
    settings = BackboneSettings(weights=str(weights / "timm_mobilenetv2_100.safetensors"), pooling=pooling)
    encoder: Any = resolve(f"timm:{ARCHITECTURE}", settings).load("cpu")
    model = plain_timm(weights)
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    with torch.inference_mode():
        maps = torch.cat([model.forward_features(transform(opened(photo)).unsqueeze(0)) for photo in photos[:6]])
    expected = maps.mean((2, 3)) if pooling == "mean" else maps.amax((2, 3))
    found = encoder.forward([item for item in encoder.prepare(photos[:6]) if isinstance(item, Prepared)])
    assert relative(found.numpy(), expected.numpy()) < 1e-4


def test_layers_of_a_real_cnn_are_its_stages_under_transformers(weights: Path, photos: list[bytes]) -> None:
    """timm's CNNs give the penultimate layer alone; transformers gives the maps of every block."""
    backbone: Any = resolve(f"hf:{weights / 'hf_mobilenet_v2'}", BackboneSettings(layer="-3", pooling="mean"))
    encoder: Any = backbone.load("cpu")
    items = [item for item in encoder.prepare(photos[:4]) if isinstance(item, Prepared)]
    pixels = torch.from_numpy(np.stack([item.array for item in items])) * (1 / 255)
    own = backbone.image_preprocessing
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (own.mean, own.std))
    with torch.inference_mode():
        states = encoder.module(pixel_values=(pixels - mean) / std, output_hidden_states=True).hidden_states
    assert relative(encoder.forward(items).numpy(), states[-3].mean((2, 3)).numpy()) < 1e-4


@pytest.mark.parametrize(
    ("layer", "pooling"), [("-2", "mean"), ("-4,-3,-2,-1", "last"), ("0,-1", "max"), ("last", "cls+mean")]
)
def test_layers_and_poolings_of_a_real_text_model(
    weights: Path, questions: list[str], layer: str, pooling: str
) -> None:
    """Against transformers' own hidden states, one text at a time; the last one has its final normalisation."""
    folder = weights / "hf_stories260k"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ways: dict[str, Any] = {
        "mean": lambda h: h.mean(0), "last": lambda h: h[-1], "max": lambda h: h.amax(0),
        "cls+mean": lambda h: torch.cat([h[0], h.mean(0)]),
    }  # fmt: skip
    numbers = [-1] if layer == "last" else [int(one) for one in layer.split(",")]
    expected = []
    with torch.inference_mode():
        for text in questions:
            output = model(**dict(tokenizer(text, return_tensors="pt")), output_hidden_states=True)
            assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
            expected.append(torch.cat([ways[pooling](output.hidden_states[number][0]) for number in numbers]))
    found = encode(resolve(f"hf:{folder}", BackboneSettings(layer=layer, pooling=pooling)), as_bytes(questions))
    assert relative(found, torch.stack(expected).numpy()) < 1e-4


def as_bytes(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]
