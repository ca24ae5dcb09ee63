"""Sources: the same rows from every format, cut and read by any number of tasks."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.feather as pa_feather
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig, FileSource
from layerrank.jobs.prepare import decoded, docstrings, files, sources
from layerrank.jobs.prepare.files import BATCH, Options
from layerrank.jobs.prepare.sources import Fragment
from layerrank.operators.benchmark import score as benchmark_score
from layerrank.operators.benchmark import tasks as benchmark_tasks
from tests.conftest import S3
from tests.jobs.prepare.test_records import dataset

ROW = 1 << 32  # the order key of the first row of the second fragment
TEXTS = [
    "plain words",
    "emoji 🦜👩🏽‍🚀 and combining é",
    "مرحبا بالعالم, שלום",
    'a "quoted" word, and a comma',
    " blanks around ",
    "\ttab\t",
    "back\\slash \\n",
    "nul\x00inside",
    "no break\u00a0space, line\u2028separator, form\x0cfeed, next\x85line",
]
LINES = ["first line\nsecond line", "windows\r\nline", "a\n\nparagraph"]
LONG = "wörd " * 40_000  # 200,000 characters
TYPED = ["parquet", "arrow", "feather"]
FORMATS = [*TYPED, "jsonl", "json", "csv", "tsv"]
CELLS = ["csv", "tsv"]  # without types


def encoded(form: str, columns: dict[str, list[Any]]) -> bytes:
    """Return a file of `columns` in one of the formats."""
    if form in TYPED:
        return typed(form, pa.table(columns))
    rows = pa.table(columns).to_pylist()
    if form == "json":
        return json.dumps(rows, indent=1).encode()
    if form == "jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if form == "text":
        return b"".join(row["text"].encode() + b"\n" for row in rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), delimiter="\t" if form == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def typed(form: str, table: pa.Table) -> bytes:
    """Return a table in a format that has types: `arrow` as a stream, `feather` as a file."""
    buffer = io.BytesIO()
    if form == "parquet":
        pq.write_table(table, buffer)
    elif form == "feather":
        pa_feather.write_feather(table, buffer)
    else:
        with pa_ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table)
    return buffer.getvalue()


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    path.write_bytes(encoded({".txt": "text"}.get(path.suffix, path.suffix[1:]), columns))
    return path


def of_files(path: object, **changes: Any) -> DatasetConfig:  # noqa: ANN401
    return dataset(source={"files": str(path)}, **changes)


def inspected(config: DatasetConfig) -> tuple[int, list[str]]:
    return sources.inspect(sources.discover(config, {})[0], {})


def read_all(
    config: DatasetConfig, columns: Sequence[str] = ("text",), options: Options | None = None
) -> list[tuple[Any, ...]]:
    """Return every row of a dataset as prepare reads it: the columns, then the order key."""
    options = options or {}
    whole = sources.discover(config, options)
    lengths = [sources.inspect(fragment, options)[0] for fragment in whole]
    parts, _ = sources.cut(whole, lengths, config.limit)
    return [row for part in parts for row in rows_of(part, columns, options)]


def rows_of(
    part: Fragment, columns: Sequence[str] = ("text",), options: Options | None = None
) -> Iterator[tuple[Any, ...]]:
    travelled: Fragment = pickle.loads(pickle.dumps(part))
    for table in sources.read(travelled, columns, options or {}):
        assert table.column_names == [*columns, "row"]
        yield from zip(*(table[name].to_pylist() for name in table.column_names), strict=True)


def texts_of(config: DatasetConfig) -> list[str | None]:
    return [row[0] for row in read_all(config)]


@pytest.mark.parametrize("form", [*FORMATS, "txt"])
@pytest.mark.parametrize("texts", [TEXTS, LINES, ["short", LONG, "last"]], ids=len)
def test_every_format_gives_the_same_texts(form: str, texts: list[str], tmp_path: Path) -> None:
    if form == "txt" and texts is LINES:
        texts = [" ".join(text.split()) for text in texts]  # a line is a text
    config = of_files(write(tmp_path / f"texts.{form}", {"text": texts}))
    assert read_all(config) == [(text, row) for row, text in enumerate(texts)]
    assert inspected(config) == (len(texts), ["text"])


@pytest.mark.parametrize(
    ("form", "expected"),
    [*((form, "" if form in CELLS else None) for form in FORMATS), ("txt", "")],
)
def test_null_and_empty_are_two_things_where_the_format_knows_it(
    form: str, expected: str | None, tmp_path: Path
) -> None:
    texts = ["a", None if expected is None else "", "", "NA", "null"]
    path = write(tmp_path / f"t.{form}", {"text": texts, "more": ["x"] * 5})
    assert texts_of(of_files(path)) == ["a", expected, "", "NA", "null"]


@pytest.mark.parametrize("form", FORMATS)
def test_numbers_become_strings_and_lists_json(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"t.{form}", {"text": ["a", "b"], "label": [7, -1], "other": [1, 2]})
    assert read_all(of_files(path), ["label", "text"]) == [("7", "a", 0), ("-1", "b", 1)]
    if form not in CELLS:
        values: list[Any] = [["a", "b"], [], None, ['é,"', None]]
        write(path, {"text": list("wxyz"), "labels": values})
        found = [row[0] for row in read_all(of_files(path), ["labels", "text"])]
        assert [None if text is None else json.loads(text) for text in found] == values


@pytest.mark.parametrize("form", TYPED)
def test_categories_and_structs_become_text(form: str, tmp_path: Path) -> None:
    days = pa.array([{"on": date(2024, 2, 29), "n": 1}, None, None])
    labels = pa.array(["sea", "sky", "sea"]).dictionary_encode()
    columns = {"text": ["a", "b", "c"], "label": labels, "day": days, "more": labels}
    path = write(tmp_path / f"t.{form}", columns)
    rows = read_all(of_files(path), ["label", "day"])
    assert [label for label, _, _ in rows] == ["sea", "sky", "sea"]
    assert [day for _, day, _ in rows] == ['{"on": "2024-02-29", "n": 1}', None, None]


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "txt"])
def test_a_compressed_file_is_read_as_what_it_holds(
    form: str, compression: str, tmp_path: Path
) -> None:
    texts = [f"{n} wörd" for n in range(20_000)]
    content = encoded("text" if form == "txt" else form, {"text": texts})
    path = tmp_path / f"t.{form}.{compression.upper()}"
    path.write_bytes(COMPRESSIONS[compression](content))
    config = of_files(path)
    assert read_all(config) == [(text, row) for row, text in enumerate(texts)]
    assert inspected(config) == (len(texts), ["text"])
    assert sources.most_rows(config, {}) == pytest.approx(len(texts), abs=2)


@pytest.mark.parametrize("form", TYPED)
def test_what_compresses_its_columns_is_not_compressed_again(form: str, tmp_path: Path) -> None:
    (tmp_path / f"t.{form}.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"t\.{form}\.gz is a compressed {form.title()}"):
        sources.discover(of_files(tmp_path / f"t.{form}.gz"), {})


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "txt"])
def test_text_is_in_the_encoding_of_its_mark_else_of_the_config(form: str, tmp_path: Path) -> None:
    texts = ["é and 🦜", "two\u2028lines", *["wörd " * 50] * 9000]  # more than a piece of it
    content = encoded("text" if form == "txt" else form, {"text": texts}).decode()
    path = tmp_path / f"t.{form}"
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        path.write_bytes(("\ufeff" + content).encode(encoding))
        assert texts_of(of_files(path)) == texts
        assert texts_of(dataset(source={"files": str(path), "encoding": "cp1252"})) == texts
    path.write_bytes(content.encode("utf-16-le"))
    named = {"files": str(path), "encoding": "UTF-16-LE"}
    assert texts_of(dataset(source=named)) == texts
    identity = sources.identity(dataset(source=named), {})
    assert identity == {**sources.identity(of_files(path), {}), "encoding": "UTF-16-LE"}


def test_bytes_that_are_no_utf_8_are_the_named_encodings(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("Le café\n".encode("latin-1"))
    assert texts_of(dataset(source={"files": str(path), "encoding": "latin-1"})) == ["Le café"]
    with pytest.raises(ConfigError, match=r"t\.txt is not UTF-8 text \(byte 6\)"):
        read_all(of_files(path))
    for name in ("utf-9", "rot13", "base64"):
        with pytest.raises(ValidationError, match="no encoding of text"):
            FileSource(files=("x",), encoding=name)


def test_a_character_that_a_piece_cuts_is_whole_and_the_byte_is_that_of_the_file() -> None:
    content = "aé🦜".encode() * 9
    for size in range(1, 9):
        assert b"".join(decoded.utf8(io.BytesIO(content), "t", None, size)) == content
        with pytest.raises(ConfigError, match=rf"\(byte {len(content)}\)"):
            list(decoded.utf8(io.BytesIO(content + b"\xe9x"), "t", None, size))


# Of every format, the values that have this text.
VALUES: dict[str | None, list[Any]] = {
    "1": [1, 1.0, Decimal("1.00"), np.float32(1), "1"],
    "0": [0, -0.0, Decimal(0)],
    "-2.5": [-2.5, Decimal("-2.50"), np.float16(-2.5)],
    "0.1": [0.1, np.float32(0.1)],
    "1e+22": [1e22],
    "1000000000000000": [10**15, 1e15],
    "true": [True],
    "false": [False],
    None: [None, float("nan"), np.float32("nan")],
}


@pytest.mark.parametrize("text", VALUES)
def test_a_value_has_one_spelling_in_every_format(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in VALUES[text]:
        found = []
        table = pa.table({"text": ["a"], "label": pa.array([value], from_pandas=False)})
        for form in TYPED:
            (tmp_path / f"t.{form}").write_bytes(typed(form, table))
            found += [row[0] for row in read_all(of_files(tmp_path / f"t.{form}"), ["label"])]
        monkeypatch.setattr(datasets, "load_dataset", Mock(return_value=datasets.Dataset(table)))
        sources._hub_split.cache_clear()
        found += [row[0] for row in read_all(dataset(source={"hub": "org/name"}), ["label"])]
        if value is None or type(value) in (int, float, bool, str):
            for form in FORMATS[len(TYPED) :]:
                path = write(tmp_path / f"t.{form}", {"text": ["a"], "label": [value]})
                found += [row[0] or None for row in read_all(of_files(path), ["label"])]
            assert len(found) == len(FORMATS) + 1
        assert {*found} == {text}, value
    sources._hub_split.cache_clear()


@pytest.mark.parametrize("form", CELLS)
def test_texts_of_a_csv_stay_as_they_are(form: str, tmp_path: Path) -> None:
    cells = ["1.0", "True", "NaN", "nan", "1.10", "007.0"]
    path = write(tmp_path / f"t.{form}", {"text": cells, "label": cells})
    labels = [label for label, _ in read_all(of_files(path), ["label"])]
    assert labels == ["1", "true", None, None, "1.10", "007.0"]
    assert texts_of(of_files(path)) == cells


@pytest.mark.parametrize("form", TYPED)
@pytest.mark.parametrize("kind", [pa.int64(), pa.bool_(), pa.list_(pa.string()), pa.float64()])
def test_a_text_column_of_a_type_that_is_no_text_is_refused(
    kind: pa.DataType, form: str, tmp_path: Path
) -> None:
    path = tmp_path / f"t.{form}"
    table = pa.table({"text": pa.nulls(2, kind), "label": pa.nulls(2, kind)})
    path.write_bytes(typed(form, table))
    with pytest.raises(ConfigError, match=rf"t\.{form}: column 'text' holds .*, no text"):
        read_all(of_files(path))
    named = of_files(path, text_column="body")
    assert [row[0] for row in read_all(named, ["label"])] == [None, None]


@pytest.mark.parametrize("form", TYPED)
def test_bytes_of_a_table_that_are_no_text_are_refused(form: str, tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff"])
    path = tmp_path / f"t.{form}"
    for column in (bad, pa.Array.from_buffers(pa.string(), 2, bad.buffers())):
        path.write_bytes(typed(form, pa.table({"text": column})))
        with pytest.raises(ConfigError, match=rf"cannot read .*t\.{form}.* UTF8"):
            read_all(of_files(path))


def test_offsets_of_arrow_that_lead_out_of_its_bytes_are_not_followed(tmp_path: Path) -> None:
    path, of = tmp_path / "t.arrow", pa.array([["sea"], ["sky", "sea"]] * 9)
    offsets = np.frombuffer(of.buffers()[1], np.int32)[:19].copy()
    offsets[3] = 1 << 30
    wild = pa.ListArray.from_arrays(pa.array(offsets), of.values)
    path.write_bytes(typed("arrow", pa.table({"text": ["a"] * 18, "label": wild})))
    assert texts_of(of_files(path)) == ["a"] * 18  # columns that are not read are not looked at
    with pytest.raises(ConfigError, match=r"cannot read .*t\.arrow as arrow: .*offset"):
        read_all(of_files(path), ["label"])


@pytest.mark.parametrize("name", [f"t.{form}" for form in FORMATS])
def test_two_columns_of_one_name_are_refused_if_they_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name[2:] in TYPED:
        names = ["text", "", "", "label", "label"]
        table = pa.Table.from_arrays([pa.array(["a"])] * 5, names=names)
        path.write_bytes(typed(name[2:], table))
    else:
        row = '{"text": "a", "": 1, "": 2, "label": 1, "label": 2}'
        rows = {
            "t.csv": "text,,,label,label\na,b,c,d,e\n",
            "t.tsv": "text\t\t\tlabel\tlabel\na\tb\tc\td\te\n",
            "t.json": f"[{row}]",
        }
        path.write_text(rows.get(name, f"{row}\n"))
    config = of_files(path)
    fragment, columns = sources.discover(config, {})[0], inspected(config)[1]
    sources.require_columns(config, fragment, columns)
    assert texts_of(config) == ["a"]
    config = of_files(path, tasks=[{"name": "g", "type": "clustering", "label_column": "label"}])
    with pytest.raises(ConfigError, match=rf"dataset data: .*{name} has two columns 'label'"):
        sources.require_columns(config, fragment, columns)


def test_csv_labels_that_turn_into_words_late_in_a_large_file_are_still_labels(
    tmp_path: Path,
) -> None:
    count = 90  # more than one block of the reader, which guesses types from the first
    labels = [*map(str, range(count)), "a word"]
    config = of_files(write(tmp_path / "t.csv", {"label": labels, "text": [LONG] * count + ["x"]}))
    assert inspected(config)[0] == count + 1
    assert read_all(config, ["label"]) == [(label, row) for row, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"\xef\xbb\xbftext,b\r\nx,1\r\n\r\ny,2\r\n"),
        ("t.tsv", b"\xef\xbb\xbftext\tb\r\nx\t1\r\n\r\ny\t2\r\n"),
        ("t.jsonl", b'\xef\xbb\xbf{"text": "x"}\n\n{"text": "y", "b": 1}'),
        ("t.json", b'\xef\xbb\xbf\n[{"text": "x"},\n\n{"text": "y", "b": 1}]\n'),
    ],
)
def test_byte_order_marks_and_blank_lines_are_no_rows_and_a_record_may_lack_a_key(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert inspected(of_files(tmp_path / name)) == (2, ["text", "b"])
    rows = read_all(of_files(tmp_path / name), ["text", "b"])
    assert rows == [("x", "1" if name[2:] in CELLS else None, 0), ("y", rows[1][1], 1)]


SIX = [("0", 0), ("1", 1), ("2", 2), ("3", 2 * ROW), ("4", 3 * ROW), ("5", 3 * ROW + 1)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Six rows in three files of three formats, and a file without any."""
    write(tmp_path / "a_.csv", {"text": []})
    write(tmp_path / "b.jsonl", {"text": ["3"]})
    write(tmp_path / "a.csv", {"text": ["0", "1", "2"]})
    write(tmp_path / "c.txt", {"text": ["4", "5"]})
    return tmp_path


