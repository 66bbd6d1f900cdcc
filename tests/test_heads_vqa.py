"""VQA accuracy, quirk by quirk as the official evaluation has it, and the subsets of the UPC report end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedcache as ec
from embedcache.errors import UsageError
from embedcache.view import shared_groups
from heads import record, report
from heads.config import override, parse, plain_yaml
from heads.fit import FittedRun, fit
from heads.task import Task, prepare
from heads.vqa import CONTRACTIONS, HumanAnswers, leave_one_out, normalized, without_punctuation
from tests import tiny_vqa as tiny
from tests.fakes import FakeBackbone
from tests.tiny_vqa import TEST, TRAIN, VAL, Question


def accuracy(prediction: str, *answers: str) -> float:
    """Of one prediction on one question."""
    rows = pa.array([list(answers)], pa.large_list(pa.large_string()))
    return float(HumanAnswers.of(rows).accuracy([prediction], np.zeros(1, np.int64))[0])


def of_ten(answer: str, count: int, rest: str = "something else") -> list[str]:
    return [answer] * count + [rest] * (10 - count)


# ------------------------------------------------------------------------------------------------ the measure


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_three_other_humans_make_an_answer_right(count: int, expected: float) -> None:
    assert accuracy("red", *of_ten("red", count)) == pytest.approx(expected)


def test_where_all_agree_the_answer_is_right() -> None:
    assert accuracy("red", *["red"] * 10) == 1


@given(st.integers(1, 12), st.data())
def test_it_is_the_mean_over_the_sets_that_leave_one_human_out(humans: int, data: st.DataObject) -> None:
    gave = data.draw(st.lists(st.booleans(), min_size=humans, max_size=humans))
    left_out = [min(sum(gave[:one] + gave[one + 1 :]) / 3, 1) for one in range(humans)]
    assert leave_one_out(sum(gave), humans) == pytest.approx(np.mean(left_out))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("  a  dog\n", "dog"),
        ("the man and an apple", "man and apple"),
        ("none", "0"), ("None", "0"), ("zero", "0"), ("two", "2"), ("ten", "10"),
        ("eleven", "eleven"),
        ("twenty two", "twenty 2"),
        ("a", ""),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("black, white", "black white"),
        ("ice-cream", "ice cream"),
        ("t-shirt - red", "tshirt red"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("red;1,5", "red15"),
        ("$5.00", "$5.00"),
        ("5.", "5"),
        ("5 p.m.", "5 pm"),
        (".5", ".5"),
        ("3:30", "3:30"),
        ("men's", "men's"),
        ("dont", "don't"), ("dont know", "don't know"), ("don't", "don't"),
        ("it's", "it's"), ("its", "its"),
        ("im", "im"), ("Im", "im"), ("ive", "ive"),
        ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"), ("couldntve", "couldntve"),
        ("somebody'd", "somebodyd"),
        ("lets", "lets"),
        ("twas", "'twas"),
        ("oclock", "o'clock"),
        ("one's", "one's"),
        ("no!", "no"),
        ("a.b", "ab"),
        ("{red}", "red"),
        ("?", ""),
        ("." * 40, "." * 8),
    ],
)  # fmt: skip
def test_a_prediction_is_normalized(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes!", "Yes "),
        ("ice-cream", "ice cream"),
        ("a dog.", "a dog"),
        ("dont", "dont"),
        ("two", "two"),
        ("1,000", "1000"),
    ],
)
def test_human_answers_lose_punctuation_and_nothing_else(text: str, expected: str) -> None:
    assert without_punctuation(text) == expected


def test_humans_keep_their_punctuation_where_they_agree() -> None:
    """The prediction is always normalized: it then misses what all ten wrote."""
    assert accuracy("ice-cream", *["ice-cream"] * 10) == 0
    assert accuracy("ice-cream", *of_ten("ice-cream", 9)) == 1
    assert accuracy("ice cream", *of_ten("ice-cream", 9)) == 1


def test_a_mark_at_the_end_of_a_human_answer_leaves_a_blank_that_nothing_matches() -> None:
    assert accuracy("yes", *of_ten("yes!", 5)) == 0
    assert accuracy("yes", *of_ten("yes.", 5)) == 1


@pytest.mark.parametrize("word", ["two", "none", "the", "dont", "Yes"])
def test_words_that_only_predictions_lose_never_match(word: str) -> None:
    assert accuracy(word, *of_ten(word, 9)) == 0


def test_the_contractions_are_the_official_ones() -> None:
    assert len(CONTRACTIONS) == 120
    assert [key for key, whole in CONTRACTIONS.items() if key == whole] == ["let's", "she's"]
    assert sorted(key for key in CONTRACTIONS if key != key.lower()) == ["I'dve", "Id've", "Im", "Ive"]


@given(st.lists(st.lists(st.sampled_from(["red", "a", "1,0", "Red", "re-d", "yes!"]), min_size=1, max_size=10),
                min_size=1, max_size=6), st.data())  # fmt: skip
@settings(deadline=None)
def test_rows_are_independent_of_each_other(rows: list[list[str]], data: st.DataObject) -> None:
    labels = ["red", "10", "re d", "0", "a"]
    predicted = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    found = HumanAnswers.of(pa.array(rows, pa.large_list(pa.large_string()))).accuracy(labels, np.array(predicted))
    assert found.tolist() == [accuracy(labels[code], *row) for code, row in zip(predicted, rows, strict=True)]


# --------------------------------------------------------------------------------------- the subsets of a report

COLOURS = ("red", "green", "blue")


def many(photos: range) -> list[Question]:
    """Four questions on each photo: a number, yes or no, a colour, and something rare."""
    found = []
    for photo in photos:
        number, word = str(photo % 25), "yes" if photo % 2 else "no"
        colour, rare = COLOURS[photo % 3 if photo % 5 else 0], f"thing {photo // 2}"
        found += [
            Question(photo, 0, f"How many dots has {photo}?", number, kind="number", begins="how many"),
            Question(photo, 1, f"Is {photo} odd?", word, (("yes", "no")[photo % 2],) * 3, "yes/no", "is"),
            Question(photo, 2, f"What colour is {photo}?", colour, ("pink",) * 2),
            Question(photo, 3, f"What is on {photo}?", rare, begins="what is on the"),
        ]
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and val with photos and questions, and test questions, extracted with fake backbones."""
    data, cache = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("cache")
    for part, photos in ((TRAIN, range(100, 260)), (VAL, range(300, 360))):
        tiny.write_part(data, part, many(photos))
        tiny.write_photos(data, part, photos)
    tiny.write_part(data, TEST, [Question(1, 0, "What is it?", "")], annotated=False)
    tiny.write_photos(data, TEST, [1])
    backbones = [FakeBackbone("image", "eye"), FakeBackbone("text", "ear", dim=12)]
    ec.extract("vqa", data, backbones=backbones, cache=cache, options=ec.Options(device="cpu"))
    return cache


