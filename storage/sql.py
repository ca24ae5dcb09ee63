"""SQL over the tables: DuckDB views that hold exactly what the manifests make visible."""

from __future__ import annotations

import duckdb

from storage.manifest import load
from storage.partition import KEYS, partitions
from storage.root import Root


def connect(root: Root) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB with one view per table that has a complete partition.

    The partition keys are text columns of the views. Shards of an unfinished partition are not in
    the views. FileNotFoundError if the root holds no complete partition at all.
    """
    connection = duckdb.connect()
    if not root.is_local:
        connection.register_filesystem(root.filesystem)
    views = 0
    for table in KEYS:
        manifests = [load(root, partition) for partition in partitions(root, table)]
        keys = [key for manifest in manifests if manifest for key in manifest.objects()]
        files = [root.place(key) for key in keys]
        if files:
            listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
            connection.execute(
                f"CREATE VIEW {table} AS SELECT * FROM read_parquet([{listed}], "
                "hive_partitioning = true, hive_types_autocast = false, union_by_name = true)"
            )
            views += 1
    if not views:
        raise FileNotFoundError(f"no complete table under {root.uri}: run `layerrank run` first")
    return connection
