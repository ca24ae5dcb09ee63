"""Probes of labelled rows, and the resamples of all: closed forms and invariances."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import kendalltau
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import normalize

from operators.probes.fold import FoldScore, finite_vectors, item_resamples, unit_rows
from operators.probes.labelled import (
    classification,
    clustering,
    few_shot_rows,
    multilabel_classification,
    multilabel_rows,
    regression,
    stratified_rows,
)
from operators.probes.pairs import pair_classification, sts
from operators.probes.relevance import reranking, retrieval
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
        "accuracy": classification(10 * rows, labels, 10 * rows, labels),
        "v_measure": clustering(rows, labels, documents_per_fold=200),
        "ndcg_at_10": retrieval(rows, rows, own_group),
    }
    for metric, scores in probes.items():
        n_folds = 1 if metric == "ndcg_at_10" else 10
        assert [(score.fold, score.metric) for score in scores] == [
            (fold, metric) for fold in range(n_folds)
        ]
        assert values(scores) == pytest.approx([1.0] * n_folds)


def test_counts_of_a_fold() -> None:
    rows, labels = blobs(203, spread=0.5)
    few = classification(rows, labels, rows[:50], labels[:50], folds=3, samples_per_label=5)
    assert [(score.n_train, score.n_test) for score in few] == [(5 * N_LABELS, 50)] * 3
    drawn = clustering(rows, labels, folds=2, documents_per_fold=300)
    assert [(score.n_train, score.n_test) for score in drawn] == [(0, 300)] * 2
    ranked = retrieval(rows[:5], rows, [[0]] * 5)
    assert [(score.n_train, score.n_test) for score in ranked] == [(0, 5)]
    assert all(score.replicates == () for score in few + drawn)


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
    norms = np.delete(np.linalg.norm(unit, axis=1), 7)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)
    np.testing.assert_array_equal(unit[7], 0)
    assert unit_rows(rows.astype(np.float16)).dtype == np.float32


def test_few_shot_rows_differ_between_folds_and_take_what_a_rare_label_has() -> None:
    labels = ["common"] * 50 + ["rare"] * 3
    folds = few_shot_rows(labels, seed=42, folds=4, samples_per_label=8)
    for rows in folds:
        assert len(rows) == len(set(rows)) == 8 + 3
        assert set(range(50, 53)) <= set(rows)
    assert len({tuple(sorted(rows)) for rows in folds}) == 4


def test_scale_matters_to_the_classifier_and_not_to_retrieval_or_clustering() -> None:
    rows, labels = blobs(400, spread=0.5)
    train, test = slice(0, 200), slice(200, 400)

    one, other = (
        classification(scaled[train], labels[train], scaled[test], labels[test])
        for scaled in (rows, rows * np.float32(50))
    )
    assert values(one) != values(other)

    lengths = np.random.default_rng(2).uniform(0.1, 100, (400, 1)).astype(np.float32)
    relevant = [[row, row + 1] for row in range(100)]
    scaled = retrieval(rows[:100] * lengths[:100], rows * lengths[::-1], relevant)
    assert scaled == retrieval(rows[:100], rows, relevant)
    one_length = values(clustering(rows, labels, documents_per_fold=200))
    assert values(clustering(rows * 4, labels, documents_per_fold=200)) == one_length


def test_the_same_seed_gives_the_same_scores_and_another_one_others() -> None:
    rows, labels = blobs(200, spread=0.6)
    probes: list[Callable[[int], list[FoldScore]]] = [
        lambda seed: classification(rows, labels, rows, labels, seed=seed),
        lambda seed: clustering(rows, labels, seed=seed, documents_per_fold=150),
    ]
    for probe in probes:
        assert probe(42) == probe(42)
        assert probe(42) != probe(43)
    assert len(set(values(probes[1](42)))) > 1


def test_float16_scores_as_the_same_numbers_in_float32() -> None:
    rows, labels = blobs(200, spread=0.6)
    half = rows.astype(np.float16)
    single = half.astype(np.float32)
    assert finite_vectors("half", half).dtype == np.float32
    assert classification(half, labels, half, labels) == (
        classification(single, labels, single, labels)
    )


def test_a_collapsed_layer_scores_chance_without_a_warning() -> None:
    _, labels = blobs(80, spread=0.5)
    same = np.full((80, 16), 0.1, dtype=np.float32)
    assert values(classification(same, labels, same, labels)) == [1 / N_LABELS] * 10
    assert values(clustering(same, labels, documents_per_fold=80)) == [0.0] * 10


# The label sets of three labels, from one to all.
SETS = [list(chosen) for size in range(1, 4) for chosen in combinations("abc", size)]


def label_groups(n_rows: int) -> tuple[Matrix, list[list[str]]]:
    """Rows in seven distant groups, one for each set of labels."""
    generator = np.random.default_rng(0)
    group = np.arange(n_rows) % len(SETS)
    rows = 10 * np.eye(len(SETS))[group] + 0.1 * generator.standard_normal((n_rows, len(SETS)))
    return rows.astype(np.float32), [SETS[number] for number in group]


def of_sets(labels: list[list[str]], folds: int = 10) -> list[FoldScore]:
    """Scores of the second half of 400 rows in groups, by the first half."""
    rows, known = label_groups(400)
    return multilabel_classification(
        rows[:200], known[:200], rows[200:], labels, samples_per_label=60, folds=folds
    )


def linear_values(n_rows: int, noise: float) -> tuple[Matrix, npt.NDArray[np.float64]]:
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((n_rows, 5)).astype(np.float32)
    return rows, rows @ [3.0, 1.0, 0.0, -2.0, 0.5] + 7 + noise * generator.standard_normal(n_rows)


def test_sets_that_lie_apart_are_all_right() -> None:
    labels = label_groups(400)[1][200:]
    scores = of_sets(labels)
    found = [(score.fold, score.metric, score.value, score.n_test) for score in scores]
    assert found == [(fold, "accuracy", 1.0, 200) for fold in range(10)]
    assert len({score.n_train for score in scores}) > 1
    assert of_sets(labels, folds=3) == scores[:3]


def test_one_wrong_label_makes_the_row_wrong() -> None:
    labels = label_groups(400)[1]
    missing = [of_row[:-1] if len(of_row) == 3 else of_row for of_row in labels[200:]]
    missing[:7] = [[]] * 7  # never predicted where every training row has a label
    wrong = 7 + sum(len(of_row) == 3 for of_row in labels[207:])
    (score,) = of_sets(missing, folds=1)
    assert score.value == pytest.approx(1 - wrong / 200)


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


def test_a_linear_value_is_ordered_without_a_fault() -> None:
    rows, numbers = linear_values(300, noise=0)
    scores = regression(rows[:200], numbers[:200], rows[200:], -numbers[200:], samples=50)
    assert values(scores) == pytest.approx([-1.0] * 10)
    for fold, score in enumerate(scores):
        assert score == FoldScore(fold, "kendalltau", score.value, 50, 100)


def test_every_tenth_is_drawn_in_its_proportion() -> None:
    numbers = np.random.default_rng(3).permutation(400).astype(float)
    rows = stratified_rows(numbers, seed=42, samples=100)
    assert len(set(rows.tolist())) == 100
    assert np.bincount(numbers[rows].astype(int) // 40).tolist() == [10] * 10
    assert set(rows.tolist()) != set(stratified_rows(numbers, seed=43, samples=100).tolist())


def test_replicates_of_a_fit_of_all_rows_are_of_its_resampled_predictions() -> None:
    rows, numbers = linear_values(150, noise=4)
    fitted, numbers, known = (rows[:100], numbers[:100]), numbers[100:], rows[100:]
    (score,) = regression(*fitted, known, numbers, seed=5, replicates=20)
    assert (score.fold, score.n_train, score.n_test) == (0, 100, 50)
    predicted = LinearRegression().fit(*fitted).predict(known)
    assert score.value == kendalltau(numbers, predicted).statistic
    resamples = item_resamples(50, seed=5, count=20)
    for replicate, count_N in zip(score.replicates, resamples, strict=True):
        drawn = np.repeat(np.arange(50), count_N)
        assert replicate == kendalltau(numbers[drawn], predicted[drawn]).statistic
    assert np.std(score.replicates) > 0.01


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
    ],
    ids=["sts", "pair_classification", "retrieval", "reranking"],
)
def test_replicates_are_scores_of_the_resampled_items(probe: Resampled) -> None:
    (score,) = probe(np.arange(30), seed=5, replicates=20)
    resamples = item_resamples(30, seed=5, count=20)
    for replicate, count_N in zip(score.replicates, resamples, strict=True):
        (again,) = probe(np.repeat(np.arange(30), count_N))
        assert replicate == pytest.approx(again.value)
    assert np.std(score.replicates) > 0.01
    assert len(set(score.replicates)) > 10
