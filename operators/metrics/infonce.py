"""InfoNCE: how well one view of a prompt finds its other view among all the rest.

Shape suffixes: N prompts, M = 2N anchors (or N), K candidates, D features; a lower-case m is the
anchors of one block.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

# Elements of one block of logits: 64 MiB in float64, whatever N is.
BLOCK_ELEMENTS = 2**23

ScalarT = TypeVar("ScalarT", float, Tensor)


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
    views_MD = torch.cat([view_a_ND, view_b_ND]).to(torch.float64)
    n_prompts = view_a_ND.shape[0]
    positive_M = torch.arange(2 * n_prompts, device=views_MD.device).roll(n_prompts)
    return _contrast(views_MD, views_MD, positive_M, temperature, exclude_self=True)


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
    view_a_ND, view_b_ND = view_a_ND.to(torch.float64), view_b_ND.to(torch.float64)
    positive_N = torch.arange(view_a_ND.shape[0], device=view_a_ND.device)
    forward = _contrast(view_a_ND, view_b_ND, positive_N, temperature, exclude_self=False)
    backward = _contrast(view_b_ND, view_a_ND, positive_N, temperature, exclude_self=False)
    return (forward + backward) / 2


def _contrast(
    anchors_MD: Tensor,
    candidates_KD: Tensor,
    positive_M: Tensor,
    temperature: float,
    exclude_self: bool,
) -> Tensor:
    """Mean cross-entropy of picking each anchor's positive, in blocks of bounded memory."""
    total = anchors_MD.new_zeros(())
    block = max(1, BLOCK_ELEMENTS // max(1, candidates_KD.shape[0]))
    for start in range(0, anchors_MD.shape[0], block):
        logits_mK = anchors_MD[start : start + block] @ candidates_KD.mT / temperature
        row_m = torch.arange(logits_mK.shape[0], device=logits_mK.device)
        positive_m = logits_mK[row_m, positive_M[start : start + block]]
        if exclude_self:
            logits_mK[row_m, start + row_m] = -torch.inf
        total += (torch.logsumexp(logits_mK, dim=1) - positive_m).sum()
    return total / anchors_MD.shape[0]
