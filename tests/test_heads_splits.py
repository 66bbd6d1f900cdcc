"""Who trains, who validates, who tests; and that no group ever stands on two sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache import samples
from embedcache.errors import UsageError
from embedcache.view import Features, shared_groups
from heads import splits
from heads.splits import Splits, carve, folds, make_splits
from tests.heads_helpers import bare, captioned, prepared


def features_of(n: int, **columns: Any) -> Features:
    return bare(samples.build([f"s{row}" for row in range(n)], **columns))


def made(features: Features, codes: np.ndarray, **stated: Any) -> Splits:
    options: dict[str, Any] = {"validation": 0.1, "test": None, "seed": 0, **stated}
    return make_splits(features, codes, shared_groups(features), **options)


def no_group_on_two_sides(groups: np.ndarray, *sides: np.ndarray) -> bool:
    owners = [set(groups[side].tolist()) for side in sides]
    return sum(map(len, owners)) == len(set().union(*owners))


def test_published_splits_are_honoured_to_the_row() -> None:
    published = ["train", "test", "validation", "train", "test", "train"]
    found = made(features_of(6, split=published), np.array([0, 1, 0, 1, 0, 0]))
    assert (found.train.tolist(), found.validation.tolist(), found.test.tolist()) == ([0, 3, 5], [2], [1, 4])
    assert found.notes == ()


def test_validation_is_carved_from_train_only_where_none_is_published() -> None:
    codes = np.arange(60) % 2
    features = features_of(60, split=["train"] * 40 + ["test"] * 20)
    found = made(features, codes)
    assert len(found.validation) == 4
    assert set(found.train) | set(found.validation) == set(range(40))
    assert found.test.tolist() == list(range(40, 60))
    assert np.bincount(codes[found.validation]).tolist() == [2, 2]
    assert found.notes == ("no validation split is published: 10% of train carved, seed 0",)


def test_with_folds_nothing_is_carved_for_validation() -> None:
    found = made(features_of(60, split=["train"] * 40 + ["test"] * 20), np.arange(60) % 2, validation=None)
    assert found.train.tolist() == list(range(40))
    assert not len(found.validation)
    assert found.notes == ()


def test_test_is_carved_only_where_no_split_at_all_is_published() -> None:
    codes = np.arange(50) % 2
    found = made(features_of(50), codes, validation=None)
    assert (len(found.train), len(found.test)) == (40, 10)
    assert np.bincount(codes[found.test]).tolist() == [5, 5]
    assert found.notes == ("no split is published: 20% carved for test, seed 0",)
    only_train = made(features_of(50, split=["train"] * 50), codes, validation=None)
    assert (len(only_train.train), len(only_train.test)) == (50, 0)


def test_a_stated_test_split_is_carved_where_the_published_one_has_no_target() -> None:
    features = features_of(60, split=["train"] * 40 + ["test"] * 20)
    codes = np.where(np.arange(60) < 40, np.arange(60) % 2, -1)
    as_published = made(features, codes)
    assert not len(as_published.test)
    found = made(features, codes, test=0.25)
    assert [len(found.train), len(found.validation), len(found.test)] == [27, 3, 10]
    assert found.notes[0] == "no test row has a target: 25% of train carved for test, seed 0"
    assert len(made(features, codes, test=8).test) == 8


def test_a_stated_test_split_does_not_touch_a_published_one() -> None:
    found = made(features_of(60, split=["train"] * 40 + ["test"] * 20), np.arange(60) % 2, test=0.5)
    assert found.test.tolist() == list(range(40, 60))
    assert "test: 0.5 is not used: a test split with targets is published" in found.notes


def test_published_splits_are_put_aside_where_that_is_said() -> None:
    codes = np.arange(60) % 2
    features = features_of(60, split=["validation"] * 60)
    found = made(features, codes, published=False, test=0, validation=15)
    assert [len(found.train), len(found.validation), len(found.test)] == [45, 15, 0]
    assert found.notes == (
        "published splits are put aside: all selected rows are divided anew",
        "15 rows carved for validation, seed 0",
    )
    by_default = made(features, codes, published=False)
    assert [len(by_default.train), len(by_default.validation), len(by_default.test)] == [43, 5, 12]


def test_zero_carves_nothing() -> None:
    found = made(features_of(60), np.arange(60) % 2, validation=0, test=0)
    assert [len(found.train), len(found.validation), len(found.test)] == [60, 0, 0]


def test_a_count_is_met_with_whole_groups_in_proportion_to_the_classes() -> None:
    codes = np.repeat(np.arange(400) % 4, 3)
    groups = np.repeat(np.arange(400), 3)
    groups[:6] = np.arange(400, 406)  # six rows alone: any count can be made up
    kept, held = carve(codes, groups, np.arange(1200), 250, 0)
    assert (len(kept), len(held)) == (950, 250)
    assert no_group_on_two_sides(groups, kept, held)
    assert np.bincount(codes[held]) / 250 == pytest.approx([0.25] * 4, abs=0.03)
    assert carve(codes, groups, np.arange(1200), 250, 1)[1].tolist() != held.tolist()


def test_a_count_that_cannot_be_is_said() -> None:
    codes, groups = np.arange(12) % 2, np.repeat(np.arange(4), 3)
    with pytest.raises(UsageError, match="12 rows cannot be held out of 12"):
        carve(codes, groups, np.arange(12), 12, 0)
    with pytest.raises(UsageError, match="No group of rows that belong together is as small as 2 rows"):
        carve(codes, groups, np.arange(12), 2, 0)


def test_carving_is_seeded() -> None:
    features, codes = features_of(80), np.arange(80) % 2
    first, again, other = (made(features, codes, seed=seed) for seed in (1, 1, 2))
    assert first.test.tolist() == again.test.tolist() != other.test.tolist()


def test_rows_without_a_target_are_in_no_split() -> None:
    codes = np.where(np.arange(60) % 5 == 0, -1, np.arange(60) % 2)
    for split in (None, ["train"] * 40 + ["test"] * 20):
        found = made(features_of(60, split=split), codes)
        used = np.concatenate([found.train, found.validation, found.test])
        assert sorted(used) == np.flatnonzero(codes >= 0).tolist()


def test_labelled_rows_of_other_splits_are_counted() -> None:
    published = ["train"] * 10 + ["test"] * 4 + ["extra", None]
    codes = np.array([row % 2 for row in range(15)] + [-1])
    found = made(features_of(16, split=published), codes, validation=None)
    assert found.notes == ("1 samples with a target are in none of the splits train, validation and test: not used",)


@pytest.mark.parametrize(
    ("split", "codes", "words"),
    [
        (["test"] * 4, [0, 1, 0, 1], "There are no training rows"),
        (["train", "train", "test", "test"], [-1, -1, 0, 1], "There are no training rows"),
        (None, [-1, -1, -1, -1], "No sample that has all features has a target"),
        (["train", "test", "test", "test"], [0, 0, 1, 1], "1 rows in 1 groups cannot be divided"),
    ],
)
def test_what_cannot_be_split_is_said(split: Any, codes: list[int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(features_of(4, split=split), np.array(codes))


def test_one_group_cannot_be_divided() -> None:
    with pytest.raises(UsageError, match="4 rows in 1 groups cannot be divided"):
        made(features_of(4, group=["a"] * 4), np.array([0, 1, 0, 1]))


def test_overlap_of_published_splits_is_counted_and_left_as_published() -> None:
    features = features_of(
        6,
        split=["train", "train", "validation", "test", "test", "test"],
        images=["a", "b", "a", "b", "b", "c"],
        texts=[["x"], ["y", "z"], ["w"], ["z"], ["q"], ["q", "w"]],
    )
    found = made(features, np.array([0, 1, 0, 1, 0, 1]))
    assert found.notes == (
        "1 samples of validation have an image that also occurs in train",
        "2 samples of test have an image that also occurs in train",
        "1 samples of test have a text that also occurs in train",
        "1 samples of test have a text that also occurs in validation",
    )
    assert (found.train.tolist(), found.validation.tolist(), found.test.tolist()) == ([0, 1], [2], [3, 4, 5])


def test_groups_join_what_shares_an_image_or_a_group_even_by_a_chain() -> None:
    features = features_of(
        7, images=["a", "a", "b", "b", None, None, "c"], group=["1", "2", "2", None, "3", None, None]
    )
    groups = shared_groups(features)
    assert len(set(groups[:4])) == 1
    assert len(set(groups[[0, 4, 5, 6]])) == 4


def test_captions_of_one_sample_are_one_group(tmp_path: Path) -> None:
    captioned(tmp_path, n=24)
    task = prepared(tmp_path, features="my-text", select={"captions": "each"})
    units = task.sets[0]
    groups = shared_groups(units)
    assert len(units) == 24 * 3
    assert len(np.unique(groups)) == 24
    assert all(len(np.unique(groups[units.sample_rows == row])) == 1 for row in range(24))


rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 11), st.none() | st.integers(0, 5)), min_size=8, max_size=60
)


@given(rows, st.integers(0, 3), st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 0.9, 1, 5, 7]))
@settings(deadline=None, max_examples=150)
def test_no_group_is_torn_by_carving(drawn: list[tuple[int, int, int | None]], seed: int, share: float) -> None:
    codes = np.array([code for code, _, _ in drawn])
    features = features_of(
        len(drawn),
        images=[f"{image}.jpg" for _, image, _ in drawn],
        group=[None if group is None else str(group) for _, _, group in drawn],
    )
    groups = shared_groups(features)
    if len(np.unique(groups)) < 3:
        with pytest.raises(UsageError, match="cannot be divided"):
            carve(codes, groups, np.flatnonzero(groups == groups[0]), share, seed)
        return
    if isinstance(share, int) and np.unique(groups, return_counts=True)[1].min() > share:
        return
    found = make_splits(features, codes, groups, validation=None, test=share, seed=seed)
    assert no_group_on_two_sides(groups, found.train, found.test)
    assert sorted([*found.train, *found.test]) == list(range(len(drawn)))
    assert len(found.train)
    assert len(found.test)


@given(rows, st.integers(2, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=80)
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_no_group_is_torn_by_folds(drawn: list[tuple[int, int, int | None]], n_folds: int, seed: int) -> None:
    codes = np.unique([code for code, _, _ in drawn], return_inverse=True)[1]
    features = features_of(len(drawn), images=[f"{image}.jpg" for _, image, _ in drawn])
    groups = shared_groups(features)
    if len(np.unique(groups)) < n_folds:
        with pytest.raises(UsageError, match=f"{n_folds} folds need as many groups"):
            folds(codes, groups, n_folds, seed)
        return
    if np.bincount(codes).max() < n_folds:
        with pytest.raises(UsageError, match="rows in some class"):
            folds(codes, groups, n_folds, seed)
        return
    parts, _ = folds(codes, groups, n_folds, seed)
    assert len(parts) == n_folds
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(len(drawn)))
    assert all(no_group_on_two_sides(groups, train, held) for train, held in parts)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.75])
def test_a_carved_share_of_groups_is_near_the_one_asked_for(share: float) -> None:
    codes = np.repeat(np.arange(200) % 4, 3)
    groups = np.repeat(np.arange(200), 3)
    kept, held = carve(codes, groups, np.arange(600), share, 0)
    assert len(held) / 600 == pytest.approx(share, abs=0.02)
    assert len(kept) + len(held) == 600
    assert np.bincount(codes[held]) / len(held) == pytest.approx([0.25] * 4, abs=0.03)


def test_the_splitter_is_chosen_by_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.arange(40) % 2
    assert folds(codes, np.arange(40), 4, 0)[1] == "StratifiedKFold"
    pairs = np.repeat(np.arange(20), 2)
    assert folds(codes, pairs, 4, 0)[1] == "StratifiedGroupKFold"
    monkeypatch.setattr(splits, "MANY_GROUPS", 19)
    parts, name = folds(codes, pairs, 4, 0)
    assert name == "GroupKFold"
    assert all(no_group_on_two_sides(pairs, train, held) for train, held in parts)
    assert folds(codes, np.arange(40), 4, 0)[1] == "StratifiedKFold"


def test_folds_without_groups_are_stratified_and_seeded() -> None:
    codes = np.array([0] * 30 + [1] * 10)
    parts, _ = folds(codes, np.arange(40), 5, 3)
    assert [np.bincount(codes[held]).tolist() for _, held in parts] == [[6, 2]] * 5
    assert all(
        (left == right).all() for (_, left), (_, right) in zip(parts, folds(codes, np.arange(40), 5, 3)[0], strict=True)
    )


@pytest.mark.parametrize("groups", [np.arange(6), np.array([0, 0, 1, 2, 3, 4])])
def test_folds_need_rows_in_some_class(groups: np.ndarray) -> None:
    with pytest.raises(UsageError, match="4 folds need 4 rows in some class; the largest has 3"):
        folds(np.array([0, 1, 0, 1, 0, 1]), groups, 4, 0)
