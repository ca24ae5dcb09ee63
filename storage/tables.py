"""Tables of one object a partition: rows in and out, as plain Python values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from storage.manifest import Manifest, Settings, digest_of
from storage.partition import Partition
from storage.root import Root
from storage.shards import Facts, Receipt, read_table, write_shard

Row = Mapping[str, Any]


def write_rows(
    root: Root,
    where: Partition,
    name: str,
    rows: Iterable[Row],
    columns: pa.Schema,
    settings: Settings,
    facts: Facts,
) -> Receipt:
    """Write the only object of a partition, which its manifest has yet to make visible."""
    table = pa.Table.from_pylist([*rows], columns)
    blank = Receipt(name, 0, digest_of(settings), "", facts=facts)
    return write_shard(root, where.shard(name), [table], columns, blank)


def read_rows(root: Root, manifest: Manifest) -> list[dict[str, Any]]:
    """Return the rows of a partition of one object."""
    (key,) = manifest.objects()
    rows: list[dict[str, Any]] = read_table(root, key).to_pylist()
    return rows
