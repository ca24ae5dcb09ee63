"""InfoNCE: how well one view of a prompt finds its other view among all the rest.

Shape suffixes: N prompts, M anchors, D features; a lower-case m is the anchors and k the candidates
of one block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

# Elements of one block of logits or vectors: 64 MiB in float64, whatever N is.
BLOCK_ELEMENTS = 2**23
ScalarT = TypeVar("ScalarT", float, Tensor)


class ContrastSums(NamedTuple):
    """Sums over some anchors; ``merge_contrasts`` adds two disjoint sets of them."""

    n_anchors: int
    total: Tensor  # sum over anchors of the cross-entropy of picking their positive


def infonce_loss(view_a_ND: Tensor, view_b_ND: Tensor, temperature: float = 0.1) -> Tensor:
    """How far a layer tells two views of a prompt from other prompts; lower is more invariant.

    Formula: NT-Xent over the 2N vectors as given (scale them to unit length for cosines),
    ``mean_i [log sum_{k != i} exp(z_i . z_k / t) - z_i . z_pair(i) / t]``.
    Paper: Chen et al. 2020 (SimCLR, arXiv 2002.05709), equation 1; used on layers by Skean et al.
    2025 (arXiv 2502.02013).
    Range: >= 0, in nats; all-equal vectors give log(2N - 1), and worse than chance is larger.
    Released code: the same loss of plain dot products of nearly cancelled vectors, so that its
    published values sit at chance; it has no bound. See ``infonce_bound``.
    """
    views = [view_a_ND, view_b_ND]
    forward = contrast_sums(view_a_ND, view_b_ND, views, temperature, position=0)
    backward = contrast_sums(view_b_ND, view_a_ND, views, temperature, position=len(view_a_ND))
    return mean_contrast(merge_contrasts(forward, backward))


def infonce_bound(loss: ScalarT, n: int) -> ScalarT:
    """Mutual information that the loss of n prompts certifies; higher is more invariant.

    Formula: ``log(2n - 1) - loss``, since each anchor has 2n - 1 candidates.
    Paper: van den Oord et al. 2018 (arXiv 1807.03748), equation 5, with this count of candidates.
    Range: at most log(2n - 1), in nats; 0 is chance, below 0 is worse than chance.
    Released code: reports the loss only.
    """
    return math.log(2 * n - 1) - loss


def cross_view_loss(view_a_ND: Tensor, view_b_ND: Tensor, temperature: float = 0.1) -> Tensor:
    """The N-way form of InfoNCE: candidates are the other view only, both directions averaged.

    Formula: ``mean_i [log sum_k exp(a_i . b_k / t) - a_i . b_i / t]``, averaged with its swap of
    a and b.
    Paper: van den Oord et al. 2018 (arXiv 1807.03748), equation 4.
    Range: >= 0, in nats; all-equal vectors give log N, and the bound is ``log N - loss``.
    Released code: does not have this form.
    """
    forward = contrast_sums(view_a_ND, view_b_ND, [view_b_ND], temperature)
    backward = contrast_sums(view_b_ND, view_a_ND, [view_a_ND], temperature)
    return mean_contrast(merge_contrasts(forward, backward))


def contrast_sums(
    anchors_MD: Tensor,
    positives_MD: Tensor,
    candidates: Iterable[Tensor],
    temperature: float = 0.1,
    position: int | None = None,
) -> ContrastSums:
    """Cross-entropies of picking each anchor's positive from the candidates, in bounded memory.

    ``candidates`` are blocks of rows that can be read again, the positives among them. ``position``
    is where among all of them the first anchor stands, which is then no candidate of its own;
    without it every candidate counts.
    """
    assert anchors_MD.shape == positives_MD.shape
    side = _side(anchors_MD.shape[1])
    sums = ContrastSums(0, anchors_MD.new_zeros((), dtype=torch.float64))
    for start in range(0, anchors_MD.shape[0], side):
        anchor_mD = anchors_MD[start : start + side].to(torch.float64)
        positive_mD = positives_MD[start : start + side].to(torch.float64)
        own = None if position is None else position + start
        logits = _logits(anchor_mD, candidates, temperature, own)
        nothing_m = anchor_mD.new_full(anchor_mD.shape[:1], -torch.inf)
        every_m = reduce(torch.logaddexp, (each.logsumexp(dim=1) for each in logits), nothing_m)
        positive_m = (anchor_mD * positive_mD).sum(dim=1) / temperature
        # Not below 0, as the positive is a candidate: its two dot products may be rounded apart.
        part = ContrastSums(anchor_mD.shape[0], (every_m - positive_m).clamp(min=0).sum())
        sums = merge_contrasts(sums, part)
    return sums


def merge_contrasts(left: ContrastSums, right: ContrastSums) -> ContrastSums:
    """Sums of two disjoint sets of anchors against the same candidates."""
    return ContrastSums(left.n_anchors + right.n_anchors, left.total + right.total)


def mean_contrast(sums: ContrastSums) -> Tensor:
    """Mean cross-entropy of everything that was merged; NaN without anchors or if not finite."""
    mean = sums.total / sums.n_anchors
    return mean.where(mean.isfinite(), torch.nan)


def _side(dim: int) -> int:
    """Rows of a block, so that neither they nor the logits of two blocks exceed the bound."""
    return max(1, min(math.isqrt(BLOCK_ELEMENTS), BLOCK_ELEMENTS // max(1, dim)))


def _logits(
    anchor_mD: Tensor, candidates: Iterable[Tensor], temperature: float, own: int | None
) -> Iterator[Tensor]:
    """Yield the logits of one block of anchors, block by block of candidates; -inf for itself."""
    side = _side(anchor_mD.shape[1])
    before = 0
    for rows_KD in candidates:
        for start in range(0, rows_KD.shape[0], side):
            rows_kD = rows_KD[start : start + side].to(torch.float64)
            logits_mk = anchor_mD @ rows_kD.mT / temperature
            if own is not None:
                logits_mk.diagonal(own - before - start).fill_(-torch.inf)
            yield logits_mk
        before += rows_KD.shape[0]
