"""The whole job through the real command line: real Ray, a real model file, real Parquet."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from layerrank.jobs.cluster.left import descendants
from layerrank.jobs.config.run import load as config_of
from layerrank.jobs.config.run import parse
from layerrank.jobs.plan.plan import plan
from layerrank.jobs.prepare.folders import with_folders
from layerrank.jobs.words import counted
from layerrank.operators.metrics.registry import METRICS
from layerrank.storage.layers import Group, LayerVectors, read_vectors
from layerrank.storage.manifest import load, require
from layerrank.storage.partition import Partition, shard_name
from layerrank.storage.root import Root
from tests.conftest import MORE_TASKS, Cli, edited, write_config, write_texts
from tests.support.places import PROJECT
from tests.support.planned import assert_planned
from tests.support.stored import ask, assert_complete, content, shard_rows
from tests.support.tiny import BLOCKS, save_tiny
from tests.support.whole import dataset_entropy, linear_cka

pytestmark = pytest.mark.slow
CLEAN = Partition("embeddings", ("tiny", "local", "topics", "clean"))


@dataclass(frozen=True)
class Finished:
    """A finished run: its config, its root, and what it printed."""

    config: Path
    root: Root
    printed: str


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, fresh_cli: Cli
) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder, checkpoint)
    with edited(config) as values:
        values["datasets"][0]["tasks"] += MORE_TASKS
        values["curves"] = {"examples": [2, 4], "noise": [0.2]}
        values["extract"]["workers"] = 2
    result = fresh_cli("run", str(config), "--output", str(folder / "out"), "--engine", "ray")
    return Finished(config, Root(str(folder / "out")), result.stdout)


def vectors_of(root: Root, layer: int, norm: str) -> LayerVectors:
    """Return the mean vectors of every prompt in a layer."""
    ids = np.array(ask(root, "SELECT prompt_id FROM prompts")).flatten()
    return read_vectors(root, require(root, CLEAN), Group(layer, norm, "mean"), ids)


def assert_as_the_library(
    root: Root, folder: Path, places: Mapping[tuple[int, str], int], count: int
) -> None:
    """Hold the vectors of a (layer, norm) to the states that the library has at an index.

    It takes `count` texts one at a time; its states begin with the embeddings, where it has them.
    """
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = {place: vectors_of(root, *place) for place in places}
    rows = ask(root, f"SELECT prompt_id, text FROM prompts ORDER BY prompt_id LIMIT {count}")
    for prompt_id, text in rows:
        with torch.inference_mode():
            given = tokenizer(text, return_tensors="pt")
            states = model(**given, output_hidden_states=True).hidden_states
        for place, index in places.items():
            row = found[place].rows_of(np.array([prompt_id]))[0]
            got, expected = found[place].matrix_ND[row], states[index][0].mean(dim=0).numpy()
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_every_table_is_complete_and_consistent(finished: Finished) -> None:
    root = finished.root
    assert_complete(root, "sensitivity", "own_metrics")  # which this run has not
    prompts = ask(root, "SELECT count(*), count(DISTINCT prompt_id) FROM prompts")
    assert prompts == [(120, 120)]
    per_layer = ask(
        root,
        "SELECT layer, norm, pooling, count(*), count(DISTINCT prompt_id) FROM embeddings "
        "WHERE condition = 'clean' GROUP BY ALL",
    )
    assert len(per_layer) == (BLOCKS + 1) * 2 * 3  # a pooling of candidates is kept too
    assert {row[3:] for row in per_layer} == {(120, 120)}
    views = ask(
        root,
        "SELECT condition, count(DISTINCT prompt_id) FROM embeddings "
        "WHERE condition <> 'clean' GROUP BY ALL ORDER BY 1",
    )
    assert views == [("noise-0.20", 120), *((f"view-{n:02d}", 24) for n in range(4))]
    assert ask(root, "SELECT count(DISTINCT prompt_id) FROM tokens") == [(16,)]
    traits = ask(
        root,
        "SELECT count(*), count(DISTINCT prompt_id) FROM prompt_traits JOIN tokens "
        "USING (prompt_id, n_tokens) WHERE layer = 0",
    )
    assert traits == [(16, 16)]
    modes = ask(root, "SELECT layer, n_prompts + n_undefined FROM modes ORDER BY 1")
    assert modes == [(layer, 16) for layer in range(BLOCKS + 1)]


def test_vectors_equal_the_library_one_text_at_a_time(finished: Finished, checkpoint: Path) -> None:
    """The sharded, padded, batched pipeline gives what a user computes by hand."""
    # The library: entries 0..L-1 are raw states, the last is the final norm of layer L.
    places = {(layer, "none" if layer < BLOCKS else "final"): layer for layer in range(BLOCKS + 1)}
    assert_as_the_library(finished.root, checkpoint, places, 8)


def test_a_state_space_model_goes_the_same_way(tmp_path: Path, cli: Cli) -> None:
    """A tiny Mamba, whose library states lack the embeddings: from its texts to its ranking."""
    model_folder = save_tiny(tmp_path / "tiny-mamba", "mamba")
    config = write_config(tmp_path, model_folder, views={"count": 2, "sample": 12})
    root = Root(str(tmp_path / "out"))
    cli("run", str(config), "--output", root.uri)
    places = {(layer, "none"): layer - 1 for layer in range(1, BLOCKS)}
    assert_as_the_library(root, model_folder, places, 4)
    ranked = ask(root, "SELECT layer, score > 0 FROM ranking ORDER BY layer")
    assert ranked == [(layer, True) for layer in range(BLOCKS + 1)]


def test_scores_metrics_and_ranking_hold_what_was_asked_for(finished: Finished) -> None:
    counted = (
        "SELECT task, task_type, metric, count(*), count(DISTINCT layer), "
        "count(DISTINCT variant), max(len(replicates)), "
        "bool_and(isnan(value) OR abs(value) <= 1) FROM probe_scores "
        "WHERE condition = 'clean' AND {} GROUP BY ALL ORDER BY task"
    )
    ranked = "norm = 'final' AND pooling = 'mean' AND variant = 'raw'"
    whole = [(row[0], *row[3:6]) for row in ask(finished.root, counted.format(ranked))]
    folds = {"groups": 3, "length": 3, "tags": 3, "topic": 3}
    tasks = ("alike", "find", "groups", "length", "order", "pairs", "tags", "topic")
    assert whole == [(task, folds.get(task, 1) * (BLOCKS + 1), BLOCKS + 1, 1) for task in tasks]
    scores = ask(finished.root, counted.format("true"))
    once = (BLOCKS + 1) * 4 * 2  # layers, norms and poolings, variants
    rest = (BLOCKS + 1, 2)
    # Every text ends in the same token, so layer 0 with `last` predicts one length for all: in
    # two norms and two variants there is one undefined row instead of three folds.
    assert scores == [
        ("alike", "sts", "cosine_spearman", once, *rest, 200, True),
        ("find", "retrieval", "ndcg_at_10", once, *rest, 200, True),
        ("groups", "clustering", "v_measure", 3 * once, *rest, 0, True),
        ("length", "regression", "kendalltau", 3 * once - 8, *rest, 0, True),
        ("order", "reranking", "map_at_1000", once, *rest, 200, True),
        ("pairs", "pair_classification", "max_ap", once, *rest, 200, True),
        ("tags", "classification", "accuracy", 3 * once, *rest, 0, True),
        ("topic", "classification", "accuracy", 3 * once, *rest, 0, True),
    ]
    curves = ask(
        finished.root,
        "SELECT task, examples, count(*), avg(n_train) FROM learning_curves GROUP BY ALL "
        "ORDER BY ALL",
    )
    per_layer = (BLOCKS + 1) * 3
    classified = [row for row in curves if row[0] != "length"]
    assert [row[:3] for row in classified] == [
        (task, examples, per_layer) for task in ("tags", "topic") for examples in (2, 4)
    ]
    assert [row[3] for row in classified[2:]] == [2 * 3, 4 * 3]
    # So many of each tenth of the values; of 4 that is more than there are: all of them, once.
    assert [row[:3] for row in curves if row[0] == "length"] == [
        ("length", 2, per_layer),
        ("length", 4, BLOCKS + 1),
    ]
    assert [row[3] for row in curves if row[0] == "length"] == [2 * 10, 30]
    noisy = ask(
        finished.root,
        "SELECT task, count(*) FROM probe_scores WHERE condition = 'noise-0.20' GROUP BY ALL "
        "ORDER BY 1",
    )
    assert noisy == [(task, per_layer) for task in ("length", "tags", "topic")]
    metrics = ask(
        finished.root,
        "SELECT metric, count(DISTINCT layer), bool_or(isnan(value)) FROM layer_metrics "
        "WHERE pooling IN ('mean', 'tokens') GROUP BY ALL ORDER BY 1",
    )
    # The first layer has no previous one, and equal neighbours have equal embeddings.
    layers = {name: BLOCKS + (name != "cka_previous") for name in METRICS}
    assert metrics == [(n, layers[n], n == "curvature") for n in sorted(METRICS)]
    ranking = ask(
        finished.root, "SELECT layer, rank, cost, recommended FROM ranking ORDER BY layer"
    )
    assert [row[0] for row in ranking] == list(range(BLOCKS + 1))
    assert ranking[-1][2] == 1.0
    assert sum(row[3] for row in ranking) == 1


def test_what_a_choice_without_labels_loses_is_a_table(finished: Finished) -> None:
    """The mean over tasks of what the chosen layer scores less than the best one of the task."""
    regrets = ask(
        finished.root,
        "WITH s AS (SELECT task, layer, avg(value) AS score FROM probe_scores "
        "WHERE condition = 'clean' AND norm = 'final' AND pooling = 'mean' "
        "AND variant = 'raw' GROUP BY ALL), "
        "l AS (SELECT task, max(score) - arg_max(score, layer) AS lost FROM s GROUP BY task) "
        "SELECT (SELECT avg(lost) FROM l), regret, regret_low <= regret, regret <= regret_high "
        f"FROM choices WHERE rule = 'last layer' AND layer = {BLOCKS}",
    )
    associated = ask(
        finished.root,
        "SELECT count(*), count(DISTINCT metric), bool_and(isnan(spearman) = (reason IS NOT "
        "NULL)), bool_and(isnan(spearman) OR abs(spearman) <= 1) FROM correlations",
    )
    assert regrets == [(pytest.approx(regrets[0][0]), pytest.approx(regrets[0][0]), True, True)]
    assert associated == [(len(METRICS), len(METRICS), True, True)]


def test_layer_metrics_are_the_operators_on_the_shards(finished: Finished) -> None:
    """What the stages compute over shards equals the operator on all vectors at once."""
    root = finished.root
    rows_ND, before_ND = (
        torch.from_numpy(vectors_of(root, layer, "final").matrix_ND) for layer in (2, 1)
    )
    query = "SELECT value, n_prompts FROM layer_metrics WHERE layer = 2 AND metric = ? "
    pooled = query + "AND norm = 'final' AND pooling = 'mean' AND variant = ?"
    whole = ask(root, pooled, "dataset_entropy", "alpha=1")
    similar = ask(root, pooled, "cka_previous", "debiased")
    mean = ask(root, query + "AND variant = 'alpha=1'", "prompt_entropy")
    of_prompts = ask(
        root,
        "SELECT avg(prompt_entropy_alpha_1), count(*) FROM prompt_metrics WHERE layer = 2",
    )
    assert mean == [(pytest.approx(of_prompts[0][0], abs=1e-9), 16)]
    assert of_prompts[0][1] == 16
    assert whole == [(pytest.approx(float(dataset_entropy(rows_ND)), abs=1e-9), 120)]
    expected = float(linear_cka(rows_ND, before_ND).debiased)
    assert similar == [(pytest.approx(expected, abs=1e-9), 120)]
    # Of the sample's views all are compared, and of DiME the first, no more than it looks at.
    of_views = "SELECT DISTINCT n_prompts FROM layer_metrics WHERE metric = ?"
    counts = {name: ask(root, of_views, name) for name in ("infonce", "lidar", "dime")}
    assert counts == {"infonce": [(24,)], "lidar": [(24,)], "dime": [(20,)]}


def test_fused_metrics_are_those_of_the_stored_states(
    finished: Finished, tmp_path: Path, checkpoint: Path, cli: Cli
) -> None:
    """The model actor's own token metrics, of every prompt, and the same states measured later."""
    config = write_config(tmp_path, checkpoint, measure={"token_metrics": "both"})
    both = Root(str(tmp_path / "both"))
    cli("prepare", str(config), "--output", both.uri)
    cli("extract", str(config), "--output", both.uri)
    counted = "SELECT count(DISTINCT prompt_id) FROM "
    assert ask(both, counted + "tokens") == [(16,)]
    assert ask(both, counted + "prompt_metrics") == [(120,)]
    where = CLEAN.sibling("prompt_metrics")
    fused, stored = (
        {(row["prompt_id"], row["layer"]): row for row in shard_rows(root, where)}
        for root in (both, finished.root)
    )
    assert len(stored) == 16 * (BLOCKS + 1)
    for key, row in stored.items():
        assert len(row) == 5 + (8 + 4 + 2 + 2 + 1)
        for name, value in row.items():
            close = isinstance(value, float)
            expected = pytest.approx(value, abs=1e-6, nan_ok=True) if close else value
            assert fused[key][name] == expected, name


