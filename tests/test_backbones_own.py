"""What users bring: fine-tuned checkpoints, plain state dicts under other names, networks that no library has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import embedcache as ec
from embedcache.backbones import resolve, timm_family
from embedcache.backbones.base import BackboneSettings
from embedcache.backbones.statedicts import describe, fit, is_classifier, misfits, wrapper_of
from embedcache.errors import CheckpointError, CheckpointNotFoundError, UnknownNameError, UsageError
from tests.backbone_helpers import PHOTOS, close, encode, prepared
from tests.tiny_checkpoints import image_checkpoint, text_checkpoint, timm_checkpoint

WRAPPERS = ["", "module.", "model.", "backbone.", "_orig_mod.", "module.model.backbone.", "feature_extractor."]


def zeros(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2) for name in names}


# ---------------------------------------------------------------- names alone


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_whatever_a_network_is_wrapped_in_is_found(wrapper: str) -> None:
    expected = ["conv.weight", "bn.weight", "bn.bias"]
    assert wrapper_of([*(f"{wrapper}{name}" for name in expected), "fc.weight"], expected) == wrapper


def test_a_few_names_that_fit_by_chance_are_no_wrapper() -> None:
    names = [f"layer{number}.bn.weight" for number in range(10)]
    assert wrapper_of(names, ["bn.weight", "stem.weight", "head.weight"]) == ""


def test_a_network_beside_another_one_is_found() -> None:
    names = [f"{who}.{part}" for who in ("student", "teacher", "queue") for part in ("a.weight", "b.weight")]
    assert wrapper_of([*names, "student.c.weight"], ["a.weight", "b.weight", "c.weight"]) == "student."


def test_only_what_is_no_part_of_the_network_is_left_out() -> None:
    expected = {"conv.weight": (2,), "head.norm.weight": (2,)}
    tensors = zeros("net.conv.weight", "net.head.norm.weight", "net.head.fc.weight", "net.se.weight", "fc.bias")
    found = fit(tensors, expected)
    assert (found.prefix, found.left_out) == ("net.", ("net.head.fc.weight", "fc.bias"))
    assert sorted(found.tensors) == ["conv.weight", "head.norm.weight", "se.weight"]
    assert misfits(found.tensors, expected) == ["1 have no place in it (se.weight)"]


@pytest.mark.parametrize(
    ("name", "known"),
    [("fc.weight", True), ("model.head.fc.bias", True), ("layer1.0.conv1.weight", False), ("classifier.1.bias", True)],
)
def test_classifiers_are_known_by_their_names(name: str, known: bool) -> None:
    assert is_classifier(name) is known


def test_misfits_name_what_is_missing_too_much_and_of_another_shape() -> None:
    expected = {"a.weight": (2,), "b.weight": (3, 4), "bn.num_batches_tracked": ()}
    assert misfits({"b.weight": torch.zeros(3, 5), "c.weight": torch.zeros(1)}, expected) == [
        "1 are missing (a.weight)",
        "1 have no place in it (c.weight)",
        "1 have another shape (b.weight 3 × 5 instead of 3 × 4)",
    ]
    assert misfits({"a.weight": torch.zeros(2), "b.weight": torch.zeros(3, 4)}, expected) == []


# ---------------------------------------------------------------- fine-tuned checkpoints


def wrapped(file: Path, tensors: dict[str, torch.Tensor], wrapper: str, classifier: str) -> Path:
    """A state dict as training scripts leave them: wrapped, with a classifier of seven classes."""
    own = {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}
    torch.save(
        {"state_dict": {**own, f"{classifier}.weight": torch.zeros(7, 4), f"{classifier}.bias": torch.zeros(7)}}, file
    )
    return file


@pytest.mark.parametrize("classifier", ["fc", "model.classifier.1", "head"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_state_dict_of_timm_under_other_names(home: Path, tmp_path: Path, wrapper: str, classifier: str) -> None:
    tensors = load_file(home / "cnn" / "model.safetensors")
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    file = wrapped(tmp_path / "own.pth", own, wrapper, classifier)
    backbone = resolve("timm:test_efficientnet", BackboneSettings(weights=str(file)))
    close(encode(backbone), encode(resolve(f"timm:{home / 'cnn'}")))
    (note,) = backbone.load("cpu").notes
    assert "left out: " in note
    assert f"{classifier}.weight" in note
    assert f"{classifier}.bias (a classifier)" in note
    seen = wrapper.removeprefix("module.")  # a bare module. is taken off while the file is read
    assert ("the prefix" in note) == bool(seen)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.model.backbone.", "encoder."])
@pytest.mark.parametrize("write", [text_checkpoint, image_checkpoint], ids=["bert", "vit"])
def test_a_state_dict_of_transformers_under_other_names(
    home: Path, tmp_path: Path, write: Callable[..., Path], wrapper: str
) -> None:
    folder = write(tmp_path / "tiny", seed=5)
    tensors = load_file(folder / "model.safetensors")
    file = wrapped(tmp_path / "own.pth", tensors, wrapper, "classifier")
    name = f"hf:{home / ('bert' if write is text_checkpoint else 'vit')}"
    backbone = resolve(name, BackboneSettings(weights=str(file)))
    close(encode(backbone), encode(resolve(f"hf:{folder}")))
    (note,) = backbone.load("cpu").notes
    assert "left out: classifier.weight, classifier.bias (a classifier)" in note


def fine_tuned(folder: Path, kind: str) -> tuple[Path, Any]:
    """A classifier of transformers as its trainer saves it, and the encoder inside."""
    import transformers

    source = image_checkpoint(folder / "base") if kind == "ViT" else text_checkpoint(folder / "base", kind.lower())
    head = "ImageClassification" if kind == "ViT" else "SequenceClassification"
    model = getattr(transformers, f"{kind}For{head}").from_pretrained(source, num_labels=5).eval()
    model.save_pretrained(folder / "tuned")
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            (folder / "tuned" / path.name).write_bytes(path.read_bytes())
    return folder / "tuned", resolve(f"hf:{source}")


@pytest.mark.parametrize("kind", ["ViT", "Bert", "Roberta"])
def test_a_fine_tuned_classifier_is_an_encoder(tmp_path: Path, kind: str) -> None:
    folder, base = fine_tuned(tmp_path, kind)
    backbone = resolve(f"hf:{folder}")
    close(encode(backbone), encode(base))
    (note,) = backbone.load("cpu").notes
    assert "classifier" in note
    assert "(a classifier)" in note


@pytest.mark.parametrize("kind", ["ViT", "Bert"])
def test_a_compiled_or_distributed_checkpoint_folder_is_read(tmp_path: Path, kind: str) -> None:
    folder, base = fine_tuned(tmp_path, kind)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {f"_orig_mod.{name}": one for name, one in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    backbone = resolve(f"hf:{folder}")
    close(encode(backbone), encode(base))
    assert "the prefix '_orig_mod." in backbone.load("cpu").notes[0]


def test_a_timm_folder_of_the_users_own_says_what_is_left_out(home: Path) -> None:
    (note,) = resolve(f"timm:{home / 'cnn'}").load("cpu").notes
    assert note == "weights of timm:cnn: left out: classifier.bias, classifier.weight (a classifier)"
    assert resolve("demo-image").load("cpu").notes == ()


def test_what_was_left_out_is_said_of_an_extraction(home: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(PHOTOS):
        (tmp_path / "photos" / f"{number}.png").write_bytes(photo)
    name = f"timm:{home / 'cnn'}"
    (found,) = ec.extract(tmp_path / "photos", backbones=[name], cache=tmp_path / "cache")
    assert any("left out: classifier.bias, classifier.weight (a classifier)" in note for note in found.notes)


@pytest.mark.parametrize("change", ["missing", "shape", "extra"])
def test_weights_that_do_not_fit_are_refused_by_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(timm_family, "COMMON", ())
    tensors = load_file(home / "cnn" / "model.safetensors")
    if change == "missing":
        del tensors["conv_stem.weight"]
    if change == "shape":
        tensors["conv_stem.weight"] = torch.zeros(5, 3, 3, 3)
    if change == "extra":
        tensors["blocks.0.0.se.conv.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError) as caught:
        resolve("timm:test_efficientnet", BackboneSettings(weights=str(tmp_path / "own.safetensors"))).load("cpu")
    says = {
        "missing": "1 are missing (conv_stem.weight)",
        "shape": "1 have another shape (conv_stem.weight 5 × 3 × 3 × 3 instead of 24 × 3 × 3 × 3)",
        "extra": "1 have no place in it (blocks.0.0.se.conv.weight)",
    }
    assert says[change] in str(caught.value)


def test_weights_of_another_architecture_say_of_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_family, "COMMON", ("resnet18",))
    file = timm_checkpoint(tmp_path / "cnn", "test_resnet") / "model.safetensors"
    other = tmp_path / "test_resnet_mine.safetensors"
    file.rename(other)
    with pytest.raises(CheckpointError, match="It holds the weights of timm:test_resnet"):
        resolve("timm:test_efficientnet", BackboneSettings(weights=str(other))).load("cpu")


# ---------------------------------------------------------------- a network that no library has


class Block(nn.Module):
    """Two convolutions; where the size changes, every second pixel, and zeros for new channels (option A of He)."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if before == channels else 2
        self.conv1 = nn.Conv2d(before, channels, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        new = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(maps)))))
        pad = (new.shape[1] - maps.shape[1]) // 2
        short = maps[:, :, :: self.stride, :: self.stride]
        return torch.relu(new + nn.functional.pad(short, (0, 0, 0, 0, pad, pad)))


