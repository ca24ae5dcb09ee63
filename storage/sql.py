"""SQL over the tables: DuckDB views that hold exactly what the manifests make visible."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import duckdb
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractBufferedFile

from layerrank.storage import schema
from layerrank.storage.layers import features
from layerrank.storage.manifest import Manifest, everything
from layerrank.storage.partition import ALERTS, KEYS, TableName
from layerrank.storage.readers import views
from layerrank.storage.root import Root
from layerrank.storage.shards import DamagedError

# Of the settings of `prompt_metrics`, what says nothing of its columns.
_CONTENT = ("subject", "prompts", "tokens")
_TAIL_BYTES = 1 << 16  # which most footers fit in
_MOST_TAILS = 1024
_AHEAD_BYTES = 1 << 16


def connect(root: Root) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB with one view per table that has a complete partition.

    The partition keys are text columns of the views, from the folders below the table's own:
    whatever lies above names no column. Shards of an unfinished partition are not in the views.
    Beside them stand those of `readers.views`, for analysts. Before it is asked for no shard is
    opened, as what a table's columns are is known; but of a model one index, for its features.
    FileNotFoundError if the root holds no complete partition at all.
    """
    connection = duckdb.connect()
    complete: dict[TableName, list[Manifest]] = {}
    for manifest in everything(root):
        if manifest.receipts and not (manifest.withdrawn or manifest.removed):
            complete.setdefault(manifest.partition.table, []).append(manifest)
    if not complete:
        raise FileNotFoundError(f"no complete table under {root.uri}: run `layerrank run` first")
    if not root.is_local:
        sizes = {
            root.path(manifest.partition.shard(receipt.name)): receipt.bytes
            for manifests in complete.values()
            for manifest in manifests
            for receipt in manifest.receipts
        }
        connection.register_filesystem(_Shards(root.filesystem, sizes))
    for table, manifests in complete.items():
        connection.execute(f"CREATE VIEW {table} AS {_select(connection, root, table, manifests)}")
        says = schema.TABLES[table][0]
        columns = connection.table(table).columns
        views.comment(connection, table, says, views.meanings(table, columns))
    found = views.ranked(root, complete)
    alerts = _in_sql(root.place(key) for key in _alerts(root))
    views.create(connection, found, complete, alerts, _by_features(connection, root, complete))
    return connection


def _select(
    connection: duckdb.DuckDBPyConnection,
    root: Root,
    table: TableName,
    manifests: Sequence[Manifest],
) -> str:
    """Return what selects the rows of some partitions of a table, with their keys."""
    columns = _columns(connection, root, table, manifests)
    folders = "/".join(f"{key}=([^/]*)" for key in KEYS[table])
    # Of a constant expression of the file's name DuckDB skips files as by Hive's keys.
    keys = (
        f"url_decode(regexp_extract(filename, '/{table}/{folders}/[^/]*$', {number})) AS \"{key}\""
        for number, key in enumerate(KEYS[table], 1)
    )
    of_files = ", ".join(
        f"'{name}': {{name: '{name}', type: '{kind}', default_value: NULL}}"
        for name, kind in columns.items()
    )
    return (
        f"SELECT *, {', '.join(keys)} FROM read_parquet("
        f"{_listed(root, manifests)}, hive_partitioning = false, schema = MAP {{{of_files}}})"
    )


def _by_features(
    connection: duckdb.DuckDBPyConnection, root: Root, complete: views.Complete
) -> dict[int, str]:
    """Return by the number of features what selects the embeddings that have so many.

    A model has so many at every revision. What is damaged says nothing: `embeddings` will name it.
    """
    sizes, of_size = dict[str, int](), dict[int, list[Manifest]]()
    for each in complete.get("embeddings", ()):
        model = each.partition.keys["model"]
        if not sizes.get(model):
            with suppress(DamagedError):
                sizes[model] = features(root, each)
    for each in complete.get("embeddings", ()):
        if size := sizes.get(each.partition.keys["model"]):
            of_size.setdefault(size, []).append(each)
    if len(of_size) == 1:
        return dict.fromkeys(of_size, "SELECT * FROM embeddings")
    return {
        size: _select(connection, root, "embeddings", manifests)
        for size, manifests in of_size.items()
    }


def _alerts(root: Root) -> Iterator[str]:
    """Yield the keys of the alerts of nightlies."""
    for run in root.folders(ALERTS):
        for model in root.folders(f"{ALERTS}/{run}"):
            folder = f"{ALERTS}/{run}/{model}"
            yield from (f"{folder}/{name}" for name in root.sizes(folder) if name.endswith(".json"))


