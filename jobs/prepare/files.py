"""Reading one file: Parquet, CSV, JSON lines or plain lines, its columns as text.

A file is local or in object storage; what its parser refuses is an error that names it. A value has
one spelling in every format (`jobs.tasks.items.spelled`), and what is missing is null. A CSV has
text alone: the spellings of its writers for whole floats, booleans and NaN are read as these, but
not in a column of texts.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import Format
from layerrank.jobs.prepare.decoded import Pieces, utf8
from layerrank.jobs.tasks.items import spelled
from layerrank.storage.root import resolve

BATCH = 4096
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
Options = dict[str, Any]  # of the filesystem of S3; local files need none
_DENSITY_BYTES = 1 << 24  # of a large file, read to see how many rows a byte holds
_STRINGS = (pa.string(), pa.large_string(), pa.string_view())
_TEXTS = (*_STRINGS, pa.binary(), pa.large_binary(), pa.null())
_DAMAGED = (zlib.error, lzma.LZMAError)
_WHOLE_FLOAT = re.compile(r"0\.0|-?[1-9]\d*\.0")


@dataclass(frozen=True)
class File:
    """A file, its format, the encoding that its config names, and the columns that hold texts."""

    kind: Format
    location: str
    encoding: str | None = None
    texts: Collection[str] = ()

    @contextmanager
    def stream(self, options: Options) -> Iterator[Any]:
        """Open it, text as UTF-8; an error of the parser becomes one that names the file."""
        filesystem, path = resolve(self.location, options)
        with filesystem.open(path, "rb") as stream, readable(self.location, self.kind):
            if self.kind == "parquet":
                yield stream
            else:
                pieces = utf8(stream, self.location, self.encoding)
                yield io.BufferedReader(Pieces(pieces), BATCH << 8)


def inspect_file(file: File, options: Options) -> tuple[int, list[str]]:
    """Return the number of rows of a file, and its columns; one that it has twice is twice there.

    ConfigError if the file cannot be read.
    """
    with file.stream(options) as stream:
        if file.kind == "parquet":
            table = pq.ParquetFile(stream)
            return table.metadata.num_rows, list(table.schema_arrow.names)
        if file.kind == "text":
            return sum(1 for _ in stream), ["text"]
        if file.kind == "jsonl":
            count = 0
            names, again = dict[str, None](), dict[str, None]()  # any record may leave a key out
            for record in _json_lines(stream, file.location, _object):
                names.update(dict.fromkeys(record))
                if isinstance(record, _Repeated):
                    again.update(dict.fromkeys(record.names))
                count += 1
            return count, [*names, *again]
        text = io.TextIOWrapper(stream, "utf-8", newline="")
        header = next((row for row in csv.reader(text) if row), [])
    # One column read as text is enough to count, and no type is guessed that a later row breaks.
    with file.stream(options) as stream, _csv(stream, header[:1]) as reader:
        return sum(batch.num_rows for batch in reader), header


def read_file(file: File, columns: Sequence[str], options: Options) -> Iterator[pa.Table]:
    """Yield the rows of a file as tables of string columns, null kept."""
    with file.stream(options) as stream:
        if file.kind == "parquet":
            for batch in pq.ParquetFile(stream).iter_batches(BATCH, columns=list(columns)):
                table = pa.Table.from_batches([batch]).select(list(columns))
                yield as_strings(table, file.texts, file.location)
        elif file.kind == "csv":
            with _csv(stream, columns) as reader:
                for batch in reader:
                    table = pa.Table.from_batches([batch]).select(list(columns))
                    for index, name in enumerate(table.column_names):
                        if name not in file.texts:
                            column = _mapped(table[name], _spelled_cell)
                            table = table.set_column(index, name, column)
                    yield table
        elif file.kind == "text":
            lines = (str(line, "utf-8").rstrip("\r\n") for line in stream)
            yield from _batched(({"text": line} for line in lines), ["text"], file)
        else:
            yield from _batched(_json_lines(stream, file.location), columns, file)


def size(file: File, options: Options) -> int:
    """Return the bytes of a file."""
    filesystem, path = resolve(file.location, options)
    return int(filesystem.size(path))


def estimate_rows(file: File, options: Options) -> int:
    """Return about how many rows a large CSV, JSONL or text file has, from its first lines."""
    filesystem, path = resolve(file.location, options)
    lines = length = read = 0
    with filesystem.open(path, "rb") as stream, readable(file.location, file.kind):
        for piece in utf8(stream, file.location, file.encoding, min(_DENSITY_BYTES, 1 << 20)):
            lines, length = lines + piece.count(b"\n"), length + len(piece)
            read = stream.tell()  # of a compressed file fewer bytes than those of its text
            if length >= _DENSITY_BYTES:
                break
    return round(lines * size(file, options) / max(read, 1))


@contextmanager
def readable(location: str, kind: str) -> Iterator[None]:
    """Turn an error of a parser into one that names what is read."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, csv.Error, EOFError, OSError, *_DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the place where it lies, and not of its content
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {location} as {kind}: {reason}") from error


