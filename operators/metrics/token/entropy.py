"""Matrix-based entropy: of a spectrum, of the tokens of a prompt, of the prompts of a dataset.

Shape suffixes: N prompts, T tokens (right-padded), D features, K eigenvalues (or the side of a Gram
matrix), A orders; M rows, each one prompt in one layer, and a leading ``...`` is any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from operators.metrics.linear.spectrum import floor_spectrum, psd_spectrum, small_gram
from operators.metrics.population import Population
from operators.metrics.token.quadrature import SMALLEST_SIDE, quadrature_entropies
from operators.metrics.token.rows import length_chunks, map_rows, prepare_rows

EntropyNorm = Literal["raw", "maxEntropy", "logN", "logD", "logNlogD"]
SpectrumMethod = Literal["exact", "approximate"]
ORDER_WITHOUT_SPECTRUM = 2.0
FEWEST_PROMPTS = 2


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


def gram_entropy(gram_KK: Tensor, alpha: float = 1.0) -> Tensor:
    """Matrix entropy of positive semi-definite matrices, ``[..., K, K]`` to ``[...]``, in nats.

    At ``alpha = 2`` it is ``-log(||K||_F^2 / tr(K)^2)``: no eigenvalues, K² instead of K³.
    """
    if alpha == ORDER_WITHOUT_SPECTRUM:
        gram_KK = gram_KK.to(torch.float64)
        trace = gram_KK.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        purity = gram_KK.square().sum(dim=(-2, -1)) / trace.square()
        return -purity.log().clamp(max=0) + 0.0  # rounding may give a purity above 1
    return matrix_entropy(psd_spectrum(gram_KK), alpha)


def prompt_entropy(
    hidden_NTD: Tensor,
    lengths_N: Tensor,
    alpha: float = 1.0,
    center: bool = True,
    unit: bool = True,
    method: SpectrumMethod = "exact",
) -> Tensor:
    """How diverse the token representations within each prompt are; low means compressed.

    Formula: ``matrix_entropy`` of ``Z Z^T``, where Z holds a prompt's tokens, centred over that
    prompt and then scaled to unit length (a token equal to the mean keeps a zero row).
    Paper: Skean et al. 2024 (arXiv 2412.09563) and 2025 (arXiv 2502.02013), equation 1.
    Range: 0 to log(min(T - 1, D)) when centred, in nats. NaN for fewer than two tokens, for a
    non-finite token, and where nothing is left of Z, as when centred tokens are all equal.
    Released code: sets negative entries of the Gram matrix to 0 before the spectrum, which adds 0.1
    to 0.5 nats on real text and gives three tokens always the maximum.
    """
    values_N = hidden_NTD.new_full(hidden_NTD.shape[:1], torch.nan, dtype=torch.float64)
    for index_n, tokens_nTD, mask_nT, _ in length_chunks([hidden_NTD], lengths_N):
        (values_N[index_n],) = entropies(tokens_nTD, mask_nT, [alpha], center, unit, method)
    return values_N


def entropies(
    tokens_MTD: Tensor,
    mask_MT: Tensor,
    alphas: Sequence[float],
    center: bool = True,
    unit: bool = True,
    method: SpectrumMethod = "exact",
) -> Tensor:
    """``prompt_entropy`` of each row at each order, ``values_AM``, from one spectrum per row.

    Tokens and mask are those of a ``Chunk``. No eigenvalue is computed where 2 is the only order.
    The approximate method is for long prompts: ``quadrature_entropies`` where the Gram matrix is
    large, the exact entropy elsewhere.
    """
    if method not in get_args(SpectrumMethod):
        choices = ", ".join(get_args(SpectrumMethod))
        raise ValueError(f"method = {method!r}: choose from {choices}")

    def exact(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        rows_mTD = prepare_rows(tokens_mTD, mask_mT, center, unit)
        return _gram_entropies(small_gram(rows_mTD), alphas)

    def approximate(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        dtype = torch.float32 if unit else torch.float64
        rows_mTD = prepare_rows(tokens_mTD, mask_mT, center, unit, dtype)
        if not unit:  # any scale gives the same entropy, but not every one has a float32 square
            rows_mTD /= rows_mTD.abs().amax(dim=(1, 2), keepdim=True)
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


def _gram_entropies(gram_KK: Tensor, alphas: Sequence[float]) -> Tensor:
    """Entropies ``[A, ...]`` of one batch of Gram matrices, whose spectrum is computed once."""
    if all(alpha == ORDER_WITHOUT_SPECTRUM for alpha in alphas):
        spectrum = gram_KK.new_empty(0)
    else:
        spectrum = psd_spectrum(gram_KK)
    return torch.stack(
        [
            gram_entropy(gram_KK, alpha)
            if alpha == ORDER_WITHOUT_SPECTRUM
            else matrix_entropy(spectrum, alpha)
            for alpha in alphas
        ]
    )


def dataset_entropy(
    pooled_ND: Tensor, alpha: float = 1.0, center: bool = True, unit: bool = True
) -> Tensor:
    """How diverse the pooled prompts of a dataset are; low means that prompts share directions.

    Formula: ``matrix_entropy`` of ``Z Z^T``, where Z holds one pooled vector per prompt, centred
    over the dataset and then scaled to unit length.
    Paper: Skean et al. 2025 (arXiv 2502.02013), equation 1 with prompts in the place of tokens.
    Range: 0 to log(min(N - 1, D)) when centred, in nats; NaN for fewer than two prompts, for equal
    prompts when centred, and for a non-finite vector.
    Released code: pools tokens that were centred and scaled within their prompt, which nearly
    cancels, later centres within each mini-batch, and divides by n² at alpha = 2.
    """
    if pooled_ND.shape[0] < FEWEST_PROMPTS:
        return pooled_ND.new_full((), torch.nan, dtype=torch.float64)
    population = Population([pooled_ND], preparations=[(center, unit)])
    return gram_entropy(population.gram(center, unit), alpha)


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
