"""Families of backbones, on tiny checkpoints that lie where real ones do: in folders and in the hub's cache."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from embedcache import backbones
from embedcache.backbones import ALIASES, FAMILIES, resolve, resolve_all
from embedcache.backbones.base import POOLINGS, Backbone, BackboneSettings, Encoder, Prepared
from embedcache.backbones.encoders import TextEncoder
from embedcache.backbones.poolings import mean_over_mask
from embedcache.backbones.hf_family import load_tokenizer
from embedcache.backbones.timm_family import _vectors
from embedcache.errors import CheckpointError, CheckpointNotFoundError, ItemError, UnknownNameError, UsageError
from tests.tiny_checkpoints import (
    TEXTS,
    edit_json,
    encoded,
    image_checkpoint,
    into_hub,
    picture,
    sentence_checkpoint,
    text_checkpoint,
    timm_checkpoint,
    write_json,
)

Vectors = npt.NDArray[np.float32]
Writer = Callable[[Path], Path]
PHOTOS = [encoded(picture(*size, seed=number)) for number, size in enumerate([(40, 52), (64, 33), (32, 32), (90, 50)])]


def prepared(encoder: Encoder, payloads: Sequence[bytes]) -> list[Prepared]:
    items = encoder.prepare(payloads)
    assert all(isinstance(item, Prepared) for item in items)
    return [item for item in items if isinstance(item, Prepared)]


def encode(backbone: Backbone, payloads: Sequence[bytes] | None = None, batch: int = 64) -> Vectors:
    """Vectors of payloads (some texts or photos by default), float32 (n, dim)."""
    encoder = backbone.load("cpu")
    payloads = payloads if payloads is not None else PHOTOS if backbone.modality == "image" else as_bytes(TEXTS)
    items = prepared(encoder, payloads)
    batches = [encoder.forward(items[start : start + batch]) for start in range(0, len(items), batch)]
    return torch.cat(batches).numpy()


def as_bytes(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def close(found: Vectors, expected: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=tolerance, atol=tolerance)


def plain_hidden(folder: Path, texts: Sequence[str] = TEXTS, **options: Any) -> list[torch.Tensor]:
    """transformers' own last hidden states, one text at a time, without any padding."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [model(**tokenizer(text, return_tensors="pt", **options)).last_hidden_state[0] for text in texts]


