"""Reranking probe: are a query's relevant candidates closer to it than the others?

Shapes: M queries, N documents, D dimensions, C candidates of one query.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from operators.probes.cosine import cosines
from operators.probes.fold import (
    FoldScore,
    NoScoreError,
    Values,
    Vectors,
    finite_vectors,
    mean_score,
    require_positive,
)


def average_precision(cosine_C: Values, gain_C: Values, k: int) -> float:
    """Average precision at cut-off `k` of one ranking; a gain above 0 is relevant.

    AP@k = sum over relevant candidates at rank i <= k of (relevant ones among the first i) / i,
    divided by all relevant candidates, as `map_cut` of `trec_eval`. Equal similarities rank the
    less relevant first, so that no order of the rows can help a layer that tells nothing apart.
    Example: relevant candidates at ranks 1 and 3 score (1/1 + 2/3) / 2.
    """
    relevant_C = gain_C[np.lexsort((gain_C, -cosine_C))] > 0
    rank = np.flatnonzero(relevant_C[:k]) + 1
    return float((np.arange(1, len(rank) + 1) / rank).sum() / np.count_nonzero(relevant_C))


def _checked_query(
    query: int, candidates: npt.ArrayLike, relevance: npt.ArrayLike, n_documents: int
) -> tuple[npt.NDArray[np.int64], Values]:
    rows: npt.NDArray[np.int64] = np.asarray(candidates, dtype=np.int64)
    gain_C: Values = np.asarray(relevance, dtype=np.float64)
    if not rows.size:
        raise NoScoreError(f"candidates: query {query} has no candidate")
    if rows.shape != gain_C.shape:
        raise ValueError(
            f"relevance: query {query} has {rows.size} candidates and {gain_C.size} gains"
        )
    if rows.min() < 0 or rows.max() >= n_documents:
        raise ValueError(
            f"candidates: query {query} names document rows {rows.min()}..{rows.max()}, "
            f"there are {n_documents} documents"
        )
    if not np.isfinite(gain_C).all():
        raise ValueError(f"relevance: query {query} has a gain that is not finite")
    if not (gain_C > 0).any():
        raise NoScoreError(f"relevance: query {query} has no relevant candidate")
    return rows, gain_C


def reranking(
    query_MD: Vectors,
    document_ND: Vectors,
    candidates: Sequence[npt.ArrayLike],
    relevance: Sequence[npt.ArrayLike],
    *,
    seed: int = 42,
    replicates: int = 200,
    k: int = 1000,
) -> list[FoldScore]:
    """Mean average precision of ranking each query's own candidates by cosine similarity.

    `candidates[m]` holds the document rows of query m, `relevance[m]` their gains (0: not
    relevant). Nothing is fitted, so there is one score, the mean over queries, with its value on
    `replicates` bootstrap resamples of the queries. Formula at `average_precision`.

    Source: `map_at_1000`, the main score of mteb 2.26 for reranking with `AbsTaskRetrieval`. There
    equal similarities rank by descending document id, which puts irrelevant candidates first with
    the ids that mteb gives. Range 0..1, higher is better. Ours computes the cosine in float64.
    """
    query_MD = finite_vectors("queries", query_MD)
    document_ND = finite_vectors("documents", document_ND)
    require_positive(k=k)
    if query_MD.shape[1] != document_ND.shape[1]:
        raise ValueError(f"dim of queries {query_MD.shape[1]}, of documents {document_ND.shape[1]}")
    for name, lists in (("candidates", candidates), ("relevance", relevance)):
        if len(lists) != len(query_MD):
            raise ValueError(
                f"{name}: one list per query, got {len(lists)} for {len(query_MD)} queries"
            )
    score_M = np.empty(len(query_MD))
    for query in range(len(query_MD)):
        rows, gain_C = _checked_query(query, candidates[query], relevance[query], len(document_ND))
        (cosine_C,) = cosines(query_MD[query : query + 1], document_ND[rows])
        score_M[query] = average_precision(cosine_C, gain_C, k)
    return [mean_score(f"map_at_{k}", score_M, seed=seed, replicates=replicates)]
