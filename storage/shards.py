"""Write and read one shard: a Parquet object, and beside the tables an index of its row groups.

`embeddings` and `tokens` hold one row group per (layer, norm, pooling), so that reading one layer
touches one row group per object however many layers there are. What is read is verified as it is
read, by the row group: against the index, which is held to the receipt in the partition's manifest.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128, xxh3_128_hexdigest

from layerrank.storage import pages
from layerrank.storage.partition import Partition
from layerrank.storage.root import BOOKS, Root

_RECEIPT, _SEAL = b"layerrank.receipt", b"layerrank.seal"
# Of these, statistics, dictionaries and compression cost time and gain nothing.
_OPAQUE = ("vector", "states")
_MOST_OPEN = 256  # shards whose index and footer a process remembers
_MOST_SPARE = 4  # objects' memory that a process keeps: so many are written at a time
_spare = list[npt.NDArray[np.uint8]]()
Facts = Mapping[str, int | float | str]
ENCODED = "encoded"  # the fact why an encoder wrote vectors that should have been laid out
Sums = npt.NDArray[np.float64]

_INDEX = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),  # of the first byte
        pa.field("length", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("xxh3_128", pa.string(), nullable=False),
        # Of each feature of a group of vectors, so that a mean over any shards needs no read.
        pa.field("sums", pa.list_(pa.float64())),
    ]
)


class DamagedError(RuntimeError):
    """A shard is gone, or its bytes are not those that were written."""

    def __init__(self, partition: Partition, name: str, why: str) -> None:
        super().__init__(partition, name, why)
        self.partition, self.name, self.why = partition, name, why

    def __str__(self) -> str:
        return f"damaged: {self.partition.shard(self.name).rstrip('/')}: {self.why}"


class RemovedError(DamagedError):
    """The shards of a partition were deleted by a rule of the config, and are needed again."""

    def __str__(self) -> str:
        return f"{self.partition.path} was removed, by {self.why}, and is needed"


@dataclass(frozen=True)
class Receipt:
    """What is known of one written shard; small, so that a driver can hold all of them.

    `digest` names the settings that made it. `checksum` is of the checksums of its row groups and
    of its footer: equal for equal rows made with equal settings by the same pyarrow. `facts` are
    counts that add up over shards.
    """

    name: str
    rows: int
    digest: str
    checksum: str
    bytes: int = 0
    facts: Facts = field(default_factory=dict)


class Part(NamedTuple):
    """A stretch of an object: a row group, or the footer behind the last one."""

    offset: int
    length: int
    rows: int
    checksum: str
    sums: Sums | None


class _Hashed:
    """Passes bytes on and hashes them, so that checksums cost no second read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest, self._start = xxh3_128(), 0
        self.position = 0
        self.closed = False

    def write(self, content: Any) -> int:  # noqa: ANN401  (pyarrow passes any buffer)
        view = memoryview(content).cast("B")
        self._digest.update(view)
        self._stream.write(view)
        self.position += len(view)
        return len(view)

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        """Leave the bytes where they are: the object is published as a whole."""

    def cut(self, rows: int = 0, sums: Sums | None = None) -> Part:
        """Return what was written since the last call."""
        start, digest = self._start, self._digest.hexdigest()
        self._start, self._digest = self.position, xxh3_128()
        return Part(start, self.position - start, rows, digest, sums)


def index_key(key: str) -> str:
    """Return the key of the index of the shard at `key`."""
    return f"{BOOKS}/shards/{key}"


