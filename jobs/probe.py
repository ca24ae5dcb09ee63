"""probe (CPU tasks): labelled tasks scored for every layer, from the shards alone.

One unit is one (task, layer, norm, pooling): it reads that layer's row groups and nothing else. A
task is published when all of its layers are scored, so a killed run repeats at most the tasks that
were under way.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.cluster import one_unit, result_table, run_tasks
from jobs.console import Progress, say
from jobs.corpora import ClassificationTask, ClusteringTask, DatasetConfig, RetrievalTask, Task
from jobs.prepare import task_partition
from jobs.run import Run, partition
from operators.probes import MAIN_METRICS
from operators.probes.classification import classification
from operators.probes.clustering import clustering
from operators.probes.fold import FoldScore
from operators.probes.retrieval import retrieval
from operators.subject import Subject
from storage import schema
from storage.manifest import Manifest, Settings, current, digest_of, publish, require
from storage.partition import Partition
from storage.root import Root
from storage.shards import Receipt, read_table, write_shard
from storage.vectors import Group, groups, read_vectors

SCORES = "scores.parquet"


@dataclass(frozen=True)
class _Target:
    """The scores of one task with one subject: what they are made of and where they go."""

    dataset: DatasetConfig
    task: Task
    items: Manifest
    embeddings: Manifest
    partition: Partition
    settings: Settings


@dataclass(frozen=True)
class ScoreTask:
    """Scores one layer on one task."""

    root: Root
    targets: tuple[_Target, ...]
    seed: int

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score one unit and return its rows of `probe_scores`."""
        index, values = json.loads(one_unit(batch))
        target, group = self.targets[index], Group(**values)
        items = pa.concat_tables(
            [read_table(self.root, key) for key in target.items.objects()]
        ).sort_by("row")
        reason = None
        try:
            scores = _score(self.root, target, group, items, self.seed)
        except ValueError as error:  # too few items or labels: the score does not exist
            scores = [FoldScore(0, MAIN_METRICS[target.task.type], float("nan"), 0, 0)]
            reason = str(error)
        shared = {**asdict(group), "task_type": target.task.type, "reason": reason}
        return result_table([index, [{**shared, **asdict(score)} for score in scores]])


def probe(run: Run) -> None:
    """Score every task of every subject that is not scored yet."""
    targets = _targets(run)
    missing = [each for each in targets if not _is_scored(run, each)]
    if missing:
        _score_targets(run, missing)
    for target in targets:
        manifest = require(run.root, target.partition)
        reason = manifest.receipts[0].facts.get("undefined")
        outcome = f"undefined: {reason}" if reason else f"{manifest.rows} scores"
        say(f"  {target.task.name} ({target.task.type}): {outcome}")
    if not targets:
        say("  no labelled task in the config")


def require_scores(run: Run) -> None:
    """Raise if a task is not scored with this run's settings, so that no old score is ranked."""
    for target in _targets(run):
        if current(run.root, target.partition, target.settings) is None:
            raise FileNotFoundError(
                f"task {target.task.name} of {target.dataset.name} is not scored yet: "
                "run `layerrank probe` first"
            )


def _targets(run: Run) -> list[_Target]:
    return [
        _target(run, subject, dataset, task)
        for subject, dataset in run.pairs()
        for task in dataset.tasks
    ]


def _is_scored(run: Run, target: _Target) -> bool:
    found = current(run.root, target.partition, target.settings, overwrite=run.overwrite)
    return found is not None


def _target(run: Run, subject: Subject, dataset: DatasetConfig, task: Task) -> _Target:
    items = require(run.root, task_partition(dataset, task))
    embeddings = run.embeddings(subject, dataset)
    settings = {
        "items": items.content,
        "embeddings": embeddings.content,
        "seed": run.config.probe.seed,
        **task.model_dump(),
    }
    values = (*partition("embeddings", subject, dataset).values, task.name)
    return _Target(dataset, task, items, embeddings, Partition("probe_scores", values), settings)


