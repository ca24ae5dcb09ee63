"""A folder of somebody's own texts, or one file, as a source, and the simple task that it brings.

Text files are cut into passages at blank lines; tables bring a column `text` and may bring `label`,
or those that the config names instead. Otherwise the first level of subfolders is the label. Tables
of later kinds are read only where there is nothing else, so that a folder is read as ever.
Passages of different labels (without labels, of different files) take turns, so that a limit leaves
some of each.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from layerrank.jobs.config import did_you_mean, did_you_mean_path
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import ClassificationTask, DatasetConfig, FolderSource
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.prepare import files
from layerrank.jobs.prepare.decoded import ending
from layerrank.jobs.prepare.files import FORMATS, File, Options, inspect_file, read_file
from layerrank.storage.root import AddressError, Root, fingerprint, resolve

FROM_FILE = "from_file"  # the label of a task where there is no other
COLUMNS = ("text", "label", "file", FROM_FILE, "split")
_TEXTS = (".txt", ".md")
_TABLES = [ending for ending in FORMATS if ending not in _TEXTS]
# Of a folder with files of several of these only the first are read: those that came later, and
# then what often lies beside tables without being one (notes.json, dataset_info.json).
_TURNS = (
    (*_TEXTS, ".parquet", ".jsonl", ".ndjson", ".csv"),
    (".tsv", ".arrow", ".feather"),
    (".json",),
)
_LARGEST = 1 << 28  # decoded bytes: one task holds all of a folder, to let the labels take turns
_ENOUGH = 16  # passages of a file that is to be told from others
_FEWEST = 2  # training passages of a label
_MOST_EXAMPLES = 8  # per label and fold, as the protocol has it
_BLANK = re.compile(r"\n[^\S\n]*\n\s*")
_SHOWN = 5


class _Passage(NamedTuple):
    text: str | None
    label: str | None
    file: str


def with_folders(
    config: RunConfig,
    texts: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> RunConfig:
    """Return the config with `texts` as its folder, and with the task that each folder brings.

    The columns are those of its tables. A dataset that states its `tasks` keeps them. ConfigError
    if there is no folder to replace, if a folder cannot be read, or if one of its labels has too
    few passages.
    """
    folders = sum(isinstance(each.source, FolderSource) for each in config.datasets)
    given = {"folder": texts, "text_column": text_column, "label_column": label_column}
    other = {key: value for key, value in given.items() if value is not None}
    if other and folders != 1:
        raise ConfigError(
            "--texts, --text-column and --label-column are of the folder of a dataset, and "
            f"{config.name} has {folders} datasets with `source: {{folder: …}}`; the recipe "
            "quickcheck has one"
        )
    datasets = []
    for each in config.datasets:
        changes: dict[str, Any] = {}
        if isinstance(each.source, FolderSource):
            kept = each.source.model_dump(exclude_unset=True)
            source = FolderSource(**{**kept, **other})
            changes["source"] = source
            if "tasks" not in each.model_fields_set:
                try:
                    passages = read(source, config.storage.options())
                    changes["tasks"] = _tasks(each, passages)
                except (ConfigError, AddressError) as error:
                    raise ConfigError(f"dataset {each.name}: {error}") from error
        datasets.append(each.model_copy(update=changes))
    return config.model_copy(update={"datasets": tuple(datasets)})


def identity(source: FolderSource, options: Options) -> dict[str, Any]:
    """Return what the passages of a folder depend on: its files, by path and content."""
    found = _files(source.folder, options)[0].items()
    columns = source.settings(include={"text_column", "label_column"})
    return {
        "folder": {name: fingerprint(address, options) for name, address in found},
        **columns,
        **files.how_read(source),
    }


def sniffed(source: FolderSource, options: Options) -> list[str]:
    """Return the delimiter of every CSV of a folder whose config names none."""
    found = (_file(source, address) for address in _files(source.folder, options)[0].values())
    return [each for file in found for each in files.sniffed(file, options)]


def aside(source: FolderSource, options: Options) -> str:
    """Say which texts or tables of a folder are not read, since it has others that go before."""
    found, names = _files(source.folder, options)
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    before = ", ".join(sorted({ending(name) for name in found}))
    return (
        f"not read: {', '.join(names[:_SHOWN])}{more} (the folder has {before}, which go before; "
        "what is to be read needs a folder of its own, or is named alone)"
    )


def read(source: FolderSource, options: Options) -> pa.Table:
    """Return the passages of a folder as a table of text columns, COLUMNS, in a fixed order.

    `label` is null without labels; `file` is the path within the folder, and `from_file` the same
    for files with enough passages to tell them apart; `split` alternates between train and test
    within a label or file. ConfigError for a folder without texts, a file that cannot be read, or
    a link that leaves the folder.
    """
    found, left = list[_Passage](), _LARGEST
    for name, address in _files(source.folder, options)[0].items():
        for each in _passages(name, _file(source, address), source, options, left):
            found.append(each)
            left -= len((each.text or "").encode())
            if left < 0:
                raise _too_large(source.folder)
    if len({each.label for each in found if each.label}) < 2:  # noqa: PLR2004 - one is no choice
        found = [each._replace(label=None) for each in found]
    parts: dict[str, list[_Passage]] = defaultdict(list)
    for each in found:
        parts[each.label or each.file].append(each)
    lengths = Counter(each.file for each in found)
    sides = ("train", "test")
    split = {each.text: sides[n % 2] for part in parts.values() for n, each in enumerate(part)}
    rows = [
        {
            **each._asdict(),
            "from_file": each.file if lengths[each.file] >= _ENOUGH else None,
            "split": split[each.text],
        }
        for turn in zip_longest(*parts.values())
        for each in turn
        if each is not None
    ]
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.large_string()) for name in COLUMNS]))


def _tasks(dataset: DatasetConfig, passages: pa.Table) -> tuple[ClassificationTask, ...]:
    """Return the task that the passages allow: their label, else their file, else none."""
    rows = [
        row
        for row in passages[: dataset.limit].to_pylist()
        if dataset.skipped(dataset.text_column, row["text"]) is None
    ]
    for column in ("label", "from_file"):
        counts = Counter((row[column], row["split"]) for row in rows if row[column])
        names = sorted({name for name, _ in counts})
        if len(names) < 2:  # noqa: PLR2004 - one is no choice
            continue
        rarest = min(names, key=lambda name: (counts[name, "train"], name))
        examples = counts[rarest, "train"]
        if examples >= _FEWEST:
            task = ClassificationTask(
                name="label" if column == "label" else "file",
                type="classification",
                label_column=column,
                split_column="split",
                samples_per_label=min(examples, _MOST_EXAMPLES),
            )
            return (task,)
        if column == "label":
            total = counts[rarest, "train"] + counts[rarest, "test"]
            raise ConfigError(
                f"label {rarest!r} has {total} of the {len(rows):,} passages that are read, and "
                f"{2 * _FEWEST} are needed to learn it and to test it; add texts, raise `limit`, "
                "or take that label out of the folder"
            )
    return ()


def _files(folder: str, options: Options) -> tuple[dict[str, str], list[str]]:
    """Return the files to read, path within -> address, and those that these go before.

    ConfigError for none, or far too much.
    """
    filesystem, path = resolve(folder, options)
    wanted = ", ".join(f"*{ending}" for ending in (*_TEXTS, *_TABLES))
    if filesystem.isfile(path):
        listed = {path: filesystem.info(path)}
        path = path.rpartition("/")[0]
    else:
        listed = filesystem.find(path, detail=True) if filesystem.isdir(path) else {}
    if not listed:
        state = "is empty" if filesystem.isdir(path) else "does not exist"
        raise ConfigError(
            f"the folder {folder} {state}; name one with --texts that holds {wanted}, or one such "
            f"file{'' if filesystem.isdir(path) else did_you_mean_path(folder)}"
        )
    protocol, separator, _ = folder.rpartition("://")
    is_local = Root(folder).is_local
    turns, others, sizes = [dict[str, str]() for _ in _TURNS], [], dict[str, int]()
    for address, facts in sorted(listed.items()):
        name = address.removeprefix(path).strip("/")
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if is_local and not (target := Path(address).resolve()).is_relative_to(path):
            raise ConfigError(
                f"{name} is a link out of the folder {folder}, to {target}: remove it"
            )
        sizes[name] = int(facts["size"] or 0)
        for files_of_turn, endings in zip(turns, _TURNS, strict=True):
            if ending(name) in endings:
                files_of_turn[name] = f"{protocol}{separator}{address}"
                break
        else:
            others.append(name)
    found, *rest = [each for each in turns if each] or [{}]
    if not found:
        seen = f"; it has {', '.join(others[:_SHOWN])}" if others else ""
        raise ConfigError(f"{folder} holds no texts: looked for {wanted}{seen}")
    size = sum(sizes[name] for name in found)
    if size > _LARGEST:
        raise _too_large(folder, size)
    return found, sorted(name for each in rest for name in each)


def _file(source: FolderSource, address: str) -> File:
    kind = FORMATS.get(ending(address), "text")
    return File(kind, address, source.encoding, (source.text_column,), source.delimiter)


def _too_large(folder: str, size: int = 0) -> ConfigError:
    told = f"{size / 2**20:,.0f} MiB" if size else f"more than {_LARGEST >> 20} MiB, decompressed,"
    return ConfigError(
        f"{folder} holds {told} of texts, and at most {_LARGEST >> 20} are read as a folder; give "
        "larger corpora as `source: {files: …}`, with a limit"
    )


def _passages(
    name: str, file: File, source: FolderSource, options: Options, most: int
) -> Iterator[_Passage]:
    """Yield the passages of a file; its first folder is the label, unless its rows have one.

    ConfigError if a text file has more than `most` bytes.
    """
    folder, inside, _ = name.partition("/")
    label = folder if inside else None
    if ending(name) in _TABLES:
        count, columns = inspect_file(file, options)
        named = {"--text-column": source.text_column, "--label-column": source.label_column}
        for option, column in named.items():
            if count and column and column not in columns:
                raise ConfigError(
                    f"{name} has no column {column!r}; it has: {', '.join(map(repr, columns))}"
                    f"{did_you_mean(column, columns)} ({option} names another)"
                )
        wanted = [source.text_column, source.label_column or "label"]
        for column in wanted:
            if columns.count(column) > 1:
                raise ConfigError(f"{name} has two columns {column!r}; rename one")
        wanted = [column for column in dict.fromkeys(wanted) if column in columns]
        for part in read_file(file, wanted, options) if count else ():
            for row in part.to_pylist():
                found = row.get(source.label_column or "label", label)
                yield _Passage(row[source.text_column], found, name)
        return
    with file.stream(options) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise _too_large(source.folder)
    text = str(content, "utf-8")
    del content
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    for passage in _BLANK.split(lines):
        if passage.strip():
            yield _Passage(passage.strip(), label, name)
