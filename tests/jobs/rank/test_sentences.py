"""What a verdict says: its numbers, from the evidence that the policies are tested on."""

from __future__ import annotations

from fractions import Fraction
from typing import get_args

import numpy as np
import pytest

from layerrank.jobs.rank.sentences import (
    Gap,
    advice,
    answer,
    holes,
    not_counted,
    sentence,
    settles,
    task_types,
    unlabelled,
    why,
)
from layerrank.operators.analysis import labelfree
from layerrank.operators.model.subject import Kind as KindOfModel
from layerrank.operators.ranking import Policy
from layerrank.operators.ranking.evidence import weigh
from layerrank.operators.ranking.policy import Kind, Reason, Verdict, recommend
from tests.operators.ranking.test_ranking_evidence import single, singles
from tests.operators.ranking.test_ranking_policy import (
    CHEAPEST,
    CLEAR,
    DOUBTFUL,
    NAN,
    NEARLY,
    PROVEN,
    WORSE,
    advised,
)


@pytest.mark.parametrize(
    ("case", "numbers"),
    [
        ((CLEAR, "best"), ["Use layer 12 of 24", "12.0 points", "50 %", "on a new task"]),
        ((CLEAR, PROVEN), ["p = 0.0039", "among 2 layers", "12.0 points"]),
        ((CLEAR[:, :5], PROVEN), ["6 tasks", "in 5", "1 more task", "last layer (24)"]),
        ((CLEAR[:, :2], "best"), ["2 tasks", "ayer 12", "at least 3"]),
        (
            (DOUBTFUL, "best"),
            ["Layer 12", "0.3 points below", "3.0 as", "-15.8 to 18.5", "on a new task"],
        ),
        ((np.tile(DOUBTFUL, 3), PROVEN), ["p = ", "last layer (24)", "This keeps"]),
        (
            (WORSE, "best"),
            ["Keep", "last layer (24)", "layer 12", "2.3 points less", "-6.1 to 1.5"],
        ),
        ((NEARLY, CHEAPEST), ["layer 12", "0.2 points more", "11.5 points", "saves 75 %"]),
    ],
)
def test_a_sentence_has_the_numbers_that_it_rests_on(case: tuple, numbers: list[str]) -> None:  # type: ignore[type-arg]
    known, verdict = advised(*case)
    said = sentence(known, verdict)
    assert [number for number in numbers if number not in said] == [], said
    assert ("se layer" in said) == (verdict.kind == "use_layer")
    assert ("Not enough evidence" in said) == (verdict.kind == "not_enough_evidence")
    assert str(verdict.layer) in answer(known, verdict)
    assert len(answer(known, verdict).split()) <= 12
    assert why(known, verdict)


def test_the_corrected_gain_stands_before_the_one_as_it_stands() -> None:
    gain = np.array([[0.3, 0.0, 0.1], [0.0, 0.2, 0.1]])
    known, verdict = advised(gain, folds=10, noise=0.01)
    assert known.choice is not None
    said = sentence(known, verdict)
    corrected, naive = (f"{100 * each:.1f}" for each in (known.choice.gain, known.choice.naive))
    assert corrected != naive
    assert said.index(corrected) < said.index(naive)


def test_advice_for_these_tasks_is_not_advice_for_any() -> None:
    everywhere = advised(CLEAR)
    here = advised(CLEAR[:, :2], folds=10, noise=0.01)
    assert "12 of 24" in answer(*everywhere)
    assert "these tasks" not in answer(*everywhere)
    assert "these tasks" in answer(*here)
    assert settles(*everywhere) == ""
    assert "at least 3 tasks" in settles(*here)
    three = advised(np.array([[0.02, 0.03, 0.01], [0.02, 0.24, 0.12]]), folds=10, noise=0.001)
    assert "more tasks like these" in settles(*three)
    lone = advised(CLEAR[:, :1], folds=10, noise=0.15)
    assert "3 times as many labelled items" in settles(*lone)
    worse = advised(np.array([[0.30, -0.01], [-0.02, 0.20]]), folds=10, noise=0.001)
    assert "gains nothing" in settles(*worse) or "at least 3" in settles(*worse)


def test_every_kind_of_verdict_has_an_answer_of_its_own() -> None:
    known, _ = advised(CLEAR)
    said = {answer(known, Verdict(kind, 24, 0.0, "highest")) for kind in get_args(Kind)}
    assert len(said) == len(get_args(Kind))
    assert all("24" in each for each in said)
    reasons: list[tuple[Kind, int, Reason]] = [
        ("use_layer", 6, "highest"),
        ("keep_last", 24, "none_higher"),
        ("no_labels", 12, "no_labels"),
        ("not_enough_evidence", 24, "no_score"),
        ("not_enough_evidence", 24, "no_last"),
        ("not_enough_evidence", 24, "unproven"),
    ]
    told = {advice(known, Verdict(kind, layer, 0.0, why)) for kind, layer, why in reasons}
    assert len(told) == len(reasons)
    assert "after block 6 of 24" in advice(known, Verdict("use_layer", 6, 0.75, "highest"))


