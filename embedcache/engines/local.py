"""The local engine: one process, one device.

Items are read and prepared on threads; on a GPU the next block is prepared while one is on the device, and
vectors are copied back while the next batch runs. On a CPU both would fight for the same cores, so a block
is prepared by all of them and then encoded by all of them: together exactly the time of both.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import xxhash

from embedcache.backbones.base import Encoder, Prepared
from embedcache.engines.base import Advance, Encoded, Work, chunked, ignore
from embedcache.errors import ItemError
from embedcache.options import usable_cores

READ_CHUNK = {"image": 8, "text": 1024}
FIRST_BATCH = 16
FIRST_IMAGES_ON_CPU = 4
"""On a CPU the activations of a few images fill the caches already, and larger ones are mapped anew for every layer."""
LARGEST_BATCH = 256
WORTHWHILE = 1.05
"""A larger batch is kept where it is at least this much faster."""


@dataclass
class BatchSize:
    """A batch size that grows while it pays and halves when the device runs out of memory.

    Speed is taken as numbers (pixels, padded tokens) a second, so that short and long texts compare.
    """

    size: int = FIRST_BATCH
    largest: int = LARGEST_BATCH
    settled: bool = False
    _best: float = 0.0
    _seen: list[float] = field(default_factory=list)

    @classmethod
    def fixed(cls, size: int) -> BatchSize:
        """A batch size that only ever shrinks."""
        return cls(size, size, settled=True)

    def record(self, items: int, numbers: int, seconds: float) -> None:
        """Learn from one batch; only full ones count."""
        if self.settled or items < self.size:
            return
        self._seen.append(numbers / max(seconds, 1e-9))
        if len(self._seen) < 2:
            return
        speed, self._seen = max(self._seen), []
        if speed < self._best * WORTHWHILE:
            self.size, self.settled = self.size // 2, True
        elif self.size * 2 > self.largest:
            self.settled = True
        else:
            self.size, self._best = self.size * 2, speed

    def halve(self) -> None:
        """The device ran out of memory: half as much from now on."""
        self.size, self.settled, self._seen = self.size // 2, True, []


@dataclass(frozen=True)
class _Ready:
    """A block's items, read and prepared."""

    work: Work
    items: Sequence[Prepared | ItemError]
    content: np.ndarray


class LocalEngine:
    """Encodes blocks with one encoder on its device.

    workers: threads that read and prepare. batch_size: items in a forward pass, None to find it out.
    """

    def __init__(
        self, encoder: Encoder, modality: str, *, workers: int | None = None, batch_size: int | None = None
    ) -> None:
        self.encoder = encoder
        self.workers = workers or usable_cores()
        first = FIRST_IMAGES_ON_CPU if modality == "image" and encoder.device.type == "cpu" else FIRST_BATCH
        self.batch = BatchSize.fixed(batch_size) if batch_size else BatchSize(first)
        self._chunk = READ_CHUNK[modality]
        self._ahead = 1 if encoder.device.type == "cpu" else 2
        self._dim: int | None = None

    @property
    def summary(self) -> dict[str, object]:
        """Device, batch size and threads."""
        return {"device": str(self.encoder.device), "batch_size": self.batch.size, "workers": self.workers}

    def encode(self, works: Iterable[Work], advance: Advance = ignore) -> Iterator[Encoded]:
        """Encode block after block, in order."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="prepare") as pool:
            for ready in self._prepared(works, pool):
                yield self._encoded(ready, advance)

    def _prepared(self, works: Iterable[Work], pool: ThreadPoolExecutor) -> Iterator[_Ready]:
        """Prepared blocks; as many as ``_ahead`` are in the making at any time."""
        making: deque[tuple[Work, list[Future[tuple[list[Prepared | ItemError], np.ndarray]]]]] = deque()
        for work in works:
            making.append((work, [pool.submit(self._prepare, work, rows) for rows in chunked(work.rows, self._chunk)]))
            if len(making) >= self._ahead:
                yield _gathered(*making.popleft())
        while making:
            yield _gathered(*making.popleft())

    def _prepare(self, work: Work, rows: np.ndarray) -> tuple[list[Prepared | ItemError], np.ndarray]:
        """Read, digest and prepare a few items; runs on a thread."""
        payloads: list[bytes] = []
        failures: dict[int, ItemError] = {}
        content = np.zeros((len(rows), 16), np.uint8)
        for position, row in enumerate(rows):
            try:
                payload = work.read(int(row))
            except ItemError as error:
                failures[position] = error
                continue
            content[position] = np.frombuffer(xxhash.xxh3_128_digest(payload), np.uint8)
            payloads.append(payload)
        prepared = iter(self.encoder.prepare(payloads) if payloads else [])
        return [failures.get(position) or next(prepared) for position in range(len(rows))], content

    def _encoded(self, ready: _Ready, advance: Advance) -> Encoded:
        failures = {index: str(item) for index, item in enumerate(ready.items) if isinstance(item, ItemError)}
        good = [index for index in range(len(ready.items)) if index not in failures]
        order = sorted(good, key=lambda index: -ready.items[index].length)  # type: ignore[union-attr]
        advance(len(failures))
        found = self._forward_all([ready.items[index] for index in order], advance)  # type: ignore[misc]
        vectors = np.zeros((len(ready.items), found.shape[1]), np.float32)
        vectors[order] = found
        for index in np.flatnonzero(~np.isfinite(vectors).all(1)):
            failures[int(index)] = "its vector is not finite"
            vectors[index] = 0
        truncated = sum(ready.items[index].truncated for index in good)  # type: ignore[union-attr]
        return Encoded(ready.work, vectors, ready.content, failures, truncated)

    def _forward_all(self, items: Sequence[Prepared], advance: Advance) -> np.ndarray:
        """Vectors of all items, float32 (n, dim); copied back one batch behind the device."""
        copies: list[_Copy] = []
        start = 0
        while start < len(items):
            batch = items[start : start + self.batch.size]
            began = time.perf_counter()
            try:
                copies.append(_Copy(self.encoder.forward(batch)))
            except torch.OutOfMemoryError:
                if self.batch.size == 1:
                    raise
                torch.cuda.empty_cache()
                self.batch.halve()
                continue
            if len(copies) > 1:
                copies[-2].wait()
            if not self.batch.settled:
                copies[-1].wait()
                numbers = sum(item.array.size for item in batch)
                self.batch.record(len(batch), numbers, time.perf_counter() - began)
            start += len(batch)
            advance(len(batch))
        if not copies:
            return np.zeros((0, self._dim or 0), np.float32)
        found = np.concatenate([copy.wait() for copy in copies])
        self._dim = found.shape[1]
        return found


class _Copy:
    """A batch's vectors on their way from the device; on a CPU they are here already."""

    def __init__(self, vectors: torch.Tensor) -> None:
        vectors = vectors.float()
        if vectors.device.type != "cuda":
            self._host, self._event = vectors.cpu(), None
            return
        self._host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        self._host.copy_(vectors, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> np.ndarray:
        """The vectors, float32 (n, dim), once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()


def _gathered(work: Work, futures: Sequence[Future[tuple[list[Prepared | ItemError], np.ndarray]]]) -> _Ready:
    parts = [future.result() for future in futures]
    return _Ready(
        work, [item for items, _ in parts for item in items], np.concatenate([digests for _, digests in parts])
    )
