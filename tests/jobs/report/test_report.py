"""The report: built from a small root of synthetic tables, without Ray and without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.config.settings import CurvesConfig
from layerrank.jobs.rank.score_file import rank_file
from layerrank.jobs.rank.stage import rank, rank_subject
from layerrank.jobs.report import made
from layerrank.jobs.report import page as report
from layerrank.jobs.report.charts import Lines
from layerrank.jobs.report.facts import Facts
from layerrank.jobs.report.section import COLUMNS
from layerrank.jobs.report.sections import metrics, ranking
from layerrank.jobs.run import Run, partition
from layerrank.operators.metrics.registry import METRICS
from layerrank.operators.prompts.views import view_name
from layerrank.storage import schema
from layerrank.storage.partition import CLEAN, Partition, partitions
from layerrank.storage.root import Root
from tests.support.by_hand import HOSTILE, NAN, cost, facts, metric_rows, rows, score_rows
from tests.support.machines.here import Here
from tests.support.stored import store

LAYERS = 4
FILES = {"report.json", "report.md", "metrics.html", "index.html"}
SECRETS = ("key-of-nobody", "secret-of-nobody", "token-of-nobody", "endpoint-of-nobody")
# The mean over the tasks of each layer; layer 2 is the best by far, and so in every draw.
SCORES = {"topic": [0.50, 0.60, 0.80, 0.70], "find": [0.30, 0.35, 0.62, 0.41]}


def _config() -> RunConfig:
    secrets = dict(zip(("key", "secret", "token"), SECRETS, strict=False))
    source = {"files": "https://me:pass-of-nobody@example.org/a.jsonl?sig=nobody"}
    topic = {"name": "topic", "type": "classification", "label_column": "label"}
    find = {"name": "find", "type": "retrieval", "query_column": "query"}
    values = {
        "name": "small",
        "subjects": [{"model": "someone/model", "revision": "step1"}],
        "datasets": [{"name": "texts", "source": source, "tasks": [topic, find]}],
        "views": {"count": 2},
        "rank": {"draws": 200},
        "storage": {**secrets, "endpoint_url": f"http://{SECRETS[3]}"},
    }
    return RunConfig.model_validate(values)


def _of_texts(config: RunConfig, **changes: object) -> RunConfig:
    """Return the config with a dataset that is another."""
    dataset = config.datasets[0].model_copy(update=changes)
    return config.model_copy(update={"datasets": (dataset,)})


def _scores(kind: str, scores: Sequence[float]) -> list[dict[str, Any]]:
    """Return the scores of three folds in each layer, 0.2 points apart."""
    found = np.array(scores)[:, None] + 0.002 * np.arange(3)
    return score_rows(kind, found, reason="all are equal")


def _metric_rows() -> list[dict[str, Any]]:
    """Return a metric that is undefined in layer 0, and a token metric of some prompts."""
    token = {"norm": "none", "pooling": "tokens", "n_prompts": 37, "n_undefined": 3}
    return [
        *metric_rows("curvature", "", [1.9, 1.8, 1.7, 1.8], **token),
        *metric_rows("curvature", "no_first", [2.0, 1.9, 1.9, 1.95], **token),
        *metric_rows("curvature", "skip", [1.91, 1.81, 1.71, 1.81], **token),
        *metric_rows("lidar", "alpha=1", [NAN, 3.0, 4.0, 5.0]),
        *metric_rows("lidar", "rank", [NAN, 20.1, 54.6, 148.4]),
        *metric_rows("cka_last", "debiased", [0.1, 0.4, 0.8, 1.0]),
    ]


def _run(
    folder: Path,
    config: RunConfig | None = None,
    scores: Mapping[str, Sequence[float]] = SCORES,
    *,
    metrics: list[dict[str, Any]] | None = None,
) -> Run:
    """Return a run whose stages before `rank` have, as far as anyone can see, been run."""
    run = Run(config or _config(), Root(str(folder)), Cluster(Here()))
    for dataset in run.config.datasets:
        _store_dataset(run, dataset, scores, _metric_rows() if metrics is None else metrics)
    run.write(partition("layer_costs", run.subjects[0]), {}, [cost(n) for n in range(LAYERS)])
    return run


def _store_dataset(
    run: Run,
    dataset: DatasetConfig,
    scores: Mapping[str, Sequence[float]],
    metrics: list[dict[str, Any]],
) -> None:
    subject, left_out = run.subjects[0], {"null": 1, "empty": 11, "whitespace": 0, "too_short": 3}
    facts = {"duplicates": 7, **{f"skipped_{why}": count for why, count in left_out.items()}}
    prompt = pa.Table.from_pylist([{"prompt_id": 1, "text": "a", "shard": 0}], schema.PROMPTS)
    store(run.root, Partition("prompts", (dataset.name,)), [prompt], {}, facts)
    # One prompt in every layer; `jobs.rank.stage` asks only which layers there are.
    vector = {"prompt_id": 1, "norm": "final", "pooling": "mean", "n_tokens": 3, "vector": [0, 0]}
    rows = [{**vector, "layer": layer} for layer in range(LAYERS)]
    vectors = pa.Table.from_pylist(rows, schema.embeddings(2))
    read = {"prompts": 40, "tokens": 1234, "truncated": 5, "skipped_no_tokens": 2}
    for condition in (CLEAN, *map(view_name, range(run.config.views.count))):
        where = partition("embeddings", subject, dataset, condition)
        store(run.root, where, [vectors], {}, {**read, "model_seconds": 1.5})
    item = {"row": 0, "prompt_id": 1, "label": "a", "split": "train"}
    lost = {"labels": 1, "no_label": 100, "repeated": 4}
    table = pa.Table.from_pylist([item], schema.LABELLED_ITEMS)
    for task in dataset.tasks[:1]:
        store(run.root, partition("tasks", task, dataset), [table], {}, lost)
    for task in dataset.tasks:
        where = partition("probe_scores", subject, dataset, task)
        run.write(where, {}, _scores(task.type, scores[task.name]))
    if metrics:
        views = {"views": [""] * run.config.views.count}
        run.write(partition("layer_metrics", subject, dataset), views, metrics)


def _publish(run: Run) -> dict[str, str]:
    report.publish(run, rank(run))
    folder = f"report/{quote(run.config.name, safe='')}"
    return {name: run.root.read(f"{folder}/{name}").decode() for name in run.root.sizes(folder)}


def _strict(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def test_findings_say_what_was_stored_in_the_same_bytes_again(tmp_path: Path) -> None:
    run = _run(tmp_path)
    files = _publish(run)
    assert set(files) == FILES
    assert _publish(run) == files
    found = _strict(files["report.json"])
    assert found["schema_version"] == 3
    assert found["seeds"] == {"run": 0, "probe": 42}
    assert {"python", "torch", "ray", "scikit-learn"} <= set(found["versions"])
    left_out = {"null": 1, "empty": 11, "whitespace": 0, "too_short": 3}
    counts = {"prompts": 1, "shards": 1, "skipped": left_out, "duplicates": 7}
    assert found["datasets"] == [{"name": "texts", **counts}]
    (subject,) = found["subjects"]
    assert [subject[key] for key in ("name", "revision", "blocks")] == ["someone/model", "step1", 3]
    assert subject["verdict"]["kind"] == "use_layer"
    assert subject["verdict"]["layer"] == 2
    best = subject["layers"][2]
    assert best["rank"] == 1
    assert best["cost"] == pytest.approx(2 / 3)
    assert best["score"] == pytest.approx((0.80 + 0.62) / 2 + 0.002)
    assert best["gain"] == pytest.approx((0.10 + 0.21) / 2)
    assert best["tasks"] == pytest.approx({"topic": 0.802, "find": 0.622})
    assert [(t["label"], t["metric"], t["folds"]) for t in subject["tasks"]] == [
        ("topic", "accuracy", 3),
        ("find", "accuracy", 3),
    ]
    assert [each["condition"] for each in subject["encoded"]] == ["clean", "view-00", "view-01"]
    assert subject["encoded"][0]["tokens"] == 1234
    (counted,) = subject["task_rows"]
    counts = {"items": 1, "labels": 1, "no_text": 0, "no_label": 100, "repeated": 4}
    assert counted == {"task": "topic", "dataset": "texts"} | counts | {
        "contradicted": 0,
        "truncated": 5,
    }
    shown = "| topic | texts | 1 | 1 | 0 | 100 | 4 | 0 | 5 |"
    assert shown in files["report.md"]


def test_undefined_values_are_null_with_their_reason(tmp_path: Path) -> None:
    files = _publish(_run(tmp_path))
    series = {
        (each["metric"], each["variant"]): each
        for each in _strict(files["report.json"])["subjects"][0]["metrics"]
    }
    reason = METRICS["lidar"].undefined
    first, second = series["lidar", "rank"]["values"][:2]
    assert (first["value"], first["reason"]) == (None, reason)
    assert (second["value"], second["reason"]) == (20.1, None)
    assert {each["n_undefined"] for each in series["curvature", ""]["values"]} == {3}
    for name in ("report.md", "index.html"):
        # Once per metric and reason, however many variants are undefined for it.
        assert files[name].count(reason) == 1
        assert "2 of 8 values, in layer 0" in files[name]
        assert files[name].count("3 of 40 prompts") == 1


def test_each_metric_is_drawn_once_beside_itself_without_the_first_token(tmp_path: Path) -> None:
    run = _run(tmp_path)
    (ranking,) = rank(run)
    found = metrics.section(Facts(ranking, run))
    drawn = {(each["metric"], each["variant"]) for each in found.data["metrics"] if each["main"]}
    assert drawn == {("curvature", ""), ("lidar", "alpha=1"), ("cka_last", "debiased")}
    *groups, every = found.parts
    assert len(groups) == 3
    charts = [chart for group in groups for chart in group.charts]
    for chart, name in zip(charts, ("curvature", "cka_last", "lidar"), strict=True):
        assert isinstance(chart.plot, Lines)
        looks = [line.look for line in chart.plot.lines]
        assert looks == ["beside", "plain"] if name == "curvature" else ["plain"]  # of few prompts
        assert chart.says == METRICS[name].says
        assert METRICS[name].paper in chart.source
    (values,) = every.tables
    first, second = rows(values)[:2]
    assert (first[:2], second[:2]) == (["Curvature (main)", "plain"], ["Curvature", "no_first"])
    assert (first[3:], second[3]) == (["1.900", "1.800", "1.700", "1.800"], "2.000")
    assert (first[2], rows(values)[-1][2]) == (
        "token by token, raw output",
        "mean pooling, final norm",
    )
    assert rows(values)[-1][-1] == "148.4"
    assert (0, 3) in values.grey
    # Of what compares all views their number is told wherever a value is.
    assert charts[-1].title == charts[-1].plot.lines[0].name == "LiDAR, 2 views"  # type: ignore[union-attr]
    assert rows(values)[-1][0] == "LiDAR, 2 views"
    assert charts[0].title == "Curvature"
    assert {each.get("views") for each in found.data["metrics"]} == {None, 2}
    # As they were measured, whatever the config says now: that of another number stands alone.
    more = run.config.views.model_copy(update={"count": 16})
    other = replace(run, config=run.config.model_copy(update={"views": more}))
    again = metrics.section(Facts(rank(other)[0], other))
    assert [each.title for each in again.parts[-2].charts] == ["LiDAR, 2 views"]
    assert ("texts", "lidar") not in rank(other)[0].metrics


def test_scores_that_do_not_exist_give_no_ranking(tmp_path: Path) -> None:
    nothing = [NAN] * LAYERS
    run = _run(tmp_path, None, {"topic": nothing, "find": nothing})
    files = _publish(run)
    (subject,) = _strict(files["report.json"])["subjects"]
    assert subject["verdict"]["kind"] == "not_enough_evidence"
    assert [(row["score"], row["rank"]) for row in subject["layers"]] == [(None, None)] * LAYERS
    assert "Task topic" in files["report.md"]
    assert "nan" not in files["index.html"].lower()


def test_a_run_without_tasks_and_without_metrics_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _publish(_run(tmp_path, _of_texts(_config(), tasks=()), metrics=[]))
    assert _strict(files["report.json"])["subjects"][0]["unmeasured"] == ["texts"]
    for text in (files["report.md"], files["index.html"], capsys.readouterr().out):
        told = " ".join(text.split())
        assert "Keep the last layer (3): nothing is labelled" in told
    for name in ("report.md", "index.html"):
        assert "Not measured: texts" in files[name]


def test_a_task_that_is_undefined_in_one_layer_leaves_a_gap(tmp_path: Path) -> None:
    scores = {**SCORES, "find": [NAN, 0.35, 0.62, 0.41]}
    files = _publish(_run(tmp_path, None, scores))
    (subject,) = _strict(files["report.json"])["subjects"]
    assert subject["layers"][0]["tasks"] == {"topic": pytest.approx(0.502), "find": None}
    assert [row["n_tasks"] for row in subject["layers"]] == [1, 2, 2, 2]
    assert subject["verdict"]["layer"] == 2
    assert "Task find" in files["report.md"]
    sentence = subject["verdict"]["sentence"]
    assert all(name in sentence for name in ("Layer 0 ", "find in layer 0", "all are equal"))
    assert "not counted" not in files["report.md"] + files["index.html"]


def test_a_task_without_any_score_is_named_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _publish(_run(tmp_path / "whole"))
    assert "all are equal" not in whole["report.json"]
    capsys.readouterr()
    scores = {**SCORES, "find": [NAN] * LAYERS}
    files = _publish(_run(tmp_path / "lacking", None, scores))
    said = ("not in the ranking: find", "all are equal")
    told = capsys.readouterr().out
    (subject,) = _strict(files["report.json"])["subjects"]
    assert subject["verdict"]["layer"] == 2
    for text in (subject["verdict"]["sentence"], files["report.md"], files["index.html"], told):
        assert all(words in " ".join(text.split()) for words in said)
    for text in (files["report.md"], files["index.html"], told):
        assert ("not counted" in text) == (text != told)
    assert "not counted" not in whole["report.md"] + whole["index.html"]


def test_folds_without_spread_are_ranked_by_the_resamples_of_their_items(tmp_path: Path) -> None:
    (texts,) = _config().datasets
    run = _run(tmp_path, _of_texts(_config(), tasks=texts.tasks[:1]))
    (dataset,), subject = run.config.datasets, run.subjects[0]
    where = partition("probe_scores", subject, dataset, dataset.tasks[0])
    found = _scores("classification", SCORES["topic"])
    noise = np.random.default_rng(0).normal(0, 0.02, size=(LAYERS, 50))
    for row in found:
        row["value"] = SCORES["topic"][row["layer"]]
        row["replicates"] = [*(row["value"] + noise[row["layer"]])] if not row["fold"] else []
    run.write(where, {}, found)
    ranked = rank_subject(run, subject)
    choice = ranked.evidence.choice
    assert choice is not None
    assert (choice.layer, choice.left_out) == (2, "items")
    assert choice.here_low < choice.gain <= choice.naive < choice.here_high
    assert ranked.tasks[0].folds > 1


def test_a_search_and_an_undefined_score_each_leave_layers_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path)
    (dataset,) = run.config.datasets
    scores = {"topic": SCORES["topic"], "find": [NAN, *SCORES["find"][1:]]}
    for task in dataset.tasks:
        found = _scores(task.type, scores[task.name])
        # Of the second task it had been scored, higher than any other, before it was dropped.
        kept = [row for row in found if row["layer"] != 1 or task.name == "find"]
        for row in kept:
            row["value"] += 0.3 * (row["layer"] == 1)
        where, facts = (
            partition("probe_scores", run.subjects[0], dataset, task),
            {"survivors": "2,3"},
        )
        run.write(where, {}, kept, {"search_share": 0.5, **facts})
    files = _publish(run)
    (read,) = _strict(files["report.json"])["subjects"]
    assert (read["layers"][1]["rank"], read["layers"][1]["n_tasks"]) == (None, 0)
    sentence = read["verdict"]["sentence"]
    assert all(words in sentence for words in ("layer 1 ", "Layer 0 ", "find in layer 0"))
    for text in (files["report.md"], files["index.html"], capsys.readouterr().out):
        assert "The search did 50 % of the scoring of a full sweep" in " ".join(text.split())
    assert files["index.html"].count("<span>dropped</span>") == 1


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    config, named = _config(), {"name": HOSTILE}
    topic, find = config.datasets[0].tasks
    subjects = tuple(each.model_copy(update=named) for each in config.subjects)
    hostile = _of_texts(config, tasks=(topic.model_copy(update=named), find), **named)
    hostile = hostile.model_copy(update={"subjects": subjects, **named})
    rows = [*_metric_rows(), *metric_rows(HOSTILE, HOSTILE, [NAN] * LAYERS)]
    scores = {HOSTILE: SCORES["topic"], "find": SCORES["find"]}
    files = _publish(_run(tmp_path, hostile, scores, metrics=rows))
    assert "<script" not in files["index.html"]
    assert "&lt;script&gt;" in files["index.html"]
    assert "<script" not in files["report.md"]
    # A bar in a name ends no cell: every row of a table has as many cells as its head.
    runs = groupby(files["report.md"].splitlines(), key=lambda line: line.startswith("|"))
    bars = [
        {len(re.findall(r"(?<!\\)\|", row)) for row in table} for is_row, table in runs if is_row
    ]
    assert len(bars) >= 8
    assert all(len(each) == 1 for each in bars)


def test_the_page_loads_nothing_and_is_accessible(tmp_path: Path) -> None:
    files = _publish(_run(tmp_path))
    page, guide = files["index.html"], files["metrics.html"]
    links = re.findall(r'href="metrics\.html#([^"]+)"', page)
    of_metrics = ["curvature", "cka-to-the-last-layer", "lidar"]
    assert links == ["how-sure-the-advice-is", "without-labels", *of_metrics]
    assert set(links) <= set(re.findall(r'\bid="([^"]+)"', guide))
    addresses = re.findall(r"""\b(?:src|href|action|data|poster)\s*=\s*["']([^"']*)""", page)
    allowed = re.compile(r"#|data:,$|report\.(json|md)$|metrics\.html(#[\w-]+)?$")
    assert addresses
    assert [each for each in addresses if not allowed.match(each)] == []
    loads = r"url\((?!#)|@import|<script|<link(?! rel=\"icon\" href=\"data:,\")"
    assert re.findall(loads, page) == []
    assert "default-src 'none'" in page
    assert '<html lang="en">' in page
    assert 'name="viewport"' in page
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 2 * 4 + 3  # score, gain, tasks and cost for two widths, three metrics
    for plot in plots:
        root = ElementTree.fromstring(re.sub(r"xlink:href", "href", plot))
        assert root.get("role") == "img"
        assert root.findtext("title")
        assert root.findtext("desc")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', page)) <= set(ids)
    assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", page))


def test_nothing_of_the_storage_block_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _publish(_run(tmp_path))
    assert "storage" not in _strict(files["report.json"])["settings"]
    for text in (*files.values(), capsys.readouterr().out):
        assert not [secret for secret in SECRETS if secret in text]
        assert "pass-of-nobody" not in text
        assert "sig=nobody" not in text


def test_nothing_is_written_when_a_page_cannot_be_made_and_the_page_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path)

    def fail(*_: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(report, "_page", fail)
    with pytest.raises(RuntimeError, match="no page"):
        _publish(run)
    assert run.root.sizes("report") == {}
    monkeypatch.undo()
    found = report.Report("small", [Facts(each, run) for each in rank(run)], made.section(run), {})
    assert list(report.render(found))[-1] == "index.html"  # whoever finds it finds the rest


def test_the_story_is_an_aligned_table_and_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path)
    _publish(run)
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.strip().startswith("Layer"))
    table = lines[lines.index(head) + 1 :][:LAYERS]
    assert {len(row) for row in table} == {len(head)}
    assert [row[0] for row in table] == [" ", " ", ">", " "]
    assert table[2].split()[:6] == [">", "2", "71.2", "+15.5", "67", "%"]
    assert table[2].split()[-4:] == ["100", "%", "80.2", "62.2"]
    assert "baseline" in table[3]
    assert all(len(line) <= COLUMNS for line in lines if "report:" not in line)
    told = " ".join(line.strip() for line in lines)
    for number in ("use layer 2", "15.5 points", "saves 33 %"):
        assert number in told
    assert lines[-1] == f"  report: {tmp_path}/report/small/index.html"


