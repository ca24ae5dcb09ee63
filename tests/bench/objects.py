"""Uploads to S3: the client's CPU seconds per GB into a server that drops what it gets, and MB/s.

The plain way beside it is a file of s3fs, opened for writing: a buffer is written to it, or a shard
by pyarrow. Rounds alternate; the server is another process and no part of the CPU seconds. End to
end is on the tests' S3 server, moto: it hashes every body, which bounds both ways. The endpoints
are plain http, so that bodies are signed; over TLS they are not, and it takes what that costs.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layerrank.jobs.cluster.console import say
from layerrank.storage import schema
from layerrank.storage.layers import embeddings_table
from layerrank.storage.root import Root
from layerrank.storage.shards import Receipt, write_shard
from tests.support.machines.drop import served

ROUNDS = 5
PROMPTS, GROUPS, FEATURES = 512, 50, 1024  # of a shard: 105 MB of vectors
Upload = Callable[[], object]


def main() -> None:
    """Print both ways of writing a buffer, and a whole shard with its encoding."""
    vectors_ND = np.random.default_rng(0).standard_normal((PROMPTS, FEATURES), dtype=np.float32)
    content = np.tile(vectors_ND, (GROUPS, 1)).tobytes()
    ids, lengths = np.arange(PROMPTS), np.full(PROMPTS, 128, np.int32)
    tables = [
        embeddings_table((layer, "final", "mean"), ids, lengths, vectors_ND)
        for layer in range(GROUPS)
    ]
    kinds: tuple[Literal["drop", "s3"], ...] = ("drop", "s3")
    for kind in kinds:
        with served(kind) as root:
            _compare(
                f"a buffer into {kind}",
                len(content),
                partial(_plain_buffer, root, content),
                partial(root.write, "ours", content),
            )
            _compare(
                f"a shard, encoded, into {kind}",
                len(content),
                partial(_plain_shard, root, tables),
                partial(_shard, root, tables),
            )


def _compare(what: str, size: int, plain: Upload, ours: Upload) -> None:
    spent: dict[Upload, list[tuple[float, float]]] = {plain: [], ours: []}
    for way in spent:
        way()  # warm: clients, connections
    for _ in range(ROUNDS):
        for way, found in spent.items():
            cpu, wall = _cpu_seconds(), time.perf_counter()
            way()
            found.append((_cpu_seconds() - cpu, time.perf_counter() - wall))
    told = []
    for name, found in zip(("s3fs", "ours"), spent.values(), strict=True):
        cpu, wall = (statistics.median(each) for each in zip(*found, strict=True))
        told.append(f"{name} {cpu / size * 1e9:.2f} CPU-s/GB, {size / wall / 1e6:,.0f} MB/s")
    pairs = zip(spent[plain], spent[ours], strict=True)
    ratio = statistics.median(theirs / mine for (_, theirs), (_, mine) in pairs)
    say(f"{what}: {'; '.join(told)}; {ratio:.1f} times as fast (median of {ROUNDS})")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _plain_buffer(root: Root, content: bytes) -> None:
    with root.filesystem.open(root.path("theirs"), "wb") as file:
        file.write(content)


def _plain_shard(root: Root, tables: Sequence[pa.Table]) -> None:
    settings = {"compression": "none", "use_dictionary": False, "write_statistics": ["layer"]}
    with (
        root.filesystem.open(root.path("theirs"), "wb") as file,
        pq.ParquetWriter(file, tables[0].schema, **settings) as writer,
    ):
        for table in tables:
            writer.write_table(table)


def _shard(root: Root, tables: Sequence[pa.Table]) -> None:
    write_shard(root, "shard", tables, schema.embeddings(FEATURES), Receipt("", 0, "", ""))


if __name__ == "__main__":
    main()
