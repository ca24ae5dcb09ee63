"""Intervals and tests of a gain by hand, and how often they hold in a short simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from layerrank.operators.ranking.intervals import (
    items_needed,
    on_these,
    over_tasks,
    reaching,
    sign_flips,
    tasks_needed,
)

NAN = math.nan


def test_over_tasks_is_students_interval_of_what_is_there() -> None:
    value = np.array([[0.1, 0.2, 0.6, NAN], [0.1, 0.2, NAN, NAN], [0.3, 0.3, 0.3, 0.3]])
    low, high = over_tasks(value, 0.9)
    expected = stats.t.interval(0.9, 2, loc=0.3, scale=stats.sem([0.1, 0.2, 0.6]))
    assert (low[0], high[0]) == pytest.approx(expected)
    assert math.isnan(low[1])
    assert math.isnan(high[1])
    assert (low[2], high[2]) == pytest.approx((0.3, 0.3))


def test_on_these_adds_the_variances_within_the_tasks() -> None:
    # Two layers, two tasks: 4 and 9 folds, variances of their means 0.01 and 0.04.
    variance = np.array([[0.01, 0.04], [0.01, NAN]])
    freedom = np.array([[3.0, 8.0], [3.0, NAN]])
    counted = np.ones((2, 2), dtype=bool)
    low, high = on_these(np.array([0.5, 0.5]), counted, variance, freedom)
    welch = 0.05**2 / (0.01**2 / 3 + 0.04**2 / 8)
    half = stats.t.ppf(0.975, welch) * math.sqrt(0.05) / 2
    assert (low[0], high[0]) == pytest.approx((0.5 - half, 0.5 + half))
    assert math.isnan(low[1])  # one task does not show how it varies
    counted[1, 1] = False
    low, _ = on_these(np.array([0.5, 0.5]), counted, variance, freedom)
    assert low[1] == pytest.approx(0.5 - stats.t.ppf(0.975, 3) * 0.1)


def test_an_interval_reaches_to_both_gains() -> None:
    low, high = np.array([-0.1, -0.1]), np.array([0.3, 0.3])
    stretched = reaching(low, high, np.array([0.1, 0.1]), np.array([0.04, 0.12]))
    assert stretched[0] == pytest.approx([-0.16, -0.1])
    assert stretched[1] == pytest.approx([0.3, 0.32])


def test_sign_flips_by_hand() -> None:
    # Of 2^6 ways only all signs alike, or all reversed, reach six equal gains.
    gain = np.stack([np.full(6, 0.1), [0.1, 0.1, 0.1, 0.1, 0.1, -0.1], np.zeros(6)])
    p, most = sign_flips(gain)
    assert p[:2] == pytest.approx([2 / 64, 14 / 64])
    # The largest of both: 2 flips reach the first's sum by it, 2 by the second; 14 and 14 that of
    # the second, 4 of them the same.
    assert most[:2] == pytest.approx([4 / 64, 24 / 64])
    assert (math.isnan(p[2]), math.isnan(most[2])) == (True, True)
    assert (most >= p - 1e-12)[:2].all()
    few, none = sign_flips(np.full((2, 5), 0.1))
    assert np.isnan([*few, *none]).all()


def test_random_flips_come_near_to_all_of_them() -> None:
    gain = np.random.default_rng(0).normal(0.03, 0.05, size=(4, 12))
    whole, some = sign_flips(gain, draws=4096), sign_flips(gain, draws=2000)
    assert np.abs(np.array(whole) - np.array(some)).max() < 0.04
    assert np.array_equal(sign_flips(gain, draws=2000), some)
    assert not np.array_equal(sign_flips(gain, draws=2000, seed=1), some)


def test_a_hole_is_no_gain_of_0() -> None:
    gain = np.full((1, 7), 0.1)
    gain[0, 3] = NAN
    assert sign_flips(gain)[0] == pytest.approx([2 / 64])


def test_the_maximum_holds_the_chance_of_one_wrong_claim() -> None:
    generator = np.random.default_rng(1)
    alone = together = 0
    for _ in range(300):
        p, most = sign_flips(generator.normal(0, 0.05, size=(12, 8)))
        alone += p.min() < 0.05
        together += most.min() < 0.05
    assert alone / 300 > 0.2
    assert together / 300 < 0.09  # 5 %, and three standard errors of 300


def test_tasks_needed_are_those_of_a_power_of_four_in_five() -> None:
    for gain, deviation in ((0.05, 0.05), (0.02, 0.05)):
        count = tasks_needed(gain, deviation)
        assert count is not None
        held = [
            stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1) <= gain / deviation * math.sqrt(n)
            for n in (count - 1, count)
        ]
        assert held == [False, True]
    assert tasks_needed(0.05, 0.0) == 3
    assert tasks_needed(0.0, 0.05) is None
    assert tasks_needed(-0.01, 0.05) is None
    assert tasks_needed(0.001, 0.5) is None  # more than anybody has


def test_items_needed_are_those_of_the_same_power() -> None:
    # A gain of half a width of 0.05: four times as many, and (1 + 0.8416 / 1.96)^2 as many again.
    assert items_needed(0.025, 0.05) == pytest.approx(4 * (1 + 0.84162 / 1.95996) ** 2, rel=1e-4)
    assert items_needed(0.05, 0.05, 0.8) > items_needed(0.05, 0.05, 0.95)
