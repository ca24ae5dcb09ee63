"""A small run of a user's own config: its paths, its limit, its report from the tables alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from layerrank.jobs.config.stored import stored
from layerrank.storage.root import Root
from tests.conftest import S3, Cli, offline_environment, write_texts
from tests.support.stored import ask

pytestmark = pytest.mark.slow
CONFIG = """
name: mine
output: out
subjects: [{model: models/tiny}]
datasets:
- name: data
  source: {files: texts.jsonl}
  tasks: [{name: topic, type: classification, label_column: topic, samples_per_label: 3, folds: 3}]
views: {count: 4}
candidates: null
"""
SAME = ("--limit", "40", "--set", "views.count=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, cli: Cli) -> Path:
    """A folder with a config, what it names, and what a run of it left."""
    found = tmp_path_factory.mktemp("mine")
    shutil.copytree(checkpoint, found / "models" / "tiny")
    write_texts(found / "texts.jsonl")
    (found / "mine.yaml").write_text(CONFIG, encoding="utf-8")
    told = cli("run", str(found / "mine.yaml"), *SAME, "-q")
    assert told.stdout.startswith("tiny at local: ")
    assert told.stdout.count("\n") == 1
    return found


def test_paths_are_those_beside_the_config_and_a_limit_is_of_source_rows(folder: Path) -> None:
    root = Root(str(folder / "out"))
    assert ask(root, "SELECT count(*) FROM prompts") == [(40,)]
    (kept,) = stored(root)
    assert kept["given"]["subjects"][0]["model"] == str(folder / "models" / "tiny")
    assert kept["given"]["datasets"][0]["source"]["files"] == [str(folder / "texts.jsonl")]
    assert kept["given"]["datasets"][0]["limit"] == 40
    assert kept["given"]["views"] == {"count": 0}


def test_a_report_comes_from_the_tables_alone(folder: Path, tmp_path: Path, cli: Cli) -> None:
    """Where neither the model nor the texts are, under another name, with the same numbers."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder / "out", moved)
    before = {each.name: each.read_bytes() for each in (moved / "report" / "mine").iterdir()}
    shutil.rmtree(moved / "report")
    (folder / "models").rename(folder / "gone")
    (folder / "texts.jsonl").rename(folder / "gone.jsonl")
    try:
        assert "mine: tiny at local" in cli("status", str(moved)).stdout
        told = cli("report", str(moved)).stdout
        assert f"report: {moved}/report/mine/index.html" in told
        after = {each.name: each.read_bytes() for each in (moved / "report" / "mine").iterdir()}
        assert after == before
        assert cli("report", str(moved), "--run", "mine", "-q").stdout.startswith("tiny at local")
        assert "did you mean mine" in cli("report", str(moved), "--run", "mien", expect=2).stderr
        given = "--limit 3 --set seed=1 --text-column body --label-column topic --engine process"
        refused = cli("report", str(moved), *given.split(), "--overwrite", expect=2).stderr
        wanted = ["set", "limit", "text-column", "label-column", "engine", "overwrite"]
        assert f"leave out --{', --'.join(wanted)}\n" in refused
    finally:
        (folder / "gone").rename(folder / "models")
        (folder / "gone.jsonl").rename(folder / "texts.jsonl")
    told = cli("report", str(folder / "mine.yaml"), *SAME).stdout
    assert f"report: {folder}/out/report/mine/index.html" in told


def test_a_report_on_s3_is_made_there(folder: Path, tmp_path: Path, s3: S3) -> None:
    there, out = s3.root("mine"), folder / "out"
    for file in (each for each in out.rglob("*") if each.is_file()):
        there.write(str(file.relative_to(out)), file.read_bytes())
    page = there.read("report/mine/index.html")
    there.delete("report/mine/index.html")
    storage = tmp_path / "storage.yaml"
    storage.write_text(
        CONFIG
        + yaml.safe_dump(
            {
                "storage": {
                    "endpoint_url": s3.endpoint,
                    "key": "testing",
                    "secret": "not-a-real-secret",
                }
            }
        ),
        encoding="utf-8",
    )
    told = Cli(offline_environment())("report", there.uri, "--config", str(storage))
    assert "not-a-real-secret" not in told.stdout + told.stderr
    assert there.read("report/mine/index.html") == page


def test_all_runs_of_an_output_are_reported(folder: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    two = ("--set", "name=two", "--set", "rank.policy=cheapest_equal")
    cli("run", str(folder / "mine.yaml"), "-o", str(out), *SAME, *two)
    told = cli("report", str(out)).stdout
    assert all(f"/report/{name}/index.html" in told for name in ("mine", "two"))
    runs = json.loads(cli("status", str(out), "--json").stdout)["recommendations"]
    assert [each["run"] for each in runs] == ["mine", "two"]
    assert cli("open", str(out), "--print").stdout == f"{out}/report/index.html\n"


def test_a_plan_has_the_same_options(folder: Path, cli: Cli) -> None:
    config = str(folder / "mine.yaml")
    rows = [
        re.search(r"data: +(\d+)", cli("plan", config, *options, "-o", f"{folder}/x").stdout)
        for options in ([], ["--limit", "30"])
    ]
    assert [found and int(found[1]) for found in rows] == [60, 30]


def test_a_model_is_exported_with_nothing_but_the_output(
    folder: Path, tmp_path: Path, cli: Cli
) -> None:
    out, cut = str(folder / "out"), tmp_path / "cut"
    cli("export", str(cut), "--ranking", out)
    assert json.loads((cut / "modules.json").read_text("utf-8"))
    assert "cut exists" in cli("export", str(cut), "--ranking", out, expect=2).stderr
    assert f"--ranking {out}" in cli("export", out, expect=2).stderr


@pytest.mark.parametrize("command", [["validate"], ["plan"], ["run"]])
def test_a_key_that_is_none_is_answered_with_the_nearest(
    folder: Path, tmp_path: Path, cli: Cli, command: list[str]
) -> None:
    wrong = folder / "wrong.yaml"
    wrong.write_text(CONFIG.replace("views:", "veiws:"), encoding="utf-8")
    told = cli(*command, str(wrong), *(["-o", str(tmp_path)] * (command != ["validate"])), expect=2)
    assert "unknown key veiws" in told.stderr
    assert "did you mean views?" in told.stderr
