"""Probes of labelled rows: do the vectors tell their class, set of labels, value or group?

Folds below `first` are drawn like the others and not scored.

Shapes: N rows, D dimensions, C labels, B bins of values.
"""

import random
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, v_measure_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import MultiLabelBinarizer

from layerrank.operators.probes.clusters import mini_batch_k_means
from layerrank.operators.probes.fold import (
    BINS,
    NEIGHBOURS,
    NO_LABEL,
    FoldScore,
    NoScoreError,
    Values,
    Vectors,
    finite_vectors,
    item_resamples,
    mean_score,
    require_positive,
    row_labels,
    varied_values,
)

# The protocol's iteration limit. On unscaled vectors of a middle layer it often ends the fit
# before convergence; a fitted-to-the-end classifier would be another metric.
MAX_ITERATIONS = 100
# How many labels an error names before it only counts them.
NAMED_LABELS = 5

Labels = Sequence[Sequence[str]]


def rows_until_enough(
    order: Iterable[int], labels: Sequence[Iterable[object]], samples_per_label: int
) -> list[int]:
    """Return the rows that have a label of which fewer than `samples_per_label` were taken before.

    `labels` holds those of each row; rows are taken in the given order.
    """
    taken: Counter[object] = Counter()
    rows = []
    for row in order:
        if any(taken[label] < samples_per_label for label in labels[row]):
            taken.update(labels[row])
            rows.append(row)
    return rows


def require_known_labels(train: Collection[object], test: Collection[object]) -> None:
    """NoScoreError if a label of the test split is not in the training split, with its name."""
    unknown = sorted(set(test) - set(train), key=str)
    if unknown:
        named = ", ".join(repr(label) for label in unknown[:NAMED_LABELS])
        more = ", …" if len(unknown) > NAMED_LABELS else ""
        raise NoScoreError(
            f"test: {len(unknown)} of {len(set(test))} labels do not appear in train, "
            f"so no classifier can name them: {named}{more}"
        )


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


