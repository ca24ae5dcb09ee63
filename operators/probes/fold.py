"""The result that every probe returns, the checks that it makes on its input, and cosines.

Shapes: N rows or pairs, M rows of a side, Q queries or B pairs of one block, D dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from layerrank.operators.later import Later

if TYPE_CHECKING:
    from sklearn import preprocessing
else:  # the results of a probe are read without it
    preprocessing = Later("sklearn.preprocessing")

Vectors = npt.NDArray[np.floating]
Values = npt.NDArray[np.float64]
PairRows = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

# Rows widened to float64 at a time, so that no second copy of a layer is made.
BLOCK_ROWS = 512

# A layer's vectors can all lie within 1e-5 of one direction, which float32 hardly resolves: cosines
# are of float64. Those that agree to this many decimals are ties: the error of a product is some
# 1e-15 and depends on the shapes of the blocks; without rounding it would order equal documents.
DECIMALS = 12

BINS = 10  # of the values that a regression is fitted on, of which each sample has its share
NEIGHBOURS = 5  # that vote on the labels of a row with several
# mteb reads this label as "no label at this level" and leaves its rows out.
NO_LABEL = -1


class NoScoreError(ValueError):
    """The data allows no score, whatever is done with it; any other error is one of the caller."""


@dataclass(frozen=True)
class FoldScore:
    """One score of one repetition of a probe.

    `n_train` rows were fitted with their labels (0 for a probe that fits none), `n_test` rows (or
    pairs, or queries) were scored. `replicates` are values of the same score on bootstrap resamples
    of what was scored, where one repetition is all there is, or all are one fit: replicate r holds
    the same items for every layer (`item_resamples`), so differences between layers are paired. A
    replicate that does not exist, such as a resample with one label alone, is NaN.
    """

    fold: int
    metric: str
    value: float
    n_train: int
    n_test: int
    replicates: tuple[float, ...] = ()


def item_resamples(n_items: int, *, seed: int, count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield `count` bootstrap resamples of `n_items` items: how often each item is drawn [n_items].

    Each draws `n_items` times with replacement. The draws depend on the arguments alone, and the
    first resamples of a larger count are those of a smaller one.
    """
    if count < 0:
        raise ValueError(f"replicates must be at least 0, got {count}")
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(generator.integers(n_items, size=n_items), minlength=n_items)


def mean_score(metric: str, score_N: Values, *, seed: int, replicates: int) -> FoldScore:
    """The mean of one score per item, and the means of its bootstrap resamples."""
    n_items = len(score_N)
    resamples = item_resamples(n_items, seed=seed, count=replicates)
    means = tuple(float(count_N @ score_N) / n_items for count_N in resamples)
    return FoldScore(0, metric, float(score_N.mean()), 0, n_items, means)


def unit_rows(vectors_ND: Vectors) -> npt.NDArray[np.float32]:
    """Rows divided by their L2 norm, in float32: the `l2` variant; a zero row stays zero.

    The input is not changed. A probe of these rows is another score than that of the rows as they
    are wherever the estimator depends on scale.
    """
    rows_ND: npt.NDArray[np.float32] = vectors_ND.astype(np.float32)
    unit_ND: npt.NDArray[np.float32] = preprocessing.normalize(rows_ND, copy=False)
    return unit_ND


def finite_vectors(name: str, vectors_ND: Vectors) -> Vectors:
    """Return the matrix as float32 or float64; empty, misshapen or non-finite input raises.

    NoScoreError without a row, which is what is left where no text has a token.

    float16 is widened to float32, which loses nothing; wider types are kept as they are, because
    the estimators' results depend on the type they are given.
    """
    if vectors_ND.ndim != 2 or 0 in vectors_ND.shape:  # noqa: PLR2004 - a matrix has two axes
        error = NoScoreError if vectors_ND.ndim == 2 else ValueError  # noqa: PLR2004
        raise error(f"{name}: expected a non-empty [rows, dim] array, got {vectors_ND.shape}")
    # Both are NaN where an entry is; a mask of all entries would take a quarter of the vectors.
    if not np.isfinite([vectors_ND.min(), vectors_ND.max()]).all():
        bad_ND = ~np.isfinite(vectors_ND)
        n_rows = np.count_nonzero(bad_ND.any(axis=1))
        raise ValueError(
            f"{name}: {np.count_nonzero(bad_ND)} non-finite entries "
            f"in {n_rows} of {len(vectors_ND)} rows"
        )
    return vectors_ND.astype(np.float32) if vectors_ND.dtype == np.float16 else vectors_ND


