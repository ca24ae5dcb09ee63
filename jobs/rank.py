"""rank (driver): scores become a ranking of the layers with intervals, and the report.

What it reads is small: a score per layer, task and fold. It is made anew every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.run import Run, partition
from operators.ranking import LayerRank, Verdict, rank_layers, verdict
from operators.subject import Subject
from storage import schema
from storage.manifest import digest_of, publish, require
from storage.partition import Partition
from storage.shards import Receipt, read_table, write_shard
from storage.vectors import groups

RANKING = "ranking.parquet"


@dataclass(frozen=True)
class SubjectRanking:
    """The ranking of one subject's layers over every task of the run."""

    subject: Subject
    layers: list[LayerRank]
    verdict: Verdict
    tasks: list[str]
    task_types: list[str]
    scores_LT: npt.NDArray[np.float64]


def rank(run: Run) -> list[SubjectRanking]:
    """Rank the layers of every subject and write the `ranking` table."""
    rankings = [_rank_subject(run, subject) for subject in run.subjects]
    for ranking in rankings:
        _write(run, ranking)
    return rankings


def _rank_subject(run: Run, subject: Subject) -> SubjectRanking:
    config = run.config.rank
    found: list[tuple[str, str, dict[int, list[float]]]] = []
    for dataset in run.config.datasets:
        for task in dataset.tasks:
            keys = (*partition("embeddings", subject, dataset).values, task.name)
            manifest = require(run.root, Partition("probe_scores", keys))
            rows = read_table(run.root, manifest.objects()[0]).to_pylist()
            by_layer: dict[int, list[float]] = {}
            for row in rows:
                if (row["norm"], row["pooling"]) == (config.norm, config.pooling):
                    by_layer.setdefault(row["layer"], []).append(row["value"])
            found.append((task.name, task.type, by_layer))
    layers = _layers(run, subject)
    folds = max((len(v) for _, _, by_layer in found for v in by_layer.values()), default=1)
    scores_LTF = np.full((len(layers), max(len(found), 1), folds), np.nan)
    for column, (_, _, by_layer) in enumerate(found):
        for row, layer in enumerate(layers):
            values = by_layer.get(layer, [])
            scores_LTF[row, column, : len(values)] = values
    ranked = rank_layers(
        scores_LTF, layers=layers, seed=run.config.seed, draws=config.draws, level=config.level
    )
    return SubjectRanking(
        subject,
        ranked,
        verdict(ranked, level=config.level),
        [name for name, _, _ in found],
        [kind for _, kind, _ in found],
        _task_means(scores_LTF)[:, : len(found)],
    )


def _task_means(scores_LTF: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    counts_LT = (~np.isnan(scores_LTF)).sum(axis=2)
    means_LT = np.full(counts_LT.shape, np.nan)
    np.divide(np.nansum(scores_LTF, axis=2), counts_LT, out=means_LT, where=counts_LT > 0)
    return means_LT


def _layers(run: Run, subject: Subject) -> list[int]:
    for dataset in run.config.datasets:
        found = {group.layer for group in groups(run.root, run.embeddings(subject, dataset))}
        if found:
            return sorted(found)
    raise ValueError(f"{subject}: no prompt of any dataset has a vector; every text gave no token")


def _write(run: Run, ranking: SubjectRanking) -> None:
    config, last = run.config.rank, max((row.layer for row in ranking.layers), default=0)
    rows: list[dict[str, Any]] = [
        {
            "layer": row.layer,
            "norm": config.norm,
            "pooling": config.pooling,
            "score": row.score,
            "score_low": row.score_low,
            "score_high": row.score_high,
            "rank": None if np.isnan(row.score) else row.rank,
            "gain": row.gain,
            "gain_low": row.gain_low,
            "gain_high": row.gain_high,
            "cost": cost(row.layer, last),
            "verdict": ranking.verdict.kind,
            "recommended": row.layer == ranking.verdict.layer,
        }
        for row in ranking.layers
    ]
    subject = ranking.subject
    where = Partition("ranking", (subject.name, subject.revision, run.config.name))
    settings = {"config": run.config.name, **config.model_dump(), "tasks": ranking.tasks}
    blank = Receipt(RANKING, 0, digest_of(settings), "")
    table = pa.Table.from_pylist(rows, schema.RANKING)
    receipt = write_shard(run.root, where.shard(RANKING), [table], schema.RANKING, blank)
    publish(run.root, where, settings, [receipt])


def cost(layer: int, last: int) -> float:
    """Return the share of the model's blocks that must run to get a layer, 0 to 1."""
    return layer / last if last else 1.0
