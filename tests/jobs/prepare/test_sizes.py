"""Files that are small and become large: read in pieces, or refused before they are decoded."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pq
import pytest
from fsspec.spec import AbstractBufferedFile

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import FolderSource
from layerrank.jobs.prepare import files, folders, records, sources, stage
from layerrank.jobs.prepare.files import File, inspect_file, parquet_tables, read_file
from layerrank.jobs.prepare.records import prompts_of, records_of, require_small
from layerrank.storage.root import Root
from tests.jobs.prepare.test_records import dataset, shards_of, source

LONG = "a long text " * 1000


def repeated(path: Path, text: str, rows: int) -> Path:
    """Write a file in which one text is that of every row, and stands once."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    table = pa.table({"text": column, "n": range(rows)})
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    else:
        with pa.OSFile(str(path), "wb") as file, pa_ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_text_that_every_row_has_is_decoded_for_a_few_rows_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_DECODED_BYTES", 20 * len(LONG))
    path = repeated(tmp_path / name, LONG, 500)
    assert path.stat().st_size < len(LONG) + 10_000
    at_once = []
    as_strings = files.as_strings

    def noted(table: pa.Table, *of: Any) -> pa.Table:  # noqa: ANN401
        found = as_strings(table, *of)
        at_once.append(found.nbytes)
        return found

    monkeypatch.setattr(files, "as_strings", noted)
    file = File("parquet" if name.endswith("parquet") else "arrow", str(path))
    found = pa.concat_tables(read_file(file, ["text", "n"], {}))
    assert found["text"].to_pylist() == [LONG] * 500
    assert found["n"].to_pylist() == [str(n) for n in range(500)]
    assert max(at_once) < 25 * len(LONG)


def test_short_texts_are_read_as_many_at_once_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["short", "texts"] * 5000}), path, row_group_size=100)
    tables = [*read_file(File("parquet", str(path)), ["text"], {})]
    assert [len(each) for each in tables[:2]] == [4000, 4000]
    assert sum(map(len, tables)) == 10_000


def dictionary(path: Path, texts: list[str], rows: int, **options: Any) -> Path:  # noqa: ANN401
    """Write a file in whose dictionary all of `texts` are, and each stands in many rows."""
    of_rows = pa.array([n % len(texts) for n in range(rows)], pa.int32())
    column = pa.DictionaryArray.from_arrays(of_rows, pa.array(texts)).dictionary_decode()
    pq.write_table(pa.table({"text": column}), path, dictionary_pagesize_limit=1 << 24, **options)
    return path


