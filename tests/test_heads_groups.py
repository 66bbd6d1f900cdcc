"""Scores by group and paired tests: of recorded predictions, joined with the sample table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli import app
from embedcache import samples
from embedcache.errors import DataNotFoundError, UnknownNameError, UsageError
from embedcache.samples import read_parquet
from heads import record
from heads.groups import by_group, compare, grouped, recorded
from heads.metrics import mcnemar, paired
from tests.heads_helpers import (
    add_features,
    captioned,
    fitted,
    image_name,
    near,
    prepared,
    save_table,
    separable,
    tagged,
)

TYPES = ("what is", "is the", "how many", None)


def kept(cache: Path, out: Path, **document: Any) -> Path:
    """A recorded run's folder."""
    task = prepared(cache, **document)
    return record.write(task, fitted(cache, **document), out)[0]


def typed(cache: Path, noise: float = 3.0) -> None:
    """126 images with a question type, an answer type and a list of languages; too noisy to be all right."""
    meta = {
        "question_type": [TYPES[row % 7 % 4] for row in range(126)],
        "answer_type": ["yes/no" if row % 5 == 0 else "other" for row in range(126)],
        "languages": [["es", "pt"][: row % 3] for row in range(126)],
    }
    separable(cache, n=126, noise=noise, meta=meta)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def output(cache: Path, out: Path, *arguments: str) -> str:
    found = call("report", *arguments, "--cache", str(cache), "--out", str(out))
    assert found.exit_code == 0, found.output
    return found.stdout


# ---------------------------------------------------------------------------------------------- pure functions


def hand_made(groups: Sequence[str], **options: Any) -> list[tuple[str, int, float, float]]:
    scores = {"accuracy": np.array([1.0, 0.0, 1.0, 1.0, 0.0]), "top_5_accuracy": np.array([1.0, 1.0, 1.0, 1.0, 0.0])}
    found = by_group(groups, np.arange(len(groups)), scores, **options)
    return [(row.group, row.count, row.hits["accuracy"], row.means["top_5_accuracy"]) for row in found]


def test_groups_have_counts_hits_and_shares_best_first() -> None:
    assert hand_made("aabbc") == [("b", 2, 2.0, 1.0), ("a", 2, 1.0, 1.0), ("c", 1, 0.0, 0.0)]
    assert [row[0] for row in hand_made("aabbc", worst=True)] == ["c", "a", "b"]
    assert [row[0] for row in hand_made("aabbc", min_count=2)] == ["b", "a"]
    assert hand_made("aabbc", min_count=3) == []


def test_groups_of_equal_scores_are_in_order_of_size_then_name() -> None:
    assert [row[0] for row in hand_made("zzbbc")] == ["b", "z", "c"]
    scores = {"accuracy": np.ones(5)}
    assert [row.group for row in by_group("cbbac", np.arange(5), scores)] == ["b", "c", "a"]
    assert [row.group for row in by_group("cbbac", np.arange(5), scores, worst=True)] == ["b", "c", "a"]


@pytest.mark.parametrize(("only_one", "only_other"), [(0, 0), (5, 0), (7, 3), (3, 7), (12, 12), (40, 21)])
def test_mcnemar_is_the_binomial_sum(only_one: int, only_other: int) -> None:
    n, least = only_one + only_other, min(only_one, only_other)
    published = min(1.0, 2 * sum(comb(n, k) for k in range(least + 1)) / 2**n)
    assert mcnemar(only_one, only_other) == pytest.approx(published)


def test_two_heads_are_compared_row_by_row() -> None:
    rng = np.random.default_rng(0)
    one = (rng.random(400) < 0.8).astype(float)
    other = one.copy()
    other[:30] = 0.0
    found = paired(one, other, seed=1)
    assert found.difference.value == pytest.approx(one.mean() - other.mean())
    assert 0 < found.difference.low < found.difference.value < found.difference.high
    assert found.difference.high - found.difference.low < 0.06  # unpaired it would be 0.11
    assert (found.test, found.p < 1e-6) == ("exact McNemar", True)
    assert paired(one, one, 1).p == 1.0


def test_scores_that_are_no_hits_are_bootstrapped_in_pairs() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(300)
    assert paired(one, one + rng.normal(0.05, 0.1, 300), 0).p == pytest.approx(2 / 2001)
    assert paired(one, one + 0.0, 0).p == 1.0
    chances = [paired(one, one + rng.normal(0, 0.1, 300), seed).p for seed in range(40)]
    assert 0.3 < np.mean(chances) < 0.7
    assert paired(one, one + 0.1, 0).test == "paired bootstrap"


# ------------------------------------------------------------------------------------------------ recorded runs


