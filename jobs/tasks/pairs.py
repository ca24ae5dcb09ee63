"""Tasks on pairs of texts: which belong together, and how alike people find them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.config.datasets import PairClassificationTask, PairTask, StsTask
from jobs.tasks.items import Given, Ids, Item, Row, number, refuse, require_different
from operators.probes.fold import FoldScore, PairRows
from operators.probes.pairs import pair_classification, sts

_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def _column(task: PairTask) -> str:
    """Return the column of the pairs' values."""
    (column,) = set(task.value_columns) - {task.split_column}
    return column


def item(task: PairTask, row: Row, ids: Ids, _seed: int) -> Item | None:
    """Return the item of a pair in the test split, whose value is a score, or 1 or 0."""
    column = _column(task)
    first, second = ids[task.first_column], ids[task.second_column]
    if first is None or second is None or not row[column]:
        return None
    if task.split_column is not None and row[task.split_column] != "test":
        return None
    if isinstance(task, StsTask):
        value = number(task, column, row)
    else:
        text = str(row[column]).strip().lower()
        if text not in _TRUE + _FALSE:
            refuse(task, column, row, "1 or 0, true or false")
        value = float(text in _TRUE)
    return {"prompt_id": first, "candidate_id": second, "value": value}


def check(task: PairTask, items: pa.Table) -> None:
    """ConfigError if all pairs have one value."""
    require_different(f"task {task.name}, column {_column(task)}", "items", items)


def _pairs(given: Given) -> tuple[PairRows, npt.NDArray[np.float64]]:
    """Return the rows of both sides of the pairs that have vectors, and their values."""
    first = given.vectors.rows_of(given.items["first_id"].to_numpy())
    second = given.vectors.rows_of(given.items["second_id"].to_numpy())
    both = (first >= 0) & (second >= 0)
    return (first[both], second[both]), given.items["value"].to_numpy()[both]


def score_pair_classification(_task: PairClassificationTask, given: Given) -> list[FoldScore]:
    """Return the average precision of the pairs' similarity."""
    (rows, values), sides = _pairs(given), (given.vectors.matrix_ND,) * 2
    return pair_classification(*sides, values.astype(np.int64), rows=rows, **given.drawn)


def score_sts(_task: StsTask, given: Given) -> list[FoldScore]:
    """Return the rank correlation of the pairs' similarity with their values."""
    (rows, values), sides = _pairs(given), (given.vectors.matrix_ND,) * 2
    return sts(*sides, values, rows=rows, **given.drawn)