def classification(  # noqa: PLR0913  (two sides of a split, and what the protocol sets)
    train_ND: Vectors,
    train_labels: npt.ArrayLike,
    test_ND: Vectors,
    test_labels: npt.ArrayLike,
    *,
    seed: int = 42,
    folds: int = 10,
    first: int = 0,
    samples_per_label: int = 8,
    replicates: int = 0,
) -> list[FoldScore]:
    """Accuracy of a logistic regression fitted on `samples_per_label` rows of every label.

    accuracy = correct test rows / test rows; every fold is scored on the whole test split and
    differs only in its training rows. Vectors are used as they are: the L2 penalty makes the score
    depend on their scale, so normalised vectors are another variant, not the same number.

    Source: `AbsTaskClassification` of mteb 2.26 (Muennighoff et al. 2023, arXiv 2210.07316), the
    same rows, estimator and seed. Of raw vectors single decisions differ (at most 5 of 14,210 on
    real tweets): the fit, L-BFGS in float32, stops before the optimum, and where is rounding. Range
    0..1, higher is better; chance is one over the number of labels when they are balanced.

    Where every fold takes all training rows, folds are one fit and show no spread: then the first
    has its value on `replicates` bootstrap resamples of the test rows.
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
    are_one_fit = all(len(rows) == len(labels) for rows in folds_rows)
    scores = []
    for fold, rows in enumerate(folds_rows[first:], first):
        with warnings.catch_warnings():
            # Stopping at MAX_ITERATIONS is the protocol, so the warning about it says nothing.
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(train_ND[rows], train_labels_N[rows])
        predicted_N = estimator.predict(test_ND)
        accuracy = float(accuracy_score(test_labels_N, predicted_N))
        scores.append(FoldScore(fold, "accuracy", accuracy, len(rows), len(test_ND)))
        if are_one_fit and fold == 0:
            right_N = (predicted_N == test_labels_N).astype(np.float64)
            found = mean_score("accuracy", right_N, seed=seed, replicates=replicates)
            scores[-1] = replace(scores[-1], replicates=found.replicates)
    return scores


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


def multilabel_rows(
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

    binarizer = MultiLabelBinarizer(classes=sorted(found))
    test_NC = binarizer.fit_transform(test_labels)
    train_NC = binarizer.transform([found.intersection(of_row) for of_row in train_labels])
    scores = []
    drawn = multilabel_rows(
        train_labels, seed=seed, folds=folds, samples_per_label=samples_per_label
    )
    for fold, rows in enumerate(drawn[first:], first):
        if len(rows) < NEIGHBOURS:
            raise NoScoreError(
                f"train: fold {fold} draws {len(rows)} rows, {NEIGHBOURS} neighbours need as many"
            )
        estimator = KNeighborsClassifier(n_neighbors=NEIGHBOURS)
        estimator.fit(train_ND[rows], train_NC[rows])
        accuracy = float(accuracy_score(test_NC, estimator.predict(test_ND)))
        scores.append(FoldScore(fold, "accuracy", accuracy, len(rows), len(test_ND)))
    return scores


def _bins(value_N: Values) -> npt.NDArray[np.intp]:
    """The tenth of each value: bins between the deciles, closed above; equal deciles are one."""
    edges = np.unique(np.percentile(value_N, np.linspace(0, 1, BINS + 1) * 100))
    bin_N = np.maximum(np.searchsorted(edges, value_N, side="left") - 1, 0)
    numbered_N: npt.NDArray[np.intp] = np.unique(bin_N, return_inverse=True)[1]
    return numbered_N


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
    # In proportion, the largest remainders rounded up; among equal ones the generator chooses.
    exact_B = staying * size_B / size_B.sum()
    staying_B = np.floor(exact_B).astype(np.int64)
    left_B = exact_B - staying_B
    for remainder in np.unique(left_B)[::-1]:
        absent = int(staying - staying_B.sum())
        tied = np.flatnonzero(left_B == remainder)
        if absent:
            staying_B[generator.choice(tied, size=min(len(tied), absent), replace=False)] += 1
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


def clustering(
    vectors_ND: Vectors,
    labels: npt.ArrayLike,
    *,
    seed: int = 42,
    folds: int = 10,
    first: int = 0,
    max_documents: int | None = None,
    documents_per_fold: int = 16_384,
    batch_size: int = 512,
) -> list[FoldScore]:
    """V-measure between the labels and k-means clusters, with as many clusters as labels.

    V = 2 h c / (h + c), h = 1 - H(label | cluster) / H(label) (homogeneity), c the same with the
    roles exchanged (completeness). First `max_documents` rows are drawn without replacement (None:
    all rows, in their order); then every fold clusters `documents_per_fold` of them drawn *with*
    replacement, also where that is more than there are. `n_test` counts the draws of a fold. In the
    names of mteb: `max_document_to_embed` (or a fraction of the rows, there 0.04 by default, which
    is for corpora of millions), `max_documents_per_cluster`, `n_clusters` = `folds`,
    `k_mean_batch_size`.

    Source: `AbsTaskClustering` of mteb 2.26, its "fast" clustering (Enevoldsen et al. 2025,
    arXiv 2502.13595), the same draws, estimator and seed; V-measure from Rosenberg and Hirschberg
    2007. Range 0..1, higher is better; a random assignment scores near but above 0.
    """
    vectors_ND = finite_vectors("clustering", vectors_ND)
    n_rows = len(vectors_ND)
    labels_N = row_labels("clustering", labels, n_rows)
    n_unlabelled = sum(label == NO_LABEL for label in labels_N.tolist())
    if n_unlabelled:
        raise ValueError(
            f"clustering: {n_unlabelled} of {n_rows} rows have the label {NO_LABEL}, which means "
            "'not labelled' in this protocol: leave the rows out or give the label another name"
        )
    require_positive(folds=folds, documents_per_fold=documents_per_fold, batch_size=batch_size)
    draw = random.Random(seed)
    if max_documents is not None:
        require_positive(max_documents=max_documents)
        rows = draw.sample(range(n_rows), k=min(max_documents, n_rows))
        vectors_ND, labels_N = vectors_ND[rows], labels_N[rows]

    # Numbers in the order of the labels: the same score, and sorted for every fold much faster.
    named, label_N = np.unique(labels_N, return_inverse=True)
    n_labels = len(named)
    if n_labels == 1:
        raise NoScoreError(f"clustering: {len(labels_N)} rows have 1 label, 2 or more are needed")
    if documents_per_fold < n_labels:
        raise ValueError(
            f"clustering: {documents_per_fold} documents per fold cannot fill {n_labels} clusters"
        )
    scores = []
    for fold in range(folds):
        drawn = draw.choices(range(len(label_N)), k=documents_per_fold)
        if fold < first:
            continue
        cluster_N = mini_batch_k_means(
            vectors_ND[drawn], n_clusters=n_labels, batch_size=batch_size, seed=seed
        )
        v_measure = float(v_measure_score(label_N[drawn], cluster_N))
        scores.append(FoldScore(fold, "v_measure", v_measure, 0, documents_per_fold))
    return scores
