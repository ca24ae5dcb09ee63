"""Probes of pairs: semantic similarity and pair classification, by hand and resampled."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from operators.probes import cosine
from operators.probes.fold import FoldScore, item_resamples
from operators.probes.pair_classification import Ranking, pair_classification
from operators.probes.sts import sts

Matrix = npt.NDArray[np.float64]


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


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([5, 4, 2, 1], 1.0),
        ([1, 2, 4, 5], -1.0),
        ([5, 4, 1, 2], 0.8),  # 1 - 6 sum d^2 / (n (n^2 - 1)) with d^2 = 0, 0, 1, 1
        ([5, 1, 5, 1], 1 / np.sqrt(5)),  # ranks 3.5, 1.5, 3.5, 1.5
    ],
)
def test_spearman_by_hand(scores: list[int], expected: float) -> None:
    (score,) = sts(*at_angles(0, 20, 50, 90), scores)
    assert score.value == pytest.approx(expected)
    assert (score.metric, score.n_train, score.n_test) == ("cosine_spearman", 0, 4)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 1, 0, 0], 1.0),
        ([0, 1, 0, 1], (1 / 2 + 2 / 4) / 2),
        ([1, 0, 0, 1], (1 + 2 / 4) / 2),
    ],
)
def test_average_precision_by_hand(labels: list[int], expected: float) -> None:
    (score,) = pair_classification(*at_angles(0, 20, 50, 90), labels)
    assert score.value == pytest.approx(expected)
    assert (score.metric, score.n_train, score.n_test) == ("max_ap", 0, 4)


def test_the_best_similarity_counts() -> None:
    # All of one direction, so neither the cosine nor the dot product tells; the distance does.
    first = np.array([[1.0, 0.0], [4.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    second = np.array([[1.0, 0.0], [4.0, 0.0], [9.0, 0.0], [7.0, 0.0]])
    (score,) = pair_classification(first, second, [1, 1, 0, 0])
    assert score.value == 1.0
    # Only the dot product does.
    (score,) = pair_classification(second + 1, 2 * second + 2, [0, 0, 1, 1])
    assert score.value == 1.0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40), st.integers(0)
)
def test_average_precision_is_that_of_scikit_learn(
    pairs: list[tuple[int, bool]], seed: int
) -> None:
    similarity, positive = (np.array(side) for side in zip(*pairs, strict=True))
    ranking = Ranking.by(similarity.astype(float), positive)
    for count_N in item_resamples(len(pairs), seed=seed, count=3):
        drawn = np.repeat(np.arange(len(pairs)), count_N)
        ours = ranking.average_precision(count_N)
        if positive[drawn].any():
            expected = average_precision_score(positive[drawn], similarity[drawn])
            assert ours == pytest.approx(expected)
        else:
            assert np.isnan(ours)


def test_ties_with_scipy() -> None:
    first, second, scores = noisy_pairs(200)
    second[20:60] = second[20:21]
    first[20:60] = first[20:21]
    likeness = cosine.paired_cosines(first, second)
    assert len(np.unique(likeness)) == 161
    (score,) = sts(first, second, scores)
    assert score.value == pytest.approx(spearmanr(likeness, scores).statistic)


Probe = Callable[[Matrix, Matrix, Matrix], list[FoldScore]]
PROBES: list[Probe] = [
    lambda first, second, scores: sts(first, second, scores, seed=5, replicates=20),
    lambda first, second, scores: pair_classification(
        first, second, scores > 3, seed=5, replicates=20
    ),
]


@pytest.mark.parametrize("probe", PROBES, ids=["sts", "pair_classification"])
def test_replicates_are_scores_of_the_resampled_pairs(probe: Probe) -> None:
    first, second, scores = noisy_pairs(60)
    (score,) = probe(first, second, scores)
    resamples = item_resamples(60, seed=5, count=20)
    for replicate, count_N in zip(score.replicates, resamples, strict=True):
        drawn = np.repeat(np.arange(60), count_N)
        (again,) = probe(first[drawn], second[drawn], scores[drawn])
        assert replicate == pytest.approx(again.value)
    assert np.std(score.replicates) > 0.01


@pytest.mark.parametrize("probe", PROBES, ids=["sts", "pair_classification"])
def test_order_sides_and_blocks_do_not_matter(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, scores = noisy_pairs(150)
    (score,) = probe(first, second, scores)
    order = np.random.default_rng(2).permutation(150)
    (shuffled,) = probe(first[order], second[order], scores[order])
    assert shuffled.value == pytest.approx(score.value, abs=1e-14)
    assert probe(second, first, scores) == [score]
    for module in ("cosine", "pair_classification"):
        monkeypatch.setattr(f"operators.probes.{module}.BLOCK_ROWS", 7)
    assert probe(first, second, scores) == [score]


def test_a_resample_without_a_ranking_is_nan() -> None:
    (similar,) = sts(*at_angles(0, 90), [5, 1], replicates=50)
    (together,) = pair_classification(*at_angles(0, 90), [1, 0], replicates=50)
    # Both pairs are drawn in half of the resamples, the pair with label 1 in three quarters.
    assert 10 < np.isnan(similar.replicates).sum() < 40
    assert 3 < np.isnan(together.replicates).sum() < 25
    assert np.nanmin(similar.replicates) == pytest.approx(1.0)


FIRST, SECOND, SCORES = noisy_pairs(10)
BROKEN = FIRST.copy()
BROKEN[3, :2] = np.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sts(BROKEN, SECOND, SCORES), "first: 2 non-finite entries in 1 of 10 rows"),
        (lambda: sts(FIRST, BROKEN, SCORES), "second: 2 non-finite"),
        (lambda: sts(FIRST, SECOND[:9], SCORES), r"pairs: .* \(10, 12\) and \(9, 12\)"),
        (lambda: sts(FIRST, SECOND, SCORES[:9]), "scores: 10 rows need 10 values"),
        (lambda: sts(FIRST, SECOND, SCORES * 0), "scores: all 10 values are 0, 2 different"),
        (lambda: sts(FIRST, SECOND, [*SCORES[:9], "high"]), "scores: the value of row 0 is '"),
        (lambda: sts(FIRST, SECOND, [*SCORES[:9], None]), "scores: the value of row 9 is None"),
        (lambda: sts(FIRST, SECOND, [*SCORES[:9], np.inf]), "1 of 10 .* first inf in row 9"),
        (lambda: sts(FIRST, FIRST, SCORES), "pairs: all 10 have the cosine 1"),
        (lambda: pair_classification(FIRST, SECOND, [1] * 10), "all 10 have the label 1, .* both"),
        (lambda: pair_classification(FIRST, SECOND, [1, 2] * 5), "the label 2 is neither 0"),
        (lambda: pair_classification(FIRST, SECOND, ["0", "1"] * 5), "the label '0' is neither"),
        (lambda: pair_classification(FIRST, SECOND, [0, 1]), "pairs: 10 rows need 10 labels"),
    ],
)
def test_values_that_do_not_exist_are_errors(
    call: Callable[[], list[FoldScore]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
