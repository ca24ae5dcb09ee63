"""Where texts come from: hub datasets, files, or the built-in corpus, cut into fragments to read.

A fragment is read by one task on any machine; its rows come out as text columns plus `row`, an
order key that is the same for any number of workers. A new kind of source is a block and a member
of `Source` in `jobs.config.datasets`, and an entry of KINDS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from layerrank.jobs.config import did_you_mean, did_you_mean_path
from layerrank.jobs.config.blocks import Block, ConfigError
from layerrank.jobs.config.datasets import (
    BuiltinSource,
    DatasetConfig,
    FileSource,
    FolderSource,
    Format,
    HubSource,
    MtebSource,
)
from layerrank.jobs.prepare import docstrings, files, folders
from layerrank.jobs.prepare.decoded import ending
from layerrank.jobs.prepare.files import File, Options, as_strings
from layerrank.storage.checkpoint import some
from layerrank.storage.root import AddressError, fingerprint, resolve
from layerrank.storage.schema import ROW_BITS

_SHOWN = 20  # configurations of a hub dataset that an error lists
_FILES_LOOKED_AT = 64  # to say how large a source is before it is read
_LINES_LOOKED_AT = 1 << 26  # bytes of files whose rows no footer tells
_SLICE = 20_000  # rows that one task reads of a source that can be read from any row
_FOLDER_MARKERS = ("/", "_$folder$")  # how the names of objects end that stand for a folder
_PASSAGE_COLUMNS = ("text", "summary", "library", "module", "name")


@dataclass(frozen=True)
class Fragment:
    """A part of a source: rows `start` to `stop` (None = the end) of one file, split or library."""

    source: Any  # a block of Source; the functions of its kind know which
    location: str
    index: int
    start: int = 0
    stop: int | None = None
    texts: tuple[str, ...] = ()  # the columns whose values have to be texts

    @property
    def file(self) -> File:
        """The file that it is a part of, if its source is of files."""
        return _file(self.source, self.location, self.texts)


@dataclass(frozen=True)
class Kind:
    """How a kind of source is found, told from another and read.

    Of the source's block, `locations` names the whole fragments, and `identity` says what their
    rows depend on. `inspect` gives the number of rows (or their most) and the columns, `tables`
    yields them as text: from row `start` of a `sliced` source, of others from the first. What is
    small has one `table` a fragment instead. `sniffed` are the delimiters of its CSV that no
    config names, `aside` says which files are not read. `most_rows` bounds all rows from a look, or
    is None.
    """

    locations: Callable[[Any, DatasetConfig, Options], list[str]]
    identity: Callable[[Any, list[str], Options], dict[str, Any]]
    inspect: Callable[[Fragment, Options], tuple[int, list[str]]] | None = None
    tables: Callable[[Fragment, Sequence[str], Options], Iterator[pa.Table]] | None = None
    sniffed: Callable[[Fragment, Options], list[str]] = lambda *_: []
    aside: Callable[[Any, Options], str] = lambda *_: ""
    table: Callable[[Fragment, Options], pa.Table] = lambda *_: pa.table({})
    most_rows: Callable[[Sequence[Fragment], Options], int | None] = lambda *_: None
    sliced: bool = False
    stated: bool = False  # `inspect` reads nothing


def discover(dataset: DatasetConfig, options: Options) -> list[Fragment]:
    """Return the whole fragments of a dataset: one per file, hub split or library."""
    source = dataset.source
    try:
        locations = KINDS[type(source)].locations(source, dataset, options)
    except (ConfigError, AddressError) as error:
        raise ConfigError(f"dataset {dataset.name}: {error}") from error
    texts = dataset.text_columns
    stop = dataset.limit  # none needs more rows
    return [Fragment(source, at, n, 0, stop, texts) for n, at in enumerate(locations)]


def identity(dataset: DatasetConfig, options: Options) -> dict[str, Any]:
    """Return what the rows depend on: file contents, hub revision or package versions."""
    locations = [each.location for each in discover(dataset, options)]
    return KINDS[type(dataset.source)].identity(dataset.source, locations, options)


def cut(
    fragments: Sequence[Fragment], rows: Sequence[int], limit: int | None
) -> tuple[list[Fragment], int]:
    """Return the fragments to read and how many rows that is: at most `limit`, in source order.

    `rows` are the lengths of the whole fragments. Hub splits are cut into slices.
    """
    left = total = sum(rows) if limit is None else min(limit, sum(rows))
    parts: list[Fragment] = []
    for fragment, length in zip(fragments, rows, strict=True):
        take = min(length, left)
        step = _SLICE if KINDS[type(fragment.source)].sliced else max(take, 1)
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
    return KINDS[type(dataset.source)].most_rows(discover(dataset, options), options)


def inspect(fragment: Fragment, options: Options) -> tuple[int, list[str]]:
    """Return the number of rows of a whole fragment (a library: at most), and its columns."""
    kind = KINDS[type(fragment.source)]
    if kind.inspect:
        return kind.inspect(fragment, options)
    table = kind.table(fragment, options)
    return table.num_rows, table.column_names


def sniffed(fragment: Fragment, options: Options) -> list[str]:
    """Return the delimiter of every CSV of a whole fragment that the config does not name."""
    return KINDS[type(fragment.source)].sniffed(fragment, options)


def read(fragment: Fragment, columns: Sequence[str], options: Options) -> Iterator[pa.Table]:
    """Yield the rows of a fragment as tables of string columns (null kept) and `row`."""
    kind, stop = KINDS[type(fragment.source)], fragment.stop
    position = fragment.start if kind.sliced else 0
    for table in (
        kind.tables(fragment, columns, options)
        if kind.tables
        else [kind.table(fragment, options).select(list(columns))]
    ):
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
    """Raise ConfigError if a column that the config names is not, or not once, among `found`."""
    again = [column for column in dataset.columns if found.count(column) > 1]
    if again:
        raise ConfigError(
            f"dataset {dataset.name}: {fragment.location} has two columns {again[0]!r}; rename one"
        )
    absent, columns = [], [column for column in dataset.columns if column not in found]
    for column in columns:
        keys = [
            f"{key} of task {task.name}"
            for task in dataset.tasks
            for key in type(task).model_fields
            if key.endswith("_column") and getattr(task, key) == column
        ]
        absent.append(repr(column) + (f" ({', '.join(keys)})" if keys else ""))
    if absent:
        raise ConfigError(
            f"dataset {dataset.name}: {fragment.location} has no column {', '.join(absent)}; it "
            f"has: {', '.join(map(repr, found))}{did_you_mean(columns[0], found)}"
        )


def _sum(fragments: Sequence[Fragment], options: Options) -> int:
    return sum(inspect(fragment, options)[0] for fragment in fragments)


@lru_cache(maxsize=8)
def _library(source: BuiltinSource, name: str) -> pa.Table:
    passages = docstrings.read_library(name, source.per_library)
    columns = {name: [getattr(passage, name) for passage in passages] for name in _PASSAGE_COLUMNS}
    return as_strings(pa.table(columns))


@lru_cache(maxsize=1)
def _mteb_texts(source: MtebSource, task: str) -> pa.Table:
    """Return the texts that a task encodes, each as what; counting and reading follow."""
    from layerrank.operators.benchmark.score import recorded  # noqa: PLC0415  (imports mteb, seconds)

    found = recorded(task, source.modules)
    texts, asked = ([each[place] for each in found] for place in (0, 1))
    columns = {"text": texts, "task": [task] * len(texts), "prompt_type": asked}
    return as_strings(pa.table(columns))


@lru_cache(maxsize=8)
def _hub_split(source: HubSource, location: str) -> Any:  # noqa: ANN401  (datasets ships no types)
    import datasets  # noqa: PLC0415  (slow to import, and only hub sources need it)

    name, _, split = location.partition(":")
    try:
        return datasets.load_dataset(name, source.config, split=split, revision=source.revision)
    except Exception as error:  # whatever the code that builds a dataset raises
        _require_configuration(source)
        causes = dict.fromkeys(str(each) for each in (error, error.__cause__) if each)
        reason = " ".join(": ".join(causes).split()) or type(error).__name__
        raise ConfigError(f"cannot load hub dataset {name} ({split}): {reason}") from error


def _require_configuration(source: HubSource) -> None:
    """ConfigError that lists the configurations of a hub dataset, if it has not the one asked for.

    Where they cannot be listed, what failed before says more.
    """
    import datasets  # noqa: PLC0415  (as in `_hub_split`)

    known, default = list[str](), ""
    with suppress(Exception):
        default = datasets.get_dataset_default_config_name(source.hub, revision=source.revision)
        known = datasets.get_dataset_config_names(source.hub, revision=source.revision)
    shown = some(known, _SHOWN)
    if known and source.config is None and default is None:
        raise ConfigError(
            f"hub dataset {source.hub} has several configurations, {shown}: name one, as in "
            f"`source: {{hub: {source.hub}, config: {known[0]}}}`"
        )
    if known and source.config is not None and source.config not in known:
        raise ConfigError(
            f"hub dataset {source.hub} has no configuration {source.config!r}; it has {shown}"
            f"{did_you_mean(source.config, known)}"
        )


def _inspect_hub(fragment: Fragment, _options: Options) -> tuple[int, list[str]]:
    data = _hub_split(fragment.source, fragment.location)
    return len(data), list(dict.fromkeys([*data.column_names, "split"]))


def _read_hub(fragment: Fragment, columns: Sequence[str], _options: Options) -> Iterator[pa.Table]:
    with files.readable(fragment.location, "hub"):
        data = _hub_split(fragment.source, fragment.location)
        rows = range(len(data))[fragment.start : fragment.stop]
        own = [column for column in columns if column in data.column_names]
        table = data.select(rows).select_columns(own).with_format("arrow")[:]
        table = as_strings(table, fragment.texts, f"hub dataset {fragment.location}")
        if "split" in columns and "split" not in own:
            split = fragment.location.partition(":")[2].partition("[")[0]  # train of train[:10%]
            table = table.append_column("split", pa.array([split] * table.num_rows))
        yield table.select(list(columns))


def _file(source: FileSource, location: str, texts: tuple[str, ...] = ()) -> File:
    kind = files.FORMATS.get(ending(location)) if source.format == "auto" else source.format
    if kind is None:
        raise ConfigError(
            f"cannot tell the format of {location} from its name; say source.format: "
            f"{', '.join(get_args(Format))}"
        )
    return File(kind, location, source.encoding, texts, source.delimiter)


def _files(source: FileSource, _dataset: DatasetConfig, options: Options) -> list[str]:
    found: list[str] = []
    for pattern in source.files:
        filesystem, path = resolve(pattern, options)
        matches = [path]
        if not filesystem.isfile(path):
            listed = filesystem.glob(path, detail=True).items()
            matches = sorted(
                match
                for match, facts in listed
                if facts["type"] == "file" and not match.endswith(_FOLDER_MARKERS)
            )
        if not matches and "://" not in pattern and Path(path).is_dir():
            raise ConfigError(
                f"there is no file {pattern}, but a folder: name the files in it, such as "
                f"{pattern.rstrip('/')}/*.parquet, or give `source: {{folder: …}}`"
            )
        if not matches and "://" not in pattern and Path(path).exists():
            raise ConfigError(f"{pattern} is no file of data, but a pipe or a device")
        if not matches:
            raise ConfigError(f"there is no file {pattern}{did_you_mean_path(pattern)}")
        # Of the web a path is a whole address.
        scheme = "".join(pattern.rpartition("://")[:2]) if "://" not in matches[0] else ""
        found += [_file(source, f"{scheme}{match}").location for match in matches]
    if source.delimiter and not any(_file(source, each).kind in ("csv", "tsv") for each in found):
        raise ConfigError(f"`delimiter` is of CSV and TSV, and {found[0]} is neither")
    return found


def _file_identity(source: FileSource, paths: list[str], options: Options) -> dict[str, Any]:
    return {
        "files": [file.rsplit("/", 1)[-1] for file in paths],
        "formats": [_file(source, file).kind for file in paths],
        "fingerprints": [fingerprint(file, options) for file in paths],
        **files.how_read(source),
    }


def _most_lines(fragments: Sequence[Fragment], options: Options) -> int | None:
    """Return the rows of a few files: of Parquet by its footer, of others by their first lines."""
    if len(fragments) > _FILES_LOOKED_AT:
        return None
    footers = [each for each in fragments if each.file.kind == "parquet"]
    lines = [each.file for each in fragments if each.file.kind != "parquet"]
    if sum(files.size(file, options) for file in lines) > _LINES_LOOKED_AT:
        return None
    # The last line may not end.
    return _sum(footers, options) + sum(files.estimate_rows(file, options) + 1 for file in lines)


KINDS: dict[type[Block], Kind] = {
    BuiltinSource: Kind(
        locations=lambda *_: list(docstrings.LIBRARIES),
        identity=lambda source, *_: {**source.settings(), "versions": docstrings.versions()},
        inspect=lambda part, _: (part.source.per_library, list(_PASSAGE_COLUMNS)),
        table=lambda part, _: _library(part.source, part.location),
        most_rows=_sum,
        stated=True,
    ),
    HubSource: Kind(
        locations=lambda source, *_: [
            f"{source.hub}:{split.strip()}" for split in source.split.split("+")
        ],
        identity=lambda source, *_: source.settings(),
        inspect=_inspect_hub,
        tables=_read_hub,
        sliced=True,
    ),
    FileSource: Kind(
        locations=_files,
        identity=_file_identity,
        inspect=lambda part, options: files.inspect_file(part.file, options, part.stop),
        tables=lambda part, columns, options: files.read_file(
            part.file, columns, options, part.stop
        ),
        sniffed=lambda part, options: files.sniffed(part.file, options),
        most_rows=_most_lines,
    ),
    FolderSource: Kind(
        locations=lambda source, *_: [source.folder],
        identity=lambda source, _, options: folders.identity(source, options),
        table=lambda part, options: folders.read(part.source, options),
        sniffed=lambda part, options: folders.sniffed(part.source, options),
        aside=folders.aside,
        most_rows=_sum,
    ),
    MtebSource: Kind(
        locations=lambda _, dataset, __: [task.name for task in dataset.tasks],
        identity=lambda source, tasks, _: {
            "tasks": tasks,
            "modules": list(source.modules),
            "mteb": version("mteb"),
        },
        table=lambda part, _: _mteb_texts(part.source, part.location),
    ),
}
