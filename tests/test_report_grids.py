"""Every table of the reports, in one command, on a tiny tree in the published layout of its data set.

Encoders are the aliases themselves, with tiny checkpoints where the hub would have put them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from typer.testing import CliRunner

from cli import app
from embedcache.backbones import ALIASES, tower_of
from embedcache.demo.birds import draw_cub
from heads import config, table
from heads.record import METRICS_FILE
from heads.table_run import FittedRow, read_table
from tests import tiny_meli, tiny_vqa
from tests.tiny_checkpoints import encoded, picture
from tests.tiny_hub import lay_out
from tests.tiny_multilabel import write_comp5329

READY = {path.name: config.read_grid(path) for path in sorted(config.GRIDS.glob("*.yaml"))}
TABLES = [name for name, document in READY.items() if "source" in document.get("table", {})]
OTHERS = [name for name in READY if name not in TABLES]
COLOURS = ("red", "blue", "green", "black")
SMALL: Mapping[str, tuple[str, ...]] = {
    "cub-images.yaml": ("fixed.max_iter=5",),
    "cub-texts.yaml": ("fixed.max_iter=5",),
    "cub-multimodal.yaml": ("fixed.max_iter=2", "fixed.hidden_layer_sizes=[8, 4]"),
    "meli-mlp.yaml": ("fixed.epochs=1", "fixed.hidden_layer_sizes=[8]"),
    "meli-cnn.yaml": ("fixed.epochs=1", "fixed.embedding_size=4", "fixed.filters=2", "fixed.hidden_layer_sizes=[4]"),
    "meli-experiments.yaml": ("fixed.epochs=1", "fixed.filters=2"),
    "multilabel.yaml": ("fixed.max_iter=5",),
}
"""What is cut of each table by ``--set``: widths, epochs, rows. Those of VQA share theirs."""
OF_VQA = ("fixed.epochs=1", "fixed.hidden_layer_sizes=[4]", "validation=4", "select.limit=40", "fixed.batch_size=8")
OF_WORDS = ("fixed.epochs=1", "fixed.embedding_size=4", "fixed.filters=2")
OF_LSTM = ("fixed.embedding_size=4", "fixed.hidden_size=4", "fixed.fusion_size=4", "select.top_classes=4")


def write_vqa(folder: Path) -> None:
    """Version 1: of each photo three questions, a number, yes or no, and an open one; one photo is of train."""
    questions = []
    for photo in range(1, 61):
        colour = COLOURS[photo % 4]
        asked = ((f"how many {colour} birds", str(1 + photo % 3), "number"), (f"is it {colour}", "yes", "yes/no"),
                 ("what colour is it", colour, "other"))  # fmt: skip
        for number, (text, answer, kind) in enumerate(asked):
            said = "no" if kind == "yes/no" and photo % 2 else answer
            questions.append(tiny_vqa.Question(photo, number, text, said, kind=kind))
    tiny_vqa.write_part(folder, tiny_vqa.TRAIN, questions[:3], version=1)
    tiny_vqa.write_part(folder, tiny_vqa.VAL, questions[3:], version=1)
    for photo in range(1, 61):
        path = folder / tiny_vqa.photo_name(tiny_vqa.VAL if photo > 1 else tiny_vqa.TRAIN, photo)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(48, 48, seed=photo % 4)))


def write_meli(data: Path) -> None:
    """Spanish titles of four categories in the challenge's own layout, and word vectors as the report's course had."""
    rows = [tiny_meli.Row(f"funda {COLOURS[n % 4]} numero {n}", category=f"C{n % 4}") for n in range(80)]
    tiny_meli.write_own(data / "meli", rows)
    words = ["funda", "numero", *COLOURS]
    lines = [f"{word} " + " ".join(f"{value:.3f}" for value in np.random.default_rng(i).normal(size=5))
             for i, word in enumerate(words)]  # fmt: skip
    import bz2

    (data / "SBW-vectors-300-min5.txt.bz2").write_bytes(bz2.compress("\n".join([f"{len(words)} 5", *lines]).encode()))


def write_labels(folder: Path) -> None:
    """Photos with a caption and one or two of four labels."""
    rows = [f"{n}.jpg,{1 + n % 4}{' 9' if n % 3 == 0 else ''},a {COLOURS[n % 4]} bird on tree {n}" for n in range(80)]
    write_comp5329(folder, rows, test=("90.jpg,a red bird",), images=None)
    (folder / "data").mkdir()
    for n in (*range(80), 90):
        (folder / "data" / f"{n}.jpg").write_bytes(encoded(picture(48, 48, seed=n % 4)))


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder for each kind of table, with its data set in ``data/``; the hub's cache, and no network."""
    root = tmp_path_factory.mktemp("reports")
    draw_cub(root / "cub" / "data", species=4, images_per_species=6)
    write_vqa(root / "vqa" / "data" / "vqa")
    (root / "vqa" / "data" / "glove.6B.300d.txt").write_text("how 0.5 1\nmany 2 0\nred 1 1\nis 0 1\n", encoding="utf-8")
    write_meli(root / "meli" / "data")
    write_labels(root / "multilabel" / "data" / "comp5329")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield root


def aliases(name: str) -> set[str]:
    """The encoders that a table names."""
    made = table.parse_table(READY[name])
    queries = [query for one in made.configs for names in one.features or [] for query in names]
    named = {str(query["backbone"]) if isinstance(query, dict) else str(query) for query in queries}
    return {tower_of(one)[0] for one in named} & set(ALIASES)


