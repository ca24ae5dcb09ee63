"""Tasks with a label or a value for each text: classification, regression, clustering."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import (
    ClassificationTask,
    ClusteringTask,
    FittedTask,
    RegressionTask,
)
from layerrank.jobs.tasks.items import (
    Given,
    Ids,
    Item,
    Row,
    counted,
    listed,
    number,
    refuse,
    require_different,
    spelled,
)
from layerrank.operators.later import Later
from layerrank.operators.probes.fold import BINS, NEIGHBOURS, NO_LABEL, FoldScore, NoScoreError
from layerrank.operators.prompts.seeding import generator
from layerrank.storage.layers import LayerVectors

if TYPE_CHECKING:
    from layerrank.operators.probes import labelled
else:  # scikit-learn takes a second to import, and most of the items are only read
    labelled = Later("layerrank.operators.probes.labelled")


def item(
    task: ClassificationTask | RegressionTask | ClusteringTask, row: Row, ids: Ids, seed: int
) -> Item | None:
    """Return the item of a text with its label or value, and its split.

    Without a split column it is drawn from (seed, prompt, task).
    """
    column = task.value_column if isinstance(task, RegressionTask) else task.label_column
    text = ids[None]
    if text is None or not row[column]:  # a CSV cannot tell an empty label from none
        return None
    split = "test"
    if task.split_column:
        split = row[task.split_column]
    elif not isinstance(task, ClusteringTask):
        draw = generator(seed, text, f"split of {task.name}").random()
        split = "test" if draw < task.test_fraction else "train"
    if split is None:
        return None
    found = {"prompt_id": text, "split": split}
    if isinstance(task, RegressionTask):
        return {**found, "value": number(task.name, column, row)}
    if isinstance(task, ClassificationTask) and task.multi_label:
        return {**found, "text": _labels(task, row)}
    return {**found, "text": row[column]}


def _labels(task: ClassificationTask, row: Row) -> str:
    """Return the labels of an item as a JSON list, from one or from separated text."""
    text: str = row[task.label_column]
    if text.lstrip().startswith("["):
        try:
            cells = map(spelled, json.loads(text))
            labels = [label for label in cells if label is not None]
        except ValueError:
            refuse(task.name, task.label_column, row, "a list of labels")
    else:
        labels = [label.strip() for label in text.split(task.label_separator) if label.strip()]
    return json.dumps(sorted(set(labels)), ensure_ascii=False)


def _part(items: pa.Table, split: str) -> pa.Table:
    return items.filter(pc.equal(items["split"], split))


def _check_split(task: FittedTask, items: pa.Table) -> None:
    found = Counter(items["split"].to_pylist())
    absent = " and no ".join(split for split in ("train", "test") if not found[split])
    if absent:
        raise ConfigError(
            f"task {task.name}: column {task.split_column} has no {absent} row; "
            f"it has: {listed(found)}"
            if task.split_column
            else f"task {task.name}: test_fraction {task.test_fraction} leaves no {absent} item "
            f"among {items.num_rows}; give more rows"
        )


def check_classification(task: ClassificationTask, items: pa.Table) -> None:
    """ConfigError if a split or a label has too few items for the folds."""
    _check_split(task, items)
    where = f"task {task.name}, column {task.label_column}"
    train, test = (
        Counter(
            label
            for cell in _part(items, split)["label"].to_pylist()
            for label in (json.loads(cell) if task.multi_label else [cell])
        )
        for split in ("train", "test")
    )
    for split, found in {"training": train, **({"test": test} if task.multi_label else {})}.items():
        if len(found) < 2:  # noqa: PLR2004 - one class is no choice
            raise ConfigError(f"{where}: the {split} items have {counted(found)}, 2 are needed")
    unseen = {label: count for label, count in test.items() if label not in train}
    if unseen:
        raise ConfigError(
            f"{where}: the test items have {counted(unseen)} that no training item has; those have "
            f"{counted(train)}"
        )
    if task.multi_label:
        # Every drawn row is among the first few of one of its labels.
        drawn = sum(min(count, task.samples_per_label) for count in train.values())
        if drawn < NEIGHBOURS:
            raise ConfigError(
                f"{where}: a fold draws at most {drawn} training items with a label, {NEIGHBOURS} "
                f"neighbours need as many; samples_per_label is {task.samples_per_label}, the "
                f"training items have {counted(train)}"
            )
        return
    rarest, count = min(train.items(), key=lambda pair: (pair[1], pair[0]))
    if count < task.samples_per_label:
        raise ConfigError(
            f"{where}: label {rarest!r} has {count} training item{'' if count == 1 else 's'}, "
            f"samples_per_label is {task.samples_per_label}; lower it, or leave the label out of "
            "the data"
        )


def check_regression(task: RegressionTask, items: pa.Table) -> None:
    """ConfigError if a split has one value only, or too few of a kind to draw the samples from."""
    _check_split(task, items)
    where = f"task {task.name}, column {task.value_column}"
    train = _part(items, "train")
    require_different(where, "training items", train)
    require_different(where, "test items", _part(items, "test"))
    if task.samples < train.num_rows:
        try:
            # The draw of a fold.
            labelled.stratified_rows(train["value"].to_numpy(), seed=0, samples=task.samples)
        except NoScoreError as error:
            raise ConfigError(f"{where}: {error}") from error


def check_clustering(task: ClusteringTask, items: pa.Table) -> None:
    """ConfigError if there is one label only, or more labels than documents in a fold."""
    where = f"task {task.name}, column {task.label_column}"
    test = _part(items, "test")
    labels = Counter(test["label"].to_pylist())
    if not test.num_rows:
        raise ConfigError(
            f"task {task.name}: column {task.split_column} has no test row; it has: "
            f"{listed(Counter(items['split'].to_pylist()))}"
        )
    if len(labels) < 2:  # noqa: PLR2004 - one cluster is no choice
        raise ConfigError(f"{where}: the items have {counted(labels)}, 2 are needed")
    if str(NO_LABEL) in labels:
        raise ConfigError(
            f"{where}: the label {NO_LABEL} means 'not labelled' in this protocol; rename it"
        )
    smallest = min(task.documents_per_fold, task.max_documents or test.num_rows, test.num_rows)
    if smallest < len(labels):
        raise ConfigError(
            f"{where}: {len(labels)} labels need as many documents, but a fold has {smallest}"
        )


def _side(
    items: pa.Table, vectors: LayerVectors, split: str, column: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Return the vectors of the items of a split that have one, and their labels or values."""
    part = _part(items, split)
    rows = vectors.rows_of(part["prompt_id"].to_numpy())
    return vectors.matrix_ND[rows[rows >= 0]], np.array(part[column].to_pylist())[rows >= 0]


