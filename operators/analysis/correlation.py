"""How strongly two quantities go together over the layers.

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Values = npt.NDArray[np.float64]


def spearman(x_N: Values, y_N: Values) -> float:
    """How monotonic the relation is: 1 when both rise together, -1 when one falls.

    Formula: Pearson correlation of the ranks, ties sharing their mean rank.
    Paper: Spearman 1904.
    Range: -1 to 1; NaN where either is constant.
    """
    x_N, y_N = (ranks - ranks.mean() for ranks in map(rankdata, (x_N, y_N)))
    return _ratio(float(x_N @ y_N), float((x_N @ x_N) * (y_N @ y_N)))


def distance_correlation(x_N: Values, y_N: Values) -> float:
    """How dependent two quantities are, in any form of relation, also where it is not monotonic.

    Formula: ``sqrt(mean(A B) / sqrt(mean(A A) mean(B B)))`` with A and B the doubly centred
    matrices of pairwise distances (V-statistic).
    Paper: Székely, Rizzo & Bakirov 2007 (Annals of Statistics 35), definitions 4 and 5.
    Range: 0 to 1, and above 0 for few independent pairs too; NaN where either is constant.
    """
    a_NN, b_NN = _centred_distances(x_N), _centred_distances(y_N)
    ratio = _ratio(float((a_NN * b_NN).mean()), float((a_NN**2).mean() * (b_NN**2).mean()))
    return float(np.sqrt(max(ratio, 0.0))) if np.isfinite(ratio) else ratio


def _centred_distances(values_N: Values) -> Values:
    distances_NN = np.abs(values_N[:, None] - values_N[None, :])
    rows_N = distances_NN.mean(axis=1)
    centred_NN: Values = distances_NN - rows_N[:, None] - rows_N[None, :] + rows_N.mean()
    return centred_NN


def _ratio(covariance: float, variances: float) -> float:
    return float(covariance / np.sqrt(variances)) if variances > 0 else float("nan")