def cuts(name: str) -> list[str]:
    own = SMALL.get(name, OF_VQA)
    made = [*own, *(OF_LSTM if name in ("vqa-lstm.yaml", "vqa-final.yaml") else ())]
    return [part for one in made for part in ("--set", one)]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_reports_comes_from_one_command(trees: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trees / name.removesuffix(".yaml").partition("-")[0]
    monkeypatch.chdir(folder)
    for alias in aliases(name):
        lay_out(trees / "hub", alias)

    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, ["fit-head", "--grid", name, "--extract", *cuts(name)])
    assert done.exit_code == 0, done.output

    made = table.parse_table(READY[name])
    found = read_table(folder / "runs" / "latest")
    assert found is not None
    assert [row.cells for row in found.rows] == [row.cells for row in made.rows]  # the report's own order
    for stated, row in zip(made.rows, found.rows, strict=True):
        check_row(stated, row, folder / "runs" / "latest")
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    for heading in (*made.config.columns, *made.config.figures, "encoders"):
        assert heading.split()[0][:3] in done.stdout
    assert "changed by --set: " in done.stdout


def check_row(stated: table.Row, row: FittedRow, folder: Path) -> None:
    """A number in every column that is to be fitted, each as the run that it came from has it."""
    if not stated.configs:
        assert not row.measured
        return
    assert row.here in ("frozen", "words trained", "words frozen", "frozen, words trained", "none")
    for name, one in row.measured.items():
        assert one.value is not None, (name, one.why)
        if one.folder is not None and one.split is not None:
            recorded = json.loads((folder / one.folder / METRICS_FILE).read_text(encoding="utf-8"))
            assert recorded["scores"][one.split][one.metric]["value"] == one.value
            assert recorded["head"] == stated.configs[name].head


def test_a_missing_file_of_word_vectors_is_named_before_anything_is_fitted(
    trees: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trees / "meli")
    name = "meli-experiments.yaml"
    missing = ["--set", "fixed.vectors=nowhere.txt", "--out", "no-runs"]
    done = CliRunner().invoke(app, ["fit-head", "--grid", name, "--extract", *cuts(name), *missing])
    assert done.exit_code == 2
    assert "Row '1 (Baseline)': There is no file of word vectors nowhere.txt. Another one is taken" in done.stderr
    assert not Path("no-runs").exists()


REPORTED = {
    "cub-images.yaml": [[0.74], [0.79], [0.79], [0.79]],
    "cub-texts.yaml": [[None], [0.56], [0.56], [0.56]],
    "cub-multimodal.yaml": [[0.81], [0.86], [None], [None]],
    "vqa-datasets.yaml": [
        [None, one] for one in (None, "around 25%", None, None, None, "35%", None, "close to 65%", None)
    ],
    "vqa-resnet.yaml": [["34%", "33.4%", "34%"], ["33.6%", 33.68, "36.4%"]],
    "vqa-classifier.yaml": [[None] * 2] * 2,
    "vqa-frozen.yaml": [["36.4%", "68%"], [None] * 2, [None] * 2],
    "vqa-yes-no.yaml": [["36.4%", "68%", "52.2%"]],
    "vqa-lstm.yaml": [["40.60%", "71.90%"], ["35.10%", "61.87%"], ["41.90%", "86.23%"], ["42.00%", "85.83%"]],
    "vqa-final.yaml": [
        [None] * 2, [None] * 2, ["41.90%", "86.23%"], ["42.00%", "85.83%"], [None] * 2, [None] * 2
    ],
    "meli-mlp.yaml": [[None] * 3] * 2,
    "meli-cnn.yaml": [[0.002], [None], [None], [None]],
    "meli-experiments.yaml": [
        [0.452, 2.47, 2.54], ["0.430", 2.49, 2.59], [0.417, 2.77, 2.71], [0.492, 2.16, 2.35], [0.531, 1.79, 2.07],
        [0.699, 0.44, "1.30"], [0.703, "0.50", 1.23], [0.672, 0.67, 1.36],
    ],
    "multilabel.yaml": [*[[None] * 5] * 4, [78, 87.47, "10 min", "20 min", "86.1 MB"]],
}  # fmt: skip
"""What stands in the reports' tables, row by row, as they write it; None where they have no number (or 00.00 %)."""


def test_each_table_has_the_reports_own_numbers() -> None:
    assert set(REPORTED) == set(TABLES)
    for name, numbers in REPORTED.items():
        made = table.parse_table(READY[name])
        assert [[row.cells.get(figure) for figure in made.config.figures] for row in made.rows] == numbers, name


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_ready_grids_run_on_what_a_cache_holds(
    trees: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trees / "cub")
    monkeypatch.setenv("COLUMNS", "80")
    for wanted in (["demo-image"], ["words", "--lowercase"]):
        done = CliRunner().invoke(app, ["extract", "--cache", "other", "--backbone", *wanted])
        assert done.exit_code == 0, done.output
    Path("glove.txt").write_text("a 0.5 1\nbird 2 0\nred 1 1\n", encoding="utf-8")
    cut = {"cnn.yaml": OF_WORDS, "lstm.yaml": OF_WORDS[:2], "texts.yaml": (*OF_WORDS, "fixed.vectors=glove.txt"),
           "heads.yaml": ("fixed.epochs=1", "fixed.max_iter=5", "fixed.n_neighbors=3"),
           "mlp.yaml": ("fixed.max_iter=2", "grid.hidden_layer_sizes=[[8]]", "cv.folds=2"),
           "knn.yaml": ("cv.folds=2", "grid.n_neighbors=[1, 3]")}.get(name, ("cv.folds=2",))  # fmt: skip
    first = "select.captions=first"
    arguments = [part for one in (*cut, first) for part in ("--set", one)]
    done = CliRunner().invoke(app, ["fit-head", "--grid", name, "--cache", "other", *arguments])
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.stdout