def row_labels(
    name: str, labels: npt.ArrayLike, n_rows: int, what: str = "labels"
) -> npt.NDArray[np.generic]:
    """Return one label per row as an array; another count raises."""
    labels_N: npt.NDArray[np.generic] = np.asarray(labels)
    if labels_N.shape != (n_rows,):
        raise ValueError(f"{name}: {n_rows} rows need {n_rows} {what}, got shape {labels_N.shape}")
    return labels_N


def varied_values(name: str, values: npt.ArrayLike, n_rows: int) -> Values:
    """Return one finite number per row as float64; other input raises.

    NoScoreError for one number in all rows.
    """
    raw_N = row_labels(name, values, n_rows, "values")
    if raw_N.dtype.kind not in "iuf":
        items: list[object] = raw_N.tolist()
        isnt = [isinstance(each, bool) or not isinstance(each, int | float) for each in items]
        row = isnt.index(True) if any(isnt) else 0
        raise ValueError(f"{name}: the value of row {row} is {items[row]!r}, a number is needed")
    values_N: Values = raw_N.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values_N))
    if bad.size:
        raise ValueError(
            f"{name}: {bad.size} of {n_rows} values are not finite, first {values_N[bad[0]]} "
            f"in row {bad[0]}"
        )
    if (values_N == values_N[0]).all():
        raise NoScoreError(
            f"{name}: all {n_rows} values are {values_N[0]:g}, 2 different are needed"
        )
    return values_N


def require_positive(**counts: int) -> None:
    """Raise for the first count below 1, with its name and value."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def directions(vectors_ND: Vectors) -> npt.NDArray[np.float64]:
    """Rows of length 1 in float64; a zero row stays zero, so its cosine with anything is 0."""
    rows_ND = vectors_ND.astype(np.float64)
    norm_N1: npt.NDArray[np.float64] = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    norm_N1[norm_N1 == 0] = 1
    rows_ND /= norm_N1
    return rows_ND


def cosines(query_QD: Vectors, document_ND: Vectors) -> npt.NDArray[np.float64]:
    """Cosine [Q, N] of every query with every document, rounded to `DECIMALS`."""
    unit_QD = directions(query_QD)
    cosine_QN = np.empty((len(query_QD), len(document_ND)))
    for start in range(0, len(document_ND), BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        cosine_QN[:, start:stop] = unit_QD @ directions(document_ND[start:stop]).T
    return np.round(cosine_QN, DECIMALS, out=cosine_QN)


def pair_blocks(
    first_MD: Vectors, second_MD: Vectors, rows: PairRows | None, size: int
) -> Iterator[tuple[slice, Vectors, Vectors]]:
    """Yield which pairs a block of at most `size` holds, and the vectors [B, D] of both sides.

    Pair n is row n of both sides, or the n-th row of each that `rows` name: where a text stands in
    many pairs, its vector is copied for one block at a time.
    """
    for start in range(0, len(rows[0] if rows else first_MD), size):
        part = slice(start, start + size)
        first, second = (rows[0][part], rows[1][part]) if rows else (part, part)
        yield part, first_MD[first], second_MD[second]


def paired_cosines(first_MD: Vectors, second_MD: Vectors, rows: PairRows | None = None) -> Values:
    """Cosine [N] of both sides of every pair (see `pair_blocks`), rounded to `DECIMALS`."""
    cosine_N = np.empty(len(rows[0] if rows else first_MD))
    for part, first_BD, second_BD in pair_blocks(first_MD, second_MD, rows, BLOCK_ROWS):
        np.einsum("bd,bd->b", directions(first_BD), directions(second_BD), out=cosine_N[part])
    return np.round(cosine_N, DECIMALS, out=cosine_N)
