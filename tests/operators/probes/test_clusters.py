"""k-means: the same clusters as the estimator that scikit-learn has, to the last bit."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

from layerrank.operators.probes.clusters import mini_batch_k_means, plus_plus

Matrix = npt.NDArray[np.floating]


def groups(n_rows: int, n_groups: int, *, seed: int) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((n_groups, 24))
    rows = centres[generator.integers(n_groups, size=n_rows)]
    return (rows + 0.7 * generator.standard_normal(rows.shape)).astype(np.float32)


def redrawn(rows: Matrix) -> Matrix:
    """Rows drawn with replacement, so that most are there several times."""
    return rows[np.random.default_rng(3).integers(len(rows) // 3, size=len(rows))]


def wide(rows: Matrix) -> Matrix:
    return rows.astype(np.float64)


def one_direction(rows: Matrix) -> Matrix:
    """As in a layer whose vectors differ little, far from the origin."""
    return (30 + rows / 100).astype(np.float32)


def every_second(rows: Matrix) -> Matrix:
    return np.repeat(rows, 2, axis=1)[:, ::2]


CHANGES = [np.copy, redrawn, wide, one_direction, every_second]


# With few clusters the distances are computed when they are needed, with many all at once.
@pytest.mark.parametrize("n_clusters", [2, 9, 150])
@pytest.mark.parametrize("changed", CHANGES)
def test_the_start_is_scikit_learns(changed: Callable[[Matrix], Matrix], n_clusters: int) -> None:
    for seed in range(5):
        rows = changed(groups(700, 20, seed=seed))
        ours, theirs = np.random.RandomState(seed), np.random.RandomState(seed)
        centres = plus_plus(rows, n_clusters, ours)
        expected, _ = kmeans_plusplus(rows, n_clusters, random_state=theirs)
        np.testing.assert_array_equal(centres, expected)
        assert centres.dtype == rows.dtype
        assert ours.random_sample() == theirs.random_sample()  # and as many draws are left


@pytest.mark.parametrize("changed", CHANGES)
def test_clusters_are_scikit_learns(changed: Callable[[Matrix], Matrix]) -> None:
    rows = changed(groups(900, 12, seed=7))
    for seed in range(5):
        estimator = MiniBatchKMeans(12, batch_size=64, n_init=1, random_state=seed)
        clusters = mini_batch_k_means(rows, n_clusters=12, batch_size=64, seed=seed)
        np.testing.assert_array_equal(clusters, estimator.fit_predict(rows))
        assert len(set(clusters.tolist())) > 6


def test_as_many_clusters_as_different_rows_are_all_found() -> None:
    rows = np.eye(8, dtype=np.float32)[np.arange(200) % 8]
    centres = plus_plus(rows, 8, np.random.RandomState(0))
    assert sorted(centres.argmax(axis=1)) == [*range(8)]
    # One more has nothing to be drawn from, as all distances are 0.
    assert plus_plus(rows, 9, np.random.RandomState(0)).shape == (9, 8)
