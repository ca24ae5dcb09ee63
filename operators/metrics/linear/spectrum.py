"""Spectra of Gram matrices, the common ground of the entropies and ranks.

Shape suffixes: N rows (samples or tokens), D features, K the side of a Gram matrix; a leading
``...`` is any batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Eigenvalues below this share of the largest are rounding, not signal: float64 leaves zeros near
# 1e-15, and float32 states leave theirs near (6e-8)^2. It is one constant, not a function of the
# shape, so that padding a prompt cannot move an eigenvalue across it.
RELATIVE_FLOOR = 1e-12
# Sides from which a product is worth a call of its own for each matrix.
LARGE_SIDE = 384


def floor_spectrum(eigenvalues: Tensor) -> Tensor:
    """Set to exactly 0 what is negative or below RELATIVE_FLOOR of the largest; NaN stays NaN."""
    eigenvalues = eigenvalues.to(torch.float64)
    largest = eigenvalues.amax(dim=-1, keepdim=True)
    return eigenvalues.masked_fill(eigenvalues <= largest.clamp(min=0) * RELATIVE_FLOOR, 0.0)


def small_gram(rows_ND: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Z Z^T or Z^T Z, whichever is smaller: both have the same non-zero spectrum."""
    rows_ND = rows_ND.to(dtype)
    return _gram(rows_ND if rows_ND.shape[-2] <= rows_ND.shape[-1] else rows_ND.mT)


def _gram(left_KR: Tensor) -> Tensor:
    """Product with its own transpose."""
    *batch, side, _ = left_KR.shape
    if side < LARGE_SIDE or left_KR.device.type != "cpu":
        return left_KR @ left_KR.mT
    gram_KK = left_KR.new_empty((*batch, side, side))
    # NumPy computes half of such a product and copies the other half, in about 0.6 of torch's time.
    # Its BLAS has threads of its own: they and torch's would take each other's cores.
    if torch.get_num_threads() == 1:
        left = left_KR.numpy()
        np.matmul(left, left.swapaxes(-1, -2), out=gram_KK.numpy())
        return gram_KK
    for gram, one_KR in zip(_matrices(gram_KK), _matrices(left_KR), strict=True):
        # matrix by matrix: of a transposed batch it is ten times slower
        torch.mm(one_KR, one_KR.T, out=gram)
    return gram_KK


def _matrices(batch_KR: Tensor) -> Tensor:
    return batch_KR.flatten(0, -3) if batch_KR.dim() > 2 else batch_KR[None]  # noqa: PLR2004


def psd_spectrum(gram_KK: Tensor) -> Tensor:
    """Floored eigenvalues of positive semi-definite matrices, ascending; NaN for a non-finite one.

    The solver refuses a whole batch for one non-finite entry, so such matrices are solved as zeros
    and marked afterwards.
    """
    gram_KK = gram_KK.to(torch.float64)
    finite = gram_KK.sum(dim=(-2, -1)).isfinite()
    if not finite.all():
        gram_KK = gram_KK.where(finite[..., None, None], 0.0)
    eigenvalues = torch.linalg.eigvalsh(gram_KK)
    return floor_spectrum(eigenvalues).where(finite[..., None], torch.nan)


def gram_spectrum(rows_ND: Tensor) -> Tensor:
    """Eigenvalues of the Gram matrix of the rows: their squared singular values.

    Formula: eigenvalues of ``Z Z^T`` (N x N), taken from ``Z^T Z`` (D x D) where that is smaller.
    Input is ``[..., N, D]`` of any float type, output ``[..., min(N, D)]`` in float64, ascending.
    Range: >= 0, in squared units of the rows; values below RELATIVE_FLOOR of the largest are 0, and
    a batch entry with a non-finite row is NaN.
    The released code clamps negative Gram entries to 0 before the solve; here nothing is clamped.
    """
    return psd_spectrum(small_gram(rows_ND))
