"""What headers say that compressed content becomes, so that it can be refused before it does.

Formats: a page's header of Apache Parquet (`parquet.thrift`, Thrift's compact protocol), and a
message of Arrow IPC (`Message.fbs`, FlatBuffers).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_STRUCT, _NUMBERS = 12, range(3, 7)  # types of the fields of a page's header, in Thrift
_DICTIONARY, _BATCH = "dictionary", "record batch"  # types of messages
# Fields of the tables Message, DictionaryBatch and RecordBatch; and the bytes of a Buffer.
_HEADER, _DATA, _BUFFERS, _COMPRESSION, _BUFFER = 2, 1, 2, 3, 16


def page_bytes(stream: Any, offset: int) -> int:  # noqa: ANN401
    """Return the decompressed bytes of the page of an open Parquet file at `offset`.

    Its header begins with the type of the page, and this, each behind a byte.
    """
    stream.seek(offset)
    _, _, _, size = _byte(stream), _number(stream), _byte(stream), _number(stream)
    return size


def longest_value(stream: Any, offset: int, codec: str) -> int:  # noqa: ANN401
    """Return the bytes of the longest text of the dictionary of an open Parquet file at `offset`.

    Those of all its texts where they cannot be told. It is decompressed, so `page_bytes` is to be
    asked first.
    """
    size = page_bytes(stream, offset)
    _, stored = _byte(stream), _number(stream)
    if not _skipped(stream):
        return size
    content = stream.read(stored)
    if codec != "UNCOMPRESSED":
        try:
            name = {"LZ4": "lz4_raw"}.get(codec, codec.lower())
            content = pa.decompress(content, size, name, asbytes=True)
        except (pa.ArrowException, OSError, ValueError):  # of another form, or damaged
            return size
    longest = at = 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        longest, at = max(longest, length), at + 4 + length
    return min(longest, size)


def _byte(stream: Any) -> int:  # noqa: ANN401
    return int((stream.read(1) or b"\0")[0])


def _number(stream: Any) -> int:  # noqa: ANN401
    """Return a number of Thrift's, of 32 bits at most; it is signed, and here not below 0."""
    found = 0
    for shift in range(0, 35, 7):
        byte = _byte(stream)
        found |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
    return found >> 1


def _skipped(stream: Any, depth: int = 1) -> bool:  # noqa: ANN401
    """Go to the end of a struct of Thrift's; False if something is in it that is not known."""
    while field := _byte(stream):
        kind = field & 0x0F
        if not field >> 4:  # its number follows
            _number(stream)
        if kind in _NUMBERS:
            _number(stream)
        elif kind > _NUMBERS[0] and not (kind == _STRUCT and depth and _skipped(stream, depth - 1)):
            return False
    return True


def batch_bytes(message: pa.ipc.Message) -> int | None:
    """Return the decompressed bytes of an Arrow message; None if it is not compressed.

    Each buffer of a compressed one begins with its length, -1 if it lies there as it is.
    """
    if message.type not in (_DICTIONARY, _BATCH):
        return 0
    metadata, body = memoryview(message.metadata), memoryview(message.body)

    def number(at: int, size: int = 4, of: memoryview = metadata) -> int:
        return int.from_bytes(of[at : at + size], "little", signed=True)

    def field(table: int, index: int) -> int:
        """Return where a field of a table lies, behind where it points to; 0 if it is absent."""
        fields = table - number(table)
        place = 4 + 2 * index
        inside = number(fields + place, 2) if place < number(fields, 2) else 0
        return table + inside + number(table + inside) if inside else 0

    batch = field(number(0), _HEADER)
    if message.type == _DICTIONARY:
        batch = field(batch, _DATA)
    if not field(batch, _COMPRESSION):
        return None
    buffers, total = field(batch, _BUFFERS), 0
    for at in range(buffers + 4, buffers + 4 + _BUFFER * number(buffers), _BUFFER):
        if number(at + 8, 8):
            total += max(number(number(at, 8), 8, body), 0)
    return total
