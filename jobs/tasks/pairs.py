"""Tasks on pairs of texts: alike ones, a query and its candidates, a query and its documents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import (
    PairClassificationTask,
    PairTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
)
from layerrank.jobs.tasks.items import (
    Given,
    Ids,
    Item,
    Row,
    number,
    refuse,
    require_different,
    row_place,
)
from layerrank.operators.probes.fold import FoldScore, PairRows, Vectors
from layerrank.operators.probes.pairs import pair_classification, sts
from layerrank.operators.probes.relevance import reranking, retrieval
from layerrank.operators.prompts.seeding import sample_order

_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
_HIGHEST_RELEVANCE = np.iinfo(np.int16).max


def _column(task: PairTask | RerankingTask | RetrievalTask) -> str | None:
    """Return the column of the pairs' values; None if every pair of a query is relevant."""
    split = getattr(task, "split_column", None)
    return next((column for column in task.value_columns if column != split), None)


def item(
    task: PairTask | RerankingTask | RetrievalTask, row: Row, ids: Ids, _seed: int
) -> Item | None:
    """Return the item of a pair in the test split: its value is a score, 1 or 0, or a relevance."""
    first, second = (ids[column] for column in task.text_columns)
    column, split = _column(task), getattr(task, "split_column", None)
    if first is None or (split is not None and row[split] != "test"):
        return None
    alike = isinstance(task, PairTask)
    value = 1.0
    if second is None and not alike:  # `one_of_each_pair` has to see every query
        value = 0.0
    elif second is None or (column and not row[column]):
        return None
    elif isinstance(task, PairClassificationTask):
        text = str(row[task.label_column]).strip().lower()
        if text not in _TRUE + _FALSE:
            refuse(task.name, task.label_column, row, "1 or 0, true or false")
        value = float(text in _TRUE)
    elif column:
        value = number(task.name, column, row)
        if not alike and (not 0 <= value <= _HIGHEST_RELEVANCE or value != round(value)):
            refuse(task.name, column, row, f"a whole number from 0 to {_HIGHEST_RELEVANCE}")
    return {"prompt_id": first, "candidate_id": second, "value": value}


def check(task: PairTask, items: pa.Table) -> None:
    """ConfigError if all pairs have one value."""
    require_different(f"task {task.name}, column {_column(task)}", "items", items)


def one_of_each_pair(task: RerankingTask | RetrievalTask, records: pa.Table) -> pa.Table:
    """Return the pairs of query and candidate in one shard, each once and none without a candidate.

    ConfigError for a query that has no candidate at all, and for a pair with two relevances.
    """
    found = records.filter(pc.is_valid(records["candidate_id"]))
    bare = _without(records, "prompt_id", found)
    if bare.num_rows and isinstance(task, RerankingTask):
        raise ConfigError(
            f"task {task.name}, column {task.candidate_column}: the query of "
            f"{row_place(pc.min(bare['row']).as_py())} has no candidate; leave it out of the data"
        )
    pairs: dict[tuple[int, int], dict[str, Any]] = {}
    for each in found.to_pylist():
        first = pairs.setdefault((each["prompt_id"], each["candidate_id"]), each)
        if first["value"] != each["value"]:
            raise ConfigError(
                f"task {task.name}, column {task.relevance_column}: {row_place(first['row'])} and "
                f"{row_place(each['row'])} have the same query and candidate, but relevance "
                f"{first['value']:g} and {each['value']:g}"
            )
    return pa.Table.from_pylist([*pairs.values()], found.schema)


def check_relevance(task: RerankingTask | RetrievalTask, items: pa.Table) -> None:
    """ConfigError if a query has no relevant candidate."""
    relevant = items.filter(pc.greater(items["relevance"], 0))
    bare = _without(items, "query_id", relevant)
    if bare.num_rows:
        few, every = (pc.count_distinct(each["query_id"]).as_py() for each in (bare, items))
        raise ConfigError(
            f"task {task.name}, column {task.relevance_column}: {few} of {every} queries have no "
            f"relevant candidate, first that of {row_place(pc.min(bare['row']).as_py())}; leave "
            "them out of the data"
        )


