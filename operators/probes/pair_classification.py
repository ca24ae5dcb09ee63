"""Pair classification probe: are pairs that belong together closer than pairs that do not?

Shapes: N pairs, M rows of a side, B pairs of a block, D dimensions, G groups of pairs with equal
similarity.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from operators.probes.cosine import BLOCK_ROWS, pair_blocks, paired_cosines
from operators.probes.fold import (
    FoldScore,
    NoScoreError,
    PairRows,
    Values,
    Vectors,
    item_resamples,
    paired_vectors,
    row_labels,
)


@dataclass(frozen=True)
class Ranking:
    """Pairs from the most to the least similar: their rows and labels, and each tie's last place.

    The pairs of a tie count together, so their order means nothing.
    """

    row_N: npt.NDArray[np.intp]
    positive_N: npt.NDArray[np.bool_]
    last_G: npt.NDArray[np.intp]

    @classmethod
    def by(cls, similarity_N: Values, positive_N: npt.NDArray[np.bool_]) -> "Ranking":
        """Rank by descending similarity."""
        row_N = np.argsort(-similarity_N)
        last_G = np.flatnonzero(np.diff(similarity_N[row_N], append=-np.inf))
        return cls(row_N, positive_N[row_N], last_G)

    def average_precision(self, count_N: npt.NDArray[np.int64]) -> float:
        """Average precision where pair n is there `count_N[n]` times; NaN without a positive one.

        AP = sum over thresholds g of (recall_g - recall_{g-1}) precision_g, one threshold per
        different similarity.
        """
        there_N = count_N[self.row_N]
        hits_G = np.cumsum(there_N * self.positive_N)[self.last_G]
        if not hits_G[-1]:
            return float("nan")
        # A threshold above the first pair that is there gains nothing, whatever it divides by.
        seen_G = np.maximum(np.cumsum(there_N)[self.last_G], 1)
        return float(np.diff(hits_G, prepend=0) @ (hits_G / seen_G) / hits_G[-1])


def _similarities(
    first_MD: Vectors, second_MD: Vectors, rows: PairRows | None, n_pairs: int
) -> list[Values]:
    """Cosine, dot product, and the negative Euclidean and Manhattan distances [N] of the pairs."""
    dot_N, euclidean_N, manhattan_N = np.empty((3, n_pairs))
    for part, *sides in pair_blocks(first_MD, second_MD, rows, BLOCK_ROWS):
        first_BD, second_BD = (side.astype(np.float64) for side in sides)
        dot_N[part] = np.einsum("bd,bd->b", first_BD, second_BD)
        first_BD -= second_BD
        euclidean_N[part] = -np.linalg.norm(first_BD, axis=1)
        manhattan_N[part] = -np.abs(first_BD, out=first_BD).sum(axis=1)
    return [paired_cosines(first_MD, second_MD, rows), dot_N, euclidean_N, manhattan_N]


def _positive(labels: npt.ArrayLike, n_pairs: int) -> npt.NDArray[np.bool_]:
    labels_N = row_labels("pairs", labels, n_pairs)
    found: list[object] = sorted(set(labels_N.tolist()), key=str)
    other = [label for label in found if label not in (0, 1)]
    if other:
        raise ValueError(f"pairs: the label {other[0]!r} is neither 0 (apart) nor 1 (together)")
    if len(found) == 1:
        raise NoScoreError(
            f"pairs: all {n_pairs} have the label {found[0]}, pair classification needs both"
        )
    positive_N: npt.NDArray[np.bool_] = labels_N == 1
    return positive_N


def pair_classification(
    first_MD: Vectors,
    second_MD: Vectors,
    labels: npt.ArrayLike,
    *,
    rows: PairRows | None = None,
    seed: int = 42,
    replicates: int = 200,
) -> list[FoldScore]:
    """Average precision of telling pairs with label 1 from pairs with label 0 by similarity.

    The best of four similarities counts: cosine, dot product, negative Euclidean and Manhattan
    distance (formula at `Ranking.average_precision`). Nothing is fitted, so there is one score,
    with its value on `replicates` bootstrap resamples of the pairs, each the best of the four.
    Pair n is row n of both sides, or with `rows` the n-th row of each that they name.

    Source: `max_ap`, the main score of `AbsTaskPairClassification` of mteb 2.26. Range 0..1, higher
    is better; the share of label 1 without any relation. Ours computes similarities in float64.
    """
    first_MD, second_MD, n_pairs = paired_vectors(first_MD, second_MD, rows)
    positive_N = _positive(labels, n_pairs)
    similarities = _similarities(first_MD, second_MD, rows, n_pairs)
    rankings = [Ranking.by(similarity_N, positive_N) for similarity_N in similarities]

    def best(count_N: npt.NDArray[np.int64]) -> float:
        return max(ranking.average_precision(count_N) for ranking in rankings)

    value = best(np.ones(n_pairs, dtype=np.int64))
    resampled = map(best, item_resamples(n_pairs, seed=seed, count=replicates))
    return [FoldScore(0, "max_ap", value, 0, n_pairs, tuple(resampled))]
