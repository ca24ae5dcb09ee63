"""Uploads to S3: how many requests they are, what they are signed with, and how they fail."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from botocore.awsrequest import AWSResponse

from layerrank.storage import s3 as uploads
from layerrank.storage.root import Root
from tests.conftest import S3
from tests.support.machines.proxy import Fault, Proxy, proxy

PART = 5 << 20  # the least that S3 takes as one that is not the last
LARGE = np.random.default_rng(0).bytes(2 * PART + 1000)


@pytest.fixture
def between(s3: S3) -> Iterator[Proxy]:
    with proxy(s3) as found:
        yield found


@pytest.fixture(autouse=True)
def _small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "WHOLE_BYTES", PART)
    monkeypatch.setattr(uploads, "PART_BYTES", PART)


def _write(root: Root, key: str, content: Any) -> None:  # noqa: ANN401
    root.write(key, content)


def _stream(root: Root, key: str, content: Any) -> None:  # noqa: ANN401
    view = memoryview(content).cast("B")
    with root.writer(key) as file:
        for start in range(0, len(view), 999_999):
            file.write(view[start : start + 999_999])
        assert file.tell() == len(view)


@pytest.mark.parametrize("write", [_write, _stream])
@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, len(LARGE)])
def test_what_is_small_is_one_put_and_what_is_large_comes_in_parts(
    write: Any,  # noqa: ANN401
    size: int,
    between: Proxy,
    tmp_path: Path,
) -> None:
    root = between.root(tmp_path.name)
    write(root, "a/b", memoryview(LARGE)[:size])
    parts = -(-size // PART)
    sent = ["PUT"] if size <= PART else ["POST", *["PUT"] * parts, "POST"]
    assert [each.split()[0] for each in between.passed] == sent
    assert root.read("a/b") == LARGE[:size]
    assert between.passed[len(sent) :] == between.passed[-1:]  # read by one GET
    assert between.count("GET") == 1


def test_any_buffer_is_written_as_its_bytes(s3: S3, tmp_path: Path) -> None:
    for root in (s3.root(tmp_path.name), Root(str(tmp_path))):
        numbers = np.arange(300_000, dtype=np.float32)
        for content in (numbers, pa.py_buffer(numbers), bytearray(numbers), numbers.data):
            root.write("a", content)
            assert root.read("a") == numbers.tobytes()
    other = Root(root.uri.replace("s3:", "s3a:"), root.options)
    other.write("b", b"x")
    assert other.read("b") == b"x"


@pytest.mark.parametrize("write", [_write, _stream])
@pytest.mark.parametrize(
    ("failing", "fault", "error"),
    [
        ("PUT", "AccessDenied", PermissionError),
        ("partNumber=2", "drop", OSError),
        ("POST", "InternalError", OSError),
        ("uploadId=", "drop", OSError),
    ],
)
def test_of_an_upload_that_fails_nothing_is_visible_and_the_next_one_stands(
    write: Any,  # noqa: ANN401
    failing: str,
    fault: Fault,
    error: type[OSError],
    between: Proxy,
    tmp_path: Path,
) -> None:
    root = between.root(tmp_path.name)
    between.fault = lambda each: fault if failing in each and "DELETE" not in each else ""
    with pytest.raises(error, match=f"s3://{root.path('a')}"):
        write(root, "a", LARGE)
    assert root.sizes("") == {}
    bucket = root.path().split("/")[0]
    told = root.filesystem.call_s3("list_multipart_uploads", Bucket=bucket)
    assert not [each for each in told.get("Uploads", ()) if each["Key"].endswith("/a")]
    between.fault = lambda _each: ""
    write(root, "a", LARGE)
    assert root.read("a") == LARGE


def test_what_is_there_stays_until_another_is_whole(between: Proxy, tmp_path: Path) -> None:
    root = between.root(tmp_path.name)
    root.write("a", b"before")
    with contextlib.suppress(ZeroDivisionError), root.writer("a") as file:
        file.write(LARGE)
        raise ZeroDivisionError
    between.fault = lambda each: "drop" if "PUT" in each else ""
    with pytest.raises(OSError, match="s3://"):
        root.write("a", LARGE[:PART])
    between.fault = lambda _each: ""
    assert not root.create("a", b"other")
    assert root.read("a") == b"before"


def test_a_request_that_fails_once_is_made_again(between: Proxy, tmp_path: Path) -> None:
    root = between.s3.root(tmp_path.name)  # of which all attempts are made
    faults: list[Fault] = ["drop", "InternalError"]
    between.fault = lambda _each: faults.pop() if faults else ""
    root.write("a", LARGE[:PART])
    assert between.count("PUT") == 3
    assert root.read("a") == LARGE[:PART]


def test_a_refusal_that_is_no_conflict_is_told(between: Proxy, tmp_path: Path) -> None:
    root = between.root(tmp_path.name)
    between.fault = lambda _each: "AccessDenied"
    with pytest.raises(PermissionError, match=r"as a test.*s3://"):
        root.create("a", b"x")
    elsewhere = Root("s3://no-such-bucket/x", root.options)
    between.fault = lambda _each: ""
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket/x/a"):
        elsewhere.write("a", b"x")
    nowhere = {**root.options, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9.*s3://b/x/a"):
        Root("s3://b/x", nowhere).write("a", b"x")


def test_without_tls_the_body_is_signed_and_with_it_checked() -> None:
    sent: dict[str, Any] = {}

    def answer(request: Any, **_more: Any) -> AWSResponse:  # noqa: ANN401
        sent.update({name.lower(): value for name, value in request.headers.items()})
        raw = SimpleNamespace(stream=lambda **_more: iter([b""]))
        return AWSResponse(request.url, 200, {"ETag": '"x"'}, raw)

    content = LARGE[: 2 << 20]
    for scheme in ("http", "https"):
        client = {"endpoint_url": f"{scheme}://nowhere.test", "region_name": "us-east-1"}
        root = Root("s3://b", {"key": "a", "secret": "b", "token": "c", "client_kwargs": client})
        uploads._client(root.filesystem).meta.events.register("before-send.s3", answer)
        sent.clear()
        root.write("a", content)
        of_body, checked = sent["x-amz-content-sha256"], sent.get("x-amz-checksum-crc32", b"")
        of_body = of_body.decode() if isinstance(of_body, bytes) else of_body
        assert sent["x-amz-security-token"] in ("c", b"c")
        if scheme == "http":
            assert (of_body, checked) == (hashlib.sha256(content).hexdigest(), b"")
        else:
            assert of_body == "UNSIGNED-PAYLOAD"
            assert b64decode(checked) == crc32(content).to_bytes(4)


def test_threads_share_a_client_and_processes_do_not(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = s3.root(tmp_path.name)
    client = uploads._client(root.filesystem)

    def write(number: int) -> Any:  # noqa: ANN401
        root.write(f"{number}", LARGE[: 9 - number])
        return uploads._client(root.filesystem)

    with ThreadPoolExecutor(4) as pool:
        assert {id(each) for each in pool.map(write, range(8))} == {id(client)}
    assert [*root.sizes("").values()] == [9, 8, 7, 6, 5, 4, 3, 2]
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert uploads._client(root.filesystem) is not client


def test_a_body_is_read_in_pieces_and_again() -> None:
    body = uploads._Body(memoryview(LARGE))
    assert len(body) == len(LARGE)
    for _ in range(2):
        assert b"".join(iter(body.read, b"")) == LARGE
        body.seek(0)
    assert body.seek(-1, io.SEEK_END) == len(LARGE) - 1
    assert (body.tell(), bytes(body.read(9))) == (len(LARGE) - 1, LARGE[-1:])
