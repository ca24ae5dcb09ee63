"""Probes of labelled rows, and the resamples of all: what mteb's own scores do not tell."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.preprocessing import normalize

from layerrank.operators.probes.fold import FoldScore, finite_vectors, item_resamples, unit_rows
from layerrank.operators.probes.labelled import (
    classification,
    clustering,
    multilabel_classification,
    multilabel_rows,
    regression,
)
from layerrank.operators.probes.pairs import pair_classification, sts
from layerrank.operators.probes.relevance import reranking, retrieval
from tests.support.simulated import values

N_LABELS = 4
Matrix = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def blobs(n_rows: int, *, spread: float, seed: int = 0) -> tuple[Matrix, Labels]:
    """Balanced groups around unit axes; `spread` is the standard deviation inside a group."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n_rows, dtype=np.int64) % N_LABELS
    centres = np.eye(N_LABELS, 16)
    rows = centres[labels] + spread * generator.standard_normal((n_rows, 16))
    return rows.astype(np.float32), labels


def test_separable_groups_score_one() -> None:
    rows, labels = blobs(200, spread=0.01)
    own_group = [[row] for row in range(200)]
    probes = {
        ("accuracy", 5 * N_LABELS, 200): classification(
            10 * rows, labels, 10 * rows, labels, folds=3, samples_per_label=5
        ),
        ("v_measure", 0, 300): clustering(rows, labels, folds=3, documents_per_fold=300),
        ("ndcg_at_10", 0, 200): retrieval(rows, rows, own_group, replicates=0),
    }
    for (metric, n_train, n_test), scores in probes.items():
        assert values(scores) == pytest.approx([1.0] * (1 if metric == "ndcg_at_10" else 3))
        for fold, score in enumerate(scores):
            assert score == FoldScore(fold, metric, score.value, n_train, n_test)


def test_folds_that_are_one_fit_have_resamples_of_their_test_items() -> None:
    rows, labels = blobs(80, spread=1.0)
    split = rows[:40], labels[:40], rows[40:], labels[40:]
    same = classification(*split, folds=3, samples_per_label=10, replicates=50)
    assert len({score.value for score in same}) == 1
    assert [len(score.replicates) for score in same] == [50, 0, 0]
    accuracy, drawn = same[0].value, np.array(same[0].replicates)
    assert drawn.mean() == pytest.approx(accuracy, abs=0.03)
    assert drawn.std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 40), rel=0.3)
    # A resample that is drawn once each is the score; others have what was drawn.
    assert classification(*split, folds=3, samples_per_label=10)[0].replicates == ()
    other = classification(*split, folds=3, samples_per_label=9, replicates=50)
    assert [score.replicates for score in other] == [()] * 3
    later = classification(*split, folds=3, first=1, samples_per_label=10, replicates=50)
    assert [score.replicates for score in later] == [()] * 2


