"""Keep and use a head: lists of new items, ONNX, size, going on with training, several seeds, other fingerprints."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import embedcache as ec
from cli import app
from embedcache.demo.birds import draw_cub
from embedcache.errors import DamagedFileError, DataNotFoundError, UnknownNameError, UsageError
from heads import continuing, item_files, onnx_export, sizes
from heads import predict as predicting
from heads.config import parse
from heads.fit import continued, fit
from heads.folded import folded
from heads.item_files import ItemColumns, ItemFile
from heads.predict import ItemPredictor, predict_dataset
from heads.record import read_metrics, write
from heads.repeats import gathered
from heads.saved import FittedHead
from heads.task import Task
from heads.training_state import TRAINING
from tests.heads_helpers import add_features, captioned, described, fitted, image_name, prepared, separable, tagged
from tests.test_heads_classic import worded

REPOSITORY = Path(__file__).parents[1]
MLP: dict[str, Any] = {
    "head": "mlp",
    "fixed": {"hidden_layer_sizes": [8], "epochs": 6, "batch_size": 16, "learning_rate": 0.02},
}


def call(*arguments: str | Path, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done


def recorded(cache: Path, out: Path, **document: Any) -> Path:
    """A run's folder from the keys of a grid file."""
    task = prepared(cache, **document)
    folder, _ = write(task, fit(task), out)
    return folder


