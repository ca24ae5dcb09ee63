"""How sure a mean over tasks is: on these tasks, and on a new one.

Shapes: L layers, T tasks, R folds or replicates of a task; `...` any axes before these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from layerrank.operators.later import Later
from layerrank.operators.ranking.choosing import mean_over, standard_error
from layerrank.operators.ranking.scores import Array, TaskScores

if TYPE_CHECKING:
    from scipy import special
else:
    special = Later("scipy.special")

_Value = Array | float
Mask = npt.NDArray[np.bool_]
# With two tasks the t interval is 25 points wide to each side on published scores: of no use.
FEWEST_TASKS = 3
# Below it no two-sided test by sign flips can reach 5 %: the smallest p is 2 / 2^T.
FEWEST_TO_TEST = 6
MOST_TASKS = 1_000  # that are ever said to be needed
_POWER = 0.8


def over_tasks(value_T: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Student's t interval of the mean on a new task, from what was seen on T tasks, [...].

    mean -+ t(T - 1) s / sqrt(T). It takes the tasks as drawn from those that it speaks of; the
    noise within a task is part of what they differ by. NaN with fewer than `FEWEST_TASKS`.
    """
    count = (~np.isnan(value_T)).sum(axis=-1)
    half = quantile(level, count - 1) * standard_error(value_T)
    half = np.where(count >= FEWEST_TASKS, half, np.nan)
    return mean_over(value_T) - half, mean_over(value_T) + half


def noise_within(tasks: Sequence[TaskScores], base: int | None = None) -> tuple[Array, Array]:
    """Variance of every score within its task, and its degrees of freedom, [L, T] each.

    Of R folds it is that of their mean, s^2 / R; of replicates that between them. With `base`, of
    the difference to that row, paired. NaN for a task whose scores do not vary: a single score, or
    folds that are all alike, which say nothing.
    """
    variance_LT = np.full((len(tasks[0].score_L), len(tasks)), np.nan)
    freedom_LT = np.full(variance_LT.shape, np.nan)
    for column, task in enumerate(tasks):
        value_LR = task.cells
        if value_LR.shape[1] < 2 or not np.nanmax(np.ptp(value_LR, axis=1), initial=0.0):  # noqa: PLR2004
            continue
        value_LR = value_LR if base is None else value_LR - value_LR[base]
        of_folds = task.resampled == "folds"
        variance_LT[:, column] = value_LR.var(axis=1, ddof=1) / (
            value_LR.shape[1] if of_folds else 1
        )
        freedom_LT[:, column] = value_LR.shape[1] - 1
    return variance_LT, freedom_LT


def on_these(
    mean_L: Array, counted_LT: Mask, variance_LT: Array, freedom_LT: Array, level: float = 0.95
) -> tuple[Array, Array]:
    """Interval of a mean over these very tasks; their items and folds alone vary, [..., L].

    The variance is the sum of those within the tasks over T^2, its degrees of freedom those of
    Welch (1947) and Satterthwaite (1946). `counted_LT` says which tasks a layer's mean is over; NaN
    where one of them does not show how it varies.
    """
    within_LT = np.where(counted_LT, variance_LT, 0.0)
    total_L = within_LT.sum(axis=-1)
    parts_LT = np.where(counted_LT, within_LT**2 / freedom_LT, 0.0)
    squares_L = parts_LT.sum(axis=-1)
    freedom_L = np.divide(
        total_L**2, squares_L, out=np.full_like(total_L, np.nan), where=squares_L > 0
    )
    # No variance at all, as of the layer that the others are compared with, is no interval.
    half_L = quantile(level, freedom_L) * np.sqrt(total_L) / np.maximum(counted_LT.sum(axis=-1), 1)
    return mean_L - half_L, mean_L + half_L


def reaching(low: Array, high: Array, naive: _Value, corrected: _Value) -> tuple[Array, Array]:
    """Stretch the interval around a naive gain by what flattered it, so that it holds both."""
    below, above = np.maximum(naive - corrected, 0.0), np.maximum(corrected - naive, 0.0)
    return low - below, high + above


