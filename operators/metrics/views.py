"""Metrics that compare augmented views of the same prompts: InfoNCE, LiDAR and DiME.

Shape suffixes: N prompts, V views, D features, M anchors, P permutations, A orders; a lower-case n
is the prompts, m the anchors, k the candidates and p the permutations of one block.

Views come in blocks [n, V, D] that are read as often as needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from layerrank.operators.metrics import EntropyNorm
from layerrank.operators.metrics.spectrum import (
    gram_entropies,
    matrix_entropy,
    psd_spectrum,
    spectrum_entropies,
)
from layerrank.storage.schema import entropy_variant

# Elements of one block of logits, views or permuted Gram matrices: 64 MiB in float64.
BLOCK_ELEMENTS = 2**23
# Class means closer than this, relative to their size, are equal up to rounding.
EQUAL_MEANS = 1e-12


def unit_view(blocks: Iterable[Tensor], index: int, at_most: int | None = None) -> Tensor:
    """One view of every prompt, or of the first ones, ``[N, D]``, as unit vectors in float64."""
    view_ND = torch.cat([block_NVD[:, index] for block_NVD in blocks])[:at_most]
    return torch.nn.functional.normalize(view_ND.double(), dim=-1)


def infonce(blocks: Iterable[Tensor], temperature: float) -> dict[str, float]:
    """Mean ``infonce_loss`` over disjoint pairs of views, on unit vectors, and what it certifies.

    Formula: the bound is ``log(2N - 1) - loss``, since each anchor has 2N - 1 candidates.
    Paper: van den Oord et al. 2018 (arXiv 1807.03748), equation 5, with this count of candidates.
    Range: the bound is at most log(2N - 1), in nats; 0 is chance, below 0 is worse than chance;
    higher is more invariant.
    Released code: reports the loss only.
    """
    losses, n_candidates = [], 0
    for first in range(0, next(iter(blocks)).shape[1] - 1, 2):
        view_a_ND, view_b_ND = unit_view(blocks, first), unit_view(blocks, first + 1)
        losses.append(float(infonce_loss(view_a_ND, view_b_ND, temperature)))
        n_candidates = 2 * len(view_a_ND) - 1
    loss = sum(losses) / len(losses)
    return {"loss": loss, "bound": math.log(n_candidates) - loss}


def infonce_loss(view_a_ND: Tensor, view_b_ND: Tensor, temperature: float = 0.1) -> Tensor:
    """How far a layer tells two views of a prompt from other prompts; lower is more invariant.

    Formula: NT-Xent over the 2N vectors as given (scale them to unit length for cosines),
    ``mean_i [log sum_{k != i} exp(z_i . z_k / t) - z_i . z_pair(i) / t]``.
    Paper: Chen et al. 2020 (SimCLR, arXiv 2002.05709), equation 1; used on layers by Skean et al.
    2025 (arXiv 2502.02013).
    Range: >= 0, in nats; all-equal vectors give log(2N - 1), and worse than chance is larger. NaN
    without prompts or if not finite.
    Released code: the same loss of plain dot products of nearly cancelled vectors, so that its
    published values sit at chance; it has no bound.
    """
    views = view_a_ND, view_b_ND
    n_prompts = len(view_a_ND)
    forward = _cross_entropy(view_a_ND, view_b_ND, views, 0, temperature)
    backward = _cross_entropy(view_b_ND, view_a_ND, views, n_prompts, temperature)
    mean = (forward + backward) / (2 * n_prompts)
    return mean.where(mean.isfinite(), torch.nan)


def _cross_entropy(
    anchors_MD: Tensor,
    positives_MD: Tensor,
    candidates: Iterable[Tensor],
    position: int,
    temperature: float,
) -> Tensor:
    """Sum over the anchors of the cross-entropy of picking their positive, in bounded memory.

    The first anchor is the candidate number ``position``; no anchor is a candidate of its own.
    """
    n_anchors, dim = anchors_MD.shape
    # Rows of a block, so that neither they nor the logits of two blocks exceed the bound.
    side = max(1, min(math.isqrt(BLOCK_ELEMENTS), BLOCK_ELEMENTS // max(1, dim)))
    total = anchors_MD.new_zeros((), dtype=torch.float64)
    for start in range(0, n_anchors, side):
        anchor_mD = anchors_MD[start : start + side].to(torch.float64)
        every_m = anchor_mD.new_full(anchor_mD.shape[:1], -torch.inf)
        before = 0
        for rows_KD in candidates:
            for first in range(0, len(rows_KD), side):
                rows_kD = rows_KD[first : first + side].to(torch.float64)
                logits_mk = anchor_mD @ rows_kD.mT / temperature
                logits_mk.diagonal(position + start - before - first).fill_(-torch.inf)
                every_m = torch.logaddexp(every_m, logits_mk.logsumexp(dim=1))
            before += len(rows_KD)
        positive_mD = positives_MD[start : start + side].to(torch.float64)
        positive_m = (anchor_mD * positive_mD).sum(dim=1) / temperature
        # Not below 0, as the positive is a candidate: its two dot products may be rounded apart.
        total = total + (every_m - positive_m).clamp(min=0).sum()
    return total


class LidarScatter(NamedTuple):
    """Partial sums of one block; ``merge_scatters`` adds two, ``lda_spectrum`` divides once."""

    n_prompts: int
    n_views: int
    mean_D: Tensor  # mean over prompts of the prompt means
    between_DD: Tensor  # sum over prompts of (prompt mean - mean)(prompt mean - mean)^T
    within_DD: Tensor  # sum over prompts and views of (view - prompt mean)(view - prompt mean)^T


def lidar(
    blocks: Iterable[Tensor],
    delta: float,
    alphas: Sequence[float] = (1.0,),
    normalizations: Sequence[EntropyNorm] = ("raw",),
) -> dict[str, float]:
    """In how many directions prompts differ by more than their own augmented views do.

    Formula: ``matrix_entropy`` of ``Sw^-1/2 Sb Sw^-1/2``, with ``Sb`` the covariance of the prompt
    means, ``Sw`` the mean covariance of a prompt's views around its mean (divided by N V, not by
    N (V - 1)) plus ``delta I``.
    Paper: Thilak et al. 2023 (LiDAR, arXiv 2312.04000), the LDA matrix and its smooth rank.
    Range: 0 to log(min(N - 1, D)), in nats, and ``rank``, ``exp`` of order 1, is the paper's (up to
    its 1e-7 inside the logarithm); NaN for one prompt, for equal prompt means and for non-finite
    views.
    delta is in squared units of the features, so the value depends on their scale where views
    hardly differ.
    Released code: float32 scatters (1.4e-6 off) and this entropy; the paper has its exponential.
    """
    scatter = reduce(merge_scatters, map(lidar_scatter, blocks))
    spectrum_D = lda_spectrum(scatter, delta)
    size = scatter.n_prompts, len(spectrum_D)
    found = spectrum_entropies(spectrum_D, *size, alphas, normalizations)
    return {**found, "rank": float(matrix_entropy(spectrum_D).exp())}


def lidar_scatter(views_NVD: Tensor) -> LidarScatter:
    """Scatter sums of at least one prompt, in chunks of bounded memory."""
    _, n_views, dim = views_NVD.shape
    size = max(1, BLOCK_ELEMENTS // max(1, n_views * dim))
    parts = []
    for part_nVD in torch.split(views_NVD, size):
        views_nVD = part_nVD.to(torch.float64)
        means_nD = views_nVD.mean(dim=1)
        # Relative to the first prompt, so that equal prompt means leave an exact zero.
        shifted_nD = means_nD - means_nD[0]
        shift_D = shifted_nD.mean(dim=0)
        centred_nD = shifted_nD - shift_D
        spread_RD = (views_nVD - means_nD[:, None]).flatten(0, 1)
        sums = centred_nD.mT @ centred_nD, spread_RD.mT @ spread_RD
        parts.append(LidarScatter(len(views_nVD), n_views, means_nD[0] + shift_D, *sums))
    return reduce(merge_scatters, parts)


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


def lda_spectrum(scatter: LidarScatter, delta: float) -> Tensor:
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


def dime(
    blocks: Iterable[Tensor],
    permutations: int,
    seed: int,
    alphas: Sequence[float],
    at_most: int | None = None,
) -> dict[str, float]:
    """How much the first two views share beyond what mismatched prompts share, on unit vectors.

    Formula: mean over permutations P of ``S(Ka * P Kb P^T) - S(Ka * Kb)``, see ``dime_entropies``.
    Paper: Skean et al. 2023 (DiME, arXiv 2301.08164), the difference of matrix-based entropies.
    Range: at most log N, in nats; about 0 for independent views, higher is more shared; NaN for
    zero or non-finite vectors. Permutations are drawn from the seed. Of more than ``at_most``
    prompts the first, as they came, since it takes N^3 time and N^2 memory.
    Released code: permutes features of the D x D matrices when N > D, which is another quantity,
    and draws its permutations without a seed.
    """
    view_a_ND, view_b_ND = unit_view(blocks, 0, at_most), unit_view(blocks, 1, at_most)
    draw = np.random.default_rng(seed)
    shuffles = [draw.permutation(len(view_a_ND)) for _ in range(permutations)]
    permutations_PN = torch.from_numpy(np.stack(shuffles))
    joint_A, permuted_AP = dime_entropies(view_a_ND, view_b_ND, permutations_PN, alphas)
    return {
        entropy_variant(alpha): float(permuted_P.mean() - joint)
        for alpha, joint, permuted_P in zip(alphas, joint_A, permuted_AP, strict=True)
    }


def dime_entropies(
    view_a_ND: Tensor, view_b_ND: Tensor, permutations_PN: Tensor, alphas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The entropy of the joint Gram matrix [A], and that under each permutation [A, P], in nats.

    The entropies of ``Ka * Kb`` and of ``Ka * P Kb P^T``, with ``K = Z Z^T`` the linear N x N Gram
    matrices of the vectors as given and ``*`` the elementwise product. Prompts are permuted by the
    rows of ``permutations_PN``.
    """
    gram_a_NN, gram_b_NN = (view @ view.mT for view in (view_a_ND.double(), view_b_ND.double()))
    permutations_PN = permutations_PN.to(gram_b_NN.device, torch.int64)
    size = max(1, BLOCK_ELEMENTS // max(1, gram_a_NN.numel()))
    permuted = []
    for order_pN in torch.split(permutations_PN, size):
        permuted_pNN = gram_a_NN * gram_b_NN[order_pN[:, :, None], order_pN[:, None, :]]
        permuted.append(gram_entropies(permuted_pNN, alphas))
    return gram_entropies(gram_a_NN * gram_b_NN, alphas), torch.cat(permuted, dim=-1)
