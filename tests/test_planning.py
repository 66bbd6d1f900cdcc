"""The plan: a pure decision, checked against what it must lead to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.items import ItemStates
from embedcache.planning import ENCODE, doubtful, plan
from embedcache.store import DONE, FAILED, PENDING


@dataclass
class Rows:
    """A feature file as a plan sees it."""

    ids: npt.NDArray[np.bytes_]
    content: npt.NDArray[np.uint8]
    status: npt.NDArray[np.uint8]


def digest(version: int) -> npt.NDArray[np.uint8]:
    return np.full(16, version, np.uint8)


def rows(items: dict[int, tuple[int, int]]) -> Rows | None:
    """A file of items: number to (version of the content, status)."""
    if not items:
        return None
    ids = np.array([b"item%02d" % item for item in items])
    content = np.stack([digest(version) for version, _ in items.values()])
    return Rows(ids, content, np.array([status for _, status in items.values()], np.uint8))


def states(items: dict[int, int]) -> ItemStates:
    """Wanted items: number to version, all of them known."""
    n = len(items)
    ids = np.array([b"item%02d" % item for item in items])
    nothing = np.zeros(n, np.int64)
    return ItemStates(
        ids, np.stack([digest(version) for version in items.values()]), np.ones(n, bool), nothing, nothing
    )


items_now = st.dictionaries(st.integers(0, 12), st.integers(1, 3), min_size=1)
done = st.sampled_from([DONE, FAILED])
sealed_files = st.dictionaries(st.integers(0, 12), st.tuples(st.integers(1, 3), done))
partial_files = st.dictionaries(
    st.integers(0, 12), st.tuples(st.integers(1, 3), st.sampled_from([PENDING, DONE, FAILED]))
)


@settings(max_examples=400, deadline=None)
@given(items_now, sealed_files, partial_files, st.booleans())
def test_every_row_comes_from_where_its_content_is_true(
    now: dict[int, int], old: dict[int, tuple[int, int]], half: dict[int, tuple[int, int]], retry: bool
) -> None:
    sealed, partial = rows(old), rows(half)
    found = plan(states(now), sealed, partial, retry_failed=retry)
    wanted = {b"item%02d" % item: digest(version) for item, version in now.items()}
    kept = {b"item%02d" % item: digest(version) for item, (version, _) in old.items()}
    if found.action == "reuse":
        assert sealed is not None
        assert [bytes(item) for item in found.ids] == list(wanted)
        assert found.n_encode == 0
    else:
        assert {bytes(item) for item in found.ids} == set(wanted) | set(kept)
        assert len(set(found.ids.tolist())) == len(found.ids)
        assert [bytes(item) for item in found.ids[: len(kept)]] == list(kept)
    for item, donor, row, state in zip(found.ids, found.donor, found.donor_row, found.state, strict=True):
        if donor == ENCODE:
            assert bytes(states(now).ids[state]) == bytes(item)
            continue
        file = (sealed, partial)[donor]
        assert file is not None
        assert bytes(file.ids[row]) == bytes(item)
        assert file.status[row] != PENDING
        if bytes(item) in wanted:
            assert np.array_equal(file.content[row], wanted[bytes(item)])
            assert not (retry and file.status[row] == FAILED)


@settings(max_examples=300, deadline=None)
@given(items_now, sealed_files, partial_files)
def test_nothing_that_is_true_is_encoded_again(
    now: dict[int, int], old: dict[int, tuple[int, int]], half: dict[int, tuple[int, int]]
) -> None:
    found = plan(states(now), rows(old), rows(half))
    true = {item for item, (version, _) in old.items() if now.get(item) == version}
    true |= {item for item, (version, status) in half.items() if now.get(item) == version and status != PENDING}
    assert found.n_encode == len(set(now) - true)


@settings(max_examples=300, deadline=None)
@given(items_now, sealed_files, partial_files)
def test_a_file_is_gone_on_with_only_if_it_holds_the_rows_to_be_and_nothing_false(
    now: dict[int, int], old: dict[int, tuple[int, int]], half: dict[int, tuple[int, int]]
) -> None:
    found = plan(states(now), rows(old), rows(half))
    if found.action == "resume":
        assert [b"item%02d" % item for item in half] == [bytes(item) for item in found.ids]
        assert all(now.get(item, version) == version for item, (version, status) in half.items() if status != PENDING)


def test_what_was_asked_for_in_another_order_is_reused() -> None:
    found = plan(states({3: 1, 1: 1}), rows({1: (1, DONE), 2: (1, DONE), 3: (1, DONE)}), None)
    assert (found.action, found.donor_row.tolist()) == ("reuse", [2, 0])


def test_only_items_that_a_file_holds_are_doubtful() -> None:
    wanted = states({1: 1, 2: 1, 3: 1})
    unknown = ItemStates(wanted.ids, wanted.content, np.array([False, False, True]), wanted.size, wanted.mtime_ns)
    file = rows({1: (1, DONE), 3: (1, DONE)})
    assert file is not None
    assert doubtful(unknown, [file]).tolist() == [0]
