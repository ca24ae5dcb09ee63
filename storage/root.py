"""The output root: one local folder or prefix of object storage behind a few operations.

Everything else in `storage/` speaks in keys relative to the root, with `/` between parts. An object
is visible only when it is whole: locally it is written beside its place and renamed, on S3 the
upload completes last, elsewhere it waits in memory and is written at once. A reader never sees half
a shard, and a killed writer leaves nothing that looks like one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache, wraps
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.registry import known_implementations

from layerrank.storage import s3

_S3 = ("s3://", "s3a://")
BOOKS = "_layerrank"  # the folder of what is known of the tables, beside them
_HASHED_WHOLE = 1 << 30  # bytes
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # of a local file that is being written
# That a temporary name begins with: what lies there of another machine has an unknown writer.
_HERE = hashlib.blake2b(os.uname().nodename.encode(), digest_size=4).hexdigest()
_DEAD_SECONDS = 3600.0  # without a change, of what another machine writes
_SAMPLED_BLOCKS = 16
_BLOCK_BYTES = 1 << 16
# What is made on this machine has the modes that the user's mask leaves of these: texts, vectors
# and models are nobody else's, whatever the mask.
_FOLDER, _FILE = 0o750, 0o640


class _Cloud(NamedTuple):
    """Object storage that fsspec reaches with a package of an extra.

    It takes a whole object at once and lets it be seen when it is there, and can write one only if
    there is none; what a root promises rests on that.
    """

    extra: str
    package: str


_GOOGLE, _AZURE = _Cloud("gcs", "gcsfs"), _Cloud("azure", "adlfs")
_CLOUDS = {"gs": _GOOGLE, "gcs": _GOOGLE, "az": _AZURE, "abfs": _AZURE, "abfss": _AZURE}
_NUMBERS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 429: errno.EBUSY}


class AddressError(ValueError):
    """An address that cannot be reached from here: of an unknown scheme, or without credentials."""


def resolve(uri: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the fsspec filesystem of `uri` and the path in it; local paths become absolute.

    AddressError, which names the address, if its scheme is unknown, lacks a package or is cut
    short, and for one of S3 if there are no credentials.
    """
    protocol, _, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    if protocol in ("", "file"):
        scheme = re.match(r"(\w+):/", rest)
        if not protocol and scheme and scheme[1].lower() in known_implementations:
            raise AddressError(f"{uri} is no address: after {scheme[1]}: there are two slashes")
        try:
            return fsspec.filesystem("file"), str(Path(rest).expanduser().resolve())
        except (OSError, RuntimeError) as error:  # of links in a circle, of nobody's ~
            raise AddressError(f"cannot open {uri}: {error}") from error
    on_s3, bucket = uri.startswith(_S3), rest.partition("/")[0]
    # Azure's own form has a container before an account, of which `_opened` says more.
    is_bucket = "@" not in bucket or _CLOUDS.get(protocol) is _AZURE
    if (on_s3 or protocol in _CLOUDS) and (":" in bucket or not is_bucket):
        raise AddressError(
            f"an address of {protocol}:// begins with something else than a bucket, which may be "
            f"secret and is not shown: give {protocol}://BUCKET/PREFIX, and credentials apart"
        )
    if protocol in _CLOUDS:
        try:
            return _opened(protocol, rest), rest.rstrip("/")
        except ValueError as error:
            raise AddressError(f"cannot open {uri}: {error}") from error
    if on_s3 and not options.get("key"):
        _require_credentials(uri)
    # Listings must be true at once: a shard written by another worker decides what is missing.
    known = {"use_listings_cache": False, **options} if on_s3 else {}
    try:
        filesystem = fsspec.filesystem(protocol, **known)
    except (ImportError, ValueError) as error:  # ValueError: fsspec does not know it
        raise AddressError(
            f"cannot open {uri}: {error}; folders and s3://BUCKET/PREFIX need nothing more, "
            "gs:// and az:// an extra"
        ) from error
    # Of the web a whole address is the path.
    path: str = rest if on_s3 else filesystem._strip_protocol(uri)
    return filesystem, path.rstrip("/")


