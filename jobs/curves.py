"""The curves that decide in practice: score against labelled examples, and against noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jobs.findings import Curve, CurveFinding
from jobs.probe import score_partition
from jobs.rank import RankedTask, SubjectRanking, ranked_rows
from jobs.run import Run
from jobs.tasks import ClassificationTask, FittedTask
from operators.conditions import Condition

_Points = dict[int, dict[float, list[float]]]  # layer -> x -> the values of the folds


def curves(run: Run, ranking: SubjectRanking) -> list[CurveFinding]:
    """Return the learning and the robustness curves of every task that has them."""
    config, found = run.config.curves, []
    for task in ranking.tasks:
        if isinstance(task.task, ClassificationTask) and config.examples:
            where = score_partition(
                ranking.subject, task.dataset, task.task, table="learning_curves"
            )
            rows = ranked_rows(run, where)
            found.append(_curves(task, "examples", _points((r["examples"], r) for r in rows)))
        if isinstance(task.task, FittedTask) and config.noise:
            found.append(_curves(task, "noise", _points(_noise_rows(run, ranking, task))))
    return found


def _noise_rows(
    run: Run, ranking: SubjectRanking, task: RankedTask
) -> Iterable[tuple[float, Mapping[str, Any]]]:
    """Yield the scores of a task under every level of noise; 0 is the clean text."""
    for level in (0.0, *run.config.curves.noise):
        condition = Condition("noise", level).name
        where = score_partition(ranking.subject, task.dataset, task.task, condition)
        for row in ranked_rows(run, where):
            yield level, row


def _points(rows: Iterable[tuple[float, Mapping[str, Any]]]) -> _Points:
    points: _Points = defaultdict(lambda: defaultdict(list))
    for x, row in rows:
        points[row["layer"]][float(x)].append(row["value"])
    return points


def _curves(task: RankedTask, kind: str, points: _Points) -> CurveFinding:
    found = []
    for layer, at in sorted(points.items()):
        folds = [at[x] for x in sorted(at)]
        scores = [_defined(float(np.mean(values))) for values in folds]
        spread = [
            _defined(float(np.std(values, ddof=1))) if len(values) > 1 else None for values in folds
        ]
        found.append(Curve(layer, sorted(at), scores, spread))
    return CurveFinding(task.label, kind, task.metric, found)


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
