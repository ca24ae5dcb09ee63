"""What an output holds, asked from the command line: status, query and open, here and on S3."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from layerrank.jobs.words import ago, bytes_of
from layerrank.storage.root import BOOKS
from tests.conftest import S3, Cli, offline_environment
from tests.support.places import PROJECT

ODD = """
SELECT layer, 'a|b
c' AS words, [1.5, 'nan'::DOUBLE] AS listed, {'k': layer} AS nested, NULL AS nothing,
DATE '2024-01-02' AS day, layer > 1 AS deep, sum(layer) OVER () AS summed, 'x,"y"' AS quoted
FROM ranking WHERE layer < 3 ORDER BY layer
"""
DEEP = "SELECT r.layer, n FROM ranking r, range(200) AS t(n)"  # more rows than a screen


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> str:
    """The published scores, ranked: two tables and a report."""
    out = str(tmp_path_factory.mktemp("looked-at") / "out")
    cli("run", "published", "-o", out)
    return out


@pytest.mark.parametrize(
    "words",
    [
        "status OUT",
        "query OUT 'SELECT 1'",
        "open OUT",
        "repair OUT",
        "report OUT --limit 1",
        "export cut --ranking OUT",
        "export-vectors OUT --to npy",
    ],
)
def test_an_output_that_is_none_is_answered_with_the_nearest(
    cli: Cli, root: str, tmp_path: Path, words: str
) -> None:
    shutil.copytree(root, tmp_path / "out")
    (tmp_path / "outt").mkdir()  # nearer, and no output

    def told(name: str) -> str:
        place = str(tmp_path / name)
        given = [place if each == "OUT" else each for each in shlex.split(words)]
        (line,) = cli(*given, expect=2).stderr.splitlines()
        assert f"no complete table under {place}" in line
        return line

    assert told("outts").endswith(f"; did you mean {tmp_path / 'out'}?")
    assert told("outt").endswith(f"; did you mean {tmp_path / 'out'}?")
    assert "did you mean" not in told("nosuch")


def test_what_is_to_be_reported_may_be_a_config_too(cli: Cli) -> None:
    assert cli("report", "publishd", expect=2).stderr.endswith("; did you mean published?\n")
    assert "cannot read config gone.yaml" in cli("report", "gone.yaml", expect=2).stderr


def test_a_report_of_scores_is_refused_with_what_ranks_them_again(
    cli: Cli, root: str, tmp_path: Path
) -> None:
    assert f"by `layerrank run published -o {root}`" in cli("report", root, expect=2).stderr
    mine, out = tmp_path / "mine.csv", str(tmp_path / "out")
    mine.write_text("model,layer,task,score\nm,0,t,0.1\nm,1,t,0.2\n", encoding="utf-8")
    cli("rank", "--scores", str(mine), "-o", out)
    told = cli("report", out, expect=2).stderr
    assert f"by `layerrank rank --scores mine.csv -o {out}`" in told


@pytest.fixture
def damaged(root: str, tmp_path: Path) -> Path:
    """A copy of it with a shard that is cut off."""
    copy = tmp_path / "out"
    shutil.copytree(root, copy)
    (shard,) = (copy / "choices").rglob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1])
    return copy


def test_status_says_sizes_ages_and_what_is_advised(cli: Cli, root: str) -> None:
    told = cli("status", root).stdout
    assert re.search(r"complete +ranking of .*: 25 rows, 1 shard, [\d.]+ KiB, \d+ \w+ old\n", told)
    assert "2 partitions, all complete" in told
    assert re.search(r"Pythia-410m at main: layer 17 of 24, gain \+5\.1 points: use_layer", told)


def test_status_for_programs_has_bytes_ages_and_recommendations(cli: Cli, root: str) -> None:
    found = json.loads(cli("status", root, "--json").stdout)
    assert found["complete"]
    shards = Path(root).glob("*/*=*/**/*.parquet")
    sizes = {each.relative_to(root).parts[0]: each.stat().st_size for each in shards}
    held = {each["table"]: each for each in found["partitions"]}
    for table in ("choices", "ranking"):
        assert (held[table]["state"], held[table]["bytes"]) == ("complete", sizes[table])
        written = datetime.fromisoformat(held[table]["written"])
        age = (datetime.now(UTC) - written).total_seconds()
        assert abs(age - held[table]["age_seconds"]) < 60
    assert found["bytes"] == sizes["choices"] + sizes["ranking"]
    assert held["ranking"]["rows"] == 25
    (advice,) = found["recommendations"]
    assert (advice["layer"], advice["layers"], advice["verdict"]) == (17, 24, "use_layer")
    assert advice["gain"] == pytest.approx(0.0506, abs=1e-4)


def test_status_of_what_is_damaged_or_unfinished_ends_with_one(cli: Cli, damaged: Path) -> None:
    told = cli("status", str(damaged), expect=1).stdout
    assert "1 not complete" in told
    found = json.loads(cli("status", str(damaged), "--json", expect=1).stdout)
    states = {each["table"]: each for each in found["partitions"]}
    assert not found["complete"]
    assert states["choices"]["state"] == "damaged"
    assert "bytes instead of" in states["choices"]["damage"]["choices.parquet"]
    for manifest in (damaged / "_layerrank" / "manifests" / "choices").rglob("*.json"):
        manifest.unlink()
    found = json.loads(cli("status", str(damaged), "--json", expect=1).stdout)
    states = {each["table"]: each for each in found["partitions"]}
    assert (states["choices"]["state"], states["choices"]["written"]) == ("incomplete", None)


def test_a_ranking_that_is_damaged_recommends_nothing(cli: Cli, root: str, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(root, copy)
    (shard,) = (copy / "ranking").rglob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[50] ^= 1
    shard.write_bytes(content)
    found = json.loads(cli("status", str(copy), "--json", expect=1).stdout)
    assert [each["table"] for each in found["partitions"] if each["state"] == "damaged"] == [
        "ranking"
    ]
    assert found["recommendations"] == []


@pytest.mark.parametrize("words", [["status"], ["query", DEEP, "--format", "csv"]])
def test_a_reader_that_has_enough_ends_a_command_without_a_word(
    root: str, words: list[str]
) -> None:
    command = [sys.executable, "-m", "layerrank", words[0], root, *words[1:]]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env=offline_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()  # as `head -0` does
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_every_form_of_an_answer_has_all_rows(cli: Cli, root: str) -> None:
    def told(form: str, sql: str = DEEP) -> str:
        return cli("query", root, sql, "--format", form).stdout

    assert len(told("csv").splitlines()) == 1 + 25 * 200
    assert len(json.loads(told("json"))) == 25 * 200
    assert len(told("markdown").splitlines()) == 2 + 25 * 200
    assert len(told("table").splitlines()) < 100
    assert told("table") == cli("query", root, DEEP).stdout
    nothing = "SELECT layer FROM ranking WHERE layer > 99"
    assert json.loads(told("json", nothing)) == []
    assert told("csv", nothing) == "layer\n"


def test_odd_values_survive_in_every_form(cli: Cli, root: str) -> None:
    rows = json.loads(cli("query", root, ODD, "--format", "json").stdout)
    assert rows[2] == {
        "layer": 2,
        "words": "a|b\nc",
        "listed": [1.5, None],
        "nested": {"k": 2},
        "nothing": None,
        "day": "2024-01-02",
        "deep": True,
        "summed": 3,
        "quoted": 'x,"y"',
    }
    text = cli("query", root, ODD, "--format", "csv").stdout
    head, *cells = csv.reader(io.StringIO(text))
    assert head == [*rows[0]]
    listed, nested = "[1.5, null]", '{"k": 2}'
    values = ["2", "a|b\nc", listed, nested, "", "2024-01-02", "true", "3", 'x,"y"']
    assert cells[2] == values
    lines = cli("query", root, ODD, "--format", "markdown").stdout.splitlines()
    assert lines[4].startswith(r"| 2 | a\|b c | [1.5, null] |")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.md", "a.parquet", "inner/a.csv"])
def test_an_answer_is_written_to_a_file_by_its_ending(
    cli: Cli, root: str, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    assert str(path) in cli("query", root, ODD, "--to", str(path)).stdout
    if path.suffix == ".parquet":
        assert pl.read_parquet(path)["nested"].to_list()[2] == {"k": 2}
    else:
        form = {".csv": "csv", ".json": "json", ".md": "markdown"}[path.suffix]
        assert path.read_text("utf-8") == cli("query", root, ODD, "--format", form).stdout
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert cli("query", root, ODD, "--to", str(path), "-q").stdout == ""


def test_sql_comes_from_a_file_or_the_standard_input(cli: Cli, root: str, tmp_path: Path) -> None:
    file = tmp_path / "question.sql"
    file.write_text("SELECT max(layer) AS last\nFROM ranking", encoding="utf-8")
    assert cli("query", root, "-f", str(file), "--format", "csv").stdout == "last\n24\n"
    told = subprocess.run(
        [sys.executable, "-m", "layerrank", "query", root, "-", "--format", "csv"],
        input=file.read_text("utf-8"),
        cwd=PROJECT,
        env=offline_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "last\n24\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give the SQL once"),
        (["SELECT 1", "-f", "question.sql"], "give the SQL once"),
        (["-f", "nowhere.sql"], "cannot read nowhere.sql"),
        (["-f", "READM.md"], r"cannot read READM\.md: No such file.*; did you mean README\.md\?"),
        ([""], "the SQL asks for nothing"),
        (["SELECT 1", "--to", "a.txt"], "--to a.txt: .*ending says no format"),
        (["SELECT 1", "--format", "parquet"], "needs --to FILE"),
        (["SELECT 1 AS a, 2 AS a", "--format", "json"], "two columns .* are called a"),
        (["SELECT 1", "--format", "jsn"], "did you mean json"),
        (["SELECT 1", "--to", "/proc/none/a.csv"], "/proc/none"),
    ],
)
def test_a_question_that_is_none_is_one_sentence(
    cli: Cli, root: str, words: list[str], says: str
) -> None:
    *_, line = cli("query", root, *words, expect=2).stderr.splitlines()
    assert re.search(says, line)


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A browser that writes down what it is to open."""
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > "{tmp_path}/opened"\n', encoding="utf-8")
    script.chmod(0o755)
    return script


