"""Advice from evidence: which layer each policy takes, what it saves, and how it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.ranking.evidence import Evidence, LayerEvidence, weigh
from operators.ranking.policy import Policy, pareto, recommend
from operators.ranking.sentences import Gap, not_compared, not_counted
from tests.operators.ranking.test_ranking_evidence import GOLDEN, folded, published, single, singles

NAN = math.nan
TASKS = [f"task-{n}" for n in range(32)]


def place(layer: int, score: float, *, gain: float = 0.0, half: float = 0.01) -> LayerEvidence:
    """A layer with an interval of the given half-width; `evidence` sets ranks and shortfalls."""
    return LayerEvidence(
        layer=layer,
        score=score,
        score_low=score - half,
        score_high=score + half,
        rank=0,
        gain=gain,
        gain_low=gain - half,
        gain_high=gain + half,
        mean_rank=1.0,
        won=0.5,
        p_value=0.001,
        p_holm=0.002,
        p_best=0.5,
        shortfall=NAN,
        shortfall_se=half / 2,
    )


def evidence(*rows: LayerEvidence, tasks: Sequence[str] = TASKS) -> Evidence:
    top = max((row.score for row in rows if not math.isnan(row.score)), default=NAN)
    last = max(row.layer for row in rows)
    filled = []
    for row in rows:
        better = sum(other.score > row.score for other in rows)
        rank = len(rows) if math.isnan(row.score) else 1 + better
        shortfall_se = 0.0 if rank == 1 and not math.isnan(row.shortfall_se) else row.shortfall_se
        p = NAN if row.layer == last else row.p_value
        shortfall = top - row.score
        filled.append(
            replace(row, rank=rank, shortfall=shortfall, shortfall_se=shortfall_se, p_value=p)
        )
    return Evidence(level=0.95, layers=filled, oracle=top, tasks=list(tasks), unscored=[])


LAST = place(24, 0.468, half=0)
BEST = place(18, 0.520, gain=0.052, half=0.013)
NEAR = place(17, 0.519, gain=0.051, half=0.013)
FAR = place(4, 0.40, gain=-0.068, half=0.004)


@pytest.mark.parametrize(
    ("rows", "policy", "kind", "layer", "sentence"),
    [
        (
            [FAR, NEAR, BEST, LAST],
            "cheapest_equal",
            "use_layer",
            17,
            "Use layer 17: the cheapest that cannot be told from the best (layer 18, 0.1 points "
            "more); it scores 5.1 points more than the last layer (95 % interval 3.8 to 6.4) and "
            "saves 29 % of the compute.",
        ),
        (
            [FAR, NEAR, BEST, LAST],
            "best",
            "use_layer",
            18,
            "Use layer 18: the highest score; it scores 5.2 points more than the last layer "
            "(95 % interval 3.9 to 6.5) and saves 25 % of the compute.",
        ),
        (
            [FAR, NEAR, BEST, LAST],
            "last_unless_significant",
            "use_layer",
            18,
            "Use layer 18: the highest score, significantly above the last layer's (p = 0.002 "
            "after Holm's correction for 3 comparisons); it scores 5.2 points more than the last "
            "layer (95 % interval 3.9 to 6.5) and saves 25 % of the compute.",
        ),
        (
            [FAR, BEST, LAST],
            "cheapest_equal",
            "use_layer",
            18,
            "Use layer 18: the highest score, and no cheaper layer comes within one standard error "
            "of it; it scores 5.2 points more than the last layer (95 % interval 3.9 to 6.5) and "
            "saves 25 % of the compute.",
        ),
        (
            [replace(BEST, layer=0), NEAR, LAST],
            "cheapest_equal",
            "use_layer",
            0,
            "Use layer 0: the highest score at the lowest cost; it scores 5.2 points more than the "
            "last layer (95 % interval 3.9 to 6.5) and saves 100 % of the compute.",
        ),
        (
            [FAR, place(20, 0.467, gain=-0.001, half=0.004), LAST],
            "cheapest_equal",
            "use_layer",
            20,
            "Use layer 20: the cheapest that cannot be told from the best (layer 24, the last, "
            "0.1 points more); it scores 0.1 points less than the last layer (95 % interval of the "
            "gain -0.5 to 0.3) and saves 17 % of the compute.",
        ),
        (
            [FAR, place(17, 0.472, gain=0.004, half=0.006), LAST],
            "best",
            "use_layer",
            17,
            "Use layer 17: the highest score; it scores 0.4 points more than the last layer "
            "(95 % interval -0.2 to 1.0, which includes 0) and saves 29 % of the compute.",
        ),
        (
            [FAR, place(17, 0.472, gain=0.004, half=0.006), LAST],
            "last_unless_significant",
            "not_enough_evidence",
            24,
            "Not enough evidence: layer 17 scores 0.4 points more than the last layer, but the "
            "95 % interval -0.2 to 1.0 includes 0; this keeps the last layer (24).",
        ),
        (
            [FAR, replace(NEAR, p_holm=0.08), LAST],
            "last_unless_significant",
            "not_enough_evidence",
            24,
            "Not enough evidence: layer 17 scores 5.1 points more than the last layer (95 % "
            "interval 3.8 to 6.4), but p = 0.08 after Holm's correction for 2 comparisons; this "
            "keeps the last layer (24).",
        ),
        (
            [FAR, place(23, 0.46, gain=-0.008, half=0.002), LAST],
            "best",
            "keep_last",
            24,
            "Keep the last layer (24): no other layer scores more; the nearest, layer 23, scores "
            "0.8 points less (95 % interval of the gain -1.0 to -0.6).",
        ),
        (
            [FAR, place(23, 0.46, gain=-0.008, half=0.002), LAST],
            "cheapest_equal",
            "keep_last",
            24,
            "Keep the last layer (24): it scores highest, and no cheaper layer comes within one "
            "standard error of it; the nearest, layer 23, scores 0.8 points less (95 % interval of "
            "the gain -1.0 to -0.6).",
        ),
        (
            [
                place(9, 0.4684, gain=0.0004, half=1e-4),
                place(4, 0.4684, gain=4e-4, half=1e-4),
                LAST,
            ],
            "cheapest_equal",
            "use_layer",
            4,
            "Use layer 4: the highest score (shared with layer 9, which costs as much or more) at "
            "the lowest cost; it scores 0.04 points more than the last layer (95 % interval 0.03 "
            "to 0.05) and saves 83 % of the compute.",
        ),
        (
            [place(23, 0.468, half=0.002), place(22, 0.468, half=0.002), LAST],
            "best",
            "use_layer",
            22,
            "Use layer 22: the highest score (shared with layers 23 and 24, which cost as much or "
            "more); it scores as much as the last layer (95 % interval of the gain -0.2 to 0.2) "
            "and saves 8 % of the compute.",
        ),
        (
            [place(23, 0.468, half=0.002), LAST],
            "last_unless_significant",
            "keep_last",
            24,
            "Keep the last layer (24): no other layer scores more; the nearest, layer 23, scores "
            "as much (95 % interval of the gain -0.2 to 0.2).",
        ),
        (
            [place(17, 0.5, gain=NAN, half=NAN), place(24, NAN)],
            "best",
            "not_enough_evidence",
            17,
            "Not enough evidence: layer 17 scores highest, but the last layer (24) was not scored "
            "on every task, and a single score of one task gives no interval; take it as a guess.",
        ),
        (
            [replace(NEAR, gain=NAN, gain_low=NAN, gain_high=NAN), place(24, NAN)],
            "cheapest_equal",
            "use_layer",
            17,
            "Use layer 17: the highest score at the lowest cost; it saves 29 % of the compute, but "
            "the last layer (24) was not scored on every task, so no gain over it is known.",
        ),
        (
            [replace(NEAR, gain=NAN, gain_low=NAN, gain_high=NAN), place(24, NAN)],
            "last_unless_significant",
            "not_enough_evidence",
            24,
            "Not enough evidence: the last layer (24) was not scored on every task, so no gain "
            "over it is known; this keeps it, though layer 17 scores highest.",
        ),
        (
            [LAST],
            "cheapest_equal",
            "keep_last",
            24,
            "Keep the last layer (24): there is no other layer with a score.",
        ),
        (
            [place(17, NAN), place(24, NAN)],
            "best",
            "not_enough_evidence",
            24,
            "Not enough evidence: no layer was scored on every task; this leaves the last layer "
            "(24).",
        ),
    ],
)
def test_verdicts(
    rows: list[LayerEvidence], policy: Policy, kind: str, layer: int, sentence: str
) -> None:
    cost = [row.layer / 24 for row in rows]
    advice = recommend(evidence(*rows), cost, policy)
    assert (advice.kind, advice.layer, advice.sentence) == (kind, layer, sentence)
    assert advice.saved == pytest.approx(1 - layer / 24)


def test_one_score_of_one_task_is_a_guess() -> None:
    lead = weigh([single("only", [0.5, 0.7, 0.6])], layers=[0, 1, 2])
    said = (
        "Not enough evidence: layer 1 scores highest, 10.0 points more than the last layer, but a "
        "single score of one task gives no interval; "
    )
    kept = (2, "this keeps the last layer (2).")
    for policy in get_args(Policy):
        layer, end = kept if policy == "last_unless_significant" else (1, "take it as a guess.")
        advice = recommend(lead, [0, 0.5, 1], policy)
        assert (advice.kind, advice.layer) == ("not_enough_evidence", layer)
        assert advice.sentence == said + end
    tie = recommend(weigh([single("only", [0.6, 0.6])], layers=[0, 1]), [0, 1])
    assert "layer 0 scores highest, as much as the last layer" in tie.sentence
    last = recommend(weigh([single("only", [0.5, 0.6])], layers=[0, 1]), [0, 1])
    assert last.kind == "keep_last"
    assert last.sentence.endswith("the nearest, layer 0, scores 10.0 points less.")


def test_few_tasks_are_counted_in_the_sentence() -> None:
    generator = np.random.default_rng(0)
    folds = generator.normal(0.5, 0.02, size=(2, 10)) + np.array([[0.1], [0.0]])
    one = recommend(weigh([folded("only", folds)], layers=[0, 1]), [0, 1])
    assert "; from 1 task)" in one.sentence
    three = weigh([folded(f"{n}", folds) for n in range(3)], layers=[0, 1])
    assert "; from 3 tasks)" in recommend(three, [0, 1]).sentence
    many = weigh([folded(f"{n}", folds) for n in range(6)], layers=[0, 1])
    assert "task" not in recommend(many, [0, 1]).sentence


def test_without_labels_or_scores() -> None:
    none = recommend(weigh([], layers=[0, 1]), [0, 1])
    assert (none.kind, none.layer, none.saved) == ("no_labels", 1, 0)
    assert "No labelled task" in none.sentence
    blank = recommend(weigh([single("blank", [NAN, NAN])], layers=[0, 1]), [0, 1])
    assert (blank.kind, blank.layer) == ("not_enough_evidence", 1)
    assert "no labelled task has a score in any layer" in blank.sentence


def test_costs_decide_not_layer_numbers() -> None:
    known = evidence(FAR, NEAR, BEST, LAST)
    assert recommend(known, [0.1, 0.9, 0.5, 1.0], "cheapest_equal").layer == 18
    assert recommend(known, [0.1, 0.5, 0.5, 1.0], "cheapest_equal").layer == 18
    assert recommend(known, [0.1, 0.7, 0.75, 1.0], "cheapest_equal").saved == pytest.approx(0.3)
    assert "saves less than 1 % of" in recommend(known, [0.1, 1, 0.997, 1], "best").sentence


def test_the_level_is_named_and_decides() -> None:
    gains = np.linspace(-0.04, 0.08, 12)  # mean 0.02, standard error 0.011
    tasks = singles(np.stack([0.5 + gains, np.full(12, 0.5)]))
    strict, mild = (weigh(tasks, layers=[0, 1], level=level) for level in (0.999, 0.5))
    assert "99.9 % interval" in recommend(strict, [0, 1], "last_unless_significant").sentence
    assert recommend(strict, [0, 1], "last_unless_significant").kind == "not_enough_evidence"
    assert recommend(mild, [0, 1], "last_unless_significant").kind == "use_layer"
    assert "50 % interval" in recommend(mild, [0, 1], "last_unless_significant").sentence


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
    with pytest.raises(ValueError, match=r"one cost for each of 2 layers, got \(3,\)"):
        recommend(known, [0, 0.5, 1])
    with pytest.raises(ValueError, match=r"cost of layer 17 is 1\.5"):
        recommend(known, [1.5, 1])
    with pytest.raises(ValueError, match="cost of layer 24 is nan"):
        recommend(known, [0.5, NAN])
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
        assert "5.1 points more than the last layer" in advice.sentence
    front = pareto([row.score for row in found.layers], np.arange(25) / 24)
    assert front[17]
    assert not front[18:].any()


def test_tasks_that_do_not_count_are_named() -> None:
    whys = {f"t{number}": f"it lacks {number}" for number in range(5)}
    assert not_counted({"t0": "it lacks 0"}) == "Task t0 is not in the ranking: it lacks 0."
    two = not_counted({name: whys[name] for name in ("t0", "t1")})
    assert two.startswith("2 tasks are not in the ranking: t0, because it lacks 0; t1, because")
    many = not_counted(whys)
    assert [name in many for name in whys] == [True, True, True, False, False]
    assert many.endswith("; and 2 more.")


def test_layers_that_are_not_compared_name_their_tasks() -> None:
    one = not_compared([Gap("length", [0], "all are equal")])
    assert one == ("Layer 0 is not in the ranking: task length has no score there (all are equal).")
    assert not_compared([Gap("a", [0, 2], "")]) == (
        "Layers 0 and 2 are not in the ranking: task a has no score there."
    )
    more = not_compared([Gap("a", [3, 4], "why"), *(Gap(f"t{n}", [0], "") for n in range(4))])
    assert more.startswith("Layers 0, 3 and 4 are not in the ranking: 5 tasks have")
    assert "a in layers 3 and 4 (why); t0 in layer 0; t1 in layer 0; and 2 more." in more
