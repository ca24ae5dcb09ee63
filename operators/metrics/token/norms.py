"""Size of a prompt's tokens: their mean norm, the largest coordinate, and the first token's share.

Shape suffixes: T tokens (right-padded), D features; M rows, each one prompt in one layer, m those
of one block. Tokens and mask are those of a ``Chunk``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from operators.metrics.token.rows import map_rows


def mean_norms(tokens_MTD: Tensor, mask_MT: Tensor) -> Tensor:
    """How long the token vectors of a prompt are on average.

    Formula: mean over the tokens of ``|z_t|``, the Euclidean norm of the raw states.
    Paper: the norms that Sun et al. 2024 (arXiv 2402.17762) compare massive activations with.
    Range: >= 0, in units of the states. NaN for a prompt without tokens and for a non-finite token.
    Released code: none for prompts.
    """

    def mean(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        return _token_norms(tokens_mTD).sum(dim=1).div_(mask_mT.sum(dim=1))

    return map_rows(mean, tokens_MTD, mask_MT)


def largest_coordinates(tokens_MTD: Tensor, mask_MT: Tensor) -> Tensor:
    """How massive the largest activation of a prompt is.

    Formula: ``max |z_td|`` over the tokens and features of the raw states.
    Paper: Sun et al. 2024 (arXiv 2402.17762), massive activations.
    Range: >= 0, in units of the states; never above the longest token's norm. NaN for a prompt
    without tokens and for a non-finite token.
    Released code: the same.
    """

    def largest(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        largest_m: Tensor = torch.linalg.vector_norm(tokens_mTD, torch.inf, dim=(1, 2))
        largest_m = largest_m.to(torch.float64)
        return largest_m.where(largest_m.isfinite() & mask_mT.any(dim=1), torch.nan)

    return map_rows(largest, tokens_MTD, mask_MT)


def first_token_shares(tokens_MTD: Tensor, mask_MT: Tensor) -> Tensor:
    """How much of a prompt sits in its first token, which decoders use as an attention sink.

    Formula: ``|z_1|^2 / sum_t |z_t|^2`` of the raw states.
    Paper: Queipo-de-Llano et al. 2025 (arXiv 2510.06477): attention sinks and compression valleys
    have one cause, the massive activation of the first token.
    Range: 0 to 1, without unit; 1 for a single token, 1 / T where all tokens are equally long. NaN
    for a prompt without tokens, for a non-finite token, and where all tokens are zero.
    Released code: none known.
    """

    def share(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        norm_mT = _token_norms(tokens_mTD)
        power_mT = (norm_mT / norm_mT.amax(dim=1, keepdim=True)).square()  # 0 / 0 = NaN
        return (power_mT[:, 0] / power_mT.sum(dim=1)).where(mask_mT.any(dim=1), torch.nan)

    return map_rows(share, tokens_MTD, mask_MT)


def _token_norms(tokens_mTD: Tensor) -> Tensor:
    """Norms in float64, 0 in the padding; NaN for a non-finite token, so that no mean is inf."""
    norm_mT: Tensor = torch.linalg.vector_norm(tokens_mTD, dim=-1, dtype=torch.float64)
    return norm_mT.where(norm_mT.isfinite(), torch.nan)
