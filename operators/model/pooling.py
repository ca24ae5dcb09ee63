"""From one vector per token to one per prompt.

Shapes: N prompts, T tokens (right-padded), D features.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Pooling = Literal["mean", "last", "first", "weighted_mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def token_mask(lengths_N: Tensor, n_tokens: int) -> Tensor:
    """Return the boolean mask [N, T] of real tokens."""
    return torch.arange(n_tokens, device=lengths_N.device) < lengths_N.unsqueeze(1)


def pool(hidden_NTD: Tensor, lengths_N: Tensor, how: Pooling) -> Tensor:
    """Return one float32 vector per prompt [N, D], from real tokens only.

    `mean` weighs every real token equally, special tokens counted; `weighted_mean` weighs token t
    (from 1) by t / (1 + ... + T), so that later tokens of a causal model, which have seen more,
    count more (Muennighoff 2022, SGPT, arXiv 2202.08904, eq. 2); `last` and `first` take one token.
    What stands in padded positions never matters. ValueError on an unknown pooling.
    """
    lengths_N = lengths_N.to(hidden_NTD.device)
    if how == "first":
        return hidden_NTD[:, 0].float()
    if how == "last":
        rows = torch.arange(len(lengths_N), device=hidden_NTD.device)
        return hidden_NTD[rows, lengths_N - 1].float()
    mask_NT = token_mask(lengths_N, hidden_NTD.shape[1])
    if how == "mean":
        weight_NT = mask_NT.float()
    elif how == "weighted_mean":
        weight_NT = torch.cumsum(mask_NT.float(), dim=1) * mask_NT
    else:
        raise ValueError(f"unknown pooling {how!r}; choose from {', '.join(POOLINGS)}")
    weight_NT = weight_NT / weight_NT.sum(dim=1, keepdim=True)
    real_NTD = hidden_NTD.float().masked_fill(~mask_NT.unsqueeze(-1), 0.0)
    return torch.bmm(weight_NT.unsqueeze(1), real_NTD).squeeze(1)
