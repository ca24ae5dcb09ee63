"""Metrics of the pooled vectors of the prompts in one layer: entropy, ranks, decay, neighbours.

Shape suffixes: N prompts, D features, C candidates for neighbours; a lower-case k is the ranks of a
fit, m the points of one block.

``eigenvalues`` are those of the Gram matrix of the vectors, min(N, D) of them, with exact zeros in
the place of rounding, as ``Population.spectrum`` has them: one solve then serves all. Singular
values of uncentred rows count down to 3e-10 of the largest, of centred ones down to 1e-6, the root
of RELATIVE_FLOOR. Where no released code is named, that of Skean et al. 2025 has no such metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from layerrank.operators.metrics import (
    FEWEST_POINTS,
    FEWEST_RANKS,
    FIRST_RANK,
    LAST_RANK,
    EntropyNorm,
)
from layerrank.operators.metrics.population import Population, RowSums
from layerrank.operators.metrics.spectrum import floor_spectrum, matrix_entropy, spectrum_entropies

# Neighbours that are found by the fast distances, whose rounding may change their order, before
# their exact distances decide on the two nearest.
CANDIDATES = 4
# Elements of one block of distances or differences: 64 MiB in float64, whatever N is.
BLOCK_ELEMENTS = 2**23


def dataset_entropies(
    prompts: Population, alphas: Sequence[float], normalizations: Sequence[EntropyNorm]
) -> dict[str, float]:
    """How diverse the pooled prompts of a dataset are; low means that prompts share directions.

    Formula: ``matrix_entropy`` of ``Z Z^T``, where Z holds one pooled vector per prompt, centred
    over the dataset and then scaled to unit length.
    Paper: Skean et al. 2025 (arXiv 2502.02013), equation 1 with prompts in the place of tokens.
    Range: 0 to log(min(N - 1, D)), in nats; NaN for fewer than two prompts, for equal prompts, and
    for a non-finite vector.
    Released code: pools tokens that were centred and scaled within their prompt, which nearly
    cancels, later centres within each mini-batch, and divides by n² at alpha = 2.
    """
    spectrum = prompts.spectrum(center=True, unit=True)
    return spectrum_entropies(spectrum, prompts.n_prompts, prompts.dim, alphas, normalizations)


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """How many directions the rows use, each weighted by its singular value.

    Formula: ``exp(-sum_i p_i log p_i)`` with ``p = s / sum(s)`` and s the singular values.
    Paper: Roy & Vetterli 2007 (EUSIPCO), the effective rank of the matrix as given: uncentred.
    Range: 1 to min(N, D), in directions; NaN for rows that are all zero (all equal when centred)
    and for a non-finite row. Rows along m orthogonal axes, equally long, give m.
    Released code: none of the paper.
    """
    return matrix_entropy(eigenvalues.to(torch.float64).sqrt()).exp()


def rankme(eigenvalues: Tensor, eps: float = 1e-7) -> Tensor:
    """RankMe: the effective rank with a constant inside the logarithm, as published.

    Formula: ``exp(-sum_k p_k log p_k)`` with ``p_k = s_k / sum(s) + eps`` over all min(N, D)
    singular values, zeros included.
    Paper: Garrido et al. 2023 (RankMe, arXiv 2210.02885), equation 1; uncentred.
    Range: about 1 to min(N, D), in directions, up to eps log(1 / eps) for every zero singular
    value; NaN as for ``effective_rank``.
    Released code: none known of the authors; other programs differ in eps and in centring.
    """
    singular = eigenvalues.to(torch.float64).sqrt()
    shares = singular / singular.sum(dim=-1, keepdim=True) + eps  # 0 / 0 = NaN
    return torch.exp(-torch.xlogy(shares, shares).sum(dim=-1))


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """How many directions carry the variance; large ones count more than in ``effective_rank``.

    Formula: ``(sum_i l_i)^2 / sum_i l_i^2`` with l the eigenvalues of the Gram matrix, which of
    centred rows are N times those of the covariance.
    Paper: Gao et al. 2017 (bioRxiv 214262) and Recanatesi et al. 2022 (Patterns 3, 100555), both of
    the covariance, hence centred; ``exp`` of the entropy of order 2.
    Range: 1 to min(N, D), to min(N - 1, D) when centred, in directions; NaN as for
    ``effective_rank``.
    """
    eigenvalues = eigenvalues.to(torch.float64)
    shares = eigenvalues / eigenvalues.sum(dim=-1, keepdim=True)
    return 1 / shares.square().sum(dim=-1)


def stable_rank(eigenvalues: Tensor) -> Tensor:
    """How much longer all directions together are than the longest one.

    Formula: ``||Z||_F^2 / ||Z||_2^2``, the sum of the eigenvalues over the largest.
    Paper: Rudelson & Vershynin 2007 (J. ACM 54, 21), section 1, there the numerical rank.
    Range: 1 to min(N, D), in directions; NaN as for ``effective_rank``.
    """
    eigenvalues = eigenvalues.to(torch.float64)
    return eigenvalues.sum(dim=-1) / eigenvalues.amax(dim=-1)


def alpha_req(
    eigenvalues: Tensor, first_rank: int = FIRST_RANK, last_rank: int = LAST_RANK
) -> Tensor:
    """How fast the variance of centred rows falls from direction to direction; high: concentrated.

    Formula: the exponent a of ``l_i ~ i^-a``, with l the eigenvalues of the covariance, descending:
    minus the slope of the least squares line of ``log l_i`` on ``log i``, with weights 1 / i, over
    the ranks ``first_rank`` to ``last_rank`` that exist and are not 0.
    Paper: Agrawal et al. 2022 (alpha-ReQ, NeurIPS 35); the weighted fit from rank 11 is that of
    Stringer et al. 2019 (doi 10.1038/s41586-019-1346-5), who end at rank 500.
    Range: >= 0, an exponent without unit; about 1 is what the paper connects with good
    generalisation, and white noise gives about 0 where N >> D. NaN for fewer than FEWEST_RANKS
    eigenvalues in the fit, which takes at least 21 prompts by default, and for a non-finite row.
    The spectrum of N prompts ends at rank N - 1 and falls more steeply towards it: values compare
    between equal numbers of prompts only, and want N well above ``last_rank``.
    Released code: the same line; the programs of the authors begin it at rank 4 to 6 or 12 and end
    it at rank 50 or 100.
    """
    if not 1 <= first_rank <= last_rank:
        raise ValueError(f"ranks {first_rank} to {last_rank}: the first must be 1 or more")
    spectrum = floor_spectrum(eigenvalues).sort(descending=True).values
    value_k = spectrum[first_rank - 1 : last_rank]
    value_k = value_k[value_k != 0]  # zeros come last; NaN stays
    if len(value_k) < FEWEST_RANKS:
        return spectrum.new_full((), torch.nan)
    rank_k = torch.arange(len(value_k), dtype=torch.float64, device=value_k.device) + first_rank
    weight_k = 1 / rank_k / (1 / rank_k).sum()
    x_k, y_k = rank_k.log(), value_k.log()
    x_k = x_k - (weight_k * x_k).sum()
    return -(weight_k * x_k * y_k).sum() / (weight_k * x_k.square()).sum()


def anisotropy(sums: RowSums) -> Tensor:
    """How much the vectors of different prompts point the same way; high is a narrow cone.

    Formula: mean over i != j of ``z_i . z_j / (|z_i| |z_j|)`` of the raw, uncentred vectors, from
    the sum of the unit vectors: ``(|sum_i u_i|^2 - n) / (n (n - 1))``.
    Paper: Ethayarajh 2019 (arXiv 1909.00512), section 4.1, there estimated from sampled pairs; here
    of all pairs.
    Range: -1 / (n - 1) to 1, without unit; 0 for vectors without a common direction. A zero vector
    has no cosine and is left out of n; NaN for fewer than two other vectors and for a non-finite
    one.
    """
    n = sums.n_directions
    return (sums.direction_D.square().sum() - n) / (n * (n - 1) or torch.nan)


def twonn(rows_ND: Tensor) -> Tensor:
    """Intrinsic dimension: how many coordinates the points need in a small neighbourhood.

    Formula: with ``mu = r2 / r1`` the distance ratio of the two nearest neighbours of a point,
    sorted, and ``F(mu_i) = i / n``: the slope of the line through the origin of ``-log(1 - F)`` on
    ``log mu``, without the tenth with the largest mu.
    Paper: Facco et al. 2017 (doi 10.1038/s41598-017-11873-y), steps 1 to 5 of the algorithm.
    Range: > 0, in dimensions; a uniform cube of d dimensions gives about d, somewhat less for large
    d. A point that occurs several times counts once, since r1 = 0 has no ratio. NaN for fewer than
    FEWEST_POINTS distinct points, for points on a grid (every mu is 1), and for a non-finite row.
    Released code: the paper's has the same fit.
    """
    undefined = rows_ND.new_full((), torch.nan, dtype=torch.float64)
    if not rows_ND.isfinite().all():
        return undefined
    points_ND = torch.unique(rows_ND, dim=0).to(torch.float64)
    n_points, dim = points_ND.shape
    if n_points < FEWEST_POINTS:
        return undefined
    points_ND = points_ND - points_ND.mean(dim=0)
    square_N = points_ND.square().sum(dim=1)
    side = max(1, BLOCK_ELEMENTS // max(n_points, CANDIDATES * dim))
    ratios = []
    for own_m in torch.split(torch.arange(n_points, device=rows_ND.device), side):
        own_mD = points_ND[own_m]
        # The point's own |x|^2 is the same for all its neighbours and left out.
        distance_mN = (square_N - 2 * own_mD @ points_ND.mT).scatter_(1, own_m[:, None], torch.inf)
        index_mC = distance_mN.topk(CANDIDATES, dim=1, largest=False).indices
        exact_mC = torch.linalg.vector_norm(points_ND[index_mC] - own_mD[:, None], dim=2)
        nearest_mC = exact_mC.sort(dim=1).values
        ratios.append(nearest_mC[:, 1] / nearest_mC[:, 0])
    kept = math.floor(n_points * 0.9)
    log_ratio_n = torch.cat(ratios).sort().values[:kept].log()
    share_n = torch.arange(1, kept + 1, dtype=torch.float64, device=rows_ND.device) / n_points
    return -(torch.log1p(-share_n) * log_ratio_n).sum() / log_ratio_n.square().sum()
