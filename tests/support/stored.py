"""What lies in the root of a run, for tests to look at."""

from __future__ import annotations

from typing import Any

from storage.manifest import Manifest, require
from storage.partition import KEYS, partitions
from storage.root import Root
from storage.sql import connect


def manifests(root: Root) -> list[Manifest]:
    """Return the manifests of all complete partitions."""
    return [require(root, where) for table in KEYS for where in partitions(root, table)]


def content(root: Root) -> dict[str, dict[str, tuple[int, str]]]:
    """Return partition -> shard -> rows and checksum: equal for two roots with equal rows.

    Without latencies, which no two runs share.
    """
    return {
        each.partition.path: {r.name: (r.rows, r.checksum) for r in each.receipts}
        for each in manifests(root)
        if each.partition.table != "layer_costs"
    }


def ask(root: Root, query: str, *values: object) -> list[Any]:
    """Return the rows that answer a query."""
    with connect(root) as sql:
        return sql.execute(query, [*values]).fetchall()
