"""Multi-label probe: do a row's nearest training rows know all of its labels?

Shapes: N rows, D dimensions, C labels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import MultiLabelBinarizer

from operators.probes.fold import (
    FoldScore,
    NoScoreError,
    Vectors,
    finite_vectors,
    require_known_labels,
    require_positive,
    rows_until_enough,
)

NEIGHBOURS = 5

Labels = Sequence[Sequence[str]]


def _checked_labels(name: str, labels: Labels, n_rows: int) -> set[str]:
    """Return the different labels; another count or a row that is no list of labels raises."""
    if len(labels) != n_rows:
        raise ValueError(f"{name}: {n_rows} rows need {n_rows} lists of labels, got {len(labels)}")
    for row, of_row in enumerate(labels):
        if isinstance(of_row, str) or not hasattr(of_row, "__iter__"):
            raise ValueError(f"{name}: row {row} has {of_row!r}, a list of labels is needed")
    found = {label for of_row in labels for label in of_row}
    if len(found) < 2:  # noqa: PLR2004 - of one label alone there is nothing to tell apart
        raise NoScoreError(
            f"{name}: {n_rows} rows have {len(found)} labels, "
            "multi-label classification needs 2 or more"
        )
    return found


def few_shot_rows(
    labels: Labels, *, seed: int, folds: int, samples_per_label: int
) -> list[list[int]]:
    """Return, for each fold, the training rows: in a shuffled order, those that any label needs.

    A row is taken if one of its labels has been seen fewer than `samples_per_label` times, so a
    label that comes with others can be taken more often; a row without labels never is. Every fold
    shuffles the source order, with one generator for all folds: that is what mteb does here, and
    unlike what it does for one label per row.
    """
    generator = np.random.default_rng(seed)
    rows_of_fold = []
    for _ in range(folds):
        order = list(range(len(labels)))
        generator.shuffle(order)
        rows_of_fold.append(rows_until_enough(order, labels, samples_per_label))
    return rows_of_fold


def multilabel_classification(
    train_ND: Vectors,
    train_labels: Labels,
    test_ND: Vectors,
    test_labels: Labels,
    *,
    seed: int = 42,
    folds: int = 10,
    first: int = 0,
    samples_per_label: int = 8,
) -> list[FoldScore]:
    """Share of test rows whose whole set of labels is predicted, by the 5 nearest training rows.

    accuracy = rows with every label right / test rows; a label is predicted where 3 of the 5
    nearest rows (Euclidean) have it. A row may have no label. Labels that only training rows have
    count in the sampling and are not predicted.

    Folds below `first` are drawn like the others and not scored.

    Source: `AbsTaskMultilabelClassification` of mteb 2.26, the same rows, estimator and seed. There
    a test split of more than 3,000 rows is cut to 3,000 by iterative stratification; ours scores
    every row that it is given. Range 0..1, higher is better.
    """
    train_ND = finite_vectors("train", train_ND)
    test_ND = finite_vectors("test", test_ND)
    known = _checked_labels("train", train_labels, len(train_ND))
    found = _checked_labels("test", test_labels, len(test_ND))
    require_known_labels(known, found)
    require_positive(folds=folds, samples_per_label=samples_per_label)

    test_NC = MultiLabelBinarizer(classes=sorted(found)).fit_transform(test_labels)
    binarizer = MultiLabelBinarizer(classes=sorted(known)).fit(train_labels)
    predicted_C = np.isin(binarizer.classes_, sorted(found))
    scores = []
    drawn = few_shot_rows(train_labels, seed=seed, folds=folds, samples_per_label=samples_per_label)
    for fold, rows in enumerate(drawn[first:], first):
        if len(rows) < NEIGHBOURS:
            raise NoScoreError(
                f"train: fold {fold} draws {len(rows)} rows, {NEIGHBOURS} neighbours need as many"
            )
        estimator = KNeighborsClassifier(n_neighbors=NEIGHBOURS)
        drawn_NC: npt.NDArray[np.int64] = binarizer.transform([train_labels[row] for row in rows])
        estimator.fit(train_ND[rows], drawn_NC[:, predicted_C])
        accuracy = float(accuracy_score(test_NC, estimator.predict(test_ND)))
        scores.append(FoldScore(fold, "accuracy", accuracy, len(rows), len(test_ND)))
    return scores
