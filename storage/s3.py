"""Uploads to S3, by botocore's own client in the threads that write.

s3fs sends in one thread of the process, after it has copied the bytes: its core is full at 0.25
GB/s. What is not an upload, listing, reading and deleting, is s3fs's.
"""

from __future__ import annotations

import errno
import io
import json
import os
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, Any, cast
from zlib import crc32

from botocore.exceptions import BotoCoreError, ClientError

WHOLE_BYTES = 128 << 20  # an object that has no more is one PUT
PART_BYTES = 64 << 20  # of one that has more
_PARTS_AT_ONCE = 4
_SMALL_BYTES = 1 << 20  # that may as well be copied
# A piece has the socket's timeout, a minute, to itself: a slow line is no failure.
_PIECE_BYTES = 1 << 20
_CONNECTIONS = 32  # that are kept between uploads
_ATTEMPTS = 5  # at each request
# What S3 answers to a conditional write where there is an object, or another write is under way.
_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict")
_NUMBERS = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    TimeoutError: errno.ETIMEDOUT,
}
Filesystem = Any  # s3fs ships no types
Client = Any  # botocore makes its methods at run time
_clients: dict[tuple[int, str], Client] = {}


def put(filesystem: Filesystem, path: str, content: Any) -> None:  # noqa: ANN401  (any buffer)
    """Write an object from memory, which is not copied; an OSError that names it if that fails."""
    view = memoryview(content).cast("B")
    with _upload(filesystem, path) as upload:
        if len(view) <= WHOLE_BYTES:
            upload.whole(view)
            return
        starts = range(0, len(view), PART_BYTES)
        pieces = (view[start : start + PART_BYTES] for start in starts)
        upload.begin()
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            list(pool.map(upload.part, range(1, len(starts) + 1), pieces))
        upload.end()


def create(filesystem: Filesystem, path: str, content: bytes) -> bool:
    """Write a small object if there is none; False, and nothing written, if there is."""
    try:
        _Upload(filesystem, path).whole(memoryview(content), IfNoneMatch="*")
    except OSError as error:
        response = getattr(error.__cause__, "response", None) or {}
        if response.get("Error", {}).get("Code") not in _TAKEN:
            raise
        return False
    return True


@contextmanager
def writer(filesystem: Filesystem, path: str) -> Iterator[IO[bytes]]:
    """Write an object as a stream, and let it be seen if the block ends well.

    Up to WHOLE_BYTES wait in memory and are one PUT; of more, parts leave on the way.
    """
    with _upload(filesystem, path) as upload:
        stream = _Stream(upload)
        yield cast("IO[bytes]", stream)
        stream.finish()


