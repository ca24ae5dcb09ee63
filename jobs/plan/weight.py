"""How much is written: objects, bytes, and the requests that put them into object storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import s3fs

from storage.root import Root

_MANIFEST, _RECEIPT = 500, 370  # bytes of a manifest, and of what it says of a shard
_PART_BYTES: int = s3fs.S3FileSystem.default_block_size


@dataclass(frozen=True)
class Weight:
    """Objects, their bytes, and the requests that put them into object storage."""

    objects: int = 0
    bytes: float = 0.0
    puts: int = 0

    def __add__(self, other: Weight) -> Weight:
        return Weight(
            self.objects + other.objects, self.bytes + other.bytes, self.puts + other.puts
        )

    def times(self, count: int) -> Weight:
        """Return the weight of the same `count` times."""
        return Weight(self.objects * count, self.bytes * count, self.puts * count)


def weight(sizes: Sequence[float]) -> Weight:
    """Return the weight of objects of these sizes in bytes."""
    return Weight(len(sizes), sum(sizes), sum(map(_puts, sizes)))


def partition_weight(shards: Sequence[float]) -> Weight:
    """Return the weight of a partition: shards of these bytes, and its manifest."""
    return weight([*shards, _MANIFEST + _RECEIPT * len(shards)]) if shards else Weight()


@contextmanager
def scratch() -> Iterator[Root]:
    """Give an empty root in the memory of this process."""
    root = Root(f"memory://layerrank-{uuid4().hex}")
    try:
        yield root
    finally:
        if root.exists(""):
            root.filesystem.rm(root.path(), recursive=True)


def _puts(size: float) -> int:
    """Return the requests of an upload: one, or one per part and two around them."""
    return 1 if size <= _PART_BYTES else -int(-size // _PART_BYTES) + 2