def task_of(cache: Path, **document: Any) -> Task:
    return prepare(parse({"jobs": 1, "features": ["eye", "ear"], "fixed": {"max_iter": 20}, **document}), cache)


def fitted(cache: Path, **document: Any) -> tuple[Task, FittedRun]:
    task = task_of(cache, **document)
    return task, fit(task)[0]


def torn(task: Task) -> bool:
    """Whether a photo stands on two sides."""
    groups = shared_groups(task.base)
    sides = [set(groups[getattr(task.splits, name)]) for name in ("train", "validation", "test")]
    return sum(map(len, sides)) > len(set().union(*sides))


def answers_of(task: Task) -> set[str]:
    return set(task.base.target("answer"))


NUMBERS = plain_yaml("{answer: {from: 1, to: 20}}")
YES_NO = plain_yaml("{answer: [yes, no]}")


@pytest.mark.parametrize(
    ("wanted", "limit", "classes"),
    [(NUMBERS, 40, 20), (NUMBERS, 100, 20), (NUMBERS, None, 20), (YES_NO, 100, 2)],
    ids=["A", "B", "CD", "E"],
)
def test_subsets_by_answer_and_size_with_validation_by_count(
    cache: Path, wanted: Any, limit: int | None, classes: int
) -> None:
    task, run = fitted(
        cache, select={"filter": {"split": "train", **wanted}, "limit": limit}, splits="carve", validation=25, test=0
    )
    assert len(task.classes) == classes
    assert answers_of(task) == ({str(n) for n in range(1, 21)} if wanted is NUMBERS else {"yes", "no"})
    assert (len(task.splits.validation), len(task.splits.test)) == (25, 0)
    assert limit is None or len(task.splits.train) == limit - 25
    assert not torn(task)
    assert {"vqa_accuracy", "accuracy"} <= set(run.scored["validation"].scores)


def test_the_validation_split_alone_can_be_divided(cache: Path) -> None:
    select = {"filter": {"split": "validation", **YES_NO}}
    with pytest.raises(UsageError, match="There are 60 of validation: 'splits: carve' divides all rows anew"):
        task_of(cache, select=select)
    task = task_of(cache, select=select, splits="carve", validation=0.1)
    assert [len(getattr(task.splits, name)) for name in ("train", "validation", "test")] == [43, 5, 12]
    assert "published splits are put aside: all selected rows are divided anew" in task.splits.notes


