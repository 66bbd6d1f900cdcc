"""From a cache to scored heads, on vectors whose answers are known."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedcache import samples
from embedcache.errors import DataNotFoundError, MissingFeaturesError, UnknownNameError, UsageError
from heads.fit import fit
from heads.logistic import Logistic
from heads.preview import preview
from heads.record import compare
from heads.saved import FittedHead
from tests.heads_helpers import CLASSES, add_features, captioned, fitted, image_name, prepared, save_table, separable


def ids_of(task: Any, rows: np.ndarray) -> list[str]:
    return task.base.ids[rows].tolist()


@pytest.mark.parametrize("head", ["logistic", "sklearn-mlp"])
def test_separable_vectors_are_learned_without_an_error(tmp_path: Path, head: str) -> None:
    separable(tmp_path)
    fixed = {"max_iter": 300, "hidden_layer_sizes": [8], "learning_rate_init": 0.05} if head == "sklearn-mlp" else {}
    (run,) = fitted(tmp_path, head=head, fixed=fixed)
    assert run.scored["test"].scores["accuracy"].value == 1.0
    assert run.scored["validation"].scores["accuracy"].value == 1.0
    assert run.counts == {"train": 38, "validation": 4, "test": 18}
    assert run.head.classes == CLASSES
    assert run.label == "my-image"


def test_a_search_with_folds_refits_the_best_on_all_training_rows(tmp_path: Path) -> None:
    separable(tmp_path, noise=1.5)
    task = prepared(tmp_path, grid={"C": [1e-4, 1.0]}, cv={"folds": 3})
    (run,) = fit(task)
    assert run.splitter == "StratifiedKFold"
    assert run.counts == {"train": 42, "validation": 0, "test": 18}
    assert list(run.scored) == ["test"]
    x = task.sets[0].matrix(np.float32)
    train = task.splits.train
    again = Logistic().build(run.parameters, 0).fit(run.head.estimator[:-1].transform(x[train]), task.codes[train])
    assert (again.coef_ == run.head.estimator[-1].coef_).all()


def test_image_text_and_both_are_compared_best_first_on_the_same_samples(tmp_path: Path) -> None:
    captioned(tmp_path)
    sets = [["my-image"], ["my-text"], ["my-image", "my-text"]]
    task = prepared(tmp_path, features=sets)
    runs = fit(task)
    assert len({tuple(run.scored["test"].ids) for run in runs}) == 1
    comparison = compare(task, runs, ["a", "b", "c"])
    assert comparison is not None
    best, *rest = comparison.rows
    assert (best.label, best.dims, best.folder, best.difference) == ("my-image + my-text", 5, "c", None)
    assert best.score.value == 1.0
    assert comparison.samples == 24
    for row in rest:
        assert row.score.value <= 0.75
        assert row.difference is not None
        assert row.difference.value == row.score.value - best.score.value
        assert row.difference.low <= row.difference.value <= row.difference.high < 0
        assert row.difference.low == pytest.approx(row.score.low - 1.0)  # against a best that is never wrong


def test_a_comparison_keeps_to_the_samples_that_all_have_and_counts_the_rest(tmp_path: Path) -> None:
    folder = captioned(tmp_path, n=36, captions=1)
    images = {image_name(row): [float(row), 1.0] for row in range(2, 36)}
    add_features(folder, "image", images, name="holes", failed=[image_name(0)])
    task = prepared(tmp_path, features=[["my-text"], ["holes"], ["my-image"]])
    assert len(task.base) == 34
    assert task.left_out == {"its image failed in holes": 1, "not extracted with holes": 1}
    assert len({tuple(run.scored["test"].ids) for run in fit(task)}) == 1


def test_samples_without_text_or_image_are_counted(tmp_path: Path) -> None:
    table = samples.build(
        [f"s{row}" for row in range(8)],
        split=["train"] * 6 + ["test"] * 2,
        images=[None, *(f"{row}.jpg" for row in range(1, 8))],
        texts=[["t0"], [], *([f"t{row}", f"u{row}"] for row in range(2, 8))],
        targets={"label": list("abababab")},
    )
    folder = save_table(tmp_path, table)
    add_features(folder, "image", {f"{row}.jpg": [float(row % 2)] for row in range(1, 8)})
    texts = {f"{letter}{row}": [float(row)] for row in range(2, 8) for letter in "tu"}
    failed = ["t0", "t2", "u2", "t3"]
    add_features(folder, "text", {text: vector for text, vector in texts.items() if text not in failed}, failed=failed)
    task = prepared(tmp_path, cv={"folds": 2})
    assert task.base.ids.tolist() == ["s3", "s4", "s5", "s6", "s7"]
    assert task.left_out == {"no image": 1, "no text": 1, "its text failed in my-text": 1}
    assert preview(task)[0].left_out == task.left_out


CAPTIONS = {"a0": [1.0], "a1": [3.0], "b0": [-2.0], "c0": [5.0], "c1": [6.0], "c2": [10.0], "d0": [-4.0], "d1": [-8.0]}


def four_captioned(cache: Path) -> None:
    """Samples a to d with their captions, whose vectors are one number each."""
    texts = [[name for name in CAPTIONS if name[0] == letter] for letter in "abcd"]
    table = samples.build(
        list("abcd"),
        split=["train", "train", "test", "test"],
        images=[f"{letter}.jpg" for letter in "abcd"],
        texts=texts,
        targets={"label": ["yes", "no", "yes", "no"]},
    )
    folder = save_table(cache, table)
    add_features(folder, "text", CAPTIONS)
    add_features(folder, "image", {f"{letter}.jpg": [ord(letter) / 100] for letter in "abcd"})


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ("mean", [[2.0], [-2.0], [7.0], [-6.0]]),
        ("first", [[1.0], [-2.0], [5.0], [-4.0]]),
        ("each", [[value[0]] for value in CAPTIONS.values()]),
    ],
)
def test_captions_are_averaged_or_the_first_or_each_taken(tmp_path: Path, captions: str, expected: Any) -> None:
    four_captioned(tmp_path)
    task = prepared(tmp_path, features="my-text", select={"captions": captions}, cv={"folds": 2})
    assert task.sets[0].matrix().tolist() == expected


def test_each_caption_is_a_training_row_and_probabilities_are_averaged_at_test(tmp_path: Path) -> None:
    four_captioned(tmp_path)
    document: dict[str, Any] = {"select": {"captions": "each"}, "cv": {"folds": 2}, "transform": []}
    (run,) = fitted(tmp_path, features="my-text", **document)
    rows = np.array(list(CAPTIONS.values()), np.float32)
    alone = Logistic().build({}, 0).fit(rows[:3], [1, 1, 0])
    assert run.head.estimator[-1].coef_ == pytest.approx(alone.coef_)
    each = alone.predict_proba(rows)
    test = run.scored["test"]
    assert test.ids.tolist() == ["c", "d"]
    assert test.probabilities == pytest.approx(np.array([each[3:6].mean(0), each[6:8].mean(0)]))
    assert run.counts == {"train": 2, "validation": 0, "test": 2}


def test_each_caption_goes_with_its_samples_image(tmp_path: Path) -> None:
    four_captioned(tmp_path)
    task = prepared(tmp_path, features="my-image,my-text", select={"captions": "each"}, cv={"folds": 2})
    matrix = task.sets[0].matrix()
    assert matrix[:, 1].tolist() == [value[0] for value in CAPTIONS.values()]
    assert matrix[:, 0] == pytest.approx([ord(name[0]) / 100 for name in CAPTIONS])


def test_a_sample_without_a_caption_in_common_is_counted(tmp_path: Path) -> None:
    table = samples.build(
        list("abc"), split=["train"] * 3, texts=[["a0", "a1"], ["b0"], ["c0"]], targets={"label": ["x", "y", "x"]}
    )
    folder = save_table(tmp_path, table)
    add_features(folder, "text", {"a0": [1.0], "b0": [2.0], "c0": [3.0]}, name="one", failed=["a1"])
    add_features(folder, "text", {"a1": [1.0], "b0": [2.0], "c0": [3.0]}, name="two", failed=["a0"])
    task = prepared(tmp_path, features="one,two", select={"captions": "each"}, cv={"folds": 2})
    assert task.base.ids.tolist() == ["b", "c"]
    assert task.left_out == {"no text that every text set has": 1}


def test_captions_of_one_image_stay_on_one_side_of_every_fold(tmp_path: Path) -> None:
    captioned(tmp_path, n=48, captions=2)
    (run,) = fitted(tmp_path, features="my-text", select={"captions": "each"}, grid={"C": [1.0]}, cv={"folds": 4})
    assert run.splitter == "StratifiedGroupKFold"


def test_missing_features_name_the_command_that_extracts_them(tmp_path: Path) -> None:
    separable(tmp_path)
    with pytest.raises(MissingFeaturesError) as missing:
        prepared(tmp_path, features="vit-large")
    assert "python cli.py extract --dataset tiny --backbone vit-large" in str(missing.value)
    assert "it has my-image@" in str(missing.value)
    assert (missing.value.dataset, missing.value.backbone, missing.value.settings) == ("tiny", "vit-large", {})
    settings = {"backbone": "roberta", "lowercase": True, "max_length": 64}
    with pytest.raises(MissingFeaturesError) as missing:
        prepared(tmp_path, features=settings)
    assert "extract --dataset tiny --backbone roberta --lowercase --max-length 64" in str(missing.value)
    assert missing.value.settings == {"lowercase": True, "max_length": 64}


def test_a_data_set_without_features_and_a_cache_without_data_sets_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="There is no cache folder"):
        prepared(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no data set"):
        prepared(tmp_path)
    save_table(tmp_path, samples.build(["a"], images=["a.jpg"]), "one")
    with pytest.raises(MissingFeaturesError, match="'one' has no features yet: python cli.py extract --dataset one"):
        prepared(tmp_path)
    save_table(tmp_path, samples.build(["a"], images=["a.jpg"]), "two")
    with pytest.raises(UsageError, match=r"2 data sets \(one, two\): name one with --dataset"):
        prepared(tmp_path)
    with pytest.raises(UnknownNameError, match="data set 'oen'. Did you mean 'one'"):
        prepared(tmp_path, dataset="oen")


def test_features_by_settings_and_by_fingerprint(tmp_path: Path) -> None:
    folder = separable(tmp_path)
    vectors = {image_name(row): [float(row)] for row in range(60)}
    add_features(folder, "image", vectors, weights="b", settings={"image_size": 96})
    assert prepared(tmp_path, features="my-image").sets[0].dims == (4,)
    assert prepared(tmp_path, features={"backbone": "my-image", "image_size": 96}).sets[0].dims == (1,)
    both = prepared(tmp_path).sets[0]
    assert both.dims == (4, 1)
    mark = both.sets[1].file.fingerprint
    assert prepared(tmp_path, features=f"my-image@{mark[:6]}").sets[0].dims == (1,)


def with_columns(cache: Path) -> None:
    separable(
        cache,
        meta={
            "colour": ["red" if row % 2 else "blue" for row in range(60)],
            "year": [2001 + row % 4 for row in range(60)],
            "place": ["sea" if row % 3 else None for row in range(60)],
        },
        group=[f"pond {row // 2}" for row in range(60)],
    )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"colour": "red"}, 30),
        ({"colour": ["red", "blue"]}, 60),
        ({"colour": "red", "year": [2001, 2002]}, 15),
        ({"label": ["finch", "heron"]}, 40),
        ({"split": "train"}, 42),
        ({"place": "sea"}, 40),
        ({"place": [None, "sea"]}, 60),
        ({"group": [f"pond {number}" for number in range(20)]}, 40),
    ],
)
def test_a_filter_keeps_rows_by_column(tmp_path: Path, wanted: dict[str, Any], expected: int) -> None:
    with_columns(tmp_path)
    assert len(prepared(tmp_path, select={"filter": wanted}, cv={"folds": 2}).base) == expected


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"color": "red"}, "column in 'filter': 'color'. Did you mean"),
        ({"colour": True}, "colour is string, and cannot be True"),
        ({"colour": 3}, "the filter keeps none"),
        ({"year": 10**30}, "year is int64, and cannot be"),
        ({"colour": {"a": 1}}, "select.filter: colour: a range is written"),
        ({"taken": {"from": 1}}, "column in 'filter': 'taken'"),
        ({"colour": "green"}, "No sample of tiny is left: the filter keeps none"),
        ({"split": "test"}, "There are no training rows"),
        ({"label": "finch"}, "has one class only, 'finch'"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(tmp_path: Path, wanted: dict[str, Any], words: str) -> None:
    with_columns(tmp_path)
    with pytest.raises(UsageError, match=words):
        prepared(tmp_path, select={"filter": wanted})


def test_a_limit_is_nested_seeded_and_holds_the_classes_in_proportion(tmp_path: Path) -> None:
    separable(tmp_path)
    chosen = {limit: prepared(tmp_path, select={"limit": limit}, cv={"folds": 2}) for limit in (12, 30, 60, 1000)}
    ids = {limit: set(task.base.ids) for limit, task in chosen.items()}
    assert [len(found) for found in ids.values()] == [12, 30, 60, 60]
    assert ids[12] < ids[30] < ids[60]
    assert np.bincount(chosen[30].codes).tolist() == [10, 10, 10]
    assert set(prepared(tmp_path, select={"limit": 12, "seed": 5}, cv={"folds": 2}).base.ids) != ids[12]
    assert set(prepared(tmp_path, select={"limit": 12}, cv={"folds": 2}).base.ids) == ids[12]


def several_targets(cache: Path) -> None:
    rows = range(24)
    table = samples.build(
        [f"s{row}" for row in rows],
        images=[f"{row}.jpg" for row in rows],
        targets={
            "species": [f"k{row % 3}" for row in rows],
            "age": [row % 2 for row in rows],
            "seen": [row % 2 == 0 for row in rows],
            "weight": [float("nan") if row == 0 else float(row % 2) for row in rows],
            "tags": [["a", "b"] for _ in rows],
            "ragged": [["a"] * (row % 3) for row in rows],
            "empty": [[] for _ in rows],
            "unknown": pa.array([None for _ in rows], pa.list_(pa.string())),
            "shares": [[0.5, float(row)] for row in rows],
            "day": [datetime.date(2024, 1, 1 + row % 2) for row in rows],
            "same": ["x" for _ in rows],
            "none": [None for _ in rows],
        },
    )
    folder = save_table(cache, table)
    add_features(folder, "image", {f"{row}.jpg": [row % 2, row % 3] for row in rows})


@pytest.mark.parametrize(
    ("target", "classes"),
    [("species", ("k0", "k1", "k2")), ("age", (0, 1)), ("seen", (False, True)), ("weight", (0.0, 1.0))],
)
def test_a_target_is_chosen_by_name_and_keeps_its_type(tmp_path: Path, target: str, classes: tuple[Any, ...]) -> None:
    several_targets(tmp_path)
    (run,) = fitted(tmp_path, select={"target": target}, cv={"folds": 2})
    assert run.head.classes == classes
    assert [type(one) for one in run.head.classes] == [type(one) for one in classes]
    assert run.scored["test"].scores["accuracy"].value == 1.0
    run.head.save(tmp_path / "head")
    assert FittedHead.load(tmp_path / "head").classes == classes


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ({}, "several targets \\(species, age, .*say which one"),
        ({"target": "specie"}, "target 'specie'. Did you mean 'species'"),
        ({"target": "tags"}, "Every sample has the same labels in the target 'tags': there is nothing to learn"),
        ({"target": "ragged"}, "'ragged' has one label only, 'a': several labels per sample need two"),
        ({"target": "empty"}, "'empty' has no label at all"),
        ({"target": "unknown"}, "No sample that has all features has a target 'unknown'"),
        ({"target": "shares"}, "'shares' holds lists of double; a label is a text or a whole number"),
        ({"target": "day"}, "'day' holds a date; a label is a text or a number"),
        ({"target": "same"}, "'same' has one class only, 'x': there is nothing to learn"),
        ({"target": "none"}, "No sample that has all features has a target 'none'"),
        ({"target": "tags", "limit": 5}, "Every sample has the same labels in the target 'tags'"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused(tmp_path: Path, select: dict[str, Any], words: str) -> None:
    several_targets(tmp_path)
    with pytest.raises(UsageError, match=words):
        prepared(tmp_path, select=select)


def test_a_data_set_without_targets_says_what_to_do(tmp_path: Path) -> None:
    folder = save_table(tmp_path, samples.build(["a", "b"], images=["a.jpg", "b.jpg"]))
    add_features(folder, "image", {"a.jpg": [1.0], "b.jpg": [2.0]})
    with pytest.raises(UsageError, match=r"has no target.*\(--label\)"):
        prepared(tmp_path)


def test_a_split_without_targets_is_predicted_and_not_scored(tmp_path: Path) -> None:
    labels = [CLASSES[row % 3] if row % 9 < 6 else None for row in range(60)]
    rng = np.random.default_rng(0)
    folder = separable(tmp_path, labels=labels)
    truth = [row % 3 for row in range(60)]
    vectors = {image_name(row): 4 * np.eye(4)[truth[row]] + rng.normal(scale=0.1, size=4) for row in range(60)}
    add_features(folder, "image", vectors, name="mine")
    (run,) = fitted(tmp_path, features="mine")
    assert list(run.scored) == ["validation", "unlabelled"]
    found = run.scored["unlabelled"]
    assert found.scores == {}
    assert (found.truth == -1).all()
    rows = [int(name[1:]) for name in found.ids]
    assert rows == [row for row in range(60) if row % 9 >= 6]
    assert found.probabilities.argmax(1).tolist() == [truth[row] for row in rows]
    assert run.counts["test"] == 0


def test_a_class_that_occurs_only_in_test_counts_as_wrong(tmp_path: Path) -> None:
    labels = ["zebra" if row in (6, 7) else CLASSES[row % 3] for row in range(60)]
    separable(tmp_path, labels=labels)
    (run,) = fitted(tmp_path)
    test = run.scored["test"]
    assert run.head.classes == (*CLASSES, "zebra")
    assert (test.probabilities[:, 3] == 0).all()
    assert test.probabilities.sum(1) == pytest.approx(np.ones(18))
    assert test.scores["accuracy"].value == pytest.approx(16 / 18)
    assert np.isfinite(test.scores["log_loss"].value)


def test_rows_of_one_class_in_training_are_refused_by_the_head(tmp_path: Path) -> None:
    split = ["train" if row % 3 == 0 else "test" for row in range(60)]
    separable(tmp_path, split=split)
    with pytest.raises(UsageError, match="All 20 training rows are of the class 'finch'"):
        fitted(tmp_path, cv={"folds": 2})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"head": "logistik"}, "Unknown head 'logistik'. Did you mean 'logistic'"),
        ({"fixed": {"c": 1}}, "parameter of the head 'logistic': 'c'"),
        ({"score": "acuracy"}, "Unknown score 'acuracy'. Did you mean 'accuracy'"),
        ({"fixed": {"C": -1.0}}, "The head 'logistic' cannot be fitted: .*'C'"),
        ({"grid": {"C": [1.0]}, "cv": {"folds": 50}}, "50 folds need"),
    ],
)
def test_what_no_fit_can_use_is_refused(tmp_path: Path, document: dict[str, Any], words: str) -> None:
    separable(tmp_path)
    with pytest.raises(UsageError, match=words):
        fitted(tmp_path, **document)


def test_groups_of_the_table_are_kept_whole_by_carving_and_folds(tmp_path: Path) -> None:
    separable(tmp_path, split=[None] * 60, group=[f"g{row // 3}" for row in range(60)])
    task = prepared(tmp_path, grid={"C": [1.0]}, cv={"folds": 3})
    assert {row // 3 for row in task.splits.train}.isdisjoint(row // 3 for row in task.splits.test)
    (run,) = fit(task)
    assert run.splitter == "StratifiedGroupKFold"
    assert run.search is not None
    assert run.search.rows[0]["mean_test_score"] == 1.0


def test_a_preview_says_what_the_fit_will_use(tmp_path: Path) -> None:
    captioned(tmp_path)
    task = prepared(tmp_path, features=[["my-image"], ["my-image", "my-text"]])
    first, second = preview(task)
    assert (first.label, first.dims, first.fits, first.points) == ("my-image", (3,), 1, 1)
    assert (second.label, second.dims) == ("my-image + my-text", (3, 2))
    assert first.samples == second.samples == {"train": 43, "validation": 5, "test": 24}
    assert [run.counts for run in fit(task)] == [first.samples] * 2


def test_runs_repeat_to_the_last_digit(tmp_path: Path) -> None:
    separable(tmp_path, noise=2.0)
    document = {"head": "sklearn-mlp", "fixed": {"max_iter": 5}, "seed": 3}
    first, again = fitted(tmp_path, **document)[0], fitted(tmp_path, **document)[0]
    assert (first.scored["test"].probabilities == again.scored["test"].probabilities).all()
    assert first.scored["test"].scores == again.scored["test"].scores