class CifarResNet20(nn.Module):
    """Three stages of three blocks on 16, 32 and 64 channels (He et al. 2016, section 4.2), without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            blocks = [Block(widths[stage - 1], widths[stage]), *(Block(widths[stage], widths[stage]) for _ in range(2))]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.bn1(self.conv1(pixels)))
        for stage in (1, 2, 3):
            maps = self.get_submodule(f"layer{stage}")(maps)
        return maps.mean((2, 3))


def cifar(**changes: Any) -> ec.ImagePreprocessing:
    own = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), **changes}
    return ec.ImagePreprocessing("bilinear", 32, None, (32, 32), **own)


@pytest.fixture(scope="module")
def wild(shared_data: Path) -> Path:
    return shared_data / "weights" / "resnet20-12fca82f.th"


def test_a_file_of_the_wild_is_described(wild: Path) -> None:
    from embedcache.backbones.checkpoints import read_tensors

    text = describe(read_tensors([wild]))
    assert "holds 97 tensors" in text
    assert "first convolution goes from 3 to 16 channels, 3 × 3" in text
    assert "classifier linear.weight tells 10 classes from 64 numbers" in text
    assert "looks like a CIFAR ResNet-20, for photos of 32 × 32 pixels; neither timm nor transformers has" in text
    assert "embedcache.torch_backbone(name, module, preprocessing, weights=FILE)" in text


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("timm:resnet20", UnknownNameError),
        ("timm:resnet18", CheckpointError),
        ("hf:resnet20", CheckpointNotFoundError),
        ("hf:vit", CheckpointError),
    ],
)
def test_any_way_to_load_it_says_so(home: Path, hub: Path, wild: Path, name: str, error: type[Exception]) -> None:
    known = f"hf:{home / 'vit'}" if name == "hf:vit" else name
    with pytest.raises(error) as caught:
        resolve(known, BackboneSettings(weights=str(wild))).load("cpu")
    assert "looks like a CIFAR ResNet-20" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_of_ones_own_extracts_photos(wild: Path, shared_data: Path, tmp_path: Path) -> None:
    backbone = ec.torch_backbone("resnet20", CifarResNet20(), cifar(), weights=wild)
    photos = shared_data / "clothing"
    (found,) = ec.extract(photos, name="clothing", backbones=[backbone], cache=tmp_path / "cache", limit=40)
    assert (found.action, found.dim, found.n_failed) == ("extract", 64, 0)
    assert any("left out: linear.weight, linear.bias (a classifier)" in note for note in found.notes)
    (again,) = ec.extract(photos, name="clothing", backbones=[backbone], cache=tmp_path / "cache", limit=40)
    assert again.action == "reuse"
    features = ec.open(tmp_path / "cache")["clothing"].features("resnet20").matrix()
    assert features.shape == (40, 64)
    assert np.isfinite(features).all()


def test_a_module_gives_what_it_gives_alone(wild: Path) -> None:
    backbone = ec.torch_backbone("resnet20", CifarResNet20(), cifar(), weights=wild)
    encoder: Any = backbone.load("cpu")
    items = prepared(encoder, PHOTOS)
    alone = CifarResNet20().eval()
    state = torch.load(wild, map_location="cpu", weights_only=True)["state_dict"]
    alone.load_state_dict({name.removeprefix("module."): one for name, one in state.items() if "linear" not in name})
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack([item.array for item in items])) / 255
        close(encoder.forward(items).numpy(), alone((pixels - mean) / std), 1e-4)
    close(torch.cat([encoder.forward([item]) for item in items]).numpy(), encoder.forward(items).numpy(), 1e-4)
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def tiny_module(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_what_is_trained_on_later_is_another_backbone() -> None:
    module = tiny_module()
    before = ec.torch_backbone("own", module, cifar())
    expected, identity = encode(before), before.identity
    with torch.no_grad():
        module[0].weight += 1  # type: ignore[operator, index]
    module.train()
    np.testing.assert_array_equal(encode(before), expected)
    after = ec.torch_backbone("own", module, cifar())
    assert before.identity == identity != after.identity
    assert module.training


@pytest.mark.parametrize("change", ["preprocessing", "structure", "source", "vectors", "version", "weights"])
def test_all_that_can_change_a_number_is_in_the_identity(change: str) -> None:
    class Doubled(nn.Sequential):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(pixels)

    def middle(module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(module(pixels)[:, 1:3])

    changed = {
        "preprocessing": lambda: ec.torch_backbone("own", tiny_module(), cifar(exif=True)),
        "structure": lambda: ec.torch_backbone("own", nn.Sequential(*tiny_module().children(), nn.ReLU()), cifar()),
        "source": lambda: ec.torch_backbone("own", Doubled(*tiny_module().children()), cifar()),
        "vectors": lambda: ec.torch_backbone("own", tiny_module(), cifar(), vectors=middle),
        "version": lambda: ec.torch_backbone("own", tiny_module(), cifar(), version="2"),
        "weights": lambda: ec.torch_backbone("own", tiny_module(5), cifar()),
    }[change]()
    plain = ec.torch_backbone("own", tiny_module(), cifar()).identity
    assert ec.torch_backbone("own", tiny_module(), cifar()).identity == plain != changed.identity
    assert encode(changed).shape[0] == 4


def test_a_module_that_gives_no_vectors_is_refused() -> None:
    maps = ec.torch_backbone("own", nn.Conv2d(3, 4, 8, 8), cifar())
    with pytest.raises(UsageError, match=r"\(4, 4, 4, 4\) for 4 images, not \(n, dim\)"):
        encode(maps)
    pooled = ec.torch_backbone("own", nn.Conv2d(3, 4, 8, 8), cifar(), vectors=lambda module, x: module(x).mean((2, 3)))
    assert encode(pooled).shape == (4, 4)


def test_weights_that_are_not_the_modules_are_refused(wild: Path) -> None:
    with pytest.raises(CheckpointError, match=r"own: the weights are not its module's: 2 are missing \(0\.weight"):
        ec.torch_backbone("own", tiny_module(), cifar(), weights=wild)
    with pytest.raises(CheckpointNotFoundError, match="no weight file absent"):
        ec.torch_backbone("own", tiny_module(), cifar(), weights="absent.pth")
