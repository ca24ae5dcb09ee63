"""The parts of a report on findings made by hand: what is shown, and what is left out."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from jobs.report import page as report
from jobs.report.charts import CHAR_WIDTH, LINE_HEIGHT, Size
from jobs.report.findings import SubjectFinding
from jobs.report.sections.curves import curve_plots
from jobs.report.sections.ranking import NARROW, WIDE, cost_plot
from tests.support.by_hand import (
    SCORES,
    choice,
    correlation,
    curve,
    curves,
    findings,
    layer,
    subject,
    unlabelled,
    verdict,
)

HOSTILE = '<script>alert(1)</script>|"&`x`'
_PLACE = re.compile(r"translate\(([-\d.]+) ([-\d.]+)\)")


def _files(*subjects: SubjectFinding) -> dict[str, str]:
    return {name: content.decode() for name, content in report.render(findings(*subjects)).items()}


def _page(*subjects: SubjectFinding) -> str:
    return html.unescape(_files(*subjects)["index.html"])


def _cells(page: str, label: str) -> list[list[str]]:
    """Return the rows of the table in a region, as text."""
    table = page.partition(f'aria-label="{label}"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
    return [
        [re.sub(r"<[^>]*>", " ", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in rows
    ]


def _full() -> SubjectFinding:
    """Return a subject with everything that a report can show."""
    reason = "3 layers have both values, 4 are needed"
    return subject(
        curves=[curves(), curves("noise")],
        correlations=[
            correlation("rankme", -0.9, 0.8),
            correlation("lidar", 0.7, 0.8),
            correlation("dime", 0, 0, reason),
        ],
    )


def test_the_order_is_that_in_which_a_reader_needs_it() -> None:
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", _page(_full()))
    assert titles == [
        "In three steps",
        "Ranking",
        "Score against cost",
        "With few labelled examples and noisy text",
        "Choosing without labels",
        "Metrics without labels",
        "What was read, and what was left out",
        "How this was made",
    ]


def test_the_ranking_has_its_evidence_and_the_rest_is_folded() -> None:
    page = _page(_full())
    head, *rows = _cells(page, "Ranking of the layers")
    assert [re.sub(r"\s+", " ", cell) for cell in head[6:9]] == [
        "p Holm",
        "Best of draws",
        "Cost of compute",
    ]
    assert [row[6:9] for row in rows][2:] == [["0.03", "25 %", "67 %"], ["–", "25 %", "100 %"]]  # noqa: RUF001
    folded = page.partition("<summary>Evidence and cost of every layer</summary>")[2]
    folded = folded.partition("</details>")[0]
    assert _cells(folded, "Evidence and cost of every layer")[3] == (
        ["2", "2.5", "50 %", "0.01", "0.0", "5.0", "yes", "67 %", "5.00", "7.00", "8.50"]
    )
    assert "The policy cheapest_equal takes" in page
    assert "3.0 more than layer 2, the best single one" in page


def test_one_task_has_no_mean_rank_and_no_oracle() -> None:
    rows = [replace(row, tasks={"topic": row.score}) for row in subject().layers]
    page = _page(subject(tasks=subject().tasks[:1], layers=rows))
    assert "Mean rank" not in page
    assert "the best single one" not in page
    assert "Grey: each task" not in page


def test_scores_without_intervals_promise_none() -> None:
    intervals = ("score_low", "score_high", "gain_low", "gain_high")
    drawn = (*intervals, "p_value", "p_holm", "p_best", "shortfall_se")
    bare: dict[str, Any] = dict.fromkeys(drawn)
    rows = [replace(row, **bare) for row in subject().layers]
    page = _page(subject(layers=rows))
    for promise in ("with its 95 % interval", "with its paired", "Whisker"):
        assert promise not in page
        assert promise in _page(subject())
    assert "None" not in page
    assert "nan" not in page.lower()


def test_layers_that_a_search_dropped_are_marked_and_its_share_is_told() -> None:
    found = subject([None, None, 0.60, 0.52], search_share=0.43)
    files = _files(found)
    assert files["index.html"].count("<span>dropped</span>") == 2
    for name in ("index.html", "report.md"):
        assert "The search did 43 % of the scoring of a full sweep" in files[name]
    assert any("The search did 43 %" in line for line in report.story(found, 0.95))
    assert "dropped" not in _files(subject([None, None, 0.60, 0.52]))["index.html"]


def test_one_layer_with_a_score_is_compared_with_nothing() -> None:
    page = _page(subject([None, None, None, 0.5], verdict=verdict("keep_last", 3, 0.0)))
    assert len(re.findall("<svg", page)) == 2  # of the score, for two widths
    assert "Score against cost" not in page
    assert "Cost of every layer" in page


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("kind", ["rise", "flat", "noise"])
@pytest.mark.parametrize("layers", [7, 49])
def test_names_in_the_cost_plot_never_cover_one_another(size: Size, kind: str, layers: int) -> None:
    depth = np.linspace(0, 1, layers)
    scores = {
        "rise": 0.3 + 0.4 * depth,
        "flat": np.full(layers, 0.5),
        "noise": np.random.default_rng(0).uniform(0.2, 0.8, layers),
    }[kind]
    found = subject(scores.tolist(), verdict=verdict(number=layers // 2))
    drawn = _names(str(cost_plot(found, "plot", size)))
    assert f"use layer {layers // 2}" in [name for name, _, _ in drawn]
    assert f"last layer {layers - 1}" in [name for name, _, _ in drawn]
    for (one, x, y), (other, u, v) in combinations(drawn, 2):
        apart = abs(x - u) >= (len(one) + len(other)) * CHAR_WIDTH / 2 - 1
        assert apart or abs(y - v) >= LINE_HEIGHT - 1, (one, other)


def _names(svg: str) -> list[tuple[str, float, float]]:
    """Return the words inside the axes of a plot, with where they are centred."""
    (axes,) = _groups(svg, "axes_")
    return [
        _placed(text)
        for group in axes
        if "-text_" in (group.get("id") or "")
        for text in group
        if text.text is not None and text.tag == "text"
    ]


def _ticks(svg: str) -> list[tuple[str, float, float]]:
    """Return the numbers along the x axis of a plot, with where they are centred."""
    ticks = _groups(svg, "xtick_")
    return [_placed(text) for tick in ticks for text in tick.iter("text")]


def _groups(svg: str, kind: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    return [each for each in root.iter("g") if f"-{kind}" in (each.get("id") or "")]


def _placed(text: ElementTree.Element) -> tuple[str, float, float]:
    place = _PLACE.search(text.get("transform") or "")
    x, y = place.groups() if place else (text.get("x") or "", text.get("y") or "")
    return (text.text or "", float(x), float(y))


def test_the_page_of_an_unlabelled_run_has_the_rules_first_and_no_regret() -> None:
    page = _page(unlabelled())
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert titles[:2] == ["Choosing without labels", "Cost of every layer"]
    assert "Ranking" not in titles
    rows = _cells(page, "What rules without labels choose")
    assert [len(row) for row in rows] == [3, 3, 3]
    assert "<svg" not in page
    assert "Mean rank" not in page
    assert "Every layer" in page


def test_regrets_stand_in_the_given_order_with_one_default() -> None:
    given = [
        choice("last layer", 3, 0.0),
        choice("labels of other tasks", None, 0.01),
        choice("rankme on texts", 1, 0.13),
        choice("2/3 depth", 2, None),
    ]
    files = _files(subject(choices=given))
    rows = _cells(html.unescape(files["index.html"]), "What rules without labels choose")[1:]
    assert [re.sub(r"\s+", " ", row[0]) for row in rows] == [
        "Last layer",
        "Labels of other tasks",
        "RankMe, highest on texts",
        "2/3 depth default",
    ]
    assert [row[1:] for row in rows] == [
        ["3", "60.0", "0.0", "−2.0 to 2.0", "100 %"],  # noqa: RUF001
        ["per task", "59.0", "1.0", "−1.0 to 3.0", "–"],  # noqa: RUF001
        ["1", "47.0", "13.0", "11.0 to 15.0", "33 %"],
        ["2", "–", "–", "–", "67 %"],  # noqa: RUF001
    ]
    table = files["index.html"].partition('aria-label="What rules without labels choose"')[2]
    assert re.findall(r'<tr class="chosen"><th scope="row">(.*?)<', table) == ["2/3 depth"]
    assert files["report.md"].count(", the default |") == 1
    assert "has no regret" in files["report.md"]


def test_correlations_below_their_level_are_muted() -> None:
    page = _page(_full())
    folded = page.partition("<summary>How metrics go with the score over the layers</summary>")[2]
    folded = folded.partition("</details>")[0]
    assert '<td class="top">−0.90</td>' in folded  # noqa: RUF001
    assert '<td class="muted">0.70</td>' in folded
    assert folded.count('class="top"') == 1
    assert "3 layers have both values, 4 are needed" in folded
    assert "rests on 4 layers" in folded
    assert "How metrics go" not in _page(subject())


def test_curves_are_shown_only_where_there_are_any() -> None:
    files = _files(_full())
    lead = "Layer 2 against the last (3): 10.0 points ahead at 2 per label"
    for name in ("index.html", "report.md"):
        assert lead in files[name]
        assert "40.0 ± 1.0" in files[name]
        assert "Choosing" in files[name]
        assert "noisy text" not in _files(subject())[name]
    assert 'class="curves"' in files["index.html"]
    assert 'class="curves"' not in _files(subject())["index.html"]
    assert "| 1 | 22.0 ± 1.0 | - | 33.0 ± 1.0 |" in files["report.md"]


def test_examples_are_drawn_on_an_axis_that_doubles() -> None:
    three = replace(curves(), curves=[curve(2, (2, 4, 16), (0.4, 0.5, 0.6))])
    (plot,) = curve_plots(subject(curves=[three]), "plot")
    ticks = {words: x for words, x, _ in _ticks(str(plot.svg))}
    assert list(ticks) == ["2", "4", "16"]
    assert ticks["16"] - ticks["4"] == pytest.approx(2 * (ticks["4"] - ticks["2"]), rel=0.01)


def test_ticks_that_would_touch_are_left_out_and_the_ends_stay() -> None:
    x = [float(2**power) for power in range(1, 12)]
    many = replace(curves(), curves=[curve(2, x, [0.5] * len(x))])
    (plot,) = curve_plots(subject(curves=[many]), "plot")
    places = sorted((place, words) for words, place, _ in _ticks(str(plot.svg)))
    assert places[-1][1] == "2048"
    gaps = np.diff([place for place, _ in places])
    assert gaps.min() > 4 * CHAR_WIDTH


@pytest.mark.parametrize("kind", ["examples", "noise"])
def test_curves_without_a_value_are_no_empty_plot(kind: str) -> None:
    found = replace(
        curves(kind),
        curves=[replace(each, score=[None] * 3, spread=[None] * 3) for each in curves().curves],
    )
    page = _page(subject(curves=[found]))
    assert "Undefined in every layer." in page
    assert 'id="s1-curve-0' not in page


def test_a_curve_of_one_fold_has_no_band() -> None:
    found = replace(curves(), curves=[replace(e, spread=[None] * 3) for e in curves().curves])
    page = _page(subject(curves=[found]))
    assert "<td>40.0</td>" in page
    assert "±" not in _cells(page, "topic: few labelled examples")[1]


def test_hostile_names_end_no_cell_and_are_no_markup() -> None:
    full = _full()
    hostile = replace(
        full,
        name=HOSTILE,
        tasks=[replace(each, label=HOSTILE) for each in full.tasks[:1]],
        layers=[replace(row, tasks={HOSTILE: row.score}) for row in full.layers],
        curves=[replace(each, label=HOSTILE) for each in full.curves],
        choices=[*full.choices, choice(f"rankme on {HOSTILE}", 1)],
        correlations=[replace(e, dataset=HOSTILE, metric=HOSTILE) for e in full.correlations],
        measured_on=HOSTILE,
    )
    files = _files(hostile)
    assert "<script" not in files["index.html"] + files["report.md"]
    tables: list[list[str]] = [[]]
    for line in files["report.md"].splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    bars = [{len(re.findall(r"(?<!\\)\|", row)) for row in table} for table in tables if table]
    assert len(bars) >= 6
    assert all(len(each) == 1 for each in bars)


def test_every_plot_and_table_is_accessible_and_ids_are_unique() -> None:
    page = _files(_full(), replace(_full(), name="another/model"))["index.html"]
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 2 * (6 + 2)
    for plot in plots:
        root = ElementTree.fromstring(re.sub("xlink:href", "href", plot))
        assert root.get("role") == "img"
        assert root.findtext("title")
        assert root.findtext("desc")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", page))


def test_the_page_tells_colours_by_variables_only() -> None:
    plots = "".join(re.findall(r"<svg.*?</svg>", _files(_full())["index.html"], flags=re.DOTALL))
    colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", plots))
    known = {"none", *(f"var(--{name})" for name in ("ink", "muted", "rule", "accent", "band"))}
    assert colours <= known


def test_the_console_table_is_within_its_columns() -> None:
    long = subject(np.linspace(0.01, 1.0, 60).tolist(), verdict=verdict(number=30))
    wide = [
        replace(row, gain=-1.0, gain_low=-1.0, gain_high=-0.999, p_holm=0.00012)
        for row in long.layers
    ]
    lines = report.story(replace(long, layers=wide), 0.95)
    assert max(map(len, lines)) <= report.COLUMNS
    rows = [line for line in lines if re.match(r"[ >] +\d+  ", line)]
    assert len(rows) == 60
    assert len({len(row) for row in rows}) == 1
    assert all("0.00012" in row for row in rows[:-1])


def test_the_json_is_strict_whatever_is_missing() -> None:
    rows = [layer(number, None) for number in range(len(SCORES))]
    empty = subject(layers=rows, verdict=verdict("not_enough_evidence", 3, 0.0), oracle=None)
    files = _files(empty, unlabelled(), _full())
    assert "NaN" not in files["report.json"]
    assert len(json.loads(files["report.json"])["subjects"]) == 3
    assert "See below which scores are undefined" in files["index.html"]
