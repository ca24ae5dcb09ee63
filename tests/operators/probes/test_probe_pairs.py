"""Probes of pairs: as the libraries have them, and without a copy of shared vectors."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from layerrank.operators.probes.fold import FoldScore, item_resamples, paired_cosines
from layerrank.operators.probes.pairs import average_precision, pair_classification, sts

Matrix = npt.NDArray[np.float64]
Probe = Callable[..., list[FoldScore]]
PROBES = pytest.mark.parametrize("probe", [sts, pair_classification])


def at_angles(*degrees: float) -> tuple[Matrix, Matrix]:
    """Pairs of unit vectors in the plane that lie these angles apart."""
    radians = np.radians(degrees)
    second = np.stack([np.cos(radians), np.sin(radians)], axis=1)
    return np.tile([1.0, 0.0], (len(degrees), 1)), second


def noisy_pairs(n_pairs: int) -> tuple[Matrix, Matrix, Matrix]:
    """Pairs whose likeness follows a score, with ties among the scores."""
    generator = np.random.default_rng(1)
    first, noise = generator.standard_normal((2, n_pairs, 12))
    scores = generator.integers(0, 6, n_pairs).astype(float)
    return first, first * scores[:, None] / 5 + noise, scores


def test_the_best_similarity_counts() -> None:
    # All of one direction, so neither the cosine nor the dot product tells; the distance does.
    first = np.array([[1.0, 0.0], [4.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    second = np.array([[1.0, 0.0], [4.0, 0.0], [9.0, 0.0], [7.0, 0.0]])
    apart = [FoldScore(0, "max_ap", 1.0, 0, 4)]
    assert pair_classification(first, second, [1, 1, 0, 0], replicates=0) == apart
    # Only the dot product does.
    assert pair_classification(second + 1, 2 * second + 2, [0, 0, 1, 1], replicates=0) == apart


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40), st.integers(0)
)
def test_average_precision_is_that_of_scikit_learn(
    pairs: list[tuple[int, bool]], seed: int
) -> None:
    similarity, positive = (np.array(side) for side in zip(*pairs, strict=True))
    precision = average_precision(similarity.astype(float), positive)
    for count_N in item_resamples(len(pairs), seed=seed, count=3):
        drawn = np.repeat(np.arange(len(pairs)), count_N)
        ours = precision(count_N)
        if positive[drawn].any():
            expected = average_precision_score(positive[drawn], similarity[drawn])
            assert ours == pytest.approx(expected)
        else:
            assert np.isnan(ours)


def test_ties_with_scipy() -> None:
    first, second, scores = noisy_pairs(200)
    second[20:60] = second[20:21]
    first[20:60] = first[20:21]
    likeness = paired_cosines(first, second)
    assert len(np.unique(likeness)) == 161
    (score,) = sts(first, second, -scores, replicates=0)
    assert score == FoldScore(0, "cosine_spearman", score.value, 0, 200)
    assert score.value == pytest.approx(spearmanr(likeness, -scores).statistic)


@PROBES
def test_order_sides_and_blocks_do_not_matter(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, scores = noisy_pairs(150)
    given = scores if probe is sts else (scores > 3).astype(float)
    (score,) = probe(first, second, given)
    order = np.random.default_rng(2).permutation(150)
    (shuffled,) = probe(first[order], second[order], given[order])
    assert shuffled.value == pytest.approx(score.value, abs=1e-14)
    assert probe(second, first, given) == [score]
    for module in ("fold", "pairs"):
        monkeypatch.setattr(f"layerrank.operators.probes.{module}.BLOCK_ROWS", 7)
    assert probe(first, second, given) == [score]


def test_a_resample_without_a_ranking_is_nan() -> None:
    (similar,) = sts(*at_angles(0, 90), [5, 1], replicates=50)
    (together,) = pair_classification(*at_angles(0, 90), [1, 0], replicates=50)
    # Both pairs are drawn in half of the resamples, the pair with label 1 in three quarters.
    assert 10 < np.isnan(similar.replicates).sum() < 40
    assert 3 < np.isnan(together.replicates).sum() < 25
    assert np.nanmin(similar.replicates) == pytest.approx(1.0)


def texts(n_texts: int, dim: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((n_texts, dim), dtype=np.float32)


def pairs_of(
    n_texts: int, count: int = 3000
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    first, second = np.random.default_rng(1).integers(0, n_texts, (2, count))
    return first, second


@PROBES
def test_rows_stand_for_their_vectors(probe: Probe) -> None:
    vectors_MD, (first, second) = texts(200, 16), pairs_of(200)
    together = np.random.default_rng(2).integers(0, 2, len(first))
    laid_out = probe(vectors_MD[first], vectors_MD[second], together)
    assert probe(vectors_MD, vectors_MD, together, rows=(first, second)) == laid_out
    assert laid_out != probe(vectors_MD, vectors_MD, together, rows=(second, second[::-1]))


@PROBES
def test_memory_grows_by_less_than_the_pairs_vectors(probe: Probe) -> None:
    vectors_MD = texts(500, 256)
    peaks = []
    for count in (3000, 12_000):
        together = np.arange(count) % 2
        tracemalloc.start()
        probe(vectors_MD, vectors_MD, together, rows=pairs_of(500, count), replicates=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    laid_out = 2 * 9000 * 256 * vectors_MD.itemsize
    assert peaks[1] - peaks[0] < 0.2 * laid_out
