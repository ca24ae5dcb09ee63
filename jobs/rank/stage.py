"""rank (driver): scores become a ranking of the layers with its evidence, cost and advice.

What it reads is small: a score per layer, task and fold. It is made anew every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from layerrank.jobs.config.candidates import candidate_vectors, ranked_vectors
from layerrank.jobs.config.metrics import parameters, shown_vectors
from layerrank.jobs.config.run import RunConfig, labelled_tasks
from layerrank.jobs.prepare.folders import FROM_FILE
from layerrank.jobs.rank.ranking import (
    Array,
    ByLayer,
    Option,
    RankedTask,
    Ranking,
    Row,
    Settings,
    choice_rows,
    correlation_rows,
    of_rows,
    ranking_of,
)
from layerrank.jobs.run import Run, partition
from layerrank.operators.metrics.registry import METRICS, main_variant, of_every_view
from layerrank.operators.model.cost import LayerCost
from layerrank.operators.model.subject import Subject
from layerrank.operators.ranking.scores import TaskScores
from layerrank.storage.layers import features, groups
from layerrank.storage.partition import TableName


def rank(run: Run) -> list[Ranking]:
    """Rank the layers of every subject and write what rankings say."""
    rankings = [rank_subject(run, subject) for subject in run.subjects]
    for ranking in rankings:
        write_subject(run, ranking)
    return rankings


def rank_subject(run: Run, subject: Subject) -> Ranking:
    """Rank the layers of one subject; nothing is written."""
    config = run.config.rank
    stored = [run.embeddings(subject, dataset) for dataset in run.config.datasets]
    found = next(filter(None, (groups(run.root, each) for each in stored)), [])
    layers = sorted({group.layer for group in found})
    if not layers:
        raise ValueError(
            f"{subject}: no prompt of any dataset has a vector; every text gave no token"
        )
    costs = read_costs(run, subject)
    # What a search of the layers noted beside the scores.
    wheres = (
        where
        for _, dataset, task in labelled_tasks(run.config)
        for where in run.scores_of(subject, dataset, task)
    )
    noted = [run.manifests.require(where).receipts[0].facts for where in wheres]
    climbed = (each["candidates_share"] for each in noted if "candidates_share" in each)
    facts = next((each for each in noted if "survivors" in each or "search_share" in each), {})
    kept = {int(layer) for layer in str(facts.get("survivors", "")).split(",") if layer}
    every = [
        Option(layer, vectors)
        for layer in layers
        for vectors in reversed(candidate_vectors(run.config))
    ]
    tasks, options = scored_options(run, subject, every)
    undefined = {layer for task in tasks for layer in task.undefined}
    dropped = [each for each in layers if kept and each not in kept and each not in undefined]
    # What is known of a layer that a search dropped is not comparable, a few folds or tasks.
    plain = ranked_vectors(run.config)
    out = [each.vectors == plain and each.layer in dropped for each in options]
    rows = [at for at, each in enumerate(options) if each.scored == 1 or each.vectors == plain]
    tasks = [of_rows(without_rows(task, out), rows) for task in tasks]
    return ranking_of(
        subject,
        [options[at] for at in rows],
        tasks,
        relative_cost(costs, layers),
        Settings(config.policy, config.draws, config.level, run.config.seed),
        kind=None if tasks else run.kind(subject),
        costs={layer: asdict(costs[layer]) for layer in layers},
        features=next(filter(None, (features(run.root, each) for each in stored)), 0),
        metrics=main_metrics(run, subject.name, subject.revision),
        search_share=facts.get("search_share"),
        candidates_share=next(climbed, None),
        dropped=dropped,
        options=options,
    )


def read_costs(run: Run, subject: Subject) -> dict[int, LayerCost]:
    """Return the measured cost of each layer; FileNotFoundError if it was not measured.

    Tables of earlier versions lack the columns of the quartiles: NaN stands for them.
    """
    return {
        row["layer"]: LayerCost(**{name: each for name, each in row.items() if each is not None})
        for row in run.rows(partition("layer_costs", subject))
    }


def relative_cost(costs: Mapping[int, LayerCost], layers: Sequence[int]) -> Array:
    """Return the operations of a token up to each layer, relative to the whole model's, 0 to 1."""
    last = max(layers)
    whole = costs[last].flops_per_token
    if not whole:  # a model without any matrix product: count its blocks
        return np.array([layer / last if last else 1.0 for layer in layers])
    return np.array([costs[layer].flops_per_token / whole for layer in layers])


def ranked_tasks(run: Run, subject: Subject, layers: Sequence[int]) -> list[RankedTask]:
    """Return the tasks with the scores of the ranked vectors of some layers."""
    plain = ranked_vectors(run.config)
    return scored_options(run, subject, [Option(layer, plain) for layer in layers])[0]


