"""Families of backbones, on tiny checkpoints that lie where real ones do: in folders and in the hub's cache."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedcache import backbones
from embedcache.backbones import ALIASES, FAMILIES, resolve, resolve_all
from embedcache.backbones.base import Backbone, BackboneSettings
from embedcache.errors import CheckpointError, CheckpointNotFoundError, UnknownNameError, UsageError
from tests.backbone_helpers import PHOTOS, Vectors, as_bytes, close, encode, prepared
from tests.tiny_checkpoints import (
    TEXTS,
    edit_json,
    image_checkpoint,
    into_hub,
    sentence_checkpoint,
    text_checkpoint,
    timm_checkpoint,
    write_json,
)

Writer = Callable[[Path], Path]

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
    assert set(FAMILIES) == {"timm", "hf", "st", "glove", "word2vec", "words"}
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


def test_a_pooling_without_the_prompt_leaves_it_out_as_encode_does(tmp_path: Path) -> None:
    folder = sentence_checkpoint(tmp_path / "tiny")
    prompted = BackboneSettings(prompt="the small ")
    with_it = resolve(f"st:{folder}", prompted)
    vectors, identity = encode(with_it), with_it.identity
    edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
    without_it = resolve(f"st:{folder}", prompted)
    close(encode(without_it), own_encode(folder, prompt="the small "))
    assert np.abs(encode(without_it) - vectors).max() > 0.01
    assert without_it.identity != identity


@pytest.mark.parametrize(("renamed", "readings"), [(False, 1), (True, 2)], ids=["usual names", "names of old"])
def test_weights_are_read_a_second_time_only_where_names_leave_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: bool, readings: int
) -> None:
    from transformers import PreTrainedModel

    folder = sentence_checkpoint(tmp_path / "tiny")
    if renamed:
        tensors = load_file(folder / "model.safetensors")
        old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
        save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    vectors, calls, real = own_encode(folder), [], PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    counted = classmethod(lambda cls, *given, **options: calls.append(cls) or real(cls, *given, **options))
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", counted)
    close(encode(resolve(f"st:{folder}")), vectors)
    assert len(calls) == readings


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


@pytest.mark.parametrize("setting", [{"pooling": "cls"}, {"layer": "-2"}, {"weights": "mine.safetensors"}])
def test_what_its_modules_decide_cannot_be_asked_for(tmp_path: Path, setting: dict[str, Any]) -> None:
    folder = sentence_checkpoint(tmp_path / "tiny")
    with pytest.raises(UsageError, match=f"--{next(iter(setting))}"):
        resolve(f"st:{folder}", BackboneSettings(**setting))


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


def test_a_folder_of_another_library_is_said_to_be_one(tmp_path: Path) -> None:
    for config, family, expected in (
        ({"model_type": "vit"}, "timm", f"that of a transformers 'vit'. As such it is hf:{tmp_path}"),
        ({}, "timm", "is no timm checkpoint: its config.json names no 'architecture'"),
        ({"architecture": "resnet18"}, "hf", f"names timm's 'resnet18'. As such it is timm:{tmp_path}"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=re.escape(expected)):
            resolve(f"{family}:{tmp_path}")
