"""SQL over the tables: DuckDB views that hold exactly what the manifests make visible.

Whoever asks may be anybody: the shards that the views stand on are all that a query reads, and
nothing is written.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
from fsspec.spec import AbstractFileSystem

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
SECONDS = 600.0  # a query may take

_AGAIN_SECONDS = 0.5
_GRACE_SECONDS = 5.0  # until what was interrupted has ended

_CLOSED = {
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # no variable of ours is a table
}
_READS = "a query reads (SELECT, FROM, WITH, VALUES, PIVOT, DESCRIBE, SUMMARIZE, SHOW, EXPLAIN)"
# What DuckDB's parser makes of a statement that only reads.
_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# What runs SQL that is a text, into which nobody has looked.
_RUN_SQL = "query|json_execute_serialized_sql"
_CALLS = re.compile(rf'"function_name":"({_RUN_SQL})"', re.IGNORECASE)
_WORDS = re.compile(rf"\b(copy|{_RUN_SQL})\b", re.IGNORECASE)
_EXPLAIN = re.compile(r"\s*EXPLAIN(\s+ANALYZE\b|\s*\([^()]*\))?", re.IGNORECASE)
_PIVOT = re.compile(r"[\s(]*(PIVOT|PIVOT_WIDER|FROM|SELECT|WITH)\b", re.IGNORECASE)


@contextmanager
def answering(
    root: Root,
    sql: str,
    seconds: float = SECONDS,
    at_last: Callable[[str], object] = lambda _: None,
) -> Iterator[duckdb.DuckDBPyRelation]:
    """Give the answer to one statement over the tables, which is computed as it is read.

    duckdb.Error for one that does not read, or that DuckDB cannot answer; TimeoutError when it is
    not answered, and read, in time. DuckDB ends between two steps of its work, and some functions
    make one step of much: where that takes longer `at_last` is told what to say, in a thread of its
    own, and may end the process. What a query cannot hold in memory lies in a folder of its own.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: {seconds} is no number above 0")
    late = f"the query was not answered in {seconds:g} s and was ended"
    with (
        tempfile.TemporaryDirectory(prefix="layerrank-query-") as spilled,
        connect(root, spilled) as connection,
    ):
        ended, over = threading.Event(), threading.Event()

        def watch() -> None:
            if ended.wait(min(seconds, threading.TIMEOUT_MAX)):
                return
            over.set()
            connection.interrupt()
            until = time.monotonic() + _GRACE_SECONDS
            while not ended.wait(_AGAIN_SECONDS):  # it may have been between two steps
                connection.interrupt()
                if time.monotonic() > until:
                    shutil.rmtree(spilled, ignore_errors=True)
                    at_last(late)
                    return

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            _require_reading(connection, sql)
            yield connection.sql(sql)
        except Exception as error:
            if over.is_set():
                raise TimeoutError(late) from error
            raise
        finally:
            ended.set()
            watching.join()