def test_a_run_is_scored_by_a_column_of_the_sample_table(tmp_path: Path) -> None:
    typed(tmp_path / "cache")
    folder = kept(tmp_path / "cache", tmp_path / "runs")
    run = recorded(folder, tmp_path / "cache")
    rows = {row.group: row for row in grouped(run, "question_type")}
    assert set(rows) == {"what is", "is the", "how many", "(none)"}
    assert sum(row.count for row in rows.values()) == len(run) == 42
    table = read_parquet(folder / record.PREDICTIONS).to_pylist()
    test = [line for line in table if line["split"] == "test"]
    own = [line for line in test if int(line["id"][1:]) % 7 % 4 == 0]
    hits = sum(line["truth"] == line["predicted"] for line in own)
    assert (rows["what is"].count, rows["what is"].hits["accuracy"]) == (len(own), hits)
    assert rows["what is"].means == {"accuracy": pytest.approx(hits / len(own)), "top_5_accuracy": 1.0}
    total = sum(row.hits["accuracy"] for row in rows.values()) / len(run)
    assert total == pytest.approx(record.read_metrics(folder)["scores"]["test"]["accuracy"]["value"])
    assert 0 < total < 1


def test_samples_are_left_out_and_small_groups_too(tmp_path: Path) -> None:
    typed(tmp_path / "cache")
    run = recorded(kept(tmp_path / "cache", tmp_path / "runs"), tmp_path / "cache")
    left = grouped(run, "question_type", exclude=[("answer_type", "yes/no"), ("question_type", "is the")])
    kept_rows = [row for row in run.sample_rows if row % 5 and row % 7 % 4 != 1]
    assert sum(row.count for row in left) == len(kept_rows)
    assert "is the" not in {row.group for row in left}
    most = max(row.count for row in grouped(run, "question_type"))
    assert {row.count for row in grouped(run, "question_type", min_count=most)} == {most}
    with pytest.raises(UsageError, match="No group of question_type has 1,000 samples; the largest has"):
        grouped(run, "question_type", min_count=1000)
    with pytest.raises(UsageError, match="Nothing is left of 42 samples"):
        grouped(run, "label", exclude=[("answer_type", "yes/no"), ("answer_type", "other")])


def test_a_target_a_full_name_and_a_column_of_lists_are_groups_too(tmp_path: Path) -> None:
    typed(tmp_path / "cache")
    run = recorded(kept(tmp_path / "cache", tmp_path / "runs"), tmp_path / "cache")
    assert {row.group for row in grouped(run, "label")} == {"finch", "heron", "plover"}
    assert grouped(run, "meta.answer_type") == grouped(run, "answer_type")
    by_language = {row.group: row.count for row in grouped(run, "languages")}
    assert by_language["(none)"] + by_language["es"] == 42
    assert by_language["pt"] < by_language["es"]


@pytest.mark.parametrize(
    ("by", "exclude", "expected"),
    [
        ("question_typ", [], "Unknown column of the sample table: 'question_typ'. Did you mean 'question_type'"),
        ("question_type", [("answer_type", "yes")], "Unknown value of answer_type: 'yes'. Did you mean 'yes/no'"),
    ],
)
def test_unknown_columns_and_values_are_refused_with_the_nearest(
    tmp_path: Path, by: str, exclude: list[tuple[str, str]], expected: str
) -> None:
    typed(tmp_path / "cache")
    run = recorded(kept(tmp_path / "cache", tmp_path / "runs"), tmp_path / "cache")
    with pytest.raises(UnknownNameError, match=expected.replace("?", r"\?")):
        grouped(run, by, exclude=exclude)


def test_a_split_that_was_not_scored_and_a_cache_of_other_samples_are_refused(tmp_path: Path) -> None:
    typed(tmp_path / "cache")
    folder = kept(tmp_path / "cache", tmp_path / "runs")
    assert recorded(folder, tmp_path / "cache", "validation").split == "validation"
    with pytest.raises(UsageError, match=r"no scored samples of the split 'train'.*\['validation', 'test'\]"):
        recorded(folder, tmp_path / "cache", "train")
    separable(tmp_path / "other", n=30)
    with pytest.raises(UsageError, match="33 of 42 samples .* not in the sample table of tiny"):
        recorded(folder, tmp_path / "other")


def test_vqa_accuracy_stands_in_the_table_where_there_are_human_answers(tmp_path: Path) -> None:
    n, rng = 60, np.random.default_rng(0)
    answers = [("red", "dog", "cat")[row % 3] for row in range(n)]
    table = samples.build(
        [f"q{row}" for row in range(n)],
        split=["train" if row < 40 else "test" for row in range(n)],
        images=[image_name(row) for row in range(n)],
        targets={"answer": answers},
        meta={
            "answers": [[answer] * 2 + ["else"] * 8 for answer in answers],
            "question_type": [("what", "is")[row % 2] for row in range(n)],
        },
    )
    folder = save_table(tmp_path / "cache", table)
    add_features(folder, "image", {image_name(row): near(row % 3, 4, rng, 0.1) for row in range(n)})
    run = recorded(kept(tmp_path / "cache", tmp_path / "runs"), tmp_path / "cache")
    rows = grouped(run, "question_type")
    assert [row.means["vqa_accuracy"] for row in rows] == pytest.approx([0.6, 0.6])
    assert "vqa_accuracy" in output(tmp_path / "cache", tmp_path / "runs", "latest", "--by", "question_type")


