"""sensitivity (CPU tasks): how every metric changes with the level of a condition, by layer.

`prompt_metrics of every level -> slopes per prompt -> sums`, one task per family and layer, shard
by shard; what has one value per level is read from `layer_metrics` on the driver.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.cluster.console import Progress, say
from jobs.config.datasets import DatasetConfig
from jobs.config.metrics import TOKENS, token_metrics
from jobs.run import Run, partition
from operators.analysis.sensitivity import (
    FEWEST_LEVELS,
    NO_SLOPES,
    Slope,
    SlopeSums,
    least_squares_slopes,
    mean_slope,
    merge_slopes,
    population_slope,
    slope_sums,
)
from operators.metrics.registry import METRICS, of_kind
from operators.metrics.variants import Views
from operators.model.subject import Subject
from operators.prompts.conditions import Condition
from storage.manifest import Manifest, Settings
from storage.partition import Partition
from storage.root import Root
from storage.shards import read_group, read_table

NO_SLOPE = "fewer than 2 levels with a value"
Array = npt.NDArray[np.float64]
Row = dict[str, Any]
Name = tuple[str, str, str]  # metric, variant, norm
_SEPARATOR = "\n"
_KEY = ("layer", "norm", "pooling", "metric", "variant")


@dataclass(frozen=True)
class FamilyTables:
    """What one family's slopes are made from: its levels, and the metrics at each of them."""

    where: Partition
    conditions: tuple[Condition, ...]
    layer_metrics: tuple[Manifest, ...]
    prompt_metrics: tuple[Manifest, ...]

    @property
    def places(self) -> Array:
        """Where the levels lie on the axis, [P]."""
        return np.array([each.place for each in self.conditions])

    def settings(self, level: float) -> Settings:
        """Return what the slopes depend on; `level` is the coverage of their intervals."""
        return {
            "level": level,
            "conditions": [each.name for each in self.conditions],
            "layer_metrics": [each.content for each in self.layer_metrics],
            "prompt_metrics": [each.content for each in self.prompt_metrics],
        }


def measure_sensitivity(run: Run, subject: Subject, dataset: DatasetConfig) -> None:
    """Compute the slopes of every family of conditions that are not computed yet."""
    level = run.config.rank.level
    absent = []
    for family, conditions in run.config.conditions.families().items():
        if len(conditions) < FEWEST_LEVELS:
            say(f"  {dataset.name}: one level of {family} has no slope")
            continue
        tables = _family_tables(run, subject, dataset, conditions)
        settings = tables.settings(level)
        if run.manifests.current(tables.where, settings, overwrite=run.overwrite) is None:
            absent.append(tables)
    if not absent:
        return
    sums = _prompt_sums(run, absent)
    for index, tables in enumerate(absent):
        rows = [*_population_rows(run, tables), *_prompt_rows(tables, sums[index], level)]
        rows.sort(key=lambda row: [row[column] for column in ("metric", "variant", *_KEY)])
        run.write(tables.where, tables.settings(level), rows)
    say(f"  {dataset.name}: sensitivity to {', '.join(each.where.values[-1] for each in absent)}")


def _family_tables(
    run: Run, subject: Subject, dataset: DatasetConfig, conditions: Sequence[Condition]
) -> FamilyTables:
    layers = [
        run.manifests.require(partition("layer_metrics", subject, dataset, each.name))
        for each in conditions
    ]
    wanted = layers if token_metrics(run.config) else []
    prompts = [run.manifests.require(each.partition.sibling("prompt_metrics")) for each in wanted]
    where = partition("sensitivity", subject, dataset, conditions[0].family)
    return FamilyTables(where, tuple(conditions), tuple(layers), tuple(prompts))


def _prompt_sums(
    run: Run, families: Sequence[FamilyTables]
) -> dict[int, dict[tuple[int, Name], SlopeSums]]:
    """Return the slopes of all prompts, reduced, by family, then by layer and metric."""
    found: dict[int, dict[tuple[int, Name], SlopeSums]] = defaultdict(dict)
    units = [
        (index, layer)
        for index, tables in enumerate(families)
        if tables.prompt_metrics
        for layer in _layers(run.root, tables)
    ]
    if not units:
        return found
    work = PromptSlopes(run.root, tuple(families))
    with Progress("measure", len(units), "layers of slopes") as progress:
        for index, layer, sums in run.cluster.each("measure", units, work):
            for name, values in sums.items():
                found[index][layer, name] = values
            progress.add(1)
    return found


def _layers(root: Root, tables: FamilyTables) -> list[int]:
    table = read_table(root, tables.layer_metrics[0].objects()[0], ["layer"])
    return sorted(pc.unique(table["layer"]).to_pylist())