def test_columns_that_do_not_fit_are_counted() -> None:
    scores = {f"a-rather-long-task-{number}": (0.4, 0.5) for number in range(8)}
    lines = ranking.table(facts((0.4, 0.5), number=1, tasks=scores)).aligned()
    assert max(map(len, lines)) <= COLUMNS
    shown = lines[0].count("a-rather-long-task")
    assert 0 < shown < 8
    assert lines[-1].split()[0] == str(8 - shown)
    long = ranking.table(facts(np.linspace(0.01, 1.0, 60).tolist(), number=30)).aligned()
    assert len(long) == 61
    assert max(map(len, long)) <= COLUMNS


def test_two_tasks_of_one_name_keep_both_scores(tmp_path: Path) -> None:
    config = _config()
    twin = config.datasets[0].model_copy(update={"name": "other"})
    run = _run(tmp_path, config.model_copy(update={"datasets": (config.datasets[0], twin)}))
    subject = _strict(_publish(run)["report.json"])["subjects"][0]
    names = [f"{dataset}/{task}" for dataset in ("texts", "other") for task in SCORES]
    assert list(subject["layers"][0]["tasks"]) == names


def test_stored_learning_curves_come_to_the_page(tmp_path: Path) -> None:
    curves_of = CurvesConfig(examples=(2, 4))
    run = _run(tmp_path, _config().model_copy(update={"curves": curves_of}))
    scores = {2: [0.1, 0.2, 0.5, 0.3], 4: [0.2, 0.3, 0.6, 0.5]}
    rows = [
        {**row, "examples": examples, "n_train": {2: 8, 4: 13}[examples]}
        for examples, values in scores.items()
        for row in _scores("classification", values)
    ]
    (dataset,) = run.config.datasets
    run.write(partition("learning_curves", run.subjects[0], dataset, dataset.tasks[0]), {}, rows)
    files = _publish(run)
    (curves,) = _strict(files["report.json"])["subjects"][0]["curves"]
    assert (curves["label"], curves["kind"]) == ("topic", "examples")
    assert curves["curves"][2]["score"] == pytest.approx([0.502, 0.602])
    assert curves["curves"][2]["n_train"] == [8, 13]
    for name in ("report.md", "index.html"):
        assert "20.0 points ahead at 2 per label (8 in all), 10.0 points ahead at 4" in files[name]
        assert "4 per label (13 in all)" in files[name]
        assert "50.2 ± 0.2" in files[name]


