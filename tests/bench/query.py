"""`layerrank query` over 4,000 shards: seconds to connect, to count a layer and to show 5 rows.

The plain way beside it lets DuckDB find out the columns: `read_parquet` of all shards with
`union_by_name`. On S3 it is requests that count, of the same count over 4 shards: what DuckDB asks
for through s3fs, and through the sizes of the receipts.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np

from layerrank.jobs.cluster.console import say
from layerrank.storage import schema
from layerrank.storage.layers import embeddings_table
from layerrank.storage.manifest import Manifests, digest_of, require
from layerrank.storage.partition import Partition, shard_name
from layerrank.storage.root import Root
from layerrank.storage.shards import Receipt, write_shard
from layerrank.storage.sql import connect
from tests.conftest import s3_server
from tests.support.machines.proxy import proxy

PARTITIONS, SHARDS = 40, 100
LAYERS, PROMPTS, FEATURES = 13, 32, 64
ROUNDS = 3
_COUNT = "SELECT count(*) FROM embeddings WHERE layer = 3"
_SOME = "SELECT * FROM embeddings LIMIT 5"
_SETTINGS = {"bench": "query"}


Way = Callable[[Root], AbstractContextManager[duckdb.DuckDBPyConnection]]


def main() -> None:
    """Print the seconds of both ways, and the requests of both."""
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        for number in range(PARTITIONS):
            _publish(root, number, SHARDS)
        ways: dict[str, Way] = {"union_by_name": _plain, "ours": connect}
        spent: dict[str, list[list[float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                spent[name].append(_timed(root, way))
    for name, rounds in spent.items():
        connected, count, some = (statistics.median(each) for each in zip(*rounds, strict=True))
        say(
            f"{PARTITIONS * SHARDS:,} shards, {name}: connect {connected:.2f} s, count of a layer "
            f"{count:.2f} s, limit 5 {some:.2f} s (median of {ROUNDS})"
        )
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # which tells of each request
    with s3_server() as server, proxy(server) as between:
        root = between.root("bench")
        _publish(root, 0, 4)
        for name, way in ways.items():
            with way(root) as connection:
                between.passed.clear()
                connection.execute(_COUNT).fetchall()
                heads, gets = between.count("HEAD"), between.count("GET")
            say(f"count of a layer over 4 shards on S3, {name}: {heads} HEAD + {gets} GET")


def _timed(root: Root, way: Way) -> list[float]:
    times = [time.perf_counter()]
    with way(root) as connection:
        times.append(time.perf_counter())
        for query in (_COUNT, _SOME):
            connection.execute(query).fetchall()
            times.append(time.perf_counter())
    return np.diff(times).tolist()


def _plain(root: Root) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    if not root.is_local:
        connection.register_filesystem(root.filesystem)
    files = root.filesystem.glob(root.path("embeddings/**/*.parquet"))
    places = [file if root.is_local else f"s3://{file}" for file in files]
    connection.execute(
        "CREATE VIEW embeddings AS SELECT * FROM read_parquet("
        f"{places}, hive_partitioning = true, union_by_name = true)"
    )
    return connection


def _publish(root: Root, number: int, shards: int) -> None:
    """Write one shard of the first partition, and copy it for the others."""
    where = Partition("embeddings", ("model", f"step{number}", "data", "clean"))
    ids, lengths = np.arange(PROMPTS), np.full(PROMPTS, 7, np.int32)
    vectors_ND = np.random.default_rng(0).standard_normal((PROMPTS, FEATURES), dtype=np.float32)
    tables = [
        embeddings_table((layer, "final", "mean"), ids, lengths, vectors_ND)
        for layer in range(LAYERS)
    ]
    blank, columns = Receipt("", 0, digest_of(_SETTINGS), ""), schema.embeddings(FEATURES)
    first = Partition("embeddings", ("model", "step0", "data", "clean"))
    receipts: list[Receipt] = []
    for shard in range(shards):
        name = shard_name(shard)
        key = where.shard(name)
        if not root.is_local or (not number and not shard):
            written = write_shard(root, key, tables, columns, replace(blank, name=name))
        else:
            written = require(root, first).receipts[0] if number else receipts[0]
            Path(root.path(key)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root.path(first.shard(shard_name(0))), root.path(key))
        receipts.append(replace(written, name=name))
    Manifests(root).publish(where, _SETTINGS, receipts)


if __name__ == "__main__":
    main()
