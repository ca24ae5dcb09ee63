"""What lies in the root of a run, for tests to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from layerrank.storage.manifest import Manifest, Manifests, Settings, digest_of, load, require
from layerrank.storage.partition import KEYS, Partition, all_partitions, partitions, shard_name
from layerrank.storage.root import Root
from layerrank.storage.shards import Receipt, write_shard
from layerrank.storage.sql import connect


def store(
    root: Root,
    where: Partition,
    shards: Sequence[pa.Table],
    settings: Settings,
    facts: Mapping[str, int | float | str] | None = None,
) -> Manifest:
    """Store a partition as a stage leaves it: a shard a table, a row group a layer."""
    receipts = []
    for number, table in enumerate(shards):
        blank = Receipt(shard_name(number), 0, digest_of(settings), "", facts=facts or {})
        key = where.shard(blank.name)
        receipts.append(write_shard(root, key, _groups(table), table.schema, blank))
    return Manifests(root).publish(where, settings, receipts)


def _groups(table: pa.Table) -> list[pa.Table]:
    if "layer" not in table.column_names:
        return [table]
    layers = pc.unique(table["layer"]).to_pylist()
    return [table.filter(pc.field("layer") == layer) for layer in layers]


def manifests(root: Root) -> list[Manifest]:
    """Return the manifests of all complete partitions."""
    found = [where for table in KEYS for where in partitions(root, table)]
    return [each for each in (load(root, where) for where in found) if each]


def assert_complete(root: Root, *without: str) -> None:
    """Hold that every table but some has partitions, all complete."""
    found = {table: all_partitions(root, table) for table in KEYS}
    assert {table for table, each in found.items() if not each} == set(without)
    assert [each for of_table in found.values() for each in of_table if not load(root, each)] == []


def content(root: Root) -> dict[str, dict[str, tuple[int, str]]]:
    """Return partition -> shard -> rows and checksum: equal for two roots with equal rows.

    Without latencies, which no two runs share.
    """
    return {
        each.partition.path: {r.name: (r.rows, r.checksum) for r in each.receipts}
        for each in manifests(root)
        if each.partition.table != "layer_costs"
    }


def shard_rows(root: Root, where: Partition) -> list[dict[str, Any]]:
    """Return the rows of a partition."""
    shards = require(root, where).shards(root)
    return [row for each in shards for row in each.read().to_pylist()]


def ask(root: Root, query: str, *values: object) -> list[Any]:
    """Return the rows that answer a query."""
    with connect(root) as sql:
        return sql.execute(query, [*values]).fetchall()
