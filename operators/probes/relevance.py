"""Probes of relevance: is a query's nearest document, of all or of its own, one that belongs to it?

Shapes: M queries, N documents, D dimensions, Q queries and B documents of one block, C candidates
of one query, K documents kept per query, H pairs of which these are chosen, R relevant documents of
one query.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from layerrank.operators.probes.fold import (
    DECIMALS,
    FoldScore,
    NoScoreError,
    Values,
    Vectors,
    cosines,
    directions,
    finite_vectors,
    mean_score,
    require_positive,
)

# Queries and documents of one block of similarities.
BLOCK = 1024

Rows = npt.NDArray[np.int64]


def _checked_sides(
    query_MD: Vectors, document_ND: Vectors, **lists: Sequence[npt.ArrayLike]
) -> tuple[Vectors, Vectors]:
    """Return both sides; vectors that do not fit, or lists that are not one per query, raise."""
    query_MD = finite_vectors("queries", query_MD)
    document_ND = finite_vectors("documents", document_ND)
    if query_MD.shape[1] != document_ND.shape[1]:
        raise ValueError(f"dim of queries {query_MD.shape[1]}, of documents {document_ND.shape[1]}")
    for name, given in lists.items():
        if len(given) != len(query_MD):
            raise ValueError(
                f"{name}: one list per query, got {len(given)} for {len(query_MD)} queries"
            )
    return query_MD, document_ND


def _checked_rows(name: str, query: int, named: npt.ArrayLike, n_documents: int) -> Rows:
    rows: Rows = np.asarray(named, dtype=np.int64)
    if not rows.size:
        what = "relevant document" if name == "relevant" else "candidate"
        raise NoScoreError(f"{name}: query {query} has no {what}")
    if rows.min() < 0 or rows.max() >= n_documents:
        raise ValueError(
            f"{name}: query {query} names document rows {rows.min()}..{rows.max()}, "
            f"there are {n_documents} documents"
        )
    return rows


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
    require_positive(k=k)
    query_MD, document_ND = _checked_sides(
        query_MD, document_ND, candidates=candidates, relevance=relevance
    )
    score_M = np.empty(len(query_MD))
    for query, (named, gains) in enumerate(zip(candidates, relevance, strict=True)):
        rows = _checked_rows("candidates", query, named, len(document_ND))
        gain_C: Values = np.asarray(gains, dtype=np.float64)
        if rows.shape != gain_C.shape:
            raise ValueError(
                f"relevance: query {query} has {rows.size} candidates and {gain_C.size} gains"
            )
        if not np.isfinite(gain_C).all():
            raise ValueError(f"relevance: query {query} has a gain that is not finite")
        if not (gain_C > 0).any():
            raise NoScoreError(f"relevance: query {query} has no relevant candidate")
        (cosine_C,) = cosines(query_MD[query : query + 1], document_ND[rows])
        score_M[query] = average_precision(cosine_C, gain_C, k)
    return [mean_score(f"map_at_{k}", score_M, seed=seed, replicates=replicates)]


def _judged(
    query: int, relevant: npt.ArrayLike, gains: npt.ArrayLike | None, n_documents: int
) -> tuple[Rows, Values]:
    """Return the different relevant rows, ascending, and their gains."""
    named = _checked_rows("relevant", query, relevant, n_documents)
    rows, first = np.unique(named, return_index=True)
    if gains is None:
        return rows, np.ones(len(rows))
    given: Values = np.asarray(gains, dtype=np.float64)
    if given.shape != named.shape:
        raise ValueError(f"gains: query {query} has {named.size} documents and {given.size} gains")
    if not (np.isfinite(given) & (given >= 0)).all() or not given.any():
        raise ValueError(
            f"gains: query {query} needs finite gains of at least 0, one above 0, got {given}"
        )
    gain_R = given[first]
    disagreeing = named[given != gain_R[np.searchsorted(rows, named)]]
    if disagreeing.size:
        raise ValueError(f"gains: query {query} gives document {disagreeing[0]} different gains")
    return rows, gain_R


def ndcg(ranked: npt.NDArray[np.intp], relevant: Rows, gain_R: Values, k: int) -> float:
    """Normalised discounted cumulative gain of one ranking at cut-off `k`.

    `relevant` is ascending, `gain_R` holds the gain of each. DCG@k = sum over ranks i = 1..k of
    gain_i / log2(i + 1), divided by the DCG@k of the best ranking. Source: Jarvelin and Kekalainen
    2002, with the discount and the linear gain of `trec_eval`. Example: the only relevant document
    at rank 3 scores 1 / log2(4) = 0.5.
    """
    discount_K = 1 / np.log2(np.arange(2, k + 2))
    place_K = np.minimum(np.searchsorted(relevant, ranked[:k]), len(relevant) - 1)
    gain_K = np.where(relevant[place_K] == ranked[:k], gain_R[place_K], 0.0)
    best_K = np.sort(gain_R)[::-1][:k]
    return float((gain_K @ discount_K[: len(gain_K)]) / (best_K @ discount_K[: len(best_K)]))


def _nearest(query_MD: Vectors, document_ND: Vectors, k: int) -> Rows:
    """Return the rows [M, K] of each query's k nearest documents, or of all if these are fewer.

    By descending cosine, equal ones by row. Every row is scaled to length 1 once.
    """
    unit_MD = directions(query_MD)
    n_kept = min(k, len(document_ND))
    cosine_MK = np.full((len(query_MD), n_kept), -np.inf)
    row_MK: Rows = np.zeros(cosine_MK.shape, dtype=np.int64)
    for start in range(0, len(document_ND), BLOCK):
        unit_BD = directions(document_ND[start : start + BLOCK])
        for first in range(0, len(query_MD), BLOCK):
            kept_QK, row_QK = cosine_MK[first : first + BLOCK], row_MK[first : first + BLOCK]
            cosine_QB = unit_MD[first : first + BLOCK] @ unit_BD.T
            np.round(cosine_QB, DECIMALS, out=cosine_QB)
            if not start and len(unit_BD) > n_kept:
                near_QB = cosine_QB >= np.partition(cosine_QB, -n_kept)[:, -n_kept, np.newaxis]
            else:  # one that is as near as the last one kept comes after it
                near_QB = cosine_QB > kept_QK[:, -1:]
            query_H, place_H = np.nonzero(near_QB)
            query_H = np.concatenate([np.arange(len(kept_QK)).repeat(n_kept), query_H])
            cosine_H = np.concatenate([kept_QK.ravel(), cosine_QB[near_QB]])
            row_H = np.concatenate([row_QK.ravel(), start + place_H])
            order_H = np.lexsort((-cosine_H, query_H))  # keeps the order of what is equal
            query_H = query_H[order_H]
            rank_H = np.arange(len(order_H)) - np.searchsorted(query_H, query_H)
            best = order_H[rank_H < n_kept]
            kept_QK[:] = cosine_H[best].reshape(kept_QK.shape)
            row_QK[:] = row_H[best].reshape(kept_QK.shape)
    return row_MK


def retrieval(
    query_MD: Vectors,
    document_ND: Vectors,
    relevant: Sequence[npt.ArrayLike],
    *,
    gains: Sequence[npt.ArrayLike] | None = None,
    seed: int = 42,
    replicates: int = 200,
    k: int = 10,
) -> list[FoldScore]:
    """Mean nDCG@k of ranking all documents by cosine similarity to each query.

    `relevant[m]` holds the rows of query m's relevant documents, a repeated row counts once, and
    `gains[m]` how relevant each is (default: 1). Equal similarities rank by document row. Nothing
    is fitted, so there is one score, the mean over queries, with its value on `replicates`
    bootstrap resamples of the queries.

    Source: nDCG@10 is the main score of retrieval in mteb (formula at `ndcg`). Ours computes the
    similarity in float64, because a layer's vectors can all lie within 1e-5 of one direction,
    which float32 hardly resolves; and there equal similarities rank by descending document id.
    Texts that are equal are one row of ours; there each id is a document, and the twin of the right
    one counts as wrong (on a real set with 7 % twins 0.7 to 4.2 points less).
    Range 0..1, higher is better. Memory beyond the input: the queries in float64, a few blocks.
    """
    require_positive(k=k)
    lists = {"relevant": relevant} if gains is None else {"relevant": relevant, "gains": gains}
    query_MD, document_ND = _checked_sides(query_MD, document_ND, **lists)
    judged_M = [
        _judged(query, rows, None if gains is None else gains[query], len(document_ND))
        for query, rows in enumerate(relevant)
    ]
    ranked_MK = _nearest(query_MD, document_ND, k)
    ndcg_M = np.array(
        [ndcg(row_K, *judged, k) for row_K, judged in zip(ranked_MK, judged_M, strict=True)]
    )
    return [mean_score(f"ndcg_at_{k}", ndcg_M, seed=seed, replicates=replicates)]