def scored_options(
    run: Run, subject: Subject, options: Sequence[Option]
) -> tuple[list[RankedTask], list[Option]]:
    """Return the tasks with their scores, by dataset, then as configured, and what was scored.

    Folds that a search left out are NaN, and so are their means.
    """
    found, scored, plain = [], [], ranked_vectors(run.config)
    for label, dataset, task in labelled_tasks(run.config):
        by_option: dict[tuple[Any, ...], list[Row]] = {
            (each.layer, *each.vectors): [] for each in options
        }
        for where in run.scores_of(subject, dataset, task):
            for row in run.rows(where):
                key = row["layer"], row["norm"], row["pooling"], row["variant"]
                if key in by_option:
                    by_option[key].append(row)
        rows = [row for of_option in by_option.values() for row in of_option]
        folds = max(map(len, by_option.values()))
        values_LF = np.full((len(options), folds), np.nan)  # a search leaves some out
        for index, of_layer in enumerate(by_option.values()):
            values_LF[index, : len(of_layer)] = [row["value"] for row in of_layer]
        scored.append(
            [
                1.0 if of_option and np.isnan(of_option[0]["value"]) else len(of_option) / folds
                for of_option in by_option.values()
            ]
        )
        given = label, str(rows[0]["task_type"]), values_LF.mean(axis=1)
        # Folds that are one fit have the resamples of their test items instead.
        one_fit = bool(np.nanmax(np.ptp(values_LF, axis=1), initial=0.0) == 0)
        if folds > 1 and not (one_fit and any(row["replicates"] for row in rows)):
            scores = TaskScores(*given, values_LF, "folds")
        else:
            drawn: list[list[float]] = [
                next((row["replicates"] for row in of_layer if row["replicates"]), [])
                for of_layer in by_option.values()
            ]
            count = min(filter(None, map(len, drawn)), default=0)
            # A layer without a score has none.
            replicates_LR = np.array([[*each[:count]] or [np.nan] * count for each in drawn])
            scores = TaskScores(*given, replicates_LR, "replicates")
        undefined = {
            row["layer"]: row["reason"] or ""
            for row in rows
            if np.isnan(row["value"]) and plain == (row["norm"], row["pooling"], row["variant"])
        }
        metric, folds = rows[0]["metric"], len({row["fold"] for row in rows})
        about = label, task.name, dataset.name, metric, folds
        asks = getattr(task, "label_column", None) == FROM_FILE
        note = f"Task {label} asks only which file a text is from; labels would say more." * asks
        found.append(RankedTask(*about, scores, undefined, note))
    shares = np.mean(scored, axis=0).tolist() if scored else [0.0] * len(options)
    return found, [each._replace(scored=share) for each, share in zip(options, shares, strict=True)]


def without_rows(task: RankedTask, out: Sequence[bool]) -> RankedTask:
    """Return a task without the scores of some options."""
    out_L, scores = np.array(out, dtype=np.bool_), task.scores
    score_L = np.where(out_L, np.nan, scores.score_L)
    resampled_LR = np.where(out_L[:, None], np.nan, scores.resampled_LR)
    return replace(task, scores=replace(scores, score_L=score_L, resampled_LR=resampled_LR))


def main_metrics(run: Run, model: str, revision: str) -> dict[tuple[str, str], ByLayer]:
    """Return the main variant of every metric of a checkpoint, by dataset and metric.

    Of a metric of pooled vectors it is that of the vectors that are ranked. What another number of
    views gave than the run has now is not to be compared, and so left out.
    """
    ranked, asked = (run.config.rank.norm, run.config.rank.pooling), parameters(run.config)
    found: dict[tuple[str, str], ByLayer] = {}
    for dataset in run.config.datasets:
        where = partition("layer_metrics", model, revision, dataset)
        rows, same_views = run.rows_if_any(where), run.views_in(where) == run.config.views.count
        for metric in METRICS if rows else ():
            if of_every_view(metric) and not same_views:
                continue
            main = main_variant(metric, asked)
            same = [row for row in rows if (row["metric"], row["variant"]) == (metric, main)]
            shown = shown_vectors(((row["norm"], row["pooling"]) for row in same), ranked)
            if same:
                found[dataset.name, metric] = {
                    row["layer"]: row["value"]
                    for row in same
                    if (row["norm"], row["pooling"]) == shown
                }
    return found


def ranking_settings(config: RunConfig) -> dict[str, Any]:
    """Return what the rankings of a run depend on, beside the scores."""
    labels = [label for label, _, _ in labelled_tasks(config)]
    asked = {"candidates": config.candidates.settings()} if config.candidates else {}
    return {"config": config.name, **config.rank.settings(), "tasks": labels, **asked}


def write_subject(run: Run, ranking: Ranking) -> None:
    """Write the ranking of one subject, after what is told beside it."""
    rows: dict[TableName, list[dict[str, Any]]] = {
        "choices": choice_rows(ranking),
        "correlations": correlation_rows(ranking),
        "candidates": ranking.candidates,
        "ranking": ranking.table,
    }
    for table, found in rows.items():
        where = partition(table, ranking.subject, run.config)
        run.write(where, ranking_settings(run.config), found)
