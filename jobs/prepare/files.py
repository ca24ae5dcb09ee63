"""Reading one file: Parquet, CSV, JSON lines or plain lines, its columns as text.

A file is local or in object storage; what its parser refuses is an error that names it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jobs.config.blocks import ConfigError
from jobs.config.datasets import Format
from storage.root import resolve

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


@dataclass(frozen=True)
class File:
    """A file and its format."""

    kind: Format
    location: str

    @contextmanager
    def stream(self, options: Options) -> Iterator[Any]:
        """Open it; an error of the parser becomes one that names the file."""
        filesystem, path = resolve(self.location, options)
        with filesystem.open(path, "rb") as stream, readable(self.location, self.kind):
            yield stream


def inspect_file(file: File, options: Options) -> tuple[int, list[str]]:
    """Return the number of rows of a file, and its columns."""
    with file.stream(options) as stream:
        if file.kind == "parquet":
            table = pq.ParquetFile(stream)
            return table.metadata.num_rows, list(table.schema_arrow.names)
        if file.kind == "text":
            return sum(1 for _ in stream), ["text"]
        if file.kind == "csv":
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            header = next((row for row in csv.reader(text) if row), [])
            text.detach()
            stream.seek(0)
            # One column read as text is enough to count, and no type is guessed that a later row
            # breaks.
            with _csv(stream, header[:1]) as reader:
                return sum(batch.num_rows for batch in reader), header
        count = 0
        names: dict[str, None] = {}  # of all records: any of them may leave a key out
        for record in _json_lines(stream, file):
            names.update(dict.fromkeys(record))
            count += 1
        return count, list(names)


def read_file(file: File, columns: Sequence[str], options: Options) -> Iterator[pa.Table]:
    """Yield the rows of a file as tables of string columns, null kept."""
    with file.stream(options) as stream:
        if file.kind == "parquet":
            for batch in pq.ParquetFile(stream).iter_batches(BATCH, columns=list(columns)):
                yield as_strings(pa.Table.from_batches([batch]).select(list(columns)))
        elif file.kind == "csv":
            with _csv(stream, columns) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch]).select(list(columns))
        elif file.kind == "text":
            lines = (line.decode("utf-8", "replace").rstrip("\r\n") for line in stream)
            yield from _batched(({"text": line} for line in lines), ["text"])
        else:
            yield from _batched(_json_lines(stream, file), columns)


def size(file: File, options: Options) -> int:
    """Return the bytes of a file."""
    filesystem, path = resolve(file.location, options)
    return int(filesystem.size(path))


def estimate_rows(file: File, options: Options) -> int:
    """Return about how many rows a large CSV, JSONL or text file has, from its first lines."""
    with file.stream(options) as stream:
        head = stream.read(_DENSITY_BYTES)
    lines: int = head.count(b"\n")
    return round(lines * size(file, options) / max(len(head), 1))


@contextmanager
def readable(location: str, kind: str) -> Iterator[None]:
    """Turn an error of a parser into one that names what is read."""
    try:
        yield
    except (pa.ArrowException, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {location} as {kind}: {reason}") from error


def as_strings(table: pa.Table) -> pa.Table:
    """Return every column as text, lists as JSON."""
    columns = []
    for column in table.columns:
        if pa.types.is_nested(column.type):
            values = column.to_pylist()
            texts = [None if value is None else json.dumps(value, default=str) for value in values]
            columns.append(pa.array(texts, pa.large_string()))
        else:
            columns.append(column.cast(pa.large_string()))
    return pa.table(dict(zip(table.column_names, columns, strict=True)))


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


def _json_lines(stream: Any, file: File) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{file.location} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{file.location} line {number} is not a JSON object")
        yield record


def _batched(records: Iterator[dict[str, Any]], columns: Sequence[str]) -> Iterator[pa.Table]:
    schema = pa.schema([(column, pa.large_string()) for column in columns])
    while batch := [*islice(records, BATCH)]:
        rows = [{column: _as_text(record.get(column)) for column in columns} for record in batch]
        yield pa.Table.from_pylist(rows, schema)


def _as_text(value: Any) -> str | None:  # noqa: ANN401  (any JSON value)
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return value if value is None else str(value)
