"""S3 for benchmarks, in a process of its own: the tests' server, or one that reads and drops.

The tests' server hashes and keeps every body, which caps what a client can show; the other answers
as S3 does to what a client that writes asks, and keeps nothing.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from layerrank.storage.root import Root

BUCKET = "layers"
_STARTED = 30.0  # seconds
_BLOCK = 1 << 20
_BEGUN = (
    "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>1</UploadId>"
    "</InitiateMultipartUploadResult>"
)
_DONE = "<CompleteMultipartUploadResult><ETag>&quot;0&quot;</ETag></CompleteMultipartUploadResult>"


class Drop(BaseHTTPRequestHandler):
    """Answers a client that writes."""

    protocol_version = "HTTP/1.1"

    def _read(self) -> None:
        left, memory = int(self.headers.get("Content-Length", 0)), memoryview(bytearray(_BLOCK))
        while left:
            count = self.rfile.readinto(memory[: min(left, _BLOCK)])
            if not count:
                raise ConnectionError("the body was cut off")
            left -= count

    def _answer(self, code: int, body: str = "") -> None:
        self.send_response(code)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_PUT(self) -> None:
        """Take an object, or a part of one."""
        self._read()
        self._answer(200)

    def do_POST(self) -> None:
        """Begin or complete an upload in parts."""
        self._read()
        self._answer(200, _DONE if "uploadId" in self.path else _BEGUN)

    def do_HEAD(self) -> None:
        """Know no object."""
        self._answer(404)

    def do_DELETE(self) -> None:
        """Delete nothing."""
        self._answer(204)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
        """Say nothing."""


@contextmanager
def served(kind: Literal["s3", "drop"]) -> Iterator[Root]:
    """Give a root on a server in another process, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = ["moto.server", "-p"] if kind == "s3" else ["tests.support.machines.drop"]
    command, nothing = [sys.executable, "-m", *module, str(port)], subprocess.DEVNULL
    with subprocess.Popen(command, stdout=nothing, stderr=nothing) as server:
        try:
            until = time.monotonic() + _STARTED
            while time.monotonic() < until:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            endpoint = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
            options = {"key": "testing", "secret": "testing", "client_kwargs": endpoint}
            root = Root(f"s3://{BUCKET}/bench", options)
            if kind == "s3":
                root.filesystem.call_s3("create_bucket", Bucket=BUCKET)
            yield root
        finally:
            server.kill()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Drop).serve_forever()
