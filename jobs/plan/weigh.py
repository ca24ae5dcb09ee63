"""What objects will weigh: small ones are written into memory by the run's own writers, and scaled.

Nothing here knows an encoding: a shard is written at two numbers of prompts and two numbers of row
groups, a manifest at two numbers of receipts, and the weight is linear between and beyond them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import uuid4

import s3fs

from storage.manifest import Settings, digest_of, publish
from storage.partition import MANIFEST, Partition, shard_name
from storage.root import Root
from storage.shards import Receipt

_BUDGET = 32 << 20  # bytes of a shard that is written to be weighed
_FEW_RECEIPTS = 8
_PART_BYTES: int = s3fs.S3FileSystem.default_block_size
WriteShard = Callable[[int, int], Receipt]  # of so many prompts and row groups


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


@contextmanager
def scratch() -> Iterator[Root]:
    """Give an empty root in the memory of this process."""
    root = Root(f"memory://layerrank-{uuid4().hex}")
    try:
        yield root
    finally:
        if root.exists(""):
            root.filesystem.rm(root.path(), recursive=True)


def weigh_shards(
    write: WriteShard, shares: Sequence[int], groups: int, prompt_bytes: float
) -> tuple[list[float], Receipt]:
    """Return the bytes of shards of `shares` prompts in `groups` row groups, and a receipt.

    `prompt_bytes` says about what a prompt takes in one row group, which decides how large a shard
    can be written to be weighed.
    """
    affordable = max(int(_BUDGET / (2 * max(prompt_bytes, 1))), 2)
    high = max(min(max(shares), affordable), 2)
    low = max(high // 2, 1)

    def at(prompts: int) -> float:
        one = write(prompts, 1).bytes
        return one if groups == 1 else one + (write(prompts, 2).bytes - one) * (groups - 1)

    top = at(high)
    slope = (top - at(low)) / (high - low)
    sizes = [top + slope * (share - high) for share in shares]
    return sizes, replace(write(low, 1), rows=max(shares) * groups, bytes=int(max(sizes)))


def weigh_manifest(where: Partition, settings: Settings, receipt: Receipt, count: int) -> float:
    """Return the bytes of the manifest of a partition with `count` shards like `receipt`."""
    few = min(count, _FEW_RECEIPTS)
    small, large = _manifest_bytes(where, settings, receipt, 0), 0
    if few:
        large = _manifest_bytes(where, settings, receipt, few) - small
    return small + large * count / max(few, 1)


def _manifest_bytes(where: Partition, settings: Settings, receipt: Receipt, count: int) -> int:
    digest = digest_of(settings)
    named = [replace(receipt, name=shard_name(n), digest=digest) for n in range(count)]
    with scratch() as root:
        publish(root, where, settings, named)
        return len(root.read(where.shard(MANIFEST)))


def _puts(size: float) -> int:
    """Return the requests of an upload: one, or one per part and two around them."""
    return 1 if size <= _PART_BYTES else -int(-size // _PART_BYTES) + 2
