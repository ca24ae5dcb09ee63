"""Linear probe: can a few labelled examples per class separate the classes?

Shapes: N rows, D dimensions.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from operators.probes.fold import (
    FoldScore,
    NoScoreError,
    Vectors,
    finite_vectors,
    require_known_labels,
    require_positive,
    row_labels,
    rows_until_enough,
)

# The protocol's iteration limit. On unscaled vectors of a middle layer it often ends the fit
# before convergence; a fitted-to-the-end classifier would be another metric.
MAX_ITERATIONS = 100


def few_shot_rows(
    labels: Sequence[object], *, seed: int, folds: int, samples_per_label: int
) -> list[list[int]]:
    """Return, for each fold, the training rows: the first few of every label in a shuffled order.

    Every fold shuffles with a generator newly made from the same seed, but shuffles the order the
    fold before left, so folds differ although the seed does not. That is what mteb does, and the
    scores are comparable only if the rows are the same. A label with fewer rows gives what it has.
    """
    order = list(range(len(labels)))
    rows_of_fold = []
    for _ in range(folds):
        # The legacy generator is part of the protocol: a Generator would draw other rows.
        np.random.RandomState(seed).shuffle(order)
        rows = rows_until_enough(order, [(label,) for label in labels], samples_per_label)
        rows_of_fold.append(rows)
    return rows_of_fold


def classification(
    train_ND: Vectors,
    train_labels: npt.ArrayLike,
    test_ND: Vectors,
    test_labels: npt.ArrayLike,
    *,
    seed: int = 42,
    folds: int = 10,
    first: int = 0,
    samples_per_label: int = 8,
) -> list[FoldScore]:
    """Accuracy of a logistic regression fitted on `samples_per_label` rows of every label.

    accuracy = correct test rows / test rows; every fold is scored on the whole test split and
    differs only in its training rows. Vectors are used as they are: the L2 penalty makes the score
    depend on their scale, so normalised vectors are another variant, not the same number.

    Folds below `first` are drawn like the others and not scored.

    Source: `AbsTaskClassification` of mteb 2.26 (Muennighoff et al. 2023, arXiv 2210.07316), the
    same rows, estimator and seed. Range 0..1, higher is better; chance is one over the number of
    labels when they are balanced.
    """
    train_ND = finite_vectors("train", train_ND)
    test_ND = finite_vectors("test", test_ND)
    train_labels_N = row_labels("train", train_labels, len(train_ND))
    test_labels_N = row_labels("test", test_labels, len(test_ND))
    require_positive(folds=folds, samples_per_label=samples_per_label)
    labels: list[object] = train_labels_N.tolist()
    if len(set(labels)) == 1:
        raise NoScoreError(
            f"train: {len(labels)} rows have 1 label, classification needs 2 or more"
        )
    require_known_labels(labels, test_labels_N.tolist())

    estimator = LogisticRegression(max_iter=MAX_ITERATIONS, random_state=seed)
    folds_rows = few_shot_rows(labels, seed=seed, folds=folds, samples_per_label=samples_per_label)
    scores = []
    for fold, rows in enumerate(folds_rows[first:], first):
        with warnings.catch_warnings():
            # Stopping at MAX_ITERATIONS is the protocol, so the warning about it says nothing.
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(train_ND[rows], train_labels_N[rows])
        accuracy = float(accuracy_score(test_labels_N, estimator.predict(test_ND)))
        scores.append(FoldScore(fold, "accuracy", accuracy, len(rows), len(test_ND)))
    return scores
