"""The transformers family: texts and images on tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedcache.backbones import resolve
from embedcache.backbones.base import POOLINGS, BackboneSettings, Prepared
from embedcache.backbones.encoders import TextEncoder
from embedcache.backbones.hf_family import load_tokenizer
from embedcache.backbones.poolings import mean_over_mask
from embedcache.errors import CheckpointError, ItemError, UsageError
from tests.backbone_helpers import PHOTOS, as_bytes, close, encode, plain_hidden, plain_images, prepared
from tests.tiny_checkpoints import (
    TEXTS,
    edit_json,
    image_checkpoint,
    sentence_checkpoint,
    text_checkpoint,
    timm_checkpoint,
)

Writer = Callable[[Path], Path]

# ---------------------------------------------------------------- hf: texts


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pooling", ["auto", "mean", "cls"])
def test_text_vectors_equal_transformers_one_by_one(home: Path, kind: str, pooling: str) -> None:
    """A batch of texts of many lengths against each text alone: padding and batching change nothing."""
    hidden = plain_hidden(home / kind)
    expected = [rows[0] if pooling == "cls" else rows.mean(0) for rows in hidden]
    close(encode(resolve(f"hf:{home / kind}", BackboneSettings(pooling=pooling))), torch.stack(expected))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "name", ["hf:bert", "hf:roberta", "hf:vit", "hf:swin", "st:sentences", "timm:cnn", "timm:timm_vit"]
)
def test_batch_size_changes_nothing(home: Path, name: str, batch: int) -> None:
    family, folder = name.split(":")
    backbone = resolve(f"{family}:{home / folder}")
    close(encode(backbone, batch=batch), encode(backbone))


@pytest.mark.parametrize("name", ["hf:bert", "hf:vit", "hf:swin", "st:sentences", "timm:cnn"])
def test_dropout_has_no_effect_and_nothing_is_trained(home: Path, name: str) -> None:
    family, folder = name.split(":")
    encoder: Any = resolve(f"{family}:{home / folder}").load("cpu")
    items = prepared(encoder, PHOTOS if family == "timm" or folder in ("vit", "swin") else as_bytes(TEXTS))
    first, second = encoder.forward(items), encoder.forward(items)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(module.training for module in encoder.module.modules())
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_the_dropout_in_the_configuration_would_be_seen(home: Path) -> None:
    """Guards the test above: in training mode the same model gives something else each time."""
    encoder: Any = resolve(f"hf:{home / 'bert'}").load("cpu")
    items = prepared(encoder, as_bytes(TEXTS))
    encoder.module.train()
    assert not torch.equal(encoder.forward(items), encoder.forward(items))


def test_padding_does_not_change_a_vector(home: Path) -> None:
    for name in (f"hf:{home / 'bert'}", f"hf:{home / 'roberta'}", f"st:{home / 'sentences'}"):
        backbone = resolve(name)
        alone = encode(backbone, [b"wing"])
        beside = encode(backbone, [b"wing", b"a long beak and a small red bird"])
        close(beside[:1], alone)


class Positions(torch.nn.Module):
    """Hidden state at position t is t, in every number; padding gives a thousand."""

    def __init__(self, prefix: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_register_tokens=max(prefix - 1, 0))
        if prefix:
            self.cls_token = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        places = torch.arange(input_ids.shape[1]).float().expand(input_ids.shape)
        states = torch.where(attention_mask.bool(), places, 1000.0).unsqueeze(-1).expand(-1, -1, 3)
        return SimpleNamespace(last_hidden_state=states, get={"pooler_output": states[:, 0] + 7}.get)


@pytest.mark.parametrize(("pooling", "known"), [("mean", [1.0, 2.5]), ("cls", [0.0, 0.0]), ("pooler", [7.0, 7.0])])
def test_each_pooling_of_texts_has_one_right_number(home: Path, pooling: str, known: list[float]) -> None:
    """``[CLS] wing [SEP]`` stands at 0, 1, 2; four words at 0 to 5."""
    backbone: Any = resolve(f"hf:{home / 'bert'}", BackboneSettings(pooling=pooling))
    model = Positions()
    tokenizer = load_tokenizer(home / "bert")
    encoder = TextEncoder(
        model, tokenizer, backbone._text_vectors(model), "cpu", max_length=12, lowercase=False, prompt=""
    )
    found = encoder.forward(prepared(encoder, [b"wing", b"a small red bird"]))
    assert found.tolist() == [[value] * 3 for value in known]


def test_mean_over_mask_is_the_mean_of_what_is_kept() -> None:
    tokens = torch.tensor([[[1.0], [2.0], [9.0]], [[4.0], [8.0], [0.0]]])
    assert mean_over_mask(tokens, torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist() == [[1.5], [4.0]]


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_a_checkpoint_without_a_pooler_works_where_none_is_used(tmp_path: Path, pooling: str) -> None:
    folder = text_checkpoint(tmp_path / "bert", pooler=False)
    expected = torch.stack([rows.mean(0) for rows in plain_hidden(folder)])
    close(encode(resolve(f"hf:{folder}", BackboneSettings(pooling=pooling))), expected)


@pytest.mark.parametrize("write", [text_checkpoint, image_checkpoint], ids=["bert", "vit"])
def test_a_pooler_that_the_checkpoint_lacks_is_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = write(tmp_path / "tiny", pooler=False)
    with pytest.raises(CheckpointError, match="missing .*pooler.*random numbers.*another --pooling"):
        resolve(f"hf:{folder}", BackboneSettings(pooling="pooler")).load("cpu")


def test_a_pooler_that_is_there_is_used(home: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(home / "bert").eval().requires_grad_(False)
    expected = torch.stack([torch.tanh(model.pooler.dense(rows[0])) for rows in plain_hidden(home / "bert")])
    found = encode(resolve(f"hf:{home / 'bert'}", BackboneSettings(pooling="pooler")))
    close(found, expected)


@pytest.mark.parametrize("name", ["hf:bert", "hf:vit", "st:sentences"])
def test_loading_says_nothing_of_its_own(home: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Unused weights are no news, and another progress bar would break ours."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    family, folder = name.split(":")
    capfd.readouterr()
    resolve(f"{family}:{home / folder}").load("cpu")
    assert "".join(capfd.readouterr()) == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("pooling", ["auto", "mean", "cls"])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_no_pooler_is_built_where_none_is_asked_for(home: Path, kind: str, pooling: str) -> None:
    encoder: Any = resolve(f"hf:{home / kind}", BackboneSettings(pooling=pooling)).load("cpu")
    assert not [name for name, _ in encoder.module.named_parameters() if "pooler" in name]


def without(folder: Path, *names: str) -> None:
    """Take tensors out of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "write", "name"),
    [
        ("hf", text_checkpoint, "encoder.layer.1.output.dense.weight"),
        ("st", sentence_checkpoint, "encoder.layer.1.output.dense.weight"),
        ("hf", image_checkpoint, "embeddings.patch_embeddings.projection.weight"),
        ("timm", timm_checkpoint, "conv_stem.weight"),
    ],
)
def test_missing_weights_are_refused_and_named(tmp_path: Path, family: str, write: Writer, name: str) -> None:
    folder = write(tmp_path / "tiny")
    without(folder, name)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        resolve(f"{family}:{folder}").load("cpu")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "tiny")
    edit_json(folder / "config.json", intermediate_size=20)
    with pytest.raises(CheckpointError, match="tiny"):
        resolve(f"hf:{folder}").load("cpu")


