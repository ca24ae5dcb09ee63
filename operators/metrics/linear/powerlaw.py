"""alpha-ReQ: how fast the variance of a layer falls from one principal direction to the next.

Shape suffixes: N prompts, D features; a lower-case k is the ranks of the fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from operators.metrics.linear.spectrum import floor_spectrum
from operators.metrics.population import Population

# Ranks of the fit, both included, 1 being the largest eigenvalue.
FIRST_RANK = 11
LAST_RANK = 100
# Non-zero eigenvalues that must lie in the fit: two always have an exponent, which says nothing.
FEWEST_RANKS = 10


def alpha_req(rows_ND: Tensor, first_rank: int = FIRST_RANK, last_rank: int = LAST_RANK) -> Tensor:
    """How fast the variance of the rows falls from direction to direction; high is concentrated.

    Formula: the exponent a of ``l_i ~ i^-a``, with l the eigenvalues of the covariance, descending:
    minus the slope of the least squares line of ``log l_i`` on ``log i``, with weights 1 / i, over
    the ranks ``first_rank`` to ``last_rank`` that exist and are not 0.
    Paper: Agrawal et al. 2022 (alpha-ReQ, NeurIPS 35); the weighted fit from rank 11 is that of
    Stringer et al. 2019 (doi 10.1038/s41586-019-1346-5), who end at rank 500.
    Range: >= 0, an exponent without unit; about 1 is what the paper connects with good
    generalisation, and white noise gives about 0 where N >> D. NaN for fewer than FEWEST_RANKS
    eigenvalues in the fit, which takes at least 21 prompts by default, and for a non-finite row.
    The spectrum of N prompts ends at rank N - 1 and falls more steeply towards it: values compare
    between equal numbers of prompts only, and want N well above ``last_rank``.
    Released code: the same line; the programs of the authors begin it at rank 4 to 6 or 12 and end
    it at rank 50 or 100.
    """
    population = Population([rows_ND], preparations=[(True, False)])
    spectrum = population.spectrum(center=True, unit=False)
    return power_law_exponent(spectrum, first_rank, last_rank)


def power_law_exponent(
    eigenvalues: Tensor, first_rank: int = FIRST_RANK, last_rank: int = LAST_RANK
) -> Tensor:
    """``alpha_req`` of the eigenvalues of one centred Gram matrix, in any order and scale."""
    if not 1 <= first_rank <= last_rank:
        raise ValueError(f"ranks {first_rank} to {last_rank}: the first must be 1 or more")
    spectrum = floor_spectrum(eigenvalues).sort(descending=True).values
    value_k = spectrum[first_rank - 1 : last_rank]
    value_k = value_k[value_k != 0]  # zeros come last; NaN stays
    if len(value_k) < FEWEST_RANKS:
        return spectrum.new_full((), torch.nan)
    rank_k = torch.arange(len(value_k), dtype=torch.float64, device=value_k.device) + first_rank
    weight_k = 1 / rank_k / (1 / rank_k).sum()
    x_k, y_k = rank_k.log(), value_k.log()
    x_k = x_k - (weight_k * x_k).sum()
    return -(weight_k * x_k * y_k).sum() / (weight_k * x_k.square()).sum()