def _opened(scheme: str, place: str) -> Any:  # noqa: ANN401  (fsspec ships no types)
    """Return the filesystem of a scheme of _CLOUDS; ValueError that says what it takes to `place`.

    Its listings are true at once: a shard written by another worker decides what is missing.
    """
    cloud = _CLOUDS[scheme]
    try:
        if cloud is _GOOGLE:
            from aiohttp import ClientError  # noqa: PLC0415  (this and more of an extra)
            from gcsfs.core import GCSFileSystem  # noqa: PLC0415
            from gcsfs.retry import HttpError  # noqa: PLC0415
            from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

            # The one that fsspec would take lets objects of zonal buckets be seen before they end.
            errors = HttpError, GoogleAuthError, ClientError
            return _Told(GCSFileSystem(use_listings_cache=False), scheme, *errors)
        from azure.core.exceptions import AzureError  # noqa: PLC0415  (of an extra)

        container, _, account = place.partition("/")[0].partition("@")
        if account:
            raise ValueError(
                f"give {scheme}://{container}/PREFIX, and set AZURE_STORAGE_ACCOUNT_NAME="
                f"{account.partition('.')[0]}"
            )
        return _Told(fsspec.filesystem(scheme, use_listings_cache=False), scheme, AzureError)
    except ImportError as error:
        raise ValueError(
            f"it takes {cloud.package}: pip install 'layerrank[{cloud.extra}]'"
        ) from error
    except ValueError as error:
        if "account_name" not in str(error):  # of Azure's constructor
            raise
        raise ValueError(
            "there are no credentials; set AZURE_STORAGE_ACCOUNT_NAME, and "
            "AZURE_STORAGE_ACCOUNT_KEY or a login of Azure's own tools, or "
            "AZURE_STORAGE_CONNECTION_STRING"
        ) from error


