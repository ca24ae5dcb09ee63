"""The small kit: a folder of texts in, one page out; and the three steps of that page in words."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config.run import load
from jobs.plan.plan import plan
from jobs.prepare.folders import with_folders
from jobs.report import page as report
from jobs.report.findings import Encoded, MetricValue, Series, SubjectFinding
from jobs.report.sections import steps
from tests.conftest import Cli, write_texts
from tests.support.by_hand import curves, findings, layer, subject, verdict
from tests.support.planned import assert_planned


def series(metric: str, variant: str, values: tuple[float, ...]) -> Series:
    found = [MetricValue(number, value, None, 40, 0) for number, value in enumerate(values)]
    return Series("texts", metric, variant, "final", "mean", True, found)


def checked(**changes: object) -> SubjectFinding:
    """Return a subject with what the steps need: scores 40, 47, 60, 52, and curves of noise."""
    found = subject(
        curves=[curves("noise")],
        metrics=[
            series("infonce", "loss", (2.0, 1.5, 0.5, 1.0)),
            series("lidar", "alpha=1", (2.0, 2.5, 3.0, 3.5)),
        ],
        encoded=[Encoded("texts", "clean", 40, 1, 400, 0, 0, 1.0)],
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"\d+(?:\.\d+)?", text)]


def test_candidates_are_those_equal_to_the_best_the_next_and_the_last() -> None:
    equal = [row.layer for row in steps.candidates(checked())]
    assert equal == [2, 3]  # layer 3, 8 points behind with an error of 5, is the last
    rows = [layer(n, score) for n, score in enumerate((0.58, 0.2, 0.6, 0.3))]
    assert [row.layer for row in steps.candidates(checked(layers=rows))] == [0, 2, 3]


def test_each_step_says_its_numbers() -> None:
    found = checked()
    assert numbers(steps.compare(found)) == [4, 40, 2, 60.0, 3, 52.0]
    # Typos of 30 %; layer 2 in points before and under them, layer 3, the better one, and metrics'.
    stable = [30, 2, 40.0, 50.0, 3, 30.0, 52.0, 3, 2, 3]
    assert numbers(steps.stability(found)) == stable
    # Per candidate its share of the compute and its milliseconds; the choice, and what it saves.
    assert numbers(steps.cost(found)) == [2, 67, 8.5, 3, 100, 12.5, 2, 33]
    kept = steps.cost(checked(verdict=verdict("keep_last", 3, 0.0)))
    assert kept.endswith("The last layer (3) is the choice, and it saves nothing.")
    unsure = steps.cost(checked(verdict=verdict("not_enough_evidence", 2)))
    assert unsure.endswith("The scores do not decide between them.")


def test_the_steps_link_to_sections_that_are_there_and_need_scores_under_noise() -> None:
    page = html.unescape(report.render(findings(checked()))["index.html"].decode())
    part = page.partition("<h2>In three steps</h2>")[2].partition("</ol>")[0]
    links = re.findall(r'href="#([^"]+)"', part)
    assert links == ["s1-ranking", "s1-curves", "s1-metrics", "s1-cost"]
    assert set(links) <= set(re.findall(r'\bid="([^"]+)"', page))
    for without in (subject(), subject(curves=[curves("examples")]), subject([None] * 4)):
        assert "In three steps" not in report.render(findings(without))["index.html"].decode()


@pytest.mark.slow
def test_a_folder_of_texts_becomes_one_page(
    tmp_path: Path, checkpoint: Path, fresh_cli: Cli
) -> None:
    for row in map(json.loads, write_texts(tmp_path / "rows.jsonl", 60).read_text().splitlines()):
        path = tmp_path / "texts" / row["topic"] / "all.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            stream.write(f"{row['text']}\n\n")
    texts, subject_, out = str(tmp_path / "texts"), str(checkpoint), tmp_path / "out"
    given = ["--texts", texts, "--subject", f"tiny={subject_}", "--output", str(out)]
    fresh_cli("run", "quickcheck", *given, "--max-bytes", "1GB")
    planned = with_folders(load("quickcheck"), texts)
    named = planned.subjects[0].model_copy(update={"model": subject_, "name": "tiny"})
    assert_planned(plan(planned.model_copy(update={"subjects": (named,)}), None), out)
    facts = json.loads((out / "report/report.json").read_text())
    (found,) = facts["subjects"]
    assert facts["datasets"][0]["prompts"] == 60
    assert [task["label"] for task in found["tasks"]] == ["label"]
    assert {each["kind"] for each in found["curves"]} == {"examples", "noise"}
    page = html.unescape((out / "report/index.html").read_text())
    assert "4 layers of 60 prompts, from one pass of the model, were compared on “label”." in page
    assert page.count("With typos (of each kind in 30 % of the words)") == 1
