"""A search over the tasks of a subject: what is stored is kept, and what fails does not count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from layerrank.jobs.config.datasets import Task
from layerrank.jobs.probe.stage import search
from layerrank.jobs.probe.worker import Row, ScoreTarget, ScoreUnit
from layerrank.operators.model.subject import Subject
from layerrank.storage.layers import Group
from layerrank.storage.manifest import Manifest
from layerrank.storage.partition import CLEAN, Partition
from tests.support.simulated import Scores, peaked

LAYERS, FOLDS = 7, 10
GROUPS = [Group(layer, "final", "mean") for layer in range(LAYERS)]
LABELS = {"type": "classification", "label_column": "label", "folds": FOLDS}
PAIRS = {"type": "sts", "first_column": "a", "second_column": "b", "score_column": "c"}


def target(name: str, **task: Any) -> ScoreTarget:  # noqa: ANN401
    values = ("model", "main", "data", CLEAN)
    vectors = Manifest(Partition("embeddings", values), {}, ())
    items = Manifest(Partition("tasks", (name, "data")), {}, ())
    known: Task = TypeAdapter(Task).validate_python({"name": name, **task})
    where = Partition("probe_scores", (*values, name))
    subject = Subject("model", "main", "model")
    return ScoreTarget(subject, known, items, vectors, where, {})


class Scorer:
    """Scores units from given arrays [L, F] in two variants, and notes the folds it was asked for.

    A task without an array fails; a value that is NaN has its reason, as a fold of its own.
    """

    def __init__(self, scores: Mapping[int, Scores | None]) -> None:
        self.scores = scores
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, units: Sequence[ScoreUnit]) -> list[tuple[ScoreUnit, list[Row]]]:
        found: list[tuple[ScoreUnit, list[Row]]] = []
        for unit in units:
            folds = list(range(unit.first, unit.folds))
            self.asked += [(unit.target, unit.group.layer, fold) for fold in folds]
            scores = self.scores[unit.target]
            values = [] if scores is None else list(scores[unit.group.layer])
            if values and math.isnan(values[0]):
                folds, values = [0], [math.nan]
            found.append((unit, []))
            for variant in ("raw", "l2"):
                for fold in folds if values else ():
                    # Another variant has the opposite order of layers.
                    value = values[fold] if variant == "raw" else -values[fold]
                    reason = "collapsed" if math.isnan(value) else None
                    row = {"variant": variant, "fold": fold, "value": value, "reason": reason}
                    found[-1][1].append({**asdict(unit.group), **row, "replicates": [value] * 3})
        return found


def stored(scorer: Scorer, index: int, folds: int, layers: Sequence[int] = range(LAYERS)) -> Any:  # noqa: ANN401
    units = [ScoreUnit(index, GROUPS[layer], 0, folds, ("raw", "l2")) for layer in layers]
    return [row for _, rows in scorer(units) for row in rows]


def test_a_task_that_fails_drops_no_layer() -> None:
    flat, steep = peaked(LAYERS, seed=2)[:, 0], peaked(LAYERS)[:, 0] * 3
    targets = {0: target("good", **LABELS), 1: target("bad", **LABELS)}
    alone = search({0: targets[0]}, {}, GROUPS, "raw", Scorer({0: flat}), 3)
    beside = search(targets, {}, GROUPS, "raw", Scorer({0: flat, 1: None}), 3)
    assert beside == alone
    assert alone is not None
    both = search(targets, {}, GROUPS, "raw", Scorer({0: flat, 1: steep}), 3)
    assert both != alone
    assert search({1: targets[1]}, {}, GROUPS, "raw", Scorer({1: None}), 3) is None


def test_a_task_that_no_layer_has_a_score_of_does_not_count() -> None:
    scores = peaked(LAYERS)[:, 0]
    targets = {0: target("good", **LABELS), 1: target("flat", **LABELS)}
    alone = search({0: targets[0]}, {}, GROUPS, "raw", Scorer({0: scores}), 3)
    nothing = Scorer({0: scores, 1: scores * math.nan})
    assert search(targets, {}, GROUPS, "raw", nothing, 3) == alone
    # Where some layers have a score, the others are not comparable.
    some = scores.copy()
    some[[1, 2]] = math.nan
    found = search({0: targets[0]}, {}, GROUPS, "raw", Scorer({0: some}), 3)
    assert found is not None
    assert not {1, 2} & set(found[0])


def test_a_search_keeps_what_is_stored_and_scores_what_another_task_calls_for() -> None:
    scores = {0: peaked(LAYERS)[:, 0], 1: peaked(LAYERS, seed=2)[:, 0], 2: peaked(LAYERS)[:, 0]}
    targets = {0: target("old", **LABELS), 1: target("new", **LABELS), 2: target("once", **PAIRS)}
    fresh = Scorer(scores)
    whole = search(targets, {}, GROUPS, "raw", fresh, 3)
    assert whole is not None

    before = Scorer(scores)
    rows = {0: stored(before, 0, 3), 2: stored(before, 2, 1)}
    rows[0] += [row for row in stored(before, 0, FOLDS, [6]) if row["fold"] > 2]
    scorer = Scorer(scores)
    assert search(targets, rows, GROUPS, "raw", scorer, 3) == whole
    assert len(set(scorer.asked)) == len(scorer.asked), "a cell was scored twice"
    known = {(index, row["layer"], row["fold"]) for index, each in rows.items() for row in each}
    assert not known & set(scorer.asked)
    assert known | set(scorer.asked) == {*fresh.asked, *known}

    again = Scorer(scores)
    rows = {index: stored(before, index, 1 if index == 2 else FOLDS) for index in targets}
    full = search(targets, rows, GROUPS, "raw", again, 3)
    assert full is not None
    assert (*full, again.asked) == (whole[0], 1, [])
