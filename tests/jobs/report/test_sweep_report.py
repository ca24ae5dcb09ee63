"""Several subjects in one report: heat maps over training, and models on relative depth."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from jobs.report import page as report
from jobs.report.findings import Findings, MetricValue, Series, SubjectFinding
from jobs.report.sections.side_by_side import side_by_side
from jobs.report.sections.training import (
    NARROW,
    checkpoints,
    in_full,
    metric_maps,
    score_maps,
    sweeps,
)
from tests.support.by_hand import findings, layer, subject, unlabelled, verdict

LEVEL = 0.95
# The gain of each layer over the last, step by step: layer 0 falls behind, layer 2 overtakes.
GAINS: dict[int, tuple[float, ...]] = {
    8: (0.05, -0.01, -0.03, 0.0),
    64: (0.05, -0.01, 0.01, 0.0),
    1000: (-0.05, -0.01, 0.05, 0.0),
}


def _checkpoint(step: int, gains: Sequence[float], **other: Any) -> SubjectFinding:  # noqa: ANN401
    ranks = [1 + sum(each > gain for each in gains) for gain in gains]
    rows = [
        layer(
            number,
            0.5 + gain,
            rank=ranks[number],
            gain=gain,
            gain_low=gain - 0.02,
            gain_high=gain + 0.02,
        )
        for number, gain in enumerate(gains)
    ]
    given = {"name": "neox", "revision": f"step{step}", "layers": rows, **other}
    return replace(subject(), **given)


def _series(values: Sequence[float | None], metric: str = "rankme") -> Series:
    found = [MetricValue(number, each, None, 40, 0) for number, each in enumerate(values)]
    return Series("texts", metric, "", "final", "mean", main=True, values=found)


def _sweep(gains: Mapping[int, Sequence[float]] = GAINS) -> list[SubjectFinding]:
    return [
        _checkpoint(step, each, metrics=[_series([step, 2.0, 3.0, 4.0])])
        for step, each in gains.items()
    ]


def _findings(*subjects: SubjectFinding) -> Findings:
    """Return findings as `jobs.report.collect` makes them."""
    return replace(
        findings(*subjects), sweeps=sweeps(subjects, LEVEL), side_by_side=side_by_side(subjects)
    )


def _files(*subjects: SubjectFinding) -> dict[str, str]:
    files = report.render(_findings(*subjects))
    return {name: html.unescape(content.decode()) for name, content in files.items()}


def _rows(page: str, label: str) -> list[list[str]]:
    table = page.partition(f'aria-label="{label}"')[2].partition("</table>")[0]
    return [
        [re.sub(r"<[^>]*>", " ", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
    ]


def test_a_sweep_says_when_each_layer_overtook_the_last_one() -> None:
    (found,) = sweeps(_sweep(), LEVEL)
    assert (found.name, found.steps) == ("neox", [8, 64, 1000])
    told = {row.layer: (row.stays_above, row.clearly_above) for row in found.overtakings}
    assert told == {0: (None, "step8"), 1: (None, None), 2: ("step64", "step1000")}
    assert found.sentence == (
        "At step 1,000, 1 of the 3 layers below the last scores above it, layer 2 since step 64. "
        "The 95 % interval of the gain lies above 0 for the first time at step 1,000, for layer 2."
    )


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ({1: (0.01, 0.01, -0.01, 0), 2: (0.01, 0.01, -0.01, 0)}, "2 of them in every checkpoint."),
        ({1: (0.01, 0, 0, 0), 2: (0.01, 0, 0, 0)}, "Of none of them does the 95 % interval of"),
        ({1: (0.1, 0, 0, 0), 2: (0, -0.1, 0, 0)}, "At step 2 no layer scores above the last one"),
    ],
)
def test_the_sentence_follows_the_gains(gains: dict[int, tuple[float, ...]], says: str) -> None:
    assert says in sweeps(_sweep(gains), LEVEL)[0].sentence


def test_checkpoints_are_in_the_order_of_their_steps_and_the_newest_is_shown_in_full() -> None:
    young, middle, old = _sweep()
    other = subject(name="other")
    given = _findings(old, other, young, middle)
    (found,) = given.sweeps
    assert [each.revision for each in checkpoints(given, found)] == ["step8", "step64", "step1000"]
    assert [str(each.revision) for each in in_full(given)] == ["step1000", "step1"]
    named = [replace(each, revision=name) for each, name in zip(_sweep(), "cab", strict=True)]
    assert sweeps(named, LEVEL)[0].revisions == ["c", "a", "b"]


def test_a_checkpoint_of_another_depth_breaks_the_comparison() -> None:
    young, _, old = _sweep()
    other = _checkpoint(64, (0.2, 0.0, 0.0))
    (found,) = sweeps([young, other, old], LEVEL)
    assert found.overtakings[2].stays_above == "step1000"
    assert found.overtakings[0].clearly_above == "step8"


def test_twenty_checkpoints_make_one_full_section() -> None:
    many = _sweep({10 * step: GAINS[1000] for step in range(1, 21)})
    files = _files(*many)
    assert files["index.html"].count('<section class="subject"') == 1
    assert files["report.md"].count(": layer ranking") == 1
    rows = _rows(files["index.html"], "Verdict of every checkpoint of neox")
    assert len(rows) == 1 + len(many)
    assert rows[-1] == ["200", "50.0", "2", "55.0", "+5.0", "3.0 to 7.0", "use layer 2"]
    assert files["report.json"].count('"revision": "step') == len(many)
    assert report.sweep_story(_findings(*many).sweeps[0], many, LEVEL)[4].split() == [
        "10", "50.0", "2", "55.0", "+5.0", "3.0", "to", "7.0", "use", "layer", "2"
    ]  # fmt: skip


def test_the_tables_of_page_and_text_agree() -> None:
    files = _files(*_sweep())
    rows = _rows(files["index.html"], "When each layer of neox overtook the last one")
    assert rows[1:] == [
        ["0", "–", "8", "−5.0", "−7.0 to −3.0"],  # noqa: RUF001
        ["1", "–", "–", "−1.0", "−3.0 to 1.0"],  # noqa: RUF001
        ["2", "64", "1,000", "+5.0", "3.0 to 7.0"],
    ]
    assert "| 2 | 64 | 1,000 | +5.0 | 3.0 to 7.0 |" in files["report.md"]
    assert "| 1,000 | 50.0 | 2 | 55.0 | +5.0 | 3.0 to 7.0 | use layer 2 |" in files["report.md"]


def _paths(svg: str) -> list[tuple[float, int]]:
    """Return the strength of every colour of a map, and how many cells have it."""
    return [
        (float(alpha or 1), path.count("z"))
        for path, alpha in re.findall(
            r'<path d="([^"]*)"[^>]*style="fill: var\(--accent\)(?:; opacity: ([\d.]+))?', svg
        )
    ]


def test_a_map_has_every_cell_once_and_stronger_colours_for_higher_values() -> None:
    maps = score_maps(_sweep(), "m")
    assert set(maps) == {"wide", "narrow"}
    root = ElementTree.fromstring(str(maps["narrow"]).replace("xlink:href", "href"))
    title, words = root[0].text or "", root[1].text or ""
    assert title == "Score of every layer at every checkpoint"
    assert "lowest 45 in layer 0 at step 1,000, highest 55 in layer 0 at step 8" in words
    assert "At step 1,000: layer 0: 45; layer 1: 49; layer 2: 55; layer 3: 50." in words
    painted = _paths(str(maps["narrow"]))
    cells, scale = painted[:-12], painted[-12:]
    assert sum(count for _, count in cells) == 4 * 3
    strengths = [strength for strength, _ in scale]
    assert strengths == sorted(strengths)
    assert strengths[-1] == 1
    # Of the values 45, 47, 49, 50, 51, 55: the lowest once, the highest three times.
    assert (cells[0], cells[-1]) == ((strengths[0], 1), (1.0, 3))
    assert "#" not in "".join(re.findall(r"fill: (\S+)", str(maps["narrow"])))
    for label in (">45.0<", ">50.0<", ">55.0<", ">1,000<", ">training step<"):
        assert label in str(maps["narrow"])


def test_cells_without_a_value_are_blank_and_said_to_be() -> None:
    young, middle, old = _sweep()
    middle = replace(middle, metrics=[])
    (found,) = metric_maps([young, middle, old], "texts", "m")
    assert found.title == "RankMe"
    assert found.source.endswith("Logarithmic colours. Blank: no value.")
    assert sum(count for _, count in _paths(str(found.svg))[:-12]) == 4 * 2
    bare = [replace(each, metrics=[_series([None] * 4)]) for each in (young, old)]
    (nothing,) = metric_maps(bare, "texts", "m")
    assert nothing.svg is None
    assert "Undefined everywhere." in _files(*bare)["index.html"]


def test_one_value_everywhere_and_no_labels_are_drawn_too() -> None:
    same = [replace(each, metrics=[_series([2.0] * 4)]) for each in _sweep()]
    (found,) = metric_maps(same, "texts", "m")
    assert [count for _, count in _paths(str(found.svg))] == [4 * 3, 1]
    bare = [unlabelled(name="neox", revision=f"step{step}") for step in (1, 2)]
    page = _files(*bare)["index.html"]
    assert "No layer is scored at step 2" in page
    assert "overtook the last one</h3>" not in page
    assert "no labels, layer 2" in page


def test_columns_are_named_as_far_as_they_fit_and_the_newest_always() -> None:
    many = _sweep({1000 * step: GAINS[8] for step in range(1, 155)})
    svg = str(score_maps(many, "m")["narrow"])
    places = [
        (float(x), text) for x, text in re.findall(r' x="([\d.]+)"[^>]*>([\d,]{5,})</text>', svg)
    ]
    assert "154,000" in {text for _, text in places}
    ordered = sorted(x for x, _ in places)
    assert min(np.diff(ordered)) > NARROW.width / 10


def test_models_side_by_side_are_on_relative_depth() -> None:
    deep = subject([0.1, 0.2, 0.3, 0.4, 0.9], name="deep", verdict=verdict("keep_last", 4))
    deep = replace(deep, layers=[replace(row, rank=5 - row.layer) for row in deep.layers])
    shallow = _checkpoint(1000, GAINS[1000], metrics=[_series([1.0, 2.0, 3.0, 4.0])])
    first, second = side_by_side([deep, shallow])
    assert (first.best, first.best_depth, first.recommended_depth) == (4, 1.0, 1.0)
    assert (second.best, second.gain) == (2, 0.05)
    assert second.best_depth == pytest.approx(2 / 3)
    files = _files(deep, shallow)
    rows = _rows(files["index.html"], "Models side by side")
    assert rows[1] == ["deep", "4", "4", "1.00", "90.0", "+38.0", "baseline", "4", "1.00"]
    assert rows[2][1:] == ["3", "2", "0.67", "55.0", "+5.0", "3.0 to 7.0", "2", "0.67"]
    legend = files["index.html"].partition('<ul class="legend"')[2].partition("</ul>")[0]
    assert re.findall(r"</svg> (\S+)</li>", legend) == ["deep", "neox"]
    assert re.findall(r'stroke="([^"]+)"', legend) == ["var(--accent)", "var(--second)"]
    score = re.search(r"<title[^>]*>Score against relative.*?</desc>", files["index.html"], re.S)
    assert score is not None
    assert "deep: from 10 at depth 0.00 to 90 at 1.00" in score[0]
    assert (
        "neox: from 45 at depth 0.00 to 50 at 1.00; lowest 45 at 0.00, highest 55 at 0.67."
        in (score[0])
    )
    assert "| deep | 4 | 4 | 1.00 | 90.0 |" in files["report.md"]


def test_one_model_is_beside_nothing() -> None:
    assert side_by_side(_sweep()) == []
    assert sweeps([subject()], LEVEL) == []
    page = _files(subject())["index.html"]
    assert "Side by side" not in page
    assert "over training" not in page


def test_ids_are_unique_and_every_figure_is_described() -> None:
    page = _files(*_sweep(), subject(name="other", metrics=[_series([1.0, 2.0])]))["index.html"]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    figures = re.findall(r"<svg [^>]*role=.*?</svg>", page, flags=re.DOTALL)
    assert all(re.search(r"<title[^>]*>.+?</title><desc[^>]*>.+?</desc>", svg) for svg in figures)
    targets = re.findall(r'href="#(model-\d+)"', page)
    assert set(targets) <= set(ids)
    assert len(targets) == 3
