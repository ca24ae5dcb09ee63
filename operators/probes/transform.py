"""What is done to pooled vectors before they are used, fitted on texts without their labels.

A few features of a decoder's states are so large, and so alike in all texts, that they drown the
others, and most vectors point one way (Timkey and van Schijndel 2021, arXiv 2109.04404). What mends
it needs texts, no labels:

- `raw`: the vectors as they are.
- `l2`: each of unit length; a zero vector stays zero.
- `z`: every feature less its mean, by its standard deviation.
- `abtt`: centred, and the projections on the k directions of largest variance taken away
  (*all but the top*, Mu and Viswanath 2018, arXiv 1702.01417, algorithm 1; there k is a hundredth
  of the features). Not scaled: cosines do not depend on it.

Shapes: N texts, D features, K directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerrank.operators.model.subject import Transform
from layerrank.operators.probes.fold import unit_rows

Array = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
FITTED: tuple[Transform, ...] = ("z", "abtt")  # the others need no texts
# Of a feature's size. What varies by less is rounding of float32, and not to be blown up.
_CONSTANT = 1e-5
# Of the largest variance: a direction with less is one of rounding.
_VARIES = 1e-9
_BLOCK = 4096  # rows widened to float64 at a time


@dataclass(frozen=True, eq=False)
class Fit:
    """What `z` and `abtt` take from the vectors of some texts, in float64.

    `deviation_D` is 1 for a feature that does not vary, which becomes 0. `direction_KD` are unit
    vectors, orthogonal to each other.
    """

    mean_D: Array
    deviation_D: Array
    direction_KD: Array


def require_enough(texts: int, features: int, directions: int, where: str) -> None:
    """ValueError if so many texts of so many features have no such number of top directions.

    N centred vectors lie in N - 1 directions, and one must be left of those that there are.
    """
    most = min(texts - 1, features) - 1
    if directions > most:
        raise ValueError(
            f"{where}: {directions} top directions are to be removed, but {texts:,} texts of "
            f"{features:,} features have {max(most, 0)} to spare"
        )


def fit(vectors_ND: Vectors, directions: int) -> Fit:
    """Return mean, deviation and the `directions` of largest variance of the vectors [N, D].

    ValueError if there are too few vectors (`require_enough`).
    """
    count, features = vectors_ND.shape
    require_enough(count, features, directions, "fit")
    wide_ND = vectors_ND.astype(np.float64)
    mean_D = wide_ND.mean(axis=0)
    size_D = np.sqrt((wide_ND**2).mean(axis=0))
    wide_ND -= mean_D
    deviation_D = np.sqrt((wide_ND**2).mean(axis=0))
    deviation_D[deviation_D <= _CONSTANT * size_D] = 1.0
    # From the smaller side: the directions of Z^T Z, or those of Z Z^T carried over by Z.
    gram = wide_ND.T @ wide_ND if features <= count else wide_ND @ wide_ND.T
    top = _top(gram, directions) if directions else np.zeros((len(gram), 0))
    top_DK = top if features <= count else wide_ND.T @ top
    direction_DK, _ = np.linalg.qr(top_DK)
    return Fit(mean_D, deviation_D, direction_DK.T)


def _top(gram: Array, count: int) -> Array:
    """Return the eigenvectors of the `count` largest eigenvalues, [..., K].

    By Lanczos' method, a tenth of the work of all of them. Where fewer directions vary it would go
    on from a vector that it draws, another each time: so there it is not asked.
    """
    from scipy.linalg import eigh  # noqa: PLC0415  (whoever applies a fit does not need it)
    from scipy.sparse.linalg import ArpackError, eigsh  # noqa: PLC0415

    size, top = len(gram), None
    try:
        value_K, top = eigsh(gram, count, v0=np.random.default_rng(0).normal(size=size))
        found = value_K.min() > _VARIES * value_K.max()
    except ArpackError:  # nothing varies
        found = False
    if not found:
        _, top = eigh(gram, subset_by_index=[size - count, size - 1])
    return np.asarray(top, np.float64)


def apply(vectors_ND: Vectors, transform: Transform, found: Fit | None = None) -> Vectors:
    """Return the transformed vectors [N, D]; `z` and `abtt` need what was fitted."""
    if transform == "raw" or not len(vectors_ND):
        return vectors_ND
    if transform == "l2":
        return unit_rows(vectors_ND)
    assert found, f"{transform} is fitted before it is applied"
    made_ND = np.empty(vectors_ND.shape, np.float32)
    for start in range(0, len(vectors_ND), _BLOCK):
        wide_ND = vectors_ND[start : start + _BLOCK] - found.mean_D
        if transform == "z":
            wide_ND /= found.deviation_D
        else:
            assert transform == "abtt", transform
            wide_ND -= (wide_ND @ found.direction_KD.T) @ found.direction_KD
        made_ND[start : start + _BLOCK] = wide_ND
    return made_ND


def matrix(transform: Transform, found: Fit) -> Array:
    """Return what `z` or `abtt` multiplies centred vectors by, [D, D]: ``y = W (x - mean)``."""
    if transform == "z":
        return np.diag(1 / found.deviation_D)
    assert transform == "abtt", transform
    weight_DD: Array = np.eye(len(found.mean_D)) - found.direction_KD.T @ found.direction_KD
    return weight_DD