# --------------------------------------------------------------------------------------------- new photos and texts


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn birds; half of them extracted, with an mlp on first captions and photos in ``runs/``."""
    folder = tmp_path_factory.mktemp("birds")
    draw_cub(folder / "data", species=3, images_per_species=8)
    cache = ("--cache", folder / "cache")
    call("extract", "--data", folder / "data", "--backbone", "demo-image", "--backbone", "demo-text", *cache)
    fixed = ("--set", "fixed.epochs=5", "--set", "fixed.hidden_layer_sizes=[16]", "--set", "select.captions=first")
    features = ("--features", "demo-image,demo-text")
    call("fit-head", "--head", "mlp", *features, *fixed, *cache, "--out", folder / "runs")
    return folder


@pytest.fixture
def head(birds: Path) -> FittedHead:
    return FittedHead.load(birds / "runs" / "latest" / "head")


def listed(birds: Path, path: Path, rows: int = 6) -> list[dict[str, Any]]:
    """A CSV of test photos with their first captions at ``path``; what the run recorded of them."""
    found = pq.read_table(birds / "runs" / "latest" / "predictions.parquet").to_pylist()
    found = [row for row in found if row["split"] == "test"][:rows]
    samples = ec.open(birds / "cache")["cub"].samples.set_index("id")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "photo", "caption"])
        for row in found:
            image = samples.loc[row["id"], "image"]
            captions = (birds / "data" / "text_c10" / image).with_suffix(".txt").read_text().splitlines()
            writer.writerow([row["id"], f"CUB_200_2011/images/{image}", captions[0]])
    return found


COLUMNS = ("--image-column", "photo", "--text-column", "caption", "--id-column", "name")


def test_a_list_of_photos_and_texts_gets_what_extraction_and_fit_gave_them(birds: Path, tmp_path: Path) -> None:
    expected = listed(birds, tmp_path / "items.csv")
    run = ("predict", "--run", birds / "runs" / "latest", "--csv", tmp_path / "items.csv", *COLUMNS)
    table = tmp_path / "out.csv"
    done = call(*run, "--images", birds / "data", "--table", table)
    assert "6 rows in" in done.stderr
    rows = list(csv.DictReader(table.open()))
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    assert [row["label"] for row in rows] == [row["predicted"] for row in expected]
    for row, truth in zip(rows, expected, strict=True):
        best = float(row[f"probability.{row['label']}"])
        assert best == pytest.approx(truth["top_probabilities"][0], abs=1e-4)
    lines = tmp_path / "out.jsonl"
    call(*run, "--images", birds / "data", "--table", lines)
    again = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(one["id"], one["label"]) for one in again] == [(row["id"], row["label"]) for row in rows]
    shown = json.loads(call(*run, "--images", birds / "data", "--json").stdout)["predictions"]
    assert [one["label"] for one in shown] == [row["label"] for row in rows]


def test_wrong_items_and_names_are_refused_before_an_encoder_is_loaded(
    birds: Path, head: FittedHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("an encoder was loaded")

    listed(birds, tmp_path / "items.csv")
    monkeypatch.setattr(predicting, "_opened", loaded)
    run = ("predict", "--run", birds / "runs" / "latest")
    wrong = call(*run, "--csv", tmp_path / "items.csv", "--image-column", "foto", "--text-column", "caption", code=2)
    assert "Unknown image column" in wrong.stderr
    gone = call(*run, "--image", tmp_path / "gone.jpg", "--text", "a bird", code=1)
    assert f"{tmp_path / 'gone.jpg'}: the file is missing" in gone.stderr
    other = call(*run, "--csv", tmp_path / "items.csv", *COLUMNS, "--checkpoint", "demo-imag=.", code=2)
    assert "Unknown feature set in --checkpoint: 'demo-imag'. Did you mean 'demo-image'?" in other.stderr
    with pytest.raises(UnknownNameError, match="demo-imag"):
        ItemPredictor(head, checkpoints={"demo-imag": "."})
    sized = call("info", "--run", birds / "runs" / "latest", "--checkpoint", "demo-imag=.", code=2)
    assert "Did you mean 'demo-image'?" in sized.stderr


def test_a_blank_text_is_named_by_its_number(tmp_path: Path) -> None:
    worded(tmp_path)
    (run,) = fitted(tmp_path, head="tfidf")
    found = predicting.predict_items(run.head, texts=["a good text", " "])
    assert found.failures == {"text 2": "the text is empty"}


def test_a_list_of_texts_is_predicted_by_a_head_that_reads_them(tmp_path: Path) -> None:
    worded(tmp_path)
    (run,) = fitted(tmp_path, head="tfidf")
    path = tmp_path / "texts.csv"
    path.write_text("id,text\na,one text\nb,\n", encoding="utf-8")
    [found] = item_files.predict_rows(ItemPredictor(run.head), ItemFile(path).rows(run.head.modalities))
    assert (found.ids, found.failures) == (("a",), {"b": "the text is empty"})


def test_why_a_size_is_not_known_stands_below_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    separable(tmp_path / "cache")
    folder = recorded(tmp_path / "cache", tmp_path / "runs")
    monkeypatch.setenv("COLUMNS", "80")
    lines = call("info", "--run", folder).stdout.splitlines()
    assert lines[2].split() == ["my-image", "not", "known"]
    assert lines[4].startswith("all that is known")
    assert lines[5].startswith("my-image: ")


def test_a_photo_and_a_caption_that_no_cache_has_seen_equal_extract_and_predict(birds: Path, tmp_path: Path) -> None:
    """The same new birds, once through ``predict --csv``, once extracted into a cache and predicted from there."""
    draw_cub(tmp_path / "new", species=3, images_per_species=2, seed=9)
    cache = ("--cache", tmp_path / "cache")
    call("extract", "--data", tmp_path / "new", "--backbone", "demo-image", "--backbone", "demo-text", *cache)
    head = FittedHead.load(birds / "runs" / "latest" / "head")
    through_cache = predict_dataset(head, ec.open(tmp_path / "cache")["cub"])
    samples = ec.open(tmp_path / "cache")["cub"].samples.set_index("id")
    images = [tmp_path / "new" / "CUB_200_2011" / "images" / samples.loc[one, "image"] for one in through_cache.ids]
    captions = [
        (tmp_path / "new" / "text_c10" / samples.loc[one, "image"]).with_suffix(".txt").read_text().splitlines()[0]
        for one in through_cache.ids
    ]
    found = ItemPredictor(head).predict(images, captions, through_cache.ids)
    assert found.ids == through_cache.ids
    np.testing.assert_allclose(found.probabilities, through_cache.probabilities, atol=1e-4)


def test_rows_go_through_in_batches_and_bad_ones_are_named(
    birds: Path, head: FittedHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(birds, tmp_path / "items.csv", rows=5)
    with open(tmp_path / "items.csv", "a", encoding="utf-8") as file:
        file.write("lost,nowhere.jpg,a bird\nmute,,a bird\n")
    file = ItemFile(tmp_path / "items.csv", ItemColumns("photo", "caption", "name"), birds / "data")
    assert file.count() == 7
    monkeypatch.setattr(item_files, "BATCH", 3)
    parts = list(item_files.predict_rows(ItemPredictor(head), file.rows()))
    assert [len(one.ids) + len(one.failures) for one in parts] == [3, 3, 1]
    failures: dict[str, str] = {}
    for one in parts:
        failures |= one.failures
    assert failures == {"lost": "the file is missing", "mute": "it has no image"}


def test_a_list_that_cannot_be_read_says_where(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"

    def rows(content: str, needed: str = "text", **columns: str) -> list[Any]:
        path.write_text(content)
        return list(ItemFile(path, ItemColumns(**columns)).rows([needed]))

    assert [(one.id, one.text) for one in rows('text\n"a,\nb"\n\nc\n')] == [("1", "a,\nb"), ("2", "c")]
    assert [one.id for one in rows("id,text\nx,a\n,b\n")] == ["x", "2"]
    with pytest.raises(UsageError, match="line 3: 1 cells where the first row names 2"):
        rows("id,text\nx,a\ny\n")
    with pytest.raises(UnknownNameError, match=r"text column in .*'text'.*--text-column"):
        rows("id,caption\nx,a\n")
    with pytest.raises(UnknownNameError, match="Did you mean 'caption'"):
        rows("id,caption\nx,a\n", text="capton")
    with pytest.raises(UsageError, match="takes no images"):
        rows("text,image\na,b\n", image="image")
    with pytest.raises(UsageError, match="line 2, cannot be read"):
        rows('text\n"a"b\n')
    with pytest.raises(UsageError, match="is empty"):
        rows("")
    (tmp_path / "items.jsonl").write_text('{"text": "a", "id": 7}\n\n[]\n')
    lines = ItemFile(tmp_path / "items.jsonl").rows(["text"])
    assert next(lines).id == "7"
    with pytest.raises(UsageError, match="line 3, holds a list"):
        next(lines)
    with pytest.raises(UsageError, match="no list of items"):
        ItemFile(Path(__file__))
    with pytest.raises(DataNotFoundError, match="no file"):
        ItemFile(tmp_path / "none.csv")


def test_what_is_to_be_labelled_is_one_thing(birds: Path) -> None:
    run = ("predict", "--run", birds / "runs" / "latest")
    assert "what is to be labelled" in call(*run, "--csv", "a.csv", "--text", "a bird", code=2).stderr
    assert "are of a file" in call(*run, "--text", "a bird", "--image-column", "x", code=2).stderr


# ------------------------------------------------------------------------------------------------------- fingerprints


def test_features_of_another_fingerprint_are_refused_for_a_torch_head_too(tmp_path: Path) -> None:
    folder = separable(tmp_path / "cache")
    run = recorded(tmp_path / "cache", tmp_path / "runs", **MLP)
    head = FittedHead.load(run / "head")
    own = head.features[0].fingerprint
    for path in folder.feature_paths():
        path.unlink()
    add_features(folder, "image", {image_name(row): [float(row)] * 4 for row in range(60)}, weights="b")
    features = ec.open(tmp_path / "cache")["tiny"].features("my-image")
    given = features.sets[0].file.fingerprint
    with pytest.raises(UsageError, match=f"fitted on my-image@{own} and is given my-image@{given}"):
        head.check(features)
    said = call("predict", "--run", run, "--dataset", "tiny", "--cache", tmp_path / "cache", code=2).stderr
    assert own in said
    assert given in said
    with pytest.raises(UsageError, match=f"{own}.*{given}|no features of my-image@{own}"):
        continuing.go_on(run, 1, tmp_path / "cache")


def test_predict_refuses_another_encoder_with_both_fingerprints(head: FittedHead) -> None:
    image, text = head.features
    other = replace(head, features=(image, replace(text, settings={"lowercase": True})))
    with pytest.raises(UsageError, match=rf"demo-text@{text.fingerprint}; .* make demo-text@(?!{text.fingerprint})"):
        ItemPredictor(other)


PROBE = """
import sys
from pathlib import Path
import numpy as np
from heads.saved import FittedHead
np.save(sys.argv[3], FittedHead.load(Path(sys.argv[1])).predict_proba(np.load(sys.argv[2])))
"""


def test_a_torch_head_gives_identical_numbers_in_a_fresh_process(tmp_path: Path) -> None:
    separable(tmp_path / "cache", noise=2.0)
    [run] = fitted(tmp_path / "cache", **MLP)
    run.head.save(tmp_path / "head")
    x = run.features.matrix(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = [str(tmp_path / name) for name in ("head", "x.npy", "p.npy")]
    subprocess.run([sys.executable, "-c", PROBE, *arguments], check=True, cwd=REPOSITORY)
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), run.head.predict_proba(x))


# ---------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize(
    "fixed",
    [{}, {"optimizer": "sgd"}, {"early_stopping": True, "patience": 50}, {"schedule": "one-cycle"}],
    ids=["adam", "sgd", "early stopping", "one-cycle"],
)
def test_training_goes_on_from_disk_as_it_would_in_memory(tmp_path: Path, fixed: Mapping[str, Any]) -> None:
    cache = tmp_path / "cache"
    separable(cache, noise=2.0)
    document = {**MLP, "fixed": {**MLP["fixed"], **fixed}}
    task = prepared(cache, **document)
    [run] = fit(task)
    folder, _ = write(task, [run], tmp_path / "runs")
    again, more = continuing.go_on(folder, 3, cache)
    assert [line["epoch"] for line in more.head.estimator[-1].history_] == list(range(1, 10))
    assert again.config.fixed["epochs"] == 9
    assert any(note.startswith(f"goes on from {folder.name} after 6 epochs") for note in more.notes)

    in_memory = continued(task, run.head, 3)
    x = run.features.matrix(np.float32)
    np.testing.assert_array_equal(more.head.predict_proba(x), in_memory.head.predict_proba(x))
    assert more.scored["test"].scores == in_memory.scored["test"].scores


def test_a_run_that_stopped_early_says_so_and_waits_anew_when_it_goes_on(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    separable(cache, noise=3.0)
    fixed = {**MLP["fixed"], "epochs": 60, "early_stopping": True, "patience": 4}
    first = recorded(cache, out, **{**MLP, "fixed": fixed})
    before = read_metrics(first)
    epochs, kept = before["training"]["epochs"], before["training"]["kept"]
    assert kept == epochs - 4 < 56
    said = f"stopped after {epochs} of 60 epochs, weights of epoch {kept}"
    assert said in before["notes"]
    done = call("fit-head", "--continue", "latest", "--epochs", "9", "--cache", cache, "--out", out)
    after = read_metrics(out / "latest")
    assert after["training"]["asked"] == epochs + 9
    assert after["training"]["epochs"] >= epochs + 4
    assert any(note.startswith(f"goes on from {first.name} after {epochs} epochs") for note in after["notes"])
    ended = next(note for note in after["notes"] if f"{after['training']['epochs']} of {epochs + 9} epochs" in note)
    assert ended.endswith(f"weights of epoch {after['training']['kept']}")
    assert ended in done.stdout.replace("\n      ", " ")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands before the bars of epochs, and their last numbers, as they are shown."""
    import tqdm

    seen: list[str] = []

    class Bar(tqdm.tqdm):
        def close(self) -> None:
            if not self.disable and self.unit == " epochs":
                seen.append(f"{self.desc} {self.n}/{self.total} {self.postfix}")
            super().close()

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    return seen


