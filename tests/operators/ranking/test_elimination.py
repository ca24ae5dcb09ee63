"""Which layers a few folds rule out: bounds against closed forms, the bootstrap and simulations."""

import math

import numpy as np
import pytest

from operators.ranking.search import Rule, State, eliminate, finished, shortfalls
from tests.support.simulated import Scores, peaked


def folds_of(scores: Scores) -> list[int]:
    return [int(n) for n in (~np.isnan(scores[0])).sum(axis=1)]


def bounds(scores: Scores, n_folds: list[int], best: int) -> tuple[Scores, Scores, Scores]:
    difference = scores[best] - scores
    noise = np.zeros(difference.shape[:2])
    found = shortfalls(difference, np.array(n_folds), noise, best=best, level=0.99)
    return found.behind_L, found.least_L, found.error_L


def test_the_predicted_error_is_that_of_the_two_stage_bootstrap() -> None:
    scores = np.random.default_rng(0).normal(0.5, 0.1, size=(2, 6, 4))
    scores[:, 1, 2:] = math.nan
    difference, folds = scores[0] - scores[1], folds_of(scores)
    generator = np.random.default_rng(1)
    draws = [
        np.mean([generator.choice(difference[t, : folds[t]], folds[t]).mean() for t in tasks])
        for tasks in generator.integers(6, size=(6000, 6))
    ]
    behind, least, error = bounds(scores, folds, best=0)
    assert behind[1] == pytest.approx(np.mean(draws), abs=0.005)
    assert error[1] == pytest.approx(np.std(draws), rel=0.03)
    # Nothing is left to score, so nothing is uncertain about the full sweep.
    assert least == pytest.approx(behind)


def test_the_bound_by_hand() -> None:
    # Differences 1, 2, 3 of 10 folds: mean 2, variance 1, q = t(0.99, 2) = 6.9646.
    scores = np.array([[[3.0, 3, 3]], [[2.0, 1, 0]]])
    behind, least, error = bounds(scores, [10], best=0)
    assert behind[1] == pytest.approx(2)
    assert least[1] == pytest.approx(2 - 6.9646 * math.sqrt(1 / 3 - 1 / 10), abs=1e-3)
    assert error[1] == pytest.approx(math.sqrt(9 / 100))


def test_the_bound_holds_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    held = []
    for _ in range(600):
        scores = generator.normal(0, 1, size=(2, 2, 10))
        whole = float((scores[0] - scores[1]).mean())
        difference = (scores[0] - scores)[:, :, :4]
        found = shortfalls(difference, np.array([10, 10]), np.zeros((2, 2)), best=0, level=0.9)
        held.append(found.least_L[1] <= whole)
    assert np.mean(held) == pytest.approx(0.9, abs=0.03)


def test_of_equally_good_layers_the_lower_is_the_reference() -> None:
    scores = peaked(7)
    scores[[3, 5]] += 0.3
    scores[3] = scores[5]
    for order in (range(7), [6, 5, 4, 3, 2, 1, 0]):
        dropped = eliminate(scores[list(order)], [10], Rule(), layers=order, budget=5)
        assert [drop.layer for drop in dropped] == [0, 1, 2, 4]
        assert all("behind layer 3" in drop.reason for drop in dropped)


def test_replicates_of_a_single_score_keep_layers_in() -> None:
    # One task with folds tells the layers apart; one with a single noisy score may overturn it.
    scores = np.full((4, 2, 10), math.nan)
    scores[:, 0] = 0.5 + 0.01 * np.arange(4)[:, None] + 1e-4 * np.random.default_rng(0).random(10)
    scores[:, 1, 0] = 0.5 + 0.01 * np.arange(4)
    noisy = np.full((4, 2, 50), math.nan)
    noisy[:, 1, :40] = np.random.default_rng(1).normal(0.5, 0.1, size=(4, 40))
    noisy[2, 1, 7] = math.nan
    folds, names = [10, 1], range(4)
    dropped = eliminate(scores, folds, Rule(), layers=names, budget=3)
    assert [drop.layer for drop in dropped] == [0, 1, 2]
    assert not eliminate(scores, folds, Rule(), layers=names, budget=3, replicates_LTR=noisy)
    quiet = 0.5 + (noisy - 0.5) / 1000
    still = eliminate(scores, folds, Rule(), layers=names, budget=3, replicates_LTR=quiet)
    assert [drop.layer for drop in still] == [0, 1, 2]
    state = State((0, 1, 2, 3), (10, 1), scores, ~np.isnan(scores), noisy)
    assert finished(state, Rule(budgets=(3,))).survivors == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": (5, 3)}, "positive and ascending"),
        ({"budgets": (0, 3)}, "positive and ascending"),
        ({"level": 1.0}, r"level must be in \[0.5, 1\)"),
        ({"least_cells": 1}, "least_cells must be at least 2"),
        ({"keep": 0}, "keep at least 1"),
    ],
)
def test_rules_without_meaning_are_errors(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**settings)  # type: ignore[arg-type]  # one wrong value at a time
