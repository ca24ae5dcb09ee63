"""Advice from evidence: which layer each policy takes, why, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.operators.ranking import Policy
from layerrank.operators.ranking.evidence import Evidence, weigh
from layerrank.operators.ranking.policy import Kind, Reason, Sure, Verdict, pareto, recommend
from layerrank.operators.ranking.scores import TaskScores
from tests.operators.ranking.test_ranking_evidence import (
    GOLDEN,
    folded,
    published,
    single,
    singles,
)

NAN = math.nan
CHEAPEST: Policy = "cheapest_equal"
PROVEN: Policy = "last_unless_significant"
POLICIES: tuple[Policy, ...] = get_args(Policy)
COST = [0.25, 0.5, 1.0]
LAYERS = [6, 12, 24]

# The gain of layers 6 and 12 over the last in every task; the last gains 0.
CLEAR = np.array([[0.02, 0.03, 0.01] * 3, [0.10, 0.14, 0.12] * 3])
DOUBTFUL = np.array([[-0.1, -0.1, -0.1], [0.10, -0.02, 0.01]])
WORSE = np.array([[-0.10, -0.11, -0.12], [-0.01, -0.02, -0.04]])
NEARLY = np.array([[0.10, 0.14, 0.12, 0.10], [0.11, 0.13, 0.14, 0.09]])


def advised(
    gain_LT: npt.NDArray[np.float64],
    policy: Policy = "best",
    *,
    folds: int = 1,
    noise: float = 0.0,
    cost: Sequence[float] = COST,
) -> tuple[Evidence, Verdict]:
    """Return what is advised of tasks with these gains over a last layer that scores 0.5."""
    generator = np.random.default_rng(0)
    tasks = []
    for number, gain_L in enumerate(gain_LT.T):
        score_L = 0.5 + np.append(gain_L, 0.0)
        around_LF = generator.normal(0, noise, size=(len(score_L), folds))
        around_LF -= around_LF.mean(axis=1, keepdims=True)
        tasks.append(folded(f"task-{number:02}", score_L[:, None] + around_LF))
    found = weigh(tasks, layers=LAYERS, cost_L=cost, policy=policy)
    return found, recommend(found, cost)


@pytest.mark.parametrize(
    ("gain", "policy", "how", "kind", "layer", "reason", "sure"),
    [
        (CLEAR, "best", (1, 0.0), "use_layer", 12, "highest", "new_task"),
        (CLEAR, PROVEN, (1, 0.0), "use_layer", 12, "proven", "new_task"),
        (CLEAR[:, :5], PROVEN, (1, 0.0), "not_enough_evidence", 24, "few_tasks", "new_task"),
        (CLEAR[:, :2], "best", (10, 0.01), "use_layer", 12, "highest", "these_tasks"),
        (CLEAR[:, :2], "best", (1, 0.0), "not_enough_evidence", 12, "single_score", "nothing"),
        (CLEAR[:, :1], "best", (10, 0.01), "use_layer", 12, "highest", "these_tasks"),
        (CLEAR[:, :1], "best", (10, 0.15), "not_enough_evidence", 12, "unsure", "nothing"),
        (DOUBTFUL, "best", (1, 0.0), "not_enough_evidence", 12, "unsure", "nothing"),
        (DOUBTFUL, "best", (10, 0.01), "not_enough_evidence", 12, "unsure", "nothing"),
        (np.tile(DOUBTFUL, 3), PROVEN, (1, 0.0), "not_enough_evidence", 24, "unproven", "nothing"),
        (WORSE, "best", (1, 0.0), "keep_last", 24, "none_higher", "nothing"),
        (WORSE, PROVEN, (1, 0.0), "keep_last", 24, "none_higher", "nothing"),
        (NEARLY, CHEAPEST, (1, 0.0), "use_layer", 6, "as_good_as_best", "new_task"),
        (NEARLY, "best", (1, 0.0), "use_layer", 12, "highest", "new_task"),
        (WORSE, CHEAPEST, (1, 0.0), "keep_last", 24, "none_cheaper_as_good", "nothing"),
    ],
)
def test_verdicts(
    gain: npt.NDArray[np.float64],
    policy: Policy,
    how: tuple[int, float],
    kind: Kind,
    layer: int,
    reason: Reason,
    sure: Sure,
) -> None:
    _, verdict = advised(gain, policy, folds=how[0], noise=how[1])
    assert verdict == Verdict(
        kind, layer, 1 - dict(zip(LAYERS, COST, strict=True))[layer], reason, sure
    )


def test_choosing_that_gains_nothing_on_what_is_left_out_is_no_advice() -> None:
    # Each of two layers leads by far in one task and is behind in the other.
    found, verdict = advised(np.array([[0.30, -0.01], [-0.02, 0.20]]), folds=10, noise=0.001)
    assert found.choice is not None
    assert found.choice.naive > 0.1
    assert found.choice.gain < 0
    assert (verdict.kind, verdict.layer, verdict.sure) == ("not_enough_evidence", 6, "nothing")


def test_layers_that_score_the_same_are_no_choice() -> None:
    for policy, kind, layer in (
        ("best", "keep_last", 24),
        (PROVEN, "keep_last", 24),
        (CHEAPEST, "not_enough_evidence", 6),
    ):
        _, verdict = advised(np.zeros((2, 6)), policy)  # type: ignore[arg-type]
        assert (verdict.kind, verdict.layer) == (kind, layer)


def test_the_cheapest_is_no_advice_where_nothing_is_sure_of_it() -> None:
    # Layer 6 is within one standard error of layer 12, and below the last one.
    gain = np.array([[0.1, 0.0, -0.2], [0.3, -0.1, -0.1]])
    found, verdict = advised(gain, CHEAPEST)
    assert found.choice is not None
    assert (verdict.layer, verdict.reason) == (6, "as_good_as_best")
    assert (verdict.kind, verdict.sure) == ("not_enough_evidence", "nothing")


def test_without_labels_or_scores_or_the_last_layer() -> None:
    def of(*tasks: TaskScores) -> Verdict:
        return recommend(weigh(tasks, layers=[0, 1]), [0, 1])

    assert of() == Verdict("no_labels", 1, 0, "no_labels")
    assert of(single("blank", [NAN, NAN])) == Verdict("not_enough_evidence", 1, 0, "no_score")
    without = [single(f"{n}", [0.6, NAN]) for n in range(3)]
    nothing = Verdict("not_enough_evidence", 1, 0, "no_last")
    assert of(*without) == nothing
    assert of(*without[:2], single("x", [0.4, 0.5])) == nothing  # in one of three tasks
    assert of(without[0], single("x", [0.4, 0.5])).kind == "keep_last"  # in half of them


def test_costs_decide_not_layer_numbers() -> None:
    assert advised(NEARLY, CHEAPEST, cost=[0.9, 0.5, 1.0])[1].layer == 12
    assert advised(NEARLY, CHEAPEST, cost=[0.5, 0.5, 1.0])[1].layer == 12
    assert advised(NEARLY, CHEAPEST, cost=[0.7, 0.75, 1.0])[1].saved == pytest.approx(0.3)


def test_a_test_of_one_layer_is_no_test_of_the_best_of_two() -> None:
    # 2 of 64 flips reach the leader's gain by itself, 2 more by the other layer.
    gain = np.array([[0.01] * 5 + [-0.01], [0.02] * 6])
    found, verdict = advised(gain, PROVEN)
    leader = found.row(12)
    assert (leader.p_value, leader.p_max) == (2 / 64, 4 / 64)
    assert (verdict.kind, verdict.reason) == ("not_enough_evidence", "unproven")


def test_the_level_decides() -> None:
    gains = np.linspace(-0.04, 0.08, 12)  # mean 0.02, standard error 0.011
    tasks = singles(np.stack([0.5 + gains, np.full(12, 0.5)]))
    strict, mild = (
        recommend(weigh(tasks, layers=[0, 1], level=level, policy=PROVEN), [0, 1])
        for level in (0.999, 0.5)
    )
    assert strict.kind == "not_enough_evidence"
    assert mild.kind == "use_layer"


def test_costs_without_meaning_are_errors() -> None:
    known, _ = advised(CLEAR)
    for costs, message in (
        ([0, 0.5], r"one cost for each of 3 layers, got \(2,\)"),
        ([0.5, 1.5, 1], r"cost of layer 12 is 1\.5"),
        ([0.5, 0.5, NAN], "cost of layer 24 is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            recommend(known, costs)


def test_pareto_by_hand() -> None:
    score = [0.2, 0.5, 0.4, 0.5, 0.5, NAN, 0.9]
    cost = [0.0, 0.2, 0.3, 0.2, 0.4, 0.1, 1.0]
    assert pareto(score, cost).tolist() == [True, True, False, True, False, False, True]
    with pytest.raises(ValueError, match="a score and a finite cost"):
        pareto([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="1 of them not finite"):
        pareto([0.1, 0.2], [0.1, NAN])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    score, cost = np.array(points, np.float64).T / 6
    front = pareto(score, cost)
    assert front[np.lexsort((cost, -score))[0]]
    on = np.argsort(cost[front], kind="stable")
    assert (np.diff(score[front][on]) >= 0).all()
    for row in np.flatnonzero(~front):
        dominates = (score >= score[row]) & (cost <= cost[row])
        assert (dominates & ((score > score[row]) | (cost < cost[row])) & front).any()


def test_pythia_410m_is_cut_after_layer_17() -> None:
    for policy in POLICIES:
        found = weigh(published(GOLDEN, "main"), layers=range(25), policy=policy)
        advice = recommend(found, np.arange(25) / 24)
        assert (advice.kind, advice.layer, advice.sure) == ("use_layer", 17, "new_task")
        assert advice.saved == pytest.approx(7 / 24)
    front = pareto([row.score for row in found.layers], np.arange(25) / 24)
    assert front[17]
    assert not front[18:].any()


@pytest.mark.parametrize(
    ("better", "kind", "reason", "layer"),
    [
        # Rows: layer 0 as ranked and other vectors of it; the last as ranked, the baseline; others.
        ([0.1, 0.1, 0, 0.3], "use_layer", "highest", 1),
        ([0.1, 0.4, 0, 0.3], "use_layer", "highest", 0),
        ([-0.1, -0.1, 0, -0.2], "keep_last", "none_higher", 1),
    ],
)
def test_other_vectors_of_the_last_layer_are_advice_and_what_they_gain_is_over_it(
    better: Sequence[float], kind: Kind, reason: Reason, layer: int
) -> None:
    scores = 0.5 + np.array(better)[:, None] + [0.0, 0.002, -0.002]
    found = weigh(singles(scores + np.eye(4, 3) * 0.003), layers=[0, 0, 1, 1])
    verdict = recommend(found, [0.2, 1.0])
    assert (verdict.kind, verdict.reason, verdict.layer) == (kind, reason, layer)
    assert verdict.saved == pytest.approx(0.8 if layer == 0 else 0)


def test_other_vectors_of_the_last_layer_that_lead_by_chance_leave_it_as_it_is() -> None:
    scores = np.array([[0.1, 0.2, 0.1], [0.1, 0.1, 0.2], [0.5, 0.5, 0.5], [0.3, 0.9, 0.4]])
    found = weigh(singles(scores), layers=[0, 0, 1, 1])
    verdict = recommend(found, [0.2, 1.0])
    assert (verdict.kind, verdict.reason) == ("keep_last", "no_other_layer")
    assert verdict.layer == 1
