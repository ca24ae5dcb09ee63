"""TwoNN: how many coordinates describe a set of vectors locally.

Shape suffixes: N points, D features, C candidates for neighbours; a lower-case m is the points and
k the possible neighbours of one block.
"""

import math

import torch
from torch import Tensor

# Elements of one block of distances or differences: 64 MiB in float64, whatever N is.
BLOCK_ELEMENTS = 2**23

# Distinct points that an estimate needs.
FEWEST_POINTS = 20

# Neighbours that are found by the fast distances, whose rounding may change their order, before
# their exact distances decide on the two nearest.
CANDIDATES = 4


def twonn(rows_ND: Tensor, discard: float = 0.1) -> Tensor:
    """Intrinsic dimension: how many coordinates the points need in a small neighbourhood.

    Formula: with ``mu = r2 / r1`` the distance ratio of the two nearest neighbours of a point,
    sorted, and ``F(mu_i) = i / n``: the slope of the line through the origin of ``-log(1 - F)`` on
    ``log mu``, without the share ``discard`` of largest mu.
    Paper: Facco et al. 2017 (doi 10.1038/s41598-017-11873-y), steps 1 to 5 of the algorithm.
    Range: > 0, in dimensions; a uniform cube of d dimensions gives about d, somewhat less for large
    d. A point that occurs several times counts once, since r1 = 0 has no ratio. NaN for fewer than
    FEWEST_POINTS distinct points, for points on a grid (every mu is 1), and for a non-finite row.
    Released code: the paper's has the same fit; the code of Skean et al. 2025 does not have it.
    """
    if not 0 <= discard < 1:
        raise ValueError(f"discard = {discard}: a share must be at least 0 and below 1")
    undefined = rows_ND.new_full((), torch.nan, dtype=torch.float64)
    if not rows_ND.isfinite().all():
        return undefined
    points_ND = torch.unique(rows_ND, dim=0).to(torch.float64)
    n_points = points_ND.shape[0]
    if n_points < FEWEST_POINTS:
        return undefined
    ratio_N = _distance_ratios(points_ND - points_ND.mean(dim=0))
    # The largest always goes: its F is 1.
    kept = min(math.floor(n_points * (1 - discard)), n_points - 1)
    log_ratio_n = ratio_N.sort().values[:kept].log()
    share_n = torch.arange(1, kept + 1, dtype=torch.float64, device=rows_ND.device) / n_points
    return -(torch.log1p(-share_n) * log_ratio_n).sum() / log_ratio_n.square().sum()


def _distance_ratios(points_ND: Tensor) -> Tensor:
    """Distance to the second nearest over that to the nearest point, of each of centred points."""
    n_points, dim = points_ND.shape
    square_N = points_ND.square().sum(dim=1)
    size = max(1, BLOCK_ELEMENTS // (CANDIDATES * dim))
    side = max(1, min(math.isqrt(BLOCK_ELEMENTS), size))
    ratios = []
    for start in range(0, n_points, side):
        own_mD = points_ND[start : start + side]
        index_mC = _candidates(points_ND, square_N, start, side)
        exact_mC = torch.linalg.vector_norm(points_ND[index_mC] - own_mD[:, None], dim=2)
        nearest_mC = exact_mC.sort(dim=1).values
        ratios.append(nearest_mC[:, 1] / nearest_mC[:, 0])
    return torch.cat(ratios)


def _candidates(points_ND: Tensor, square_N: Tensor, start: int, side: int) -> Tensor:
    """Indices of the points nearest to those of one block, itself excepted, block by block."""
    own_mD = points_ND[start : start + side]
    found_mC = own_mD.new_empty((len(own_mD), 0))
    index_mC = torch.empty((len(own_mD), 0), dtype=torch.int64, device=own_mD.device)
    own_m = torch.arange(start, start + len(own_mD), device=own_mD.device)
    for first in range(0, len(points_ND), side):
        other_kD = points_ND[first : first + side]
        other_k = torch.arange(first, first + len(other_kD), device=own_mD.device)
        # The point's own |x|^2 is the same for all its neighbours and left out.
        distance_mk = square_N[first : first + side] - 2 * own_mD @ other_kD.mT
        distance_mk = distance_mk.masked_fill(own_m[:, None] == other_k, torch.inf)
        near_mC, place_mC = distance_mk.topk(min(CANDIDATES, len(other_kD)), dim=1, largest=False)
        near_mC = torch.cat([found_mC, near_mC], dim=1)
        every_mC = torch.cat([index_mC, place_mC + first], dim=1)
        found_mC, best_mC = near_mC.topk(min(CANDIDATES, near_mC.shape[1]), dim=1, largest=False)
        index_mC = every_mC.gather(1, best_mC)
    return index_mC