def write_shard(
    root: Root, key: str, groups: Iterable[pa.Table], schema: pa.Schema, receipt: Receipt
) -> Receipt:
    """Write `groups` as the row groups of one object, then its index; return the whole receipt.

    A column that does not fit the schema raises; the object then does not appear. Vectors are laid
    out if every group has one value of each other column, as `pages` says; else, and other tables,
    an encoder writes them. Where pyarrow reads otherwise what is laid out, `facts` say so.
    """
    units = {each.name: each.metadata[b"unit"].decode() for each in schema if each.metadata}
    metadata = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
    metadata |= {
        "layerrank.units": json.dumps(units, ensure_ascii=False),
        "layerrank.settings": receipt.digest,
    }
    tables: Iterable[pa.Table] = (
        each if each.schema.equals(schema) else each.cast(schema) for each in groups
    )
    parts, slow = None, dict[str, str]()
    try:
        if "vector" in schema.names:
            tables = [*tables]
            try:
                parts = _lay_out(root, key, tables, metadata)
            except pages.LayoutError as error:
                slow[ENCODED] = str(error)
        if parts is None:
            parts = _encode(root, key, tables, schema, metadata)
        rows, size = (sum(getattr(part, name) for part in parts) for name in ("rows", "length"))
        told = {"rows": rows, "checksum": _of_object(parts), "bytes": size}
        # Counts may have been made while the groups were: they are looked at after them.
        receipt = replace(receipt, **told, facts={**receipt.facts, **slow})
        _write_index(root, key, receipt, parts)
    except OSError as error:
        if error.filename is None and error.strerror:  # as of a disk that is full
            error.filename = root.place(key)
        raise
    return receipt


def _lay_out(
    root: Root, key: str, tables: Sequence[pa.Table], metadata: Mapping[str, str]
) -> list[Part] | None:
    """Write the row groups of vectors as one object; None if they cannot be laid out."""
    groups = [pages.group_of(table) for table in tables]
    if not groups or None in groups:
        return None
    dim = tables[0].schema.field("vector").type.list_size
    plan = pages.layout(dim, tuple(metadata.items()), tuple(filter(None, groups)))
    parts, start = list[Part](), 0
    with _memory(plan.size) as content:
        pages.begin(content, plan)
        for table, places in zip(tables, plan.groups, strict=True):
            sums = pages.put(content, places, table).sum(axis=0, dtype=np.float64)
            parts.append(_part(content, start, places.end, table.num_rows, sums))
            start = places.end
        parts.append(_part(content, start, plan.size))
        root.write(key, content.data)
    return parts


def _part(
    content: npt.NDArray[np.uint8], start: int, end: int, rows: int = 0, sums: Sums | None = None
) -> Part:
    return Part(start, end - start, rows, xxh3_128_hexdigest(content[start:end].data), sums)