def as_strings(table: pa.Table, texts: Collection[str] = (), where: str = "") -> pa.Table:
    """Return every column as text, lists as JSON.

    ConfigError, with `where`, if one of `texts` is of a type that is no text; an error of Arrow for
    bytes that are no UTF-8.
    """
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if name in texts and kind not in _TEXTS:
            raise ConfigError(f"{where}: column {name!r} holds {kind}, no text")
        if pa.types.is_nested(kind):
            values = column.to_pylist()
            cells = [None if value is None else json.dumps(value, default=str) for value in values]
            columns.append(pa.chunked_array([pa.array(cells, pa.large_string())]))
        elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            columns.append(_mapped(column.cast(kind), spelled))
        else:
            columns.append(column.cast(pa.large_string()))
            columns[-1].validate(full=True)  # that it is UTF-8
    return pa.table(dict(zip(table.column_names, columns, strict=True)))


def _mapped(column: pa.ChunkedArray, spell: Callable[[Any], str | None]) -> pa.Array:
    """Return what `spell` makes of the values that are not null, of equal ones once."""
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    if pa.types.is_floating(column.type) and column.type != pa.float64():
        # The fewest digits that tell them apart in their own precision: 0.1, not 0.10000000149.
        values = [float(str(value)) for value in encoded.dictionary.to_numpy(zero_copy_only=False)]
    return pa.array(map(spell, values), pa.large_string()).take(encoded.indices)


def _spelled_cell(text: str) -> str | None:
    """Return a cell of a CSV that is no text: as `spelled` has it what writers spell otherwise."""
    if _WHOLE_FLOAT.fullmatch(text):
        return text.removesuffix(".0")
    known = {"True": "true", "False": "false", "NaN": None, "nan": None, "-0.0": "0"}
    return known.get(text, text)


def _csv(stream: Any, columns: Sequence[str]) -> pa_csv.CSVStreamingReader:  # noqa: ANN401
    return pa_csv.open_csv(
        stream,
        read_options=pa_csv.ReadOptions(block_size=1 << 24),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.large_string()),
            null_values=[],
        ),
    )


class _Repeated(dict[str, Any]):
    """A JSON object that has some names twice."""

    names: Collection[str] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        record = _Repeated(record)
        record.names = [name for name, count in counts.items() if count > 1]
    return record


def _json_lines(
    stream: Any,  # noqa: ANN401
    location: str,
    make: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(str(line, "utf-8"), object_pairs_hook=make)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{location} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{location} line {number} is not a JSON object")
        yield record


def _batched(
    records: Iterator[dict[str, Any]], columns: Sequence[str], file: File
) -> Iterator[pa.Table]:
    first = 1
    while batch := [*islice(records, BATCH)]:
        cells = {}
        for column in columns:
            values = [record.get(column) for record in batch]
            for row, value in enumerate(values, first) if column in file.texts else ():
                if isinstance(value, (list, dict, bool)):
                    kind = {list: "a list", bool: "a boolean"}.get(type(value), "an object")
                    raise ConfigError(
                        f"{file.location}, row {row}: column {column!r} holds {kind}, no text"
                    )
            cells[column] = pa.array(map(_as_text, values), pa.large_string())
        yield pa.table(cells)
        first += len(batch)


def _as_text(value: Any) -> str | None:  # noqa: ANN401  (any JSON value)
    return json.dumps(value) if isinstance(value, (list, dict)) else spelled(value)
