"""A way to an S3 server that counts what passes, and fails where a test says so."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

from layerrank.storage.root import Root
from tests.conftest import S3

# What is refused or dropped never reaches the server: the connection ends at once, or when half of
# the body has come. What is lost or cut was done: of the answer comes nothing, or half, or half is
# told to be all (short), or a bit of it is another (flip).
Refusal = Literal["InternalError", "AccessDenied", "SlowDown"]
Fault = Literal[Refusal, "drop", "refused", "lost", "cut", "short", "flip", ""]
_STATUS: dict[str, int] = {"InternalError": 500, "AccessDenied": 403, "SlowDown": 503}


@dataclass
class Proxy:
    """What passed, as methods with paths and queries, and what is to fail of it."""

    s3: S3  # as it is reached through this
    direct: S3
    passed: list[str] = field(default_factory=list)
    fault: Callable[[str], Fault] = lambda _request: ""

    def root(self, prefix: str) -> Root:
        """Return a prefix of the bucket that is reached through this, at the first attempt."""
        root = self.s3.root(prefix)
        return replace(root, options={**root.options, "config_kwargs": {"retries": _ONCE}})

    def count(self, method: str) -> int:
        """Return how many requests of a method have passed."""
        return sum(each.startswith(f"{method} ") for each in self.passed)


_ONCE = {"total_max_attempts": 1}


@contextmanager
def proxy(s3: S3) -> Iterator[Proxy]:
    """Give a proxy of a server for a block."""
    host = urlsplit(s3.endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            request = f"{self.command} {self.path}"
            found.passed.append(request)
            fault, length = found.fault(request), int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length // 2 if fault == "drop" else length)
            self.close_connection = True
            if fault in ("drop", "refused"):
                return
            if fault in _STATUS:
                told = f"<Error><Code>{fault}</Code><Message>as a test</Message></Error>".encode()
                self._answer(_STATUS[fault], [("Content-Length", str(len(told)))], told)
                return
            server = http.client.HTTPConnection(host)
            server.request(self.command, self.path, body, dict(self.headers))
            with server.getresponse() as answer:
                given = answer.read()
                if fault != "lost":
                    self._answer(answer.status, answer.getheaders(), given, fault)
            server.close()

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault = ""
        ) -> None:
            half = len(body) // 2
            if fault == "short":
                body = body[:half]
            elif fault == "flip" and body:
                body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
            self.send_response(status)
            for name, value in headers:
                if name.lower() == "content-length" and fault == "short" and body:
                    self.send_header(name, str(len(body)))
                elif name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body[:half] if fault == "cut" else body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        environment = {**s3.environment, "AWS_ENDPOINT_URL": endpoint}
        found = Proxy(replace(s3, endpoint=endpoint, environment=environment), s3)
        yield found
        server.shutdown()
        thread.join()
