"""Where texts come from: hub datasets, files, or the built-in corpus, cut into fragments to read.

A fragment is read by one task on any machine; its rows come out as text columns plus `row`, an
order key that is the same for any number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from jobs.config.blocks import ConfigError
from jobs.config.datasets import (
    BuiltinSource,
    DatasetConfig,
    FileSource,
    FolderSource,
    HubSource,
    MtebSource,
)
from jobs.prepare import docstrings, folders
from jobs.prepare.files import (
    FORMATS,
    File,
    Options,
    as_strings,
    estimate_rows,
    inspect_file,
    options_for,
    read_file,
    readable,
    size,
)
from storage.root import fingerprint, resolve
from storage.schema import ROW_BITS

_FILES_LOOKED_AT = 64  # to say how large a source is before it is read
_LINES_LOOKED_AT = 1 << 26  # bytes of files whose rows no footer tells
_COUNTED = ("docstrings", "folder", "parquet")  # kinds of fragments that state their rows
_HUB_SLICE = 20_000  # rows that one task reads of a hub dataset
_PASSAGE_COLUMNS = ("text", "summary", "library", "module", "name")


@dataclass(frozen=True)
class Fragment:
    """A part of a source: rows `start` to `stop` (None = the end) of one file, split or library."""

    kind: str
    location: str
    index: int
    start: int = 0
    stop: int | None = None
    detail: str = ""

    @property
    def file(self) -> File:
        """The file that it is a part of."""
        return File(self.kind, self.location)


def discover(dataset: DatasetConfig, options: Options) -> list[Fragment]:
    """Return the whole fragments of a dataset: one per file, hub split or library."""
    source = dataset.source
    if isinstance(source, BuiltinSource):
        libraries = [import_name for _, import_name in docstrings.LIBRARIES]
        limit = str(source.per_library)
        return [
            Fragment("docstrings", name, index, detail=limit)
            for index, name in enumerate(libraries)
        ]
    if isinstance(source, HubSource):
        detail = json.dumps([source.config, source.revision])
        splits = [split.strip() for split in source.split.split("+")]
        return [
            Fragment("hub", f"{source.hub}:{split}", index, detail=detail)
            for index, split in enumerate(splits)
        ]
    if isinstance(source, MtebSource):
        detail = json.dumps(source.modules)
        names = [task.name for task in dataset.tasks]
        return [Fragment("mteb", name, index, detail=detail) for index, name in enumerate(names)]
    if isinstance(source, FolderSource):
        return [Fragment("folder", source.folder, 0)]
    return [
        Fragment(_format(dataset, source, file), file, index)
        for index, file in enumerate(_files(dataset, source, options))
    ]


def identity(dataset: DatasetConfig, options: Options) -> dict[str, Any]:
    """Return what the rows depend on: file contents, hub revision or package versions."""
    source = dataset.source
    if isinstance(source, BuiltinSource):
        return {**source.model_dump(), "versions": docstrings.versions()}
    if isinstance(source, HubSource):
        return source.model_dump()
    if isinstance(source, MtebSource):
        names = [task.name for task in dataset.tasks]
        return {"tasks": names, "modules": list(source.modules), "mteb": version("mteb")}
    if isinstance(source, FolderSource):
        return folders.identity(source.folder, options)
    files = _files(dataset, source, options)
    prints = [fingerprint(file, options_for(file, options)) for file in files]
    return {
        "files": [file.rsplit("/", 1)[-1] for file in files],
        "formats": [_format(dataset, source, file) for file in files],
        "fingerprints": prints,
    }


def cut(
    fragments: Sequence[Fragment], rows: Sequence[int], limit: int | None
) -> tuple[list[Fragment], int]:
    """Return the fragments to read and how many rows that is: at most `limit`, in source order.

    `rows` are the lengths of the whole fragments. Hub splits are cut into slices.
    """
    left = sum(rows) if limit is None else min(limit, sum(rows))
    total = left
    parts: list[Fragment] = []
    for fragment, length in zip(fragments, rows, strict=True):
        take = min(length, left)
        step = _HUB_SLICE if fragment.kind == "hub" else max(take, 1)
        parts += [
            replace(fragment, start=start, stop=min(start + step, take))
            for start in range(0, take, step)
        ]
        left -= take
    return parts, total


def most_rows(dataset: DatasetConfig, options: Options) -> int | None:
    """Return about how many rows a dataset has at most; None if sizes and footers do not say.

    Those of a hub dataset and of mteb are not at hand, and many files are not opened for this.
    """
    if dataset.limit is not None:
        return dataset.limit
    if isinstance(dataset.source, (HubSource, MtebSource)):
        return None
    fragments = discover(dataset, options)
    if len(fragments) > _FILES_LOOKED_AT:
        return None
    lines = [each for each in fragments if each.kind not in _COUNTED]
    if sum(size(each.file, options) for each in lines) > _LINES_LOOKED_AT:
        return None
    return sum(_most_rows(fragment, options) for fragment in fragments)


def _most_rows(fragment: Fragment, options: Options) -> int:
    if fragment.kind in _COUNTED:
        return inspect(fragment, options)[0]
    return estimate_rows(fragment.file, options) + 1  # the last line may not end


def inspect(fragment: Fragment, options: Options) -> tuple[int, list[str]]:
    """Return the number of rows of a whole fragment (a library: at most), and its columns."""
    if fragment.kind == "docstrings":
        return int(fragment.detail), list(_PASSAGE_COLUMNS)
    if fragment.kind == "mteb":
        return len(_mteb_texts(fragment.location, fragment.detail)), ["text", "task"]
    if fragment.kind == "hub":
        data = _hub_split(fragment.location, fragment.detail)
        columns = list(data.column_names)
        return len(data), columns if "split" in columns else [*columns, "split"]
    if fragment.kind == "folder":
        table = folders.read(fragment.location, options)
        return table.num_rows, table.column_names
    return inspect_file(fragment.file, options)


def read(fragment: Fragment, columns: Sequence[str], options: Options) -> Iterator[pa.Table]:
    """Yield the rows of a fragment as tables of string columns (null kept) and `row`."""
    position = fragment.start if fragment.kind == "hub" else 0  # hub slices are read directly
    stop = fragment.stop
    for table in _tables(fragment, columns, options):
        first = max(fragment.start - position, 0)
        last = table.num_rows if stop is None else min(table.num_rows, stop - position)
        if first < last:
            base = (fragment.index << ROW_BITS) + position
            rows = pa.array(range(base + first, base + last), pa.int64())
            yield table.slice(first, last - first).append_column("row", rows)
        position += table.num_rows
        if stop is not None and position >= stop:
            return


def require_columns(dataset: DatasetConfig, fragment: Fragment, found: Sequence[str]) -> None:
    """Raise ConfigError if a column that the config names is not among those `found`."""
    absent = [column for column in dataset.columns if column not in found]
    if absent:
        raise ConfigError(
            f"dataset {dataset.name}: {fragment.location} has no column "
            f"{', '.join(_named(dataset, column) for column in absent)}; it has: {', '.join(found)}"
        )


def _named(dataset: DatasetConfig, column: str) -> str:
    """Return a column with the keys of the tasks that name it."""
    keys = [
        f"{key} of task {task.name}"
        for task in dataset.tasks
        for key in type(task).model_fields
        if key.endswith("_column") and getattr(task, key) == column
    ]
    return repr(column) + (f" ({', '.join(keys)})" if keys else "")


def _tables(fragment: Fragment, columns: Sequence[str], options: Options) -> Iterator[pa.Table]:
    if fragment.kind == "docstrings":
        yield _library(fragment).select(list(columns))
        return
    if fragment.kind == "hub":
        with readable(fragment.file):
            yield from _read_hub(fragment, columns)
        return
    if fragment.kind == "mteb":
        texts = _mteb_texts(fragment.location, fragment.detail)
        table = pa.table({"text": texts, "task": [fragment.location] * len(texts)})
        yield as_strings(table.select(list(columns)))
        return
    if fragment.kind == "folder":
        yield folders.read(fragment.location, options).select(list(columns))
        return
    yield from read_file(fragment.file, columns, options)


def _read_hub(fragment: Fragment, columns: Sequence[str]) -> Iterator[pa.Table]:
    data = _hub_split(fragment.location, fragment.detail)
    stop = len(data) if fragment.stop is None else fragment.stop
    own = [column for column in columns if column in data.column_names]
    table = as_strings(
        data.select(range(fragment.start, stop)).select_columns(own).with_format("arrow")[:]
    )
    if "split" in columns and "split" not in own:
        split = fragment.location.partition(":")[2].partition("[")[0]  # train of train[:10%]
        table = table.append_column("split", pa.array([split] * table.num_rows))
    yield table.select(list(columns))


@lru_cache(maxsize=1)
def _mteb_texts(task: str, detail: str) -> list[str]:
    """Return the texts that a task encodes; counting and reading them follow one another."""
    from operators.benchmark.score import recorded_texts  # noqa: PLC0415  (imports mteb, seconds)

    return recorded_texts(task, json.loads(detail))


@lru_cache(maxsize=8)
def _hub_split(location: str, detail: str) -> Any:  # noqa: ANN401  (datasets ships no types)
    import datasets  # noqa: PLC0415  (slow to import, and only hub sources need it)

    name, _, split = location.partition(":")
    config, revision = json.loads(detail)
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot load hub dataset {name} ({split}): {reason}") from error


@lru_cache(maxsize=8)
def _library(fragment: Fragment) -> pa.Table:
    passages = docstrings.read_library(fragment.location, int(fragment.detail))
    columns = {name: [getattr(passage, name) for passage in passages] for name in _PASSAGE_COLUMNS}
    return as_strings(pa.table(columns))


def _files(dataset: DatasetConfig, source: FileSource, options: Options) -> list[str]:
    found: list[str] = []
    for pattern in source.files:
        filesystem, path = resolve(pattern, options_for(pattern, options))
        matches = [path] if filesystem.isfile(path) else _matches(filesystem, path)
        if not matches:
            raise ConfigError(f"dataset {dataset.name}: there is no file {pattern}")
        protocol, separator, _ = pattern.rpartition("://")
        found += [f"{protocol}{separator}{match}" for match in matches]
    return found


def _matches(filesystem: Any, pattern: str) -> list[str]:  # noqa: ANN401
    found = filesystem.glob(pattern, detail=True)
    return sorted(path for path, facts in found.items() if facts["type"] == "file")


def _format(dataset: DatasetConfig, source: FileSource, file: str) -> str:
    if source.format != "auto":
        return source.format
    ending = "." + file.rsplit(".", 1)[-1].lower()
    if ending not in FORMATS:
        raise ConfigError(
            f"dataset {dataset.name}: cannot tell the format of {file} from its name; "
            "say source.format: parquet, jsonl, csv or text"
        )
    return FORMATS[ending]