def test_a_root_from_before_a_task_had_learning_curves_has_its_page(tmp_path: Path) -> None:
    asked = _config().model_copy(update={"curves": CurvesConfig(examples=(2, 4))})
    (subject,) = _strict(_publish(_run(tmp_path, asked))["report.json"])["subjects"]
    assert subject["curves"] == []


def test_scores_of_a_file_give_the_same_page(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    lines = [
        f"org/a,{revision},{layer},{task},{0.1 * layer + bonus}"
        for revision, bonus in (("step1", 0.0), ("step20", 0.05))
        for layer in range(LAYERS)
        for task in ("one", "two")
    ]
    file.write_text("\n".join(["model,revision,layer,task,score", *lines]))
    root = Root(str(tmp_path / "out"))
    report.publish_scores(str(file), root, rank_file(str(file)))
    folder = "report/scores"
    files = {name: root.read(f"{folder}/{name}").decode() for name in root.sizes(folder)}
    assert set(files) == FILES
    found = _strict(files["report.json"])
    assert [each["verdict"]["layer"] for each in found["subjects"]] == [3, 3]
    assert found["sweeps"][0]["steps"] == [1, 20]
    assert found["subjects"][0]["layers"][1]["tasks"] == pytest.approx({"one": 0.1, "two": 0.1})
    assert found["subjects"][0]["choices"][0]["rule"] == "last layer"
    for title in ("In three steps", "Ranking", "Score against cost", "Choosing without labels"):
        assert title in files["index.html"]
    tables = {each.table for name in ("ranking", "choices") for each in partitions(root, name)}
    assert tables == {"ranking", "choices"}
