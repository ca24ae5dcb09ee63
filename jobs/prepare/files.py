"""Reading one file: Parquet, Arrow, CSV, JSON or plain lines, its columns as text.

A file is local or in object storage; what its parser refuses is an error that names it. A value has
one spelling in every format (`jobs.tasks.items.spelled`), and what is missing is null. A CSV has
text alone: the spellings of its writers for whole floats, booleans and NaN are read as these, but
not in a column of texts. What separates its columns is what its first rows have in common.

A small file may become a large one: it is compressed, or has one long text a million times. So rows
are read as many at a time as their decoded bytes allow, and what is too large by itself, a line or
a page, is refused before it is decoded.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pq

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import FileSource, FolderSource, Format
from layerrank.jobs.prepare.decoded import Pieces, is_compressed, utf8
from layerrank.jobs.prepare.expanding import batch_bytes, longest_value, page_bytes
from layerrank.jobs.tasks.items import spelled
from layerrank.jobs.words import counted, listed
from layerrank.storage.root import resolve

BATCH = 4096  # rows of a table, at most
_BATCH_BYTES = 1 << 24  # of decoded text in one, about
_DECODED_BYTES = 1 << 26  # of rows that are decoded at once, if all are as long as the longest
_LARGEST_LINE = 1 << 27  # bytes
_LARGEST_HEADER = 1 << 20  # characters of a CSV's first line
_LARGEST_PAGE, _LARGEST_BATCH = 1 << 28, 1 << 29  # bytes of Parquet's and of Arrow's, decompressed
_EXPANDS = 100  # times the bytes of a column of a row group, which no text does
_LARGEST_LISTS = 1 << 26  # elements of a column of lists in a row group
_JSON_VALUES = 10_000_000  # of a .json; a small one takes a hundred bytes of Python's
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".json": "json",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".feather": "feather",
}
Options = dict[str, Any]  # of the filesystem of S3; local files need none
_DENSITY_BYTES = 1 << 24  # of a large file, read to see how many rows a byte holds
_TYPED = ("parquet", "arrow", "feather")  # their columns have types, and compress themselves
_DELIMITERS = {",": "`,`", ";": "`;`", "\t": "tab", "|": "`|`"}  # the first that fits is taken
_SNIFFED_CHARS = 1 << 16  # of a CSV, and no field of these is too long for Python's reader
_SNIFFED_ROWS = 100
_LARGEST_JSON = 1 << 28  # bytes of text; it becomes ten times as many of Python's objects
_JSON_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
_STRINGS = (pa.string(), pa.large_string(), pa.string_view())
_TEXTS = (*_STRINGS, pa.binary(), pa.large_binary(), pa.null())
_DAMAGED = (zlib.error, lzma.LZMAError, RecursionError)  # the last of JSON that is too deep
# What Arrow's files and streams begin with (of the latter all since 0.15), and the first Feather.
_ARROW_FILE, _ARROW_STREAM, _FEATHER_1 = b"ARROW1", b"\xff\xff\xff\xff", b"FEA1"
_WHOLE_FLOAT = re.compile(r"0\.0|-?[1-9]\d*\.0")


@dataclass(frozen=True)
class File:
    """A file, its format, what its config says of it, and the columns that hold texts."""

    kind: Format
    location: str
    encoding: str | None = None
    texts: Collection[str] = ()
    delimiter: str | None = None  # of a CSV or TSV

    def __post_init__(self) -> None:
        """Refuse what is compressed twice."""
        if self.kind in _TYPED and is_compressed(self.location):
            raise ConfigError(
                f"{self.location} is a compressed {self.kind.title()} file: decompress it first"
            )

    @contextmanager
    def stream(self, options: Options) -> Iterator[Any]:
        """Open it, text as UTF-8; an error of the parser becomes one that names the file."""
        filesystem, path = resolve(self.location, options)
        with filesystem.open(path, "rb") as stream, readable(self.location, self.kind):
            if self.kind in _TYPED:
                yield stream
            else:
                pieces = utf8(stream, self.location, self.encoding)
                yield io.BufferedReader(Pieces(pieces), BATCH << 8)


def how_read(source: FileSource | FolderSource) -> dict[str, str]:
    """Return what the rows of files depend on beside their content, as far as a config says it."""
    said = {"encoding": source.encoding, "delimiter": source.delimiter}
    return {key: value for key, value in said.items() if value}


def inspect_file(file: File, options: Options, most: int | None = None) -> tuple[int, list[str]]:
    """Return the number of rows of a file, and its columns; one that it has twice is twice there.

    Where rows have to be read to be counted, it is no more than about `most` of them. ConfigError
    if the file cannot be read.
    """
    with file.stream(options) as stream:
        if file.kind == "parquet":
            table = pq.ParquetFile(stream)
            return table.metadata.num_rows, list(table.schema_arrow.names)
        if file.kind in _TYPED:
            columns, _ = _arrow(stream, file.location)
            _, batches = _arrow(stream, file.location, columns[:1])  # enough to count
            return _counted(batches, most), columns
        if file.kind == "text":
            return sum(1 for _ in islice(_lines(stream, file.location), most)), ["text"]
        if file.kind in ("json", "jsonl"):
            count = 0
            names, again = dict[str, None](), dict[str, None]()  # any record may leave a key out
            for record in islice(_records(stream, file, _object), most):
                names.update(dict.fromkeys(record))
                if isinstance(record, _Repeated):
                    again.update(dict.fromkeys(record.names))
                count += 1
            return count, [*names, *again]
        delimiter, header = _head(stream, file)
    # One column read as text is enough to count, and no type is guessed that a later row breaks.
    with file.stream(options) as stream, _csv(stream, header[:1], delimiter) as reader:
        return _counted(reader, most), header


def _counted(batches: Iterable[pa.RecordBatch], most: int | None) -> int:
    rows = 0
    for batch in batches:
        rows += int(batch.num_rows)
        if most is not None and rows >= most:
            break
    return rows


def read_file(
    file: File, columns: Sequence[str], options: Options, most: int | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of a file as tables of string columns, null kept; of lines the first `most`.

    Those of other formats are more by what is decoded at once.
    """
    delimiter = delimiter_of(file, options)
    with file.stream(options) as stream:
        if file.kind in _TYPED:
            tables = (
                parquet_tables(stream, columns, file.location)
                if file.kind == "parquet"
                else chain.from_iterable(map(_slices, _arrow(stream, file.location, columns)[1]))
            )
            yield from _gathered(
                as_strings(table.select(list(columns)), file.texts, file.location)
                for table in tables
            )
        elif delimiter:
            with _csv(stream, columns, delimiter) as reader:
                for batch in reader:
                    table = pa.Table.from_batches([batch]).select(list(columns))
                    for index, name in enumerate(table.column_names):
                        if name not in file.texts:
                            column = _mapped(table[name], _spelled_cell)
                            table = table.set_column(index, name, column)
                    yield table
        elif file.kind == "text":
            found = islice(_lines(stream, file.location), most)
            lines = (str(line, "utf-8").rstrip("\r\n") for line in found)
            yield from _batched(({"text": line} for line in lines), ["text"], file)
        else:
            yield from _batched(islice(_records(stream, file), most), columns, file)