def quantile(level: float, freedom: Array) -> Array:
    """Return the two-sided quantile of Student's t at a level; NaN without a degree of freedom."""
    found: Array = special.stdtrit(np.where(freedom > 0, freedom, np.nan), (1 + level) / 2)
    return found


def sign_flips(gain_LT: Array, *, seed: int = 0, draws: int = 10_000) -> tuple[Array, Array]:
    """Two-sided p of every layer's gain by sign flips, and p for having the largest of all, [L].

    Where a layer gains nothing, a task's gain is as likely to be as far below 0 as above. The signs
    of whole tasks are flipped, for all layers alike, in every way if these are at most `draws`,
    else in `draws` random ones. The statistic is |t|; the second p compares it with the largest of
    any layer in the flip, which holds the chance of a single wrong claim among all layers (Westfall
    and Young 1993, *Resampling-Based Multiple Testing*; the maximum over a family as in Nichols and
    Holmes 2002). NaN with fewer than `FEWEST_TO_TEST` tasks, or where a layer gains 0 in each.
    """
    known_LT = ~np.isnan(gain_LT)
    value_LT = np.where(known_LT, gain_LT, 0.0)
    length_L = np.sqrt((value_LT**2).sum(axis=1))
    tested_L = (known_LT.sum(axis=1) >= FEWEST_TO_TEST) & (length_L > 0)
    p_L, p_most_L = np.full((2, len(gain_LT)), np.nan)
    if not tested_L.any():
        return p_L, p_most_L
    # |t| rises with |sum| / sqrt(sum of squares), and flips leave the squares as they are.
    value_LT = value_LT[tested_L] / length_L[tested_L, None]
    n_tasks = value_LT.shape[1]
    if 2 ** (n_tasks - 1) <= draws:  # the first sign stays: |t| is the same for all signs reversed
        bits = np.arange(2 ** (n_tasks - 1))[:, None] >> np.arange(n_tasks)[None]
        sign_BT = 1.0 - 2.0 * (bits & 1)
    else:
        generator = np.random.default_rng(seed)
        sign_BT = generator.choice([-1.0, 1.0], size=(draws, n_tasks))
        sign_BT[0] = 1.0  # what was seen is one of them
    flipped_BL = np.abs(sign_BT @ value_LT.T)
    seen_L = np.abs(value_LT.sum(axis=1)) - 1e-9
    p_L[tested_L] = (flipped_BL >= seen_L).mean(axis=0)
    p_most_L[tested_L] = (flipped_BL.max(axis=1, keepdims=True) >= seen_L).mean(axis=0)
    return p_L, p_most_L


def tasks_needed(gain: float, deviation: float, level: float = 0.95) -> int | None:
    """How many tasks in all would show a gain on a new task, if tasks go on to differ as they do.

    The least T with (t(level) + t(0.8)) s / sqrt(T) at most the gain: the interval then lies above
    0 in four of five cases. None if that is more than `MOST_TASKS`, or there is no gain.
    """
    tasks = np.arange(FEWEST_TASKS, MOST_TASKS + 1.0)
    reach = quantile(level, tasks - 1) + special.stdtrit(tasks - 1.0, _POWER)
    enough = reach * deviation / np.sqrt(tasks) <= gain
    return int(tasks[np.argmax(enough)]) if gain > 0 and enough.any() else None


def items_needed(gain: float, half: float, level: float = 0.95) -> float:
    """How many times as many items or folds would show a gain on these tasks, of a half-width.

    With n times as many the interval is narrower by sqrt(n); it then lies above 0 in four of five
    cases if ``(1 + z(0.8) / z(level)) half / sqrt(n)`` is the gain, with normal quantiles.
    """
    power = 1 + special.ndtri(_POWER) / special.ndtri((1 + level) / 2)
    return float((power * half / gain) ** 2)
