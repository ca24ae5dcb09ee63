"""Which layer is best, by how much, and how sure: statistics over the tasks' scores and draws.

A bootstrap draw of the layers' mean score draws tasks first, then what varies within a task.

Shapes: L layers, T tasks, C cells (one fold or replicate of one task, or its only score), B draws,
S slots of a draw (as many as tasks, each filled with a task drawn with replacement), K cells that
a slot takes, N columns to compare the layers in (tasks or draws).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from operators.ranking.scores import TIE, Array, TaskScores, scored

Counts = npt.NDArray[np.int64]

# Random numbers per chunk of draws: 4 MiB as float64, whatever the number of tasks and folds.
CHUNK_NUMBERS = 2**19


@dataclass(frozen=True)
class LayerEvidence:
    """What the scores say of one layer; scores and differences are in units of the score, 0..1.

    - `score`: mean over tasks of the task's main score; NaN if a task that counts lacks one.
    - `score_low`, `score_high`: percentile bootstrap interval of it, the (1 - level) / 2 and
      (1 + level) / 2 quantiles of the draws (Efron and Tibshirani 1993, chapter 13).
    - `rank`: 1 + the number of layers that score more; equal scores share it, a layer without a
      score comes after all that have one.
    - `gain`, `gain_low`, `gain_high`: score minus the last layer's, with its interval. Both layers
      see the same draw, so what makes a task hard for every layer cancels. The last layer's is 0.
    - `mean_rank`: mean over tasks of the rank within the task, ties averaged (Demsar 2006,
      *Statistical Comparisons of Classifiers over Multiple Data Sets*, section 3.2.2).
    - `won`: share of tasks in which it scores highest, 0..1; n layers that tie get 1 / n each.
    - `p_value`: two-sided paired bootstrap test of gain = 0 (`p_values`); NaN for the last layer,
      which is compared with nothing.
    - `p_holm`: the p-value corrected for one test per other layer (`holm`).
    - `p_best`: share of draws in which it has the highest mean score, 0..1, ties split; sums to 1
      over layers. A bootstrap frequency, not a posterior probability.
    - `shortfall`: the best layer's score minus this one's, at least 0; of several best layers the
      lowest is meant.
    - `shortfall_se`: standard error of that difference, the standard deviation of the paired
      difference over the draws (Efron and Tibshirani 1993, algorithm 6.1).

    Where there is nothing to draw from, everything that needs draws is NaN.
    """

    layer: int
    score: float
    score_low: float
    score_high: float
    rank: int
    gain: float
    gain_low: float
    gain_high: float
    mean_rank: float
    won: float
    p_value: float
    p_holm: float
    p_best: float
    shortfall: float
    shortfall_se: float


@dataclass(frozen=True)
class Evidence:
    """The evidence on every layer, in the order the layers were given.

    `level` is that of the intervals. `oracle` is the mean over tasks of the task's highest score:
    what choosing a layer per task would reach, NaN without a comparable layer. `tasks` are those
    that count, by name, `unscored` those without a score in any layer.
    """

    level: float
    layers: list[LayerEvidence]
    oracle: float
    tasks: list[str]
    unscored: list[str]

    @property
    def last(self) -> LayerEvidence:
        """The layer with the largest number, the baseline of every gain."""
        return max(self.layers, key=lambda row: row.layer)

    @property
    def best(self) -> LayerEvidence | None:
        """The layer with the highest score, the lowest of equals; None if no layer has one."""
        best = [row for row in self.layers if row.rank == 1 and not np.isnan(row.score)]
        return min(best, key=lambda row: row.layer, default=None)


def weigh(
    tasks: Sequence[TaskScores],
    *,
    layers: Sequence[int],
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
) -> Evidence:
    """Weigh the scores of every layer; `draw_scores` says what is drawn, LayerEvidence what for.

    `layers` are the numbers of the layers that the tasks' scores are of. A task without any score
    does not count. A layer that lacks a score in a task that counts is not comparable: it has no
    score, and no part in ranks, wins and the oracle. The same answer for any order of tasks.

    Limits: each interval is one layer's own, not corrected for having picked the best of L, so the
    best layer's gain and every shortfall are a little too large. Few tasks make intervals too
    narrow and p-values too small: on simulated tasks of one score each the 95 % interval of a gain
    covers it in 73 % of cases for 3 tasks, 83 % for 5, 90 % for 10 and 94 % for 32. Folds of one
    task share their test rows, so they show the noise of the training rows alone. The smallest
    p-value is 2 / (draws + 1): 24 comparisons need 960 draws to reach 0.05 after correction.

    ValueError if layers are repeated or do not fit the scores, and for settings out of range.
    """
    if not layers:
        raise ValueError("layers: there are none to weigh")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers: {sorted(layers)} has repeated numbers")
    for task in tasks:
        if len(task.score_L) != len(layers):
            raise ValueError(
                f"task {task.task}: {len(task.score_L)} scores for {len(layers)} layers"
            )
    if draws < 2 or not 0 < level < 1:  # noqa: PLR2004
        raise ValueError(f"draws must be at least 2 and level in (0, 1), got {draws} and {level}")
    counted = scored(tasks)
    # Where there is no task or no draw, NaN makes NaN of everything that needs one.
    score_LT, drawn_LB = np.full((2, len(layers), 2), np.nan)
    if counted:
        score_LT = np.array([task.score_L for task in counted]).T
        score_LT[np.isnan(score_LT).any(axis=1)] = np.nan
        found_LB = draw_scores(counted, seed=seed, draws=draws)
        drawn_LB = found_LB if found_LB.shape[1] else drawn_LB
    score_L, last = score_LT.mean(axis=1), int(np.argmax(layers))
    ranked_L = np.where(np.isnan(score_L), -np.inf, score_L)
    rank_L = 1 + (ranked_L[None] > ranked_L[:, None] + TIE).sum(axis=1)
    best = min(range(len(layers)), key=lambda row: (rank_L[row], layers[row]))
    gain_LB = drawn_LB - drawn_LB[last]
    tails = [(1 - level) / 2, (1 + level) / 2]
    score_low_L, score_high_L = np.quantile(drawn_LB, tails, axis=1)
    gain_low_L, gain_high_L = np.quantile(gain_LB, tails, axis=1)
    p_L = p_values(gain_LB)
    p_L[last] = np.nan
    columns = {
        "score": score_L,
        "score_low": score_low_L,
        "score_high": score_high_L,
        # Averaged task by task: layers with the same scores then differ by exactly 0.
        "gain": (score_LT - score_LT[last]).mean(axis=1),
        "gain_low": gain_low_L,
        "gain_high": gain_high_L,
        "mean_rank": _mean_ranks(score_LT),
        "won": _wins(score_LT),
        "p_value": p_L,
        "p_holm": holm(p_L),
        "p_best": _wins(drawn_LB),
        "shortfall": np.maximum((score_LT[best] - score_LT).mean(axis=1), 0.0),
        "shortfall_se": (drawn_LB[best] - drawn_LB).std(axis=1, ddof=1),
    }
    comparable_LT = score_LT[~np.isnan(score_L)]
    return Evidence(
        level=level,
        layers=[
            LayerEvidence(
                layer=int(layer),
                rank=int(rank_L[row]),
                **{name: float(values_L[row]) for name, values_L in columns.items()},
            )
            for row, layer in enumerate(layers)
        ],
        oracle=float(comparable_LT.max(axis=0).mean()) if comparable_LT.size else float("nan"),
        tasks=[task.task for task in counted],
        unscored=sorted(task.task for task in tasks if np.all(np.isnan(task.score_L))),
    )


def _mean_ranks(score_LT: Array) -> Array:
    """Mean over tasks of 1 + layers that score more + half the other layers that score the same."""
    difference_LLT = score_LT[None] - score_LT[:, None]
    better_LT = (difference_LLT > TIE).sum(axis=1)
    same_LT = (np.abs(difference_LLT) <= TIE).sum(axis=1)
    rank_LT: Array = np.where(np.isnan(score_LT), np.nan, better_LT + (same_LT + 1) / 2)
    mean_L: Array = rank_LT.mean(axis=1)
    return mean_L


def _wins(score_LN: Array) -> Array:
    """Share of the columns in which a layer has the highest score, ties split."""
    unscored_L = np.asarray(np.isnan(score_LN).any(axis=1))
    score_LN = np.where(unscored_L[:, None], -np.inf, score_LN)
    won_LN = (score_LN >= score_LN.max(axis=0) - TIE).astype(np.float64)
    return np.where(unscored_L, np.nan, (won_LN / won_LN.sum(axis=0)).mean(axis=1))


def p_values(gain_LB: Array) -> Array:
    """Two-sided paired bootstrap test of gain = 0 from the draws of the gain, 0..1, [L].

    2 min(a, b), at most 1, with a = (draws with gain <= 0, plus 1) / (draws + 1) and b the same for
    gain >= 0 (Davison and Hinkley 1997, *Bootstrap Methods and their Application*, chapter 4). It
    is the inverse of the percentile interval: below 1 - level about when that interval leaves 0.
    At least 2 / (draws + 1); NaN where a draw is.
    """
    not_above_L = (gain_LB <= TIE).sum(axis=1)
    not_below_L = (gain_LB >= -TIE).sum(axis=1)
    p_L = 2 * (np.minimum(not_above_L, not_below_L) + 1) / (gain_LB.shape[1] + 1)
    return np.where(np.isnan(gain_LB).any(axis=1), np.nan, np.minimum(p_L, 1.0))


def holm(p_L: Array) -> Array:
    """Return p-values corrected for testing several hypotheses at once, each 0..1; NaN stays NaN.

    The i-th smallest of m becomes the largest of min(1, (m - j + 1) p_j) over j <= i. Rejecting
    what is below alpha then rejects any true hypothesis with probability alpha at most, however
    the tests depend on each other (Holm 1979, *A Simple Sequentially Rejective Multiple Test
    Procedure*, Scandinavian Journal of Statistics 6).
    """
    corrected_L = np.full(len(p_L), np.nan)
    order = np.argsort(p_L)[: np.count_nonzero(~np.isnan(p_L))]
    factors = np.arange(len(order), 0, -1)
    corrected_L[order] = np.minimum(np.maximum.accumulate(factors * p_L[order]), 1.0)
    return corrected_L


def draw_scores(tasks: Sequence[TaskScores], *, seed: int = 0, draws: int = 10_000) -> Array:
    """Mean score over tasks of every layer in every draw, [L, B]; all layers see the same draws.

    The bootstrap in two stages (Efron and Tibshirani 1993, *An Introduction to the Bootstrap*;
    hierarchical data in Davison and Hinkley 1997, *Bootstrap Methods and their Application*,
    chapter 3). A draw takes as many tasks as there are, with replacement, and for each as many of
    its folds, with replacement, or one of its replicates. With one task only its folds or
    replicates vary; where every task has a single score only tasks do. With nothing to draw from,
    one score of one task or none, there are no draws: B = 0.

    The draws depend on the seed and the tasks, not on the order of tasks or layers. A task without
    any score does not count; a layer without a score in a task that counts is NaN in every draw. A
    replicate that is undefined in a scored layer is left out in all layers of its task.
    """
    counted = scored(tasks)
    if not counted:
        return np.empty((len(tasks[0].score_L) if tasks else 0, 0))
    cells = [_cells(task) for task in counted]
    n_cells_T = np.array([each.shape[1] for each in cells])
    n_taken_T = np.where([task.resampled == "replicates" for task in counted], 1, n_cells_T)
    cells_CL = np.ascontiguousarray(np.concatenate(cells, axis=1).T)
    if len(cells_CL) == 1:
        return np.empty((cells_CL.shape[1], 0))
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_NUMBERS // int(len(counted) * n_taken_T.max()))
    drawn_BL = np.concatenate(
        [
            _weights(n_cells_T, n_taken_T, min(chunk, draws - start), generator) @ cells_CL
            for start in range(0, draws, chunk)
        ]
    )
    drawn_BL[:, np.isnan(cells_CL).any(axis=0)] = np.nan
    return np.ascontiguousarray(drawn_BL.T)


def _cells(task: TaskScores) -> Array:
    """Return what a draw takes from a task, [L, cells of the task], at least one."""
    scored_L = ~np.isnan(task.score_L)
    cells_LR = task.resampled_LR[:, ~np.isnan(task.resampled_LR[scored_L]).any(axis=0)]
    if not cells_LR.shape[1]:
        return task.score_L[:, None]
    return np.where(scored_L[:, None], cells_LR, np.nan)


def _weights(
    n_cells_T: Counts, n_taken_T: Counts, n_draws: int, generator: np.random.Generator
) -> csr_array:
    """Weight of the drawn cells in every draw, sparse [B, C]; a draw's weights sum to 1.

    A slot of a draw holds a task; each of the k cells it takes adds 1 / (k * number of slots). A
    task drawn twice draws its cells anew.
    """
    n_tasks = len(n_cells_T)
    task_BS = generator.integers(n_tasks, size=(n_draws, n_tasks))
    uniform_BSK = generator.random((n_draws, n_tasks, int(n_taken_T.max())))
    nth_BSK = (uniform_BSK * n_cells_T[task_BS][..., None]).astype(np.int64)
    cell_BSK = (np.cumsum(n_cells_T) - n_cells_T)[task_BS][..., None] + nth_BSK
    # A task that takes fewer cells than another leaves the rest of its slot without weight.
    n_taken_BS1 = n_taken_T[task_BS][..., None]
    taken_BSK = np.arange(uniform_BSK.shape[2]) < n_taken_BS1
    weight_BSK = np.broadcast_to(1 / (n_taken_BS1 * n_tasks), taken_BSK.shape)
    starts = np.concatenate([[0], np.cumsum(taken_BSK.sum(axis=(1, 2)))])
    shape = (n_draws, int(n_cells_T.sum()))
    return csr_array((weight_BSK[taken_BSK], cell_BSK[taken_BSK], starts), shape=shape)


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
