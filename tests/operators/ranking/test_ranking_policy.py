"""Advice from evidence: which layer each policy takes, why, and what it saves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.ranking.evidence import Evidence, LayerEvidence, weigh
from operators.ranking.policy import Kind, Policy, Reason, Verdict, pareto, recommend
from tests.operators.ranking.test_ranking_evidence import GOLDEN, published, single, singles

NAN = math.nan


BLANK = LayerEvidence(**dict.fromkeys(LayerEvidence.__dataclass_fields__, 0))


def place(layer: int, score: float, *, gain: float = 0.0, half: float = 0.01) -> LayerEvidence:
    """A layer with intervals of the given half-width; `evidence` sets ranks and shortfalls."""
    values: dict[str, Any] = {"gain": gain, "gain_low": gain - half, "gain_high": gain + half}
    values |= {"score": score, "score_low": score - half, "score_high": score + half}
    return replace(BLANK, layer=layer, p_holm=0.002, shortfall_se=half / 2, **values)


def evidence(*rows: LayerEvidence) -> Evidence:
    top = max((row.score for row in rows if not math.isnan(row.score)), default=NAN)
    last, filled = max(row.layer for row in rows), []
    for row in rows:
        better = sum(other.score > row.score for other in rows)
        rank = len(rows) if math.isnan(row.score) else 1 + better
        error = 0.0 if rank == 1 and not math.isnan(row.shortfall_se) else row.shortfall_se
        p = NAN if row.layer == last else row.p_value
        filled.append(
            replace(row, rank=rank, shortfall=top - row.score, shortfall_se=error, p_value=p)
        )
    tasks = [f"task-{n}" for n in range(32)]
    return Evidence(level=0.95, layers=filled, oracle=top, tasks=tasks, unscored=[])


LAST = place(24, 0.468, half=0)
BEST = place(18, 0.520, gain=0.052, half=0.013)
NEAR = place(17, 0.519, gain=0.051, half=0.013)
FAR = place(4, 0.40, gain=-0.068, half=0.004)


TIED = [place(9, 0.4684, gain=4e-4, half=1e-4), place(4, 0.4684, gain=4e-4, half=1e-4), LAST]
UNKNOWN = replace(NEAR, gain=NAN, gain_low=NAN, gain_high=NAN)
WORSE = place(23, 0.46, gain=-0.008, half=0.002)
DOUBTFUL = place(17, 0.472, gain=0.004, half=0.006)
EQUAL = place(23, 0.468, half=0.002)
BELOW = place(20, 0.467, gain=-0.001, half=0.004)
SINGLE, BLANK_LAST = place(17, 0.5, gain=NAN, half=NAN), place(24, NAN)
CHEAPEST: Policy = "cheapest_equal"
PROVEN: Policy = "last_unless_significant"
# The rows, the policy, and what it advises: kind, layer and reason.
CASES: list[tuple[list[LayerEvidence], Policy, Kind, int, Reason]] = [
    ([FAR, NEAR, BEST, LAST], CHEAPEST, "use_layer", 17, "as_good_as_best"),
    ([FAR, NEAR, BEST, LAST], "best", "use_layer", 18, "highest"),
    ([FAR, NEAR, BEST, LAST], PROVEN, "use_layer", 18, "proven"),
    ([FAR, BEST, LAST], CHEAPEST, "use_layer", 18, "none_cheaper_as_good"),
    ([replace(BEST, layer=0), NEAR, LAST], CHEAPEST, "use_layer", 0, "highest_and_cheapest"),
    ([FAR, BELOW, LAST], CHEAPEST, "use_layer", 20, "as_good_as_best"),
    ([FAR, DOUBTFUL, LAST], "best", "use_layer", 17, "highest"),
    ([FAR, DOUBTFUL, LAST], PROVEN, "not_enough_evidence", 24, "unproven"),
    ([FAR, replace(NEAR, p_holm=0.08), LAST], PROVEN, "not_enough_evidence", 24, "unproven"),
    ([FAR, WORSE, LAST], "best", "keep_last", 24, "none_higher"),
    ([FAR, WORSE, LAST], CHEAPEST, "keep_last", 24, "none_cheaper_as_good"),
    (TIED, CHEAPEST, "use_layer", 4, "highest_and_cheapest"),
    ([EQUAL, replace(EQUAL, layer=22), LAST], "best", "use_layer", 22, "highest"),
    ([EQUAL, LAST], PROVEN, "keep_last", 24, "none_higher"),
    ([SINGLE, BLANK_LAST], "best", "not_enough_evidence", 17, "single_score"),
    ([SINGLE, BLANK_LAST], CHEAPEST, "not_enough_evidence", 17, "single_score"),
    ([UNKNOWN, BLANK_LAST], CHEAPEST, "use_layer", 17, "highest_and_cheapest"),
    ([UNKNOWN, BLANK_LAST], PROVEN, "not_enough_evidence", 24, "unproven"),
    ([LAST], CHEAPEST, "keep_last", 24, "none_cheaper_as_good"),
    ([place(17, NAN), BLANK_LAST], "best", "not_enough_evidence", 24, "no_score"),
]


@pytest.mark.parametrize(("rows", "policy", "kind", "layer", "reason"), CASES)
def test_verdicts(
    rows: list[LayerEvidence], policy: Policy, kind: Kind, layer: int, reason: Reason
) -> None:
    advice = recommend(evidence(*rows), [row.layer / 24 for row in rows], policy)
    assert (advice.kind, advice.layer, advice.reason) == (kind, layer, reason)
    assert advice.saved == pytest.approx(1 - layer / 24)


def test_without_labels_or_scores() -> None:
    none = recommend(weigh([], layers=[0, 1]), [0, 1])
    assert none == Verdict("no_labels", 1, 0, "no_labels")
    blank = recommend(weigh([single("blank", [NAN, NAN])], layers=[0, 1]), [0, 1])
    assert blank == Verdict("not_enough_evidence", 1, 0, "no_score")


def test_costs_decide_not_layer_numbers() -> None:
    known = evidence(FAR, NEAR, BEST, LAST)
    assert recommend(known, [0.1, 0.9, 0.5, 1.0], "cheapest_equal").layer == 18
    assert recommend(known, [0.1, 0.5, 0.5, 1.0], "cheapest_equal").layer == 18
    assert recommend(known, [0.1, 0.7, 0.75, 1.0], "cheapest_equal").saved == pytest.approx(0.3)


def test_the_level_is_named_and_decides() -> None:
    gains = np.linspace(-0.04, 0.08, 12)  # mean 0.02, standard error 0.011
    tasks = singles(np.stack([0.5 + gains, np.full(12, 0.5)]))
    strict, mild = (weigh(tasks, layers=[0, 1], level=level) for level in (0.999, 0.5))
    assert recommend(strict, [0, 1], "last_unless_significant").kind == "not_enough_evidence"
    assert recommend(mild, [0, 1], "last_unless_significant").kind == "use_layer"


def test_the_rule_of_one_standard_error_on_a_known_error() -> None:
    # Layer 1 falls short by 0.8 or 1.2 of the standard error of its paired difference.
    noise = np.random.default_rng(0).normal(0, 0.02, size=40)
    noise -= noise.mean()
    error = noise.std() / math.sqrt(40)
    for shortfall, layer in ((0.8 * error, 1), (1.2 * error, 2)):
        scores = np.stack(
            [np.full(40, 0.2), 0.5 - shortfall + noise, np.full(40, 0.5), np.full(40, 0.4)]
        )
        assert recommend(weigh(singles(scores), layers=range(4)), [0, 0.3, 0.6, 1]).layer == layer


def test_costs_and_policies_without_meaning_are_errors() -> None:
    known = evidence(NEAR, LAST)
    for costs, message in (
        ([0, 0.5, 1], r"one cost for each of 2 layers, got \(3,\)"),
        ([1.5, 1], r"cost of layer 17 is 1\.5"),
        ([0.5, NAN], "cost of layer 24 is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            recommend(known, costs)
    with pytest.raises(ValueError, match="'cheapest'; choose from best, cheapest_equal, last"):
        recommend(known, [0.5, 1], "cheapest")  # type: ignore[arg-type]  # the error under test


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
    found = weigh(published(GOLDEN, "main"), layers=range(25))
    for policy in get_args(Policy):
        advice = recommend(found, np.arange(25) / 24, policy)
        assert (advice.kind, advice.layer) == ("use_layer", 17)
        assert advice.saved == pytest.approx(7 / 24)
    front = pareto([row.score for row in found.layers], np.arange(25) / 24)
    assert front[17]
    assert not front[18:].any()