def plain_images(folder: Path) -> Any:
    """transformers' own processor and model on the photos."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    images = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in PHOTOS]
    with torch.inference_mode():
        return model(**AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with a checkpoint of every kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in ("bert", "roberta"):
        text_checkpoint(folder / kind, kind)
    for kind in ("vit", "swin"):
        image_checkpoint(folder / kind, kind)
    sentence_checkpoint(folder / "sentences")
    timm_checkpoint(folder / "cnn")
    timm_checkpoint(folder / "timm_vit", "test_vit")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the hub, and no network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


# ---------------------------------------------------------------- names


ALIASED: dict[str, Writer] = {
    "vit-large": image_checkpoint,
    "vit-large-in21k": image_checkpoint,
    "swin-tiny": lambda folder: image_checkpoint(folder, "swin"),
    "mpnet": lambda folder: sentence_checkpoint(folder, kind="mpnet"),
    "bert": text_checkpoint,
    "roberta": lambda folder: text_checkpoint(folder, "roberta"),
}
HUB_NAMES = {
    "vit-large": "google/vit-large-patch32-384",
    "vit-large-in21k": "google/vit-large-patch32-224-in21k",
    "swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
    "bert": "bert-base-uncased",
    "roberta": "roberta-base",
}
POOLED = {
    "vit-large": "cls", "vit-large-in21k": "cls", "swin-tiny": "mean", "mpnet": "modules", "bert": "mean",
    "roberta": "mean",
}  # fmt: skip


def test_the_aliases_of_the_report_mean_exactly_its_checkpoints() -> None:
    assert {name: ALIASES[name].checkpoint for name in HUB_NAMES} == HUB_NAMES


@pytest.mark.parametrize("alias", HUB_NAMES)
def test_an_alias_resolves_in_the_hubs_cache_and_encodes(hub: Path, alias: str) -> None:
    commit = "c0ffee" * 6 + "c0de"
    into_hub(hub, HUB_NAMES[alias], ALIASED[alias], commit)
    backbone = resolve(alias)
    assert (backbone.name, backbone.modality) == (alias, ALIASES[alias].modality)
    assert backbone.identity.pooling == POOLED[alias]
    assert backbone.record == {"checkpoint": f"{ALIASES[alias].family}:{HUB_NAMES[alias]}", "commit": commit}
    vectors = encode(backbone)
    assert vectors.shape == (4, 16)
    assert np.isfinite(vectors).all()
    assert np.unique(vectors.round(5), axis=0).shape == vectors.shape


@pytest.mark.parametrize("alias", ["demo-image", "demo-text"])
def test_the_shipped_backbones_resolve_and_encode(alias: str) -> None:
    backbone = resolve(alias)
    assert encode(backbone).shape == (4, ALIASES[alias].dim)
    assert backbone.record["commit"] is None
    assert os.sep not in backbone.record["checkpoint"]


def test_folder_and_hub_give_one_identity(hub: Path, home: Path) -> None:
    into_hub(hub, "me/mine", text_checkpoint)
    assert resolve("hf:me/mine").identity == resolve(f"hf:{home / 'bert'}").identity


def test_a_revision_is_looked_up_and_recorded(hub: Path) -> None:
    first, second = "1" * 40, "2" * 40
    into_hub(hub, "me/mine", text_checkpoint, first)
    into_hub(hub, "me/mine", lambda folder: text_checkpoint(folder, seed=1), second)
    old, new = (resolve("hf:me/mine", BackboneSettings(revision=commit)) for commit in (first, second))
    assert (old.record["commit"], new.record["commit"]) == (first, second)
    assert old.identity.weights != new.identity.weights
    assert resolve("hf:me/mine").record["commit"] == second
    with pytest.raises(CheckpointNotFoundError, match="at revision " + "3" * 40):
        resolve("hf:me/mine", BackboneSettings(revision="3" * 40))


def test_names_are_public_and_free_of_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert resolve("hf:./bert").name == resolve(f"hf:{home}/bert").name == "hf:bert"
    assert backbones.slug("hf:me/my model") == "my-model"
    assert backbones.slug("vit-large") == "vit-large"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit-larg", "Unknown backbone 'vit-larg'. Did you mean 'vit-large'"),
        ("brt", "Did you mean 'bert'"),
        ("hff:bert-base-uncased", "Unknown family 'hff' .*Known: hf,"),
        ("timm:resnet5", "Unknown timm architecture 'resnet5'. Did you mean 'resnet"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, says: str) -> None:
    with pytest.raises(UnknownNameError, match=says):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "checkpoint", "command"),
    [
        ("vit-large", HUB_NAMES["vit-large"], "fetch vit-large"),
        ("mpnet", HUB_NAMES["mpnet"], "fetch mpnet"),
        ("hf:me/absent", "me/absent", "fetch hf:me/absent"),
        ("timm:resnet18", "timm/resnet18.", "fetch timm:resnet18"),
    ],
)
def test_offline_without_files_says_what_where_and_how(hub: Path, name: str, checkpoint: str, command: str) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve(name)
    message = str(caught.value)
    assert checkpoint in message
    assert str(hub) in message
    assert f"python cli.py {command}" in message


def test_a_fresh_process_looks_where_the_environment_says(tmp_path: Path) -> None:
    into_hub(tmp_path / "hub", "bert-base-uncased", text_checkpoint)
    code = (
        "from embedcache.backbones import resolve; print(resolve('bert').record['commit'])\n"
        "try: resolve('roberta')\nexcept Exception as error: print(type(error).__name__, error)"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    commit, error = done.stdout.splitlines()
    assert commit == "0123456789abcdef" * 2
    assert error.startswith("CheckpointNotFoundError")
    assert "roberta-base" in error
    assert str(tmp_path / "hub") in error


def test_a_snapshot_without_weights_is_as_good_as_none(hub: Path) -> None:
    snapshot = into_hub(hub, "me/mine", text_checkpoint)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="fetch hf:me/mine"):
        resolve("hf:me/mine")


@pytest.mark.parametrize("name", ["hf:./absent", "timm:./absent", "st:./absent"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint folder \./absent"):
        resolve(name)


def test_every_family_stands_in_its_table(home: Path) -> None:
    assert set(FAMILIES) == {"timm", "hf", "st"}
    for family, folder in (("timm", "cnn"), ("hf", "bert"), ("st", "sentences")):
        assert resolve(f"{family}:{home / folder}").identity.family == family


# ---------------------------------------------------------------- fetch


def fetching(monkeypatch: pytest.MonkeyPatch, folder: Path, files: Sequence[str]) -> list[dict[str, Any]]:
    """A hub that holds ``files``: what is asked for appears in ``folder``. Returns the requests."""
    from fnmatch import fnmatch

    calls: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        for file in files:
            if any(fnmatch(file, pattern) for pattern in options["allow_patterns"]):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).touch()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_fetch_brings_weights_in_one_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        "config.json",
        "vocab.txt",
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "1_Pooling/config.json",
    ]
    calls = fetching(monkeypatch, tmp_path / "abc", files)
    found = backbones.fetch("vit-large", "v2")
    assert (found.name, found.folder, found.commit) == (HUB_NAMES["vit-large"], tmp_path / "abc", "abc")
    assert [(call["name"], call["revision"]) for call in calls] == [(HUB_NAMES["vit-large"], "v2")]
    brought = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert brought == {"config.json", "vocab.txt", "model.safetensors", "1_Pooling/config.json"}


def test_fetch_of_what_has_no_weights_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching(monkeypatch, tmp_path / "abc", ["config.json", "flax_model.msgpack"])
    with pytest.raises(CheckpointNotFoundError, match="no weights in safetensors or torch's format"):
        backbones.fetch("bert")


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "0_Transformer/pytorch_model.bin"])
def test_fetch_takes_torch_files_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    fetching(monkeypatch, tmp_path / "abc", ["config.json", weights, "tf_model.h5"])
    folder = backbones.fetch("bert").folder
    assert (folder / weights).exists()
    assert not (folder / "tf_model.h5").exists()


def test_fetch_of_timm_means_the_full_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fetching(monkeypatch, tmp_path, ["model.safetensors"])
    backbones.fetch("timm:resnet18.a1_in1k")
    backbones.fetch("timm:timm/resnet18")
    assert [re.sub(r"\..*", ".", call["name"]) for call in calls] == ["timm/resnet18."] * 2
    assert calls[0]["name"] == "timm/resnet18.a1_in1k"


def test_fetch_of_a_folder_is_refused(home: Path) -> None:
    with pytest.raises(UsageError, match="nothing to fetch"):
        backbones.fetch(f"hf:{home / 'bert'}")


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


@pytest.mark.parametrize(
    ("pooling", "shape", "known"),
    [
        ("mean", "tokens", 3.5),
        ("cls", "tokens", 0.0),
        ("mean", "NCHW", 2.5),
        ("mean", "NHWC", 2.5),
        ("pre-logits", "NCHW", 42.0),
    ],
)
def test_each_pooling_of_timm_has_one_right_number(pooling: str, shape: str, known: float) -> None:
    places = torch.arange(6.0)
    features = {
        "tokens": places.view(1, 6, 1).expand(1, 6, 2),
        "NCHW": places.view(1, 1, 2, 3).expand(1, 2, 2, 3),
        "NHWC": places.view(1, 2, 3, 1).expand(1, 2, 3, 2),
    }[shape]
    model = SimpleNamespace(
        num_prefix_tokens=2 if shape == "tokens" else 0,
        output_fmt=shape,
        forward_features=lambda pixels: features,
        forward_head=lambda found, pre_logits: torch.full((1, 2), 42.0 if pre_logits else -1.0),
    )
    assert _pool(model, pooling, "tiny")(torch.zeros(1, 3, 8, 8)).tolist() == [[known] * 2]


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
    with pytest.raises(UsageError, match="Unknown pooling 'max'. Known: auto, cls"):
        BackboneSettings(pooling="max")


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


# ---------------------------------------------------------------- settings


def test_settings_go_to_the_backbones_that_they_mean_something_for(home: Path) -> None:
    names = [f"hf:{home / 'vit'}", f"hf:{home / 'bert'}"]
    vit, bert = resolve_all(names, BackboneSettings(lowercase=True, image_size=48))
    assert vit.settings == BackboneSettings(image_size=48)
    assert bert.settings == BackboneSettings(lowercase=True)


@pytest.mark.parametrize(
    ("folder", "settings", "says"),
    [
        ("vit", BackboneSettings(lowercase=True), "lowercase has no meaning for an encoder of images"),
        ("bert", BackboneSettings(image_size=32), "image_size has no meaning for an encoder of texts"),
    ],
)
def test_a_setting_without_meaning_is_refused(home: Path, folder: str, settings: BackboneSettings, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve(f"hf:{home / folder}", settings)


def test_one_weight_file_is_not_for_two_backbones(home: Path) -> None:
    with pytest.raises(UsageError, match="weights are of one checkpoint; 2 backbones"):
        resolve_all([f"hf:{home / 'vit'}", f"hf:{home / 'bert'}"], BackboneSettings(weights="w.safetensors"))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 0}, {"max_length": -1}, {"value_range": (1.0, 1.0)}, {"channels": (0, 1)}, {"channels": (-1,)},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        BackboneSettings(**settings)


# ---------------------------------------------------------------- weights


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


# ---------------------------------------------------------------- st


def own_encode(folder: Path, texts: Sequence[str] = TEXTS, **options: Any) -> Vectors:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(texts), **options))


LONG = " ".join(["bird wing beak red"] * 12)


@pytest.mark.parametrize(
    "own",
    [{}, {"do_lower_case": True}, {"max_seq_length": 5}, {"max_seq_length": None}],
    ids=["as most", "lower case", "short", "no length"],
)
def test_sentences_equal_their_librarys_own_encode(tmp_path: Path, own: dict[str, Any]) -> None:
    folder = sentence_checkpoint(tmp_path / "tiny", **own)
    texts = [*TEXTS, LONG, "Red TREE"]
    found = encode(resolve(f"st:{folder}"), as_bytes(texts))
    close(found, own_encode(folder, texts))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_a_folder_as_the_library_writes_it_today(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    written = SentenceTransformer(str(sentence_checkpoint(tmp_path / "tiny")), device="cpu")
    written.save_pretrained(str(tmp_path / "today"))
    texts = [*TEXTS, LONG]
    backbone = resolve(f"st:{tmp_path / 'today'}")
    close(encode(backbone, as_bytes(texts)), own_encode(tmp_path / "tiny", texts))
    assert backbone.identity.preprocessing["max_length"] == written.max_seq_length == 12


def test_the_checkpoints_default_prompt_is_used_as_encode_does(tmp_path: Path) -> None:
    folder = sentence_checkpoint(tmp_path / "tiny")
    plain = resolve(f"st:{folder}").identity
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "the small ", "document": ""}, "default_prompt_name": "query"},
    )
    prompted = resolve(f"st:{folder}")
    close(encode(prompted), own_encode(folder))
    close(encode(prompted), own_encode(folder, prompt="the small "))
    assert prompted.identity != plain
    stated = resolve(f"st:{folder}", BackboneSettings(prompt="a red "))
    close(encode(stated), own_encode(folder, prompt="a red "))


def test_weights_of_old_layouts_are_found_in_their_folder(hub: Path) -> None:
    def old_layout(folder: Path) -> Path:
        sentence_checkpoint(folder)
        (folder / "0_Transformer").mkdir()
        for path in [path for path in folder.iterdir() if path.is_file() and path.name != "modules.json"]:
            path.rename(folder / "0_Transformer" / path.name)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        write_json(folder / "modules.json", modules)
        return folder

    snapshot = into_hub(hub, "me/old", old_layout)
    close(encode(resolve("st:me/old")), own_encode(snapshot))


def test_what_is_no_sentence_checkpoint_is_said(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no modules\.json.*Try hf:"):
        resolve(f"st:{home / 'bert'}")
    folder = sentence_checkpoint(tmp_path / "words")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.models.StaticEmbedding"
    write_json(folder / "modules.json", modules)
    with pytest.raises(CheckpointError, match="'StaticEmbedding'"):
        resolve(f"st:{folder}")


# ---------------------------------------------------------------- folders that are something else


@pytest.mark.parametrize(("family", "says"), [("hf", r"no config\.json"), ("timm", r"no config\.json")])
def test_a_folder_without_configuration(tmp_path: Path, family: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        resolve(f"{family}:{tmp_path}")


def test_a_model_type_that_transformers_does_not_know(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "tiny")
    edit_json(folder / "config.json", model_type="no-such-model")
    with pytest.raises(CheckpointError, match="knows no model .*no-such-model"):
        resolve(f"hf:{folder}").load("cpu")


def test_two_towers_and_none_are_refused(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "two")
    write_json(folder / "preprocessor_config.json", {})
    with pytest.raises(CheckpointError, match="two towers"):
        resolve(f"hf:{folder}")
    bare = tmp_path / "none"
    bare.mkdir()
    write_json(bare / "config.json", {"model_type": "bert"})
    with pytest.raises(CheckpointError, match="neither"):
        resolve(f"hf:{bare}")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    for family, write in (("hf", text_checkpoint), ("timm", timm_checkpoint)):
        folder = write(tmp_path / family)
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointNotFoundError, match="holds no weights"):
            assert resolve(f"{family}:{folder}").identity


# ---------------------------------------------------------------- the contract


@pytest.fixture(params=["hf:bert", "hf:roberta", "hf:vit", "hf:swin", "st:sentences", "timm:cnn", "timm:timm_vit"])
def each(request: pytest.FixtureRequest, home: Path) -> Backbone:
    family, folder = request.param.split(":")
    return resolve(f"{family}:{home / folder}")


def test_contract_identity_needs_no_model(each: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(each), "load", lambda *_: pytest.fail("a model was built"))
    identity = each.identity
    assert identity.modality == each.modality
    assert len(identity.weights) == 32
    assert json.loads(json.dumps(identity.__dict__))["pooling"] == identity.pooling
    assert "commit" not in json.dumps(identity.__dict__)


def test_contract_vectors_are_finite_float32_of_one_width(each: Backbone) -> None:
    vectors = encode(each)
    assert vectors.dtype == np.float32
    assert vectors.ndim == 2
    assert np.isfinite(vectors).all()


def test_contract_half_precision_stays_close(each: Backbone) -> None:
    encoder = each.load("cpu")
    items = prepared(encoder, PHOTOS if each.modality == "image" else as_bytes(TEXTS))
    full = encoder.forward(items)
    encoder.cast("bfloat16")
    half = encoder.forward(items)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.98
    assert not torch.equal(full, half)