def test_a_single_fit_shows_its_epochs_and_says_what_an_interrupt_leaves(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    separable(tmp_path / "cache")
    where = ("--cache", tmp_path / "cache", "--out", tmp_path / "runs")
    few = ("--set", "fixed.epochs=3", "--set", "fixed.hidden_layer_sizes=[4]")
    call("fit-head", "--head", "mlp", *few, "--set", "seeds=2", *where)
    assert [one.partition(" loss")[0] for one in told] == ["mlp 3/3", "seed 1, mlp 3/3"]
    call("fit-head", "--continue", "latest", "--epochs", "2", *where)
    assert told[2].startswith("mlp 2/2 loss ")
    call("fit-head", "--head", "mlp", *few, "--json", *where)
    call("fit-head", "--head", "logistic", *where)
    assert len(told) == 3
    call("fit-head", "--head", "mlp", "--head", "logistic", *few, *where)
    assert told[3].startswith("mlp 3/3")

    monkeypatch.setattr("heads.torch_mlp.MLPHead.fit", interrupted_fit)
    begun = ("fit-head", "--head", "mlp", *few, *where)
    assert "Nothing of this fit is kept" in call(*begun, code=130).stderr
    searched = call(*begun, "--set", "grid={dropout: [0.0, 0.1]}", "--set", "jobs=1", code=130).stderr
    assert "Finished fits of the search are kept" in searched
    assert "What was committed" not in searched
    assert "stay recorded below" in call(*begun, "--head", "logistic", code=130).stderr


def interrupted_fit(self: Any, *_: Any, on_epoch: Any = None, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_of_several_seeds_says_which_one_goes_on(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    folder = recorded(tmp_path / "cache", tmp_path / "runs", **MLP, seeds=2, seed=3)
    _, more = continuing.go_on(folder, 1, tmp_path / "cache")
    note = f"goes on from {folder.name} after 6 epochs, with the head of seed 3 alone, one of 2"
    assert note in more.notes


def test_a_run_that_goes_on_is_a_run_of_its_own(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    separable(cache, noise=2.0)
    first = recorded(cache, out, **MLP, grid={"activation": ["relu", "tanh"]}, cv={"folds": 2})
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    where = ("--cache", cache, "--out", out)
    done = json.loads(call("fit-head", "--continue", first.name, "--epochs", "4", *where, "--json").stdout)
    second = Path(done["run"])
    assert second != first
    history = list(csv.DictReader((second / "history.csv").open()))
    assert [int(row["epoch"]) for row in history] == list(range(1, 11))
    old = list(csv.DictReader((first / "history.csv").open()))
    assert history[:6] == old
    assert read_metrics(second)["parameters"]["activation"] == read_metrics(first)["parameters"]["activation"]
    assert {path: path.read_bytes() for path in before} == before
    call("fit-head", "--continue", second.name, "--epochs", "1", *where)
    (second / TRAINING).unlink()
    done = json.loads(call("fit-head", "--continue", second.name, "--epochs", "1", *where, "--json").stdout)
    assert any("fresh optimiser" in note for note in done["results"][0]["notes"])
    (first / TRAINING).write_bytes(b"damaged")
    with pytest.raises(DamagedFileError, match="no state of a training"):
        continuing.go_on(first, 1, cache)


def test_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    separable(cache)
    plain = recorded(cache, out)
    with pytest.raises(UsageError, match="'logistic'.*not trained by epochs"):
        continuing.go_on(plain, 3, cache)
    run = recorded(cache, out, **MLP)
    with pytest.raises(UsageError, match="must be positive"):
        continuing.go_on(run, 0, cache)
    separable(cache, n=63)
    with pytest.raises(UsageError, match=r"fitted and scored on .*fit a head on these samples"):
        continuing.go_on(run, 3, cache)
    where = ("--cache", cache, "--out", out)
    assert "belong together" in call("fit-head", "--continue", run, *where, code=2).stderr
    assert "takes everything from the run" in call(
        "fit-head", "--continue", run, "--epochs", "2", "--head", "mlp", *where, code=2
    ).stderr  # fmt: skip


# ------------------------------------------------------------------------------------------------------ seeds


def test_seeds_give_mean_and_deviation_and_keep_the_first_head(tmp_path: Path) -> None:
    separable(tmp_path / "cache", noise=4.0)
    [run] = fitted(tmp_path / "cache", **MLP, seeds=3, seed=5)
    singles = [fitted(tmp_path / "cache", **{**MLP, "fixed": MLP["fixed"]}, seed=5)[0]]
    task = prepared(tmp_path / "cache", **MLP, seed=5)
    for seed in (6, 7):
        singles += fit(replace(task, config=task.config.model_copy(update={"seed": seed})))
    assert run.repeats is not None
    assert run.repeats.seeds == (5, 6, 7)
    values = [one.scored["test"].scores["log_loss"].value for one in singles]
    spread = run.repeats.scores["test"]["log_loss"]
    assert spread.values == pytest.approx(values)
    assert len(set(values)) == 3
    assert (spread.mean, spread.deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    x = run.features.matrix(np.float32)
    np.testing.assert_array_equal(run.head.predict_proba(x), singles[0].head.predict_proba(x))


def test_seeds_are_printed_and_stand_in_metrics_and_report(tmp_path: Path) -> None:
    separable(tmp_path / "cache", noise=4.0)
    where = ("--cache", tmp_path / "cache", "--out", tmp_path / "runs")
    small = [f"--set=fixed.{name}={value}" for name, value in MLP["fixed"].items()]
    done = call("fit-head", "--head", "mlp", *small, "--set", "seeds=2", *where)
    assert "numbers): 2 fits, at most" in done.stderr
    assert "±" in done.stdout
    assert "the head that is kept is that of seed 0" in " ".join(done.stdout.split())
    document = read_metrics(tmp_path / "runs" / "latest")["repeats"]
    assert (document["seeds"], document["kept"]) == ([0, 1], 0)
    assert set(document["scores"]["test"]["accuracy"]) == {"mean", "deviation", "values"}
    page = (tmp_path / "runs" / "latest" / "report.html").read_text()
    assert "mean ± deviation" in page


def test_a_spread_is_shown_as_people_write_it() -> None:
    found = gathered(
        (0, 1), [{"test": {"accuracy": 0.8, "log_loss": 0.5}}, {"test": {"accuracy": 0.9, "log_loss": 0.5}}]
    )
    assert found.scores["test"]["accuracy"].shown("accuracy") == "85.0 ± 7.1 %"
    assert found.scores["test"]["log_loss"].shown("log_loss") == "0.500 ± 0.000"
    with pytest.raises(UsageError, match="seeds"):
        parse({"seeds": 0})


# ------------------------------------------------------------------------------------------------------- size


def test_a_size_is_read_as_people_write_it() -> None:
    assert [sizes.parse_size(text) for text in ("100MB", "1.5 kB", "64MiB", "5000")] == [10**8, 1500, 64 << 20, 5000]
    for text in ("", "MB", "100 MX", "-3MB"):
        with pytest.raises(UsageError, match="A size is written"):
            sizes.parse_size(text)


def test_the_size_of_a_run_is_that_of_its_files(birds: Path, head: FittedHead) -> None:
    parts = {part.what: part.nbytes for part in sizes.of_run(birds / "runs" / "latest")}
    shipped = REPOSITORY / "embedcache" / "demo" / "backbones"
    weights = sorted(path.stat().st_size for path in shipped.rglob("*.safetensors"))
    assert sorted([parts["demo-image, weights"], parts["demo-text, weights"]]) == weights  # type: ignore[type-var]
    assert parts["head"] == sum(path.stat().st_size for path in (birds / "runs" / "latest" / "head").iterdir())
    done = call("info", "--run", birds / "runs" / "latest", "--json")
    assert json.loads(done.stdout)["bytes"] == sum(size or 0 for size in parts.values())
    assert "demo-text, tokenizer" in call("info", "--run", "latest", "--out", birds / "runs").stdout
    assert "Name a data set, or a run" in call("info", code=2).stderr


def test_a_head_that_is_too_large_is_refused_before_it_is_fitted(birds: Path, tmp_path: Path) -> None:
    where = ("--cache", birds / "cache", "--out", tmp_path / "runs")
    features = ("--features", "demo-text")
    small = call("fit-head", *features, *where, "--max-size", "100MB")
    assert "of 100.0 MB" in small.stderr
    said = call("fit-head", *features, *where, "--max-size", "20kB", code=2).stderr
    assert "more than --max-size 20.0 kB: demo-text, weights: " in said
    assert "demo-text, tokenizer: " in said
    wide = ("--head", "mlp", "--set", "fixed.hidden_layer_sizes=[100000]")
    said = call("fit-head", *features, *where, *wide, "--max-size", "50MB", code=2).stderr
    assert "head, about: 5" in said
    assert len(list((tmp_path / "runs").glob("2*"))) == 1


SIZED: list[dict[str, Any]] = [
    {"head": "logistic"},
    {"head": "logistic", "grid": {"C": [0.1, 1.0]}, "transform": [{"pca": 20}]},
    {"head": "logistic", "transform": ["l2", {"pca": 0.9}]},
    {"head": "ridge"},
    {"head": "svm"},
    {"head": "knn"},
    {"head": "sklearn-mlp", "fixed": {"hidden_layer_sizes": [200], "max_iter": 3}},
    {"head": "mlp", "fixed": {"epochs": 1}, "grid": {"hidden_layer_sizes": [[300, 200], [50]]}},
]


def near(task: Task, folder: Path) -> None:
    """Every head is estimated within a tenth of what is measured of its folder afterwards, or 3 kB."""
    for run, features in zip(fit(task), task.sets, strict=True):
        run.head.save(folder / "head")
        measured = sizes.of_run(folder)[-1].nbytes
        assert measured == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        largest = sizes.estimated(task, features)
        if not task.config.searches:
            assert largest == pytest.approx(measured, rel=0.1, abs=3000), run.label
        assert largest > 0.9 * measured - 3000
        shutil.rmtree(folder)


@pytest.mark.parametrize("document", SIZED, ids=str)
def test_the_estimate_of_a_head_is_near_what_it_takes(tmp_path: Path, document: dict[str, Any]) -> None:
    separable(tmp_path / "cache", dim=64, n=900, noise=1.0)
    near(prepared(tmp_path / "cache", **document), tmp_path / "run")


@pytest.mark.parametrize(
    "document",
    [
        {"head": "logistic"},
        {"head": "logistic", "chain": True},
        {"head": "ridge", "fixed": {"class_weight": "balanced"}},
        {"head": "knn", "oversample": 4},
        {"features": "my-image,my-text", "fusion": "late"},
        {"features": "my-image,my-text", "fusion": "union", "head": "knn"},
        {"features": "my-image,my-text", "fusion": "product"},
        {"features": [["my-image"], ["my-text"]], "head": "svm"},
    ],
    ids=str,
)
def test_of_several_labels_and_of_fusions_too(tmp_path: Path, document: dict[str, Any]) -> None:
    tagged(tmp_path / "cache", n=480)
    near(prepared(tmp_path / "cache", **document), tmp_path / "run")


@pytest.mark.parametrize(
    "document",
    [
        {"head": "cnn", "fixed": {"filters": 20, "epochs": 1}, "features": "words,my-image"},
        {"head": "lstm", "fixed": {"hidden_size": 30, "epochs": 1}, "features": "words"},
        {"head": "tfidf", "fixed": {"ngram_range": [1, 2]}},
    ],
    ids=str,
)
def test_of_heads_of_words_too(tmp_path: Path, document: dict[str, Any]) -> None:
    described(tmp_path / "cache", n=480)
    near(prepared(tmp_path / "cache", **document), tmp_path / "run")


def test_of_many_texts_the_words_are_bounded_from_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_TEXTS", 64)
    described(tmp_path / "cache", n=1200)
    task = prepared(tmp_path / "cache", head="tfidf", fixed={"ngram_range": [1, 3]})
    [run] = fit(task)
    run.head.save(tmp_path / "run" / "head")
    measured = sizes.of_run(tmp_path / "run")[-1].nbytes
    assert measured is not None
    assert measured < sizes.estimated(task, task.sets[0]) < 20 * measured


def test_an_encoder_whose_files_are_not_here_cannot_be_held_to_a_size(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    where = ("--cache", tmp_path / "cache", "--out", tmp_path / "runs")
    said = call("fit-head", *where, "--max-size", "1GB", code=2).stderr
    assert "is not known, so --max-size 1.0 GB cannot be held" in said


def test_a_model_with_two_towers_counts_once(home: Path) -> None:
    from heads.saved import FeatureBinding

    one = FeatureBinding("first", "text", 4, "x", "hf:bert")
    parts = sizes.of_encoders(
        [one, replace(one, name="second")], dict.fromkeys(("first", "second"), str(home / "bert"))
    )
    assert [part.what for part in parts] == [
        "first, weights",
        "first, tokenizer",
        "second, weights",
        "second, tokenizer",
    ]
    assert [part.nbytes for part in parts[2:]] == [0, 0]
    assert parts[0].nbytes == (home / "bert" / "model.safetensors").stat().st_size


# ------------------------------------------------------------------------------------------------------- ONNX


TRANSFORMS: list[Any] = [
    [],
    ["standardize"],
    ["l2", "standardize", {"pca": 3}],
    {"my-image": ["standardize"], "my-text": ["l2"]},
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("fixed", [{"activation": "gelu", "batch_norm": True, "dropout": 0.1}, {"standardize": True}])
def test_transforms_and_network_are_one_module_with_the_same_numbers(
    tmp_path: Path, transform: Any, fixed: Mapping[str, Any]
) -> None:
    import torch

    captioned(tmp_path)
    document = {**MLP, "fixed": {**MLP["fixed"], **fixed}, "features": "my-image,my-text", "transform": transform}
    [run] = fitted(tmp_path, **document)
    run.head.save(tmp_path / "head")
    head = FittedHead.load(tmp_path / "head")
    x = run.features.matrix(np.float32)
    with torch.inference_mode():
        found = folded(head)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, head.predict_proba(x), atol=2e-6)


def test_several_labels_and_classes_that_training_lacked_are_folded_too(tmp_path: Path) -> None:
    import torch

    tagged(tmp_path / "several")
    [run] = fitted(tmp_path / "several", **MLP)
    x = run.features.matrix(np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(folded(run.head)(torch.from_numpy(x.copy())), run.head.predict_proba(x), atol=2e-6)
    labels = ["finch" if row % 2 else "heron" for row in range(59)] + ["plover"]
    separable(tmp_path / "lacking", labels=labels, split=["train"] * 50 + ["test"] * 10)
    [run] = fitted(tmp_path / "lacking", **MLP)
    x = run.features.matrix(np.float32)
    with torch.inference_mode():
        found = folded(run.head)(torch.from_numpy(x.copy())).numpy()
    assert found.shape == (60, 3)
    np.testing.assert_allclose(found, run.head.predict_proba(x), atol=2e-6)
    [logistic] = fitted(tmp_path / "lacking")
    with pytest.raises(UsageError, match="only 'mlp' can be exported"):
        folded(logistic.head)
    captioned(tmp_path / "late")
    late = fitted(tmp_path / "late", **MLP, features="my-image,my-text", fusion="late")[-1]
    with pytest.raises(UsageError, match="answers of several heads are fused"):
        folded(late.head)


def test_without_onnx_it_is_said_what_to_install(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    arguments = ("export-head", "--run", birds / "runs" / "latest", "--to", tmp_path / "head.onnx")
    assert "pip install embedcache[onnx]" in call(*arguments, code=2).stderr
    assert "ending .onnx" in call(*arguments[:-1], tmp_path / "head.bin", code=2).stderr
    assert not list(tmp_path.iterdir())


def test_a_split_is_predicted_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioned(tmp_path)
    [run] = fitted(tmp_path, features="my-image,my-text", select={"captions": "each"})
    dataset = ec.open(tmp_path)["tiny"]
    whole = predict_dataset(run.head, dataset, "test")
    monkeypatch.setattr(predicting, "AT_ONCE", 5)
    parts = predict_dataset(run.head, dataset, "test")
    assert parts.ids == whole.ids
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=1e-12)


@pytest.fixture
def onnx() -> Any:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    return pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")


BOTH = "my-image,my-text"
EXPORTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"activation": "relu"}, {"features": "my-image", "transform": []}),
    ({"activation": "tanh", "standardize": True}, {"features": "my-image", "transform": ["l2"]}),
    ({"activation": "gelu", "batch_norm": True, "dropout": 0.1}, {"features": BOTH, "transform": TRANSFORMS[2]}),
    ({"activation": "identity", "batch_norm": True}, {"features": BOTH, "transform": TRANSFORMS[3]}),
    ({"activation": "relu", "standardize": True}, {"features": BOTH, "transform": ["standardize"]}),
    ({"activation": "tanh"}, {"features": BOTH, "fusion": {"kind": "product", "l2": True, "baselines": False}}),
]


@pytest.mark.parametrize(("fixed", "document"), EXPORTED, ids=str)
def test_the_exported_file_gives_the_heads_numbers(
    tmp_path: Path, onnx: Any, fixed: Mapping[str, Any], document: Mapping[str, Any]
) -> None:
    captioned(tmp_path)
    [run] = fitted(tmp_path, head="mlp", fixed={**MLP["fixed"], **fixed}, **document)
    check_exported(run.head, run.features.matrix(np.float32), tmp_path / "head.onnx")
    model = onnx.load(str(tmp_path / "head.onnx"))
    assert [(one.domain, one.version) for one in model.opset_import] == [("", onnx_export.OPSET)]
    [width] = [one.type.tensor_type.shape.dim for one in model.graph.input]
    assert (width[0].dim_param, width[1].dim_value) == ("n", sum(one.dim for one in run.head.features))
    assert not any(node.op_type == "Dropout" for node in model.graph.node)


def test_several_labels_and_classes_that_training_lacked_are_exported_too(tmp_path: Path, onnx: Any) -> None:
    tagged(tmp_path / "several")
    labels = ["finch" if row % 2 else "heron" for row in range(59)] + ["plover"]
    separable(tmp_path / "lacking", labels=labels, split=["train"] * 50 + ["test"] * 10)
    for name in ("several", "lacking"):
        [run] = fitted(tmp_path / name, **MLP)
        check_exported(run.head, run.features.matrix(np.float32), tmp_path / f"{name}.onnx")


def check_exported(head: FittedHead, x: np.ndarray, path: Path) -> None:
    """The file's numbers are the head's: of none, one and all of the rows, whatever runs it."""
    found = onnx_export.export(head, path)
    assert found.difference <= onnx_export.TOLERANCE
    for run in (onnx_export.by_onnxruntime, onnx_export.by_onnx):
        for n in (0, 1, len(x)):
            numbers = run(path, x[:n])
            assert numbers.shape == (n, len(head.classes))
            np.testing.assert_allclose(numbers, head.predict_proba(x)[:n], atol=2e-6)


def test_the_exported_file_says_what_it_was_fitted_on_and_the_command_what_was_checked(
    birds: Path, head: FittedHead, tmp_path: Path, onnx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("export-head", "--run", birds / "runs" / "latest", "--to", tmp_path / "head.onnx")
    assert "checked on 64 rows by onnxruntime, largest difference" in call(*arguments).stdout
    stored = {one.key: json.loads(one.value) for one in onnx.load(str(tmp_path / "head.onnx")).metadata_props}
    assert [one["fingerprint"] for one in stored["features"]] == [one.fingerprint for one in head.features]
    assert stored["classes"] == list(head.classes)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: find_spec(name) if name == "onnx" else None)
    assert "checked on 64 rows by onnx's reference evaluator" in call(*arguments).stdout


def test_a_file_with_other_numbers_is_not_written(
    head: FittedHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison itself, with the exporter and the evaluator stood in for."""
    from embedcache.errors import EmbedCacheError

    monkeypatch.setattr(onnx_export, "_need_onnx", lambda: None)
    monkeypatch.setattr(onnx_export, "_write", lambda module, x, path: path.write_bytes(b"onnx"))
    monkeypatch.setattr(onnx_export, "_describe", lambda head, path: None)
    monkeypatch.setattr(onnx_export, "_run", lambda path, x: (head.predict_proba(x) + 1e-3, "a stand-in"))
    with pytest.raises(EmbedCacheError, match=r"differ by up to 0\.001 \(a stand-in, 64 rows\)"):
        onnx_export.export(head, tmp_path / "head.onnx")
    assert not list(tmp_path.iterdir())
