"""Sensitivity: slopes in closed form, intervals that cover, and sums that merge over shards."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from layerrank.jobs.measure.sensitivity import aligned
from layerrank.operators.analysis.sensitivity import (
    NO_SLOPES,
    SlopeSums,
    least_squares_slopes,
    mean_slope,
    merge_slopes,
    population_slope,
    slope_sums,
)
from layerrank.operators.prompts.conditions import Condition

P = np.array([0.0, 0.1, 0.4, 0.9])


def test_a_metric_linear_in_the_level_has_exactly_its_slope() -> None:
    slope_N = np.array([2.0, -0.5, 0.0, 1e-3])
    values_PN = 7.0 + P[:, None] * slope_N
    np.testing.assert_allclose(least_squares_slopes(values_PN, P), slope_N, atol=1e-12)
    lengths = np.array([Condition("length", 2**k).place for k in (6, 7, 8, 10)])
    grows = np.log([64, 128, 256, 1024])[:, None]  # of the entropy of T tokens in all directions
    assert least_squares_slopes(grows, lengths)[0] == pytest.approx(math.log(2))


def test_slopes_are_those_of_the_library_over_the_levels_with_a_value() -> None:
    values_PN = np.random.default_rng(0).normal(size=(4, 30))
    values_PN[np.random.default_rng(1).random((4, 30)) < 0.3] = np.nan
    found_N = least_squares_slopes(values_PN, P)
    for value_P, found in zip(values_PN.T, found_N, strict=True):
        there = ~np.isnan(value_P)
        if there.sum() < 2:
            assert np.isnan(found)
        else:
            expected = stats.linregress(P[there], value_P[there]).slope
            assert found == pytest.approx(expected, abs=1e-12)
    assert np.isnan(least_squares_slopes(np.array([[1.0], [2.0]]), np.array([0.5, 0.5]))).all()


def test_the_interval_is_students_and_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.3, 2.0, size=(4000, 12))
    found = [mean_slope(slope_sums(slope_N), 0.9) for slope_N in draws]
    covered = np.mean([each.low <= 0.3 <= each.high for each in found])
    assert covered == pytest.approx(0.9, abs=0.015)
    one = stats.ttest_1samp(draws[0], 0).confidence_interval(0.9)
    assert found[0] == pytest.approx((draws[0].mean(), one.low, one.high))


def test_few_prompts_have_no_interval_and_none_no_slope() -> None:
    alone = mean_slope(slope_sums(np.array([0.4, np.nan])), 0.95)
    assert alone.value == 0.4
    assert np.isnan([alone.low, alone.high]).all()
    assert np.isnan(mean_slope(NO_SLOPES, 0.95)).all()
    same = mean_slope(slope_sums(np.array([0.4, 0.4, 0.4])), 0.95)
    assert same == pytest.approx((0.4, 0.4, 0.4))


def test_a_metric_of_all_prompts_has_a_slope_and_no_interval() -> None:
    found = population_slope(3.0 - 2.0 * P, P)
    assert found.value == pytest.approx(-2.0)
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(population_slope(np.array([1.0, np.nan, np.nan, np.nan]), P).value)


def test_shards_merge_to_what_all_prompts_give_in_any_cut_and_order() -> None:
    slope_N = np.random.default_rng(3).normal(1e6, 1.0, size=200)
    slope_N[::7] = np.nan
    whole = slope_sums(slope_N)

    @given(st.lists(st.integers(0, 200), max_size=6), st.randoms())
    def check(cuts: list[int], order: object) -> None:
        parts = np.split(slope_N, sorted(cuts))
        order.shuffle(parts)  # type: ignore[attr-defined]
        merged = reduce(merge_slopes, map(slope_sums, parts), NO_SLOPES)
        assert (merged.prompts, merged.undefined) == (whole.prompts, whole.undefined)
        assert merged.mean == pytest.approx(whole.mean, rel=1e-12)
        assert merged.squares == pytest.approx(whole.squares, rel=1e-8)

    check()
    assert slope_sums(np.array([])) == NO_SLOPES == SlopeSums(0, 0.0, 0.0, 0)


def test_prompts_are_matched_by_their_ids() -> None:
    one = (np.array([5, -3, 9]), np.array([0.5, -0.3, 0.9]))
    two = (np.array([9, 5, 4]), np.array([1.9, 1.5, 1.4]))
    expected = [[-0.3, np.nan, 0.5, 0.9], [np.nan] * 4, [np.nan, 1.4, 1.5, 1.9]]
    np.testing.assert_array_equal(aligned([one, None, two]), expected)
