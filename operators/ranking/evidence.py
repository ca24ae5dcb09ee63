"""Which layer is best, by how much, and how sure: statistics over the tasks' scores.

A row is a layer, or a candidate: one of several vectors of a layer. Everything is paired: a row's
gain is its score minus that of the baseline, the last layer's first row, in the same task, so what
makes a task hard for every layer cancels. Two things are asked of a gain, and they are told apart:
whether it holds on these tasks, whose items and folds might have been others, and whether it holds
on a new task. How often each interval holds the truth is simulated in tests/bench/coverage.

Shapes: L rows, T tasks, U units of choosing: the tasks, or the folds of a lone task.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from layerrank.operators.ranking import Policy
from layerrank.operators.ranking.choosing import (
    Choose,
    choose,
    even_gains,
    flattery,
    left_out,
    mean_over,
    shortfalls,
)
from layerrank.operators.ranking.intervals import (
    FEWEST_TASKS,
    items_needed,
    noise_within,
    on_these,
    over_tasks,
    reaching,
    sign_flips,
    tasks_needed,
)
from layerrank.operators.ranking.scores import TIE, Array, TaskScores, scored

Mask = npt.NDArray[np.bool_]
# A layer with a score in a smaller share of the tasks is listed, and not recommended.
LEAST_SHARE = 0.5
LeftOut = Literal["tasks", "folds", "items", "nothing"]


@dataclass(frozen=True)
class LayerEvidence:
    """What the scores say of one layer; scores and differences are in units of the score, 0..1.

    - `n_tasks`: in how many tasks both it and the last layer have a score. All that follows is over
      these, and a mean over other tasks than another layer's where the grid has holes.
    - `score`: mean over tasks of the task's main score.
    - `score_low`, `score_high`: its interval on these tasks (`intervals.on_these`).
    - `rank`: 1 + the number of layers with a higher `gain_even`; equal ones share it. None for a
      layer that is not comparable: without a gain, or with scores in fewer than half of the tasks.
    - `gain`: mean over tasks of the score minus the last layer's; the last layer's is 0.
    - `gain_even`: the gain as if it had every task (`choosing.even_gains`); `gain` where it has.
    - `here_low`, `here_high`: the interval of the gain on these tasks, items and folds drawn anew.
    - `gain_low`, `gain_high`: the interval of the gain on a new task (`intervals.over_tasks`), from
      three tasks on. Of the layer that was chosen both reach to the corrected gain (`Choice`).
    - `mean_rank`: mean over tasks of the rank within the task, ties averaged (Demsar 2006,
      *Statistical Comparisons of Classifiers over Multiple Data Sets*, section 3.2.2).
    - `won`: share of tasks in which it scores highest, 0..1; n layers that tie get 1 / n each.
    - `taken`: share of the choices with one task left out (or one fold, of a lone task) that took
      it, 0..1: how firm the choice is.
    - `p_value`, `p_max`: two-sided test by sign flips, and with the chance of one wrong claim among
      all layers held (`intervals.sign_flips`); from six tasks on, NaN for the last layer.
    - `shortfall`: how far it lies behind the best layer, paired, at least 0; of several best layers
      the lowest is meant. `shortfall_se`: the standard error of that (`choosing.shortfalls`).

    What cannot be known from so little is NaN.
    """

    layer: int
    n_tasks: int
    score: float
    score_low: float
    score_high: float
    rank: int | None
    gain: float
    gain_even: float
    here_low: float
    here_high: float
    gain_low: float
    gain_high: float
    mean_rank: float
    won: float
    taken: float
    p_value: float
    p_max: float
    shortfall: float
    shortfall_se: float


@dataclass(frozen=True)
class Choice:
    """The layer that the policy takes, and what choosing so is worth; `row` is its candidate.

    `gain` is the gain after choosing without what judges: on all tasks but one, scored on that one,
    averaged (`choosing.left_out`); on all folds but one of a lone task; less the optimism of its
    resampled items where it has no folds (`choosing.flattery`), which takes off most, not all.
    `left_out` says which, and `naive` is the gain of the layer as it stands, too high after
    choosing it.

    The intervals reach from the lower end of Student's interval around the lower of the two gains
    to the upper end of that around the higher: choosing the best of many layers is paid for.
    `more_tasks` is how many further tasks would show the gain on a new task (None: no number is
    known, as from fewer than three tasks, or none is needed), `more_items` the factor of items or
    folds that would show it here; both if the gain is as corrected.
    """

    layer: int
    row: int
    gain: float
    naive: float
    left_out: LeftOut
    here_low: float
    here_high: float
    low: float
    high: float
    more_tasks: int | None
    more_items: float


@dataclass(frozen=True)
class Evidence:
    """The evidence on every layer, in ascending order of layers, and the choice by a policy.

    `candidates` has every row that was weighed, and `layers` the best of each layer: there ranks
    and wins are among the layers. `rows` says which candidate that is.
    `level` is that of the intervals. `oracle` is the mean over tasks of the task's highest score:
    what choosing a layer per task would reach, over the best layer's tasks. `tasks` are those that
    count, by name, and `types` how many there are of each type. `without_last` have no score in the
    last layer and cannot count, `unscored` in no layer. `choice` is None if nothing is comparable.
    """

    level: float
    policy: Policy
    layers: list[LayerEvidence]
    candidates: list[LayerEvidence]
    rows: list[int]
    choice: Choice | None
    oracle: float
    tasks: list[str]
    types: dict[str, int]
    without_last: list[str]
    unscored: list[str]

    @property
    def last(self) -> LayerEvidence:
        """The layer with the largest number."""
        return self.layers[-1]

    @property
    def baseline(self) -> LayerEvidence:
        """The last layer as it is used without advice, which every gain is over."""
        return self.candidates[_baseline([row.layer for row in self.candidates])]

    @property
    def best(self) -> LayerEvidence | None:
        """The layer with the highest gain, the lowest of equals; None if none is comparable."""
        return next((row for row in self.layers if row.rank == 1), None)

    @property
    def thin(self) -> list[LayerEvidence]:
        """The layers with scores in fewer than half of the tasks that count, but with some."""
        return [row for row in self.layers if self.tasks and row.n_tasks and row.rank is None]

    def row(self, layer: int) -> LayerEvidence:
        """Return the evidence on a layer."""
        return next(row for row in self.layers if row.layer == layer)


def weigh(
    tasks: Sequence[TaskScores],
    *,
    layers: Sequence[int],
    cost_L: Sequence[float] | Array | None = None,
    policy: Policy = "best",
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
    keep_last: bool = False,
) -> Evidence:
    """Weigh the scores of every layer and choose one; LayerEvidence and Choice say what is found.

    `layers` are the numbers of the layers that the tasks' scores are of, ascending; a layer stands
    there for each of its candidates, and the first of the last layer is the baseline. `cost_L` are
    their costs, by default by depth. A task counts if the baseline has a score in it. A row may
    lack tasks: the pairs that there are are used, and with fewer than half of the tasks it is not
    comparable. `draws` limits the sign flips. With `keep_last` the baseline stands for the last
    layer, whatever its other candidates gain. The same answer for any order of tasks.

    ValueError if layers are not ascending or do not fit the scores, and for settings out of range.
    """
    if not layers:
        raise ValueError("layers: there are none to weigh")
    if any(a > b for a, b in pairwise(layers)):
        raise ValueError(f"layers: {[*layers]} are not in ascending order")
    for task in tasks:
        if len(task.score_L) != len(layers):
            raise ValueError(
                f"task {task.task}: {len(task.score_L)} scores for {len(layers)} layers"
            )
    if draws < 2 or not 0 < level < 1:  # noqa: PLR2004
        raise ValueError(f"draws must be at least 2 and level in (0, 1), got {draws} and {level}")
    cost_L = np.asarray(layers) / max(layers[-1], 1) if cost_L is None else cost_L
    with_scores = scored(tasks)
    base = _baseline(layers)
    counted = [task for task in with_scores if not np.isnan(task.score_L[base])]
    compared = counted or with_scores
    score_LT = np.array([task.score_L for task in compared]).reshape(-1, len(layers)).T
    gain_LT = score_LT - score_LT[base]
    # Without the last layer there is no gain, only scores.
    known_LT = ~np.isnan(gain_LT if counted else score_LT)
    n_tasks_L = known_LT.sum(axis=1)
    thin_L = n_tasks_L < LEAST_SHARE * len(compared)
    rows = _rows(compared, layers, score_LT, gain_LT, known_LT, thin_L, (seed, draws, level))
    usual_LT = np.where(thin_L[:, None], np.nan, gain_LT)
    choice = None
    if counted:
        rule = partial(choose, cost_L=cost_L, policy=policy)
        choice, taken_L = _choice(counted, usual_LT, rows, rule, level)
        rows = [replace(row, taken=float(t)) for row, t in zip(rows, taken_L, strict=True)]
        rows[choice.row] = replace(
            rows[choice.row],
            here_low=choice.here_low,
            here_high=choice.here_high,
            gain_low=choice.low,
            gain_high=choice.high,
        )
    best = next((at for at, row in enumerate(rows) if row.rank == 1), None)
    oracle = float("nan")
    if best is not None:
        oracle = float(np.nanmax(score_LT[~thin_L][:, known_LT[best]], axis=0).mean())
    best_of = _best_of_layers(rows)
    best_of[-1] = base if keep_last else best_of[-1]
    return Evidence(
        level=level,
        policy=policy,
        layers=_among_layers(rows, best_of, np.where(known_LT, score_LT, np.nan)),
        candidates=rows,
        rows=best_of,
        choice=choice,
        oracle=oracle,
        tasks=[task.task for task in counted],
        types=dict(Counter(task.task_type for task in counted)),
        without_last=[task.task for task in with_scores if task not in counted],
        unscored=sorted(task.task for task in tasks if np.all(np.isnan(task.score_L))),
    )


def _rows(
    tasks: Sequence[TaskScores],
    layers: Sequence[int],
    score_LT: Array,
    gain_LT: Array,
    known_LT: Mask,
    thin_L: Mask,
    how: tuple[int, int, float],
) -> list[LayerEvidence]:
    """Return what is known of every layer by itself."""
    seed, draws, level = how
    score_LT = np.where(known_LT, score_LT, np.nan)
    gain_L = mean_over(gain_LT)
    score_L = mean_over(score_LT)
    nan_L = np.full(len(layers), np.nan)
    spans = dict.fromkeys(("score_low", "score_high", "here_low", "here_high"), nan_L)
    p_L = p_max_L = gain_low_L = gain_high_L = shortfall_L = error_L = nan_L
    rank_L: list[int | None] = [None] * len(layers)
    base = _baseline(layers)
    others_L = np.arange(len(layers)) != base
    if tasks:
        spans["score_low"], spans["score_high"] = on_these(
            score_L, known_LT, *noise_within(tasks), level
        )
        spans["here_low"], spans["here_high"] = on_these(
            gain_L, known_LT, *noise_within(tasks, base=base), level
        )
        gain_low_L, gain_high_L = over_tasks(gain_LT, level)
        p_L, p_max_L = sign_flips(gain_LT, seed=seed, draws=draws)
    usual_L = even_gains(np.where(thin_L[:, None], np.nan, gain_LT)) if tasks else nan_L
    if not np.isnan(usual_L).all():
        above_LL = usual_L[None] > usual_L[:, None] + TIE
        rank_L = [
            None if np.isnan(gain) else int(1 + above_L.sum())
            for gain, above_L in zip(usual_L, above_LL, strict=True)
        ]
        shortfall_L, error_L = shortfalls(gain_LT, np.array(rank_L.index(1)))
        if len(tasks) == 1:
            error_L = _noise(tasks[0], rank_L.index(1))
    columns = {
        **spans,
        "score": score_L,
        "gain": gain_L,
        "gain_even": usual_L,
        "gain_low": np.where(others_L, gain_low_L, np.nan),
        "gain_high": np.where(others_L, gain_high_L, np.nan),
        "mean_rank": _mean_ranks(score_LT),
        "won": _wins(score_LT),
        "taken": nan_L,
        "p_value": p_L,
        "p_max": p_max_L,
        "shortfall": shortfall_L,
        "shortfall_se": error_L,
    }
    n_tasks_L = known_LT.sum(axis=1)
    return [
        LayerEvidence(
            layer=int(layer),
            n_tasks=int(n_tasks_L[row]),
            rank=rank_L[row],
            **{name: float(values_L[row]) for name, values_L in columns.items()},
        )
        for row, layer in enumerate(layers)
    ]


def _baseline(layers: Sequence[int]) -> int:
    """Return the row that every gain is over."""
    return [*layers].index(layers[-1])


def _best_of_layers(rows: Sequence[LayerEvidence]) -> list[int]:
    """Return the row that gains most of each layer, of equal ones, or without any, the first."""
    found: dict[int, int] = {}
    for at, row in enumerate(rows):
        best = found.setdefault(row.layer, at)
        least = rows[best].gain_even
        if row.gain_even > (-np.inf if np.isnan(least) else least + TIE):
            found[row.layer] = at
    return [*found.values()]


def _among_layers(
    rows: Sequence[LayerEvidence], best_of: Sequence[int], score_LT: Array
) -> list[LayerEvidence]:
    """Return the best row of every layer, ranked among these."""
    if len(best_of) == len(rows):
        return [*rows]
    gain_K = np.array([rows[at].gain_even for at in best_of])
    score_KT = score_LT[[*best_of]]
    taken: dict[int, float] = {}
    for row in rows:
        taken[row.layer] = taken.get(row.layer, 0.0) + row.taken
    columns = zip(best_of, gain_K, _mean_ranks(score_KT), _wins(score_KT), strict=True)
    return [
        replace(
            rows[at],
            rank=None if np.isnan(gain) else int(1 + (gain_K > gain + TIE).sum()),
            mean_rank=float(mean_rank),
            won=float(won),
            taken=taken[rows[at].layer],
        )
        for at, gain, mean_rank, won in columns
    ]


def _choice(
    tasks: Sequence[TaskScores],
    gain_LT: Array,
    rows: Sequence[LayerEvidence],
    rule: Choose,
    level: float,
) -> tuple[Choice, Array]:
    """Return the choice by a rule, and the share of the choices without a unit by layer."""
    lone, base = tasks[0], _baseline([row.layer for row in rows])
    left: LeftOut
    units_LU, left = gain_LT, "tasks"
    if len(tasks) == 1 and lone.resampled == "folds" and lone.cells.shape[1] > 1:
        units_LU, left = np.where(np.isnan(gain_LT), np.nan, lone.cells - lone.cells[base]), "folds"
    taken_L = np.full(len(rows), np.nan)
    at, corrected = int(rule(units_LU)), float("nan")
    if units_LU.shape[1] > 1:
        picked_U, rows_U = left_out(units_LU, rule)
        corrected = float(mean_over(picked_U))
        taken_L = np.bincount(rows_U, minlength=len(rows)) / len(rows_U)
    elif lone.resampled == "replicates" and lone.cells.shape[1]:
        left = "items"
        resampled_LR = np.where(np.isnan(gain_LT), np.nan, lone.cells - lone.cells[base])
        at = int(rule(gain_LT, error_L=_noise(lone, at)))
        corrected = rows[at].gain - flattery(gain_LT[:, 0], resampled_LR, rule)
    else:
        left = "nothing"
    row = rows[at]
    lows, highs = np.array([row.here_low, row.gain_low]), np.array([row.here_high, row.gain_high])
    lows, highs = reaching(lows, highs, row.gain, corrected)
    (here_low, low), (here_high, high) = lows.tolist(), highs.tolist()
    more_tasks, more_items = None, float("nan")
    if at != base and row.n_tasks >= FEWEST_TASKS and not low > 0:
        deviation = float(np.nanstd(gain_LT[at], ddof=1))
        needed = tasks_needed(corrected, deviation, level)
        more_tasks = None if needed is None else max(needed - row.n_tasks, 1)
    if here_low <= 0 < corrected:
        more_items = items_needed(corrected, row.gain - here_low, level)
    return Choice(
        row.layer,
        at,
        corrected,
        row.gain,
        left,
        here_low,
        here_high,
        low,
        high,
        more_tasks,
        more_items,
    ), taken_L


def _noise(task: TaskScores, best: int) -> Array:
    """Standard error of the difference to a layer, paired over items or folds of a task, [L]."""
    variance_LT, freedom_LT = noise_within([task], base=best)
    return np.sqrt(variance_LT * freedom_LT / (freedom_LT + 1))[:, 0]  # divisor R, as of tasks


def _mean_ranks(score_LT: Array) -> Array:
    """Mean over tasks of 1 + layers that score more + half the other layers that score the same."""
    difference_LLT = score_LT[None] - score_LT[:, None]
    better_LT = (difference_LLT > TIE).sum(axis=1)
    same_LT = (np.abs(difference_LLT) <= TIE).sum(axis=1)
    return mean_over(np.where(np.isnan(score_LT), np.nan, better_LT + (same_LT + 1) / 2))


def _wins(score_LT: Array) -> Array:
    """Share of a layer's tasks in which it has the highest score of those that are known."""
    found_LT = np.where(np.isnan(score_LT), -np.inf, score_LT)
    won_LT = found_LT >= found_LT.max(axis=0, initial=-np.inf) - TIE
    share_LT = won_LT / won_LT.sum(axis=0)
    return mean_over(np.where(np.isnan(score_LT), np.nan, share_LT))


