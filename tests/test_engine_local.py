"""The local engine: order, batch sizes that grow and halve, failures in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcache.engines.base import Work
from embedcache.engines.local import BatchSize, LocalEngine
from embedcache.errors import ItemError
from tests.fakes import FakeBackbone, FakeEncoder, known_vector


def works(n: int, block: int) -> list[Work]:
    def read(row: int) -> bytes:
        if row == 3:
            raise ItemError("the file is missing")
        return b"BAD" if row == 5 else f"item {row}".encode()

    return [Work(start // block, np.arange(start, min(start + block, n)), read) for start in range(0, n, block)]


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_vectors_come_in_order_whatever_the_batches(batch_size: int | None) -> None:
    backbone = FakeBackbone(dim=4)
    engine = LocalEngine(FakeEncoder(backbone), "image", workers=3, batch_size=batch_size)
    advanced: list[int] = []
    found = list(engine.encode(works(50, 20), advanced.append))
    assert [one.work.block for one in found] == [0, 1, 2]
    assert found[0].failures == {3: "the file is missing", 5: "it is bad"}
    assert not found[0].content[3].any()
    assert sum(advanced) == 50
    vectors = np.concatenate([one.vectors for one in found])
    for row in range(50):
        expected = np.zeros(4) if row in (3, 5) else known_vector(f"item {row}".encode(), 4)
        assert np.array_equal(vectors[row], expected)


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    backbone = FakeBackbone(dim=4)
    encoder = FakeEncoder(backbone)
    forward = encoder.forward

    def small_device(batch: object) -> torch.Tensor:
        if len(batch) > 5:  # type: ignore[arg-type]
            raise torch.OutOfMemoryError("device is full")
        return forward(batch)  # type: ignore[arg-type]

    encoder.forward = small_device  # type: ignore[method-assign]
    engine = LocalEngine(encoder, "image", batch_size=32)
    [found] = engine.encode([Work(0, np.arange(30), lambda row: b"item %d" % row)])
    assert np.isfinite(found.vectors).all()
    assert max(backbone.batches) <= 5
    assert engine.summary["batch_size"] == 4


def test_one_item_that_does_not_fit_is_an_error() -> None:
    backbone = FakeBackbone(fail_at=1, failure=torch.OutOfMemoryError("device is full"))
    engine = LocalEngine(FakeEncoder(backbone), "image", batch_size=4)
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.encode([Work(0, np.arange(3), lambda row: b"item %d" % row)]))


def test_a_batch_grows_while_it_pays() -> None:
    size = BatchSize(size=8, largest=256)
    seconds = {8: 1.0, 16: 1.2, 32: 1.5, 64: 3.0}
    for _ in range(20):
        size.record(size.size, size.size * 100, seconds[size.size])
    assert (size.size, size.settled) == (32, True)


def test_partial_batches_teach_nothing() -> None:
    size = BatchSize(size=8)
    for _ in range(5):
        size.record(3, 300, 0.001)
    assert (size.size, size.settled) == (8, False)