def halved(folder: Path) -> Path:
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype="float16", torch_dtype="float16")
    return folder


@pytest.mark.parametrize(
    ("family", "write"), [("hf", text_checkpoint), ("hf", image_checkpoint), ("st", sentence_checkpoint)]
)
def test_a_float16_checkpoint_is_computed_in_float32(tmp_path: Path, family: str, write: Writer) -> None:
    folder = halved(write(tmp_path / "half"))
    encoder: Any = resolve(f"{family}:{folder}").load("cpu")
    assert {parameter.dtype for parameter in encoder.module.parameters()} == {torch.float32}
    found = encode(resolve(f"{family}:{folder}"))
    exact = load_file(folder / "model.safetensors")
    save_file({name: tensor.float() for name, tensor in exact.items()}, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", dtype="float32", torch_dtype=None)
    assert found.dtype == np.float32
    close(found, encode(resolve(f"{family}:{folder}")), 1e-6)


def test_lower_casing_is_done_before_the_tokenizer(home: Path) -> None:
    name = f"hf:{home / 'bert'}"
    texts = as_bytes(["Red Tree", "red tree"])
    cased = encode(resolve(name), texts)
    lowered = encode(resolve(name, BackboneSettings(lowercase=True)), texts)
    assert not np.allclose(cased[0], cased[1], atol=1e-3)
    assert np.array_equal(lowered[0], lowered[1])
    close(lowered[1], cased[1])


@pytest.mark.parametrize("name", ["hf:bert", "st:sentences"])
def test_a_prompt_stands_before_every_text(home: Path, name: str) -> None:
    family, folder = name.split(":")
    prompted = resolve(f"{family}:{home / folder}", BackboneSettings(prompt="the blue "))
    found = encode(prompted, as_bytes(["bird", "wing"]))
    close(found, encode(resolve(f"{family}:{home / folder}"), as_bytes(["the blue bird", "the blue wing"])))


@pytest.mark.parametrize("name", ["hf:bert", "st:sentences"])
def test_texts_are_cut_at_the_maximum_length_and_counted(home: Path, name: str) -> None:
    family, folder = name.split(":")
    encoder = resolve(f"{family}:{home / folder}", BackboneSettings(max_length=6)).load("cpu")
    fits, cut = prepared(encoder, [b"a small red bird", b"a small red bird sits on"])
    assert (fits.truncated, cut.truncated) == (False, True)
    assert fits.length == cut.length == 6
    assert torch.equal(encoder.forward([fits]), encoder.forward([cut]))


def test_the_maximum_length_is_what_tokenizer_and_positions_allow(tmp_path: Path, home: Path) -> None:
    assert resolve(f"hf:{home / 'bert'}").identity.preprocessing["max_length"] == 24
    folder = text_checkpoint(tmp_path / "bert")
    edit_json(folder / "tokenizer_config.json", model_max_length=100)
    assert resolve(f"hf:{folder}").identity.preprocessing["max_length"] == 32
    folder = text_checkpoint(tmp_path / "roberta", "roberta")
    edit_json(folder / "tokenizer_config.json", model_max_length=None)
    assert resolve(f"hf:{folder}").identity.preprocessing["max_length"] == 31
    long = b" ".join([b"bird"] * 60)
    assert np.isfinite(encode(resolve(f"hf:{folder}"), [long])).all()


@pytest.mark.parametrize("name", ["hf:bert", "st:sentences"])
def test_a_maximum_length_beyond_the_positions_is_refused(home: Path, name: str) -> None:
    family, folder = name.split(":")
    with pytest.raises(UsageError, match="24 tokens at most; --max-length asks for 25"):
        assert resolve(f"{family}:{home / folder}", BackboneSettings(max_length=25)).identity


@pytest.mark.parametrize("name", ["hf:bert", "st:sentences"])
def test_bad_texts_fail_alone_and_with_their_reason(home: Path, name: str) -> None:
    family, folder = name.split(":")
    items = resolve(f"{family}:{home / folder}").load("cpu").prepare([b"wing", b"", b" \n", b"\xff\xfe", b"bird"])
    assert [str(item) for item in items if isinstance(item, ItemError)][:2] == ["the text is empty"] * 2
    assert [isinstance(item, Prepared) for item in items] == [True, False, False, False, True]
    assert "not UTF-8" in str(items[3])


def test_many_threads_cut_texts_as_one_does(home: Path) -> None:
    """Truncation is a state of a tokenizer that threads share."""
    encoder = resolve(f"hf:{home / 'bert'}", BackboneSettings(max_length=5)).load("cpu")
    rng = np.random.default_rng(0)
    texts = [b" ".join([b"bird"] * length) for length in rng.integers(1, 12, 6_000)]
    expected = prepared(encoder, texts)
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda start: prepared(encoder, texts[start : start + 20]), range(0, len(texts), 20))
        found = [item for part in parts for item in part]
    assert max(item.length for item in found) == 5
    assert [item.truncated for item in found] == [item.truncated for item in expected]
    assert all(np.array_equal(a.array, b.array) for a, b in zip(found, expected, strict=True))