def test_globs_read_files_in_the_order_of_their_names(many: Path) -> None:
    (many / "folder.csv").mkdir()
    assert read_all(of_files(f"{many}/*.*")) == SIX
    assert texts_of(of_files(f"{many}/?.[jt]*")) == ["3", "4", "5"]
    listed = [f"{many}/c.txt", f"file://{many}/a*"]
    assert texts_of(dataset(source={"files": listed})) == ["4", "5", "0", "1", "2"]
    odd = write(many / "a[0].csv", {"text": ["odd"]})  # a glob in its name
    assert texts_of(of_files(odd)) == ["odd"]


@pytest.mark.parametrize("limit", range(1, 8))
def test_a_limit_cuts_across_files(limit: int, many: Path) -> None:
    assert read_all(of_files(f"{many}/*.*", limit=limit)) == SIX[:limit]


@pytest.mark.parametrize("form", FORMATS)
def test_order_keys_do_not_depend_on_how_a_file_is_cut(form: str, tmp_path: Path) -> None:
    count = 2 * BATCH + 7
    path = str(write(tmp_path / f"t.{form}", {"text": [str(n) for n in range(count)]}))
    whole = Fragment(FileSource(files=(path,)), path, 3)
    expected = [(str(n), 3 * ROW + n) for n in range(count)]
    assert list(rows_of(whole)) == expected
    cuts = pairwise([0, 1, BATCH, BATCH + 5, count])
    parts = [replace(whole, start=start, stop=stop) for start, stop in cuts]
    assert [row for part in parts for row in rows_of(part)] == expected


