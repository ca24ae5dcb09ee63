"""The result that every probe returns, and the checks that every probe makes on its input.

Shapes: N rows, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.floating]


@dataclass(frozen=True)
class FoldScore:
    """One score of one repetition of a probe.

    `n_train` rows were fitted with their labels (0 for a probe that fits none), `n_test` rows (or
    queries) were scored.
    """

    fold: int
    metric: str
    value: float
    n_train: int
    n_test: int


def finite_vectors(name: str, vectors_ND: Vectors) -> Vectors:
    """Return the matrix as float32 or float64; empty, misshapen or non-finite input raises.

    float16 is widened to float32, which loses nothing; wider types are kept as they are, because
    the estimators' results depend on the type they are given.
    """
    if vectors_ND.ndim != 2 or 0 in vectors_ND.shape:  # noqa: PLR2004 - a matrix has two axes
        raise ValueError(f"{name}: expected a non-empty [rows, dim] array, got {vectors_ND.shape}")
    bad_ND = ~np.isfinite(vectors_ND)
    if bad_ND.any():
        n_rows = np.count_nonzero(bad_ND.any(axis=1))
        raise ValueError(
            f"{name}: {np.count_nonzero(bad_ND)} non-finite entries "
            f"in {n_rows} of {len(vectors_ND)} rows"
        )
    return vectors_ND.astype(np.float32) if vectors_ND.dtype == np.float16 else vectors_ND


def row_labels(name: str, labels: npt.ArrayLike, n_rows: int) -> npt.NDArray[np.generic]:
    """Return one label per row as an array; another count raises."""
    labels_N: npt.NDArray[np.generic] = np.asarray(labels)
    if labels_N.shape != (n_rows,):
        raise ValueError(f"{name}: {n_rows} rows need {n_rows} labels, got shape {labels_N.shape}")
    return labels_N


def require_positive(**counts: int) -> None:
    """Raise for the first count below 1, with its name and value."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
