"""The four kinds of chart: what is drawn, what is said on hover, and what is not covered."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest

from layerrank.jobs.report.charts import (
    HeatMap,
    Histogram,
    Line,
    Lines,
    Look,
    Mark,
    Plot,
    Point,
    Scatter,
    Shape,
    in_points,
)
from layerrank.jobs.report.drawing import draw, swatch

NAN = float("nan")
X = [0.0, 1.0, 2.0, 3.0]
LINES = Lines(
    [
        in_points(
            "score", X, [0.4, NAN, 0.6, 0.5], band=([0.3, NAN, 0.5, 0.4], [0.5, NAN, 0.7, 0.6])
        ),
        Line("entropy", X, [1.0, 2.0, 3.0, 2.0], "thin", at_end=True),
    ],
    y="score, points",
    marks=[Mark(3, "last"), Mark(2, "use layer 2", strong=True)],
)
POINTS = [Point(33.0 * n, 40.0 + n, f"layer {n}", str(n), 45.0 + n, strong=n > 1) for n in range(4)]
VALUES = np.array([[1.0, 2.0], [NAN, 4.0], [3.0, 5.0]])
MAP = HeatMap(VALUES, [0, 1, 2], ["8", "1,000"], "step", "points", [2, 2], [0, None], ".1f")
PLOTS: dict[str, Plot] = {
    "lines": LINES,
    "scatter": Scatter(POINTS, "compute", "score", 100, 43, ("points", "% of the compute")),
    "histogram": Histogram([10, 5, 25], [0.5, 1.5, 2.5, 3.5], "nats", split=2.0),
    "heat map": MAP,
}


def _hovers(svg: str) -> list[str]:
    return re.findall(r"<title>(.*?)</title>", svg)


def _texts(svg: str) -> list[tuple[str, float, float]]:
    """Return every text of a drawing with where it is."""
    found = []
    for text in ElementTree.fromstring(svg.replace("xlink:href", "href")).iter("text"):
        place = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", text.get("transform") or "")
        x, y = place.groups() if place else (text.get("x") or "0", text.get("y") or "0")
        found.append((text.text or "", float(x), float(y)))
    return found


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("shape", get_args(Shape))
def test_a_chart_is_described_in_the_pages_colours_with_ids_of_its_own(
    name: str, shape: Shape
) -> None:
    svg = str(draw(PLOTS[name], shape, "a", "A <title>"))
    assert svg == str(draw(PLOTS[name], shape, "a", "A <title>"))
    drawings = re.findall(r"<svg.*?</svg>", svg, flags=re.DOTALL)
    assert len(drawings) == (2 if shape in ("wide", "low") else 1)
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.replace("xlink:href", "href"))
        assert (root.get("role"), root.findtext("title")) == ("img", "A <title>")
        assert root.findtext("desc") == PLOTS[name].words()
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert all(each.startswith("a-") for each in ids)
    colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", svg))
    assert all(each == "none" or each.startswith("var(--") for each in colours)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "lines",
            [
                *(f"score, layer {n}: {y}.0 points" for n, y in ((0, 40), (2, 60), (3, 50))),
                *(f"entropy, layer {n}: {y}" for n, y in enumerate((1, 2, 3, 2))),
            ],
        ),
        ("scatter", [f"layer {n}: {40 + n}.0 points, {33 * n} % of the compute" for n in range(4)]),
        (
            "histogram",
            [f"{n} from {x} to {x + 1} nats" for n, x in ((10, 0.5), (5, 1.5), (25, 2.5))],
        ),
    ],
)
def test_every_point_says_its_value_on_hover(name: str, says: list[str]) -> None:
    assert _hovers(str(draw(PLOTS[name], "panel", "a", "t"))) == says


def test_every_cell_of_a_map_says_its_value_and_is_the_stronger_the_higher() -> None:
    svg = str(draw(MAP, "panel", "m", "t"))
    cells = re.findall(r'fill-opacity="([\d.]+)"><title>(layer .*?)</title>', svg)
    known = [(0, "8", 1), (0, "1,000", 2), (1, "1,000", 4), (2, "8", 3), (2, "1,000", 5)]
    expected = [f"layer {layer}, {step}: {value:.1f} points" for layer, step, value in known]
    assert [says for _, says in cells] == expected
    strength = {says: float(opacity) for opacity, says in cells}
    ordered = sorted(strength, key=lambda says: float(says.split(": ")[1].split()[0]))
    assert [strength[says] for says in ordered] == sorted(strength.values())
    assert (strength[ordered[0]], strength[ordered[-1]]) == (0.07, 1.0)
    assert svg.count('class="dot"') == 2
    assert svg.count('class="ring"') == 1
    assert {"1.0", "3.0", "5.0", "8", "1,000"} <= {text for text, _, _ in _texts(svg)}


def test_cells_of_a_map_neither_overlap_nor_part() -> None:
    whole = replace(MAP, values_LS=np.arange(14.0).reshape(7, 2), layers=range(7))
    cells = re.findall(
        r'y="(\d+)" width="\d+" height="(\d+)" fill-opacity="[\d.]+"><title>layer',
        str(draw(whole, "panel", "m", "t")),
    )
    tops = sorted({(int(y), int(height)) for y, height in cells})
    assert [y + height for y, height in tops][:-1] == [y for y, _ in tops][1:]


def test_values_that_span_much_have_logarithmic_colours() -> None:
    wide = HeatMap(np.array([[1.0, 10.0, 1000.0]]), [0], ["a", "b", "c"], "step", "points")
    assert wide.is_logarithmic
    assert wide.strengths()[0] == pytest.approx([0, 1 / 3, 1])
    assert not MAP.is_logarithmic
    same = replace(MAP, values_LS=np.full((3, 2), 2.0))
    assert (same.strengths() == 1).all()
    assert "highest 2.0" in same.words()
    draw(same, "panel", "m", "t")


def test_columns_are_named_as_far_as_they_fit_and_the_newest_always() -> None:
    names = [f"{1000 * step:,}" for step in range(1, 155)]
    many = replace(MAP, values_LS=np.ones((3, 154)), columns=names, dots=[], rings=[])
    places = {x: text for text, x, _ in _texts(str(draw(many, "panel", "m", "t"))) if text in names}
    assert "154,000" in places.values()
    assert np.diff(sorted(places)).min() > 40


def test_a_point_without_neighbours_is_drawn_with_its_band() -> None:
    line = LINES.lines[0]
    assert line.alone() == [(0.0, 30.0, 50.0)]
    assert Line("a", X, [1.0, NAN, 3.0, NAN]).alone() == [(0.0, 1.0, 1.0), (2.0, 3.0, 3.0)]
    assert "score: from 40.0 at layer 0 to 50.0 at layer 3; lowest 40.0" in LINES.words()
    assert Lines([Line("a", X, [NAN] * 4)]).words() == "a: no value."


def test_thin_lines_have_a_scale_of_their_own() -> None:
    alone = str(draw(Lines(LINES.lines[:1]), "panel", "a", "t"))
    both = str(draw(LINES, "panel", "a", "t"))
    ticks = [
        {text for text, x, _ in _texts(svg) if text.isdigit() and x < 56} for svg in (alone, both)
    ]
    assert ticks[0] == ticks[1]
    assert "var(--second)" in both


@pytest.mark.parametrize("look", get_args(Look))
def test_every_look_can_be_drawn(look: Look) -> None:
    assert "<svg" in draw(Lines([Line("a", X, X, look)]), "panel", "a", "t")


def test_names_at_the_ends_and_words_above_marks_stay_apart() -> None:
    lines = [
        in_points(f"task {n}", X, [0.5, 0.5, 0.5, 0.5 + n / 1000], at_end=True) for n in range(6)
    ]
    marks = [Mark(3, "last layer 3"), Mark(2.9, "use layer 2", strong=True)]
    texts = _texts(str(draw(Lines(lines, marks=marks), "panel", "a", "t")))
    ends = sorted(y for text, _, y in texts if text.startswith("task"))
    assert np.diff(ends).min() >= 14.9
    above = [y for text, _, y in texts if "layer " in text]
    assert abs(above[0] - above[1]) >= 14.9


def test_ticks_that_would_touch_are_left_out_and_the_last_stays() -> None:
    ticks = [(float(n), str(2**n)) for n in range(1, 40)]
    svg = str(draw(Lines([Line("a", [1.0], [1.0])], ticks=ticks), "panel", "a", "t"))
    shown = {text: x for text, x, _ in _texts(svg)}
    assert str(2**39) in shown
    places = sorted(shown[text] for text in shown if text.isdigit() and int(text) > 2**8)
    assert np.diff(places).min() > 0.5 * 7 * len(str(2**39))


@pytest.mark.parametrize("kind", ["rise", "flat", "noise"])
@pytest.mark.parametrize("layers", [7, 49])
def test_names_of_points_never_cover_one_another(kind: str, layers: int) -> None:
    depth = np.linspace(0, 1, layers)
    scores = {
        "rise": 30 + 40 * depth,
        "flat": np.full(layers, 50.0),
        "noise": np.random.default_rng(0).uniform(20, 80, layers),
    }[kind]
    words = {layers // 2: "pick this", layers - 1: "p last"}
    points = [
        Point(100 * x, y, f"layer {n}", words.get(n, f"p{n}"), y + 3, ringed=n in words)
        for n, (x, y) in enumerate(zip(depth, scores, strict=True))
    ]
    svg = str(
        draw(Scatter(points, "compute", "score", 100, max(scores), ("", "")), "panel", "a", "t")
    )
    labels = [each for each in _texts(svg) if each[0].startswith("p")]
    assert {text for text, _, _ in labels} >= set(words.values())
    for (one, x, y), (other, u, v) in combinations(labels, 2):
        apart = abs(x - u) >= (len(one) + len(other)) * 6.8 / 2 - 1
        assert apart or abs(y - v) >= 13, (one, other)


def test_sixteen_models_can_be_told_apart() -> None:
    assert len({str(swatch(n)) for n in range(16)}) == 16