class _Stream(io.RawIOBase):
    def __init__(self, upload: _Upload) -> None:
        super().__init__()
        self._upload, self._held, self._parts = upload, bytearray(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._parts * PART_BYTES + len(self._held)

    def write(self, content: Any) -> int:  # noqa: ANN401  (any buffer)
        view = memoryview(content).cast("B")
        self._held += view
        while len(self._held) > WHOLE_BYTES:
            if not self._parts:
                self._upload.begin()
            self._parts += 1
            self._upload.part(self._parts, memoryview(self._held)[:PART_BYTES])
            self._held = self._held[PART_BYTES:]
        return len(view)

    def finish(self) -> None:
        if self._parts:
            self._upload.part(self._parts + 1, memoryview(self._held))
            self._upload.end()
        else:
            self._upload.whole(memoryview(self._held))


class _Upload:
    """The requests that make one object: one, or those of its parts."""

    def __init__(self, filesystem: Filesystem, path: str) -> None:
        bucket, key, _ = filesystem.split_path(path)
        self._client, self._path = _client(filesystem), path
        self._is_secure = self._client.meta.endpoint_url.startswith("https:")
        self._target: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self._parts: dict[int, dict[str, Any]] = {}

    def whole(self, content: memoryview, **conditions: str) -> None:
        self._ask("put_object", **self._body(content), **conditions)

    def begin(self) -> None:
        checked = {"ChecksumAlgorithm": "CRC32"} if self._is_secure else {}
        self._target["UploadId"] = self._ask("create_multipart_upload", **checked)["UploadId"]

    def part(self, number: int, content: memoryview) -> None:
        told = self._ask("upload_part", PartNumber=number, **self._body(content))
        self._parts[number] = {"PartNumber": number, "ETag": told["ETag"]}
        if "ChecksumCRC32" in told:
            self._parts[number]["ChecksumCRC32"] = told["ChecksumCRC32"]

    def end(self) -> None:
        parts = [self._parts[number] for number in sorted(self._parts)]
        self._ask("complete_multipart_upload", MultipartUpload={"Parts": parts})

    def abort(self) -> None:
        if "UploadId" in self._target:
            # What it held is charged for until the bucket's own rules delete it.
            with suppress(OSError):
                self._ask("abort_multipart_upload")

    def _body(self, content: memoryview) -> dict[str, Any]:
        """Return what is sent, and over TLS its checksum: S3 refuses what came otherwise."""
        body = bytes(content) if len(content) <= _SMALL_BYTES else _Body(content)
        if not self._is_secure:
            return {"Body": body}
        return {"Body": body, "ChecksumCRC32": b64encode(crc32(content).to_bytes(4)).decode()}

    def _ask(self, request: str, **values: Any) -> dict[str, Any]:  # noqa: ANN401
        try:
            answer: dict[str, Any] = getattr(self._client, request)(**self._target, **values)
        except (ClientError, BotoCoreError) as error:
            from s3fs.errors import translate_boto_error  # noqa: PLC0415  (loads all of s3fs)

            found = translate_boto_error(error)
            number = _NUMBERS.get(type(found)) or getattr(found, "errno", None) or errno.EIO
            told = (getattr(error, "response", None) or {}).get("Error", {})
            reason = told.get("Message") or told.get("Code") or str(error)
            raise OSError(number, reason, f"s3://{self._path}") from error
        return answer


@contextmanager
def _upload(filesystem: Filesystem, path: str) -> Iterator[_Upload]:
    """Give an upload, and leave nothing of it if the block fails."""
    upload = _Upload(filesystem, path)
    try:
        yield upload
    except BaseException:
        upload.abort()
        raise


class _Body:
    """Memory as a file that botocore and urllib3 send: pieces larger than the 16 KiB asked for."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._position = content, 0

    def __len__(self) -> int:
        return len(self._content)

    def read(self, _size: int = -1) -> memoryview:
        piece = self._content[self._position : self._position + _PIECE_BYTES]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self)}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position


def _client(filesystem: Filesystem) -> Client:
    """Return this process's client, for all of its threads, that reaches what `filesystem` does."""
    # s3fs has one filesystem per thread; connections do not survive a fork.
    key = os.getpid(), json.dumps(filesystem.storage_options, sort_keys=True, default=repr)
    found = _clients.get(key)
    return found or _clients.setdefault(key, _made(filesystem))


def _made(filesystem: Filesystem) -> Client:
    from botocore import UNSIGNED  # noqa: PLC0415  (a tenth of a second, for S3 alone)
    from botocore.config import Config  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    access = {
        "aws_access_key_id": filesystem.key,
        "aws_secret_access_key": filesystem.secret,
        "aws_session_token": filesystem.token,
        "endpoint_url": filesystem.endpoint_url,
    }
    options = {"use_ssl": filesystem.use_ssl, **access, **filesystem.client_kwargs}
    given = {
        "max_pool_connections": _CONNECTIONS,
        "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
        # Ours, where there is one: botocore's sends the body in chunks and copies each.
        "request_checksum_calculation": "when_required",
        **({"signature_version": UNSIGNED} if filesystem.anon else {}),
        **filesystem.config_kwargs,
    }

    def made(*, sign_bodies: bool) -> Client:
        of_s3 = {"payload_signing_enabled": sign_bodies, **given.get("s3", {})}
        session = Session(**filesystem.kwargs)
        return session.create_client("s3", config=Config(**{**given, "s3": of_s3}), **options)

    client = made(sign_bodies=False)
    # Without TLS nothing but the signature keeps others from changing what is written.
    is_secure = client.meta.endpoint_url.startswith("https:")
    return client if is_secure else made(sign_bodies=True)
