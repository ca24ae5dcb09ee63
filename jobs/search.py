"""Successive halving of a subject's layers: rounds of units, planned from the scores so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.scorer import ScoreTarget, ScoreUnit
from operators.elimination import Rule
from operators.search import Cells, State, finished, next_round
from storage.vectors import Group

Row = dict[str, Any]
ScoreUnits = Callable[[Sequence[ScoreUnit]], list[tuple[int, list[Row]]]]


@dataclass(frozen=True)
class Searched:
    """The layers that were scored in full, and the share of a full sweep's work that was done."""

    survivors: list[int]
    share: float


def search(
    targets: Mapping[int, ScoreTarget],
    ranked: Sequence[Group],
    score: ScoreUnits,
    variant: str,
    replicates: int,
) -> Searched:
    """Score the ranked vectors of a subject round by round, until no layer is left to compare.

    `targets` are the tasks of the subject by index, `ranked` one group of vectors per layer, and
    `score` runs units and returns their rows. A fold that fails counts as undefined.
    """
    layers, indices = [group.layer for group in ranked], list(targets)
    n_folds = tuple(target.cells for target in targets.values())
    shape = (len(layers), len(indices), max(n_folds))
    scores_LTF, done_LTF = np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
    replicates_LTR = np.full((len(layers), len(indices), replicates), np.nan)
    state = State(tuple(layers), n_folds, scores_LTF, done_LTF, replicates_LTR)
    rule = Rule()
    while (pending := next_round(state, rule)) is not None:
        units = [_unit(cells, targets, ranked) for cells in pending.missing]
        for index, rows in score(units):
            column, mine = indices.index(index), [row for row in rows if row["variant"] == variant]
            for row in mine:
                layer = layers.index(row["layer"])
                if n_folds[column] > 1:
                    scores_LTF[layer, column, row["fold"]] = row["value"]
                else:
                    scores_LTF[layer, column, 0] = np.mean([each["value"] for each in mine])
                    drawn = row["replicates"]
                    replicates_LTR[layer, column, : len(drawn)] = drawn
        for cells in pending.missing:
            done_LTF[layers.index(cells.layer), cells.task, cells.fold_from : cells.fold_to] = True
    found = finished(state, rule)
    return Searched(found.survivors, found.share)


def _unit(cells: Cells, targets: Mapping[int, ScoreTarget], ranked: Sequence[Group]) -> ScoreUnit:
    index = list(targets)[cells.task]
    group = next(group for group in ranked if group.layer == cells.layer)
    folds = cells.fold_to if targets[index].cells > 1 else targets[index].folds
    return ScoreUnit(index, group, cells.fold_from, folds)