def test_a_plan_says_beforehand_what_the_run_wrote(finished: Finished) -> None:
    planned = plan(config_of(str(finished.config)), None)
    assert_planned(planned, Path(finished.root.uri))
    tokens = re.search(r"([\d,]+) tokens in", finished.printed)
    assert tokens is not None
    assert planned.tokens == pytest.approx(int(tokens[1].replace(",", "")), rel=0.05)


def test_processes_of_this_machine_give_the_same_tables_to_the_bit(
    finished: Finished, cli: Cli, tmp_path: Path
) -> None:
    other = Root(str(tmp_path / "processes"))
    told = cli("run", str(finished.config), "--output", other.uri, "--engine", "process").stdout
    assert "engine process" in told.splitlines()[0]
    assert "engine ray" in finished.printed.splitlines()[0]
    assert "extract: 2 actors on CPU, fed by 1 reader" in finished.printed
    assert content(other) == content(finished.root)


def test_a_run_ends_with_its_report_and_status_and_query_read_it(
    finished: Finished, cli: Cli
) -> None:
    root = finished.root
    files = {"report.json", "report.md", "metrics.html", "index.html"}
    assert set(root.sizes("report/small")) == files
    assert 'href="small/index.html"' in root.read("report/index.html").decode()
    assert json.loads(root.read("report/small/report.json"))["run"] == "small"
    assert root.place("report/small/index.html") in finished.printed
    shown = cli("status", root.uri, "--verify").stdout
    assert "complete" in shown
    assert "incomplete" not in shown
    assert "120" in cli("query", root.uri, "SELECT count(*) AS prompts FROM prompts").stdout
    assert "nothing" in cli("query", root.uri, "SELECT nothing FROM prompts", expect=2).stderr