class _Told:
    """A filesystem whose errors are those of files, with the address, whatever its library raises.

    Who waits and tries again, as the holder of a lease, need not know whose they are.
    """

    def __init__(self, of: Any, scheme: str, *errors: type[Exception]) -> None:  # noqa: ANN401
        self._of, self._scheme, self._errors = of, scheme, errors

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        found = getattr(self._of, name)
        return self._telling(found) if callable(found) else found

    def _telling(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def told(*given: Any, **options: Any) -> Any:  # noqa: ANN401
            try:
                return method(*given, **options)
            except self._errors as error:
                status = getattr(error, "status_code", None) or getattr(error, "code", None)
                reason = " ".join(str(getattr(error, "message", None) or error).split())
                where = f"{self._scheme}://{given[0]}" if given else f"{self._scheme}://"
                raise OSError(_NUMBERS.get(status or 0, errno.EIO), reason, where) from error

        return told


def _require_credentials(uri: str) -> None:
    given = frozenset(each for each in os.environ.items() if each[0].startswith("AWS_"))
    try:
        found = _credentials_found(given)
    except BotoCoreError as error:  # a profile that is not there, half of a key
        raise AddressError(f"cannot open {uri}: {error}") from error
    if not found:
        _credentials_found.cache_clear()
        raise AddressError(
            f"cannot open {uri}: there are no credentials for S3; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or `storage:` in the config"
        )


@lru_cache(maxsize=1)
def _credentials_found(_given: frozenset[tuple[str, str]]) -> bool:
    """Whether botocore finds credentials; looking may ask the machine's metadata service."""
    from botocore.session import Session  # noqa: PLC0415  (a tenth of a second, for S3 alone)

    return Session().get_credentials() is not None


@dataclass(frozen=True)
class Root:
    """A place for tables: `uri` as the user gave it, `options` for its filesystem (kept secret).

    Travels to workers by pickling the two strings-and-options fields; each process opens its own
    filesystem, so nothing assumes that driver and workers share a disk.
    """

    uri: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def filesystem(self) -> Any:  # noqa: ANN401  (fsspec ships no types)
        """The fsspec filesystem of this process; fsspec itself keeps one instance per options."""
        return resolve(self.uri, self.options)[0]

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return "://" not in self.uri or self.uri.startswith("file://")

    @property
    def _is_on_s3(self) -> bool:
        return self.uri.startswith(_S3)

    def path(self, key: str = "") -> str:
        """Return the filesystem's own path of `key`."""
        base = resolve(self.uri, self.options)[1]
        return f"{base}/{key}" if key else base

    def place(self, key: str = "") -> str:
        """Return the address of `key` as people and other tools write it."""
        path = self.path(key)
        return path if self.is_local else f"{self.uri.split('://')[0]}://{path}"

    def exists(self, key: str) -> bool:
        """Whether an object or folder lies at `key`."""
        return bool(self.filesystem.exists(self.path(key)))

    def read(self, key: str) -> bytes:
        """Return a whole object; FileNotFoundError if there is none."""
        # s3fs would ask for the size first, to read a large object in pieces.
        once = {"max_concurrency": 1} if self._is_on_s3 else {}
        content: bytes = self.filesystem.cat_file(self.path(key), **once)
        return content

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes of an object from `start` to before `end`, fewer if it ends before."""
        if self.is_local:
            with Path(self.path(key)).open("rb", buffering=0) as file:
                found = b""
                while more := os.pread(file.fileno(), end - start - len(found), start + len(found)):
                    found = found + more if found else more  # 2 GiB at a time
            return found
        content: bytes = self.filesystem.cat_file(self.path(key), start=start, end=end)
        return content

    def write(self, key: str, content: Any) -> None:  # noqa: ANN401  (any buffer)
        """Write a whole object from memory, which is not copied, replacing what was there."""
        if self._is_on_s3:
            s3.put(self.filesystem, self.path(key), content)
        elif self.is_local:
            with self.writer(key) as stream:
                stream.write(content)
        else:
            whole = bytes(memoryview(content).cast("B"))
            self.filesystem.pipe_file(self.path(key), whole)

    def create(self, key: str, content: bytes) -> bool:
        """Write a whole small object if there is none; False, and nothing written, if there is.

        Of several that try at once one succeeds: a hard link locally, which fails if the name is
        taken, and in object storage a conditional write (`If-None-Match: *`).
        """
        path = self.path(key)
        if self.is_local:
            target, temporary = self._beside(key)
            try:
                with _held(temporary) as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                    target.hardlink_to(temporary)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            return True
        if self._is_on_s3:
            return s3.create(self.filesystem, path, content)
        try:
            self.filesystem.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        return True

    @contextmanager
    def reader(self, key: str) -> Iterator[IO[bytes]]:
        """Open an object for random access."""
        with self.filesystem.open(self.path(key), "rb") as stream:
            yield stream

    @contextmanager
    def writer(self, key: str) -> Iterator[IO[bytes]]:
        """Open an object for writing; it appears at `key` only if the block ends well."""
        if self.is_local:
            target, temporary = self._beside(key)
            try:
                with _held(temporary) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            return
        if self._is_on_s3:
            with s3.writer(self.filesystem, self.path(key)) as file:
                yield file
            return
        # Of an open file of fsspec some filesystems let a part be seen when it is thrown away.
        stream = io.BytesIO()
        yield stream
        self.filesystem.pipe_file(self.path(key), stream.getvalue())

    def sizes(self, prefix: str, *, links: bool = False) -> dict[str, int]:
        """Return name -> bytes of the objects directly under `prefix`; empty if there are none.

        A symbolic link to a file is one only with `links`.
        """
        entries = self._entries(prefix, "file", links=links)
        return {name: int(entry["size"] or 0) for name, entry in entries.items()}

    def listing(self, prefix: str) -> dict[str, tuple[int, float]]:
        """Return name -> bytes and time of change of the objects directly under `prefix`.

        In seconds of the Unix epoch, as the filesystem has it; 0 where it has none.
        """
        return {
            name: (int(entry["size"] or 0), _changed(entry))
            for name, entry in self._entries(prefix, "file").items()
        }

    def changed(self, key: str) -> float:
        """Return the time of change of an object, as `listing` does."""
        return _changed(self.filesystem.info(self.path(key)))

    def versions(self, prefix: str, *, links: bool = False) -> dict[str, str]:
        """Return name -> a text that another content changes, of the objects under `prefix`.

        From the listing alone: the ETag of object storage, else size and time of change.
        """
        keys = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated")
        return {
            name: f"{entry['size']} {next((entry[key] for key in keys if key in entry), '')}"
            for name, entry in self._entries(prefix, "file", links=links).items()
        }

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders directly under `prefix`."""
        return sorted(self._entries(prefix, "directory"))

    def _entries(
        self, prefix: str, kind: Literal["file", "directory"], *, links: bool = False
    ) -> dict[str, Any]:
        """Return name -> what the filesystem says of the entries directly under `prefix`."""
        filesystem = self.filesystem
        try:
            entries = filesystem.ls(self.path(prefix), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        if links:  # what they lead to; one that leads nowhere is nothing
            entries = [
                filesystem.info(entry["name"]) if entry.get("islink") else entry
                for entry in entries
                if not entry.get("islink") or filesystem.exists(entry["name"])
            ]
        # An object whose name ends with / stands for its folder.
        return {
            entry["name"].rstrip("/").rsplit("/", 1)[1]: entry
            for entry in entries
            if entry["type"] == kind and (kind == "directory" or not entry["name"].endswith("/"))
            if not _TEMPORARY.fullmatch(entry["name"].rsplit("/", 1)[1])  # not there yet
        }

    def delete(self, key: str) -> None:
        """Delete one object; nothing happens if it is already gone."""
        self._require_no_link(key)
        with suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(key))

    def sweep(self, prefix: str = "", *, deep: bool = False) -> None:
        """Delete what local writers began and died over directly under `prefix`, or anywhere.

        What a living one holds stays. Locks may be known to a machine alone, so what another one
        writes stays for an hour after its last change too.
        """
        folder = Path(self.path(prefix))
        if not self.is_local:
            return
        for path in folder.rglob(".*.tmp") if deep else folder.glob(".*.tmp"):
            if not _TEMPORARY.fullmatch(path.name):
                continue
            with suppress(OSError), path.open("r+b") as file:  # gone, held, or not ours to delete
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                age = time.time() - os.fstat(file.fileno()).st_mtime
                if age > _DEAD_SECONDS or f".{_HERE}" in path.name:
                    path.unlink()

    def _beside(self, key: str) -> tuple[Path, Path]:
        """Return a local file and a temporary one in its folder, which is made."""
        self._require_no_link(key)
        target = Path(self.path(key))
        make_folder(target.parent)
        return target, target.with_name(f".{target.name}.{_HERE}{uuid.uuid4().hex[8:]}.tmp")

    def _require_no_link(self, key: str) -> None:
        """PermissionError if a folder between the root and `key` is a symbolic link.

        What it leads to may be anybody's: nothing is written or deleted there.
        """
        folder = Path(self.path()) if self.is_local else None
        for part in key.split("/")[:-1] if folder else ():
            assert folder is not None
            folder /= part
            if folder.is_symlink():
                raise PermissionError(
                    f"{folder} is a symbolic link: nothing is written or deleted behind it; "
                    "put the folder itself there, or choose another --output"
                )

    def check_writable(self) -> None:
        """Write and delete a small object; PermissionError saying where and why if that fails.

        A local folder that was not there is not there afterwards.
        """
        key = ".write-check"  # the same for all: the next one deletes what a killed one left
        root = Path(self.path())
        absent = [each for each in (root, *root.parents) if self.is_local and not each.exists()]
        try:
            self.write(key, b"")
            self.delete(key)
            for folder in absent:
                with suppress(OSError):  # somebody else writes there now
                    folder.rmdir()
        except (OSError, BotoCoreError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if self.is_local and root.is_file():
                reason = "it is a file"
            raise PermissionError(
                f"cannot write to the output root {self.uri}: {reason}"
            ) from error


def make_folder(folder: Path) -> None:
    """Make a local folder and those above it that are not there, for their owner and group."""
    try:
        folder.mkdir(_FOLDER, exist_ok=True)
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make_folder(folder.parent)
        folder.mkdir(_FOLDER, exist_ok=True)


def make_file(path: Path) -> None:
    """Make an empty local file if there is none, for its owner and group, for others to write."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, _FILE))


class _Narrow:
    """The mask of the process while any thread is in `narrowed`: the last one restores it."""

    def __init__(self) -> None:
        self._lock, self._inside, self._mask = threading.Lock(), 0, 0

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._mask = os.umask(0o077)
                os.umask(self._mask | ~_FOLDER & 0o777)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                os.umask(self._mask)


_NARROW = _Narrow()


@contextmanager
def narrowed() -> Iterator[None]:
    """Let what other libraries write in the block be no wider than what is written here.

    The mask is the process's: another thread makes nothing wider meanwhile.
    """
    _NARROW.enter()
    try:
        yield
    finally:
        _NARROW.leave()


@contextmanager
def _held(path: Path) -> Iterator[IO[bytes]]:
    """Make a file that `sweep` leaves alone while this process lives and the block lasts."""
    while True:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, _FILE), "wb") as file:
            with suppress(OSError):  # a filesystem without locks: there nothing is swept
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # not swept before it was held
                yield file
                return


def _changed(entry: Mapping[str, Any]) -> float:
    """Return the time of change of what a filesystem says of an object."""
    times = (entry.get(name) for name in ("mtime", "LastModified", "last_modified", "created"))
    time = next((each for each in times if each is not None), 0.0)
    return float(time.timestamp() if isinstance(time, datetime) else time)


def fingerprint(uri: str, options: Mapping[str, Any], whole: int = _HASHED_WHOLE) -> str:
    """Return a digest of one file: of all its bytes, or of a sample of a very large one.

    Above `whole` bytes it is the size and 16 evenly spaced blocks of 64 KiB, cheap enough for a
    hundred-gigabyte checkpoint in object storage. The same after a rename or a copy.
    FileNotFoundError if there is no such file.
    """
    filesystem, path = resolve(uri, options)
    size = int(filesystem.size(path))
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    if size <= whole:
        digest.update(filesystem.cat_file(path))
        return digest.hexdigest()
    last = size - _BLOCK_BYTES
    for index in range(_SAMPLED_BLOCKS):
        start = last * index // (_SAMPLED_BLOCKS - 1)
        digest.update(filesystem.cat_file(path, start=start, end=start + _BLOCK_BYTES))
    return digest.hexdigest()
