"""Several checkpoints or models in one report: training over steps, and relative depth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from layerrank.jobs.rank.ranking import Checkpoint, Ranking, checkpoint_of
from layerrank.jobs.report import made, section
from layerrank.jobs.report import page as report
from layerrank.jobs.report.charts import HeatMap, Lines
from layerrank.jobs.report.facts import Facts
from layerrank.jobs.report.sections import side_by_side, training
from layerrank.operators.model.subject import Subject
from tests.support.by_hand import NAN, layer, ranking, rows, unlabelled

LEVEL = 0.95
# The gain of each layer over the last, step by step: layer 0 falls behind, layer 2 overtakes.
GAINS: dict[int, tuple[float, ...]] = {
    8: (0.05, -0.01, -0.03, 0.0),
    64: (0.05, -0.01, 0.01, 0.0),
    1000: (-0.05, -0.01, 0.05, 0.0),
}


def _checkpoint(step: int, gains: Sequence[float], **other: Any) -> Ranking:  # noqa: ANN401
    found = [0.5 + gain for gain in gains]
    kept = [layer(n, found) for n in range(len(found))]
    best = int(np.argmax(gains))
    metrics = {("texts", "rankme"): {0: float(step), 1: 2.0, 2: 3.0, 3: 4.0}}
    subject = Subject("neox", f"step{step}", "neox")
    given = {"subject": subject, "metrics": metrics, "rows": kept, **other}
    return ranking(found, "use_layer", best, **given)


def _sweep(gains: Mapping[int, Sequence[float]] = GAINS) -> list[Ranking]:
    return [_checkpoint(step, each) for step, each in gains.items()]


def _points(found: Sequence[Ranking]) -> list[Checkpoint]:
    return [checkpoint_of(each) for each in found]


def _section(found: Sequence[Ranking], **given: Any) -> section.Section:  # noqa: ANN401
    return training.section(_points(found), LEVEL, {"rankme": "directions"}, **given)


def _report(*models: Ranking | Facts) -> report.Report:
    told = [each if isinstance(each, Facts) else Facts(each) for each in models]
    made_of = made.section_of({}, "Seed 0.", [])
    return report.Report("small", told, made_of, {"rankme": "directions"})


def test_a_sweep_says_when_each_layer_overtook_the_last_one() -> None:
    found = _section(_sweep())
    assert (found.data["name"], found.data["steps"]) == ("neox", [8, 64, 1000])
    since = [tuple(row.values()) for row in found.data["overtakings"]]
    assert since == [(0, None, "step8"), (1, None, None), (2, "step64", "step1000")]
    for number in ("1 of the 3", "layer 2 since step 64", "first time at step 1,000, for layer 2"):
        assert number in found.data["sentence"]
    verdicts, overtaken = found.tables
    assert rows(overtaken) == [
        ["0", "-5.0", "-7.0 to -3.0", "-", "8"],
        ["1", "-1.0", "-3.0 to 1.0", "-", "-"],
        ["2", "+5.0", "3.0 to 7.0", "64", "1,000"],
    ]
    best = ["2", "55.0", "+5.0", "3.0 to 7.0"]
    newest = ["1,000", "2", "55.0", "50.0 to 60.0", *best, "50.0", "use layer 2"]
    assert rows(verdicts)[0] == newest
    assert [value for value, _ in found.figures] == ["+4.0 points", "3.0 to 7.0", "0.0", "0.0"]
    assert len(found.title.split()) <= 12


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ({1: (0.01, 0.01, -0.01, 0), 2: (0.01, 0.01, -0.01, 0)}, "2 of them in every checkpoint."),
        ({1: (0.01, 0, 0, 0), 2: (0.01, 0, 0, 0)}, "Of none of them does the 95 % interval of"),
        ({1: (0.1, 0, 0, 0), 2: (0, -0.1, 0, 0)}, "At step 2 no layer scores above the last one"),
    ],
)
def test_the_sentence_follows_the_gains(gains: dict[int, tuple[float, ...]], says: str) -> None:
    assert says in _section(_sweep(gains)).says[0]


def test_checkpoints_are_in_the_order_of_their_steps_and_the_newest_is_shown_in_full() -> None:
    young, middle, old = _sweep()
    found = _report(old, ranking(), young, middle)
    ((*same,),) = found.sweeps
    assert [each.ranking.subject.revision for each in same] == ["step8", "step64", "step1000"]
    assert [each.ranking.subject.revision for each in found.in_full] == ["step1000", "step1"]
    named = [
        replace(each, subject=Subject("neox", name, "neox"))
        for each, name in zip(_sweep(), "cab", strict=True)
    ]
    (unordered,) = _report(*named).sweeps
    assert [each.ranking.subject.revision for each in unordered] == ["c", "a", "b"]


def test_a_checkpoint_of_another_depth_breaks_the_comparison() -> None:
    young, _, old = _sweep()
    found = training.overtaken(_points([young, _checkpoint(64, (0.2, 0.0, 0.0)), old]))
    assert found[2]["stays_above"] == "step1000"
    assert found[0]["clearly_above"] == "step8"


def test_scores_are_drawn_over_steps_and_as_a_map_with_the_best_and_the_recommended() -> None:
    score, whole = _section(_sweep(), alerts={"step64": "layer_moved"}).charts
    assert isinstance(score.plot, Lines)
    assert {line.name: line.y for line in score.plot.lines} == {
        "last": pytest.approx([50, 50, 50]),
        "best": pytest.approx([55, 55, 55]),
        "recommended": pytest.approx([55, 55, 55]),
    }
    assert [mark.x for mark in score.plot.marks] == [1]
    assert isinstance(whole.plot, HeatMap)
    assert whole.plot.values_LS[:, 2] == pytest.approx([45, 49, 55, 50])
    assert (whole.plot.dots, whole.plot.rings) == ([0, 0, 2], [0, 0, 2])
    assert whole.plot.columns == ["8", "64", "1,000"]
    assert "At 1,000: layer 0: 45.0; layer 1: 49.0; layer 2: 55.0" in whole.plot.words()


def test_metrics_are_maps_and_cells_without_a_value_are_blank() -> None:
    young, middle, old = _sweep()
    found = _section([young, replace(middle, metrics={}), old]).parts
    assert len(found) == 2
    (chart,) = found[1].charts
    assert isinstance(chart.plot, HeatMap)
    assert (chart.title, chart.plot.unit) == ("RankMe", "directions")
    assert np.isnan(chart.plot.values_LS).sum() == 4
    assert chart.plot.is_logarithmic
    nothing = {("texts", "rankme"): dict.fromkeys(range(4), NAN)}
    bare = [replace(each, metrics=nothing) for each in (young, old)]
    assert _section(bare).parts[1].charts[0].plot is None


def test_a_table_of_an_earlier_version_has_its_own_interval() -> None:
    earlier = {"gain": 0.05, "gain_low": 0.01, "gain_high": 0.09}
    assert training.sure(earlier) == (0.01, 0.09, "on a new task")
    few = {**earlier, "gain_low": NAN, "gain_high": NAN, "here_low": 0.03, "here_high": 0.07}
    assert training.sure(few) == (0.03, 0.07, "on these tasks")


def test_a_sweep_without_labels_draws_nothing_and_says_so() -> None:
    bare = [
        replace(unlabelled().ranking, subject=Subject("neox", f"step{step}", "neox"))
        for step in (1, 2)
    ]
    found = _section(bare)
    assert not found.charts
    assert len(found.tables) == 1
    assert "No layer is scored at step 2" in found.says[0]
    assert rows(found.tables[0])[0][-1] == "no labels, layer 3"


def test_twenty_checkpoints_make_one_full_part() -> None:
    many = _sweep({10 * step: GAINS[1000] for step in range(1, 21)})
    files = report.render(_report(*many))
    page, text = files["index.html"].decode(), files["report.md"].decode()
    assert page.count('<article class="model"') == 1
    assert text.count(": layer ranking") == 1
    assert files["report.json"].decode().count('"revision": "step') == len(many)
    lines = section.console([_section(many)])
    assert [line.split()[:3] for line in lines if line.startswith(">")] == [[">", "200", "2"]]


def test_models_side_by_side_are_on_relative_depth() -> None:
    scores = [0.1, 0.2, 0.3, 0.4, 0.9]
    deep = ranking(scores, "keep_last", 4, subject=Subject("deep", "main", "deep"))
    found = side_by_side.section([Facts(deep), Facts(_checkpoint(1000, GAINS[1000]))])
    first, second = found.data["side_by_side"]
    assert (first["best"], first["best_depth"], first["recommended_depth"]) == (4, 1.0, 1.0)
    assert (second["best"], second["gain"]) == (2, pytest.approx(0.04))  # corrected by a point
    assert second["best_depth"] == pytest.approx(2 / 3)
    assert [row[:-1] for row in rows(found.tables[0])] == [
        ["deep", "4", "4", "90.0", "0.0", "baseline", "1.00", "4", "1.00"],
        ["neox", "3", "2", "55.0", "+4.0", "3.0 to 7.0", "0.67", "2", "0.67"],
    ]
    plot = found.charts[0].plot
    assert isinstance(plot, Lines)
    assert [line.name for line in plot.lines] == [name for _, name in found.legend]
    assert plot.lines[1].x == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert plot.lines[1].y == pytest.approx([45, 49, 55, 50])


def test_one_model_is_beside_nothing() -> None:
    found = _report(ranking())
    assert found.sweeps == []
    assert side_by_side.section(found.in_full).is_empty
    page = report.render(found)["index.html"].decode()
    assert "Side by side" not in page
    assert "over training" not in page


def test_ids_are_unique_and_links_end_somewhere_on_a_page_of_many() -> None:
    page = report.render(_report(*_sweep(), ranking()))["index.html"].decode()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
