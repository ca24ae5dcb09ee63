"""Anisotropy: how far the vectors of a layer point into one common direction.

Shape suffixes: N prompts, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from operators.metrics.linear.moments import DirectionSums, direction_sums

FEWEST_ROWS = 2  # a cosine needs two


def anisotropy(rows_ND: Tensor) -> Tensor:
    """How much the vectors of different prompts point the same way; high is a narrow cone.

    Formula: mean over i != j of ``z_i . z_j / (|z_i| |z_j|)`` of the raw, uncentred vectors, from
    the sum of the unit vectors: ``(|sum_i u_i|^2 - n) / (n (n - 1))``.
    Paper: Ethayarajh 2019 (arXiv 1909.00512), section 4.1, there estimated from sampled pairs; here
    of all pairs.
    Range: -1 / (n - 1) to 1, without unit; 0 for vectors without a common direction. A zero vector
    has no cosine and is left out of n; NaN for fewer than two other vectors and for a non-finite
    one.
    Released code: the code of Skean et al. 2025 does not have it.
    """
    return mean_cosine(direction_sums(rows_ND))


def mean_cosine(sums: DirectionSums) -> Tensor:
    """``anisotropy`` of everything that was merged into the sums."""
    if sums.n_rows < FEWEST_ROWS:
        return sums.total_D.new_full((), torch.nan)
    pairs = sums.n_rows * (sums.n_rows - 1)
    return (sums.total_D.square().sum() - sums.n_rows) / pairs
