"""Conditions in a report, on rows made by hand: what is drawn, told, and left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerrank.jobs.report import section as writing
from layerrank.jobs.report.charts import Lines
from layerrank.jobs.report.sections import conditions
from tests.support.by_hand import NAN, facts, response, rows


def test_each_metric_has_a_line_per_level_and_its_slopes_below() -> None:
    chart = conditions._chart(facts(), response())
    assert chart.title == "Prompt entropy"
    assert isinstance(chart.plot, Lines)
    looks = {line.name: line.look for line in chart.plot.lines}
    assert looks == {"clean": "clean", "p 0.3": "level", "p 0.6": "level"}
    assert chart.plot.lines[1].y == pytest.approx([3.3, 2.4])
    assert isinstance(chart.below, Lines)
    (slope,) = chart.below.lines
    assert (slope.y, slope.low, slope.high) == ([1, -2], [0.5, -2.5], [1.5, -1.5])
    assert chart.source.endswith("40 prompts, 7 of them undefined at p 0.6.")


def test_a_metric_of_the_whole_dataset_is_folded_and_has_slopes_without_a_band() -> None:
    found = conditions._family(facts(), [response(), response(metric="rankme")])
    assert [chart.title for chart in found.charts] == ["Prompt entropy"]
    (whole,) = found.parts
    assert (whole.folded, [chart.title for chart in whole.charts]) == (True, ["RankMe"])
    assert "95 %" not in whole.charts[0].says
    (slopes,) = found.tables
    assert rows(slopes) == [
        ["Prompt entropy (nats)", "+1.00 (+0.500 to +1.50)", "-2.00 (-2.50 to -1.50)"],
        ["RankMe (directions)", "+1.00", "-2.00"],
    ]
    assert [name for _, name in found.legend] == ["clean", "0.3", "0.6"]
    text = writing.markdown(found)
    assert "| Prompt entropy nats | +1.00 (+0.500 to +1.50) | -2.00 (-2.50 to -1.50) |" in text


@pytest.mark.parametrize(
    ("slopes", "says"),
    [
        ((1, 2), "Up in every|layer 1: +2.00|95 %|+1.50 to +2.50"),
        ((-1, -2), "Down in every|layer 1: -2.00|-2.50 to -1.50"),
        ((1, -2), "Up in 1 of 2|down in 1 of 2|layer 1: -2.00"),
        ((0.4, 0.1), "No clear|layer 0: +0.400|-0.100 to +0.900"),
        ((NAN, 1), "Up in every|layer 1: +1.00"),
        ((NAN, NAN), "No slope"),
    ],
)
def test_the_direction_is_told_where_it_is_sure(slopes: tuple[float, ...], says: str) -> None:
    said = conditions.says(response(slopes=slopes), "95 %")
    assert [each for each in says.split("|") if each not in said] == [], said


def test_the_lead_sorts_the_metrics_by_direction() -> None:
    same = [response(slopes=(1, 2)), response(metric="curvature"), response(metric="rankme")]
    up, neither = conditions.lead(same).split(". ")
    assert ("growing p" in up, "prompt entropy" in up, "curvature" in up) == (True, True, False)
    assert "curvature" in neither
    assert "growing length" in conditions.lead([response("length", slopes=(1, 2))])


def test_units_are_those_of_the_axis_of_a_family() -> None:
    for family, per in (("length", "nats per doubling"), ("repeat", "nats from p = 0 to 1")):
        assert per in conditions.says(response(family), "90 %")


def test_stronger_levels_have_more_of_the_colour() -> None:
    clean, weak, strong = conditions.opacities(response().levels)
    assert 0 < weak < strong == clean == 1
    assert conditions.opacities(response().levels[1:2]) == [1]


def test_what_has_no_value_is_no_empty_plot() -> None:
    nothing = response(slopes=(NAN, NAN))
    levels = [
        replace(level, rows={n: {**row, "value": NAN} for n, row in level.rows.items()})
        for level in nothing.levels
    ]
    chart = conditions._chart(facts(), replace(nothing, levels=levels))
    assert chart.plot is chart.below is None


def test_a_report_without_conditions_does_not_speak_of_them() -> None:
    assert conditions.section(facts()).is_empty
