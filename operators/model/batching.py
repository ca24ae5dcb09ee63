"""Prompts of different lengths in one tensor: batches, padding, and poolings that pass it over.

Shapes: N prompts, T tokens (right-padded), D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators.model.subject import Pooling

Ids = npt.NDArray[np.int32]


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[npt.NDArray[np.int64]]:
    """Cut prompts into batches of at most `budget` padded tokens and return their indices.

    Prompts are taken from short to long (ties in the given order), so little is padding; a prompt
    longer than the budget is a batch of its own. Every index appears exactly once.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches: list[npt.NDArray[np.int64]] = []
    start = 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end - start + 1) * lengths[order[end]] > budget
        if full:
            batches.append(order[start:end])
            start = end
    return batches


def pad(sequences: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Return token ids [N, T] padded on the right with 0, and the attention mask [N, T].

    The mask makes the padding id irrelevant: a tokenizer without a pad token is no special case.
    """
    lengths = [len(ids) for ids in sequences]
    padded_NT = np.zeros((len(sequences), max(lengths)), dtype=np.int64)
    for row, ids in zip(padded_NT, sequences, strict=True):
        row[: len(ids)] = ids
    mask_NT = np.arange(padded_NT.shape[1]) < np.asarray(lengths)[:, None]
    return torch.from_numpy(padded_NT), torch.from_numpy(mask_NT.astype(np.int64))


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
        raise ValueError(f"unknown pooling {how!r}; choose from {', '.join(get_args(Pooling))}")
    weight_NT = weight_NT / weight_NT.sum(dim=1, keepdim=True)
    real_NTD = hidden_NTD.float().masked_fill(~mask_NT.unsqueeze(-1), 0.0)
    return torch.bmm(weight_NT.unsqueeze(1), real_NTD).squeeze(1)
