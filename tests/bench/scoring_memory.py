"""Peak memory of scoring one layer: a task of every type on 10 synthetic shards, both variants.

Each type runs in a fresh process without Ray, and counts from before it reads the vectors to the
highest point (`VmHWM`, so Linux only), in multiples of the bytes of the vectors that it reads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from layerrank.jobs.cluster.console import say
from layerrank.jobs.config.datasets import Task
from layerrank.jobs.probe.worker import Scorer, ScoreTarget, ScoreUnit
from layerrank.jobs.tasks.types import TYPES
from layerrank.operators.model.subject import Subject, Vectors
from layerrank.storage.layers import Group, embeddings_table
from layerrank.storage.manifest import require
from layerrank.storage.partition import CLEAN, Partition
from layerrank.storage.root import Root
from tests.support.stored import store

SHARDS, QUERIES, CLASSES = 10, 1000, 20
SEED, REPLICATES = 42, 200
SUBJECT = Subject("none", "0", "synthetic")
GROUP = Group(1, "final", "mean")
VECTORS = Partition("embeddings", (SUBJECT.name, SUBJECT.revision, "synthetic", CLEAN))
_PAIRS = {"first_column": "a", "second_column": "b"}
_SEARCH = {"query_column": "a", "relevance_column": "c"}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"label_column": "c", "folds": 2},
    "multi_label": {"type": "classification", "label_column": "c", "multi_label": True, "folds": 1},
    "regression": {"value_column": "c", "folds": 2},
    "clustering": {"label_column": "c", "folds": 2},
    "pair_classification": {**_PAIRS, "label_column": "c"},
    "sts": {**_PAIRS, "score_column": "c"},
    "reranking": {**_SEARCH, "candidate_column": "b"},
    "retrieval": _SEARCH,
}
_KIB = 1 << 10


def main() -> None:
    """Print the peak of every type of task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, folder = options.measure
        sys.stdout.write(json.dumps(_measured(name, Root(folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_vectors(Root(folder), options.rows, options.features)
        for name in options.tasks:
            _write_items(Root(folder), name, options.rows)
            command = [sys.executable, "-m", "tests.bench.scoring_memory"]
            done = subprocess.run(
                [*command, "--measure", name, folder], capture_output=True, text=True, check=True
            )
            added = json.loads(done.stdout)
            layer = 4 * options.rows * options.features
            say(
                f"{name}: {added / layer:.2f} times the {layer / _KIB**2:,.0f} MiB of "
                f"{options.rows:,} vectors (aim: at most 3)"
            )


def _measured(name: str, root: Root) -> int:
    """Return the bytes that scoring adds at its highest point."""
    task = _task(name)
    items, vectors = require(root, _items_of(name)), require(root, VECTORS)
    where = Partition("probe_scores", (*VECTORS.values, name))
    target = ScoreTarget(SUBJECT, task, items, vectors, where, {})
    ranked = Vectors(GROUP.norm, GROUP.pooling, "raw")
    scorer = Scorer(root, (target,), ranked, SEED, REPLICATES)
    unit = ScoreUnit(0, GROUP, 0, task.repeats, ("raw", "l2"))
    before = _status("VmRSS")
    _, rows, why = scorer(unit)
    assert why is None, why
    assert {row["variant"] for row in rows} == {"raw", "l2"}
    assert all(row["reason"] is None for row in rows), rows
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * _KIB


def _task(name: str) -> Task:
    values = {"name": name, "type": name, **TASKS[name]}
    task: Task = TypeAdapter(Task).validate_python(values)
    return task


def _items_of(name: str) -> Partition:
    return Partition("tasks", (name, "synthetic"))


def _write_vectors(root: Root, rows: int, features: int) -> None:
    """Write one layer: rows around the direction of their class, ids in order."""
    draw = np.random.default_rng(0)
    centres_CD = draw.standard_normal((CLASSES, features), dtype=np.float32)
    tables = []
    for ids in np.array_split(np.arange(rows), SHARDS):
        noise_ND = draw.standard_normal((len(ids), features), dtype=np.float32)
        vectors_ND = centres_CD[ids % CLASSES] + 3 * noise_ND
        lengths = np.full(len(ids), 8, dtype=np.int32)
        key = (GROUP.layer, GROUP.norm, GROUP.pooling)
        tables.append(embeddings_table(key, ids, lengths, vectors_ND))
    store(root, VECTORS, tables, {"rows": rows, "features": features})


def _write_items(root: Root, name: str, rows: int) -> None:
    """Write the items of a task; between them they name every vector."""
    task, ids = _task(name), np.arange(rows)
    columns: dict[str, Any]
    if task.type in ("classification", "regression", "clustering"):
        label = ids % CLASSES
        test = np.ones(rows, bool) if task.type == "clustering" else ids // CLASSES % 2 == 0
        columns = {
            "prompt_id": ids,
            "split": np.where(test, "test", "train"),
            "label": [json.dumps([str(each)]) for each in label]
            if name == "multi_label"
            else label.astype(str),
            "value": label + np.random.default_rng(1).random(rows),
        }
    elif task.type in ("pair_classification", "sts"):
        pairs = {"first_id": ids, "second_id": np.roll(ids, 1)}  # every text stands in two
        columns = {**pairs, "value": ids // 3 % 2 * 1.0}
    else:
        queries, documents = ids[:QUERIES], ids[QUERIES:]
        query = queries[documents % QUERIES]
        columns = {"query_id": query, "candidate_id": documents}
        columns["relevance"] = np.asarray(documents - query == QUERIES)
    own = TYPES[type(task)].columns
    count = len(next(iter(columns.values())))
    columns = {"row": np.arange(count), **columns}
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in own]
    table = pa.Table.from_arrays(arrays, schema=own)
    store(root, _items_of(name), [table], {"rows": rows})


if __name__ == "__main__":
    main()
