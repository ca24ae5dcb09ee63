"""What headers say that compressed content becomes, so that it can be refused before it does.

Formats: a page's header of Apache Parquet (`parquet.thrift`, Thrift's compact protocol), and a
message of Arrow IPC (`Message.fbs`, FlatBuffers).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_DICTIONARY, _BATCH = "dictionary", "record batch"  # types of messages
# Fields of the tables Message, DictionaryBatch and RecordBatch; and the bytes of a Buffer.
_HEADER, _DATA, _BUFFERS, _COMPRESSION, _BUFFER = 2, 1, 2, 3, 16


def page_bytes(stream: Any, offset: int) -> int:  # noqa: ANN401
    """Return the decompressed bytes of the page of an open Parquet file at `offset`.

    Its header begins with the type of the page, and this, each behind a byte.
    """
    stream.seek(offset)
    content = iter(stream.read(16))

    def number() -> int:
        found, shift = next(content, 0) * 0, 0
        for byte in content:
            found |= (byte & 0x7F) << shift
            if not byte & 0x80:
                break
            shift += 7
        return found >> 1  # it is signed, and not below 0

    _, size = number(), number()
    return size


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
