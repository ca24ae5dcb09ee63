"""LiDAR: the entropy of the discriminant spectrum that separates prompts against their views.

Shape suffixes: N prompts, V views, D features; a lower-case n is the prompts of one chunk.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from operators.metrics.linear.spectrum import psd_spectrum
from operators.metrics.token.entropy import matrix_entropy

# Elements of one chunk of views: 64 MiB in float64.
CHUNK_ELEMENTS = 2**23
# Class means closer than this, relative to their size, are equal up to rounding.
EQUAL_MEANS = 1e-12


class LidarScatter(NamedTuple):
    """Partial sums of one shard; ``merge_scatters`` adds two, ``lda_spectrum`` divides once."""

    n_prompts: int
    n_views: int
    mean_D: Tensor  # mean over prompts of the prompt means
    between_DD: Tensor  # sum over prompts of (prompt mean - mean)(prompt mean - mean)^T
    within_DD: Tensor  # sum over prompts and views of (view - prompt mean)(view - prompt mean)^T


def lidar(views_NVD: Tensor, delta: float = 1e-4, alpha: float = 1.0) -> Tensor:
    """In how many directions prompts differ by more than their own augmented views do.

    Formula: ``matrix_entropy`` of ``Sw^-1/2 Sb Sw^-1/2``, with ``Sb`` the covariance of the prompt
    means, ``Sw`` the mean covariance of a prompt's views around its mean (divided by N V, not by
    N (V - 1)) plus ``delta I``.
    Paper: Thilak et al. 2023 (LiDAR, arXiv 2312.04000), the LDA matrix and its smooth rank.
    Range: 0 to log(min(N - 1, D)), in nats, and ``exp`` of it is the paper's rank (up to its 1e-7
    inside the logarithm); NaN for none or one prompt, for equal prompt means and for non-finite
    views.
    delta is in squared units of the features, so the value depends on their scale where views
    hardly differ.
    Released code: float32 scatters (1.4e-6 off) and this entropy; the paper has its exponential.
    """
    if views_NVD.numel() == 0:
        return views_NVD.new_full((), torch.nan, dtype=torch.float64)
    return lidar_from_scatter(lidar_scatter(views_NVD), delta, alpha)


def lidar_scatter(views_NVD: Tensor) -> LidarScatter:
    """Scatter sums of at least one prompt, in chunks of bounded memory."""
    n_prompts, n_views, dim = views_NVD.shape
    assert n_prompts > 0
    assert n_views > 0
    size = max(1, CHUNK_ELEMENTS // max(1, n_views * dim))
    chunks = (views_NVD[start : start + size] for start in range(0, n_prompts, size))
    return reduce(merge_scatters, map(_chunk_scatter, chunks))


def merge_scatters(left: LidarScatter, right: LidarScatter) -> LidarScatter:
    """Scatter sums of two disjoint sets of prompts with the same number of views."""
    assert left.n_views == right.n_views
    n_prompts = left.n_prompts + right.n_prompts
    shift_D = right.mean_D - left.mean_D
    weight = left.n_prompts * right.n_prompts / n_prompts
    return LidarScatter(
        n_prompts=n_prompts,
        n_views=left.n_views,
        mean_D=left.mean_D + shift_D * (right.n_prompts / n_prompts),
        between_DD=left.between_DD + right.between_DD + weight * torch.outer(shift_D, shift_D),
        within_DD=left.within_DD + right.within_DD,
    )


def lda_spectrum(scatter: LidarScatter, delta: float = 1e-4) -> Tensor:
    """All D eigenvalues of ``Sw^-1/2 Sb Sw^-1/2``, ascending; zeros for equal class means."""
    between_DD = scatter.between_DD / scatter.n_prompts
    within_DD = scatter.within_DD / (scatter.n_prompts * scatter.n_views)
    if not (between_DD.isfinite().all() and within_DD.isfinite().all()):
        return torch.full_like(scatter.mean_D, torch.nan)
    size = scatter.mean_D.square().sum() + within_DD.trace()
    between_DD = between_DD.where(between_DD.trace() > EQUAL_MEANS**2 * size, 0.0)
    # An eigenbasis, not a Cholesky factor: rounding may leave Sw slightly indefinite when delta is
    # small against the largest feature.
    variance_D, basis_DD = torch.linalg.eigh(within_DD)
    whiten_DD = basis_DD / (variance_D.clamp(min=0) + delta).sqrt()
    return psd_spectrum(whiten_DD.mT @ between_DD @ whiten_DD)


def lidar_from_scatter(scatter: LidarScatter, delta: float = 1e-4, alpha: float = 1.0) -> Tensor:
    """``lidar`` of everything that was merged into the scatter."""
    return matrix_entropy(lda_spectrum(scatter, delta), alpha)


def _chunk_scatter(views_nVD: Tensor) -> LidarScatter:
    views_nVD = views_nVD.to(torch.float64)
    n_prompts, n_views, _ = views_nVD.shape
    means_nD = views_nVD.mean(dim=1)
    # Relative to the first prompt, so that equal prompt means leave an exact zero.
    shifted_nD = means_nD - means_nD[0]
    shift_D = shifted_nD.mean(dim=0)
    centred_nD = shifted_nD - shift_D
    spread_RD = (views_nVD - means_nD[:, None]).flatten(0, 1)
    return LidarScatter(
        n_prompts=n_prompts,
        n_views=n_views,
        mean_D=means_nD[0] + shift_D,
        between_DD=centred_nD.mT @ centred_nD,
        within_DD=spread_RD.mT @ spread_RD,
    )
