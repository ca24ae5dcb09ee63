"""Uploads to S3: the client's CPU seconds per GB into a server that drops what it gets, and MB/s.

The plain way beside it is a file of s3fs, opened for writing: a buffer is written to it, or a shard
by pyarrow. Rounds alternate; the server is another process and no part of the CPU seconds. End to
end is on the tests' S3 server, moto: it hashes every body, which bounds both ways. The endpoints
are plain http, so that bodies are signed; over TLS they are not, and it takes what that costs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cluster.console import say
from storage import schema
from storage.layers import embeddings_table
from storage.root import Root
from storage.shards import Receipt, write_shard

ROUNDS = 5
PROMPTS, GROUPS, FEATURES = 512, 50, 1024  # of a shard: 105 MB of vectors
Upload = Callable[[], object]


def main() -> None:
    """Print both ways of writing a buffer, and a whole shard with its encoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=("sink", "moto"), help=argparse.SUPPRESS)
    if serve := parser.parse_args().serve:
        _sink() if serve == "sink" else _moto()
        return
    vectors_ND = np.random.default_rng(0).standard_normal((PROMPTS, FEATURES), dtype=np.float32)
    content = np.tile(vectors_ND, (GROUPS, 1)).tobytes()
    ids, lengths = np.arange(PROMPTS), np.full(PROMPTS, 128, np.int32)
    tables = [
        embeddings_table((layer, "final", "mean"), ids, lengths, vectors_ND)
        for layer in range(GROUPS)
    ]
    for server in ("sink", "moto"):
        with _server(server) as endpoint:
            client = {"endpoint_url": endpoint, "region_name": "us-east-1"}
            root = Root("s3://bench", {"key": "a", "secret": "b", "client_kwargs": client})
            if server == "moto":
                root.filesystem.call_s3("create_bucket", Bucket="bench")
            _compare(
                f"a buffer into {server}",
                len(content),
                partial(_plain_buffer, root, content),
                partial(root.write, "ours", content),
            )
            _compare(
                f"a shard, encoded, into {server}",
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


@contextmanager
def _server(name: str) -> Iterator[str]:
    """Give the endpoint of a server in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.objects", "--serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


class _Drop(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    buffer = memoryview(bytearray(1 << 20))  # of all threads: nobody looks at what comes

    def answer(self) -> None:
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            left -= self.rfile.readinto(self.buffer[: min(left, len(self.buffer))]) or left
        body = b""
        if self.command == "POST":
            body = b"<Result><UploadId>x</UploadId></Result>"
        self.send_response(200)
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = answer

    def log_message(self, *_arguments: Any) -> None:  # noqa: ANN401
        pass


def _sink() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Drop) as server:
        say(str(server.server_port))
        server.serve_forever()


def _moto() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    say(str(port))
    time.sleep(3600)  # until it is killed


if __name__ == "__main__":
    main()
