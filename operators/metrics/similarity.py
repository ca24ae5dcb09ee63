"""Linear CKA: how alike two layers arrange the same prompts.

Shape suffixes: N prompts, D features of one layer, E of the other; a lower-case n is the prompts of
one block. The code of Skean et al. 2025 has no such metric.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from layerrank.operators.metrics import FEWEST_DEBIASED
from layerrank.operators.metrics.population import row_chunks

FEWEST_BIASED = 2  # prompts
# A debiased value below this share of the sum it is a remainder of is rounding.
ZERO_REMAINDER = 1e-12


class HsicSums(NamedTuple):
    """Sums over some prompts for a pair of layers; ``merge_hsic`` adds two disjoint sets of them.

    The rows x_i and y_i are centred by the means over all prompts.
    """

    n_prompts: int
    cross_DE: Tensor  # sum of x_i y_i^T
    squares_x: Tensor  # sum of |x_i|^2
    squares_y: Tensor  # sum of |y_i|^2
    products: Tensor  # sum of |x_i|^2 |y_i|^2


class Hsic(NamedTuple):
    """The two estimates of a dependence, or of the similarity made of it."""

    biased: Tensor
    debiased: Tensor


def hsic_sums(block_nD: Tensor, other_nE: Tensor, mean_D: Tensor, mean_E: Tensor) -> HsicSums:
    """Sums of one block of the same prompts in two layers; the means are over all prompts."""
    assert block_nD.shape[0] == other_nE.shape[0]
    zeros_DE = mean_D.new_zeros(block_nD.shape[1], other_nE.shape[1])
    sums = HsicSums(0, zeros_DE, *mean_D.new_zeros(3))
    for rows_nD, rows_nE in row_chunks(block_nD, other_nE):
        x_nD, y_nE = rows_nD - mean_D, rows_nE - mean_E
        square_x_n, square_y_n = x_nD.square().sum(dim=1), y_nE.square().sum(dim=1)
        squares = square_x_n.sum(), square_y_n.sum(), (square_x_n * square_y_n).sum()
        sums = merge_hsic(sums, HsicSums(len(x_nD), x_nD.mT @ y_nE, *squares))
    return sums


def merge_hsic(left: HsicSums, right: HsicSums) -> HsicSums:
    """Sums of two disjoint sets of prompts, centred by the same means."""
    sums = (one + other for one, other in zip(left[1:], right[1:], strict=True))
    return HsicSums(left.n_prompts + right.n_prompts, *sums)


def hsic(sums: HsicSums) -> Hsic:
    """Both estimates of the Hilbert-Schmidt independence criterion of linear kernels.

    Formula: biased ``||C||_F^2 / (n - 1)^2`` with ``C = sum_i x_i y_i^T``. Debiased, with the
    diagonals taken out of K and L, whose rows sum to 0 before because x and y are centred:
    ``[||C||^2 - p + s t / ((n - 1)(n - 2)) - 2 p / (n - 2)] / (n (n - 3))`` with
    ``p = sum |x_i|^2 |y_i|^2``, ``s = sum |x_i|^2``, ``t = sum |y_i|^2``.
    Paper: Gretton et al. 2005 (biased, equation 9); Song et al. 2012 (JMLR 13, equation 4).
    Range: biased >= 0; debiased any sign, 0 on average for independent rows; in squared units of
    both layers. NaN for fewer than 2 and 4 prompts.
    """
    n, cross = sums.n_prompts, sums.cross_DE.square().sum()
    biased = debiased = cross.new_full((), torch.nan)
    if n >= FEWEST_BIASED:
        biased = cross / (n - 1) ** 2
    if n >= FEWEST_DEBIASED:
        spread = sums.squares_x * sums.squares_y / ((n - 1) * (n - 2))
        remainder = cross - sums.products * (n / (n - 2)) + spread
        debiased = remainder.masked_fill(remainder.abs() <= ZERO_REMAINDER * cross, 0.0)
        debiased = debiased / (n * (n - 3))
    return Hsic(biased, debiased)


def cka(xy: Hsic, xx: Hsic, yy: Hsic) -> Hsic:
    """How alike two layers arrange the same prompts; 1 is the same up to rotation and scale.

    Formula: ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``K = X X^T``, ``L = Y Y^T`` of rows
    centred over the prompts, from the HSIC of the pair and that of each layer with itself.
    Paper: Kornblith et al. 2019 (arXiv 1905.00414), section 3; Song et al. 2012 (JMLR 13), equation
    4, used by Nguyen et al. 2021 (arXiv 2010.15327), equation 3. Murphy et al. 2024
    (arXiv 2405.01012) show that the biased one nears 1 for unrelated layers where D > N.
    Range: biased 0 to 1; debiased about 0 for unrelated layers, possibly slightly below 0 or above
    1, which is not clipped; without unit. NaN for prompts that are all equal in a layer, for fewer
    than 2 prompts (4 debiased), for a non-finite vector, and debiased where a layer's own HSIC is
    not above 0, as for one-hot rows.
    """
    # Two roots: the product may leave the range of float64. 0 / 0 and roots of negatives are NaN.
    biased = xy.biased / (xx.biased.sqrt() * yy.biased.sqrt())
    debiased = xy.debiased / (xx.debiased.sqrt() * yy.debiased.sqrt())
    return Hsic(biased, debiased.where((xx.debiased > 0) & (yy.debiased > 0), torch.nan))
