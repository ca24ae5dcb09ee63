"""rank (driver): scores become a ranking of the layers with its evidence, cost and advice.

What it reads is small: a score per layer, task and fold. It is made anew every time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.config.datasets import DatasetConfig
from jobs.config.run import RunConfig
from jobs.measure.costs import read_costs
from jobs.rank.choices import choice_rows, correlation_rows, main_metrics
from jobs.run import Run, ranking_partition, score_partition
from jobs.tasks.types import Task
from operators.analysis.labelfree import unlabelled_verdict
from operators.model.cost import LayerCost
from operators.model.subject import Subject
from operators.ranking.bootstrap import draw_scores
from operators.ranking.evidence import Evidence, weigh
from operators.ranking.policy import Verdict, pareto, recommend
from operators.ranking.scores import TaskScores, scored
from operators.ranking.sentences import Gap, not_compared, not_counted
from storage.partition import Partition
from storage.vectors import groups

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankedTask:
    """A task of the run and its scores; `label` is its name, with the dataset if two share it.

    `undefined` says of the layers that were scored and have no score why they have none.
    """

    label: str
    dataset: DatasetConfig
    task: Task
    metric: str
    scores: TaskScores
    undefined: dict[int, str]


@dataclass(frozen=True)
class SubjectRanking:
    """The ranking of one subject's layers over every task of the run.

    `cost_L` is the compute of a token relative to the whole model, `front_L` who is on the Pareto
    front of score against it, `draws_LB` the bootstrap draws of the mean score.
    """

    subject: Subject
    layers: list[int]
    tasks: list[RankedTask]
    evidence: Evidence
    verdict: Verdict
    costs: dict[int, LayerCost]
    cost_L: Array
    front_L: npt.NDArray[np.bool_]
    draws_LB: Array

    @property
    def scores_LT(self) -> Array:
        """The main score of every layer and task, NaN where there is none."""
        columns = [task.scores.score_L for task in self.tasks]
        return np.array(columns, dtype=np.float64).reshape(-1, len(self.layers)).T


def rank(run: Run) -> list[SubjectRanking]:
    """Rank the layers of every subject and write `choices`, `correlations` and `ranking`."""
    rankings = [rank_subject(run, subject) for subject in run.subjects]
    for ranking in rankings:
        write_subject(run, ranking)
    return rankings


def rank_subject(run: Run, subject: Subject) -> SubjectRanking:
    """Rank the layers of one subject; nothing is written."""
    config = run.config.rank
    layers = _layers(run, subject)
    tasks = ranked_tasks(run, subject, layers)
    found = [task.scores for task in tasks]
    drawn = {"seed": run.config.seed, "draws": config.draws}
    evidence = weigh(found, layers=layers, level=config.level, **drawn)
    costs = read_costs(run, subject)
    cost_L = relative_cost(costs, layers)
    verdict = recommend(evidence, cost_L, config.policy)
    if verdict.kind == "no_labels":
        layer, sentence = unlabelled_verdict(layers)
        saved = float(1 - cost_L[layers.index(layer)])
        verdict = Verdict("no_labels", layer, saved, sentence)
    undefined = {layer for task in tasks for layer in task.undefined}
    dropped = [each for each in _dropped(run, subject, tasks, layers) if each not in undefined]
    told = [verdict.sentence, *([_of_dropped(dropped)] if dropped else []), *_of_undefined(tasks)]
    verdict = replace(verdict, sentence=" ".join(told))
    score_L = np.array([row.score for row in evidence.layers])
    draws_LB = draw_scores(scored(found), **drawn) if scored(found) else np.empty((len(layers), 0))
    front_L = pareto(score_L, cost_L)
    return SubjectRanking(
        subject, layers, tasks, evidence, verdict, costs, cost_L, front_L, draws_LB
    )


def _dropped(
    run: Run, subject: Subject, tasks: Sequence[RankedTask], layers: Sequence[int]
) -> list[int]:
    """Return the layers that a search left without a score."""
    for task in tasks:
        manifest = run.manifests.require(score_partition(subject, task.dataset, task.task))
        survivors = manifest.receipts[0].facts.get("survivors")
        if survivors is not None:
            kept = {int(layer) for layer in str(survivors).split(",")}
            return [layer for layer in layers if layer not in kept]
    return []


def _of_dropped(layers: Sequence[int]) -> str:
    one = len(layers) == 1
    named = ", ".join(map(str, layers))
    return (
        f"The search dropped layer{'' if one else 's'} {named} early: more than one standard error "
        "behind the best, so not to be recommended."
    )


def _of_undefined(tasks: Sequence[RankedTask]) -> Iterator[str]:
    """Yield what tasks without a score, in every layer or in some, leave out of the ranking."""
    gaps = [
        (task, Gap(task.label, sorted(task.undefined), task.undefined[min(task.undefined)]))
        for task in tasks
        if task.undefined
    ]
    counting = scored([task.scores for task in tasks])
    never = {
        gap.task: f"it has no score in any layer{gap.because}"
        for task, gap in gaps
        if task.scores not in counting
    }
    if never:
        yield not_counted(never)
    partly = [gap for task, gap in gaps if task.scores in counting]
    if partly:
        yield not_compared(partly)


def relative_cost(costs: Mapping[int, LayerCost], layers: Sequence[int]) -> Array:
    """Return the operations of a token up to each layer, relative to the whole model's, 0 to 1."""
    last = max(layers)
    whole = costs[last].flops_per_token
    if not whole:  # a model without any matrix product: count its blocks
        return np.array([layer / last if last else 1.0 for layer in layers])
    return np.array([costs[layer].flops_per_token / whole for layer in layers])


