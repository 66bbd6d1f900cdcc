"""Fusion: known weights are found again, unions are unions, products have the widths that were stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from typer.testing import CliRunner

from cli import app
from embedcache.cache import open_cache
from embedcache.errors import DamagedFileError, UnknownNameError, UsageError
from embedcache.extraction import extract
from heads import record
from heads.config import parse, read_grid
from heads.fit import FittedRun, fit
from heads.fusion import Late, Union, stacked_weights, union_thresholds, united
from heads.predict import predict_dataset
from heads.preview import preview
from heads.product import Product
from heads.saved import FittedHead
from heads.thresholds import decide, tune
from tests.heads_helpers import add_features, captioned, fitted, image_name, label_lists, prepared, separable, tagged

BOTH = "my-image,my-text"
MLP: dict[str, Any] = {"head": "mlp", "fixed": {"hidden_layer_sizes": [8], "epochs": 30, "learning_rate": 0.05}}


def three(cache: Path, **document: Any) -> tuple[FittedRun, FittedRun, FittedRun]:
    """The image head, the text head and their fusion."""
    image, text, both = fitted(cache, **{"features": BOTH, "validation": 12, **document})
    return image, text, both


def accuracy(run: FittedRun) -> float:
    return run.scored["test"].scores["accuracy"].value


# ------------------------------------------------------------------------------------ pure functions: late


def test_the_weights_of_a_mixture_are_found_again() -> None:
    rng = np.random.default_rng(0)
    found = rng.dirichlet(np.full(4, 0.5), size=(3, 20000))
    weights = np.array([0.7, 0.25, 0.05])
    chances = np.einsum("m,mnc->nc", weights, found)
    truth = (rng.random((20000, 1)) > chances.cumsum(1)).sum(1)
    assert stacked_weights(truth, found) == pytest.approx(weights, abs=0.03)


@pytest.mark.parametrize("several", [False, True])
def test_weights_have_the_least_squared_error(several: bool) -> None:
    rng = np.random.default_rng(1)
    found, truth = rng.dirichlet(np.ones(3), size=(4, 50)), rng.integers(0, 3, 50)
    own = np.eye(3)[truth]
    if several:
        truth = own = rng.integers(0, 2, (50, 3))

    def error(weights: Any) -> float:
        return float(((np.einsum("m,mnc->nc", weights, found) - own) ** 2).sum())

    limits = {"bounds": [(0, 1)] * 4, "constraints": {"type": "eq", "fun": lambda weights: weights.sum() - 1}}
    best = minimize(error, np.full(4, 0.25), method="SLSQP", options={"ftol": 1e-12}, **limits)
    weights = stacked_weights(truth, found)
    assert weights.sum() == pytest.approx(1)
    assert error(weights) <= best.fun + 1e-9
    assert weights == pytest.approx(best.x, abs=1e-3)


def test_weights_at_the_edges() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, (300, 5))
    certain = np.stack([truth.astype(float), 1.0 - truth])  # the second is always wrong and sure of it
    assert stacked_weights(truth, certain) == pytest.approx([1, 0])
    like = rng.random((300, 5))
    assert stacked_weights(truth, np.stack([like, like, like])) == pytest.approx([1 / 3] * 3)
    assert stacked_weights(np.array([7, -1]), np.ones((2, 2, 3)) / 3) == pytest.approx([0.5, 0.5])


def test_halves_that_tell_all_together_weigh_the_same() -> None:
    """One is sure of the first bit of four classes, one of the second: every mean has the same log-loss."""
    truth = np.arange(40) % 4
    first = np.array([[0.5 * (code // 2 == own // 2) for code in range(4)] for own in truth])
    second = np.array([[0.5 * (code % 2 == own % 2) for code in range(4)] for own in truth])
    assert stacked_weights(truth, np.stack([first, second])) == pytest.approx([0.5, 0.5])


# ----------------------------------------------------------------------------------- pure functions: union


def test_a_union_holds_what_any_member_predicts() -> None:
    found = np.array([[[0.2, 0.9], [0.7, 0.1]], [[0.4, 0.1], [0.1, 0.3]]])
    thresholds = [[0.6, 0.95], [0.3, 0.3]]
    assert decide(united(thresholds, found), 0.5).tolist() == [[True, False], [True, True]]


def test_a_union_agrees_with_sets_whatever_the_thresholds() -> None:
    rng = np.random.default_rng(3)
    found = np.round(rng.random((3, 400, 6)), 2)
    thresholds = np.round(rng.random((3, 6)), 2)
    thresholds[:, 0], thresholds[0, 1], thresholds[1, 2] = 0, 1, np.nextafter(1, 2)
    expected = (found >= thresholds[:, None]).any(0)
    assert (decide(united(thresholds, found), 0.5) == expected).all()
    assert united(thresholds, found).max() <= 1


def f1_of_union(truth: Any, found: Any, thresholds: Any) -> float:
    predicted = (found >= np.asarray(thresholds)[:, None]).any(0)
    return float(2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()))


@pytest.mark.parametrize("per", ["label", "modality", "all"])
def test_thresholds_of_a_union_are_no_worse_than_each_members_own(per: Any) -> None:
    rng = np.random.default_rng(4)
    truth = rng.random((300, 4)) < 0.3
    found = np.clip(0.4 * truth + rng.random((2, 300, 4)) * 0.7, 0, 1)
    learned = np.ones(4, bool)
    table = union_thresholds(truth, found, "f1", per, learned)
    assert table.shape == (2, 4)
    inner = "label" if per == "label" else "all"
    own = np.stack([tune(truth, one, "f1", inner, learned).thresholds for one in found])  # type: ignore[arg-type]
    assert f1_of_union(truth, found, table) > f1_of_union(truth, found, own)
    assert len({tuple(row) for row in table.T}) == {"label": 4, "modality": 1, "all": 1}[per]
    assert (len(set(table.ravel())) == 1) == (per == "all")


def test_one_label_of_a_union_is_tuned_as_well_as_every_pair_of_cuts() -> None:
    rng = np.random.default_rng(5)
    truth = rng.random((40, 1)) < 0.4
    found = np.round(np.clip(0.3 * truth + rng.random((2, 40, 1)) * 0.8, 0, 1), 1)
    table = union_thresholds(truth, found, "f1", "label", np.ones(1, bool))
    cuts = np.arange(-0.05, 1.2, 0.1)
    best = max(f1_of_union(truth, found, [[a], [b]]) for a in cuts for b in cuts)
    assert f1_of_union(truth, found, table) >= best - 0.02  # one at a time: a local optimum


def test_labels_that_nothing_is_known_of_keep_one_half() -> None:
    truth = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]], bool)
    found = np.stack([np.where(truth, 0.8, 0.3), np.where(truth, 0.4, 0.2)])
    learned = np.array([True, True, False])
    for per in ("label", "modality", "all"):
        table = union_thresholds(truth, found, "f1", per, learned)
        assert (table[:, 2] == 0.5).all()
        assert f1_of_union(truth[:, :2], found[:, :, :2], table[:, :2]) == 1.0
    assert (union_thresholds(truth, found, "f1", "label", learned)[:, 1] == 0.5).all()


# ----------------------------------------------------------------------------------------------- products


def test_a_product_multiplies_number_by_number() -> None:
    assert Product(2).fit_transform(np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])).tolist() == [[3, 8], [35, 48]]
    with pytest.raises(ValueError, match="not 2 sets"):
        Product(2).fit(np.ones((2, 3)))


def test_equal_widths_are_multiplied_as_they_are(tmp_path: Path) -> None:
    folder = separable(tmp_path, dim=4)
    other = {image_name(row): [row % 2 + 1.0, 1, 1, 2] for row in range(60)}
    add_features(folder, "image", other, name="other")
    *alone, both = fitted(tmp_path, features="my-image,other", fusion="product", transform=[])
    assert [run.label for run in alone] == ["my-image", "other"]
    assert both.label == "my-image + other (product)"
    x = both.features.matrix(np.float32)
    assert both.head.estimator[:-1].transform(x) == pytest.approx(x[:, :4] * x[:, 4:])


def test_other_widths_are_projected_by_the_training_rows(tmp_path: Path) -> None:
    captioned(tmp_path)  # 3 and 2 numbers
    _, _, both = three(tmp_path, fusion={"kind": "product", "l2": True}, transform=[], validation=0)
    x = both.features.matrix(np.float32)
    train = x[both.features.splits == "train"]
    centred = train[:, :3] - train[:, :3].mean(0)
    variances = np.linalg.svd(centred, compute_uv=False)[:2] ** 2 / (len(train) - 1)
    sets = both.head.estimator[0].transform(x)
    assert sets.shape == (72, 4)
    for part in (sets[:, :2], sets[:, 2:]):
        assert np.linalg.norm(part, axis=1) == pytest.approx(1)
    pca = both.head.estimator[0].named_transformers_["set_0"][0]
    rows = len(train)
    assert pca.n_samples_ == rows
    assert pca.explained_variance_ == pytest.approx(variances, rel=1e-4)
    assert both.head.estimator[-1].n_features_in_ == 2


def test_one_width_for_all_and_l2_for_some(tmp_path: Path) -> None:
    captioned(tmp_path)
    fusion = {"kind": "product", "width": 1, "l2": ["my-text"], "baselines": False}
    (both,) = fitted(tmp_path, features=BOTH, fusion=fusion)
    steps = both.head.estimator[0].named_transformers_
    assert [type(step).__name__ for _, step in steps["set_0"].steps] == ["PCA"]
    assert [type(step).__name__ for _, step in steps["set_1"].steps] == ["PCA", "Normalizer"]
    assert both.head.estimator[-1].n_features_in_ == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"fusion": {"kind": "product", "width": 3}}, "has 2 numbers only"),
        ({"fusion": "product", "transform": {"my-image": [{"pca": 0.9}]}}, "known width"),
        ({"fusion": "late", "features": "my-image"}, "needs a choice of several"),
        ({"fusion": "union"}, "several labels"),
    ],
)
def test_what_cannot_be_fused_is_refused_before_anything_is_fitted(
    tmp_path: Path, document: dict[str, Any], message: str
) -> None:
    captioned(tmp_path)
    with pytest.raises(UsageError, match=message):
        prepared(tmp_path, **{"features": BOTH, **document})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"fusion": {"kind": "late", "l2": True}}, "'l2' is not for the fusion 'late'"),
        ({"fusion": {"kind": "product", "weights": "equal"}}, "'weights' is not for the fusion 'product'"),
        ({"fusion": {"kind": "late", "baselines": False}}, "baselines"),
        ({"fusion": {"knd": "late"}}, "Did you mean 'kind'"),
        ({"threshold": {"per": "modality"}}, "for 'fusion: union'"),
    ],
)
def test_options_of_another_fusion_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(document)


def test_a_feature_set_that_is_not_there_is_no_l2(tmp_path: Path) -> None:
    captioned(tmp_path)
    with pytest.raises(UnknownNameError, match="my-txt"):
        prepared(tmp_path, features=BOTH, fusion={"kind": "product", "l2": ["my-txt"]})


# ------------------------------------------------------------------------------------------- from a cache


def test_late_fusion_knows_what_neither_knows(tmp_path: Path) -> None:
    captioned(tmp_path)
    image, text, both = three(tmp_path, fusion="late")
    assert max(accuracy(image), accuracy(text)) < 0.8
    assert accuracy(both) > 0.9
    weights = both.parameters["weights"]
    assert set(weights) == {"my-image", "my-text"}
    assert sum(weights.values()) == pytest.approx(1)
    mean = weights["my-image"] * image.scored["test"].probabilities
    mean += weights["my-text"] * text.scored["test"].probabilities
    assert both.scored["test"].probabilities == pytest.approx(mean)
    assert any("weights of least squared error on 12 validation samples" in note for note in both.notes), both.notes


def test_weights_are_learned_out_of_fold_where_nothing_is_held_out(tmp_path: Path) -> None:
    captioned(tmp_path)
    _, _, both = three(tmp_path, fusion="late", cv={"folds": 3})
    assert any("out-of-fold probabilities of 48 training samples" in note for note in both.notes), both.notes
    _, _, equal = three(tmp_path, fusion={"kind": "late", "weights": "equal"})
    assert list(equal.parameters["weights"].values()) == [0.5, 0.5]
    _, _, none = three(tmp_path, fusion="late", validation=0)
    assert list(none.parameters["weights"].values()) == [0.5, 0.5]
    assert any("no validation rows" in note for note in none.notes)


def test_each_member_has_a_search_of_its_own(tmp_path: Path) -> None:
    captioned(tmp_path)
    task = prepared(tmp_path, features=BOTH, fusion="late", grid={"C": [0.01, 1.0]}, cv={"folds": 2})
    assert [one.fits for one in preview(task)] == [7, 7, 0]
    image, text, both = fit(task)
    assert image.search is not None
    assert text.search is not None
    assert both.search is None


@pytest.mark.parametrize("per", ["label", "modality", "all"])
def test_the_union_of_label_sets(tmp_path: Path, per: str) -> None:
    tagged(tmp_path)
    image, text, both = three(tmp_path, fusion="union", threshold={"per": per})
    score = [run.scored["test"].scores["f1_micro"].value for run in (image, text, both)]
    assert score[2] > max(score[:2])
    union = both.head.estimator
    assert isinstance(union, Union)
    x = both.features.matrix(np.float32)
    sets = [
        set(zip(*np.nonzero(decide(one.head.predict_proba(part), own)), strict=True))
        for one, part, own in zip((image, text), (x[:, :2], x[:, 2:]), union.thresholds, strict=True)
    ]
    predicted = decide(both.head.predict_proba(x), both.head.thresholds)
    assert set(zip(*np.nonzero(predicted), strict=True)) == sets[0] | sets[1]
    assert any("validation samples: their own scores flatter" in note for note in both.notes)


def test_thresholds_of_a_union_never_see_test_rows(tmp_path: Path) -> None:
    """Other labels in the test split, the same thresholds."""
    split = [("train", "validation", "test")[row // 16 % 3] for row in range(96)]
    changed = [["1"] if split[row] == "test" else own for row, own in enumerate(label_lists(96))]
    tables = []
    for name, labels in (("a", None), ("b", changed)):
        tagged(tmp_path / name, labels=labels, split=split)
        tables.append(three(tmp_path / name, fusion="union")[2].head.estimator.thresholds)
    assert tables[0] == tables[1]


def test_a_fixed_threshold_and_no_rows_to_tune_on(tmp_path: Path) -> None:
    tagged(tmp_path)
    for document, value in (({"threshold": 0.3}, 0.3), ({"validation": 0}, 0.5)):
        _, _, both = three(tmp_path, fusion="union", **document)  # type: ignore[arg-type]
        assert {number for own in both.head.estimator.thresholds for number in own} == {value}


SAVED: dict[str, dict[str, Any]] = {
    "late": {"fusion": "late"},
    "late with mlp": {"fusion": "late", **MLP},
    "late with ridge": {"fusion": "late", "head": "ridge"},
    "late with knn": {"fusion": "late", "head": "knn"},
    "product": {"fusion": {"kind": "product", "l2": True}},
    "product with mlp": {"fusion": "product", **MLP},
    "product by set": {"fusion": "product", "transform": {"my-image": ["standardize", {"pca": 2}]}},
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("case", [*SAVED, "union", "union with mlp"])
def test_a_fusion_read_back_gives_the_same_probabilities(tmp_path: Path, case: str, several: bool) -> None:
    document = SAVED.get(case, {"fusion": "union", **(MLP if "mlp" in case else {})})
    if case.startswith("union") and not several:
        return
    (tagged if several else captioned)(tmp_path)
    both = three(tmp_path, **document)[2]
    both.head.save(tmp_path / "head")
    again = FittedHead.load(tmp_path / "head")
    x = both.features.matrix(np.float32)
    np.testing.assert_allclose(again.predict_proba(x), both.head.predict_proba(x), rtol=1e-6)
    assert again.thresholds == both.head.thresholds
    if isinstance(both.head.estimator, Late) and "mlp" not in case:
        assert sorted(path.name for path in (tmp_path / "head").iterdir()) == [
            "fusion.json", "head.json", "member_0", "member_1"
        ]  # fmt: skip


def test_a_damaged_fusion_is_refused(tmp_path: Path) -> None:
    captioned(tmp_path)
    three(tmp_path, fusion="late")[2].head.save(tmp_path / "head")
    path = tmp_path / "head" / "fusion.json"
    good = json.loads(path.read_text())
    for wrong in ({**good, "kind": "sum"}, {**good, "weights": [1.0]}, {"kind": "late"}, {}, []):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DamagedFileError):
            FittedHead.load(tmp_path / "head")


def test_a_run_keeps_each_baseline_beside_the_fusion(tmp_path: Path) -> None:
    captioned(tmp_path / "cache")
    task = prepared(tmp_path / "cache", features=BOTH, fusion="late", validation=12)
    runs = fit(task)
    folder, comparison = record.write(task, runs, tmp_path / "runs")
    assert comparison is not None
    assert comparison.rows[0].label == "my-image + my-text (late)"
    assert {row.label for row in comparison.rows[1:]} == {"my-image", "my-text"}
    assert all(row.difference is not None and row.difference.high < 0 for row in comparison.rows[1:])
    assert {row["features"] for row in record.listed(tmp_path / "runs")} == {row.label for row in comparison.rows}
    for row in comparison.rows:
        again = prepared(tmp_path / "cache", **read_grid(folder / row.folder / record.CONFIG))
        assert len(again.sets) == (3 if "late" in row.label else 1)
    with pytest.raises(UsageError, match=f"compares several heads: .*{comparison.rows[0].folder}"):
        record.head_folder(folder)
    fused = record.head_folder(folder / comparison.rows[0].folder)
    dataset = open_cache(tmp_path / "cache")["tiny"]
    found = predict_dataset(FittedHead.load(fused), dataset, "test")
    np.testing.assert_allclose(found.probabilities, runs[2].scored["test"].probabilities)


def test_baselines_that_are_stated_are_not_fitted_twice(tmp_path: Path) -> None:
    captioned(tmp_path)
    runs = fitted(tmp_path, features=[["my-image", "my-text"], ["my-text"]], fusion="late")
    assert [run.label for run in runs] == ["my-text", "my-image", "my-image + my-text (late)"]
    plain = fitted(tmp_path, features=BOTH, fusion={"kind": "concat", "baselines": True})
    assert [run.label for run in plain] == ["my-image", "my-text", "my-image + my-text"]
    assert len(fitted(tmp_path, features=BOTH)) == 1


@pytest.mark.parametrize("captions", ["first", "each"])
def test_units_of_captions_are_fused_unit_by_unit(tmp_path: Path, captions: str) -> None:
    captioned(tmp_path)
    *_, both = three(tmp_path, fusion="late", select={"captions": captions})
    assert accuracy(both) > 0.9


def test_the_command_shows_the_baselines(tmp_path: Path) -> None:
    tagged(tmp_path / "cache")
    where = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(
        app, ["fit-head", "--features", BOTH, "--set", "fusion=union", "--set", "threshold.per=modality", *where]
    )
    assert done.exit_code == 0, done.output
    assert "(union)" in done.stdout
    found = json.loads(next((tmp_path / "runs").glob("*/comparison.json")).read_text())
    assert found["rows"][0]["label"] == "my-image + my-text (union)"
    assert len(found["rows"]) == 3


def test_photos_and_captions_of_coco_through_every_fusion(tmp_path: Path, shared_data: Path) -> None:
    """Thirty-three photos: only that it runs, and that thresholds and weights are learned on validation rows."""
    where = {"cache": tmp_path, "images": shared_data / "coco33" / "images"}
    extract("coco", shared_data / "coco33", backbones=["demo-image", "demo-text"], **where)
    for document in (
        {"fusion": {"kind": "concat", "baselines": True}},
        {"fusion": {"kind": "product", "width": 8}},
        {"fusion": "late"},
        {"fusion": "union", "threshold": {"per": "modality"}},
    ):
        *alone, both = fitted(tmp_path, features="demo-image,demo-text", head="ridge", validation=8, **document)
        assert len(alone) == 2
        assert {run.head.kind for run in (*alone, both)} == {"multi"}
        assert "f1_micro" in both.scored["test"].scores
        assert any("8 validation samples" in note for note in both.notes), both.notes
        both.head.save(tmp_path / both.fusion)
        x = both.features.matrix(np.float32)
        again = FittedHead.load(tmp_path / both.fusion)
        np.testing.assert_allclose(again.predict_proba(x), both.head.predict_proba(x))
