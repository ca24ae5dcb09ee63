"""A root of synthetic tables: ranked checkpoints as nights leave them, without Ray or a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.cluster.cluster import Cluster
from jobs.config.run import RunConfig
from jobs.rank.ranking import RankedTask, Settings, Vectors, ranking_of
from jobs.rank.stage import ranking_settings
from jobs.run import Run, partition
from operators.model.subject import Subject
from operators.ranking.scores import TaskScores
from storage import schema
from storage.partition import CLEAN, Partition
from storage.root import Root
from tests.support.here import Here
from tests.support.stored import store

MODEL = "org/model"
LAYERS = 4
SPREAD = (-0.02, 0.0, 0.02)  # of the folds around the score


def make_run(
    folder: Path,
    revisions: Sequence[str] = ("step0", "step4"),
    **nightly: Any,  # noqa: ANN401
) -> Run:
    """Return a run over some revisions; keyword arguments are the block `nightly`."""
    config = RunConfig.model_validate(
        {
            "name": "small",
            "subjects": [{"model": MODEL, "revisions": list(revisions)}],
            "datasets": [
                {
                    "name": "texts",
                    "source": {"files": "a.jsonl"},
                    "tasks": [{"name": "t", "type": "classification", "label_column": "l"}],
                }
            ],
            "rank": {"draws": 200, "policy": "best"},
            "nightly": {"changes": 2, **nightly},
        }
    )
    return Run(config, Root(str(folder)), Cluster(Here()))


def _store(root: Root, where: Partition, rows: list[dict[str, Any]], columns: pa.Schema) -> None:
    store(root, where, [pa.Table.from_pylist(rows, columns)], {"made": "by hand"})


def store_checkpoint(
    run: Run, revision: str, scores: Sequence[float], entropy: float = 2.0, model: str = MODEL
) -> None:
    """Store what a night leaves of a checkpoint: scores, one metric, and the ranking."""
    nan = math.isnan(scores[0])
    folds = [[score + spread for spread in SPREAD] for score in scores]
    of_fold: dict[str, Any] = {"norm": "final", "pooling": "mean", "variant": "raw"}
    of_fold |= {"task_type": "classification", "metric": "accuracy"}
    of_fold |= {"reason": "undefined" if nan else None}
    counts = {"n_train": 8, "n_test": 32, "replicates": []}
    rows = [
        {**of_fold, **counts, "layer": layer, "fold": fold, "value": value}
        for layer, values in enumerate(folds)
        for fold, value in enumerate(values)
    ]
    keys = (model, revision, "texts", CLEAN)
    _store(run.root, Partition("probe_scores", (*keys, "t")), rows, schema.PROBE_SCORES)
    metrics = [
        {
            "layer": layer,
            "norm": "final",
            "pooling": "mean",
            "metric": "dataset_entropy",
            "variant": "alpha=1",
            "value": float("nan") if layer == 0 else entropy + layer,
            "reason": "all vectors equal" if layer == 0 else None,
            "n_prompts": 40,
            "n_undefined": 0,
        }
        for layer in range(LAYERS)
    ]
    _store(run.root, Partition("layer_metrics", keys), metrics, schema.LAYER_METRICS)
    _store_ranking(run, revision, scores, model)


def _store_ranking(run: Run, revision: str, scores: Sequence[float], model: str = MODEL) -> None:
    task = TaskScores(
        "t",
        "classification",
        np.array(scores),
        np.array([[score + spread for spread in SPREAD] for score in scores]),
        "folds",
    )
    ranking = ranking_of(
        Subject(model, revision, model),
        Vectors("final", "mean", "raw"),
        [RankedTask("t", "t", "texts", "accuracy", len(SPREAD), task)],
        range(LAYERS),
        np.array([layer / (LAYERS - 1) for layer in range(LAYERS)]),
        Settings("best", draws=200),
    )
    where = partition("ranking", model, revision, run.config)
    run.write(where, ranking_settings(run.config), ranking.table)