def ranked_tasks(run: Run, subject: Subject, layers: Sequence[int]) -> list[RankedTask]:
    """Return the tasks with their scores in some layers, by dataset, then as configured."""
    found = []
    for label, dataset, task in _labelled_tasks(run.config):
        rows = ranked_rows(run, score_partition(subject, dataset, task))
        scores = _task_scores(label, rows, layers)
        undefined = {row["layer"]: row["reason"] or "" for row in rows if np.isnan(row["value"])}
        found.append(RankedTask(label, dataset, task, rows[0]["metric"], scores, undefined))
    return found


def _labelled_tasks(config: RunConfig) -> Iterator[tuple[str, DatasetConfig, Task]]:
    pairs = [(dataset, task) for dataset in config.datasets for task in dataset.tasks]
    names = Counter(task.name for _, task in pairs)
    for dataset, task in pairs:
        label = task.name if names[task.name] == 1 else f"{dataset.name}/{task.name}"
        yield label, dataset, task


def ranked_rows(run: Run, where: Partition) -> list[dict[str, Any]]:
    """Return the rows of scores of the vectors that are ranked."""
    rows = run.rows(where)
    config = run.config.rank
    wanted = (config.norm, config.pooling, config.variant)
    return [row for row in rows if (row["norm"], row["pooling"], row["variant"]) == wanted]


def _task_scores(
    label: str, rows: Sequence[Mapping[str, Any]], layers: Sequence[int]
) -> TaskScores:
    """Return the scores of a task; a layer that a search left out has none."""
    by_layer: dict[int, list[Mapping[str, Any]]] = {layer: [] for layer in layers}
    for row in rows:
        by_layer[row["layer"]].append(row)
    folds = max(map(len, by_layer.values()))
    values_LF = np.full((len(layers), folds), np.nan)
    for index, found in enumerate(by_layer.values()):
        values_LF[index, : len(found)] = [row["value"] for row in found]
    score_L = values_LF.mean(axis=1)
    task_type = str(rows[0]["task_type"])
    if folds > 1:
        return TaskScores(label, task_type, score_L, values_LF, "folds")
    drawn = [row["replicates"] for found in by_layer.values() for row in found]
    count = min(map(len, drawn)) if len(drawn) == len(layers) else 0
    replicates_LR = np.array([each[:count] for each in drawn]).reshape(len(layers), count)
    return TaskScores(label, task_type, score_L, replicates_LR, "replicates")


def _layers(run: Run, subject: Subject) -> list[int]:
    for dataset in run.config.datasets:
        found = {group.layer for group in groups(run.root, run.embeddings(subject, dataset))}
        if found:
            return sorted(found)
    raise ValueError(f"{subject}: no prompt of any dataset has a vector; every text gave no token")


def ranking_settings(config: RunConfig) -> dict[str, Any]:
    """Return what the rankings of a run depend on, beside the scores."""
    labels = [label for label, _, _ in _labelled_tasks(config)]
    return {"config": config.name, **config.rank.model_dump(), "tasks": labels}


def write_subject(run: Run, ranking: SubjectRanking) -> None:
    """Write the ranking of one subject, after what is told beside it."""
    name, revision = ranking.subject.name, ranking.subject.revision
    metrics, evidence = main_metrics(run, name, revision), ranking.evidence
    drawn = ranking.scores_LT, ranking.draws_LB
    rows = {
        "choices": choice_rows(run.config, metrics, evidence, *drawn),
        "correlations": correlation_rows(run.config, metrics, evidence),
        "ranking": subject_rows(run, ranking),
    }
    for table, found in rows.items():
        where = ranking_partition(run.config.name, name, revision, table)
        run.write(where, ranking_settings(run.config), found)


def subject_rows(run: Run, ranking: SubjectRanking) -> list[dict[str, Any]]:
    """Return the rows of the table `ranking` of one subject, layer by layer."""
    config = run.config.rank
    vectors = {"norm": config.norm, "pooling": config.pooling}
    return ranking_rows(ranking.evidence, ranking.verdict, ranking.cost_L, vectors)


def ranking_rows(
    evidence: Evidence, verdict: Verdict, cost_L: Array, vectors: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the rows of the table `ranking`; `vectors` names the norm and the pooling."""
    front_L = pareto([row.score for row in evidence.layers], cost_L)
    return [
        {
            **asdict(row),
            **vectors,
            "rank": None if np.isnan(row.score) else row.rank,
            "cost": float(cost),
            "pareto": bool(on_front),
            "verdict": verdict.kind,
            "recommended": row.layer == verdict.layer,
        }
        for row, cost, on_front in zip(evidence.layers, cost_L, front_L, strict=True)
    ]
