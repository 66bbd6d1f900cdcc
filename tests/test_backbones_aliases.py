"""The contract of every alias, on the checkpoints of ``tiny_hub`` in the hub's own cache folder, without a network."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from typer.testing import CliRunner

from cli import app
from embedcache.backbones import ALIASES, FAMILIES, fetch, resolve, tower_of, without_own
from embedcache.backbones.base import Alias, Backbone, BackboneSettings, Encoder
from embedcache.backbones.listing import listed, parameters_of
from embedcache.errors import CheckpointError, CheckpointNotFoundError, UnknownNameError
from scripts import backbones_page
from tests.backbone_helpers import Vectors, as_bytes, prepared
from tests.tiny_checkpoints import encoded, picture
from tests.tiny_hub import (
    HIDDEN,
    PROJECTED,
    PUBLISHED,
    Published,
    Sentences,
    Timm,
    Transformer,
    dense_of,
    json_of,
    lay_out,
    real_model,
    sized,
    without_one,
)

ON_HUB = [name for name, alias in ALIASES.items() if not alias.ships]
TOWERS = [
    f"{name}{end}" for name in ON_HUB for end in ((".image", ".text") if ALIASES[name].modality == "both" else ("",))
]
"""Every encoder that an alias names: of a model for both modalities, each tower."""
TEXTS = ["a small red bird", "wing", "the blue bird sits on a tree", "red and white and black with a long red beak"]
PHOTOS = {side: [encoded(picture(side, side, seed=seed)) for seed in range(4)] for side in (32, 64)}
"""Of the size that a tiny model takes, so that two libraries' ways to resize are not what is compared."""


@dataclass(frozen=True)
class Case:
    """An alias whose tiny checkpoint lies in the hub's cache folder, resolved and loaded as a user's would be."""

    name: str
    snapshot: Path
    backbone: Backbone
    encoder: Encoder

    @property
    def alias(self) -> Alias:
        return ALIASES[self.name]

    @property
    def published(self) -> Published:
        return PUBLISHED[self.name]

    @property
    def payloads(self) -> list[bytes]:
        if self.backbone.modality == "text":
            return as_bytes(TEXTS)
        large = isinstance(self.published, Timm) or "convnext" in self.name
        return PHOTOS[64 if large else 32]

    def vectors(self, batch: int = 64) -> Vectors:
        items = prepared(self.encoder, self.payloads)
        parts = [self.encoder.forward(items[start : start + batch]) for start in range(0, len(items), batch)]
        return torch.cat(parts).numpy()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The hub's cache folder, as empty as on a new machine, and no network."""
    cache = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield cache


@pytest.fixture(scope="module", params=TOWERS)
def case(request: pytest.FixtureRequest, hub: Path) -> Case:
    name, _ = tower_of(request.param)
    snapshot, backbone = lay_out(hub, name), resolve(request.param)
    return Case(name, snapshot, backbone, backbone.load("cpu"))


def close(found: Vectors, expected: Vectors) -> None:
    """Every number to a ten-thousandth of its vector's largest."""
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected) / largest) < 1e-4


# ---------------------------------------------------------------- the library's own numbers


def known(case: Case) -> Vectors:
    """The vectors of a case by its library's own means, an item at a time."""
    with torch.inference_mode():
        if isinstance(case.published, Timm):
            return _by_timm(case, case.published)
        if isinstance(case.published, Sentences):
            return _by_hand(case, case.published)
        return _by_two_towers(case) if case.alias.modality == "both" else _by_transformers(case, case.published)


def _by_timm(case: Case, published: Timm) -> Vectors:
    import timm
    from safetensors.torch import load_file
    from timm.data import create_transform, resolve_data_config

    name = case.alias.checkpoint.removeprefix("timm/")
    model = timm.create_model(name, num_classes=3, **sized(published, name)).eval()
    model.load_state_dict(load_file(case.snapshot / "model.safetensors"))
    config = json_of(case.snapshot / "config.json")["pretrained_cfg"]
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=config))
    pixels = [transform(photo)[None] for photo in opened(case)]
    return torch.cat([model.forward_head(model.forward_features(one), pre_logits=True) for one in pixels]).numpy()


