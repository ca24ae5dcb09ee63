"""Which layer is best, by how much, and how sure: statistics over the probes' scores.

Shapes: L layers, T tasks, F folds, C cells (one fold of one task), B bootstrap draws, S slots of a
draw (as many as tasks, each filled with a task drawn with replacement), Z the two quantities that
are averaged: score and gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Random numbers per chunk of draws: 4 MiB as float64, whatever the number of tasks and folds.
CHUNK_NUMBERS = 2**19

# Scores closer than this share a rank: the sum's rounding is not a difference between layers.
TIE = 1e-12


@dataclass(frozen=True)
class LayerRank:
    """One layer's place. Scores and gains are in the metric's unit, mostly 0..1.

    `gain` is the score minus the last layer's. `rank` 1 is the best, equal scores share the lower
    number; a layer without a score (NaN) comes after all that have one.
    """

    layer: int
    score: float
    rank: int
    gain: float
    gain_low: float
    gain_high: float
    score_low: float
    score_high: float


@dataclass(frozen=True)
class Verdict:
    """What to do: the layer to use and one sentence that says why, in points (score times 100)."""

    kind: Literal["use_layer", "keep_last", "not_enough_evidence"]
    layer: int
    sentence: str


def rank_layers(
    scores_LTF: Array,
    *,
    layers: Sequence[int],
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
) -> list[LayerRank]:
    """Mean score, rank and gain over the last layer of every layer, with bootstrap intervals.

    score_l = mean over tasks of the mean over the task's folds of score_ltf; gain_l = score_l -
    score_last, last being the largest layer number. `scores_LTF` is padded with NaN where a task
    has fewer folds; a task that is all NaN does not count. A layer that lacks a fold which another
    layer has is not comparable: its score is NaN. Results come in the order of `layers`.

    Intervals: the percentile bootstrap (Efron and Tibshirani 1993, *An Introduction to the
    Bootstrap*, chapter 13) in two stages (hierarchical data in Davison and Hinkley 1997, chapter
    3). A draw takes as many tasks as there are, with replacement, and for each as many of its
    folds, with replacement; the interval runs from the (1 - level) / 2 to the (1 + level) / 2
    quantile of the draws. All layers see the same draw, so what makes a task hard for every layer
    cancels in the gain. With one task only folds vary, with one fold per task only tasks; with one
    of both there is nothing to draw and the bounds are NaN.

    Limits: each layer has its own interval, not corrected for having picked the best of L, so
    the best layer's gain is a little optimistic. Few tasks make it coarse and too narrow: three
    tasks give ten distinct draws. Folds of one task share their test rows, so they show the noise
    of the training rows and not that of the test rows.
    """
    scores_LTF = np.asarray(scores_LTF, dtype=np.float64)
    _check(scores_LTF, layers, draws, level)
    scored_TF: npt.NDArray[np.bool_] = np.any(~np.isnan(scores_LTF), axis=0)
    n_folds_T = scored_TF.sum(axis=1)[scored_TF.any(axis=1)]
    cells_LC = scores_LTF[:, scored_TF]
    # The gain is averaged cell by cell: layers with the same scores then differ by exactly 0.
    gains_LC = cells_LC - cells_LC[int(np.argmax(layers))]
    cells_ZLC = np.stack([cells_LC, gains_LC])

    mean_ZL = np.full(cells_ZLC.shape[:2], np.nan)
    if len(n_folds_T):
        mean_ZL = cells_ZLC @ np.repeat(1 / (n_folds_T * len(n_folds_T)), n_folds_T)
    low_ZL, high_ZL = _percentile_interval(cells_ZLC, n_folds_T, seed, draws, level)
    rank_L = _ranks(mean_ZL[0])
    return [
        LayerRank(
            layer=int(layer),
            score=float(mean_ZL[0, row]),
            rank=int(rank_L[row]),
            gain=float(mean_ZL[1, row]),
            gain_low=float(low_ZL[1, row]),
            gain_high=float(high_ZL[1, row]),
            score_low=float(low_ZL[0, row]),
            score_high=float(high_ZL[0, row]),
        )
        for row, layer in enumerate(layers)
    ]


def verdict(ranking: Sequence[LayerRank], *, level: float = 0.95) -> Verdict:
    """Turn a ranking into advice; `level` is the one its intervals were made with.

    The last layer is kept if none scores more. Another layer is advised only if the interval of
    its gain lies above 0; otherwise the evidence is not enough and the last layer, which everybody
    uses today, stays the advice. Of several equally good layers the lowest counts, as the cheapest.
    """
    if not ranking:
        raise ValueError("verdict: the ranking has no layers")
    last = max(ranking, key=lambda row: row.layer)
    scored = [row for row in ranking if not np.isnan(row.score)]
    if not scored:
        return _unsure(last, "no labelled task was scored.")
    if np.isnan(last.score):
        return _unsure(last, f"the last layer ({last.layer}) was not scored on every task.")
    if last.rank == 1:
        return Verdict("keep_last", last.layer, _keep_last_sentence(last, scored, level))

    best = min((row for row in scored if row.rank == 1), key=lambda row: row.layer)
    gain = f"{_points(best.gain)} points more than the last layer"
    if best.gain_low > 0:
        sentence = f"Use layer {best.layer}: it scores {gain} ({_interval(best, level)})."
        return Verdict("use_layer", best.layer, sentence)
    leads = f"layer {best.layer} scores {gain}"
    if np.isnan(best.gain_low):
        return _unsure(last, f"{leads}, but one fold of one task gives no interval.")
    return _unsure(last, f"{leads}, but the {_interval(best, level)} includes 0.")


def _check(scores_LTF: Array, layers: Sequence[int], draws: int, level: float) -> None:
    if scores_LTF.ndim != 3 or not len(layers) or len(layers) != len(scores_LTF):  # noqa: PLR2004
        raise ValueError(
            f"scores: expected [layers, tasks, folds] for {len(layers)} layers, "
            f"got {scores_LTF.shape}"
        )
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers: {sorted(layers)} has repeated numbers")
    n_infinite = np.count_nonzero(np.isinf(scores_LTF))
    if n_infinite:
        raise ValueError(f"scores: {n_infinite} of {scores_LTF.size} are infinite")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be at least 1 and level in (0, 1), got {draws} and {level}")


def _ranks(score_L: Array) -> npt.NDArray[np.int64]:
    """Rank r = 1 + the number of layers that score more; all scored layers precede a NaN."""
    score_L = np.where(np.isnan(score_L), -np.inf, score_L)
    better_LL = score_L[None, :] > score_L[:, None] + TIE
    rank_L: npt.NDArray[np.int64] = 1 + better_LL.sum(axis=1, dtype=np.int64)
    return rank_L


def _percentile_interval(
    cells_ZLC: Array, n_folds_T: npt.NDArray[np.int64], seed: int, draws: int, level: float
) -> tuple[Array, Array]:
    """Lower and upper bound of the weighted means, NaN where there is nothing to draw from."""
    if n_folds_T.sum() <= 1:
        undefined_ZL = np.full(cells_ZLC.shape[:2], np.nan)
        return undefined_ZL, undefined_ZL
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_NUMBERS // int(len(n_folds_T) * n_folds_T.max()))
    mean_ZLB = np.concatenate(
        [
            cells_ZLC @ _draw_weights(n_folds_T, min(chunk, draws - start), generator).T
            for start in range(0, draws, chunk)
        ],
        axis=2,
    )
    low_ZL, high_ZL = np.quantile(mean_ZLB, [(1 - level) / 2, (1 + level) / 2], axis=2)
    return low_ZL, high_ZL


def _draw_weights(
    n_folds_T: npt.NDArray[np.int64], n_draws: int, generator: np.random.Generator
) -> Array:
    """Weight of every cell in every draw, [B, C]; a draw's weights sum to 1.

    A slot of a draw holds a task; each of its n folds drawn adds 1 / (n * number of slots). A task
    drawn twice draws its folds anew.
    """
    n_tasks, n_cells = len(n_folds_T), int(n_folds_T.sum())
    task_BS = generator.integers(n_tasks, size=(n_draws, n_tasks))
    n_folds_BS1 = n_folds_T[task_BS][..., None]
    uniform_BSF = generator.random((n_draws, n_tasks, int(n_folds_T.max())))
    fold_BSF = (uniform_BSF * n_folds_BS1).astype(np.int64)
    # A task with fewer folds than the longest one leaves the rest of its slot without weight.
    drawn_BSF = np.arange(uniform_BSF.shape[2]) < n_folds_BS1
    weight_BSF = drawn_BSF / (n_folds_BS1 * n_tasks)

    first_cell_T = np.cumsum(n_folds_T) - n_folds_T
    first_of_draw_B11 = np.arange(n_draws)[:, None, None] * n_cells
    cell_BSF = first_of_draw_B11 + first_cell_T[task_BS][..., None] + fold_BSF
    weights = np.bincount(cell_BSF.ravel(), weight_BSF.ravel(), minlength=n_draws * n_cells)
    return weights.astype(np.float64, copy=False).reshape(n_draws, n_cells)


def _unsure(last: LayerRank, reason: str) -> Verdict:
    return Verdict("not_enough_evidence", last.layer, f"Not enough evidence: {reason}")


def _keep_last_sentence(last: LayerRank, scored: Sequence[LayerRank], level: float) -> str:
    keep = f"Keep the last layer ({last.layer}): no other layer scores more"
    others = [row for row in scored if row.layer != last.layer]
    if not others:
        return f"{keep}."
    nearest = max(others, key=lambda row: row.score)
    interval = "" if np.isnan(nearest.gain_low) else f" ({_interval(nearest, level)})"
    gain = f"{_points(nearest.gain)} points{interval}"
    return f"{keep}; the gain of the nearest, layer {nearest.layer}, is {gain}."


def _points(value: float) -> str:
    """A score or a difference in points, with more decimals where one would show only 0.0."""
    points = round(100 * value, 4) + 0.0
    return f"{points:.2g}" if 0 < abs(points) < 0.1 else f"{points:.1f}"  # noqa: PLR2004


def _interval(row: LayerRank, level: float) -> str:
    return f"{100 * level:g} % interval {_points(row.gain_low)} to {_points(row.gain_high)}"
