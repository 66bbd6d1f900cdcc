"""Tables of several heads: what a grid file with rows means, how its heads are fitted, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import app
from embedcache.errors import MissingFeaturesError, UnknownNameError, UsageError
from heads import lacking, record
from heads.config import read_grid
from heads.fit import fit
from heads.metrics import interval
from heads.table import Source, Table, of_choices, parse_table
from heads.table_run import FittedTable, fit_table, prepare_table, read_table
from heads.table_text import NOTHING, for_width, lines, markdown, write
from tests.heads_helpers import add_features, captioned, prepared, separable

LOGISTIC: dict[str, Any] = {"cells": {"head": "plain"}, "head": "logistic"}
RIDGE: dict[str, Any] = {"cells": {"head": "margin"}, "head": "ridge"}


def document(*rows: dict[str, Any], **table: Any) -> dict[str, Any]:
    """A table file of these rows on image vectors, without a validation split."""
    return {"table": table, "features": "my-image", "validation": 0, "rows": list(rows)}


def fitted(tmp_path: Path, made: dict[str, Any], *assignments: str) -> tuple[Path, FittedTable]:
    return fit_table(prepare_table(parse_table(made, assignments), tmp_path / "cache"), tmp_path / "runs")


def heads_of(table: Table) -> list[str]:
    return [config.head for config in table.configs]


# ---------------------------------------------------------------- what a file means


def test_a_row_is_laid_over_the_keys_of_the_file() -> None:
    made = {
        "select": {"limit": 100, "seed": 3, "filter": {"split": "validation", "answer": [1, 2]}},
        "fixed": {"max_iter": 5},
        "rows": [
            {"cells": {"head": "a"}, "select": {"limit": 10}},
            {"cells": {"head": "b"}, "select": {"filter": {"answer": [3]}}, "fixed": {"C": 2}},
        ],
    }
    first, second = parse_table(made).configs
    assert (first.select.limit, first.select.seed, first.fixed) == (10, 3, {"max_iter": 5})
    assert second.fixed == {"max_iter": 5, "C": 2}
    assert second.select.filter == {"answer": [3]}  # a filter is stated as a whole


def test_a_row_with_another_head_takes_no_parameters_from_the_file() -> None:
    rows = [LOGISTIC, {"cells": {"head": "mlp"}, "head": "mlp"}]
    first, second = parse_table({"head": "logistic", "fixed": {"C": 2}, "grid": {"tol": [1, 2]}, "rows": rows}).configs
    assert (first.fixed, second.fixed, second.grid) == ({"C": 2}, {}, {})


def test_a_column_with_keys_of_its_own_has_heads_of_its_own_and_equal_heads_are_one() -> None:
    figures = {
        "few": {"score": "accuracy", "set": {"select": {"limit": 9}}},
        "all": {"score": "accuracy"},
        "loss": {"score": "log_loss"},
        "average": {"mean": ["few", "all"]},
    }
    table = parse_table(document(LOGISTIC, LOGISTIC | {"cells": {"head": "again", "few": 0.5}}, figures=figures))
    assert [config.select.limit for config in table.configs] == [9, None]
    assert [list(row.configs) for row in table.rows] == [["few", "all", "loss"]] * 2


def test_an_assignment_changes_the_rows_that_state_the_key_or_all() -> None:
    rows = [LOGISTIC | {"select": {"limit": 5}}, RIDGE]
    assert [one.select.limit for one in parse_table(document(*rows), ["select.limit=7"]).configs] == [7, None]
    assert [one.seed for one in parse_table(document(*rows), ["seed=4"]).configs] == [4, 4]


def test_a_parameter_is_assigned_where_a_head_has_it() -> None:
    rows = [LOGISTIC, {"cells": {"head": "k"}, "head": "knn"}]
    first, second = parse_table(document(*rows), ["fixed.n_neighbors=2"]).configs
    assert (first.fixed, second.fixed) == ({}, {"n_neighbors": 2})
    with pytest.raises(UnknownNameError, match=r"heads in this table: 'neighbors'.*Did you mean 'n_neighbors'"):
        parse_table(document(*rows), ["fixed.neighbors=2"])


def test_rows_are_chosen_by_name_before_anything_is_assigned() -> None:
    rows = [LOGISTIC | {"select": {"limit": 5}}, RIDGE]
    assert heads_of(parse_table(document(*rows), rows=["margin"])) == ["ridge"]
    (ridge,) = parse_table(document(*rows), ["select.limit=7"], rows=["margin"]).configs
    assert ridge.select.limit == 7
    with pytest.raises(UnknownNameError, match="Unknown row 'margins'. Did you mean 'margin'"):
        parse_table(document(*rows), rows=["margins"])
    with pytest.raises(UnknownNameError, match="heads in this table: 'C'"):
        parse_table(document(LOGISTIC, {"cells": {"head": "k"}, "head": "knn"}), ["fixed.C=1"], rows=["k"])


def test_rows_that_begin_alike_are_told_apart_by_all_of_their_texts() -> None:
    table = parse_table(of_choices({}, ["logistic", "knn"], ["a", "b"]))
    assert [row.name for row in table.rows] == ["logistic, a", "logistic, b", "knn, a", "knn, b"]
    with pytest.raises(UsageError, match="two rows are called 'plain'"):
        parse_table(document(LOGISTIC, LOGISTIC))


def test_other_keys_of_a_row_stand_for_those_of_the_file_as_a_whole() -> None:
    under = {"features": {"backbone": "a", "lowercase": True}, "fusion": {"kind": "product", "l2": True}}
    over = {"cells": {"head": "a"}, "features": {"backbone": "b"}, "fusion": {"kind": "late"}}
    (config,) = parse_table({**under, "rows": [over]}).configs
    assert config.features == [[{"backbone": "b"}]]
    assert config.fusion.kind == "late"


def test_a_data_set_of_the_command_line_stands_for_every_rows_own() -> None:
    table = parse_table(document(LOGISTIC, RIDGE | {"dataset": "other"}), dataset="2024")
    assert [config.dataset for config in table.configs] == ["2024", "2024"]
    assert parse_table(table.document).configs == table.configs


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"rows": []}, "'rows' is a list of rows"),
        ({"rows": {"a": {}}}, "'rows' is a list of rows"),
        (document({"head": "logistic"}), "row 1: cells: is missing"),
        (document({"cells": {}}), "row 1: 'cells' lacks the column 'head'"),
        (document(LOGISTIC, titel="x"), "unknown key 'titel'. Did you mean 'title'"),
        (document(LOGISTIC, figures={"x": {"scor": "accuracy"}}), "Did you mean 'score'"),
        (document(LOGISTIC, figures={"x": {}}), "expected one of 'score', 'mean' and 'takes'"),
        (document(LOGISTIC, figures={"x": {"mean": ["y"]}}), "x is a mean of y, which is no column with a score"),
        (document(LOGISTIC, columns=["head"], figures={"head": {"score": "accuracy"}}), "under both"),
        (document(LOGISTIC | {"cells": {"head": "a", "epocs": 1}}), "column in the options, row 1: 'epocs'"),
        (document(LOGISTIC | {"cells": {"head": "a\nb"}}), "letters that cannot be shown"),
        (document(LOGISTIC, data={"adapter": "cub"}), "'dataset' must name it"),
        (document(LOGISTIC | {"fold": 3}), "row 'plain': unknown key 'fold'"),
        (document(LOGISTIC | {"features": [["a"], ["b"]]}), "row 'plain': a row is one choice of features"),
    ],
)
def test_a_table_that_cannot_be_is_refused_by_its_row(made: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_table(made)


def test_several_heads_meet_every_choice_of_features_and_texts_have_one_row() -> None:
    table = parse_table(of_choices({}, ["logistic", "tfidf"], ["a", "a,b"]))
    assert [tuple(row.cells.values()) for row in table.rows] == [
        ("logistic", "a"), ("logistic", "a + b"), ("tfidf", "texts")
    ]  # fmt: skip
    assert [one.features for one in table.configs] == [[["a"]], [["a", "b"]], None]
    with pytest.raises(UsageError, match="leave --head out"):
        of_choices(document(LOGISTIC), ["knn"], [])


# ---------------------------------------------------------------- fitting


def test_each_row_is_fitted_as_it_would_be_alone(tmp_path: Path) -> None:
    separable(tmp_path / "cache", noise=2.5)
    folder, found = fitted(tmp_path, document(LOGISTIC, RIDGE, figures={"accuracy": {"score": "accuracy"}}))
    for row in found.rows:
        measured = row.measured["accuracy"]
        (alone,) = fit(prepared(tmp_path / "cache", head=("ridge" if row.cells["head"] == "margin" else "logistic"),
                                features="my-image", validation=0))  # fmt: skip
        assert measured.value == alone.scored["test"].scores["accuracy"].value
        own = record.read_metrics(folder / str(measured.folder))
        assert own["scores"]["test"]["accuracy"]["value"] == measured.value
    assert read_table(folder) == found


def test_rows_on_the_same_samples_are_sorted_with_paired_differences(tmp_path: Path) -> None:
    separable(tmp_path / "cache", noise=2.5)
    prepared_table = prepare_table(parse_table(document(RIDGE, LOGISTIC)), tmp_path / "cache")
    _, found = fit_table(prepared_table, tmp_path / "runs")
    assert found.paired == "headline"
    values = [row.measured["headline"].value for row in found.rows]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    best, other = found.rows
    assert best.difference is None
    draws = {}
    for config, task in prepared_table.items():
        (run,) = fit(task)
        scored = run.scored["test"]
        draws[config.head] = task.kind.draws(scored.truth, scored.probabilities, (), 0, {})["accuracy"]
    names = {"plain": "logistic", "margin": "ridge"}
    gap = draws[names[str(other.cells["head"])]] - draws[names[str(best.cells["head"])]]
    assert other.difference == interval((values[1] or 0) - (values[0] or 0), gap)


def test_rows_are_fitted_on_the_samples_that_all_of_them_have(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "cache")
    texts = {f"caption {number} of {row}": [row % 2, 1.0] for row in range(3, 72) for number in range(3)}
    add_features(folder, "text", texts, name="shorter", weights="b")
    rows = [{"cells": {"head": name}, "features": name} for name in ("my-image", "shorter")]
    prepared_table = prepare_table(parse_table({"rows": rows, "validation": 0}), tmp_path / "cache")
    first, second = prepared_table.tasks
    np.testing.assert_array_equal(first.base.ids, second.base.ids)
    assert len(first.base) == 69
    assert first.left_out == {"other heads lack features": 3}
    assert fit_table(prepared_table, tmp_path / "runs")[1].paired == "headline"


def test_scores_of_other_samples_are_not_compared(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    half = LOGISTIC | {"select": {"filter": {"label": ["finch", "heron"]}}}
    _, found = fitted(tmp_path, document(half, RIDGE))
    assert found.paired is None
    assert [row.cells["head"] for row in found.rows] == ["plain", "margin"]  # as they are stated
    assert "scored on" not in "".join(lines(found).notes)


def test_a_fusion_of_answers_counts_the_training_of_its_parts(tmp_path: Path) -> None:
    captioned(tmp_path / "cache")
    rows = [
        {"cells": {"head": "image"}, "features": "my-image"},
        {"cells": {"head": "late"}, "features": "my-image,my-text", "fusion": "late"},
    ]
    figures = {"accuracy": {"score": "accuracy"}, "seconds": {"takes": "training"}}
    _, found = fitted(tmp_path, {"table": {"figures": figures}, "rows": rows})
    by_name = {row.cells["head"]: row for row in found.rows}
    assert by_name["late"].measured["accuracy"].value == 1.0
    assert by_name["image"].measured["accuracy"].value < 0.8  # type: ignore[operator]
    assert by_name["late"].measured["seconds"].value > 0  # type: ignore[operator]


def test_training_rows_means_and_dashes(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    figures = {
        "train": {"score": "accuracy", "split": "train"},
        "test": {"score": "accuracy", "split": "test"},
        "both": {"mean": ["train", "test"]},
        "validation": {"score": "accuracy", "split": "validation"},
        "time": {"takes": "predict"},
        "size": {"takes": "size"},
    }
    reported = {"cells": {"head": "theirs", "test": 0.25}, "fit": False, "encoders": "fine-tuned", "note": "by hand"}
    _, found = fitted(tmp_path, document(LOGISTIC, reported, figures=figures, source="somebody"))
    ours, theirs = found.rows
    assert ours.measured["train"].samples == 42
    assert ours.measured["both"].value == 1.0
    assert ours.measured["validation"].why == "no rows of validation are scored"
    assert ours.measured["time"].why == ours.measured["size"].why  # these vectors say nothing of their encoder
    assert not theirs.measured
    shown = lines(found)
    assert shown.rows[1] == ("theirs", *[NOTHING] * 2, "0.25", *[NOTHING] * 9, "fine-tuned")
    assert "theirs: by hand" in shown.notes
    assert "plain: no rows of validation are scored" in shown.notes
    assert "reported: somebody" in shown.notes


def test_an_unknown_score_is_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    table = parse_table(document(LOGISTIC, figures={"x": {"score": "acuracy"}}))
    with pytest.raises(UnknownNameError, match="Did you mean 'accuracy'"):
        prepare_table(table, tmp_path / "cache")


def test_the_recorded_file_repeats_the_table_with_what_was_assigned(tmp_path: Path) -> None:
    separable(tmp_path / "cache", noise=2.5)
    folder, found = fitted(tmp_path, document(LOGISTIC, RIDGE), "select.limit=30", "fixed.C=0.01")
    again = parse_table(read_grid(folder / record.CONFIG))
    assert [one.select.limit for one in again.configs] == [30, 30]
    assert again.configs[0].dataset == "tiny"
    _, repeated = fit_table(prepare_table(again, tmp_path / "cache"), tmp_path / "again")
    assert [row.measured for row in repeated.rows] == [row.measured for row in found.rows]


def test_what_was_fitted_before_an_interruption_is_kept(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    table = prepare_table(parse_table(document(LOGISTIC, RIDGE)), tmp_path / "cache")

    def interrupt(message: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_table(table, tmp_path / "runs", said=interrupt)
    folder = tmp_path / "runs" / "latest"
    assert [path.name for path in folder.glob(f"*/{record.HEAD}")] == [record.HEAD]
    found = read_table(folder)
    assert found is not None
    assert [len(row.measured) for row in found.rows] == [1, 0]
    assert "margin could not be fitted: the table was interrupted before" in lines(found).notes


def test_a_head_that_cannot_be_fitted_leaves_the_others_be(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    bad = {"cells": {"head": "diverges"}, "head": "mlp", "fixed": {"optimizer": "sgd", "learning_rate": 1e30}}
    _, found = fitted(tmp_path, document(LOGISTIC, bad, RIDGE))
    assert [len(row.measured) for row in found.rows] == [1, 0, 1]
    assert list(found.failed or {}) == ["diverges"]
    assert any("diverges could not be fitted: " in note for note in lines(found).notes)


def test_a_row_that_cannot_be_prepared_is_named(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    table = parse_table(document({"cells": {"head": "odd"}, "select": {"target": "nowhere"}}))
    with pytest.raises(UsageError, match="Row 'odd': .*nowhere"):
        prepare_table(table, tmp_path / "cache")


def test_what_is_said_of_all_heads_is_said_once_and_else_with_the_rows(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    rows = [LOGISTIC | {"validation": 0.2}, RIDGE | {"validation": 0.2}]
    _, found = fitted(tmp_path, document(*rows, {"cells": {"head": "k"}, "head": "knn", "fixed": {"n_neighbors": 1}}))
    (note,) = [one for one in lines(found).notes if "carved" in one]
    assert note.startswith("plain; margin: ")


def test_a_reported_number_is_shown_as_it_is_written(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    rows = [{"cells": {"head": "theirs", "loss": "2.470"}, "fit": False}]
    _, found = fitted(tmp_path, document(*rows, figures={"loss": {"score": "log_loss"}}, source="somebody"))
    assert lines(found).rows[0][1] == "2.470"


def test_a_product_in_a_table_has_no_baselines(tmp_path: Path) -> None:
    captioned(tmp_path / "cache")
    row = {"cells": {"head": "product"}, "features": "my-image,my-text", "fusion": {"kind": "product", "width": 2}}
    prepared_table = prepare_table(parse_table({"rows": [row]}), tmp_path / "cache")
    assert [len(task.sets) for task in prepared_table.tasks] == [1]


# ---------------------------------------------------------------- what is lacking


def test_all_that_is_lacking_is_named_with_one_command_for_equal_settings(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    rows = [
        {"cells": {"head": "a"}, "features": ["my-image", "vit-large", {"backbone": "bert", "lowercase": True}]},
        {"cells": {"head": "b"}, "features": ["resnet18", "vit-large"]},
        {"cells": {"head": "c"}, "head": "lstm"},
        {"cells": {"head": "d"}, "head": "tfidf"},
    ]
    configs = parse_table({"rows": rows}).configs
    assert [(one.backbones, dict(one.settings)) for one in lacking.lacking(configs, tmp_path / "cache")] == [
        (("vit-large", "resnet18", "words"), {}), (("bert",), {"lowercase": True})
    ]  # fmt: skip
    with pytest.raises(MissingFeaturesError, match=r"--dataset tiny --backbone bert --lowercase"):
        lacking.check(configs, tmp_path / "cache")


def test_a_data_set_that_no_cache_knows_is_read_as_the_table_says(tmp_path: Path) -> None:
    (config,) = parse_table({"dataset": "vqa-v1", "rows": [{"cells": {"head": "a"}, "features": "vgg16"}]}).configs
    (found,) = lacking.lacking([config], tmp_path / "nowhere")
    assert not found.known
    source = Source(adapter="vqa", options={"version": 1, "splits": ["train"]})
    assert found.command(source) == (
        "python cli.py extract --dataset vqa --name vqa-v1 --option version=1 --option splits='[train]' "
        "--backbone vgg16"
    )


# ---------------------------------------------------------------- what is shown


def reported_table(tmp_path: Path) -> FittedTable:
    separable(tmp_path / "cache", noise=2.5)
    rows = [one | {"cells": {**one["cells"], "Test Accuracy": "50%"}} for one in (LOGISTIC, RIDGE)]
    rows[0]["encoders"] = "fine-tuned"
    figures = {"Test Accuracy": {"score": "accuracy"}, "Test Loss": {"score": "log_loss"}}
    return fitted(tmp_path, document(*rows, figures=figures, source="a report", title="Two <heads>"))[1]


def test_a_narrow_terminal_has_our_number_below_the_reported_one(tmp_path: Path) -> None:
    found = reported_table(tmp_path)
    wide, narrow = for_width(found, 200), for_width(found, 30)
    assert [one.heading for one in wide.columns] == [
        "head", "Test Accuracy (reported)", "Test Accuracy (here)", "Test Loss (reported)", "Test Loss (here)",
        "encoders",
    ]  # fmt: skip
    assert [one.heading for one in narrow.columns] == ["head", "Test Accuracy", "Test Loss", "encoders"]
    assert narrow.rows[0][1].splitlines() == [wide.rows[0][1], wide.rows[0][2]]
    assert narrow.notes[0].startswith("of two numbers the upper one")


def test_the_page_escapes_its_texts_and_links_each_head(tmp_path: Path) -> None:
    found = reported_table(tmp_path)
    page = write(tmp_path, found).read_text(encoding="utf-8")
    assert "Two &lt;heads&gt;" in page
    assert "href='01-plain/report.html'" in page
    text = markdown(found)
    assert text.startswith("**Two <heads>**\n\n| head | Test Accuracy (reported) |")
    assert "| plain | 50% |" in text


# ---------------------------------------------------------------- the command line


def call(tmp_path: Path, *arguments: str) -> Any:
    folders = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "runs")]
    return CliRunner().invoke(app, [*arguments, *folders])


def test_several_heads_on_the_command_line_and_their_report(tmp_path: Path) -> None:
    separable(tmp_path / "cache", noise=2.5)
    done = call(tmp_path, "fit-head", "--head", "logistic", "--head", "ridge", "--head", "knn")
    assert done.exit_code == 0, done.output
    assert "to the best" in done.stdout
    assert "test accuracy" in done.stdout
    assert "3 of 3 done" in done.stderr
    again = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "runs")])
    shown = done.stdout.split("\n\n")[0]
    assert shown in again.stdout
    as_json = json.loads(CliRunner().invoke(app, ["report", "--json", "--out", str(tmp_path / "runs")]).stdout)
    assert len(as_json["rows"]) == 3


def test_a_dry_run_of_a_table_fits_nothing(tmp_path: Path) -> None:
    separable(tmp_path / "cache")
    done = call(tmp_path, "fit-head", "--head", "logistic", "--head", "ridge", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "2 heads, at most about" in done.stdout
    assert not (tmp_path / "runs").exists()
    listed = json.loads(call(tmp_path, "fit-head", "--head", "knn", "--head", "ridge", "--dry-run", "--json").stdout)
    assert set(listed) == {"knn", "ridge"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "x"], "--row is for a grid file that has rows"),
        (["--grid", "cub-texts.yaml", "--features", "a"], "where no row names its own"),
        (["--grid", "heads.yaml", "--features", "a", "--features", "b"], "one choice for all of them"),
        (["--grid", "cub-texts.yaml", "--head", "knn"], "leave --head out"),
        (["--head", "knn", "--head", "ridge", "--learning-curve", "10"], "--learning-curve is for one head"),
        (["--head", "knn", "--head", "rigde"], "Did you mean 'ridge'"),
        (["--grid", "cub-texts.yaml"], "add --extract, or:"),
    ],
)
def test_options_that_are_not_for_a_table_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    separable(tmp_path / "cache")
    done = call(tmp_path, "fit-head", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
