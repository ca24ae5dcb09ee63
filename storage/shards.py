"""Write and read one shard: a Parquet object, and beside the tables an index of its row groups.

`embeddings` and `tokens` hold one row group per (layer, norm, pooling), so that reading one layer
touches one row group per object however many layers there are. What is read is verified as it is
read, by the row group: against the index, which is held to the receipt in the partition's manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128, xxh3_128_hexdigest

from storage.partition import Partition
from storage.root import BOOKS, Root

_RECEIPT, _SEAL = b"layerrank.receipt", b"layerrank.seal"
# Of these, statistics, dictionaries and compression cost time and gain nothing.
_OPAQUE = ("vector", "states")
_MOST_OPEN = 256  # shards whose index and footer a process remembers
Facts = Mapping[str, int | float | str]

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
    sums: list[float] | None


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

    def cut(self, rows: int = 0, sums: list[float] | None = None) -> Part:
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

    A column that does not fit the schema raises; the object then does not appear.
    """
    plain = [name for name in schema.names if name not in _OPAQUE]
    repeating = [name for name in plain if not pa.types.is_floating(schema.field(name).type)]
    has_vectors, parts = "vector" in schema.names, list[Part]()
    units = {each.name: each.metadata[b"unit"].decode() for each in schema if each.metadata}
    with root.writer(key) as stream:
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
        ) as writer:
            for group in groups:
                table = group.cast(schema)
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
                sums = vectors(table).sum(axis=0, dtype=np.float64).tolist() if has_vectors else []
                parts.append(hashed.cut(table.num_rows, sums or None))
            writer.add_key_value_metadata(
                {
                    **(schema.metadata or {}),
                    "layerrank.units": json.dumps(units, ensure_ascii=False),
                    "layerrank.settings": receipt.digest,
                }
            )
        parts.append(hashed.cut())
    rows, checksum = sum(part.rows for part in parts), _of_object(parts)
    receipt = replace(receipt, rows=rows, checksum=checksum, bytes=hashed.position)
    told = {_RECEIPT: json.dumps(asdict(receipt)), _SEAL: _seal(receipt, parts)}
    with (
        root.writer(index_key(key)) as stream,
        pq.ParquetWriter(
            stream, _INDEX, compression="zstd", store_schema=False, write_statistics=False
        ) as writer,
    ):
        writer.write_table(pa.table([*zip(*parts, strict=True)], _INDEX))
        writer.add_key_value_metadata(told)
    return receipt


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
        parts, metadata = self._open()
        return self._file(parts[:-1], metadata).read(columns and [*columns])

    def read_group(self, match: Mapping[str, int | str]) -> pa.Table:
        """Return the rows of the row groups whose columns have the values in `match`.

        Only those are read. ValueError naming the object if there are none.
        """
        parts, metadata = self._open()
        wanted = []
        for index in range(metadata.num_row_groups):
            found = _statistics(metadata.row_group(index))
            if all(found[name].min == value == found[name].max for name, value in match.items()):
                wanted.append(index)
        if not wanted:
            raise ValueError(f"{self.root.place(self.key)} holds no rows with {dict(match)}")
        file = self._file([parts[index] for index in wanted], metadata)
        return file.read_row_groups(wanted)

    def group_values(self, columns: Sequence[str]) -> list[tuple[int | str, ...]]:
        """Return the values of `columns` in each row group, from the footer alone."""
        _, metadata = self._open()
        groups = (_statistics(metadata.row_group(i)) for i in range(metadata.num_row_groups))
        return [tuple(found[column].min for column in columns) for found in groups]

    def sums(self) -> list[list[float]]:
        """Return the float64 sum of every feature in each row group of vectors, without a read."""
        return [part.sums or [] for part in self._open()[0][:-1]]

    def verify(self) -> str:
        """Return what is wrong with the shard, from all of its bytes; nothing if it is whole."""
        try:
            # Read anew, whatever was remembered.
            parts, _ = _opened.__wrapped__(self.root, self.key, *self._told)
            _assembled(self.root, self.key, self.receipt.bytes, parts[:-1])
        except _NotWholeError as error:
            return str(error)
        return ""

    @property
    def _told(self) -> tuple[int, str]:
        return self.receipt.bytes, self.receipt.checksum

    def _open(self) -> tuple[list[Part], pq.FileMetaData]:
        try:
            return _opened(self.root, self.key, *self._told)
        except _NotWholeError as error:
            raise DamagedError(self.partition, self.receipt.name, str(error)) from None

    def _file(self, parts: Sequence[Part], metadata: pq.FileMetaData) -> pq.ParquetFile:
        try:
            content = _assembled(self.root, self.key, self.receipt.bytes, parts)
        except _NotWholeError as error:
            raise DamagedError(self.partition, self.receipt.name, str(error)) from None
        return pq.ParquetFile(content, metadata=metadata)


