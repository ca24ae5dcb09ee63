"""Tests of every layer against the last one, and their correction.

Shapes: L layers, B bootstrap draws.
"""

import numpy as np

from operators.ranking.scores import TIE, Array


def p_values(gain_LB: Array) -> Array:
    """Two-sided paired bootstrap test of gain = 0 from the draws of the gain, 0..1, [L].

    2 min(a, b), at most 1, with a = (draws with gain <= 0, plus 1) / (draws + 1) and b the same for
    gain >= 0 (Davison and Hinkley 1997, *Bootstrap Methods and their Application*, chapter 4). It
    is the inverse of the percentile interval: below 1 - level about when that interval leaves 0.
    At least 2 / (draws + 1); NaN without draws.
    """
    if not gain_LB.shape[1]:
        return np.full(len(gain_LB), np.nan)
    not_above_L = (gain_LB <= TIE).sum(axis=1)
    not_below_L = (gain_LB >= -TIE).sum(axis=1)
    p_L = 2 * (np.minimum(not_above_L, not_below_L) + 1) / (gain_LB.shape[1] + 1)
    return np.where(np.isnan(gain_LB).any(axis=1), np.nan, np.minimum(p_L, 1.0))


def holm(p_L: Array) -> Array:
    """Return p-values corrected for testing several hypotheses at once, each 0..1; NaN stays NaN.

    The i-th smallest of m becomes the largest of min(1, (m - j + 1) p_j) over j <= i. Rejecting
    what is below alpha then rejects any true hypothesis with probability alpha at most, however
    the tests depend on each other (Holm 1979, *A Simple Sequentially Rejective Multiple Test
    Procedure*, Scandinavian Journal of Statistics 6).
    """
    corrected_L = np.full(len(p_L), np.nan)
    order = np.argsort(p_L)[: np.count_nonzero(~np.isnan(p_L))]
    factors = np.arange(len(order), 0, -1)
    corrected_L[order] = np.minimum(np.maximum.accumulate(factors * p_L[order]), 1.0)
    return corrected_L