def tables(path: Path) -> list[pa.Table]:
    with path.open("rb") as stream:
        return [*parquet_tables(stream, ["text"], path.name)]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_rows_are_as_long_as_the_longest_text_of_a_dictionary(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"a short text, number {n}" for n in range(10_000)]
    path = dictionary(tmp_path / "a.parquet", texts, 20_000, compression=compression)
    monkeypatch.setattr(files, "_DECODED_BYTES", 4096 * 30)  # and the dictionary has 30 KB
    assert [each.num_rows for each in tables(path)] == [4096] * 4 + [20_000 - 4 * 4096]
    texts[7] = "x" * 300
    path = dictionary(tmp_path / "b.parquet", texts, 20_000, compression=compression)
    found = tables(path)
    assert {each.num_rows for each in found[:-1]} == {4096 * 30 // 300}
    assert pa.concat_tables(found)["text"].to_pylist() == texts * 2


class Remote(AbstractBufferedFile):  # type: ignore[misc]
    """A file as object storage has it, read ahead, that counts what is fetched."""

    def __init__(self, content: bytes) -> None:
        self.content, self.fetched = content, 0
        super().__init__(None, "a.parquet", "rb", block_size=1 << 20, size=len(content))

    def _fetch_range(self, start: int, end: int) -> bytes:
        found = self.content[start:end]
        self.fetched += len(found)
        return found


def test_a_file_in_object_storage_is_fetched_once(tmp_path: Path) -> None:
    texts, rows = [f"text {n:,}" for n in range(1 << 11)], 1 << 18
    content = dictionary(tmp_path / "a.parquet", texts, rows, compression="none").read_bytes()
    remote = Remote(content)
    assert sum(each.num_rows for each in parquet_tables(remote, ["text"], "")) == rows
    beside = 1 << 16  # of the end, read for the footer
    assert len(content) <= remote.fetched <= len(content) + beside < 1.5 * len(content)


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_page_of_parquet_that_becomes_too_large_is_refused_by_its_header(
    use_dictionary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LARGEST_PAGE", 1 << 20)
    path = tmp_path / "a.parquet"
    texts = ["x" * (2 << 20), "fine"]
    given = {"use_dictionary": use_dictionary, "dictionary_pagesize_limit": 1 << 30}
    pq.write_table(
        pa.table({"text": texts, "other": ["a", "b"]}), path, compression="zstd", **given
    )
    assert path.stat().st_size < 1 << 18
    with path.open("rb") as stream:
        other = [*parquet_tables(stream, ["other"], "a.parquet")]
        with pytest.raises(ConfigError, match=r"a.parquet, column 'text' of row group 1: .* becom"):
            next(parquet_tables(stream, ["text"], "a.parquet"))
    assert sum(each.num_rows for each in other) == 2


@pytest.mark.parametrize("is_dictionary", [True, False])
@pytest.mark.parametrize("opened", [pa_ipc.new_file, pa_ipc.new_stream])
def test_a_batch_of_arrow_that_becomes_too_large_is_refused_by_its_header(
    opened: Any,  # noqa: ANN401
    is_dictionary: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    column = pa.array(["x" * 100_000, None] * 10)
    table = pa.table(
        {"n": range(20), "text": column.dictionary_encode() if is_dictionary else column}
    )
    path = tmp_path / "a.arrow"
    options = pa_ipc.IpcWriteOptions(compression="zstd")
    with path.open("wb") as file, opened(file, table.schema, options=options) as writer:
        writer.write_table(table)
    known = File("arrow", str(path))
    assert inspect_file(known, {}) == (20, ["n", "text"])
    monkeypatch.setattr(files, "_LARGEST_BATCH", 50_000)
    with pytest.raises(ConfigError, match=r"a.arrow, batch \d: [\d,]+ bytes become (1,000|100),"):
        inspect_file(known, {})


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_line_that_does_not_end_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LARGEST_LINE", 1 << 20)
    lines = [json.dumps({"text": text}) for text in ("fine", "x" * (1 << 21))]
    path = tmp_path / name
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    file = File("text" if "txt" in name else "jsonl", str(path))
    for read in (lambda: inspect_file(file, {}), lambda: [*read_file(file, ["text"], {})]):
        with pytest.raises(ConfigError, match="line 2 has more than 1 MiB"):
            read()
    assert inspect_file(file, {}, most=1)[0] == 1


def test_long_lines_are_read_a_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BATCH_BYTES", 5 * len(LONG))
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps({'text': LONG})}\n" * 50)
    tables = [*read_file(File("jsonl", str(path)), ["text"], {})]
    assert max(map(len, tables)) == 6
    assert sum(map(len, tables)) == 50


def test_a_header_and_a_json_that_become_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text" + b"x" * (3 << 20)))
    with pytest.raises(ConfigError, match=r"a.csv.gz: its first line has more than"):
        inspect_file(File("csv", str(tmp_path / "a.csv.gz")), {})
    monkeypatch.setattr(files, "_JSON_VALUES", 1000)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + b"{}," * 1000 + b"{}]"))
    with pytest.raises(ConfigError, match=r"a.json.gz has about 2,0\d\d values"):
        inspect_file(File("json", str(tmp_path / "a.json.gz")), {})


