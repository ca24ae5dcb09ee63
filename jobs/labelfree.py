"""What a choice without labels would have lost, and how metrics go with scores, for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from jobs.findings import AssociationFinding, ChoiceFinding, CorrelationFinding, Series
from jobs.rank import SubjectRanking
from jobs.run import Run
from operators.correlates import Association, correlations
from operators.labelfree import Choice, Values, depth_rules, metric_rules, regrets, task_regrets


def choices(run: Run, ranking: SubjectRanking, series: Sequence[Series]) -> list[ChoiceFinding]:
    """Return what every rule without labels chooses, with its regret where there are labels.

    With several tasks the regret is the mean over tasks of what is lost to the best layer of each
    task, as published numbers are; with one task it is what is lost to the best layer.
    """
    layers, config = ranking.layers, run.config.rank
    several = len({each.dataset for each in series}) > 1
    rules = depth_rules(layers)
    for each in _drawn(run, series):
        of_metric = metric_rules({each.metric: _values(each, layers)}, layers=layers)
        name = f"{each.metric} on {each.dataset}" if several else each.metric
        rules.update((name, layer) for layer in of_metric.values())
    score_L = np.array([row.score for row in ranking.evidence.layers])
    if np.isnan(score_L).all():
        return [ChoiceFinding(rule, layer, *[None] * 4) for rule, layer in rules.items()]
    if len(ranking.evidence.tasks) > 1:
        found = task_regrets(
            rules,
            ranking.scores_LT,
            layers=layers,
            seed=run.config.seed,
            draws=config.draws,
            level=config.level,
        )
    else:
        draws_LB = ranking.draws_LB if ranking.draws_LB.shape[1] else None
        found = regrets(rules, score_L, layers=layers, draws_LB=draws_LB, level=config.level)
    return [_choice(each) for each in found]


def metric_correlations(
    run: Run, ranking: SubjectRanking, series: Sequence[Series]
) -> list[CorrelationFinding]:
    """Return how the main variant of every metric goes with the score over the layers."""
    score_L = np.array([row.score for row in ranking.evidence.layers])
    if np.isnan(score_L).all():
        return []
    findings = []
    for each in _drawn(run, series):
        (found,) = correlations(
            {each.metric: _values(each, ranking.layers)},
            score_L,
            layers=ranking.layers,
            seed=run.config.seed,
            level=run.config.rank.level,
        )
        both = _association(found.spearman), _association(found.distance)
        findings.append(
            CorrelationFinding(each.dataset, each.metric, found.n_layers, *both, found.reason)
        )
    return findings


def _drawn(run: Run, series: Sequence[Series]) -> list[Series]:
    """Return one series per dataset and metric: the main variant, of the ranked vectors if any."""
    ranked = (run.config.rank.norm, run.config.rank.pooling)
    chosen: dict[tuple[str, str], Series] = {}
    for each in series:
        if each.main and (
            (each.dataset, each.metric) not in chosen or (each.norm, each.pooling) == ranked
        ):
            chosen[each.dataset, each.metric] = each
    return list(chosen.values())


def _values(series: Series, layers: Sequence[int]) -> Values:
    known = {each.layer: each.value for each in series.values if each.value is not None}
    return np.array([known.get(layer, math.nan) for layer in layers])


def _choice(choice: Choice) -> ChoiceFinding:
    numbers = (choice.score, choice.regret, choice.regret_low, choice.regret_high)
    return ChoiceFinding(choice.rule, choice.layer, *map(_defined, numbers))


def _association(association: Association) -> AssociationFinding:
    values = asdict(association)
    return AssociationFinding(**{name: _defined(value) for name, value in values.items()})


def _defined(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
