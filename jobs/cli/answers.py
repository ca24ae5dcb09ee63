"""The rows of a query in the form that is asked for: on the standard output, or in a file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from layerrank.jobs.cluster.console import answer
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.words import defined
from layerrank.storage.root import Root

if TYPE_CHECKING:
    import duckdb

_ENDINGS = {".csv": "csv", ".json": "json", ".md": "markdown", ".parquet": "parquet"}
_PARQUET = "parquet"


def form_of(to: str | None, asked: str | None) -> str:
    """Return the form of an answer: as asked, as a file's name ends, or else a table.

    ConfigError if the name says nothing, and for Parquet without a file.
    """
    if asked == _PARQUET and not to:
        raise ConfigError("--format parquet needs --to FILE")
    if asked or not to:
        return asked or "table"
    ending = next((end for end in _ENDINGS if to.endswith(end)), None)
    if ending is None:
        raise ConfigError(
            f"--to {to}: its ending says no format; end it in {', '.join(_ENDINGS)}, or give "
            "--format"
        )
    return _ENDINGS[ending]


def tell(relation: duckdb.DuckDBPyRelation, form: str) -> None:
    """Answer with all rows of a query; a table has as many as a screen."""
    for line in _lines(relation, form):
        answer(line, raw=form != "table")


def write(relation: duckdb.DuckDBPyRelation, form: str, place: Root, name: str) -> None:
    """Write all rows of a query to a file, which is there when it is whole."""
    with place.writer(name) as stream:
        if form == _PARQUET:
            _write_parquet(relation, stream)
        else:
            stream.writelines(f"{line}\n".encode() for line in _lines(relation, form))


def _write_parquet(relation: duckdb.DuckDBPyRelation, stream: IO[bytes]) -> None:
    _require_distinct(relation.columns)
    reader = pa.RecordBatchReader.from_stream(relation)
    with pq.ParquetWriter(stream, reader.schema) as file:
        for batch in reader:
            file.write_batch(batch)


def _lines(relation: duckdb.DuckDBPyRelation, form: str) -> Iterator[str]:
    names = relation.columns
    if form == "table":
        yield from str(relation).rstrip().split("\n")
    elif form == "csv":
        yield _csv(names)
        yield from map(_csv, _rows(relation))
    elif form == "json":
        yield from _json(names, _rows(relation))
    else:
        yield _markdown(names)
        yield _markdown(["---"] * len(names))
        yield from map(_markdown, _rows(relation))


def _rows(relation: duckdb.DuckDBPyRelation) -> Iterator[tuple[Any, ...]]:
    for batch in pa.RecordBatchReader.from_stream(relation):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _csv(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(_spelled, cells))  # which it would quote
    return text.getvalue()[:-1]


def _markdown(cells: Sequence[Any]) -> str:
    texts = (re.sub(r"([\\|])", r"\\\1", re.sub(r"\s+", " ", _spelled(each))) for each in cells)
    return f"| {' | '.join(texts)} |"


def _json(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield an array with an object a row, each row on its own line."""
    _require_distinct(names)
    last = ""
    for row in rows:
        yield f"{last}," if last else "["
        last = _as_json(dict(zip(names, row, strict=True)))
    yield from (last, "]") if last else ("[]",)


def _require_distinct(names: Sequence[str]) -> None:
    again = [name for name in names if names.count(name) > 1]
    if again:
        raise ConfigError(f"two columns of the query are called {again[0]}: name one with AS")


def _spelled(value: Any) -> str:  # noqa: ANN401  (any value of SQL)
    """Return a value as text: nothing for null, JSON for what is nested."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.hex()
    return _as_json(value) if isinstance(value, (bool, list, Mapping)) else str(value)


def _as_json(value: Any) -> str:  # noqa: ANN401
    def other(each: object) -> object:
        if isinstance(each, Decimal):
            return int(each) if each == each.to_integral_value() else float(each)
        return each.hex() if isinstance(each, bytes) else str(each)

    return json.dumps(defined(value), default=other, ensure_ascii=False)