def test_resamples_depend_on_nothing_else_and_hold_as_many_items() -> None:
    first = [*item_resamples(7, seed=3, count=50)]
    assert len(first) == 50
    assert all(count_N.shape == (7,) and count_N.sum() == 7 for count_N in first)
    for again, longer in zip(first, item_resamples(7, seed=3, count=60), strict=False):
        np.testing.assert_array_equal(again, longer)
    # Each item is drawn once on average, with the variance 1 - 1/7 of a multinomial draw.
    drawn = np.stack([*item_resamples(7, seed=4, count=4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.var(axis=0), 1 - 1 / 7, atol=0.08)
    assert [*item_resamples(7, seed=3, count=0)] == []


def test_unit_rows_are_those_of_scikit_learn() -> None:
    rows = np.random.default_rng(8).standard_normal((50, 16)).astype(np.float32) * 30
    rows[7] = 0
    before = rows.copy()
    unit = unit_rows(rows)
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, normalize(rows))
    np.testing.assert_array_equal(rows, before)
    assert unit_rows(rows.astype(np.float16)).dtype == np.float32


def test_the_same_seed_gives_the_same_scores_and_another_one_others() -> None:
    (rows, labels), numbers = blobs(200, spread=0.6), linear_values(200, noise=4)
    probes: list[Callable[[int], list[FoldScore]]] = [
        lambda seed: classification(rows, labels, rows, labels, seed=seed),
        lambda seed: clustering(rows, labels, seed=seed, documents_per_fold=150),
        lambda seed: regression(*numbers, *numbers, seed=seed, samples=50),
    ]
    for probe in probes:
        assert probe(42) == probe(42)
        assert probe(42) != probe(43)


def test_half_precision_is_widened_and_double_kept() -> None:
    half = blobs(20, spread=0.6)[0].astype(np.float16)
    assert finite_vectors("half", half).dtype == np.float32
    assert finite_vectors("double", half.astype(np.float64)).dtype == np.float64


def test_a_collapsed_layer_scores_chance_without_a_warning() -> None:
    _, labels = blobs(80, spread=0.5)
    same = np.full((80, 16), 0.1, dtype=np.float32)
    assert values(classification(same, labels, same, labels)) == [1 / N_LABELS] * 10
    assert values(clustering(same, labels, documents_per_fold=80)) == [0.0] * 10


def linear_values(n_rows: int, noise: float) -> tuple[Matrix, npt.NDArray[np.float64]]:
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((n_rows, 5)).astype(np.float32)
    return rows, rows @ [3.0, 1.0, 0.0, -2.0, 0.5] + 7 + noise * generator.standard_normal(n_rows)


def test_rows_are_drawn_until_every_label_has_enough() -> None:
    labels = [["a"]] * 30 + [["a", "b"]] * 30 + [["c"]] * 3 + [[]] * 10
    folds = multilabel_rows(labels, seed=42, folds=5, samples_per_label=4)
    for rows in folds:
        drawn = [label for row in rows for label in labels[row]]
        assert min(drawn.count("a"), drawn.count("b")) >= 4
        assert drawn.count("c") == 3
        assert len(set(rows)) == len(rows)
        assert max(rows) < 63
    assert len({tuple(rows) for rows in folds}) == 5
    vectors, how = blobs(len(labels), spread=1)[0], {"folds": 5, "samples_per_label": 4}
    scores = multilabel_classification(vectors, labels, vectors, labels, **how)
    assert [(score.fold, score.n_train) for score in scores] == [*enumerate(map(len, folds))]


def test_a_linear_value_is_ordered_without_a_fault() -> None:
    rows, numbers = linear_values(300, noise=0)
    scores = regression(rows[:200], numbers[:200], rows[200:], -numbers[200:], samples=50)
    assert values(scores) == pytest.approx([-1.0] * 10)
    for fold, score in enumerate(scores):
        assert score == FoldScore(fold, "kendalltau", score.value, 50, 100)
    whole = regression(rows[:200], numbers[:200], rows[200:], numbers[200:], replicates=0)
    assert [(score.fold, score.n_train, score.n_test) for score in whole] == [(0, 200, 100)]


NOISY = blobs(60, spread=0.9)[0]
GRADES = np.random.default_rng(1).integers(0, 6, 30).astype(float)
NAMED = np.arange(240).reshape(30, 8) % 60  # candidates of each query, the first one relevant
Resampled = Callable[..., list[FoldScore]]


@pytest.mark.parametrize(
    "probe",
    [
        lambda rows, **how: sts(NOISY[:30][rows], NOISY[30:][rows], GRADES[rows], **how),
        lambda rows, **how: pair_classification(
            NOISY[:30][rows], NOISY[30:][rows], GRADES[rows] > 3, **how
        ),
        lambda rows, **how: retrieval(NOISY[:30][rows], NOISY, rows[:, None] + 30, **how),
        lambda rows, **how: reranking(
            NOISY[:30][rows], NOISY, [*NAMED[rows]], [[1, *[0] * 7]] * len(rows), **how
        ),
        # One feature: of a sum of several, equal rows may get another last bit, which is no tie.
        lambda rows, **how: regression(
            NOISY[30:, 1:2], NOISY[30:, 0], NOISY[:30, 1:2][rows], NOISY[:30, 0][rows], **how
        ),
    ],
    ids=["sts", "pair_classification", "retrieval", "reranking", "regression"],
)
def test_replicates_are_scores_of_the_resampled_items(probe: Resampled) -> None:
    (score,) = probe(np.arange(30), seed=5, replicates=20)
    resamples = item_resamples(30, seed=5, count=20)
    for replicate, count_N in zip(score.replicates, resamples, strict=True):
        (again,) = probe(np.repeat(np.arange(30), count_N))
        assert replicate == pytest.approx(again.value)
    assert np.std(score.replicates) > 0.01
    assert len(set(score.replicates)) > 10
