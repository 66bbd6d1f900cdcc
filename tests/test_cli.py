"""The command line: exit codes, one-paragraph errors, JSON, and the commands as people type them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli import app
from embedcache.demo.birds import draw_cub

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data/`` in the published CUB layout and ``cache/`` with two backbones' features."""
    folder = tmp_path_factory.mktemp("birds")
    draw_cub(folder / "data", species=4, images_per_species=12)
    arguments = ["--backbone", "demo-image", "--backbone", "demo-text"]
    done = CliRunner().invoke(
        app, ["extract", "--data", str(folder / "data"), "--cache", str(folder / "cache"), *arguments]
    )
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def refused(code: int, *arguments: str | Path) -> str:
    """The one paragraph of an error, by the exit code that is expected."""
    done = call(*arguments)
    assert done.exit_code == code, done.output
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return str(done.stderr)


def test_the_two_commands_work_one_after_the_other_as_typed(work: Path) -> None:
    draw_cub(work / "data", species=3, images_per_species=10)
    done = call("extract", "--backbone", "demo-image")
    assert done.exit_code == 0
    assert "cub · demo-image: extracted" in done.stdout
    small = ["--set", "fixed.max_iter=2", "--set", "cv.folds=2", "--set", "grid.hidden_layer_sizes=[[8]]"]
    done = call("fit-head", "--grid", "mlp.yaml", *small)
    assert done.exit_code == 0, done.output
    assert "8 candidates, 9 fits" in done.stderr
    assert "best of 8 candidates" in done.stdout
    assert (work / "runs" / "latest" / "report.html").is_file()


def test_extracting_again_says_that_all_is_there(birds: Path) -> None:
    done = call("extract", "--dataset", "cub", "--backbone", "demo-image", "--cache", birds / "cache", "--json")
    [found] = json.loads(done.stdout)
    assert (found["action"], found["n_encoded"], found["n_kept"]) == ("reuse", 0, 48)


def test_one_command_compares_image_text_and_both(birds: Path, work: Path) -> None:
    features = ["--features", "demo-image", "--features", "demo-text", "--features", "demo-image,demo-text"]
    done = call("fit-head", *features, "--cache", birds / "cache")
    assert done.exit_code == 0, done.output
    assert "to the best" in done.stdout
    [comparison] = (work / "runs").glob("2*/comparison.json")
    rows = json.loads(comparison.read_text())["rows"]
    assert [row["score"]["value"] for row in rows] == sorted((row["score"]["value"] for row in rows), reverse=True)
    assert {row["label"] for row in rows} == {"demo-image", "demo-text", "demo-image + demo-text"}


def test_a_dry_run_of_a_grid_only_tells(birds: Path, work: Path) -> None:
    done = call("fit-head", "--grid", "mlp.yaml", "--cache", birds / "cache", "--dry-run", "--json")
    [told] = json.loads(done.stdout)
    assert (told["points"], told["fits"]) == (16, 8 * 5 + 1)
    assert not (work / "runs").exists()


@pytest.mark.parametrize(("layer", "dim"), [("-2", 128), ("-2,-1", 256), ("1", 128)])
def test_layers_are_numbers_with_commas_between_them(birds: Path, work: Path, layer: str, dim: int) -> None:
    options = ["--backbone", "demo-text", "--layer", layer, "--pooling", "mean", "--json", "--cache", work / "cache"]
    done = call("extract", "--data", birds / "data", *options)
    assert done.exit_code == 0, done.output
    assert [(one["backbone"], one["dim"]) for one in json.loads(done.stdout)] == [("demo-text", dim)]


def test_missing_features_are_answered_with_the_command_and_extracted_on_request(birds: Path, work: Path) -> None:
    cache = work / "cache"
    call("extract", "--data", birds / "data", "--backbone", "demo-image", "--cache", cache)
    said = refused(2, "fit-head", "--features", "demo-text", "--cache", cache)
    assert "python cli.py extract --dataset cub --backbone demo-text" in said
    done = call("fit-head", "--features", "demo-text", "--cache", cache, "--extract")
    assert done.exit_code == 0, done.output


def test_no_data_says_what_to_do(work: Path) -> None:
    said = refused(2, "extract", "--backbone", "demo-image")
    assert "There is no data folder data" in said
    assert "python cli.py demo" in said
    (work / "data").mkdir()
    assert "No data set was found in data" in refused(2, "extract", "--backbone", "demo-image")


def test_unknown_names_offer_the_nearest(birds: Path, work: Path) -> None:
    cache = birds / "cache"
    data = birds / "data"
    assert "Did you mean 'vit-large'?" in refused(2, "extract", "--data", data, "--backbone", "vit-larg")
    assert "Did you mean 'cub'?" in refused(2, "fit-head", "--dataset", "cup", "--cache", cache)
    assert "Did you mean 'logistic'?" in refused(2, "fit-head", "--head", "logistik", "--cache", cache)
    assert "Did you mean 'accuracy'?" in refused(2, "fit-head", "--set", "score=acuracy", "--cache", cache)
    said = refused(2, "fit-head", "--set", "fixed.alfa=1", "--head", "sklearn-mlp", "--cache", cache)
    assert "Did you mean 'alpha'?" in said


def test_an_unknown_key_in_the_grid_file_is_refused(birds: Path, work: Path) -> None:
    (work / "mine.yaml").write_text("head: logistic\nfetures: [demo-image]\n")
    said = refused(2, "fit-head", "--grid", "mine.yaml", "--cache", birds / "cache")
    assert "mine.yaml: unknown key 'fetures'. Did you mean 'features'?" in said


