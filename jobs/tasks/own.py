"""Tasks of the user's own: a class gets the vectors and cells of the items, and scores them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import OwnTask
from layerrank.jobs.own import Own
from layerrank.jobs.tasks.items import Given, Ids, Item, Row
from layerrank.operators import own as contract
from layerrank.operators.probes.fold import FoldScore, NoScoreError


def item(task: OwnTask, row: Row, ids: Ids, _seed: int) -> Item | None:
    """Return the item of a text, or a pair of them, with the cells that the class gets."""
    texts = [ids[column] for column in task.text_columns]
    cells = {name: row[column] for name, column in task.columns.items()}
    if None in texts or not all(cells.values()):  # a CSV cannot tell an empty cell from none
        return None
    sides = dict(zip(("prompt_id", "candidate_id"), texts, strict=False))
    return {**sides, "text": json.dumps(cells, ensure_ascii=False)}


def made(task: OwnTask, own: Own) -> contract.Task:
    """Return what scores a task: its class, imported and made with the options of the block."""
    try:
        found = own.load()(**task.options)
    except ConfigError:
        raise
    except Exception as error:
        given = ", ".join(task.options) or "none"
        raise ConfigError(
            f"task {task.name}: {own.name} cannot be made with its options ({given}): "
            f"{contract.told(error)}"
        ) from error
    if not isinstance(found, contract.Task):
        raise ConfigError(
            f"task {task.name}: {own.name} is no task: it needs a `metric` and a method `score`"
        )
    return found


def check(scorer: contract.Task, task: OwnTask, items: pa.Table) -> None:
    """ConfigError if the class has something against the items."""
    refuse = getattr(scorer, "check", None)
    if refuse is None:
        return
    try:
        refuse(_columns(task, items["label"].to_pylist()))
    except Exception as error:
        raise ConfigError(f"task {task.name}: {contract.told(error)}") from error


def score(scorer: contract.Task, task: OwnTask, given: Given) -> list[FoldScore]:
    """Return the scores of the items whose texts have vectors, as the class gives them."""
    sides = [name for name in given.items.column_names if name.endswith("_id")]
    found = [given.vectors.rows_of(given.items[side].to_numpy()) for side in sides]
    there = np.all([rows >= 0 for rows in found], axis=0)
    if not there.any():
        raise NoScoreError("no item has a vector")
    first_ND, *second_ND = (given.vectors.matrix_ND[rows[there]] for rows in found)
    columns = _columns(task, given.items["label"].filter(pa.array(there)).to_pylist())
    items = contract.Items(first_ND, columns, given.seed, given.folds, given.replicates, *second_ND)
    try:
        return contract.scored(scorer, items)
    except NoScoreError:
        raise
    except Exception as error:
        raise ValueError(f"{task.type}: {contract.told(error)}") from error


def _columns(task: OwnTask, labels: Sequence[str]) -> dict[str, list[str]]:
    """Return the cells of items by the names of their columns."""
    cells: list[dict[str, Any]] = [json.loads(each) for each in labels]
    return {name: [each[name] for each in cells] for name in task.columns}
