"""The text of a file as UTF-8: decompressed by its ending, decoded by its byte-order mark.

Without a mark it is in the encoding that the config names, else in UTF-8, and what is not is
refused with its byte: no byte is replaced or left out.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from layerrank.jobs.config.blocks import ConfigError

COMPRESSED: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": partial(pa.CompressedInputStream, compression="zstd"),
}
_CHUNK = 1 << 20  # bytes
_MARKS = {  # the longer ones first: one of UTF-32 begins with one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_NO_TEXT = {  # what other files begin with
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a ZIP archive, as of a spreadsheet",
    b"\x1f\x8b": "compressed by gzip (its name should end in .gz)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow or Feather file",
}


def ending(name: str) -> str:
    """Return the ending of a file's name in lower case, without that of its compression."""
    name = name.lower()
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return "." + name.rpartition(".")[2]


def is_compressed(name: str) -> bool:
    """Whether the name of a file says that it is compressed."""
    return name.lower().endswith(tuple(COMPRESSED))


def utf8(stream: Any, name: str, encoding: str | None, chunk: int = _CHUNK) -> Iterator[bytes]:  # noqa: ANN401
    """Yield the text of an open file in pieces of UTF-8, of about `chunk` bytes of the file's.

    ConfigError with the byte (of the decompressed file, from 0) that is none of its encoding, and
    for what begins like no text and has zeros.
    """
    if is_compressed(name):
        stream = COMPRESSED["." + name.lower().rpartition(".")[2]](stream)
    content: bytes = stream.read(chunk)
    if b"\0" in content:
        for start, what in _NO_TEXT.items():
            if content.startswith(start):
                raise ConfigError(f"{name} is no text: it begins like {what}")
    marked = (found for mark, found in _MARKS.items() if content.startswith(mark))
    encoding = next(marked, encoding or "utf-8")
    decoder = codecs.getincrementaldecoder(encoding)()
    position, first = 0, True
    while True:
        held = len(decoder.getstate()[0])  # the bytes of a character that the last piece cut
        try:
            text = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{name} is not {encoding.upper()} text (byte {position - held + error.start:,}): "
                "name its `encoding` in the source, such as latin-1, or convert it"
            ) from error
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        yield text.encode()
        if not content:
            return
        position += len(content)
        content = stream.read(chunk)


class Pieces(io.RawIOBase):
    """Pieces of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, memoryview(b"")

    def readable(self) -> bool:
        """Whether it can be read, which is all that it can."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  (Buffer is of Python 3.12)
        """Fill a buffer with what comes next, and return how many bytes that is."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        target = memoryview(buffer)
        taken = min(len(target), len(self._left))
        target[:taken], self._left = self._left[:taken], self._left[taken:]
        return taken
