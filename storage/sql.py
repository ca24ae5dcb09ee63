"""SQL over the tables: DuckDB views that hold exactly what the manifests make visible."""

from __future__ import annotations

import re

import duckdb

from storage.manifest import load
from storage.partition import KEYS, partitions
from storage.root import Root


def connect(root: Root) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB with one view per table that has a complete partition.

    The partition keys are text columns of the views, from the folders below the table's own:
    whatever lies above names no column. Shards of an unfinished partition are not in the views.
    FileNotFoundError if the root holds no complete partition at all.
    """
    connection = duckdb.connect()
    if not root.is_local:
        connection.register_filesystem(root.filesystem)
    views = 0
    for table, keys_of in KEYS.items():
        manifests = [load(root, partition) for partition in partitions(root, table)]
        keys = [key for manifest in manifests if manifest for key in manifest.objects()]
        files = [root.place(key) for key in keys]
        if files:
            listed = ", ".join(map(_literal, files))
            folders = "/".join(f"{key}=([^/]*)" for key in keys_of)
            # Of a constant expression of the file's name DuckDB skips files as by Hive's keys.
            columns = (
                f"url_decode(regexp_extract(filename, '/{table}/{folders}/[^/]*$', {number})) "
                f'AS "{key}"'
                for number, key in enumerate(keys_of, 1)
            )
            connection.execute(
                f"CREATE VIEW {table} AS SELECT *, {', '.join(columns)} FROM read_parquet("
                f"[{listed}], hive_partitioning = false, union_by_name = true)"
            )
            views += 1
    if not views:
        raise FileNotFoundError(f"no complete table under {root.uri}: run `layerrank run` first")
    return connection


def _literal(path: str) -> str:
    """Return a path as SQL text that DuckDB takes for no pattern."""
    return "'" + re.sub(r"[*?[]", r"[\g<0>]", path).replace("'", "''") + "'"
