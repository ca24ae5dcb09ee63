"""What a choice without labels would have lost, and how metrics go with scores: two tables.

Both are over the layers of one subject, from the ranking and the main variant of every metric.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from jobs.rank.ranking import Ranking, at_layers
from operators.analysis.correlates import correlation
from operators.analysis.labelfree import Choice, depth_rules, metric_rule, regrets, task_regrets

ON = " on "  # between a metric and its dataset, in a rule of a run with several datasets


def choice_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """Return what every rule without labels chooses, with its regret where there are labels.

    With several tasks the regret is the mean over tasks of what is lost to the best layer of each
    task, as published numbers are; with one task it is what is lost to the best layer.
    """
    layers, settings = ranking.layers, ranking.settings
    several = len({dataset for dataset, _ in ranking.metrics}) > 1
    rules = depth_rules(layers)
    for (dataset, metric), values in ranking.metrics.items():
        chosen = metric_rule(metric, at_layers(values, layers), layers=layers)
        if chosen is not None:
            rules[f"{metric}{ON}{dataset}" if several else metric] = chosen
    if not ranking.scored:
        nothing = [math.nan] * 4
        return [asdict(Choice(rule, layer, *nothing)) for rule, layer in rules.items()]
    if len(ranking.evidence.tasks) > 1:
        drawn = {"seed": settings.seed, "draws": settings.draws}
        found = task_regrets(rules, ranking.scores_LT, layers=layers, level=settings.level, **drawn)
    else:
        score_L = np.array([row.score for row in ranking.evidence.layers])
        draws_LB = ranking.draws_LB if ranking.draws_LB.shape[1] else None
        found = regrets(rules, score_L, layers=layers, draws_LB=draws_LB, level=settings.level)
    return [asdict(each) for each in found]


def correlation_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """Return how the main variant of every metric goes with the score over the layers."""
    if not ranking.scored:
        return []
    score_L = np.array([row.score for row in ranking.evidence.layers])
    rows = []
    for (dataset, metric), values in ranking.metrics.items():
        found = correlation(
            metric,
            at_layers(values, ranking.layers),
            score_L,
            layers=ranking.layers,
            seed=ranking.settings.seed,
            level=ranking.settings.level,
        )
        row = {"dataset": dataset, "metric": metric, "layers": found.n_layers}
        for name, association in (("spearman", found.spearman), ("distance", found.distance)):
            for key, value in asdict(association).items():
                row[name if key == "value" else f"{name}_{key}"] = value
        rows.append({**row, "reason": found.reason or None})
    return rows
