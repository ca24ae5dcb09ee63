"""Which layers cannot be recommended, from the first folds of every task.

Shapes: L layers, T tasks, F folds (NaN where a task has fewer), R replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """When and how surely layers are dropped.

    After each of `budgets` (folds of every task, ascending) the layers are compared; what survives
    the last comparison is scored on all folds. `level` is the confidence of each single drop. No
    layer is dropped before every task that has more folds to come has `least_cells` of them. The
    `keep` best, the last layer, which is the baseline, and `always` are never dropped.
    """

    budgets: tuple[int, ...] = (3, 5)
    level: float = 0.99
    least_cells: int = 3
    keep: int = 1
    always: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.budgets, default=1) < 1 or sorted(set(self.budgets)) != [*self.budgets]:
            raise ValueError(f"budgets must be positive and ascending, got {self.budgets}")
        if not 0.5 <= self.level < 1:  # noqa: PLR2004 - below it the losing side would be dropped
            raise ValueError(f"level must be in [0.5, 1), got {self.level}")
        if self.least_cells < 2 or self.keep < 1:  # noqa: PLR2004 - one cell has no spread
            raise ValueError(
                "least_cells must be at least 2 and keep at least 1, "
                f"got {self.least_cells} and {self.keep}"
            )


@dataclass(frozen=True)
class Dropped:
    """A layer that is out, and why, in a sentence; differences in points (score times 100)."""

    layer: int
    reason: str


@dataclass(frozen=True)
class Shortfalls:
    """How far every layer lies behind the best on the known folds, in the score's unit.

    `behind_L` is the difference so far. `least_L` is the lower confidence bound of what it will be
    over all folds, `error_L` the standard error that the full sweep will give it.
    """

    behind_L: Array
    least_L: Array
    error_L: Array


def eliminate(
    scores_LTF: Array,
    n_folds: Sequence[int],
    rule: Rule,
    *,
    layers: Sequence[int],
    budget: int,
    replicates_LTR: Array | None = None,
) -> list[Dropped]:
    """Layers that the first `budget` folds of every task rule out, as `shortfalls` bounds it.

    The full sweep recommends the cheapest layer whose shortfall is at most one standard error
    (Breiman et al. 1984, *Classification and Regression Trees*, section 3.4.3). So a layer is
    dropped when its shortfall is surely larger than that: it is then neither the best nor
    recommended. `n_folds` is how many folds each task has in the full sweep. A layer with an
    undefined score (NaN) is dropped too, since it has no mean in the full sweep either.
    """
    scores_LTF = np.asarray(scores_LTF, dtype=np.float64)
    n_folds_T = np.asarray(n_folds, dtype=np.int64)
    n_known_T = np.minimum(budget, n_folds_T)
    known_TF = np.arange(scores_LTF.shape[2]) < n_known_T[:, None]
    known_LTF = np.where(known_TF, scores_LTF, 0.0)
    mean_L = (known_LTF.sum(axis=2) / n_known_T).mean(axis=1)
    # By score, best first, undefined last; of equal ones the lower layer, not the earlier row.
    order = sorted(range(len(layers)), key=lambda row: (*_worse(mean_L[row]), layers[row]))
    defined = [row for row in order if not np.isnan(mean_L[row])]
    reasons = {
        layers[row]: f"layer {layers[row]} has an undefined score" for row in order[len(defined) :]
    }
    safe = {max(layers), *rule.always, *(layers[row] for row in defined[: rule.keep])}
    if defined and (n_known_T >= np.minimum(rule.least_cells, n_folds_T)).all():
        best = defined[0]
        difference_LTF = np.where(known_TF, known_LTF[best] - known_LTF, np.nan)
        difference_LTF[np.isnan(mean_L)] = np.nan
        noise_LT = _replicate_variances(replicates_LTR, best, difference_LTF.shape[:2])
        found = shortfalls(difference_LTF, n_folds_T, noise_LT, best=best, level=rule.level)
        for row in defined:
            if found.least_L[row] > found.error_L[row]:
                reasons[layers[row]] = _sentence(found, row, layers[row], layers[best], rule.level)
    return [Dropped(layer, reasons[layer]) for layer in sorted(reasons) if layer not in safe]


def shortfalls(
    difference_LTF: Array, n_folds_T: Counts, noise_LT: Array, *, best: int, level: float
) -> Shortfalls:
    """Bound every layer's shortfall over all folds, and predict its standard error there.

    `difference_LTF` is the best layer's score minus this one's, NaN where unknown; `noise_LT` the
    variance of a single score between resamples of its items, 0 where folds show the noise.

    D = mean over tasks of the mean over folds. Its standard error E in the full sweep is that of
    the two-stage bootstrap over tasks and folds of `operators.ranking`, in closed form
    ``E^2 = var_t(D_t) / T + sum_t (var_f(D_tf) / F_t + noise_t) / T^2``, divisors T and F_t.
    Of F_t folds n_t are known: a sample without replacement from a finite population, whose mean d
    differs from D with the variance ``V = sum_t s_t^2 (1 / n_t - 1 / F_t) / T^2`` (Cochran 1977,
    *Sampling Techniques*, section 2.6). The bound is ``d - q V^(1/2)`` with the `level` quantile q
    of Student's t and the degrees of freedom of Welch (1947) and Satterthwaite (1946).

    s_t^2 of a layer is taken as at least the median layer's: few scores, rounded to a share of few
    test items, agree by chance, and would make any difference certain.
    """
    n_known_LT = (~np.isnan(difference_LTF)).sum(axis=2)
    n_tasks = len(n_folds_T)
    behind_LT = np.nansum(difference_LTF, axis=2) / np.maximum(n_known_LT, 1)
    squares_LT = np.nansum((difference_LTF - behind_LT[:, :, None]) ** 2, axis=2)
    variance_LT = squares_LT / np.maximum(n_known_LT - 1, 1)
    others = [row for row in range(len(variance_LT)) if row != best and n_known_LT[row].all()]
    if others:
        variance_LT = np.maximum(variance_LT, np.median(variance_LT[others], axis=0))

    within_LT = variance_LT * (n_folds_T - 1) / n_folds_T**2 + noise_LT
    error_L = np.sqrt(behind_LT.var(axis=1) / n_tasks + within_LT.sum(axis=1) / n_tasks**2)
    unknown_LT = variance_LT * (1 / np.maximum(n_known_LT, 1) - 1 / n_folds_T) / n_tasks**2
    squared_LT = unknown_LT**2 / np.maximum(n_known_LT - 1, 1)
    unknown_L, squared_L = unknown_LT.sum(axis=1), squared_LT.sum(axis=1)
    freedom_L = np.divide(unknown_L**2, squared_L, out=np.ones_like(unknown_L), where=squared_L > 0)
    behind_L = behind_LT.mean(axis=1)
    behind_L[~(n_known_LT > 0).all(axis=1)] = np.nan
    least_L = behind_L - student_t.ppf(level, freedom_L) * np.sqrt(unknown_L)
    return Shortfalls(behind_L, least_L, error_L)


def _worse(score: float) -> tuple[bool, float]:
    missing = bool(np.isnan(score))
    return missing, 0.0 if missing else -score


def _replicate_variances(replicates_LTR: Array | None, best: int, shape: tuple[int, ...]) -> Array:
    """Variance of the difference to the best layer over its defined replicates, 0 for none."""
    noise_LT = np.zeros(shape)
    if replicates_LTR is None:
        return noise_LT
    difference_LTR = replicates_LTR[best] - replicates_LTR
    drawn_LT = (~np.isnan(difference_LTR)).any(axis=2)
    noise_LT[drawn_LT] = np.nanvar(difference_LTR[drawn_LT], axis=1)
    return noise_LT


def _sentence(found: Shortfalls, row: int, layer: int, best: int, level: float) -> str:
    behind, least, error = (
        f"{100 * values_L[row]:.2g}" for values_L in (found.behind_L, found.least_L, found.error_L)
    )
    return (
        f"layer {layer} is {behind} points behind layer {best} so far, at least {least} over all "
        f"folds ({100 * level:g} % confidence); one standard error is {error}"
    )
