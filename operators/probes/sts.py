"""Semantic similarity probe: are the pairs that people find more alike closer to each other?

Shapes: N pairs, M rows of a side, D dimensions, G groups of pairs with equal values.
"""

import numpy as np
import numpy.typing as npt

from operators.probes.cosine import paired_cosines
from operators.probes.fold import (
    FoldScore,
    NoScoreError,
    PairRows,
    Values,
    Vectors,
    item_resamples,
    paired_vectors,
    varied_values,
)

Groups = npt.NDArray[np.intp]


def _groups(value_N: Values) -> Groups:
    """The number of each pair's value among the different values, ascending."""
    group_N: Groups = np.unique(value_N, return_inverse=True)[1]
    return group_N


def _ranks(group_N: Groups, count_N: npt.NDArray[np.int64]) -> Values:
    """Mean rank of each pair, less a half, where pair n is there `count_N[n]` times."""
    count_G = np.bincount(group_N, weights=count_N)
    middle_G: Values = np.cumsum(count_G) - count_G / 2
    return middle_G[group_N]


def _spearman(first_N: Groups, second_N: Groups, count_N: npt.NDArray[np.int64]) -> float:
    """Correlation of the two ranks; NaN if either side has one value only."""
    rank_N, other_N = _ranks(first_N, count_N), _ranks(second_N, count_N)
    rank_N = rank_N - np.average(rank_N, weights=count_N)
    other_N = other_N - np.average(other_N, weights=count_N)
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
    first_MD, second_MD, n_pairs = paired_vectors(first_MD, second_MD, rows)
    gold_N = varied_values("scores", scores, n_pairs)
    cosine_N = paired_cosines(first_MD, second_MD, rows)
    if (cosine_N == cosine_N[0]).all():
        raise NoScoreError(
            f"pairs: all {len(cosine_N)} have the cosine {cosine_N[0]:g}, so they have no ranking"
        )
    by_people_N, by_cosine_N = _groups(gold_N), _groups(cosine_N)
    every_N = np.ones(n_pairs, dtype=np.int64)
    resampled = (
        _spearman(by_people_N, by_cosine_N, count_N)
        for count_N in item_resamples(n_pairs, seed=seed, count=replicates)
    )
    value = _spearman(by_people_N, by_cosine_N, every_N)
    return [FoldScore(0, "cosine_spearman", value, 0, n_pairs, tuple(resampled))]