def test_the_page_is_opened_in_the_browser(root: str, browser: Path) -> None:
    there = Cli({**offline_environment(), "BROWSER": str(browser)})
    there("open", root)
    page = Path(root, "report", "pythia-410m-scores", "index.html")
    assert (browser.parent / "opened").read_text("utf-8") == page.as_uri()


def test_where_the_page_is(cli: Cli, root: str, tmp_path: Path) -> None:
    page = f"{root}/report/pythia-410m-scores/index.html"
    assert cli("open", root, "--print").stdout == f"{page}\n"
    run = ("--run", "pythia-410m-scores")
    assert cli("open", root, "--print", *run).stdout == f"{page}\n"
    told = cli("open", root, "--run", "pythia-410m-score", expect=2).stderr
    assert "did you mean pythia-410m-scores?" in told
    (tmp_path / "bare" / BOOKS).mkdir(parents=True)
    assert "there is no report" in cli("open", str(tmp_path / "bare"), expect=2).stderr
    # Several have a page that lists them.
    several = tmp_path / "several"
    shutil.copytree(root, several)
    shutil.copytree(several / "report" / "pythia-410m-scores", several / "report" / "a b%2F")
    assert cli("open", str(several), "--print").stdout == f"{several}/report/index.html\n"
    named = cli("open", str(several), "--print", "--run", "a b/").stdout
    assert named == f"{several}/report/a b%2F/index.html\n"