# ---------------------------------------------------------------- hf: images


def test_vit_takes_its_class_token_and_swin_the_mean(home: Path) -> None:
    vit, swin = plain_images(home / "vit").last_hidden_state, plain_images(home / "swin").last_hidden_state
    close(encode(resolve(f"hf:{home / 'vit'}")), vit[:, 0], 1e-2)
    close(encode(resolve(f"hf:{home / 'vit'}", BackboneSettings(pooling="mean"))), vit[:, 1:].mean(1), 1e-2)
    close(encode(resolve(f"hf:{home / 'swin'}")), swin.mean(1), 1e-2)


class Patches(Positions):
    """Two prefix tokens and four patches, at 0 to 5."""

    def forward(self, pixel_values: torch.Tensor) -> Any:  # type: ignore[override]
        states = torch.arange(6.0).view(1, 6, 1).expand(len(pixel_values), 6, 2)
        return SimpleNamespace(last_hidden_state=states, get=lambda name: None)


@pytest.mark.parametrize(("pooling", "known"), [("mean", 3.5), ("cls", 0.0)])
def test_each_pooling_of_images_has_one_right_number(home: Path, pooling: str, known: float) -> None:
    backbone: Any = resolve(f"hf:{home / 'vit'}", BackboneSettings(pooling=pooling))
    assert backbone._image_vectors(Patches(prefix=2))(torch.zeros(1, 3, 8, 8)).tolist() == [[known] * 2]


