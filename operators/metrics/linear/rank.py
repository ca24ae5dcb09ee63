"""Ranks: how many directions a set of vectors uses, counted softly.

Shape suffixes: N prompts, D features. Every rank exists of rows and of ``eigenvalues``, which are
those of the Gram matrix of the rows, min(N, D) of them, with exact zeros in the place of rounding,
as ``Population.spectrum`` has them: one solve then serves all. Singular values of uncentred rows
count down to 3e-10 of the largest, of centred ones down to 1e-6, the root of RELATIVE_FLOOR.
"""

from __future__ import annotations

import torch
from torch import Tensor

from operators.metrics.population import Population
from operators.metrics.token.entropy import matrix_entropy

# Added to every share by RankMe, zeros included.
RANKME_EPS = 1e-7


def effective_rank(rows_ND: Tensor, center: bool = False) -> Tensor:
    """How many directions the rows use, each weighted by its singular value.

    Formula: ``exp(-sum_i p_i log p_i)`` with ``p = s / sum(s)`` and s the singular values.
    Paper: Roy & Vetterli 2007 (EUSIPCO), the effective rank of the matrix as given: uncentred.
    Range: 1 to min(N, D), in directions; NaN for rows that are all zero (all equal when centred)
    and for a non-finite row. Rows along m orthogonal axes, equally long, give m.
    Released code: none of the paper; that of Skean et al. 2025 does not have it.
    """
    return effective_rank_of(_spectrum(rows_ND, center))


def effective_rank_of(eigenvalues: Tensor) -> Tensor:
    """``effective_rank`` from the eigenvalues of the Gram matrix."""
    return matrix_entropy(eigenvalues.to(torch.float64).sqrt()).exp()


def rankme(rows_ND: Tensor, center: bool = False, eps: float = RANKME_EPS) -> Tensor:
    """RankMe: the effective rank with a constant inside the logarithm, as published.

    Formula: ``exp(-sum_k p_k log p_k)`` with ``p_k = s_k / sum(s) + eps`` over all min(N, D)
    singular values, zeros included.
    Paper: Garrido et al. 2023 (RankMe, arXiv 2210.02885), equation 1; uncentred.
    Range: about 1 to min(N, D), in directions, up to eps log(1 / eps) for every zero singular
    value; NaN as for ``effective_rank``.
    Released code: none known of the authors; other programs differ in eps and in centring.
    """
    return rankme_of(_spectrum(rows_ND, center), eps)


def rankme_of(eigenvalues: Tensor, eps: float = RANKME_EPS) -> Tensor:
    """``rankme`` from all min(N, D) eigenvalues of the Gram matrix, zeros included."""
    singular = eigenvalues.to(torch.float64).sqrt()
    shares = singular / singular.sum(dim=-1, keepdim=True) + eps  # 0 / 0 = NaN
    return torch.exp(-torch.xlogy(shares, shares).sum(dim=-1))


def participation_ratio(rows_ND: Tensor, center: bool = False) -> Tensor:
    """How many directions carry the variance; large ones count more than in ``effective_rank``.

    Formula: ``(sum_i l_i)^2 / sum_i l_i^2`` with l the eigenvalues of the Gram matrix, which with
    ``center=True`` are N times those of the covariance.
    Paper: Gao et al. 2017 (bioRxiv 214262) and Recanatesi et al. 2022 (Patterns 3, 100555), both of
    the covariance, hence ``center=True``; ``exp`` of the entropy of order 2.
    Range: 1 to min(N, D), to min(N - 1, D) when centred, in directions; NaN as for
    ``effective_rank``.
    Released code: that of Skean et al. 2025 does not have it.
    """
    return participation_ratio_of(_spectrum(rows_ND, center))


def participation_ratio_of(eigenvalues: Tensor) -> Tensor:
    """``participation_ratio`` from the eigenvalues of the Gram matrix."""
    eigenvalues = eigenvalues.to(torch.float64)
    shares = eigenvalues / eigenvalues.sum(dim=-1, keepdim=True)
    return 1 / shares.square().sum(dim=-1)


def stable_rank(rows_ND: Tensor, center: bool = False) -> Tensor:
    """How much longer all directions together are than the longest one.

    Formula: ``||Z||_F^2 / ||Z||_2^2``, the sum of the eigenvalues over the largest.
    Paper: Rudelson & Vershynin 2007 (J. ACM 54, 21), section 1, there the numerical rank.
    Range: 1 to min(N, D), in directions; NaN as for ``effective_rank``.
    Released code: that of Skean et al. 2025 does not have it.
    """
    return stable_rank_of(_spectrum(rows_ND, center))


def stable_rank_of(eigenvalues: Tensor) -> Tensor:
    """``stable_rank`` from the eigenvalues of the Gram matrix."""
    eigenvalues = eigenvalues.to(torch.float64)
    return eigenvalues.sum(dim=-1) / eigenvalues.amax(dim=-1)


def _spectrum(rows_ND: Tensor, center: bool) -> Tensor:
    population = Population([rows_ND], preparations=[(True, False)])
    return population.spectrum(center=center, unit=False)
