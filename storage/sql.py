"""SQL over the tables: DuckDB views that hold exactly what the manifests make visible."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import duckdb
import pyarrow as pa
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractBufferedFile

from layerrank.storage import schema
from layerrank.storage.manifest import Manifest, everything
from layerrank.storage.partition import KEYS, TableName
from layerrank.storage.root import Root

_SCHEMAS: dict[TableName, pa.Schema] = {
    "prompts": schema.PROMPTS,
    "tasks": schema.TASKS,
    "embeddings": schema.embeddings(1),  # whatever its features, a list of floats
    "tokens": schema.TOKENS,
    "prompt_metrics": schema.prompt_metrics(),
    "layer_metrics": schema.LAYER_METRICS,
    "own_metrics": schema.OWN_METRICS,
    "sensitivity": schema.SENSITIVITY,
    "prompt_traits": schema.PROMPT_TRAITS,
    "modes": schema.MODES,
    "probe_scores": schema.PROBE_SCORES,
    "learning_curves": schema.LEARNING_CURVES,
    "candidate_scores": schema.CANDIDATE_SCORES,
    "layer_costs": schema.LAYER_COSTS,
    "transforms": schema.TRANSFORMS,
    "choices": schema.CHOICES,
    "correlations": schema.CORRELATIONS,
    "candidates": schema.CANDIDATES,
    "ranking": schema.RANKING,
}
# Of the settings of `prompt_metrics`, what says nothing of its columns.
_CONTENT = ("subject", "prompts", "tokens")
_TAIL_BYTES = 1 << 16  # which most footers fit in
_MOST_TAILS = 1024
_AHEAD_BYTES = 1 << 16


def connect(root: Root) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB with one view per table that has a complete partition.

    The partition keys are text columns of the views, from the folders below the table's own:
    whatever lies above names no column. Shards of an unfinished partition are not in the views. No
    shard is opened before it is asked for: what a table's columns are is known.
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
        columns = _columns(connection, root, table, manifests)
        folders = "/".join(f"{key}=([^/]*)" for key in KEYS[table])
        # Of a constant expression of the file's name DuckDB skips files as by Hive's keys.
        keys = (
            f"url_decode(regexp_extract(filename, '/{table}/{folders}/[^/]*$', {number})) "
            f'AS "{key}"'
            for number, key in enumerate(KEYS[table], 1)
        )
        of_files = ", ".join(
            f"'{name}': {{name: '{name}', type: '{kind}', default_value: NULL}}"
            for name, kind in columns.items()
        )
        connection.execute(
            f"CREATE VIEW {table} AS SELECT *, {', '.join(keys)} FROM read_parquet("
            f"{_listed(root, manifests)}, hive_partitioning = false, schema = MAP {{{of_files}}})"
        )
    return connection


def _columns(
    connection: duckdb.DuckDBPyConnection,
    root: Root,
    table: TableName,
    manifests: Sequence[Manifest],
) -> dict[str, str]:
    """Return column -> its type in DuckDB, in order, of all shards of a table together."""
    empty = connection.from_arrow(_SCHEMAS[table].empty_table())
    kinds = (re.sub(r"\[\d+\]$", "[]", str(kind)) for kind in empty.types)
    known = dict(zip(empty.columns, kinds, strict=True))
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
    keys = (key for manifest in manifests for key in manifest.objects()[:most])
    escaped = (re.sub(r"[*?[]", r"[\g<0>]", f"{above}/{key}").replace("'", "''") for key in keys)
    return "['" + "', '".join(escaped) + "']"


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
