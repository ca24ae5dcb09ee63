"""A root of synthetic tables: ranked checkpoints as nights leave them, without Ray or a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.rank.ranking import RankedTask, Settings, Vectors, ranking_of
from jobs.rank.stage import ranking_settings
from jobs.run import Run, partition
from operators.model.subject import Subject
from operators.ranking.scores import TaskScores
from storage.partition import CLEAN, Partition
from tests.support.here import run_here

MODEL = "org/model"
LAYERS = 4
SPREAD = (-0.02, 0.0, 0.02)  # of the folds around the score


def make_run(
    folder: Path,
    revisions: Sequence[str] = ("step0", "step4"),
    **nightly: Any,  # noqa: ANN401
) -> Run:
    """Return a run over some revisions; keyword arguments are the block `nightly`."""
    task = {"name": "t", "type": "classification", "label_column": "l"}
    return run_here(
        folder,
        MODEL,
        [{"name": "texts", "tasks": [task]}],
        subjects=[{"model": MODEL, "revisions": list(revisions)}],
        rank={"draws": 200, "policy": "best"},
        nightly={"changes": 2, **nightly},
    )


def store_checkpoint(
    run: Run, revision: str, scores: Sequence[float], entropy: float = 2.0, model: str = MODEL
) -> None:
    """Store what a night leaves of a checkpoint: scores, one metric, and the ranking."""
    nan = math.isnan(scores[0])
    folds = [[score + spread for spread in SPREAD] for score in scores]
    vectors = {"norm": "final", "pooling": "mean"}
    of_fold: dict[str, Any] = {**vectors, "variant": "raw", "task_type": "classification"}
    of_fold |= {"metric": "accuracy", "reason": "undefined" if nan else None}
    of_fold |= {"n_train": 8, "n_test": 32, "replicates": []}
    rows = [
        {**of_fold, "layer": layer, "fold": fold, "value": value}
        for layer, values in enumerate(folds)
        for fold, value in enumerate(values)
    ]
    keys = (model, revision, "texts", CLEAN)
    run.write(Partition("probe_scores", (*keys, "t")), {"made": "by hand"}, rows)
    own: dict[str, Any] = {**vectors, "metric": "dataset_entropy", "variant": "alpha=1"}
    own |= {"n_prompts": 40, "n_undefined": 0}
    values = [math.nan, *(entropy + layer for layer in range(1, LAYERS))]
    reasons = ["all vectors equal", *[None] * (LAYERS - 1)]
    metrics = [
        {**own, "layer": layer, "value": value, "reason": reason}
        for layer, (value, reason) in enumerate(zip(values, reasons, strict=True))
    ]
    run.write(Partition("layer_metrics", keys), {"made": "by hand"}, metrics)
    task = TaskScores("t", "classification", np.array(scores), np.array(folds), "folds")
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