@contextmanager
def _memory(size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Lend memory for an object: fresh pages would cost as much as all else that is done."""
    try:
        whole = _spare.pop()
    except IndexError:
        whole = np.empty(0, np.uint8)
    if len(whole) < size:
        # What is never touched is never there.
        whole = np.empty(max(size, pages.OBJECT_BYTES), np.uint8)
    try:
        yield whole[:size]
    finally:
        if len(whole) == pages.OBJECT_BYTES and len(_spare) < _MOST_SPARE:
            _spare.append(whole)


def _encode(
    root: Root,
    key: str,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    metadata: Mapping[str, str],
) -> list[Part]:
    """Write the row groups of any table as one object."""
    plain = [name for name in schema.names if name not in _OPAQUE]
    repeating = [name for name in plain if not pa.types.is_floating(schema.field(name).type)]
    parts = list[Part]()
    # Token states of a shard may be more than memory holds.
    writer = root.writer if "states" in schema.names else partial(_whole, root)
    with writer(key) as stream:
        hashed = _Hashed(stream)
        with pq.ParquetWriter(
            pa.PythonFile(hashed, mode="w"),
            schema,
            compression="zstd" if len(plain) == len(schema.names) else "none",
            use_dictionary=repeating,
            # Parquet's minimum and maximum leave NaN out, and an engine that trusts them takes
            # `isnan(value)` for false: no statistics on floating point columns.
            write_statistics=repeating,
            # Arrow's own types, such as lists of one length, are in the way of other readers.
            store_schema=False,
        ) as file:
            for table in tables:
                file.write_table(table, row_group_size=max(table.num_rows, 1))
                sums = None
                if "vector" in schema.names and table.num_rows:
                    sums = pages.vectors(table).sum(axis=0, dtype=np.float64)
                parts.append(hashed.cut(table.num_rows, sums))
            file.add_key_value_metadata(metadata)
        parts.append(hashed.cut())
    return parts


@contextmanager
def _whole(root: Root, key: str) -> Iterator[IO[bytes]]:
    """Collect an object and write it at once."""
    stream = io.BytesIO()
    yield stream
    root.write(key, stream.getbuffer())


def _write_index(root: Root, key: str, receipt: Receipt, parts: Sequence[Part]) -> None:
    told = {_RECEIPT: json.dumps(asdict(receipt)), _SEAL: _seal(receipt, parts)}
    with (
        _whole(root, index_key(key)) as stream,
        pq.ParquetWriter(
            stream, _INDEX, compression="zstd", store_schema=False, write_statistics=False
        ) as writer,
    ):
        writer.write_table(pa.table([*zip(*parts, strict=True)], _INDEX))
        writer.add_key_value_metadata(told)


def read_receipt(root: Root, key: str) -> Receipt | None:
    """Return the receipt in the index of a shard; None if there is no whole index."""
    found = _read_index(root, key) or _read_index(root, key)
    return found[0] if found else None


@dataclass(frozen=True)
class Shard:
    """An object of a table, as the manifest of its partition has it.

    Whatever is read of it raises DamagedError if the bytes are not those that were written.
    """

    root: Root
    partition: Partition
    receipt: Receipt

    @property
    def key(self) -> str:
        """The key of the object under the root."""
        return self.partition.shard(self.receipt.name)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the whole shard, or some of its columns."""
        opened = self._open()
        found = [self._content(part) for part in opened.parts[:-1]]
        return self._file(opened, zip(opened.parts, found, strict=False)).read(
            columns and [*columns]
        )

    def read_group(self, match: Mapping[str, int | str]) -> pa.Table:
        """Return the rows of the row groups whose columns have the values in `match`.

        Only those are read. ValueError naming the object if there are none.
        """
        opened = self._open()
        known = {name: opened.ranges(name) for name in match}
        wanted = [
            index
            for index in range(opened.metadata.num_row_groups)
            if all(known[name][index] == (value, value) for name, value in match.items())
        ]
        if not wanted:
            raise ValueError(f"{self.root.place(self.key)} holds no rows with {dict(match)}")
        parts = [opened.parts[index] for index in wanted]
        contents = [self._content(part) for part in parts]
        tables = [
            pages.read(opened.metadata.row_group(index), part.offset, content)
            for index, part, content in zip(wanted, parts, contents, strict=True)
        ]
        if None not in tables:
            return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        return self._file(opened, zip(parts, contents, strict=True)).read_row_groups(wanted)

    def group_values(self, columns: Sequence[str]) -> list[tuple[int | str, ...]]:
        """Return the values of `columns` in each row group, from the footer alone."""
        opened = self._open()
        ranges = [opened.ranges(column) for column in columns]
        return [tuple(each.least for each in group) for group in zip(*ranges, strict=True)]

    def sums(self) -> list[list[float]]:
        """Return the float64 sum of every feature in each row group of vectors, without a read."""
        parts = self._open().parts[:-1]
        return [[] if part.sums is None else part.sums.tolist() for part in parts]

    def verify(self) -> str:
        """Return what is wrong with the shard, from all of its bytes; nothing if it is whole."""
        try:
            # Read anew, whatever was remembered.
            opened = _opened.__wrapped__(self.root, self.key, *self._told)
            for part in opened.parts[:-1]:
                _verified(self.root, self.key, self.receipt.bytes, part)
        except _NotWholeError as error:
            return str(error)
        return ""

    @property
    def _told(self) -> tuple[int, str]:
        return self.receipt.bytes, self.receipt.checksum

    def _open(self) -> _Opened:
        with self._named():
            return _opened(self.root, self.key, *self._told)

    def _content(self, part: Part) -> bytes:
        with self._named():
            return _verified(self.root, self.key, self.receipt.bytes, part)

    def _file(self, opened: _Opened, found: Iterable[tuple[Part, bytes]]) -> pq.ParquetFile:
        content = _assembled(self.receipt.bytes, found)
        return pq.ParquetFile(content, metadata=opened.metadata)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except _NotWholeError as error:
            raise DamagedError(self.partition, self.receipt.name, str(error)) from None


class _NotWholeError(Exception):
    """The bytes of an object or of its index are not those that were written."""


class _Range(NamedTuple):
    least: Any
    most: Any


class _Opened(NamedTuple):
    """The parts of a shard, and what its footer says."""

    parts: list[Part]
    metadata: pq.FileMetaData
    known: dict[str, list[_Range]]

    def ranges(self, name: str) -> list[_Range]:
        """Return the smallest and the largest value of a column in each row group."""
        if name not in self.known:
            place = self.metadata.schema.names.index(name)
            groups = map(self.metadata.row_group, range(self.metadata.num_row_groups))
            found = [group.column(place).statistics for group in groups]
            self.known[name] = [_Range(each.min, each.max) for each in found]
        return self.known[name]


@lru_cache(maxsize=_MOST_OPEN)
def _opened(root: Root, key: str, size: int, checksum: str) -> _Opened:
    found = _read_index(root, key) or _read_index(root, key)
    if found is None:
        raise _NotWholeError("the index of its row groups is gone or damaged")
    receipt, parts = found
    if receipt.checksum != checksum or receipt.bytes != size:
        raise _NotWholeError("it is another one than its manifest says")
    footer = parts[-1], _verified(root, key, size, parts[-1])
    return _Opened(parts, pq.read_metadata(_assembled(size, [footer])), {})


def _read_index(root: Root, key: str) -> tuple[Receipt, list[Part]] | None:
    """Return what the index of a shard says; None if it is gone or its seal does not hold."""
    try:
        content = root.read(index_key(key))  # what else keeps it from being read is no damage
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
        told = table.schema.metadata
        receipt = Receipt(**json.loads(told[_RECEIPT]))
        sums = table["sums"].combine_chunks()
        ends, flat = sums.offsets.to_numpy(), sums.values.to_numpy()
        features = [flat[begin:end] if end > begin else None for begin, end in pairwise(ends)]
        columns = [column.to_pylist() for column in table.drop(["sums"]).columns]
        parts = [Part(*row) for row in zip(*columns, features, strict=True)]
        whole = told[_SEAL].decode() == _seal(receipt, parts)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError):
        return None
    return (receipt, parts) if whole and receipt.checksum == _of_object(parts) else None


