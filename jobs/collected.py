"""Scores on their way from the workers into a table: published when their target is whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from jobs.scorer import ScoreTarget, ScoreUnit
from storage import schema
from storage.manifest import digest_of, publish
from storage.root import Root
from storage.shards import Receipt, write_shard

SCORES = "scores.parquet"
Row = dict[str, Any]
_SCHEMAS = {"probe_scores": schema.PROBE_SCORES, "learning_curves": schema.LEARNING_CURVES}
_ORDER = ("layer", "norm", "pooling", "variant", "examples", "fold")


class Collected:
    """Rows of scores until their target is whole, and the first failure of each target."""

    def __init__(self, root: Root, targets: Sequence[ScoreTarget]) -> None:
        self._root, self._targets = root, targets
        self._rows: dict[int, list[Row]] = defaultdict(list)
        self._left: dict[int, int] = defaultdict(int)
        self.failed: dict[int, str] = {}

    def expect(self, units: Iterable[ScoreUnit]) -> None:
        """Count the units that are to come."""
        for unit in units:
            self._left[unit.target] += 1

    def take(self, index: int, rows: list[Row], why: str | None) -> None:
        """Take what one unit gave; a target whose last unit this was is published."""
        self.add(index, rows, why)
        self._left[index] -= 1
        if not self._left[index]:
            self.publish(index)

    def add(self, index: int, rows: list[Row], why: str | None) -> None:
        """Keep rows of a target of which more are to come."""
        self._rows[index] += rows
        if why is not None:
            self.failed.setdefault(index, why)

    def publish(self, index: int, facts: dict[str, int | float | str] | None = None) -> None:
        """Write the scores of a target that did not fail."""
        rows, target = self._rows.pop(index, []), self._targets[index]
        if index in self.failed:
            return
        rows.sort(key=lambda row: [row.get(column, 0) for column in _ORDER])
        columns = _SCHEMAS[target.partition.table]
        table = pa.Table.from_pylist(rows, columns)
        reasons = [row["reason"] for row in rows if row["reason"]]
        known = {**(facts or {}), **({"undefined": reasons[0]} if reasons else {})}
        blank = Receipt(SCORES, 0, digest_of(target.settings), "", facts=known)
        receipt = write_shard(self._root, target.partition.shard(SCORES), [table], columns, blank)
        publish(self._root, target.partition, target.settings, [receipt])
