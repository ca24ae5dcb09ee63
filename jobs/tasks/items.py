"""Items of the labelled tasks: read from source rows, then checked as a whole.

Pure functions; data that a task cannot be scored on is a ConfigError that names task, column and
value, before any model runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.blocks import ConfigError
from jobs.tasks.types import (
    ClassificationTask,
    ClusteringTask,
    LabelledTask,
    MtebTask,
    PairClassificationTask,
    RegressionTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    Task,
)
from operators.probes.clustering import NO_LABEL
from operators.probes.fold import NoScoreError
from operators.probes.multilabel import NEIGHBOURS
from operators.probes.regression import stratified_rows
from operators.prompts.seeding import generator
from storage.schema import ROW_BITS

Row = Mapping[str, Any]
Ids = Mapping[str, int | None]  # text column -> prompt_id of the row's text, None if it was skipped
Item = dict[str, Any]
_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
_SHOWN = 5
_HIGHEST_RELEVANCE = np.iinfo(np.int16).max


def item_of(text_column: str, task: Task, row: Row, ids: Ids, seed: int) -> Item | None:
    """Return the item of a source row; None if the row lacks a text or value the task needs."""
    if isinstance(task, MtebTask):
        return {"prompt_id": ids["text"]} if row["task"] == task.name else None
    if isinstance(task, (RerankingTask, RetrievalTask)):
        return _relevance_item(text_column, task, row, ids)
    if isinstance(task, (PairClassificationTask, StsTask)):
        return _pair_item(task, row, ids)
    return _labelled_item(text_column, task, row, ids, seed)


def check_items(task: Task, items: pa.Table) -> None:
    """Raise ConfigError if the items of a task, all shards together, cannot be scored."""
    if not items.num_rows:
        raise ConfigError(f"task {task.name}: no row of the source has {_needed(task)}")
    if isinstance(task, (ClassificationTask, RegressionTask)):
        _check_split(task, items)
    if isinstance(task, ClassificationTask):
        _check_classes(task, items)
    elif isinstance(task, ClusteringTask):
        _check_clusters(task, items)
    elif isinstance(task, (RegressionTask, PairClassificationTask, StsTask)):
        _check_values(task, items)
    elif isinstance(task, (RerankingTask, RetrievalTask)):
        _check_relevant(task, items)


def check_relevance(task: RerankingTask | RetrievalTask, records: pa.Table) -> pa.Table:
    """Return the pairs of query and candidate in one shard, each once and none without a candidate.

    ConfigError for a query that has no candidate at all, and for a pair with two relevances.
    """
    queries, rows = records["prompt_id"].to_pylist(), records["row"].to_pylist()
    found = records.filter(pc.is_valid(records["candidate_id"]))
    bare = set(queries) - set(found["prompt_id"].to_pylist())
    if bare and isinstance(task, RerankingTask):
        row = min(row for query, row in zip(queries, rows, strict=True) if query in bare)
        raise ConfigError(
            f"task {task.name}, column {task.candidate_column}: the query of {row_place(row)} has "
            "no candidate; leave it out of the data"
        )
    seen: dict[tuple[int, int], tuple[float, int]] = {}
    keep = []
    for index, item in enumerate(found.to_pylist()):
        pair = item["prompt_id"], item["candidate_id"]
        first = seen.setdefault(pair, (item["value"], item["row"]))
        if first[0] != item["value"]:
            raise ConfigError(
                f"task {task.name}, column {task.relevance_column}: {row_place(first[1])} and "
                f"{row_place(item['row'])} have the same query and candidate, but relevance "
                f"{first[0]:g} and {item['value']:g}"
            )
        if first[1] == item["row"]:
            keep.append(index)
    return found.take(pa.array(keep, pa.int64()))


def row_place(row: int) -> str:
    """Name a row of the source: its number from 1, and the file or split unless it is the first."""
    part, number = row >> ROW_BITS, (row & ((1 << ROW_BITS) - 1)) + 1
    return f"row {number} of source part {part + 1}" if part else f"row {number}"


def _labelled_item(
    text_column: str, task: LabelledTask, row: Row, ids: Ids, seed: int
) -> Item | None:
    column = task.value_column if isinstance(task, RegressionTask) else task.label_column
    text, given = ids[text_column], row[column]
    split = None if text is None else _split(task, row, text, seed)
    if split is None or not given:  # a CSV cannot tell an empty label from none
        return None
    item = {"prompt_id": text, "split": split}
    if isinstance(task, RegressionTask):
        return {**item, "value": _number(task, column, row)}
    if isinstance(task, ClassificationTask) and task.multi_label:
        return {**item, "text": _labels(task, row)}
    return {**item, "text": given}


def _relevance_item(
    text_column: str, task: RerankingTask | RetrievalTask, row: Row, ids: Ids
) -> Item | None:
    if isinstance(task, RerankingTask):
        candidate = ids[task.candidate_column]
        if not _is_test(task, row):
            return None
    else:
        candidate = ids[task.document_column or text_column]
    query = ids[task.query_column]
    if query is None:
        return None
    if candidate is None:  # whatever its relevance: `check_relevance` has to see the query
        return {"prompt_id": query, "candidate_id": None, "value": 0.0}
    value = 1.0
    if task.relevance_column:
        if not row[task.relevance_column]:
            return None
        value = _number(task, task.relevance_column, row)
        if not 0 <= value <= _HIGHEST_RELEVANCE or value != round(value):
            wanted = f"a whole number from 0 to {_HIGHEST_RELEVANCE}"
            _refuse(task, task.relevance_column, row, wanted)
    return {"prompt_id": query, "candidate_id": candidate, "value": value}


def _pair_item(task: PairClassificationTask | StsTask, row: Row, ids: Ids) -> Item | None:
    column = task.score_column if isinstance(task, StsTask) else task.label_column
    first, second = ids[task.first_column], ids[task.second_column]
    if first is None or second is None or not row[column] or not _is_test(task, row):
        return None
    value = _number(task, column, row) if isinstance(task, StsTask) else _truth(task, column, row)
    return {"prompt_id": first, "candidate_id": second, "value": value}


def _split(task: LabelledTask, row: Row, identity: int, seed: int) -> str | None:
    """Return the split of an item: its column's value, or one drawn from (seed, prompt, task)."""
    if task.split_column:
        value: str | None = row[task.split_column]
        return value
    if isinstance(task, ClusteringTask):
        return "test"
    draw = generator(seed, identity, f"split of {task.name}").random()
    return "test" if draw < task.test_fraction else "train"