@dataclass(frozen=True)
class Overtaking:
    """Since when a layer scores above the last one, as indices of checkpoints; None: it does not.

    - `stays_above`: the first checkpoint from which on the layer's gain over the last layer is
      above 0 in every checkpoint, the newest among them.
    - `clearly_above`: the first checkpoint at which the interval of the gain lies above 0. It may
      be earlier, if the layer fell behind again, or later, or be there alone.
    """

    layer: int
    stays_above: int | None
    clearly_above: int | None


def overtakings(
    gain_SL: Sequence[Sequence[float]] | Array,
    low_SL: Sequence[Sequence[float]] | Array,
    *,
    layers: Sequence[int],
) -> list[Overtaking]:
    """Return when, over S checkpoints from the oldest to the newest, each overtook the last layer.

    `gain_SL` is each layer's score minus the last layer's at the same checkpoint, `low_SL` the
    lower end of its interval. A gain that is unknown (NaN) is not above 0, so it breaks a run of
    checkpoints; of a tie the same holds. Each comparison is one layer's own at one checkpoint: with
    many of both, some intervals lie above 0 by chance. ValueError if the shapes differ.

    >>> overtakings([[-0.1, 0.0], [0.2, 0.0], [0.3, 0.0]], [[-0.2, 0], [-0.1, 0], [0.1, 0]],
    ...             layers=[0, 1])[0]
    Overtaking(layer=0, stays_above=1, clearly_above=2)
    """
    gain_SL, low_SL = np.asarray(gain_SL, np.float64), np.asarray(low_SL, np.float64)
    if gain_SL.shape != low_SL.shape or gain_SL.shape[1:] != (len(layers),):
        raise ValueError(
            f"expected a gain and its lower end for {len(layers)} layers at every checkpoint, got "
            f"{gain_SL.shape} and {low_SL.shape}"
        )
    above_SL, clear_SL = gain_SL > TIE, low_SL > TIE
    # Counted from the newest back: whether the layer is above there and everywhere later.
    staying_SL = np.logical_and.accumulate(above_SL[::-1], axis=0)[::-1]
    first = [
        [int(np.argmax(true_S)) if true_S.any() else None for true_S in true_SL.T]
        for true_SL in (staying_SL, clear_SL)
    ]
    return [Overtaking(*each) for each in zip(map(int, layers), *first, strict=True)]