def _by_transformers(case: Case, published: Transformer) -> Vectors:
    from transformers import AutoImageProcessor, AutoModel

    if case.backbone.modality == "text":
        return torch.cat([hidden.mean(1) for hidden in _hidden(case, "")]).numpy()
    model = AutoModel.from_pretrained(case.snapshot, dtype=torch.float32).eval()
    output = model(**AutoImageProcessor.from_pretrained(case.snapshot)(opened(case), return_tensors="pt"))
    if published.config == "SwinConfig":
        return output.last_hidden_state.mean(1).numpy()
    if published.config == "DINOv3ConvNextConfig":
        return output.pooler_output.numpy()
    return output.last_hidden_state[:, 0].numpy()


def _by_two_towers(case: Case) -> Vectors:
    """Both towers at once, and the features of one; texts padded as each was trained."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(case.snapshot, dtype=torch.float32).eval()
    if case.backbone.modality == "image":
        processor = AutoImageProcessor.from_pretrained(case.snapshot)
        output = model.get_image_features(**processor(opened(case), return_tensors="pt"))
    else:
        padding = "max_length" if case.name.startswith("siglip") else True
        tokens = AutoTokenizer.from_pretrained(case.snapshot)(TEXTS, padding=padding, return_tensors="pt")
        masked = {} if case.name.startswith("siglip") else {"attention_mask": tokens["attention_mask"]}
        output = model.get_text_features(input_ids=tokens["input_ids"], **masked)
    vectors: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return vectors.numpy()


def opened(case: Case) -> list[Image.Image]:
    return [Image.open(io.BytesIO(photo)).convert("RGB") for photo in case.payloads]


def _by_hand(case: Case, published: Sentences) -> Vectors:
    """transformers' hidden states, and the modules of ``modules.json`` as formulas."""
    pool = {"mean": lambda one: one.mean(1), "cls": lambda one: one[:, 0], "lasttoken": lambda one: one[:, -1]}
    vectors = torch.cat([pool[published.pooling](hidden) for hidden in _hidden(case, prompt_of(case.alias))])
    if published.dense:
        weight, bias = dense_of(case.snapshot)
        vectors = torch.tanh(vectors @ weight.T + bias)
    return (normalize(vectors) if published.normalize else vectors).numpy()


