"""Source rows become records that meet in their shard, and a shard's records become its tables.

Pure functions over Arrow tables: `jobs.prepare.stage` says where they run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig, Skip, Task
from layerrank.jobs.config.prompts import asked_fact
from layerrank.jobs.tasks.items import row_place
from layerrank.jobs.tasks.types import TYPES
from layerrank.jobs.words import counted
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.storage import schema

SKIPPED: tuple[Skip, ...] = get_args(Skip)
PROMPT = "unique prompt"  # with a space, so that no task can be called the same
_SKIP, _MARKER, _ID = "skip", "marker", "row id"
_LONG = 4096  # characters of a text that is remembered
_LARGEST_SHARD = 1 << 30  # bytes of the texts and labels of one, which a task holds a few times
_SMALL_SHARD = 50  # prompts; a smaller one is not worth its files
_RECORD = pa.schema(
    [
        ("shard", pa.int32()),
        # PROMPT, skip, marker, row id, or `task ` or `lost ` and the task's name
        ("kind", pa.string()),
        ("prompt_id", pa.int64()),
        # Of a prompt; the reason of a skip or a loss; an item's label; an id.
        ("text", pa.large_string()),
        ("row", pa.int64()),
        ("split", pa.string()),
        ("candidate_id", pa.int64()),
        ("value", pa.float64()),
    ]
)
# What the columns of items are called in their records, where that is another name.
_RECORDED = {
    "label": "text",
    "first_id": "prompt_id",
    "second_id": "candidate_id",
    "query_id": "prompt_id",
    "relevance": "value",
    "prompt_type": "split",
}
# What to say of the rows of a task beside its items: those that are none, and why, and those whose
# texts an earlier one has.
TOLD = {
    "no_text": "without a text",
    "no_label": "without a label",
    "repeated": "repeated",
    "contradicted": "repeated with another label",
}
Rows = tuple[pa.Table, pa.Schema, dict[str, int]]  # rows, their schema, what to count of them


def shards_of(dataset: DatasetConfig, rows: int) -> int:
    """Return in how many shards the prompts of so many rows lie."""
    texts = rows * len(dataset.text_columns)
    fewest = min(dataset.fewest_shards, texts // _SMALL_SHARD)
    return max(-(-texts // dataset.shard_prompts), fewest, 1)


def markers(shards: int) -> pa.Table:
    """Return one record per shard, so that a shard without a prompt is written too."""
    found = [{"shard": number, "kind": _MARKER} for number in range(shards)]
    return pa.Table.from_pylist(found, _RECORD)


def records_of(
    dataset: DatasetConfig, rows: pa.Table, shards: int, seed: int, seen: dict[int, int]
) -> pa.Table:
    """Return the records of source rows: prompts, skipped texts, task items, and counts of losses.

    A row that is no item of a task because it lies in another split is no loss. A text that comes
    again is a record without it, as one may be that of every row: among these rows, and if it is
    long among those before, whose long texts are `seen`, by prompt_id.
    """
    found: list[dict[str, Any]] = []
    here = dict[int, int]()
    lost = Counter[tuple[str, str]]()
    for row in rows.to_pylist():
        place, ids = row["row"], dict[str | None, int | None]()
        for column in dataset.text_columns:
            text, ids[column] = row[column], None
            if reason := dataset.skipped(column, text):
                found.append({"shard": place % shards, "kind": _SKIP, "text": reason})
                continue
            ids[column] = key = prompt_id(text)
            digest = hash(text)
            is_known = digest in (here.get(key), seen.get(key))
            here[key] = digest
            if len(text) > _LONG:
                seen[key] = digest
            text = None if is_known else text
            found.append({"shard": key % shards, "kind": PROMPT, "prompt_id": key, "text": text})
        name = row[dataset.id_column] if dataset.id_column else None
        if name:  # a CSV cannot tell an empty id from none
            shard = prompt_id(name) % shards
            found.append({"shard": shard, "kind": _ID, "text": name, "row": place})
        ids[None] = ids.get(dataset.text_column)
        for task in dataset.tasks:
            if item := TYPES[type(task)].item(task, row, ids, seed):
                shard = item["prompt_id"] % shards
                found.append({**item, "row": place, "kind": f"task {task.name}", "shard": shard})
            elif any(ids[column] is None for column in task.text_columns):
                lost[task.name, "no_text"] += 1
            elif not all(row[column] for column in task.value_columns):
                lost[task.name, "no_label"] += 1
    for (name, why), count in lost.items():  # in any shard
        found.append({"shard": 0, "kind": f"lost {name}", "text": why, "value": count})
    return pa.Table.from_pylist(found, _RECORD)


def require_small(
    dataset: DatasetConfig, records: pa.Table, sizes: Counter[int], where: str
) -> None:
    """ConfigError if the texts of a shard are too large; `sizes` has the bytes of those before.

    They are counted as they are held, one that comes again with nothing.
    """
    lengths = pc.fill_null(pc.binary_length(records["text"]), 0).to_numpy()
    of_shard = np.bincount(records["shard"].to_numpy(), lengths)
    sizes.update(dict(enumerate(of_shard.astype(int).tolist())))
    if max(sizes.values()) > _LARGEST_SHARD:
        raise ConfigError(
            f"{where}: the texts and labels of one shard come to more than "
            f"{_LARGEST_SHARD / 2**30:g} GiB: give a smaller shard_prompts (it is "
            f"{dataset.shard_prompts:,}), or a limit"
        )


def prompts_of(records: pa.Table, number: int) -> Rows:
    """Return the unique prompts of shard `number` sorted by id, and what was left out.

    ValueError if two texts share a prompt_id.
    """
    prompts, texts = _of_kind(records, PROMPT), dict[int, str]()
    ids = prompts["prompt_id"].to_pylist()
    for identity, text in zip(ids, prompts["text"].to_pylist(), strict=True):
        if text is not None and (other := texts.setdefault(identity, text)) != text:
            raise ValueError(
                f"two texts share the prompt_id {identity}: {other[:60]!r} and {text[:60]!r}"
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
    """Return the items of a task in one shard, in source order, and counts by the names of TOLD."""
    kind = TYPES[type(task)]
    every = _of_kind(records, f"task {task.name}").sort_by("row")
    items = kind.gather(task, every)
    names = kind.columns.names
    recorded = [_RECORDED.get(name, name) for name in names]
    table = items.select(recorded).rename_columns(names)
    facts = dict.fromkeys(TOLD, 0)
    for loss in _of_kind(records, f"lost {task.name}").to_pylist():
        facts[loss["text"]] += int(loss["value"])
    texts = [name for name in recorded if name.endswith("_id")]
    first: dict[tuple[int | None, ...], tuple[object, object]] = {}
    for each in every.select([*texts, "text", "value"]).to_pylist():
        key, value = tuple(each[name] for name in texts), (each["text"], each["value"])
        if key in first and None not in key:
            facts["repeated" if first[key] == value else "contradicted"] += 1
        first.setdefault(key, value)
    if "prompt_type" in names:
        facts |= Counter(map(asked_fact, table["prompt_type"].to_pylist()))
    return table.cast(kind.columns), kind.columns, facts


def told(items: int, facts: Mapping[str, float]) -> str:
    """Return in words what a task is made of and what it loses, as far as that is not nothing."""
    said = counted(items, "item")
    if facts.get("labels"):
        said += f", {counted(int(facts['labels']), 'label')}"
    rows = [f"{int(facts[name]):,} {words}" for name, words in TOLD.items() if facts.get(name)]
    return f"{said}; rows: {', '.join(rows)}" if rows else said


@contextmanager
def named(dataset: DatasetConfig) -> Iterator[None]:
    """Say in errors which dataset a task is of."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"dataset {dataset.name}, {error}") from error


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


def _of_kind(records: pa.Table, kind: str) -> pa.Table:
    return records.filter(pc.equal(records["kind"], kind))
