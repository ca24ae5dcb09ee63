"""What of Google's and Azure's object storage a root asks for, on a server of this process.

Written from their documented protocols, and no more of them than gcsfs and adlfs use here: it shows
that these are asked for the right things, not that the services answer as they are documented.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DAY = "Mon, 27 Jul 2026 09:00:00 GMT"


@dataclass
class Cloud:
    """The objects of a server by bucket and key, what was asked of it, and what it refuses."""

    endpoint: str = ""
    objects: dict[tuple[str, str], bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)  # method -> status
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, bucket: str, key: str, content: bytes, *, only_new: bool) -> bool:
        """Write an object; False, and nothing written, if there is one and there may be none."""
        with self.lock:
            if only_new and (bucket, key) in self.objects:
                return False
            self.objects[bucket, key] = content
            return True

    def listed(self, bucket: str, prefix: str, delimiter: str) -> tuple[dict[str, int], list[str]]:
        """Return key -> bytes of the objects that begin with a prefix, and the folders below it."""
        found, folders = {}, set()
        for (where, key), content in sorted(self.objects.items()):
            if where != bucket or not key.startswith(prefix):
                continue
            inside, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if cut:
                folders.add(f"{prefix}{inside}{delimiter}")
            else:
                found[key] = len(content)
        return found, sorted(folders)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: Cloud

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Content-Length": str(len(body)), "Last-Modified": DAY, **named}
        for name, value in given.items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # gcsfs asks for two things at once and leaves with one
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def asked(self) -> tuple[str, dict[str, str], bytes]:
        """Return the path, the query and the body of a request."""
        parts = urlsplit(self.path)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.cloud.asked.append(f"{self.command} {self.path}")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return parts.path, query, body

    def content(self, found: bytes, ranged: str | None, **headers: str) -> None:
        """Answer with an object, or with the bytes of it that are asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", ranged or "")
        if asked is None:
            self.answer(200, found, **headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(found) - 1), len(found) - 1)
        if start >= len(found):
            self.answer(416, b"", **{**headers, "x_ms_error_code": "InvalidRange"})
            return
        whole = f"bytes {start}-{end}/{len(found)}"
        self.answer(206, found[start : end + 1], Content_Range=whole, **headers)


class _Google(_Handler):
    """The JSON API of Cloud Storage."""

    def do_GET(self) -> None:
        self._answered()

    do_POST = do_DELETE = do_GET

    def _answered(self) -> None:
        path, query, body = self.asked()
        if status := self.cloud.refused.get(self.command):
            self._told(status, {"error": {"code": status, "message": "not today"}})
            return
        found = re.fullmatch(r"/(?:\w+/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path)
        assert found, path
        bucket, key = unquote(found[1]), unquote(found[2] or "")
        if self.command == "POST":
            edge = re.search(rb'boundary="?([^"]+)', self.headers["Content-Type"].encode())
            assert edge
            _, about, rest = body.split(b"--" + edge[1], 2)
            key = json.loads(about.split(b"\n\n", 1)[1])["name"]
            content = rest.split(b"\n\n", 1)[1].removesuffix(b"\n--" + edge[1] + b"--")
            only_new = query.get("ifGenerationMatch") == "0"
            done = self.cloud.put(bucket, key, content, only_new=only_new)
            self._told(200 if done else 412, self._about(bucket, key))
        elif not key:
            each, folders = self.cloud.listed(
                bucket, query.get("prefix", ""), query.get("delimiter", "")
            )
            items = [self._about(bucket, name) for name in each]
            self._told(200, {"items": items, "prefixes": folders})
        elif (bucket, key) not in self.cloud.objects:
            self._told(404, {})
        elif self.command == "DELETE":
            del self.cloud.objects[bucket, key]
            self.answer(204)
        elif query.get("alt") == "media":
            self.content(self.cloud.objects[bucket, key], self.headers.get("Range"))
        else:
            self._told(200, self._about(bucket, key))

    def _about(self, bucket: str, key: str) -> dict[str, str]:
        size, day = len(self.cloud.objects.get((bucket, key), b"")), "2026-07-27T09:00:00.000Z"
        times = dict.fromkeys(("updated", "timeCreated"), day)
        return {"bucket": bucket, "name": key, "size": str(size), "etag": f"e{size}", **times}

    def _told(self, status: int, values: object) -> None:
        self.answer(status, json.dumps(values).encode(), Content_Type="application/json")


class _Azure(_Handler):
    """The REST API of Blob Storage, for the account `account`."""

    def do_GET(self) -> None:
        self._answered()

    do_PUT = do_HEAD = do_DELETE = do_GET

    def _answered(self) -> None:
        path, query, body = self.asked()
        if status := self.cloud.refused.get(self.command):
            self._failed(status, "NotToday")
            return
        _, account, bucket, *rest = unquote(path).split("/", 3)
        assert account == "account", path
        key = rest[0] if rest else ""
        facts = {"ETag": '"e"', "x_ms_blob_type": "BlockBlob", "x_ms_creation_time": DAY}
        if query.get("comp") == "list":
            each, folders = self.cloud.listed(
                bucket, query.get("prefix", ""), query.get("delimiter", "")
            )
            self._listed(bucket, each, folders)
        elif not key:
            self.answer(200, ETag='"e"')
        elif self.command == "PUT":
            only_new = self.headers.get("If-None-Match") == "*"
            if self.cloud.put(bucket, key, body, only_new=only_new):
                self.answer(201, ETag='"e"')
            else:
                self._failed(409, "BlobAlreadyExists")
        elif (bucket, key) not in self.cloud.objects:
            self._failed(404, "BlobNotFound")
        elif self.command == "DELETE":
            del self.cloud.objects[bucket, key]
            self.answer(202)
        else:
            ranged = self.headers.get("x-ms-range") or self.headers.get("Range")
            self.content(self.cloud.objects[bucket, key], ranged, **facts)

    def _listed(self, bucket: str, each: dict[str, int], folders: list[str]) -> None:
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{DAY}</Last-Modified>"
            f"<Etag>e</Etag><Content-Length>{size}</Content-Length><BlobType>BlockBlob</BlobType>"
            "</Properties></Blob>"
            for name, size in each.items()
        )
        blobs += "".join(
            f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in folders
        )
        body = (
            '<?xml version="1.0" encoding="utf-8"?>'
            f'<EnumerationResults ServiceEndpoint="x" ContainerName="{bucket}">'
            f"<Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>"
        )
        self.answer(200, body.encode(), Content_Type="application/xml")

    def _failed(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        named = {"x_ms_error_code": code, "Content_Type": "application/xml"}
        self.answer(status, body.encode(), **named)


@contextmanager
def google() -> Iterator[Cloud]:
    """Serve Cloud Storage; `STORAGE_EMULATOR_HOST` is its endpoint to gcsfs."""
    with _served(_Google) as cloud:
        yield cloud


@contextmanager
def azure() -> Iterator[Cloud]:
    """Serve Blob Storage; `connection_string` says to adlfs where."""
    with _served(_Azure) as cloud:
        yield cloud


def connection_string(cloud: Cloud) -> str:
    """Return what `AZURE_STORAGE_CONNECTION_STRING` is for a server of this process."""
    key = base64.b64encode(b"not a real secret").decode()
    return f"AccountName=account;AccountKey={key};BlobEndpoint={cloud.endpoint}/account;"


@contextmanager
def _served(handler: type[_Handler]) -> Iterator[Cloud]:
    cloud = Cloud()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"cloud": cloud}))
    server.daemon_threads = True
    cloud.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
