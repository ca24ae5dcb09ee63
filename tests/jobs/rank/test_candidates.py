"""The ranking of candidates: each layer's best beside the layer as it is, and the last's own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from layerrank.jobs.rank.ranking import (
    Option,
    RankedTask,
    Ranking,
    Settings,
    choice_rows,
    ranking_of,
)
from layerrank.jobs.run import TABLES
from layerrank.operators.model.subject import Subject, Vectors
from layerrank.operators.ranking.scores import TaskScores
from layerrank.storage import schema

PLAIN = Vectors("final", "mean", "raw")
Z = Vectors("final", "mean", "z")
BARE = Vectors("final", "mean_no_first", "z")
# Three tasks. Layer 1 is best as ranked, layer 2 with other vectors, and these mend the last too.
SCORES = {
    (0, PLAIN): [0.40, 0.42, 0.41],
    (1, PLAIN): [0.60, 0.62, 0.61],
    (1, Z): [0.64, 0.63, 0.66],
    (2, PLAIN): [0.55, 0.56, 0.57],
    (2, Z): [0.70, 0.69, 0.71],
    (3, PLAIN): [0.50, 0.51, 0.49],
    (3, BARE): [0.65, 0.66, 0.62],
}
DROPPED = Option(0, Z, 0.3)


def ranking(scores: dict[tuple[int, Vectors], list[float]]) -> Ranking:
    weighed = [Option(*key) for key in scores]
    found = np.array([*scores.values()])
    wide = np.array([[1 + layer / 4] for layer, _ in scores])
    folds = np.array([-0.01, 0.0, 0.01]) * wide
    tasks = [
        RankedTask(f"t{n}", f"t{n}", "texts", "accuracy", 3, each)
        for n, score_L in enumerate(found.T)
        for each in [
            TaskScores(f"t{n}", "classification", score_L, score_L[:, None] + folds, "folds")
        ]
    ]
    return ranking_of(
        Subject("someone/model", "main", "model"),
        weighed,
        tasks,
        np.array([0.1, 0.4, 0.7, 1.0]),
        Settings(),
        options=[*weighed, DROPPED],
    )


def test_a_layer_stands_with_its_best_vectors_beside_those_asked() -> None:
    found = ranking(SCORES)
    assert found.vectors == PLAIN
    assert [(row["layer"], row["transform"], row["pooling"]) for row in found.table] == [
        (0, "raw", "mean"),
        (1, "z", "mean"),
        (2, "z", "mean"),
        (3, "z", "mean_no_first"),
    ]
    base = np.mean(SCORES[3, PLAIN])
    for row, plain in zip(found.table, (0.41, 0.61, 0.56, 0.50), strict=True):
        assert row["plain_score"] == pytest.approx(plain)
        assert row["plain_gain"] == pytest.approx(plain - base)
        best = max(np.mean(values) for (at, _), values in SCORES.items() if at == row["layer"])
        assert row["score"] == pytest.approx(best)
        assert row["gain"] == pytest.approx(best - base)
    assert found.verdict.layer == 2
    assert found.vectors_of[2] == Z
    assert [row["layer"] for row in found.table if row["recommended"]] == [2]
    # Scores of the tasks are of the same vectors.
    assert found.scores_LT[2] == pytest.approx(SCORES[2, Z])


def test_the_ranking_of_the_vectors_asked_and_the_choice_on_the_last_layer_are_kept() -> None:
    found = ranking(SCORES)
    alone = ranking({key: of for key, of in SCORES.items() if key[1] == PLAIN})
    assert found.plain is not None
    assert str(found.plain.table) == str(alone.table)
    assert alone.plain is None
    assert alone.alone is None
    assert found.alone is not None
    of_last = [option for option in found.weighed if option.layer == 3]
    assert of_last[found.alone.row].vectors == BARE
    gain = np.mean(SCORES[3, BARE]) - np.mean(SCORES[3, PLAIN])
    assert found.alone.gain == pytest.approx(gain)
    # What chooses without labels chooses among the vectors that were asked for.
    assert choice_rows(found) == choice_rows(alone)


def test_the_table_of_candidates_has_what_was_dropped_without_evidence() -> None:
    rows = ranking(SCORES).candidates
    assert len(rows) == len(SCORES) + 1
    (best,) = (row for row in rows if row["recommended"])
    assert (best["layer"], best["transform"], best["rank"]) == (2, "z", 1)
    assert best["gain_chosen"] == pytest.approx(best["gain"])
    left = rows[-1]
    assert (left["layer"], left["transform"], left["scored"]) == (0, "z", 0.3)
    assert left["rank"] is None
    assert math.isnan(left["score"])
    assert {*rows[0]} == {*schema.CANDIDATES.names} == {*left}
    assert {*ranking(SCORES).table[0]} == {*schema.RANKING.names}
    assert TABLES["candidates"].stage == "rank"


def test_where_the_last_layer_is_kept_it_stands_as_it_is() -> None:
    scores = {
        **{key: [0.3, 0.31, 0.32] for key in SCORES},
        (3, PLAIN): [0.50, 0.51, 0.49],
        (3, BARE): [0.55, 0.40, 0.56],
    }
    found = ranking(scores)
    assert found.verdict.kind == "keep_last"
    assert found.vectors_of[3] == PLAIN
    assert found.table[-1]["gain"] == 0
