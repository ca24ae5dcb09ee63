"""Curvature of the path that a prompt's tokens take through representation space.

Shape suffixes: N prompts, T tokens (right-padded), D features; a lower-case n is the prompts of one
chunk.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from operators.metrics.rows import length_chunks

UndefinedCurvature = Literal["nan", "skip"]


def curvature(
    hidden_NTD: Tensor, lengths_N: Tensor, undefined: UndefinedCurvature = "nan"
) -> Tensor:
    """How sharply the path from token to token turns; 0 is a straight line.

    Formula: mean over k of the angle between ``v_{k+1}`` and ``v_k``, with
    ``v_k = z_{k+1} - z_k`` of the raw states.
    Paper: Hosseini & Fedorenko 2023 (arXiv 2311.04930), the average curvature of a sentence.
    Range: 0 to pi, in radians; independent tokens give 2 pi / 3 on average, a regular 12-gon gives
    pi / 6. NaN for fewer than three tokens, a non-finite token, or two equal neighbours;
    ``undefined="skip"`` leaves out the angles that touch a zero difference and is NaN only when no
    angle is left.
    Released code: takes the angle between adjacent states, not differences (0.74 where this gives
    1.66), later of the absolute cosine, and has NaN in 24 % of its published values.
    """
    if undefined not in get_args(UndefinedCurvature):
        choices = ", ".join(get_args(UndefinedCurvature))
        raise ValueError(f"undefined = {undefined!r}: choose from {choices}")
    values_N = hidden_NTD.new_full(hidden_NTD.shape[:1], torch.nan, dtype=torch.float64)
    for index_n, tokens_nTD, mask_nT in length_chunks(hidden_NTD, lengths_N):
        values_N[index_n] = _mean_angle(tokens_nTD, mask_nT, undefined == "skip")
    return values_N


def _mean_angle(tokens_nTD: Tensor, mask_nT: Tensor, skip_zero: bool) -> Tensor:
    """Mean angle between successive differences; 0 / 0 = NaN where there is none."""
    steps_nTD = tokens_nTD.diff(dim=1)
    norm_nT = torch.linalg.vector_norm(steps_nTD, dim=-1)
    unit_nTD = steps_nTD / norm_nT[..., None]
    before_nTD, after_nTD = unit_nTD[:, :-1], unit_nTD[:, 1:]
    # Exact near 0 and pi, where arccos of a rounded cosine loses half the digits.
    angle_nT = 2 * torch.atan2(
        torch.linalg.vector_norm(after_nTD - before_nTD, dim=-1),
        torch.linalg.vector_norm(after_nTD + before_nTD, dim=-1),
    )
    counted_nT = mask_nT[:, 2:]
    if skip_zero:
        counted_nT = counted_nT & (norm_nT[:, :-1] != 0) & (norm_nT[:, 1:] != 0)
    return angle_nT.where(counted_nT, 0.0).sum(dim=1) / counted_nT.sum(dim=1)