@pytest.mark.parametrize("name", ["timm:cnn", "hf:swin"])
def test_a_class_token_that_is_not_there_is_refused(home: Path, name: str) -> None:
    family, folder = name.split(":")
    with pytest.raises(UsageError, match="no class token"):
        encode(resolve(f"{family}:{home / folder}", BackboneSettings(pooling="cls")))


def test_an_architecture_whose_pooling_is_not_known_must_be_told(tmp_path: Path, home: Path) -> None:
    folder = image_checkpoint(tmp_path / "tiny")
    edit_json(folder / "config.json", model_type="yolos")
    with pytest.raises(UsageError, match="'yolos' is not known. State it with --pooling"):
        assert resolve(f"hf:{folder}").identity


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_a_pooling_cannot_mean_is_refused_in_words(home: Path, pooling: str) -> None:
    settings = BackboneSettings(pooling=pooling)
    if pooling == "pooler":
        with pytest.raises(UsageError, match="timm models have no pooler"):
            assert resolve(f"timm:{home / 'cnn'}", settings).identity
    if pooling == "pre-logits":
        with pytest.raises(UsageError, match="text models have no pre-logits"):
            resolve(f"hf:{home / 'bert'}", settings).load("cpu")
    if pooling != "auto":
        with pytest.raises(UsageError, match="bring their own pooling"):
            resolve(f"st:{home / 'sentences'}", settings)
    else:
        assert resolve(f"timm:{home / 'cnn'}", settings).identity.pooling == "pre-logits"


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown pooling 'avg'. Known: auto, cls"):
        BackboneSettings(pooling="avg")


@pytest.mark.parametrize("name", ["hf:vit", "timm:cnn", "timm:timm_vit", "hf:swin"])
def test_image_size_is_followed_by_pixels_and_model(home: Path, name: str) -> None:
    family, folder = name.split(":")
    own = resolve(f"{family}:{home / folder}")
    changed = resolve(f"{family}:{home / folder}", BackboneSettings(image_size=64))
    encoder = changed.load("cpu")
    items = prepared(encoder, PHOTOS)
    assert {item.array.shape for item in items} == {(3, 64, 64)}
    vectors = encoder.forward(items).numpy()
    assert vectors.shape == encode(own).shape
    assert np.isfinite(vectors).all()
    same = own.load("cpu")
    if prepared(same, PHOTOS)[0].array.shape != (3, 64, 64):
        assert not np.allclose(vectors, encode(own), atol=1e-4)


def test_image_size_equals_transformers_with_interpolated_positions(home: Path) -> None:
    from transformers import AutoModel

    encoder = resolve(f"hf:{home / 'vit'}", BackboneSettings(image_size=48)).load("cpu")
    items = prepared(encoder, PHOTOS)
    pixels = torch.from_numpy(np.stack([item.array for item in items])).float() / 127.5 - 1
    model = AutoModel.from_pretrained(home / "vit").eval()
    with torch.inference_mode():
        hidden = model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    close(encoder.forward(items).numpy(), hidden[:, 0])


def test_a_bad_image_fails_alone(home: Path) -> None:
    items = resolve(f"hf:{home / 'vit'}").load("cpu").prepare([PHOTOS[0], b"no image", PHOTOS[1]])
    assert [type(item) for item in items] == [Prepared, ItemError, Prepared]