def _columns(
    connection: duckdb.DuckDBPyConnection,
    root: Root,
    table: TableName,
    manifests: Sequence[Manifest],
) -> dict[str, str]:
    """Return column -> its type in DuckDB, in order, of all shards of a table together."""
    empty = connection.from_arrow(schema.TABLES[table][1].empty_table())
    known = dict(zip(empty.columns, map(str, empty.types), strict=True))
    if table != "prompt_metrics":
        return known
    # Those of the parameters that a config chose, which its settings name: one shard tells.
    of_settings = {
        json.dumps({k: v for k, v in each.settings.items() if k not in _CONTENT}): each
        for each in manifests
    }
    some = _listed(root, [*of_settings.values()], most=1)
    found = connection.sql(
        f"SELECT * FROM read_parquet({some}, hive_partitioning = false, union_by_name = true)"
    )
    return dict(zip(found.columns, map(str, found.types), strict=True)) | known


def _listed(root: Root, manifests: Sequence[Manifest], most: int | None = None) -> str:
    """Return the shards as a list in SQL, or the first of each partition; none is a pattern."""
    above = root.place()
    return _in_sql(f"{above}/{key}" for each in manifests for key in each.objects()[:most])


def _in_sql(places: Iterable[str]) -> str:
    """Return a list of files in SQL; none is a pattern."""
    escaped = (re.sub(r"[*?[]", r"[\g<0>]", place).replace("'", "''") for place in places)
    listed = "', '".join(escaped)
    return f"['{listed}']" if listed else "[]"


# fsspec ships no types.
class _Shards(DirFileSystem):  # type: ignore[misc]
    """The filesystem of a root, where nothing is asked of a shard but its bytes.

    DuckDB asks again and again how large a file is and when it was changed: receipts say the one,
    and the other is of no use where a manifest stands.
    """

    cachable = False

    def __init__(self, filesystem: Any, sizes: Mapping[str, int]) -> None:  # noqa: ANN401
        super().__init__(path="/", fs=filesystem)
        self.path = ""  # paths are as they are
        self.protocol, self._sizes = filesystem.protocol, sizes
        self.tail = lru_cache(_MOST_TAILS)(self._tail)

    def _known(self, path: str) -> str:
        """Return the name of a shard; nothing if it is none."""
        name: str = self.fs._strip_protocol(path)
        return name if name in self._sizes else ""

    def info(self, path: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        if name := self._known(path):
            return {"name": name, "size": self._sizes[name], "type": "file"}
        return dict(self.fs.info(path, **options))

    def size(self, path: str) -> int:
        return int(self.info(path)["size"])

    def exists(self, path: str, **options: Any) -> bool:  # noqa: ANN401
        return bool(self._known(path) or self.fs.exists(path, **options))

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(0, UTC) if self._known(path) else self.fs.modified(path)

    def glob(self, path: str, **options: Any) -> list[str]:  # noqa: ANN401
        name = self._known(re.sub(r"\[([*?[])\]", r"\1", path))
        return [name] if name else list(self.fs.glob(path, **options))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:  # noqa: ANN401
        name = self._known(path) if mode == "rb" else ""
        return _Bytes(self, name) if name else self.fs.open(path, mode, **options)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return some bytes of a shard, by one request or, of its end, by none after the first."""
        tail = max(self._sizes[name] - _TAIL_BYTES, 0)
        if start >= tail:
            return self.tail(name)[start - tail : end - tail]
        return self._get(name, start, end)

    def _tail(self, name: str) -> bytes:
        size = self._sizes[name]
        return self._get(name, max(size - _TAIL_BYTES, 0), size)

    def _get(self, name: str, start: int, end: int) -> bytes:
        try:
            content: bytes = self.fs.cat_file(name, start=start, end=end)
        except OSError as error:
            place = self.unstrip_protocol(name)
            raise duckdb.IOException(f"cannot read {place}: {error}") from error
        return content


# fsspec ships no types.
class _Bytes(AbstractBufferedFile):  # type: ignore[misc]
    """A shard as a file; of a small piece more is read than asked for, for the next one."""

    def __init__(self, shards: _Shards, name: str) -> None:
        size = shards.info(name)["size"]
        super().__init__(shards, name, block_size=_AHEAD_BYTES, cache_type="readahead", size=size)

    def _fetch_range(self, start: int, end: int) -> bytes:
        content: bytes = self.fs.read_range(self.path, start, end)
        return content
