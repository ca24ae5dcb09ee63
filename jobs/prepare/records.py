"""Source rows become records that meet in their shard, and a shard's records become its tables.

Pure functions over Arrow tables: `jobs.prepare.stage` says where they run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.blocks import ConfigError
from jobs.config.datasets import DatasetConfig
from jobs.tasks.items import check_relevance, item_of, row_place
from jobs.tasks.types import (
    MtebTask,
    PairClassificationTask,
    RegressionTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    Task,
)
from operators.prompts.seeding import prompt_id
from storage import schema

SKIPPED = ("null", "empty", "whitespace", "too_short")
PROMPT = "unique prompt"  # with a space, so that no task can be called the same
_SKIP, _MARKER, _ID = "skip", "marker", "row id"
_RECORD = pa.schema(
    [
        ("shard", pa.int32()),
        ("kind", pa.string()),  # PROMPT, skip, marker, row id, or `task ` and the task's name
        ("prompt_id", pa.int64()),
        ("text", pa.large_string()),  # of a prompt; the reason of a skip; an item's label; an id
        ("row", pa.int64()),
        ("split", pa.string()),
        ("candidate_id", pa.int64()),
        ("value", pa.float64()),
    ]
)
Record = dict[str, Any]
Rows = tuple[pa.Table, pa.Schema, dict[str, int]]  # rows, their schema, what to count of them


def markers(shards: int) -> pa.Table:
    """Return one record per shard, so that a shard without a prompt is written too."""
    return _table({"shard": number, "kind": _MARKER} for number in range(shards))


def records_of(dataset: DatasetConfig, rows: pa.Table, shards: int, seed: int) -> pa.Table:
    """Return the records of source rows: prompts, skipped texts and task items."""
    return _table(
        record for row in rows.to_pylist() for record in _row_records(dataset, row, shards, seed)
    )


def skip_reason(text: str | None, min_chars: int, *, keeps_blank: bool = False) -> str | None:
    """Return why a text is not a prompt, one of SKIPPED, or None if it is one."""
    if text is None:
        return "null"
    if keeps_blank:
        return None
    if not text:
        return "empty"
    if not text.strip():
        return "whitespace"
    return "too_short" if len(text) < min_chars else None


def prompts_of(records: pa.Table, number: int) -> Rows:
    """Return the unique prompts of shard `number` sorted by id, and what was left out.

    ValueError if two texts share a prompt_id.
    """
    prompts = _of_kind(records, PROMPT)
    ids, all_texts = prompts["prompt_id"].to_pylist(), prompts["text"].to_pylist()
    texts = dict(zip(ids, all_texts, strict=True))
    for identity, text in zip(ids, all_texts, strict=True):
        if texts[identity] != text:
            raise ValueError(
                f"two texts share the prompt_id {identity}: "
                f"{text[:60]!r} and {texts[identity][:60]!r}"
            )
    unique = sorted(texts)
    table = pa.table(
        {
            "prompt_id": pa.array(unique, pa.int64()),
            "text": pa.array([texts[identity] for identity in unique], pa.large_string()),
            "shard": np.full(len(unique), number, dtype=np.int32),
        }
    )
    reasons = Counter(_of_kind(records, _SKIP)["text"].to_pylist())
    facts = {f"skipped_{reason}": reasons[reason] for reason in SKIPPED}
    return table, schema.PROMPTS, {**facts, "duplicates": len(ids) - len(unique)}


def items_of(records: pa.Table, task: Task) -> Rows:
    """Return the items of a task in one shard, in source order."""
    items = _of_kind(records, _kind(task)).sort_by("row")
    columns = schema.TASK_ITEMS[task.type]
    if isinstance(task, (RetrievalTask, RerankingTask)):
        items = check_relevance(task, items)
        relevance = pc.cast(items["value"], pa.int16())
        arrays = [items["row"], items["prompt_id"], items["candidate_id"], relevance]
    elif isinstance(task, (PairClassificationTask, StsTask)):
        arrays = [items["row"], items["prompt_id"], items["candidate_id"], items["value"]]
    elif isinstance(task, MtebTask):
        arrays = [items["row"], items["prompt_id"]]
    else:
        value = items["value" if isinstance(task, RegressionTask) else "text"]
        arrays = [items["row"], items["prompt_id"], value, items["split"]]
    return pa.Table.from_arrays(arrays, names=columns.names), columns, {}


def check_ids(dataset: DatasetConfig, records: pa.Table) -> None:
    """ConfigError if two rows whose ids meet in this shard have the same."""
    seen: dict[str, int] = {}
    for record in _of_kind(records, _ID).sort_by("row").to_pylist():
        first = seen.setdefault(record["text"], record["row"])
        if first != record["row"]:
            raise ConfigError(
                f"dataset {dataset.name}, column {dataset.id_column}: {row_place(first)} and "
                f"{row_place(record['row'])} have the same id {record['text']!r}"
            )


def _table(records: Iterable[Record]) -> pa.Table:
    return pa.Table.from_pylist(list(records), _RECORD)


def _of_kind(records: pa.Table, kind: str) -> pa.Table:
    return records.filter(pc.equal(records["kind"], kind))


def _kind(task: Task) -> str:
    return f"task {task.name}"


def _row_records(dataset: DatasetConfig, row: Record, shards: int, seed: int) -> Iterator[Record]:
    ids: dict[str, int | None] = {}
    for column in dataset.text_columns:
        text = row[column]
        shortest = dataset.min_chars if column == dataset.text_column else 1
        reason = skip_reason(text, shortest, keeps_blank=dataset.keeps_blank)
        if reason:
            ids[column] = None
            yield {"shard": row["row"] % shards, "kind": _SKIP, "text": reason}
        else:
            ids[column] = identity = prompt_id(text)
            yield {"shard": identity % shards, "kind": PROMPT, "prompt_id": identity, "text": text}
    name = row[dataset.id_column] if dataset.id_column else None
    if name:  # a CSV cannot tell an empty id from none
        yield {"shard": prompt_id(name) % shards, "kind": _ID, "text": name, "row": row["row"]}
    for task in dataset.tasks:
        item = item_of(dataset.text_column, task, row, ids, seed)
        if item is not None:
            shard = item["prompt_id"] % shards
            yield {**item, "row": row["row"], "kind": _kind(task), "shard": shard}
