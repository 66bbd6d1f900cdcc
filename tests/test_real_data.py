"""The whole path on real photos, real texts and real weights, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import app

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not beside this checkout")


def call(*arguments: str | Path) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def accuracy(cache: Path, *arguments: str) -> float:
    done = call("fit-head", "--head", "logistic", "--cache", cache, "--out", cache.parent / "runs", *arguments)
    return float(done["results"][0]["scores"]["test"]["accuracy"]["value"])


@pytest.mark.parametrize("family", ["timm", "hf"])
def test_clothing_photos_to_a_fitted_head(tmp_path: Path, family: str) -> None:
    backbone = {
        "timm": ["timm:mobilenetv2_100", "--weights", SHARED / "weights" / "timm_mobilenetv2_100.safetensors"],
        "hf": [f"hf:{SHARED / 'weights' / 'hf_mobilenet_v2'}"],
    }[family]
    cache = tmp_path / "cache"
    common = ("--dataset", "folder", "--data", SHARED / "clothing", "--cache", cache, "--backbone", *backbone)
    [done] = call("extract", *common)
    assert (done["n_encoded"], done["n_failed"], done["dim"]) == (600, 0, 1280)
    assert accuracy(cache) >= 0.80
    [again] = call("extract", *common)
    assert (again["action"], again["n_encoded"]) == ("reuse", 0)


def test_bank_questions_to_a_fitted_head(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    columns = ("--text", "text", "--label", "category", "--name", "bank")
    backbone = ("--backbone", f"hf:{SHARED / 'weights' / 'hf_stories260k'}", "--pooling", "mean")
    [done] = call(
        "extract", "--dataset", "table", "--data", SHARED / "banking77", "--cache", cache, *columns, *backbone
    )
    assert (done["n_samples"], done["n_failed"], done["dim"]) == (13083, 0, 64)
    assert accuracy(cache, "--dataset", "bank") > 0.60
