"""Vectors as Parquet whose pages are laid out here: their values are the arrays as they lie.

An encoder walks every number; a page of N vectors of one length is a header that N and the length
alone decide, and then their bytes. So all of an object but its ids, lengths and vectors is known
before it is written, and reading is a look at the header. The schema and the metadata are pyarrow's
own, from a file without rows; what it cannot read back as it was meant is not laid out, and an
encoder writes it instead.

In each row group layer, norm and pooling have one value, and statistics of it, which readers choose
groups by. Ids and lengths have none: they would be different bytes for nothing, as no group can be
left out by them.

Format: Apache Parquet, `parquet.thrift`, in Thrift's compact protocol.
Shapes: N prompts, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.random import default_rng

from layerrank.storage import schema

Bytes = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float32]
Value = int | str
_MAGIC = b"PAR1"
_ALIGNED = 8  # values begin at multiples of it, so that they can be used where they are
_MOST_PAGE = (1 << 31) - 1  # bytes, a signed 32-bit number
_INT32, _INT64, _FLOAT, _BYTE_ARRAY = 1, 2, 4, 6  # physical types
_PLAIN, _RLE, _RLE_DICTIONARY = 0, 3, 8  # encodings
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_CONSTANT = {"layer": pa.int16(), "norm": pa.string(), "pooling": pa.string()}
_NUMBERS = {"prompt_id": (_INT64, pa.int64()), "n_tokens": (_INT32, pa.int32())}
_VECTOR = "vector.list.element"
# num_rows = 0 and no row group, as they lie in the footer of a file without rows.
_NO_ROWS = b"\x16\x00\x19\x0c"

OBJECT_BYTES = 256_000_000  # the most that an object of vectors should have, and a writer needs

Typed = tuple[int, bytes]  # of a Thrift value: its type, its bytes


class LayoutError(ValueError):
    """Vectors cannot be laid out so that pyarrow reads them as they are meant."""


class Group(NamedTuple):
    """What a row group holds: so many vectors, and the one value of each of its other columns."""

    rows: int
    layer: int
    norm: str
    pooling: str

    @property
    def constants(self) -> dict[str, Value]:
        """The one value of each column that has one."""
        return {"layer": self.layer, "norm": self.norm, "pooling": self.pooling}


class Places(NamedTuple):
    """Where the ids, lengths and vectors of a row group begin, and where the group ends."""

    values: list[int]
    end: int


def most_rows(dim: int, groups: int) -> int:
    """Return how many vectors of each group an object of at most `OBJECT_BYTES` holds; 1 at least.

    Beside its vector a row has an id, a length and levels, and a group its headers.
    """
    return max((OBJECT_BYTES - 2_000 * groups) // (groups * (4 * dim + 18)), 1)


class Layout(NamedTuple):
    """An object before its values are known: its size, its other bytes, the places of values."""

    size: int
    fixed: list[tuple[int, bytes]]
    groups: list[Places]


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:  # noqa: PLR2004  (seven bits a byte)
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _number(kind: int, value: int) -> Typed:
    return kind, _varint(value << 1 if value >= 0 else ~(value << 1))


def _short(value: int) -> Typed:
    return _number(5, value)


def _long(value: int) -> Typed:
    return _number(6, value)


def _text(value: bytes) -> Typed:
    return 8, _varint(len(value)) + value


def _list(items: Sequence[Typed]) -> Typed:
    count, kind = len(items), items[0][0]
    few = 15  # are counted in the byte of the type
    head = bytes([count << 4 | kind]) if count < few else bytes([0xF0 | kind]) + _varint(count)
    return 9, head + b"".join(content for _, content in items)


def _struct(fields: Mapping[int, Typed]) -> Typed:
    found, last = bytearray(), 0
    for number, (kind, content) in fields.items():
        found += bytes([number - last << 4 | kind]) + content
        last = number
    return 12, bytes(found) + b"\0"


def _page(kind: int, values: int, size: int, encoding: int) -> bytes:
    """Return the header of a page of so many values and bytes."""
    about = {1: _short(values), 2: _short(encoding)}
    if kind == _DATA_PAGE:
        about |= {3: _short(_RLE), 4: _short(_RLE)}
    place = 5 if kind == _DATA_PAGE else 7
    sizes = {1: _short(kind), 2: _short(size), 3: _short(size)}
    return _struct({**sizes, place: _struct(about)})[1]


def _run(count: int, value: int) -> bytes:
    """Return a run of a level or an index of one bit."""
    return _varint(count << 1) + bytes([value])


@lru_cache(maxsize=64)
def plain_head(rows: int, width: int) -> bytes:
    """Return what stands before the values of a column of numbers of `width` bytes."""
    return _page(_DATA_PAGE, rows, rows * width, _PLAIN)


@lru_cache(maxsize=8)
def vector_head(rows: int, dim: int) -> bytes:
    """Return what stands before the values of a column of float32 vectors.

    Of each value a level says whether it begins a row, another that it is there.
    """
    row = _run(1, 0) + _run(dim - 1, 1) if dim > 1 else b""
    levels = [row * rows or _run(rows, 0), _run(rows * dim, 1)]
    told = b"".join(len(each).to_bytes(4, "little") + each for each in levels)
    size = len(told) + 4 * rows * dim
    return _page(_DATA_PAGE, rows * dim, size, _PLAIN) + told


class _Pieces:
    """The bytes of an object that are known, and what the footer says of its columns."""

    def __init__(self) -> None:
        self.at, self.fixed = 0, list[tuple[int, bytes]]()

    def put(self, content: bytes) -> int:
        """Add bytes and return where."""
        at = self.at
        self.fixed.append((at, content))
        self.at += len(content)
        return at

    def constant(self, name: str, rows: int, value: Value) -> Typed:
        """Add a column of one value."""
        if isinstance(value, int):
            kind, plain = _INT32, value.to_bytes(4, "little", signed=True)
            least = plain
        else:
            kind, least = _BYTE_ARRAY, value.encode()
            plain = len(least).to_bytes(4, "little") + least
        indices = b"\1" + _run(rows, 0)  # of one bit
        start = self.put(_page(_DICTIONARY_PAGE, 1, len(plain), _PLAIN) + plain)
        data = self.put(_page(_DATA_PAGE, rows, len(indices), _RLE_DICTIONARY) + indices)
        statistics = _struct({3: _long(0), 5: _text(least), 6: _text(least)})
        encodings = _PLAIN, _RLE, _RLE_DICTIONARY
        found = self._column(name, kind, encodings, rows, start, data)
        return _struct({2: _long(0), 3: _struct({**found, 11: _long(start), 12: statistics})})

    def values(self, name: str, kind: int, head: bytes, count: int, width: int) -> Typed:
        """Add a column of `count` values of `width` bytes, which are left open."""
        self.put(bytes(-(self.at + len(head)) % _ALIGNED))
        start = self.put(head)
        self.at += count * width
        found = self._column(name, kind, (_PLAIN, _RLE), count, start, start)
        return _struct({2: _long(0), 3: _struct(found)})

    def _column(
        self, name: str, kind: int, encodings: Sequence[int], count: int, start: int, data: int
    ) -> dict[int, Typed]:
        size = _long(self.at - start)
        return {
            1: _short(kind),
            2: _list([*map(_short, encodings)]),
            3: _list([_text(each.encode()) for each in name.split(".")]),
            4: _short(0),  # not compressed
            5: _long(count),
            6: size,
            7: size,
            9: _long(data),
        }


@lru_cache(maxsize=8)
def layout(dim: int, metadata: tuple[tuple[str, str], ...], groups: tuple[Group, ...]) -> Layout:
    """Return the layout of an object of `embeddings`.

    LayoutError if pyarrow would not read it as it is meant, or a page would be too large.
    """
    if max(len(vector_head(each.rows, dim)) + 4 * dim * each.rows for each in groups) > _MOST_PAGE:
        raise LayoutError("a page would be larger than Parquet allows")
    _require_readable(dim, metadata)
    return _layout(dim, metadata, groups)


def _layout(dim: int, metadata: tuple[tuple[str, str], ...], groups: Sequence[Group]) -> Layout:
    pieces, places, told = _Pieces(), list[Places](), list[Typed]()
    pieces.put(_MAGIC)
    before, after = _frame(dim, metadata)
    for number, group in enumerate(groups):
        start, of_columns, at = pieces.at, list[Typed](), list[int]()
        rows, known = group.rows, group.constants
        for name in schema.embeddings(dim).names:
            if name in known:
                of_columns.append(pieces.constant(name, rows, known[name]))
                continue
            if name in _NUMBERS:
                path, (kind, of_arrow) = name, _NUMBERS[name]
                count, width = rows, of_arrow.bit_width // 8
                head = plain_head(rows, width)
            else:
                path, kind = _VECTOR, _FLOAT
                count, width, head = rows * dim, 4, vector_head(rows, dim)
            of_columns.append(pieces.values(path, kind, head, count, width))
            at.append(pieces.at - count * width)
        size = _long(pieces.at - start)
        counts = {2: size, 3: _long(rows), 6: size, 7: _number(4, number)}
        told.append(_struct({1: _list(of_columns), **counts}))
        # A group begins where values may, so that it can be read alone into memory like that.
        pieces.put(bytes(-pieces.at % _ALIGNED))
        places.append(Places(at, pieces.at))
    rows = sum(each.rows for each in groups)
    filled = _struct({1: _long(rows), 2: _list(told)})[1][:-1]  # as the third and the fourth field
    footer = before + filled + after
    pieces.put(footer + len(footer).to_bytes(4, "little") + _MAGIC)
    return Layout(pieces.at, pieces.fixed, places)


@lru_cache(maxsize=8)
def _frame(dim: int, metadata: tuple[tuple[str, str], ...]) -> tuple[bytes, bytes]:
    """Return what pyarrow's footer has before and behind the rows."""
    sink, columns = pa.BufferOutputStream(), schema.embeddings(dim)
    with pq.ParquetWriter(sink, columns, store_schema=False, write_statistics=False) as writer:
        writer.add_key_value_metadata(dict(metadata))
    whole = sink.getvalue().to_pybytes()
    length = int.from_bytes(whole[-8:-4], "little")
    parts = whole[-8 - length : -8].split(_NO_ROWS)
    if len(parts) != 2:  # noqa: PLR2004
        raise LayoutError("the footer of a file without rows is another than was known")
    return parts[0], parts[1]