def _verified(root: Root, key: str, size: int, part: Part) -> bytes:
    """Return the bytes of a part of an object of `size` bytes, as they were written."""
    end = part.offset + part.length
    try:
        found = root.read_range(key, part.offset, end)
        if xxh3_128_hexdigest(found) != part.checksum:  # it may have changed on its way
            found = root.read_range(key, part.offset, end)
            if len(found) == part.length and xxh3_128_hexdigest(found) != part.checksum:
                where = f"{part.offset:,} to {end:,}"
                raise _NotWholeError(f"of its bytes {where} some are not those that were written")
    except FileNotFoundError:
        raise _NotWholeError("it is gone") from None
    except OSError:  # S3 refuses a range behind the end
        folder, _, name = key.rpartition("/")
        if root.sizes(folder).get(name) == size:
            raise
        found = b""
    if len(found) != part.length:
        raise _NotWholeError(f"it is cut off: it had {size:,} bytes")
    return found


def _assembled(size: int, found: Iterable[tuple[Part, bytes]]) -> pa.BufferReader:
    """Return an object of `size` bytes of which only some parts are there."""
    # Memory that is never touched is never there.
    content = np.zeros(size, np.uint8)
    for part, each in found:
        content[part.offset : part.offset + part.length] = np.frombuffer(each, np.uint8)
    return pa.BufferReader(pa.py_buffer(content))


def _of_object(parts: Sequence[Part]) -> str:
    return xxh3_128_hexdigest("".join(part.checksum for part in parts).encode())


def _seal(receipt: Receipt, parts: Sequence[Part]) -> str:
    """Return a checksum of all that an index says."""
    digest = xxh3_128(json.dumps(asdict(receipt), sort_keys=True).encode())
    for *numbers, sums in parts:
        digest.update(f"{numbers} {sums is None}".encode())
        digest.update(np.array(() if sums is None else sums, np.float64).tobytes())
    return digest.hexdigest()
