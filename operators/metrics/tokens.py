"""Metrics of the tokens of each prompt: entropy, curvature, and the sizes of the vectors.

Shape suffixes: T tokens (right-padded), D features, A orders; M rows, each one prompt in one layer,
m those of one block, R their tokens one after the other, K some of those. Tokens and mask are those
of a ``Chunk``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from layerrank.operators.metrics import WITHOUT_FIRST, SpectrumMethod
from layerrank.operators.metrics.quadrature import SMALLEST_SIDE, quadrature_entropies
from layerrank.operators.metrics.rows import (
    Kernel,
    map_rows,
    prepare_rows,
    token_parts,
    unit_grams,
)
from layerrank.operators.metrics.spectrum import gram_entropies, small_gram

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


def entropies(
    tokens_MTD: Tensor,
    mask_MT: Tensor,
    alphas: Sequence[float],
    method: SpectrumMethod = "exact",
    without_first: bool = True,
) -> dict[str, Tensor]:
    """How diverse the tokens within each prompt are; low means compressed. By variant, [A, M].

    Formula: ``matrix_entropy`` of ``Z Z^T``, where Z holds a prompt's tokens, centred over that
    prompt and then scaled to unit length (a token equal to the mean keeps a zero row).
    Paper: Skean et al. 2024 (arXiv 2412.09563) and 2025 (arXiv 2502.02013), equation 1.
    Range: 0 to log(min(T - 1, D)), in nats. NaN for fewer than two tokens, for a non-finite token,
    and where nothing is left of Z, as when all tokens are equal.
    Released code: sets negative entries of the Gram matrix to 0 before the spectrum, which adds 0.1
    to 0.5 nats on real text and gives three tokens always the maximum.

    All orders share one spectrum, and none is computed where 2 is the only order; both variants
    share the products of the tokens. The approximate method is for long prompts:
    ``quadrature_entropies`` where the Gram matrix is large, the exact entropy elsewhere.
    """
    if method not in get_args(SpectrumMethod):
        choices = ", ".join(get_args(SpectrumMethod))
        raise ValueError(f"method = {method!r}: choose from {choices}")

    def of_tokens(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        grams = unit_grams(tokens_mTD, mask_mT, without_first)
        return torch.stack([gram_entropies(gram_mTT, alphas) for gram_mTT in grams])

    def of_rows(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        return gram_entropies(small_gram(prepare_rows(tokens_mTD, mask_mT)), alphas)

    def approximate(tokens_mTD: Tensor, mask_mT: Tensor) -> Tensor:
        rows_mTD = prepare_rows(tokens_mTD, mask_mT, torch.float32)
        size_m = mask_mT.sum(dim=1).clamp(max=dim)
        return quadrature_entropies(small_gram(rows_mTD, torch.float32), size_m, alphas)

    cuts = _cuts(without_first)
    shape = len(cuts), len(alphas), len(tokens_MTD)
    values_VAM = tokens_MTD.new_full(shape, torch.nan, dtype=torch.float64)
    whole_M, dim = mask_MT.sum(dim=1), tokens_MTD.shape[2]
    smallest = SMALLEST_SIDE if method == "approximate" else math.inf
    shared_M = (whole_M > 1) & (whole_M <= dim) & (whole_M < smallest)
    if shared_M.any():
        values_VAM[..., shared_M] = _map_some(of_tokens, tokens_MTD, mask_MT, shared_M)
    for values_AM, cut in zip(values_VAM, cuts.values(), strict=True):
        length_M = whole_M - cut
        large_M = ~shared_M & (length_M.clamp(max=dim) >= smallest)
        # Rows of a group have their smaller side in common, so that it depends on the row alone.
        for group_M, kernel in (
            (~shared_M & ~large_M & (length_M > 1), of_rows),
            (large_M & (length_M <= dim), approximate),
            (large_M & (length_M > dim), approximate),
        ):
            if group_M.any():
                later = tokens_MTD[:, cut:], mask_MT[:, cut:]
                values_AM[:, group_M] = _map_some(kernel, *later, group_M)
        values_AM.masked_fill_(length_M <= 1, torch.nan)
    return dict(zip(cuts, values_VAM, strict=True))


def _map_some(kernel: Kernel, tokens_MTD: Tensor, mask_MT: Tensor, some_M: Tensor) -> Tensor:
    """Values of the kernel of some rows, which are only copied if there are others."""
    if some_M.all():
        return map_rows(kernel, tokens_MTD, mask_MT)
    return map_rows(kernel, tokens_MTD[some_M], mask_MT[some_M])


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
    the first angle.
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


def mean_norms(
    tokens_MTD: Tensor, mask_MT: Tensor, without_first: bool = True
) -> dict[str, Tensor]:
    """How long the token vectors of a prompt are on average. By variant, [M].

    Formula: mean over the tokens of ``|z_t|``, the Euclidean norm of the raw states.
    Paper: the norms that Sun et al. 2024 (arXiv 2402.17762) compare massive activations with.
    Range: >= 0, in units of the states. NaN for a prompt without tokens and for a non-finite token.
    Released code: none for prompts.
    """
    norm_MT = _token_norms(tokens_MTD)
    return {
        name: norm_MT[:, cut:].sum(dim=1) / mask_MT[:, cut:].sum(dim=1)
        for name, cut in _cuts(without_first).items()
    }


def largest_coordinates(
    tokens_MTD: Tensor, mask_MT: Tensor, without_first: bool = True
) -> dict[str, Tensor]:
    """How massive the largest activation of a prompt is. By variant, [M].

    Formula: ``max |z_td|`` over the tokens and features of the raw states.
    Paper: Sun et al. 2024 (arXiv 2402.17762), massive activations.
    Range: >= 0, in units of the states; never above the longest token's norm. NaN for a prompt
    without tokens and for a non-finite token.
    Released code: the same.
    """
    # Twenty times faster than the infinity norm.
    peak_MT = torch.maximum(tokens_MTD.amax(dim=2), tokens_MTD.amin(dim=2).neg())
    peak_MT = peak_MT.to(torch.float64)
    found = {}
    for name, cut in _cuts(without_first).items():
        peak_MT[:, :cut] = 0  # as the padding is
        largest_M = peak_MT.amax(dim=1)
        is_real_M = mask_MT[:, cut:].any(dim=1) & largest_M.isfinite()
        found[name] = largest_M.where(is_real_M, torch.nan)
    return found


def first_token_shares(tokens_MTD: Tensor, mask_MT: Tensor) -> Tensor:
    """How much of a prompt sits in its first token, which decoders use as an attention sink.

    Formula: ``|z_1|^2 / sum_t |z_t|^2`` of the raw states.
    Paper: Queipo-de-Llano et al. 2025 (arXiv 2510.06477): attention sinks and compression valleys
    have one cause, the massive activation of the first token.
    Range: 0 to 1, without unit; 1 for a single token, 1 / T where all tokens are equally long. NaN
    for a prompt without tokens, for a non-finite token, and where all tokens are zero.
    Released code: none known.
    """
    norm_MT = _token_norms(tokens_MTD)
    power_MT = (norm_MT / norm_MT.amax(dim=1, keepdim=True)).square()  # 0 / 0 = NaN
    return (power_MT[:, 0] / power_MT.sum(dim=1)).where(mask_MT.any(dim=1), torch.nan)


def _token_norms(tokens_MTD: Tensor) -> Tensor:
    """Norms in float64, 0 in the padding; NaN for a non-finite token, so that no mean is inf."""
    norm_MT = tokens_MTD.new_empty(tokens_MTD.shape[:2], dtype=torch.float64)
    for part in token_parts(tokens_MTD):
        part_MtD = tokens_MTD[:, part].to(torch.float64)  # cheaper than norms of another dtype
        torch.linalg.vector_norm(part_MtD, dim=-1, out=norm_MT[:, part])
    return norm_MT.where(norm_MT.isfinite(), torch.nan)


def _cuts(without_first: bool) -> dict[str, int]:
    """Return how many tokens each variant leaves out."""
    return {"": 0, WITHOUT_FIRST: 1} if without_first else {"": 0}