def _hidden(case: Case, prompt: str) -> list[torch.Tensor]:
    """Last hidden states (1, tokens, dim) of each text alone, so that nothing is padded."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(case.snapshot, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(case.snapshot)
    return [model(**tokenizer(prompt + text, return_tensors="pt")).last_hidden_state for text in TEXTS]


def prompt_of(alias: Alias) -> str:
    return str(alias.settings.get("prompt", ""))


def tiny_dim(name: str) -> int:
    published = PUBLISHED[name]
    if name.startswith("clip"):
        return PROJECTED
    if isinstance(published, Sentences) and published.dense:
        return published.dense[0]
    if isinstance(published, Timm):
        # fc7's width and B3's are their architecture's; a bottleneck's is four times its channels
        return {"vgg16": 4096, "efficientnet-b3": 1536}.get(name, HIDDEN)
    return HIDDEN


# ---------------------------------------------------------------- the contract


def test_it_resolves_offline_from_the_hubs_cache(case: Case) -> None:
    tower = f".{case.backbone.modality}" if case.alias.modality == "both" else ""
    assert case.backbone.name == f"{case.name}{tower}"
    assert tower or case.backbone.modality == case.alias.modality
    family, checkpoint = case.alias.family, case.alias.checkpoint.removeprefix("timm/")
    named = str(case.backbone.record["checkpoint"])
    assert named.startswith(f"{family}:{checkpoint.split('.')[0]}")
    assert case.backbone.record["commit"] == case.snapshot.name
    assert case.backbone.identity.family == family


def test_its_vectors_are_the_librarys_own(case: Case) -> None:
    vectors = case.vectors()
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, tiny_dim(case.name))
    close(vectors, known(case))
    assert np.abs(vectors[1:] - vectors[0]).max(axis=1).min() > 1e-3 * np.abs(vectors).max()  # each item its own


def test_batch_size_changes_nothing(case: Case) -> None:
    together = case.vectors()
    close(case.vectors(batch=1), together)
    close(case.vectors(batch=3), together)


def test_it_is_frozen_and_in_evaluation(case: Case) -> None:
    module: torch.nn.Module = case.encoder.module  # type: ignore[attr-defined]
    assert not [name for name, part in module.named_modules() if part.training]
    assert not [name for name, weight in module.named_parameters() if weight.requires_grad]
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "name",
    [name for name in TOWERS if name.endswith(".text") or getattr(ALIASES.get(name), "modality", "") == "text"],
)
def test_texts_may_be_as_long_as_the_table_says(name: str, hub: Path) -> None:
    alias = tower_of(name)[0]
    lay_out(hub, alias)
    backbone = resolve(name)
    assert backbone.modality == "text"
    assert ALIASES[alias].input.endswith(f"{backbone.identity.preprocessing['max_length']} tokens")


def test_no_two_have_one_fingerprint(hub: Path) -> None:
    whose: dict[str, str] = {}
    for name in TOWERS:
        lay_out(hub, tower_of(name)[0])
        identity = json.dumps(asdict(resolve(name).identity), sort_keys=True)
        assert whose.setdefault(identity, name) == name


@pytest.mark.parametrize("name", TOWERS)
def test_missing_weights_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    alias, tower = tower_of(name)
    missing = without_one(lay_out(tmp_path, alias), {None: "", "image": "vision_model.", "text": "text_model."}[tower])
    with pytest.raises(CheckpointError, match=missing.rpartition(".")[0].rpartition(".")[2]):
        resolve(name).load("cpu")


# ---------------------------------------------------------------- real sizes


@pytest.mark.parametrize("name", ON_HUB)
def test_real_dims_and_parameters_are_those_of_the_table(name: str) -> None:
    alias, published, model = ALIASES[name], PUBLISHED[name], real_model(name)
    with torch.device("meta"):
        assert real_dims(model, published, alias) == {alias.dim}
    counted = sum(one.numel() for key, one in model.named_parameters() if not pooler_of_texts(key, published))
    if isinstance(published, Sentences) and published.dense:
        counted += (HIDDEN_OF_DISTILBERT + 1) * published.dense[1]
    assert float(f"{counted / 1e6:.3g}") == float(f"{alias.parameters:.3g}")


HIDDEN_OF_DISTILBERT = 768


def real_dims(model: Any, published: Published, alias: Alias) -> set[int]:
    """The widths of what a real model gives for inputs as large as the table says; of both towers where it has two."""
    side = int(alias.input.split()[0])
    pixels, ids = torch.empty(1, 3, side, side), torch.zeros(1, 4, dtype=torch.int64)
    if isinstance(published, Timm):
        return {model.forward_head(model.forward_features(pixels), pre_logits=True).shape[-1]}
    if alias.modality == "both":
        output = model(input_ids=ids, pixel_values=pixels)
        return {output.image_embeds.shape[-1], output.text_embeds.shape[-1]}
    if alias.modality == "image":
        return {model(pixel_values=pixels).last_hidden_state.shape[-1]}
    if isinstance(published, Sentences) and published.dense:
        assert model(input_ids=ids).last_hidden_state.shape[-1] == HIDDEN_OF_DISTILBERT
        return {published.dense[1]}
    return {model(input_ids=ids).last_hidden_state.shape[-1]}


def pooler_of_texts(name: str, published: Published) -> bool:
    """A pooler that is not used, as the table counts none."""
    return not isinstance(published, Timm) and name.startswith("pooler.")


@pytest.mark.parametrize("name", [name for name in ON_HUB if isinstance(PUBLISHED[name], Timm)])
def test_the_facts_of_timms_checkpoints_are_timms(name: str) -> None:
    import timm

    alias = ALIASES[name]
    config = timm.get_pretrained_cfg(alias.checkpoint.removeprefix("timm/"), allow_unregistered=False)
    assert config is not None
    assert config.hf_hub_id == alias.checkpoint
    assert config.license == alias.licence.lower()
    assert alias.input == f"{config.input_size[-1]} px"


# ---------------------------------------------------------------- the table


def test_every_line_of_the_table_is_tested_and_whole() -> None:
    assert list(PUBLISHED)
    assert set(PUBLISHED) == set(ON_HUB)
    known_settings = {item.name for item in fields(BackboneSettings)}
    for name, alias in ALIASES.items():
        assert alias.family in FAMILIES
        assert set(alias.settings) <= known_settings
        assert alias.licence
        assert alias.input
        if alias.settings.get("prompt"):
            assert alias.settings["prompt"] in alias.prompts.values(), name


def test_the_aliases_of_the_reports_mean_their_checkpoints() -> None:
    assert {name: (one.checkpoint, one.dim) for name, one in ALIASES.items() if "report" in one.used_by} == {
        "vgg16": ("timm/vgg16.tv_in1k", 4096),
        "resnet18": ("timm/resnet18.tv_in1k", 512),
        "resnet50": ("timm/resnet50.tv_in1k", 2048),
        "use-multilingual": ("sentence-transformers/distiluse-base-multilingual-cased-v2", 512),
        "efficientnet-b3": ("timm/efficientnet_b3.ra2_in1k", 1536),
        "albert": ("albert-base-v2", 768),
        "swin-tiny": ("microsoft/swin-tiny-patch4-window7-224", 768),
        "vit-large": ("google/vit-large-patch32-384", 1024),
        "vit-large-in21k": ("google/vit-large-patch32-224-in21k", 1024),
        "mpnet": ("sentence-transformers/all-mpnet-base-v2", 768),
        "bert": ("bert-base-uncased", 768),
        "roberta": ("roberta-base", 768),
    }


def test_fc7_of_vgg_comes_after_its_rectifier(hub: Path) -> None:
    snapshot = lay_out(hub, "vgg16")
    vectors = Case("vgg16", snapshot, backbone := resolve("vgg16"), backbone.load("cpu")).vectors()
    assert vectors.shape[1] == 4096
    assert vectors.min() == 0 < vectors.max()


@pytest.mark.parametrize("name", ON_HUB)
def test_fetching_without_a_network_names_the_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointNotFoundError) as caught:
        fetch(name)
    assert repr(ALIASES[name].checkpoint) in str(caught.value)
    assert f"python cli.py fetch {name}" in str(caught.value)


# ---------------------------------------------------------------- settings that an alias brings


def test_an_aliass_own_settings_hold_unless_the_user_says_otherwise(hub: Path) -> None:
    lay_out(hub, name := "multilingual-e5-base")
    own, passage, none, same = (
        resolve(name, settings and BackboneSettings(**settings))
        for settings in (None, {"prompt": "passage: "}, {"prompt": ""}, {"prompt": "query: "})
    )
    prompts = [one.identity.preprocessing["prompt"] for one in (own, passage, none, same)]
    assert prompts == ["query: ", "passage: ", "", "query: "]
    assert [without_own(name, one.settings) for one in (own, passage, none, same)] == [
        {},
        {"prompt": "passage: "},
        {"prompt": ""},
        {},
    ]


# ---------------------------------------------------------------- the listing and its page


def test_the_listing_says_what_is_here(hub: Path) -> None:
    snapshot = lay_out(hub, "bert-spanish")
    here, shipped, both = (one.to_dict() for one in listed(["bert-spanish", "demo-text", "clip-base"]))
    assert (here["here"], here["folder"]) == (True, str(snapshot))
    assert (shipped["here"], shipped["checkpoint"]) == (True, "")
    assert both["modality"] == "both"
    with pytest.raises(UnknownNameError, match="Did you mean 'bert'"):
        listed(["brt"])


def test_the_command_lists_every_alias_in_80_columns(hub: Path) -> None:
    shown = CliRunner().invoke(app, ["backbones"]).output
    assert max(map(len, shown.splitlines())) <= 80
    document = json.loads(CliRunner().invoke(app, ["backbones", "--json"]).output)
    assert list(document) == list(ALIASES)
    for name, alias in ALIASES.items():
        line = next(line for line in shown.splitlines() if line.split()[:1] == [name])
        assert line.split()[1:3] == [str(alias.dim), parameters_of(alias)]
        assert alias.licence in line
        assert alias.ships or f"{alias.family}:{alias.checkpoint}" in shown
    assert shown.count("gated\n") == sum(alias.gated for alias in ALIASES.values())


def test_one_alias_is_shown_with_its_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    shown = CliRunner().invoke(app, ["backbones", "multilingual-e5-base", "qwen3-embedding"]).output
    assert "--prompt 'passage: '" in shown
    assert r"relevant passages that answer the query\nQuery:'" in shown
    assert "python cli.py fetch qwen3-embedding" in shown


def test_listing_needs_no_model_library() -> None:
    code = (
        "import sys; from embedcache.backbones.listing import listed; assert listed();"
        "print([name for name in ('torch', 'timm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_page_has_the_table_of_aliases() -> None:
    page = backbones_page.PAGE.read_text(encoding="utf-8")
    assert backbones_page.tables() in page
    assert page == backbones_page.written(page), "run: python -m scripts.backbones_page"