def _without(items: pa.Table, query: str, served: pa.Table) -> pa.Table:
    """Return the items of the queries that none of the `served` are of."""
    return items.filter(pc.invert(pc.is_in(items[query], served[query].combine_chunks())))


# Fewer pairs or queries say too little to compare by.
_FEWEST = 64


def share_of(ids: npt.NDArray[np.int64], given: Given) -> npt.NDArray[np.bool_]:
    """Return which items are in the share that is scored, by the text that each is of, [N].

    As many of the different texts as the share says, drawn by the seed; `_FEWEST` at least.
    """
    if given.share == 1:
        return np.ones(len(ids), dtype=np.bool_)
    texts = np.unique(ids)
    count = max(math.ceil(given.share * len(texts)), _FEWEST)
    return np.isin(ids, texts[sample_order(given.seed, texts)[:count]])


def _present(given: Given) -> tuple[PairRows, pa.Table]:
    """Return the pairs whose texts both have vectors, and the rows of these."""
    sides = [name for name in given.items.column_names if name.endswith("_id")]
    first, second = (given.vectors.rows_of(given.items[side].to_numpy()) for side in sides)
    both = (first >= 0) & (second >= 0)
    return (first[both], second[both]), given.items.filter(pa.array(both))


def _shared(given: Given) -> tuple[PairRows, pa.Table]:
    """Return the present pairs of the share that is scored, by their first text."""
    (first, second), pairs = _present(given)
    these = share_of(pairs["first_id"].to_numpy(), given)
    return (first[these], second[these]), pairs.filter(pa.array(these))


def score_pair_classification(_task: PairClassificationTask, given: Given) -> list[FoldScore]:
    """Return the average precision of the pairs' similarity."""
    (rows, pairs), sides = _shared(given), (given.vectors.matrix_ND,) * 2
    labels = pairs["value"].to_numpy().astype(np.int64)
    return pair_classification(*sides, labels, rows=rows, **given.drawn)


def score_sts(_task: StsTask, given: Given) -> list[FoldScore]:
    """Return the rank correlation of the pairs' similarity with their values."""
    (rows, pairs), sides = _shared(given), (given.vectors.matrix_ND,) * 2
    return sts(*sides, pairs["value"].to_numpy(), rows=rows, **given.drawn)


def _queries(given: Given, least: int) -> tuple[Vectors, Vectors, list[list[int]], list[list[int]]]:
    """Return queries in source order, documents by id, and each query's documents and their gains.

    Of the pairs that have vectors, those with a gain of at least `least`.
    """
    (first, second), pairs = _present(given)
    documents, rows = np.unique(second, return_inverse=True)
    these = share_of(pairs["query_id"].to_numpy(), given)
    first, rows = first[these], rows[these]
    of_query: dict[int, list[tuple[int, int]]] = {query: [] for query in first.tolist()}
    gains = pairs["relevance"].to_numpy()[these].tolist()
    for query, row, gain in zip(first.tolist(), rows.tolist(), gains, strict=True):
        if gain >= least:
            of_query[query].append((row, gain))
    return (
        given.vectors.matrix_ND[[*of_query]],
        given.vectors.matrix_ND[documents],
        [[row for row, _ in found] for found in of_query.values()],
        [[gain for _, gain in found] for found in of_query.values()],
    )


def score_reranking(_task: RerankingTask, given: Given) -> list[FoldScore]:
    """Return the mean average precision of the queries' own candidates."""
    return reranking(*_queries(given, least=0), **given.drawn)


def score_retrieval(_task: RetrievalTask, given: Given) -> list[FoldScore]:
    """Return the nDCG@10 of the queries, among the documents of all."""
    query_MD, document_ND, rows, gains = _queries(given, least=1)
    return retrieval(query_MD, document_ND, rows, gains=gains, **given.drawn)
