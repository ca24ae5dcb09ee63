"""Probes that are fitted, beside classification: multi-label and regression."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import kendalltau
from sklearn.linear_model import LinearRegression

from operators.probes.fold import FoldScore, item_resamples
from operators.probes.multilabel import few_shot_rows, multilabel_classification
from operators.probes.regression import _bins, regression, stratified_rows

Matrix = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

# The label sets of three labels, from one to all.
SETS = [list(chosen) for size in range(1, 4) for chosen in combinations("abc", size)]


def label_groups(n_rows: int) -> tuple[Matrix, list[list[str]]]:
    """Rows in seven distant groups, one for each set of labels."""
    generator = np.random.default_rng(0)
    group = np.arange(n_rows) % len(SETS)
    rows = 10 * np.eye(len(SETS))[group] + 0.1 * generator.standard_normal((n_rows, len(SETS)))
    return rows.astype(np.float32), [SETS[number] for number in group]


def linear_values(n_rows: int, noise: float) -> tuple[Matrix, Values]:
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((n_rows, 5)).astype(np.float32)
    return rows, rows @ [3.0, 1.0, 0.0, -2.0, 0.5] + 7 + noise * generator.standard_normal(n_rows)


def values(scores: list[FoldScore]) -> list[float]:
    return [score.value for score in scores]


def test_sets_that_lie_apart_are_all_right() -> None:
    rows, labels = label_groups(400)
    scores = multilabel_classification(
        rows[:200], labels[:200], rows[200:], labels[200:], samples_per_label=60
    )
    assert [(score.fold, score.metric, score.n_test) for score in scores] == [
        (fold, "accuracy", 200) for fold in range(10)
    ]
    assert values(scores) == [1.0] * 10
    assert len({score.n_train for score in scores}) > 1
    assert (
        multilabel_classification(
            rows[:200], labels[:200], rows[200:], labels[200:], samples_per_label=60, folds=3
        )
        == (scores[:3])
    )


def test_one_wrong_label_makes_the_row_wrong() -> None:
    rows, labels = label_groups(400)
    missing = [of_row[:-1] if len(of_row) == 3 else of_row for of_row in labels[200:]]
    missing[:7] = [[]] * 7  # never predicted where every training row has a label
    wrong = 7 + sum(len(of_row) == 3 for of_row in labels[207:])
    (score,) = multilabel_classification(
        rows[:200], labels[:200], rows[200:], missing, samples_per_label=60, folds=1
    )
    assert score.value == pytest.approx(1 - wrong / 200)


def test_rows_are_drawn_until_every_label_has_enough() -> None:
    labels = [["a"]] * 30 + [["a", "b"]] * 30 + [["c"]] * 3 + [[]] * 10
    folds = few_shot_rows(labels, seed=42, folds=5, samples_per_label=4)
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
    assert [(score.fold, score.metric) for score in scores] == [
        (fold, "kendalltau") for fold in range(10)
    ]
    assert {(score.n_train, score.n_test, score.replicates) for score in scores} == {(50, 100, ())}
    assert values(scores) == pytest.approx([-1.0] * 10)


def test_folds_of_all_rows_are_one_score_with_replicates() -> None:
    rows, numbers = linear_values(150, noise=4)
    (score,) = regression(
        rows[:100], numbers[:100], rows[100:], numbers[100:], seed=5, replicates=20
    )
    assert (score.fold, score.n_train, score.n_test) == (0, 100, 50)
    predicted = LinearRegression().fit(rows[:100], numbers[:100]).predict(rows[100:])
    assert score.value == kendalltau(numbers[100:], predicted).statistic
    for replicate, count_N in zip(
        score.replicates, item_resamples(50, seed=5, count=20), strict=True
    ):
        drawn = np.repeat(np.arange(50), count_N)
        assert replicate == kendalltau(numbers[100:][drawn], predicted[drawn]).statistic
    assert np.std(score.replicates) > 0.01


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_bins_are_those_of_pandas(decimals: int) -> None:
    pd = pytest.importorskip("pandas")
    numbers = np.round(np.random.default_rng(2).standard_normal(317), decimals)
    theirs = pd.qcut(numbers, q=10, labels=False, duplicates="drop")
    np.testing.assert_array_equal(_bins(numbers), np.unique(theirs, return_inverse=True)[1])


def test_every_tenth_is_drawn_in_its_proportion() -> None:
    numbers = np.random.default_rng(3).permutation(400).astype(float)
    rows = stratified_rows(numbers, seed=42, samples=100)
    assert len(set(rows.tolist())) == 100
    assert np.bincount(_bins(numbers)[rows]).tolist() == [10] * 10
    assert set(rows.tolist()) != set(stratified_rows(numbers, seed=43, samples=100).tolist())


ROWS, LABELS = label_groups(40)
_, NUMBERS = linear_values(40, noise=1)
COLLAPSED = np.full((40, 7), 0.1, dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: multilabel_classification(ROWS, [["a"]] * 40, ROWS, LABELS),
            "train: 40 rows have 1 labels, .* 2 or more",
        ),
        (
            lambda: multilabel_classification(ROWS, LABELS, ROWS, [["a", "z"], *LABELS[1:]]),
            "test: 1 of 4 labels do not appear in train.*: 'z'$",
        ),
        (
            lambda: multilabel_classification(ROWS, LABELS[:9], ROWS, LABELS),
            "train: 40 rows need 40 lists of labels, got 9",
        ),
        (
            lambda: multilabel_classification(
                ROWS, LABELS, ROWS, [*LABELS[:7], "a,b", *LABELS[8:]]
            ),
            "test: row 7 has 'a,b', a list of labels is needed",
        ),
        (
            lambda: multilabel_classification(
                ROWS[:4], LABELS[4:8], ROWS, LABELS, samples_per_label=1
            ),
            "train: fold 0 draws . rows, 5 neighbours need as many",
        ),
        (lambda: regression(ROWS, NUMBERS, ROWS, NUMBERS[:9]), "test: 40 rows need 40 values"),
        (lambda: regression(ROWS, NUMBERS * 0 + 3, ROWS, NUMBERS), "train: all 40 values are 3"),
        (lambda: regression(ROWS, ["1"] * 40, ROWS, NUMBERS), "train: the value of row 0 is '1'"),
        (lambda: regression(ROWS, NUMBERS > 0, ROWS, NUMBERS), "the value of row 0 is (Tru|Fals)e"),
        (lambda: regression(ROWS, NUMBERS, ROWS, NUMBERS * np.nan), "test: 40 of 40 .* not finite"),
        (lambda: regression(ROWS, NUMBERS, ROWS, NUMBERS, samples=35), "35 of 40 .* 10..30"),
        (lambda: regression(ROWS, NUMBERS, ROWS, NUMBERS, samples=0), "samples .* got 0"),
        (lambda: regression(COLLAPSED, NUMBERS, COLLAPSED, NUMBERS), "predictions are all equal"),
    ],
)
def test_values_that_do_not_exist_are_errors(
    call: Callable[[], list[FoldScore]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
