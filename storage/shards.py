"""Write and read one shard: a Parquet object whose footer carries its own receipt.

`embeddings` and `tokens` hold one row group per (layer, norm, pooling), so that reading one layer
touches one row group per object however many layers there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from storage.root import Root

_RECEIPT = b"layerrank.receipt"
_FOOTER_TAIL = 8  # 4 bytes of footer length, then the magic
# Of these, statistics, dictionaries and compression cost time and gain nothing.
_OPAQUE = ("vector", "states")
Facts = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Receipt:
    """What is known of one written shard; small, so that a driver can hold all of them.

    `digest` names the settings that made it, `checksum` is of the bytes before the Parquet footer
    (equal for equal rows written by the same pyarrow), `facts` are counts that add up over shards.
    """

    name: str
    rows: int
    digest: str
    checksum: str
    bytes: int = 0
    facts: Facts = field(default_factory=dict)


class _HashingStream:
    """Passes bytes on and hashes them, so that the checksum costs no second read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.blake2b(digest_size=16)
        self.position = 0
        self.closed = False

    def write(self, content: Any) -> int:  # noqa: ANN401  (pyarrow passes any buffer)
        view = memoryview(content).cast("B")
        self.digest.update(view)
        self._stream.write(view)
        self.position += len(view)
        return len(view)

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        """Leave the bytes where they are: the object is published as a whole."""


def write_shard(
    root: Root, key: str, groups: Iterable[pa.Table], schema: pa.Schema, receipt: Receipt
) -> Receipt:
    """Write `groups` as the row groups of one object and return the completed receipt.

    A column that does not fit the schema raises; the object then does not appear.
    """
    plain = [name for name in schema.names if name not in _OPAQUE]
    raw = len(plain) < len(schema.names)
    with root.writer(key) as stream:
        hashing = _HashingStream(stream)
        with pq.ParquetWriter(
            pa.PythonFile(hashing, mode="w"),
            schema,
            compression="none" if raw else "zstd",
            use_dictionary=plain,
            # Parquet's minimum and maximum leave NaN out, and an engine that trusts them takes
            # `isnan(value)` for false: no statistics on floating point columns.
            write_statistics=[n for n in plain if not pa.types.is_floating(schema.field(n).type)],
        ) as writer:
            rows = 0
            for group in groups:
                rows += group.num_rows
                writer.write_table(group.cast(schema), row_group_size=max(group.num_rows, 1))
            receipt = replace(receipt, rows=rows, checksum=hashing.digest.hexdigest())
            writer.add_key_value_metadata({_RECEIPT: json.dumps(asdict(receipt))})
        return replace(receipt, bytes=hashing.position)


def read_receipt(root: Root, key: str, size: int) -> Receipt:
    """Return the receipt in the footer of an existing shard of `size` bytes."""
    with root.reader(key) as stream:
        footer = pq.read_metadata(stream).metadata or {}
    if _RECEIPT not in footer:
        raise ValueError(
            f"{root.place(key)} was not written by LayerRank: its footer has no receipt"
        )
    return Receipt(**{**json.loads(footer[_RECEIPT]), "bytes": size})


def verify(root: Root, key: str, receipt: Receipt) -> bool:
    """Whether the bytes of the shard are still those that its receipt describes."""
    content = root.read(key)
    if len(content) != receipt.bytes:
        return False
    footer = int.from_bytes(content[-_FOOTER_TAIL:-4], "little")
    data = memoryview(content)[: len(content) - _FOOTER_TAIL - footer]
    return hashlib.blake2b(data, digest_size=16).hexdigest() == receipt.checksum


def read_table(root: Root, key: str, columns: list[str] | None = None) -> pa.Table:
    """Return a whole shard (or some of its columns)."""
    with root.reader(key) as stream:
        return pq.ParquetFile(stream, pre_buffer=True).read(columns=columns)


def read_tables(root: Root, keys: Sequence[str]) -> pa.Table:
    """Return several whole shards of one table, one after another."""
    return pa.concat_tables([read_table(root, key) for key in keys])


def read_group(root: Root, key: str, match: Mapping[str, int | str]) -> pa.Table:
    """Return the rows of the row group whose columns have the values in `match`.

    Only the footer and that group are read. ValueError naming the object if there is no such group.
    """
    with root.reader(key) as stream:
        file = pq.ParquetFile(stream, pre_buffer=True)
        wanted = []
        for index in range(file.num_row_groups):
            found = _statistics(file.metadata.row_group(index))
            if all(found[name].min == value == found[name].max for name, value in match.items()):
                wanted.append(index)
        if not wanted:
            raise ValueError(f"{root.place(key)} holds no rows with {dict(match)}")
        return file.read_row_groups(wanted)


def group_values(root: Root, key: str, columns: Sequence[str]) -> list[tuple[int | str, ...]]:
    """Return the values of `columns` in each row group of an object, from its footer alone."""
    with root.reader(key) as stream:
        metadata = pq.ParquetFile(stream).metadata
    groups = (_statistics(metadata.row_group(index)) for index in range(metadata.num_row_groups))
    return [tuple(found[column].min for column in columns) for found in groups]


def _statistics(group: pq.RowGroupMetaData) -> dict[str, Any]:
    """Return column -> its smallest and largest value in a row group; None without statistics."""
    columns = map(group.column, range(group.num_columns))
    return {column.path_in_schema: column.statistics for column in columns}


def vectors(table: pa.Table) -> npt.NDArray[np.float32]:
    """Return the `vector` column as a float32 matrix [rows, features]."""
    column = table["vector"].combine_chunks()
    width = table.schema.field("vector").type.list_size
    flat: npt.NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)


def vector_column(matrix_ND: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Return a float32 matrix [rows, features] as a `vector` column, without copying rows."""
    item = pa.field("element", pa.float32(), nullable=False)
    flat = pa.array(np.ascontiguousarray(matrix_ND, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, matrix_ND.shape[1]))