def test_without_a_browser_the_place_is_said(root: str) -> None:
    there = Cli({**offline_environment(), "BROWSER": "/bin/false", "PATH": "/nowhere"})
    told = there("open", root, "-q", expect=1).stdout
    assert told.rstrip().endswith("report/pythia-410m-scores/index.html")


@pytest.mark.slow
def test_a_report_on_s3_is_fetched_to_a_folder_of_ones_own(
    root: str, s3: S3, browser: Path
) -> None:
    there, on_s3 = s3.root("looked-at"), Cli({**s3.environment, "BROWSER": str(browser)})
    for file in (each for each in Path(root).rglob("*") if each.is_file()):
        there.write(str(file.relative_to(root)), file.read_bytes())
    key = "report/pythia-410m-scores/index.html"
    assert on_s3("open", there.uri, "--print").stdout == f"{there.uri}/{key}\n"
    on_s3("open", there.uri)
    page = Path((browser.parent / "opened").read_text("utf-8").removeprefix("file://"))
    assert page.read_bytes() == Path(root, key).read_bytes()
    assert {each.name for each in page.parent.iterdir()} == {
        *there.sizes("report/pythia-410m-scores")
    }
    (folder,) = (each for each in page.parents if each.name.startswith("layerrank-report-"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shutil.rmtree(folder)
    assert json.loads(on_s3("status", there.uri, "--json").stdout)["complete"]
    place = f"{there.uri}/answers/a.csv"
    on_s3("query", there.uri, "SELECT count(*) AS n FROM ranking", "--to", place)
    assert there.read("answers/a.csv") == b"n\n25\n"


def test_quiet_leaves_the_verdict_of_a_run_and_answers(cli: Cli, root: str) -> None:
    verdict = cli("run", "published", "-o", root, "-q").stdout
    assert verdict.startswith("Pythia-410m at main: Use layer 17 of 24")
    assert verdict.count("\n") == 1
    assert cli("status", root, "-q").stdout.count("\n") == 4


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (3 << 40, "3.0 TiB"),
        (5 << 60, "5,120.0 PiB"),
    ],
)
def test_bytes_in_words(amount: int, said: str) -> None:
    assert bytes_of(amount) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 seconds"), (1.9, "1 second"), (119, "1 minute"), (7200, "2 hours"), (9e5, "10 days")],
)
def test_ages_in_words(seconds: float, said: str) -> None:
    assert ago(seconds) == said