@pytest.mark.parametrize(
    ("command", "changes", "problem"),
    [
        (["run"], {"extract": {"max_tokens": 12}}, "max_tokens: 64 there, 12 here"),
        # A single stage remakes nothing of the stages before it.
        (["measure", "--overwrite"], {"views": {"keyboard": 0.5}}, "keyboard: 0.1 there, 0.5 here"),
        (["rank", "--overwrite"], {"views": {"keyboard": 0.5}}, "keyboard: 0.1 there, 0.5 here"),
    ],
)
def test_other_settings_are_refused_and_change_nothing(
    finished: Finished,
    cli: Cli,
    tmp_path: Path,
    command: list[str],
    changes: dict[str, dict[str, Any]],
    problem: str,
) -> None:
    changed = tmp_path / "changed.yaml"
    with edited(finished.config, changed) as values:
        for block, change in changes.items():
            values[block] |= change
    before = content(finished.root)
    stage, *options = command
    refused = cli(stage, str(changed), "--output", finished.root.uri, *options, expect=2)
    assert problem in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert content(finished.root) == before


def test_killed_driver_resumes_with_the_missing_shards_only(
    tmp_path: Path, checkpoint: Path, cli: Cli
) -> None:
    texts = write_texts(tmp_path / "many.jsonl", 600)
    datasets = [
        {"name": "topics", "source": {"files": str(texts)}, "shard_prompts": 12, "tasks": []}
    ]
    config = write_config(
        tmp_path,
        checkpoint,
        datasets=datasets,
        views={"count": 0},
        measure={
            "metrics": ["prompt_entropy", "curvature", "dataset_entropy"],
            "token_metrics": "fused",
        },
    )
    killed, undisturbed = Root(str(tmp_path / "killed")), Root(str(tmp_path / "undisturbed"))
    cli("prepare", str(config), "--output", killed.uri)
    driver = subprocess.Popen(
        [sys.executable, "-m", "layerrank", "extract", str(config), "--output", killed.uri],
        cwd=PROJECT,
        env=cli.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while len(_shard_times(killed)) < 4:
            assert driver.poll() is None, "the driver ended before it could be killed"
            assert time.monotonic() < deadline, "too few shards in 120 s"
            time.sleep(0.01)
    finally:
        workers = descendants(driver.pid)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{each}/fd/0").exists() for each in workers):  # they end by themselves
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert load(killed, CLEAN) is None
    kept = _shard_times(killed)
    expected = [shard_name(n) for n in range(50)]
    assert 4 <= len(kept) < len(expected)

    shown = cli("status", killed.uri, expect=1).stdout
    assert "incomplete  embeddings" in shown
    resumed = cli("run", str(config), "--output", killed.uri).stdout
    assert f"texts to encode: {counted(len(expected) - len(kept), 'shard')}, 1 condition" in resumed
    after = _shard_times(killed)
    assert sorted(after) == expected
    assert {name: after[name] for name in kept} == kept

    for stage in ("prepare", "extract"):
        cli(stage, str(config), "--output", undisturbed.uri)
    expected_content, found = content(undisturbed), content(killed)
    assert {path.split("/")[0] for path in expected_content} >= {"embeddings", "prompt_metrics"}
    assert {path: found[path] for path in expected_content} == expected_content
    leftovers = [p for p in Path(killed.path(CLEAN.path)).iterdir() if ".tmp" in p.name]
    assert leftovers == []


def _shard_times(root: Root) -> dict[str, int]:
    folder = Path(root.path(CLEAN.path))
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("shard-*.parquet")}


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
    planned = with_folders(config_of("quickcheck"), texts)
    named = planned.subjects[0].model_copy(update={"model": subject_, "name": "tiny"})
    assert_planned(plan(planned.model_copy(update={"subjects": (named,)}), None), out)
    facts = json.loads((out / "report/quickcheck/report.json").read_text())
    (found,) = facts["subjects"]
    assert facts["datasets"][0]["prompts"] == 60
    assert [task["label"] for task in found["tasks"]] == ["label"]
    assert {each["kind"] for each in found["curves"]} == {"examples", "noise"}
    page = html.unescape((out / "report/quickcheck/index.html").read_text())
    assert "4 layers, 1 task, one pass of the model" in page
    assert page.count("With typos in 30 % of the words") == 1


def test_the_readmes_sql_works(finished: Finished) -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    queries = re.findall(r"```sql\n(.*?)```", readme, flags=re.DOTALL)
    assert len(queries) == 5
    for query in queries:
        assert ask(finished.root, query), query


def test_the_readmes_configs_are_valid() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    whole, *parts = re.findall(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)
    assert len(parse(whole, "README").datasets[0].tasks) == 3
    assert len(parts) == 3
    for part in parts:
        parse(yaml.safe_dump({**yaml.safe_load(whole), **yaml.safe_load(part)}), "README")
