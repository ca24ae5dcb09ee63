"""Tasks with queries: their own candidates in order, or their documents found among all."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.blocks import ConfigError
from jobs.config.datasets import RerankingTask, RetrievalTask
from jobs.tasks.items import Given, Ids, Item, Row, number, refuse, row_place
from operators.probes.fold import FoldScore, Vectors
from operators.probes.relevance import reranking, retrieval

_HIGHEST_RELEVANCE = np.iinfo(np.int16).max


def item(task: RerankingTask | RetrievalTask, row: Row, ids: Ids, _seed: int) -> Item | None:
    """Return the item of a query and a candidate or document, whose value is its relevance."""
    query = ids[task.query_column]
    if isinstance(task, RerankingTask):
        candidate = ids[task.candidate_column]
        if task.split_column is not None and row[task.split_column] != "test":
            return None
    else:
        candidate = ids[task.document_column]
    if query is None:
        return None
    if candidate is None:  # whatever its relevance: `one_of_each_pair` has to see the query
        return {"prompt_id": query, "candidate_id": None, "value": 0.0}
    value, column = 1.0, task.relevance_column
    if column:
        if not row[column]:
            return None
        value = number(task, column, row)
        if not 0 <= value <= _HIGHEST_RELEVANCE or value != round(value):
            refuse(task, column, row, f"a whole number from 0 to {_HIGHEST_RELEVANCE}")
    return {"prompt_id": query, "candidate_id": candidate, "value": value}


def one_of_each_pair(task: RerankingTask | RetrievalTask, records: pa.Table) -> pa.Table:
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
    for index, each in enumerate(found.to_pylist()):
        pair = each["prompt_id"], each["candidate_id"]
        first = seen.setdefault(pair, (each["value"], each["row"]))
        if first[0] != each["value"]:
            raise ConfigError(
                f"task {task.name}, column {task.relevance_column}: {row_place(first[1])} and "
                f"{row_place(each['row'])} have the same query and candidate, but relevance "
                f"{first[0]:g} and {each['value']:g}"
            )
        if first[1] == each["row"]:
            keep.append(index)
    return found.take(pa.array(keep, pa.int64()))


def check(task: RerankingTask | RetrievalTask, items: pa.Table) -> None:
    """ConfigError if a query has no relevant candidate."""
    queries, rows = items["query_id"].to_pylist(), items["row"].to_pylist()
    relevant = items.filter(pc.greater(items["relevance"], 0))["query_id"].to_pylist()
    bare = set(queries) - set(relevant)
    if bare:
        row = min(row for query, row in zip(queries, rows, strict=True) if query in bare)
        raise ConfigError(
            f"task {task.name}, column {task.relevance_column}: {len(bare)} of {len(set(queries))} "
            f"queries have no relevant candidate, first that of {row_place(row)}; leave them out "
            "of the data"
        )


def _queries(given: Given, least: int) -> tuple[Vectors, Vectors, list[list[int]], list[list[int]]]:
    """Return queries in source order, documents by id, and each query's documents and their gains.

    Of the pairs that have vectors, those with a gain of at least `least`.
    """
    vectors, items = given.vectors, given.items
    query_ids, candidate_ids = items["query_id"].to_numpy(), items["candidate_id"].to_numpy()
    keep = (vectors.rows_of(query_ids) >= 0) & (vectors.rows_of(candidate_ids) >= 0)
    query_ids, candidate_ids = query_ids[keep], candidate_ids[keep]
    queries, first = np.unique(query_ids, return_index=True)
    queries = queries[np.argsort(first)]  # source order
    documents = np.unique(candidate_ids)
    of_query: dict[int, list[tuple[int, int]]] = defaultdict(list)
    rows = np.searchsorted(documents, candidate_ids).tolist()
    gains = items["relevance"].to_numpy()[keep].tolist()
    for query, row, gain in zip(query_ids.tolist(), rows, gains, strict=True):
        if gain >= least:
            of_query[query].append((row, gain))
    ordered = [of_query[query] for query in queries.tolist()]
    return (
        vectors.matrix_ND[vectors.rows_of(queries)],
        vectors.matrix_ND[vectors.rows_of(documents)],
        [[row for row, _ in pairs] for pairs in ordered],
        [[gain for _, gain in pairs] for pairs in ordered],
    )


def score_reranking(_task: RerankingTask, given: Given) -> list[FoldScore]:
    """Return the mean average precision of the queries' own candidates."""
    query_MD, document_ND, rows, gains = _queries(given, least=0)
    return reranking(query_MD, document_ND, rows, gains, **given.drawn)


def score_retrieval(_task: RetrievalTask, given: Given) -> list[FoldScore]:
    """Return the nDCG@10 of the queries, among the documents of all."""
    query_MD, document_ND, rows, gains = _queries(given, least=1)
    return retrieval(query_MD, document_ND, rows, gains=gains, **given.drawn)