@lru_cache(maxsize=8)
def _require_readable(dim: int, metadata: tuple[tuple[str, str], ...]) -> None:
    """LayoutError if pyarrow does not read a small object, laid out here, as it was meant."""
    groups, draw = (Group(3, 0, "none", "mean"), Group(2, 7, "final", "last")), default_rng(0)
    expected = [
        pa.table(
            [
                draw.integers(-(2**63), 2**63, group.rows),
                *([value] * group.rows for value in group.constants.values()),
                draw.integers(1, 2**31, group.rows, np.int32),
                vector_column(draw.standard_normal((group.rows, dim), np.float32)),
            ],
            schema=schema.embeddings(dim),
        )
        for group in groups
    ]
    plan = _layout(dim, metadata, groups)
    content = np.empty(plan.size, np.uint8)
    begin(content, plan)
    for places, table in zip(plan.groups, expected, strict=True):
        put(content, places, table)
    try:
        with pq.ParquetFile(pa.BufferReader(pa.py_buffer(content))) as file:
            found = [file.read_row_group(index).to_pydict() for index in range(len(groups))]
            known, told = (
                file.metadata.metadata,
                [*map(file.metadata.row_group, range(len(groups)))],
            )
    except (pa.ArrowException, OSError) as error:
        raise LayoutError(f"pyarrow cannot read what is laid out: {error}") from error
    ranges = [tuple((each.min, each.max) for each in _constants(group)) for group in told]
    if (
        found != [table.to_pydict() for table in expected]
        or known != {name.encode(): value.encode() for name, value in metadata}
        or ranges
        != [tuple((value, value) for value in group.constants.values()) for group in groups]
    ):
        raise LayoutError("pyarrow reads other values than were laid out")