def _require_reading(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """duckdb.Error unless SQL is one statement that reads.

    What writes has no place to write to but the shards, which DuckDB may open: this looks for it.
    A statement is taken apart by DuckDB. One that it runs as several, a PIVOT that finds its
    columns itself, it does not take apart: there the bare word is refused.
    """
    statements = connection.extract_statements(sql)
    if not statements:
        raise duckdb.InvalidInputException("the SQL asks for nothing")
    if len(statements) > 1:
        raise duckdb.InvalidInputException(
            f"the SQL holds {len(statements)} statements: ask one at a time"
        )
    (statement,), kinds = statements, duckdb.StatementType
    kind, text = statement.type, statement.query
    if kind == kinds.EXPLAIN:
        _require_reading(connection, _EXPLAIN.sub("", text, count=1))
        return
    if kind != kinds.SELECT and not (kind == kinds.MULTI and _PIVOT.match(text)):
        raise duckdb.PermissionException(f"{kind.name.replace('_', ' ')} is refused: {_READS}")
    (tree,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchall()[0]
    nodes = {*re.findall(r'"type":"(\w+_NODE)"', tree)} - _READING
    refused = [*(each.split("_")[0] for each in sorted(nodes)), *_CALLS.findall(tree)]
    if tree.startswith('{"error":true'):
        refused = _WORDS.findall(text)
    if refused:
        raise duckdb.PermissionException(f"{refused[0]} is refused in a query: {_READS}")


@contextmanager
def connect(root: Root, spilled: str = "") -> Iterator[duckdb.DuckDBPyConnection]:
    """Give an in-memory DuckDB with one view per table that has a complete partition.

    The partition keys are text columns of the views, from the folders below the table's own:
    whatever lies above names no column. Shards of an unfinished partition are not in the views.
    Beside them stand those of `readers.views`, for analysts. Before it is asked for no shard is
    opened, as what a table's columns are is known; but of a model one index, for its features.
    Nothing can be opened but what the views read, and no setting changed. What a query cannot hold
    in memory lies in the folder `spilled`, if there is one.
    FileNotFoundError if the root holds no complete partition at all.
    """
    complete: dict[TableName, list[Manifest]] = {}
    for manifest in everything(root):
        if manifest.receipts and not (manifest.withdrawn or manifest.removed):
            complete.setdefault(manifest.partition.table, []).append(manifest)
    if not complete:
        raise FileNotFoundError(f"no complete table under {root.uri}: run `layerrank run` first")
    alerts = _alerts(root)
    sizes = alerts | {
        key: receipt.bytes
        for manifests in complete.values()
        for manifest in manifests
        for key, receipt in zip(manifest.objects(), manifest.receipts, strict=True)
    }
    with duckdb.connect(config={**_CLOSED, "temp_directory": spilled}) as connection:
        if not root.is_local:
            connection.register_filesystem(_Shards(root, sizes))
        for table, manifests in complete.items():
            connection.execute(
                f"CREATE VIEW {table} AS {_select(connection, root, table, manifests)}"
            )
            says = schema.TABLES[table][0]
            columns = connection.table(table).columns
            views.comment(connection, table, says, views.meanings(table, columns))
        found = views.ranked(root, complete)
        listed = _in_sql(root.place(key) for key in alerts)
        views.create(connection, found, complete, listed, _by_features(connection, root, complete))
        _close(connection, root, sizes)
        yield connection


def _close(connection: duckdb.DuckDBPyConnection, root: Root, keys: Iterable[str]) -> None:
    """Let a connection open some objects of a root and nothing else, and change no setting.

    They are asked for by their name, and as a pattern that is that name alone.
    """
    found, above = [*_not_linked(root, keys)], root.place()
    # What is below a root has no name that is a pattern.
    places = [f"{each}/{key}" for each in {above, _pattern(above)} for key in found]
    connection.execute("SET VARIABLE allowed = ?", [places])  # thousands of words to parse are slow
    connection.execute(
        "SET allowed_paths = getvariable('allowed'); RESET VARIABLE allowed; "
        "SET enable_external_access = false; SET lock_configuration = true"
    )


def _not_linked(root: Root, keys: Iterable[str]) -> Iterator[str]:
    """Yield the keys that no symbolic link in a local root leads away from: it may be anywhere."""
    if not root.is_local:
        yield from keys
        return
    above = Path(root.path())
    plain: dict[str, set[str]] = {}  # folder -> the names in it that are no links
    for key in keys:
        folder, _, name = key.rpartition("/")
        if folder not in plain:
            plain[folder] = set()
            if (above / folder).resolve() == above.resolve() / folder:
                with suppress(FileNotFoundError), os.scandir(above / folder) as entries:
                    plain[folder] = {each.name for each in entries if not each.is_symlink()}
        if name in plain[folder]:
            yield key


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


def _alerts(root: Root) -> dict[str, int]:
    """Return key -> bytes of the alerts of nightlies."""
    folders = (
        f"{ALERTS}/{run}/{model}"
        for run in root.folders(ALERTS)
        for model in root.folders(f"{ALERTS}/{run}")
    )
    return {
        f"{folder}/{name}": size
        for folder in folders
        for name, size in root.sizes(folder).items()
        if name.endswith(".json")
    }


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
    listed = "', '".join(_pattern(place).replace("'", "''") for place in places)
    return f"['{listed}']" if listed else "[]"


def _pattern(place: str) -> str:
    """Return the pattern that a file alone is found by."""
    return re.sub(r"[*?[]", r"[\g<0>]", place)


# fsspec ships no types.
class _Shards(AbstractFileSystem):  # type: ignore[misc]
    """What a connection may read of a root in object storage: some objects, of known sizes.

    Whatever else it is asked for is refused, and so is to write. DuckDB asks again and again how
    large a file is and when it was changed: receipts say the one, and the other is of no use where
    a manifest stands.
    """

    cachable = False

    def __init__(self, root: Root, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self._fs, self.protocol = root.filesystem, root.filesystem.protocol
        self._sizes = {root.path(key): size for key, size in sizes.items()}
        self._scheme = root.place().removesuffix(root.path())
        self.tail = lru_cache(_MOST_TAILS)(self._tail)

    def _known(self, path: str) -> str:
        """Return the name of an object; duckdb.Error if it is none of these."""
        name: str = self._fs._strip_protocol(path)
        if name not in self._sizes:
            raise duckdb.PermissionException(f"{path} is no shard of the tables that are asked")
        return name

    def info(self, path: str, **_options: Any) -> dict[str, Any]:  # noqa: ANN401
        name = self._known(path)
        return {"name": name, "size": self._sizes[name], "type": "file"}

    def exists(self, path: str, **_options: Any) -> bool:  # noqa: ANN401
        return bool(self._known(path))

    def modified(self, path: str) -> datetime:
        self._known(path)
        return datetime.fromtimestamp(0, UTC)

    def glob(self, path: str, **_options: Any) -> list[str]:  # noqa: ANN401
        return [self._known(re.sub(r"\[([*?[])\]", r"\1", path))]

    def unstrip_protocol(self, name: str) -> str:
        return f"{self._scheme}{name}"  # a filesystem has several, and this one was asked for

    def open(self, path: str, mode: str = "rb", **_options: Any) -> Any:  # noqa: ANN401
        name = self._known(path)
        if mode != "rb":
            raise duckdb.PermissionException(f"{path} is not written to")
        return _Bytes(self, name, self._sizes[name])

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
            content: bytes = self._fs.cat_file(name, start=start, end=end)
        except OSError as error:
            place = self.unstrip_protocol(name)
            raise duckdb.IOException(f"cannot read {place}: {error}") from error
        return content


class _Bytes(io.RawIOBase):
    """A shard as a file; of a small piece more is read than asked for, for the next one.

    Several threads of DuckDB seek and read in one file at once, so each has its own place in it.
    """

    def __init__(self, shards: _Shards, name: str, size: int) -> None:
        self._shards, self._name, self._size = shards, name, size
        self._own = threading.local()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return getattr(self._own, "place", 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        above = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}[whence]
        self._own.place = above + offset
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        start = self.tell()
        end = self._size if size < 0 else min(start + size, self._size)
        begin, ahead = getattr(self._own, "ahead", (0, b""))
        if not begin <= start <= end <= begin + len(ahead):
            begin = start
            ahead = self._shards.read_range(
                self._name, start, min(max(end, start + _AHEAD_BYTES), self._size)
            )
            self._own.ahead = begin, ahead
        self._own.place = end
        return ahead[start - begin : end - begin]
