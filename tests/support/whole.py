"""Metrics of whole arrays, which the product computes chunk by chunk and block by block."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from layerrank.operators.metrics import SpectrumMethod
from layerrank.operators.metrics.population import Population, row_sums
from layerrank.operators.metrics.rows import Kernel, length_chunks
from layerrank.operators.metrics.similarity import Hsic, cka, hsic, hsic_sums
from layerrank.operators.metrics.spectrum import matrix_entropy
from layerrank.operators.metrics.tokens import curvatures, entropies

ALPHAS = [0.5, 1.0, 2.0, 3.0]
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
small_sizes = st.integers(2, 9)


def float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def whole(tokens_TD: Tensor) -> tuple[Tensor, Tensor]:
    """One prompt without padding."""
    return tokens_TD[None], torch.tensor([tokens_TD.shape[0]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(dim: int, seed: int = 1) -> Tensor:
    """Orthogonal matrix."""
    basis, _ = torch.linalg.qr(draw(dim, dim, seed=seed))
    assert isinstance(basis, Tensor)
    return basis


def shuffled(rows: Tensor, seed: int) -> Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def of_prompts(kernel: Kernel, hidden_NTD: Tensor, lengths_N: Tensor) -> Tensor:
    """Values [N] of a kernel that takes tokens and their mask."""
    values_N = hidden_NTD.new_full(hidden_NTD.shape[:1], torch.nan, dtype=torch.float64)
    for chunk in length_chunks([hidden_NTD], lengths_N):
        values_N[chunk.index_n] = kernel(chunk.tokens_MTD, chunk.mask_MT)
    return values_N


def prompt_entropy(
    hidden_NTD: Tensor, lengths_N: Tensor, alpha: float = 1.0, method: SpectrumMethod = "exact"
) -> Tensor:
    def kernel(tokens_MTD: Tensor, mask_MT: Tensor) -> Tensor:
        return entropies(tokens_MTD, mask_MT, [alpha], method)[""][0]

    return of_prompts(kernel, hidden_NTD, lengths_N)


def curvature(hidden_NTD: Tensor, lengths_N: Tensor, variant: str = "") -> Tensor:
    return of_prompts(lambda tokens, mask: curvatures(tokens, mask)[variant], hidden_NTD, lengths_N)


def spectrum_of(rows_ND: Tensor, center: bool = False, unit: bool = False) -> Tensor:
    """Eigenvalues of the Gram matrix of some vectors."""
    return Population([rows_ND]).spectrum(center, unit)


def dataset_entropy(
    rows_ND: Tensor, alpha: float = 1.0, center: bool = True, unit: bool = True
) -> Tensor:
    return matrix_entropy(spectrum_of(rows_ND, center, unit), alpha)


def linear_cka(rows_ND: Tensor, other_NE: Tensor) -> Hsic:
    """Biased and debiased similarity of two layers."""
    mean_D, mean_E = row_sums(rows_ND).mean_D, row_sums(other_NE).mean_D
    return cka(
        hsic(hsic_sums(rows_ND, other_NE, mean_D, mean_E)),
        hsic(hsic_sums(rows_ND, rows_ND, mean_D, mean_D)),
        hsic(hsic_sums(other_NE, other_NE, mean_E, mean_E)),
    )


def same(got: Tensor | float, expected: Tensor | float, tolerance: float = 1e-9) -> bool:
    """Equal within a relative tolerance, absolute below 1, with NaN in the same places."""
    got = torch.as_tensor(got, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return torch.allclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
