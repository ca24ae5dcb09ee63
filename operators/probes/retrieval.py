"""Retrieval probe: is a query's nearest document the one it belongs to?

Shapes: M queries, N documents, D dimensions, Q queries of one block, K documents kept per query.
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

# Entries of one block of similarities (float64, so 64 MiB).
BLOCK_ENTRIES = 2**23

Rows = npt.NDArray[np.int64]


def _best_documents(similarity_QN: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.intp]:
    """Rows of the `k` most similar documents, best first; of equal ones the lower row first."""
    n_documents = similarity_QN.shape[1]
    k = min(k, n_documents)
    kth_best_Q = np.partition(similarity_QN, n_documents - k, axis=1)[:, n_documents - k]
    best_QK = np.empty((len(similarity_QN), k), dtype=np.intp)
    for row, (similarity_N, kth_best) in enumerate(zip(similarity_QN, kth_best_Q, strict=True)):
        candidates = np.flatnonzero(similarity_N >= kth_best)
        order = np.argsort(-similarity_N[candidates], kind="stable")
        best_QK[row] = candidates[order[:k]]
    return best_QK


def _checked_query(
    query: int, relevant: npt.ArrayLike, gains: npt.ArrayLike | None, n_documents: int
) -> tuple[Rows, Values]:
    """Return the different relevant rows, ascending, and their gains."""
    named: Rows = np.asarray(relevant, dtype=np.int64)
    rows, first = np.unique(named, return_index=True)
    if not rows.size:
        raise NoScoreError(f"relevant: query {query} has no relevant document")
    if rows[0] < 0 or rows[-1] >= n_documents:
        raise ValueError(
            f"relevant: query {query} names document rows {rows[0]}..{rows[-1]}, "
            f"there are {n_documents} documents"
        )
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


def ndcg(
    ranked: npt.NDArray[np.intp], relevant: Rows, k: int, gains: Values | None = None
) -> float:
    """Normalised discounted cumulative gain of one ranking at cut-off `k`.

    `relevant` is ascending, `gains` holds the gain of each (1 without). DCG@k = sum over ranks
    i = 1..k of gain_i / log2(i + 1), divided by the DCG@k of the best ranking. Source: Jarvelin
    and Kekalainen 2002, with the discount and the linear gain of `trec_eval`. Example: the only
    relevant document at rank 3 scores 1 / log2(4) = 0.5.
    """
    gain_R = np.ones(len(relevant)) if gains is None else gains
    discount_K = 1 / np.log2(np.arange(2, k + 2))
    place_K = np.minimum(np.searchsorted(relevant, ranked[:k]), len(relevant) - 1)
    gain_K = np.where(relevant[place_K] == ranked[:k], gain_R[place_K], 0.0)
    best_K = np.sort(gain_R)[::-1][:k]
    return float((gain_K @ discount_K[: len(gain_K)]) / (best_K @ discount_K[: len(best_K)]))


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
    which float32 hardly resolves. Range 0..1, higher is better. Memory beyond the input: one block
    of similarities and one of documents.
    """
    query_MD = finite_vectors("queries", query_MD)
    document_ND = finite_vectors("documents", document_ND)
    require_positive(k=k)
    n_queries, n_documents = len(query_MD), len(document_ND)
    if query_MD.shape[1] != document_ND.shape[1]:
        raise ValueError(f"dim of queries {query_MD.shape[1]}, of documents {document_ND.shape[1]}")
    for name, lists in (("relevant", relevant), ("gains", relevant if gains is None else gains)):
        if len(lists) != n_queries:
            raise ValueError(
                f"{name}: one list per query, got {len(lists)} for {n_queries} queries"
            )
    judged_M = [
        _checked_query(query, rows, None if gains is None else gains[query], n_documents)
        for query, rows in enumerate(relevant)
    ]
    ndcg_M = np.empty(n_queries)
    block = max(1, BLOCK_ENTRIES // n_documents)
    for start in range(0, n_queries, block):
        cosine_QN = cosines(query_MD[start : start + block], document_ND)
        for query, ranked_K in enumerate(_best_documents(cosine_QN, k), start):
            rows, gain_R = judged_M[query]
            ndcg_M[query] = ndcg(ranked_K, rows, k, gain_R)
    return [mean_score(f"ndcg_at_{k}", ndcg_M, seed=seed, replicates=replicates)]
