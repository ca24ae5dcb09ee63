"""The sections of a report on rankings made by hand: their rows and numbers, what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.jobs import words
from layerrank.jobs.config.datasets import RegressionTask
from layerrank.jobs.rank.ranking import as_good_as_best
from layerrank.jobs.rank.sentences import answer
from layerrank.jobs.report.charts import Lines, Scatter
from layerrank.jobs.report.facts import Facts, title
from layerrank.jobs.report.section import Section
from layerrank.jobs.report.sections import answer as answering
from layerrank.jobs.report.sections import choices, cost, curves, inputs, ranking
from layerrank.operators.analysis.labelfree import READ_AS, depth_rules
from layerrank.operators.ranking.policy import Kind
from tests.support import by_hand
from tests.support.by_hand import NAN, SCORES, facts, layer, rows, unlabelled

SURE = tuple(f"{of}_{end}" for of in ("score", "gain", "here") for end in ("low", "high"))
SURE += ("p_value", "p_max", "taken")


def lines(section: Section, number: int = 0) -> Lines:
    """Return the lines of a chart."""
    plot = section.charts[number].plot
    assert isinstance(plot, Lines)
    return plot


def _single(scores: Sequence[float] = SCORES, kind: Kind = "use_layer", number: int = 2) -> Facts:
    """Return a model with one score per layer, which has no interval."""
    nothing: dict[str, Any] = dict.fromkeys((*SURE, "shortfall_se"), NAN)
    bare = [layer(n, scores, **nothing) for n in range(4)]
    return facts(scores, kind, number, rows=bare, tasks={"topic": scores}, folds=1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(NAN, "-"), (None, "-"), (0.0, "0 %"), (0.004, "<1 %"), (0.997, ">99 %"), (1.0, "100 %")],
)
def test_only_nothing_is_shown_as_0_and_only_all_as_100_percent(
    value: float | None, shown: str
) -> None:
    assert words.share(value) == shown


@given(st.floats(1e-9, 1e15))
def test_a_size_has_three_digits_and_is_never_off_by_more(value: float) -> None:
    assert float(words.size(value).replace(",", "")) == pytest.approx(value, rel=0.00501)
    assert "e" not in words.size(value)


def test_numbers_that_do_not_exist_are_dashes() -> None:
    for shown in (words.p_value, words.decimal, words.hundredths, words.points, words.size):
        assert shown(None) == shown(NAN) == words.NOTHING
    assert words.span(None, 0.5) == words.NOTHING
    assert words.hundredths(-0.001) == "0.00"
    assert (words.p_value(0.00119988), words.size(14160.4)) == ("0.0012", "14,160")


@pytest.mark.parametrize(
    ("found", "won", "sure", "saved"),
    [
        # A point is taken off for choosing; known to two points on a new task, to one on these.
        (facts(), "+7.0 points", ["6.0 to 10.0", "7.0 to 9.0"], "33 %"),
        (facts((0.4, 0.47, 0.52, 0.6), "keep_last", 3), "-1.0 points", ["-8.0 points"], "0 %"),
        (_single(kind="not_enough_evidence"), "+7.0 points", ["-"], "33 %"),
        (unlabelled(), "-", [], "0 %"),
    ],
)
def test_the_first_screen_has_an_answer_and_its_figures(
    found: Facts, won: str, sure: list[str], saved: str
) -> None:
    section = answering.section(found)
    assert [value for value, _ in section.figures] == [won, *sure, saved]
    assert ("8.0 as it stands" in section.figures[0][1]) == (won == "+7.0 points")
    assert len(section.title.split()) <= 12


def test_the_types_that_the_advice_rests_on_and_what_is_left_out_are_on_the_first_screen() -> None:
    assert "classification" in answering.section(facts()).says[0]
    lacking = facts(tasks={"topic": SCORES, "find": [*SCORES[:3], NAN]})
    assert "find" in answering.section(lacking).says[1]


def test_an_answer_has_at_most_twelve_words_whatever_the_layers() -> None:
    found = by_hand.ranking(np.linspace(0.1, 0.9, 120).tolist(), number=110)
    kinds: list[tuple[Kind, int]] = [("use_layer", 110), ("keep_last", 119), ("no_labels", 110)]
    for kind, number in [*kinds, ("not_enough_evidence", 110), ("not_enough_evidence", 119)]:
        said = answer(found.evidence, replace(found.verdict, kind=kind, layer=number))
        assert len(said.split()) <= 12
        assert str(number) in said


def test_entropy_curvature_and_invariance_are_thin_lines_beside_the_score() -> None:
    values = {n: float(n) for n in range(4)}
    metrics = {("texts", name): values for name in ("infonce", "curvature", "rankme")}
    drawn = lines(answering.section(facts(metrics=metrics)))
    looks = {each.name: each.look for each in drawn.lines}
    assert looks == {"score": "strong", "Curvature": "thin", "InfoNCE": "thin"}
    assert drawn.lines[0].y == pytest.approx([40, 47, 60, 52])
    assert drawn.lines[0].low == pytest.approx([35, 42, 55, 47])
    assert [(mark.x, mark.strong) for mark in drawn.marks] == [(3, False), (2, True)]
    assert lines(answering.section(_single())).lines[0].low == []
    assert answering.section(unlabelled()).charts[0].plot is None


def test_layer_score_gain_and_cost_come_first_and_evidence_after_them() -> None:
    table = ranking.table(facts())
    first = [cell if isinstance(cell, str) else cell[0] for cell in table.head[:4]]
    assert first == ["Layer", "Score", "Gain", "Cost"]
    last = ["baseline", "-", "2", "-", "25 %", "52.0", "52.0"]
    best = ["6.0 to 10.0", "7.0 to 9.0", "1", "0.03", "25 %", "60.0", "60.0"]
    assert rows(table)[2:] == [
        ["2 (use)", "60.0", "+8.0", "67 %", *best],
        ["3 (last)", "52.0", "0.0", "100 %", *last],
    ]
    assert table.marked == {2}
    assert table.strong == {(2, 9), (2, 10)}
    assert ranking.table(facts(kind="not_enough_evidence")).marked == set()
    evidence, tasks = ranking.section(facts()).parts[0].tables
    assert rows(evidence)[2] == ["2", "2.5", "50 %", "0.01", "0.0", "5.0"]
    assert rows(tasks)[0] == ["topic", "texts", "classification", "accuracy", "10", "yes"]
    one = ranking.section(facts(tasks={"topic": SCORES})).parts[0]
    assert len(one.tables[0].head) == len(evidence.head) - 2  # no mean rank, no wins
    assert not one.charts


def test_a_task_without_a_score_and_dropped_layers_are_marked() -> None:
    scores = (NAN, NAN, 0.60, 0.52)
    found = facts(
        scores, tasks={"topic": scores, "find": [NAN] * 4}, search_share=0.4286, dropped=[0, 1]
    )
    table = ranking.table(found)
    assert [row[0] for row in rows(table)] == ["0 (dropped)", "1 (dropped)", "2 (use)", "3 (last)"]
    assert table.head[-1] == ("find", "accuracy, not counted")
    told = " ".join(ranking.section(found).says)
    assert "43 % of the scoring" in told
    missing = inputs.undefined(found, [])
    assert missing[0][:2] == ["Task topic", "layers 0 and 1"]
    assert missing[1][:2] == ["Task find", "every layer"]
    assert "search" in missing[0][2]
    assert "search" not in inputs.undefined(facts(scores), [])[0][2]


@pytest.mark.parametrize(
    ("found", "numbers"),
    [
        (facts(), ["2 tasks of 10 folds", "fewer than 3", "of the type classification"]),
        (
            facts(tasks={f"t{n}": SCORES for n in range(6)}),
            ["6 tasks of 10 folds", "over the tasks"],
        ),
        (facts(tasks={"topic": SCORES}), ["1 task of 10 folds", "fewer than 3"]),
        (_single(), ["1 task of 1 fold", "no spread"]),
        (facts(tasks={"topic": [*SCORES[:3], NAN]}), ["No task"]),
    ],
)
def test_certainty_says_what_the_intervals_come_from(found: Facts, numbers: Sequence[str]) -> None:
    said = ranking.certainty(found)
    assert all(each in said for each in numbers), said


@pytest.mark.parametrize(
    ("oracle", "numbers"), [(0.63, ("63.0", "3.0", "layer 2")), (0.60, ("Layer 2", "every task"))]
)
def test_the_oracle_is_compared_with_the_best_single_layer(
    oracle: float, numbers: Sequence[str]
) -> None:
    found = by_hand.ranking()
    evidence = replace(found.evidence, oracle=oracle)
    told = ranking.section(Facts(replace(found, evidence=evidence))).says[-1]
    assert all(number in told for number in numbers)


def test_a_layer_is_as_good_as_the_best_within_one_standard_error() -> None:
    found = by_hand.ranking((0.549, 0.55, 0.60, NAN)).rows
    assert [as_good_as_best(row) for row in found] == [False, True, True, False]


def test_the_cost_of_layers_is_drawn_with_the_front_and_whiskers() -> None:
    plot = cost.section(facts()).charts[0].plot
    assert isinstance(plot, Scatter)
    assert [(p.x, p.y, p.top) for p in plot.points][2] == pytest.approx((200 / 3, 60, 65))
    assert [p.strong for p in plot.points] == [True, True, True, False]
    assert [y for _, y in plot.steps] == pytest.approx([40, 40, 47, 47, 60, 60])
    assert [x for x, _ in plot.steps] == pytest.approx([0, 100 / 3, 100 / 3, 200 / 3, 200 / 3, 100])
    assert plot.level == pytest.approx(60)
    assert all(math.isnan(p.top) for p in cost.section(_single()).charts[0].plot.points)  # type: ignore[union-attr]
    assert not cost.section(facts([NAN, NAN, NAN, 0.5], "keep_last", 3)).charts
    expected = ["2", "67 %", "yes", "5.00", "7.00", "8.50 (8.45 to 8.55)"]
    assert rows(cost.section(facts()).tables[0])[2] == expected


@pytest.mark.parametrize(
    "spread",
    [
        {"latency_low_ms": 0.0, "latency_high_ms": 13.0},
        {"latency_low_ms": NAN, "latency_high_ms": NAN},  # of tables without a spread
    ],
)
def test_latency_is_left_out_where_its_spread_is_wider_than_layers_differ(
    spread: dict[str, float],
) -> None:
    found = facts(costs={n: by_hand.cost(n, **spread) for n in range(4)})
    assert cost.latency(found.ranking) == ""
    assert len(cost.section(found).tables[0].head) == 5
    assert len(answering.steps_of(found, []).tables[0].head) == 3
    known = cost.latency(facts().ranking)
    assert "layer 2 takes 8.50 (8.45 to 8.55) ms, the whole model 12.5 (" in known


def test_scores_from_elsewhere_cost_blocks_and_have_no_latency() -> None:
    section = cost.section(facts(costs={}))
    assert rows(section.tables[0])[1] == ["1", "33 %", "yes"]
    assert section.data["measured_on"] == ""


def test_candidates_are_those_equal_to_the_best_the_next_and_the_last() -> None:
    def layers(scores: Sequence[float]) -> list[int]:
        return [row["layer"] for row in answering.candidates(facts(scores))]

    assert layers(SCORES) == [2, 3]  # layer 3, 8 points behind with an error of 5, is the last
    assert layers((0.58, 0.2, 0.6, 0.3)) == [0, 2, 3]


def test_the_three_steps_say_their_numbers() -> None:
    metrics = {
        ("texts", "infonce"): dict(enumerate((2.0, 1.5, 0.5, 1.0))),
        ("texts", "lidar"): dict(enumerate((2.0, 2.5, 3.0, 3.5))),
    }
    section = answering.steps_of(facts(metrics=metrics), [by_hand.curves("noise")])
    compare, stable, price = (step.says for step in section.steps)
    for number in ("4 layers, 2 tasks", "layer 2", "60.0", "layer 3, 52.0"):
        assert number in compare
    numbers = ("30 %", "layer 2 to 50.0", "layer 3 to 52.0", "layer 2 by InfoNCE", "3 by LiDAR")
    assert all(number in stable for number in numbers)
    for number in ("2 takes 67 %", "layer 3 100 %", "layer 2 is the choice", "saves 33 %"):
        assert number in price
    assert [step.anchor for step in section.steps] == ["ranking", "curves", "cost"]
    (table,) = section.tables
    assert rows(table) == [
        ["2", "60.0", "50.0", "0.5000", "3.000", "67 %", "8.50"],
        ["3 (last)", "52.0", "52.0", "1.000", "3.500", "100 %", "12.5"],
    ]
    assert table.marked == {0}
    assert answering.steps_of(unlabelled(), []).is_empty


@pytest.mark.parametrize(
    ("found", "kind", "leads"),
    [
        (
            facts(),
            "examples",
            ["Layer 2", "(3)", "10.0 points ahead at 2", "2.0 points behind at 8"],
        ),
        (facts(), "noise", ["10.0 points ahead on clean text", "2.0 points behind at noise 0.3"]),
        (
            facts((0.4, 0.47, 0.52, 0.60), "keep_last", 3),
            "examples",
            ["Layer 3", "layer 2", "10.0 points behind at 2", "2.0 points ahead at 8"],
        ),
        (facts(kind="not_enough_evidence", number=3), "examples", ["Layer 2", "10.0 points ahead"]),
        # Only where both have a score; once where that is a single place.
        (facts(number=1), "examples", ["8.0 points behind at 2", "19.0 points behind at 8"]),
        (facts([NAN, NAN, NAN, 0.5], "keep_last", 3), "examples", []),
    ],
)
def test_curves_are_compared_at_both_ends(found: Facts, kind: str, leads: Sequence[str]) -> None:
    said = curves.lead(found, by_hand.curves(kind))
    assert all(each in said for each in leads), said
    assert bool(said) == bool(leads)


def test_curves_that_meet_are_level_and_curves_without_a_pair_say_nothing() -> None:
    one = {1: {4.0: curves.Score(0.5, NAN)}, 3: {4.0: curves.Score(0.5, NAN)}}
    alike = replace(by_hand.curves(), scores=one)
    assert curves.lead(facts(number=1), alike).endswith("level at 4 per label.")
    assert curves.lead(facts(number=0), alike) == ""


def test_a_curve_of_values_has_its_places_where_so_many_rows_were_fitted() -> None:
    config = {"name": "length", "type": "regression", "value_column": "length"}
    task = RegressionTask.model_validate(config)
    # 80 and 320 examples were asked for and 60 are there: one place. Layer 1 has no score at 20.
    fits_of: list[dict[str, Any]] = [
        {"layer": n, "examples": each, "fold": 0, "value": 0.1 * n + 0.01 * fits, "n_train": fits}
        for n in (0, 1)
        for each, fits in ((2, 20), (8, 60), (32, 60))
    ]
    fits_of[3] |= {"value": NAN, "n_train": 0}
    found = curves._learning("length", task, "kendalltau", fits_of)
    assert found.places == [20, 60]
    assert [*found.scores[1]] == [60]
    assert found.scores[0][60].mean == pytest.approx(0.6)
    assert math.isnan(found.scores[0][60].spread)
    chart = curves._chart(facts(), found)
    assert isinstance(chart.plot, Lines)
    assert chart.plot.ticks == [(math.log2(20), "20"), (math.log2(60), "60")]
    assert chart.plot.x == "training examples"


def test_curves_are_drawn_on_an_axis_that_doubles_with_the_compared_ones_strong() -> None:
    chart = curves._chart(facts(), by_hand.curves())
    assert isinstance(chart.plot, Lines)
    assert chart.plot.ticks == [(1.0, "2"), (2.0, "4"), (3.0, "8")]
    looks = {line.name: line.look for line in chart.plot.lines}
    drawn = {"layer 2": "strong", "layer 3, last": "second"}
    assert looks == {"layer 0": "faint", "layer 1": "faint", **drawn}
    strong = next(line for line in chart.plot.lines if line.look == "strong")
    assert list(strong.y) == pytest.approx([40, 45, 50])
    assert list(strong.low) == pytest.approx([39, 44, 49])
    table = curves._table(facts(), by_hand.curves())
    assert rows(table)[1] == ["1", "22.0 ± 1.0", "-", "33.0 ± 1.0"]
    nothing = replace(by_hand.curves(), scores={2: {2.0: curves.Score(NAN, NAN)}})
    assert curves._chart(facts(), nothing).plot is None


def _choice(rule: str, number: int | None, regret: float) -> dict[str, Any]:
    ends = {"regret_low": regret - 0.02, "regret_high": regret + 0.02}
    return {"rule": rule, "layer": number, "score": 0.6 - regret, "regret": regret, **ends}


def test_regrets_stand_in_the_given_order_with_one_default() -> None:
    given_rows = [
        _choice("last layer", 3, 0.0),
        _choice("labels of other tasks", None, 0.01),
        _choice("rankme on texts", 1, 0.13),
        _choice("2/3 depth", 2, NAN),
    ]
    table = choices._choices(facts(), given_rows)
    assert rows(table) == [
        ["Last layer (default)", "3", "60.0", "0.0", "-2.0 to 2.0", "100 %"],
        ["Labels of other tasks", "per task", "59.0", "1.0", "-1.0 to 3.0", "-"],
        ["RankMe, highest on texts", "1", "47.0", "13.0", "11.0 to 15.0", "33 %"],
        ["2/3 depth", "2", "-", "-", "-", "67 %"],
    ]
    assert table.marked == {0}
    assert len(choices._choices(unlabelled(), given_rows).head) == 3


def test_every_rule_of_the_label_free_choices_has_a_name() -> None:
    for rule in depth_rules(range(4)):
        assert choices.rule(rule) == rule[0].upper() + rule[1:]
    for metric, direction in READ_AS.items():
        assert choices.rule(f"{metric} on some texts") == (
            f"{title(metric)}, {direction}est on some texts"
        )
    assert choices.rule("unheard") == "unheard"


def _correlation(
    metric: str, value: float, level: float, reason: str | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {"dataset": "texts", "metric": metric, "layers": 4, "reason": reason}
    for name, found, smooth in (("spearman", value, level), ("distance", 0.11, 0.95)):
        ends = {"low": -0.5, "high": 0.9, "permuted": 0.3, "smooth": smooth}
        row |= {name: found, **{f"{name}_{end}": each for end, each in ends.items()}}
    return row


def test_correlations_are_held_against_the_level_of_smooth_curves() -> None:
    found = [
        _correlation("rankme", -0.9, 0.8),
        _correlation("lidar", 0.8 + 2e-11, 0.8),
        _correlation("dime", NAN, NAN, "too few"),
    ]
    assert [choices.is_above(row, "spearman") for row in found] == [True, False, False]
    section = choices.correlated(facts(), found)
    (table,) = section.tables
    assert table.strong == {(0, 2)}
    assert rows(table)[0] == [
        "RankMe", "4", "-0.90", "-0.50 to 0.90", "0.80", "0.11", "-0.50 to 0.90", "0.95"
    ]  # fmt: skip
    assert rows(table)[2][0] == "DiME (too few)"
    for number in ("1 of 2 metrics", "distance correlation: 0.", "about 0.1", "4 layers"):
        assert number in section.says[0]
