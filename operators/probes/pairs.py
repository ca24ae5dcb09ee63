"""Probes of pairs: are those that belong together, or that people find alike, closer to each other?

Shapes: N pairs, M rows of a side, B pairs of a block, D dimensions, G groups of pairs with equal
values.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from layerrank.operators.probes.fold import (
    BLOCK_ROWS,
    FoldScore,
    NoScoreError,
    PairRows,
    Values,
    Vectors,
    finite_vectors,
    item_resamples,
    pair_blocks,
    paired_cosines,
    row_labels,
    varied_values,
)

Counts = npt.NDArray[np.int64]  # how often each pair is there


def _checked_sides(
    first_MD: Vectors, second_MD: Vectors, rows: PairRows | None
) -> tuple[Vectors, Vectors, int]:
    """Return the two sides of the pairs and how many pairs there are; sides that differ raise.

    NoScoreError without a pair.
    """
    same = first_MD is second_MD
    first_MD = finite_vectors("first", first_MD)
    second_MD = first_MD if same else finite_vectors("second", second_MD)
    counts = [len(side) for side in rows or (first_MD, second_MD)]
    first, second = zip(counts, (first_MD.shape[1], second_MD.shape[1]), strict=True)
    if first != second:
        raise ValueError(f"pairs: both sides need one shape, got {first} and {second}")
    if not counts[0]:
        raise NoScoreError("pairs: there are none, as no pair has a vector on both sides")
    return first_MD, second_MD, counts[0]


def _spearman(
    first_N: npt.NDArray[np.intp], second_N: npt.NDArray[np.intp], count_N: Counts
) -> float:
    """Correlation of the ranks of two sides, given by the groups of equal values, ascending.

    Pair n is there `count_N[n]` times. NaN if either side has one value only.
    """
    ranks = []
    for group_N in (first_N, second_N):
        count_G = np.bincount(group_N, weights=count_N)
        rank_N = (np.cumsum(count_G) - count_G / 2)[group_N]  # the mean of equal ones, less a half
        ranks.append(rank_N - np.average(rank_N, weights=count_N))
    rank_N, other_N = ranks
    scale = np.sqrt(count_N @ rank_N**2) * np.sqrt(count_N @ other_N**2)
    return float(count_N @ (rank_N * other_N) / scale) if scale > 0 else float("nan")


def sts(
    first_MD: Vectors,
    second_MD: Vectors,
    scores: npt.ArrayLike,
    *,
    rows: PairRows | None = None,
    seed: int = 42,
    replicates: int = 200,
) -> list[FoldScore]:
    """Spearman correlation between the cosine similarity of pairs and the scores people gave them.

    rho = Pearson correlation of the ranks, equal values at the mean of their ranks. Nothing is
    fitted, so there is one score, with its value on `replicates` bootstrap resamples of the pairs.
    Pair n is row n of both sides, or with `rows` the n-th row of each that they name.

    Source: `cosine_spearman`, the main score of `AbsTaskSTS` of mteb 2.26 (Reimers et al. 2016
    argue for it against Pearson). Range -1..1, higher is better, 0 without any relation. Ours
    computes the cosine in float64, and that of a zero vector is 0 (there: 0.5 with any other).
    NoScoreError if all pairs are equally similar, as in a layer that does not depend on the text.
    """
    first_MD, second_MD, n_pairs = _checked_sides(first_MD, second_MD, rows)
    gold_N = varied_values("scores", scores, n_pairs)
    cosine_N = paired_cosines(first_MD, second_MD, rows)
    if (cosine_N == cosine_N[0]).all():
        raise NoScoreError(
            f"pairs: all {len(cosine_N)} have the cosine {cosine_N[0]:g}, so they have no ranking"
        )
    by_people_N, by_cosine_N = (
        np.unique(values_N, return_inverse=True)[1] for values_N in (gold_N, cosine_N)
    )
    correlation = partial(_spearman, by_people_N, by_cosine_N)
    value = correlation(np.ones(n_pairs, dtype=np.int64))
    resampled = map(correlation, item_resamples(n_pairs, seed=seed, count=replicates))
    return [FoldScore(0, "cosine_spearman", value, 0, n_pairs, tuple(resampled))]


def average_precision(
    similarity_N: Values, positive_N: npt.NDArray[np.bool_]
) -> Callable[[Counts], float]:
    """Return what gives the average precision where pair n is there `count_N[n]` times.

    AP = sum over thresholds g of (recall_g - recall_{g-1}) precision_g, one threshold per
    different similarity: the pairs of a tie count together, so their order means nothing. NaN
    without a positive pair.
    """
    row_N = np.argsort(-similarity_N)
    positive_N = positive_N[row_N]
    last_G = np.flatnonzero(np.diff(similarity_N[row_N], append=-np.inf))  # of each tie

    def of_drawn(count_N: Counts) -> float:
        there_N = count_N[row_N]
        hits_G = np.cumsum(there_N * positive_N)[last_G]
        if not hits_G[-1]:
            return float("nan")
        # A threshold above the first pair that is there gains nothing, whatever it divides by.
        seen_G = np.maximum(np.cumsum(there_N)[last_G], 1)
        return float(np.diff(hits_G, prepend=0) @ (hits_G / seen_G) / hits_G[-1])

    return of_drawn


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
    distance (formula at `average_precision`). Nothing is fitted, so there is one score,
    with its value on `replicates` bootstrap resamples of the pairs, each the best of the four.
    Pair n is row n of both sides, or with `rows` the n-th row of each that they name.

    Source: `max_ap`, the main score of `AbsTaskPairClassification` of mteb 2.26. Range 0..1, higher
    is better; the share of label 1 without any relation. Ours computes similarities in float64.
    """
    first_MD, second_MD, n_pairs = _checked_sides(first_MD, second_MD, rows)
    labels_N = row_labels("pairs", labels, n_pairs)
    found: list[object] = sorted(set(labels_N.tolist()), key=str)
    other = [label for label in found if label not in (0, 1)]
    if other:
        raise ValueError(f"pairs: the label {other[0]!r} is neither 0 (apart) nor 1 (together)")
    if len(found) == 1:
        raise NoScoreError(
            f"pairs: all {n_pairs} have the label {found[0]}, pair classification needs both"
        )
    dot_N, euclidean_N, manhattan_N = np.empty((3, n_pairs))
    for part, *sides in pair_blocks(first_MD, second_MD, rows, BLOCK_ROWS):
        first_BD, second_BD = (side.astype(np.float64) for side in sides)
        dot_N[part] = np.einsum("bd,bd->b", first_BD, second_BD)
        first_BD -= second_BD
        euclidean_N[part] = -np.linalg.norm(first_BD, axis=1)
        manhattan_N[part] = -np.abs(first_BD, out=first_BD).sum(axis=1)
    cosine_N = paired_cosines(first_MD, second_MD, rows)
    similarities = (cosine_N, dot_N, euclidean_N, manhattan_N)
    precisions = [average_precision(each_N, labels_N == 1) for each_N in similarities]

    def best(count_N: Counts) -> float:
        return max(precision(count_N) for precision in precisions)

    value = best(np.ones(n_pairs, dtype=np.int64))
    resampled = map(best, item_resamples(n_pairs, seed=seed, count=replicates))
    return [FoldScore(0, "max_ap", value, 0, n_pairs, tuple(resampled))]