def test_no_checkpoint_names_it_the_folder_and_the_command(birds: Path, work: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, REPOSITORY / "cli.py", "extract", "--data", birds / "data", "--backbone", "vit-large"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "google/vit-large-patch32-384" in done.stderr
    assert str(work / "hub") in done.stderr
    assert "python cli.py fetch vit-large" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_files_among_good_ones_are_counted(birds: Path, work: Path) -> None:
    draw_cub(work / "data", species=2, images_per_species=8)
    images = sorted((work / "data" / "CUB_200_2011" / "images").rglob("*.jpg"))
    images[0].write_bytes(images[0].read_bytes()[:900])
    images[1].unlink()
    images[2].write_bytes(b"")
    captions = sorted((work / "data" / "text_c10").rglob("*.txt"))
    captions[3].write_text("   \n\n")
    done = call("extract", "--backbone", "demo-image", "--backbone", "demo-text")
    assert done.exit_code == 0
    assert "3 failed" in done.stdout
    assert "note: 1 images without captions" in done.stdout
    done = call("info", "cub", "--failed", "--json")
    reasons = next(iter(json.loads(done.stdout).values()))
    assert sorted(reason.split(":")[0] for reason in reasons.values()) == [
        "it cannot be decoded", "the file is empty", "the file is missing",
    ]  # fmt: skip
    done = call("fit-head", "--features", "demo-image,demo-text")
    assert done.exit_code == 0
    assert "3 samples left out: its image failed in demo-image" in done.stderr
    assert "1 samples left out: no text" in done.stderr


def test_an_empty_text_and_a_missing_label_are_counted(work: Path) -> None:
    rows = "".join(f"a small {colour} bird {row},{colour}\n" for row in range(10) for colour in ("red", "blue"))
    (work / "t.csv").write_text("text,label\n" + rows + ',red\n"a bird",\n')
    done = call(
        "extract",
        "--dataset",
        "table",
        "--data",
        "t.csv",
        "--text",
        "text",
        "--label",
        "label",
        "--backbone",
        "demo-text",
    )
    assert done.exit_code == 0
    assert "1 failed" in done.stdout
    assert "the text is empty" in done.stdout
    done = call("fit-head", "--json")
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)["results"]
    assert found["left_out"] == {"its text failed in demo-text": 1}
    assert sum(found["samples"].values()) == 20


def test_a_label_column_that_is_not_there_is_refused(work: Path) -> None:
    (work / "t.csv").write_text("text,category\na bird,red\n")
    said = refused(2, "extract", "--dataset", "table", "--data", "t.csv", "--text", "text", "--label", "categori",
                   "--backbone", "demo-text")  # fmt: skip
    assert "Did you mean 'category'?" in said


def test_a_cache_of_another_data_set_is_not_mixed(birds: Path, work: Path) -> None:
    cache = work / "cache"
    call("extract", "--data", birds / "data", "--backbone", "demo-image", "--cache", cache)
    Image.new("RGB", (32, 32)).save(work / "a.jpg")
    said = refused(2, "extract", "--dataset", "folder", "--data", work, "--name", "cub", "--backbone", "demo-image",
                   "--cache", cache)  # fmt: skip
    assert "shares no sample" in said


def test_options_of_other_modalities_and_adapters_are_refused(birds: Path, work: Path) -> None:
    common = ("extract", "--dataset", "cub", "--data", birds / "data", "--cache", work / "cache")
    assert "lowercase has no meaning" in refused(2, *common, "--backbone", "demo-image", "--lowercase")
    assert "has no option label" in refused(2, *common, "--backbone", "demo-image", "--label", "x")
    assert "Known: " in refused(2, *common, "--backbone", "demo-image", "--precision", "float8")


def test_housekeeping(birds: Path, work: Path) -> None:
    cache = work / "cache"
    call("extract", "--data", birds / "data", "--backbone", "demo-image", "--backbone", "demo-text", "--cache", cache)
    lines = json.loads(call("ls", "--cache", cache, "--json").stdout)
    assert [(one["name"], one["rows"], one["sealed"]) for one in lines] == [
        ("demo-image", 48, True),
        ("demo-text", 479, True),
    ]
    assert call("verify", "--cache", cache).exit_code == 0
    assert all(len(line) <= 80 for line in call("ls", "--cache", cache).stdout.splitlines())
    done = call("info", "cub", "--cache", cache, "--diff", "demo-image", "demo-text")
    assert "pooling: pre-logits → mean" in done.stdout
    done = call("rm", "cub", "--features", "demo-image", "--cache", cache, "--yes")
    assert done.exit_code == 0
    assert len(list(cache.rglob("*.h5"))) == 1
    [path] = cache.rglob("*.h5")
    with open(path, "r+b") as raw:
        raw.seek(-1, 2)
        raw.write(b"\xff")
    assert call("verify", "--cache", cache).exit_code == 1


def test_an_interrupt_exits_with_130(birds: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import embedcache.extraction

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedcache.extraction, "extract", interrupted)
    done = call("extract", "--data", birds / "data", "--backbone", "demo-image")
    assert done.exit_code == 130
    assert "What was committed is kept" in done.stderr


def test_the_cache_is_the_same_through_python(birds: Path) -> None:
    import h5py
    import numpy as np

    import embedcache as ec

    dataset = ec.open(birds / "cache")["cub"]
    features = dataset.features("demo-image")
    with h5py.File(dataset.find("demo-image").path, "r") as file:
        rows = dict(zip(file["ids"].asstr()[...], file["features"][...], strict=True))
    expected = np.stack([rows[path] for path in dataset.samples["image"]])
    assert np.array_equal(features.matrix(), expected)
    x, y = features.split("train")
    assert len(x) == len(y) == 24
