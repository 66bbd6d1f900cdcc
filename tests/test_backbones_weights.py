"""Weight files in place of a checkpoint's own, and files that are something else."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from embedcache.backbones import resolve
from embedcache.backbones.base import BackboneSettings
from embedcache.errors import CheckpointError, UsageError
from tests.backbone_helpers import PHOTOS, close, encode
from tests.tiny_checkpoints import (
    image_checkpoint,
    text_checkpoint,
    timm_checkpoint,
)

Writer = Callable[[Path], Path]


@pytest.mark.parametrize("name", ["hf:bert", "hf:vit", "timm:cnn"])
@pytest.mark.parametrize("form", ["safetensors", "torch", "wrapped"])
def test_a_weight_file_takes_the_place_of_the_checkpoints(home: Path, tmp_path: Path, name: str, form: str) -> None:
    """Vectors and identity are those of a checkpoint that holds the same weights itself."""
    family, folder = name.split(":")
    write: Callable[..., Path] = {"bert": text_checkpoint, "vit": image_checkpoint, "cnn": timm_checkpoint}[folder]
    other = write(tmp_path / "other", seed=5)
    tensors = load_file(other / "model.safetensors")
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors if form == "torch" else {"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, file)
    own = resolve(f"{family}:{home / folder}")
    changed = resolve(f"{family}:{home / folder}", BackboneSettings(weights=str(file)))
    direct = resolve(f"{family}:{other}")
    assert changed.identity == direct.identity != own.identity
    close(encode(changed), encode(direct))
    assert not np.allclose(encode(changed), encode(own), atol=1e-3)


def test_a_timm_architecture_with_a_weight_file_equals_its_folder(home: Path) -> None:
    file = home / "cnn" / "model.safetensors"
    named = resolve("timm:test_efficientnet", BackboneSettings(weights=str(file)))
    assert named.identity.weights == resolve(f"timm:{home / 'cnn'}").identity.weights
    close(encode(named), encode(resolve(f"timm:{home / 'cnn'}")))


def test_timm_vectors_equal_plain_timm(home: Path) -> None:
    import timm

    model = timm.create_model(f"local-dir:{home / 'cnn'}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        plain = [model(transform(Image.open(io.BytesIO(photo)).convert("RGB")).unsqueeze(0))[0] for photo in PHOTOS]
    close(encode(resolve(f"timm:{home / 'cnn'}")), torch.stack(plain), 1e-4)


@pytest.mark.parametrize(
    ("family", "folder", "says"),
    [
        ("timm", "cnn", "no weight file"),
        ("hf", "bert", "no weight file"),
        ("st", "sentences", "not for sentence-transf"),
    ],
)
def test_a_weight_file_that_is_not_there(home: Path, family: str, folder: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve(f"{family}:{home / folder}", BackboneSettings(weights="absent.safetensors")).load("cpu")


def test_weights_of_another_architecture_are_refused(home: Path) -> None:
    other = BackboneSettings(weights=str(home / "vit" / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors are not those of timm's test_efficientnet"):
        resolve("timm:test_efficientnet", other).load("cpu")
    with pytest.raises(CheckpointError, match="missing from the checkpoint"):
        resolve(f"hf:{home / 'bert'}", other).load("cpu")


class Boom:
    """Code in a pickle."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran-code",))


@pytest.mark.parametrize("content", ["code", "text", "empty", "list"])
def test_a_file_that_is_no_tensors_is_refused_and_never_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "w.pth"
    if content in ("code", "list"):
        torch.save({"a": Boom()} if content == "code" else [1, 2], file)
    else:
        file.write_bytes(b"" if content == "empty" else b"<html>login</html>")
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        resolve("timm:test_efficientnet", BackboneSettings(weights=str(file))).load("cpu")
    assert not (tmp_path / "ran-code").exists()
