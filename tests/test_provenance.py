"""Fingerprints: the same for what cannot change a number, another for everything that can."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from embedcache.backbones import checkpoints, resolve
from embedcache.backbones.base import BackboneSettings
from embedcache.backbones.checkpoints import digest_file, digest_tensors, read_tensors
from embedcache.provenance import (
    FINGERPRINT_LENGTH,
    EncoderIdentity,
    Provenance,
    canonical_json,
    differences,
    digest_json,
    fingerprint,
    flatten,
)
from tests.tiny_checkpoints import (
    edit_json,
    image_checkpoint,
    into_hub,
    sentence_checkpoint,
    text_checkpoint,
    timm_checkpoint,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def print_of(name: str, compute: Any = "float32", stored: Any = "float16", **settings: Any) -> str:
    """The fingerprint that vectors of a backbone would have."""
    return Provenance(resolve(name, BackboneSettings(**settings)).identity, compute, stored).fingerprint


# ---------------------------------------------------------------- JSON


@given(JSON)
def test_canonical_json_says_the_same_thing(document: Any) -> None:
    assert json.loads(canonical_json(document)) == document


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_canonical_json_does_not_depend_on_order(document: dict[str, Any]) -> None:
    backwards = dict(reversed(document.items()))
    assert canonical_json(backwards) == canonical_json(document)
    assert digest_json(backwards) == digest_json(document)


def test_canonical_json_is_one_known_text() -> None:
    document = {"b": [1, 2.5, None, True], "a": {"z": "é", "y": ()}}
    assert canonical_json(document) == '{"a":{"y":[],"z":"é"},"b":[1,2.5,null,true]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": [value]})


def test_a_fingerprint_never_changes_between_releases() -> None:
    """Written down, so that a cache made today is found tomorrow."""
    identity = EncoderIdentity("image", "timm", "0" * 32, {"name": "resnet50"}, "cls", {"mean": (0.5, 0.25)})
    found = Provenance(identity, "float32", "float16")
    assert found.to_json() == (
        '{"architecture":{"name":"resnet50"},"compute":"float32","family":"timm","layer":"last","modality":"image",'
        '"pooling":"cls","preprocessing":{"mean":[0.5,0.25]},"stored":"float16","weights":"' + "0" * 32 + '"}'
    )
    assert found.fingerprint == "3745a5ea5ac7"
    assert fingerprint(json.loads(found.to_json())) == found.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"modality": "text"}, {"family": "hf"}, {"weights": "1"}, {"architecture": {"name": "b"}}, {"pooling": "mean"},
        {"preprocessing": {"crop": [2]}}, {"layer": "first"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_field_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    identity = EncoderIdentity("image", "timm", "0", {"name": "a"}, "cls", {"crop": [1]})
    own = Provenance(identity, "float32", "float16")
    assert Provenance(replace(identity, **change), "float32", "float16").fingerprint != own.fingerprint
    assert Provenance(replace(identity), "float32", "float16") == own


def test_differences_name_the_leaves() -> None:
    left = {"pooling": "cls", "preprocessing": {"crop": [1, 2], "mean": 0.5}, "same": 1}
    right = {"pooling": "mean", "preprocessing": {"crop": [1, 3]}, "same": 1, "new": {"x": 1}}
    assert differences(left, right) == [
        ("new.x", None, 1),
        ("pooling", "cls", "mean"),
        ("preprocessing.crop", [1, 2], [1, 3]),
        ("preprocessing.mean", 0.5, None),
    ]
    assert differences(left, left) == []
    assert dict(flatten(left))["preprocessing.crop"] == [1, 2]


# ---------------------------------------------------------------- what changes a fingerprint


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    text_checkpoint(folder / "bert")
    image_checkpoint(folder / "vit")
    timm_checkpoint(folder / "cnn")
    sentence_checkpoint(folder / "sentences")
    return folder


TEXT_CHANGES: list[dict[str, Any]] = [
    {}, {"pooling": "cls"}, {"pooling": "pooler"}, {"lowercase": True}, {"prompt": "query: "}, {"prompt": "query:"},
    {"max_length": 8}, {"compute": "bfloat16"}, {"compute": "float16"}, {"stored": "float32"},
]  # fmt: skip
IMAGE_CHANGES: list[dict[str, Any]] = [
    {}, {"image_size": 48}, {"image_size": 64}, {"value_range": (0.0, 255.0)}, {"value_range": (0.0, 65535.0)},
    {"value_range": (0.0, 255.0), "channels": (0,)}, {"value_range": (0.0, 255.0), "channels": (2, 1, 0)},
    {"pooling": "mean"}, {"compute": "float16"}, {"stored": "float32"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hf:bert", TEXT_CHANGES),
        ("st:sentences", [change for change in TEXT_CHANGES if "pooling" not in change]),
        ("hf:vit", IMAGE_CHANGES),
        ("timm:cnn", IMAGE_CHANGES),
    ],
)
def test_every_setting_that_can_change_a_number_has_its_own(home: Path, name: str, changes: list[Any]) -> None:
    family, folder = name.split(":")
    prints = [print_of(f"{family}:{home / folder}", **change) for change in changes]
    assert len(set(prints)) == len(changes)
    assert all(len(found) == FINGERPRINT_LENGTH for found in prints)
    assert prints == [print_of(f"{family}:{home / folder}", **change) for change in changes]


def test_saying_what_is_the_default_changes_nothing(home: Path) -> None:
    assert print_of(f"hf:{home / 'bert'}", pooling="mean", max_length=24) == print_of(f"hf:{home / 'bert'}")
    assert print_of(f"hf:{home / 'vit'}", pooling="cls", image_size=32) == print_of(f"hf:{home / 'vit'}")
    ranged = print_of(f"hf:{home / 'vit'}", value_range=(0.0, 255.0))
    assert print_of(f"hf:{home / 'vit'}", value_range=(0, 255)) == ranged


def preprocessor(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "preprocessor_config.json", **changes)


def pretrained(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        edit_json(folder / "config.json", pretrained_cfg={**config, **changes})

    return change


CROPPED = {
    "image_processor_type": "BitImageProcessor",
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
}


@pytest.mark.parametrize(
    ("write", "family", "change"),
    [
        (image_checkpoint, "hf", preprocessor(size={"height": 48, "width": 48})),
        (image_checkpoint, "hf", preprocessor(**CROPPED, size={"shortest_edge": 40})),
        (image_checkpoint, "hf", preprocessor(image_mean=[0.5, 0.5, 0.4])),
        (image_checkpoint, "hf", preprocessor(image_std=[0.5, 0.5, 0.4])),
        (image_checkpoint, "hf", preprocessor(resample=3)),
        (image_checkpoint, "hf", preprocessor(rescale_factor=1 / 127.5)),
        (image_checkpoint, "hf", preprocessor(do_normalize=False)),
        (image_checkpoint, "hf", lambda folder: edit_json(folder / "config.json", layer_norm_eps=1e-3)),
        (timm_checkpoint, "timm", pretrained(input_size=[3, 96, 96])),
        (timm_checkpoint, "timm", pretrained(crop_pct=0.5)),
        (timm_checkpoint, "timm", pretrained(mean=[0.1, 0.2, 0.3])),
        (timm_checkpoint, "timm", pretrained(std=[0.1, 0.2, 0.3])),
        (timm_checkpoint, "timm", pretrained(interpolation="bilinear")),
        (timm_checkpoint, "timm", pretrained(crop_mode="squash")),
        (text_checkpoint, "hf", lambda folder: edit_json(folder / "tokenizer_config.json", model_max_length=12)),
        (text_checkpoint, "hf", lambda folder: edit_json(folder / "tokenizer.json", truncation=None, added_tokens=[])),
        (text_checkpoint, "hf", lambda folder: edit_json(folder / "config.json", hidden_act="relu")),
        (sentence_checkpoint, "st", lambda folder: edit_json(folder / "sentence_bert_config.json", max_seq_length=9)),
        (sentence_checkpoint, "st", lambda folder: edit_json(folder / "sentence_bert_config.json", do_lower_case=True)),
        (
            sentence_checkpoint, "st",
            lambda folder: edit_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
        ),
        (sentence_checkpoint, "st", lambda folder: write_json(folder / "2_Normalize" / "config.json", {"p": 1})),
    ],
)  # fmt: skip
def test_a_checkpoint_that_works_otherwise_has_another(
    tmp_path: Path, write: Callable[[Path], Path], family: str, change: Callable[[Path], None]
) -> None:
    folder = write(tmp_path / "tiny")
    before = print_of(f"{family}:{folder}")
    change(folder)
    assert print_of(f"{family}:{folder}") != before


@pytest.mark.parametrize(
    ("family", "write"),
    [("hf", text_checkpoint), ("hf", image_checkpoint), ("timm", timm_checkpoint), ("st", sentence_checkpoint)],
)
def test_one_number_in_the_weights_is_enough(tmp_path: Path, family: str, write: Callable[[Path], Path]) -> None:
    folder = write(tmp_path / "tiny")
    before = print_of(f"{family}:{folder}")
    tensors = load_file(folder / "model.safetensors")
    last = next(tensor for name, tensor in sorted(tensors.items()) if tensor.is_floating_point())
    last.view(-1)[-1] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert print_of(f"{family}:{folder}") != before


# ---------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_version": "1.0", "architectures": ["Other"], "_name_or_path": "/somewhere/else"},
        {"torch_dtype": "float16", "id2label": {"0": "x"}, "use_cache": False, "output_attentions": False},
        {"_commit_hash": "abc"},
    ],
)
def test_what_is_only_a_name_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = text_checkpoint(tmp_path / "tiny")
    before = print_of(f"hf:{folder}")
    edit_json(folder / "config.json", **changes)
    assert print_of(f"hf:{folder}") == before


def test_spacing_and_order_of_json_files_change_nothing(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "tiny")
    before = print_of(f"hf:{folder}")
    for path in folder.glob("*.json"):
        document = dict(reversed(json.loads(path.read_text()).items()))
        path.write_text(json.dumps(document, indent=7), encoding="utf-8")
    assert print_of(f"hf:{folder}") == before


def test_folder_commit_revision_and_place_change_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    into_hub(tmp_path, "me/mine", text_checkpoint, "a" * 40)
    into_hub(tmp_path, "me/mine", text_checkpoint, "b" * 40)
    into_hub(tmp_path, "you/yours", text_checkpoint, "c" * 40)
    expected = print_of(f"hf:{home / 'bert'}")
    assert print_of("hf:me/mine", revision="a" * 40) == print_of("hf:me/mine") == print_of("hf:you/yours") == expected
    copied = text_checkpoint(tmp_path / "copied" / "under another name")
    assert print_of(f"hf:{copied}") == expected


@pytest.mark.parametrize("form", ["bin", "pth", "state_dict", "module", "sharded"])
def test_a_converted_file_of_the_same_weights_changes_nothing(home: Path, tmp_path: Path, form: str) -> None:
    source = home / "bert" / "model.safetensors"
    tensors = load_file(source)
    content: dict[str, Any] = {
        "state_dict": {"state_dict": tensors, "epoch": 3, "best": 0.5},
        "module": {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    }.get(form, tensors)
    files = [tmp_path / ("w.bin" if form == "bin" else "w.pth")]
    if form == "sharded":
        names = sorted(tensors)
        files = [tmp_path / f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
        for part, file in enumerate(files):
            save_file({name: tensors[name] for name in names[part::2]}, file)
    else:
        torch.save(content, files[0])
    assert digest_tensors(read_tensors(files)) == digest_tensors(read_tensors([source]))
    if len(files) == 1:
        assert print_of(f"hf:{home / 'bert'}", weights=str(files[0])) == print_of(f"hf:{home / 'bert'}")


def test_a_folder_converted_to_torchs_format_changes_nothing(home: Path, tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert print_of(f"hf:{folder}") == print_of(f"hf:{home / 'bert'}")


def test_the_digest_covers_names_types_shapes_and_bytes() -> None:
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, dtype=torch.int64)}
    variants: list[dict[str, torch.Tensor]] = [
        base,
        {"c": base["a"], "b": base["b"]},
        {"a": base["b"], "b": base["a"]},
        {**base, "a": base["a"].half()},
        {**base, "a": base["a"].bfloat16()},
        {**base, "a": base["a"].view(3, 2)},
        {**base, "a": base["a"].flip(0)},
        {**base, "b": torch.zeros(2, dtype=torch.float64)},
        {**base, "c": torch.zeros(0)},
        {**base, "c": torch.tensor(0.0)},
        {"a": base["a"]},
    ]
    assert len({digest_tensors(tensors) for tensors in variants}) == len(variants)
    strided = torch.arange(12.0).view(2, 6)[:, ::2] / 2
    assert digest_tensors({"b": base["b"], "a": strided}) == digest_tensors(base)


def test_the_digest_of_a_small_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": 1, "a": "é"}', encoding="utf-8")
    (tmp_path / "b.json").write_text('{\n "a": "\\u00e9",\n "b": 1\n}', encoding="utf-8")
    (tmp_path / "c.txt").write_text("one\n", encoding="utf-8")
    (tmp_path / "d.txt").write_text("one \n", encoding="utf-8")
    assert digest_file(tmp_path / "a.json") == digest_file(tmp_path / "b.json")
    assert digest_file(tmp_path / "c.txt") != digest_file(tmp_path / "d.txt")


def test_weights_are_digested_once_in_a_process_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where size and time of change are as they were; a file of this moment is not trusted yet."""
    file, reads = tmp_path / "w.safetensors", []

    def read() -> dict[str, torch.Tensor]:
        reads.append(1)
        return read_tensors([file])

    def write(value: float) -> str:
        save_file({"w": torch.full((4,), value)}, file)
        return digest_tensors({"w": torch.full((4,), value)})

    first, now = write(1.0), time.time_ns
    assert [checkpoints.digest_of_files([file], read) for _ in range(2)] == [first] * 2
    assert len(reads) == 2
    monkeypatch.setattr(checkpoints.time, "time_ns", lambda: now() + 10**10)
    assert [checkpoints.digest_of_files([file], read) for _ in range(3)] == [first] * 3
    assert len(reads) == 3
    before = file.stat()
    second = write(2.0)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert [checkpoints.digest_of_files([file], read) for _ in range(2)] == [second] * 2
    assert len(reads) == 4
    assert checkpoints.digest_of_files([file], lambda: {"other": torch.zeros(1)}, "a part") not in (first, second)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, now = tmp_path / "w.safetensors", time.time_ns
    save_file({"w": torch.zeros(4)}, file)
    monkeypatch.setattr(checkpoints.time, "time_ns", lambda: now() + 10**10)

    def meanwhile() -> dict[str, torch.Tensor]:
        found = {name: one.clone() for name, one in read_tensors([file]).items()}
        save_file({"w": torch.ones(4)}, file)
        return found

    checkpoints.digest_of_files([file], meanwhile)
    found = checkpoints.digest_of_files([file], lambda: read_tensors([file]))
    assert found == digest_tensors({"w": torch.ones(4)})
