"""The types of tasks, one entry each: what their items hold, what is refused, how they are scored.

A new type is a block and a member of `Task` in `jobs.config.datasets`, functions in the file of its
family, `labelled` or `pairs`, that call a probe of `operators.probes`, and an entry of TYPES.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import (
    ClassificationTask,
    ClusteringTask,
    MtebTask,
    OwnPairTask,
    OwnTask,
    OwnTextTask,
    PairClassificationTask,
    RegressionTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    Task,
)
from layerrank.jobs.own import Own
from layerrank.jobs.tasks import labelled, own, pairs
from layerrank.jobs.tasks.items import Given, Ids, Item, Row
from layerrank.operators.probes.fold import FoldScore
from layerrank.storage import schema
from layerrank.storage.shards import Shard


@dataclass(frozen=True)
class TaskType:
    """What is done with the tasks of a type; every function gets the task's block first.

    `item` makes an item of a source row, or None if the row lacks a text or value that it needs; it
    gets the seed of drawn splits. Its keys are those of a record of `jobs.prepare.records`, which
    become the `columns` (a label is the `text` of a record). `gather` sees the items of a shard,
    `check` all of them: what cannot be scored is a ConfigError. Without `score`, mteb scores the
    task (`jobs.probe.worker`), or a class of the user's (`type_of`).
    """

    columns: pa.Schema  # of the items
    item: Callable[[Any, Row, Ids, int], Item | None]
    check: Callable[[Any, pa.Table], None] = lambda *_: None
    score: Callable[[Any, Given], list[FoldScore]] | None = None
    metric: str = ""  # the one that is ranked; a score that is undefined is of it too
    gather: Callable[[Any, pa.Table], pa.Table] = lambda _, records: records
    by_fold: bool = False  # a search can score its folds one by one
    by_share: bool = False  # or roughly: a share of its pairs, queries or folds, not resampled
    scale_free: bool = False  # its scores depend on directions alone: both variants have the same
    # The task fitted on so many examples of each label, or of each tenth of the values.
    fewer: Callable[[Any, int], Task] | None = None


_LABELLED = partial(TaskType, schema.LABELLED_ITEMS, labelled.item)
_VALUED = partial(TaskType, schema.VALUED_ITEMS, labelled.item)
_PAIRS = partial(TaskType, schema.PAIR_ITEMS, pairs.item, pairs.check, by_share=True)
_RELEVANCE = partial(
    TaskType,
    schema.RETRIEVAL_ITEMS,
    pairs.item,
    pairs.check_relevance,
    gather=pairs.one_of_each_pair,
    by_share=True,
    scale_free=True,
)
TYPES: dict[type[Any], TaskType] = {
    ClassificationTask: _LABELLED(
        labelled.check_classification,
        labelled.score_classification,
        "accuracy",
        by_fold=True,
        fewer=labelled.fewer_per_label,
    ),
    RegressionTask: _VALUED(
        labelled.check_regression,
        labelled.score_regression,
        "kendalltau",
        by_share=True,
        fewer=labelled.fewer_per_tenth,
    ),
    ClusteringTask: _LABELLED(
        labelled.check_clustering, labelled.score_clustering, "v_measure", by_fold=True
    ),
    PairClassificationTask: _PAIRS(pairs.score_pair_classification, "max_ap"),
    StsTask: _PAIRS(pairs.score_sts, "cosine_spearman", scale_free=True),
    RerankingTask: _RELEVANCE(pairs.score_reranking, "map_at_1000"),
    RetrievalTask: _RELEVANCE(pairs.score_retrieval, "ndcg_at_10"),
    MtebTask: TaskType(
        schema.MTEB_ITEMS,
        lambda task, row, ids, _: (
            {"prompt_id": ids["text"], "split": row["prompt_type"]}
            if row["task"] == task.name
            else None
        ),
    ),
    OwnTextTask: TaskType(schema.OWN_ITEMS, own.item),
    OwnPairTask: TaskType(schema.OWN_PAIR_ITEMS, own.item),
}


def type_of(task: Task, source: Own | None) -> TaskType:
    """Return what is done with a task; of one of the user's own with its class, made now."""
    kind = TYPES[type(task)]
    if source is None:
        return kind
    assert isinstance(task, OwnTask)
    scorer = own.made(task, source)
    return replace(
        kind,
        metric=scorer.metric,
        score=partial(own.score, scorer),
        check=partial(own.check, scorer),
    )


def read_items(task: Task, shards: Sequence[Shard]) -> pa.Table:
    """Return the items of a task, those of all shards, with the columns of its type."""
    columns = TYPES[type(task)].columns
    found = []
    for each in shards:
        table = each.read(columns.names)
        # What an earlier version did not note.
        lacks = {
            name: [""] * len(table) for name in columns.names if name not in table.column_names
        }
        there = dict(zip(table.column_names, table.columns, strict=True))
        found.append(pa.table(lacks | there).select(columns.names))
    return pa.concat_tables(found).cast(columns)


def check_items(task: Task, items: pa.Table, kind: TaskType | None = None) -> None:
    """Raise ConfigError if the items of a task, all shards together, cannot be scored."""
    kind = kind or TYPES[type(task)]
    if items.num_rows:
        kind.check(task, items)
        return
    split = None if isinstance(task, OwnTask) else getattr(task, "split_column", None)
    values = [column for column in task.value_columns if column != split]
    tested = ""
    if split and "split" in kind.columns.names:
        values.append(split)
    elif split:  # only its test rows are items
        tested = f", and test in {split}"
    texts = " and ".join(column or "the text column" for column in task.text_columns)
    valued = f" and a value in {' and '.join(values)}" if values else ""
    raise ConfigError(
        f"task {task.name}: no row of the source has a text in {texts}{valued}{tested}"
    )


def refusal(task: Task, items: pa.Table, source: Own | None = None) -> str | None:
    """Return why the items of a task cannot be scored; None if they can.

    One of the user's own is asked with its class, if that is given.
    """
    try:
        check_items(task, items, type_of(task, source))
    except ConfigError as error:
        return str(error)
    return None


def count_labels(task: Task, items: pa.Table) -> int:
    """Return how many different labels the items of a task have; 0 for a task without labels."""
    if "label" not in items.column_names or isinstance(task, OwnTask):
        return 0
    labels = pc.unique(items["label"]).to_pylist()
    if getattr(task, "multi_label", False):
        labels = {label for several in labels for label in json.loads(several)}
    return len(labels)