def _is_test(task: PairClassificationTask | StsTask | RerankingTask, row: Row) -> bool:
    return task.split_column is None or row[task.split_column] == "test"


def _labels(task: ClassificationTask, row: Row) -> str:
    """Return the labels of an item as a JSON list, from one or from separated text."""
    text: str = row[task.label_column]
    if text.lstrip().startswith("["):
        try:
            labels = [str(label) for label in json.loads(text) if label is not None]
        except ValueError:
            _refuse(task, task.label_column, row, "a list of labels")
    else:
        labels = [label.strip() for label in text.split(task.label_separator) if label.strip()]
    return json.dumps(sorted(set(labels)), ensure_ascii=False)


def _number(task: Task, column: str, row: Row) -> float:
    try:
        value = float(row[column])
    except ValueError:
        _refuse(task, column, row, "a number")
    if not np.isfinite(value):
        _refuse(task, column, row, "a finite number")
    return value


def _truth(task: Task, column: str, row: Row) -> float:
    text = str(row[column]).strip().lower()
    if text not in _TRUE + _FALSE:
        _refuse(task, column, row, "1 or 0, true or false")
    return float(text in _TRUE)


def _refuse(task: Task, column: str, row: Row, wanted: str) -> NoReturn:
    raise ConfigError(
        f"task {task.name}, column {column}: {row[column]!r} in {row_place(row['row'])} is not "
        f"{wanted}"
    )


def _needed(task: Task) -> str:
    """Say what a row must have to be an item of a task."""
    texts = list(task.own_text_columns)
    if not texts or (isinstance(task, RetrievalTask) and not task.document_column):
        texts.append("the text column")
    split = getattr(task, "split_column", None)
    values = [column for column in task.value_columns if column != split]
    of_split = ""
    if isinstance(task, (PairClassificationTask, StsTask, RerankingTask)):
        of_split = f", and test in {split}" if split else ""
    elif split:
        values.append(split)
    of_values = f" and a value in {' and '.join(values)}" if values else ""
    return f"a text in {' and '.join(texts)}{of_values}{of_split}"


def _check_split(task: ClassificationTask | RegressionTask, items: pa.Table) -> None:
    found = Counter(items["split"].to_pylist())
    absent = [split for split in ("train", "test") if not found[split]]
    if absent and task.split_column:
        raise ConfigError(
            f"task {task.name}: column {task.split_column} has no {' and no '.join(absent)} row; "
            f"it has: {_some(found)}"
        )
    if absent:
        raise ConfigError(
            f"task {task.name}: test_fraction {task.test_fraction} leaves no "
            f"{' and no '.join(absent)} item among {items.num_rows}; give more rows"
        )


