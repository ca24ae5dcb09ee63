"""What a policy takes from gains, and what choosing is worth on what did not choose."""

from __future__ import annotations

import math
from functools import partial
from typing import get_args

import numpy as np
import pytest

from layerrank.operators.ranking import Policy
from layerrank.operators.ranking.choosing import (
    choose,
    even_gains,
    flattery,
    left_out,
    mean_over,
    shortfalls,
)

NAN = math.nan
COST = [0.0, 0.4, 0.7, 1.0]


def test_the_highest_mean_is_taken_and_of_equals_the_cheapest() -> None:
    gain = np.array([[0.1, 0.1], [0.1, 0.3], [0.2, 0.2], [0.0, 0.0]])
    assert choose(gain, COST, "best") == 1
    assert choose(gain, [0.0, 0.9, 0.7, 1.0], "best") == 2
    assert choose(gain, [0.0, 0.7, 0.7, 1.0], "last_unless_significant") == 1


def test_a_layer_without_a_gain_is_not_taken() -> None:
    gain = np.array([[NAN, NAN], [0.1, NAN], [0.05, 0.1], [0.0, 0.0]])
    for policy in get_args(Policy):
        assert choose(gain, COST, policy) in (1, 2)
    assert choose(gain, COST, "best") == 1


@pytest.mark.parametrize(("shortfall", "row"), [(0.8, 0), (1.2, 2)])
def test_the_rule_of_one_standard_error_on_a_known_error(shortfall: float, row: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, size=40)
    noise -= noise.mean()
    error = noise.std() / math.sqrt(40)
    best = np.full(40, 0.1)
    gain = np.stack([best - shortfall * error + noise, best - 0.3, best, np.zeros(40)])
    assert choose(gain, COST, "cheapest_equal") == row
    assert choose(gain, COST, "best") == 2
    behind, errors = shortfalls(gain, np.array(2))
    assert (behind[0], errors[0]) == pytest.approx((shortfall * error, error))


def test_the_error_of_a_lone_task_is_what_is_given() -> None:
    gain = np.array([[0.08], [0.09], [0.1], [0.0]])
    assert choose(gain, COST, "cheapest_equal") == 2
    given = np.array([0.01, 0.015, NAN, 0.01])
    assert choose(gain, COST, "cheapest_equal", given) == 1


def test_many_rankings_at_once_are_those_one_by_one() -> None:
    gain = np.random.default_rng(1).normal(size=(6, 4, 5))
    gain[:, 3] = 0
    for policy in get_args(Policy):
        rule = partial(choose, cost_L=COST, policy=policy)
        assert rule(gain).tolist() == [int(rule(each)) for each in gain]
        values, rows = left_out(gain, rule)
        for each, of_each, taken in zip(gain, values, rows, strict=True):
            alone = left_out(each, rule)
            assert np.array_equal(alone[0], of_each)
            assert np.array_equal(alone[1], taken)


def test_no_unit_judges_the_layer_that_it_helped_to_choose() -> None:
    # Every unit has a layer of its own that leads by far in it, and loses elsewhere.
    gain = np.full((4, 3), -0.1)
    gain[[0, 1, 2], [0, 1, 2]] = 0.5
    gain[3] = 0.0
    rule = partial(choose, cost_L=COST, policy="best")
    assert mean_over(gain)[rule(gain)] == pytest.approx(0.1)
    values, rows = left_out(gain, rule)
    assert values == pytest.approx([-0.1] * 3)
    assert rows.tolist() == [1, 0, 0]


def test_a_unit_that_the_choice_lacks_does_not_judge_it() -> None:
    gain = np.array([[0.5, 0.5, NAN], [0.1, 0.1, 0.1], [0.0, 0.0, 0.0]])
    values, _ = left_out(gain, partial(choose, cost_L=[0, 0.5, 1], policy="best"))
    assert values == pytest.approx([0.5, 0.5, NAN], nan_ok=True)


def test_choosing_by_noise_alone_gains_nothing() -> None:
    # 20 layers that are all alike: the highest mean is far above 0, its gain left out is not.
    generator = np.random.default_rng(2)
    gain = generator.normal(0, 0.05, size=(400, 20, 4))
    gain[:, -1] = 0
    rule = partial(choose, cost_L=np.linspace(0, 1, 20), policy="best")
    naive = np.take_along_axis(mean_over(gain), rule(gain)[:, None], axis=1).mean()
    assert naive > 0.04
    assert abs(mean_over(left_out(gain, rule)[0]).mean()) < 0.004


def test_the_optimism_of_resamples_by_hand() -> None:
    gain = np.array([0.1, 0.1, 0.0])
    resampled = np.array([[0.3, 0.0], [0.0, 0.2], [0.0, 0.0]])
    rule = partial(choose, cost_L=[0, 0.5, 1], policy="best")
    assert flattery(gain, resampled, rule) == pytest.approx((0.2 + 0.1) / 2)
    assert flattery(np.array([0.4, 0.4, 0.0]), resampled, rule) == 0


def test_a_layer_that_lacks_a_hard_unit_is_compared_where_both_have_a_gain() -> None:
    # Row 0 is behind row 1 wherever it is scored; without the last unit its mean is higher.
    gain = np.array([[0.045, 0.053, 0.061, NAN], [0.05, 0.058, 0.066, 0.01], [NAN] * 4, [0.0] * 4])
    even = even_gains(gain)
    assert even == pytest.approx([0.046 - 0.005, 0.046, NAN, 0.0], nan_ok=True)
    assert mean_over(gain)[0] > mean_over(gain)[1]
    for policy in ("best", "last_unless_significant"):
        assert choose(gain, COST, policy) == 1
    whole = np.random.default_rng(0).normal(size=(3, 4, 5))
    assert np.array_equal(even_gains(whole), mean_over(whole))
    both = even_gains(np.stack([gain, np.where(np.isnan(gain), 0.0, gain)]))
    assert both[0] == pytest.approx(even, nan_ok=True)
