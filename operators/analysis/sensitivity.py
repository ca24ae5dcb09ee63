"""Sensitivity: how fast a metric changes with the level of a perturbation, and how sure that is.

The sensitivity of a layer is the slope of a least-squares line of the metric against the level.
Of a metric with a value per prompt every prompt has a slope of its own, over the levels where its
value is defined. Their mean is the sensitivity, and their spread over prompts gives its interval:
prompts are the independent draws here, the levels of one prompt are not (they share their draws and
the clean text), so residuals about a pooled line would understate the error. A line is a summary:
where the metric bends, the slope depends on which levels were run.

Shapes: P levels, N prompts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from layerrank.operators.later import Later

if TYPE_CHECKING:
    from scipy import stats
else:
    stats = Later("scipy.stats")

Array = npt.NDArray[np.float64]
FEWEST_LEVELS = 2  # that have a slope
FEWEST_PROMPTS = 2  # that have a spread


def least_squares_slopes(values_PN: Array, place_P: Array) -> Array:
    """Slope of each prompt's values against the places of the levels, [N].

    ``sum_p (x_p - x) (y_p - y) / sum_p (x_p - x)^2`` over the levels p at which the prompt has a
    value; NaN where fewer than two different places have one.
    """
    defined_PN = ~np.isnan(values_PN)
    count_N = np.maximum(defined_PN.sum(axis=0), 1)
    x_PN = np.where(defined_PN, place_P[:, None], 0.0)
    x_PN = np.where(defined_PN, x_PN - x_PN.sum(axis=0) / count_N, 0.0)
    y_PN = np.where(defined_PN, values_PN, 0.0)
    y_PN = np.where(defined_PN, y_PN - y_PN.sum(axis=0) / count_N, 0.0)
    spread_N = (x_PN**2).sum(axis=0)
    several_N = defined_PN.sum(axis=0) >= FEWEST_LEVELS
    slope_N = np.full(values_PN.shape[1], np.nan)
    np.divide((x_PN * y_PN).sum(axis=0), spread_N, out=slope_N, where=several_N & (spread_N > 0))
    return slope_N


class SlopeSums(NamedTuple):
    """Slopes of some prompts, reduced; `merge_slopes` adds two disjoint sets of them."""

    prompts: int  # that have a slope
    mean: float
    squares: float  # sum over prompts of the squared distance to the mean
    undefined: int  # prompts without a slope


NO_SLOPES = SlopeSums(0, 0.0, 0.0, 0)


def slope_sums(slope_N: Array) -> SlopeSums:
    """Reduce the slopes of some prompts, NaN where a prompt has none."""
    defined = slope_N[~np.isnan(slope_N)]
    if not len(defined):
        return SlopeSums(0, 0.0, 0.0, len(slope_N))
    mean = float(defined.mean())
    squares = float(((defined - mean) ** 2).sum())
    return SlopeSums(len(defined), mean, squares, len(slope_N) - len(defined))


def merge_slopes(left: SlopeSums, right: SlopeSums) -> SlopeSums:
    """Reduce two disjoint sets of prompts to one (Chan, Golub & LeVeque 1983)."""
    prompts, undefined = left.prompts + right.prompts, left.undefined + right.undefined
    if not (left.prompts and right.prompts):
        one = left if left.prompts else right
        return one._replace(undefined=undefined)
    shift = right.mean - left.mean
    weight = left.prompts * right.prompts / prompts
    return SlopeSums(
        prompts,
        left.mean + shift * right.prompts / prompts,
        left.squares + right.squares + weight * shift**2,
        undefined,
    )


class Slope(NamedTuple):
    """A slope and the ends of its interval, in units of the metric per unit of the level."""

    value: float
    low: float
    high: float


def mean_slope(sums: SlopeSums, level: float) -> Slope:
    """Mean over prompts with the two-sided Student interval of coverage `level`.

    ``mean -+ t(N - 1) s / sqrt(N)``. It says how far the mean would move with other prompts of the
    same kind. The slopes need not be normal for it, only many; t makes up for few. One prompt has
    no interval (NaN), none has no slope.
    """
    if sums.prompts < FEWEST_PROMPTS:
        return Slope(sums.mean if sums.prompts else math.nan, math.nan, math.nan)
    freedom = sums.prompts - 1
    error = math.sqrt(sums.squares / freedom / sums.prompts)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Slope(sums.mean, sums.mean - half, sums.mean + half)


def population_slope(value_P: Array, place_P: Array) -> Slope:
    """Slope of a metric of all prompts together, which has one value per level, and no interval.

    Distances from the line would not give one: they show how the metric bends, and are the same
    numbers again on the same prompts. How far another sample of prompts would move the slope cannot
    be told from one value per level.
    """
    return Slope(float(least_squares_slopes(value_P[:, None], place_P)[0]), math.nan, math.nan)