def test_without_labels_the_kind_of_the_model_says_what_is_known() -> None:
    said = {kind: unlabelled(kind, 24) for kind in (None, *get_args(KindOfModel))}
    assert all("last layer (24)" in each for each in said.values())
    for number in ("4 models", "4.0 points", "± 8.2", "3.5 to 12.2", "80 to 130"):
        assert number in said["causal decoder"]
    assert "16.0 points" in said["state-space model"]
    assert "80 to 130" not in said["embedding model"]
    assert said[None] == said["encoder"]


def test_a_depth_that_is_settled_is_told_with_its_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = labelfree.Evidence(5, Fraction(1, 4), 0.05, 0.02, 0.03, 0.1)
    monkeypatch.setitem(labelfree.EVIDENCE, "encoder", settled)
    assert labelfree.rule_for("encoder", range(25)) == 6
    said = unlabelled("encoder", 6)
    assert all(number in said for number in ("Layer 6", "25 %", "5.0 points", "± 2.0"))


def test_a_test_needs_the_tasks_of_the_leader() -> None:
    # Six tasks, each layer lacks another one: five for the leader, which no test can decide.
    scores = np.full((3, 6), 0.5)
    scores[0] += 0.2
    scores[0, 0] = scores[1, 1] = NAN
    known = weigh(singles(scores), layers=range(3), policy=PROVEN)
    verdict = recommend(known, [0, 0.5, 1])
    assert verdict.reason == "few_tasks"
    said = sentence(known, verdict)
    assert "layer 0 has scores in 5" in said
    assert "1 more task" in said
    assert "nan" not in said


def test_a_loss_is_no_gain_and_a_lone_score_has_no_interval() -> None:
    worse = sentence(*advised(np.array([[0.30, -0.01], [-0.02, 0.20]]), folds=10, noise=0.001))
    assert "1.5 points below the last layer" in worse
    scores = np.full((3, 3), 0.5)
    scores[0, :2], scores[0, 2] = 0.7, NAN  # in two tasks: nothing of a new one
    known = weigh(singles(scores), layers=range(3))
    said = sentence(known, recommend(known, [0, 1, 1]))
    assert "2 tasks say nothing of a new one" in said
    assert "how far the gain of layer 0 may vary" in said


def test_one_score_of_one_task_is_a_guess() -> None:
    for policy in get_args(Policy):
        lead = weigh([single("only", [0.5, 0.7, 0.6])], layers=[0, 1, 2], policy=policy)
        said = sentence(lead, recommend(lead, [0, 0.5, 1]))
        assert "Layer 1 leads: it gains 10.0 points" in said
        assert ("This keeps the last layer (2)" in said) == (policy == PROVEN)
    last = weigh([single("only", [0.5, 0.6])], layers=[0, 1])
    assert "layer 0, scores 10.0 points less" in sentence(last, recommend(last, [0, 1]))
    alone = weigh([single("only", [0.5])], layers=[3])
    assert "no other layer" in sentence(alone, recommend(alone, [1]))


def test_the_level_is_named_and_a_small_saving_is_not_none() -> None:
    gains = np.linspace(-0.04, 0.08, 12)
    tasks = singles(np.stack([0.5 + gains, np.full(12, 0.5)]))
    for level, said in ((0.999, "99.9 % interval"), (0.5, "50 % interval")):
        known = weigh(tasks, layers=[0, 1], level=level, policy=PROVEN)
        assert said in sentence(known, recommend(known, [0, 1]))
    assert "less than 1 %" in sentence(*advised(CLEAR, cost=[0.1, 0.997, 1]))


def test_the_types_of_the_tasks_are_told() -> None:
    known, _ = advised(CLEAR)
    assert "classification" in task_types(known)
    assert "nothing" in task_types(known)
    tasks = [single("a", [0.5, 0.6])]
    assert "sts" in task_types(weigh(tasks, layers=[0, 1]))


def told(sentence: str, words: str) -> bool:
    return all(word in sentence for word in words.split("|"))


def test_tasks_that_do_not_count_are_named_with_those_of_the_same_reason() -> None:
    assert told(not_counted({"t0": "it lacks 0"}), "1 task|t0|it lacks 0")
    same = not_counted({f"t{number}": "no last layer" for number in range(5)})
    assert told(same, "5 tasks|t0, t1, t2, and 2 more")
    assert same.count("no last layer") == 1
    many = not_counted({f"t{number}": f"it lacks {number}" for number in range(5)})
    assert told(many, "5 tasks|t0, because it lacks 0|t2|and 2 more")


def test_layers_that_lack_tasks_are_named() -> None:
    scores = np.full((4, 5), 0.5)
    scores[0, :3] = NAN
    scores[1, 0] = NAN
    known = weigh(singles(scores), layers=range(4))
    gaps = [Gap("task-000", [0, 1], "all equal"), Gap("task-001", [0])]
    thin, partly, missing = holes(known, gaps)
    assert told(thin, "Layer 0 |2 of 5 tasks")
    assert told(partly, "Layer 1 |4 of 5")
    assert told(missing, "task-000 in layer 1 (all equal)")
    assert "task-001" not in missing
    assert holes(weigh(singles(scores[2:]), layers=range(2)), []) == []