class _NotWholeError(Exception):
    """The bytes of an object or of its index are not those that were written."""


@lru_cache(maxsize=_MOST_OPEN)
def _opened(root: Root, key: str, size: int, checksum: str) -> tuple[list[Part], pq.FileMetaData]:
    """Return the parts of a shard and what its footer says."""
    found = _read_index(root, key) or _read_index(root, key)
    if found is None:
        raise _NotWholeError("the index of its row groups is gone or damaged")
    receipt, parts = found
    if receipt.checksum != checksum or receipt.bytes != size:
        raise _NotWholeError("it is another one than its manifest says")
    return parts, pq.read_metadata(_assembled(root, key, size, parts[-1:]))


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
        parts = [Part(*row.values()) for row in table.to_pylist()]
        whole = told[_SEAL].decode() == _seal(receipt, parts)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError):
        return None
    return (receipt, parts) if whole and receipt.checksum == _of_object(parts) else None


def _assembled(root: Root, key: str, size: int, parts: Sequence[Part]) -> pa.BufferReader:
    """Return an object of `size` bytes of which only some parts are read, and those verified."""
    # Memory that is never touched is never there.
    content = np.zeros(size, np.uint8)
    for part in parts:
        end = part.offset + part.length
        try:
            found = root.read_range(key, part.offset, end)
            if xxh3_128_hexdigest(found) != part.checksum:  # it may have changed on its way
                found = root.read_range(key, part.offset, end)
        except FileNotFoundError:
            raise _NotWholeError("it is gone") from None
        except OSError:  # S3 refuses a range behind the end
            folder, _, name = key.rpartition("/")
            if root.sizes(folder).get(name) == size:
                raise
            found = b""
        if len(found) != part.length:
            raise _NotWholeError(f"it is cut off: it had {size:,} bytes")
        if xxh3_128_hexdigest(found) != part.checksum:
            where = f"{part.offset:,} to {end:,}"
            raise _NotWholeError(f"of its bytes {where} some are not those that were written")
        content[part.offset : end] = np.frombuffer(found, np.uint8)
    return pa.BufferReader(pa.py_buffer(content))


def _of_object(parts: Sequence[Part]) -> str:
    return xxh3_128_hexdigest("".join(part.checksum for part in parts).encode())


def _seal(receipt: Receipt, parts: Sequence[Part]) -> str:
    """Return a checksum of all that an index says."""
    digest = xxh3_128(json.dumps(asdict(receipt), sort_keys=True).encode())
    for *numbers, sums in parts:
        digest.update(f"{numbers} {sums is None}".encode())
        digest.update(np.array(sums or (), np.float64).tobytes())
    return digest.hexdigest()


def _statistics(group: pq.RowGroupMetaData) -> dict[str, Any]:
    """Return column -> its smallest and largest value in a row group; None without statistics."""
    columns = map(group.column, range(group.num_columns))
    return {column.path_in_schema: column.statistics for column in columns}


def vectors(table: pa.Table) -> npt.NDArray[np.float32]:
    """Return the `vector` column as a float32 matrix [rows, features]."""
    flat: npt.NDArray[np.float32]
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, -1 if table.num_rows else 0)


def vector_column(matrix_ND: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Return a float32 matrix [rows, features] as a `vector` column, without copying rows."""
    item = pa.field("element", pa.float32(), nullable=False)
    flat = pa.array(np.ascontiguousarray(matrix_ND, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, matrix_ND.shape[1]))
