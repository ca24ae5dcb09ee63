"""Curvature of the path that a prompt's tokens take through representation space.

Shape suffixes: T tokens (right-padded), D features; M rows, each one prompt in one layer, m those
of one block, R their tokens one after the other, K some of those.
"""

from __future__ import annotations

import torch
from torch import Tensor

from operators.metrics.token.rows import WITHOUT_FIRST, map_rows, token_parts

# Variant -> whether angles at a zero difference are skipped, and how many tokens are left out.
VARIANTS = {
    "": (False, 0),
    WITHOUT_FIRST: (False, 1),
    "skip": (True, 0),
    f"skip,{WITHOUT_FIRST}": (True, 1),
}
# Beyond this cosine an angle is taken from the unit vectors: there arccos loses digits, half of
# them near 1.
NEAR_STRAIGHT = 0.9


def curvatures(
    tokens_MTD: Tensor, mask_MT: Tensor, without_first: bool = True
) -> dict[str, Tensor]:
    """How sharply the path from token to token turns; 0 is a straight line. By variant, [M].

    Formula: mean over k of the angle between ``v_{k+1}`` and ``v_k``, with
    ``v_k = z_{k+1} - z_k`` of the raw states.
    Paper: Hosseini & Fedorenko 2023 (arXiv 2311.04930), the average curvature of a sentence.
    Range: 0 to pi, in radians; independent tokens give 2 pi / 3 on average, a regular 12-gon gives
    pi / 6. NaN for fewer than three tokens, a non-finite token, or two equal neighbours; ``skip``
    leaves out the angles that touch a zero difference and is NaN only when no angle is left or a
    token is not finite.
    Released code: takes the angle between adjacent states, not differences (0.74 where this gives
    1.66), later of the absolute cosine, and has NaN in 24 % of its published values.

    All variants come from one pass: leaving out the first token leaves out the first difference and
    the first angle. Tokens and mask are those of a ``Chunk``.
    """
    asked = {name: how for name, how in VARIANTS.items() if without_first or not how[1]}

    def means(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        """Means over the angles between real differences; 0 / 0 = NaN where there is none."""
        norm_mT, angle_mT = _path(tokens_mTD)
        real_mT = mask_mT.roll(-1, dims=1)  # a difference exists where its second token does
        real_mT[:, -1] = False
        found = []
        for skip, cut in asked.values():
            # An angle exists where its second difference does.
            counted_mT = real_mT[:, cut + 1 :]
            if skip:
                counted_mT = counted_mT & (norm_mT[:, cut:-1] != 0) & (norm_mT[:, cut + 1 :] != 0)
            total_m = angle_mT[:, cut:-1].where(counted_mT, 0.0).sum(dim=1)
            finite_m = (norm_mT[:, cut:].isfinite() | ~real_mT[:, cut:]).all(dim=1)
            found.append((total_m / counted_mT.sum(dim=1)).where(finite_m, torch.nan))
        return torch.stack(found)

    return dict(zip(asked, map_rows(means, tokens_MTD, mask_MT), strict=True))


def _path(tokens_mTD: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the difference after each token, and its angle to the next one.

    The tokens of all rows are one path: what reaches from one row into the next, or into the
    padding, is there but means nothing.
    """
    tokens_RD = tokens_mTD.reshape(-1, tokens_mTD.shape[2])
    norm_R = tokens_RD.new_full(tokens_RD.shape[:1], torch.nan, dtype=torch.float64)
    cosine_R = norm_R.clone()
    for part in token_parts(tokens_RD[None]):
        part_RD = tokens_RD[part.start : part.stop + 2].to(torch.float64)
        steps_RD = part_RD[1:] - part_RD[:-1]
        end = part.start + len(steps_RD)
        norm_R[part.start : end] = torch.linalg.vector_norm(steps_RD, dim=-1)
        cosine_R[part.start : end - 1] = torch.linalg.vecdot(steps_RD[:-1], steps_RD[1:])
    cosine_R[:-1] /= norm_R[:-1]
    cosine_R[:-1] /= norm_R[1:]
    angle_R = cosine_R.acos()
    (near_K,) = torch.nonzero(cosine_R.abs() > NEAR_STRAIGHT, as_tuple=True)
    for part in token_parts(tokens_RD[None, : len(near_K)]):
        # From the distance of the unit vectors, exact near 0 and pi.
        at_K = near_K[part]
        here_KD = tokens_RD[at_K + 1].to(torch.float64)
        before_KD = (here_KD - tokens_RD[at_K]) / norm_R[at_K, None]
        after_KD = (tokens_RD[at_K + 2] - here_KD) / norm_R[at_K + 1, None]
        angle_R[at_K] = 2 * torch.atan2(
            torch.linalg.vector_norm(after_KD - before_KD, dim=-1),
            torch.linalg.vector_norm(after_KD + before_KD, dim=-1),
        )
    return norm_R.view(tokens_mTD.shape[:2]), angle_R.view(tokens_mTD.shape[:2])
