"""What a choice without labels would have lost, and how metrics go with scores: two tables.

Both are over the layers of one subject, from the ranking and the main variant of every metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.config.metrics import parameters, shown_vectors
from jobs.config.run import RunConfig
from jobs.run import Run, partition
from operators.analysis.correlates import Association, correlations
from operators.analysis.labelfree import Choice, depth_rules, metric_rules, regrets, task_regrets
from operators.metrics.registry import METRICS, main_variant
from operators.ranking.evidence import Evidence

ON = " on "  # between a metric and its dataset, in a rule of a run with several datasets
Array = npt.NDArray[np.float64]
ByLayer = dict[int, float]  # layer -> value, NaN where it is undefined
Metrics = Mapping[tuple[str, str], ByLayer]  # by dataset and metric
Row = dict[str, Any]


def main_metrics(run: Run, model: str, revision: str) -> dict[tuple[str, str], ByLayer]:
    """Return the main variant of every metric of a checkpoint, by dataset and metric.

    Of a metric of pooled vectors it is that of the vectors that are ranked.
    """
    found: dict[tuple[str, str], ByLayer] = {}
    for dataset in run.config.datasets:
        rows = run.rows_if_any(partition("layer_metrics", model, revision, dataset.name))
        for metric in METRICS if rows else ():
            values = _main_values(run.config, metric, rows)
            if values:
                found[dataset.name, metric] = values
    return found


def choice_rows(
    config: RunConfig, metrics: Metrics, evidence: Evidence, scores_LT: Array, draws_LB: Array
) -> list[Row]:
    """Return what every rule without labels chooses, with its regret where there are labels.

    With several tasks the regret is the mean over tasks of what is lost to the best layer of each
    task, as published numbers are; with one task it is what is lost to the best layer.
    """
    layers = [row.layer for row in evidence.layers]
    several = len({dataset for dataset, _ in metrics}) > 1
    rules = depth_rules(layers)
    for (dataset, metric), values in metrics.items():
        of_metric = metric_rules({metric: _at(values, layers)}, layers=layers)
        name = f"{metric}{ON}{dataset}" if several else metric
        rules.update((name, layer) for layer in of_metric.values())
    score_L = np.array([row.score for row in evidence.layers])
    if np.isnan(score_L).all():
        nothing = [math.nan] * 4
        return [asdict(Choice(rule, layer, *nothing)) for rule, layer in rules.items()]
    level = config.rank.level
    if len(evidence.tasks) > 1:
        drawn = {"seed": config.seed, "draws": config.rank.draws}
        found = task_regrets(rules, scores_LT, layers=layers, level=level, **drawn)
    else:
        known = draws_LB if draws_LB.shape[1] else None
        found = regrets(rules, score_L, layers=layers, draws_LB=known, level=level)
    return [asdict(each) for each in found]


def correlation_rows(config: RunConfig, metrics: Metrics, evidence: Evidence) -> list[Row]:
    """Return how the main variant of every metric goes with the score over the layers."""
    layers = [row.layer for row in evidence.layers]
    score_L = np.array([row.score for row in evidence.layers])
    if np.isnan(score_L).all():
        return []
    rows = []
    for (dataset, metric), values in metrics.items():
        (found,) = correlations(
            {metric: _at(values, layers)},
            score_L,
            layers=layers,
            seed=config.seed,
            level=config.rank.level,
        )
        rows.append(
            {
                "dataset": dataset,
                "metric": metric,
                "layers": found.n_layers,
                **_columns("spearman", found.spearman),
                **_columns("distance", found.distance),
                "reason": found.reason or None,
            }
        )
    return rows


def _main_values(config: RunConfig, metric: str, rows: Sequence[Row]) -> ByLayer:
    main = main_variant(metric, parameters(config))
    same = [row for row in rows if (row["metric"], row["variant"]) == (metric, main)]
    measured = [(row["norm"], row["pooling"]) for row in same]
    shown = shown_vectors(measured, (config.rank.norm, config.rank.pooling))
    return {
        row["layer"]: row["value"]
        for row, vectors in zip(same, measured, strict=True)
        if vectors == shown
    }


def _at(values: ByLayer, layers: Sequence[int]) -> Array:
    known = np.array([values.get(layer, math.nan) for layer in layers])
    return np.where(np.isfinite(known), known, math.nan)


def _columns(name: str, association: Association) -> Row:
    values = asdict(association)
    return {name: values.pop("value"), **{f"{name}_{key}": each for key, each in values.items()}}