def _constants(group: pq.RowGroupMetaData) -> list[Any]:
    """Return the statistics of the columns that have one value in each row group."""
    columns = map(group.column, range(group.num_columns))
    found = {column.path_in_schema: column.statistics for column in columns}
    return [found.get(name) for name in _CONSTANT]


def begin(content: Bytes, plan: Layout) -> None:
    """Write into memory what the layout knows of an object."""
    for at, known in plan.fixed:
        content[at : at + len(known)] = np.frombuffer(known, np.uint8)


def put(content: Bytes, places: Places, table: pa.Table) -> Matrix:
    """Write the values of a row group into memory; return its vectors."""
    found = vectors(table)
    values = table["prompt_id"].to_numpy(), table["n_tokens"].to_numpy(), found
    for at, each in zip(places.values, values, strict=True):
        content[at : at + each.nbytes].view(each.dtype).reshape(each.shape)[...] = each
    return found


def group_of(table: pa.Table) -> Group | None:
    """Return what a row group of these rows is; None if it cannot be laid out."""
    values = []
    for name in _CONSTANT:
        least, most = pc.min_max(table[name]).as_py().values()
        if least != most or least is None:
            return None
        values.append(least)
    nulls = sum(column.null_count for column in table.columns)
    return None if nulls else Group(table.num_rows, *values)


