"""What a report says in words, on findings made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import words
from jobs.report import wording
from jobs.report.findings import CurveFinding, SubjectFinding
from jobs.report.sections import choices as wording_choices
from jobs.report.sections import curves as wording_curves
from jobs.report.sections import inputs as wording_inputs
from jobs.report.sections import ranking as wording_verdict
from operators.analysis.labelfree import READ_AS, depth_rules, metric_rules
from tests.support.by_hand import (
    choice,
    correlation,
    curve,
    curves,
    layer,
    subject,
    task,
    unlabelled,
    verdict,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0 %"), (0.004, "<1 %"), (0.5, "50 %"), (0.997, ">99 %"), (1.0, "100 %")],
)
def test_only_nothing_is_shown_as_0_and_only_all_as_100_percent(
    value: float | None, shown: str
) -> None:
    assert words.share(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.0123456, "0.0123"), (3.7355, "3.74"), (38.69, "38.7"), (14160.4, "14,160")],
)
def test_sizes_have_three_digits_and_no_powers_of_ten(value: float, shown: str) -> None:
    assert words.size(value) == shown


@given(st.floats(1e-9, 1e15))
def test_a_size_is_never_off_by_more_than_its_digits(value: float) -> None:
    assert float(words.size(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


def test_numbers_that_do_not_exist_are_dashes() -> None:
    for shown in (words.p_value, words.decimal, words.correlation, words.points):
        assert shown(None) == words.NOTHING
    assert words.correlation_span(None, 0.5) == words.NOTHING
    assert words.correlation(-0.001) == "0.00"
    assert words.p_value(0.00119988) == "0.0012"


def test_vectors_of_unit_length_are_said_to_be() -> None:
    assert wording.setting(subject(variant="l2")).endswith("final norm, scaled to unit length")
    assert wording.setting(subject()).endswith("final norm")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (subject(), "Cut the model after block 2 of 3, which saves 33 % of the compute."),
        (
            subject(verdict=verdict("use_layer", 0, 1.0)),
            "no block of the model has to run, which saves 100 % of the compute",
        ),
        (subject(verdict=verdict("keep_last", 3, 0.0)), "Go on with the model as it is; no comp"),
        (
            subject(verdict=verdict("not_enough_evidence", 2)),
            "As a guess, layer 2 would save 33 % of the compute.",
        ),
        (
            subject(verdict=verdict("not_enough_evidence", 3, 0.0)),
            "Keep the last layer for now, which saves no compute, and add labelled tasks to narrow",
        ),
        (
            subject([None] * 4, verdict=verdict("not_enough_evidence", 3, 0.0)),
            "See below which scores are undefined",
        ),
        (unlabelled(), "a labelled task, even a small one, and run again."),
        (unlabelled(), "Until then the default saves 33 % of the compute."),
    ],
)
def test_every_kind_of_verdict_has_its_advice(found: SubjectFinding, says: str) -> None:
    assert says in wording_verdict.advice(found)


def test_the_sentences_after_the_first_are_told_apart() -> None:
    first = "Use layer 2: p = 0.01 (95 % interval 1.0 to 2.0, vs. the last)."
    assert wording_verdict.parted(first) == (first, "")
    assert wording_verdict.parted(f"{first} The rest. And more.") == (first, "The rest. And more.")


def test_certainty_says_what_was_drawn() -> None:
    def said(found: SubjectFinding) -> str:
        return wording_verdict.certainty(found, 0.95, 10_000)

    assert said(unlabelled()) == ""
    few = said(subject())
    assert few.startswith("2 tasks of 10 folds each. The 95 % intervals come from 10,000 bootstrap")
    assert "of tasks and, within a task, of its folds or test items" in few
    assert "From 2 tasks they are too narrow" in few
    assert "the best of 4 layers" in few

    labels = [f"task-{number}" for number in range(6)]
    rows = [replace(row, tasks=dict.fromkeys(labels, 0.5)) for row in subject().layers]
    many = subject(tasks=[task(labels[0], 1), *map(task, labels[1:])], layers=rows)
    assert said(many).startswith("6 tasks of 1 to 10 folds each.")
    assert "too narrow" not in said(many)

    one = [replace(row, tasks={"topic": row.score}) for row in subject().layers]
    assert "bootstrap draws of its folds" in said(subject(tasks=[task("topic")], layers=one))
    assert "draws of its test items" in said(subject(tasks=[task("topic", 1)], layers=one))
    single = [replace(row, score_low=None, score_high=None) for row in one]
    assert "a single score gives no interval" in said(
        subject(tasks=[task("topic", 1)], layers=single)
    )


def test_a_task_without_any_score_does_not_count() -> None:
    rows = [replace(row, tasks={"topic": row.score, "find": None}) for row in subject().layers]
    found = subject(layers=rows)
    assert [each.label for each in wording_verdict.counting(found)] == ["topic"]
    assert wording_verdict.certainty(found, 0.95, 100).startswith("1 task of 10 folds.")
    assert wording_verdict.oracle(found) == ""


def test_the_oracle_is_compared_with_the_best_single_layer() -> None:
    says = wording_verdict.oracle(subject())
    assert "would score 63.0 points, 3.0 more than layer 2, the best single one" in says
    assert "Layer 2 is the best in every task" in wording_verdict.oracle(subject(oracle=0.60))
    assert wording_verdict.oracle(unlabelled()) == ""


def test_the_search_and_what_it_dropped_are_told() -> None:
    assert wording_verdict.search(subject()) == ""
    assert "no layer could be dropped" in wording_verdict.search(subject(search_share=1.0))
    found = subject([None, None, 0.60, 0.52], search_share=0.4286)
    says = wording_verdict.search(found)
    assert "43 % of the scoring of a full sweep" in says
    assert "the layers that it dropped early have no score" in says
    (first, _) = wording_inputs.undefined(found)
    assert first.count == "layers 0, 1"
    assert first.reason.startswith("dropped early by the search")
    (first, _) = wording_inputs.undefined(subject([None, None, 0.60, 0.52]))
    assert "search" not in first.reason


def test_every_policy_is_explained() -> None:
    for name in ("best", "cheapest_equal", "last_unless_significant"):
        assert f"The policy {name} takes" in wording_verdict.policy(subject(policy=name))


def test_a_layer_is_equal_to_the_best_within_one_standard_error() -> None:
    assert wording.is_equal(layer(2, 0.60))
    assert wording.is_equal(layer(2, 0.55))
    assert not wording.is_equal(layer(2, 0.549))
    assert not wording.is_equal(layer(2, None))


def test_latency_compares_the_layer_with_the_whole_model() -> None:
    assert wording_verdict.latency(subject()) == (
        "Measured with one prompt of 128 tokens on a CPU: layer 2 takes 8.50 ms, "
        "the whole model 12.5 ms."
    )
    assert wording_verdict.latency(subject(verdict=verdict("keep_last", 3))).endswith(
        "CPU: the whole model takes 12.5 ms."
    )


@pytest.mark.parametrize(
    ("found", "finding", "says"),
    [
        (
            subject(),
            curves(),
            "Layer 2 against the last (3): 10.0 points ahead at 2 per label, "
            "2.0 points behind at 8 per label.",
        ),
        (
            subject(),
            curves("noise"),
            "Layer 2 against the last (3): 10.0 points ahead on clean text, "
            "2.0 points behind at noise 0.3.",
        ),
        (
            subject((0.4, 0.47, 0.52, 0.60), verdict=verdict("keep_last", 3, 0.0)),
            curves(),
            "Layer 3, the last, against layer 2, the next: 10.0 points behind at 2 per label, "
            "2.0 points ahead at 8 per label.",
        ),
        (
            subject(verdict=verdict("not_enough_evidence", 3, 0.0)),
            curves(),
            "Layer 2, the highest below it, against the last (3): 10.0 points ahead at 2 per "
            "label, 2.0 points behind at 8 per label.",
        ),
        # Only where both have a score; once where that is a single place.
        (
            subject(verdict=verdict(number=1)),
            replace(curves(), curves=[curve(1, (2, 4), (None, 0.5)), curve(3, (2, 4), (0.4, 0.5))]),
            "Layer 1 against the last (3): level at 4 per label.",
        ),
        (subject(verdict=verdict(number=0)), replace(curves(), curves=curves().curves[1:]), ""),
        (subject([None, None, None, 0.5], verdict=verdict("keep_last", 3)), curves(), ""),
    ],
)
def test_curves_are_compared_at_both_ends(
    found: SubjectFinding, finding: CurveFinding, says: str
) -> None:
    assert wording_curves.lead(found, finding) == says


def test_values_of_curves_have_their_spread() -> None:
    second = curves().curves[1]
    assert [wording_curves.value(second, x) for x in (2.0, 4.0, 16.0)] == ["22.0 ± 1.0", "-", "-"]
    assert wording_curves.value(replace(second, spread=[None] * 3), 8.0) == "33.0"
    assert wording_curves.heading(subject(curves=[curves("noise")])) == "With noisy text"
    both = subject(curves=[curves(), curves("noise"), curves()])
    assert wording_curves.heading(both) == "With few labelled examples and noisy text"


def test_every_rule_of_the_label_free_choices_has_a_name() -> None:
    layers = range(4)
    for rule in depth_rules(layers):
        assert wording_choices.rule(choice(rule, 1)) == rule[0].upper() + rule[1:]
    for metric, direction in READ_AS.items():
        assert metric_rules({metric: np.arange(4.0)}, layers=layers)
        named = wording_choices.rule(choice(f"{metric} on some texts", 1))
        assert named == f"{wording.title(metric)}, {direction}est on some texts"
        assert named != f"{metric}, {direction}est on some texts"
    assert wording_choices.rule(choice("labels of other tasks", None)) == "Labels of other tasks"
    assert wording_choices.rule(choice("unheard", 1)) == "unheard"


def test_regret_is_explained_as_it_was_measured() -> None:
    assert "mean over tasks" in wording_choices.regret_says(subject())
    one = [replace(row, tasks={"topic": row.score}) for row in subject().layers]
    single = wording_choices.regret_says(subject(tasks=[task("topic")], layers=one))
    assert "the points that the best layer scores more" in single
    for says in (single, wording_choices.regret_says(subject())):
        assert "known only because this run has labels" in says
    assert "nothing here says which" in wording_choices.regret_says(unlabelled())
    assert wording_choices.without_regret(subject()) == ""
    assert wording_choices.without_regret(unlabelled()) == ""
    dropped = subject(choices=[choice("last layer", 3), choice("1/2 depth", 1, None)])
    assert "without a score has no regret" in wording_choices.without_regret(dropped)


def test_correlations_are_held_against_the_level_of_smooth_curves() -> None:
    found = [correlation("rankme", -0.9, 0.8), correlation("lidar", 0.8, 0.8)]
    assert wording_choices.is_above(found[0].spearman)
    assert not wording_choices.is_above(found[1].spearman)
    assert not wording_choices.is_above(correlation("dime", 0.8 + 2e-11, 0.8).spearman)
    says = wording_choices.correlations_say([*found, correlation("dime", 0, 0, "too few")], 0.95)
    assert says.startswith("Above the null level by Spearman: 1 of 2 metrics, by distance corr")
    assert "distance correlation: 0." in says
    assert "about 0.1 would be" in says
    assert "rests on 4 layers" in says
    none = wording_choices.correlations_say([correlation("dime", 0, 0, "too few")], 0.95)
    assert none == "No metric has a correlation with the score; the reasons are below."