@dataclass(frozen=True)
class PromptSlopes:
    """Reduces the slopes of all prompts in one layer of one family, shard by shard."""

    root: Root
    families: tuple[FamilyTables, ...]

    def __call__(self, unit: tuple[int, int]) -> tuple[int, int, dict[Name, SlopeSums]]:
        """Return the index of the family, the layer, and the sums of every metric."""
        index, layer = unit
        tables = self.families[index]
        found: dict[Name, SlopeSums] = {}
        for name in sorted({r.name for each in tables.prompt_metrics for r in each.receipts}):
            for metric, sums in self._shard(tables, name, layer):
                found[metric] = merge_slopes(found.get(metric, NO_SLOPES), sums)
        return index, layer, found

    def _shard(
        self, tables: FamilyTables, name: str, layer: int
    ) -> Iterator[tuple[Name, SlopeSums]]:
        filled = [
            {receipt.name for receipt in each.receipts if receipt.rows}
            for each in tables.prompt_metrics
        ]
        levels = [
            _by_metric(read_group(self.root, each.partition.shard(name), {"layer": layer}))
            if name in names
            else {}
            for each, names in zip(tables.prompt_metrics, filled, strict=True)
        ]
        for metric in sorted(set().union(*levels)):
            values_PN = aligned([level.get(metric) for level in levels])
            yield metric, slope_sums(least_squares_slopes(values_PN, tables.places))


def _by_metric(table: pa.Table) -> dict[Name, tuple[npt.NDArray[np.int64], Array]]:
    """Return the prompts and values of each metric in a row group, as they lie in it."""
    columns = [table[column] for column in ("metric", "variant", "norm")]
    joined = pc.binary_join_element_wise(*columns, _SEPARATOR).combine_chunks().dictionary_encode()
    codes = joined.indices.to_numpy()
    starts = [0, *(1 + np.flatnonzero(np.diff(codes))).tolist(), len(codes)]
    ids, values = table["prompt_id"].to_numpy(), table["value"].to_numpy()
    found = {}
    for start, end in pairwise(starts):
        metric, variant, norm = joined.dictionary[int(codes[start])].as_py().split(_SEPARATOR)
        found[metric, variant, norm] = (ids[start:end], values[start:end])
    return found


def aligned(levels: Sequence[tuple[npt.NDArray[np.int64], Array] | None]) -> Array:
    """Return the values of every level for the same prompts [P, N], NaN where a level has none."""
    ids_N = np.unique(np.concatenate([level[0] for level in levels if level is not None]))
    values_PN = np.full((len(levels), len(ids_N)), np.nan)
    for row_N, level in zip(values_PN, levels, strict=True):
        if level is not None:
            row_N[np.searchsorted(ids_N, level[0])] = level[1]
    return values_PN


def _prompt_rows(
    tables: FamilyTables, sums: Mapping[tuple[int, Name], SlopeSums], level: float
) -> Iterator[Row]:
    for (layer, (metric, variant, norm)), each in sums.items():
        key = dict(zip(_KEY, (layer, norm, TOKENS, metric, variant), strict=True))
        yield _row(tables, key, mean_slope(each, level), each.prompts, each.undefined)


def _population_rows(run: Run, tables: FamilyTables) -> Iterator[Row]:
    """Yield the slopes of the metrics of all prompts together: one value per level, no interval."""
    values: dict[tuple[Any, ...], Array] = {}
    prompts: dict[tuple[Any, ...], int] = {}
    unmeasured = of_kind(METRICS, Views)  # under a condition: views are of the clean text
    for index, manifest in enumerate(tables.layer_metrics):
        for row in run.rows(manifest.partition):
            if row["pooling"] == TOKENS or row["metric"] in unmeasured:
                continue
            key = tuple(row[column] for column in _KEY)
            values.setdefault(key, np.full(len(tables.conditions), np.nan))[index] = row["value"]
            prompts[key] = min(prompts.get(key, row["n_prompts"]), row["n_prompts"])
    for key, value_P in values.items():
        named = dict(zip(_KEY, key, strict=True))
        yield _row(tables, named, population_slope(value_P, tables.places), prompts[key], 0)


def _row(
    tables: FamilyTables, key: Mapping[str, Any], slope: Slope, prompts: int, undefined: int
) -> Row:
    return {
        **key,
        "slope": slope.value,
        "slope_low": slope.low,
        "slope_high": slope.high,
        "reason": NO_SLOPE if np.isnan(slope.value) else None,
        "levels": len(tables.conditions),
        "n_prompts": prompts,
        "n_undefined": undefined,
    }