def test_label_sets_are_scored_by_exact_match_and_f1(tmp_path: Path) -> None:
    tagged(tmp_path / "cache", noise=1.0)
    folder = kept(tmp_path / "cache", tmp_path / "runs")
    run = recorded(folder, tmp_path / "cache")
    stated = record.read_metrics(folder)["scores"]["test"]
    assert run.scores["exact_match"].mean() == pytest.approx(stated["exact_match"]["value"])
    assert run.scores["f1_samples"].mean() == pytest.approx(stated["f1_samples"]["value"])
    assert "10" in {row.group for row in grouped(run, "labels")}


def test_two_runs_are_tested_on_the_samples_that_both_scored(tmp_path: Path) -> None:
    typed(tmp_path / "cache")
    one = recorded(kept(tmp_path / "cache", tmp_path / "runs"), tmp_path / "cache")
    weak = kept(tmp_path / "cache", tmp_path / "runs", fixed={"C": 1e-9}, select={"filter": {"answer_type": "other"}})
    other = recorded(weak, tmp_path / "cache")
    found = compare(one, other, 0)
    both = np.isin(one.sample_rows, other.sample_rows)
    assert found.samples == len(other) == both.sum() < len(one)
    gap = one.scores["accuracy"][both].mean() - other.scores["accuracy"].mean()
    assert found.scores["accuracy"].difference.value == pytest.approx(gap)
    assert found.scores["accuracy"].p < 0.05
    assert found.scores["top_5_accuracy"].p == 1.0


def test_runs_on_other_targets_or_data_are_not_compared(tmp_path: Path) -> None:
    tables = [tmp_path / "a", tmp_path / "b"]
    separable(tables[0])
    separable(tables[1], labels=[f"class {row % 2}" for row in range(60)])
    one, other = (recorded(kept(cache, tmp_path / cache.name / "runs"), cache) for cache in tables)
    with pytest.raises(UsageError, match="fitted on different targets of the same samples"):
        compare(one, other)


# ---------------------------------------------------------------------------------------------- the command


def test_the_report_command_by_group_best_and_worst(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    typed(cache)
    kept(cache, out)
    asked = ("--by", "question_type", "--min-count", "3", "--exclude", "answer_type=yes/no")
    text = output(cache, out, "latest", *asked)
    assert all(word in text for word in ("question_type", "samples", "hits", "top-1", "hits top 5", "top-5", "what is"))
    assert max(map(len, text.splitlines())) <= 80
    best = json.loads(output(cache, out, "latest", *asked, "--json"))["groups"]
    worst = json.loads(output(cache, out, "latest", *asked, "--worst", "--json"))["groups"]
    means = [row["means"]["accuracy"] for row in best]
    assert means == sorted(means, reverse=True)
    assert [row["means"]["accuracy"] for row in worst] == sorted(means)
    assert len(json.loads(output(cache, out, "latest", *asked, "--most", "2", "--json"))["groups"]) == 2


def test_the_report_command_alone_shows_the_scores_and_where_the_page_is(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    separable(cache)
    assert call("fit-head", "--cache", str(cache), "--out", str(out)).exit_code == 0
    text = output(cache, out)
    assert "accuracy" in text
    assert "100.0 %" in text
    assert "report.html" in text
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert json.loads(output(cache, out, "latest", "--json"))["scores"]["test"]["accuracy"]["value"] == 1.0


def test_the_report_command_of_a_comparison_lists_it_and_names_its_runs(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    captioned(cache)
    folder = kept(cache, out, features=[["my-image"], ["my-text"]])
    text = output(cache, out, "latest")
    assert "my-image" in text
    assert "to the best" in text
    assert "label" in output(cache, out, "latest/01-my-image", "--by", "label")
    with pytest.raises(DataNotFoundError, match="01-my-image"):
        recorded(folder, cache)


def test_the_report_command_compares_two_runs(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "runs"
    typed(cache)
    one = kept(cache, out)
    other = kept(cache, out, fixed={"C": 1e-9})
    text = output(cache, out, one.name, "--compare", other.name)
    assert "exact McNemar" in text
    assert max(map(len, text.splitlines())) <= 80
    found = json.loads(output(cache, out, one.name, "--compare", other.name, "--json"))
    assert found["scores"]["accuracy"]["p"] < 0.05


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--worst"], "say which with --by"),
        (["--by", "label", "--compare", "latest"], "two tables"),
        (["--by", "label", "--exclude", "heron"], "--exclude takes column=value"),
    ],
)
def test_the_report_command_refuses_what_it_cannot_mean(tmp_path: Path, arguments: list[str], expected: str) -> None:
    separable(tmp_path / "cache")
    kept(tmp_path / "cache", tmp_path / "runs")
    found = call("report", *arguments, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "runs"))
    assert found.exit_code == 2
    assert expected in " ".join(found.output.split())
