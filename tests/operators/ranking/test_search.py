"""Searches that spend less and recommend the same: on simulated folds and published scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.ranking.search import (
    Cells,
    Rule,
    Search,
    State,
    eliminate,
    finished,
    halving,
    next_round,
    replay,
    shortfalls,
)
from tests.support.published import PUBLISHED, layer_scores
from tests.support.simulated import Scores, peaked


def folds_of(scores: Scores) -> list[int]:
    return [int(n) for n in (~np.isnan(scores[0])).sum(axis=1)]


def search(scores: Scores, rule: Rule | None = None, layers: list[int] | None = None) -> Search:
    names = layers or list(range(len(scores)))

    def score(asked: list[int], fold_from: int, fold_to: int) -> Scores:
        return scores[[names.index(layer) for layer in asked], :, fold_from:fold_to]

    return halving(score, names, folds_of(scores), rule=rule)


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
    found = search(scores)
    assert found.survivors == [16, 24]
    assert found.share == pytest.approx((25 * 3 + 2 * 7) / 250)
    assert [(one.budget, len(one.layers)) for one in found.rounds] == [(3, 25), (5, 2), (10, 2)]
    assert len(found.rounds[0].dropped) == 23
    reason = found.rounds[0].dropped[0].reason
    assert reason.startswith("layer 0 is ")
    assert "points behind layer 16 so far" in reason
    assert np.isnan(found.scores_LTF[0, 0, 3:]).all()
    assert not np.isnan(found.scores_LTF[[16, 24]]).any()


def test_the_recommendation_is_that_of_the_full_sweep() -> None:
    seeds, agree, shares = range(100), 0, []
    for seed in seeds:
        scores = peaked(n_layers=25, seed=seed)
        found = search(scores)
        agree += recommended(found.scores_LTF) == recommended(scores)
        shares.append(found.share)
        assert not found.rounds[-1].dropped
    assert agree >= 99
    assert np.mean(shares) < 0.65


def test_several_tasks_with_different_folds() -> None:
    scores = peaked(25, n_tasks=3, seed=1)
    scores[:, 1, 1:] = math.nan
    found = search(scores)
    asked = [cells for cells in next_cells(found, 3) if cells.task == 1]
    assert {(cells.fold_from, cells.fold_to) for cells in asked} == {(0, 1)}
    assert len(asked) == 25
    assert found.share < 1
    assert found.share == pytest.approx((~np.isnan(found.scores_LTF)).sum() / (25 * 21))


def next_cells(found: Search, n_tasks: int) -> list[Cells]:
    n_layers, _, n_folds = found.scores_LTF.shape
    blank = np.full((n_layers, n_tasks, n_folds), math.nan)
    state = State(tuple(range(n_layers)), (10, 1, 10), blank, np.zeros(blank.shape, dtype=bool))
    pending = next_round(state, Rule())
    assert pending is not None
    return pending.missing


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(9)))
def test_the_order_of_layers_does_not_matter(seed: int, order: list[int]) -> None:
    scores = peaked(9, seed=seed)
    scores[4] = scores[5]
    plain, mixed = search(scores), search(scores[order], layers=order)
    assert plain.rounds == mixed.rounds
    assert plain.share == mixed.share
    assert np.array_equal(plain.scores_LTF[order], mixed.scores_LTF, equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.5))
def test_the_last_layer_the_best_and_what_is_asked_for_survive(seed: int, loss: float) -> None:
    scores = peaked(9, seed=seed)
    scores[[2, 8]] -= loss
    found = search(scores, Rule(always=(2,)))
    assert {2, 8} <= set(found.survivors)
    after = np.nanmean(found.scores_LTF[found.survivors], axis=(1, 2))
    assert not np.isnan(after).any()
    kept = search(scores - 10 * np.arange(9)[:, None, None], Rule(keep=4))
    assert {0, 1, 2, 3, 8} <= set(kept.survivors)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 8), st.integers(0, 8))
def test_identical_layers_never_lose_one_another(seed: int, one: int, other: int) -> None:
    scores = peaked(10, seed=seed)
    scores[one] = scores[other]
    survivors = search(scores).survivors
    assert (one in survivors) == (other in survivors)


def test_a_tie_of_all_layers_costs_the_full_sweep() -> None:
    same = np.repeat(peaked(1), 7, axis=0)
    found = search(same)
    assert (found.survivors, found.share) == (list(range(7)), 1)


def test_scores_that_agree_by_chance_are_not_certain() -> None:
    # Three folds of rounded scores: layer 1 is 0.02 behind each time, the others scatter.
    scores = np.round(peaked(7, seed=3), 2)
    scores[1, 0, :3] = scores[5, 0, :3] - 0.02
    scores[5] += 0.02
    state_scores = scores[:, :, :3]
    dropped = eliminate(state_scores, [10], Rule(), layers=range(7), budget=3)
    assert 1 not in [drop.layer for drop in dropped]
    # Where all differences are constant they are certain.
    flat = np.linspace(0.5, 0.6, 7)[:, None, None] + peaked(1)
    assert search(flat).survivors == [6]


def test_a_budget_beyond_the_folds_is_the_whole() -> None:
    found = search(peaked(7), Rule(budgets=(3, 10, 20)))
    assert [one.budget for one in found.rounds] == [3, 10]
    assert [one.budget for one in search(peaked(7), Rule(budgets=())).rounds] == [10]


def test_nothing_is_dropped_before_the_least_cells() -> None:
    scores = peaked(7) - 0.2 * np.arange(7)[:, None, None]
    assert search(scores, Rule(budgets=(1, 2))).share == 1
    early = search(scores, Rule(budgets=(1, 2), least_cells=2))
    assert early.share == pytest.approx((7 * 2 + 2 * 8) / 70)


def test_an_undefined_score_drops_the_layer_but_not_the_baseline() -> None:
    scores = peaked(7)
    state = State(tuple(range(7)), (10,), scores, np.ones(scores.shape, dtype=bool))
    scores[[1, 6], 0, 2] = math.nan
    first = replay(state, Rule())[0]
    assert [drop.reason for drop in first.dropped if drop.layer == 1] == [
        "layer 1 has an undefined score"
    ]
    assert 6 in finished(state, Rule()).survivors
    nothing = State(state.layers, (10,), scores * math.nan, state.done_LTF)
    assert finished(nothing, Rule()).survivors == [6]


def test_a_search_resumes_from_what_is_scored() -> None:
    scores = peaked(25)
    whole = search(scores)
    state = State(tuple(range(25)), (10,), scores.copy(), np.zeros(scores.shape, dtype=bool))
    state.done_LTF[:, :, :3] = True
    state.done_LTF[whole.rounds[1].layers[0], :, 3] = True
    pending = next_round(state, Rule())
    assert pending is not None
    assert (pending.budget, pending.layers) == (5, whole.rounds[1].layers)
    assert pending.missing[0] == Cells(whole.rounds[1].layers[0], 0, 4, 5)
    assert pending.missing[1] == Cells(whole.rounds[1].layers[1], 0, 3, 5)
    with pytest.raises(ValueError, match=f"misses {len(pending.missing)} pieces"):
        finished(state, Rule())
    # Scores beyond the budget of a round, as of a full sweep, do not change what it drops.
    state.done_LTF[:] = True
    assert finished(state, Rule()).rounds == whole.rounds
    assert next_round(state, Rule()) is None


def test_tables_without_meaning_are_errors() -> None:
    scores = peaked(3)
    done = np.ones(scores.shape, dtype=bool)
    with pytest.raises(ValueError, match="needs layers, tasks and folds"):
        State((0, 1, 2), (), scores, done)
    with pytest.raises(ValueError, match="repeated"):
        State((0, 1, 1), (10,), scores, done)
    with pytest.raises(ValueError, match=r"scores: .* is \(3, 1, 9\), got \(3, 1, 10\)"):
        State((0, 1, 2), (9,), scores, done)
    with pytest.raises(ValueError, match=r"score returned \(1, 1, 1\) for layers \[0, 1\]"):
        halving(lambda *_: np.zeros((1, 1, 1)), [0, 1], [10])


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published layer scores are not here")
@pytest.mark.parametrize("revision", ["main", "step32000", "step1"])
def test_the_published_scores_with_tasks_as_cells(revision: str) -> None:
    of_task = layer_scores(PUBLISHED, revision)
    scores = np.stack([of_task[task] for task in sorted(of_task)], axis=1)[:, None]
    shares = []
    for seed in range(20):
        mixed = scores[:, :, np.random.default_rng(seed).permutation(len(of_task))]
        found = search(mixed, Rule(budgets=(8, 16)))
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
