"""Rules that compare a checkpoint with the one before it.

Shapes: C checkpoints in the order of their steps, L layers, B bootstrap draws. Before and now are
the previous checkpoint and the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerrank.operators.ranking.draws import draw_scores
from layerrank.operators.ranking.scores import Array, TaskScores

# Where a metric hardly ever changed, its changes are measured by this share of its usual size.
SMALLEST_SCALE = 1e-3


@dataclass(frozen=True)
class ScoreChange:
    """Score of one layer before and now, 0..1, and the interval of the change.

    `low` and `high` are NaN where there is nothing to draw from.
    """

    before: float
    now: float
    change: float
    low: float
    high: float

    def fell_by_more_than(self, limit: float) -> bool:
        """Whether the score fell by more than `limit`, 0..1, and its interval excludes 0."""
        return -self.change > limit and self.high < 0


@dataclass(frozen=True)
class Jump:
    """A change of a metric in one layer that is unlike the changes before it.

    `usual` is the median of the earlier changes, `deviations` how many median absolute deviations
    of them lie between it and this change. `layer` is the column in the values.
    """

    layer: int
    before: float
    now: float
    usual: float
    deviations: float


def score_change(
    before: Sequence[TaskScores],
    now: Sequence[TaskScores],
    *,
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
) -> ScoreChange | None:
    """Return how the mean score of one layer changed; each task has scores [1] of that layer.

    The interval is the percentile interval of the paired difference over the draws of
    `draw_scores`: fold r or replicate r of a task is the same training or test rows in both
    checkpoints, because both come from the same seed, so what makes it hard for both cancels.

    Only tasks count that have a score in both. None if there is none.
    """
    then = {task.task: task for task in before}
    both = []
    for new in now:
        old = then.get(new.task)
        if old is None or np.isnan([old.score_L[0], new.score_L[0]]).any():
            continue
        # Without resampled scores if those do not match.
        same = old.resampled == new.resampled and old.resampled_LR.shape == new.resampled_LR.shape
        drawn = [each.resampled_LR if same else np.empty((1, 0)) for each in (old, new)]
        score_L = np.concatenate([old.score_L, new.score_L])
        pair_LR = np.concatenate(drawn)
        both.append(TaskScores(new.task, new.task_type, score_L, pair_LR, new.resampled))
    if not both:
        return None
    score_before, score_now = np.mean([task.score_L for task in both], axis=0)
    drawn_LB = draw_scores(both, seed=seed, draws=draws)
    low = high = float("nan")
    if drawn_LB.shape[1]:
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = map(float, np.quantile(drawn_LB[1] - drawn_LB[0], tails))
    change = float(score_now - score_before)
    return ScoreChange(float(score_before), float(score_now), change, low, high)


def has_moved(before: int, now: int, limit: int) -> bool:
    """Whether the recommended layer moved by more than `limit` layers, up or down."""
    return abs(now - before) > limit


def jumps(values_CL: Array, *, limit: float, fewest: int) -> list[Jump]:
    """Return the layers in which the last change of a metric is unlike the earlier ones.

    With the changes d_c = v_{c+1} - v_c between consecutive checkpoints, the last of them is a jump
    if |d_last - median(d)| > limit * MAD, where median and MAD, the median absolute deviation from
    that median, are over the earlier changes (Hampel 1974, *The Influence Curve and its Role in
    Robust Estimation*; Leys et al. 2013, *Detecting Outliers*). The MAD is taken as at least
    SMALLEST_SCALE times the median |v|, so a metric that stood still does not jump by rounding; one
    that was always exactly 0 has no scale, and no jump. For a normal distribution of many changes a
    standard deviation is 1.48 MAD.

    A change is undefined where one of its two values is NaN. A layer needs `fewest` earlier changes
    that are defined, and its last one. Few changes make a small MAD by luck: of normally
    distributed ones a limit of 10 is passed by chance in 1.6 % of the cases after 6 changes and in
    0.16 % after 12, a limit of 20 in 0.006 % after 12 (simulated).
    """
    found = []
    for layer, value_C in enumerate(np.asarray(values_CL, np.float64).T):
        change_C = np.diff(value_C)
        earlier_C = change_C[:-1][~np.isnan(change_C[:-1])]
        if len(earlier_C) < max(fewest, 1):
            continue
        usual = float(np.median(earlier_C))
        floor = SMALLEST_SCALE * float(np.nanmedian(np.abs(value_C[:-1])))
        scale = max(float(np.median(np.abs(earlier_C - usual))), floor)
        distance = abs(float(change_C[-1]) - usual)
        if scale > 0 and distance > limit * scale:  # never of an undefined change
            before, now = float(value_C[-2]), float(value_C[-1])
            found.append(Jump(layer, before, now, usual, distance / scale))
    return found
