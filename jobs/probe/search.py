"""Successive halving of a subject's layers: rounds of units, planned from the scores so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.probe.worker import ScoreTarget, ScoreUnit
from operators.ranking.elimination import Rule
from operators.ranking.search import Cells, State, finished, next_round
from storage.vectors import Group

Row = dict[str, Any]
ScoreUnits = Callable[[Sequence[ScoreUnit]], list[tuple[int, list[Row]]]]


@dataclass(frozen=True)
class Searched:
    """The layers that were scored in full, and the share of a full sweep's work that was done."""

    survivors: list[int]
    share: float


@dataclass(frozen=True)
class Ranked:
    """The vectors that a search compares: one group per layer, in one variant."""

    groups: Sequence[Group]
    variant: str

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that are scores of these vectors."""
        return [
            row for row in rows if row["variant"] == self.variant and group_of(row) in self.groups
        ]


def group_of(row: Row) -> Group:
    """Return the vectors that a row is a score of."""
    return Group(row["layer"], row["norm"], row["pooling"])


def search(
    targets: Mapping[int, ScoreTarget],
    stored: Mapping[int, Sequence[Row]],
    ranked: Ranked,
    score: ScoreUnits,
    replicates: int,
) -> Searched | None:
    """Score the ranked vectors of a subject round by round, until no layer is left to compare.

    `targets` are the tasks of the subject by index, `stored` the rows that they have already, and
    `score` runs units and returns their rows, none for a unit that failed. As in a full sweep, a
    task that fails or that no layer has a score of does not count; None if no task is left.
    """
    rows = {index: ranked.of(stored.get(index, ())) for index in targets}
    failed: set[int] = set()
    rule = Rule()
    while counting := {
        index: target
        for index, target in targets.items()
        if index not in failed and _counts(rows[index])
    }:
        state = _state(counting, rows, ranked, replicates)
        pending = next_round(state, rule)
        if pending is None:
            found = finished(state, rule)
            return Searched(found.survivors, found.share)
        units = [_unit(cells, counting, ranked.groups) for cells in pending.missing]
        for index, scores in score(units):
            rows[index] += ranked.of(scores)
            if not scores:
                failed.add(index)
    return None


def _counts(rows: Sequence[Row]) -> bool:
    return not rows or not all(math.isnan(row["value"]) for row in rows)


def _state(
    targets: Mapping[int, ScoreTarget],
    rows: Mapping[int, Sequence[Row]],
    ranked: Ranked,
    replicates: int,
) -> State:
    """Return what is scored of the targets; a score that is undefined stands for all its folds."""
    layers = [group.layer for group in ranked.groups]
    n_folds = tuple(target.cells for target in targets.values())
    shape = (len(layers), len(targets), max(n_folds))
    scores_LTF, done_LTF = np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
    replicates_LTR = np.full((*shape[:2], replicates), np.nan)
    for column, index in enumerate(targets):
        for place, layer in enumerate(layers):
            mine = [row for row in rows[index] if row["layer"] == layer]
            if mine and n_folds[column] == 1:
                drawn = mine[-1]["replicates"] or ()
                scores_LTF[place, column, 0] = np.mean([row["value"] for row in mine])
                done_LTF[place, column, 0] = True
                replicates_LTR[place, column, : len(drawn)] = drawn
                continue
            for row in mine:
                folds = slice(None) if row["reason"] else row["fold"]
                scores_LTF[place, column, folds] = row["value"]
                done_LTF[place, column, folds] = True
    return State(tuple(layers), n_folds, scores_LTF, done_LTF, replicates_LTR)


def _unit(cells: Cells, targets: Mapping[int, ScoreTarget], ranked: Sequence[Group]) -> ScoreUnit:
    index = list(targets)[cells.task]
    group = next(group for group in ranked if group.layer == cells.layer)
    folds = cells.fold_to if targets[index].cells > 1 else targets[index].folds
    return ScoreUnit(index, group, cells.fold_from, folds)
