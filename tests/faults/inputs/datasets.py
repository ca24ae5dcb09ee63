"""Texts that cannot be read, or that a task cannot use."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.inputs.case import ROWS, SECRET, Case, config, data, lines
from tests.faults.inputs.configs import LABELS

NOBODY = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true"}
STRANGER = {**NOBODY, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": SECRET}


def _parquet(column: list[Any], cut: int | None = None) -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.table({"text": column}), made)
    return made.getvalue()[:cut]


def _linked_to_itself(path: Path) -> None:
    path.symlink_to(path)


def _labelled(label: str, part: str) -> str:
    rows = [{"text": f"t {n}", "label": label[n % len(label)], "part": part} for n in range(20)]
    return lines(rows)


def _files(name: str, content: str | bytes | Callable[[Path], object], *says: str) -> Case:
    """Files of one name, which its refusal has."""
    return data(name.partition(": ")[2], {name.partition(": ")[0]: content}, *says)


def _at(name: str, files: str, *says: str, **known: Any) -> Case:  # noqa: ANN401
    return config(name, {"datasets": [{"name": "odd", "source": {"files": files}}]}, *says, **known)


UPWARDS = {**LABELS, "name": "../../x"}
OTHER_TYPE = {**LABELS, "type": "clasification"}
ITS_OWN = {"name": "g", "type": "clustering", "label_column": "text"}
SAME_IDS = lines([{"text": f"t{n}", "id": 1} for n in range(5)])
FEW = lines([{"text": f"t {n}"} for n in range(12)])
OFFLINE = {"hub": "mteb/banking77"}
NO_FOLDER = {"folder": "FOLDER/none"}
NO_TASK: dict[str, Any] = {"mteb": ["Banking78Classification"]}
NO_MODULE = {"mteb": ["X"], "modules": ["no.such.module"]}
A_FOLDER = {"t/a.txt": "a text"}
CASES: list[Case] = [
    data("no such file", {}, "dataset odd", "FOLDER/no.jsonl", source={"files": "FOLDER/no.jsonl"}),
    data("no match of a pattern", {}, "odd", "FOLDER/*.csv", source={"files": "FOLDER/*.csv"}),
    _files("a.xml: unknown ending", "<a/>", "a.xml", "source.format"),
    data("empty file", "", "dataset odd", "no rows"),
    _files("a.csv: empty CSV", "", "a.csv", "mpty"),
    _files("a.csv: CSV of a header", "text,label\n", "dataset odd", "no rows"),
    data("a broken JSON line", '{"text": "a"}\n{"text": \n', "a.jsonl line 2", "JSON"),
    data("a JSON array", '[{"text": "a"}]\n', "a.jsonl line 1", "JSON object"),
    data("an object as text", '{"text": 5}\n{"text": {"a": 1}}\n', "row 2", "'text'", "object"),
    data("NaN as text", '{"text": NaN}\n{"text": "a"}\n'),
    data("lone surrogate", '{"text": "a \\ud800 b"}\n{"text": "fine"}\n', "a.jsonl", r"\ud800"),
    _files("a.csv: ragged CSV", "text,label\na,b\nc,d,e\n", "a.csv", "Row #3", "2 columns"),
    _files("a.csv: CSV with an open quote", 'text,label\n"a,b\nc,d\n', "a.csv", "Row #2"),
    _files("a.csv: CSV in latin-1", "text\ncaf\xe9\n".encode("latin-1"), "a.csv", "byte 8"),
    _files("a.csv: a column twice", "text,text\na,b\n", "odd", "a.csv", "'text'"),
    _files("a.parquet: truncated Parquet", _parquet(["a"] * 99, -20), "a.parquet", "magic"),
    _files("a.parquet: text called Parquet", "hello", "a.parquet", "5 bytes"),
    _files("a.parquet: Parquet of numbers", _parquet([1, 2]), "a.parquet", "'text'", "int64"),
    _files("a.parquet: bytes no UTF-8", _parquet([b"\xff\xfe", b"ok"]), "a.parquet", "UTF8"),
    _files("a.parquet: structs", _parquet([{"a": 1}, {"a": 2}]), "a.parquet", "struct"),
    data("all texts null", lines([{"text": None}] * 5), "dataset odd", "skipped_null: 5"),
    data("no text is long enough", FEW, "dataset odd", "too_short: 12", min_chars=20),
    _files("a.jsonl.gz: gzip", gzip.compress(b'{"text": "a"}\n')),
    _files("a.jsonl.gz: gzip cut off", gzip.compress(b'{"text": "a"}\n')[:-9], "a.jsonl.gz"),
    _files("a.jsonl.gz: gzip that is none", '{"text": "a"}\n', "a.jsonl.gz"),
    data("a folder called a.jsonl", Path.mkdir, "dataset odd", "a.jsonl", "folder"),
    data("a pipe", os.mkfifo, "dataset odd", "a.jsonl", "no file"),
    data("a link to itself", _linked_to_itself, "dataset odd", "a.jsonl", "link"),
    data("one line of 60 MB", lines([{"text": "x " * 30_000_000}, {"text": "fine"}])),
    data("limit 0", ROWS, "datasets.0.limit", "0", limit=0),
    data("no such column", ROWS, "a.jsonl", "'body'", "'text'", text_column="body"),
    data("test rows alone", _labelled("a", "train"), "odd", "task l", "part", tasks=[LABELS]),
    data(
        "a label of one value",
        _labelled("a", "train") + _labelled("a", "test"),
        *("dataset odd", "task l", "label"),
        tasks=[LABELS],
    ),
    data("a split without train", _labelled("ab", "dev"), "task l", "part", "dev", tasks=[LABELS]),
    data("task name ../../x", ROWS, "tasks.0", "name", "../../x", tasks=[UPWARDS]),
    data("unknown task type", ROWS, "'clasification'", "classification", tasks=[OTHER_TYPE]),
    data("label column that is the text", ROWS, tasks=[ITS_OWN]),
    data("duplicate ids", SAME_IDS, "odd", "column id", "row 1", "'1'", id_column="id"),
    data("shard of 1 prompt", FEW, shard_prompts=1),
    data("hub without network", {}, "mteb/banking77", source=OFFLINE),
    data("folder that is not there", {}, "dataset odd", "FOLDER/none", source=NO_FOLDER),
    data(
        "folder that is empty",
        {"none": Path.mkdir},
        *("dataset odd", "FOLDER/none"),
        source=NO_FOLDER,
    ),
    data(
        "folder with a binary .txt",
        {"t/a.txt": bytes(range(256))},
        *("dataset odd", "t/a.txt", "byte 128"),
        source={"folder": "FOLDER/t"},
    ),
    _at("files over http, port closed", "http://127.0.0.1:9/a.jsonl", "odd", "127.0.0.1:9"),
    _at(
        "s3 without credentials",
        "s3://no-such-bucket-lr/a.jsonl",
        *("dataset odd", "no-such-bucket-lr", "credentials"),
        environment=NOBODY,
    ),
    _at("unknown scheme", "foo://a.jsonl", "dataset odd", "foo://a.jsonl"),
    config("unknown mteb task", {"tasks": NO_TASK}, "Banking78", "Banking77Classification"),
    config("mteb module that is absent", {"tasks": NO_MODULE}, "no.such.module"),
    Case(
        "data: --texts of a recipe without folder",
        ("run", "demo", "--texts", "FOLDER/t", "--output", "FOLDER/out"),
        ("--texts", "demo"),
        A_FOLDER,
    ),
    Case(
        "data: --texts that does not exist",
        ("run", "quickcheck", "--texts", "FOLDER/none", "--output", "FOLDER/out"),
        ("dataset texts", "FOLDER/none"),
    ),
]
