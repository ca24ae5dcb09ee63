"""Mini-batch k-means as scikit-learn has it, from a start that is found faster.

Shapes: N rows, D dimensions, S rows among which a start is drawn, U different ones of these, C
candidates for one centre.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans

from layerrank.operators.probes.fold import Vectors

Rows = npt.NDArray[np.intp] | list[int]


def mini_batch_k_means(
    rows_ND: Vectors, *, n_clusters: int, batch_size: int, seed: int
) -> npt.NDArray[np.int32]:
    """Return the cluster [N] of each row, that of scikit-learn's `MiniBatchKMeans`.

    Both clusterings of mteb 2.26 come down to it: the "fast" one for each of its draws, and the
    one before it for a whole set. `plus_plus` draws the start, the rest is the estimator's own.
    """
    estimator = MiniBatchKMeans(
        n_clusters, init=plus_plus, batch_size=batch_size, n_init=1, random_state=seed
    )
    clusters_N: npt.NDArray[np.int32] = estimator.fit_predict(rows_ND)
    return clusters_N


def plus_plus(rows_SD: Vectors, n_clusters: int, random_state: np.random.RandomState) -> Vectors:
    """Return the centres [n_clusters, D] that the greedy `k-means++` of scikit-learn draws.

    The first is any row. For each next one a few candidates are drawn, in proportion to the squared
    distance from the nearest centre so far, and the one is taken that leaves the smallest sum of
    these distances.

    Source: `kmeans_plusplus` of scikit-learn 1.9 (Arthur and Vassilvitskii 2007), the same draws
    and the same bits: sums are of the same type and order. There all rows are widened to float64
    and squared again for every centre; ours does it once, and for equal rows, of which draws with
    replacement are full, once for all of them.
    """
    n_candidates = 2 + int(np.log(n_clusters))
    squared = _squared_distances(rows_SD, asked=n_candidates * n_clusters)
    one_S = np.ones(len(rows_SD), dtype=rows_SD.dtype)
    chosen = [random_state.choice(len(rows_SD), p=one_S / one_S.sum())]
    nearest_S = squared(chosen)
    left = nearest_S @ one_S
    while len(chosen) < n_clusters:
        drawn_C = random_state.uniform(size=n_candidates) * left
        candidate_C = np.searchsorted(np.cumsum(nearest_S), drawn_C)
        # What is drawn can lie above the last sum, by its rounding.
        candidate_C = np.minimum(candidate_C, len(rows_SD) - 1)
        nearest_CS = np.minimum(nearest_S, squared(candidate_C))
        left_C1 = nearest_CS @ one_S[:, np.newaxis]
        best = int(np.argmin(left_C1))
        chosen.append(candidate_C[best])
        nearest_S, left = nearest_CS[best], left_C1[best]
    centres: Vectors = rows_SD[chosen]
    return centres


def _squared_distances(rows_SD: Vectors, asked: int) -> Callable[[Rows], Vectors]:
    """Return what gives the squared distances [C, S] of a few of the rows from all.

    Where most of the rows will be `asked` for, those of all are there from the first.
    """
    rows_SD = np.ascontiguousarray(rows_SD)
    as_bytes = rows_SD.view(np.dtype((np.void, rows_SD.strides[0])))[:, 0]
    _, first_U, place_S = np.unique(as_bytes, return_index=True, return_inverse=True)
    wide_UD = rows_SD[first_U].astype(np.float64)
    norm_U = np.einsum("ud,ud->u", wide_UD, wide_UD)

    def among_different(place_C: npt.NDArray[np.intp] | slice) -> Vectors:
        squared_CU = wide_UD[place_C] @ wide_UD.T
        squared_CU *= -2
        squared_CU += norm_U[place_C, np.newaxis]
        squared_CU += norm_U
        return np.maximum(squared_CU.astype(rows_SD.dtype), 0)

    every_UU = among_different(slice(None)) if 2 * asked > len(first_U) else None

    def of_rows(rows: Rows) -> Vectors:
        place_C = place_S[rows]
        squared_CU = among_different(place_C) if every_UU is None else every_UU[place_C]
        # Unlike an index, `take` leaves the distances of one row beside each other, on which the
        # last bit of their sum depends.
        return np.take(squared_CU, place_S, axis=1)

    return of_rows