def test_open_ended_questions_with_the_most_frequent_answers_of_the_training_rows(cache: Path, tmp_path: Path) -> None:
    task, run = fitted(cache, select={"top_classes": 5}, test=0.25)
    train_answers = task.base.target("answer")[task.splits.train]
    assert set(train_answers) == set(task.classes) == {"yes", "no", "red", "green", "blue"}
    assert not torn(task)
    assert set(np.flatnonzero(task.base.splits == "validation")) == set(task.splits.validation)
    for split in ("validation", "test"):
        truth = task.base.target("answer")[getattr(task.splits, split)]
        known = np.isin(truth.astype(str), task.classes)
        assert 0 < known.mean() < 1
        assert task.vocabulary is not None
        assert task.vocabulary.ceiling[split] == pytest.approx(known.mean())
        assert run.scored[split].scores["accuracy"].value <= known.mean()
        assert run.scored[split].scores["top_5_accuracy"].value == pytest.approx(known.mean())
    assert any(note.startswith("top_classes 5: the 5 most frequent classes of the training rows") for note in run.notes)
    assert any(note.startswith("ceiling: 50.0% of validation") for note in run.notes)
    folder, _ = record.write(task, [run], tmp_path)
    page = report.write(folder, task, [run], None).read_text(encoding="utf-8")
    assert "ceiling: 50.0% of validation" in page
    assert "By question type" in page
    document = record.read_metrics(folder)
    assert document["vocabulary"]["ceiling"]["validation"] == 0.5
    assert document["classes"] == 5
    kept = record.read_parquet(folder / record.PREDICTIONS).to_pylist()
    unseen = [row for row in kept if row["truth"] is not None and row["truth"] not in task.classes]
    assert unseen
    assert all(row["rank_of_truth"] is None and row["predicted"] in task.classes for row in unseen)


def test_the_most_frequent_classes_are_counted_on_training_rows_alone(cache: Path) -> None:
    task = task_of(cache, select={"filter": {"answer_type": "number"}, "top_classes": 3})
    answers = task.base.target("answer").astype(str)
    counts = {one: int((answers == one).sum()) for one in task.classes}
    train = {one: int((answers[task.base.splits == "train"] == one).sum()) for one in set(answers)}
    assert sum(counts.values()) > sum(sorted(train.values())[-3:]) - 1
    assert len(task.splits.train) == sum(int((answers[task.splits.train] == one).sum()) for one in task.classes)


def test_more_classes_than_there_are_is_all_of_them(cache: Path) -> None:
    task = task_of(cache, select={"filter": YES_NO, "top_classes": 1000})
    assert (task.classes, task.unseen) == (("no", "yes"), ())
    assert task.vocabulary is not None
    assert (task.vocabulary.n_left, dict(task.vocabulary.ceiling)) == (0, {"validation": 1.0})


def test_a_limit_is_of_triplets_and_nested_in_a_filter(cache: Path) -> None:
    chosen = {
        limit: set(task_of(cache, select={"filter": NUMBERS, "limit": limit}).base.ids) for limit in (50, 100, 150)
    }
    assert [len(ids) for ids in chosen.values()] == [50, 100, 150]
    assert chosen[50] < chosen[100] < chosen[150]
    everything = task_of(cache, select={"limit": 10_000})
    assert None not in answers_of(everything)
    assert len(everything.base) == 4 * 220


def test_no_photo_stands_on_two_sides_of_a_fold(cache: Path) -> None:
    task, run = fitted(
        cache, select={"filter": {"answer_type": ["yes/no", "other"]}, "top_classes": 5}, cv={"folds": 3},
        grid={"C": [0.1, 1.0]},
    )  # fmt: skip
    assert run.splitter == "StratifiedGroupKFold"
    assert not torn(task)


def test_vqa_accuracy_is_scored_listed_and_compared(cache: Path, tmp_path: Path) -> None:
    task = task_of(cache, features=[["eye"], ["ear"]], select={"filter": YES_NO})
    runs = fit(task)
    for run in runs:
        scored = run.scored["validation"]
        right = scored.probabilities.argmax(1) == scored.truth
        found = scored.scores["vqa_accuracy"]
        assert next(iter(scored.scores)) == "vqa_accuracy"
        assert found.value == pytest.approx((right + 0.9 * ~right).mean())
        assert found.low <= found.value <= found.high
        assert [part["type"] for part in scored.by_type["question_type"]] == ["is"]
        assert scored.by_type["answer_type"][0]["count"] == 60
        assert scored.by_type["answer_type"][0]["accuracy"] == pytest.approx(right.mean())
    folder, comparison = record.write(task, runs, tmp_path)
    assert comparison is not None
    assert comparison.metric == "vqa_accuracy"
    values = [row.score.value for row in comparison.rows]
    assert values == sorted(values, reverse=True)
    assert report.write(folder, task, runs, comparison).is_file()
    (one, _) = sorted(folder.glob("*/metrics.json"))
    document = json.loads(one.read_text(encoding="utf-8"))
    assert set(document["scores"]["validation"]["vqa_accuracy"]) == {"value", "low", "high"}
    assert {part["type"]: part["count"] for part in document["by_type"]["validation"]["answer_type"]} == {"yes/no": 60}


def test_a_run_is_repeated_by_the_configuration_that_it_leaves(cache: Path, tmp_path: Path) -> None:
    task, run = fitted(cache, select={"filter": YES_NO, "limit": 60}, splits="carve", validation=15, test=10)
    folder, _ = record.write(task, [run], tmp_path)
    again = prepare(parse(plain_yaml((folder / "config.yaml").read_text(encoding="utf-8"))), cache)
    assert all(
        (getattr(again.splits, name) == getattr(task.splits, name)).all() for name in ("train", "validation", "test")
    )


def test_set_takes_yes_and_no_as_they_are(cache: Path) -> None:
    document = override({"jobs": 1}, ["select.filter.answer=[yes, no]", "features=ear"])
    assert answers_of(prepare(parse(document), cache)) == {"yes", "no"}
