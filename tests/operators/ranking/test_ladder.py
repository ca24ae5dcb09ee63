"""The ladder of candidates: what it costs is known, and the best climbs to the top."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.operators.ranking.ladder import (
    LADDER,
    NARROW,
    SHALLOW,
    Candidate,
    Ladder,
    Look,
    Scores,
    climb,
    rungs,
)


def looking(
    score: Callable[[Candidate], float | Sequence[float]],
    seen: list[tuple[float, list[Candidate]]],
) -> Look:
    """Return what scores candidates without noise, and notes what it was asked for."""

    def look(candidates: Sequence[Candidate], share: float) -> Scores:
        seen.append((share, [*candidates]))
        return {each: np.atleast_1d(score(each)).tolist() for each in candidates}

    return look


def peak(layer: int, vectors: int, width: float = 6.0) -> Callable[[Candidate], float]:
    """Return scores that fall off smoothly with the layer and step by step with the vectors."""
    return lambda each: (
        math.exp(-(((each.layer - layer) / width) ** 2)) - 0.05 * abs(each.vectors - vectors)
    )


@given(
    st.sampled_from([LADDER, NARROW, SHALLOW]),
    st.integers(1, 90),
    st.integers(1, 9),
    st.integers(1, 7),
    st.data(),
)
def test_no_rung_scores_more_than_was_planned(
    ladder: Ladder, layers: int, vectors: int, tasks: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, layers - 1))
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).random((layers, vectors, tasks))
    seen: list[tuple[float, list[Candidate]]] = []
    look = looking(lambda each: scores[each], seen)
    found = climb(range(layers), vectors, start, look, ladder)
    assert [share for share, _ in seen] == [*ladder.shares]
    before: set[Candidate] = set()
    for (_, asked), planned in zip(seen, rungs(layers, vectors, ladder, tasks), strict=True):
        assert len({*asked}) == len(asked)
        assert len({*asked} & before) <= planned.climbed
        assert len(asked) <= planned.climbed + planned.joined
        before |= {*asked}
    assert {*found} == {*seen[-1][1]}
    assert any(each.layer == layers - 1 for each in found)
    assert scores[found[0]].mean() == max(scores[each].mean() for each in found)


@pytest.mark.parametrize("layers", [5, 13, 25, 31])
@pytest.mark.parametrize("at", [0.0, 0.2, 0.55, 0.9, 1.0])
def test_a_smooth_peak_is_found_wherever_it_is(layers: int, at: float) -> None:
    best = round(at * (layers - 1))
    # What starts from elsewhere finds it too.
    for start in (best, 0, layers - 1):
        found = climb(range(layers), 7, start, looking(peak(best, 4), []))
        assert found[0] == Candidate(best, 4)


@pytest.mark.parametrize(("tasks", "climbs"), [(3, True), (5, True), (6, False)])
def test_who_is_best_without_one_of_few_tasks_is_scored_in_full(tasks: int, climbs: bool) -> None:
    # Vectors 3 of the last layer fail in the first task alone, by more than all others.
    def score(each: Candidate) -> list[float]:
        others = 0.9 if each == (30, 3) else 0.5 + peak(30, 0)(each) / 10
        return [-4.0 if each == (30, 3) else 0.9, *[others] * (tasks - 1)]

    found = climb(range(31), 7, 12, looking(score, []))
    assert (Candidate(30, 3) in found) == climbs
    assert found[0] != Candidate(30, 3)


def test_ties_go_to_the_lower_layer_and_the_first_vectors() -> None:
    found = climb(range(7), 3, 2, looking(lambda _: 0.5, []))
    assert found[0] == Candidate(0, 0)


def test_an_undefined_candidate_never_leads_and_the_last_layer_stays() -> None:
    def score(each: Candidate) -> float:
        return math.nan if each.vectors == 0 else 0.5 - 0.1 * each.layer

    seen: list[tuple[float, list[Candidate]]] = []
    found = climb(range(13), 2, 0, looking(score, seen))
    assert found[0] == Candidate(0, 1)
    for _, asked in seen:
        assert Candidate(12, 1) in asked


def test_the_work_of_a_deep_model_is_a_fraction_of_scoring_all() -> None:
    for layers in (7, 13, 25, 31, 81):  # with the ranked vectors, of which two variants are asked
        assert sum(each.joined for each in rungs(layers, 7, NARROW)) + layers <= 4 * layers
    for layers, vectors, most in ((31, 7, 0.25), (25, 7, 0.35), (81, 7, 0.1), (7, 7, 0.45)):
        work = sum(each.work for each in rungs(layers, vectors))
        assert work < most * layers * vectors