def parquet_tables(
    stream: Any,  # noqa: ANN401
    columns: Sequence[str],
    location: str,
) -> Iterator[pa.Table]:
    """Yield some columns of an open Parquet file, as many rows at once as memory can hold.

    ConfigError for a row group that cannot be read piece by piece.
    """
    file = pq.ParquetFile(stream)
    for group in range(file.metadata.num_row_groups):
        of_group = file.metadata.row_group(group)
        longest = 1
        for index in range(of_group.num_columns):
            chunk = of_group.column(index)
            path = chunk.path_in_schema
            if any(f"{path}.".startswith(f"{column}.") for column in columns):
                where = f"{location}, column {path!r} of row group {group + 1}"
                longest = max(longest, _longest(stream, chunk, of_group.num_rows, where))
        rows = min(max(_DECODED_BYTES // longest, 1), BATCH)
        for batch in file.iter_batches(rows, row_groups=[group], columns=list(columns)):
            yield from _slices(batch)


def _longest(stream: Any, chunk: Any, rows: int, where: str) -> int:  # noqa: ANN401
    """Return about how many bytes a row of a column chunk has at most, decoded.

    A text may stand in a dictionary once and be of every row. Where texts follow one another they
    are taken to be as long as their mean.
    """
    # In the order of the file: behind a step back object storage is fetched again.
    first = [chunk.dictionary_page_offset] if chunk.has_dictionary_page else []
    pages = [page_bytes(stream, offset) for offset in (*first, chunk.data_page_offset)]
    decoded, stored = chunk.total_uncompressed_size, chunk.total_compressed_size
    is_bomb = decoded > max(_LARGEST_PAGE, _EXPANDS * stored)
    if is_bomb or max(pages) > _LARGEST_PAGE:
        raise ConfigError(
            f"{where}: {stored:,} bytes become {max(decoded, *pages):,}, and at most "
            f"{_LARGEST_PAGE >> 20} MiB are decoded at once: write the file with smaller row groups"
        )
    nested = chunk.num_values > rows or "." in chunk.path_in_schema
    if nested and chunk.num_values > _LARGEST_LISTS:
        raise ConfigError(
            f"{where}: {rows:,} rows hold {chunk.num_values:,} values, at most {_LARGEST_LISTS:,}: "
            "write the file with smaller row groups"
        )
    if "BYTE_ARRAY" not in chunk.physical_type:
        return int(8 * chunk.num_values // max(rows, 1))
    once = pages[0] if first else 0
    if once * BATCH > _DECODED_BYTES:
        once = longest_value(stream, chunk.dictionary_page_offset, chunk.compression)
    if "DELTA_BYTE_ARRAY" in chunk.encodings:  # which leaves out what the text before begins with
        once = max(once, decoded)
    return int(max(once, decoded / max(chunk.num_values, 1)) * -(-chunk.num_values // max(rows, 1)))


def _slices(batch: pa.RecordBatch) -> Iterator[pa.Table]:
    """Yield the rows of a batch without dictionaries, as many at once as their bytes allow."""
    texts = [
        (index, column)
        for index, column in enumerate(batch.columns)
        if pa.types.is_dictionary(column.type) and column.type.value_type in _TEXTS
    ]
    lengths = (pc.max(pc.binary_length(column.dictionary)).as_py() for _, column in texts)
    rows = min(max(_DECODED_BYTES // max((each or 1 for each in lengths), default=1), 1), BATCH)
    for start in range(0, batch.num_rows, rows):
        table = pa.Table.from_batches([batch.slice(start, rows)])
        for index, column in texts:
            decoded = column.slice(start, rows).dictionary_decode()
            table = table.set_column(index, table.field(index).with_type(decoded.type), decoded)
        yield table


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables of up to BATCH rows, made of smaller ones as far as these are small."""
    held, rows, size = list[pa.Table](), 0, 0
    for table in tables:
        if held and (rows + table.num_rows > BATCH or size + table.nbytes > _BATCH_BYTES):
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
        held.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
    if held:
        yield pa.concat_tables(held)


def _lines(stream: Any, location: str) -> Iterator[bytes]:  # noqa: ANN401
    """Yield the lines of an open text; ConfigError for one that is too long."""
    number = 0
    while line := stream.readline(_LARGEST_LINE + 1):
        number += 1
        if len(line) > _LARGEST_LINE:
            raise ConfigError(
                f"{location} line {number:,} has more than {_LARGEST_LINE >> 20} MiB, the most "
                "that is read as a row: cut it into several"
            )
        yield line


def delimiter_of(file: File, options: Options) -> str | None:
    """Return what stands between the columns of a CSV or TSV; None of another file."""
    if file.kind not in ("csv", "tsv"):
        return None
    if file.kind == "tsv" or file.delimiter:
        return file.delimiter or "\t"
    with file.stream(options) as stream:
        return _head(stream, file)[0]


def sniffed(found: File, options: Options) -> list[str]:
    """Return the delimiter of a CSV whose config names none, as `told_delimiters` takes it."""
    delimiter = None if found.delimiter or found.kind != "csv" else delimiter_of(found, options)
    return [delimiter] if delimiter else []


def told_delimiters(found: Sequence[str]) -> str:
    """Say what was found between the columns of the CSV files of a source."""
    counts = {words: found.count(each) for each, words in _DELIMITERS.items() if each in found}
    words = [
        f"{each} ({counted(count, 'file')})" if len(counts) > 1 else each
        for each, count in counts.items()
    ]
    return f"CSV with {listed(words)} between columns (`delimiter` of the source names another)"


def size(file: File, options: Options) -> int:
    """Return the bytes of a file."""
    filesystem, path = resolve(file.location, options)
    return int(filesystem.size(path))


def estimate_rows(file: File, options: Options) -> int:
    """Return about how many rows a large file without a footer has, from the first of it.

    Those of a JSON file are counted, since it is read whole in any case.
    """
    filesystem, path = resolve(file.location, options)
    if file.kind == "json":
        with file.stream(options) as stream:
            return sum(1 for _ in _records(stream, file))
    if file.kind in _TYPED:
        with file.stream(options) as stream:
            rows = 0
            for batch in _arrow(stream, file.location)[1]:
                rows += int(batch.num_rows)
                if stream.tell() >= _DENSITY_BYTES:
                    return int(rows * size(file, options) / stream.tell())
            return rows
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


def _arrow(
    stream: Any,  # noqa: ANN401
    location: str,
    columns: Sequence[str] | None = None,
) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    """Return the columns of an open Arrow file or stream, and its batches with some of them."""
    stream.seek(0)
    start = stream.read(len(_ARROW_FILE))
    if start.startswith(_FEATHER_1):
        raise ConfigError(
            f"{location} is Feather of version 1, which pyarrow gives up: write it as version 2"
        )
    if start != _ARROW_FILE and not start.startswith(_ARROW_STREAM):
        raise ConfigError(f"{location} is no Arrow or Feather file: it begins with {start!r}")
    is_file = start == _ARROW_FILE
    if is_file:
        stream.seek(-len(_ARROW_FILE), io.SEEK_END)
        if stream.read() != _ARROW_FILE:
            raise ConfigError(
                f"{location} is cut off: it begins like an Arrow file, and ends like none"
            )
    if columns is None:  # the first look at it
        _require_small_batches(stream, 8 * is_file, location)
    opened = pa_ipc.open_file if is_file else pa_ipc.open_stream
    stream.seek(0)
    names = opened(stream).schema.names
    stream.seek(0)
    wanted = None if columns is None else [names.index(column) for column in columns]
    reader = opened(stream, options=pa_ipc.IpcReadOptions(included_fields=wanted))

    def batches() -> Iterator[pa.RecordBatch]:
        count = reader.num_record_batches if is_file else 0
        for batch in map(reader.get_batch, range(count)) if is_file else reader:
            batch.validate(full=True)  # offsets that lead out of the bytes are not followed
            yield batch

    return names, batches()


def _require_small_batches(stream: Any, start: int, location: str) -> None:  # noqa: ANN401
    """ConfigError for a batch of an open Arrow file that is compressed and becomes too large."""
    stream.seek(start)  # behind what a file begins with, its batches are a stream
    for number, message in enumerate(pa_ipc.MessageReader.open_stream(stream)):
        size = batch_bytes(message)
        if size is None:
            return  # nor are the others
        if size > _LARGEST_BATCH:
            raise ConfigError(
                f"{location}, batch {number}: {message.body.size:,} bytes become {size:,}, and at "
                f"most {_LARGEST_BATCH >> 20} MiB are decoded at once: write the file with smaller "
                "batches"
            )


def _head(stream: Any, file: File) -> tuple[str, list[str]]:  # noqa: ANN401
    """Return the delimiter of an open CSV and its header.

    The delimiter is the first that cuts all of its first rows into as many columns, and into more
    than one; a comma if none does.
    """
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    start = text.read(_SNIFFED_CHARS)
    rest = text.readline(_LARGEST_HEADER)  # of a header that is longer
    if len(rest) == _LARGEST_HEADER and "\n" not in start:
        raise ConfigError(
            f"{file.location}: its first line has more than {_LARGEST_HEADER >> 20} million "
            "characters, and is to be the header of a table"
        )

    def rows(delimiter: str) -> list[list[str]]:
        found = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter)
        first = [*islice(filter(None, found), _SNIFFED_ROWS)]
        return first[:-1] if rest and len(first) > 1 else first  # the last one may be cut

    delimiter = file.delimiter or ("\t" if file.kind == "tsv" else ",")
    if file.kind == "csv" and not file.delimiter:
        for each in _DELIMITERS:
            widths = {len(row) for row in rows(each)}
            if len(widths) == 1 and widths.pop() > 1:
                delimiter = each
                break
    found = csv.reader(io.StringIO(start + rest, newline=""), delimiter=delimiter)
    return delimiter, next(filter(None, found), [])


def _csv(stream: Any, columns: Sequence[str], delimiter: str) -> pa_csv.CSVStreamingReader:  # noqa: ANN401
    return pa_csv.open_csv(
        stream,
        # With threads an error does not say which row it is of.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=1 << 24),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.large_string()),
            null_values=[],
        ),
    )


class _Repeated(dict[str, Any]):
    """A JSON object that has some names twice."""

    def __init__(self, record: dict[str, Any], names: Collection[str]) -> None:
        super().__init__(record)
        self.names = names


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        record = _Repeated(record, [name for name, count in counts.items() if count > 1])
    return record


def _records(
    stream: Any,  # noqa: ANN401
    file: File,
    make: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of an open JSON or JSON lines file."""
    if file.kind == "json":
        yield from _json_rows(stream, file.location, make)
        return
    location = file.location
    for number, line in enumerate(_lines(stream, location), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(str(line, "utf-8"), object_pairs_hook=make)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{location} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{location} line {number} is not a JSON object")
        yield record


def _json_rows(
    stream: Any,  # noqa: ANN401
    location: str,
    make: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None,
) -> Sequence[dict[str, Any]]:
    """Return the rows of one JSON value.

    It is an array of objects, an object of columns, all of them arrays of one length, or an object
    in which one array is, and it holds objects.
    """
    content = stream.read(_LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise ConfigError(
            f"{location} has more than {_LARGEST_JSON >> 20} MiB, and one JSON value is read "
            "whole: write it as JSON lines (.jsonl), one row a line"
        )
    values = sum(map(content.count, (b",", b"{", b"[")))  # at most, but for those around all
    if values > _JSON_VALUES:
        raise ConfigError(
            f"{location} has about {values:,} values, at most {_JSON_VALUES:,} are read whole: "
            "write it as JSON lines (.jsonl), one row a line"
        )
    text = str(content, "utf-8")
    del content  # twice the file, else, while its values are made
    try:
        value = json.loads(text, object_pairs_hook=make)
    except (ValueError, RecursionError) as error:
        more = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        hint = "; if it is JSON lines, say `format: jsonl`" if more else ""
        raise ConfigError(f"{location} is not JSON: {error}{hint}") from error
    rows = value
    if isinstance(value, dict):
        lists = {name: each for name, each in value.items() if isinstance(each, list)}
        only = next(iter(lists.values())) if len(lists) == 1 else []
        if any(isinstance(each, dict) for each in only):
            rows = only
        elif len(lists) == len(value) and len({len(each) for each in lists.values()}) <= 1:
            rows = [
                dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)
            ]
            if isinstance(value, _Repeated):
                rows = [_Repeated(row, value.names) for row in rows]
        else:
            held = [
                f"{name!r} ({counted(len(each), 'element') if name in lists else _json_kind(each)})"
                for name, each in value.items()
            ]
            raise ConfigError(
                f"{location} is an object of {listed(held)}, in which rows are not told: give an "
                "array of objects, columns of one length, or one array of objects in an object"
            )
    if not isinstance(rows, list):
        raise ConfigError(f"{location} is {_json_kind(rows)}, not rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ConfigError(f"{location}, row {number} is {_json_kind(row)}, not an object")
    return rows


def _json_kind(value: object) -> str:
    return "null" if value is None else _JSON_KINDS.get(type(value), "a number")


def _batched(
    records: Iterator[dict[str, Any]], columns: Sequence[str], file: File
) -> Iterator[pa.Table]:
    cells: dict[str, list[str | None]] = {column: [] for column in columns}
    count = chars = 0
    for row, record in enumerate(records, 1):
        for column in columns:
            value = record.get(column)
            if column in file.texts and isinstance(value, (list, dict, bool)):
                raise ConfigError(
                    f"{file.location}, row {row}: column {column!r} holds {_json_kind(value)}, "
                    "no text"
                )
            text = json.dumps(value) if isinstance(value, (list, dict)) else spelled(value)
            cells[column].append(text)
            chars += len(text or "")
        count += 1
        if count == BATCH or chars > _BATCH_BYTES:
            yield _strings(cells)
            cells, count, chars = {column: [] for column in columns}, 0, 0
    if count:
        yield _strings(cells)


def _strings(cells: dict[str, list[str | None]]) -> pa.Table:
    return pa.table({name: pa.array(each, pa.large_string()) for name, each in cells.items()})
