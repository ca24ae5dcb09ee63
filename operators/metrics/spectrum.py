"""Spectra of Gram matrices and their entropy, the common ground of entropies and ranks.

Shape suffixes: N rows (samples or tokens), D features, K the side of a Gram matrix or its
eigenvalues, R the columns of what it is the product of, A orders; a leading ``...`` is any batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import get_args

import numpy as np
import torch
from threadpoolctl import threadpool_info
from torch import Tensor

from layerrank.operators.metrics import EntropyNorm
from layerrank.storage.schema import entropy_variant

ORDER_WITHOUT_SPECTRUM = 2.0

# Eigenvalues below this share of the largest are rounding, not signal: float64 leaves zeros near
# 1e-15, and float32 states leave theirs near (6e-8)^2. It is one constant, not a function of the
# shape, so that padding a prompt cannot move an eigenvalue across it.
RELATIVE_FLOOR = 1e-12
# Sides from which a product is worth a call of its own for each matrix.
LARGE_SIDE = 384
# Sides from which NumPy's solver is faster than torch's, a third at 1,024.
NUMPY_SIDE = 128


def floor_spectrum(eigenvalues: Tensor) -> Tensor:
    """Set to exactly 0 what is negative or below RELATIVE_FLOOR of the largest; NaN stays NaN."""
    eigenvalues = eigenvalues.to(torch.float64)
    largest = eigenvalues.amax(dim=-1, keepdim=True)
    return eigenvalues.masked_fill(eigenvalues <= largest.clamp(min=0) * RELATIVE_FLOOR, 0.0)


def small_gram(rows_ND: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Z Z^T or Z^T Z, whichever is smaller: both have the same non-zero spectrum.

    The released code clamps negative entries to 0; here nothing is clamped.
    """
    rows_ND = rows_ND.to(dtype)
    return gram(rows_ND if rows_ND.shape[-2] <= rows_ND.shape[-1] else rows_ND.mT)


def gram(left_KR: Tensor) -> Tensor:
    """``Z Z^T``, the product of the rows with each other."""
    if _is_numpy_better(left_KR):
        # It computes half of such a product and copies the other half, in half of torch's time.
        left = left_KR.numpy()
        with np.errstate(all="ignore"):
            return torch.from_numpy(np.matmul(left, left.swapaxes(-1, -2)))
    *batch, side, _ = left_KR.shape
    if side < LARGE_SIDE or left_KR.device.type != "cpu":
        return left_KR @ left_KR.mT
    gram_KK = left_KR.new_empty((*batch, side, side))
    matrices = (each.reshape(-1, *each.shape[-2:]) for each in (gram_KK, left_KR))
    for one_KK, one_KR in zip(*matrices, strict=True):
        # matrix by matrix: of a transposed batch it is ten times slower
        torch.mm(one_KR, one_KR.T, out=one_KK)
    return gram_KK


def _is_numpy_better(tensor: Tensor) -> bool:
    """Whether NumPy is left to compute: its BLAS has threads of its own, and where there are
    several, they and torch's take each other's cores.
    """
    return tensor.device.type == "cpu" and torch.get_num_threads() == _numpy_threads() == 1


@cache
def _numpy_threads() -> int:
    """Threads of NumPy's BLAS, which OMP_NUM_THREADS sets, as it does torch's."""
    pools = [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]
    return max(pools, default=0)


def psd_spectrum(gram_KK: Tensor) -> Tensor:
    """Floored eigenvalues of positive semi-definite matrices, ascending; NaN for a non-finite one.

    Those of the Gram matrix of some rows are their squared singular values. The solver refuses a
    whole batch for one non-finite entry, so such matrices are solved as zeros, and marked after it.
    """
    gram_KK = gram_KK.to(torch.float64)
    finite = gram_KK.sum(dim=(-2, -1)).isfinite()
    if not finite.all():
        gram_KK = gram_KK.where(finite[..., None, None], 0.0)
    if gram_KK.shape[-1] >= NUMPY_SIDE and _is_numpy_better(gram_KK):
        eigenvalues = torch.from_numpy(np.linalg.eigvalsh(gram_KK.numpy()))
    else:
        eigenvalues = torch.linalg.eigvalsh(gram_KK)
    return floor_spectrum(eigenvalues).where(finite[..., None], torch.nan)


