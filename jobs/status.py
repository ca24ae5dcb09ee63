"""status: what a root holds, what is unfinished, and whether the bytes are still as written."""

from __future__ import annotations

from collections.abc import Callable

from storage.manifest import require
from storage.partition import KEYS, all_partitions
from storage.root import Root
from storage.shards import verify

_MIB = 1 << 20


def status(root: Root, say: Callable[[str], None], *, check_bytes: bool = False) -> bool:
    """Say what every partition holds; return whether all are complete (and, if asked, intact)."""
    sound = True
    partitions = 0
    for table in KEYS:
        for partition, complete in all_partitions(root, table):
            partitions += 1
            if not complete:
                shards = sum(n.endswith(".parquet") for n in root.sizes(partition.path))
                say(f"incomplete  {partition}: {shards} shards, no manifest yet")
                sound = False
                continue
            manifest = require(root, partition)
            sizes = root.sizes(partition.path)
            # Shards that are missing, have another size, or (if asked) other bytes.
            broken = [
                receipt.name
                for receipt in manifest.receipts
                if sizes.get(receipt.name) != receipt.bytes
                or (check_bytes and not verify(root, partition.shard(receipt.name), receipt))
            ]
            size = sum(receipt.bytes for receipt in manifest.receipts) / _MIB
            state = f"damaged: {', '.join(broken)}" if broken else "complete"
            say(
                f"{state:<10}  {partition}: {manifest.rows:,} rows, "
                f"{len(manifest.receipts)} shards, {size:,.1f} MiB"
            )
            sound = sound and not broken
    if not partitions:
        raise FileNotFoundError(f"there is no table under {root.uri}")
    return sound
