"""Views for analysts: one row per layer, whatever else lies in the root."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from layerrank.operators.metrics.registry import METRICS
from layerrank.storage import schema
from layerrank.storage.layers import embeddings_table
from layerrank.storage.manifest import Manifests, everything, require
from layerrank.storage.partition import KEYS, RUNS, Partition, TableName
from layerrank.storage.root import Root
from layerrank.storage.shards import index_key
from layerrank.storage.sql import answering, connect
from tests.conftest import S3
from tests.support.places import PROJECT
from tests.support.stored import ask, store

MODEL, REVISIONS, LAYERS = "org/m", ("step9", "step10"), (0, 1, 2)
EYE = np.eye(3, dtype=np.float32)
# Of each run: the datasets, the pooling that is ranked, and the transform.
RUNS_OF = {"one": (["a", "b"], "mean", "raw"), "two": (["a"], "last", "z")}
QUERIES, *OTHERS = (
    re.findall(r"```sql\n(.*?)```", (PROJECT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in ("README.md", "docs/metrics.md", "docs/tables.md")
)


def _put(
    root: Root,
    table: TableName,
    values: tuple[str, ...],
    rows: list[dict[str, Any]],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Store rows, of which the columns that are not given are blank."""
    blank = {pa.string(): "", pa.int16(): 0, pa.int32(): 0, pa.int64(): 0, pa.bool_(): False}
    kind = schema.TABLES[table][1]
    whole = [
        {
            field.name: row.get(field.name, None if field.nullable else blank.get(field.type, 0.0))
            if not pa.types.is_list(field.type)
            else []
            for field in kind
        }
        for row in rows
    ]
    store(root, Partition(table, values), [pa.Table.from_pylist(whole, kind)], settings or {})


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Two revisions, two datasets, and two runs that rank other vectors and share scores.

    A score is 0.1 a layer, and 0.01 more in dataset b; the metric is the layer, of last vectors 10
    more, in dataset b twice as much, and undefined there in layer 2.
    """
    root = Root(str(tmp_path / "root"))
    for number, (run, (datasets, pooling, transform)) in enumerate(RUNS_OF.items()):
        config = {"datasets": [{"name": each} for each in datasets]}
        root.write(f"{RUNS}/{run}.yaml", yaml.safe_dump({"config": config}).encode())
        for revision in REVISIONS:
            tasks = ["a/topic", "b/topic"] if run == "one" else ["topic"]
            settings = {"config": run, "norm": "final", "pooling": pooling, "variant": transform}
            ranked = [
                {
                    "layer": layer,
                    "norm": "final",
                    "pooling": pooling,
                    "transform": transform,
                    "score": 0.1 * layer if layer else math.nan,
                    "plain_score": 0.1 * layer,
                    "gain_chosen": 0.05 if layer == number else math.nan,
                    "verdict": "use_layer",
                    "recommended": layer == number,
                }
                for layer in LAYERS
            ]
            where = (MODEL, revision, run)
            _put(root, "ranking", where, ranked, {**settings, "tasks": tasks, "policy": "best"})
    for revision in REVISIONS:
        _put(
            root,
            "layer_costs",
            (MODEL, revision),
            [{"layer": layer, "latency_ms": 2.0 * layer} for layer in LAYERS],
        )
        for dataset, factor in (("a", 1), ("b", 2)):
            _measure(root, revision, dataset, factor)
            scores: list[dict[str, Any]] = [
                {
                    "layer": layer,
                    "norm": "final",
                    "pooling": pooling,
                    "variant": variant,
                    "fold": fold,
                    "value": 0.1 * layer + 0.01 * (factor - 1) + (0.2 if fold else 0),
                }
                for layer in LAYERS
                for pooling in ("mean", "last")
                for variant in ("raw", "l2")
                for fold in (0, 1)
            ]
            for condition in ("clean", "noise-0.10"):
                _put(root, "probe_scores", (MODEL, revision, dataset, condition, "topic"), scores)
        # Candidates of a run: the last layer's first fold alone, as a search leaves it.
        found = [
            {**row, "variant": "z", "value": row["value"] + 0.5}
            for row in scores
            if row["variant"] == "raw" and (row["layer"], row["fold"]) != (2, 1)
        ]
        for group in ("two", "three"):
            of_run = (MODEL, revision, "a", "clean", "topic", group)
            _put(root, "candidate_scores", of_run, found)
    ids, lengths = np.arange(3), np.full(3, 7, np.int32)
    for dataset in "ab":
        texts = [{"prompt_id": n, "text": f"text {n}"} for n in ids.tolist()]
        _put(root, "prompts", (dataset,), texts)
        for revision in REVISIONS:
            vectors = embeddings_table((3, "final", "mean"), ids, lengths, EYE[[0, 1, 0]])
            embedded = Partition("embeddings", (MODEL, revision, dataset, "clean"))
            store(root, embedded, [vectors], {})
    for run in RUNS_OF:
        candidates = [
            {"layer": n // 2, "rank": n + 1, "scored": 1.0, "pooling": ("mean", "last")[n % 2]}
            for n in range(8)
        ]
        for revision in REVISIONS:
            _put(root, "candidates", (MODEL, revision, run), candidates)
    return root


def _measure(root: Root, revision: str, dataset: str, factor: int) -> None:
    def row(layer: int, metric: str, variant: str, pooling: str, value: float) -> dict[str, Any]:
        what = {"metric": metric, "variant": variant, "norm": "final", "pooling": pooling}
        return {"layer": layer, **what, "value": value}

    rows = [
        row(layer, metric, variant, pooling, factor * (layer + 10 * (pooling == "last")) + off)
        for layer in LAYERS
        for metric, variants in (("stable_rank", ("uncentered", "centered")), ("twonn", ("",)))
        for off, variant in zip((0, 0.5) if len(variants) > 1 else (0,), variants, strict=True)
        for pooling in ("mean", "last")
    ]
    rows += [
        row(layer, "prompt_entropy", variant, "tokens", math.nan if layer == factor else factor)
        for layer in LAYERS
        for variant in ("alpha=2", "alpha=2,logN", "alpha=1")
    ]
    settings = {
        "metrics": ["stable_rank", "twonn", "prompt_entropy"],
        "alphas": [2.0, 1.0],
        "normalizations": ["logN", "raw"],
    }
    _put(root, "layer_metrics", (MODEL, revision, dataset, "clean"), rows, settings)
    noisy = [{**row, "norm": "any", "value": 99.0} for row in rows]
    _put(root, "layer_metrics", (MODEL, revision, dataset, "noise-0.10"), noisy, settings)


def test_the_readmes_queries_count_nothing_twice(root: Root) -> None:
    found = []
    for query in QUERIES:
        with answering(root, query) as relation:
            found.append(relation.fetchall())
    scores, layers, nights, candidates, nearest = found
    assert [each[:5] for each in scores] == [
        (MODEL, revision, run, dataset, "topic")
        for revision in sorted(REVISIONS)
        for run, (datasets, _, _) in RUNS_OF.items()
        for dataset in datasets
    ]
    # The highest score of the layers that are comparable.
    assert [each[5:] for each in scores] == [(2, 30.0), (2, 31.0), (1, 71.0)] * 2
    assert [each[:4] for each in layers] == [
        (MODEL, revision, run, layer)
        for revision in sorted(REVISIONS)
        for run in RUNS_OF
        for layer in LAYERS
    ]
    assert [each[:3] for each in nights] == [(MODEL, run, n) for run in RUNS_OF for n in (9, 10)]
    keys = [each[:4] for each in candidates]
    assert len(keys) == len({*keys}) == 5 * len(RUNS_OF) * len(REVISIONS)
    assert [each[0] for each in nearest] == [1.0, 1.0, 0.0]
    assert sorted(each[1] for each in nearest) == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize("query", [query for of_file in OTHERS for query in of_file])
def test_the_queries_of_the_documents_are_answered(root: Root, query: str) -> None:
    for table in {*KEYS} - {each.partition.table for each in everything(root)}:
        _put(root, table, tuple(f"a {key}" for key in KEYS[table]), [])
    with answering(root, query) as relation:
        relation.fetchall()


def test_a_layer_is_one_row_with_its_costs_and_the_mean_metrics_of_its_run(root: Root) -> None:
    found = ask(
        root,
        "SELECT run, revision, step, layer, score, latency_ms, stable_rank, twonn, prompt_entropy "
        "FROM layers ORDER BY run, step, layer",
    )
    assert len(found) == len(RUNS_OF) * len(REVISIONS) * len(LAYERS)
    # Dataset a measures layer, b twice that; entropy is undefined in layer 1 of a and 2 of b.
    score = {0: None, 1: pytest.approx(0.1), 2: pytest.approx(0.2)}
    one = [(n, score[n], 2.0 * n, 1.5 * n + 0.5, 1.5 * n, [1.5, None, None][n]) for n in LAYERS]
    two = [(n, score[n], 2.0 * n, n + 10.5, n + 10.0, [1, None, 1][n]) for n in LAYERS]
    assert found == [
        (run, f"step{step}", step, *row)
        for run, rows in (("one", one), ("two", two))
        for step in (9, 10)
        for row in rows
    ]


def test_a_score_is_one_row_of_the_vectors_that_its_run_ranks(root: Root) -> None:
    found = ask(
        root,
        "SELECT run, dataset, layer, pooling, transform, score, folds FROM scores "
        "WHERE step = 10 ORDER BY run, dataset, layer",
    )
    near = pytest.approx
    assert found == [
        *(("one", "a", n, "mean", "raw", near(0.1 * n + 0.1), 2) for n in LAYERS),
        *(("one", "b", n, "mean", "raw", near(0.1 * n + 0.11), 2) for n in LAYERS),
        *(("two", "a", n, "last", "z", near(0.1 * n + 0.61), 2) for n in LAYERS[:-1]),
        # What a search dropped is not comparable.
        ("two", "a", 2, "last", "z", None, 1),
    ]


def test_a_night_is_one_row_with_its_time_and_its_alerts(root: Root) -> None:
    alert = {"run": "one", "model": MODEL, "revision": "step10", "rules": [{"rule": "a"}, {}]}
    root.write("alerts/one/org%2Fm/step10.json", json.dumps(alert, indent=1).encode())
    where = Partition("ranking", (MODEL, "step9", "one"))
    made = require(root, where)
    root.write(where.manifest, replace(made, published="2026-01-02T03:04:05+00:00").encoded())
    before = Partition("ranking", (MODEL, "step9", "two"))
    root.write(before.manifest, replace(require(root, before), published="").encoded())
    query = (
        "SELECT run, step, published::VARCHAR, recommended_layer, gain_chosen, policy, last_layer, "
        "round(last_score, 3), alerts FROM nights ORDER BY run, step"
    )
    (first, second, third, _) = ask(root, query)
    assert first == ("one", 9, "2026-01-02 03:04:05", 0, 0.05, "best", 2, 0.2, 0)
    assert second[-1] == 2
    assert third == ("two", 9, None, 1, 0.05, "best", 2, 0.2, 0)
    # Published again with the same content it is as old as before, and with another it is new.
    Manifests(root).publish(where, made.settings, made.receipts)
    assert require(root, where).published.startswith("2026-01-02")
    Manifests(root).publish(where, made.settings, [replace(made.receipts[0], checksum="other")])
    assert not require(root, where).published.startswith("2026-01-02")


def test_without_costs_metrics_or_scores_the_ranking_stands_alone(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    _put(root, "ranking", ("m", "", "scores"), [{"layer": 3, "recommended": True}], {"scores": "f"})
    query = "SELECT layer, latency_ms, rankme, step FROM layers"
    assert ask(root, query) == [(3, None, None, None)]
    assert ask(root, "SELECT recommended_layer, policy FROM nights") == [(3, None)]
    assert ask(root, "FROM scores") == []


@pytest.mark.parametrize("on_s3", [False, True])
def test_vectors_are_arrays_of_their_size(
    on_s3: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = Root(str(tmp_path))
    if on_s3:
        s3: S3 = request.getfixturevalue("s3")
        root = s3.root(tmp_path.name)
    ids, lengths = np.arange(2), np.full(2, 7, np.int32)

    def embed(model: str, features: int, condition: str = "clean") -> None:
        rows_ND = np.eye(2, features, dtype=np.float32)
        table = embeddings_table((1, "final", "mean"), ids, lengths, rows_ND)
        store(root, Partition("embeddings", (model, "r", "d", condition)), [table], {"of": model})

    embed("small", 3)
    embed("small", 3, "noise-0.10")
    texts = [{"prompt_id": 0, "text": "zero"}, {"prompt_id": 1, "text": "one"}]
    _put(root, "prompts", ("d",), texts)
    query = (
        "SELECT text, array_cosine_similarity(vector, [0, 2, 0]::FLOAT[3]) FROM {} ORDER BY text"
    )
    for name in ("vectors", "vectors_3"):
        assert ask(root, query.format(name)) == [("one", 1.0), ("zero", 0.0)]
    embed("large", 4)
    with connect(root) as sql:
        assert sql.sql("SELECT DISTINCT model FROM vectors_4").fetchall() == [("large",)]
        assert str(sql.table("vectors_3").select("vector").types[0]) == "FLOAT[3]"
        assert sql.sql("SHOW TABLES").fetchall() == [
            (name,) for name in ("embeddings", "prompts", "vectors_3", "vectors_4")
        ]


def test_what_is_damaged_leaves_the_other_views(root: Root) -> None:
    table = embeddings_table((1, "final", "mean"), np.arange(2), np.ones(2, np.int32), EYE[:2])
    made = store(root, Partition("embeddings", ("m", "r", "d", "clean")), [table], {})
    root.delete(index_key(made.objects()[0]))
    root.write(f"{RUNS}/one.yaml", b"config: [")
    assert ask(root, "SELECT count(*) FROM layers") == [(12,)]


def test_every_column_says_unit_and_meaning(root: Root) -> None:
    columns = ask(
        root,
        "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE schema_name = 'main' "
        "AND NOT internal UNION ALL SELECT view_name, '', comment FROM duckdb_views() "
        "WHERE NOT internal",
    )
    assert {"layers", "scores", "nights", "ranking"} <= {view for view, _, _ in columns}
    assert [each for each in columns if not each[2]] == []
    assert ("layers", "latency_ms", schema.unit(schema.LAYER_COSTS.field("latency_ms"))) in columns


def test_the_main_metrics_are_those_of_the_registry() -> None:
    assert {name: main for name, (main, _) in schema.MAIN_METRICS.items()} == {
        name: each.main for name, each in METRICS.items()
    }
    for name, (_, unit) in schema.MAIN_METRICS.items():
        assert unit.startswith(METRICS[name].unit), name
