"""Spectra of Gram matrices, the common ground of the entropies and ranks.

Shape suffixes: N rows (samples or tokens), D features, K the side of a Gram matrix; a leading
``...`` is any batch.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import blas
from torch import Tensor

# Eigenvalues below this share of the largest are rounding, not signal: float64 leaves zeros near
# 1e-15, and float32 states leave theirs near (6e-8)^2. It is one constant, not a function of the
# shape, so that padding a prompt cannot move an eigenvalue across it.
RELATIVE_FLOOR = 1e-12

# Sides from which a product is worth a call of its own for each matrix.
LARGE_SIDE = 384
MIRRORED = 128  # rows at a time


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
    gram_KK = left_KR.new_zeros((*batch, side, side))
    for gram, left in zip(_matrices(gram_KK), _matrices(left_KR), strict=True):
        # BLAS of SciPy computes half, and on CPUs of AMD with twice the speed of torch's. It has
        # threads of its own: they and torch's would take each other's cores.
        if torch.get_num_threads() == 1:
            _fill_below(gram.numpy(), left.numpy())
            _mirror(gram)
        else:  # matrix by matrix: of a transposed batch it is ten times slower
            torch.mm(left, left.T, out=gram)
    return gram_KK


def _fill_below(gram: npt.NDArray[np.floating], left: npt.NDArray[np.floating]) -> None:
    """Write ``left @ left^T`` on and below the diagonal of a matrix of zeros, without a copy."""
    syrk = blas.dsyrk if left.dtype == np.float64 else blas.ssyrk
    # BLAS counts columns first: what is stored by rows is its transpose, and below is above.
    by_rows = left.flags.c_contiguous
    syrk(1.0, left.T if by_rows else left, trans=by_rows, c=gram.T, overwrite_c=True)


def _mirror(gram_KK: Tensor) -> None:
    """Write what is below the diagonal above it, where zeros are."""
    for start in range(0, len(gram_KK), MIRRORED):
        rows = slice(start, start + MIRRORED)
        gram_KK[:start, rows] = gram_KK[rows, :start].T
        gram_KK[rows, rows] += gram_KK[rows, rows].tril(-1).T


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
