"""Clustering probe: do the vectors fall into the labelled groups without being told of them?

Shapes: N rows, D dimensions.
"""

import random

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score

from operators.probes.fold import (
    FoldScore,
    NoScoreError,
    Vectors,
    finite_vectors,
    require_positive,
    row_labels,
)

# mteb reads this label as "no label at this level" and leaves its rows out.
NO_LABEL = -1


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

    Folds below `first` are drawn like the others and not scored.

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

    n_labels = len(np.unique(labels_N))
    if n_labels == 1:
        raise NoScoreError(f"clustering: {len(labels_N)} rows have 1 label, 2 or more are needed")
    if documents_per_fold < n_labels:
        raise ValueError(
            f"clustering: {documents_per_fold} documents per fold cannot fill {n_labels} clusters"
        )
    estimator = MiniBatchKMeans(
        n_clusters=n_labels, batch_size=batch_size, init="k-means++", n_init=1, random_state=seed
    )
    scores = []
    for fold in range(folds):
        drawn = draw.choices(range(len(labels_N)), k=documents_per_fold)
        if fold < first:
            continue
        clusters_N = estimator.fit_predict(vectors_ND[drawn])
        v_measure = float(v_measure_score(labels_N[drawn], clusters_N))
        scores.append(FoldScore(fold, "v_measure", v_measure, 0, documents_per_fold))
    return scores
