"""Matrix-based entropy of the tokens of each prompt.

Shape suffixes: T tokens (right-padded), D features, A orders; M rows, each one prompt in one layer,
m those of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from operators.metrics.spectrum import (
    EntropyNorm,
    SpectrumMethod,
    entropy_variants,
    gram_entropies,
    small_gram,
)
from operators.metrics.token.quadrature import SMALLEST_SIDE, quadrature_entropies
from operators.metrics.token.rows import map_rows, prepare_rows


def prompt_entropies(
    tokens_MTD: Tensor,
    mask_MT: Tensor,
    alphas: Sequence[float],
    normalizations: Sequence[EntropyNorm],
    method: SpectrumMethod,
) -> dict[str, Tensor]:
    """``entropies`` of each row at each order in each normalisation, by variant."""
    values_AM = entropies(tokens_MTD, mask_MT, alphas, method)
    size = mask_MT.sum(dim=1), tokens_MTD.shape[2]
    return entropy_variants(values_AM, *size, alphas, normalizations)


def entropies(
    tokens_MTD: Tensor,
    mask_MT: Tensor,
    alphas: Sequence[float],
    method: SpectrumMethod = "exact",
) -> Tensor:
    """How diverse the tokens within each prompt are, ``values_AM``; low means compressed.

    Formula: ``matrix_entropy`` of ``Z Z^T``, where Z holds a prompt's tokens, centred over that
    prompt and then scaled to unit length (a token equal to the mean keeps a zero row).
    Paper: Skean et al. 2024 (arXiv 2412.09563) and 2025 (arXiv 2502.02013), equation 1.
    Range: 0 to log(min(T - 1, D)), in nats. NaN for fewer than two tokens, for a non-finite token,
    and where nothing is left of Z, as when all tokens are equal.
    Released code: sets negative entries of the Gram matrix to 0 before the spectrum, which adds 0.1
    to 0.5 nats on real text and gives three tokens always the maximum.

    Tokens and mask are those of a ``Chunk``. All orders share one spectrum, and none is computed
    where 2 is the only order. The approximate method is for long prompts: ``quadrature_entropies``
    where the Gram matrix is large, the exact entropy elsewhere.
    """
    if method not in get_args(SpectrumMethod):
        choices = ", ".join(get_args(SpectrumMethod))
        raise ValueError(f"method = {method!r}: choose from {choices}")

    def exact(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        return gram_entropies(small_gram(prepare_rows(tokens_mTD, mask_mT)), alphas)

    def approximate(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        rows_mTD = prepare_rows(tokens_mTD, mask_mT, torch.float32)
        size_m = mask_mT.sum(dim=1).clamp(max=dim)
        return quadrature_entropies(small_gram(rows_mTD, torch.float32), size_m, alphas)

    length_M = mask_MT.sum(dim=1)
    dim = tokens_MTD.shape[2]
    large_M = (length_M.clamp(max=dim) >= SMALLEST_SIDE) & (method == "approximate")
    values_AM = tokens_MTD.new_empty((len(alphas), len(tokens_MTD)), dtype=torch.float64)
    # Rows of one group have their smaller side in common, so that it depends on the row alone.
    for group_M, kernel in (
        (~large_M, exact),
        (large_M & (length_M <= dim), approximate),
        (large_M & (length_M > dim), approximate),
    ):
        if group_M.all():
            values_AM = map_rows(kernel, tokens_MTD, mask_MT)
        elif group_M.any():
            values_AM[:, group_M] = map_rows(kernel, tokens_MTD[group_M], mask_MT[group_M])
    return values_AM.where(length_M > 1, torch.nan)
