"""What of a data set a head looks at: filters, ranges, limits, the classes it knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache import samples
from embedcache.errors import UsageError
from embedcache.samples import SampleTable
from heads.config import Selection
from heads.selection import filtered, selected, with_top_classes
from heads.splits import Splits


def table_of(**columns: Any) -> SampleTable:
    n = len(next(iter(columns.values())))
    target = {"targets": {"answer": columns.pop("answer")}} if "answer" in columns else {}
    return samples.build([f"s{row}" for row in range(n)], **target, meta=columns)


def kept(table: SampleTable, name: str, wanted: Any) -> list[int]:
    rows = np.arange(table.samples.num_rows)
    found: list[int] = filtered(table, rows, Selection(filter={name: wanted}).filter).tolist()
    return found


ANSWERS = ["1", "20", "21", "0", "-3", "1.5", "07", "2 ", "1,000", "two", "", None, "1e1", "٣"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"from": 1, "to": 20}, ["1", "20"]),
        ({"from": 0}, ["1", "20", "21", "0"]),
        ({"to": 0}, ["0", "-3"]),
        ({"from": 1.0, "to": 20}, ["1", "20", "1.5"]),
        ({"from": 30, "to": 40}, []),
        ([1, "two"], ["1", "two"]),
        (20, ["20"]),
        ([None, ""], ["", None]),
    ],
)
def test_numbers_that_are_written_as_texts(wanted: Any, expected: list[Any]) -> None:
    assert [ANSWERS[row] for row in kept(table_of(answer=ANSWERS), "answer", wanted)] == expected


def test_ranges_of_columns_of_numbers() -> None:
    table = table_of(year=[1999, 2000, None, 2001], share=[0.5, float("nan"), 1.0, None])
    assert kept(table, "year", {"from": 2000}) == [1, 3]
    assert kept(table, "share", {"from": 0, "to": 1}) == [0, 2]


@pytest.mark.parametrize("wanted", [{"from": 1}, [1]])
def test_a_column_of_lists_is_not_filtered(wanted: Any) -> None:
    with pytest.raises(UsageError, match="'filter': answers is list"):
        kept(table_of(answers=pa.array([["a"], ["b"]])), "answers", wanted)


@given(st.lists(st.text("0123456789.-+e x", max_size=5) | st.none(), min_size=1), st.integers(-5, 50))
def test_any_texts_have_a_range(texts: list[str | None], low: int) -> None:
    for row in kept(table_of(answer=pa.array(texts, pa.string())), "answer", {"from": low}):
        assert int(str(texts[row])) >= low


def test_a_limit_is_of_rows_with_a_target() -> None:
    table = table_of(answer=["a", None, "b", None, "a", "b", None, "a"])
    rows = np.arange(8)
    assert set(selected(table, rows, Selection(limit=3))) < {0, 2, 4, 5, 7}
    assert selected(table, rows, Selection(limit=100)).tolist() == [0, 2, 4, 5, 7]
    assert selected(table, rows, Selection()).tolist() == rows.tolist()
    assert len(selected(table_of(colour=["red"] * 4), np.arange(4), Selection(limit=3))) == 3


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_limits_are_nested_whatever_the_filter(first: int, second: int, seed: int) -> None:
    table = table_of(answer=[str(row % 7) if row % 4 else None for row in range(80)])
    wanted = {"answer": {"from": 1, "to": 5}}
    small, large = (
        set(selected(table, np.arange(80), Selection(filter=wanted, limit=limit, seed=seed)).tolist())
        for limit in sorted((first, second))
    )
    assert small <= large


def splits_of(train: list[int], validation: list[int]) -> Splits:
    return Splits(np.array(train), np.array(validation), np.array([], int), ())


def test_the_most_frequent_classes_of_the_training_rows_come_first_in_their_old_order() -> None:
    codes = np.array([0, 1, 1, 2, 2, 2, 3, 3, 0, 0, 0, -1])
    labels, recoded, splits, found = with_top_classes(
        ("a", "b", "c", "d"), codes, splits_of(list(range(7)), [7, 8, 9, 10]), 2
    )
    assert labels == ("b", "c", "a", "d")
    assert recoded.tolist() == [2, 0, 0, 1, 1, 1, 3, 3, 2, 2, 2, -1]
    assert splits.train.tolist() == [1, 2, 3, 4, 5]
    assert splits.validation.tolist() == [7, 8, 9, 10]
    assert (found.classes, found.n_training, found.n_left, found.ceiling) == (2, 7, 2, {"validation": 0.0})
    assert found.notes == (
        "top_classes 2: the 2 most frequent classes of the training rows; 2 of 7 training rows have another and leave "
        "training",
        "ceiling: 0.0% of validation has one of these classes; the rest counts as wrong",
    )


def test_one_class_is_nothing_to_learn() -> None:
    with pytest.raises(UsageError, match="The training rows have one class only, 'b'"):
        with_top_classes(("a", "b"), np.array([1, 1, 0]), splits_of([0, 1], [2]), 2)
