"""Token-budget batches over length-sorted prompts, right-padded.

Shapes: N prompts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
