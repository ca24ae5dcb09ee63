"""A root of synthetic tables: ranked checkpoints as nights leave them, without Ray or a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerrank.jobs.rank.ranking import Option, RankedTask, Settings, ranking_of
from layerrank.jobs.rank.stage import ranking_settings
from layerrank.jobs.run import Run, partition
from layerrank.operators.model.subject import Subject, Vectors
from layerrank.operators.ranking.scores import TaskScores
from layerrank.storage.partition import CLEAN, Partition
from tests.support.by_hand import metric_rows, score_rows
from tests.support.machines.here import run_here

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
    run: Run,
    revision: str,
    scores: Sequence[float],
    entropy: float = 2.0,
    model: str = MODEL,
    *,
    views: int = 0,
) -> None:
    """Store what a night leaves of a checkpoint: scores, one metric, and the ranking.

    With `views` there is InfoNCE too: twice the entropy for four of them, the entropy for sixteen.
    """
    folds = np.add.outer(scores, SPREAD)
    folds += np.outer(range(LAYERS), SPREAD) / 20  # gains vary a little too
    keys = (model, revision, "texts", CLEAN)
    run.write(Partition("probe_scores", (*keys, "t")), {}, score_rows("classification", folds))
    values = [math.nan, *(entropy + layer for layer in range(1, LAYERS))]
    rows = metric_rows("dataset_entropy", "alpha=1", values)
    if views:
        rows += metric_rows("infonce", "loss", [4 * entropy / math.sqrt(views)] * LAYERS)
    run.write(Partition("layer_metrics", keys), {"views": [""] * views}, rows)
    task = TaskScores("t", "classification", np.array(scores), folds, "folds")
    ranking = ranking_of(
        Subject(model, revision, model),
        [Option(layer, Vectors("final", "mean", "raw")) for layer in range(LAYERS)],
        [RankedTask("t", "t", "texts", "accuracy", len(SPREAD), task)],
        np.array([layer / (LAYERS - 1) for layer in range(LAYERS)]),
        Settings("best", draws=200),
    )
    where = partition("ranking", model, revision, run.config)
    run.write(where, ranking_settings(run.config), ranking.table)
