"""Retrieval probe: is a query's nearest document the one it belongs to?

Shapes: M queries, N documents, D dimensions, Q queries of one block, K documents kept per query.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from operators.probes.fold import FoldScore, Vectors, finite_vectors, require_positive

# Entries of one block of similarities (float64, so 64 MiB), and documents normalised at a time.
BLOCK_ENTRIES = 2**23
BLOCK_DOCUMENTS = 4096

# Similarities that agree to this many decimals are ties. The error of a float64 product is some
# 1e-15 and depends on the shapes of the blocks; without rounding it would order equal documents.
DECIMALS = 12


def _unit_rows(vectors_ND: Vectors) -> npt.NDArray[np.float64]:
    """Rows of length 1 in float64; a zero row stays zero, so its cosine with anything is 0."""
    rows_ND = vectors_ND.astype(np.float64)
    norm_N1: npt.NDArray[np.float64] = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    norm_N1[norm_N1 == 0] = 1
    rows_ND /= norm_N1
    return rows_ND


def _similarities(query_QD: Vectors, document_ND: Vectors) -> npt.NDArray[np.float64]:
    unit_QD = _unit_rows(query_QD)
    similarity_QN = np.empty((len(query_QD), len(document_ND)))
    for start in range(0, len(document_ND), BLOCK_DOCUMENTS):
        stop = start + BLOCK_DOCUMENTS
        similarity_QN[:, start:stop] = unit_QD @ _unit_rows(document_ND[start:stop]).T
    return np.round(similarity_QN, DECIMALS, out=similarity_QN)


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


def _checked_relevant(
    relevant: Sequence[npt.ArrayLike], n_queries: int, n_documents: int
) -> list[npt.NDArray[np.int64]]:
    if len(relevant) != n_queries:
        raise ValueError(
            f"relevant: one list per query, got {len(relevant)} for {n_queries} queries"
        )
    checked = []
    for query, documents in enumerate(relevant):
        rows: npt.NDArray[np.int64] = np.unique(np.asarray(documents, dtype=np.int64))
        if not rows.size:
            raise ValueError(f"relevant: query {query} has no relevant document")
        if rows[0] < 0 or rows[-1] >= n_documents:
            raise ValueError(
                f"relevant: query {query} names document rows {rows[0]}..{rows[-1]}, "
                f"there are {n_documents} documents"
            )
        checked.append(rows)
    return checked


def ndcg(ranked: npt.NDArray[np.intp], relevant: npt.NDArray[np.int64], k: int) -> float:
    """Normalised discounted cumulative gain of one ranking at cut-off `k`, every relevance 1.

    DCG@k = sum over ranks i = 1..k of relevant_i / log2(i + 1), divided by the DCG@k of a ranking
    with all relevant documents first. Source: Jarvelin and Kekalainen 2002, with the discount of
    `trec_eval`. Example: the only relevant document at rank 3 scores 1 / log2(4) = 0.5.
    """
    discount_K = 1 / np.log2(np.arange(2, k + 2))
    gain_K = np.isin(ranked[:k], relevant)
    best = discount_K[: len(relevant)].sum()
    return float((gain_K * discount_K[: len(gain_K)]).sum() / best)


def retrieval(
    query_MD: Vectors,
    document_ND: Vectors,
    relevant: Sequence[npt.ArrayLike],
    *,
    folds: int = 10,
    k: int = 10,
) -> list[FoldScore]:
    """Mean nDCG@k of ranking all documents by cosine similarity to each query.

    `relevant[m]` holds the rows of query m's relevant documents, a repeated row counts once. Equal
    similarities rank by document row. Fold f is the mean over queries m with m modulo `folds` = f:
    nothing is fitted, so the folds carry the spread between queries, and the mean of the folds is
    the mean of the queries up to the sizes of the folds.

    Source: nDCG@10 is the main score of retrieval in mteb (formula at `ndcg`). Ours computes the
    similarity in float64, because a layer's vectors can all lie within 1e-5 of one direction,
    which float32 hardly resolves. Range 0..1, higher is better. Memory beyond the input: one block
    of similarities and one of documents.
    """
    query_MD = finite_vectors("queries", query_MD)
    document_ND = finite_vectors("documents", document_ND)
    require_positive(folds=folds, k=k)
    n_queries, n_documents = len(query_MD), len(document_ND)
    if query_MD.shape[1] != document_ND.shape[1]:
        raise ValueError(f"dim of queries {query_MD.shape[1]}, of documents {document_ND.shape[1]}")
    if n_queries < folds:
        raise ValueError(f"queries: {n_queries} cannot fill {folds} folds")
    relevant_M = _checked_relevant(relevant, n_queries, n_documents)

    ndcg_M = np.empty(n_queries)
    block = max(1, BLOCK_ENTRIES // n_documents)
    for start in range(0, n_queries, block):
        similarity_QN = _similarities(query_MD[start : start + block], document_ND)
        for row, ranked_K in enumerate(_best_documents(similarity_QN, k), start):
            ndcg_M[row] = ndcg(ranked_K, relevant_M[row], k)
    return [
        FoldScore(fold, f"ndcg_at_{k}", float(part.mean()), 0, len(part))
        for fold, part in enumerate(ndcg_M[fold::folds] for fold in range(folds))
    ]
