"""The rules that compare two checkpoints, in cases whose answer is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pytest

from layerrank.operators.analysis.regression import (
    SMALLEST_SCALE,
    ScoreChange,
    has_moved,
    jumps,
    score_change,
)
from layerrank.operators.ranking.scores import Array, Resampled, TaskScores

NAN = float("nan")


def _task(folds: Sequence[float] | Array, name: str = "a", kind: Resampled = "folds") -> TaskScores:
    values = np.array([folds], dtype=np.float64)
    return TaskScores(name, "classification", values.mean(axis=1), values, kind)


def _changed(before: list[TaskScores], now: list[TaskScores], **how: int) -> ScoreChange:
    found = score_change(before, now, **how)
    assert found is not None
    return found


def test_what_is_hard_for_both_checkpoints_cancels() -> None:
    """The folds differ by 60 points among themselves, the checkpoints by exactly 2 in each."""
    folds = np.array([0.2, 0.5, 0.8, 0.35])
    found = _changed([_task(folds)], [_task(folds - 0.02)])
    assert found.before == pytest.approx(folds.mean())
    assert [found.change, found.low, found.high] == pytest.approx([-0.02] * 3)
    assert found.fell_by_more_than(0.019)
    assert not found.fell_by_more_than(0.021)


def test_a_fall_whose_interval_has_0_in_it_is_none() -> None:
    """One of two folds fell by 10 points: a quarter of the draws take only the other one."""
    found = _changed([_task([0.5, 0.5])], [_task([0.4, 0.5])])
    assert [found.change, found.low, found.high] == pytest.approx([-0.05, -0.1, 0.0])
    assert not found.fell_by_more_than(0.01)


def test_tasks_count_that_both_checkpoints_have_a_score_of() -> None:
    unscored = TaskScores("b", "retrieval", np.array([NAN]), np.empty((1, 0)), "replicates")
    before, now = [_task([0.5, 0.6]), _task([0.9], "b")], [_task([0.4, 0.5]), unscored]
    found = _changed(before, [*now, _task([0.1], "c")])
    assert found.before == pytest.approx(0.55)
    assert score_change(before[1:], now) is None
    assert score_change([], now) is None


@pytest.mark.parametrize(
    ("before", "now", "change"), [([0.9], [0.1], -0.8), ([0.5, 0.7], [0.2, 0.3, 0.4], -0.3)]
)
def test_without_pairs_to_draw_there_is_no_interval_and_no_fall(
    before: list[float], now: list[float], change: float
) -> None:
    """One fold each, or folds that do not match."""
    found = _changed([_task(before)], [_task(now)])
    assert found.change == pytest.approx(change)
    assert np.isnan([found.low, found.high]).all()
    assert not found.fell_by_more_than(0.01)


def test_several_tasks_and_replicates_are_weighed_alike() -> None:
    before = [_task([0.5, 0.7]), _task([0.3, 0.5, 0.4], "b", "replicates")]
    now = [_task([0.4, 0.6]), _task([0.1, 0.3, 0.2], "b", "replicates")]
    found = _changed(before, now, draws=2000)
    assert found.change == pytest.approx(-(0.1 + 0.2) / 2)
    # Two tasks are drawn with replacement: twice the first, twice the second, or both.
    assert (found.low, found.high) == pytest.approx((-0.2, -0.1))
    assert score_change(before[::-1], now[::-1], draws=2000) == found


@pytest.mark.parametrize(
    ("before", "now", "limit", "moved"),
    [(3, 5, 2, False), (3, 6, 2, True), (6, 3, 2, True), (4, 4, 0, False), (4, 5, 0, True)],
)
def test_the_layer_moves_up_or_down(before: int, now: int, limit: int, moved: bool) -> None:
    assert has_moved(before, now, limit) is moved


def _values(changes: Sequence[float], start: float = 10.0) -> Array:
    return np.cumsum([start, *changes])[:, None]


def test_a_jump_is_measured_in_median_absolute_deviations() -> None:
    """Earlier changes 1, 2, 3, 4, 5: their median is 3, and the MAD of 2, 1, 0, 1, 2 is 1."""
    changes = [1, 2, 3, 4, 5, 13]
    (jump,) = jumps(_values(changes), limit=9.99, fewest=5)
    assert astuple(jump) == pytest.approx((0, 25, 38, 3, 10))
    assert jumps(_values(changes), limit=10, fewest=5) == []
    assert jumps(_values(changes), limit=1, fewest=6) == []
    assert len(jumps(_values([*changes[:-1], -7]), limit=9.99, fewest=5)) == 1


def test_a_metric_that_stood_still_jumps_by_more_than_rounding() -> None:
    """MAD 0: the scale is a thousandth of the usual value, 0.01 of 10."""
    still = [0.0] * 5
    assert jumps(_values([*still, 0.019]), limit=2, fewest=5) == []
    (jump,) = jumps(_values([*still, 0.03]), limit=2, fewest=5)
    assert jump.deviations == pytest.approx(0.03 / (SMALLEST_SCALE * 10))
    assert jumps(_values([*still, 5.0], start=0.0), limit=2, fewest=5) == []


def test_undefined_values_are_no_changes() -> None:
    values = np.array([[1, NAN], [2, 1], [4, 2], [7, 4], [9, 7], [99, 9], [NAN, 99]], float)
    assert [jump.layer for jump in jumps(values, limit=5, fewest=4)] == [1]
    assert jumps(values, limit=5, fewest=5) == []
    assert jumps(values[:1], limit=5, fewest=2) == []
