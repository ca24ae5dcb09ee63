"""Candidates: layers with several vectors each, all of them scored or found by the ladder.

A published grid has one score of a layer and task. Here a layer has eight: the published one, and
what other vectors add to it: four transforms and two poolings, of which two transforms do most, by
an amount that changes smoothly with depth, in part alike in all tasks. On SmolLM2-135M
(`tests.bench.advice.candidates`) it was 1.3 to 5.4 points, unit length and the pooling 1 point at
most, and correlated by 0.7 with the next layer and by 0.3 with the third next.

Shapes: L layers, V vectors of each, M tasks of a grid, N draws of T tasks, F folds; R rows, one of
each layer and vectors, the baseline last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from layerrank.operators.ranking.choosing import choose, left_out, mean_over
from layerrank.operators.ranking.intervals import on_these, reaching
from layerrank.operators.ranking.ladder import LADDER, Candidate, Ladder, Scores, best_of, climb
from layerrank.operators.ranking.scores import Array
from tests.bench.coverage.grids import NOISE, Draws, Grid, Truth
from tests.bench.coverage.simulate import LEVEL, Rows, holds, intervals, pooled

VECTORS = 8
# Standard deviations of what the two fitted transforms add, in all tasks and in one; of what unit
# length or a pooling adds to each; of single layers; and the depth over which the first change.
ALIKE, OF_TASK, SMALL, OF_LAYER, REACH = 0.03, 0.03, 0.006, 0.006, 0.08
FOLDS = 10
_AT_ONCE = 25  # draws of the same population
_SHARED = 0.5  # of the variance of folds: what all vectors of a layer have in common
Found = dict[tuple[str, Truth, int], dict[str, float]]


@dataclass(frozen=True)
class Searches:
    """How much is drawn from every grid."""

    draws: int = 150
    tasks: Sequence[int] = (1, 3, 5, 10)
    truths: Sequence[Truth] = ("real", "null")
    ladder: Ladder = LADDER
    seed: int = 0


def candidates(grid: Grid, plan: Searches) -> Found:
    """Return what is said of the choice, by which rows there are, truth and number of tasks."""
    found: dict[tuple[str, Truth, int], list[dict[str, Array]]] = {}
    for truth in plan.truths:
        for tasks in plan.tasks:
            words = f"{grid.name} {truth} {tasks} candidates"
            generator = np.random.default_rng([plan.seed, *map(ord, words)])
            for _ in range(0, plan.draws, _AT_ONCE):
                score_RM = population(grid, truth, generator)
                drawn = folds_of(score_RM, len(grid.score_LM), tasks, generator)
                for name, part in _said(score_RM, drawn, plan.ladder).items():
                    found.setdefault((name, truth, tasks), []).append(part)
    return {place: pooled(parts) for place, parts in found.items()}


def population(grid: Grid, truth: Truth, generator: np.random.Generator) -> Array:
    """Return the scores of every layer with every vectors in all tasks of a grid, [R, M].

    Row `v * L + l` is of layer l, the published one of each layer last.
    """
    score_LM = grid.score_LM
    layers, tasks = score_LM.shape
    depth_L = np.linspace(0, 1, layers)
    kernel_LL = np.exp(-((depth_L[:, None] - depth_L) ** 2) / (2 * REACH**2))
    smooth_LL = np.linalg.cholesky(kernel_LL + 1e-6 * np.eye(layers))

    def smooth(count: int, deviation: float) -> Array:
        made: Array = generator.normal(0, deviation, size=(count, tasks, layers)) @ smooth_LL.T
        return made

    fitted_KTL = generator.normal(0, ALIKE, size=(2, 1, layers)) @ smooth_LL.T + smooth(2, OF_TASK)
    nothing_KTL = np.zeros((2, tasks, layers))
    of_pooling = np.concatenate([fitted_KTL, nothing_KTL])
    added_VTL = np.concatenate([of_pooling, of_pooling])[: VECTORS - 1]
    added_VTL = added_VTL + smooth(VECTORS - 1, SMALL)
    added_VTL += generator.normal(0, OF_LAYER, size=added_VTL.shape)
    added_VLM = added_VTL.transpose(0, 2, 1)
    score_RM = np.concatenate([*(score_LM + added_VLM), score_LM])
    if truth == "null":  # no row gains anything in the mean over all tasks
        gain_RM = score_RM - score_RM[-1]
        score_RM = score_RM - gain_RM.mean(axis=1, keepdims=True)
    return score_RM


@dataclass(frozen=True)
class Folds:
    """Tasks and folds of some draws: `score_NRTF`, and the tasks that were drawn."""

    layers: int
    task_NT: Rows
    score_NRTF: Array


def folds_of(score_RM: Array, layers: int, tasks: int, generator: np.random.Generator) -> Folds:
    """Draw tasks with replacement, and folds about their scores."""
    task_NT = generator.integers(score_RM.shape[1], size=(_AT_ONCE, tasks))
    score_NRT = score_RM[:, task_NT].transpose(1, 0, 2)
    shape = (_AT_ONCE, VECTORS, layers, tasks, FOLDS)
    noise = generator.normal(0, NOISE * math.sqrt(1 - _SHARED), size=shape)
    noise += generator.normal(0, NOISE * math.sqrt(_SHARED), size=(shape[0], 1, *shape[2:]))
    return Folds(layers, task_NT, score_NRT[..., None] + noise.reshape(*score_NRT.shape, FOLDS))


def climbed(score_RTF: Array, layers: int, ladder: Ladder) -> Array:
    """Return which rows are weighed after the ladder: the published ones and what it finished."""
    plain, last = VECTORS - 1, len(score_RTF) // layers - 1

    def look(asked: Sequence[Candidate], share: float) -> Scores:
        count = math.ceil(share * score_RTF.shape[-1])
        rows = [each.vectors * layers + each.layer for each in asked]
        score_RT = score_RTF[rows, :, :count].mean(axis=2)
        return dict(zip(asked, score_RT.tolist(), strict=True))

    every = [*range(layers)]
    start = best_of(look([Candidate(layer, last) for layer in every], 1.0)).layer
    rows = [each.vectors * layers + each.layer for each in climb(every, plain, start, look, ladder)]
    is_in_R = np.zeros(len(score_RTF), dtype=bool)
    is_in_R[rows] = True
    is_in_R[plain * layers :] = True
    return is_in_R


def _said(score_RM: Array, drawn: Folds, ladder: Ladder) -> dict[str, dict[str, Array]]:
    """Return what is said of each draw, with all rows, with the ladder's, of the last layer's."""
    score_NRTF, layers = drawn.score_NRTF, drawn.layers
    of_ladder_NR = np.stack([climbed(each, layers, ladder) for each in score_NRTF])
    is_last_R = np.arange(len(score_RM)) % layers == layers - 1
    found = {}
    chosen: dict[str, Rows] = {}
    for name, is_in_NR in {
        "all": np.ones_like(of_ladder_NR),
        "ladder": of_ladder_NR,
        "last layer": np.broadcast_to(is_last_R, of_ladder_NR.shape),
    }.items():
        found[name], chosen[name] = _judged(score_RM, drawn, is_in_NR)
    mean_NR = score_NRTF.mean(axis=(2, 3))
    at = np.arange(len(mean_NR))
    found["ladder"]["done"] = of_ladder_NR.mean(axis=1)
    found["ladder"]["lost"] = mean_NR.max(axis=1) - mean_NR[at, chosen["ladder"]]
    true_NR = score_RM[:, drawn.task_NT].mean(axis=2).T
    found["ladder"]["truly lost"] = true_NR[at, chosen["all"]] - true_NR[at, chosen["ladder"]]
    return found


def _judged(score_RM: Array, drawn: Folds, is_in_NR: Array) -> tuple[dict[str, Array], Rows]:
    """Return the errors and the coverage of the choice among some rows, and the row."""
    score_NRTF, tasks = drawn.score_NRTF, drawn.task_NT.shape[1]
    gain_NRTF = score_NRTF - score_NRTF[:, -1:]
    gain_NRTF = np.where(is_in_NR[..., None, None], gain_NRTF, np.nan)
    true_RM = score_RM - score_RM[-1]
    true_NR = true_RM[:, drawn.task_NT].mean(axis=2).T
    gain_NRT, variance_NRT = gain_NRTF.mean(axis=3), gain_NRTF.var(axis=3, ddof=1) / FOLDS
    # Of the baseline itself a difference does not vary.
    draws = Draws(gain_NRT, variance_NRT, true_RM.mean(axis=1), true_NR, FOLDS)
    rule = partial(choose, cost_L=draws.cost_L, policy="best")
    row_N = rule(gain_NRT)
    if tasks > 1:
        return intervals(draws), row_N
    at, last = (np.arange(len(row_N)), row_N), len(score_RM) - 1
    naive_N = gain_NRT[..., 0][at]
    corrected_N = mean_over(left_out(gain_NRTF[:, :, 0], rule)[0])
    freedom_NRT = np.full(gain_NRT.shape, FOLDS - 1.0)
    here = on_these(gain_NRT[..., 0], ~np.isnan(gain_NRT), variance_NRT, freedom_NRT, LEVEL)
    low_N, high_N = reaching(here[0][at], here[1][at], naive_N, corrected_N)
    held_N = np.where(row_N == last, 1.0, holds(low_N, high_N, true_NR[at]))
    # There is one task, so what is said is of it.
    return {
        "naive": naive_N - true_NR[at],
        "corrected": corrected_N - true_NR[at],
        "here chosen": held_N,
    }, row_N
