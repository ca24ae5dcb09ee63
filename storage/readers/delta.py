"""A Delta log beside the files of every table, for engines that know nothing of manifests.

What exists is the state: a log follows the manifests, and no file is rewritten for it. Of each
partition it notes the content that it holds (a `txn` of the partition's path), so that one commit
makes up for whatever was published, withdrawn or interrupted since. There are no checkpoints: they
are Parquet, and would be rows to whoever reads all of a table's folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from layerrank.storage.partition import KEYS, Partition, TableName
from layerrank.storage.root import BOOKS, AddressError, Root, narrowed
from layerrank.storage.schema import TABLES

if TYPE_CHECKING:
    from deltalake import DeltaTable, Schema
    from deltalake.transaction import AddAction, RemoveAction

MARK = f"{BOOKS}/delta"  # an object that is there when the root's tables have logs
_ATTEMPTS = 10  # at a commit, while others commit too
_PAUSE_SECONDS = 0.1  # after the first of them


class LogError(ValueError):
    """A Delta log cannot be kept."""


class Object(NamedTuple):
    """A file of a partition."""

    name: str
    bytes: int
    rows: int


class Held(NamedTuple):
    """What a partition holds: a digest of it, and its objects; nothing where it is not visible."""

    content: str = ""
    objects: Sequence[Object] = ()

    @property
    def number(self) -> int:
        """The digest as a log notes it: 0, or a positive number of 63 bits."""
        return int(self.content[:15], 16) + 1 if self.objects else 0


def require(root: Root) -> None:
    """LogError if logs cannot be kept here: for want of the package, or of a place for them."""
    try:
        import deltalake  # noqa: F401, PLC0415  (of an extra)
    except ImportError as error:
        raise LogError(
            f"the tables of {root.uri} have Delta logs, which need the package deltalake: "
            "pip install 'layerrank[delta]'"
        ) from error
    if not root.is_local and not root.place().startswith(("s3://", "s3a://")):
        raise AddressError(f"{root.uri}: Delta logs are kept in folders and on S3 alone")


class Logs:
    """The logs of a root's tables as one run commits to them."""

    def __init__(self, root: Root) -> None:
        self._root, self._options = root, storage_options(root)
        self._opened: dict[TableName, DeltaTable] = {}

    def follow(self, held: Mapping[Partition, Held]) -> None:
        """Commit what partitions hold now, where a log says something else: one commit a table."""
        from deltalake.exceptions import CommitFailedError  # noqa: PLC0415  (of an extra)

        for table in dict.fromkeys(where.table for where in held):
            of_table = {where: each for where, each in held.items() if where.table == table}
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    with narrowed():
                        self._commit(table, of_table)
                    break
                except CommitFailedError:  # another run has committed first
                    if attempt == _ATTEMPTS:
                        raise
                    time.sleep(_PAUSE_SECONDS * attempt)

    def _commit(self, table: TableName, held: Mapping[Partition, Held]) -> None:
        from deltalake import Schema, transaction  # noqa: PLC0415  (of an extra)

        log = self._log(table)
        noted = {where: (log.transaction_version(where.path) or 0) if log else 0 for where in held}
        changed = {where: each for where, each in held.items() if each.number != noted[where]}
        if not changed:
            return
        kind = Schema.from_arrow(self._columns(table, changed))
        if log is None:
            log = self._created(table, kind)
        there = dict[str, int]()
        if any(noted[where] for where in changed):
            found = log.get_add_actions()
            sizes = found["size_bytes"].to_pylist()
            there = dict(zip(map(unquote, found["path"].to_pylist()), sizes, strict=True))
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = []
        for where, each in changed.items():
            folder = where.path.removeprefix(f"{table}/")
            wanted = {f"{folder}/{file.name}": file for file in each.objects}
            actions += [
                transaction.RemoveAction(path, True, now, size, {**where.keys})
                for path, size in there.items()
                if path.startswith(f"{folder}/") and path not in wanted
            ]
            for path, file in wanted.items():
                counted = json.dumps({"numRecords": file.rows})
                given = path, file.bytes, where.keys, now, True, counted
                actions.append(transaction.AddAction(*given))
        alone = transaction.PostCommitHookProperties(
            create_checkpoint=False, cleanup_expired_logs=False
        )
        known = {field.name for field in log.schema().fields}
        if later := [field for field in kind.fields if field.name not in known]:
            log.alter.add_columns(later, post_commithook_properties=alone)
        numbers = [
            transaction.Transaction(where.path, each.number) for where, each in changed.items()
        ]
        log.create_write_transaction(
            *(actions, "append", log.schema()),
            partition_by=[*KEYS[table]],
            commit_properties=transaction.CommitProperties(app_transactions=numbers),
            post_commithook_properties=alone,
        )

    def _log(self, table: TableName) -> DeltaTable | None:
        """Return the log of a table as it is now; None if there is none."""
        from deltalake import DeltaTable  # noqa: PLC0415  (of an extra)
        from deltalake.exceptions import TableNotFoundError  # noqa: PLC0415

        if table in self._opened:
            self._opened[table].update_incremental()
        else:
            try:
                self._opened[table] = DeltaTable(
                    self._root.place(table), storage_options=self._options
                )
            except TableNotFoundError:
                return None
        return self._opened[table]

    def _created(self, table: TableName, kind: Schema) -> DeltaTable:
        """Return the log of a table, which begins without a file, or with another run's."""
        from deltalake import DeltaTable  # noqa: PLC0415  (of an extra)
        from deltalake.exceptions import DeltaError  # noqa: PLC0415

        try:
            self._opened[table] = DeltaTable.create(
                *(self._root.place(table), kind),
                partition_by=[*KEYS[table]],
                name=table,
                description=f"a row: {TABLES[table][0]}",
                storage_options=self._options,
            )
        except DeltaError:
            if self._log(table) is None:
                raise
        return self._opened[table]

    def _columns(self, table: TableName, held: Mapping[Partition, Held]) -> pa.Schema:
        """Return the columns of a table with its keys; earlier files may lack any of them."""
        columns = {each.name: each.type for each in TABLES[table][1]}
        if table == "prompt_metrics":  # those of parameters that a config chose: one shard tells
            for where, each in held.items():
                for file in each.objects[:1]:
                    with self._root.reader(where.shard(file.name)) as stream:
                        found = pq.read_schema(stream)
                    columns |= {field.name: field.type for field in found}
        return pa.schema([*columns.items(), *((key, pa.string()) for key in KEYS[table])])


def storage_options(root: Root) -> dict[str, str]:
    """Return what lets deltalake reach a root; what is not said here it finds as S3's tools do."""
    if root.is_local:
        return {}
    client = root.options.get("client_kwargs", {})
    endpoint = client.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL", "")
    given = {
        "AWS_ACCESS_KEY_ID": root.options.get("key"),
        "AWS_SECRET_ACCESS_KEY": root.options.get("secret"),
        "AWS_SESSION_TOKEN": root.options.get("token"),
        "AWS_REGION": client.get("region_name"),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true" if endpoint.startswith("http://") else "",
        "aws_conditional_put": "etag",  # of two that commit the same version one fails
    }
    return {name: str(value) for name, value in given.items() if value}
