"""How the metrics of a run respond to its conditions, gathered for the report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.corpora import DatasetConfig
from jobs.findings_conditions import LevelFinding, ResponseFinding, SlopeFinding
from jobs.measurer import parameters
from jobs.run import Run, partition
from jobs.sensitivity import sensitivity_partition
from operators.conditions import FAMILIES, Condition
from operators.metrics.registry import METRICS, main_variant, of_kind
from operators.metrics.variants import Views
from operators.subject import Subject
from storage.manifest import load
from storage.partition import Partition
from storage.shards import read_table

_Row = Mapping[str, Any]
_Vectors = tuple[str, str]  # norm and pooling


def responses(run: Run, subject: Subject, dataset: DatasetConfig) -> list[ResponseFinding]:
    """Return every metric under every family of conditions that was measured."""
    found: list[ResponseFinding] = []
    for family, conditions in run.config.conditions.families().items():
        found += _family(run, subject, dataset, family, conditions)
    return found


def _family(
    run: Run, subject: Subject, dataset: DatasetConfig, family: str, conditions: list[Condition]
) -> Iterator[ResponseFinding]:
    # A share of less than all is the stronger the smaller it is.
    conditions = sorted(conditions, reverse=FAMILIES[family].clean == 1)
    levels = [
        _rows(run, partition("layer_metrics", subject, dataset, each.name)) for each in conditions
    ]
    if not all(levels):
        return
    slopes = _rows(run, sensitivity_partition(subject, dataset, family))
    for metric in of_metrics(run.config.measure.metrics):
        variant = standing_for(metric, run)
        wanted = [[row for row in rows if _is(row, metric, variant)] for rows in levels]
        vectors = _chosen(run, [row for rows in wanted for row in rows])
        if vectors is None:
            continue
        at = [_by_layer(rows, vectors) for rows in wanted]
        layers = sorted(set().union(*at))
        sloped = _by_layer([row for row in slopes if _is(row, metric, variant)], vectors)
        yield ResponseFinding(
            dataset.name,
            family,
            metric,
            variant,
            *vectors,
            layers,
            [_level(each, found, layers) for each, found in zip(conditions, at, strict=True)],
            [_slope(sloped[layer]) for layer in layers if layer in sloped],
        )


def of_metrics(names: Sequence[str]) -> list[str]:
    """Return the metrics that are measured under conditions: views are of the clean text alone."""
    views = of_kind(names, Views)
    return [name for name in METRICS if name in names and name not in views]


def standing_for(metric: str, run: Run) -> str:
    """Return the variant that is shown: one with a value for the same prompts at every level."""
    return METRICS[metric].perturbed or main_variant(metric, parameters(run.config))


def _rows(run: Run, where: Partition) -> list[dict[str, Any]]:
    manifest = load(run.root, where)
    return read_table(run.root, manifest.objects()[0]).to_pylist() if manifest else []


def _is(row: _Row, metric: str, variant: str) -> bool:
    return (row["metric"], row["variant"]) == (metric, variant)


def _chosen(run: Run, rows: Sequence[_Row]) -> _Vectors | None:
    """Return the vectors that are shown: the ranked ones where the metric was measured on them."""
    measured = sorted({(row["norm"], row["pooling"]) for row in rows})
    ranked = (run.config.rank.norm, run.config.rank.pooling)
    return ranked if ranked in measured else next(iter(measured), None)


def _by_layer(rows: Sequence[_Row], vectors: _Vectors) -> dict[int, _Row]:
    return {row["layer"]: row for row in rows if (row["norm"], row["pooling"]) == vectors}


def _level(condition: Condition, rows: Mapping[int, _Row], layers: Sequence[int]) -> LevelFinding:
    nothing: _Row = defaultdict(lambda: math.nan)
    return LevelFinding(
        condition.name,
        condition.level,
        [_defined(rows.get(layer, nothing)["value"]) for layer in layers],
        max((row["n_prompts"] for row in rows.values()), default=0),
        max((row["n_undefined"] for row in rows.values()), default=0),
    )


def _slope(row: _Row) -> SlopeFinding:
    return SlopeFinding(
        row["layer"],
        _defined(row["slope"]),
        _defined(row["slope_low"]),
        _defined(row["slope_high"]),
        row["reason"],
        int(row["n_prompts"]),
        int(row["n_undefined"]),
    )


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