def read(group: pq.RowGroupMetaData, start: int, content: bytes) -> pa.Table | None:
    """Return the rows of a row group whose bytes begin at `start`, without a copy of its values.

    None if they are not laid out as here: an encoder wrote them, which pyarrow reads.
    """
    columns = {each.path_in_schema: each for each in map(group.column, range(group.num_columns))}
    rows, arrays = group.num_rows, list[pa.Array]()
    if {*columns} != {*_CONSTANT, *_NUMBERS, _VECTOR} or not rows:
        return None
    dim = columns[_VECTOR].num_values // rows
    for path, column in columns.items():
        if path in _CONSTANT:
            known = column.statistics
            if known is None or known.min != known.max or known.null_count:
                return None
            arrays.append(pa.repeat(pa.scalar(known.min, _CONSTANT[path]), rows))
            continue
        kind = _NUMBERS[path][1] if path in _NUMBERS else pa.float32()
        width = kind.bit_width // 8
        head = vector_head(rows, dim) if path == _VECTOR else plain_head(rows, width)
        at, count = column.data_page_offset - start, column.num_values
        if (
            column.total_compressed_size != len(head) + count * width
            or content[at : at + len(head)] != head
        ):
            return None
        values = pa.py_buffer(content).slice(at + len(head), count * width)
        array = pa.Array.from_buffers(kind, count, [None, values])
        arrays.append(_vectors_of(array, dim) if path == _VECTOR else array)
    return pa.table(arrays, schema=schema.embeddings(dim))


def vectors(table: pa.Table) -> Matrix:
    """Return the `vector` column as a float32 matrix [rows, features]."""
    column = table["vector"]
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    flat: Matrix = whole.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, -1 if table.num_rows else 0)


def vector_column(matrix_ND: Matrix) -> pa.FixedSizeListArray:
    """Return a float32 matrix [rows, features] as a `vector` column, without copying rows."""
    flat = pa.array(np.ascontiguousarray(matrix_ND, dtype=np.float32).reshape(-1))
    return _vectors_of(flat, matrix_ND.shape[1])


def _vectors_of(flat: pa.FloatArray, dim: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(flat, type=schema.embeddings(dim).field("vector").type)