def score_classification(task: ClassificationTask, given: Given) -> list[FoldScore]:
    """Return the accuracy of every wanted fold, of a text's one label or of all it has."""
    train_ND, train = _side(given.items, given.vectors, "train", "label")
    test_ND, test = _side(given.items, given.tested, "test", "label")
    drawn = {"samples_per_label": task.samples_per_label, "seed": given.seed}
    folds = {"first": given.first, "folds": given.folds}
    if not task.multi_label:
        return labelled.classification(
            train_ND, train, test_ND, test, **drawn, **folds, replicates=given.replicates
        )
    lists = [[json.loads(labels) for labels in part] for part in (train, test)]
    return labelled.multilabel_classification(
        train_ND, lists[0], test_ND, lists[1], **drawn, **folds
    )


def score_regression(task: RegressionTask, given: Given) -> list[FoldScore]:
    """Return the rank correlation of every fold."""
    train = _side(given.items, given.vectors, "train", "value")
    test = _side(given.items, given.tested, "test", "value")
    return labelled.regression(
        *train, *test, samples=task.samples, seed=given.seed, folds=given.folds
    )


def fewer_per_label(task: ClassificationTask, examples: int) -> ClassificationTask:
    """Return the task with folds of so many training items of every label, or what it has."""
    return task.model_copy(update={"samples_per_label": examples})


def fewer_per_tenth(task: RegressionTask, examples: int) -> RegressionTask:
    """Return the task with folds of so many training items of every tenth of the values.

    Where that is more than there are, all of them are one fold.
    """
    return task.model_copy(update={"samples": examples * BINS})


def score_clustering(task: ClusteringTask, given: Given) -> list[FoldScore]:
    """Return the V-measure of every wanted fold."""
    test_ND, labels = _side(given.items, given.vectors, "test", "label")
    return labelled.clustering(
        test_ND,
        labels,
        seed=given.seed,
        first=given.first,
        folds=given.folds,
        max_documents=task.max_documents,
        documents_per_fold=min(task.documents_per_fold, len(labels)),
    )
