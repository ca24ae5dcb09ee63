"""What the checkpoints of a run show over training, as plain data: what the trend page says.

A value that does not exist is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.alerts import Alert, read_alerts
from jobs.config import RunConfig
from jobs.history import Checkpoint
from jobs.measurer import parameters
from jobs.subjects import by_step, step_of
from operators.metrics.registry import main_variant, unit_of
from operators.subject import Subject
from storage.root import Root

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerScore:
    """The score of a layer with its interval, 0..1."""

    layer: int
    score: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ranked:
    """A ranked checkpoint; `best` is None where no layer has a score."""

    revision: str
    step: int | None
    verdict: str
    recommended: LayerScore
    best: LayerScore | None
    last: LayerScore


@dataclass(frozen=True)
class MetricTrend:
    """A metric's main variant, checkpoint by checkpoint, at two layers."""

    dataset: str
    metric: str
    unit: str
    recommended: list[float | None]
    last: list[float | None]


@dataclass(frozen=True)
class Unranked:
    """A checkpoint that has no ranking, and why."""

    revision: str
    reason: str


@dataclass(frozen=True)
class ModelTrend:
    """The checkpoints of one model in the order of their steps."""

    model: str
    checkpoints: list[Ranked]
    metrics: list[MetricTrend]
    alerts: list[Alert]
    unranked: list[Unranked]


@dataclass(frozen=True)
class Trend:
    """Everything that the trend page of a run says."""

    schema_version: int
    run: str
    level: float
    models: list[ModelTrend]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def trend_of(
    root: Root, config: RunConfig, history: Sequence[Checkpoint], failed: Mapping[Subject, str]
) -> Trend:
    """Gather the trend from ranked checkpoints, in order, and from those that could not be."""
    models = sorted({each.model for each in history} | {each.name for each in failed})
    found = []
    for model in models:
        checkpoints = [each for each in history if each.model == model]
        revisions = [each.revision for each in checkpoints]
        alerts = read_alerts(root, config.name, model)
        unranked = {
            each.revision: Unranked(each.revision, reason)
            for each, reason in failed.items()
            if each.name == model and each.revision not in revisions
        }
        found.append(
            ModelTrend(
                model,
                [_ranked(each) for each in checkpoints],
                _metrics(config, checkpoints),
                [alerts[name] for name in revisions if name in alerts],
                [unranked[name] for name in sorted(unranked, key=by_step)],
            )
        )
    return Trend(SCHEMA_VERSION, config.name, config.rank.level, found)


def _ranked(checkpoint: Checkpoint) -> Ranked:
    best = [row["layer"] for row in checkpoint.ranking if row["rank"] == 1]
    return Ranked(
        checkpoint.revision,
        step_of(checkpoint.revision),
        checkpoint.ranking[0]["verdict"],
        _score(checkpoint, checkpoint.recommended),
        _score(checkpoint, min(best)) if best else None,
        _score(checkpoint, max(checkpoint.layers)),
    )


def _score(checkpoint: Checkpoint, layer: int) -> LayerScore:
    row = checkpoint.row(layer)
    values = (_defined(row[name]) for name in ("score", "score_low", "score_high"))
    return LayerScore(layer, *values)


def _metrics(config: RunConfig, checkpoints: Sequence[Checkpoint]) -> list[MetricTrend]:
    named = dict.fromkeys(name for each in checkpoints for name in each.metrics)
    found = []
    for dataset, metric in named:
        values = [each.metrics.get((dataset, metric), {}) for each in checkpoints]
        layers = [(each.recommended, max(each.layers)) for each in checkpoints]
        pairs = [
            (_defined(at.get(recommended)), _defined(at.get(last)))
            for at, (recommended, last) in zip(values, layers, strict=True)
        ]
        unit = unit_of(metric, main_variant(metric, parameters(config)))
        found.append(
            MetricTrend(
                *(dataset, metric, unit), [first for first, _ in pairs], [last for _, last in pairs]
            )
        )
    return found


def _defined(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
