"""The ladder of candidates: what it costs is known, and the best climbs to the top."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.ranking.ladder import LADDER, Candidate, Look, climb, rungs


def looking(score: Callable[[Candidate], float], seen: list[tuple[float, list[Candidate]]]) -> Look:
    """Return what scores candidates without noise, and notes what it was asked for."""

    def look(candidates: Sequence[Candidate], share: float) -> Mapping[Candidate, float]:
        seen.append((share, [*candidates]))
        return {each: score(each) for each in candidates}

    return look


def peak(layer: int, vectors: int, width: float = 6.0) -> Callable[[Candidate], float]:
    """Return scores that fall off smoothly with the layer and step by step with the vectors."""
    return lambda each: (
        math.exp(-(((each.layer - layer) / width) ** 2)) - 0.05 * abs(each.vectors - vectors)
    )


@given(st.integers(1, 90), st.integers(1, 9), st.data())
def test_no_rung_scores_more_than_was_planned(
    layers: int, vectors: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, layers - 1))
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).random((layers, vectors))
    seen: list[tuple[float, list[Candidate]]] = []
    found = climb(range(layers), vectors, start, looking(lambda each: scores[each], seen))
    assert [share for share, _ in seen] == [*LADDER.shares]
    before: set[Candidate] = set()
    for (_, asked), planned in zip(seen, rungs(layers, vectors), strict=True):
        assert len({*asked}) == len(asked)
        assert len({*asked} & before) <= planned.climbed
        assert len(asked) <= planned.climbed + planned.joined
        before |= {*asked}
    assert {*found} == {*seen[-1][1]}
    assert any(each.layer == layers - 1 for each in found)
    assert scores[found[0]] == max(scores[each] for each in found)


@pytest.mark.parametrize("layers", [5, 13, 25, 31])
@pytest.mark.parametrize("at", [0.0, 0.2, 0.55, 0.9, 1.0])
def test_a_smooth_peak_is_found_wherever_it_is(layers: int, at: float) -> None:
    best = round(at * (layers - 1))
    # What starts from elsewhere finds it too.
    for start in (best, 0, layers - 1):
        found = climb(range(layers), 7, start, looking(peak(best, 4), []))
        assert found[0] == Candidate(best, 4)


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
    for layers, vectors, most in ((31, 7, 0.25), (25, 7, 0.35), (81, 7, 0.1), (7, 7, 0.45)):
        work = sum(each.work for each in rungs(layers, vectors))
        assert work < most * layers * vectors
