"""What a verdict says: its numbers, from the evidence that the policies are tested on."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from jobs.rank.sentences import Gap, advice, answer, not_compared, not_counted, sentence, why
from operators.ranking.evidence import weigh
from operators.ranking.policy import Kind, Policy, Reason, Verdict, recommend
from tests.operators.ranking.test_ranking_evidence import folded, single, singles
from tests.operators.ranking.test_ranking_policy import BEST, CASES, FAR, LAST, NAN, NEAR, evidence

# What each of CASES says beside its layer.
NUMBERS = [
    ["(layer 18, 0.1 points more)", "5.1 points more", "95 % interval 3.8 to 6.4", "saves 29 %"],
    ["5.2 points more", "3.9 to 6.5", "saves 25 %"],
    ["p = 0.002", "3 comparisons", "5.2 points more", "saves 25 %"],
    ["no cheaper layer", "5.2 points more", "saves 25 %"],
    ["lowest cost", "5.2 points more", "saves 100 %"],
    ["layer 24, the last, 0.1 points more", "0.1 points less", "-0.5 to 0.3", "saves 17 %"],
    ["0.4 points more", "-0.2 to 1.0, which includes 0", "saves 29 %"],
    ["layer 17 scores 0.4 points more", "-0.2 to 1.0 includes 0", "last layer (24)"],
    ["5.1 points more", "3.8 to 6.4", "p = 0.08", "2 comparisons", "last layer (24)"],
    ["last layer (24)", "layer 23", "0.8 points less", "-1.0 to -0.6"],
    ["last layer (24)", "layer 23", "0.8 points less", "-1.0 to -0.6"],
    ["shared with layer 9", "0.04 points more", "0.03 to 0.05", "saves 83 %"],
    ["shared with layers 23 and 24", "as much", "-0.2 to 0.2", "saves 8 %"],
    ["last layer (24)", "layer 23", "as much", "-0.2 to 0.2"],
    ["layer 17", "last layer (24) was not scored", "a guess"],
    ["layer 17", "last layer (24) was not scored", "a guess"],
    ["saves 29 %", "last layer (24) was not scored", "no gain"],
    ["last layer (24) was not scored", "layer 17"],
    ["last layer (24)", "no other layer"],
    ["last layer (24)"],
]


@pytest.mark.parametrize(("case", "numbers"), list(zip(CASES, NUMBERS, strict=True)))
def test_a_sentence_has_the_numbers_that_it_rests_on(case: tuple, numbers: list[str]) -> None:  # type: ignore[type-arg]
    rows, policy, kind, layer, _ = case
    known = evidence(*rows)
    verdict = recommend(known, [row.layer / 24 for row in rows], policy)
    said = sentence(known, verdict)
    assert [number for number in numbers if number not in said] == [], said
    assert ("Use layer" in said) == (kind == "use_layer")
    assert ("Not enough evidence" in said) == (kind == "not_enough_evidence")
    assert f"layer {layer}" in said or f"({layer})" in said
    assert str(layer) in answer(known, verdict)
    assert len(answer(known, verdict).split()) <= 12
    assert why(known, verdict)


def test_every_kind_of_verdict_has_an_answer_of_its_own() -> None:
    known = evidence(FAR, NEAR, BEST, LAST)
    said = {answer(known, Verdict(kind, 24, 0.0, "highest")) for kind in get_args(Kind)}
    assert len(said) == len(get_args(Kind))
    assert all("24" in each for each in said)
    reasons: list[tuple[Kind, int, Reason]] = [
        ("use_layer", 18, "highest"),
        ("use_layer", 0, "highest"),
        ("keep_last", 24, "none_higher"),
        ("no_labels", 16, "no_labels"),
        ("not_enough_evidence", 24, "no_score"),
        ("not_enough_evidence", 24, "unproven"),
    ]
    told = {advice(known, Verdict(kind, layer, 0.0, why)) for kind, layer, why in reasons}
    assert len(told) == len(reasons)
    assert "after block 18 of 24" in advice(known, Verdict("use_layer", 18, 0.25, "highest"))


def test_one_score_of_one_task_is_a_guess() -> None:
    lead = weigh([single("only", [0.5, 0.7, 0.6])], layers=[0, 1, 2])
    for policy in get_args(Policy):
        said = sentence(lead, recommend(lead, [0, 0.5, 1], policy))
        assert "layer 1 scores highest, 10.0 points more" in said
        assert ("this keeps the last layer (2)" in said) == (policy == "last_unless_significant")
    tie = weigh([single("only", [0.6, 0.6])], layers=[0, 1])
    assert "as much as the last layer" in sentence(tie, recommend(tie, [0, 1]))
    last = weigh([single("only", [0.5, 0.6])], layers=[0, 1])
    assert "layer 0, scores 10.0 points less" in sentence(last, recommend(last, [0, 1]))


@pytest.mark.parametrize(("tasks", "said"), [(1, "from 1 task)"), (3, "from 3 tasks)"), (6, "")])
def test_few_tasks_are_counted(tasks: int, said: str) -> None:
    generator = np.random.default_rng(0)
    folds = generator.normal(0.5, 0.02, size=(2, 10)) + np.array([[0.1], [0.0]])
    known = weigh([folded(f"{n}", folds) for n in range(tasks)], layers=[0, 1])
    told = sentence(known, recommend(known, [0, 1]))
    assert said in told
    assert ("from" in told) == bool(said)


def test_the_level_is_named_and_a_small_saving_is_not_none() -> None:
    gains = np.linspace(-0.04, 0.08, 12)
    tasks = singles(np.stack([0.5 + gains, np.full(12, 0.5)]))
    for level, said in ((0.999, "99.9 % interval"), (0.5, "50 % interval")):
        known = weigh(tasks, layers=[0, 1], level=level)
        assert said in sentence(known, recommend(known, [0, 1], "last_unless_significant"))
    known = evidence(FAR, NEAR, BEST, LAST)
    assert "less than 1 %" in sentence(known, recommend(known, [0.1, 1, 0.997, 1], "best"))


def test_without_labels_or_scores_what_is_lacking_is_said() -> None:
    none = weigh([], layers=[0, 1, 2, 3])
    assert "Layer 2 (2/3 of the depth)" in sentence(none, Verdict("no_labels", 2, 0.3, "no_labels"))
    blank = weigh([single("blank", [NAN, NAN])], layers=[0, 1])
    assert "in any layer" in sentence(blank, recommend(blank, [0, 1]))


def told(sentence: str, words: str) -> bool:
    return all(word in sentence for word in words.split("|"))


def test_tasks_that_do_not_count_are_named() -> None:
    whys = {f"t{number}": f"it lacks {number}" for number in range(5)}
    assert told(not_counted({"t0": "it lacks 0"}), "Task t0|it lacks 0")
    two = not_counted({name: whys[name] for name in ("t0", "t1")})
    assert told(two, "2 tasks|t0|it lacks 0|t1|it lacks 1")
    many = not_counted(whys)
    assert [name in many for name in whys] == [True, True, True, False, False]
    assert told(many, "5 tasks|2 more")


def test_layers_that_are_not_compared_name_their_tasks() -> None:
    one = not_compared([Gap("length", [0], "all are equal")])
    assert told(one, "Layer 0 |task length|all are equal")
    two = not_compared([Gap("a", [0, 2], "")])
    assert told(two, "Layers 0 and 2|task a")
    assert "(" not in two
    more = not_compared([Gap("a", [3, 4], "why"), *(Gap(f"t{n}", [0], "") for n in range(4))])
    assert told(more, "Layers 0, 3 and 4|5 tasks|a in layers 3 and 4 (why)|t1 in layer 0|2 more")
    assert "t2" not in more
