"""A folder of texts as a source: layouts, labels, order, the task that it brings, and errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import ClassificationTask, FolderSource
from layerrank.jobs.config.run import RunConfig, load
from layerrank.jobs.prepare import folders, sources
from layerrank.jobs.prepare.files import FORMATS
from tests.conftest import S3
from tests.jobs.prepare.test_records import dataset


def write(folder: Path, files: dict[str, str | bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def rows(folder: str, *columns: str) -> list[tuple[Any, ...]]:
    table = folders.read(FolderSource(folder=folder), {})
    return [*zip(*(table[name].to_pylist() for name in columns), strict=True)]


def passages(count: int, about: str) -> str:
    return "\n\n".join(f"Passage {n} about {about}." for n in range(count))


def quickcheck(folder: str, **changes: Any) -> RunConfig:  # noqa: ANN401
    config = load("quickcheck")
    changed = (config.datasets[0].model_copy(update=changes),)
    return folders.with_folders(config.model_copy(update={"datasets": changed}), folder)


def task_of(folder: str, **changes: Any) -> ClassificationTask | None:  # noqa: ANN401
    (task,) = quickcheck(folder, **changes).datasets[0].tasks or (None,)
    assert task is None or isinstance(task, ClassificationTask)
    return task


def test_blank_lines_separate_passages_and_nothing_else_does(tmp_path: Path) -> None:
    text = "\ufeff\n\nfirst line\nsecond line\r\n \t\r\n\r\n  last  \n\n\n"
    folder = write(tmp_path, {"a.txt": text, "b.md": "# Heading\n\none short passage"})
    assert rows(folder, "text", "file") == [
        ("first line\nsecond line", "a.txt"),
        ("# Heading", "b.md"),
        ("last", "a.txt"),
        ("one short passage", "b.md"),
    ]


def test_subfolders_are_labels_that_take_turns(tmp_path: Path) -> None:
    files = {"sea/a.txt": "s1\n\ns2", "sea/deep/b.txt": "s3", "sky/c.txt": "k1", "loose.txt": "l1"}
    folder = write(tmp_path / "two", {**files, ".git/x.txt": "hidden", "sky/.y.txt": "hidden"})
    assert rows(folder, "text", "label", "split") == [
        ("l1", None, "train"),
        ("s1", "sea", "train"),
        ("k1", "sky", "train"),
        ("s2", "sea", "test"),
        ("s3", "sea", "train"),
    ]
    one = write(tmp_path / "one", {"docs/a.txt": "a1\n\na2", "docs/b.txt": "b1"})
    assert rows(one, "text", "label") == [("a1", None), ("b1", None), ("a2", None)]


def test_tables_bring_texts_and_labels_and_a_repeated_text_keeps_its_side(tmp_path: Path) -> None:
    lines = [{"text": "x", "label": 3}, {"text": "y", "label": 4}, {"text": "x", "label": 3}]
    records = "".join(json.dumps(line) + "\n" for line in lines)
    folder = write(tmp_path, {"a.jsonl": records, "b.csv": "n,text\n1,z\n"})
    pq.write_table(pa.table({"text": ["p", None], "label": ["4", "4"]}), tmp_path / "c.parquet")
    assert rows(folder, "text", "label", "split") == [
        ("x", "3", "test"),
        ("y", "4", "train"),
        ("z", None, "train"),
        ("x", "3", "test"),
        ("p", "4", "test"),
        (None, "4", "train"),
    ]


def test_tables_of_every_format_bring_texts(tmp_path: Path) -> None:
    rows_of_json = [{"text": "a", "label": "sea"}, {"text": "b", "label": "sky"}]
    alone = write(tmp_path / "json", {"a.json": json.dumps(rows_of_json)})
    assert rows(alone, "text", "label") == [("a", "sea"), ("b", "sky")]
    later = write(tmp_path / "later", {"b.tsv": "label\ttext\nsea\tc, d\nsky\te\n"})
    with pa_ipc.new_stream(f"{later}/d.arrow", (table := pa.table({"text": ["h"]})).schema) as it:
        it.write_table(table)
    feather.write_feather(pa.table({"text": ["i"], "label": ["sky"]}), f"{later}/e.feather")
    assert sorted(rows(later, "text", "label"), key=str) == [
        ("c, d", "sea"),
        ("e", "sky"),
        ("h", None),
        ("i", "sky"),
    ]
    folder = write(tmp_path / "csv", {"c.csv.gz": gzip.compress(b"text;label\nf, g;sea\nj;sky\n")})
    assert rows(folder, "text", "label") == [("f, g", "sea"), ("j", "sky")]
    config = dataset(source={"folder": folder})
    (fragment,) = sources.discover(config, {})
    assert sources.sniffed(fragment, {}) == [";"]
    named = FolderSource(folder=folder, delimiter=";")
    assert folders.identity(named, {}) == {
        **folders.identity(FolderSource(folder=folder), {}),
        "delimiter": ";",
    }


def test_what_lies_beside_files_that_were_read_ever_changes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "it", {"sea/a.md": "one\n\ntwo", "b.jsonl": '{"text": "three"}\n'})
    source = FolderSource(folder=folder)
    before = folders.identity(source, {}), rows(folder, *folders.COLUMNS), folders.aside(source, {})
    assert before[2] == ""
    assert list(before[0]["folder"]) == ["b.jsonl", "sea/a.md"]
    stray = {"notes.json": '"x"', "sea/index.tsv": "no text here", "c.arrow": "x", "d.feather": "x"}
    write(tmp_path / "it", {**stray, "e.json": "{}", "f.json.gz": "x"})
    after = folders.identity(source, {}), rows(folder, *folders.COLUMNS)
    assert after == before[:2]
    said = folders.aside(source, {})
    assert said.startswith("not read: c.arrow, d.feather, e.json, f.json.gz, notes.json and 1 more")


def test_what_datasets_saves_to_disk_is_read(tmp_path: Path) -> None:
    texts = {"text": ["a", "b", "c"], "label": ["sea", "sky", "sea"]}
    datasets.Dataset.from_dict(texts).save_to_disk(tmp_path / "one", num_shards=2)
    assert {each.suffix for each in (tmp_path / "one").iterdir()} == {".arrow", ".json"}
    assert sorted(rows(str(tmp_path / "one"), "text", "label")) == [
        *zip(*texts.values(), strict=True)
    ]
    parts = {"train": datasets.Dataset.from_dict(texts)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    assert sorted(rows(str(tmp_path / "parts"), "text")) == [("a",), ("b",), ("c",)]
    source = FolderSource(folder=str(tmp_path / "one"))
    assert "dataset_info.json, state.json (the folder has .arrow" in folders.aside(source, {})


def test_every_format_has_its_turn() -> None:
    turns = [ending for endings in folders._TURNS for ending in endings]
    assert sorted(turns) == sorted({*FORMATS, *folders._TEXTS})


def test_one_file_is_read_alone(tmp_path: Path) -> None:
    folder = write(
        tmp_path, {"a.txt": "one\n\ntwo", "b.csv": "body;text\nx;y\n", "sea/c.txt": "three"}
    )
    assert rows(f"{folder}/a.txt", "text", "file") == [("one", "a.txt"), ("two", "a.txt")]
    assert rows(f"{folder}/b.csv", "text", "file") == [("y", "b.csv")]
    assert rows(f"{folder}/sea/c.txt", "text", "label") == [("three", None)]
    identity = folders.identity(FolderSource(folder=f"{folder}/b.csv"), {})
    assert list(identity["folder"]) == ["b.csv"]
    assert quickcheck(f"{folder}/a.txt").datasets[0].tasks == ()
    text = "".join(f"{n},{('sea', 'sky')[n % 2]}\n" for n in range(40))
    task = task_of(f"{write(tmp_path, {'t.csv': f'text,label{chr(10)}{text}'})}/t.csv")
    assert task is not None
    assert task.label_column == "label"
    with pytest.raises(ConfigError, match=r"a\.pdf holds no texts: looked for \*\.txt"):
        rows(f"{write(tmp_path, {'a.pdf': 'x'})}/a.pdf", "text")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    lines = [json.dumps({"body": f"text {n}", "topic": "ab"[n % 2], "text": n}) for n in range(40)]
    folder = write(tmp_path, {"a.jsonl": "\n".join(lines), "b.txt": "a passage"})
    columns = {"text_column": "body", "label_column": "topic"}
    config = folders.with_folders(load("quickcheck"), folder, **columns)
    source = config.datasets[0].source
    assert isinstance(source, FolderSource)
    assert folders.read(source, {})["text"].to_pylist()[:3] == ["text 0", "text 1", "a passage"]
    assert [task.name for task in config.datasets[0].tasks] == ["label"]
    plain = folders.identity(FolderSource(folder=folder), {})
    assert folders.identity(source, {}) == {**plain, **columns}
    for given, expected in (
        ({"text_column": "bodi"}, r"a\.jsonl has no column 'bodi'; it has: .* mean body\?"),
        ({"text_column": "body", "label_column": "label"}, r"no column 'label'.*--label-column"),
    ):
        with pytest.raises(ConfigError, match=expected):
            folders.with_folders(load("quickcheck"), folder, **given)
    same = FolderSource(folder=folder, text_column="topic", label_column="topic")
    assert folders.read(same, {})["label"].to_pylist()[:2] == ["a", "b"]


def test_a_folder_is_read_as_every_other_source_is(tmp_path: Path) -> None:
    config = dataset(source={"folder": write(tmp_path, {"a.txt": "1\n\n2", "b.txt": "3"})})
    (fragment,) = sources.discover(config, {})
    assert sources.inspect(fragment, {}) == (3, list(folders.COLUMNS))
    (table,) = sources.read(fragment, ["text"], {})
    assert table.to_pydict() == {"text": ["1", "3", "2"], "row": [0, 1, 2]}
    before = sources.identity(config, {})
    (tmp_path / "b.txt").write_text("5")
    assert sources.identity(config, {}) != before


def test_a_link_may_not_leave_the_folder(tmp_path: Path) -> None:
    folder = Path(write(tmp_path / "mine", {"sea/a.txt": "one"}))
    (folder / "b.txt").symlink_to(folder / "sea" / "a.txt")
    assert rows(str(folder), "text", "file") == [("one", "b.txt"), ("one", "sea/a.txt")]
    secret = Path(write(tmp_path / "other", {"secret.txt": "hidden"})) / "secret.txt"
    for name, target in {"c.txt": secret, "more": secret.parent}.items():
        (folder / name).symlink_to(target)
        assert f"{name} is a link out of the folder {folder}, to {target}" in error_of(str(folder))
        (folder / name).unlink()


def test_texts_may_be_compressed_and_in_an_encoding_that_the_config_names(tmp_path: Path) -> None:
    folder = write(
        tmp_path, {"a.txt.gz": gzip.compress(b"caf\xe9\n\nth\xe9"), "b.md": b"\xe9t\xe9"}
    )
    table = folders.read(FolderSource(folder=folder, encoding="latin-1"), {})
    assert table["text"].to_pylist() == ["café", "été", "thé"]


def test_a_folder_may_be_a_prefix_in_object_storage(s3: S3) -> None:
    root = s3.root("texts")
    root.filesystem.call_s3("put_object", Bucket="layers", Key="texts/more.txt/", Body=b"")
    for name in ("sea/a.txt", "sky/b.txt"):
        root.write(name, b"one\n\ntwo")
    table = folders.read(FolderSource(folder=root.uri), dict(root.options))
    assert table["label"].to_pylist() == ["sea", "sky", "sea", "sky"]


def test_labels_become_a_classification_of_what_the_limit_leaves(tmp_path: Path) -> None:
    folder = write(tmp_path, {f"{label}/a.txt": passages(40, label) for label in ("sea", "sky")})
    # Of a limit of ten five are of each label, three of them for training.
    for limit, samples in ((None, 8), (10, 3)):
        task = task_of(folder, limit=limit)
        assert task is not None
        assert (task.name, task.label_column, task.split_column) == ("label", "label", "split")
        assert task.samples_per_label == samples
    assert task_of(folder, tasks=()) is None  # stated tasks stay


def test_without_labels_long_files_are_told_apart_and_short_ones_are_not(tmp_path: Path) -> None:
    counts = {"a": 20, "b": 16, "c": 15}
    folder = write(tmp_path, {f"{name}.txt": passages(n, name) for name, n in counts.items()})
    task = task_of(folder)
    assert task is not None
    assert (task.name, task.label_column) == ("file", "from_file")
    assert {name for (name,) in rows(folder, "from_file")} == {"a.txt", "b.txt", None}
    assert task_of(write(tmp_path / "alone", {"a.txt": passages(50, "a")})) is None


def error_of(folder: str, **changes: Any) -> str:  # noqa: ANN401
    with pytest.raises(ConfigError) as caught:
        quickcheck(folder, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"sea/a.txt": passages(9, "sea"), "sky/b.txt": "1\n\n2"},
            "label 'sky' has 2 of the 11 passages that are read, and 4 are needed",
        ),
        ({"a.txt": b"caf\xe9"}, "/a.txt is not UTF-8 text (byte 3)"),
        ({"a.csv": "text,label,text\nx,y,z\n"}, "a.csv has two columns 'text'"),
        ({"a.jsonl": '{"text": ["x"]}\n'}, "/a.jsonl, row 1: column 'text' holds a list"),
        (
            {"a.pdf": "x", ".b.txt": "hidden"},
            "*.parquet, *.json, *.tsv, *.arrow, *.feather; it has a.pdf",
        ),
        ({"a.csv": "body, text\nx,y\n"}, "a.csv has no column 'text'; it has: 'body', ' text'"),
        ({"a.json": "{}", "b.json": '"x"'}, "/b.json is a string, not rows"),
        ({"a.csv": b"\x89PNG\0"}, "/a.csv is no text: it begins like a PNG image"),
        ({"a.parquet.gz": b""}, "/a.parquet.gz is a compressed Parquet file"),
        ({}, "it does not exist; name one with --texts that holds *.txt"),
    ],
)
def test_errors_say_what_and_where(
    files: dict[str, str | bytes], expected: str, tmp_path: Path
) -> None:
    assert expected in error_of(write(tmp_path / "it", files))


def test_a_folder_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    folder = write(tmp_path / "texts", {"a.txt": "one"})
    assert error_of(str(tmp_path / "text")).endswith(f"; did you mean {folder}?")


def test_an_empty_and_a_large_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{tmp_path} is empty; name one with --texts that holds" in error_of(str(tmp_path))
    monkeypatch.setattr(folders, "_LARGEST", 1 << 20)
    folder = write(tmp_path, {"a.txt": "x" * (2 << 20)})
    assert "holds 2 MiB of texts, and at most 1 are read as a folder" in error_of(folder)


def test_texts_replace_the_one_folder_of_a_recipe(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.txt": "one"})
    assert folders.with_folders(load("pythia-410m")) == load("pythia-410m")
    for given in ({"texts": folder}, {"text_column": "body"}, {"label_column": "topic"}):
        with pytest.raises(ConfigError, match="pythia-410m has 0 datasets with `source"):
            folders.with_folders(load("pythia-410m"), **given)