def _check_classes(task: ClassificationTask, items: pa.Table) -> None:
    where = f"task {task.name}, column {task.label_column}"
    rows_of = {split: _labels_of_rows(task, items, split) for split in ("train", "test")}
    train, test = (Counter(label for row in rows_of[split] for label in row) for split in rows_of)
    for split, found in {"training": train, **({"test": test} if task.multi_label else {})}.items():
        if len(found) < 2:  # noqa: PLR2004 - one class is no choice
            raise ConfigError(
                f"{where}: the {split} items have {_count(found, 'label')}, 2 are needed"
            )
    unseen = {label: count for label, count in test.items() if label not in train}
    if unseen:
        raise ConfigError(
            f"{where}: the test items have {_count(unseen, 'label')} that no training item has; "
            f"those have {_count(train, 'label')}"
        )
    if task.multi_label:
        # Every drawn row is among the first few of one of its labels.
        drawn = sum(min(count, task.samples_per_label) for count in train.values())
        if drawn < NEIGHBOURS:
            raise ConfigError(
                f"{where}: a fold draws at most {drawn} training items with a label, {NEIGHBOURS} "
                f"neighbours need as many; samples_per_label is {task.samples_per_label}, the "
                f"training items have {_count(train, 'label')}"
            )
        return
    rarest, count = min(train.items(), key=lambda pair: (pair[1], pair[0]))
    if count < task.samples_per_label:
        raise ConfigError(
            f"{where}: label {rarest!r} has {count} training item{'' if count == 1 else 's'}, "
            f"samples_per_label is {task.samples_per_label}; lower it, or leave the label out of "
            "the data"
        )


def _labels_of_rows(task: ClassificationTask, items: pa.Table, split: str) -> list[list[str]]:
    labels = items.filter(pc.equal(items["split"], split))["label"].to_pylist()
    return [json.loads(several) if task.multi_label else [several] for several in labels]


def _check_clusters(task: ClusteringTask, items: pa.Table) -> None:
    where = f"task {task.name}, column {task.label_column}"
    test = items.filter(pc.equal(items["split"], "test"))
    labels = Counter(test["label"].to_pylist())
    if not test.num_rows:
        splits = _some(Counter(items["split"].to_pylist()))
        raise ConfigError(
            f"task {task.name}: column {task.split_column} has no test row; it has: {splits}"
        )
    if len(labels) < 2:  # noqa: PLR2004 - one cluster is no choice
        raise ConfigError(f"{where}: the items have {_count(labels, 'label')}, 2 are needed")
    if str(NO_LABEL) in labels:
        raise ConfigError(
            f"{where}: the label {NO_LABEL} means 'not labelled' in this protocol; rename it"
        )
    smallest = min(task.documents_per_fold, task.max_documents or test.num_rows, test.num_rows)
    if smallest < len(labels):
        raise ConfigError(
            f"{where}: {len(labels)} labels need as many documents, but a fold has {smallest}"
        )


def _check_values(task: RegressionTask | PairClassificationTask | StsTask, items: pa.Table) -> None:
    (column,) = set(task.value_columns) - {task.split_column}
    where = f"task {task.name}, column {column}"
    parts = {"items": items}
    if isinstance(task, RegressionTask):
        splits = {"training items": "train", "test items": "test"}
        parts = {kind: items.filter(pc.equal(items["split"], s)) for kind, s in splits.items()}
    for kind, part in parts.items():
        values = set(part["value"].to_pylist())
        if len(values) < 2:  # noqa: PLR2004 - nothing to tell apart
            raise ConfigError(
                f"{where}: all {kind} ({part.num_rows}) have the value {values.pop():g}, 2 "
                "different ones are needed"
            )
    if isinstance(task, RegressionTask):
        _check_samples(task, where, parts["training items"]["value"].to_numpy())


def _check_samples(task: RegressionTask, where: str, train_N: npt.NDArray[np.float64]) -> None:
    if task.samples < len(train_N):
        try:
            stratified_rows(train_N, seed=0, samples=task.samples)  # the draw of a fold
        except NoScoreError as error:
            raise ConfigError(f"{where}: {error}") from error


def _check_relevant(task: RerankingTask | RetrievalTask, items: pa.Table) -> None:
    queries = set(items["query_id"].to_pylist())
    relevant = set(items.filter(pc.greater(items["relevance"], 0))["query_id"].to_pylist())
    if queries - relevant:
        bare = queries - relevant
        pairs = zip(items["query_id"].to_pylist(), items["row"].to_pylist(), strict=True)
        row = min(row for query, row in pairs if query in bare)
        raise ConfigError(
            f"task {task.name}, column {task.relevance_column}: {len(bare)} of {len(queries)} "
            f"queries have no relevant candidate, first that of {row_place(row)}; leave them out "
            "of the data"
        )


def _count(names: Mapping[str, int], what: str) -> str:
    """Say how many names there are, and which."""
    shown = f" ({_some(names)})" if names else ""
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}{shown}"


def _some(names: Mapping[str, int]) -> str:
    shown = sorted(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
