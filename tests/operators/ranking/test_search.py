"""Searches that spend less and recommend the same: on simulated folds and published scores."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerrank.operators.ranking.search import Cells, Rule, State, eliminate, replay, shortfalls
from tests.support.published import PUBLISHED, layer_scores
from tests.support.simulated import Scores, peaked, search


def state_of(scores: Scores, **given: Any) -> State:  # noqa: ANN401
    """Everything is done."""
    n_folds = tuple((~np.isnan(scores[-1])).sum(axis=1).tolist())
    known = {"layers": tuple(range(len(scores))), "n_folds": n_folds, "scores_LTF": scores}
    return State(**{**known, "done_LTF": np.ones(scores.shape, dtype=bool), **given})


def survivors(scores: Scores, rule: Rule | None = None) -> list[int]:
    return search(scores, rule)[1][-1].layers


def recommended(scores: Scores) -> int:
    """Cheapest layer at most one standard error behind the best, of those scored on every fold."""
    complete = np.flatnonzero(~np.isnan(scores).any(axis=(1, 2)))
    kept = scores[complete]
    difference = kept[kept.mean(axis=(1, 2)).argmax()] - kept
    of_task = difference.mean(axis=2)
    within = (difference.var(axis=2) / difference.shape[2]).mean(axis=1)
    error = np.sqrt((of_task.var(axis=1) + within) / difference.shape[1])
    return int(complete[np.flatnonzero(of_task.mean(axis=1) <= error)[0]])


def test_a_clear_winner_costs_little() -> None:
    scores = peaked(25) - 0.3 * (np.arange(25) != 16)[:, None, None]
    found, rounds = search(scores)
    assert found.share == pytest.approx((25 * 3 + 2 * 7) / 250)
    assert [(one.budget, one.layers) for one in rounds] == [
        (3, [*range(25)]),
        (5, [16, 24]),
        (10, [16, 24]),
    ]
    assert [len(one.dropped) for one in rounds] == [23, 0, 0]
    assert np.isnan(found.scores_LTF[0, 0, 3:]).all()
    assert not np.isnan(found.scores_LTF[[16, 24]]).any()


def test_the_recommendation_is_that_of_the_full_sweep() -> None:
    seeds, agree, shares = range(100), 0, []
    for seed in seeds:
        scores = peaked(n_layers=25, seed=seed)
        found, rounds = search(scores)
        agree += recommended(found.scores_LTF) == recommended(scores)
        shares.append(found.share)
        assert not rounds[-1].dropped
    assert agree >= 99
    assert np.mean(shares) < 0.65


def test_several_tasks_with_different_folds() -> None:
    scores = peaked(25, n_tasks=3, seed=1)
    scores[:, 1, 1:] = math.nan
    unscored = state_of(scores, done_LTF=np.zeros(scores.shape, dtype=bool))
    (first,) = replay(unscored, Rule())
    asked = [(each.fold_from, each.fold_to) for each in first.missing if each.task == 1]
    assert asked == [(0, 1)] * 25
    found, _ = search(scores)
    assert found.share < 1
    assert found.share == pytest.approx((~np.isnan(found.scores_LTF)).sum() / (25 * 21))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(9)))
def test_the_order_of_layers_does_not_matter(seed: int, order: list[int]) -> None:
    scores = peaked(9, seed=seed)
    scores[4] = scores[5]
    (plain, rounds), (mixed, same) = search(scores), search(scores[order], layers=order)
    assert rounds == same
    assert plain.share == mixed.share
    assert np.array_equal(plain.scores_LTF[order], mixed.scores_LTF, equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.5))
def test_the_last_layer_and_the_best_survive(seed: int, loss: float) -> None:
    scores = peaked(9, seed=seed)
    scores[8] -= loss
    found, rounds = search(scores)
    assert 8 in rounds[-1].layers
    assert not np.isnan(found.scores_LTF[rounds[-1].layers]).any()
    assert {0, 8} <= set(survivors(scores - 10 * np.arange(9)[:, None, None]))


def test_a_tie_of_all_layers_costs_the_full_sweep() -> None:
    found, rounds = search(np.repeat(peaked(1), 7, axis=0))
    assert (rounds[-1].layers, found.share) == ([*range(7)], 1)


def test_scores_that_agree_by_chance_are_not_certain() -> None:
    # Three folds of rounded scores: layer 1 is 0.02 behind each time, the others scatter.
    scores = np.round(peaked(7, seed=3), 2)
    scores[1, 0, :3] = scores[5, 0, :3] - 0.02
    scores[5] += 0.02
    assert 1 not in eliminate(state_of(scores), Rule(), layers=range(7), budget=3)
    # Where all differences are constant they are certain.
    flat = np.linspace(0.5, 0.6, 7)[:, None, None] + peaked(1)
    assert survivors(flat) == [6]


def test_a_budget_beyond_the_folds_is_the_whole() -> None:
    for budgets, taken in (((3, 10, 20), [3, 10]), ((), [10])):
        _, rounds = search(peaked(7), Rule(budgets=budgets))
        assert [one.budget for one in rounds] == taken


def test_nothing_is_dropped_before_the_least_cells() -> None:
    scores = peaked(7) - 0.2 * np.arange(7)[:, None, None]
    assert search(scores, Rule(budgets=(1, 2)))[0].share == 1
    early, _ = search(scores, Rule(budgets=(1, 2), least_cells=2))
    assert early.share == pytest.approx((7 * 2 + 2 * 8) / 70)


def test_an_undefined_score_drops_the_layer_but_not_the_baseline() -> None:
    scores = peaked(7)
    scores[[1, 6], 0, 2] = math.nan
    rounds = replay(state_of(scores, n_folds=(10,)), Rule())
    assert 1 in rounds[0].dropped
    assert 6 in rounds[-1].layers
    assert replay(state_of(scores * math.nan, n_folds=(10,)), Rule())[-1].layers == [6]


def test_a_search_resumes_from_what_is_scored() -> None:
    scores = peaked(25)
    _, whole = search(scores)
    state = state_of(scores, done_LTF=np.zeros(scores.shape, dtype=bool))
    state.done_LTF[:, :, :3] = True
    first, second, *_ = whole[1].layers
    state.done_LTF[first, :, 3] = True
    pending = replay(state, Rule())[-1]
    assert (pending.budget, pending.layers) == (5, whole[1].layers)
    assert pending.missing[:2] == [Cells(first, 0, 4, 5), Cells(second, 0, 3, 5)]
    # Scores beyond the budget of a round, as of a full sweep, do not change what it drops.
    state.done_LTF[:] = True
    assert replay(state, Rule()) == whole


def test_tables_without_meaning_are_errors() -> None:
    scores = peaked(3)
    with pytest.raises(ValueError, match="needs layers, tasks and folds"):
        state_of(scores, n_folds=())
    with pytest.raises(ValueError, match="repeated"):
        state_of(scores, layers=(0, 1, 1))
    with pytest.raises(ValueError, match=r"scores: .* is \(3, 1, 9\), got \(3, 1, 10\)"):
        state_of(scores, n_folds=(9,))


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published layer scores are not here")
@pytest.mark.parametrize("revision", ["main", "step32000", "step1"])
def test_the_published_scores_with_tasks_as_cells(revision: str) -> None:
    of_task = layer_scores(PUBLISHED, revision)
    scores = np.stack([of_task[task] for task in sorted(of_task)], axis=1)[:, None]
    shares = []
    for seed in range(20):
        mixed = scores[:, :, np.random.default_rng(seed).permutation(len(of_task))]
        found, _ = search(mixed, Rule(budgets=(8, 16)))
        assert recommended(found.scores_LTF) == recommended(scores)
        shares.append(found.share)
    assert np.mean(shares) < 0.72


# --- what a few folds rule out: bounds against closed forms, the bootstrap and simulations


def bounds(scores: Scores, n_folds: list[int], best: int) -> tuple[Scores, Scores, Scores]:
    difference = scores[best] - scores
    noise = np.zeros(difference.shape[:2])
    found = shortfalls(difference, np.array(n_folds), noise, best=best, level=0.99)
    return found.behind_L, found.least_L, found.error_L


def test_the_predicted_error_is_that_of_the_two_stage_bootstrap() -> None:
    scores = np.random.default_rng(0).normal(0.5, 0.1, size=(2, 6, 4))
    scores[:, 1, 2:] = math.nan
    difference, folds = scores[0] - scores[1], [4, 2, 4, 4, 4, 4]
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
        ordered = state_of(scores[[*order]], layers=tuple(order))
        assert eliminate(ordered, Rule(), layers=order, budget=5) == [0, 1, 2, 4]


def test_replicates_of_a_single_score_keep_layers_in() -> None:
    # One task with folds tells the layers apart; one with a single noisy score may overturn it.
    scores = np.full((4, 2, 10), math.nan)
    scores[:, 0] = 0.5 + 0.01 * np.arange(4)[:, None] + 1e-4 * np.random.default_rng(0).random(10)
    scores[:, 1, 0] = 0.5 + 0.01 * np.arange(4)
    noisy = np.full((4, 2, 50), math.nan)
    noisy[:, 1, :40] = np.random.default_rng(1).normal(0.5, 0.1, size=(4, 40))
    noisy[2, 1, 7] = math.nan
    quiet = 0.5 + (noisy - 0.5) / 1000
    for replicates, dropped in ((None, [0, 1, 2]), (noisy, []), (quiet, [0, 1, 2])):
        state = state_of(scores, replicates_LTR=replicates)
        assert eliminate(state, Rule(), layers=range(4), budget=3) == dropped
    noisy_state = state_of(scores, replicates_LTR=noisy)
    assert replay(noisy_state, Rule(budgets=(3,)))[-1].layers == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": (5, 3)}, "positive and ascending"),
        ({"budgets": (0, 3)}, "positive and ascending"),
        ({"level": 1.0}, r"level must be in \[0.5, 1\)"),
        ({"least_cells": 1}, "least_cells must be at least 2"),
    ],
)
def test_rules_without_meaning_are_errors(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**settings)  # type: ignore[arg-type]  # one wrong value at a time