@pytest.mark.parametrize("content", ['"label": ' + "[" * 100_000, '"label": ' + "9" * 1_000_000])
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_of_great_depth_and_numbers_of_many_digits_are_no_json(
    content: str, form: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{form}"
    path.write_text("{" + content + "}")
    with pytest.raises(ConfigError, match="is not JSON"):
        inspect_file(File(form, str(path)), {})  # type: ignore[arg-type]


def test_a_folder_counts_what_its_files_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_LARGEST", 1 << 20)
    for name in ("texts", "tables", "fine"):
        (tmp_path / name).mkdir()
    half = gzip.compress(b"a passage\n\n" * (1 << 16))
    for name in ("a.txt.gz", "b.txt.gz"):
        (tmp_path / "texts" / name).write_bytes(half)
    repeated(tmp_path / "tables" / "a.parquet", LONG, 200)
    for name in ("texts", "tables"):
        with pytest.raises(ConfigError, match=f"{name} holds more than 1 MiB, decompressed"):
            folders.read(FolderSource(folder=str(tmp_path / name)), {})
    (tmp_path / "fine" / "a.txt.gz").write_bytes(half)
    assert folders.read(FolderSource(folder=str(tmp_path / "fine")), {}).num_rows == 1 << 16


def test_the_bytes_of_a_folder_are_those_of_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_LARGEST", 1000)
    for text, name in (("x" * 700, "fine"), ("\u6587" * 700, "large")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl.gz").write_bytes(
            gzip.compress(json.dumps({"text": text}).encode())
        )
    assert folders.read(FolderSource(folder=str(tmp_path / "fine")), {}).num_rows == 1
    with pytest.raises(ConfigError, match="large holds more than"):
        folders.read(FolderSource(folder=str(tmp_path / "large")), {})


def test_a_limit_leaves_the_rest_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nno JSON\n')
    given = dataset(source={"files": str(path)}, limit=2)
    (whole,) = sources.discover(given, {})
    length, columns = sources.inspect(whole, {})
    assert (length, columns) == (2, ["text"])
    (part,), _ = sources.cut([whole], [length], 2)
    (table,) = sources.read(part, ["text"], {})
    assert table["text"].to_pylist() == ["one", "two"]


def test_a_long_text_that_comes_again_is_written_once() -> None:
    config, rows = dataset(), source(text=[LONG, "short", LONG, "short", LONG])
    seen = dict[int, int]()
    every = pa.concat_tables(
        records_of(config, rows[n : n + 2], 1, 0, seen) for n in range(0, rows.num_rows, 2)
    )
    assert every["text"].to_pylist() == [LONG, "short", None, "short", None]
    table, _, facts = prompts_of(every, 0)
    assert sorted(table["text"].to_pylist()) == [LONG, "short"]
    assert facts["duplicates"] == 3
    assert prompts_of(shards_of(config, rows, 1)[0], 0)[0].equals(table)


def test_a_short_text_is_written_once_of_the_rows_that_are_read_at_once() -> None:
    config, rows = dataset(), source(text=["short", "other", "short", "short"])
    found = records_of(config, rows, 1, 0, {})
    assert found["text"].to_pylist() == ["short", "other", None, None]
    table, _, facts = prompts_of(found, 0)
    assert (sorted(table["text"].to_pylist()), facts["duplicates"]) == (["other", "short"], 2)


def test_two_long_texts_of_one_id_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "prompt_id", lambda _: 7)
    found = records_of(dataset(), source(text=[LONG, LONG + "."]), 1, 0, {})
    with pytest.raises(ValueError, match="share the prompt_id 7"):
        prompts_of(found, 0)


def test_a_shard_that_no_task_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config, sizes = dataset(shard_prompts=64), Counter[int]()
    found = records_of(config, source(text=["one text", "two texts", "one text"]), 1, 0, {})
    monkeypatch.setattr(records, "_LARGEST_SHARD", 40)
    for _ in range(2):
        require_small(config, found, sizes, "a.jsonl")
    with pytest.raises(ConfigError, match=r"a.jsonl: .* smaller shard_prompts"):
        require_small(config, found, sizes, "a.jsonl")


def test_a_shard_is_small_with_what_all_fragments_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = dataset(), Root(str(tmp_path))
    parts = [records_of(config, source(text=[text]), 1, 0, {}) for text in ("x" * 30, "y" * 30)]
    monkeypatch.setattr(records, "_LARGEST_SHARD", 40)
    for part in parts:
        require_small(config, part, Counter(), "a.jsonl")
        stage._write_shards(root, config, {}, part)
    with pytest.raises(ConfigError, match=r"dataset data, shard-00000.*: .* of one shard"):
        stage._write_shards(root, config, {}, pa.concat_tables(parts))