def matrix_entropy(eigenvalues: Tensor, alpha: float = 1.0) -> Tensor:
    """How many directions a spectrum uses, as the Rényi entropy of its normalised eigenvalues.

    Formula: ``S_a = log(sum_i p_i^a) / (1 - a)`` with ``p = eigenvalues / their sum``; at ``a = 1``
    the von Neumann limit ``-sum_i p_i log p_i``. Zero eigenvalues do not count at any alpha.
    Paper: Giraldo, Rao & Príncipe 2014 (arXiv 1211.2459); Skean et al. 2025 (arXiv 2502.02013),
    equation 1.
    Range: 0 to log of the number of non-zero eigenvalues, in nats; NaN where all are 0. Four equal
    eigenvalues give log 4 at every alpha.
    Released code: the same, on a spectrum of a clamped Gram matrix; its alpha = 2 shortcut divides
    by n² instead of trace².
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha = {alpha}: the entropy order must be finite and at least 0")
    eigenvalues = floor_spectrum(eigenvalues)
    shares = eigenvalues / eigenvalues.sum(dim=-1, keepdim=True)  # 0 / 0 = NaN
    if math.isclose(alpha, 1.0):
        entropy = -torch.xlogy(shares, shares).sum(dim=-1)
    else:
        log_powers = (alpha * shares.log()).masked_fill(shares == 0, -torch.inf)
        entropy = log_powers.logsumexp(dim=-1) / (1 - alpha)
    return entropy.clamp(min=0) + 0.0  # a single direction is 0, not -0.0


def gram_entropies(gram_KK: Tensor, alphas: Sequence[float]) -> Tensor:
    """Matrix entropies ``[A, ...]`` of positive semi-definite matrices, whose spectrum is shared.

    At ``alpha = 2`` it is ``-log(||K||_F^2 / tr(K)^2)``: no eigenvalues, K² instead of K³.
    """
    gram_KK = gram_KK.to(torch.float64)
    alone = all(alpha == ORDER_WITHOUT_SPECTRUM for alpha in alphas)
    spectrum_K = gram_KK.new_empty(0) if alone else psd_spectrum(gram_KK)
    found = []
    for alpha in alphas:
        if alpha == ORDER_WITHOUT_SPECTRUM:
            trace = gram_KK.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
            purity = gram_KK.square().sum(dim=(-2, -1)) / trace.square()
            found.append(-purity.log().clamp(max=0) + 0.0)  # rounding may give a purity above 1
        else:
            found.append(matrix_entropy(spectrum_K, alpha))
    return torch.stack(found)


def normalize_entropy(
    value: Tensor | float, n: Tensor | int, d: int, how: EntropyNorm = "raw"
) -> Tensor:
    """Entropy relative to what n rows of d features could reach, for comparing sizes.

    Formula: ``maxEntropy`` divides by log(min(n, d)), ``logN`` by log n, ``logD`` by log d,
    ``logNlogD`` by log n · log d; ``raw`` leaves nats.
    Paper: the normalisations of the code released with Skean et al. 2025 (arXiv 2502.02013).
    Range: 0 to 1 for ``maxEntropy``, without unit; NaN where the divisor is 0 (one row or feature).
    Released code: the same divisors.
    """
    value = torch.as_tensor(value, dtype=torch.float64)
    log_n = torch.as_tensor(n, dtype=torch.float64, device=value.device).log()
    log_d = torch.full_like(log_n, math.log(d))
    divisors = {
        "raw": torch.ones_like(log_n),
        "maxEntropy": torch.minimum(log_n, log_d),
        "logN": log_n,
        "logD": log_d,
        "logNlogD": log_n * log_d,
    }
    if how not in divisors:
        raise ValueError(f"how = {how!r}: choose from {', '.join(get_args(EntropyNorm))}")
    divisor = divisors[how]
    return (value / divisor).where(divisor > 0, torch.nan)


def entropy_variants(
    values_A: Iterable[Tensor],
    n: Tensor | int,
    d: int,
    alphas: Sequence[float],
    normalizations: Sequence[EntropyNorm],
) -> dict[str, Tensor]:
    """Entropies of n rows of d features at each order in each normalisation, by variant."""
    return {
        entropy_variant(alpha, how): normalize_entropy(value, n, d, how)
        for alpha, value in zip(alphas, values_A, strict=True)
        for how in normalizations
    }


def spectrum_entropies(
    eigenvalues: Tensor,
    n: int,
    d: int,
    alphas: Sequence[float],
    normalizations: Sequence[EntropyNorm],
) -> dict[str, float]:
    """``entropy_variants`` of one spectrum of n rows of d features."""
    values_A = [matrix_entropy(eigenvalues, alpha) for alpha in alphas]
    found = entropy_variants(values_A, n, d, alphas, normalizations)
    return {variant: float(value) for variant, value in found.items()}
