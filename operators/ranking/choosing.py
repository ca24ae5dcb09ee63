"""Which layer a policy takes, and what choosing so is worth.

Shapes: L layers in ascending order; U units, the tasks, or the folds of a lone task; R resamples
of its items; `...` any number of axes before these, each entry a ranking of its own.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from layerrank.operators.ranking import Policy
from layerrank.operators.ranking.scores import TIE, Array

Rows = npt.NDArray[np.intp]
Choose = Callable[..., Rows]  # of gains, as `choose` at given costs by one policy


def choose(
    gain_LU: Array, cost_L: Sequence[float] | Array, policy: Policy, error_L: Array | None = None
) -> Rows:
    """Row of the layer that a policy takes by its gain over the units (`even_gains`), [...].

    - `best`, and `last_unless_significant` until its test: the highest mean.
    - `cheapest_equal`: the one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984,
      *Classification and Regression Trees*, section 3.4.3): the cheapest layer whose shortfall is
      at most one standard error. Theirs is the standard error of the best score; ours is that of
      the paired difference to the best, which is smaller, as what makes a unit hard for every
      layer cancels. `error_L` is taken where units show none: a lone task without folds.

    Of equally good layers the cheapest counts, of equally cheap ones the best, then the lowest. A
    layer without a gain in any unit (NaN) is not taken; one must have some.
    """
    mean_L = even_gains(gain_LU)
    mean_L = np.where(np.isnan(mean_L), -np.inf, mean_L)
    equal_L = mean_L >= mean_L.max(axis=-1, keepdims=True) - TIE
    best = _cheapest(equal_L, mean_L, cost_L)
    if policy == "cheapest_equal":
        behind_L, found_L = shortfalls(gain_LU, best)
        error_L = found_L if error_L is None else error_L
        equal_L |= behind_L <= np.where(np.isnan(error_L), 0.0, error_L) + TIE
        best = _cheapest(equal_L, mean_L, cost_L)
    return best


def even_gains(gain_LU: Array) -> Array:
    """Gain of every layer as if it had every unit, [..., L]; NaN for a layer without any.

    Without holes the mean over units. A layer that lacks a hard unit would have too high a mean: so
    with holes it is the gain of the best layer that has all, plus the mean difference to that one
    over the units of both (the difference estimator of survey sampling, Cochran 1977, *Sampling
    Techniques*, chapter 7). A layer that is behind that one wherever both have a gain stays behind.
    The last layer has every unit.
    """
    known_LU, mean_L = ~np.isnan(gain_LU), mean_over(gain_LU)
    whole_L = known_LU.all(axis=-1)
    if (whole_L | ~known_LU.any(axis=-1)).all():
        return mean_L
    best = np.where(whole_L, mean_L, -np.inf).argmax(axis=-1)[..., None]
    whole_U = np.take_along_axis(gain_LU, best[..., None], axis=-2)
    even_L: Array = np.take_along_axis(mean_L, best, axis=-1) + mean_over(gain_LU - whole_U)
    return even_L


def shortfalls(gain_LU: Array, best: Rows) -> tuple[Array, Array]:
    """How far each layer lies behind row `best`, paired over the units that both have, [..., L].

    With the standard error of that: what a bootstrap over the units gives, the standard deviation
    with divisor U by the root of U (Efron and Tibshirani 1993, section 5.3); NaN with one unit.
    """
    behind_LU = np.take_along_axis(gain_LU, best[..., None, None], axis=-2) - gain_LU
    return np.maximum(mean_over(behind_LU), 0.0), standard_error(behind_LU, freedom_lost=0)


def _cheapest(
    allowed_L: npt.NDArray[np.bool_], mean_L: Array, cost_L: Sequence[float] | Array
) -> Rows:
    cost_L = np.where(allowed_L, np.asarray(cost_L), np.inf)
    allowed_L = cost_L == cost_L.min(axis=-1, keepdims=True)
    mean_L = np.where(allowed_L, mean_L, -np.inf)
    rows: Rows = np.argmax(mean_L >= mean_L.max(axis=-1, keepdims=True) - TIE, axis=-1)
    return rows


def left_out(gain_LU: Array, rule: Choose) -> tuple[Array, Rows]:
    """Gain in every unit of the layer that `rule` takes by the others, and its row, [..., U].

    Their mean is the gain of choosing so, free of the winner's curse: no unit judges the layer that
    it helped to choose (leave-one-out cross-validation, Stone 1974). It is a little too low, since
    it is the gain of choosing by one unit fewer. NaN where that layer has no gain in the unit.
    """
    n_units = gain_LU.shape[-1]
    rows_U = np.stack([rule(np.delete(gain_LU, u, axis=-1)) for u in range(n_units)], axis=-1)
    picked_U = np.take_along_axis(gain_LU, rows_U[..., None, :], axis=-2)[..., 0, :]
    return picked_U, rows_U


def flattery(gain_L: Array, resampled_LR: Array, rule: Choose) -> float:
    """By how much choosing flatters the gain of a lone task without folds.

    Mean over resamples of its items of what the layer that is chosen there gains there, less what
    it gains on the items as they are: the optimism of Efron (1983, *Estimating the error rate of a
    prediction rule*). At least 0.
    """
    rows_R = rule(resampled_LR.T[..., None])
    there_R = np.take_along_axis(resampled_LR, rows_R[None], axis=0)[0]
    return max(float((there_R - gain_L[rows_R]).mean()), 0.0)


def mean_over(value_U: Array) -> Array:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    known_U = ~np.isnan(value_U)
    count = known_U.sum(axis=-1)
    total = np.where(known_U, value_U, 0.0).sum(axis=-1)
    mean: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def standard_error(value_U: Array, freedom_lost: int = 1) -> Array:
    """Standard error of `mean_over`, of n values: the deviation, divisor n - 1 or n, by root n."""
    count = (~np.isnan(value_U)).sum(axis=-1)
    squares = mean_over((value_U - mean_over(value_U)[..., None]) ** 2)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count - freedom_lost, 1)), np.nan)
