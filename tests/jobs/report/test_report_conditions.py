"""Conditions in a report, on findings made by hand: what is drawn, told, and left out."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from jobs.report import page as report
from jobs.report.findings import ResponseFinding, SubjectFinding
from jobs.report.sections import conditions as wording_conditions
from jobs.report.sections.conditions import response_plots, shades
from tests.support.by_hand import findings, response, subject


def _page(*responses: ResponseFinding) -> str:
    found: SubjectFinding = subject(responses=list(responses))
    return report.render(findings(found))["index.html"].decode()


def test_each_metric_has_a_line_per_level_and_its_slopes_below() -> None:
    (plot,) = response_plots([response()], 0.95, "plot")
    assert plot.title == "Prompt entropy"
    assert len(re.findall(r'id="plot-0-line2d_\d+"', str(plot.svg))) >= 3
    assert str(plot.svg).count("stroke: var(--accent)") == 2
    assert str(plot.svg).count("stroke: var(--ink)") == 1  # the clean prompts
    assert "clean: 3 in layer 0, 3 in layer 1; 0.3: 3.3 in layer 0" in str(plot.svg)
    assert "layer 0: +1.00 (+0.500 to +1.50); layer 1: -2.00" in str(plot.slopes)
    assert "fill: var(--band)" in str(plot.slopes)


def test_a_metric_of_the_whole_dataset_has_slopes_without_a_band() -> None:
    (plot,) = response_plots([response(metric="rankme")], 0.95, "plot")
    assert not plot.of_tokens
    assert "layer 0: +1.00; layer 1: -2.00" in str(plot.slopes)
    assert "95 %" not in plot.says
    page = _page(response(metric="rankme"))
    assert "<summary>Metrics of the whole dataset</summary>" in page


@pytest.mark.parametrize(
    ("slopes", "says"),
    [
        ((1, 2), "Up in every layer; steepest in layer 1: +2.00 (95 % +1.50 to +2.50) "),
        ((-1, -2), "Down in every layer; steepest in layer 1: -2.00 (95 % -2.50 to -1.50) "),
        ((1, -2), "Up in 1 of 2 layers; down in 1 of 2 layers; steepest in layer 1"),
        ((0.4, 0.1), "No clear change in any layer; steepest in layer 0: +0.400 (95 % -0.100 "),
        ((None, 1), "Up in every layer; steepest in layer 1"),
        ((None, None), "No slope: fewer than two levels have a value."),
    ],
)
def test_the_direction_is_told_where_it_is_sure(
    slopes: tuple[float | None, ...], says: str
) -> None:
    assert wording_conditions.says(response(slopes=slopes), 0.95).startswith(says)


def test_the_lead_sorts_the_metrics_by_direction() -> None:
    same = [response(slopes=(1, 2)), response(metric="curvature"), response(metric="rankme")]
    assert wording_conditions.lead(same) == (
        "With growing p, up in every layer: prompt entropy. No one direction over the layers: "
        "curvature."
    )
    assert wording_conditions.lead([response("length", slopes=(1, 2))]) == (
        "With growing length, up in every layer: prompt entropy."
    )


def test_units_are_those_of_the_axis_of_a_family() -> None:
    for family, per in (("length", "per doubling of the length"), ("repeat", "from p = 0 to 1")):
        assert wording_conditions.says(response(family), 0.9).endswith(f"nats {per}.")
    assert "33 prompts" not in wording_conditions.source(response())
    assert wording_conditions.source(response()).endswith(
        "40 prompts, 7 of them undefined at p 0.6."
    )


def test_stronger_levels_have_more_of_the_colour() -> None:
    found = shades(response().levels)
    assert [(each.name, each.clean) for each in found] == [
        ("clean", True),
        ("0.3", False),
        ("0.6", False),
    ]
    assert 0 < found[1].opacity < found[2].opacity == 1
    (alone,) = shades(response().levels[1:2])
    assert alone.opacity == 1


def test_what_has_no_value_is_no_empty_plot() -> None:
    nothing = response(slopes=(None, None))
    empty = replace(nothing, levels=[replace(each, values=[None, None]) for each in nothing.levels])
    (plot,) = response_plots([empty], 0.95, "plot")
    assert plot.svg is plot.slopes is None
    assert "Undefined in every layer." in _page(empty)


def test_the_page_has_the_families_in_order_with_a_legend_and_every_slope() -> None:
    page = _page(response(), response(metric="rankme"), response("length"))
    body = html.unescape(page.partition("<h2>Under extreme input</h2>")[2])
    titles = re.findall(r"<h3>(.*?)</h3>", body)
    assert titles[:2] == ["Random tokens", "Length"]
    assert body.count('<ul class="legend"') == 2
    table = body.partition('aria-label="Random tokens: slopes of texts"')[2].partition("</table>")[
        0
    ]
    cells = [re.sub(r"<[^>]*>", " ", row).split() for row in table.split("<tr>")[1:]]
    assert cells[1][:3] == ["Prompt", "entropy", "nats"]
    assert cells[2] == ["RankMe", "directions", "+1.00", "\N{MINUS SIGN}2.00"]
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    drawn = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert all("<title" in each and "<desc" in each for each in drawn)
    main = page.partition("<body>")[2].partition("</body>")[0]
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    ElementTree.fromstring(f"<body {links}>{main}</body>")


def test_a_report_without_conditions_does_not_speak_of_them() -> None:
    assert "Under extreme input" not in _page()
    text = report.render(findings(subject(responses=[response()])))["report.md"].decode()
    assert "| Prompt entropy | nats | +1.00 (+0.500 to +1.50) | -2.00 (-2.50 to -1.50) |" in text