def test_a_missing_column_names_those_that_exist_and_the_tasks_that_want_it(tmp_path: Path) -> None:
    tasks = [
        {"name": "kind", "type": "classification", "label_column": "label", "split_column": "part"},
        {"name": "groups", "type": "clustering", "label_column": "label"},
    ]
    path = write(tmp_path / "t.csv", {"text": ["a"], "topic": ["b"]})
    config = of_files(path, tasks=tasks, id_column="key")
    fragment, columns = sources.discover(config, {})[0], inspected(config)[1]
    with pytest.raises(ConfigError) as caught:
        sources.require_columns(config, fragment, columns)
    assert str(caught.value) == (
        f"dataset data: {path} has no column 'key', 'part' (split_column of task kind), "
        "'label' (label_column of task kind, label_column of task groups); it has: 'text', 'topic'"
    )
    sources.require_columns(of_files(path, text_column="topic"), fragment, columns)


def test_a_format_that_the_name_does_not_tell_must_be_said(tmp_path: Path) -> None:
    path = tmp_path / "texts.data"
    path.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match=r"dataset data: cannot tell the format of .*texts\.data"):
        sources.discover(of_files(path), {})
    assert texts_of(dataset(source={"files": str(path), "format": "text"})) == ["one", "two"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("gone.csv", "*.csv", ""):
        with pytest.raises(ConfigError, match=r"dataset data: there is no file .*"):
            sources.discover(of_files(f"{tmp_path}/{name}"), {})
    write(tmp_path / "rows.csv", {"text": ["a"]})
    with pytest.raises(ConfigError, match=r"no file .*/row\.csv; did you mean .*/rows\.csv\?$"):
        sources.discover(of_files(f"{tmp_path}/row.csv"), {})


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        *(
            ("t.jsonl", b'{"text": "a"}\n\n' + line + b"\n", r"t\.jsonl line 3 is not")
            for line in [b'{"text": ', b"[1]", b'"text"', b'{"text": ' + b"[" * 100_000]
        ),
        ("t.csv", b"text,label\na,b\na,b,c\n", r"cannot read .*t\.csv as csv: "),
        ("t.jsonl", b'{"text": "\xff"}', r"t\.jsonl is not UTF-8 text \(byte 10\)"),
        ("t.csv", b"text\n\xff\xfe\n", r"t\.csv is not UTF-8 text \(byte 5\)"),
        ("t.csv", b"text\n" + b"ab\n" * 10**6 + b"\xff", r"not UTF-8 text \(byte 3,000,005\)"),
        ("t.txt", b"\xff\xfea\0b", r"t\.txt is not UTF-16-LE text \(byte 4\)"),
        ("t.txt.gz", b"no gzip", r"cannot read .*t\.txt\.gz as text: "),
        ("t.txt.gz", gzip.compress(b"text", mtime=0)[:-9], r"cannot read .*t\.txt\.gz as text: "),
        ("t.csv.bz2", b"text\na\n", r"cannot read .*t\.csv\.bz2 as csv: "),
        ("t.jsonl.xz", lzma.compress(b"{}")[:-9], r"cannot read .*t\.jsonl\.xz as jsonl: "),
        ("t.csv.zst", b"text\na\n", r"cannot read .*t\.csv\.zst as csv: "),
        ("t.jsonl", b'{"text": ["x"]}', r"t\.jsonl, row 1: column 'text' holds a list"),
        ("t.jsonl", b'{"text": "a"}\n{"text": true}', r"row 2: column 'text' holds a boolean"),
        ("t.csv", b"", r"cannot read .*t\.csv as csv: "),
        ("t.parquet", b"not parquet at all", r"cannot read .*t\.parquet as parquet: "),
        ("t.arrow", b"no table at all", r"t\.arrow is no Arrow or Feather file"),
        ("t.feather", b"", r"t\.feather is no Arrow or Feather file"),
        ("t.feather", b"FEA1" + bytes(99), r"t\.feather is Feather of version 1"),
        *(
            (
                f"t.{form}",
                typed(form, pa.table({"text": ["a"] * 999}))[:-cut],
                problem,
            )
            for form, cut, problem in (
                ("feather", 1, r"t\.feather is cut off"),
                ("arrow", 99, r"cannot read .*t\.arrow as arrow: "),
            )
        ),
        ("t.json", b'"text"', r"t\.json is a string, not rows"),
        ("t.json", b"7", r"t\.json is a number, not rows"),
        ("t.json", b"null", r"t\.json is null, not rows"),
        ("t.json", b'[{"text": "a"}, []]', r"t\.json, row 2 is a list, not an object"),
        ("t.json", b'[{"text": "a"}', r"t\.json is not JSON: .*line 1 column 15"),
        ("t.json", b"", r"t\.json is not JSON: "),
        ("t.json", b'{"text": "a"}\n{"text": "b"}', r"line 2 .*say `format: jsonl`"),
        ("t.json", b'{"text": ["a"], "n": [1, 2]}', r"'text' \(1 element\) and 'n' \(2 elements\)"),
        ("t.json", b'{"a": [{}], "b": [{}, {}]}', r"'a' \(1 element\) and 'b' \(2 elements\)"),
        ("t.json", b'{"text": "a", "more": null}', r"'text' \(a string\) and 'more' \(null\)"),
        ("t.json", b'[{"text": {}}]', r"t\.json, row 1: column 'text' holds an object"),
        ("t.tsv", b"text\tn\na\t1\nb\n", r"cannot read .*t\.tsv as tsv: .*Row #3"),
        *(
            (f"t.{form}", start + bytes(99), rf"t\.{form} is no text: it begins like {what}")
            for form in ("csv", "json", "txt")
            for start, what in {b"\x89PNG\r\n": "a PNG image", b"PK\x03\x04": "a ZIP"}.items()
        ),
        ("t.jsonl", b'{"text": "half: \\ud800"}\n', r"cannot read .*t\.jsonl as jsonl: "),
    ],
)
def test_a_broken_file_is_named_and_the_line_of_json(
    name: str, content: bytes, problem: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    (fragment,) = sources.discover(of_files(tmp_path / name), {})
    # Seen when they are read: text to Python that is none to Arrow, and what is no text.
    later = b"ud800" in content or "holds" in problem
    with nullcontext() if later else pytest.raises(ConfigError, match=problem):
        sources.inspect(fragment, {})
    with pytest.raises(ConfigError, match=problem):
        list(rows_of(fragment))


def test_rows_of_json_are_an_array_or_columns_or_the_only_array_in_an_object(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.json"
    rows: list[dict[str, Any]] = [{"text": "a", "n": [1]}, {"text": "b", "n": {"m": 2}}]
    columns = {name: [row[name] for row in rows] for name in ("text", "n")}
    for value in (rows, columns, {"version": 2, "rows": rows}, {"rows": rows}):
        path.write_text(json.dumps(value))
        assert inspected(of_files(path)) == (2, ["text", "n"])
        assert read_all(of_files(path), ["n", "text"]) == [("[1]", "a", 0), ('{"m": 2}', "b", 1)]
    for nothing in ("[]", "{}", '{"text": []}'):
        path.write_text(nothing)
        assert read_all(of_files(path)) == []
    path.write_text('{"text": ["a"], "n": [1], "n": [2]}')
    assert inspected(of_files(path)) == (1, ["text", "n", "n"])


def test_one_json_value_is_read_up_to_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.json", {"text": ["x" * 99] * 9})
    monkeypatch.setattr(files, "_LARGEST_JSON", path.stat().st_size)
    assert len(read_all(of_files(path))) == 9
    monkeypatch.setattr(files, "_LARGEST_JSON", path.stat().st_size - 1)
    with pytest.raises(ConfigError, match=r"t\.json has more than .*write it as JSON lines"):
        inspected(of_files(path))


@pytest.mark.parametrize("form", ["arrow", "feather", "json", "jsonl", "csv"])
def test_of_a_large_file_the_rows_are_estimated(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_DENSITY_BYTES", 1 << 16)
    count, table = 20_000, pa.table({"text": [f"{n:05} words" for n in range(20_000)]})
    path = write(tmp_path / f"t.{form}", table.to_pydict())
    if form in TYPED:  # in more than one batch
        opened = pa_ipc.new_file if form == "feather" else pa_ipc.new_stream
        with opened(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=500)
    (fragment,) = sources.discover(of_files(path), {})
    assert files.estimate_rows(fragment.file, {}) == pytest.approx(count, rel=0.03)
    assert inspected(of_files(path)) == (count, ["text"])


HEADED = {"text": ["Hallo, Welt; ja | nein", 'a "b"\tc', ""], "label": ["1", "2", "1,5"]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_separates_columns_is_told_by_the_first_rows(
    delimiter: str, quoting: int, tmp_path: Path
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(HEADED)
    writer.writerows(zip(*HEADED.values(), strict=True))
    path = tmp_path / "t.csv"
    path.write_text(text.getvalue(), newline="")
    (fragment,) = sources.discover(of_files(path), {})
    assert sources.sniffed(fragment, {}) == [delimiter]
    assert inspected(of_files(path)) == (3, ["text", "label"])
    rows = [*zip(*HEADED.values(), range(3), strict=True)]
    assert read_all(of_files(path), ["text", "label"]) == rows
    assert read_all(of_files(path, limit=2), ["text", "label"]) == rows[:2]
    named = dataset(source={"files": str(path), "delimiter": delimiter})
    (fragment,) = sources.discover(named, {})
    assert (read_all(named, ["text", "label"]), sources.sniffed(fragment, {})) == (rows, [])
    identity = {**sources.identity(of_files(path), {}), "delimiter": delimiter}
    assert sources.identity(named, {}) == identity


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text\nHello; you\nand; more\n", ","),  # one column
        ("text;label\n", ";"),
        ("text;label\na;b\nc\n", ","),  # not in every row
        ("a,b;c\n1,2;3\n", ","),  # of two that fit the first
        ("a,b;c\n1;3\n", ";"),
        ("a\n", ","),
        ("", ","),
        ("text;label\n" + "x;1\n" * 99_999 + "one\n", ";"),  # the sample ends before it
        ("text;label\n" + '"' + "word; " * 99_999 + '";1\n', ";"),  # or in the first row
        (";".join(f"column {n}" for n in range(9_999)) + "\n", ";"),  # or in the header
    ],
)
def test_a_delimiter_is_taken_where_every_row_has_as_many_columns(
    content: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    for compressed in (path, tmp_path / "t.csv.gz"):
        compressed.write_bytes(
            gzip.compress(content.encode()) if compressed != path else content.encode()
        )
        (fragment,) = sources.discover(of_files(compressed), {})
        assert sources.sniffed(fragment, {}) == [expected]
    if content.startswith("text") and not content.endswith("one\n"):
        assert inspected(of_files(path))[1] == content.partition("\n")[0].split(expected)


def test_files_of_a_source_have_each_their_own_delimiter(tmp_path: Path) -> None:
    for name, delimiter in {"a.csv": ";", "b.csv": ",", "c.csv": ";", "d.tsv": "\t"}.items():
        (tmp_path / name).write_text(f"label{delimiter}text\n1{delimiter}{name}\n")
    config = of_files(tmp_path / "*.?sv")
    assert texts_of(config) == ["a.csv", "b.csv", "c.csv", "d.tsv"]
    found = [each for part in sources.discover(config, {}) for each in sources.sniffed(part, {})]
    told = files.told_delimiters(found)
    assert "`,` (1 file) and `;` (2 files)" in told
    assert "with tab between" in files.told_delimiters(["\t"])


def test_a_delimiter_is_one_character_and_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a:text\n1:x\n")
    (tmp_path / "t.tsv").write_text("a:text\n1:x\n")
    for name in ("t.csv", "t.tsv"):
        source = {"files": f"{tmp_path}/{name}", "delimiter": ":"}
        assert texts_of(dataset(source=source)) == ["x"]
    assert FileSource(files=("x",), delimiter="tab").delimiter == "\t"
    for wrong in ("", ";;", '"', "\n", "§", "\0"):
        with pytest.raises(ValidationError, match="delimiter"):
            FileSource(files=("x",), delimiter=wrong)
    write(tmp_path / "t.jsonl", {"text": ["a"]})
    config = dataset(source={"files": f"{tmp_path}/t.jsonl", "delimiter": ";"})
    with pytest.raises(ConfigError, match=r"`delimiter` is of CSV and TSV, .*t\.jsonl is neither"):
        sources.discover(config, {})


def test_identity_is_the_content_not_the_place(tmp_path: Path) -> None:
    def identity(path: Path, form: str = "auto") -> dict[str, Any]:
        return sources.identity(dataset(source={"files": str(path), "format": form}), {})

    path = write(tmp_path / "t.csv", {"text": ["a", "b"]})
    before = identity(path)
    (tmp_path / "copy").mkdir()
    copy = write(tmp_path / "copy" / "t.csv", {"text": ["a", "b"]})
    assert identity(copy) == identity(path, "csv") == before
    assert identity(path, "text") != before
    assert identity(write(path, {"text": ["a", "c"]})) != before


def test_identity_of_a_builtin_corpus_names_the_version_of_every_library() -> None:
    versions = sources.identity(dataset(source={"builtin": "docstrings"}), {})["versions"]
    assert list(versions) == list(docstrings.LIBRARIES)
    assert all(version[0].isdigit() for version in versions.values())


def test_tasks_of_mteb_are_read_one_by_one_and_recorded_once_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(task: str, _modules: object) -> list[tuple[str, str]]:
        return [(f"first of {task}", "query"), ("", "none"), (f"last of {task}", "document")]

    recorded = Mock(side_effect=asked)
    monkeypatch.setattr(benchmark_tasks, "task_names", lambda spec, _modules: list(spec))
    monkeypatch.setattr(benchmark_score, "recorded", recorded)
    sources._mteb_texts.cache_clear()
    config = dataset(source={"mteb": ["One", "Two"], "modules": "my.tasks"})
    found = []
    for whole in sources.discover(config, {}):
        length, columns = sources.inspect(whole, {})
        assert columns == ["text", "task", "prompt_type"]
        sources.require_columns(config, whole, columns)
        (part,), _ = sources.cut([whole], [length], None)
        found += list(rows_of(part, config.columns))
    assert found == [
        (text, name, as_what, index * ROW + row)
        for index, name in enumerate(["One", "Two"])
        for row, (text, as_what) in enumerate(asked(name, ()))
    ]
    assert recorded.mock_calls == [call(name, ("my.tasks",)) for name in ("One", "Two")]
    monkeypatch.setattr(sources, "version", {"mteb": "2.26"}.__getitem__)
    expected = {"tasks": ["One", "Two"], "modules": ["my.tasks"], "mteb": "2.26"}
    assert sources.identity(config, {}) == expected


SPLITS: dict[str, dict[str, list[Any]]] = {
    "train": {"text": ["a", None, "c"], "label": [0, 1, 0]},
    "train[:2]": {"text": ["a", None], "label": [0, 1]},
    "test": {"text": ["d", "e"], "label": [1, 1]},
    "named": {"text": ["a", "b"], "split": ["test", "train"]},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mock]:
    """Stand in for `datasets.load_dataset` and remember what it was asked for."""

    stand_in = Mock(side_effect=lambda *_, split, **__: datasets.Dataset.from_dict(SPLITS[split]))
    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    sources._hub_split.cache_clear()
    yield stand_in
    sources._hub_split.cache_clear()


def test_hub_splits_are_joined_and_named(hub: Mock) -> None:
    config = dataset(source={"hub": "org/name", "config": "en", "split": "train + test"})
    assert read_all(config, ["text", "split", "label"]) == [
        ("a", "train", "0", 0),
        (None, "train", "1", 1),
        ("c", "train", "0", 2),
        ("d", "test", "1", ROW),
        ("e", "test", "1", ROW + 1),
    ]
    asked = [call("org/name", "en", split=split, revision="main") for split in ("train", "test")]
    assert hub.mock_calls == asked
    assert inspected(config) == (3, ["text", "label", "split"])


def test_a_slice_keeps_its_splits_name_and_a_column_of_that_name_is_the_datasets(hub: Mock) -> None:
    config = dataset(source={"hub": "org/name", "split": "train[:2]+test", "revision": "v1"})
    rows = read_all(config, ["split", "text"])
    assert rows[:3] == [("train", "a", 0), ("train", None, 1), ("test", "d", ROW)]
    assert hub.mock_calls[0] == call("org/name", None, split="train[:2]", revision="v1")
    rows = read_all(dataset(source={"hub": "org/name", "split": "named"}), ["text", "split"])
    assert rows == [("a", "test", 0), ("b", "train", 1)]


def test_slices_read_their_rows_and_load_the_split_once(
    hub: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SLICE", 2)
    config = dataset(source={"hub": "org/name", "split": "train+test"})
    parts, total = sources.cut(sources.discover(config, {}), [3, 2], 4)
    assert total == 4
    cuts = [(part.index, part.start, part.stop) for part in parts]
    assert cuts == [(0, 0, 2), (0, 2, 3), (1, 0, 1)]
    read = [list(rows_of(part)) for part in parts]
    assert read == [[("a", 0), (None, 1)], [("c", 2)], [("d", ROW)]]
    assert hub.call_count == 2


CONFIGURED = """---
configs:
- {config_name: en, data_files: [{split: train, path: en.csv}]}
- {config_name: de, data_files: [{split: train, path: de.csv}]}
---
"""


def test_a_hub_dataset_of_several_configurations_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "both"
    folder.mkdir()
    (folder / "README.md").write_text(CONFIGURED)
    for name in ("en", "de"):
        write(folder / f"{name}.csv", {"text": [f"{name} 1", f"{name} 2"]})

    def texts(**source: str) -> list[str | None]:
        sources._hub_split.cache_clear()
        return texts_of(dataset(source={"hub": str(folder), **source}))

    assert texts(config="de") == ["de 1", "de 2"]
    for source, expected in (
        ({}, r"several configurations, en, de: .*config: en"),
        ({"config": "dee"}, r"no configuration 'dee'; it has en, de; did you mean de"),
        ({"config": "de", "split": "tset"}, r"\(tset\): .*train"),
    ):
        with pytest.raises(ConfigError, match=rf"hub dataset {folder}.*{expected}"):
            texts(**source)
    chosen = CONFIGURED.replace("{config_name: de,", "{config_name: de, default: true,")
    (folder / "README.md").write_text(chosen)
    assert texts() == ["de 1", "de 2"]
    with pytest.raises(ConfigError, match=r"\(tset\): .*train"):
        texts(split="tset")


def test_an_unreachable_hub_names_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    sources._hub_split.cache_clear()
    fragment = sources.discover(dataset(source={"hub": "nobody/no-such-dataset"}), {})[0]
    with pytest.raises(ConfigError, match=r"hub dataset nobody/no-such-dataset \(train\)"):
        sources.inspect(fragment, {})


def test_what_the_library_of_a_hub_dataset_raises_names_dataset_split_and_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object, **__: object) -> None:
        try:
            raise KeyError("stars")
        except KeyError as error:
            raise datasets.exceptions.DatasetGenerationError("An error\noccurred") from error

    monkeypatch.setattr(datasets, "load_dataset", load)
    sources._hub_split.cache_clear()
    fragment = sources.discover(dataset(source={"hub": "org/name", "split": "test"}), {})[0]
    with pytest.raises(ConfigError, match=r"org/name \(test\): An error occurred: 'stars'$"):
        sources.inspect(fragment, {})


@pytest.mark.parametrize("form", [*FORMATS, "text"])
def test_files_in_object_storage_read_like_local_ones(form: str, s3: S3, tmp_path: Path) -> None:
    root = s3.root(tmp_path.name)
    for number, texts in enumerate([TEXTS[:4], TEXTS[4:]]):
        root.write(f"{number}.{form}", encoded(form, {"text": texts}))
    # What the console of S3 and Hadoop leave for a folder is no file.
    for marker in ("", "more/", "more_$folder$"):
        key = f"{tmp_path.name}/{marker}"
        root.filesystem.call_s3("put_object", Bucket="layers", Key=key, Body=b"")
    options = dict(root.options)
    for pattern in ("*", "**"):
        config = dataset(source={"files": f"{root.uri}/{pattern}", "format": form})
        assert len(sources.discover(config, options)) == 2
    config = dataset(source={"files": f"{root.uri}/*.{form}", "format": form})
    order = [*range(4), *range(ROW, ROW + 5)]
    assert read_all(config, options=options) == [*zip(TEXTS, order, strict=True)]
    assert sources.identity(config, options)["files"] == [f"0.{form}", f"1.{form}"]


def test_files_of_the_web_are_read_by_their_whole_address(tmp_path: Path) -> None:
    write(tmp_path / "texts.jsonl", {"text": TEXTS})
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = of_files(f"http://127.0.0.1:{server.server_port}/texts.jsonl")
        assert texts_of(config) == TEXTS
        server.shutdown()
