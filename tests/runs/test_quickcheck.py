"""The small kit: a folder of texts in, one page out, with three steps to a layer."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from jobs.config.run import load
from jobs.plan.plan import plan
from jobs.prepare.folders import with_folders
from tests.conftest import Cli, write_texts
from tests.support.planned import assert_planned


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
    assert "4 layers, 1 task, one pass of the model" in page
    assert page.count("With typos in 30 % of the words") == 1