def _score_targets(run: Run, targets: list[_Target]) -> None:
    run.cluster.start()
    units = {
        index: [json.dumps([index, asdict(group)]) for group in groups(run.root, each.embeddings)]
        for index, each in enumerate(targets)
    }
    every = [unit for of_task in units.values() for unit in of_task]
    task = ScoreTask(run.root, tuple(targets), run.config.probe.seed)
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    left = {index: len(of_task) for index, of_task in units.items()}
    with Progress("probe", len(every), "layer scores") as progress:
        for index, scores in run_tasks(every, task.__call__):
            rows[index] += scores
            left[index] -= 1
            progress.add(1)
            if not left[index]:
                _publish(run.root, targets[index], rows.pop(index))


def _publish(root: Root, target: _Target, rows: list[dict[str, Any]]) -> None:
    rows.sort(key=lambda row: (row["layer"], row["norm"], row["pooling"], row["fold"]))
    table = pa.Table.from_pylist(rows, schema.PROBE_SCORES)
    reasons = [row["reason"] for row in rows if row["reason"]]
    facts = {"undefined": reasons[0]} if reasons else {}
    blank = Receipt(SCORES, 0, digest_of(target.settings), "", facts=facts)
    where = target.partition.shard(SCORES)
    receipt = write_shard(root, where, [table], schema.PROBE_SCORES, blank)
    publish(root, target.partition, target.settings, [receipt])


def _score(
    root: Root, target: _Target, group: Group, items: pa.Table, seed: int
) -> list[FoldScore]:
    task = target.task
    if isinstance(task, RetrievalTask):
        return _score_retrieval(root, target, task, group, items)
    ids = items["prompt_id"].to_numpy()
    found = read_vectors(root, target.embeddings, group, wanted=ids)
    rows = found.rows_of(ids)
    present = rows >= 0
    labels, matrix = np.array(items["label"].to_pylist())[present], found.matrix_ND[rows[present]]
    split = np.array(items["split"].to_pylist())[present]
    if isinstance(task, ClusteringTask):
        test = split == "test"
        return clustering(
            matrix[test],
            labels[test],
            seed=seed,
            folds=task.folds,
            max_documents=task.max_documents,
            documents_per_fold=min(task.documents_per_fold, int(test.sum())),
        )
    assert isinstance(task, ClassificationTask)
    train, test = split == "train", split == "test"
    return classification(
        matrix[train],
        labels[train],
        matrix[test],
        labels[test],
        seed=seed,
        folds=task.folds,
        samples_per_label=task.samples_per_label,
    )


def _score_retrieval(
    root: Root, target: _Target, task: RetrievalTask, group: Group, items: pa.Table
) -> list[FoldScore]:
    query_ids, candidate_ids = items["query_id"].to_numpy(), items["candidate_id"].to_numpy()
    wanted = np.union1d(query_ids, candidate_ids)
    found = read_vectors(root, target.embeddings, group, wanted=wanted)
    keep = (found.rows_of(query_ids) >= 0) & (found.rows_of(candidate_ids) >= 0)
    queries, first = np.unique(query_ids[keep], return_index=True)
    queries = queries[np.argsort(first)]  # source order, so that folds mix the source
    documents = np.unique(candidate_ids[keep])
    relevant = _relevant(query_ids[keep], candidate_ids[keep], queries, documents)
    return retrieval(
        found.matrix_ND[found.rows_of(queries)],
        found.matrix_ND[found.rows_of(documents)],
        relevant,
        folds=min(task.folds, len(queries)),
    )


def _relevant(
    query_ids: npt.NDArray[np.int64],
    candidate_ids: npt.NDArray[np.int64],
    queries: npt.NDArray[np.int64],
    documents: npt.NDArray[np.int64],
) -> list[list[int]]:
    """Return, for each query, the rows of its documents in `documents` (sorted)."""
    rows: dict[int, list[int]] = defaultdict(list)
    for query, row in zip(
        query_ids.tolist(), np.searchsorted(documents, candidate_ids), strict=True
    ):
        rows[query].append(int(row))
    return [rows[query] for query in queries.tolist()]
