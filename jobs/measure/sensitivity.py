"""sensitivity (CPU tasks): how every metric changes with the level of a condition, by layer.

`prompt_metrics of every level -> slopes per prompt -> sums`, one task per family and layer, shard
by shard; what has one value per level is read from `layer_metrics` on the driver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from layerrank.jobs.cluster.console import say
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.metrics import TOKENS, parameters, token_metrics
from layerrank.jobs.measure.pieces import Piece
from layerrank.jobs.run import Run, partition
from layerrank.operators.analysis import sensitivity as slopes
from layerrank.operators.metrics.registry import METRICS, Views, of_kind, token_variants
from layerrank.operators.model.subject import Subject
from layerrank.storage.layers import metric_column
from layerrank.storage.manifest import Manifest, Settings
from layerrank.storage.partition import Partition
from layerrank.storage.root import Root

NO_SLOPE = "fewer than 2 levels with a value"
Array = npt.NDArray[np.float64]
Row = dict[str, Any]
Name = tuple[str, str, str]  # metric, variant, norm
_KEY = ("layer", "norm", "pooling", "metric", "variant")


class FamilyTables(NamedTuple):
    """What one family's slopes are made from: the metrics at each of its levels.

    `places` [P] is where the levels lie on the axis.
    """

    where: Partition
    places: Array
    layer_metrics: Sequence[Manifest]
    prompt_metrics: Sequence[Manifest]
    columns: Sequence[tuple[str, str]]  # metric and variant of the values of prompts
    settings: Settings


def sensitivity(run: Run, subject: Subject, dataset: DatasetConfig) -> Iterator[Piece]:
    """Yield what computes the slopes of every family of conditions that are not computed yet."""
    for family, conditions in run.config.conditions.families().items():
        if len(conditions) < slopes.FEWEST_LEVELS:
            say(f"  {dataset.name}: one level of {family} has no slope")
            continue
        layers = [
            run.manifests.require(partition("layer_metrics", subject, dataset, each.name))
            for each in conditions
        ]
        of_tokens = token_metrics(run.config)
        wanted = layers if of_tokens else []
        beside = (each.partition.sibling("prompt_metrics") for each in wanted)
        prompts = [run.manifests.require(each) for each in beside]
        settings = {
            "level": run.config.rank.level,  # of the intervals
            "conditions": [each.name for each in conditions],
            "layer_metrics": [each.content for each in layers],
            "prompt_metrics": [each.content for each in prompts],
        }
        where = partition("sensitivity", subject, dataset, family)
        if run.manifests.current(where, settings, overwrite=run.overwrite) is None:
            places = np.array([each.place for each in conditions])
            columns = token_variants(of_tokens, parameters(run.config))
            yield _piece(run, FamilyTables(where, places, layers, prompts, columns, settings))


def _piece(run: Run, tables: FamilyTables) -> Piece:
    """Return what computes the slopes of one family, layer by layer."""

    def done(found: list[tuple[int, dict[Name, slopes.SlopeSums]]]) -> str:
        rows = _population_rows(run, tables)
        for layer, sums in found:
            for (metric, variant, norm), each in sums.items():
                slope = slopes.mean_slope(each, run.config.rank.level)
                key = (layer, norm, TOKENS, metric, variant)
                rows.append(_row(tables, key, slope, each.prompts, each.undefined))
        rows.sort(key=itemgetter("metric", "variant", *_KEY))
        run.write(tables.where, tables.settings, rows)
        return f"  {tables.where.keys['dataset']}: sensitivity to {tables.where.keys['family']}"

    rows = run.rows(tables.layer_metrics[0].partition) if tables.prompt_metrics else []
    layers = sorted({row["layer"] for row in rows})
    return Piece(layers, partial(layer_slopes, run.root, tables), done)


def layer_slopes(
    root: Root, tables: FamilyTables, layer: int
) -> tuple[int, dict[Name, slopes.SlopeSums]]:
    """Reduce the slopes of all prompts in one layer of one family, shard by shard.

    The layer comes back with the sums of every metric.
    """
    filled = [{s.receipt.name: s for s in each.filled(root)} for each in tables.prompt_metrics]
    found: dict[Name, slopes.SlopeSums] = {}
    for name in sorted({r.name for each in tables.prompt_metrics for r in each.receipts}):
        levels = [
            _by_metric(shards[name].read_group({"layer": layer}), tables.columns)
            if name in shards
            else {}
            for shards in filled
        ]
        for metric in sorted(set().union(*levels)):
            values_PN = aligned([level.get(metric) for level in levels])
            sums = slopes.slope_sums(slopes.least_squares_slopes(values_PN, tables.places))
            found[metric] = slopes.merge_slopes(found.get(metric, slopes.NO_SLOPES), sums)
    return layer, found


def _by_metric(
    table: pa.Table, columns: Sequence[tuple[str, str]]
) -> dict[Name, tuple[npt.NDArray[np.int64], Array]]:
    """Return the prompts and values of each metric in a row group, whose norm is one."""
    ids, norm = table["prompt_id"].to_numpy(), table["norm"][0].as_py()
    return {(*each, norm): (ids, table[metric_column(*each)].to_numpy()) for each in columns}


def aligned(levels: Sequence[tuple[npt.NDArray[np.int64], Array] | None]) -> Array:
    """Return the values of every level for the same prompts [P, N], NaN where a level has none."""
    ids_N = np.unique(np.concatenate([level[0] for level in levels if level is not None]))
    values_PN = np.full((len(levels), len(ids_N)), np.nan)
    for row_N, level in zip(values_PN, levels, strict=True):
        if level is not None:
            row_N[np.searchsorted(ids_N, level[0])] = level[1]
    return values_PN


def _population_rows(run: Run, tables: FamilyTables) -> list[Row]:
    """Return the slopes of metrics of all prompts together: one value per level, no interval."""
    values: dict[tuple[Any, ...], Array] = {}
    prompts: dict[tuple[Any, ...], int] = {}
    unmeasured = of_kind(METRICS, Views)  # under a condition: views are of the clean text
    for index, manifest in enumerate(tables.layer_metrics):
        for row in run.rows(manifest.partition):
            if row["pooling"] == TOKENS or row["metric"] in unmeasured:
                continue
            key = tuple(row[column] for column in _KEY)
            values.setdefault(key, np.full(len(tables.places), np.nan))[index] = row["value"]
            prompts[key] = min(prompts.get(key, row["n_prompts"]), row["n_prompts"])
    return [
        _row(tables, key, slopes.population_slope(value_P, tables.places), prompts[key], 0)
        for key, value_P in values.items()
    ]


def _row(
    tables: FamilyTables, key: tuple[Any, ...], slope: slopes.Slope, prompts: int, undefined: int
) -> Row:
    return {
        **dict(zip(_KEY, key, strict=True)),
        "slope": slope.value,
        "slope_low": slope.low,
        "slope_high": slope.high,
        "reason": NO_SLOPE if np.isnan(slope.value) else None,
        "levels": len(tables.places),
        "n_prompts": prompts,
        "n_undefined": undefined,
    }
