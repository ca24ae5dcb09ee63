"""Regression probe: does a linear function of the vector put the rows in the order of a value?

Shapes: N rows, D dimensions, B bins of values.
"""

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau
from sklearn.linear_model import LinearRegression

from operators.probes.fold import (
    FoldScore,
    NoScoreError,
    Values,
    Vectors,
    finite_vectors,
    item_resamples,
    require_positive,
    varied_values,
)

BINS = 10


def _bins(value_N: Values) -> npt.NDArray[np.intp]:
    """The tenth of each value: bins between the deciles, closed above; equal deciles are one."""
    edges = np.unique(np.percentile(value_N, np.linspace(0, 1, BINS + 1) * 100))
    bin_N = np.maximum(np.searchsorted(edges, value_N, side="left") - 1, 0)
    numbered_N: npt.NDArray[np.intp] = np.unique(bin_N, return_inverse=True)[1]
    return numbered_N


def _shares(
    size_B: npt.NDArray[np.intp], n_draws: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """How many rows of each bin make `n_draws`: in proportion, the largest remainders rounded up.

    Among equal remainders the generator chooses.
    """
    exact_B = n_draws * size_B / size_B.sum()
    share_B: npt.NDArray[np.int64] = np.floor(exact_B).astype(np.int64)
    left_B = exact_B - share_B
    for remainder in np.unique(left_B)[::-1]:
        missing = int(n_draws - share_B.sum())
        if not missing:
            break
        tied = np.flatnonzero(left_B == remainder)
        share_B[generator.choice(tied, size=min(len(tied), missing), replace=False)] += 1
    return share_B


def stratified_rows(value_N: Values, *, seed: int, samples: int) -> npt.NDArray[np.intp]:
    """Return `samples` rows in random order, every tenth of the values in its proportion.

    The draws are those of the stratified `train_test_split` of `datasets`, which mteb uses with the
    drawn rows as its test part: the rows that stay behind are drawn first, and decide the rest.
    """
    bin_N = _bins(value_N)
    size_B = np.bincount(bin_N)
    staying = len(value_N) - samples
    if size_B.min() < 2 or min(staying, samples) < len(size_B):  # noqa: PLR2004 - one to each part
        raise NoScoreError(
            f"train: {samples} of {len(value_N)} rows cannot be drawn from {len(size_B)} bins of "
            f"values, the smallest with {size_B.min()} rows: lower `samples` to "
            f"{len(size_B)}..{len(value_N) - len(size_B)}, or use all rows with a higher one"
        )
    generator = np.random.default_rng(seed)
    staying_B = _shares(size_B, staying, generator)
    stays: list[int] = []
    drawn: list[int] = []
    for number, n_stays in enumerate(staying_B.tolist()):
        shuffled = np.flatnonzero(bin_N == number)[generator.permutation(size_B[number])]
        stays.extend(shuffled[:n_stays])
        drawn.extend(shuffled[n_stays:])
    generator.permutation(stays)  # a draw that moves the generator on, as there
    rows: npt.NDArray[np.intp] = generator.permutation(drawn)
    return rows


def regression(
    train_ND: Vectors,
    train_values: npt.ArrayLike,
    test_ND: Vectors,
    test_values: npt.ArrayLike,
    *,
    seed: int = 42,
    folds: int = 10,
    samples: int = 2048,
    replicates: int = 200,
) -> list[FoldScore]:
    """Kendall's tau between the test values and a least-squares fit on `samples` training rows.

    tau-b = (concordant - discordant) / sqrt((pairs - ties) (pairs - ties of the other)). Every fold
    draws its training rows anew, stratified by value, and is scored on the whole test split. Where
    `samples` covers all training rows, every fold would be the same fit: then there is one score,
    with its value on `replicates` bootstrap resamples of the test rows.

    Source: `AbsTaskRegression` of mteb 2.26, the same rows, estimator and seeds; its mean is ours.
    Range -1..1, higher is better, 0 without any relation.
    """
    train_ND = finite_vectors("train", train_ND)
    test_ND = finite_vectors("test", test_ND)
    train_N = varied_values("train", train_values, len(train_ND))
    test_N = varied_values("test", test_values, len(test_ND))
    require_positive(folds=folds, samples=samples)
    whole = samples >= len(train_ND)
    scores = []
    for fold in range(1 if whole else folds):
        rows: npt.NDArray[np.intp] | slice = slice(None)
        if not whole:
            rows = stratified_rows(train_N, seed=seed + fold, samples=samples)
        predicted_N = LinearRegression().fit(train_ND[rows], train_N[rows]).predict(test_ND)
        every_N = np.arange(len(test_N))
        resamples = item_resamples(len(test_N), seed=seed, count=replicates if whole else 0)
        # Kendall's tau-b is NaN where either side has one value only.
        tau, *resampled = (
            float(kendalltau(test_N[drawn], predicted_N[drawn]).statistic)
            for drawn in (every_N, *(np.repeat(every_N, count_N) for count_N in resamples))
        )
        n_train = min(samples, len(train_N))
        scores.append(FoldScore(fold, "kendalltau", tau, n_train, len(test_N), tuple(resampled)))
    if any(np.isnan(score.value) for score in scores):
        raise NoScoreError(
            f"test: the {len(test_N)} predictions are all equal, so they have no order"
        )
    return scores
